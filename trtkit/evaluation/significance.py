"""Confidence intervals and significance of differences between evaluations.

A paired bootstrap: all evaluations are recomputed on the same resamples of the images, so that the difficulty of an
image cancels in the difference (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from trtkit.arguments import check_argument
from trtkit.errors import DataError
from trtkit.evaluation.bootstrap import EvaluationLike, ResampledMetric, draw_resamples, resample_metrics

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "DIFFERENCE_COLUMNS",
    "RESAMPLES",
    "ROUNDING_ERROR",
    "TUNING_RESAMPLES",
    "ConfidenceInterval",
    "compute_all_differences",
    "compute_differences",
    "compute_interval",
    "compute_loss_interval",
]

RESAMPLES = 1000
"""Bootstrap resamples of a comparison."""

TUNING_RESAMPLES = 500
"""Bootstrap resamples of each trial in sweep, search and tuner."""

ROUNDING_ERROR = 1e-12
"""Metrics lie in 0..1, so that a difference this small comes from float arithmetic alone."""

INTERVAL_PERCENTILES = (2.5, 97.5)
"""Percentiles of the 95 % confidence interval."""

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
        resample has such labels), and `significant`: the interval excludes zero. Metrics by size follow Ultralytics'
        rule. Intervals of `pycocotools/AP`, `AP50` and `AP75` come from the evaluations' own matches by pycocotools'
        rule, shifted to the reported delta; its other metrics are left out.

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
            rows.append({"precision": label, **row})
    return pl.DataFrame(rows, schema={"precision": pl.String, **DIFFERENCE_COLUMNS})


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
