"""Confidence intervals and significance of differences between evaluations, and decisions against a tolerance.

A paired bootstrap: all evaluations are recomputed on the same resamples of the images, so that the difficulty of an
image cancels in the difference (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13).

Shares of images, such as top-1 accuracy, have the interval of a paired difference of proportions instead (Agresti and
Min 2005, Statistics in Medicine 24:729): where no image changed, resamples show no change either, however few the
images. Claims about one class or one object size are corrected for their number by Holm's method (Holm 1979,
Scandinavian Journal of Statistics 6:65): the more classes there are, the more of them lose by chance.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from trtkit.arguments import check_argument
from trtkit.errors import DataError
from trtkit.evaluation.bootstrap import (
    EvaluationLike,
    ResampledMetric,
    draw_resamples,
    resample_classes,
    resample_metrics,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "CANNOT_TELL",
    "DIFFERENCE_COLUMNS",
    "KEPT",
    "LOSES",
    "MIN_IMAGES",
    "RESAMPLES",
    "ROUNDING_ERROR",
    "TOP_K",
    "TUNING_RESAMPLES",
    "ConfidenceInterval",
    "SampleSize",
    "compute_all_differences",
    "compute_class_intervals",
    "compute_differences",
    "compute_interval",
    "compute_loss_interval",
    "correct_significance",
    "decide_accuracy",
    "holm",
    "images_to_settle",
]

RESAMPLES = 1000
"""Bootstrap resamples of a comparison."""

TUNING_RESAMPLES = 500
"""Bootstrap resamples of each trial in sweep, search and tuner."""

ROUNDING_ERROR = 1e-12
"""Metrics lie in 0..1, so that a difference this small comes from float arithmetic alone."""

INTERVAL_PERCENTILES = (2.5, 97.5)
"""Percentiles of the 95 % confidence interval."""

Z_INTERVAL = 1.96
"""Standard errors from the middle of a 95 % confidence interval to its ends."""

Z_POWER = 1.28
"""Standard errors by which an estimate must clear the limit to be settled in 90 % of the cases."""

SIGNIFICANCE_LEVEL = 0.05

MIN_IMAGES = 30
"""Images below which no interval decides: resamples of so few are too much alike."""

KEPT, LOSES, CANNOT_TELL = "kept", "loses", "can't tell"
"""Decisions on the accuracy against a tolerance."""

DIFFERENCE_COLUMNS = {
    "metric": pl.String,
    "scope": pl.String,
    "name": pl.String,
    "reference": pl.Float64,
    "value": pl.Float64,
    "delta": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "significant": pl.Boolean,
}


@dataclasses.dataclass(frozen=True)
class ConfidenceInterval:
    """A value with its 95 % confidence interval.

    Attributes:
        value: On the images themselves.
        low: The 2.5th percentile over the resamples.
        high: The 97.5th.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


def compute_interval(resampled: ResampledMetric) -> ConfidenceInterval:
    """Compute the 95 % confidence interval of a resampled metric."""
    low, high = np.percentile(resampled.values, INTERVAL_PERCENTILES)
    return ConfidenceInterval(resampled.value, float(low), float(high))


def compute_loss_interval(reference: ResampledMetric, other: ResampledMetric) -> ConfidenceInterval:
    """Compute the loss of `other` against `reference`, both on the same resamples, with its interval."""
    return compute_interval(
        ResampledMetric(value=reference.value - other.value, values=reference.values - other.values)
    )


