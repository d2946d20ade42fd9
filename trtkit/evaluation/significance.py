"""Differences that mean something: every change of a metric with the interval that chance alone leaves it in.

A paired bootstrap: both evaluations are judged again on the same resamples of the pictures, so that what a picture owes
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
from trtkit.evaluation.bootstrap import SIZES, at_best_confidence, average_precisions, curves_of, drawn_copies

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtkit.evaluation.evaluation import Evaluation

__all__ = [
    "COLUMNS",
    "DRAWS",
    "RESAMPLES",
    "Draws",
    "Interval",
    "Judged",
    "all_differences",
    "differences",
    "draws_of",
    "interval",
    "interval_of",
    "loss_interval",
]

RESAMPLES = 1000
"""How often the pictures are drawn again."""

INSIDE = (2.5, 97.5)
"""Percentiles of the interval: 95 % of the resamples lie in it."""

COCO_MOST = 100
"""Detections of a class in a picture that pycocotools keeps of boxes and masks."""

COCO_MOST_POSES = 20
"""The same of keypoints."""

COLUMNS = {
    "metric": pl.String,
    "scope": pl.String,
    "name": pl.String,
    "reference": pl.Float64,
    "value": pl.Float64,
    "delta": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "measurable": pl.Boolean,
}


class Judged(Protocol):
    """What `differences` needs of an evaluation."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """By name."""

    @property
    def per_class(self) -> pl.DataFrame:
        """One row a class that has labels."""

    @property
    def per_picture(self) -> pl.DataFrame:
        """One row a picture."""

    @property
    def detections(self) -> pl.DataFrame:
        """One row a detection."""

    @property
    def truths(self) -> pl.DataFrame:
        """One row a label."""


Resampled = dict[tuple[str, str, str], "NDArray[np.float64]"]
"""Metric, scope and name; what the pictures as they are give, then each resample."""


def differences(reference: Judged, other: Judged, *, resamples: int = RESAMPLES, seed: int = 0) -> pl.DataFrame:
    """How every metric changes, and whether more than chance is in it.

    Args:
        reference: An evaluation.
        other: An evaluation on the same pictures.
        resamples: How often the pictures are drawn again.
        seed: Decides what is drawn.

    Returns:
        One row a metric and scope: `metric`; `scope` "all", "class" or "size"; `name` of the class or size; the two
        values (`reference`, `value`), their `delta` (negative is a loss), `low` and `high` ends of its 95 % interval,
        and `measurable`, false where the interval holds zero; no interval where no resample has such labels. Metrics
        by size follow Ultralytics' rule. Intervals of `coco/AP`, `AP50` and `AP75` come from the evaluations' own
        matches by pycocotools' rule, moved onto the reported delta; its other metrics are left out.

    Raises:
        DataError: The two were judged on different pictures.
        RecipeError: There is nothing to draw.
    """
    whole = all_differences({"reference": reference, "other": other}, "reference", resamples=resamples, seed=seed)
    return whole.drop("precision")


def all_differences(
    judged: Mapping[str, Judged], reference: str, *, resamples: int = RESAMPLES, seed: int = 0
) -> pl.DataFrame:
    """`differences` of every evaluation against one of them, each under its name in the column `precision`.

    Args:
        judged: Evaluations on the same pictures by name.
        reference: The name to tell changes against.
        resamples: How often the pictures are drawn again.
        seed: Decides what is drawn.

    Raises:
        DataError: The evaluations were judged on different pictures.
        RecipeError: There is nothing to draw.
    """
    if resamples < 2:
        raise RecipeError(f"draw {resamples} resamples", "an interval needs at least 2", "pass resamples=1000")
    base = judged[reference]
    pictures = base.per_picture["path"]
    if not all(one.per_picture["path"].equals(pictures) for one in judged.values()):
        raise DataError(
            "tell the difference of two evaluations",
            "they were judged on different pictures",
            "judge both on the same split, images and seed",
        )
    copies = drawn_copies(len(pictures), resamples, seed)
    before = _resampled(base, copies)
    rows = []
    for label, one in judged.items():
        after = before if label == reference else _resampled(one, copies)
        for (metric, scope, name), first in before.items():
            second = after.get((metric, scope, name))
            if label == reference or second is None:
                continue
            old = base.metrics.get(metric, first[0]) if scope == "all" else first[0]
            new = one.metrics.get(metric, second[0]) if scope == "all" else second[0]
            row = _row(metric, scope, name, float(old), float(new), second - first)
            rows.append({"precision": label, **row})
    return pl.DataFrame(rows, schema={"precision": pl.String, **COLUMNS})


def _row(metric: str, scope: str, name: str, old: float, new: float, changes: NDArray[np.float64]) -> dict[str, Any]:
    delta = new - old
    drawn = changes[1:][~np.isnan(changes[1:])]
    low: float | None = None
    high: float | None = None
    if len(drawn):
        low, high = (float(end) + delta - float(changes[0]) for end in np.percentile(drawn, INSIDE))
    return {
        "metric": metric, "scope": scope, "name": name, "reference": old, "value": new, "delta": delta,
        "low": low, "high": high, "measurable": low is not None and high is not None and (low > 0 or high < 0),
    }  # fmt: skip


def _resampled(judged: Judged, copies: NDArray[np.float32]) -> Resampled:
    if "rank" in judged.truths.columns:
        return _shares(judged, copies)
    kinds = [name[len("mAP50-95(") : -1] for name in judged.metrics if name.startswith("mAP50-95(")]
    names = dict(judged.per_class.select("class", "name").iter_rows())
    found: Resampled = {}
    for kind in kinds:
        found |= _objects(judged, kind, names, copies)
        tail = "" if kind == "B" else f"({kind})"
        if f"coco/AP{tail}" in judged.metrics:
            found |= _coco(judged, kind, tail, copies)
    return found


def _shares(judged: Judged, copies: NDArray[np.float32]) -> Resampled:
    """top-1 and top-5: shares of the pictures drawn."""
    ranks, classes = judged.truths["rank"].to_numpy(), judged.truths["class"].to_numpy()
    drawn = copies[judged.truths["picture"].to_numpy()].astype(np.float64)
    found: Resampled = {}
    for metric, most in (("top1", 1), ("top5", 5)):
        right = (ranks <= most).astype(np.float64)
        found[metric, "all", ""] = right @ drawn / drawn.sum(0)
        for number, name in judged.per_class.select("class", "name").iter_rows():
            mine = classes == number
            total = drawn[mine].sum(0)
            share = np.divide(right[mine] @ drawn[mine], total, out=np.full(len(total), np.nan), where=total > 0)
            found[metric, "class", name] = share
    return found


def _objects(judged: Judged, kind: str, names: Mapping[int, str], copies: NDArray[np.float32]) -> Resampled:
    """AP by Ultralytics' rule of all, each class and each size, and precision and recall at the best confidence."""
    found: Resampled = {}
    every: list[NDArray[np.float64]] = []
    for number, precisions in _by_class(judged, kind, copies):
        every.append(precisions)
        found[f"mAP50-95({kind})", "class", names[number]] = precisions.mean(0)
        found[f"mAP50({kind})", "class", names[number]] = precisions[0]
    whole = np.stack(every)
    found[f"mAP50-95({kind})", "all", ""] = _mean(whole.mean(1))
    found[f"mAP50({kind})", "all", ""] = _mean(whole[:, 0])
    for size in SIZES:
        part = [precisions.mean(0) for _, precisions in _by_class(judged, kind, copies, size=size)]
        if part:
            found[f"mAP50-95({kind})", "size", size] = _mean(np.stack(part))
    precision, recall = at_best_confidence(judged.detections, judged.truths, kind, copies)
    found[f"precision({kind})", "all", ""], found[f"recall({kind})", "all", ""] = precision, recall
    return found


