"""Pixels in blocks as a graph's input: the same outputs of the same pixels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import tiny_graphs
from networks import load_network
from onnx import helper, numpy_helper
from raising import raises

from trtkit.errors import RecipeError
from trtkit.graph.analysis import GraphIndex
from trtkit.graph.fp16 import convert_to_fp16
from trtkit.graph.qdq import expand_int8_weights, insert_qdq
from trtkit.graph.space_to_depth import LANES, check_space_to_depth, read_pixel_input, use_pixel_blocks
from trtkit.graph.torch_export import trace
from trtkit.models.model import PixelInput

SCALE = 1 / 127
SIZE = (64, 96)


def run(proto: onnx.ModelProto, feed: np.ndarray) -> list[np.ndarray]:
    import onnxruntime as ort

    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: feed})


def make_int8(name: str) -> onnx.ModelProto:
    graph = trace(load_network(name, 64), imgsz=SIZE, batch=2)
    return insert_qdq(graph, dict.fromkeys(GraphIndex(graph).producer, (-6.0, 6.0)) | {"images": (0.0, 1.0)}, ())


def to_blocks(feed: np.ndarray, side: int, scale: float | None) -> np.ndarray:
    """Images as a deployer's own program makes them; the lane beyond the colors holds anything."""
    values = feed.astype(np.float16)
    if scale is not None:
        values = np.clip(np.rint(feed / np.float32(scale)), -128, 127).astype(np.int8)
    count, channels, height, width = feed.shape
    pixels = np.full((count, LANES, height, width), -77, values.dtype)
    pixels[:, :channels] = values
    split = pixels.reshape(count, LANES, height // side, side, width // side, side)
    return split.transpose(0, 3, 5, 1, 2, 4).reshape(count, -1, height // side, width // side)


def draw_feed(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, channels, *SIZE)).astype(np.float32) / 255


@pytest.mark.parametrize("expands", [False, True])
@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("yolo11n", 4), ("yolo11m", 2), ("yolov5n", 4), ("yolov8n-seg", 4), ("yolov10n", 4), ("yolo26n-pose", 4),
        ("yolo12s", 2), ("yolo11n-cls", 4),
    ],
)  # fmt: skip
def test_the_same_outputs_of_the_same_pixels(name: str, side: int, expands: bool) -> None:
    graph = make_int8(name)
    graph = expand_int8_weights(graph) if expands else graph
    before = graph.SerializeToString()
    changed = use_pixel_blocks(graph)
    assert graph.SerializeToString() == before
    onnx.checker.check_model(changed, full_check=True)
    pixels = read_pixel_input(changed)
    assert pixels == PixelInput(side=side, scale=float(np.float32(SCALE)))
    assert read_pixel_input(graph) is None
    # The quantization of the images is gone, and nothing else.
    operators = [node.op_type for node in graph.graph.node]
    operators.remove("QuantizeLinear")
    assert [node.op_type for node in changed.graph.node] == operators
    feed = draw_feed()
    for ours, theirs in zip(run(changed, to_blocks(feed, side, SCALE)), run(graph, feed), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("name", "side"), [("yolo11n", 4), ("yolo11m", 2), ("yolo26n-pose", 4)])
def test_fp16_pixels(name: str, side: int) -> None:
    graph = convert_to_fp16(trace(load_network(name, 64), imgsz=SIZE, batch=2))
    cast = GraphIndex(graph).consumers["images"][0]
    # Since operator set 19 a Cast may have another attribute before the type.
    cast.attribute.insert(0, helper.make_attribute("saturate", 1))
    assert use_pixel_blocks(graph).graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    del cast.attribute[0]
    changed = use_pixel_blocks(graph)
    onnx.checker.check_model(changed, full_check=True)
    assert read_pixel_input(changed) == PixelInput(side=side, scale=None)
    assert len(changed.graph.node) == len(graph.graph.node) - 1
    feed = draw_feed()
    for ours, theirs in zip(run(changed, to_blocks(feed, side, None)), run(graph, feed), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-2, atol=2e-2 * np.abs(theirs).max())


def tiny(channels: int = 3) -> onnx.ModelProto:
    graph = tiny_graphs.detector("int8", batch=2, size=SIZE)
    if channels != 3:
        graph.graph.input[0].type.tensor_type.shape.dim[1].dim_value = channels
        weight = next(tensor for tensor in graph.graph.initializer if tensor.name == "stem.weight")
        values = np.resize(numpy_helper.to_array(weight), (8, channels, 3, 3))
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    return graph


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_images_of_other_channels(channels: int) -> None:
    graph = tiny(channels)
    changed = use_pixel_blocks(graph)
    assert changed.graph.input[0].type.tensor_type.shape.dim[1].dim_value == 16
    feed = draw_feed(channels)
    (ours,), (theirs,) = run(changed, to_blocks(feed, 2, SCALE)), run(graph, feed)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def set_attribute(graph: onnx.GraphProto, name: str, values: list[int]) -> None:
    stem = next(node for node in graph.node if node.name == "stem")
    kept = [item for item in stem.attribute if item.name != name]
    del stem.attribute[:]
    stem.attribute.extend([*kept, helper.make_attribute(name, values)])


def set_side(graph: onnx.GraphProto, axis: int, value: int | str) -> None:
    side = graph.input[0].type.tensor_type.shape.dim[axis]
    side.Clear()
    setattr(side, "dim_param" if isinstance(value, str) else "dim_value", value)


@pytest.mark.parametrize(
    "change",
    [
        # The images are read twice.
        lambda graph: graph.node.append(helper.make_node("Neg", ["images"], ["negative"], "negative")),
        lambda graph: graph.input.append(helper.make_tensor_value_info("sizes", onnx.TensorProto.FLOAT, [2])),
        lambda graph: set_attribute(graph, "strides", [1, 1]),
        lambda graph: set_attribute(graph, "dilations", [2, 2]),
        lambda graph: set_side(graph, 0, "batch"),
        lambda graph: set_side(graph, 2, 62),
        lambda graph: set_side(graph, 1, 5),
    ],
)
def test_graphs_that_cannot_read_blocks(change: Callable[[onnx.GraphProto], object]) -> None:
    graph = tiny()
    check_space_to_depth(graph)
    change(graph.graph)
    for function in (check_space_to_depth, use_pixel_blocks):
        with raises(RecipeError, "space-to-depth-not-applicable"):
            function(graph)


def test_a_first_convolution_outside_int8() -> None:
    with raises(RecipeError, "space-to-depth-input-type"):
        use_pixel_blocks(tiny_graphs.detector(batch=2, size=SIZE))
    with raises(RecipeError, "space-to-depth-not-applicable"):
        check_space_to_depth(tiny(), kept={"stem"})
    zero = tiny()
    next(tensor for tensor in zero.graph.initializer if tensor.name == "images_zero").CopyFrom(
        numpy_helper.from_array(np.int8(5), "images_zero")
    )
    with raises(RecipeError, "space-to-depth-input-type"):
        use_pixel_blocks(zero)
