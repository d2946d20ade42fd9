"""Differences that mean something: every change of a metric with the interval that chance alone leaves it in.

A paired bootstrap: both evaluations are judged again on the same resamples of the images, so that what an image owes
to being hard falls out of the difference (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from trtkit.errors import DataError, RecipeError
from trtkit.evaluation.bootstrap import (
    OBJECT_SIZES,
    build_class_curves,
    draw_resamples,
    resample_average_precision,
    resample_precision_recall,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtkit.evaluation.evaluation import Evaluation

__all__ = [
    "DIFFERENCE_COLUMNS",
    "RESAMPLES",
    "TUNING_RESAMPLES",
    "ConfidenceInterval",
    "EvaluationLike",
    "ResampledMetric",
    "compute_all_differences",
    "compute_differences",
    "compute_interval",
    "compute_loss_interval",
    "metric_interval",
    "resample_metric",
]

RESAMPLES = 1000
"""How often the images are drawn again."""

INTERVAL_PERCENTILES = (2.5, 97.5)
"""Percentiles of the interval: 95 % of the resamples lie in it."""

PYCOCOTOOLS_MAX_DET = 100
"""Detections of a class in an image that pycocotools keeps of boxes and masks."""

PYCOCOTOOLS_MAX_DET_KEYPOINTS = 20
"""The same of keypoints."""

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


class EvaluationLike(Protocol):
    """What `compute_differences` needs of an evaluation."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """By name."""

    @property
    def per_class(self) -> pl.DataFrame:
        """One row a class that has labels."""

    @property
    def per_image(self) -> pl.DataFrame:
        """One row an image."""

    @property
    def detections(self) -> pl.DataFrame:
        """One row a detection."""

    @property
    def labels(self) -> pl.DataFrame:
        """One row a label."""


ResampledMetrics = dict[tuple[str, str, str], "NDArray[np.float64]"]
"""Metric, scope and name; what the images as they are give, then each resample."""


def compute_differences(
    reference: EvaluationLike, other: EvaluationLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> pl.DataFrame:
    """How every metric changes, and whether more than chance is in it.

    Args:
        reference: An evaluation.
        other: An evaluation on the same images.
        resamples: How often the images are drawn again.
        seed: Decides what is drawn.

    Returns:
        One row a metric and scope: `metric`; `scope` "all", "class" or "size"; `name` of the class or size; the two
        values (`reference`, `value`), their `delta` (negative is a loss), `low` and `high` ends of its 95 % interval,
        and `measurable`, false where the interval holds zero; no interval where no resample has such labels. Metrics
        by size follow Ultralytics' rule. Intervals of `pycocotools/AP`, `AP50` and `AP75` come from the evaluations' own
        matches by pycocotools' rule, moved onto the reported delta; its other metrics are left out.

    Raises:
        DataError: The two were judged on different images.
        RecipeError: There is nothing to draw.
    """
    whole = compute_all_differences(
        {"reference": reference, "other": other}, "reference", resamples=resamples, seed=seed
    )
    return whole.drop("precision")


def compute_all_differences(
    evaluations: Mapping[str, EvaluationLike], reference: str, *, resamples: int = RESAMPLES, seed: int = 0
) -> pl.DataFrame:
    """`compute_differences` of every evaluation against one of them, each under its name in the column `precision`.

    Args:
        evaluations: Evaluations on the same images by name.
        reference: The name to tell changes against.
        resamples: How often the images are drawn again.
        seed: Decides what is drawn.

    Raises:
        DataError: The evaluations were judged on different images.
        RecipeError: There is nothing to draw.
    """
    if resamples < 2:
        raise RecipeError(f"draw {resamples} resamples", "an interval needs at least 2", "pass resamples=1000")
    base = evaluations[reference]
    images = base.per_image["path"]
    if not all(one.per_image["path"].equals(images) for one in evaluations.values()):
        raise DataError(
            "tell the difference of two evaluations",
            "they were judged on different images",
            "judge both on the same split, images and seed",
        )
    copies = draw_resamples(len(images), resamples, seed)
    before = _resample_metrics(base, copies)
    rows = []
    for label, one in evaluations.items():
        after = before if label == reference else _resample_metrics(one, copies)
        for (metric, scope, name), first in before.items():
            second = after.get((metric, scope, name))
            if label == reference or second is None:
                continue
            old = base.metrics.get(metric, first[0]) if scope == "all" else first[0]
            new = one.metrics.get(metric, second[0]) if scope == "all" else second[0]
            row = _difference_row(metric, scope, name, float(old), float(new), second - first)
            rows.append({"precision": label, **row})
    return pl.DataFrame(rows, schema={"precision": pl.String, **DIFFERENCE_COLUMNS})


def _difference_row(
    metric: str, scope: str, name: str, old: float, new: float, changes: NDArray[np.float64]
) -> dict[str, Any]:
    delta = new - old
    drawn = changes[1:][~np.isnan(changes[1:])]
    low: float | None = None
    high: float | None = None
    if len(drawn):
        low, high = (float(end) + delta - float(changes[0]) for end in np.percentile(drawn, INTERVAL_PERCENTILES))
    return {
        "metric": metric, "scope": scope, "name": name, "reference": old, "value": new, "delta": delta,
        "low": low, "high": high, "significant": low is not None and high is not None and (low > 0 or high < 0),
    }  # fmt: skip


def _resample_metrics(judged: EvaluationLike, copies: NDArray[np.float32]) -> ResampledMetrics:
    if "rank" in judged.labels.columns:
        return _resample_topk(judged, copies)
    kinds = [name[len("mAP50-95(") : -1] for name in judged.metrics if name.startswith("mAP50-95(")]
    names = dict(judged.per_class.select("class", "name").iter_rows())
    found: ResampledMetrics = {}
    for kind in kinds:
        found |= _resample_objects(judged, kind, names, copies)
        tail = "" if kind == "B" else f"({kind})"
        if f"pycocotools/AP{tail}" in judged.metrics:
            found |= _resample_pycocotools(judged, kind, tail, copies)
    return found


def _resample_topk(judged: EvaluationLike, copies: NDArray[np.float32]) -> ResampledMetrics:
    """top-1 and top-5: shares of the images drawn."""
    ranks, classes = judged.labels["rank"].to_numpy(), judged.labels["class"].to_numpy()
    drawn = copies[judged.labels["image"].to_numpy()].astype(np.float64)
    found: ResampledMetrics = {}
    for metric, most in (("top1", 1), ("top5", 5)):
        right = (ranks <= most).astype(np.float64)
        found[metric, "all", ""] = right @ drawn / drawn.sum(0)
        for number, name in judged.per_class.select("class", "name").iter_rows():
            mine = classes == number
            total = drawn[mine].sum(0)
            share = np.divide(right[mine] @ drawn[mine], total, out=np.full(len(total), np.nan), where=total > 0)
            found[metric, "class", name] = share
    return found


def _resample_objects(
    judged: EvaluationLike, kind: str, names: Mapping[int, str], copies: NDArray[np.float32]
) -> ResampledMetrics:
    """AP by Ultralytics' rule of all, each class and each size, and precision and recall at the best confidence."""
    found: ResampledMetrics = {}
    every: list[NDArray[np.float64]] = []
    for number, precisions in _class_average_precisions(judged, kind, copies):
        every.append(precisions)
        found[f"mAP50-95({kind})", "class", names[number]] = precisions.mean(0)
        found[f"mAP50({kind})", "class", names[number]] = precisions[0]
    whole = np.stack(every)
    found[f"mAP50-95({kind})", "all", ""] = _mean_over_classes(whole.mean(1))
    found[f"mAP50({kind})", "all", ""] = _mean_over_classes(whole[:, 0])
    for size in OBJECT_SIZES:
        part = [precisions.mean(0) for _, precisions in _class_average_precisions(judged, kind, copies, size=size)]
        if part:
            found[f"mAP50-95({kind})", "size", size] = _mean_over_classes(np.stack(part))
    precision, recall = resample_precision_recall(judged.detections, judged.labels, kind, copies)
    found[f"precision({kind})", "all", ""], found[f"recall({kind})", "all", ""] = precision, recall
    return found


