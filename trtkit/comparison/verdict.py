"""Verdict on a precision: ship, don't ship or can't tell, from its accuracy against a tolerance and its latency."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from trtkit.evaluation.rounds import compare_latencies
from trtkit.evaluation.significance import (
    CANNOT_TELL,
    KEPT,
    LOSES,
    MIN_IMAGES,
    TOP_K,
    decide_accuracy,
    images_to_settle,
)
from trtkit.inspection import Cause, SpeedDiagnosis, diagnose_speed, read_layers
from trtkit.recipe import format_label

if TYPE_CHECKING:
    from trtkit.comparison.comparison import Comparison

__all__ = [
    "DONT_SHIP",
    "EXIT_STATUS",
    "FASTER",
    "MAX_DROP",
    "NOT_FASTER",
    "NOT_MEASURED",
    "SHIP",
    "BatchLatency",
    "ChangedGroup",
    "MetricChange",
    "Verdict",
    "choose_baseline",
    "decide_verdicts",
    "decisive_metrics",
    "diagnose_precision",
    "explain_unmeasured",
    "format_ms",
]

MAX_DROP = 0.005
"""The largest accepted loss of a metric, unless another is named."""

SHIP, DONT_SHIP = "ship", "don't ship"
"""Recommendations, beside `CANNOT_TELL`."""

FASTER, NOT_FASTER, NOT_MEASURED = "faster", "not faster", "not measured"
"""Values of `Verdict.speed`."""

EXIT_STATUS: Mapping[str, int] = {SHIP: 0, DONT_SHIP: 1, CANNOT_TELL: 3}
"""Exit status of `trtkit compare --gate` by recommendation; 2 is an error."""

MIN_GAIN = 0.02
"""Share of the latency that a faster precision must save: two builds of one graph differ by about as much."""

LISTED_GROUPS = 3
"""Largest number of classes and sizes named in a sentence."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricChange:
    """The change of one metric against the reference.

    Attributes:
        metric: Its column, such as "mAP50-95(B)".
        name: Its readable name.
        reference: The reference's value.
        value: This precision's value.
        delta: Their difference; negative is a loss.
        low: Lower end of the 95 % confidence interval of `delta`; None without one.
        high: Upper end.
        accuracy: "kept", "loses" or "can't tell".
        images_needed: For "can't tell", the number of images that settles it with 90 % power; None without an interval.
        is_lower_bound: Whether that number is only the least that can settle it.
    """

    metric: str
    name: str
    reference: float
    value: float
    delta: float
    low: float | None
    high: float | None
    accuracy: str
    images_needed: int | None = None
    is_lower_bound: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchLatency:
    """Median latency at one batch size against the baseline.

    Attributes:
        batch: Images per run.
        p50_ms: Median latency of a run, ms.
        baseline_p50_ms: That of the baseline.
        ratio: Their ratio; below 1 is faster.
        low: Lower end of the 95 % confidence interval of the ratio (bootstrap over runs).
        high: Upper end.
        faster: Whether the interval is below 1 and at least `MIN_GAIN` is saved.
    """

    batch: int
    p50_ms: float
    baseline_p50_ms: float
    ratio: float
    low: float
    high: float
    faster: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChangedGroup:
    """A class or an object size that loses significantly, after Holm's correction for their number.

    Attributes:
        scope: "class" or "size".
        name: The class, or "small", "medium" or "large".
        metric: The metric.
        delta: Its change; negative is a loss.
        low: Lower end of the 95 % confidence interval, which is not widened by the correction.
        high: Upper end.
    """

    scope: str
    name: str
    metric: str
    delta: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What to do with one precision, and why.

    Attributes:
        precision: The precision, or a candidate's name.
        recommendation: "ship", "don't ship" or "can't tell".
        reason: Why, in one line.
        accuracy: "kept" (of each metric the whole 95 % confidence interval is above -max_drop), "loses" (of one metric
            it is below) or "can't tell".
        speed: "faster" (at one measured batch at least), "not faster" or "not measured".
        speed_text: The speed in words, such as "faster than FP16" or "not measured: no GPU here".
        baseline: The precision that `speed` refers to: FP16, or the reference for FP16 itself.
        reference: The precision that `accuracy` refers to.
        max_drop: The largest accepted loss.
        eval_images: Number of evaluated images.
        metrics: The decisive metrics: boxes, and masks or keypoints of tasks that have them; all must be kept.
        latencies: By batch; () if engines did not run.
        losing: Classes and object sizes that lose significantly, the largest loss first.
        causes: Why the precision is not faster, the costliest first; () if it is, or if layers were not timed.
    """

    precision: str
    recommendation: str
    reason: str
    accuracy: str
    speed: str
    speed_text: str
    baseline: str
    reference: str
    max_drop: float
    eval_images: int
    metrics: tuple[MetricChange, ...]
    latencies: tuple[BatchLatency, ...] = ()
    losing: tuple[ChangedGroup, ...] = ()
    causes: tuple[Cause, ...] = ()

    @property
    def label(self) -> str:
        """The precision as shown."""
        return format_label(self.precision)

    @property
    def sentence(self) -> str:
        """The reason as a sentence."""
        return f"{self.reason[0].upper()}{self.reason[1:]}."

    @property
    def advice(self) -> tuple[str, ...]:
        """What to try, in sentences; () for "ship"."""
        advice = [cause.text for cause in self.causes]
        if self.accuracy == LOSES:
            search = f"search(max_drop={self.max_drop:g})"
            advice.append(f"Find the layers to keep in FP16 with {search}, and other ranges with sweep.")
        elif self.accuracy == CANNOT_TELL:
            images = self.images_needed
            advice.append(f"Evaluate on {images:,} images or more." if images else "Evaluate on labeled images.")
        return tuple(advice)

    @property
    def images_needed(self) -> int | None:
        """For "can't tell", the number of images that settles all metrics with 90 % power; None without one."""
        numbers = [one.images_needed for one in self.metrics if one.images_needed is not None]
        return max(numbers, default=None)

    @property
    def exit_status(self) -> int:
        """0 for "ship", 1 for "don't ship", 3 for "can't tell"."""
        return EXIT_STATUS[self.recommendation]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        derived = ("advice", "images_needed", "exit_status")
        return {**dataclasses.asdict(self), **{name: getattr(self, name) for name in derived}}

    def __str__(self) -> str:
        return f"{self.label}: {self.recommendation}. {self.sentence}"


def decisive_metrics(metrics: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """The metrics that a verdict rests on, each with its readable name.

    mAP50-95 by Ultralytics' rule of boxes and of masks or keypoints, or top-1 accuracy: one rule, because two rules of
    the same matches say the same twice. Other tasks use all of their primary metrics.

    Args:
        metrics: `Comparison.about["metrics"]`.
    """
    decisive = [
        (column, name.split(" by ")[0])
        for column, name in metrics
        if column == "top1" or (column.startswith("mAP50-95(") and column != "mAP50-95(R)")
    ]
    return decisive or [(column, name.split(" by ")[0]) for column, name in metrics]


def decide_verdicts(comparison: Comparison) -> dict[str, Verdict]:
    """The verdict on each precision and candidate but the reference, by name.

    Args:
        comparison: Accuracy with confidence intervals, and latencies.
    """
    reference = comparison.about["reference"]
    precisions = comparison.rows["precision"].unique(maintain_order=True).to_list()
    return {name: _decide(comparison, name, precisions) for name in precisions if name != reference}


def choose_baseline(precision: str, precisions: Collection[str], reference: str) -> str:
    """The precision to deploy instead: FP16 if it was compared, else the reference, as for FP16 itself.

    Args:
        precision: The precision or candidate.
        precisions: All that were compared.
        reference: The reference of the comparison.
    """
    return "fp16" if "fp16" in precisions and precision not in ("fp16", "fp32") else reference


def _decide(comparison: Comparison, precision: str, precisions: Sequence[str]) -> Verdict:
    about = comparison.about
    reference, max_drop = about["reference"], about["max_drop"]
    metrics = tuple(_decide_metric(comparison, precision, *pair) for pair in decisive_metrics(about["metrics"]))
    decisions = {one.accuracy for one in metrics}
    accuracy = LOSES if LOSES in decisions else KEPT if decisions == {KEPT} else CANNOT_TELL
    baseline = choose_baseline(precision, precisions, reference)
    latencies = _compare_latencies(comparison, precision, baseline)
    speed = NOT_MEASURED if not latencies else FASTER if any(one.faster for one in latencies) else NOT_FASTER
    if accuracy == LOSES or speed == NOT_FASTER:
        recommendation = DONT_SHIP
    else:
        recommendation = SHIP if accuracy == KEPT else CANNOT_TELL
    speed_text = _describe_speed(speed, latencies, baseline, about)
    verdict = Verdict(
        precision=precision,
        recommendation=recommendation,
        reason="",
        accuracy=accuracy,
        speed=speed,
        speed_text=speed_text,
        baseline=baseline,
        reference=reference,
        max_drop=max_drop,
        eval_images=about["eval_images"],
        metrics=metrics,
        latencies=latencies,
        causes=_find_causes(comparison, precision, baseline) if speed == NOT_FASTER else (),
        losing=_find_losing(comparison.differences, precision, [one.metric for one in metrics]),
    )
    return dataclasses.replace(verdict, reason=_describe_reason(verdict))


# Accuracy


def _decide_metric(comparison: Comparison, precision: str, column: str, name: str) -> MetricChange:
    about = comparison.about
    images, max_drop = about["eval_images"], about["max_drop"]
    of_all = _read_change(comparison.differences, precision, column)
    rows = comparison.rows
    value, reference = (
        float(rows.filter(pl.col("precision") == label)[column][0]) for label in (precision, about["reference"])
    )
    low, high = (of_all["low"], of_all["high"]) if of_all is not None else (None, None)
    accuracy = decide_accuracy(low, high, max_drop, images)
    size = None
    if accuracy == CANNOT_TELL and low is not None and high is not None:
        size = images_to_settle(value - reference, low, high, max_drop, images, is_share=column in TOP_K)
    return MetricChange(
        metric=column,
        name=name,
        reference=reference,
        value=value,
        delta=value - reference,
        low=low,
        high=high,
        accuracy=accuracy,
        images_needed=None if size is None else size.images,
        is_lower_bound=size is not None and size.is_lower_bound,
    )


def _read_change(differences: pl.DataFrame, precision: str, metric: str) -> dict[str, Any] | None:
    if differences.is_empty():
        return None
    found = differences.filter(
        (pl.col("precision") == precision) & (pl.col("metric") == metric) & (pl.col("scope") == "all")
    )
    return None if found.is_empty() else found.row(0, named=True)


def _find_losing(differences: pl.DataFrame, precision: str, metrics: Sequence[str]) -> tuple[ChangedGroup, ...]:
    if differences.is_empty():
        return ()
    rows = differences.filter(
        (pl.col("precision") == precision)
        & pl.col("metric").is_in(list(metrics))
        & (pl.col("scope") != "all")
        & pl.col("significant")
        & (pl.col("delta") < 0)
    ).sort("delta", maintain_order=True)
    names = [field.name for field in dataclasses.fields(ChangedGroup)]
    return tuple(ChangedGroup(**row) for row in rows.select(names).iter_rows(named=True))


# Latency


def _compare_latencies(comparison: Comparison, precision: str, baseline: str) -> tuple[BatchLatency, ...]:
    """The median latencies of both at every batch; () unless both ran as engines."""
    rows, samples = comparison.rows, comparison.samples
    if not rows.filter(pl.col("precision").is_in([precision, baseline]))["engine"].all():
        return ()
    latencies = []
    for batch in rows["batch"].unique(maintain_order=True):
        change = compare_latencies(samples, precision, baseline, batch)
        if not change.rounds:
            continue
        p50, baseline_p50 = (
            float(np.median(samples.filter((pl.col("label") == label) & (pl.col("batch") == batch))["ms"].to_numpy()))
            for label in (precision, baseline)
        )
        latencies.append(
            BatchLatency(
                batch=batch,
                p50_ms=p50,
                baseline_p50_ms=baseline_p50,
                ratio=change.ratio,
                low=change.low,
                high=change.high,
                faster=bool(change.high < 1 and change.ratio <= 1 - MIN_GAIN),
            )
        )
    return tuple(latencies)


def _find_causes(comparison: Comparison, precision: str, baseline: str) -> tuple[Cause, ...]:
    diagnosis = diagnose_precision(comparison, precision, baseline)
    return () if diagnosis is None else diagnosis.causes


def diagnose_precision(comparison: Comparison, precision: str, baseline: str) -> SpeedDiagnosis | None:
    """Why the engine of a precision is not faster than that of another one; None without timed layers of both.

    Args:
        comparison: The comparison.
        precision: The slow precision.
        baseline: The other one.
    """
    layers = comparison.layers
    if layers.is_empty() or not {precision, baseline} <= set(layers["label"]):
        return None
    # Layers are timed at the engines' largest batch.
    facts = {"batch": comparison.rows["batch"].max()}
    tables = [
        dataclasses.replace(
            read_layers(layers.filter(pl.col("label") == name).drop("label"), name=format_label(name)),
            facts={**facts, "precision": name},
        )
        for name in (precision, baseline)
    ]
    return diagnose_speed(*tables)


# Sentences


def _describe_speed(speed: str, latencies: Sequence[BatchLatency], baseline: str, about: Mapping[str, Any]) -> str:
    if speed == NOT_MEASURED:
        return f"{NOT_MEASURED}: {explain_unmeasured(about)}"
    parts = [
        f"{format_ms(one.p50_ms)} against {format_ms(one.baseline_p50_ms)} ms at batch {one.batch}" for one in latencies
    ]
    faster = [str(one.batch) for one in latencies if one.faster]
    where = f" at batch {', '.join(faster)} only" if 0 < len(faster) < len(latencies) else ""
    return f"{speed} than {format_label(baseline)}{where} (p50 {'; '.join(parts)})"


def format_ms(value: float) -> str:
    """Milliseconds with two decimals, from 10 on with one."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def explain_unmeasured(about: Mapping[str, Any]) -> str:
    """Why the latency of engines was not measured, in a few words.

    Args:
        about: `Comparison.about`.
    """
    if about["builder"] is None:
        return f"no engine was built ({about['why_not_built']})" if about["why_not_built"] else "no engine was built"
    reason = about["why_not_run"]
    return "no GPU here" if not reason or "GPU" in reason else str(reason)


