"""Oriented boxes: the obb task."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from trtkit.tasks.base import (
    BoxLayout,
    Detections,
    PostprocessSettings,
    class_color,
    decode_outputs,
    draw_box,
    line_width,
    register_task,
)
from trtkit.tasks.detect import Detect
from trtkit.tasks.nms import corners_to_xywhr, prob_iou, rotated_iou, xywhr_to_corners, xywhr_to_xyxy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtkit.data import Dataset, ImageTransform, Labels
    from trtkit.models.model import ModelInfo

__all__ = ["Obb", "OrientedDetections"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class OrientedDetections(Detections):
    """Oriented boxes; `boxes` are the axis-aligned boxes around them, clipped to the image.

    Attributes:
        xywhr: Center x, center y, width, height in pixels of the original image, angle in radians; shape (n, 5),
            float32.
    """

    xywhr: NDArray[np.float32]

    @property
    def corners(self) -> NDArray[np.float32]:
        """The four corners of each box, shape (n, 4, 2)."""
        return xywhr_to_corners(self.xywhr)


@register_task
class Obb(Detect):
    """Oriented boxes; kind "B" is ProbIoU, as in Ultralytics, kind "R" the exact IoU."""

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
        """Decode oriented boxes.

        Raises:
            ModelError: The outputs do not fit the output format.
        """
        decoded = decode_outputs(outputs, info, BoxLayout(extra=1, rotated=True), settings)
        predictions: list[Detections] = []
        for transform, raw in zip(transforms, decoded, strict=False):
            xywhr = _map_to_image(raw.boxes, transform)
            boxes = xywhr_to_xyxy(xywhr)
            height, width = transform.shape
            np.clip(boxes, 0, np.array([width, height, width, height], np.float32), out=boxes)
            predictions.append(
                OrientedDetections(
                    shape=transform.shape, boxes=boxes, scores=raw.scores, classes=raw.classes, xywhr=xywhr
                )
            )
        return predictions

    def compute_similarity(  # type: ignore[override]
        self, labels: Labels, prediction: OrientedDetections, dataset: Dataset
    ) -> dict[str, NDArray[np.float32]]:
        """Compute ProbIoU ("B") and the exact IoU ("R") of oriented boxes."""
        boxes = _label_boxes(labels)
        return {"B": prob_iou(boxes, prediction.xywhr), "R": rotated_iou(boxes, prediction.xywhr)}

    def compute_areas(self, labels: Labels) -> NDArray[np.float32]:
        """Return width times height of the oriented boxes."""
        boxes = _label_boxes(labels)
        areas: NDArray[np.float32] = boxes[:, 2] * boxes[:, 3]
        return areas

    def to_columns(self, prediction: OrientedDetections) -> dict[str, Any]:  # type: ignore[override]
        """Return the axis-aligned box, and x, y, width, height and angle of the oriented one."""
        return {**super().to_columns(prediction), **_xywhr_columns(prediction.xywhr)}

    def to_label_columns(self, labels: Labels) -> dict[str, NDArray[np.float32]]:
        """Return x, y, width, height and angle of the oriented box."""
        return _xywhr_columns(_label_boxes(labels))

    def draw(  # type: ignore[override]
        self, image: NDArray[np.uint8], prediction: OrientedDetections, names: Mapping[int, str]
    ) -> NDArray[np.uint8]:
        """Return a copy of a BGR image with oriented boxes, names and scores, the highest-scoring on top."""
        drawn = image.copy()
        for index in reversed(range(len(prediction))):
            number, corners = int(prediction.classes[index]), prediction.corners[index]
            outline = [np.round(corners).astype(np.int32)]
            cv2.polylines(drawn, outline, True, class_color(number), line_width(image.shape), cv2.LINE_AA)
            # The label is at the topmost corner, clipped to the image: drawn as that of an empty box there.
            top = np.clip(corners[corners[:, 1].argmin()], 0, (image.shape[1] - 1, image.shape[0] - 1))
            draw_box(drawn, np.tile(top, 2), f"{names.get(number, number)} {prediction.scores[index]:.2f}", number)
        return drawn


def _label_boxes(labels: Labels) -> NDArray[np.float32]:
    """Return the oriented boxes of labels, shape (labels, 5)."""
    assert labels.corners is not None
    return corners_to_xywhr(labels.corners)


def _xywhr_columns(xywhr: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    return {name: xywhr[:, column] for column, name in enumerate(("x", "y", "width", "height", "angle"))}


def _map_to_image(boxes: NDArray[np.float32], transform: ImageTransform) -> NDArray[np.float32]:
    """Map oriented boxes from input pixels to the original image.

    The two ratios of `transform` differ by the rounding of a side, which turns a rectangle into a parallelogram; the
    lengths of its sides and the direction of its width are kept.
    """
    vertical, horizontal = transform.ratio
    cos, sin = np.cos(boxes[:, 4]), np.sin(boxes[:, 4])
    mapped = np.empty_like(boxes)
    mapped[:, :2] = transform.to_image(boxes[:, :2], clip=False)
    mapped[:, 2] = boxes[:, 2] * np.hypot(cos / horizontal, sin / vertical)
    mapped[:, 3] = boxes[:, 3] * np.hypot(sin / horizontal, cos / vertical)
    mapped[:, 4] = np.arctan2(sin / vertical, cos / horizontal)
    return mapped
