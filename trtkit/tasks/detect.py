"""Detection: boxes with a class and a score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trtkit.data.images import letterbox
from trtkit.errors import ModelError
from trtkit.tasks.base import Detections
from trtkit.tasks.drawing import draw_box
from trtkit.tasks.nms import box_iou, from_centres, suppress

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtkit.data import Dataset, Fit, Labels
    from trtkit.models.model import Card

__all__ = ["Detect", "Found", "candidates", "chosen_rows", "columns", "found_in", "main_output"]

Found = tuple["NDArray[np.float32]", "NDArray[np.float32]", "NDArray[np.int64]", "NDArray[np.float32]"]
"""Boxes in input pixels, scores, classes, and what follows the classes in each row."""


class Detect:
    """The detect task; segment and pose share its boxes, scores and classes."""

    name = "detect"
    metric = "mAP50-95(B)"
    kinds: tuple[str, ...] = ("B",)
    coco_kinds: Mapping[str, str] = {"B": "bbox"}

    def prepare(self, picture: NDArray[np.uint8], size: tuple[int, int]) -> tuple[NDArray[np.uint8], Fit]:
        """Letterbox a BGR picture to (height, width)."""
        return letterbox(picture, size)

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
        """Boxes from `output0`: (batch, 4 + classes, anchors), or (batch, rows, 6) with NMS in the graph.

        Raises:
            ModelError: The output has another shape.
        """
        rows = main_output(outputs, card, columns(card))
        found = []
        for row, fit in zip(rows, fits, strict=False):
            boxes, scores, classes, _ = found_in(
                row, card, conf=conf, iou=iou, max_det=max_det, multi_label=multi_label
            )
            found.append(Detections(shape=fit.shape, boxes=fit.to_picture(boxes), scores=scores, classes=classes))
        return found

    def similarity(self, labels: Labels, found: Detections, dataset: Dataset) -> dict[str, NDArray[np.float32]]:
        """Intersection over union of boxes."""
        return {"B": box_iou(labels.boxes, found.boxes)}

    def areas(self, labels: Labels) -> NDArray[np.float32]:
        """Width times height."""
        sizes = labels.boxes[:, 2:] - labels.boxes[:, :2]
        areas: NDArray[np.float32] = sizes[:, 0] * sizes[:, 1]
        return areas

    def coco(self, objects: Labels | Detections, kind: str) -> list[dict[str, Any]]:
        """Boxes as x, y, width, height; a box's area is width times height, for labels are boxes here."""
        corners = objects.boxes.astype(np.float64)
        sizes = corners[:, 2:] - corners[:, :2]
        boxes = np.concatenate((corners[:, :2], sizes), 1).tolist()
        return [{"bbox": box, "area": box[2] * box[3]} for box in boxes]

    def columns(self, found: Detections) -> dict[str, Any]:
        """x1, y1, x2, y2 in pixels of the original picture."""
        return {name: found.boxes[:, place] for place, name in enumerate(("x1", "y1", "x2", "y2"))}

    def draw(self, picture: NDArray[np.uint8], found: Detections, names: Mapping[int, str]) -> NDArray[np.uint8]:
        """A copy of a BGR picture with boxes, names and scores, the surest on top."""
        drawn = picture.copy()
        for box, score, number in reversed(list(zip(found.boxes, found.scores, found.classes.tolist(), strict=True))):
            draw_box(drawn, box, f"{names.get(number, number)} {score:.2f}", number)
        return drawn


def columns(card: Card, extra: int = 0) -> int:
    """Values an object of `output0`, with `extra` mask coefficients, keypoint values or angles behind the scores."""
    return (6 if card.nms else 4 + len(card.names)) + extra


def main_output(outputs: Mapping[str, NDArray[np.float32]], card: Card, columns: int) -> NDArray[np.float32]:
    """The array `output0`, or the first: (batch, columns, anchors); with NMS inside (batch, rows, columns).

    Raises:
        ModelError: The output has another shape.
    """
    array = outputs.get("output0", next(iter(outputs.values())))
    if array.ndim != 3 or array.shape[2 if card.nms else 1] != columns:
        raise ModelError(
            f"read {card.task} output",
            f"its shape is {tuple(array.shape)} where {len(card.names)} classes need {columns} columns",
            "check the task and the class names given for this model",
        )
    return array


def found_in(
    row: NDArray[np.float32], card: Card, *, conf: float, iou: float, max_det: int, multi_label: bool
) -> Found:
    """The objects of one picture's output, by falling score.

    Args:
        row: One picture of `main_output`.
        card: `card.nms` says that suppression is in the graph.
        conf: Smallest score, exclusive.
        iou: Overlap above which the weaker of two boxes of a class goes.
        max_det: Most objects.
        multi_label: Whether a box counts for every class above `conf`.
    """
    if card.nms:
        kept = chosen_rows(row, conf=conf, max_det=max_det)
        return kept[:, :4], kept[:, 4], kept[:, 5].astype(np.int64), kept[:, 6:]
    boxes, scores, classes, anchors = candidates(row, len(card.names), conf=conf, multi_label=multi_label)
    keep = suppress(boxes, scores, classes, iou=iou, max_det=max_det)
    extra = np.ascontiguousarray(row[4 + len(card.names) :, anchors[keep]].T)
    return boxes[keep], scores[keep], classes[keep], extra


def candidates(
    output: NDArray[np.float32], classes: int, *, conf: float, multi_label: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64], NDArray[np.intp]]:
    """What a picture's raw output offers to suppression, anchor by anchor.

    Args:
        output: Shape (4 + classes + extra, anchors): x, y, w, h in input pixels, scores, whatever follows.
        classes: Number of classes.
        conf: Smallest score, exclusive.
        multi_label: Every class above `conf` of an anchor, or its best only.

    Returns:
        Boxes x1, y1, x2, y2 (n, 4), scores (n,), classes (n,), and the anchor of each (n,).
    """
    scores = output[4 : 4 + classes]
    anchors = np.flatnonzero(scores.max(0) > conf)
    scores = np.ascontiguousarray(scores[:, anchors].T)
    if multi_label:
        rows, numbers = np.nonzero(scores > conf)
    else:
        rows, numbers = np.arange(len(anchors)), scores.argmax(1)
    anchors = anchors[rows]
    boxes = from_centres(np.ascontiguousarray(output[:4, anchors].T))
    return boxes, scores[rows, numbers], numbers.astype(np.int64), anchors


def chosen_rows(rows: NDArray[np.float32], *, conf: float, max_det: int) -> NDArray[np.float32]:
    """Rows x1, y1, x2, y2, score, class, ... above `conf` by falling score; a graph with NMS pads with zeros."""
    kept = rows[rows[:, 4] > conf]
    ordered: NDArray[np.float32] = kept[np.argsort(-kept[:, 4], kind="stable")[:max_det]]
    return ordered
