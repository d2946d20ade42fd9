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

if TYPE_CHECKING:
    from trtkit.judgement.evaluation import Evaluation

__all__ = ["DRAWS", "Draws", "Interval", "draws_of", "interval", "interval_of", "loss_interval"]

DRAWS = 500

_AVERAGE = re.compile(r"mAP50(-95)?\((\w)\)")


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
    count = len(evaluation.per_picture)
    random = np.random.default_rng(seed)
    # Each row says how often each picture was drawn; the first takes every picture once.
    weights = np.concatenate([np.ones((1, count)), random.multinomial(count, np.full(count, 1 / count), size=draws)])
    found = _AVERAGE.fullmatch(metric)
    if found is not None:
        values = _mean_average_precision(evaluation, weights, kind=found[2], whole=bool(found[1]))
    elif metric in evaluation.per_picture.columns:
        per_picture = evaluation.per_picture[metric].to_numpy().astype(np.float64)
        values = weights @ per_picture / count
    else:
        raise RecipeError(
            f"draw an interval for {metric!r}",
            "only averages over pictures and mAP by Ultralytics' rule can be drawn again",
            "use e.g. 'mAP50-95(B)'",
        )
    return Draws(value=float(values[0]), values=values[1:])


def _mean_average_precision(
    evaluation: Evaluation, weights: NDArray[np.float64], *, kind: str, whole: bool
) -> NDArray[np.float64]:
    """Mean average precision by Ultralytics' rule, with each picture counted as often as it was drawn."""
    from trtkit.judgement.precision_recall import matched_at

    detections, truths = evaluation.detections, evaluation.truths
    matched = matched_at(detections[f"matched({kind})"].to_numpy())
    matched = matched if whole else matched[:, :1]
    order = np.argsort(-detections["score"].to_numpy(), kind="stable")
    matched = matched[order]
    pictures, classes = (detections[name].to_numpy()[order] for name in ("picture", "class"))
    label_classes, label_pictures = truths["class"].to_numpy(), truths["picture"].to_numpy()
    total, present = np.zeros(len(weights)), np.zeros(len(weights))
    for number in np.unique(label_classes):
        labels = np.bincount(label_pictures[label_classes == number], minlength=weights.shape[1])
        mine = classes == number
        right, own = matched[mine], pictures[mine]
        # Behind the last match no detection changes the envelope.
        last = np.flatnonzero(right.any(axis=1))
        end = int(last[-1]) + 1 if len(last) else 0
        right, own = right[:end], own[:end]
        for place, weight in enumerate(weights):
            instances = float(labels @ weight)
            if not instances:
                continue
            present[place] += 1
            if end:
                total[place] += _average(right, weight[own], instances)
    return total / np.maximum(present, 1)


def _average(right: NDArray[np.bool_], weight: NDArray[np.float64], instances: float) -> float:
    """Average precision of one class over all thresholds; see `judgement.precision_recall.average_precision`."""
    from trtkit.judgement.precision_recall import average_precision

    drawn = weight > 0
    weight, right = weight[drawn], right[drawn]
    if not len(weight):
        return 0.0
    hits = np.cumsum(right * weight[:, None], axis=0)
    precision = hits / np.cumsum(weight)[:, None]
    recall = hits / instances
    return float(np.mean([average_precision(recall[:, t], precision[:, t]) for t in range(right.shape[1])]))
