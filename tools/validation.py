"""A quick score of a model while it is trained: mAP50-95 or top-1 on letterboxed scenes of a choosing seed.

It measures at the network's resolution; what is published comes from `trtkit evaluate` on images of a claims seed.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from criterion import BOX_AREA_RATIO, KEYPOINT_SIGMA
from demo_models import DemoModel
from numpy.typing import NDArray
from scene_batches import MASK_STRIDE, Batch, CropBatch, ScenePool, letterbox_batch
from scene_renderer import Renderer

from trtkit.evaluation.average_precision import match_detections, score_classes
from trtkit.models import heads
from trtkit.models.yolo import Yolo
from trtkit.tasks import nms
from trtkit.tasks.pose import compute_oks

__all__ = ["Validation"]

SEED = 900
LEAST_SCORE = 0.005
MOST_CANDIDATES = 500
OVERLAP = 0.7
MAX_DET = 100
CHUNK = 16


class Validation:
    """Scenes with labels, kept on the device.

    Args:
        model: What is validated.
        renderer: It draws the scenes.
        scenes: Number of scenes.
    """

    def __init__(self, model: DemoModel, renderer: Renderer, scenes: int) -> None:
        self.model = model
        pool = ScenePool(renderer, (SEED,), "val", scenes)
        self.batches: list[Batch | CropBatch] = []
        for start in range(0, scenes, CHUNK):
            if model.task == "classify":
                self.batches.append(pool.crops(8 * CHUNK, model.imgsz, augment=False))
                continue
            chosen = {name: value[start : start + CHUNK] for name, value in pool.tensors.items()}
            outlines = pool.outlines if model.task == "segment" else None
            self.batches.append(letterbox_batch(chosen, model.imgsz, outlines=outlines))

    @torch.no_grad()
    def score(self, yolo: Yolo) -> dict[str, float]:
        """Top-1, or mAP50-95 of the task's own measure and, for end-to-end heads, of their rows."""
        yolo.eval()
        if self.model.task == "classify":
            right = [yolo(batch.images).argmax(1) == batch.classes for batch in self.batches]
            counted = torch.cat([batch.valid for batch in self.batches])
            return {"top1": float(torch.cat(right)[counted].float().mean())}
        head = yolo.head
        assert isinstance(head, heads.Detect)
        scores = {"mAP50-95": self._mean_average_precision(yolo)}
        if head.has_branches(end2end=True):
            head.end2end = True
            scores["mAP50-95 end-to-end"] = self._mean_average_precision(yolo)
            head.end2end = False
        return scores

    def _mean_average_precision(self, yolo: Yolo) -> float:
        found = [
            image
            for batch in self.batches
            if isinstance(batch, Batch)
            for image in self._match_batch(batch, yolo(batch.images))
        ]
        columns = [np.concatenate(column) for column in zip(*(dataclasses.astuple(row) for row in found), strict=True)]
        return score_classes(*columns).means()["mAP50-95"]

    def _match_batch(self, batch: Batch, outputs: Any) -> list[_Matches]:
        values, prototypes = outputs if isinstance(outputs, tuple) else (outputs, None)
        values = values.float().cpu().numpy()
        labels = {
            field.name: value.cpu().numpy()
            for field in dataclasses.fields(batch)
            if field.name != "images" and (value := getattr(batch, field.name)) is not None
        }
        planes = None if prototypes is None else prototypes.float().cpu().numpy()
        rows = []
        for index in range(len(values)):
            valid = labels["valid"][index]
            mine = {name: value[index][valid] for name, value in labels.items()}
            detections = _select(values[index], oriented=self.model.task == "obb")
            similarity = self._compare(mine, detections, None if planes is None else planes[index])
            matched, _ = match_detections(similarity, mine["classes"], detections.classes)
            rows.append(_Matches(matched, detections.scores, detections.classes, mine["classes"]))
        return rows

    def _compare(
        self, labels: dict[str, NDArray[Any]], detections: _Detections, prototypes: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """The task's similarity of every label and detection."""
        if self.model.task == "obb":
            return nms.prob_iou(labels["oriented"], detections.boxes)
        if self.model.task == "pose":
            sides = labels["boxes"][:, 2:] - labels["boxes"][:, :2]
            points = detections.extra.reshape(len(detections.extra), 4, 3)
            areas = sides.prod(1) * BOX_AREA_RATIO
            return compute_oks(labels["keypoints"], points, areas, (KEYPOINT_SIGMA,) * 4)
        if prototypes is not None:
            return _mask_iou(labels["masks"] > 0.5, detections, prototypes)
        return nms.box_iou(labels["boxes"], detections.boxes)


@dataclasses.dataclass(frozen=True, eq=False)
class _Matches:
    """Of one image: as `score_classes` takes them."""

    matched: NDArray[np.bool_]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    labels: NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class _Detections:
    """Of one image, by falling score: boxes are corners, or oriented."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    extra: NDArray[np.float32]


def _select(values: NDArray[np.float32], *, oriented: bool) -> _Detections:
    """The detections in values per anchor (4 + classes + extra, A), or in rows (n, 6) of a one-to-one head."""
    if values.shape[1] == 6:
        rows = values[values[:, 4] >= LEAST_SCORE][:MAX_DET]
        return _Detections(rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64), rows[:, :0])
    scores = values[4:14].max(0)
    order = np.argsort(-scores, kind="stable")[:MOST_CANDIDATES]
    order = order[scores[order] >= LEAST_SCORE]
    boxes, classes, extra = values[:4, order].T, values[4:14, order].argmax(0), values[14:, order].T
    if oriented:
        boxes = np.concatenate([boxes, extra], 1)
        kept = nms.nms_rotated(boxes, scores[order], classes, iou=OVERLAP, max_det=MAX_DET)
    else:
        boxes = nms.xywh_to_xyxy(np.ascontiguousarray(boxes))
        kept = nms.nms(boxes, scores[order], classes, iou=OVERLAP, max_det=MAX_DET)
    return _Detections(boxes[kept], scores[order][kept], classes[kept], extra[kept])


def _mask_iou(
    labels: NDArray[np.bool_], detections: _Detections, prototypes: NDArray[np.float32]
) -> NDArray[np.float32]:
    """IoU of masks at the prototypes' resolution."""
    depth, height, width = prototypes.shape
    masks = (detections.extra @ prototypes.reshape(depth, -1)).reshape(-1, height, width) > 0
    x0, y0, x1, y1 = (detections.boxes / MASK_STRIDE).T[:, :, None]
    xs, ys = np.arange(width) + 0.5, np.arange(height) + 0.5
    masks &= ((xs > x0) & (xs < x1))[:, None, :] & ((ys > y0) & (ys < y1))[:, :, None]
    first = labels.reshape(-1, height * width).astype(np.float32)
    second = masks.reshape(-1, height * width).astype(np.float32)
    shared = first @ second.T
    union = first.sum(1)[:, None] + second.sum(1) - shared
    return np.asarray(shared / np.maximum(union, 1), np.float32)
