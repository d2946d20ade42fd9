"""Average precision recomputed for many resamples of the images at once: how much a metric owes to chance.

A resample draws as many images as there are, with replacement, so it is a number of copies of each image, and a
class's curve in it follows from how many detections the copies put in front of each match. Only matches move a
precision-recall envelope up, so a class is a matrix of (matches x resamples), small whatever the detections are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl

from trtkit.evaluation.average_precision import THRESHOLDS

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

__all__ = [
    "OBJECT_SIZES",
    "ClassCurve",
    "build_class_curves",
    "draw_resamples",
    "resample_average_precision",
    "resample_precision_recall",
]

OBJECT_SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, np.inf)}
"""Square pixels of an object, as COCO divides them."""

RECALL_STEPS = 100

RECALL_GRID = np.linspace(0, 1, RECALL_STEPS + 1)
"""Recalls at which both rules read the envelope."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ClassCurve:
    """One class's detections and labels, reduced to what its average precision depends on.

    Attributes:
        images: The image of each detection that matched at any threshold, by falling score, shape (n,).
        matched: At which thresholds, shape (n, 10).
        before: How many detections each image has up to and with each of these, shape (n, images), float32.
        labels: Labels in each image, shape (images,).
    """

    images: NDArray[np.int64]
    matched: NDArray[np.bool_]
    detections_before: NDArray[np.float32]
    labels: NDArray[np.int64]


def draw_resamples(images: int, resamples: int, seed: int) -> NDArray[np.float32]:
    """Copies of each image: (images, 1 + resamples); the first column is the images as they are.

    Args:
        images: How many there are.
        resamples: How many to draw.
        seed: Decides what is drawn.
    """
    drawn = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples)
    return np.concatenate((np.ones((images, 1)), drawn.T), 1).astype(np.float32)


def build_class_curves(
    detections: pl.DataFrame,
    truths: pl.DataFrame,
    kind: str,
    images: int,
    *,
    size: str = "",
    max_det: int | None = None,
) -> Iterator[tuple[int, ClassCurve]]:
    """The curve of each class that has labels, one at a time.

    Args:
        detections: `Evaluation.detections`.
        truths: `Evaluation.truths`.
        kind: "B", "M", "P" or "R".
        images: How many images there are.
        size: One of `OBJECT_SIZES` to judge its objects alone: other labels, and what claims them or is of another size and
            claims nothing, then count for nothing, as pycocotools has it. "" judges all.
        max_det: Most detections of a class in an image, the surest; None sets no limit.

    Yields:
        Class and curve.
    """
    image, number = detections["image"].to_numpy(), detections["class"].to_numpy()
    bits = detections[f"matched({kind})"].to_numpy()
    counted = np.ones(len(detections), np.bool_)
    wanted = np.ones(len(truths), np.bool_)
    if size:
        low, high = OBJECT_SIZES[size]
        areas = truths["area"].to_numpy()
        wanted = (areas >= low) & (areas < high)
        claims = detections[f"object({kind})"].to_numpy()
        # Labels stand image by image: an image's first row, and the label's place among its rows.
        first = np.searchsorted(truths["image"].to_numpy(), image)
        its_label = np.minimum(first + np.maximum(claims, 0), max(0, len(truths) - 1))
        sides = detections.select("x1", "y1", "x2", "y2").to_numpy()
        own = (sides[:, 2] - sides[:, 0]) * (sides[:, 3] - sides[:, 1])
        counted = np.where(claims >= 0, wanted[its_label], (own >= low) & (own < high))
    order = np.argsort(-detections["score"].to_numpy(), kind="stable")
    order = order[counted[order]]
    label_class, label_image = truths["class"].to_numpy()[wanted], truths["image"].to_numpy()[wanted]
    for one in np.unique(label_class):
        mine = order[number[order] == one]
        if max_det is not None:
            mine = mine[_rank_within(image[mine]) < max_det]
        hits = np.flatnonzero(bits[mine])
        before = np.zeros((len(hits), images), np.float32)
        # Detections between two matches are counted once, at the second, and then summed downwards.
        reached = np.searchsorted(hits, np.arange(len(mine)))
        inside = reached < len(hits)
        np.add.at(before, (reached[inside], image[mine][inside]), 1)
        yield (
            int(one),
            ClassCurve(
                images=image[mine][hits].astype(np.int64),
                matched=(bits[mine][hits][:, None] >> np.arange(len(THRESHOLDS), dtype=np.uint16)) & 1 == 1,
                detections_before=before.cumsum(0),
                labels=np.bincount(label_image[label_class == one], minlength=images),
            ),
        )


