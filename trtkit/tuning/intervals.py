"""How sure a metric is, given that other pictures might have been drawn: a bootstrap over pictures.

Pictures are drawn again with replacement and the metric computed on each draw (B. Efron, "Bootstrap Methods: Another
Look at the Jackknife", 1979); the middle 95 % of the results are the interval. For a loss, both runners are judged on
the same draws, so that what is hard about a picture cancels out and the interval is as narrow as it can honestly be.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trtkit.errors import RecipeError
from trtkit.judgement.bootstrap import average_precisions, curves_of, drawn_copies

if TYPE_CHECKING:
    from trtkit.judgement.evaluation import Evaluation

__all__ = ["DRAWS", "Draws", "Interval", "draws_of", "interval", "interval_of", "loss_interval"]

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
