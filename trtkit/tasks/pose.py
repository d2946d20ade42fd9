"""Pose: boxes with keypoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from trtkit.errors import ModelError
from trtkit.tasks.base import Detections, PostprocessSettings
from trtkit.tasks.detect import Detect, count_columns, decode_image, get_main_output
from trtkit.tasks.drawing import class_color, line_width

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtkit.data import Dataset, ImageTransform, Labels
    from trtkit.models.model import ModelInfo

__all__ = ["BOX_AREA_RATIO", "COCO_SIGMAS", "COCO_SKELETON", "Pose", "PoseDetections", "compute_oks", "get_sigmas"]


# Keypoints: how alike two poses are.


COCO_SIGMAS = tuple(value / 1000 for value in (26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89))
"""How far annotators scatter on COCO's 17 keypoints of a person (Ronchi and Perona 2017; cocodataset.org)."""

COCO_SKELETON = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
    (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip
"""Which of COCO's 17 keypoints a line joins: the person category's skeleton (cocodataset.org), counted from 0."""

BOX_AREA_RATIO = 0.53
"""An object's area as a share of its box's, for labels that tell only the box; xtcocotools' and Ultralytics' value."""


def get_sigmas(dataset: Dataset) -> tuple[float, ...]:
    """The spread of each keypoint: the data set's own, COCO's for 17 keypoints with visibility, else 1 / keypoints."""
    if dataset.sigmas or dataset.kpt_shape is None:
        return dataset.sigmas
    return COCO_SIGMAS if tuple(dataset.kpt_shape) == (17, 3) else (1 / dataset.kpt_shape[0],) * dataset.kpt_shape[0]


def compute_oks(
    labels: NDArray[np.float32],
    found: NDArray[np.float32],
    areas: NDArray[np.float32],
    sigmas: tuple[float, ...],
) -> NDArray[np.float32]:
    """Object keypoint similarity (OKS) of every pair, COCO's measure.

    The mean over a label's labeled keypoints of exp(-d^2 / (2 area (2 sigma)^2)), d being the distance in pixels.

    Args:
        labels: x, y, visibility; shape (n, points, 3); visibility 0 means not labeled.
        found: x, y and more; shape (m, points, 2 or 3).
        areas: Of the labeled objects in square pixels, shape (n,).
        sigmas: Spread of each keypoint.

    Returns:
        Shape (n, m), in 0..1; 0 for a label without labeled keypoints.
    """
    distances = ((labels[:, None, :, :2].astype(np.float64) - found[None, :, :, :2]) ** 2).sum(-1)
    scale = 2 * (2 * np.array(sigmas)) ** 2
    alike = np.exp(-distances / (scale * np.maximum(areas, 1e-7)[:, None, None]))
    labeled = (labels[:, :, 2] != 0)[:, None, :]
    similar: NDArray[np.float32] = (alike * labeled).sum(-1) / np.maximum(labeled.sum(-1), 1)
    return similar.astype(np.float32)


VISIBILITY_THRESHOLD = 0.5
"""Visibility from which a keypoint is drawn."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PoseDetections(Detections):
    """Objects with keypoints.

    Attributes:
        keypoints: x and y in pixels of the original image (a model may place them outside it), and visibility in
            0..1 where the model tells it; shape (n, points, 2 or 3), float32.
    """

    keypoints: NDArray[np.float32]


class Pose(Detect):
    """The pose task."""

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
        """Boxes and keypoints from rows (batch, 4 + classes + points * values, anchors).

        Raises:
            ModelError: The model does not say how many keypoints it has, or the rows have another shape.
        """
        if info.kpt_shape is None:
            raise ModelError("read pose output", "the model does not tell its keypoints", "export it with kpt_shape")
        points, values = info.kpt_shape
        rows = get_main_output(outputs, info, count_columns(info, points * values))
        found: list[Detections] = []
        for row, fit in zip(rows, transforms, strict=False):
            boxes, scores, classes, extra = decode_image(row, info, settings)
            keypoints = extra.reshape(-1, points, values).copy()
            keypoints[..., :2] = fit.to_image(keypoints[..., :2], clip=False)
            found.append(
                PoseDetections(
                    shape=fit.shape, boxes=fit.to_image(boxes), scores=scores, classes=classes, keypoints=keypoints
                )
            )
        return found

    def similarity(self, labels: Labels, found: PoseDetections, dataset: Dataset) -> dict[str, NDArray[np.float32]]:  # type: ignore[override]
        """Intersection over union of boxes, and object keypoint similarity."""
        assert labels.keypoints is not None
        alike = compute_oks(labels.keypoints, found.keypoints, self.areas(labels), get_sigmas(dataset))
        return {**super().similarity(labels, found, dataset), "P": alike}

    def areas(self, labels: Labels) -> NDArray[np.float32]:
        """0.53 of the boxes' areas, since pose labels tell no outline."""
        return super().areas(labels) * np.float32(BOX_AREA_RATIO)

    def to_coco(self, objects: Labels | PoseDetections, kind: str) -> list[dict[str, Any]]:  # type: ignore[override]
        """Boxes, or keypoints as x, y, visibility in turn."""
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

    def to_columns(self, found: PoseDetections) -> dict[str, Any]:  # type: ignore[override]
        """The box, and `keypoints`: x, y and visibility in turn, the last 1 where the model tells none."""
        rows = _to_xyv(found.keypoints)
        return {**super().to_columns(found), "keypoints": rows.reshape(len(rows), rows.shape[1] * 3).tolist()}

    def draw(self, image: NDArray[np.uint8], found: PoseDetections, names: Mapping[int, str]) -> NDArray[np.uint8]:  # type: ignore[override]
        """A copy of a BGR image with boxes, names, scores and keypoints in sight, joined where they are COCO's 17."""
        drawn = super().draw(image, found, names)
        width = line_width(image.shape)
        for keypoints, kind in zip(found.keypoints, found.classes.tolist(), strict=True):
            places = [(round(float(point[0])), round(float(point[1]))) for point in keypoints]
            sure = [len(point) == 2 or point[2] >= VISIBILITY_THRESHOLD for point in keypoints]
            for start, end in COCO_SKELETON if len(places) == len(COCO_SIGMAS) else ():
                if sure[start] and sure[end]:
                    cv2.line(drawn, places[start], places[end], class_color(kind), width, cv2.LINE_AA)
            for number, (place, seen) in enumerate(zip(places, sure, strict=True)):
                if seen:
                    cv2.circle(drawn, place, 2 * width + 1, (255, 255, 255), -1, cv2.LINE_AA)
                    cv2.circle(drawn, place, 2 * width, class_color(number), -1, cv2.LINE_AA)
        return drawn


def _to_xyv(keypoints: NDArray[np.float32]) -> NDArray[np.float64]:
    """Keypoints as x, y, visibility, the last 1 where there is none; shape (n, points, 3)."""
    triples = np.ones((*keypoints.shape[:2], 3))
    triples[..., : keypoints.shape[2]] = keypoints
    return triples
