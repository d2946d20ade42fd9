"""Bootstrap over images: metrics recomputed on resamples of the images, all resamples at once.

A resample draws as many images as there are, with replacement (Efron 1979, Bootstrap Methods: Another Look at the
Jackknife). It is a number of copies of each image; the curve of a class follows from the detections that the copies put
before each match. Only matches raise the precision-recall envelope, so a class is a matrix (matches x resamples).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from trtkit.errors import RecipeError
from trtkit.evaluation.average_precision import THRESHOLDS, unpack_thresholds

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

__all__ = [
    "OBJECT_SIZES",
    "ClassCurve",
    "EvaluationLike",
    "ResampledMetric",
    "build_class_curves",
    "draw_resamples",
    "resample_average_precision",
    "resample_classes",
    "resample_metric",
    "resample_metrics",
    "resample_precision_recall",
]

OBJECT_SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, np.inf)}
"""Areas in square pixels, as in COCO."""

PYCOCOTOOLS_MAX_DET = 100
"""Detections of a class per image that pycocotools considers for boxes and masks."""

PYCOCOTOOLS_MAX_DET_KEYPOINTS = 20
"""Detections of a class per image that pycocotools considers for keypoints."""


class EvaluationLike(Protocol):
    """The part of an `Evaluation` that a bootstrap needs."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """Metrics by name."""

    @property
    def per_class(self) -> pl.DataFrame:
        """One row per class that has labels."""

    @property
    def per_image(self) -> pl.DataFrame:
        """One row per image."""

    @property
    def detections(self) -> pl.DataFrame:
        """One row per detection."""

    @property
    def labels(self) -> pl.DataFrame:
        """One row per label."""


# Resampled metrics


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ResampledMetric:
    """A metric on the images and on resamples of them.

    Attributes:
        value: On the images themselves.
        values: On each resample, shape (resamples,).
    """

    value: float
    values: NDArray[np.float64]


def draw_resamples(images: int, resamples: int, seed: int) -> NDArray[np.float32]:
    """Draw resamples as numbers of copies of each image.

    Args:
        images: Number of images.
        resamples: Number of resamples.
        seed: Seed of the draw; the same seed gives the same resamples for every evaluation.

    Returns:
        Shape (images, 1 + resamples); the first column is the images themselves, one copy each.
    """
    drawn = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples)
    return np.concatenate((np.ones((images, 1)), drawn.T), 1).astype(np.float32)


def resample_metric(evaluation: EvaluationLike, metric: str, *, resamples: int, seed: int = 0) -> ResampledMetric:
    """Compute one metric on resamples of the evaluation's images.

    Args:
        evaluation: From `evaluate`.
        metric: "mAP50-95(B)", "mAP50(M)", "top1", ...: mAP by Ultralytics' rule, top-1 or top-5 accuracy.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples.

    Raises:
        RecipeError: The metric can't be resampled.
    """
    copies = draw_resamples(len(evaluation.per_image), resamples, seed)
    average, accuracy = re.fullmatch(r"mAP50(-95)?\((\w)\)", metric), re.fullmatch(r"top(1|5)", metric)
    if average is not None and f"matched({average[2]})" in evaluation.detections.columns:
        classes = [precisions for _, precisions in resample_classes(evaluation, average[2], copies)]
        values = _mean_over_classes([one.mean(0) if average[1] else one[0] for one in classes])
    elif accuracy is not None and "rank" in evaluation.labels.columns:
        values = _resample_accuracy(evaluation, copies, k=int(accuracy[1]))
    else:
        raise RecipeError(
            f"resample {metric!r}",
            "only mAP by Ultralytics' rule, top1 and top5 can be resampled, for kinds that the evaluation has",
            "use e.g. 'mAP50-95(B)'",
            code="bootstrap-metric-unknown",
            metric=metric,
        )
    return ResampledMetric(value=float(values[0]), values=values[1:])


def resample_metrics(
    evaluation: EvaluationLike, copies: NDArray[np.float32]
) -> dict[tuple[str, str, str], NDArray[np.float64]]:
    """Compute all metrics, of all images, each class and each object size, on resamples.

    Args:
        evaluation: From `evaluate`.
        copies: From `draw_resamples`, shape (images, 1 + resamples).

    Returns:
        By metric, scope ("all", "class" or "size") and name of the class or size; shape (1 + resamples,), NaN where a
        resample has no labels.
    """
    if "rank" in evaluation.labels.columns:
        return _resample_classification(evaluation, copies)
    kinds = [name[len("mAP50-95(") : -1] for name in evaluation.metrics if name.startswith("mAP50-95(")]
    names = dict(evaluation.per_class.select("class", "name").iter_rows())
    resampled: dict[tuple[str, str, str], NDArray[np.float64]] = {}
    for kind in kinds:
        resampled |= _resample_objects(evaluation, kind, names, copies)
        suffix = "" if kind == "B" else f"({kind})"
        if f"pycocotools/AP{suffix}" in evaluation.metrics:
            resampled |= _resample_pycocotools(evaluation, kind, suffix, copies)
    return resampled


def _resample_classification(
    evaluation: EvaluationLike, copies: NDArray[np.float32]
) -> dict[tuple[str, str, str], NDArray[np.float64]]:
    """Top-1 and top-5 accuracy, of all images and of each class."""
    classes = evaluation.labels["class"].to_numpy()
    resampled: dict[tuple[str, str, str], NDArray[np.float64]] = {}
    for k in (1, 5):
        resampled[f"top{k}", "all", ""] = _resample_accuracy(evaluation, copies, k=k)
        for number, name in evaluation.per_class.select("class", "name").iter_rows():
            resampled[f"top{k}", "class", name] = _resample_accuracy(evaluation, copies, k=k, rows=classes == number)
    return resampled


def _resample_accuracy(
    evaluation: EvaluationLike, copies: NDArray[np.float32], *, k: int, rows: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Top-k accuracy of the images, or of some `rows` of the labels; NaN where a resample has none of them."""
    correct = (evaluation.labels["rank"].to_numpy() <= k).astype(np.float64)
    weights = copies[evaluation.labels["image"].to_numpy()].astype(np.float64)
    if rows is not None:
        correct, weights = correct[rows], weights[rows]
    totals = weights.sum(0)
    accuracy: NDArray[np.float64] = np.full(len(totals), np.nan)
    np.divide(correct @ weights, totals, out=accuracy, where=totals > 0)
    return accuracy


