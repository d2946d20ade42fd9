"""Boxes and oriented boxes: conversions, IoU, and class-wise non-maximum suppression (NMS)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtkit.tasks.base import PostprocessSettings

__all__ = [
    "CLASS_OFFSET",
    "MAX_CANDIDATES",
    "box_iou",
    "corners_to_xywhr",
    "nms",
    "nms_rotated",
    "prob_iou",
    "rotated_iou",
    "select_candidates",
    "xywh_to_xyxy",
    "xywhr_to_corners",
    "xywhr_to_xyxy",
]

CLASS_OFFSET = 7680.0
"""Pixels between the boxes of one class and the next, so that they never overlap; Ultralytics' `max_wh`."""

MAX_CANDIDATES = 30000
"""NMS considers this many highest-scoring boxes per image; Ultralytics' `max_nms`."""

BLOCK = 256
"""Boxes compared at once."""


def select_candidates(
    scores: NDArray[np.float32], settings: PostprocessSettings
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.intp]]:
    """Select the candidates of one image that NMS considers.

    Args:
        scores: Class scores of each anchor, shape (classes, anchors).
        settings: `conf` and `multi_label`.

    Returns:
        Scores above `conf`, their classes and their anchors, each of shape (n,).
    """
    anchors = np.flatnonzero(scores.max(0) > settings.conf)
    candidates = np.ascontiguousarray(scores[:, anchors].T)
    if settings.multi_label:
        rows, numbers = np.nonzero(candidates > settings.conf)
    else:
        rows, numbers = np.arange(len(anchors)), candidates.argmax(1)
    return candidates[rows, numbers], numbers.astype(np.int64), anchors[rows]


# Axis-aligned boxes


