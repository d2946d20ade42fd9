from __future__ import annotations

import numpy as np
import onnx
import pytest
from detector_graph import detector
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from trtkit.graph.analysis import DisjointSets, GraphIndex, count_macs
from trtkit.graph.editing import remove_unused_constants, sort_nodes


def test_layers_excluded_by_default_follow_from_structure(proto: onnx.ModelProto) -> None:
    assert GraphIndex(proto).layers_excluded_by_default() == {
        "dfl": "dfl",
        "proj": "attention",
    }
    assert GraphIndex(proto).output_layers() == ("sides", "classes")


def test_a_depthwise_layer_before_an_excluded_layer_is_excluded(proto: onnx.ModelProto) -> None:
    """TensorRT 8.6 has no depthwise kernel from INT8 to a float type."""
    light = next(node for node in proto.graph.node if node.name == "light2")
    index = list(proto.graph.node).index(light)
    weight = numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), "query.weight")
    proto.graph.initializer.append(weight)
    product = helper.make_node("MatMul", ["left", "left"], ["square2"], "square2")
    both = helper.make_node("Add", ["square2", "depthwise/silu"], ["both2"], "both2")
    after = helper.make_node("Conv", ["both2", "query.weight"], ["after"], "after")
    light.input[0] = "after"
    for offset, node in enumerate((product, both, after)):
        proto.graph.node.insert(index + offset, node)
    excluded = GraphIndex(proto).layers_excluded_by_default()
    assert excluded["after"] == "attention"
    assert excluded["depthwise"] == "depthwise"


def test_all_depthwise_layers_in_a_row_before_an_excluded_layer_are_excluded() -> None:
    nodes, constants = [], []
    for name, source, shape in (
        ("first", "images", (4, 1, 3, 3)),
        ("second", "first", (4, 1, 3, 3)),
        ("head", "second", (2, 4, 3, 3)),
    ):
        constants.append(numpy_helper.from_array(np.ones(shape, np.float32), f"{name}.w"))
        group = 4 if shape[1] == 1 else 1
        nodes.append(helper.make_node("Conv", [source, f"{name}.w"], [name], name, group=group, pads=[1] * 4))
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 4, 8, 8])
    output = helper.make_tensor_value_info("head", TensorProto.FLOAT, [1, 2, 8, 8])
    proto = helper.make_model(
        helper.make_graph(nodes, "g", [image], [output], constants), opset_imports=[helper.make_opsetid("", 17)]
    )
    assert GraphIndex(proto).depthwise_layers_before(["head"]) == ["second", "first"]
    assert GraphIndex(proto).depthwise_layers_before([]) == []


def test_exclusion_does_not_depend_on_names(proto: onnx.ModelProto) -> None:
    before = GraphIndex(proto).layers_excluded_by_default()
    order = [node.name for node in proto.graph.node]
    for index, node in enumerate(proto.graph.node):
        node.name = f"n{index}"
    assert {
        order[int(name[1:])]: reason for name, reason in GraphIndex(proto).layers_excluded_by_default().items()
    } == before


def test_decode_nodes_follow_the_output_layers(proto: onnx.ModelProto) -> None:
    assert GraphIndex(proto).decode_nodes() == {
        "bins", "spread_in", "spread", "dfl", "boxes", "pixels", "logits", "probabilities", "output0",
    }  # fmt: skip


def test_macs_of_convolutions_by_hand() -> None:
    graph = detector(batch=1)
    counts = count_macs(graph, GraphIndex(graph))
    assert counts["stem"] == 8 * 16 * 16 * (3 * 3 * 3)
    assert counts["depthwise"] == 4 * 16 * 16 * (1 * 3 * 3)
    assert counts["classes"] == 3 * 16 * 16 * 16


