"""Postprocessing on the GPU, run by torch on the CPU, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_graphs
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trtkit.backends.trt.gpu_objects import (
    FIXED_CANDIDATES,
    FIXED_ROUNDS,
    MAX_BATCHED_CANDIDATES,
    iou_matrix,
    keep_objects,
    nms,
    read_objects,
)
from trtkit.backends.trt.gpu_postprocess import enqueue_postprocess, postprocess
from trtkit.data import letterbox
from trtkit.tasks import PostprocessSettings, get_task
from trtkit.tasks import nms as cpu


def crowd(count: int, seed: int = 0, classes: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    corner = random.random((count, 2), dtype=np.float32) * 200
    boxes = np.concatenate((corner, corner + random.random((count, 2), dtype=np.float32) * 80), 1)
    # Rounded scores give ties.
    return boxes, random.random(count, dtype=np.float32).round(2), random.integers(0, classes, count)


@pytest.mark.parametrize("count", [0, 1, 40, 700, 3000])
@pytest.mark.parametrize("max_det", [5, 300])
def test_nms_equals_the_cpu(count: int, max_det: int) -> None:
    boxes, scores, classes = crowd(count, seed=count)
    expected = cpu.nms(boxes, scores, classes, iou=0.5, max_det=max_det)
    tensors = torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(classes)
    assert nms(*tensors, iou=0.5, max_det=max_det).tolist() == expected.tolist()


def test_iou_matrix() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 5, 5]])
    # One of 4 + 4 - 1 square pixels is shared; empty boxes overlap nothing.
    assert iou_matrix(boxes, boxes).tolist() == [[1, pytest.approx(1 / 7), 0], [pytest.approx(1 / 7), 1, 0], [0, 0, 0]]


@pytest.mark.parametrize(("anchors", "conf"), [(60, 0.25), (3000, 0.9), (MAX_BATCHED_CANDIDATES, 0.001)])
@pytest.mark.parametrize("max_det", [3, 300])
def test_postprocess_equals_the_cpu(anchors: int, conf: float, max_det: int) -> None:
    random = np.random.default_rng(anchors)
    output = random.random((3, 7, anchors), dtype=np.float32)
    output[:, :4] *= np.array([64, 64, 40, 40], np.float32)[:, None]
    # An image with nothing in it.
    output[1, 4:] = 0
    transforms = [letterbox(image, (64, 64))[1] for image in tiny_graphs.images(3)]
    settings = PostprocessSettings(conf=conf, iou=0.6, max_det=max_det)
    actual = postprocess(torch.from_numpy(output), 3, transforms, settings)
    expected = get_task("detect").postprocess({"output0": output}, tiny_graphs.info(), transforms, settings)
    assert [len(one) for one in actual] == [len(one) for one in expected]
    assert len(actual[1]) == 0
    for one, two in zip(actual, expected, strict=True):
        assert one.shape == two.shape
        assert one.classes.dtype == np.int64
        np.testing.assert_allclose(one.boxes, two.boxes, atol=1e-4)
        assert np.array_equal(one.scores, two.scores)
        assert np.array_equal(one.classes, two.classes)


def test_padding_rows_are_dropped() -> None:
    output = torch.rand(4, 7, 50)
    transforms = [letterbox(image, (64, 64))[1] for image in tiny_graphs.images(2)]
    assert len(postprocess(output, 3, transforms, PostprocessSettings(conf=0.5, iou=0.6, max_det=10))) == 2


def expect_equal(actual, expected) -> None:
    assert [len(one) for one in actual] == [len(one) for one in expected]
    for one, two in zip(actual, expected, strict=True):
        assert one.shape == two.shape
        assert one.classes.dtype == two.classes.dtype
        for name in ("boxes", "scores", "classes"):
            assert np.array_equal(getattr(one, name), getattr(two, name)), name


@settings(max_examples=60, deadline=None)
@given(
    anchors=st.sampled_from([1, 7, FIXED_CANDIDATES, 2000]),
    share=st.sampled_from([0.0, 0.01, 0.1, 0.24]),
    decimals=st.sampled_from([1, 2, 6]),
    iou=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    max_det=st.sampled_from([3, 300]),
    seed=st.integers(0, 1000),
)
def test_a_fixed_number_of_candidates_gives_the_same_objects(anchors, share, decimals, iou, max_det, seed) -> None:
    random = np.random.default_rng(seed)
    # Rounded scores give ties; many large boxes would overlap in longer chains than there are rounds.
    output = random.random((3, 7, anchors), dtype=np.float32)
    output[:, :4] *= np.array([900, 900, 40, 40], np.float32)[:, None]
    output[:, 4:] = (output[:, 4:] ** (1 / 3)).round(decimals)
    output[1, 4:] = 0
    output[2, 4:, : anchors // 3] = np.nan
    conf = min(float(np.quantile(output[0, 4:].max(0), 1 - share)), 0.999)
    transforms = [letterbox(image, (64, 64))[1] for image in tiny_graphs.images(3)]
    thresholds = PostprocessSettings(conf=conf, iou=iou, max_det=max_det)
    tensor = torch.from_numpy(output)
    # More rows than images: the engine's batch was padded.
    values = enqueue_postprocess(torch.cat((tensor, tensor)), 3, 3, thresholds)
    found = read_objects(values.numpy(), transforms, thresholds)
    if found is not None:
        expect_equal(found, postprocess(tensor, 3, transforms, thresholds))
    else:
        # Of few candidates only those of small IoU make long chains.
        assert iou < 0.7 or (np.nan_to_num(output[:, 4:]).max(1) > conf).sum(1).max() > FIXED_CANDIDATES


@pytest.mark.parametrize(("anchors", "fits"), [(FIXED_CANDIDATES, True), (FIXED_CANDIDATES + 1, False)])
def test_candidates_without_room_are_noticed(anchors: int, fits: bool) -> None:
    output = torch.zeros(2, 7, 3 * FIXED_CANDIDATES)
    output[1, 4, :anchors] = 0.5
    thresholds = PostprocessSettings(conf=0.25, iou=0.7, max_det=300)
    transforms = [letterbox(image, (64, 64))[1] for image in tiny_graphs.images(2)]
    found = read_objects(enqueue_postprocess(output, 3, 2, thresholds).numpy(), transforms, thresholds)
    assert (found is not None) == fits


@pytest.mark.parametrize("length", [2, FIXED_ROUNDS - 1, FIXED_ROUNDS + 2])
def test_chains_of_overlaps_that_take_too_many_rounds_are_noticed(length: int) -> None:
    # Each box overlaps the next one alone: of a chain every other one stays.
    places = torch.arange(length) * 6.0
    boxes = torch.stack((places, torch.zeros(length), places + 10, torch.full((length,), 10.0)), 1)[None]
    scores = torch.linspace(0.9, 0.5, length)[None]
    thresholds = PostprocessSettings(conf=0.25, iou=0.2, max_det=300)
    values = keep_objects(boxes, scores, torch.zeros(1, length), torch.tensor([length]), thresholds)
    transforms = [letterbox(image, (64, 64))[1] for image in tiny_graphs.images(1)]
    found = read_objects(values.numpy(), transforms, thresholds)
    if length < FIXED_ROUNDS:
        assert found is not None
        assert np.array_equal(found[0].scores, scores[0, ::2].numpy())
    else:
        assert found is None
