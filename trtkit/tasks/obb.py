"""Oriented boxes: boxes with an angle."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import cv2
import numpy as np

from trtkit.tasks.base import Detections, PostprocessSettings
from trtkit.tasks.detect import Detect, count_columns, filter_rows, get_main_output
from trtkit.tasks.drawing import class_color, draw_box, line_width
from trtkit.tasks.nms import MAX_CANDIDATES, box_iou

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtkit.data import Dataset, ImageTransform, Labels
    from trtkit.models.model import ModelInfo

__all__ = [
    "Obb",
    "OrientedDetections",
    "corners_to_xywhr",
    "nms_rotated",
    "prob_iou",
    "rotated_iou",
    "xywhr_to_corners",
    "xywhr_to_xyxy",
]


# Rotated boxes: corners, probabilistic and exact overlap, and suppression.


EPSILON = 1e-7
"""Keeps the logarithm and the root away from zero, as Ultralytics does."""


def xywhr_to_corners(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """The four corners of each box in turn.

    Args:
        boxes: x, y (center), width, height, angle (radians, clockwise as seen), shape (n, 5).

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
    """The smallest rotated box around each set of corners; the width is the longer side.

    Args:
        corners: Shape (n, points, 2).

    Returns:
        x, y, width, height, angle in -45 to 135 degrees as radians, shape (n, 5), float32.
    """
    boxes = np.zeros((len(corners), 5), np.float32)
    for place, points in enumerate(corners):
        (x, y), (width, height), degrees = cv2.minAreaRect(np.ascontiguousarray(points, np.float32))
        angle = math.radians(degrees)
        if width < height:
            width, height, angle = height, width, angle + math.pi / 2
        boxes[place] = x, y, width, height, (angle + math.pi / 4) % math.pi - math.pi / 4
    return boxes


