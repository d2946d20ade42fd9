"""Detection: boxes with a class and a score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trtkit.data.images import letterbox
from trtkit.errors import ModelError
from trtkit.tasks.base import Detections, PostprocessSettings
from trtkit.tasks.drawing import draw_box
from trtkit.tasks.nms import box_iou, nms, xywh_to_xyxy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtkit.data import Dataset, ImageTransform, Labels
    from trtkit.models.model import ModelInfo

__all__ = [
    "Detect",
    "RawDetections",
    "count_columns",
    "decode_image",
    "filter_anchors",
    "filter_rows",
    "get_main_output",
]

RawDetections = tuple["NDArray[np.float32]", "NDArray[np.float32]", "NDArray[np.int64]", "NDArray[np.float32]"]
"""Boxes in input pixels, scores, classes, and what follows the classes in each row."""


class Detect:
    """The detect task; segment and pose share its boxes, scores and classes."""

    name = "detect"
    metric = "mAP50-95(B)"
    kinds: tuple[str, ...] = ("B",)
    coco_iou_types: Mapping[str, str] = {"B": "bbox"}

    def preprocess(self, image: NDArray[np.uint8], size: tuple[int, int]) -> tuple[NDArray[np.uint8], ImageTransform]:
        """Letterbox a BGR image to (height, width)."""
        return letterbox(image, size)

    def postprocess(
        self,
        outputs: Mapping[str, NDArray[np.float32]],
        info: ModelInfo,
        transforms: Sequence[ImageTransform],
        settings: PostprocessSettings,
    ) -> list[Detections]:
        """Boxes from `output0`: (batch, 4 + classes, anchors), or (batch, rows, 6) with NMS in the graph.

        Raises:
            ModelError: The output has another shape.
        """
        rows = get_main_output(outputs, info, count_columns(info))
        found = []
        for row, fit in zip(rows, transforms, strict=False):
            boxes, scores, classes, _ = decode_image(row, info, settings)
            found.append(Detections(shape=fit.shape, boxes=fit.to_image(boxes), scores=scores, classes=classes))
        return found

    def similarity(self, labels: Labels, found: Detections, dataset: Dataset) -> dict[str, NDArray[np.float32]]:
        """Intersection over union of boxes."""
        return {"B": box_iou(labels.boxes, found.boxes)}

    def areas(self, labels: Labels) -> NDArray[np.float32]:
        """Width times height."""
        sizes = labels.boxes[:, 2:] - labels.boxes[:, :2]
        areas: NDArray[np.float32] = sizes[:, 0] * sizes[:, 1]
        return areas

    def to_coco(self, objects: Labels | Detections, kind: str) -> list[dict[str, Any]]:
        """Boxes as x, y, width, height; a box's area is width times height, for labels are boxes here."""
        corners = objects.boxes.astype(np.float64)
        sizes = corners[:, 2:] - corners[:, :2]
        boxes = np.concatenate((corners[:, :2], sizes), 1).tolist()
        return [{"bbox": box, "area": box[2] * box[3]} for box in boxes]

    def to_columns(self, found: Detections) -> dict[str, Any]:
        """x1, y1, x2, y2 in pixels of the original image."""
        return {name: found.boxes[:, place] for place, name in enumerate(("x1", "y1", "x2", "y2"))}

    def draw(self, image: NDArray[np.uint8], found: Detections, names: Mapping[int, str]) -> NDArray[np.uint8]:
        """A copy of a BGR image with boxes, names and scores, the surest on top."""
        drawn = image.copy()
        for box, score, number in reversed(list(zip(found.boxes, found.scores, found.classes.tolist(), strict=True))):
            draw_box(drawn, box, f"{names.get(number, number)} {score:.2f}", number)
        return drawn


def count_columns(info: ModelInfo, extra: int = 0) -> int:
    """Values an object of `output0`, with `extra` mask coefficients, keypoint values or angles behind the scores."""
    return (6 if info.nms else 4 + len(info.names)) + extra


def get_main_output(outputs: Mapping[str, NDArray[np.float32]], info: ModelInfo, columns: int) -> NDArray[np.float32]:
    """The array `output0`, or the first: (batch, columns, anchors); with NMS inside (batch, rows, columns).

    Raises:
        ModelError: The output has another shape.
    """
    array = outputs.get("output0", next(iter(outputs.values())))
    if array.ndim != 3 or array.shape[2 if info.nms else 1] != columns:
        raise ModelError(
            f"read {info.task} output",
            f"its shape is {tuple(array.shape)} where {len(info.names)} classes need {columns} columns",
            "check the task and the class names given for this model",
        )
    return array


def decode_image(row: NDArray[np.float32], info: ModelInfo, settings: PostprocessSettings) -> RawDetections:
    """The objects of one image's output, by falling score.

    Args:
        row: One image of `get_main_output`.
        info: `card.nms` says that suppression is in the graph.
        settings: Thresholds.
    """
    if info.nms:
        kept = filter_rows(row, settings)
        return kept[:, :4], kept[:, 4], kept[:, 5].astype(np.int64), kept[:, 6:]
    boxes, scores, classes, anchors = filter_anchors(row, len(info.names), settings)
    keep = nms(boxes, scores, classes, iou=settings.iou, max_det=settings.max_det)
    extra = np.ascontiguousarray(row[4 + len(info.names) :, anchors[keep]].T)
    return boxes[keep], scores[keep], classes[keep], extra


def filter_anchors(
    output: NDArray[np.float32], classes: int, settings: PostprocessSettings
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64], NDArray[np.intp]]:
    """What an image's raw output offers to suppression, anchor by anchor.

    Args:
        output: Shape (4 + classes + extra, anchors): x, y, w, h in input pixels, scores, whatever follows.
        classes: Number of classes.
        settings: Thresholds.

    Returns:
        Boxes x1, y1, x2, y2 (n, 4), scores (n,), classes (n,), and the anchor of each (n,).
    """
    scores = output[4 : 4 + classes]
    anchors = np.flatnonzero(scores.max(0) > settings.conf)
    scores = np.ascontiguousarray(scores[:, anchors].T)
    if settings.multi_label:
        rows, numbers = np.nonzero(scores > settings.conf)
    else:
        rows, numbers = np.arange(len(anchors)), scores.argmax(1)
    anchors = anchors[rows]
    boxes = xywh_to_xyxy(np.ascontiguousarray(output[:4, anchors].T))
    return boxes, scores[rows, numbers], numbers.astype(np.int64), anchors


def filter_rows(rows: NDArray[np.float32], settings: PostprocessSettings) -> NDArray[np.float32]:
    """Rows x1, y1, x2, y2, score, class, ... above `conf` by falling score; a graph with NMS pads with zeros."""
    kept = rows[rows[:, 4] > settings.conf]
    ordered: NDArray[np.float32] = kept[np.argsort(-kept[:, 4], kind="stable")[: settings.max_det]]
    return ordered