def _describe_reason(verdict: Verdict) -> str:
    speed = f"latency {verdict.speed_text}" if verdict.speed == NOT_MEASURED else verdict.speed_text
    if verdict.causes:
        speed += f": {verdict.causes[0].evidence}"
    accuracy = _describe_accuracy(verdict)
    return (
        f"{speed}; {accuracy}" if verdict.speed == NOT_FASTER and verdict.accuracy != LOSES else f"{accuracy}; {speed}"
    )


def _describe_accuracy(verdict: Verdict) -> str:
    """The metrics behind the decision: those that lose, else those that are undecided, else all."""
    if verdict.accuracy == KEPT and len(verdict.metrics) > 1:
        losses = [f"{max(-(one.low or 0.0), 0.0):.4f} {one.name}" for one in verdict.metrics]
        return f"loses at most {' and '.join(losses)} (95 %), within the accepted {verdict.max_drop:g}"
    parts = [_describe_metric(one, verdict) for one in verdict.metrics if one.accuracy == verdict.accuracy]
    text = " and ".join(parts)
    if verdict.accuracy == LOSES and verdict.losing:
        names = [f"{one.scope} {one.name}" for one in verdict.losing[:LISTED_GROUPS]]
        more = len(verdict.losing) - len(names)
        text += f", most of all {', '.join(names)}" + (f" and {more} more" if more else "")
    return text


def _describe_metric(change: MetricChange, verdict: Verdict) -> str:
    low, high, accepted = change.low, change.high, f"{verdict.max_drop:g}"
    if low is None or high is None:
        return f"there is no confidence interval of {change.name}"
    if change.accuracy == KEPT:
        if low >= 0:
            return f"loses no {change.name}"
        return f"loses at most {-low:.4f} {change.name} (95 %), within the accepted {accepted}"
    if change.accuracy == LOSES:
        return (
            f"loses {-change.delta:.4f} {change.name} (95 % interval {-high:.4f} to {-low:.4f}), "
            f"more than the accepted {accepted}"
        )
    text = f"may lose up to {max(-low, 0):.4f} {change.name}, {accepted} is accepted"
    if verdict.eval_images < MIN_IMAGES:
        text = f"{verdict.eval_images} images are too few for a decision on {change.name}"
    if change.images_needed is None:
        return text
    needed, more = change.images_needed, change.images_needed - verdict.eval_images
    if change.is_lower_bound:
        return f"{text}; not settled with fewer than {needed:,} images (90 % power)"
    return f"{text}; about {needed:,} images ({more:,} more) would settle it (90 % power)"
