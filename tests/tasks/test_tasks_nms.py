from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trtkit.tasks.nms import box_iou, nms, xywh_to_xyxy

# Whole pixels: sums and products are exact, and a shift changes nothing.
CORNERS = st.integers(0, 200)


@st.composite
def boxes(draw, most=12):
    count = draw(st.integers(1, most))
    whole = draw(hnp.arrays(np.int64, (count, 4), elements=CORNERS)).astype(np.float32)
    whole[:, 2:] += whole[:, :2] + 1
    return whole


def test_by_hand():
    first = np.array([[0, 0, 10, 10]], np.float32)
    second = np.array([[5, 5, 15, 15], [0, 0, 10, 10], [10, 0, 20, 10], [2, 2, 4, 7], [3, 3, 3, 3]], np.float32)
    np.testing.assert_allclose(box_iou(first, second), [[25 / 175, 1, 0, 0.1, 0]], rtol=1e-6)


def test_two_empty_boxes_do_not_overlap():
    empty = np.zeros((1, 4), np.float32)
    assert box_iou(empty, empty).item() == 0


def test_centers():
    np.testing.assert_array_equal(xywh_to_xyxy(np.array([[5, 6, 4, 2]], np.float32)), [[3, 5, 7, 7]])


@given(boxes(), boxes())
def test_symmetry(first, second):
    np.testing.assert_array_equal(box_iou(first, second), box_iou(second, first).T)


@given(boxes())
def test_identity_and_range(some):
    overlap = box_iou(some, some)
    np.testing.assert_array_equal(np.diag(overlap), 1)
    assert (overlap >= 0).all()
    assert (overlap <= 1).all()


@given(boxes(), boxes(), st.integers(-500, 500), st.integers(-500, 500))
def test_translation(first, second, across, down):
    shift = np.array([across, down, across, down], np.float32)
    np.testing.assert_array_equal(box_iou(first, second), box_iou(first + shift, second + shift))


@given(boxes(), boxes(), st.sampled_from([0.25, 0.5, 2, 8]))
def test_scale(first, second, factor):
    grown = box_iou(first * np.float32(factor), second * np.float32(factor))
    np.testing.assert_array_equal(box_iou(first, second), grown)


def greedy(some, scores, classes, iou):
    """NMS by its definition, one box after another."""
    kept: list[int] = []
    for place in sorted(range(len(some)), key=lambda i: -scores[i]):
        rivals = [other for other in kept if classes[other] == classes[place]]
        if not rivals or (box_iou(some[[place]], some[rivals]) <= iou).all():
            kept.append(place)
    return kept


@st.composite
def crowds(draw):
    some = draw(boxes(most=60))
    scores = draw(hnp.arrays(np.float32, len(some), elements=st.floats(0, 1, width=32)))
    classes = draw(hnp.arrays(np.int64, len(some), elements=st.integers(0, 2)))
    return some, scores, classes


@given(crowds(), st.sampled_from([0.1, 0.3, 0.5, 0.7]))
def test_nms_equals_its_definition(crowd, iou):
    assert nms(*crowd, iou=iou, max_det=300).tolist() == greedy(*crowd, iou)


@given(crowds(), st.integers(1, 10))
def test_max_det_keeps_the_first(crowd, most):
    whole = nms(*crowd, iou=0.5, max_det=300)
    np.testing.assert_array_equal(nms(*crowd, iou=0.5, max_det=most), whole[:most])


@given(crowds())
def test_nms_of_kept_boxes_changes_nothing(crowd):
    some, scores, classes = crowd
    kept = nms(some, scores, classes, iou=0.5, max_det=300)
    again = nms(some[kept], scores[kept], classes[kept], iou=0.5, max_det=300)
    assert again.tolist() == list(range(len(kept)))
    assert scores[kept[0]] == scores.max()


def test_blocks_agree_with_the_definition():
    generator = np.random.default_rng(0)
    some = generator.integers(0, 300, (900, 4)).astype(np.float32)
    some[:, 2:] = some[:, :2] + generator.integers(20, 80, (900, 2))
    scores = generator.permutation(900).astype(np.float32)
    classes = generator.integers(0, 2, 900)
    kept = nms(some, scores, classes, iou=0.4, max_det=900)
    assert len(kept) > 256
    assert kept.tolist() == greedy(some, scores, classes, 0.4)


def test_nms_of_no_boxes():
    none = np.zeros((0, 4), np.float32)
    assert nms(none, np.zeros(0, np.float32), np.zeros(0, np.int64), iou=0.5, max_det=3).shape == (0,)


@pytest.mark.parametrize("iou", [0.7, 0.45, 0.1])
def test_overlap_equal_to_the_limit_stays(iou):
    # Two boxes of width 1 and height 1000: their IoU follows from the height they share.
    height = np.float32(1000)
    common = np.float32(2 * iou / (1 + iou) * height)
    some = np.array([[0, 0, 1, height], [0, height - common, 1, 2 * height - common]], np.float32)
    exact = box_iou(some[:1], some[1:]).item()
    scores = np.array([0.9, 0.8], np.float32)
    same = np.zeros(2, np.int64)
    assert len(nms(some, scores, same, iou=exact, max_det=9)) == 2
    assert len(nms(some, scores, same, iou=np.nextafter(exact, 0), max_det=9)) == 1