def _rank_within(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each row, how many rows of its group stand before it."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    starts = np.searchsorted(ordered, ordered)
    places = np.empty(len(groups), np.int64)
    places[order] = np.arange(len(groups)) - starts
    return places


def resample_average_precision(
    curve: ClassCurve, copies: NDArray[np.float32], *, pycocotools: bool = False
) -> NDArray[np.float64]:
    """Average precision of one class at every threshold in every resample.

    Args:
        curve: From `build_class_curves`.
        copies: From `draw_resamples`, shape (images, resamples).
        pycocotools: pycocotools' rule, steps at 101 recalls; else Ultralytics', linear reading and the trapezoid.

    Returns:
        Shape (10, resamples); not a number where a resample holds no label of the class.
    """
    totals = curve.labels @ copies.astype(np.float64)
    found = np.full((len(THRESHOLDS), copies.shape[1]), np.nan)
    found[:, totals > 0] = 0
    if not len(curve.images):
        return found
    there = (curve.detections_before @ copies).astype(np.float64)
    weights = copies[curve.images].astype(np.float64)
    area = _pycocotools_area if pycocotools else _ultralytics_area
    for threshold in range(len(THRESHOLDS)):
        rows = curve.matched[:, threshold]
        if rows.any():
            some, passed = (weights, there) if rows.all() else (weights[rows], there[rows])
            found[threshold] = np.where(totals > 0, area(some, passed, np.maximum(totals, 1)), np.nan)
    return found


def _pycocotools_area(
    weights: NDArray[np.float64], there: NDArray[np.float64], totals: NDArray[np.float64]
) -> NDArray[np.float64]:
    """pycocotools' area: the mean, over 101 recalls, of the envelope at the first match that reaches each.

    Args:
        weights: Copies of each match, shape (n, resamples).
        there: Detections up to and with each match, copies counted, shape (n, resamples).
        totals: Labels, shape (resamples,).
    """
    recall, envelope = _envelope(weights, there, totals)
    reached = _count_recalls(recall, "right")
    steps: NDArray[np.float64] = (np.diff(reached, axis=0, prepend=0) * envelope).sum(0) / (RECALL_STEPS + 1)
    return steps


def _ultralytics_area(
    weights: NDArray[np.float64], there: NDArray[np.float64], totals: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Ultralytics' area: the trapezoid over 101 recalls of the envelope read along lines; arguments as above.

    Between two matches the envelope falls in a line only where no wrong detection stands between them, and at once
    where one does. Of several copies of a match the first already reaches the lower height: a line spans one label.
    """
    recall, envelope = _envelope(weights, there, totals)
    start, higher, passed = (np.roll(values, 1, 0) for values in (recall, envelope, there))
    # The curve begins with no match at all, at recall 0 and precision 1.
    start[0], higher[0], passed[0] = 0, 1, 0
    first = _count_recalls(start, "left")
    area = ((_count_recalls(recall, "left") - first) * envelope).sum(0)
    straight = (weights > 0) & (there - weights <= passed)
    many = _count_recalls(np.minimum(start + 1 / totals, 1), "left") - first
    places = many * first + many * (many - 1) / 2
    # What the line is above the lower height, summed over the recalls on it.
    above = many * (1 + start * totals) - totals * places / RECALL_STEPS
    area += np.where(straight, (higher - envelope) * np.maximum(above, 0), 0).sum(0)
    head = (weights > 0).argmax(0)
    every = np.arange(weights.shape[1])
    at_zero = np.where(straight[head, every], higher[head, every], envelope[head, every])
    at_zero[weights.sum(0) == 0] = 0
    whole: NDArray[np.float64] = (area - at_zero / 2) / RECALL_STEPS
    return whole


def _envelope(
    weights: NDArray[np.float64], there: NDArray[np.float64], totals: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Recall, and the best precision from there on, at each match."""
    right = weights.cumsum(0)
    precision = np.divide(right, there, out=np.ones_like(right), where=there > 0)
    return right / totals, np.maximum.accumulate(precision[::-1], 0)[::-1]


def _count_recalls(recall: NDArray[np.float64], side: Literal["left", "right"]) -> NDArray[np.float64]:
    """How many of the 101 recalls lie below each (left), or below or at it (right).

    The first column, the images as they are, is counted exactly; the others by arithmetic, 20 times faster, where a
    recall that rounding puts a hair beside a grid place counts as on it.
    """
    slack = 1e-9 if side == "right" else -1e-9
    places = np.floor(recall * RECALL_STEPS + slack) + 1
    np.maximum(places, 0, out=places)
    places[:, 0] = np.searchsorted(RECALL_GRID, recall[:, 0], side=side)
    return places


# Precision and recall where F1 is best, recomputed for many resamples of the images at once.


CONFIDENCE_STEPS = 250
"""Confidences at which F1 is looked at; a quarter of those in `precision_recall`, for speed."""

SMOOTHING_WIDTH = 25
"""Confidences that F1 is averaged over before its best is taken."""

RESAMPLES_AT_ONCE = 128
"""Resamples worked on at once, so that memory does not grow with their number."""


def resample_precision_recall(
    detections: pl.DataFrame, truths: pl.DataFrame, kind: str, copies: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision and recall at similarity 0.5 and the confidence where the mean F1 over the classes is highest.

    Counts are read at each of 250 confidences; `precision_recall` draws lines between detections instead, which
    differs in the third digit at most and not at all between two evaluations of like detections.

    Args:
        detections: `Evaluation.detections`.
        truths: `Evaluation.truths`.
        kind: "B", "M", "P" or "R".
        copies: From `draw_resamples`, shape (images, resamples).

    Returns:
        The two, each of shape (resamples,).
    """
    image, number = detections["image"].to_numpy(), detections["class"].to_numpy()
    right = (detections[f"matched({kind})"].to_numpy() & 1) == 1
    # The last grid place whose confidence is not above the score: there and below it the detection counts.
    level = np.minimum(
        (detections["score"].to_numpy().astype(np.float64) * (CONFIDENCE_STEPS - 1)).astype(np.int64),
        CONFIDENCE_STEPS - 1,
    )
    classes = np.unique(truths["class"].to_numpy())
    shape = (len(classes), CONFIDENCE_STEPS, len(copies))
    all_found, all_right = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    labels = np.zeros((len(classes), len(copies)), np.float32)
    np.add.at(labels, (np.searchsorted(classes, truths["class"].to_numpy()), truths["image"].to_numpy()), 1)
    place = np.searchsorted(classes, number)
    known = np.isin(number, classes)
    np.add.at(all_found, (place[known], level[known], image[known]), 1)
    known &= right
    np.add.at(all_right, (place[known], level[known], image[known]), 1)
    parts = [
        _best_f1(all_found, all_right, labels, copies[:, start : start + RESAMPLES_AT_ONCE])
        for start in range(0, copies.shape[1], RESAMPLES_AT_ONCE)
    ]
    return np.concatenate([one for one, _ in parts]), np.concatenate([two for _, two in parts])


def _best_f1(
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
    padded = np.pad(curve, ((SMOOTHING_WIDTH // 2 + 1, SMOOTHING_WIDTH // 2), (0, 0)), mode="edge").cumsum(
        0, dtype=np.float64
    )
    smooth = padded[SMOOTHING_WIDTH:] - padded[:-SMOOTHING_WIDTH]
    best, every = smooth.argmax(0), np.arange(copies.shape[1])
    means = [(part[:, best, every] * there).sum(0) / count for part in (precision, recall)]
    return means[0].astype(np.float64), means[1].astype(np.float64)