def xywhr_to_xyxy(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """The upright box around each rotated one: x1, y1, x2, y2, shape (n, 4)."""
    corners = xywhr_to_corners(boxes)
    found: NDArray[np.float32] = np.concatenate((corners.min(1), corners.max(1)), 1)
    return found


def prob_iou(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilistic overlap of every pair: one minus the Hellinger distance of the boxes as normal distributions.

    Source: Llerena, Zeni, Kristen and Jung 2021, arXiv:2106.06072. A box is taken as the normal distribution with the
    variances of the uniform one on it, width^2 / 12 and height^2 / 12 along its axes.

    Args:
        first: x, y, width, height, angle; shape (n, 5).
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
    # Bhattacharyya's distance; the covariances are those of the sum, hence the quarter.
    apart = (a * y**2 + b * x**2 - 2 * c * x * y) / (both + EPSILON) / 4
    sizes = np.sqrt(np.maximum(a1 * b1 - c1**2, 0) * np.maximum(a2 * b2 - c2**2, 0))
    distance = np.clip(apart + np.log(both / (4 * sizes + EPSILON) + EPSILON) / 2, EPSILON, 100)
    alike: NDArray[np.float32] = np.maximum(1 - np.sqrt(1 - np.exp(-distance) + EPSILON), 0).astype(np.float32)
    return alike


def _covariances(boxes: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Var(x), Var(y) and Cov(x, y) of each box."""
    boxes = boxes.astype(np.float64)
    along, across = boxes[:, 2] ** 2 / 12, boxes[:, 3] ** 2 / 12
    cos, sin = np.cos(boxes[:, 4]), np.sin(boxes[:, 4])
    return along * cos**2 + across * sin**2, along * sin**2 + across * cos**2, (along - across) * cos * sin


def rotated_iou(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Exact intersection over union of every pair of rotated boxes.

    Two rectangles share a convex polygon, whose corners are the corners of each inside the other and the places where
    their sides cross; its area follows by the shoelace formula.

    Args:
        first: x, y, width, height, angle; shape (n, 5).
        second: The same; shape (m, 5).

    Returns:
        Shape (n, m), in 0..1; 0 where both are empty.
    """
    shared = np.zeros((len(first), len(second)))
    # Only pairs whose upright boxes touch can overlap: a small part of all.
    rows, columns = np.nonzero(box_iou(xywhr_to_xyxy(first), xywhr_to_xyxy(second)) > 0)
    ours, theirs = first[rows].astype(np.float64), second[columns].astype(np.float64)
    # About one of the two centers, so that places far from the origin lose no digits.
    provenance = ours[:, :2].copy()
    ours[:, :2] -= provenance
    theirs[:, :2] -= provenance
    shared[rows, columns] = _intersection_areas(ours, theirs)
    areas = [boxes[:, 2].astype(np.float64) * boxes[:, 3] for boxes in (first, second)]
    union = areas[0][:, None] + areas[1] - shared
    overlap: NDArray[np.float32] = np.clip(shared / np.maximum(union, 1e-12), 0, 1).astype(np.float32)
    return overlap


def _intersection_areas(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> NDArray[np.float64]:
    """The area that each box of `ours` shares with the box of `theirs` beside it, both of shape (n, 5)."""
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
    places = (starts + along[..., None] * way).reshape(len(ours), 16, 2)
    points = np.concatenate((corners[0], corners[1], places), 1)
    valid = np.concatenate((inside[0], inside[1], cross.reshape(len(ours), 16)), 1)
    count = np.maximum(valid.sum(1), 1)
    middle = (points * valid[..., None]).sum(1) / count[:, None]
    points = np.where(valid[..., None], points - middle[:, None], 0)
    # Sorted by angle about the middle; what is no corner repeats the first that is, and so adds no area.
    angles = np.where(valid, np.arctan2(points[..., 1], points[..., 0]), np.inf)
    order = angles.argsort(1)
    points = np.take_along_axis(points, order[..., None], 1)
    used = np.arange(points.shape[1]) < valid.sum(1)[:, None]
    points = np.where(used[..., None], points, points[:, :1])
    areas: NDArray[np.float64] = np.abs(_cross(points, np.roll(points, -1, 1)).sum(1)) / 2
    return areas


def _inside(points: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each of (n, k, 2) points lies in its box or on its edge."""
    cos, sin = np.cos(boxes[:, 4])[:, None], np.sin(boxes[:, 4])[:, None]
    moved = points - boxes[:, None, :2]
    slack = 1e-9 * (boxes[:, 2:3] + boxes[:, 3:4])
    along = np.abs(moved[..., 0] * cos + moved[..., 1] * sin) <= boxes[:, 2:3] / 2 + slack
    across = np.abs(moved[..., 1] * cos - moved[..., 0] * sin) <= boxes[:, 3:4] / 2 + slack
    within: NDArray[np.bool_] = along & across
    return within


def _cross(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    crossed: NDArray[np.float64] = first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]
    return crossed


def nms_rotated(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    classes: NDArray[np.int64],
    *,
    iou: float,
    max_det: int,
) -> NDArray[np.intp]:
    """Fast non-maximum suppression within each class: a box goes if any surer one overlaps it, even one that goes too.

    Source: Bolya et al. 2019 (YOLACT), section 4.2, with `prob_iou` as the overlap; Ultralytics does the same.

    Args:
        boxes: x, y, width, height, angle; shape (n, 5).
        scores: Shape (n,).
        classes: Shape (n,).
        iou: Overlap above which the weaker box goes.
        max_det: Most boxes kept.

    Returns:
        Indices of the kept boxes by falling score, at most `max_det`.
    """
    order = np.argsort(-scores, kind="stable")[:MAX_CANDIDATES]
    stands = np.zeros(len(order), np.bool_)
    for number in np.unique(classes[order]):
        mine = np.flatnonzero(classes[order] == number)
        ours = boxes[order[mine]]
        for start in range(0, len(mine), 512):
            stop = min(start + 512, len(mine))
            overlap = prob_iou(ours[:stop], ours[start:stop]) > iou
            surer = np.arange(stop)[:, None] < np.arange(start, stop)
            stands[mine[start:stop]] = ~(overlap & surer).any(0)
    return order[stands][:max_det]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class OrientedDetections(Detections):
    """Objects in rotated boxes; `boxes` are the upright ones around them, cut off at the image's edge.

    Attributes:
        rotated: x, y (center), width, height in pixels of the original image, angle in radians; shape (n, 5),
            float32.
    """

    xywhr: NDArray[np.float32]

    @property
    def corners(self) -> NDArray[np.float32]:
        """The four corners of each, shape (n, 4, 2)."""
        return xywhr_to_corners(self.xywhr)


class Obb(Detect):
    """The obb task; "B" is the probabilistic overlap Ultralytics judges by, "R" the exact one beside it."""

    name = "obb"
    metric = "mAP50-95(B)"
    kinds: tuple[str, ...] = ("B", "R")
    coco_iou_types: Mapping[str, str] = {}

    def postprocess(
        self,
        outputs: Mapping[str, NDArray[np.float32]],
        info: ModelInfo,
        transforms: Sequence[ImageTransform],
        settings: PostprocessSettings,
    ) -> list[Detections]:
        """Rotated boxes from rows (batch, 4 + classes + 1, anchors), or (batch, rows, 7) with NMS in the graph.

        Raises:
            ModelError: The rows have another shape.
        """
        rows = get_main_output(outputs, info, count_columns(info, 1))
        found: list[Detections] = []
        for row, fit in zip(rows, transforms, strict=False):
            if info.nms:
                # x, y, width, height, score, class, angle: Ultralytics' order.
                kept = filter_rows(row, settings)
                boxes, scores, classes = kept[:, [0, 1, 2, 3, 6]], kept[:, 4], kept[:, 5].astype(np.int64)
            else:
                boxes, scores, classes = _select_boxes(row, len(info.names), settings)
            rotated = _map_to_image(boxes, fit)
            upright = xywhr_to_xyxy(rotated)
            np.clip(upright, 0, np.tile(np.array([fit.shape[1], fit.shape[0]], np.float32), 2), out=upright)
            found.append(
                OrientedDetections(shape=fit.shape, boxes=upright, scores=scores, classes=classes, xywhr=rotated)
            )
        return found

    def similarity(self, labels: Labels, found: OrientedDetections, dataset: Dataset) -> dict[str, NDArray[np.float32]]:  # type: ignore[override]
        """Probabilistic overlap ("B") and exact intersection over union ("R") of rotated boxes."""
        assert labels.corners is not None
        truths = corners_to_xywhr(labels.corners)
        return {"B": prob_iou(truths, found.xywhr), "R": rotated_iou(truths, found.xywhr)}

    def areas(self, labels: Labels) -> NDArray[np.float32]:
        """Width times height of the rotated boxes."""
        assert labels.corners is not None
        boxes = corners_to_xywhr(labels.corners)
        areas: NDArray[np.float32] = boxes[:, 2] * boxes[:, 3]
        return areas

    def to_columns(self, found: OrientedDetections) -> dict[str, Any]:  # type: ignore[override]
        """The upright box, and x, y, width, height and angle of the rotated one."""
        names = ("x", "y", "width", "height", "angle")
        return {**super().to_columns(found), **{name: found.xywhr[:, place] for place, name in enumerate(names)}}

    def draw(  # type: ignore[override]
        self, image: NDArray[np.uint8], found: OrientedDetections, names: Mapping[int, str]
    ) -> NDArray[np.uint8]:
        """A copy of a BGR image with rotated boxes, names and scores, the surest on top."""
        drawn = image.copy()
        for index in reversed(range(len(found))):
            number, corners = int(found.classes[index]), found.corners[index]
            line = [np.round(corners).astype(np.int32)]
            cv2.polylines(drawn, line, True, class_color(number), line_width(image.shape), cv2.LINE_AA)
            # The name stands at the topmost corner, moved into the image, as if a box of no size were there.
            top = np.clip(corners[corners[:, 1].argmin()], 0, (image.shape[1] - 1, image.shape[0] - 1))
            draw_box(drawn, np.tile(top, 2), f"{names.get(number, number)} {found.scores[index]:.2f}", number)
        return drawn


def _select_boxes(
    row: NDArray[np.float32], classes: int, settings: PostprocessSettings
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Rotated boxes in input pixels (n, 5), scores and classes of one image's raw output, by falling score."""
    scores = row[4 : 4 + classes]
    anchors = np.flatnonzero(scores.max(0) > settings.conf)
    scores = np.ascontiguousarray(scores[:, anchors].T)
    if settings.multi_label:
        rows, numbers = np.nonzero(scores > settings.conf)
    else:
        rows, numbers = np.arange(len(anchors)), scores.argmax(1)
    boxes = np.ascontiguousarray(np.concatenate((row[:4, anchors[rows]], row[-1:, anchors[rows]])).T)
    chosen = nms_rotated(boxes, scores[rows, numbers], numbers, iou=settings.iou, max_det=settings.max_det)
    return boxes[chosen], scores[rows, numbers][chosen], numbers[chosen].astype(np.int64)


def _map_to_image(boxes: NDArray[np.float32], fit: ImageTransform) -> NDArray[np.float32]:
    """Rotated boxes in input pixels as ones in the original image.

    The two ratios of `fit` differ by the rounding of a side, so that a rectangle becomes a parallelogram, if hardly;
    its sides' lengths and the direction of its width are kept.
    """
    vertical, horizontal = fit.ratio
    cos, sin = np.cos(boxes[:, 4]), np.sin(boxes[:, 4])
    moved = np.empty_like(boxes)
    moved[:, :2] = fit.to_image(boxes[:, :2], clip=False)
    moved[:, 2] = boxes[:, 2] * np.hypot(cos / horizontal, sin / vertical)
    moved[:, 3] = boxes[:, 3] * np.hypot(sin / horizontal, cos / vertical)
    moved[:, 4] = np.arctan2(sin / vertical, cos / horizontal)
    return moved
