"""Keypoints: how alike two poses are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtkit.data import Dataset

__all__ = ["COCO_LIMBS", "COCO_SIGMAS", "SHARE_OF_BOX", "keypoint_similarity", "sigmas_of"]

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