def _resample_objects(
    evaluation: EvaluationLike, kind: str, names: Mapping[int, str], copies: NDArray[np.float32]
) -> dict[tuple[str, str, str], NDArray[np.float64]]:
    """AP by Ultralytics' rule of all objects, each class and each size; precision and recall at the best F1."""
    resampled: dict[tuple[str, str, str], NDArray[np.float64]] = {}
    classes: list[NDArray[np.float64]] = []
    for number, precisions in resample_classes(evaluation, kind, copies):
        classes.append(precisions)
        resampled[f"mAP50-95({kind})", "class", names[number]] = precisions.mean(0)
        resampled[f"mAP50({kind})", "class", names[number]] = precisions[0]
    resampled[f"mAP50-95({kind})", "all", ""] = _mean_over_classes([one.mean(0) for one in classes])
    resampled[f"mAP50({kind})", "all", ""] = _mean_over_classes([one[0] for one in classes])
    for size in OBJECT_SIZES:
        of_size = [precisions.mean(0) for _, precisions in resample_classes(evaluation, kind, copies, size=size)]
        if of_size:
            resampled[f"mAP50-95({kind})", "size", size] = _mean_over_classes(of_size)
    precision, recall = resample_precision_recall(evaluation.detections, evaluation.labels, kind, copies)
    resampled[f"precision({kind})", "all", ""], resampled[f"recall({kind})", "all", ""] = precision, recall
    return resampled


def _resample_pycocotools(
    evaluation: EvaluationLike, kind: str, suffix: str, copies: NDArray[np.float32]
) -> dict[tuple[str, str, str], NDArray[np.float64]]:
    """AP by pycocotools' rule, from the evaluation's own matches."""
    max_det = PYCOCOTOOLS_MAX_DET_KEYPOINTS if kind == "P" else PYCOCOTOOLS_MAX_DET
    classes = [
        precisions for _, precisions in resample_classes(evaluation, kind, copies, max_det=max_det, pycocotools=True)
    ]
    return {
        (f"pycocotools/AP{suffix}", "all", ""): _mean_over_classes([one.mean(0) for one in classes]),
        (f"pycocotools/AP50{suffix}", "all", ""): _mean_over_classes([one[0] for one in classes]),
        (f"pycocotools/AP75{suffix}", "all", ""): _mean_over_classes([one[5] for one in classes]),
    }


