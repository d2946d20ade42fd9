"""Narrow maps on blocks of pixels: the same outputs, and graphs that can't be moved stay as they are."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from networks import load_network
from onnx import TensorProto, helper, numpy_helper

from trtkit.graph.analysis import GraphIndex
from trtkit.graph.fp16 import convert_to_fp16
from trtkit.graph.pad_channels import pad_channels
from trtkit.graph.qdq import expand_int8_weights, insert_qdq
from trtkit.graph.space_to_depth import read_blocks
from trtkit.graph.torch_export import trace

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from space_to_depth import make_blocks, move_space_to_depth


def run(proto: onnx.ModelProto, feed: np.ndarray) -> list[np.ndarray]:
    import onnxruntime as ort

    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: feed})


def read_kernels(proto: onnx.ModelProto) -> list[tuple[int, ...]]:
    """The weights' shapes of the first convolutions."""
    index = GraphIndex(proto)
    convs = [node for node in proto.graph.node if node.op_type == "Conv"][:7]
    shapes = []
    for node in convs:
        name = node.input[1]
        while name in index.producer and name not in index.constants:
            name = index.producer[name].input[0]
        shapes.append(tuple(index.constants[name].dims))
    return shapes


TOLERANCE = {"fp32": 1e-4, "fp16": 5e-2, "int8": 1e-3, "int8 expanded": 1e-3}
PRECISIONS = tuple(TOLERANCE)


def make_detector(precision: str) -> onnx.ModelProto:
    graph = trace(load_network("yolo11n", 64), imgsz=(64, 96), batch=2)
    if precision == "fp16":
        return convert_to_fp16(graph)
    if precision.startswith("int8"):
        ranges = dict.fromkeys(GraphIndex(graph).producer, (-6.0, 6.0)) | {"images": (0.0, 1.0)}
        graph = insert_qdq(graph, ranges, ())
        return expand_int8_weights(graph) if "expanded" in precision else graph
    return graph


def expect_close(ours: list[np.ndarray], theirs: list[np.ndarray], tolerance: float) -> None:
    for one, two in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, two, rtol=tolerance, atol=tolerance)


KERNELS = {
    (2, 2): [
        (64, 3, 5, 5), (32, 64, 2, 2), (128, 32, 2, 2), (32, 64, 3, 3), (64, 32, 3, 3), (256, 192, 1, 1),
        (64, 256, 2, 2),
    ],
    (1, 2): [
        (32, 3, 3, 5), (32, 32, 3, 2), (64, 32, 1, 2), (16, 32, 3, 3), (32, 16, 3, 3), (128, 96, 1, 1),
        (64, 128, 3, 2),
    ],
}  # fmt: skip
"""Of the first convolutions of yolo11n."""


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("fold", [(2, 2), (1, 2)])
def test_a_small_detector_computes_the_same(fold: tuple[int, int], precision: str) -> None:
    graph = make_detector(precision)
    before = graph.SerializeToString()
    moved = move_space_to_depth(graph, fold)
    assert graph.SerializeToString() == before
    onnx.checker.check_model(moved, full_check=True)
    # No operator is added, and nothing is left to pad at the first split.
    assert [node.op_type for node in moved.graph.node] == [node.op_type for node in graph.graph.node]
    assert read_kernels(moved) == KERNELS[fold]
    feed = np.random.default_rng(0).random((2, 3, 64, 96), np.float32)
    expect_close(run(moved, feed), run(graph, feed), TOLERANCE[precision])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("lanes", [None, 4])
