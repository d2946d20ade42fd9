"""`read_splits_whole` and `upsample_after_conv`: fewer nodes copy into concatenations, and outputs stay the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from detector_graph import run
from networks import load_network
from onnx import TensorProto, helper, numpy_helper

from trtkit.graph.analysis import GraphIndex
from trtkit.graph.concatenations import read_splits_whole, upsample_after_conv
from trtkit.graph.fp16 import convert_to_fp16
from trtkit.graph.qdq import insert_qdq, quantizable_tensors
from trtkit.graph.torch_export import trace

Pass = Callable[[onnx.ModelProto], onnx.ModelProto]

IMAGES = np.random.default_rng(1).standard_normal((2, 8, 6, 4), np.float32)
"""Eight channels."""


def make_graph(
    nodes: Sequence[onnx.NodeProto], *, outputs: Sequence[str] = ("output0",), **constants: Any
) -> onnx.ModelProto:
    """`nodes` on `IMAGES`; weights are constants by name, drawn where a shape is given."""
    generator = np.random.default_rng(0)
    values = {
        name: generator.standard_normal(value, np.float32) if isinstance(value, tuple) else np.array(value)
        for name, value in constants.items()
    }
    graph = helper.make_graph(
        nodes,
        "concatenations",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 8, 6, 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(proto, strict_mode=True)


def node(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [output], output, **attributes)


def expect_equal_outputs(rewrite: Pass, proto: onnx.ModelProto, images: np.ndarray = IMAGES) -> onnx.ModelProto:
    """The graph after a pass that changes it, and neither its outputs nor its argument."""
    given = proto.SerializeToString()
    after = rewrite(proto)
    assert after is not proto
    assert proto.SerializeToString() == given
    onnx.checker.check_model(after, full_check=True)
    for ours, theirs in zip(run(after, images), run(proto, images), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)
    return after


def count(proto: onnx.ModelProto, operator: str) -> int:
    return sum(one.op_type == operator for one in proto.graph.node)


# Splits.


def halves(*readers: onnx.NodeProto, **constants: Any) -> onnx.ModelProto:
    """A map split in halves, read by `readers` of "left" and "right"; "output0" is the last one's."""
    split = helper.make_node("Split", ["images", "sizes"], ["left", "right"], "split", axis=1)
    return make_graph([split, *readers], **{"sizes": [4, 4], "wide": (3, 4, 3, 3), "narrow": (5, 4, 1, 1), **constants})


def wide(source: str, output: str) -> onnx.NodeProto:
    return node("Conv", [source, "wide"], output, pads=[1, 1, 1, 1])


def test_convolutions_read_a_split_in_whole() -> None:
    graph = halves(
        wide("right", "first"), node("Conv", ["right", "narrow"], "second"), wide("left", "third"),
        node("Concat", ["first", "images", "second", "third"], "output0", axis=1),
    )  # fmt: skip
    after = expect_equal_outputs(read_splits_whole, graph)
    index = GraphIndex(after)
    assert count(after, "Split") == 0
    assert {index.nodes[name].input[0] for name in ("first", "second", "third")} == {"images"}
    assert not {"sizes", "wide", "narrow"} & set(index.constants)
    assert not index.array(index.nodes["first"].input[1])[:, :4].any()
    assert not index.array(index.nodes["third"].input[1])[:, 4:].any()


@pytest.mark.parametrize(
    "readers",
    [
        [wide("right", "first"), node("Relu", ["left"], "second")],
        [
            wide("right", "first"),
            node("Identity", ["first"], "second"),
            node("Concat", ["left", "second"], "c", axis=1),
        ],
        [node("Conv", ["right", "grouped"], "first", group=4)],
        [node("Conv", ["left", "right"], "first")],
    ],
    ids=["activation", "concatenation", "grouped", "as a weight"],
)
def test_a_split_that_others_read_stays(readers: list[onnx.NodeProto]) -> None:
    graph = halves(*readers[:-1], grouped=(4, 1, 1, 1))
    graph.graph.node.append(readers[-1])
    graph.graph.output[0].name = readers[-1].output[0]
    assert read_splits_whole(graph) is graph


