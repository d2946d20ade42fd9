"""Oriented boxes: boxes with an angle."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from trtkit.tasks.base import Detections
from trtkit.tasks.detect import Detect, chosen_rows, columns, main_output
from trtkit.tasks.drawing import colour, draw_box, line_width
from trtkit.tasks.rotated import corners_of, enclosing, from_corners, prob_iou, rotated_iou, suppress_rotated

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtkit.data import Dataset, Fit, Labels
    from trtkit.sources.card import Card

__all__ = ["Obb", "Oriented"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Oriented(Detections):
    """Objects in rotated boxes; `boxes` are the upright ones around them, cut off at the picture's edge.

    Attributes:
        rotated: x, y (centre), width, height in pixels of the original picture, angle in radians; shape (n, 5),
            float32.
    """

    rotated: NDArray[np.float32]

    @property
    def corners(self) -> NDArray[np.float32]:
        """The four corners of each, shape (n, 4, 2)."""
        return corners_of(self.rotated)


class Obb(Detect):
    """The obb task; "B" is the probabilistic overlap Ultralytics judges by, "R" the exact one beside it."""

    name = "obb"
    metric = "mAP50-95(B)"
    kinds: tuple[str, ...] = ("B", "R")
    coco_kinds: Mapping[str, str] = {}

    def decode(
        self,
        outputs: Mapping[str, NDArray[np.float32]],
        card: Card,
        fits: Sequence[Fit],
        *,
        conf: float,
        iou: float,
        max_det: int,
        multi_label: bool = False,
    ) -> list[Detections]:
        """Rotated boxes from rows (batch, 4 + classes + 1, anchors), or (batch, rows, 7) with NMS in the graph.

        Raises:
            ModelError: The rows have another shape.
        """
        rows = main_output(outputs, card, columns(card, 1))
        found: list[Detections] = []
        for row, fit in zip(rows, fits, strict=False):
            if card.nms:
                # x, y, width, height, score, class, angle: Ultralytics' order.
                kept = chosen_rows(row, conf=conf, max_det=max_det)
                boxes, scores, classes = kept[:, [0, 1, 2, 3, 6]], kept[:, 4], kept[:, 5].astype(np.int64)
            else:
                boxes, scores, classes = _suppressed(
                    row, len(card.names), conf=conf, iou=iou, max_det=max_det, multi_label=multi_label
                )
            rotated = _to_picture(boxes, fit)
            upright = enclosing(rotated)
            np.clip(upright, 0, np.tile(np.array([fit.shape[1], fit.shape[0]], np.float32), 2), out=upright)
            found.append(Oriented(shape=fit.shape, boxes=upright, scores=scores, classes=classes, rotated=rotated))
        return found

    def similarity(self, labels: Labels, found: Oriented, dataset: Dataset) -> dict[str, NDArray[np.float32]]:  # type: ignore[override]
        """Probabilistic overlap ("B") and exact intersection over union ("R") of rotated boxes."""
        assert labels.corners is not None
        truths = from_corners(labels.corners)
        return {"B": prob_iou(truths, found.rotated), "R": rotated_iou(truths, found.rotated)}

    def areas(self, labels: Labels) -> NDArray[np.float32]:
        """Width times height of the rotated boxes."""
        assert labels.corners is not None
        boxes = from_corners(labels.corners)
        areas: NDArray[np.float32] = boxes[:, 2] * boxes[:, 3]
        return areas

    def columns(self, found: Oriented) -> dict[str, Any]:  # type: ignore[override]
        """The upright box, and x, y, width, height and angle of the rotated one."""
        names = ("x", "y", "width", "height", "angle")
        return {**super().columns(found), **{name: found.rotated[:, place] for place, name in enumerate(names)}}

    def draw(self, picture: NDArray[np.uint8], found: Oriented, names: Mapping[int, str]) -> NDArray[np.uint8]:  # type: ignore[override]
        """A copy of a BGR picture with rotated boxes, names and scores, the surest on top."""
        drawn = picture.copy()
        for index in reversed(range(len(found))):
            number, corners = int(found.classes[index]), found.corners[index]
            line = [np.round(corners).astype(np.int32)]
            cv2.polylines(drawn, line, True, colour(number), line_width(picture.shape), cv2.LINE_AA)
            # The name stands at the topmost corner, moved into the picture, as if a box of no size were there.
            top = np.clip(corners[corners[:, 1].argmin()], 0, (picture.shape[1] - 1, picture.shape[0] - 1))
            draw_box(drawn, np.tile(top, 2), f"{names.get(number, number)} {found.scores[index]:.2f}", number)
        return drawn


def _suppressed(
    row: NDArray[np.float32], classes: int, *, conf: float, iou: float, max_det: int, multi_label: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Rotated boxes in input pixels (n, 5), scores and classes of one picture's raw output, by falling score."""
    scores = row[4 : 4 + classes]
    anchors = np.flatnonzero(scores.max(0) > conf)
    scores = np.ascontiguousarray(scores[:, anchors].T)
    if multi_label:
        rows, numbers = np.nonzero(scores > conf)
    else:
        rows, numbers = np.arange(len(anchors)), scores.argmax(1)
    boxes = np.ascontiguousarray(np.concatenate((row[:4, anchors[rows]], row[-1:, anchors[rows]])).T)
    chosen = suppress_rotated(boxes, scores[rows, numbers], numbers, iou=iou, max_det=max_det)
    return boxes[chosen], scores[rows, numbers][chosen], numbers[chosen].astype(np.int64)


def _to_picture(boxes: NDArray[np.float32], fit: Fit) -> NDArray[np.float32]:
    """Rotated boxes in input pixels as ones in the original picture.

    The two ratios of `fit` differ by the rounding of a side, so that a rectangle becomes a parallelogram, if hardly;
    its sides' lengths and the direction of its width are kept.
    """
    vertical, horizontal = fit.ratio
    cos, sin = np.cos(boxes[:, 4]), np.sin(boxes[:, 4])
    moved = np.empty_like(boxes)
    moved[:, :2] = fit.to_picture(boxes[:, :2], clip=False)
    moved[:, 2] = boxes[:, 2] * np.hypot(cos / horizontal, sin / vertical)
    moved[:, 3] = boxes[:, 3] * np.hypot(sin / horizontal, cos / vertical)
    moved[:, 4] = np.arctan2(sin / vertical, cos / horizontal)
    return moved