@pytest.mark.parametrize(
    ("operator", "shape", "attributes"),
    [
        ("Gemm", (10, 4), {}),
        ("Gemm", (4, 10), {"transB": 1}),
        ("MatMul", (10, 4), {}),
        ("MatMul", (1, 10, 4), {}),
        ("MatMul", (10,), {}),
    ],
)
def test_macs_of_fully_connected_layers_by_hand(
    operator: str, shape: tuple[int, ...], attributes: dict[str, int]
) -> None:
    node = helper.make_node(operator, ["images", "w"], ["output0"], "layer", **attributes)
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 10])
    output = helper.make_tensor_value_info("output0", TensorProto.FLOAT, None)
    weight = numpy_helper.from_array(np.zeros(shape, np.float32), "w")
    graph = helper.make_model(
        helper.make_graph([node], "g", [image], [output], [weight]), opset_imports=[helper.make_opsetid("", 17)]
    )
    assert count_macs(graph, GraphIndex(graph)) == {"layer": 10 * (4 if len(shape) > 1 else 1)}


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20))
def test_disjoint_sets_are_the_connected_components(pairs: list[tuple[int, int]]) -> None:
    sets = DisjointSets[int]()
    components = [{item} for item in range(10)]
    for one, other in pairs:
        sets.union(one, other)
        merged = next(c for c in components if one in c) | next(c for c in components if other in c)
        components = [c for c in components if c.isdisjoint(merged)] + [merged]
    for component in components:
        assert {item for item in range(10) if sets.find(item) == sets.find(min(component))} == component


def test_only_constants_that_nothing_reads_are_removed() -> None:
    """Subgraphs and graph outputs read, too; an initializer listed among the inputs goes from both lists."""
    info = helper.make_tensor_value_info
    branch = helper.make_graph(
        [helper.make_node("Add", ["images", "in_branch"], ["sum"], "sum")], "then", [], [info("sum", 1, [1])]
    )
    other = helper.make_graph([helper.make_node("Neg", ["images"], ["neg"], "neg")], "else", [], [info("neg", 1, [1])])
    node = numpy_helper.from_array(np.ones(1, np.float32))
    nodes = [
        helper.make_node("Constant", [], ["unread_node"], "unread_node", value=node),
        helper.make_node("Constant", [], ["read_node"], "read_node", value=node),
        helper.make_node("If", ["condition"], ["chosen"], "if", then_branch=branch, else_branch=other),
        helper.make_node("Add", ["chosen", "read_node"], ["total"], "add"),
    ]
    constants = [numpy_helper.from_array(np.ones(1, np.float32), name) for name in ("in_branch", "is_output", "unread")]
    constants.append(numpy_helper.from_array(np.array(True), "condition"))
    graph = helper.make_graph(
        nodes,
        "subgraphs",
        [info("images", 1, [1]), info("unread", 1, [1]), info("in_branch", 1, [1])],
        [info("total", 1, [1]), info("is_output", 1, [1])],
        constants,
    )
    remove_unused_constants(graph)
    assert [node.name for node in graph.node] == ["read_node", "if", "add"]
    assert {tensor.name for tensor in graph.initializer} == {"in_branch", "is_output", "condition"}
    assert [value.name for value in graph.input] == ["images", "in_branch"]


def test_nodes_are_brought_into_topological_order() -> None:
    proto = detector()
    order = [node.name for node in proto.graph.node]
    sort_nodes(proto.graph)
    assert [node.name for node in proto.graph.node] == order
    nodes = [*proto.graph.node]
    for shuffled in (nodes[::-1], nodes[1:] + nodes[:1]):
        result = onnx.ModelProto()
        result.CopyFrom(proto)
        del result.graph.node[:]
        result.graph.node.extend(shuffled)
        with pytest.raises(onnx.checker.ValidationError):
            onnx.checker.check_model(result)
        sort_nodes(result.graph)
        onnx.checker.check_model(result, full_check=True)
        assert sorted(node.name for node in result.graph.node) == sorted(order)
