"""Graphs of one-to-one heads: rows equal the module's; top-k, gather and box arithmetic stay out of INT8 and FP16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from two_heads import EXTRA, HEADS, YOLOV10, make_model, yolo26

import trtkit
from trtkit.graph.analysis import GraphIndex, block_of
from trtkit.graph.fp16 import convert_to_fp16
from trtkit.graph.qdq import plan_qdq
from trtkit.graph.torch_export import trace

ARCHITECTURES = {**{task: yolo26(task) for task in HEADS}, "yolov10": YOLOV10}
EXTRAS = {**EXTRA, "yolov10": 0}
SELECTION = {"TopK", "GatherND", "ReduceMax"}


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run(proto: onnx.ModelProto, images: torch.Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(None, {"images": images.numpy()})
    return outputs


def images_of(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height))


@pytest.mark.parametrize("dynamic", [False, True])
def test_rows_of_the_graph_are_those_of_the_module(name: str, dynamic: bool) -> None:
    model = make_model(ARCHITECTURES[name], end2end=True)
    proto = trace(model, imgsz=(64, 64), batch=2, dynamic=dynamic)
    onnx.checker.check_model(proto, full_check=True)
    kinds = {node.op_type for node in proto.graph.node}
    assert kinds >= SELECTION
    # Nothing whose shape depends on the image, and one node for each gathering.
    assert not kinds & {"If", "Loop", "NonZero", "NonMaxSuppression", "Where", "Expand", "GatherElements", "Mod"}
    shape = [dim.dim_value for dim in proto.graph.output[0].type.tensor_type.shape.dim]
    assert shape == [0 if dynamic else 2, 300, 6 + EXTRAS[name]]
    for size in [(2, 64, 64), *([(1, 32, 32), (3, 96, 64)] if dynamic else [])]:
        images = images_of(*size)
        expected = model.module(images)  # type: ignore[misc]
        expected = [part.numpy() for part in (expected if isinstance(expected, tuple) else (expected,))]
        found = run(proto, images)
        count = expected[0].shape[1]
        assert found[0].shape == (size[0], 300, 6 + EXTRAS[name])
        # A small image has fewer anchors than rows: their further classes, then rows of score 0, fill up.
        scores = found[0][..., 4]
        np.testing.assert_allclose(scores[:, :count], expected[0][..., 4], atol=1e-6)
        assert (np.diff(scores) <= 0).all()
        # Rows of nearly equal scores may change places.
        gaps = np.diff(expected[0][..., 4], prepend=2, append=-1) < -1e-5
        apart = gaps[:, 1:] & gaps[:, :-1]
        assert apart.mean() > 0.5
        np.testing.assert_allclose(found[0][:, :count][apart], expected[0][apart], rtol=1e-4, atol=2e-3)
        for ours, theirs in zip(found[1:], expected[1:], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)


def check_structure(dense: onnx.ModelProto, rows: onnx.ModelProto) -> None:
    """Both heads have the same layers in INT8, and everything behind their last convolutions is decoding."""
    plans = [plan_qdq(proto) for proto in (dense, rows)]
    layers = [sorted(layer.replace("one2one_", "") for layer in plan.layers) for plan in plans]
    assert layers[0] == layers[1]
    assert any("one2one_cv2" in layer for layer in plans[1].layers)
    assert not any("one2one_" in node.name for node in dense.graph.node)
    for proto, plan in zip((dense, rows), plans, strict=True):
        index = GraphIndex(proto)
        outputs, decoding = set(index.output_layers()), index.decode_nodes()
        # All of a head's branches end in a layer that runs in INT8.
        assert {block_of(layer) for layer in outputs if "cv" in layer} <= {block_of(layer) for layer in plan.layers}
        assert outputs <= set(plan.layers)
        computed = {output for name in decoding for output in index.nodes[name].output}
        assert not computed & set(plan.tensors)
        assert not decoding & set(plan.layers)
        selection = {node.name for node in proto.graph.node if node.op_type in SELECTION}
        assert selection <= decoding
        assert bool(selection) == (proto is rows)


def test_both_heads_have_their_layers_in_int8(name: str) -> None:
    model = make_model(ARCHITECTURES[name])
    check_structure(trace(model), trace(model.with_end2end()))


def test_selection_and_boxes_stay_in_fp32(name: str) -> None:
    model = make_model(ARCHITECTURES[name], end2end=True)
    proto = trace(model)
    decoding = GraphIndex(proto).decode_nodes()
    half = convert_to_fp16(proto)
    inferred = onnx.shape_inference.infer_shapes(half)
    kinds = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    narrow = {name for name, kind in kinds.items() if kind == TensorProto.FLOAT16}
    assert narrow
    for node in half.graph.node:
        if node.name in decoding:
            assert not narrow & {*node.input, *node.output}, node.name
    rows = run(half, images_of(1, 64, 64))[0]
    assert (rows[..., 5] == rows[..., 5].round()).all()


@pytest.mark.parametrize("name", ["yolo26n-seg", "yolo26n-pose", "yolo26n-obb", "yolov10n"])
def test_trained_models_have_the_same_structure(shared: Path, name: str) -> None:
    path = shared / "models" / f"{name}.pt"
    if not path.is_file():
        pytest.skip(f"{name}.pt is not in the shared folder")
    model = trtkit.load(path)
    check_structure(trace(model, imgsz=(64, 64)), trace(model.with_end2end(), imgsz=(64, 64)))


def test_boxes_of_yolov10_are_one_layer_in_either_head() -> None:
    for end2end in (False, True):
        index = GraphIndex(trace(make_model(YOLOV10, end2end=end2end)))
        (layer,) = index.dfl_layers()
        assert list(index.constants[index.nodes[layer].input[1]].dims) == [4, 64, 1, 1]


@pytest.mark.parametrize(
    ("architecture", "precision", "dynamic"),
    [
        ("segment", "int8", False), ("segment", "fp16", True), ("pose", "fp16", True), ("obb", "fp32", False),
        ("detect", "int8", True), ("yolov10", "int8", False), ("yolov10", "fp16", True),
    ],
)  # fmt: skip
def test_tensorrt_rtx_builds_the_rows(
    architecture: str, precision: str, dynamic: bool, tmp_path: Path, demo_data: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = make_model(ARCHITECTURES[architecture], end2end=True)
    calibration = trtkit.calibrate(model, demo_data, calibration_images=2) if precision == "int8" else None
    artifact = trtkit.export(
        model, backend="tensorrt_rtx", device="sm89", dynamic=dynamic, batch=2, output=tmp_path / "rows.engine",
        half=precision == "fp16", int8=precision == "int8", calibration=calibration,
    )  # fmt: skip
    assert artifact.info.end2end
    assert artifact.recipe.end2end
    file = trtkit.backends.read_engine(artifact.path)
    assert file.passport is not None
    assert (file.passport.precision, file.passport.dynamic) == (precision, dynamic)
    shares = dict(trtkit.backends.layer_frame(file.passport.layers).group_by("precision").len().iter_rows())
    assert shares.get(precision, 0) > 10, shares
    assert file.info().output_format == model.output_format
    metadata = file.metadata
    assert (metadata["end2end"], metadata["args"]["max_det"]) == (True, 300)
