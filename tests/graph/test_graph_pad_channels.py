"""Channels padded to whole blocks, with unchanged outputs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from detector_graph import run
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import trtkit
from trtkit.graph.analysis import GraphIndex
from trtkit.graph.pad_channels import pad_channels
from trtkit.graph.qdq import expand_int8_weights, insert_qdq, quantizable_tensors
from trtkit.graph.torch_export import trace


def c3k2(half: int, inner: int, *, residual: bool = True, whole: bool = True, tail: str = "") -> onnx.ModelProto:
    """A C3k2 block: a layer, its halves, a bottleneck on the second, all concatenated and read by a last layer."""
    random = np.random.default_rng(half)
    nodes: list[onnx.NodeProto] = []
    weights = [numpy_helper.from_array(np.array([half, half], np.int64), "sizes")]

    def conv(name: str, source: str, channels: tuple[int, int], kernel: int) -> str:
        shape = (channels[1], channels[0], kernel, kernel)
        weights.append(numpy_helper.from_array(random.normal(0, 0.3, shape).astype(np.float32), f"{name}.w"))
        weights.append(numpy_helper.from_array(random.normal(0, 0.3, shape[0]).astype(np.float32), f"{name}.b"))
        inputs = [source, f"{name}.w", f"{name}.b"]
        nodes.append(helper.make_node("Conv", inputs, [name], name, kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4))
        nodes.append(helper.make_node("Sigmoid", [name], [f"{name}/sigmoid"], f"{name}/sigmoid"))
        nodes.append(helper.make_node("Mul", [name, f"{name}/sigmoid"], [f"{name}/silu"], f"{name}/silu"))
        return f"{name}/silu"

    first = conv("first", "images", (3, 2 * half), 1)
    nodes.append(helper.make_node("Split", [first, "sizes"], ["left", "right"], "split", axis=1))
    third = conv("third", conv("second", "right", (half, inner), 3), (inner, half), 3)
    if residual:
        nodes.append(helper.make_node("Add", ["right", third], ["sum"], "sum"))
        third = "sum"
    joined = [first, third] if whole else ["left", "right", third]
    if tail:
        nodes.append(helper.make_node(tail, ["left"], ["extra"], "extra"))
        joined.append("extra")
    nodes.append(helper.make_node("Concat", joined, ["joined"], "joined", axis=1))
    last = conv("last", "joined", ((3 + bool(tail)) * half, 5), 1)
    nodes[-1].output[0] = "output0"
    assert last == "last/silu"
    graph = helper.make_graph(
        nodes,
        "c3k2",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 6, 6])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, ["batch", 5, 6, 6])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


IMAGES = np.random.default_rng(3).normal(size=(2, 3, 6, 6)).astype(np.float32)


def channels(proto: onnx.ModelProto, layer: str) -> tuple[int, int]:
    """Output and input channels of a layer, by its weight."""
    index = GraphIndex(proto)
    node = index.nodes[layer]
    name = node.input[1]
    while name not in index.constants:
        name = index.producer[name].input[0]
    return int(index.constants[name].dims[0]), int(index.constants[name].dims[1])


@settings(deadline=None, max_examples=40)
@given(
    half=st.integers(1, 20),
    block=st.sampled_from([4, 8, 16, 32]),
    residual=st.booleans(),
    whole=st.booleans(),
    weights=st.sampled_from(["float", "int8", "float behind Q/DQ"]),
)
def test_outputs_do_not_change_and_blocks_are_whole(
    half: int, block: int, residual: bool, whole: bool, weights: str
) -> None:
    proto = c3k2(half, 3, residual=residual, whole=whole)
    if weights != "float":
        proto = insert_qdq(proto, dict.fromkeys(quantizable_tensors(proto), (-3.0, 3.0)), protect=False)
    if weights == "float behind Q/DQ":
        proto = expand_int8_weights(proto)
    after = pad_channels(proto, block)
    onnx.checker.check_model(after, full_check=True)
    multiple = -(-half // block) * block
    padded = multiple if multiple <= 2 * half else half
    assert channels(after, "first") == (2 * padded, 3)
    assert channels(after, "second") == (3, padded)
    # A branch that is not added to a half keeps its channels.
    third = padded if residual else half
    assert channels(after, "third") == (third, 3)
    assert channels(after, "last") == (5, 2 * padded + third)
    np.testing.assert_allclose(run(after, IMAGES)[0], run(proto, IMAGES)[0], rtol=1e-5, atol=1e-6)


def test_channels_read_by_another_operator_are_not_padded() -> None:
    """A sum over channels would include the padding."""
    proto = c3k2(16, 8, tail="Softmax")
    assert pad_channels(proto) == proto


def test_a_factor_that_all_channels_share_is_not_padded() -> None:
    """Spatial attention: the layer before the split is multiplied by a map of one channel."""
    proto = c3k2(16, 8)
    first = next(node for node in proto.graph.node if node.name == "first/sigmoid")
    first.input[0] = "shared"
    weight = np.random.default_rng(1).normal(size=(1, 3, 1, 1)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "shared.w"))
    proto.graph.node.insert(0, helper.make_node("Conv", ["images", "shared.w"], ["shared"], "shared"))
    onnx.checker.check_model(proto, full_check=True)
    assert pad_channels(proto) == proto


def test_channels_read_by_a_depthwise_layer_are_not_padded(proto: onnx.ModelProto) -> None:
    assert pad_channels(proto, 8) == proto


def int8_weights(zero_point: int, *, per_tensor: bool) -> onnx.ModelProto:
    """The block with weights as another exporter may store them."""
    proto = c3k2(16, 8)
    shape = () if per_tensor else None
    for node in [node for node in proto.graph.node if node.op_type == "Conv"]:
        weight = GraphIndex(proto).array(node.input[1])
        size = shape if shape is not None else weight.shape[:1]
        constants = {
            "q": np.clip(np.rint(weight / 0.01), -120, 120).astype(np.int8),
            "s": np.full(size, 0.01, np.float32),
            "z": np.full(size, zero_point, np.int8),
        }
        names = [f"{node.name}.{key}" for key in constants]
        proto.graph.initializer.extend(map(numpy_helper.from_array, constants.values(), names))
        attributes = {} if per_tensor else {"axis": 0}
        dequantize = helper.make_node("DequantizeLinear", names, [f"{node.name}.dq"], f"{node.name}.dq", **attributes)
        proto.graph.node.insert(0, dequantize)
        node.input[1] = f"{node.name}.dq"
    onnx.checker.check_model(proto, full_check=True)
    return proto


@pytest.mark.parametrize("per_tensor", [True, False])
def test_int8_weights_of_other_exporters(per_tensor: bool) -> None:
    proto = int8_weights(0, per_tensor=per_tensor)
    after = pad_channels(proto)
    assert channels(after, "second") == (8, 32)
    np.testing.assert_allclose(run(after, IMAGES)[0], run(proto, IMAGES)[0], rtol=1e-5, atol=1e-6)


def test_weights_with_another_zero_point_are_not_padded() -> None:
    """A padded 0 would stand for another value than 0."""
    proto = int8_weights(3, per_tensor=False)
    assert pad_channels(proto) == proto


def test_the_caller_s_graph_is_not_modified() -> None:
    proto = c3k2(16, 8)
    before = proto.SerializeToString()
    assert pad_channels(proto) != proto
    assert proto.SerializeToString() == before


@pytest.mark.parametrize("dynamic", [False, True])
def test_padding_a_traced_int8_model_does_not_change_its_outputs(dynamic: bool) -> None:
    model = trtkit.load(trtkit.demo.model_path())
    images = np.random.default_rng(2).random((1, 3, 64, 64), np.float32)
    graph = trace(model, imgsz=(64, 64), dynamic=dynamic)
    graph = insert_qdq(graph, dict.fromkeys(quantizable_tensors(graph), (-4.0, 4.0)))
    after = pad_channels(graph)
    # Halves of 24 channels are padded, what the bottleneck adds to them is no half; those of 12 would more than double.
    assert channels(graph, "/model.4/cv2/conv/Conv")[1] == 3 * 24
    assert channels(after, "/model.4/cv2/conv/Conv")[1] == 2 * 32 + 24
    assert channels(after, "/model.2/cv2/conv/Conv") == channels(graph, "/model.2/cv2/conv/Conv")
    np.testing.assert_allclose(run(after, images)[0], run(graph, images)[0], rtol=1e-5, atol=1e-5)
