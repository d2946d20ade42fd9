from __future__ import annotations

import numpy as np
import onnx
from detector_graph import detector
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from trtkit.graph.analysis import DisjointSets, GraphIndex, count_macs


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
