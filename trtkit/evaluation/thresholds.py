"""Confidence thresholds that give one precision the precision or recall that another has at the user's threshold.

INT8 moves confidences: at one threshold a model in INT8 and one in FP16 detect different numbers of objects, also where
their mAP, which looks at the order of confidences alone, is the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from trtkit.evaluation.bootstrap import EvaluationLike, draw_resamples
from trtkit.evaluation.significance import ROUNDING_ERROR, holm

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MIN_LABELS", "THRESHOLD_COLUMNS", "match_thresholds", "threshold_facts"]

RESAMPLES = 200
"""Bootstrap resamples of a threshold."""

MIN_LABELS = 20
"""Labels below which a class gets no threshold of its own."""

LOWEST_SHARE = 0.2
"""Share of the user's threshold below which no threshold is looked for."""

THRESHOLD_COLUMNS = {
    "target": pl.String,
    "name": pl.String,
    "labels": pl.Int64,
    "reference": pl.Float64,
    "value": pl.Float64,
    "threshold": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "differs": pl.Boolean,
}


def match_thresholds(
    reference: EvaluationLike, other: EvaluationLike, *, conf: float, kind: str = "B", seed: int = 0
) -> pl.DataFrame:
    """Find the confidence thresholds at which one evaluation has the precision and recall of another.

    Args:
        reference: The evaluation whose precision and recall at `conf` are wanted.
        other: An evaluation of the same images.
        conf: The user's confidence threshold.
        kind: What objects are matched by, at a similarity of 0.5: "B", "M", "P" or "R".
        seed: Seed of the resamples.

    Returns:
        One row per target and class, of all classes first: `target` ("recall" or "precision"), `name` of the class (""
        for all), `labels`, the `reference`'s value at `conf`, the other's `value` there, the `threshold` that gives
        the other the reference's value (null if none does), its 95 % interval `low` to `high` (bootstrap over images,
        null with fewer than `MIN_LABELS` labels), and `differs`: the threshold differs significantly from `conf`, for
        a class after Holm's correction for their number. No rows for tasks without boxes.
    """
    column = f"matched({kind})"
    if column not in reference.detections.columns or column not in other.detections.columns:
        return pl.DataFrame(schema=THRESHOLD_COLUMNS)
    copies = draw_resamples(len(reference.per_image), RESAMPLES, seed)
    names = dict(reference.per_class.select("class", "name").iter_rows())
    rows: list[dict[str, Any]] = []
    for number in (None, *names):
        first, second = (_Curve(one, column, number, copies, conf) for one in (reference, other))
        if first.labels:
            name = "" if number is None else str(names[number])
            rows += _match(first, second, conf, name)
    for target in ("recall", "precision"):
        members = [row for row in rows if row["target"] == target and row["name"]]
        for row, is_rejected in zip(members, holm([row["p"] for row in members]), strict=True):
            row["differs"] = is_rejected
    ordered = [row for target in ("recall", "precision") for row in rows if row["target"] == target]
    return pl.DataFrame([{name: row[name] for name in THRESHOLD_COLUMNS} for row in ordered], schema=THRESHOLD_COLUMNS)