def compute_differences(
    reference: EvaluationLike, other: EvaluationLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> pl.DataFrame:
    """Compute the difference of every metric, with its 95 % confidence interval.

    Args:
        reference: An evaluation.
        other: An evaluation on the same images.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples.

    Returns:
        One row per metric and scope: `metric`; `scope` "all", "class" or "size"; `name` of the class or size; both
        values (`reference`, `value`), their `delta` (negative is a loss), its interval `low` to `high` (null if no
        resample has such labels), and `significant`: the interval excludes zero, for a class or size after Holm's
        correction for their number (`correct_significance`). Metrics by size follow Ultralytics' rule. Intervals
        of `pycocotools/AP`, `AP50` and `AP75` come from the evaluations' own matches by pycocotools' rule, shifted to
        the reported delta; its other metrics are left out.

    Raises:
        DataError: The evaluations are of different images.
        RecipeError: There are fewer than 2 resamples.
    """
    differences = compute_all_differences(
        {"reference": reference, "other": other}, "reference", resamples=resamples, seed=seed
    )
    return differences.drop("precision")


def compute_all_differences(
    evaluations: Mapping[str, EvaluationLike], reference: str, *, resamples: int = RESAMPLES, seed: int = 0
) -> pl.DataFrame:
    """Compute the differences of several evaluations from one of them.

    Args:
        evaluations: Evaluations of the same images by name.
        reference: The name of the evaluation to compare with.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples.

    Returns:
        The rows of `compute_differences`, with the evaluation's name in the column `precision`.

    Raises:
        DataError: The evaluations are of different images.
        RecipeError: There are fewer than 2 resamples.
    """
    resamples = check_argument("compute_all_differences", "resamples", resamples)
    base = evaluations[reference]
    images = base.per_image["path"]
    different = [name for name, one in evaluations.items() if not one.per_image["path"].equals(images)]
    if different:
        raise DataError(
            "compute the difference of evaluations",
            "they are of different images",
            "evaluate on the same split, number of images and seed",
            code="evaluations-images-differ",
            names=tuple(different),
        )
    copies = draw_resamples(len(images), resamples, seed)
    before = resample_metrics(base, copies)
    rows = []
    for label, evaluation in evaluations.items():
        if label == reference:
            continue
        after = resample_metrics(evaluation, copies)
        for (metric, scope, name), first in before.items():
            second = after.get((metric, scope, name))
            if second is None:
                continue
            old = base.metrics.get(metric, first[0]) if scope == "all" else first[0]
            new = evaluation.metrics.get(metric, second[0]) if scope == "all" else second[0]
            row = _difference_row(metric, scope, name, float(old), float(new), second - first)
            if metric in TOP_K:
                row |= _share_interval(base, evaluation, TOP_K[metric], name if scope == "class" else None)
            rows.append({"precision": label, **row})
    return correct_significance(pl.DataFrame(rows, schema={"precision": pl.String, **DIFFERENCE_COLUMNS}))


TOP_K = {"top1": 1, "top5": 5}
"""Metrics that are shares of images, by the rank that counts as correct."""


def _share_interval(
    reference: EvaluationLike, other: EvaluationLike, k: int, class_name: str | None
) -> dict[str, float | bool]:
    """The interval of a change of top-k accuracy by Agresti and Min: half an image more in each of the four cells."""
    labels = reference.labels
    before, after = ((one.labels["rank"] <= k).to_numpy() for one in (reference, other))
    if class_name is not None:
        numbers = reference.per_class.filter(pl.col("name") == class_name)["class"]
        rows = labels["class"].is_in(numbers.implode()).to_numpy()
        before, after = before[rows], after[rows]
    gained, lost, total = int((after & ~before).sum()), int((before & ~after).sum()), len(before) + 2
    middle = (gained - lost) / total
    error = math.sqrt(gained + lost + 1 - (gained - lost) ** 2 / total) / total
    low, high = max(-1.0, middle - Z_INTERVAL * error), min(1.0, middle + Z_INTERVAL * error)
    return {"low": low, "high": high, "significant": low > 0 or high < 0}


def _difference_row(
    metric: str, scope: str, name: str, old: float, new: float, changes: NDArray[np.float64]
) -> dict[str, Any]:
    delta = new - old
    values = changes[1:][~np.isnan(changes[1:])]
    low: float | None = None
    high: float | None = None
    if len(values):
        interval = compute_interval(ResampledMetric(value=float(changes[0]), values=values))
        # Shifted from the change that the resampling computes to the one that is reported.
        low, high = (end + delta - interval.value for end in (interval.low, interval.high))
    # The shift leaves rounding errors where an end is zero.
    excludes_zero = low is not None and high is not None and (low > ROUNDING_ERROR or high < -ROUNDING_ERROR)
    return {
        "metric": metric, "scope": scope, "name": name, "reference": old, "value": new, "delta": delta,
        "low": low, "high": high, "significant": excludes_zero,
    }  # fmt: skip


# The classes of one evaluation


def compute_class_intervals(
    evaluation: EvaluationLike, *, resamples: int = TUNING_RESAMPLES, seed: int = 0
) -> pl.DataFrame:
    """Compute the 95 % confidence interval of each class's mAP50-95 and mAP50, or top-1 and top-5 accuracy.

    A bootstrap over images for average precision. Shares of images have Wilson's interval (Wilson 1927, Journal of the
    American Statistical Association 22:209), which is not empty where all or none of the images are right.

    Args:
        evaluation: From `evaluate`.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples.

    Returns:
        `per_class` with the columns `<metric> low` and `<metric> high`.
    """
    per_class = evaluation.per_class
    if "rank" in evaluation.labels.columns:
        for metric in TOP_K:
            shares = per_class.select(metric, "images").rows()
            per_class = _with_bounds(per_class, metric, [_wilson_interval(*share) for share in shares])
        return per_class
    copies = draw_resamples(len(evaluation.per_image), resamples, seed)
    for kind in [name[len("mAP50-95(") : -1] for name in evaluation.metrics if name.startswith("mAP50-95(")]:
        precisions = dict(resample_classes(evaluation, kind, copies))
        for metric, pick in ((f"mAP50-95({kind})", slice(None)), (f"mAP50({kind})", slice(1))):
            rows = per_class.select("class", metric).rows()
            bounds = [_percentile_bounds(value, precisions[number][pick].mean(0)) for number, value in rows]
            per_class = _with_bounds(per_class, metric, bounds)
    return per_class


def _with_bounds(per_class: pl.DataFrame, metric: str, bounds: Sequence[tuple[float, float]]) -> pl.DataFrame:
    columns = (
        pl.Series(f"{metric} {end}", ends) for end, ends in zip(("low", "high"), zip(*bounds, strict=True), strict=True)
    )
    return per_class.with_columns(*columns)


def _percentile_bounds(value: float, resampled: NDArray[np.float64]) -> tuple[float, float]:
    """The interval of a class's metric, around the reported value."""
    values = resampled[~np.isnan(resampled)]
    low, high = np.percentile(values[1:] if len(values) > 1 else values, INTERVAL_PERCENTILES)
    # The bootstrap reads counts at fixed recalls: its own value may differ from the reported one by rounding.
    return min(float(low), value), max(float(high), value)


def _wilson_interval(share: float, count: int) -> tuple[float, float]:
    squared = Z_INTERVAL**2
    middle = (share + squared / (2 * count)) / (1 + squared / count)
    half = Z_INTERVAL * math.sqrt(share * (1 - share) / count + squared / (4 * count**2)) / (1 + squared / count)
    return min(share, middle - half), max(share, middle + half)


# Several claims at once


def correct_significance(differences: pl.DataFrame) -> pl.DataFrame:
    """Correct `significant` of classes and sizes for their number, by Holm's method.

    A class changes significantly if its interval excludes zero and its p-value (normal, with the standard error of the
    interval) is rejected among those of all classes of that precision and metric; sizes likewise.

    Args:
        differences: From `compute_all_differences`.
    """
    if differences.is_empty():
        return differences
    families: dict[tuple[Any, ...], list[int]] = {}
    rows = list(differences.iter_rows(named=True))
    for index, row in enumerate(rows):
        if row["scope"] != "all" and row["low"] is not None:
            families.setdefault((row.get("precision"), row["metric"], row["scope"]), []).append(index)
    significant = [bool(row["significant"]) for row in rows]
    for members in families.values():
        rejected = holm([_p_value(rows[index]) for index in members])
        for index, is_rejected in zip(members, rejected, strict=True):
            low, high = rows[index]["low"], rows[index]["high"]
            significant[index] = is_rejected and (low > ROUNDING_ERROR or high < -ROUNDING_ERROR)
    return differences.with_columns(significant=pl.Series(significant, dtype=pl.Boolean))


def holm(p_values: Sequence[float], level: float = SIGNIFICANCE_LEVEL) -> list[bool]:
    """Which of several hypotheses Holm's step-down method rejects; one false rejection or more has probability `level`.

    Args:
        p_values: Of each hypothesis.
        level: Largest probability of any false rejection.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    rejected = [False] * len(p_values)
    for step, index in enumerate(order):
        if p_values[index] > level / (len(p_values) - step):
            break
        rejected[index] = True
    return rejected


def _p_value(row: Mapping[str, Any]) -> float:
    """Two-sided p-value of no change."""
    error = (row["high"] - row["low"]) / (2 * Z_INTERVAL)
    if error <= ROUNDING_ERROR:
        return 1.0 if abs(row["delta"]) <= ROUNDING_ERROR else 0.0
    return math.erfc(abs(row["delta"]) / error / math.sqrt(2))


# Decisions against a tolerance


@dataclasses.dataclass(frozen=True)
class SampleSize:
    """The number of images that settles an undecided change with 90 % power.

    Attributes:
        images: The number, the present images included.
        is_lower_bound: No fewer settle it; how many do is unknown, as the change is within a standard error of the
            limit.
    """

    images: int
    is_lower_bound: bool

    def __str__(self) -> str:
        return f"not with fewer than {self.images:,} images" if self.is_lower_bound else f"about {self.images:,} images"


def decide_accuracy(low: float | None, high: float | None, max_drop: float, images: int) -> str:
    """Decide whether a metric is kept, by the 95 % confidence interval of its change.

    Args:
        low: Lower end of the interval; None without one.
        high: Upper end.
        max_drop: The largest accepted loss.
        images: Number of evaluated images.

    Returns:
        "kept": the whole interval is above -max_drop; "loses": it is below; "can't tell": it includes -max_drop, there
        is none, or there are fewer than `MIN_IMAGES` images.
    """
    if low is None or high is None or images < MIN_IMAGES:
        return CANNOT_TELL
    if low >= -max_drop - ROUNDING_ERROR:
        return KEPT
    return LOSES if high < -max_drop - ROUNDING_ERROR else CANNOT_TELL


def images_to_settle(
    delta: float, low: float, high: float, max_drop: float, images: int, *, is_share: bool = False
) -> SampleSize:
    """Compute how many images settle an undecided change: n ((1.96 + 1.28) se / gap)^2.

    The standard error `se` is that of the interval, and `gap` lies between the change and -max_drop. If the gap is
    below one standard error its size is not known, and the number for one standard error is a lower bound. The half
    images that the interval of a share adds do not grow with the number of images: their part of `se` falls as 1 / n.

    Args:
        delta: The change of the metric; negative is a loss.
        low: Lower end of its interval.
        high: Upper end.
        max_drop: The largest accepted loss.
        images: Number of evaluated images.
        is_share: Whether the metric is one of `TOP_K`.
    """
    error, gap = (high - low) / (2 * Z_INTERVAL), abs(delta + max_drop)
    added = 1 / (images + 2) if is_share else 0.0
    measured = math.sqrt(max(error**2 - added**2, 0.0))
    distance = max(gap, measured)
    if distance <= ROUNDING_ERROR:
        return SampleSize(max(images + 1, MIN_IMAGES), True)
    # z^2 (measured^2 images / n + added^2 images^2 / n^2) = distance^2, solved for n.
    per_image = ((Z_INTERVAL + Z_POWER) * measured / distance) ** 2
    needed = images * (per_image + math.sqrt(per_image**2 + (2 * (Z_INTERVAL + Z_POWER) * added / distance) ** 2)) / 2
    return SampleSize(max(math.ceil(needed), images + 1, MIN_IMAGES), gap < measured)
