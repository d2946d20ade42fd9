"""Keypoints: the pose task and object keypoint similarity (OKS)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from trtkit.errors import ModelError
from trtkit.tasks.base import (
    BoxLayout,
    Detections,
    PostprocessSettings,
    class_color,
    decode_outputs,
    line_width,
    register_task,
)
from trtkit.tasks.detect import Detect

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtkit.data import Dataset, ImageTransform, Labels
    from trtkit.models.model import ModelInfo

__all__ = ["BOX_AREA_RATIO", "COCO_SIGMAS", "COCO_SKELETON", "Pose", "PoseDetections", "compute_oks"]

COCO_SIGMAS = tuple(value / 1000 for value in (26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89))
"""Annotators' spread on COCO's 17 person keypoints (Ronchi and Perona 2017; cocodataset.org)."""

COCO_SKELETON = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
    (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip
"""COCO's person skeleton: pairs of its 17 keypoints, counted from 0 (cocodataset.org)."""

BOX_AREA_RATIO = 0.53
"""Area of an object divided by that of its box, for labels without an outline; xtcocotools' and Ultralytics' value."""

VISIBILITY_THRESHOLD = 0.5
"""Keypoints of at least this visibility are drawn."""


def compute_oks(
    labels: NDArray[np.float32],
    keypoints: NDArray[np.float32],
    areas: NDArray[np.float32],
    sigmas: tuple[float, ...],
) -> NDArray[np.float32]:
    """Compute COCO's object keypoint similarity (OKS) of every pair.

    The mean over a label's labeled keypoints of exp(-d^2 / (2 area (2 sigma)^2)), with the distance d in pixels.

    Args:
        labels: x, y, visibility; shape (n, points, 3); visibility 0 means not labeled.
        keypoints: Predicted x, y and more; shape (m, points, 2 or 3).
        areas: Areas of the labeled objects in square pixels, shape (n,).
        sigmas: Sigma of each keypoint.

    Returns:
        Shape (n, m), in 0..1; 0 for a label without labeled keypoints.
    """
    distances = ((labels[:, None, :, :2].astype(np.float64) - keypoints[None, :, :, :2]) ** 2).sum(-1)
    scale = 2 * (2 * np.array(sigmas)) ** 2
    similarity = np.exp(-distances / (scale * np.maximum(areas, 1e-7)[:, None, None]))
    labeled = (labels[:, :, 2] != 0)[:, None, :]
    oks: NDArray[np.float32] = (similarity * labeled).sum(-1) / np.maximum(labeled.sum(-1), 1)
    return oks.astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PoseDetections(Detections):
    """Objects with keypoints.

    Attributes:
        keypoints: x and y in pixels of the original image, not clipped to it, and visibility in 0..1 if the model
            predicts it; shape (n, points, 2 or 3), float32.
    """

    keypoints: NDArray[np.float32]


