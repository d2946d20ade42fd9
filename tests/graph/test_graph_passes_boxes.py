"""`fuse_box_decoding`: one layer computes the boxes of eight nodes."""

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
from trtkit.graph.passes import fuse_box_decoding
from trtkit.graph.torch_export import trace


def box_decoding(
    bins: int, positions: int, *, fixed: bool = True, split: tuple[int, int] = (2, 2), rows: int = 2
) -> onnx.ModelProto:
    """From logits of bins (N, 4 x bins, positions) to boxes, Ultralytics' decoding after `without_copies`."""
    random = np.random.default_rng(bins)
    constants = {
        "spread": np.array([-1, bins, 0], np.int64),
        "axis": np.array([2], np.int64),
        "weight": np.arange(bins, dtype=np.float32).reshape(1, bins, 1, 1),
        "sides": np.array([-1, 4, 0], np.int64),
        "halves": np.array(split, np.int64),
        "two": np.array(2, np.float32),
        "stride": np.array(8, np.float32),
    }
    anchors = random.uniform(0, 20, (1, rows, positions)).astype(np.float32)
    inputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 4 * bins, positions])]
    if fixed:
        constants["anchors"] = anchors
    else:
        inputs.append(helper.make_tensor_value_info("anchors", TensorProto.FLOAT, [1, 2, positions]))
    nodes = [
        helper.make_node("Reshape", ["logits", "spread"], ["sp"], "reshape"),
        helper.make_node("Softmax", ["sp"], ["soft"], "softmax", axis=1),
        helper.make_node("Unsqueeze", ["soft", "axis"], ["wide"], "wide"),
        helper.make_node("Conv", ["wide", "weight"], ["dist"], "dfl", kernel_shape=[1, 1]),
        helper.make_node("Squeeze", ["dist", "axis"], ["flat"], "flat"),
        helper.make_node("Reshape", ["flat", "sides"], ["four"], "four"),
        helper.make_node("Split", ["four", "halves"], ["lt", "rb"], "split", axis=1),
        helper.make_node("Sub", ["anchors", "lt"], ["low"], "low"),
        helper.make_node("Add", ["anchors", "rb"], ["high"], "high"),
        helper.make_node("Add", ["low", "high"], ["total"], "total"),
        helper.make_node("Div", ["total", "two"], ["center"], "center"),
        helper.make_node("Sub", ["high", "low"], ["size"], "size"),
        helper.make_node("Concat", ["center", "size"], ["joined"], "joined", axis=1),
        helper.make_node("Mul", ["joined", "stride"], ["boxes"], "scaled"),
    ]
    graph = helper.make_graph(
        nodes,
        "decoding",
        inputs,
        [helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["n", 4, positions])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def make_inputs(proto: onnx.ModelProto, bins: int, positions: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    given = {"logits": random.normal(0, 3, (3, 4 * bins, positions)).astype(np.float32)}
    if len(proto.graph.input) > 1:
        given["anchors"] = random.uniform(0, 20, (1, 2, positions)).astype(np.float32)
    return given


def run_graph(proto: onnx.ModelProto, given: dict[str, np.ndarray]) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    output: np.ndarray = session.run(None, given)[0]
    return output


@settings(deadline=None, max_examples=30)
@given(bins=st.integers(2, 20), positions=st.integers(1, 30), fixed=st.booleans())
def test_boxes_do_not_change(bins: int, positions: int, fixed: bool) -> None:
    proto = box_decoding(bins, positions, fixed=fixed)
    given = make_inputs(proto, bins, positions)
    before = run_graph(proto, given)
    after = fuse_box_decoding(proto)
    onnx.checker.check_model(after, full_check=True)
    kinds = [node.op_type for node in after.graph.node]
    assert not {"Split", "Div"} & set(kinds)
    assert kinds.count("Conv") == 1
    read = {name for node in after.graph.node for name in node.input}
    assert {tensor.name for tensor in after.graph.initializer} <= read
    np.testing.assert_allclose(run_graph(after, given), before, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("low", slice(None), ["lt", "anchors"]),  # operands swapped
        ("size", slice(None), ["low", "high"]),
        ("joined", slice(None), ["size", "center"]),
        ("center", 1, "stride"),
        ("center", 1, "logits"),  # a computed divisor
        ("high", 0, "other"),  # other anchors
        ("wide", 1, "other_axis"),
        ("four", 1, "other_sides"),
    ],
)
def test_other_decodings_are_not_changed(name: str, place: int | slice, value: str | list[str]) -> None:
    proto = box_decoding(16, 5)
    other = np.ones((1, 2, 5), np.float32)
    for constant, name_ in ((other, "other"), ([3], "other_axis"), ([-1, 2, 0], "other_sides")):
        proto.graph.initializer.append(numpy_helper.from_array(np.array(constant), name_))
    node = GraphIndex(proto).nodes[name]
    if isinstance(place, slice):
        node.input[:] = value
    else:
        node.input[place] = str(value)
    before = proto.SerializeToString()
    assert fuse_box_decoding(proto).SerializeToString() == before


def test_a_decoding_with_a_second_consumer_is_not_changed() -> None:
    proto = box_decoding(16, 5)
    proto.graph.output.append(helper.make_tensor_value_info("size", TensorProto.FLOAT, None))
    before = proto.SerializeToString()
    assert fuse_box_decoding(proto).SerializeToString() == before
    for other in (box_decoding(16, 5, split=(1, 3)), box_decoding(16, 5, rows=1)):
        before = other.SerializeToString()
        assert fuse_box_decoding(other).SerializeToString() == before


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_traced_model_decodes_boxes_in_one_layer(dynamic: bool) -> None:
    model = trtkit.load(trtkit.demo.model_path())
    images = np.random.default_rng(2).random((2, 3, 64, 64), np.float32)
    plain, simplified = (
        trace(model, imgsz=(64, 64), batch=2, dynamic=dynamic, simplify=simplify) for simplify in (False, True)
    )
    np.testing.assert_allclose(run(simplified, images)[0], run(plain, images)[0], rtol=1e-4, atol=1e-3)
    index = GraphIndex(simplified)
    (layer,) = index.dfl_layers()
    assert list(index.constants[index.nodes[layer].input[1]].dims) == [4, 64, 1, 1]
    assert layer in index.decode_nodes()