def xywh_to_xyxy(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Convert boxes from center x, center y, width, height to x1, y1, x2, y2; shape (..., 4)."""
    corners = np.empty_like(boxes)
    half = boxes[..., 2:4] / 2
    corners[..., :2] = boxes[..., :2] - half
    corners[..., 2:] = boxes[..., :2] + half
    return corners


def box_iou(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute the intersection over union (IoU) of every pair of boxes.

    Args:
        first: x1, y1, x2, y2, shape (n, 4).
        second: x1, y1, x2, y2, shape (m, 4).

    Returns:
        Shape (n, m), in 0..1; 0 where both boxes are empty.
    """
    width = np.minimum(first[:, None, 2], second[:, 2]) - np.maximum(first[:, None, 0], second[:, 0])
    height = np.minimum(first[:, None, 3], second[:, 3]) - np.maximum(first[:, None, 1], second[:, 1])
    shared: NDArray[np.float32] = np.maximum(width, 0)
    shared *= np.maximum(height, 0)
    union = _box_areas(first)[:, None] + _box_areas(second) - shared
    shared /= np.maximum(union, np.finfo(np.float32).tiny)
    return shared


def _box_areas(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    areas: NDArray[np.float32] = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return areas


def nms(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    classes: NDArray[np.int64],
    *,
    iou: float,
    max_det: int,
) -> NDArray[np.intp]:
    """Class-wise NMS: of two boxes of a class with IoU > `iou` the lower-scoring is dropped.

    Greedy, by falling score; equal scores keep the order given. Classes are separated by an offset added in float32,
    as in Ultralytics, so that rounding agrees.

    Args:
        boxes: x1, y1, x2, y2, pixels, shape (n, 4).
        scores: Shape (n,).
        classes: Shape (n,).
        iou: IoU threshold.
        max_det: Maximum number of boxes kept.

    Returns:
        Indices of the kept boxes by falling score, at most `max_det`.
    """
    order = np.argsort(-scores, kind="stable")[:MAX_CANDIDATES]
    shifted = boxes[order] + (classes[order] * CLASS_OFFSET).astype(np.float32)[:, None]
    limit = _round_down_float32(iou)
    kept = np.empty((0, 4), np.float32)
    chosen: list[NDArray[np.intp]] = []
    count = 0
    # Blockwise: most images need one block, and crowded ones stop once max_det boxes are kept.
    for start in range(0, len(order), BLOCK):
        block = shifted[start : start + BLOCK]
        indices = np.arange(start, start + len(block))
        if len(kept):
            free = ~(box_iou(block, kept) > limit).any(1)
            block, indices = block[free], indices[free]
        survives = _greedy_keep(np.triu(box_iou(block, block) > limit, 1))
        kept = np.concatenate((kept, block[survives]))
        chosen.append(order[indices[survives]])
        count += len(chosen[-1])
        if count >= max_det:
            break
    return np.concatenate(chosen)[:max_det] if chosen else np.empty(0, np.intp)


def _greedy_keep(suppresses: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which boxes greedy NMS keeps, where `suppresses[i, j]` says that box i, if kept, drops the later box j.

    Dropping by all boxes that remain, repeated until nothing changes, ends at the greedy answer after as many rounds
    as the longest chain of drops (Cluster-NMS, Zheng et al. 2020, arXiv:2005.03572).
    """
    keep: NDArray[np.bool_] = np.ones(len(suppresses), np.bool_)
    if not suppresses.any():
        return keep
    while True:
        after: NDArray[np.bool_] = np.logical_not(suppresses[keep].any(0))
        if np.array_equal(after, keep):
            return keep
        keep = after


def _round_down_float32(threshold: float) -> np.float32:
    """Return the largest float32 <= `threshold`, so that a float32 comparison decides as a float64 one does."""
    nearest = np.float32(threshold)
    return nearest if nearest <= threshold else np.nextafter(nearest, np.float32(-math.inf))


# Oriented boxes


EPSILON = 1e-7
"""Keeps logarithm and square root away from zero, as in Ultralytics."""


def xywhr_to_corners(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Convert oriented boxes to their four corners.

    Args:
        boxes: center x, center y, width, height, angle (radians, clockwise as seen), shape (n, 5).

    Returns:
        Shape (n, 4, 2).
    """
    cos, sin = np.cos(boxes[:, 4]), np.sin(boxes[:, 4])
    along = np.stack((cos, sin), 1) * boxes[:, 2:3] / 2
    across = np.stack((-sin, cos), 1) * boxes[:, 3:4] / 2
    signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    corners: NDArray[np.float32] = np.stack([boxes[:, :2] + a * along + b * across for a, b in signs], 1)
    return corners


def corners_to_xywhr(corners: NDArray[np.float32]) -> NDArray[np.float32]:
    """Convert corners to the smallest oriented box around them; the width is the longer side.

    Args:
        corners: Shape (n, points, 2).

    Returns:
        Center x, center y, width, height, angle in -45 to 135 degrees as radians, shape (n, 5), float32.
    """
    boxes = np.zeros((len(corners), 5), np.float32)
    for index, points in enumerate(corners):
        (x, y), (width, height), degrees = cv2.minAreaRect(np.ascontiguousarray(points, np.float32))
        angle = math.radians(degrees)
        if width < height:
            width, height, angle = height, width, angle + math.pi / 2
        boxes[index] = x, y, width, height, (angle + math.pi / 4) % math.pi - math.pi / 4
    return boxes


def xywhr_to_xyxy(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Convert oriented boxes to the axis-aligned boxes around them: x1, y1, x2, y2, shape (n, 4)."""
    corners = xywhr_to_corners(boxes)
    upright: NDArray[np.float32] = np.concatenate((corners.min(1), corners.max(1)), 1)
    return upright


def prob_iou(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute ProbIoU of every pair: one minus the Hellinger distance of the boxes as normal distributions.

    Llerena, Zeni, Kristen and Jung 2021, arXiv:2106.06072. A box becomes the normal distribution with the variances of
    the uniform distribution on it, width^2 / 12 and height^2 / 12 along its axes.

    Args:
        first: Center x, center y, width, height, angle; shape (n, 5).
        second: The same; shape (m, 5).

    Returns:
        Shape (n, m), in 0..1.
    """
    a1, b1, c1 = (part[:, None] for part in _covariances(first))
    a2, b2, c2 = _covariances(second)
    x = first[:, None, 0].astype(np.float64) - second[:, 0]
    y = first[:, None, 1].astype(np.float64) - second[:, 1]
    a, b, c = a1 + a2, b1 + b2, c1 + c2
    both = a * b - c**2
    # Bhattacharyya distance; the covariances are those of the sum, hence the quarter.
    apart = (a * y**2 + b * x**2 - 2 * c * x * y) / (both + EPSILON) / 4
    sizes = np.sqrt(np.maximum(a1 * b1 - c1**2, 0) * np.maximum(a2 * b2 - c2**2, 0))
    distance = np.clip(apart + np.log(both / (4 * sizes + EPSILON) + EPSILON) / 2, EPSILON, 100)
    similarity: NDArray[np.float32] = np.maximum(1 - np.sqrt(1 - np.exp(-distance) + EPSILON), 0).astype(np.float32)
    return similarity


def _covariances(boxes: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return Var(x), Var(y) and Cov(x, y) of each box."""
    boxes = boxes.astype(np.float64)
    along, across = boxes[:, 2] ** 2 / 12, boxes[:, 3] ** 2 / 12
    cos, sin = np.cos(boxes[:, 4]), np.sin(boxes[:, 4])
    return along * cos**2 + across * sin**2, along * sin**2 + across * cos**2, (along - across) * cos * sin


def rotated_iou(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute the exact IoU of every pair of oriented boxes.

    Two rectangles intersect in a convex polygon. Its corners are the corners of each inside the other and the points
    where sides cross; the shoelace formula gives its area.

    Args:
        first: Center x, center y, width, height, angle; shape (n, 5).
        second: The same; shape (m, 5).

    Returns:
        Shape (n, m), in 0..1; 0 where both are empty.
    """
    shared = np.zeros((len(first), len(second)))
    # Only pairs whose axis-aligned boxes overlap can intersect: a small part of all.
    rows, columns = np.nonzero(box_iou(xywhr_to_xyxy(first), xywhr_to_xyxy(second)) > 0)
    ours, theirs = first[rows].astype(np.float64), second[columns].astype(np.float64)
    # Relative to one of the two centers, so that boxes far from the origin lose no digits.
    provenance = ours[:, :2].copy()
    ours[:, :2] -= provenance
    theirs[:, :2] -= provenance
    shared[rows, columns] = _intersection_areas(ours, theirs)
    areas = [boxes[:, 2].astype(np.float64) * boxes[:, 3] for boxes in (first, second)]
    union = areas[0][:, None] + areas[1] - shared
    overlap: NDArray[np.float32] = np.clip(shared / np.maximum(union, 1e-12), 0, 1).astype(np.float32)
    return overlap


def _intersection_areas(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the intersection area of each box of `ours` with the box of `theirs` in the same row, both (n, 5)."""
    corners = [np.asarray(xywhr_to_corners(cast("NDArray[np.float32]", boxes)), np.float64) for boxes in (ours, theirs)]
    inside = [_inside(corners[0], theirs), _inside(corners[1], ours)]
    starts, ends = corners[0][:, :, None], np.roll(corners[0], -1, 1)[:, :, None]
    begins, stops = corners[1][:, None], np.roll(corners[1], -1, 1)[:, None]
    way, other = ends - starts, stops - begins
    turn = _cross(way, other)
    steady = np.abs(turn) > 1e-12
    safe = np.where(steady, turn, 1)
    along = _cross(begins - starts, other) / safe
    beside = _cross(begins - starts, way) / safe
    cross = steady & (along >= 0) & (along <= 1) & (beside >= 0) & (beside <= 1)
    crossings = (starts + along[..., None] * way).reshape(len(ours), 16, 2)
    points = np.concatenate((corners[0], corners[1], crossings), 1)
    valid = np.concatenate((inside[0], inside[1], cross.reshape(len(ours), 16)), 1)
    count = np.maximum(valid.sum(1), 1)
    middle = (points * valid[..., None]).sum(1) / count[:, None]
    points = np.where(valid[..., None], points - middle[:, None], 0)
    # Sorted by angle about the center; points that are no corner repeat the first that is one and add no area.
    angles = np.where(valid, np.arctan2(points[..., 1], points[..., 0]), np.inf)
    order = angles.argsort(1)
    points = np.take_along_axis(points, order[..., None], 1)
    used = np.arange(points.shape[1]) < valid.sum(1)[:, None]
    points = np.where(used[..., None], points, points[:, :1])
    areas: NDArray[np.float64] = np.abs(_cross(points, np.roll(points, -1, 1)).sum(1)) / 2
    return areas


def _inside(points: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return whether each of (n, k, 2) points lies in its box or on its edge."""
    cos, sin = np.cos(boxes[:, 4])[:, None], np.sin(boxes[:, 4])[:, None]
    moved = points - boxes[:, None, :2]
    slack = 1e-9 * (boxes[:, 2:3] + boxes[:, 3:4])
    along = np.abs(moved[..., 0] * cos + moved[..., 1] * sin) <= boxes[:, 2:3] / 2 + slack
    across = np.abs(moved[..., 1] * cos - moved[..., 0] * sin) <= boxes[:, 3:4] / 2 + slack
    within: NDArray[np.bool_] = along & across
    return within


def _cross(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    product: NDArray[np.float64] = first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]
    return product


def nms_rotated(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    classes: NDArray[np.int64],
    *,
    iou: float,
    max_det: int,
) -> NDArray[np.intp]:
    """Class-wise Fast NMS: a box is dropped if any higher-scoring one overlaps it, even one that is dropped itself.

    Bolya et al. 2019 (YOLACT), section 4.2, with `prob_iou` as the overlap, as in Ultralytics.

    Args:
        boxes: Center x, center y, width, height, angle; shape (n, 5).
        scores: Shape (n,).
        classes: Shape (n,).
        iou: Threshold on `prob_iou`.
        max_det: Maximum number of boxes kept.

    Returns:
        Indices of the kept boxes by falling score, at most `max_det`.
    """
    order = np.argsort(-scores, kind="stable")[:MAX_CANDIDATES]
    keep = np.zeros(len(order), np.bool_)
    for number in np.unique(classes[order]):
        mine = np.flatnonzero(classes[order] == number)
        ours = boxes[order[mine]]
        for start in range(0, len(mine), 512):
            stop = min(start + 512, len(mine))
            overlap = prob_iou(ours[:stop], ours[start:stop]) > iou
            higher = np.arange(stop)[:, None] < np.arange(start, stop)
            keep[mine[start:stop]] = ~(overlap & higher).any(0)
    return order[keep][:max_det]