def _coco(judged: Judged, kind: str, tail: str, copies: NDArray[np.float32]) -> Resampled:
    """AP by pycocotools' rule."""
    most = COCO_MOST_POSES if kind == "P" else COCO_MOST
    whole = np.stack([one for _, one in _by_class(judged, kind, copies, most=most, coco=True)])
    found: Resampled = {
        (f"coco/AP{tail}", "all", ""): _mean(whole.mean(1)),
        (f"coco/AP50{tail}", "all", ""): _mean(whole[:, 0]),
        (f"coco/AP75{tail}", "all", ""): _mean(whole[:, 5]),
    }
    return found


def _by_class(
    judged: Judged,
    kind: str,
    copies: NDArray[np.float32],
    *,
    size: str = "",
    most: int | None = None,
    coco: bool = False,
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Average precisions of each class, (10, resamples)."""
    for number, curve in curves_of(judged.detections, judged.truths, kind, len(copies), size=size, most=most):
        yield number, average_precisions(curve, copies, coco=coco)


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over the classes that a resample has labels of."""
    there = ~np.isnan(values)
    means: NDArray[np.float64] = np.nansum(values, 0) / np.maximum(there.sum(0), 1)
    return means


# How sure a metric is, given that other pictures might have been drawn: a bootstrap over pictures.
#
# Pictures are drawn again with replacement and the metric computed on each draw (B. Efron, "Bootstrap Methods: Another
# Look at the Jackknife", 1979); the middle 95 % of the results are the interval. For a loss, both runners are judged on
# the same draws, so that what is hard about a picture cancels out and the interval is as narrow as it can honestly be.


DRAWS = 500

_AVERAGE = re.compile(r"mAP50(-95)?\((\w)\)")
_SHARE = re.compile(r"top(1|5)")


@dataclasses.dataclass(frozen=True)
class Interval:
    """A number and how far other pictures would have moved it.

    Attributes:
        value: On the pictures that were judged.
        low: The 2.5th percentile over the draws.
        high: The 97.5th.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Draws:
    """A metric over the same draws of pictures.

    Attributes:
        value: On all pictures, each once.
        values: On each draw, shape (draws,).
    """

    value: float
    values: NDArray[np.float64]


def interval(evaluation: Evaluation, metric: str, *, draws: int = DRAWS, seed: int = 0) -> Interval:
    """A metric with its interval.

    Args:
        evaluation: From `evaluate`.
        metric: One of Ultralytics' rule: "mAP50-95(B)", "mAP50(M)", "top1", ...
        draws: How often pictures are drawn anew.
        seed: Of the draws.

    Raises:
        RecipeError: The metric can't be drawn again.
    """
    return interval_of(draws_of(evaluation, metric, draws=draws, seed=seed))


def loss_interval(reference: Draws, other: Draws) -> Interval:
    """What `other` loses against `reference`, both over the same draws of the same pictures."""
    return interval_of(Draws(value=reference.value - other.value, values=reference.values - other.values))


def interval_of(drawn: Draws) -> Interval:
    """The middle 95 % of what was drawn."""
    low, high = np.percentile(drawn.values, [2.5, 97.5])
    return Interval(drawn.value, float(low), float(high))


def draws_of(evaluation: Evaluation, metric: str, *, draws: int = DRAWS, seed: int = 0) -> Draws:
    """A metric over draws of the evaluation's pictures; the same seed draws the same ones for every runner.

    Raises:
        RecipeError: The metric can't be drawn again.
    """
    # Each column says how often each picture was drawn; the first takes every picture once.
    copies = drawn_copies(len(evaluation.per_picture), draws, seed)
    average, share = _AVERAGE.fullmatch(metric), _SHARE.fullmatch(metric)
    if average is not None and f"matched({average[2]})" in evaluation.detections.columns:
        values = _mean_average_precision(evaluation, copies, kind=average[2], whole=bool(average[1]))
    elif share is not None and "rank" in evaluation.truths.columns:
        right = (evaluation.truths["rank"].to_numpy() <= int(share[1])).astype(np.float64)
        drawn = copies[evaluation.truths["picture"].to_numpy()].astype(np.float64)
        values = right @ drawn / drawn.sum(axis=0)
    else:
        raise RecipeError(
            f"draw an interval for {metric!r} of {evaluation.task}",
            "only mAP by Ultralytics' rule, and top1 and top5 of classify, can be drawn again",
            "use e.g. 'mAP50-95(B)'",
        )
    return Draws(value=float(values[0]), values=values[1:])


def _mean_average_precision(
    evaluation: Evaluation, copies: NDArray[np.float32], *, kind: str, whole: bool
) -> NDArray[np.float64]:
    """Mean average precision by Ultralytics' rule over the classes that a draw has labels of, (1 + draws,)."""
    total, present = np.zeros(copies.shape[1]), np.zeros(copies.shape[1])
    for _, curve in curves_of(evaluation.detections, evaluation.truths, kind, len(copies)):
        found = average_precisions(curve, copies)
        found = found.mean(axis=0) if whole else found[0]
        there = ~np.isnan(found)
        present += there
        total += np.where(there, found, 0.0)
    return total / np.maximum(present, 1)
