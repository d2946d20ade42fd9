"""Raw maps give the same objects as the dense output that they decode to, on the CPU and by torch."""

from __future__ import annotations

import dataclasses
import math
import unittest.mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from raising import raises

from trtkit.backends.trt import gpu_objects, gpu_postprocess
from trtkit.backends.trt.gpu_objects import FIXED_CANDIDATES, read_objects
from trtkit.data.images import compute_letterbox
from trtkit.errors import ModelError
from trtkit.models.model import DENSE, END2END_ROWS, RAW_MAPS, RAW_ONE_TO_ONE, ModelInfo
from trtkit.models.output_shapes import RAW_EXTRA
from trtkit.tasks import PostprocessSettings, get_task
from trtkit.tasks.base import BoxLayout
from trtkit.tasks.raw_maps import find_levels, logit_threshold, to_dense

POINTS = (3, 3)
EXTRA = {"detect": 0, "segment": 4, "pose": 9, "obb": 1}
SIDE = 64


def make_info(task: str, output_format=RAW_MAPS, classes: int = 3) -> ModelInfo:
    return ModelInfo(
        task=task,
        names={index: str(index) for index in range(classes)},
        imgsz=(SIDE, SIDE),
        kpt_shape=POINTS if task == "pose" else None,
        output_format=output_format,
    )


def random_maps(task: str, *, bins: int, seed: int, batch: int = 2, classes: int = 3) -> dict[str, np.ndarray]:
    """Maps of strides 8, 16 and 32; few of the classes' logits are high, and neighbors overlap."""
    random = np.random.default_rng(seed)
    maps = {}
    for stride in (8, 16, 32):
        shape = (SIDE // stride, SIDE // stride)

        def normal(channels: int, mean: float, deviation: float, shape: tuple[int, int] = shape) -> np.ndarray:
            return random.normal(mean, deviation, (batch, channels, *shape)).astype(np.float32)

        maps[f"boxes_s{stride}"] = normal(4 * bins, 0, 2) if bins > 1 else normal(4, 2.5, 1)
        maps[f"scores_s{stride}"] = normal(classes, -3, 3)
        if task in RAW_EXTRA:
            maps[f"{RAW_EXTRA[task]}_s{stride}"] = normal(EXTRA[task], 0, 1)
    if task == "segment":
        maps["output1"] = random.normal(0, 1, (batch, EXTRA[task], SIDE // 4, SIDE // 4)).astype(np.float32)
    return maps


def layout_of(task: str) -> BoxLayout:
    return BoxLayout(extra=EXTRA[task], rotated=task == "obb")


def expect_same(ours, theirs, tolerance: float = 1e-3) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one.classes, other.classes)
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-6)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=tolerance)
        for name in ("keypoints", "xywhr"):
            if hasattr(one, name):
                np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=tolerance)
        if hasattr(one, "masks"):
            np.testing.assert_array_equal(one.masks.coefficients, other.masks.coefficients)


@settings(max_examples=40)
@given(
    task=st.sampled_from(sorted(EXTRA)),
    bins=st.sampled_from([1, 16]),
    seed=st.integers(0, 1000),
    conf=st.sampled_from([0.0, 0.001, 0.25, 0.9]),
    multi_label=st.booleans(),
    max_det=st.sampled_from([5, 300]),
)
def test_candidates_alone_give_what_the_dense_output_gives(task, bins, seed, conf, multi_label, max_det) -> None:
    maps = random_maps(task, bins=bins, seed=seed)
    info = make_info(task)
    dense = to_dense(maps, info, layout_of(task))
    transforms = [compute_letterbox((50, 80), (SIDE, SIDE))] * 2
    thresholds = PostprocessSettings(conf=conf, iou=0.6, max_det=max_det, multi_label=multi_label)
    ours = get_task(task).postprocess(maps, info, transforms, thresholds)
    theirs = get_task(task).postprocess(dense, dataclasses.replace(info, output_format=DENSE), transforms, thresholds)
    assert conf > 0.5 or any(map(len, theirs))
    expect_same(ours, theirs)


