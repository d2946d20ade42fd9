from __future__ import annotations

import numpy as np
import onnx
from detector_graph import detector
from onnx import helper, numpy_helper

from trtkit.graph.analysis import GraphIndex


def test_costly_layers_are_found_by_structure(proto: onnx.ModelProto) -> None:
    assert GraphIndex(proto).layers_excluded_by_default() == {
        "dfl": "dfl",
        "proj": "attention",
    }
    assert GraphIndex(proto).output_layers() == ("sides", "classes")


def test_a_depthwise_layer_stays_high_with_what_reads_it(proto: onnx.ModelProto) -> None:
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
    costly = GraphIndex(proto).layers_excluded_by_default()
    assert costly["after"] == "attention"
    assert costly["depthwise"] == "depthwise"


def test_costly_layers_do_not_depend_on_names(proto: onnx.ModelProto) -> None:
    before = GraphIndex(proto).layers_excluded_by_default()
    order = [node.name for node in proto.graph.node]
    for index, node in enumerate(proto.graph.node):
        node.name = f"n{index}"
    assert {
        order[int(name[1:])]: reason for name, reason in GraphIndex(proto).layers_excluded_by_default().items()
    } == before


def test_tail_is_what_follows_the_last_layers(proto: onnx.ModelProto) -> None:
    assert GraphIndex(proto).decode_nodes() == {
        "bins", "spread_in", "spread", "dfl", "boxes", "pixels", "logits", "probabilities", "output0",
    }  # fmt: skip


def test_multiplications_of_a_convolution_by_hand() -> None:
    view = GraphIndex(detector(batch=1))
    inferred = onnx.shape_inference.infer_shapes(view.proto)
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in inferred.graph.value_info
    }
    counts = view.count_macs(shapes)
    assert counts["stem"] == 8 * 16 * 16 * (3 * 3 * 3)
    assert counts["depthwise"] == 4 * 16 * 16 * (1 * 3 * 3)
    assert counts["classes"] == 3 * 16 * 16 * 16