@pytest.mark.parametrize("sizes", [[2, 6], [6, 2]])
def test_a_split_in_unequal_parts_stays(sizes: list[int]) -> None:
    graph = halves(node("Conv", ["left", "odd"], "output0"), sizes=sizes, odd=(3, sizes[0], 1, 1))
    assert read_splits_whole(graph) is graph


def test_a_split_that_is_an_output_stays() -> None:
    graph = halves(wide("right", "output0"))
    graph.graph.output.append(helper.make_tensor_value_info("right", TensorProto.FLOAT, None))
    assert read_splits_whole(graph) is graph


def quantized(*, inner: float = 0.05, stored: bool = True) -> onnx.ModelProto:
    """A split between Q/DQ, of scale `inner` behind it; the weight is INT8, or float with Q/DQ."""
    weight = ["stored", "steps", "zero"]
    nodes = [
        node("QuantizeLinear", ["images", "outer", "zero"], "images_q"),
        node("DequantizeLinear", ["images_q", "outer", "zero"], "images_dq"),
        helper.make_node("Split", ["images_dq", "sizes"], ["left", "right"], "split", axis=1),
        node("QuantizeLinear", ["right", "inner", "zero"], "right_q"),
        node("DequantizeLinear", ["right_q", "inner", "zero"], "right_dq"),
    ]
    if not stored:
        nodes.append(node("QuantizeLinear", ["float", "steps", "zero"], "float_q"))
        weight[0] = "float_q"
    nodes += [node("DequantizeLinear", weight, "weight_dq"), node("Conv", ["right_dq", "weight_dq"], "output0")]
    values = np.random.default_rng(0).integers(-127, 128, (3, 4, 1, 1))
    return make_graph(
        nodes, sizes=[4, 4], outer=np.float32(0.05), inner=np.float32(inner), steps=np.float32(0.01), zero=np.int8(0),
        **({"stored": values.astype(np.int8)} if stored else {"float": values.astype(np.float32) / 100}),
    )  # fmt: skip


@pytest.mark.parametrize("stored", [True, False])
def test_q_dq_behind_a_split_goes_with_it(stored: bool) -> None:
    after = expect_equal_outputs(read_splits_whole, quantized(stored=stored))
    assert (count(after, "Split"), count(after, "QuantizeLinear")) == (0, 2 - stored)
    assert GraphIndex(after).nodes["output0"].input[0] == "images_dq"


def test_a_split_behind_another_scale_or_type_stays() -> None:
    scaled, unsigned = quantized(inner=0.1), quantized()
    unsigned.graph.initializer.append(numpy_helper.from_array(np.uint8(0), "unsigned"))
    for one in unsigned.graph.node:
        if one.name.startswith("right_"):
            one.input[2] = "unsigned"
    onnx.checker.check_model(unsigned)
    for graph in (scaled, unsigned):
        assert read_splits_whole(graph) is graph


def test_a_weight_that_another_layer_reads_is_not_replaced() -> None:
    graph = quantized()
    graph.graph.node.append(node("Conv", ["left", "weight_dq"], "output1"))
    graph.graph.output.append(helper.make_tensor_value_info("output1", TensorProto.FLOAT, None))
    assert read_splits_whole(graph) is graph


# Repeated pixels.


def pyramid(
    inputs: Sequence[str] = ("repeated", "images"), *, resize: Mapping[str, Any] | None = None,
    **attributes: Any,
) -> onnx.ModelProto:  # fmt: skip
    """`images` beside a map of half their size whose pixels are repeated, read by a convolution."""
    made = {
        name: node("Resize", ["small", "", "scales"], name, **(resize or {"mode": "nearest"}))
        for name in ("repeated", "again")
    } | {"other": node("Relu", ["images"], "other")}
    channels = sum(3 if name in ("repeated", "again") else 8 for name in inputs)
    return make_graph(
        [
            node("Conv", ["images", "down"], "small", strides=[2, 2], pads=[1, 1, 1, 1]),
            *(one for name, one in made.items() if name in inputs),
            node("Concat", inputs, "joined", axis=1),
            node("Conv", ["joined", "last", "bias"], "output0", **attributes),
        ],
        down=(3, 8, 3, 3), scales=np.float32([1, 1, 2, 2]), last=(5, channels, 1, 1), bias=(5,),
    )  # fmt: skip


