from __future__ import annotations

import onnx
from drawn import detector

from trtkit.graph.structure import View


def test_costly_layers_are_found_by_structure(proto: onnx.ModelProto) -> None:
    assert View(proto).costly() == {
        "dfl": "dfl",
        "depthwise": "depthwise",
        "key": "attention",
        "proj": "attention",
        "sides": "output",
        "classes": "output",
    }


def test_costly_layers_do_not_depend_on_names(proto: onnx.ModelProto) -> None:
    before = View(proto).costly()
    order = [node.name for node in proto.graph.node]
    for index, node in enumerate(proto.graph.node):
        node.name = f"n{index}"
    assert {order[int(name[1:])]: reason for name, reason in View(proto).costly().items()} == before


def test_tail_is_what_follows_the_last_layers(proto: onnx.ModelProto) -> None:
    assert View(proto).tail() == {
        "bins", "spread_in", "spread", "dfl", "boxes", "pixels", "logits", "probabilities", "output0",
    }  # fmt: skip


def test_multiplications_of_a_convolution_by_hand() -> None:
    view = View(detector(batch=1))
    inferred = onnx.shape_inference.infer_shapes(view.proto)
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in inferred.graph.value_info
    }
    counts = view.multiplications(shapes)
    assert counts["stem"] == 8 * 16 * 16 * (3 * 3 * 3)
    assert counts["depthwise"] == 4 * 16 * 16 * (1 * 3 * 3)
    assert counts["classes"] == 3 * 16 * 16 * 16