@pytest.mark.parametrize("side", [2, 4])
def test_blocks_of_pixels_give_what_pixels_give(side: int, lanes: int | None, precision: str) -> None:
    graph = make_detector(precision)
    before = graph.SerializeToString()
    changed = read_blocks(graph, side, lanes=lanes)
    assert graph.SerializeToString() == before
    onnx.checker.check_model(changed, full_check=True)
    assert [node.op_type for node in changed.graph.node] == [node.op_type for node in graph.graph.node]
    feed = np.random.default_rng(0).random((2, 3, 64, 96), np.float32)
    # A lane beyond the colors is not read.
    pixels = np.concatenate([feed, np.full((2, 1, 64, 96), 9, np.float32)], 1)[:, : lanes or 3]
    split = pixels.reshape(2, -1, 64 // side, side, 96 // side, side)
    blocks = split.transpose(0, 3, 5, 1, 2, 4).reshape(2, -1, 64 // side, 96 // side)
    expected = run(graph, feed)
    expect_close(run(changed, blocks), expected, TOLERANCE[precision])
    if lanes is None:
        made = make_blocks(graph, side)
        onnx.checker.check_model(made, full_check=True)
        expect_close(run(made, feed), expected, TOLERANCE[precision])


@pytest.mark.parametrize("name", ["yolov5n", "yolov8n-seg", "yolov10n", "yolo26n-pose", "yolo12n"])
def test_networks_of_every_family_compute_the_same(name: str) -> None:
    graph = trace(load_network(name, 64), imgsz=(64, 64))
    moved = pad_channels(move_space_to_depth(graph))
    assert moved != graph
    feed = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    expect_close(run(moved, feed), run(graph, feed), 1e-3)


def test_maps_of_many_channels_stay_as_they_are() -> None:
    graph = trace(load_network("yolo11m", 64), imgsz=(64, 64))
    assert move_space_to_depth(graph) == graph


def make_graph(
    kernels: tuple[int, int], strides: tuple[int, int], pads: tuple[tuple[int, ...], ...], *, sides: tuple[int, int],
    seed: int = 0, middle: str = "Sigmoid", bias: bool = True,
) -> onnx.ModelProto:  # fmt: skip
    """A convolution to 3 channels, an operator, and a convolution."""
    random = np.random.default_rng(seed)
    nodes, constants, source = [], [], "images"
    for place, (kernel, stride, pad, shape) in enumerate(zip(kernels, strides, pads, ((3, 2), (5, 3)), strict=True)):
        weight = random.standard_normal((*shape, kernel, kernel)).astype(np.float32)
        constants.append(numpy_helper.from_array(weight, f"weight{place}"))
        names = [source, f"weight{place}"]
        if bias:
            constants.append(
                numpy_helper.from_array(random.standard_normal(shape[0]).astype(np.float32), f"bias{place}")
            )
            names.append(f"bias{place}")
        nodes.append(
            helper.make_node("Conv", names, [f"map{place}"], f"conv{place}", strides=[stride] * 2, pads=list(pad))
        )
        source = f"map{place}"
        if place == 0:
            nodes.append(helper.make_node(middle, [source], ["middle"], "middle"))
            source = "middle"
    graph = helper.make_graph(
        nodes, "two", [helper.make_tensor_value_info("images", TensorProto.FLOAT, [2, 2, *sides])],
        [helper.make_tensor_value_info("map1", TensorProto.FLOAT, [None] * 4)], constants,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@settings(max_examples=150, deadline=None)
@given(
    kernels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.integers(1, 3),
    times=st.integers(1, 2),
    pads=st.tuples(*[st.tuples(*[st.integers(0, 2)] * 4)] * 2),
    sides=st.tuples(st.integers(12, 25), st.integers(12, 25)),
    fold=st.sampled_from([(2, 2), (1, 2), (2, 1), (3, 2)]),
    bias=st.booleans(),
)
def test_any_kernel_stride_and_padding(kernels, stride, times, pads, sides, fold, bias) -> None:
    inner = [(side + pads[0][axis] + pads[0][axis + 2] - kernels[0]) // stride + 1 for axis, side in enumerate(sides)]
    # Else the second one gives nothing.
    assume(all(side + pads[1][axis] + pads[1][axis + 2] >= kernels[1] for axis, side in enumerate(inner)))
    graph = make_graph(kernels, (stride, math.lcm(*fold) * times), pads, sides=sides, bias=bias)
    moved = move_space_to_depth(graph, fold)
    onnx.checker.check_model(moved, full_check=True)
    is_whole = all(side % by == 0 for side, by in zip(inner, fold, strict=True))
    assert (moved != graph) == is_whole
    feed = np.random.default_rng(1).standard_normal((2, 2, *sides)).astype(np.float32)
    (theirs,), (ours,) = run(graph, feed), run(moved, feed)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def plain() -> onnx.ModelProto:
    return make_graph((3, 3), (2, 2), ((1, 1, 1, 1),) * 2, sides=(16, 16))


def test_an_open_shape_stays_open() -> None:
    graph = plain()
    assert move_space_to_depth(graph) != graph
    graph.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    assert move_space_to_depth(graph) == graph


@pytest.mark.parametrize(
    "change",
    [
        # The map is an output.
        lambda graph: graph.output.append(helper.make_tensor_value_info("middle", TensorProto.FLOAT, [None] * 4)),
        # What reads it meets neighbors, or other pixels.
        lambda graph: graph.node.append(
            helper.make_node("MaxPool", ["middle"], ["pooled"], "pool", kernel_shape=[2, 2], strides=[2, 2])
        ),
        lambda graph: graph.node.append(
            helper.make_node("Transpose", ["middle"], ["turned"], "turn", perm=[0, 1, 3, 2])
        ),
        # A factor for each channel.
        lambda graph: (
            graph.initializer.append(numpy_helper.from_array(np.ones((1, 3, 1, 1), np.float32), "factor")),
            graph.node.append(helper.make_node("Mul", ["middle", "factor"], ["scaled"], "scale")),
        ),
        lambda graph: graph.node[2].attribute.append(helper.make_attribute("dilations", [2, 2])),
        lambda graph: graph.node[0].attribute.append(helper.make_attribute("auto_pad", "SAME_UPPER")),
    ],
)  # fmt: skip
def test_maps_that_are_read_otherwise_stay(change) -> None:
    graph = plain()
    change(graph.graph)
    assert move_space_to_depth(graph) == graph


def test_steps_that_leave_a_block_stay() -> None:
    graph = make_graph((3, 3), (2, 3), ((1, 1, 1, 1),) * 2, sides=(16, 16))
    assert move_space_to_depth(graph) == graph


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_one_scale_of_a_whole_weight_stays_one(shape: tuple[int, ...]) -> None:
    graph = plain()
    weight = next(tensor for tensor in graph.graph.initializer if tensor.name == "weight0")
    steps = np.clip(np.rint(numpy_helper.to_array(weight) * 30), -127, 127).astype(np.int8)
    weight.CopyFrom(numpy_helper.from_array(steps, "weight0"))
    scales = np.full(shape, 1 / 30, np.float32) * (np.arange(3) + 1 if shape == (3,) else 1)
    graph.graph.initializer.append(numpy_helper.from_array(scales.astype(np.float32).reshape(shape), "scale0"))
    dequantize = helper.make_node("DequantizeLinear", ["weight0", "scale0"], ["float0"], "dequantize0", axis=0)
    graph.graph.node[0].input[1] = "float0"
    graph.graph.node.insert(0, dequantize)
    moved = move_space_to_depth(graph)
    (kept,) = (tensor for tensor in moved.graph.initializer if tensor.name.endswith(("scale0", "scale0_folded")))
    assert tuple(kept.dims) == ((12,) if shape == (3,) else shape)
    feed = np.random.default_rng(1).standard_normal((2, 2, 16, 16)).astype(np.float32)
    expect_close(run(moved, feed), run(graph, feed), 1e-3)


def test_a_sum_with_a_map_of_another_origin_stays() -> None:
    graph = plain()
    nodes = list(graph.graph.node)
    other = helper.make_node("Conv", ["images", "weight0", "bias0"], ["map2"], "conv2", strides=[2, 2], pads=[1] * 4)
    nodes[1:2] = [other, helper.make_node("Add", ["map0", "map2"], ["middle"], "middle")]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    onnx.checker.check_model(graph)
    assert move_space_to_depth(graph) == graph
