"""`remove_copies`: fewer copies, unchanged outputs."""

from __future__ import annotations

import numpy as np
import onnx
from detector_graph import run
from onnx import TensorProto, helper, numpy_helper

import trtkit
from trtkit.graph.analysis import GraphIndex
from trtkit.graph.passes import remove_copies
from trtkit.graph.torch_export import trace


def flatten_positions(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The detector with its positions in one axis before the bins get their own, as in Ultralytics' exports."""
    bins = next(node for node in proto.graph.node if node.name == "bins")
    proto.graph.initializer.append(numpy_helper.from_array(np.array([0, 16, -1], np.int64), "flat3"))
    index = list(proto.graph.node).index(bins)
    proto.graph.node.insert(index, helper.make_node("Reshape", [bins.input[0], "flat3"], ["flat"], "flat"))
    proto.graph.node[index + 1].input[0] = "flat"
    onnx.checker.check_model(proto, full_check=True)
    return proto


def test_dfl_reads_its_bins_in_place(proto: onnx.ModelProto, images: np.ndarray) -> None:
    flatten_positions(proto)
    before = run(proto, images)[0]
    after = remove_copies(proto)
    onnx.checker.check_model(after, full_check=True)
    assert "spread_in" not in GraphIndex(after).nodes
    assert GraphIndex(after).dfl_layers() == {"dfl"}
    assert "dfl" in GraphIndex(after).decode_nodes()
    np.testing.assert_array_equal(run(after, images)[0], before)


def test_other_expectations_are_not_changed(proto: onnx.ModelProto) -> None:
    """One with positions in two axes, one with positions last, and one with a second consumer."""
    before = [node.name for node in proto.graph.node]
    assert [node.name for node in remove_copies(proto).graph.node] == before
    flatten_positions(proto)
    boxes = next(tensor for tensor in proto.graph.initializer if tensor.name == "boxes3")
    sides = numpy_helper.to_array(boxes)
    boxes.CopyFrom(numpy_helper.from_array(np.array([0, -1, 4], np.int64), "boxes3"))
    assert "spread_in" in GraphIndex(remove_copies(proto)).nodes
    boxes.CopyFrom(numpy_helper.from_array(sides, "boxes3"))
    proto.graph.output.append(helper.make_tensor_value_info("spread", TensorProto.FLOAT, None))
    assert "spread_in" in GraphIndex(remove_copies(proto)).nodes


def test_bins_transposed_otherwise_are_not_changed(proto: onnx.ModelProto) -> None:
    flatten_positions(proto)
    transpose = next(node for node in proto.graph.node if node.name == "spread_in")
    next(one for one in transpose.attribute if one.name == "perm").ints[:] = [0, 2, 3, 1]
    before = proto.SerializeToString()
    assert remove_copies(proto).SerializeToString() == before


def halves(order: list[str]) -> onnx.ModelProto:
    """A split into `left` and `right` of two channels each, and a concatenation of the tensors in `order`."""
    nodes = [
        helper.make_node("Split", ["images", "sizes"], ["left", "right"], "split", axis=1),
        helper.make_node("Relu", ["right"], ["third"], "third"),
        helper.make_node("Concat", order, ["output0"], "joined", axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "halves",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 4, 2, 2])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, None, 2, 2])],
        [numpy_helper.from_array(np.array([2, 2], np.int64), "sizes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_both_halves_of_a_split_are_read_from_the_split_s_input() -> None:
    proto = halves(["third", "left", "right", "third"])
    images = np.random.default_rng(0).normal(size=(1, 4, 2, 2)).astype(np.float32)
    before = run(proto, images)[0]
    after = remove_copies(proto)
    assert list(after.graph.node[-1].input) == ["third", "images", "third"]
    np.testing.assert_array_equal(run(after, images)[0], before)


def test_reordered_and_single_halves_are_not_changed() -> None:
    for order in (["right", "left", "third"], ["left", "third", "right"], ["third", "left"], ["left", "right"]):
        assert list(remove_copies(halves(list(order))).graph.node[-1].input) == order


def test_a_traced_model_has_fewer_copies_and_the_same_outputs() -> None:
    model = trtkit.load(trtkit.demo.model_path())
    images = np.random.default_rng(2).random((1, 3, 64, 64), np.float32)
    plain, simplified = (trace(model, imgsz=(64, 64), simplify=simplify) for simplify in (False, True))
    np.testing.assert_allclose(run(simplified, images)[0], run(plain, images)[0], rtol=1e-4, atol=1e-4)
    split = {node.input[0]: node for node in simplified.graph.node if node.op_type == "Split"}
    joined = [node for node in simplified.graph.node if node.op_type == "Concat"]
    assert sum(any(name in split for name in node.input) for node in joined) >= 8
    assert not any("dfl/Transpose" in node.name for node in simplified.graph.node)