def resample_classes(
    evaluation: EvaluationLike,
    kind: str,
    copies: NDArray[np.float32],
    *,
    size: str = "",
    max_det: int | None = None,
    pycocotools: bool = False,
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Compute the average precision of each class with labels on resamples.

    Args:
        evaluation: From `evaluate`.
        kind: "B", "M", "P" or "R".
        copies: From `draw_resamples`, shape (images, 1 + resamples).
        size: As for `build_class_curves`.
        max_det: As for `build_class_curves`.
        pycocotools: As for `resample_average_precision`.

    Yields:
        Class and average precision, shape (10, 1 + resamples).
    """
    curves = build_class_curves(evaluation.detections, evaluation.labels, kind, len(copies), size=size, max_det=max_det)
    for number, curve in curves:
        yield number, resample_average_precision(curve, copies, pycocotools=pycocotools)


def _mean_over_classes(classes: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Average over the classes that a resample has labels of."""
    values = np.stack(classes)
    means: NDArray[np.float64] = np.nansum(values, 0) / np.maximum((~np.isnan(values)).sum(0), 1)
    return means


# Average precision of a class

RECALL_STEPS = 100

RECALL_GRID = np.linspace(0, 1, RECALL_STEPS + 1)
"""Recalls at which both rules read the precision envelope."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ClassCurve:
    """A class's detections and labels, reduced to what its average precision depends on.

    Attributes:
        images: The image of each detection that matched at any threshold, by falling score, shape (n,).
        matched: The thresholds at which it matched, shape (n, 10).
        detections_before: Detections of each image up to and including this one, shape (n, images), float32.
        labels: Labels in each image, shape (images,).
    """

    images: NDArray[np.int64]
    matched: NDArray[np.bool_]
    detections_before: NDArray[np.float32]
    labels: NDArray[np.int64]


def build_class_curves(
    detections: pl.DataFrame,
    labels: pl.DataFrame,
    kind: str,
    images: int,
    *,
    size: str = "",
    max_det: int | None = None,
) -> Iterator[tuple[int, ClassCurve]]:
    """Build the curve of each class that has labels.

    Args:
        detections: `Evaluation.detections`.
        labels: `Evaluation.labels`.
        kind: "B", "M", "P" or "R".
        images: Number of images.
        size: One of `OBJECT_SIZES`, "" for all objects. With a size, other labels are ignored, and so are detections
            that match them, or that match nothing and are of another size; as in pycocotools.
        max_det: Maximum number of detections of a class per image, the highest-scoring; None sets no limit.

    Yields:
        Class and curve.
    """
    image, class_number = detections["image"].to_numpy(), detections["class"].to_numpy()
    bits = detections[f"matched({kind})"].to_numpy()
    use_detection = np.ones(len(detections), np.bool_)
    use_label = np.ones(len(labels), np.bool_)
    if size:
        low, high = OBJECT_SIZES[size]
        label_areas = labels["area"].to_numpy()
        use_label = (label_areas >= low) & (label_areas < high)
        matched_labels = detections[f"object({kind})"].to_numpy()
        # Labels are sorted by image: the first row of the image plus the label's index within it.
        first = np.searchsorted(labels["image"].to_numpy(), image)
        label_rows = np.minimum(first + np.maximum(matched_labels, 0), max(0, len(labels) - 1))
        sides = detections.select("x1", "y1", "x2", "y2").to_numpy()
        areas = (sides[:, 2] - sides[:, 0]) * (sides[:, 3] - sides[:, 1])
        use_detection = np.where(matched_labels >= 0, use_label[label_rows], (areas >= low) & (areas < high))
    order = np.argsort(-detections["score"].to_numpy(), kind="stable")
    order = order[use_detection[order]]
    label_class, label_image = labels["class"].to_numpy()[use_label], labels["image"].to_numpy()[use_label]
    for number in np.unique(label_class):
        rows = order[class_number[order] == number]
        if max_det is not None:
            rows = rows[_rank_within(image[rows]) < max_det]
        hits = np.flatnonzero(bits[rows])
        before = np.zeros((len(hits), images), np.float32)
        # Detections between two matches are counted once, at the second, and then accumulated.
        next_hit = np.searchsorted(hits, np.arange(len(rows)))
        inside = next_hit < len(hits)
        np.add.at(before, (next_hit[inside], image[rows][inside]), 1)
        yield (
            int(number),
            ClassCurve(
                images=image[rows][hits].astype(np.int64),
                matched=unpack_thresholds(bits[rows][hits]),
                detections_before=before.cumsum(0),
                labels=np.bincount(label_image[label_class == number], minlength=images),
            ),
        )


def _rank_within(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return, for each row, the number of earlier rows of its group."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    starts = np.searchsorted(ordered, ordered)
    ranks = np.empty(len(groups), np.int64)
    ranks[order] = np.arange(len(groups)) - starts
    return ranks


def resample_average_precision(
    curve: ClassCurve, copies: NDArray[np.float32], *, pycocotools: bool = False
) -> NDArray[np.float64]:
    """Compute the average precision of one class at every threshold in every resample.

    Args:
        curve: From `build_class_curves`.
        copies: From `draw_resamples`, shape (images, resamples).
        pycocotools: pycocotools' rule (steps at 101 recalls) instead of Ultralytics' (interpolation and trapezoid).

    Returns:
        Shape (10, resamples); NaN where a resample has no label of the class.
    """
    totals = curve.labels @ copies.astype(np.float64)
    precisions = np.full((len(THRESHOLDS), copies.shape[1]), np.nan)
    precisions[:, totals > 0] = 0
    if not len(curve.images):
        return precisions
    counts = (curve.detections_before @ copies).astype(np.float64)
    weights = copies[curve.images].astype(np.float64)
    area = _pycocotools_area if pycocotools else _ultralytics_area
    for threshold in range(len(THRESHOLDS)):
        rows = curve.matched[:, threshold]
        if rows.any():
            matches, before = (weights, counts) if rows.all() else (weights[rows], counts[rows])
            precisions[threshold] = np.where(totals > 0, area(matches, before, np.maximum(totals, 1)), np.nan)
    return precisions


def _pycocotools_area(
    weights: NDArray[np.float64], counts: NDArray[np.float64], totals: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Compute pycocotools' area: the mean, over 101 recalls, of the envelope at the first match that reaches each.

    Args:
        weights: Copies of each match, shape (n, resamples).
        counts: Detections up to and including each match, with copies, shape (n, resamples).
        totals: Labels, shape (resamples,).
    """
    recall, envelope = _envelope(weights, counts, totals)
    reached = _count_recalls(recall, "right")
    steps: NDArray[np.float64] = (np.diff(reached, axis=0, prepend=0) * envelope).sum(0) / (RECALL_STEPS + 1)
    return steps


def _ultralytics_area(
    weights: NDArray[np.float64], counts: NDArray[np.float64], totals: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Compute Ultralytics' area: the trapezoid over 101 recalls of the interpolated envelope; arguments as above.

    Between two matches the envelope falls linearly if no false positive lies between them, and at once otherwise. Of
    several copies of a match the first already reaches the lower value: a line spans one label.
    """
    recall, envelope = _envelope(weights, counts, totals)
    start, higher, passed = (np.roll(values, 1, 0) for values in (recall, envelope, counts))
    # The curve starts without a match, at recall 0 and precision 1.
    start[0], higher[0], passed[0] = 0, 1, 0
    first = _count_recalls(start, "left")
    area = ((_count_recalls(recall, "left") - first) * envelope).sum(0)
    straight = (weights > 0) & (counts - weights <= passed)
    steps = _count_recalls(np.minimum(start + 1 / totals, 1), "left") - first
    positions = steps * first + steps * (steps - 1) / 2
    # Height of the line above the lower value, summed over the recalls on it.
    above = steps * (1 + start * totals) - totals * positions / RECALL_STEPS
    area += np.where(straight, (higher - envelope) * np.maximum(above, 0), 0).sum(0)
    head = (weights > 0).argmax(0)
    columns = np.arange(weights.shape[1])
    at_zero = np.where(straight[head, columns], higher[head, columns], envelope[head, columns])
    at_zero[weights.sum(0) == 0] = 0
    trapezoid: NDArray[np.float64] = (area - at_zero / 2) / RECALL_STEPS
    return trapezoid


def _envelope(
    weights: NDArray[np.float64], counts: NDArray[np.float64], totals: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return recall, and the highest precision from there on, at each match."""
    matches = weights.cumsum(0)
    precision = np.divide(matches, counts, out=np.ones_like(matches), where=counts > 0)
    return matches / totals, np.maximum.accumulate(precision[::-1], 0)[::-1]


def _count_recalls(recall: NDArray[np.float64], side: Literal["left", "right"]) -> NDArray[np.float64]:
    """Count the recalls of the grid below each recall (left), or below or at it (right).

    The first column, the images themselves, is exact; the others are computed arithmetically, 20 times faster, with a
    tolerance for rounding next to a grid point.
    """
    tolerance = 1e-9 if side == "right" else -1e-9
    counts = np.floor(recall * RECALL_STEPS + tolerance) + 1
    np.maximum(counts, 0, out=counts)
    counts[:, 0] = np.searchsorted(RECALL_GRID, recall[:, 0], side=side)
    return counts


# Precision and recall at the best F1

CONFIDENCE_STEPS = 250
"""Confidences at which F1 is evaluated; a quarter of those in `score_classes`, for speed."""

SMOOTHING_WIDTH = 25
"""Confidences that F1 is smoothed over."""

RESAMPLES_AT_ONCE = 128
"""Resamples computed at once; bounds the memory."""


def resample_precision_recall(
    detections: pl.DataFrame, labels: pl.DataFrame, kind: str, copies: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute precision and recall at similarity 0.5 and the confidence of the best mean F1 over the classes.

    Counts are read at 250 confidences without interpolation between detections, so values differ from `score_classes`
    by less than 0.01; between two evaluations of similar detections that difference cancels.

    Args:
        detections: `Evaluation.detections`.
        labels: `Evaluation.labels`.
        kind: "B", "M", "P" or "R".
        copies: From `draw_resamples`, shape (images, resamples).

    Returns:
        Precision and recall, each of shape (resamples,).
    """
    image, class_number = detections["image"].to_numpy(), detections["class"].to_numpy()
    matched = (detections[f"matched({kind})"].to_numpy() & 1) == 1
    # The last grid confidence that is not above the score: the detection counts there and below.
    scores = detections["score"].to_numpy().astype(np.float64)
    level = np.minimum((scores * (CONFIDENCE_STEPS - 1)).astype(np.int64), CONFIDENCE_STEPS - 1)
    classes = np.unique(labels["class"].to_numpy())
    label_counts = np.zeros((len(classes), len(copies)), np.float32)
    np.add.at(label_counts, (np.searchsorted(classes, labels["class"].to_numpy()), labels["image"].to_numpy()), 1)
    # Counts of all classes at once would be gigabytes: those of one are made where they are needed.
    of_class = [np.flatnonzero(class_number == number) for number in classes]
    placed = [(level[rows], image[rows], matched[rows]) for rows in of_class]
    parts = [
        _best_f1(placed, label_counts, copies[:, start : start + RESAMPLES_AT_ONCE])
        for start in range(0, copies.shape[1], RESAMPLES_AT_ONCE)
    ]
    return np.concatenate([precision for precision, _ in parts]), np.concatenate([recall for _, recall in parts])


def _best_f1(
    detections: Sequence[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]],
    labels: NDArray[np.float32],
    copies: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute mean precision and recall over the classes with labels at each resample's best confidence.

    Args:
        detections: By class, each detection's grid confidence and image, and whether it is right.
        labels: Number of labels, shape (classes, images).
        copies: From `draw_resamples`, shape (images, resamples).

    Returns:
        Precision and recall, each of shape (resamples,).
    """
    totals = labels @ copies
    precision = np.ones((len(detections), CONFIDENCE_STEPS, copies.shape[1]), np.float32)
    recall = np.zeros_like(precision)
    for row, (level, image, matched) in enumerate(detections):
        counts = np.zeros((2, CONFIDENCE_STEPS, len(copies)), np.float32)
        np.add.at(counts[0], (level, image), 1)
        np.add.at(counts[1], (level[matched], image[matched]), 1)
        predicted, correct = ((part @ copies)[::-1].cumsum(0)[::-1] for part in counts)
        np.divide(correct, predicted, out=precision[row], where=predicted > 0)
        np.divide(correct, totals[row], out=recall[row], where=totals[row] > 0)
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)
    has_labels = (totals > 0).astype(np.float32)
    count = np.maximum(has_labels.sum(0), 1)
    curve = np.einsum("cgr,cr->gr", f1, has_labels) / count
    margins = ((SMOOTHING_WIDTH // 2 + 1, SMOOTHING_WIDTH // 2), (0, 0))
    padded = np.pad(curve, margins, mode="edge").cumsum(0, dtype=np.float64)
    smooth = padded[SMOOTHING_WIDTH:] - padded[:-SMOOTHING_WIDTH]
    best, columns = smooth.argmax(0), np.arange(copies.shape[1])
    means = [(part[:, best, columns] * has_labels).sum(0) / count for part in (precision, recall)]
    return means[0].astype(np.float64), means[1].astype(np.float64)
