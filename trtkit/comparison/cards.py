"""Cards of a comparison: accuracy against the tolerance, p50 latency and file size of each precision at a glance."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import polars as pl

from trtkit.comparison.verdict import MetricChange, Verdict, format_ms
from trtkit.recipe import format_label

if TYPE_CHECKING:
    from trtkit.comparison.comparison import Comparison

__all__ = ["Card", "CardRow", "IntervalBar", "make_cards"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class IntervalBar:
    """Where a confidence interval lies on a card's scale; positions in percent of its width.

    Attributes:
        low: Left end of the interval.
        high: Right end.
        middle: The change.
        limit: The largest accepted loss, -max_drop.
        zero: No change.
    """

    low: float
    high: float
    middle: float
    limit: float
    zero: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class CardRow:
    """One precision on a card.

    Attributes:
        label: The precision.
        value: Its number in words.
        note: More about it; "" for nothing.
        state: "kept", "loses" or "can't tell" of a metric; "" for other numbers.
        bar: The interval of a metric, None for other numbers.
    """

    label: str
    value: str
    note: str = ""
    state: str = ""
    bar: IntervalBar | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """One card.

    Attributes:
        title: What it shows.
        subtitle: Its unit or limit.
        rows: One per precision, or per precision and metric or batch.
        reference: What was published of the same model, where nothing was measured; "" otherwise.
    """

    title: str
    subtitle: str
    rows: tuple[CardRow, ...]
    reference: str = ""


def make_cards(comparison: Comparison) -> tuple[Card, Card, Card]:
    """Accuracy, latency and size of a comparison.

    Args:
        comparison: The comparison.
    """
    return _accuracy_card(comparison), _latency_card(comparison), _size_card(comparison)


def _accuracy_card(comparison: Comparison) -> Card:
    verdicts = list(comparison.verdicts.values())
    changes = [(verdict, change) for verdict in verdicts for change in verdict.metrics]
    about = comparison.about
    names = list(dict.fromkeys(change.name for _, change in changes))
    reference = format_label(about["reference"])
    first = verdicts[0].metrics if verdicts else ()
    rows = [CardRow(label=reference, value=", ".join(f"{change.reference:.4f}" for change in first))] if first else []
    ends = [value for _, change in changes for value in (change.low, change.high) if value is not None]
    scale = _scale(ends, about["max_drop"])
    rows += [_accuracy_row(verdict, change, scale, show_metric=len(names) > 1) for verdict, change in changes]
    return Card(
        title=" and ".join(names) or "Accuracy",
        subtitle=f"change against {reference} with its 95 % interval; a loss of {about['max_drop']:g} is accepted",
        rows=tuple(rows),
    )


def _scale(ends: list[float], max_drop: float) -> tuple[float, float]:
    """The values at the left and right edge of the bars: all intervals, zero and the limit, with a margin."""
    low, high = min([*ends, -max_drop, 0.0]), max([*ends, 0.0])
    margin = 0.06 * (high - low) or 1.0
    return low - margin, high + margin


def _accuracy_row(verdict: Verdict, change: MetricChange, scale: tuple[float, float], *, show_metric: bool) -> CardRow:
    interval, bar = "no interval", None
    if change.low is not None and change.high is not None:
        interval = f"[{change.low:+.4f}, {change.high:+.4f}]"
        values = (change.low, change.high, change.delta, -verdict.max_drop, 0.0)
        places = [round(100 * (value - scale[0]) / (scale[1] - scale[0]), 2) for value in values]
        bar = IntervalBar(low=places[0], high=places[1], middle=places[2], limit=places[3], zero=places[4])
    label = format_label(verdict.precision) + (f" {change.name}" if show_metric else "")
    return CardRow(
        label=label, value=f"{change.delta:+.4f}", note=f"{interval}: {change.accuracy}", state=change.accuracy, bar=bar
    )


def _latency_card(comparison: Comparison) -> Card:
    """p50 of engines; other runners do not predict it and are left out."""
    rows = []
    batches = comparison.rows["batch"].n_unique() > 1
    for row in comparison.rows.iter_rows(named=True):
        if row["engine"]:
            label = format_label(row["precision"]) + (f", batch {row['batch']}" if batches else "")
            value = f"{format_ms(row['p50_ms'] / row['batch'])} ms/image"
            rows.append(CardRow(label=label, value=value, note=_note_speed(comparison, row)))
    if not rows:
        text = next((verdict.speed_text for verdict in comparison.verdicts.values()), "not measured")
        published = comparison.published
        reference = "" if published is None else f"Published for {published.subject}, {published.source}: "
        reference += "" if published is None else published.latencies
        return Card(title="p50 latency", subtitle="", rows=(CardRow(label="", value=text),), reference=reference)
    runner = ", ".join(comparison.rows["runner"].unique(maintain_order=True))
    return Card(title="p50 latency", subtitle=runner, rows=tuple(rows))


def _note_speed(comparison: Comparison, row: dict[str, Any]) -> str:
    verdict = comparison.verdicts.get(row["precision"])
    if verdict is None:
        return ""
    found = [one for one in verdict.latencies if one.batch == row["batch"]]
    return "" if not found else f"{1 / found[0].ratio:.2f}x {format_label(verdict.baseline)}"


def _size_card(comparison: Comparison) -> Card:
    once = comparison.rows.unique("precision", keep="first", maintain_order=True)
    # Of engines that ran here; a plan for another machine may be of another backend than the one that is deployed.
    has_engines = once["engine"].all() and once["engine_mb"].is_not_null().all()
    column = "engine_mb" if has_engines else "onnx_mb"
    sizes = once.filter(pl.col(column).is_not_null())
    reference = sizes.filter(pl.col("precision") == comparison.about["reference"])[column].to_list()
    rows = []
    for row in sizes.iter_rows(named=True):
        note = ""
        if reference and row["precision"] != comparison.about["reference"]:
            note = f"{row[column] / reference[0]:.2f}x"
        rows.append(CardRow(label=format_label(row["precision"]), value=f"{row[column]:.1f} MB", note=note))
    kind = "engine file" if has_engines else "ONNX file"
    subtitle = f"{kind}, against {format_label(comparison.about['reference'])}" if reference else kind
    return Card(title="Size", subtitle=subtitle, rows=tuple(rows))
