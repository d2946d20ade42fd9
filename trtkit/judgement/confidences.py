"""Precision and recall where F1 is best, recomputed for many resamples of the pictures at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

__all__ = ["at_best_confidence"]

GRID = 250
"""Confidences at which F1 is looked at; a quarter of those in `precision_recall`, for speed."""

WIDTH = 25
"""Confidences that F1 is averaged over before its best is taken."""

TOGETHER = 128
"""Resamples worked on at once, so that memory does not grow with their number."""


def at_best_confidence(
    detections: pl.DataFrame, truths: pl.DataFrame, kind: str, copies: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision and recall at similarity 0.5 and the confidence where the mean F1 over the classes is highest.

    Counts are read at each of 250 confidences; `precision_recall` draws lines between detections instead, which
    differs in the third digit at most and not at all between two evaluations of like detections.

    Args:
        detections: `Evaluation.detections`.
        truths: `Evaluation.truths`.
        kind: "B", "M", "P" or "R".
        copies: From `drawn_copies`, shape (pictures, resamples).

    Returns:
        The two, each of shape (resamples,).
    """
    picture, number = detections["picture"].to_numpy(), detections["class"].to_numpy()
    right = (detections[f"matched({kind})"].to_numpy() & 1) == 1
    # The last grid place whose confidence is not above the score: there and below it the detection counts.
    level = np.minimum((detections["score"].to_numpy().astype(np.float64) * (GRID - 1)).astype(np.int64), GRID - 1)
    classes = np.unique(truths["class"].to_numpy())
    shape = (len(classes), GRID, len(copies))
    all_found, all_right = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    labels = np.zeros((len(classes), len(copies)), np.float32)
    np.add.at(labels, (np.searchsorted(classes, truths["class"].to_numpy()), truths["picture"].to_numpy()), 1)
    place = np.searchsorted(classes, number)
    known = np.isin(number, classes)
    np.add.at(all_found, (place[known], level[known], picture[known]), 1)
    known &= right
    np.add.at(all_right, (place[known], level[known], picture[known]), 1)
    parts = [
        _best(all_found, all_right, labels, copies[:, start : start + TOGETHER])
        for start in range(0, copies.shape[1], TOGETHER)
    ]
    return np.concatenate([one for one, _ in parts]), np.concatenate([two for _, two in parts])


def _best(
    found: NDArray[np.float32], right: NDArray[np.float32], labels: NDArray[np.float32], copies: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean precision and recall over the classes with labels at each resample's best confidence."""
    totals = labels @ copies
    precision = np.ones((*found.shape[:2], copies.shape[1]), np.float32)
    recall = np.zeros_like(precision)
    for place in range(len(found)):
        many = (found[place] @ copies)[::-1].cumsum(0)[::-1]
        good = (right[place] @ copies)[::-1].cumsum(0)[::-1]
        np.divide(good, many, out=precision[place], where=many > 0)
        np.divide(good, totals[place], out=recall[place], where=totals[place] > 0)
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)
    there = (totals > 0).astype(np.float32)
    count = np.maximum(there.sum(0), 1)
    curve = np.einsum("cgr,cr->gr", f1, there) / count
    padded = np.pad(curve, ((WIDTH // 2 + 1, WIDTH // 2), (0, 0)), mode="edge").cumsum(0, dtype=np.float64)
    smooth = padded[WIDTH:] - padded[:-WIDTH]
    best, every = smooth.argmax(0), np.arange(copies.shape[1])
    means = [(part[:, best, every] * there).sum(0) / count for part in (precision, recall)]
    return means[0].astype(np.float64), means[1].astype(np.float64)
