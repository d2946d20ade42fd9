"""Oriented boxes, against numbers by hand, polygon clipping and properties of any two boxes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtkit.tasks.nms import corners_to_xywhr, nms_rotated, prob_iou, rotated_iou, xywhr_to_corners, xywhr_to_xyxy

NUMBERS = {"allow_nan": False, "width": 32}
BOX = st.tuples(
    st.floats(-50, 50, **NUMBERS), st.floats(-50, 50, **NUMBERS), st.floats(2, 80, **NUMBERS),
    st.floats(2, 80, **NUMBERS), st.floats(-3, 3, **NUMBERS),
)  # fmt: skip


def one(*values):
    return np.array([values], np.float32)


def clipped_area(polygon, window):
    """Area of the intersection of a polygon with a convex one (Sutherland and Hodgman 1974)."""

    def side(point, start, end):
        return (end[0] - start[0]) * (point[1] - start[1]) - (end[1] - start[1]) * (point[0] - start[0])

    for start, end in zip(window, window[1:] + window[:1], strict=True):
        kept = []
        for point, following in zip(polygon, polygon[1:] + polygon[:1], strict=True):
            here, there = side(point, start, end), side(following, start, end)
            if here >= 0:
                kept.append(point)
            if here * there < 0:
                share = here / (here - there)
                kept.append([a + share * (b - a) for a, b in zip(point, following, strict=True)])
        polygon = kept
    turns = zip(polygon, polygon[1:] + polygon[:1], strict=True)
    return abs(sum(a[0] * b[1] - a[1] * b[0] for a, b in turns)) / 2


def test_corners_by_hand():
    found = xywhr_to_corners(one(10, 20, 4, 2, math.pi / 2))
    # Rotated by a right angle, the width points down the image.
    np.testing.assert_allclose(found[0], [[11, 18], [11, 22], [9, 22], [9, 18]], atol=1e-5)
    np.testing.assert_allclose(xywhr_to_xyxy(one(10, 20, 4, 2, 0)), [[8, 19, 12, 21]])


def test_exact_overlap_by_hand():
    upright, shifted = one(0, 0, 4, 2, 0), one(1, 1, 4, 2, 0)
    # 3 x 1 of 8 + 8 - 3.
    assert rotated_iou(upright, shifted)[0, 0] == pytest.approx(3 / 13)
    # Two crossed bars of 4 x 2 share their 2 x 2 center.
    assert rotated_iou(upright, one(0, 0, 4, 2, math.pi / 2))[0, 0] == pytest.approx(4 / 12)
    # A square and itself rotated by 45 degrees share an octagon, 8 (sqrt 2 - 1) of the half side squared.
    octagon = 8 * (math.sqrt(2) - 1)
    assert rotated_iou(one(5, 5, 2, 2, 0), one(5, 5, 2, 2, math.pi / 4))[0, 0] == pytest.approx(
        octagon / (8 - octagon), abs=1e-5
    )
    assert rotated_iou(upright, one(9, 9, 1, 1, 0.3))[0, 0] == 0
    assert rotated_iou(one(0, 0, 0, 0, 0), one(0, 0, 0, 0, 0))[0, 0] == 0


def test_probabilistic_overlap_by_hand():
    # The same square at a distance d: the Bhattacharyya distance is d^2 / (8 variance), the variance side^2 / 12.
    distance = 3.0**2 / (8 * 6.0**2 / 12)
    expected = 1 - math.sqrt(1 - math.exp(-distance))
    assert prob_iou(one(0, 0, 6, 6, 0.2), one(3, 0, 6, 6, 0.2))[0, 0] == pytest.approx(expected, abs=1e-4)
    # Concentric squares of sides s and 2s: ln(det(mean) / sqrt(det1 det2)) / 2 = ln(2.5^2 / 4) / 2.
    expected = 1 - math.sqrt(1 - math.exp(-math.log(2.5**2 / 4) / 2))
    assert prob_iou(one(0, 0, 6, 6, 0), one(0, 0, 12, 12, 0))[0, 0] == pytest.approx(expected, abs=1e-4)


@settings(max_examples=150, deadline=None)
@given(BOX, BOX)
def test_exact_overlap_is_that_of_clipped_polygons(first, second):
    # OpenCV's rotatedRectangleIntersection is no reference: boxes that share an edge can be off by a factor of 3.
    shared = clipped_area(xywhr_to_corners(one(*first))[0].tolist(), xywhr_to_corners(one(*second))[0].tolist())
    expected = shared / (first[2] * first[3] + second[2] * second[3] - shared)
    assert rotated_iou(one(*first), one(*second))[0, 0] == pytest.approx(expected, abs=2e-3)


@settings(max_examples=100, deadline=None)
@given(BOX, BOX, st.floats(-100, 100, **NUMBERS), st.floats(-100, 100, **NUMBERS))
def test_symmetry_identity_and_translation(first, second, right, down):
    a, b = one(*first), one(*second)
    moved = [box + np.array([right, down, 0, 0, 0], np.float32) for box in (a, b)]
    for overlap, itself in ((rotated_iou, 1e-4), (prob_iou, 2e-3)):
        value = overlap(a, b)[0, 0]
        assert 0 <= value <= 1
        assert value == pytest.approx(overlap(b, a)[0, 0], abs=1e-4)
        assert value == pytest.approx(overlap(*moved)[0, 0], abs=2e-3)
        assert overlap(a, a)[0, 0] == pytest.approx(1, abs=itself)
        turned = a + np.array([0, 0, 0, 0, math.pi], np.float32)
        assert overlap(a, turned)[0, 0] == pytest.approx(1, abs=2e-3)


@settings(max_examples=60, deadline=None)
@given(BOX)
def test_corners_give_the_box_back(box):
    again = corners_to_xywhr(xywhr_to_corners(one(*box)))
    assert -math.pi / 4 <= again[0, 4] < 3 * math.pi / 4
    assert again[0, 2] >= again[0, 3]
    assert rotated_iou(again, one(*box))[0, 0] == pytest.approx(1, abs=5e-3)


def test_rotated_nms_is_fast_nms():
    # B is covered by A and covers C; C does not touch A's share. Greedy NMS keeps C, Fast NMS does not.
    boxes = np.concatenate((one(0, 0, 10, 10, 0), one(2, 0, 10, 10, 0), one(4, 0, 10, 10, 0)))
    scores, classes = np.array([0.9, 0.8, 0.7], np.float32), np.zeros(3, np.int64)
    near = prob_iou(boxes, boxes)
    limit = float((near[0, 1] + near[0, 2]) / 2)
    kept = nms_rotated(boxes, scores, classes, iou=limit, max_det=10)
    assert kept.tolist() == [0]
    assert nms_rotated(boxes, scores, np.arange(3), iou=limit, max_det=2).tolist() == [0, 1]
    empty = nms_rotated(boxes[:0], scores[:0], classes[:0], iou=0.5, max_det=2)
    assert len(empty) == 0