class _Curve:
    """Matches and detections of a class above each score, on the images and on their resamples."""

    def __init__(
        self, evaluation: EvaluationLike, column: str, number: int | None, copies: NDArray[np.float32], conf: float
    ) -> None:
        detections, labels = evaluation.detections, evaluation.labels
        if number is not None:
            detections, labels = detections.filter(pl.col("class") == number), labels.filter(pl.col("class") == number)
        detections = detections.filter(pl.col("score") >= LOWEST_SHARE * conf).sort("score", descending=True)
        self.labels = len(labels)
        self.scores = detections["score"].to_numpy().astype(np.float64)
        weights = copies[detections["image"].to_numpy()]
        matched = (detections[column].to_numpy() & 1) == 1
        self.detections = weights.cumsum(0, dtype=np.float64)
        self.matches = (weights * matched[:, None]).cumsum(0, dtype=np.float64)

    def at(self, conf: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Matches and detections at a threshold, shape (1 + resamples,)."""
        count = int((self.scores >= conf).sum())
        if not count:
            zeros = np.zeros(self.matches.shape[1])
            return zeros, zeros
        return self.matches[count - 1], self.detections[count - 1]

    def nearest(
        self,
        values: NDArray[np.float64],
        wanted: NDArray[np.float64],
        own: NDArray[np.float64],
        conf: float,
        *,
        rises: bool,
    ) -> NDArray[np.float64]:
        """The threshold nearest to `conf` at which a value is reached, NaN where none is.

        Args:
            values: The value with all detections up to each, shape (n, 1 + resamples).
            wanted: The value to reach, shape (1 + resamples,).
            own: The value at `conf`.
            conf: The user's threshold.
            rises: Whether the value rises with each detection, as recall does.
        """
        count, rows = int((self.scores >= conf).sum()), np.arange(values.shape[1])
        nearest = np.full(len(rows), np.nan)
        if len(values):
            reached = values >= wanted - ROUNDING_ERROR
            if rises:
                index, found = reached.argmax(0), reached.any(0)
            else:
                # From conf down until it would fall short, or up until it is reached.
                below = np.concatenate([~reached[count:], np.ones((1, len(rows)), np.bool_)]).argmax(0) + count - 1
                above = count - 1 - reached[:count][::-1].argmax(0) if count else np.zeros(len(rows), int)
                index = np.where(own > wanted, below, above)
                found = (index >= 0) & np.where(own > wanted, True, reached[:count].any(0))
            # Between the last detection above conf and the next one lies conf itself.
            nearest[found] = np.where(index == count - 1, conf, self.scores[np.clip(index, 0, None)])[found]
        nearest[np.abs(own - wanted) <= ROUNDING_ERROR] = conf
        nearest[wanted <= 0] = np.nan
        return nearest


def _match(first: _Curve, second: _Curve, conf: float, name: str) -> Iterator[dict[str, Any]]:
    matches, detections = first.at(conf)
    own_matches, own_detections = second.at(conf)
    for target, values, wanted, own, total in (
        ("recall", second.matches, matches, own_matches, first.labels),
        (
            "precision",
            _divide(second.matches, second.detections),
            _divide(matches, detections),
            _divide(own_matches, own_detections),
            1,
        ),
    ):
        thresholds = second.nearest(values, wanted, own, conf, rises=target == "recall")
        row: dict[str, Any] = {
            "target": target, "name": name, "labels": first.labels, "reference": float(wanted[0]) / total,
            "value": float(own[0]) / total, "threshold": None, "low": None, "high": None, "differs": False, "p": 1.0,
        }  # fmt: skip
        resampled = thresholds[1:][~np.isnan(thresholds[1:])]
        if not np.isnan(thresholds[0]):
            row["threshold"] = float(thresholds[0])
            if first.labels >= MIN_LABELS and len(resampled) > RESAMPLES // 2:
                row |= _interval(thresholds[0], resampled, conf)
        yield row


def _interval(threshold: float, resampled: NDArray[np.float64], conf: float) -> dict[str, Any]:
    """The interval of a threshold, whether it excludes `conf`, and the p-value of no difference."""
    low, high = (float(end) for end in np.percentile(resampled, (2.5, 97.5)))
    error, excludes = float(resampled.std()), low > conf or high < conf
    p = 1.0
    if excludes:
        p = math.erfc(abs(threshold - conf) / error / math.sqrt(2)) if error > ROUNDING_ERROR else 0.0
    return {"low": low, "high": high, "differs": excludes, "p": p}


def _divide(matches: NDArray[np.float64], detections: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(matches, detections, out=np.zeros_like(matches, dtype=np.float64), where=detections > 0)


def threshold_facts(rows: pl.DataFrame, *, reference: str, conf: float, eval_images: int) -> dict[str, Any]:
    """Thresholds for the metadata of a model file: of all classes, and of the classes that differ.

    Args:
        rows: From `match_thresholds`.
        reference: The precision whose precision and recall they give.
        conf: The user's threshold.
        eval_images: Number of evaluated images.

    Returns:
        JSON-ready: `reference`, `conf`, `eval_images`, and by target `all` (null if no threshold reaches it) and
        `classes` by name.
    """
    facts: dict[str, Any] = {"reference": reference, "conf": conf, "eval_images": eval_images}
    for target in ("recall", "precision"):
        mine = rows.filter(pl.col("target") == target)
        of_all = mine.filter(pl.col("name") == "")["threshold"].to_list()
        classes = mine.filter((pl.col("name") != "") & pl.col("differs")).select("name", "threshold")
        facts[target] = {
            "all": round(of_all[0], 4) if of_all and of_all[0] is not None else None,
            "classes": {name: round(value, 4) for name, value in classes.iter_rows()},
        }
    return facts