@pytest.mark.parametrize("inputs", [("repeated", "images"), ("images", "repeated")])
@pytest.mark.parametrize(
    "resize",
    [
        {"mode": "nearest"},
        {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"},
        {"mode": "nearest", "nearest_mode": "ceil", "coordinate_transformation_mode": "align_corners"},
    ],
)
def test_pixels_are_repeated_behind_the_convolution(inputs: Sequence[str], resize: Mapping[str, Any]) -> None:
    after = expect_equal_outputs(upsample_after_conv, pyramid(inputs, resize=resize))
    index = GraphIndex(after)
    assert [count(after, one) for one in ("Concat", "Conv", "Resize", "Add")] == [0, 3, 1, 1]
    assert index.producer[index.nodes["repeated"].input[0]].op_type == "Conv"
    assert index.nodes["output0"].input[0] == "images"


def test_what_else_is_concatenated_stays_so() -> None:
    after = expect_equal_outputs(upsample_after_conv, pyramid(("images", "repeated", "other")))
    assert list(GraphIndex(after).nodes["joined"].input) == ["images", "other"]


def test_several_maps_are_repeated() -> None:
    after = expect_equal_outputs(upsample_after_conv, pyramid(("repeated", "images", "again")))
    assert [count(after, one) for one in ("Concat", "Conv", "Resize", "Add")] == [0, 4, 2, 2]


@pytest.mark.parametrize(
    "graph",
    [
        pyramid(resize={"mode": "linear"}),
        pyramid(("repeated", "repeated", "images")),
        pyramid(strides=[2, 2]),
        pyramid(pads=[1, 0, 0, 0]),
        pyramid(("repeated",)),
    ],
    ids=["interpolated", "twice", "strided", "padded", "alone"],
)
def test_other_convolutions_stay(graph: onnx.ModelProto) -> None:
    assert upsample_after_conv(graph) is graph


def test_repeated_pixels_that_others_read_stay() -> None:
    graph = pyramid()
    graph.graph.output.append(helper.make_tensor_value_info("repeated", TensorProto.FLOAT, None))
    assert upsample_after_conv(graph) is graph


# Networks.


SPLITS = {"yolov8n": 6, "yolo11n": 8, "yolo11m": 8}
"""Splits that convolutions alone read, by network."""


@pytest.fixture(scope="module", params=SPLITS)
def network(request: pytest.FixtureRequest) -> tuple[str, onnx.ModelProto]:
    return request.param, trace(load_network(request.param, 64), imgsz=(64, 64))


def draw_image() -> np.ndarray:
    return np.random.default_rng(2).random((1, 3, 64, 64), np.float32)


@pytest.mark.parametrize("int8", [False, True])
def test_splits_of_a_network_are_read_whole(network: tuple[str, onnx.ModelProto], int8: bool) -> None:
    name, graph = network
    if int8:
        graph = insert_qdq(graph, dict.fromkeys(quantizable_tensors(graph), (-6.0, 6.0)))
    after = expect_equal_outputs(read_splits_whole, graph, draw_image())
    assert count(graph, "Split") - count(after, "Split") == SPLITS[name]
    assert read_splits_whole(after) is after


def test_a_network_repeats_pixels_behind_its_convolutions(network: tuple[str, onnx.ModelProto]) -> None:
    _, graph = network
    after = expect_equal_outputs(upsample_after_conv, graph, draw_image())
    assert [count(after, kind) - count(graph, kind) for kind in ("Concat", "Conv", "Add", "Resize")] == [-2, 2, 2, 0]
    assert upsample_after_conv(after) is after


def test_fp16_weights_stay_fp16(network: tuple[str, onnx.ModelProto]) -> None:
    after = upsample_after_conv(convert_to_fp16(network[1]))
    onnx.checker.check_model(after, full_check=True)
    small = [tensor for tensor in after.graph.initializer if "_small_" in tensor.name]
    assert [tensor.data_type for tensor in small] == [TensorProto.FLOAT16] * 2
