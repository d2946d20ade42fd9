"""DLA: the cut graph computes what the whole one does, and the rules are those of NVIDIA's lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_graphs
from onnx import TensorProto, helper, numpy_helper
from raising import raises

from trtkit.errors import OnnxError
from trtkit.graph.analysis import GraphIndex
from trtkit.graph.dla import cut_at_head, fix_shape, list_fallbacks, read_activation_ranges
from trtkit.graph.prequantized import remove_qdq
from trtkit.graph.torch_export import trace
from trtkit.models import load


def run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], outputs: list[str] | None = None) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(outputs, feeds)


@pytest.fixture(scope="module")
def yolo(demo_model: Path) -> onnx.ModelProto:
    # As calibration traces it, so that the session traces it once.
    return trace(load(demo_model), dynamic_batch=True)


def full_shape(proto: onnx.ModelProto, batch: int) -> list[int]:
    return [batch, *(dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim[1:])]


def test_backbone_and_head_compute_what_the_whole_graph_does(yolo):
    shape = full_shape(yolo, 1)
    cut = cut_at_head(fix_shape(yolo, shape))
    image = np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32)
    whole = run(yolo, {"images": image})
    between = run(cut.backbone, {"images": image}, list(cut.tensors))
    np.testing.assert_allclose(run(cut.head, dict(zip(cut.tensors, between, strict=True)))[0], whole[0], atol=1e-4)
    # Three scales of features; the head is one module.
    assert len(cut.tensors) == 3
    assert {node.name.split("/")[1] for node in cut.head.graph.node if "/" in node.name} == {"model.23"}
    for value in (*cut.backbone.graph.output, *cut.head.graph.output):
        assert all(dim.dim_value > 0 for dim in value.type.tensor_type.shape.dim)


def test_of_the_backbone_the_attention_alone_falls_back(yolo):
    fallbacks = list_fallbacks(cut_at_head(fix_shape(yolo, full_shape(yolo, 1))).backbone)
    assert set(fallbacks) == {"/model.10/m/m.0/attn/MatMul", "/model.10/m/m.0/attn/MatMul_1"}


def test_a_head_that_reads_the_image_can_not_be_cut_off():
    node = helper.make_node("Conv", ["images", "w"], ["output0"], name="only")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8, 8]) for name in ("images", "output0")]
    weight = numpy_helper.from_array(np.zeros((3, 3, 1, 1), np.float32), "w")
    graph = helper.make_graph([node], "g", values[:1], values[1:], [weight])
    with raises(OnnxError, "dla-no-head"):
        cut_at_head(helper.make_model(graph))


def explain(operator: str, shapes: list[list[int]], constants: list[np.ndarray] = (), **attributes) -> str:
    names = [f"x{number}" for number in range(len(shapes))]
    weights = [numpy_helper.from_array(value, f"c{number}") for number, value in enumerate(constants)]
    node = helper.make_node(operator, [*names, *(one.name for one in weights)], ["y"], name="n", **attributes)
    inputs = [
        helper.make_tensor_value_info(*pair) for pair in zip(names, [TensorProto.FLOAT] * 9, shapes, strict=False)
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, shapes[0])
    graph = helper.make_graph([node], "g", inputs, [output], weights)
    return list_fallbacks(helper.make_model(graph)).get("n", "")


def test_open_sizes_are_fixed_everywhere():
    fixed = fix_shape(tiny_graphs.detector(dynamic=True), (2, 3, 64, 32))
    values = (*fixed.graph.input, *fixed.graph.output, *fixed.graph.value_info)
    assert all(dim.dim_value > 0 for value in values for dim in value.type.tensor_type.shape.dim)
    assert [dim.dim_value for dim in fixed.graph.output[0].type.tensor_type.shape.dim] == [2, 7, 512]


IMAGE = [1, 4, 8, 8]


@pytest.mark.parametrize(
    ("reason", "arguments"),
    [
        ("", ("Sigmoid", [IMAGE])),
        ("", ("Add", [IMAGE, IMAGE])),
        ("no Erf", ("Erf", [IMAGE])),
        ("no Div", ("Div", [IMAGE, IMAGE])),
        ("3 axes", ("Relu", [[1, 4, 8]])),
        ("open", ("Relu", [[1, 4, 8, 0]])),
        ("beyond", ("Relu", [[1, 4, 8, 9000]])),
        ("beyond", ("Relu", [[5000, 4, 8, 8]])),
        ("beyond", ("Relu", [[1, 9000, 8, 8]])),
        ("calibration cache", ("QuantizeLinear", [IMAGE])),
        ("two activations", ("MatMul", [IMAGE, IMAGE])),
        ("", ("MatMul", [IMAGE], [np.zeros((8, 8), np.float32)])),
        ("", ("Concat", [IMAGE, IMAGE], [], {"axis": 1})),
        ("channels alone", ("Concat", [IMAGE, IMAGE], [], {"axis": 2})),
        ("", ("MaxPool", [IMAGE], [], {"kernel_shape": [5, 5], "pads": [2] * 4, "strides": [1, 1]})),
        ("kernel_shape", ("MaxPool", [IMAGE], [], {"kernel_shape": [13, 13]})),
        ("strides", ("Conv", [IMAGE], [np.zeros((4, 4, 1, 1), np.float32)], {"strides": [16, 16]})),
        ("pads", ("ConvTranspose", [IMAGE], [np.zeros((4, 4, 3, 3), np.float32)], {"pads": [1] * 4})),
    ],
)
def test_rules(reason, arguments):
    operator, shapes, constants, attributes = (*arguments, *([], {})[len(arguments) - 2 :])
    found = explain(operator, shapes, constants, **attributes)
    assert reason in found if reason else found == ""


@pytest.mark.parametrize(
    ("mode", "scales", "runs"),
    [
        ("nearest", (1, 1, 2, 2), True),
        ("nearest", (1, 1, 32, 32), True),
        ("nearest", (1, 1, 1.5, 2), False),
        ("linear", (1, 1, 4, 4), True),
        ("linear", (1, 1, 8, 8), False),
        ("cubic", (1, 1, 2, 2), False),
        ("nearest", (1, 2, 2, 2), False),
    ],
)
def test_resize(mode, scales, runs):
    node = helper.make_node("Resize", ["x", "", "s"], ["y"], name="n", mode=mode)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, IMAGE) for name in ("x", "y")]
    graph = helper.make_graph([node], "g", values[:1], values[1:], [numpy_helper.from_array(np.float32(scales), "s")])
    assert (list_fallbacks(helper.make_model(graph)) == {}) == runs


def test_ranges_belong_to_tensors_of_the_float_graph():
    proto = tiny_graphs.detector("int8")
    ranges = read_activation_ranges(proto)
    index = GraphIndex(remove_qdq(proto))
    assert ranges
    assert set(ranges) <= set(index.producer) | {"images"}
    assert ranges["images"] == pytest.approx((-1, 1))
