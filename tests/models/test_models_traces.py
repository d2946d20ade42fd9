"""Every family as an ONNX graph: ONNX Runtime gives the module's outputs, at static and dynamic shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from deterministic_weights import deterministic_input, deterministic_weights
from families import STORED
from networks import load_network
from raising import raises

from trtkit.errors import CheckpointError
from trtkit.graph.analysis import GraphIndex
from trtkit.graph.fp16 import convert_to_fp16
from trtkit.graph.qdq import insert_qdq, plan_qdq, quantizable_tensors
from trtkit.graph.torch_export import trace
from trtkit.models import Model
from trtkit.models.checkpoint import Checkpoint
from trtkit.models.model import DETR_ROWS, Preprocess
from trtkit.models.torch_model import from_checkpoint
from trtkit.models.yolo import build_model

STRUCTURES = json.loads((Path(__file__).parent / "references" / "structures.json").read_text())
# One for each kind of layer in turn; the others are traced by hand (`pytest -m exhaustive`).
QUICK = ("yolo12n", "yolov8n-ghost", "yolov8n-p6", "yolov3-tiny", "small-yolov9e", "small-rtdetr", "small-resnet")
TRACED = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.exhaustive)
    for name in STORED
    if not name.startswith(("yolo26", "yolov10")) and name[6:7] != "s"
]


def run(proto: onnx.ModelProto, images: np.ndarray) -> list[np.ndarray]:
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})


def run_module(model: Model, images: np.ndarray) -> list[np.ndarray]:
    assert model.module is not None
    with torch.no_grad():
        outputs = model.module(torch.from_numpy(images))
    return [output.numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]


def assert_close(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        # FP32 sums in another order: 1e-5 of the largest value.
        np.testing.assert_allclose(ours, theirs, atol=max(1e-4, 1e-5 * float(np.abs(theirs).max())), rtol=1e-4)


@pytest.mark.parametrize("name", TRACED)
def test_graphs_give_the_outputs_of_the_module(name: str) -> None:
    model = load_network(name)
    # Traced at one size, run at another one.
    dynamic = trace(model, imgsz=(64, 128), dynamic=True)
    assert {entry.version for entry in dynamic.opset_import} == {17}
    images = deterministic_input(2, 128, 64)
    found, expected = run(dynamic, images), run_module(model, images)
    assert_close(found, expected)
    if name not in QUICK or name.startswith("small"):
        images = deterministic_input(1, 64, 128)
        assert_close(run(trace(model, imgsz=(64, 128)), images), run_module(model, images))
    if name.startswith("yolo"):
        int8 = insert_qdq(dynamic, dict.fromkeys(quantizable_tensors(dynamic), (-1.0, 1.0)))
        assert int8.ByteSize() <= 0.32 * dynamic.ByteSize()


def test_a_calibration_of_rtdetr_fits_static_and_dynamic_graphs() -> None:
    model = load_network("small-rtdetr")
    static, dynamic = trace(model, imgsz=(64, 128)), trace(model, imgsz=(64, 128), dynamic=True)
    assert plan_qdq(static).tensors == plan_qdq(dynamic).tensors


def test_rtdetr_loads_with_the_stride_that_ultralytics_writes() -> None:
    """32, whatever its layers have; another model's strides must be those of its layers."""
    for name, fits in (("small-rtdetr", True), ("small-resnet", False)):
        yaml = STRUCTURES[name]["yaml"]
        shapes = {key: tuple(value.shape) for key, value in build_model(yaml).state_dict().items()}
        weights = {key: torch.from_numpy(value) for key, value in deterministic_weights(shapes).items()}
        checkpoint = Checkpoint(yaml=yaml, weights=weights, stride=(32.0,))
        if fits:
            assert from_checkpoint(checkpoint, None).stride == 16
        else:
            with raises(CheckpointError, "checkpoint-stride-mismatch", value=(32.0,)):
                from_checkpoint(checkpoint, None)


def test_rtdetr_has_its_preprocessing_and_output_format() -> None:
    model = load_network("small-rtdetr")
    assert (model.task, model.output_format, model.preprocess) == ("detect", DETR_ROWS, Preprocess(kind="stretch"))
    shape = trace(model, imgsz=(64, 128), dynamic=True).graph.output[0].type.tensor_type.shape
    assert [dim.dim_param or dim.dim_value for dim in shape.dim] == ["batch", 40, 6]


