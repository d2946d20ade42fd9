"""Detection: the task, and the output formats of models with boxes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trtkit.errors import ModelError
from trtkit.models.model import DENSE, DETR_QUERIES, DETR_ROWS, END2END_ROWS, NMS_ROWS
from trtkit.models.output_shapes import find_main_output
from trtkit.tasks.base import (
    BoxLayout,
    Detections,
    PostprocessSettings,
    RawDetections,
    decode_outputs,
    draw_box,
    register_output_format,
    register_task,
)
from trtkit.tasks.nms import box_iou, nms, nms_rotated, select_candidates, xywh_to_xyxy
from trtkit.tasks.raw_maps import decode_raw_maps

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtkit.data import Dataset, ImageTransform, Labels
    from trtkit.models.model import ModelInfo

__all__ = [
    "Detect",
    "decode_dense",
    "decode_detr_queries",
    "decode_raw_maps",
    "decode_rows",
    "get_main_output",
    "select_candidates",
]


@register_task
class Detect:
    """Detection; segment, pose and obb build on its boxes, scores and classes."""

    name = "detect"
    metric = "mAP50-95(B)"
    kinds: tuple[str, ...] = ("B",)
    coco_iou_types: Mapping[str, str] = {"B": "bbox"}

    def postprocess(
        self,
        outputs: Mapping[str, NDArray[np.float32]],
        info: ModelInfo,
        transforms: Sequence[ImageTransform],
        settings: PostprocessSettings,
    ) -> list[Detections]:
        """Decode boxes, scores and classes.

        Raises:
            ModelError: The outputs do not fit the output format.
        """
        if transforms:
            # Boxes of RT-DETR are fractions of the input that was run, which a dynamic model may not have been made at.
            info = dataclasses.replace(info, imgsz=transforms[0].size)
        decoded = decode_outputs(outputs, info, BoxLayout(), settings)
        return [
            Detections(
                shape=transform.shape, boxes=transform.to_image(raw.boxes), scores=raw.scores, classes=raw.classes
            )
            for transform, raw in zip(transforms, decoded, strict=False)
        ]

    def compute_similarity(
        self, labels: Labels, prediction: Detections, dataset: Dataset
    ) -> dict[str, NDArray[np.float32]]:
        """Compute the IoU of boxes."""
        return {"B": box_iou(labels.boxes, prediction.boxes)}

    def compute_areas(self, labels: Labels) -> NDArray[np.float32]:
        """Return width times height."""
        sizes = labels.boxes[:, 2:] - labels.boxes[:, :2]
        areas: NDArray[np.float32] = sizes[:, 0] * sizes[:, 1]
        return areas

    def get_sigmas(self, dataset: Dataset) -> tuple[float, ...]:
        """Return (): boxes have no keypoints."""
        return ()

    def to_coco(self, objects: Labels | Detections, kind: str) -> list[dict[str, Any]]:
        """Return boxes as x, y, width, height, with width times height as area."""
        corners = objects.boxes.astype(np.float64)
        sizes = corners[:, 2:] - corners[:, :2]
        boxes = np.concatenate((corners[:, :2], sizes), 1).tolist()
        return [{"bbox": box, "area": box[2] * box[3]} for box in boxes]

    def to_columns(self, prediction: Detections) -> dict[str, Any]:
        """Return x1, y1, x2, y2 in pixels of the original image."""
        return {name: prediction.boxes[:, column] for column, name in enumerate(("x1", "y1", "x2", "y2"))}

    def to_label_columns(self, labels: Labels) -> dict[str, NDArray[np.float32]]:
        """Return {}: a label is its box."""
        return {}

    def draw(self, image: NDArray[np.uint8], prediction: Detections, names: Mapping[int, str]) -> NDArray[np.uint8]:
        """Return a copy of a BGR image with boxes, names and scores, the highest-scoring on top."""
        drawn = image.copy()
        objects = zip(prediction.boxes, prediction.scores, prediction.classes.tolist(), strict=True)
        for box, score, number in reversed(list(objects)):
            draw_box(drawn, box, f"{names.get(number, number)} {score:.2f}", number)
        return drawn


# Output formats of YOLO models with boxes


@register_output_format(DENSE.name)
def decode_dense(
    outputs: Mapping[str, NDArray[np.float32]], info: ModelInfo, layout: BoxLayout, settings: PostprocessSettings
) -> Iterable[RawDetections]:
    """Decode an output of shape (batch, 4 + classes + extra, anchors) and apply class-wise NMS.

    Raises:
        ModelError: The output has another shape.
    """
    classes = len(info.names)
    array = get_main_output(outputs, info, axis=1, columns=4 + classes + layout.extra)

    def decode(image: NDArray[np.float32]) -> RawDetections:
        scores, numbers, anchors = select_candidates(image[4 : 4 + classes], settings)
        boxes = np.ascontiguousarray(image[:4, anchors].T)
        if layout.rotated:
            boxes = np.concatenate((boxes, image[-1:, anchors].T), 1)
            keep = nms_rotated(boxes, scores, numbers, iou=settings.iou, max_det=settings.max_det)
        else:
            boxes = xywh_to_xyxy(boxes)
            keep = nms(boxes, scores, numbers, iou=settings.iou, max_det=settings.max_det)
        extra = np.ascontiguousarray(image[4 + classes :, anchors[keep]].T)
        return RawDetections(boxes=boxes[keep], scores=scores[keep], classes=numbers[keep], extra=extra)

    return map(decode, array)


@register_output_format(NMS_ROWS.name)
@register_output_format(END2END_ROWS.name)
@register_output_format(DETR_ROWS.name)
def decode_rows(
    outputs: Mapping[str, NDArray[np.float32]], info: ModelInfo, layout: BoxLayout, settings: PostprocessSettings
) -> Iterable[RawDetections]:
    """Decode an output of shape (batch, rows, 6 + extra): final boxes of NMS, a one-to-one head or an RT-DETR.

    Raises:
        ModelError: The output has another shape.
    """
    array = get_main_output(outputs, info, axis=2, columns=6 + layout.extra)
    height, width = info.imgsz
    size = np.array([width, height, width, height], np.float32)

    def decode(image: NDArray[np.float32]) -> RawDetections:
        rows = image[image[:, 4] > settings.conf]
        rows = rows[np.argsort(-rows[:, 4], kind="stable")[: settings.max_det]]
        # Ultralytics' order for rotated boxes: x, y, width, height, score, class, angle.
        boxes = rows[:, [0, 1, 2, 3, -1]] if layout.rotated else rows[:, :4]
        if info.output_format == DETR_ROWS:
            boxes = xywh_to_xyxy(boxes * size)
        return RawDetections(boxes=boxes, scores=rows[:, 4], classes=rows[:, 5].astype(np.int64), extra=rows[:, 6:])

    return map(decode, array)


@register_output_format(DETR_QUERIES.name)
def decode_detr_queries(
    outputs: Mapping[str, NDArray[np.float32]], info: ModelInfo, layout: BoxLayout, settings: PostprocessSettings
) -> Iterable[RawDetections]:
    """Decode an output of shape (batch, queries, 4 + classes): one object per query, of its highest-scoring class.

    Raises:
        ModelError: The output has another shape.
    """
    array = get_main_output(outputs, info, axis=2, columns=4 + len(info.names) + layout.extra)
    height, width = info.imgsz
    size = np.array([width, height, width, height], np.float32)

    def decode(image: NDArray[np.float32]) -> RawDetections:
        scores = image[:, 4 : 4 + len(info.names)]
        best = scores.max(1)
        order = np.argsort(-best, kind="stable")
        order = order[best[order] > settings.conf][: settings.max_det]
        return RawDetections(
            boxes=xywh_to_xyxy(image[order, :4] * size),
            scores=best[order],
            classes=scores[order].argmax(1).astype(np.int64),
            extra=image[order, 4 + len(info.names) :],
        )

    return map(decode, array)


def get_main_output(
    outputs: Mapping[str, NDArray[np.float32]], info: ModelInfo, *, axis: int, columns: int
) -> NDArray[np.float32]:
    """Return the output that holds boxes (`find_main_output`).

    Raises:
        ModelError: It is not 3-dimensional with `columns` values on `axis`.
    """
    array = outputs[find_main_output({name: value.ndim for name, value in outputs.items()}, info.task)]
    if array.ndim != 3 or array.shape[axis] != columns:
        raise ModelError(
            f"decode {info.task} output",
            f"its shape is {tuple(array.shape)} where {len(info.names)} classes need {columns} columns",
            "check the task and the class names of this model",
            code="task-output-shape",
            shape=tuple(array.shape),
            columns=columns,
        )
    return array