@register_task
class Pose(Detect):
    """Keypoints."""

    name = "pose"
    metric = "mAP50-95(P)"
    kinds: tuple[str, ...] = ("B", "P")
    coco_iou_types: Mapping[str, str] = {"B": "bbox", "P": "keypoints"}

    def postprocess(
        self,
        outputs: Mapping[str, NDArray[np.float32]],
        info: ModelInfo,
        transforms: Sequence[ImageTransform],
        settings: PostprocessSettings,
    ) -> list[Detections]:
        """Decode boxes and keypoints.

        Raises:
            ModelError: The model has no `kpt_shape`, or the outputs do not fit the output format.
        """
        if info.kpt_shape is None:
            raise ModelError(
                "decode pose output",
                "the model has no kpt_shape",
                "export it with kpt_shape in its metadata",
                code="task-keypoints-missing",
            )
        points, values = info.kpt_shape
        decoded = decode_outputs(outputs, info, BoxLayout(extra=points * values), settings)
        predictions: list[Detections] = []
        for transform, raw in zip(transforms, decoded, strict=False):
            keypoints = raw.extra.reshape(-1, points, values).copy()
            keypoints[..., :2] = transform.to_image(keypoints[..., :2], clip=False)
            predictions.append(
                PoseDetections(
                    shape=transform.shape,
                    boxes=transform.to_image(raw.boxes),
                    scores=raw.scores,
                    classes=raw.classes,
                    keypoints=keypoints,
                )
            )
        return predictions

    def compute_similarity(  # type: ignore[override]
        self, labels: Labels, prediction: PoseDetections, dataset: Dataset
    ) -> dict[str, NDArray[np.float32]]:
        """Compute the IoU of boxes, and OKS."""
        assert labels.keypoints is not None
        oks = compute_oks(labels.keypoints, prediction.keypoints, self.compute_areas(labels), self.get_sigmas(dataset))
        return {**super().compute_similarity(labels, prediction, dataset), "P": oks}

    def compute_areas(self, labels: Labels) -> NDArray[np.float32]:
        """Return 0.53 of the boxes' areas: pose labels have no outline."""
        return super().compute_areas(labels) * np.float32(BOX_AREA_RATIO)

    def get_sigmas(self, dataset: Dataset) -> tuple[float, ...]:
        """Return the data set's own sigmas, COCO's for 17 keypoints with visibility, else 1 / keypoints."""
        if dataset.sigmas or dataset.kpt_shape is None:
            return dataset.sigmas
        points = dataset.kpt_shape[0]
        return COCO_SIGMAS if tuple(dataset.kpt_shape) == (17, 3) else (1 / points,) * points

    def to_coco(self, objects: Labels | PoseDetections, kind: str) -> list[dict[str, Any]]:  # type: ignore[override]
        """Return boxes, or keypoints as x, y, visibility in turn."""
        boxes = super().to_coco(objects, "B")
        if kind == "B":
            return boxes
        assert objects.keypoints is not None
        flat = _to_xyv(objects.keypoints)
        rows: list[dict[str, Any]] = [{"keypoints": row} for row in flat.reshape(len(flat), flat.shape[1] * 3).tolist()]
        if isinstance(objects, Detections):
            return rows
        counts = (flat[..., 2] > 0).sum(1).tolist()
        return [
            {**box, **row, "area": box["area"] * BOX_AREA_RATIO, "num_keypoints": count}
            for box, row, count in zip(boxes, rows, counts, strict=True)
        ]

    def to_columns(self, prediction: PoseDetections) -> dict[str, Any]:  # type: ignore[override]
        """Return the box, and `keypoints`: x, y and visibility in turn, 1 where the model predicts none."""
        rows = _to_xyv(prediction.keypoints)
        return {**super().to_columns(prediction), "keypoints": rows.reshape(len(rows), rows.shape[1] * 3).tolist()}

    def draw(  # type: ignore[override]
        self, image: NDArray[np.uint8], prediction: PoseDetections, names: Mapping[int, str]
    ) -> NDArray[np.uint8]:
        """Return a copy of a BGR image with boxes, names, scores and visible keypoints, with COCO's skeleton for 17."""
        drawn = super().draw(image, prediction, names)
        width = line_width(image.shape)
        for keypoints, class_number in zip(prediction.keypoints, prediction.classes.tolist(), strict=True):
            points = [(round(float(point[0])), round(float(point[1]))) for point in keypoints]
            visible = [len(point) == 2 or point[2] >= VISIBILITY_THRESHOLD for point in keypoints]
            for start, end in COCO_SKELETON if len(points) == len(COCO_SIGMAS) else ():
                if visible[start] and visible[end]:
                    cv2.line(drawn, points[start], points[end], class_color(class_number), width, cv2.LINE_AA)
            for number, (point, is_visible) in enumerate(zip(points, visible, strict=True)):
                if is_visible:
                    cv2.circle(drawn, point, 2 * width + 1, (255, 255, 255), -1, cv2.LINE_AA)
                    cv2.circle(drawn, point, 2 * width, class_color(number), -1, cv2.LINE_AA)
        return drawn


def _to_xyv(keypoints: NDArray[np.float32]) -> NDArray[np.float64]:
    """Convert keypoints to x, y, visibility, 1 where there is none; shape (n, points, 3)."""
    triples = np.ones((*keypoints.shape[:2], 3))
    triples[..., : keypoints.shape[2]] = keypoints
    return triples