def test_a_dynamic_rtdetr_fills_up_where_the_image_has_fewer_positions_than_queries() -> None:
    model = load_network("small-rtdetr")
    images = deterministic_input(2, 32, 32)
    expected = run_module(model, images)[0]
    # 20 positions, with rows of several classes each.
    assert expected.shape == (2, 40, 6)
    assert len({tuple(box) for box in expected[0, :, :4].tolist()}) <= 20
    found = run(trace(model, imgsz=(64, 128), dynamic=True), images)[0]
    assert_close([found], [expected])


@pytest.fixture(scope="module")
def rtdetr() -> tuple[onnx.ModelProto, GraphIndex]:
    proto = trace(load_network("small-rtdetr"), imgsz=(64, 128))
    return proto, GraphIndex(proto)


def _readers(index: GraphIndex, kind: str) -> set[str]:
    """Names of all nodes downstream of nodes of an operator."""
    nodes = [node for node in index.graph.node if node.op_type == kind]
    return {reader.name for node in nodes for reader in index.downstream(node, lambda _: False)}


def test_rtdetr_decoder_stays_out_of_int8(rtdetr: tuple[onnx.ModelProto, GraphIndex]) -> None:
    proto, index = rtdetr
    assert {"TopK", "GridSample", "LayerNormalization"} <= {node.op_type for node in proto.graph.node}
    placement = plan_qdq(proto)
    after_selection = _readers(index, "TopK")
    assert not after_selection & set(placement.layers)
    # Nor is what a node computes after the selection of queries: boxes, sampled points, attention.
    assert not set(placement.tensors) & {name for node in after_selection for name in index.nodes[node].output}
    convolutions = [node.name for node in index.weighted if node.op_type == "Conv"]
    assert {placement.excluded[name] for name in set(convolutions) - set(placement.layers)} <= {"decoder", "depthwise"}


def test_rtdetr_boxes_stay_in_fp32(rtdetr: tuple[onnx.ModelProto, GraphIndex]) -> None:
    proto, index = rtdetr
    nodes = index.decode_nodes()
    boxes = [node.name for node in index.graph.node if node.op_type in ("TopK", "Log", "Clip")]
    assert len(boxes) == 2 + 2 * 3
    assert set(boxes) <= nodes
    kept = {index.nodes[name].op_type for name in nodes}
    assert not kept & {"MatMul", "Conv", "GridSample", "LayerNormalization", "Softmax"}, "only what computes boxes"
    graph = convert_to_fp16(proto)
    images = deterministic_input(1, 64, 128)
    found, expected = run(graph, images)[0][0], run(proto, images)[0][0]
    assert np.abs(found[:, 4] - expected[:, 4]).max() < 0.02
    # Rounding swaps rows of nearly equal score and replaces the last ones.
    distances = np.abs(found[None] - expected[:30, None]).max(2).min(1)
    assert distances.max() < 0.02


def test_rtdetr_backbone_and_encoder_run_in_int8(rtdetr: tuple[onnx.ModelProto, GraphIndex]) -> None:
    proto, index = rtdetr
    placement = plan_qdq(proto)
    blocks: dict[str, list[Any]] = {}
    for node in index.weighted:
        blocks.setdefault(node.name.split("/")[1], []).append(node)
    head = (
        f"model.{len(STRUCTURES['small-rtdetr']['yaml']['backbone'] + STRUCTURES['small-rtdetr']['yaml']['head']) - 1}"
    )
    for block, nodes in blocks.items():
        for node in nodes:
            if block != head and node.op_type == "Conv":
                assert node.name in placement.layers, node.name
    assert any(node.name in placement.layers for node in blocks[head]), "projections of the feature maps"
    # Products of two activations are never quantized.
    assert all(index.nodes[name].op_type == "Conv" for name in placement.layers)
    products = [node for node in index.graph.node if node.op_type == "MatMul" and len(index.data_inputs(node)) == 2]
    assert len(products) == 2 * (1 + 2)
    assert not {name for node in products for name in node.input} & set(placement.tensors)