def select_rows(dense: np.ndarray, classes: int, count: int) -> np.ndarray:
    """A one-to-one head's rows from dense output, as its graph selects them (YOLOv10)."""
    images = []
    for image in dense:
        table = image.T
        anchors = np.argsort(-table[:, 4 : 4 + classes].max(1), kind="stable")[:count]
        scores = table[anchors, 4 : 4 + classes]
        places = np.argsort(-scores.ravel(), kind="stable")[:count]
        chosen = anchors[places // classes]
        box, half = table[chosen, :2], table[chosen, 2:4] / 2
        columns = (box - half, box + half, scores.ravel()[places, None], (places % classes)[:, None])
        images.append(np.concatenate(columns, 1))
    return np.stack(images).astype(np.float32)


@pytest.mark.parametrize("conf", [0.001, 0.5])
@pytest.mark.parametrize("max_det", [10, 300])
def test_one_to_one_heads_have_the_rows_that_their_graph_selects(conf: float, max_det: int) -> None:
    maps = random_maps("detect", bins=1, seed=3)
    info = make_info("detect", RAW_ONE_TO_ONE)
    rows = select_rows(to_dense(maps, info, BoxLayout())["output0"], 3, max_det)
    transforms = [compute_letterbox((50, 80), (SIDE, SIDE))] * 2
    thresholds = PostprocessSettings(conf=conf, max_det=max_det)
    task = get_task("detect")
    theirs = task.postprocess({"output0": rows}, make_info("detect", END2END_ROWS), transforms, thresholds)
    expect_same(task.postprocess(maps, info, transforms, thresholds), theirs)
    levels = find_levels({name: value.shape for name, value in maps.items()}, info, BoxLayout())
    tensors = {name: torch.from_numpy(value) for name, value in maps.items()}
    on_gpu = gpu_postprocess.postprocess_raw_maps(tensors, levels, transforms, thresholds, needs_nms=False)
    expect_same(on_gpu, theirs)


def expect_same_but_ties(ours, theirs) -> None:
    """Torch's sigmoid of one logit differs in the last bit by its place in memory, and with it the order of ties."""
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-6)
        tables = []
        for found in (one, other):
            # Of equal scores `max_det` may keep either.
            chosen = found.scores > (found.scores[-1] if len(found) else 0) + 1e-6
            table = np.concatenate((found.classes[chosen, None], found.boxes[chosen], found.scores[chosen, None]), 1)
            tables.append(table[np.lexsort(table.round(3).T)])
        np.testing.assert_allclose(*tables, atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(
    conf=st.sampled_from([0.0, 0.3, 0.999]),
    max_det=st.sampled_from([1, 10, 300]),
    decimals=st.sampled_from([0, 1, 6]),
    room=st.sampled_from([4, 100, FIXED_CANDIDATES]),
    count=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_a_fixed_number_of_rows_equals_as_many_as_there_are(conf, max_det, decimals, room, count, seed) -> None:
    # Rounded logits give ties.
    maps = {name: value.round(decimals) for name, value in random_maps("detect", bins=1, seed=seed, batch=3).items()}
    maps["scores_s8"][2] = np.nan
    transforms = [compute_letterbox((50, 80), (SIDE, SIDE))] * count
    thresholds = PostprocessSettings(conf=conf, max_det=max_det)
    tensors = {name: torch.from_numpy(value) for name, value in maps.items()}
    levels = find_levels({name: value.shape for name, value in maps.items()}, make_info("detect"), BoxLayout())
    expected = gpu_postprocess.postprocess_raw_maps(tensors, levels, transforms, thresholds, needs_nms=False)
    with unittest.mock.patch.object(gpu_objects, "FIXED_CANDIDATES", room):
        values = gpu_postprocess.enqueue_raw_maps(tensors, levels, count, thresholds, needs_nms=False)
    found = read_objects(values.numpy(), transforms, thresholds)
    if found is not None:
        expect_same_but_ties(found, expected)
    else:
        # More values than there is room for exceed the threshold.
        scores = [1 / (1 + np.exp(-value[:count])) for name, value in maps.items() if name.startswith("scores")]
        assert sum((one > conf - 1e-6).sum() for one in scores) > room


@settings(max_examples=40, deadline=None)
@given(
    conf=st.sampled_from([0.0, 0.5, 0.99]),
    max_det=st.sampled_from([1, 5, 300]),
    decimals=st.sampled_from([1, 6]),
    rows=st.sampled_from([1, 40]),
    seed=st.integers(0, 1000),
    half=st.booleans(),
)
def test_final_boxes_are_read_on_the_gpu_as_on_the_cpu(conf, max_det, decimals, rows, seed, half) -> None:
    random = np.random.default_rng(seed)
    output = random.random((3, rows, 6), np.float32) * np.array([SIDE, SIDE, SIDE, SIDE, 1, 3], np.float32)
    output[:, :, 4] = output[:, :, 4].round(decimals)
    output[:, :, 5] = np.floor(output[:, :, 5])
    # As NMS in a graph fills its last rows; and a row that is no number.
    output[0, rows // 2 :] = 0
    output[1, 0, 4] = np.nan
    output = output.astype(np.float16 if half else np.float32)
    transforms = [compute_letterbox((50, 80), (SIDE, SIDE))] * 2
    thresholds = PostprocessSettings(conf=conf, max_det=max_det)
    values = gpu_postprocess.enqueue_rows(torch.from_numpy(output), 2, thresholds)
    found = read_objects(values.numpy(), transforms, thresholds)
    assert found is not None
    info = make_info("detect", END2END_ROWS)
    theirs = {"output0": output[:2].astype(np.float32)}
    expect_same(found, get_task("detect").postprocess(theirs, info, transforms, thresholds))


@settings(max_examples=30)
@given(
    bins=st.sampled_from([1, 16]),
    seed=st.integers(0, 1000),
    conf=st.sampled_from([0.0, 0.001, 0.25, 0.999]),
    max_det=st.sampled_from([4, 300]),
    count=st.integers(1, 3),
    half=st.booleans(),
)
def test_torch_decodes_as_numpy(bins, seed, conf, max_det, count, half) -> None:
    maps = random_maps("detect", bins=bins, seed=seed, batch=3)
    if half:
        maps = {name: value.astype(np.float16) for name, value in maps.items()}
    info = make_info("detect")
    transforms = [compute_letterbox((50, 80), (SIDE, SIDE))] * count
    thresholds = PostprocessSettings(conf=conf, iou=0.6, max_det=max_det)
    tensors = {name: torch.from_numpy(value) for name, value in maps.items()}
    levels = find_levels({name: value.shape for name, value in maps.items()}, info, BoxLayout())
    on_gpu = gpu_postprocess.postprocess_raw_maps(tensors, levels, transforms, thresholds)
    values = gpu_postprocess.enqueue_raw_maps(tensors, levels, count, thresholds)
    fixed = read_objects(values.numpy(), transforms, thresholds)
    assert fixed is not None
    expect_same(fixed, on_gpu)
    single = {name: value.astype(np.float32) for name, value in maps.items()}
    expect_same(on_gpu, get_task("detect").postprocess(single, info, transforms, thresholds))


def test_the_threshold_of_logits_loses_no_score_above() -> None:
    assert (logit_threshold(0), logit_threshold(1)) == (-math.inf, math.inf)
    for conf in (0.001, 0.25, 0.5, 0.999):
        logits = np.float32(math.log(conf / (1 - conf))) + np.linspace(-1e-3, 1e-3, 2001, dtype=np.float32)
        scores = 1 / (1 + np.exp(-logits))
        assert (logits[scores > conf] > logit_threshold(conf)).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda maps: maps.pop("scores_s16"),
        lambda maps: maps.update(scores_s8=maps["scores_s8"][:, :2]),
        lambda maps: maps.update(boxes_s8=maps["boxes_s8"][:, :3]),
        lambda maps: maps.update(boxes_s8=maps["boxes_s8"][:, :, :4]),
        lambda maps: maps.update(angles_s8=maps["scores_s8"][:, :1]),
        lambda maps: maps.clear(),
    ],
)
def test_other_outputs_are_refused(change) -> None:
    maps = random_maps("detect", bins=1, seed=0)
    change(maps)
    with raises(ModelError, "task-raw-maps-shape"):
        find_levels({name: value.shape for name, value in maps.items()}, make_info("detect"), BoxLayout())
