"""Pose: boxes with keypoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from trtkit.errors import ModelError
from trtkit.tasks.base import Detections
from trtkit.tasks.detect import Detect, columns, found_in, main_output
from trtkit.tasks.drawing import colour, line_width

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtkit.data import Dataset, Fit, Labels
    from trtkit.models.model import Card

__all__ = ["COCO_LIMBS", "COCO_SIGMAS", "SHARE_OF_BOX", "Pose", "Poses", "keypoint_similarity", "sigmas_of"]


# Keypoints: how alike two poses are.


COCO_SIGMAS = tuple(value / 1000 for value in (26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89))
"""How far annotators scatter on COCO's 17 keypoints of a person (Ronchi and Perona 2017; cocodataset.org)."""

COCO_LIMBS = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
    (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip
"""Which of COCO's 17 keypoints a line joins: the person category's skeleton (cocodataset.org), counted from 0."""

SHARE_OF_BOX = 0.53
"""An object's area as a share of its box's, for labels that tell only the box; xtcocotools' and Ultralytics' value."""


def sigmas_of(dataset: Dataset) -> tuple[float, ...]:
    """The spread of each keypoint: the data set's own, COCO's for 17 keypoints with visibility, else 1 / keypoints."""
    if dataset.sigmas or dataset.kpt_shape is None:
        return dataset.sigmas
    return COCO_SIGMAS if tuple(dataset.kpt_shape) == (17, 3) else (1 / dataset.kpt_shape[0],) * dataset.kpt_shape[0]


def keypoint_similarity(
    labels: NDArray[np.float32],
    found: NDArray[np.float32],
    areas: NDArray[np.float32],
    sigmas: tuple[float, ...],
) -> NDArray[np.float32]:
    """Object keypoint similarity (OKS) of every pair, COCO's measure.

    The mean over a label's labelled keypoints of exp(-d^2 / (2 area (2 sigma)^2)), d being the distance in pixels.

    Args:
        labels: x, y, visibility; shape (n, points, 3); visibility 0 means not labelled.
        found: x, y and more; shape (m, points, 2 or 3).
        areas: Of the labelled objects in square pixels, shape (n,).
        sigmas: Spread of each keypoint.

    Returns:
        Shape (n, m), in 0..1; 0 for a label without labelled keypoints.
    """
    distances = ((labels[:, None, :, :2].astype(np.float64) - found[None, :, :, :2]) ** 2).sum(-1)
    scale = 2 * (2 * np.array(sigmas)) ** 2
    alike = np.exp(-distances / (scale * np.maximum(areas, 1e-7)[:, None, None]))
    labelled = (labels[:, :, 2] != 0)[:, None, :]
    similar: NDArray[np.float32] = (alike * labelled).sum(-1) / np.maximum(labelled.sum(-1), 1)
    return similar.astype(np.float32)


SURE = 0.5
"""Visibility from which a keypoint is drawn."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Poses(Detections):
    """Objects with keypoints.

    Attributes:
        keypoints: x and y in pixels of the original picture (a model may place them outside it), and visibility in
            0..1 where the model tells it; shape (n, points, 2 or 3), float32.
    """

    keypoints: NDArray[np.float32]


class Pose(Detect):
    """The pose task."""

    name = "pose"
    metric = "mAP50-95(P)"
    kinds: tuple[str, ...] = ("B", "P")
    coco_kinds: Mapping[str, str] = {"B": "bbox", "P": "keypoints"}

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
        """Boxes and keypoints from rows (batch, 4 + classes + points * values, anchors).

        Raises:
            ModelError: The model does not say how many keypoints it has, or the rows have another shape.
        """
        if card.kpt_shape is None:
            raise ModelError("read pose output", "the model does not tell its keypoints", "export it with kpt_shape")
        points, values = card.kpt_shape
        rows = main_output(outputs, card, columns(card, points * values))
        found: list[Detections] = []
        for row, fit in zip(rows, fits, strict=False):
            boxes, scores, classes, extra = found_in(
                row, card, conf=conf, iou=iou, max_det=max_det, multi_label=multi_label
            )
            keypoints = extra.reshape(-1, points, values).copy()
            keypoints[..., :2] = fit.to_picture(keypoints[..., :2], clip=False)
            found.append(
                Poses(shape=fit.shape, boxes=fit.to_picture(boxes), scores=scores, classes=classes, keypoints=keypoints)
            )
        return found

    def similarity(self, labels: Labels, found: Poses, dataset: Dataset) -> dict[str, NDArray[np.float32]]:  # type: ignore[override]
        """Intersection over union of boxes, and object keypoint similarity."""
        assert labels.keypoints is not None
        alike = keypoint_similarity(labels.keypoints, found.keypoints, self.areas(labels), sigmas_of(dataset))
        return {**super().similarity(labels, found, dataset), "P": alike}

    def areas(self, labels: Labels) -> NDArray[np.float32]:
        """0.53 of the boxes' areas, since pose labels tell no outline."""
        return super().areas(labels) * np.float32(SHARE_OF_BOX)

    def coco(self, objects: Labels | Poses, kind: str) -> list[dict[str, Any]]:  # type: ignore[override]
        """Boxes, or keypoints as x, y, visibility in turn."""
        boxes = super().coco(objects, "B")
        if kind == "B":
            return boxes
        assert objects.keypoints is not None
        flat = _triples(objects.keypoints)
        rows: list[dict[str, Any]] = [{"keypoints": row} for row in flat.reshape(len(flat), flat.shape[1] * 3).tolist()]
        if isinstance(objects, Detections):
            return rows
        counts = (flat[..., 2] > 0).sum(1).tolist()
        return [
            {**box, **row, "area": box["area"] * SHARE_OF_BOX, "num_keypoints": count}
            for box, row, count in zip(boxes, rows, counts, strict=True)
        ]

    def columns(self, found: Poses) -> dict[str, Any]:  # type: ignore[override]
        """The box, and `keypoints`: x, y and visibility in turn, the last 1 where the model tells none."""
        rows = _triples(found.keypoints)
        return {**super().columns(found), "keypoints": rows.reshape(len(rows), rows.shape[1] * 3).tolist()}

    def draw(self, picture: NDArray[np.uint8], found: Poses, names: Mapping[int, str]) -> NDArray[np.uint8]:  # type: ignore[override]
        """A copy of a BGR picture with boxes, names, scores and keypoints in sight, joined where they are COCO's 17."""
        drawn = super().draw(picture, found, names)
        width = line_width(picture.shape)
        for keypoints, kind in zip(found.keypoints, found.classes.tolist(), strict=True):
            places = [(round(float(point[0])), round(float(point[1]))) for point in keypoints]
            sure = [len(point) == 2 or point[2] >= SURE for point in keypoints]
            for start, end in COCO_LIMBS if len(places) == len(COCO_SIGMAS) else ():
                if sure[start] and sure[end]:
                    cv2.line(drawn, places[start], places[end], colour(kind), width, cv2.LINE_AA)
            for number, (place, seen) in enumerate(zip(places, sure, strict=True)):
                if seen:
                    cv2.circle(drawn, place, 2 * width + 1, (255, 255, 255), -1, cv2.LINE_AA)
                    cv2.circle(drawn, place, 2 * width, colour(number), -1, cv2.LINE_AA)
        return drawn


def _triples(keypoints: NDArray[np.float32]) -> NDArray[np.float64]:
    """Keypoints as x, y, visibility, the last 1 where there is none; shape (n, points, 3)."""
    triples = np.ones((*keypoints.shape[:2], 3))
    triples[..., : keypoints.shape[2]] = keypoints
    return triples
