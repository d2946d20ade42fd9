"""Axis-aligned boxes: conversion, overlap, and suppression of the weaker of two that overlap."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CLASS_OFFSET", "MAX_CANDIDATES", "box_iou", "nms", "xywh_to_xyxy"]

CLASS_OFFSET = 7680.0
"""Pixels between the boxes of one class and the next, so that they never overlap; Ultralytics' `max_wh`."""

MAX_CANDIDATES = 30000
"""Candidates an image that enter suppression, the best first; Ultralytics' `max_nms`."""

BLOCK = 256


def xywh_to_xyxy(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Boxes x, y (center), width, height as x1, y1, x2, y2; shape (..., 4)."""
    found = np.empty_like(boxes)
    half = boxes[..., 2:4] / 2
    found[..., :2] = boxes[..., :2] - half
    found[..., 2:] = boxes[..., :2] + half
    return found


def box_iou(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union of every pair of boxes.

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
    """Greedy non-maximum suppression within each class.

    Boxes are taken by falling score (equal scores in the order given); one that overlaps a kept box of its class by
    more than `iou` goes. Classes are kept apart by an offset added in float32, as Ultralytics does, so that rounding
    agrees too.

    Args:
        boxes: x1, y1, x2, y2, pixels, shape (n, 4).
        scores: Shape (n,).
        classes: Shape (n,).
        iou: Overlap above which the weaker box goes.
        max_det: Most boxes kept.

    Returns:
        Indices of the kept boxes by falling score, at most `max_det`.
    """
    order = np.argsort(-scores, kind="stable")[:MAX_CANDIDATES]
    moved = boxes[order] + (classes[order] * CLASS_OFFSET).astype(np.float32)[:, None]
    limit = _round_down_float32(iou)
    kept = np.empty((0, 4), np.float32)
    chosen: list[NDArray[np.intp]] = []
    count = 0
    # A block at a time: most images need one, and crowded ones stop once max_det boxes are kept.
    for start in range(0, len(order), BLOCK):
        block = moved[start : start + BLOCK]
        places = np.arange(start, start + len(block))
        if len(kept):
            free = ~(box_iou(block, kept) > limit).any(1)
            block, places = block[free], places[free]
        survives = _greedy_keep(np.triu(box_iou(block, block) > limit, 1))
        kept = np.concatenate((kept, block[survives]))
        chosen.append(order[places[survives]])
        count += len(chosen[-1])
        if count >= max_det:
            break
    return np.concatenate(chosen)[:max_det] if chosen else np.empty(0, np.intp)


def _greedy_keep(beats: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which boxes survive, where `beats[i, j]` says that box i, if kept, removes the later box j.

    Removing by all boxes that still stand, again and again until nothing changes, ends at the greedy answer after as
    many rounds as the longest chain of removals, two or three in practice (Zheng et al. 2020, arXiv:2005.03572,
    Cluster-NMS).
    """
    stands: NDArray[np.bool_] = np.ones(len(beats), np.bool_)
    if not beats.any():
        return stands
    while True:
        after: NDArray[np.bool_] = np.logical_not(beats[stands].any(0))
        if np.array_equal(after, stands):
            return stands
        stands = after


def _round_down_float32(threshold: float) -> np.float32:
    """The largest float32 not above `threshold`, so that comparing in float32 decides as comparing in float64 would."""
    nearest = np.float32(threshold)
    return nearest if nearest <= threshold else np.nextafter(nearest, np.float32(-math.inf))
