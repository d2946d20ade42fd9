"""The report's tables: accuracy, costs, times, engines and every change, as HTML."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trtkit.judgement.verdict import NOTHING

if TYPE_CHECKING:
    import polars as pl

    from trtkit.judgement.comparison import Comparison

__all__ = ["Rows", "accuracy", "costs", "differences", "engines", "metrics", "plain", "table", "times"]

Rows = tuple[Sequence[str], Sequence[Sequence[Any]], int]


def accuracy(comparison: Comparison) -> Rows:
    """One row an accuracy that decides: its value in each precision, and its change with the 95 % interval."""
    once = comparison.rows.unique("precision", keep="first", maintain_order=True)
    reference = comparison.about["reference"]
    heads, lines = ["accuracy"], [[name] for _, name in comparison.about["metrics"]]
    for row in once.iter_rows(named=True):
        changed = row["precision"] != reference
        heads += [row["precision"].upper(), *(["change [95 % interval]"] if changed else [])]
        for line, (column, _) in zip(lines, comparison.about["metrics"], strict=True):
            line += [f"{row[column]:.4f}", *([_changed(row, column)] if changed else [])]
    return heads, lines, 1


def costs(comparison: Comparison) -> Rows:
    """One row a precision and batch: time, throughput, file sizes and the time to build."""
    several = comparison.rows["batch"].n_unique() > 1
    heads = ["precision", *(["batch"] if several else []), "p50 ms a picture", "p99 ms a picture", "pictures/s"]
    heads += ["ONNX MB", "engine MB", "build s"]
    lines = []
    for row in comparison.rows.iter_rows(named=True):
        line: list[Any] = [row["precision"].upper(), *([row["batch"]] if several else [])]
        line += [_number(row[name] and row[name] / row["batch"], 2) for name in ("p50_ms", "p99_ms")]
        line += [_number(row["pictures_per_s"], 1), _number(row["onnx_mb"], 1)]
        line += [_number(row["engine_mb"], 1), _number(row["build_s"], 1)]
        lines.append(line)
    return heads, lines, 1


def metrics(comparison: Comparison) -> Rows:
    """Every metric in each precision."""
    once = comparison.rows.unique("precision", keep="first", maintain_order=True)
    names = comparison.about["all_metrics"]
    lines = [[name, *(_number(value, 4) for value in once[name])] for name in names]
    return ["metric", *(label.upper() for label in once["precision"])], lines, 1


def differences(comparison: Comparison) -> Rows:
    """Every change with its interval, of all, by class and by size."""
    lines = [
        [
            row["precision"].upper(), row["metric"], {"all": "all"}.get(row["scope"], row["name"]),
            _number(row["reference"], 4), _number(row["value"], 4), _change(row["delta"]),
            None if row["low"] is None else f"{row['low']:+.4f} to {row['high']:+.4f}",
            "yes" if row["measurable"] else "no",
        ]
        for row in comparison.differences.iter_rows(named=True)
    ]  # fmt: skip
    return ["precision", "metric", "of", "before", "after", "change", "95 % interval", "measurable"], lines, 3


def times(comparison: Comparison) -> Rows:
    """Every figure of `Timing.frame()`."""
    frame = comparison.timing().frame()
    kept = ["label", "runner", "clock", "imgsz", "batch", "runs"]
    numbers = ["mean_ms", "std_ms", "min_ms", "p50_ms", "p90_ms", "p99_ms", "max_ms", "picture_ms", "pictures_per_s"]
    lines = [
        [*(row[name] for name in kept), *(_number(row[name], 2) for name in numbers)]
        for row in frame.iter_rows(named=True)
    ]
    return [*kept, *(name.replace("_ms", " ms").replace("_per_s", "/s") for name in numbers)], lines, 4


def plain(frame: pl.DataFrame) -> Rows:
    """A frame as it is."""
    lines = [[_number(value, 4) if isinstance(value, float) else value for value in row] for row in frame.iter_rows()]
    return frame.columns, lines, 1


def engines(shown: Mapping[str, Mapping[str, Any]]) -> Rows:
    """Facts of the engines by precision."""
    names = list(dict.fromkeys(name for facts in shown.values() for name in facts))
    lines = [[name.replace("_", " "), *(_short(facts.get(name)) for facts in shown.values())] for name in names]
    return ["", *(label.upper() for label in shown)], lines, 1 + len(shown)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "" if value is None else text if len(text) <= 60 else text[:57] + "..."


def _number(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:,.{digits}f}"


def _changed(row: Mapping[str, Any], column: str) -> str:
    """A change and, where it is known, its 95 % interval."""
    told = _change(row[f"delta {column}"])
    low, high = row.get(f"delta {column} low"), row.get(f"delta {column} high")
    return told if low is None or high is None or low == high == 0 else f"{told} [{low:+.4f}, {high:+.4f}]"


def _change(value: float) -> str:
    return "0" if abs(value) < NOTHING else f"{value:+.4f}"


def table(heads: Sequence[str], lines: Sequence[Sequence[Any]], texts: int) -> str:
    """A table whose first `texts` columns are words."""

    def cell(tag: str, place: int, value: Any) -> str:
        kind = ' class="text"' if place < texts else ""
        return f"<{tag}{kind}>{'–' if value is None else _text(value)}</{tag}>"

    head = "".join(cell("th", place, name) for place, name in enumerate(heads))
    body = "".join(
        "<tr>" + "".join(cell("td", place, value) for place, value in enumerate(line)) + "</tr>" for line in lines
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _text(value: Any) -> str:
    return html.escape(str(value))