def _resample_pycocotools(
    judged: EvaluationLike, kind: str, tail: str, copies: NDArray[np.float32]
) -> ResampledMetrics:
    """AP by pycocotools' rule."""
    most = PYCOCOTOOLS_MAX_DET_KEYPOINTS if kind == "P" else PYCOCOTOOLS_MAX_DET
    whole = np.stack([one for _, one in _class_average_precisions(judged, kind, copies, most=most, coco=True)])
    found: ResampledMetrics = {
        (f"pycocotools/AP{tail}", "all", ""): _mean_over_classes(whole.mean(1)),
        (f"pycocotools/AP50{tail}", "all", ""): _mean_over_classes(whole[:, 0]),
        (f"pycocotools/AP75{tail}", "all", ""): _mean_over_classes(whole[:, 5]),
    }
    return found


def _class_average_precisions(
    judged: EvaluationLike,
    kind: str,
    copies: NDArray[np.float32],
    *,
    size: str = "",
    most: int | None = None,
    coco: bool = False,
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Average precisions of each class, (10, resamples)."""
    for number, curve in build_class_curves(
        judged.detections, judged.labels, kind, len(copies), size=size, max_det=most
    ):
        yield number, resample_average_precision(curve, copies, pycocotools=coco)


def _mean_over_classes(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over the classes that a resample has labels of."""
    there = ~np.isnan(values)
    means: NDArray[np.float64] = np.nansum(values, 0) / np.maximum(there.sum(0), 1)
    return means


# How sure a metric is, given that other images might have been drawn: a bootstrap over images.
#
# Images are drawn again with replacement and the metric computed on each draw (B. Efron, "Bootstrap Methods: Another
# Look at the Jackknife", 1979); the middle 95 % of the results are the interval. For a loss, both runners are judged on
# the same draws, so that what is hard about an image cancels out and the interval is as narrow as it can honestly be.


TUNING_RESAMPLES = 500

_AVERAGE = re.compile(r"mAP50(-95)?\((\w)\)")
_SHARE = re.compile(r"top(1|5)")


@dataclasses.dataclass(frozen=True)
class ConfidenceInterval:
    """A number and how far other images would have moved it.

    Attributes:
        value: On the images that were judged.
        low: The 2.5th percentile over the draws.
        high: The 97.5th.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ResampledMetric:
    """A metric over the same draws of images.

    Attributes:
        value: On all images, each once.
        values: On each draw, shape (draws,).
    """

    value: float
    values: NDArray[np.float64]


def metric_interval(
    evaluation: Evaluation, metric: str, *, resamples: int = TUNING_RESAMPLES, seed: int = 0
) -> ConfidenceInterval:
    """A metric with its interval.

    Args:
        evaluation: From `evaluate`.
        metric: One of Ultralytics' rule: "mAP50-95(B)", "mAP50(M)", "top1", ...
        resamples: How often images are drawn anew.
        seed: Of the draws.

    Raises:
        RecipeError: The metric can't be drawn again.
    """
    return compute_interval(resample_metric(evaluation, metric, resamples=resamples, seed=seed))


def compute_loss_interval(reference: ResampledMetric, other: ResampledMetric) -> ConfidenceInterval:
    """What `other` loses against `reference`, both over the same draws of the same images."""
    return compute_interval(
        ResampledMetric(value=reference.value - other.value, values=reference.values - other.values)
    )


def compute_interval(resampled: ResampledMetric) -> ConfidenceInterval:
    """The middle 95 % of what was drawn."""
    low, high = np.percentile(resampled.values, [2.5, 97.5])
    return ConfidenceInterval(resampled.value, float(low), float(high))


def resample_metric(
    evaluation: Evaluation, metric: str, *, resamples: int = TUNING_RESAMPLES, seed: int = 0
) -> ResampledMetric:
    """A metric over draws of the evaluation's images; the same seed draws the same ones for every runner.

    Raises:
        RecipeError: The metric can't be drawn again.
    """
    # Each column says how often each image was drawn; the first takes every image once.
    copies = draw_resamples(len(evaluation.per_image), resamples, seed)
    average, share = _AVERAGE.fullmatch(metric), _SHARE.fullmatch(metric)
    if average is not None and f"matched({average[2]})" in evaluation.detections.columns:
        values = _mean_average_precision(evaluation, copies, kind=average[2], whole=bool(average[1]))
    elif share is not None and "rank" in evaluation.labels.columns:
        right = (evaluation.labels["rank"].to_numpy() <= int(share[1])).astype(np.float64)
        drawn = copies[evaluation.labels["image"].to_numpy()].astype(np.float64)
        values = right @ drawn / drawn.sum(axis=0)
    else:
        raise RecipeError(
            f"draw an interval for {metric!r} of {evaluation.task}",
            "only mAP by Ultralytics' rule, and top1 and top5 of classify, can be drawn again",
            "use e.g. 'mAP50-95(B)'",
        )
    return ResampledMetric(value=float(values[0]), values=values[1:])


def _mean_average_precision(
    evaluation: Evaluation, copies: NDArray[np.float32], *, kind: str, whole: bool
) -> NDArray[np.float64]:
    """Mean average precision by Ultralytics' rule over the classes that a draw has labels of, (1 + draws,)."""
    total, present = np.zeros(copies.shape[1]), np.zeros(copies.shape[1])
    for _, curve in build_class_curves(evaluation.detections, evaluation.labels, kind, len(copies)):
        found = resample_average_precision(curve, copies)
        found = found.mean(axis=0) if whole else found[0]
        there = ~np.isnan(found)
        present += there
        total += np.where(there, found, 0.0)
    return total / np.maximum(present, 1)
