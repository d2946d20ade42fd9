"""Raw maps: found in the graphs of every head, and decoded to what the graphs' own decoding gives."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from fake_checkpoints import TINY
from raising import raises
from task_models import untrained
from two_heads import EXTRA, HEADS, make_model, yolo26

import trtkit as tk
from trtkit.backends.ort import OrtRunner
from trtkit.errors import RecipeError
from trtkit.graph.editing import sort_nodes
from trtkit.graph.fp16 import convert_to_fp16
from trtkit.graph.raw_maps import check_raw_maps_apply, convert_outputs_to_fp16, cut_before_decoding, find_raw_maps
from trtkit.graph.torch_export import trace
from trtkit.models.model import DENSE, RAW_MAPS, RAW_ONE_TO_ONE
from trtkit.tasks.base import BoxLayout
from trtkit.tasks.raw_maps import to_dense

PIXELS = np.random.default_rng(0).random((2, 3, 64, 96), np.float32)
OLDER_EXTRA = {"detect": 0, "segment": 4, "pose": 9, "obb": 1}


def cut(model: tk.Model, graph: onnx.ModelProto, **settings: bool) -> onnx.ModelProto:
    return cut_before_decoding(graph, find_raw_maps(graph, model.info), model.info, **settings)


def expect_equal(model: tk.Model, graph: onnx.ModelProto, pixels: np.ndarray, extra: int) -> None:
    """The maps, decoded outside the graph, are what its own decoding gives."""
    with OrtRunner(graph) as whole, OrtRunner(cut(model, graph)) as raw:
        assert raw.info.output_format == RAW_MAPS
        expected = whole.infer(pixels)
        dense = to_dense(raw.infer(pixels), raw.info, BoxLayout(extra=extra, rotated=model.task == "obb"))
    assert list(dense) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(dense[name], value, rtol=2e-6, atol=2e-4)


@pytest.mark.parametrize("task", sorted(HEADS))
def test_yolo26(task: str) -> None:
    model = make_model(yolo26(task))
    # Traced for other tests, too.
    expect_equal(model, trace(model), PIXELS[:1, :, :, :64], EXTRA[task])


def test_any_size() -> None:
    model = make_model(yolo26("detect"))
    expect_equal(model, trace(model, imgsz=(64, 64), batch=2, dynamic=True), PIXELS, 0)


@pytest.mark.parametrize("task", sorted(OLDER_EXTRA))
def test_distributions_half_offsets_and_angles_through_a_sigmoid(task: str) -> None:
    model = untrained(task)
    graph = trace(model)
    expect_equal(model, graph, PIXELS[:1, :, :, :64], OLDER_EXTRA[task])
    assert {name.split("_s")[1] for name in outputs_of(cut(model, graph)) if "_s" in name} == {"8", "16", "32"}


def outputs_of(graph: onnx.ModelProto) -> list[str]:
    return [value.name for value in graph.graph.output]


def test_nothing_of_the_decoding_is_left() -> None:
    model = make_model(TINY)
    graph = trace(model)
    raw = cut(model, graph)
    onnx.checker.check_model(raw, full_check=True)
    operators = {node.op_type for node in raw.graph.node}
    assert "Softmax" in {node.op_type for node in graph.graph.node}
    assert not operators & {"Softmax", "Reshape", "Transpose"}
    assert len(raw.graph.node) < len(graph.graph.node)
    # The caller's graph is as it was.
    assert outputs_of(graph) == ["output0"]


def test_one_to_one_heads() -> None:
    """The maps of the one-to-one branches, not of the others."""
    model = make_model(yolo26("detect"), end2end=True)
    rows = trace(model)
    raw = cut(model, rows)
    assert check_raw_maps_apply(model.info) == RAW_ONE_TO_ONE
    with OrtRunner(raw) as runner, OrtRunner(rows) as whole:
        assert runner.info.output_format == RAW_ONE_TO_ONE
        images = [np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)]
        for conf in (0.001, 0.4):
            (ours,), (theirs,) = runner.predict(images, conf=conf), whole.predict(images, conf=conf)
            assert len(theirs) > 3
            np.testing.assert_allclose(ours.scores, theirs.scores, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(np.sort(ours.boxes, 0), np.sort(theirs.boxes, 0), atol=2e-3)


def join_levels(graph: onnx.ModelProto, model: tk.Model) -> onnx.ModelProto:
    """Rewrite a graph as older exporters wrote it: boxes and scores of a level concatenated, then split."""
    raw = {one.output: one.tensor for one in find_raw_maps(graph, model.info)}
    boxes, scores = (sorted(raw[name] for name in raw if name.startswith(kind)) for kind in ("boxes", "scores"))
    for node in graph.graph.node:
        node.input[:] = [f"{name}_own" if name in (*boxes, *scores) else name for name in node.input]
    sizes = np.array([64, len(model.names)], np.int64)
    graph.graph.initializer.append(onnx.numpy_helper.from_array(sizes, "both_sizes"))
    for box, score in zip(boxes, scores, strict=True):
        both, own = f"{box}_both", [f"{box}_own", f"{score}_own"]
        graph.graph.node.append(onnx.helper.make_node("Concat", [box, score], [both], both, axis=1))
        graph.graph.node.append(onnx.helper.make_node("Split", [both, "both_sizes"], own, f"{both}_split", axis=1))
    sort_nodes(graph.graph)
    return graph


def test_boxes_and_scores_joined_by_level() -> None:
    model = make_model(TINY)
    expect_equal(model, join_levels(trace(model), model), PIXELS[:1, :, :, :64], 0)


def test_fp16_outputs_are_fp16() -> None:
    model = untrained("segment")
    graph = trace(model)
    maps = find_raw_maps(graph, model.info)
    half = cut_before_decoding(convert_to_fp16(graph), maps, model.info, half=True)
    onnx.checker.check_model(half, full_check=True)
    assert {value.type.tensor_type.elem_type for value in half.graph.output} == {onnx.TensorProto.FLOAT16}
    assert "output1" in outputs_of(half)
    # No cast is left between the last layer and the output.
    producer = {name: node for node in half.graph.node for name in node.output}
    assert all(producer[one.output].op_type == "Conv" for one in maps)
    single = cut(model, graph)
    expected = OrtRunner(single).infer(PIXELS[:1, :, :, :64])
    rounded = OrtRunner(convert_outputs_to_fp16(single)).infer(PIXELS[:1, :, :, :64])
    for name, value in expected.items():
        np.testing.assert_array_equal(rounded[name], value.astype(np.float16).astype(np.float32))


def test_other_graphs_are_refused() -> None:
    with raises(RecipeError, "raw-maps-not-applicable", task="classify"):
        check_raw_maps_apply(untrained("classify").info)
    model = make_model(TINY)
    graph = trace(model)
    for node in graph.graph.node:
        if node.op_type == "Sigmoid":
            node.op_type = "Softplus"
    with raises(RecipeError, "raw-maps-not-found", task="detect"):
        find_raw_maps(graph, model.info)
    assert model.output_format == DENSE
    # Keypoints of one family behind distributions of the other.
    older = untrained("pose")
    graph = trace(older)
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    twos = {name for name, value in values.items() if value.size == 1 and value == 2}
    doubled = [node for node in graph.graph.node if node.op_type == "Mul" and twos & set(node.input)]
    assert doubled
    for node in doubled:
        node.op_type = "Add"
    with raises(RecipeError, "raw-maps-not-found", task="pose"):
        find_raw_maps(graph, older.info)


def test_maps_of_unknown_stride_are_refused() -> None:
    """A side of the image that is a multiple of one map's and not of the other's leaves one no whole stride."""
    model = make_model(TINY)
    graph = trace(model)
    rows = int(graph.graph.input[0].type.tensor_type.shape.dim[2].dim_value)
    graph.graph.input[0].type.tensor_type.shape.dim[2].dim_value = rows + 4
    with raises(RecipeError, "raw-maps-not-found", task="detect"):
        find_raw_maps(graph, model.info)
