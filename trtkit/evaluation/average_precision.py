"""Average precision by Ultralytics' rule: matching, precision-recall curves, averages over classes.

pycocotools' rule differs twice: it keeps the 100 highest-scoring detections of a class per image, and it averages the
envelope's steps at 101 recalls, where Ultralytics interpolates linearly and takes the trapezoid.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "THRESHOLDS",
    "ClassScores",
    "average_precision",
    "find_matched_labels",
    "match_detections",
    "pack_thresholds",
    "score_classes",
    "unpack_thresholds",
]

THRESHOLDS: NDArray[np.float32] = np.linspace(0.5, 0.95, 10).astype(np.float32)
"""Similarity thresholds of matches, 0.50 to 0.95."""

CONFIDENCE_STEPS = 1000
"""Confidences in 0..1 at which precision and recall are read to find the best F1."""

SMOOTHING = 0.1
"""Width of the box filter over the F1 curve, as a fraction of the grid."""


def match_detections(
    similarity: NDArray[np.float32], label_classes: NDArray[np.int64], detection_classes: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Match detections of one image to labels of their class, at every threshold separately.

    Greedy by falling score: each detection takes the most similar free label of its class, if the similarity reaches
    the threshold.

    Args:
        similarity: Shape (labels, detections), in 0..1.
        label_classes: Shape (labels,).
        detection_classes: Shape (detections,), by falling score.

    Returns:
        Whether each detection matched, shape (detections, 10), and the detection matched to each label or -1, shape
        (labels, 10).
    """
    labels, detections = similarity.shape
    matched = np.zeros((detections, len(THRESHOLDS)), np.bool_)
    claimed = np.full((labels, len(THRESHOLDS)), -1, np.int64)
    if not labels or not detections:
        return matched, claimed
    same_class = np.where(label_classes[:, None] == detection_classes, similarity, np.float32(0))
    columns = np.arange(len(THRESHOLDS))
    for detection in np.flatnonzero(same_class.max(0) >= THRESHOLDS[0]):
        free = np.where(claimed < 0, same_class[:, detection, None], np.float32(0))
        best = free.argmax(0)
        is_match = free[best, columns] >= THRESHOLDS
        matched[detection] = is_match
        claimed[best[is_match], columns[is_match]] = detection
    return matched, claimed


def find_matched_labels(claimed: NDArray[np.int64], detections: int) -> NDArray[np.int32]:
    """Find the label of each detection, at the lowest threshold at which it matched, or -1.

    Args:
        claimed: As `match_detections` returns it, shape (labels, 10).
        detections: How many detections there are.

    Returns:
        Shape (found,).
    """
    claims = np.full(detections, -1, np.int32)
    for threshold in reversed(range(claimed.shape[1])):
        labels = np.flatnonzero(claimed[:, threshold] >= 0)
        claims[claimed[labels, threshold]] = labels
    return claims


def pack_thresholds(matched: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """Pack ten booleans per row into one number: bit t is threshold t."""
    bits: NDArray[np.uint16] = (matched << np.arange(len(THRESHOLDS), dtype=np.uint16)).sum(1, dtype=np.uint16)
    return bits


def unpack_thresholds(bits: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """Invert `pack_thresholds`, shape (n, 10)."""
    matched: NDArray[np.bool_] = (bits[:, None] >> np.arange(len(THRESHOLDS), dtype=np.uint16)) & 1 == 1
    return matched


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ClassScores:
    """Metrics of the classes that have labels, by class number.

    Attributes:
        classes: Shape (n,).
        instances: Number of labels of each class, shape (n,).
        precision: At `confidence`, shape (n,).
        recall: At `confidence`, shape (n,).
        ap: Average precision at each threshold, shape (n, 10).
        confidence: Where the smoothed mean F1 over the classes is highest.
    """

    classes: NDArray[np.int64]
    instances: NDArray[np.int64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    ap: NDArray[np.float64]
    confidence: float

    def means(self) -> dict[str, float]:
        """Average over the classes, by Ultralytics' names without the kind; 0 if no class has labels."""
        if not len(self.classes):
            return dict.fromkeys(("precision", "recall", "mAP50", "mAP50-95"), 0.0)
        return {
            "precision": float(self.precision.mean()),
            "recall": float(self.recall.mean()),
            "mAP50": float(self.ap[:, 0].mean()),
            "mAP50-95": float(self.ap.mean()),
        }


def score_classes(
    matched: NDArray[np.bool_],
    scores: NDArray[np.float32],
    detection_classes: NDArray[np.int64],
    label_classes: NDArray[np.int64],
) -> ClassScores:
    """Compute the metrics of every class over all images.

    Args:
        matched: Whether each detection matched, shape (n, 10).
        scores: Shape (n,).
        detection_classes: Shape (n,).
        label_classes: Classes of all labels, shape (labels,).

    Returns:
        Metrics of the classes that have labels.
    """
    classes, instances = np.unique(label_classes, return_counts=True)
    order = np.argsort(-scores, kind="stable")
    matched, scores, detection_classes = matched[order], scores[order], detection_classes[order]
    grid = np.linspace(0, 1, CONFIDENCE_STEPS)
    ap = np.zeros((len(classes), matched.shape[1]))
    precisions, recalls = np.zeros((len(classes), CONFIDENCE_STEPS)), np.zeros((len(classes), CONFIDENCE_STEPS))
    for index, (number, total) in enumerate(zip(classes, instances, strict=True)):
        rows = detection_classes == number
        correct = matched[rows].cumsum(0, dtype=np.float64)
        if not len(correct):
            continue
        recall = correct / total
        precision = correct / np.arange(1, len(correct) + 1)[:, None]
        # np.interp needs rising x, confidences fall.
        x = -scores[rows].astype(np.float64)
        recalls[index] = np.interp(-grid, x, recall[:, 0], left=0)
        precisions[index] = np.interp(-grid, x, precision[:, 0], left=1)
        ap[index] = [average_precision(recall[:, t], precision[:, t]) for t in range(ap.shape[1])]
    total = precisions + recalls
    f1 = np.divide(2 * precisions * recalls, total, out=np.zeros_like(total), where=total > 0)
    best = int(_box_filter(f1.mean(0)).argmax()) if len(classes) else 0
    return ClassScores(
        classes=classes.astype(np.int64),
        instances=instances.astype(np.int64),
        precision=precisions[:, best],
        recall=recalls[:, best],
        ap=ap,
        confidence=float(grid[best]),
    )


def average_precision(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    """Compute the area under a precision-recall curve by Ultralytics' rule.

    Args:
        recall: Rising, shape (n,), one point per detection by falling score.
        precision: Shape (n,).

    Returns:
        In 0..1: the trapezoid over 101 recalls of the linearly interpolated precision envelope; the curve starts at
        (0, 1) and drops to 0 after its last recall.
    """
    if not len(recall):
        return 0.0
    x = np.concatenate(([0.0], recall, [recall[-1], 1.0]))
    y = np.concatenate(([1.0], precision, [0.0, 0.0]))
    envelope = np.maximum.accumulate(y[::-1])[::-1]
    precisions = np.interp(np.linspace(0, 1, 101), x, envelope)
    return float((precisions.sum() - (precisions[0] + precisions[-1]) / 2) / 100)


def _box_filter(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    """Apply a box filter of odd width; the ends are extended by their own values."""
    width = round(len(curve) * SMOOTHING * 2) // 2 + 1
    padded = np.pad(curve, width // 2, mode="edge")
    smoothed: NDArray[np.float64] = np.convolve(padded, np.full(width, 1 / width), mode="valid")
    return smoothed
