"""Report of a comparison: one HTML file without network access, in light and dark, and a summary for notebooks."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.comparison.cards import make_cards
from trtkit.comparison.findings import NEGLIGIBLE_DELTA
from trtkit.comparison.verdict import explain_unmeasured
from trtkit.evaluation.significance import RESAMPLES
from trtkit.evaluation.stage_times import tabulate_stages
from trtkit.html import asset, render
from trtkit.recipe import format_label
from trtkit.writing import write_bytes

if TYPE_CHECKING:
    import polars as pl

    from trtkit.comparison.comparison import Comparison

__all__ = ["render_report", "render_summary", "write_report"]

GALLERY_LIMIT = 8
"""Images per precision, for the size of the file."""

MAX_CELL = 60
"""Characters of an engine's fact."""


@dataclasses.dataclass(frozen=True)
class _Table:
    """A table of the report.

    Attributes:
        headings: Of the columns.
        rows: Cells, as text or numbers; None is shown as a dash.
        text_columns: Number of leading columns aligned to the left.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[Any]]
    text_columns: int = 1


def write_report(comparison: Comparison, path: str | Path) -> Path:
    """Write the report.

    Args:
        comparison: What to show.
        path: The HTML file; replaced if it exists.

    Returns:
        The file.

    Raises:
        OutputError: The file can't be written.
    """
    return write_bytes(path, render_report(comparison).encode())


def render_report(comparison: Comparison) -> str:
    """The report as HTML; it contains plotly.js once.

    Args:
        comparison: What to show.
    """
    from markupsafe import Markup

    from trtkit.plotting.notebook import figure_html, library_html

    about = comparison.about
    precisions = [format_label(name) for name in comparison.rows["precision"].unique(maintain_order=True)]
    ran = bool(comparison.rows["engine"].any())
    figures = {"comparison": comparison.plot()}
    if ran:
        figures["timing"] = comparison.timing().plot()
    if len(comparison.classes):
        figures["classes"] = comparison.plot_classes()
    return render(
        "comparison/templates/report.html.j2",
        title=f"{about['model']}: {', '.join(precisions)}",
        css=Markup(asset("comparison/templates/report.css") + asset("templates/enlarge.css")),
        library=library_html(),
        lead=_describe_run(comparison),
        verdicts=list(comparison.verdicts.values()),
        cards=make_cards(comparison),
        findings=comparison.findings(),
        figures={
            "classes": "",
            "timing": "",
            **{name: figure_html(figure, css="figure", toolbar=False) for name, figure in figures.items()},
        },
        accuracy=_accuracy_table(comparison),
        costs=_cost_table(comparison),
        metrics=_metric_table(comparison),
        differences=_difference_table(comparison) if len(comparison.differences) else None,
        thresholds=_threshold_table(comparison) if len(comparison.thresholds) else None,
        resamples=RESAMPLES,
        seed=comparison.provenance.seed,
        clock=_describe_clock(comparison.rows),
        unmeasured="" if ran else explain_unmeasured(comparison.about),
        published="" if comparison.published is None else comparison.published.sentence,
        latencies=_latency_table(comparison),
        stages=_stage_table(comparison) if len(comparison.stages) else None,
        classes=_frame_table(comparison.classes),
        changes=_collect_changes(comparison),
        changes_note=_describe_changes(comparison),
        engines=_engine_table(about["engines"]) if about["engines"] else None,
        python=about["python"],
        command=about["command"],
        provenance=_flatten(comparison.provenance.to_dict()),
    )


def render_summary(comparison: Comparison) -> str:
    """The verdicts and the primary numbers as an HTML fragment for a notebook cell.

    Args:
        comparison: What to show.
    """
    return render(
        "comparison/templates/summary.html.j2",
        lead=_describe_run(comparison),
        verdicts=list(comparison.verdicts.values()),
        findings=comparison.findings(),
        accuracy=_accuracy_table(comparison),
        costs=_cost_table(comparison),
    )


def _describe_run(comparison: Comparison) -> str:
    about = comparison.about
    size = "x".join(str(side) for side in about["imgsz"])
    return (
        f"{about['task']} at {size}, evaluated on {about['eval_images']} images of {about['split']} "
        f"({Path(about['data']).name}) with {comparison.provenance.runner}, {comparison.provenance.created[:10]}"
    )


def _describe_clock(rows: pl.DataFrame) -> str:
    clock = "on the GPU alone" if (rows["clock"] == "gpu").all() else "around the whole call, copies included"
    names = ", ".join(rows["runner"].unique(maintain_order=True))
    note = "" if rows["engine"].all() else "; not TensorRT's latency"
    legend = " Further left is faster, steeper is steadier." if rows["engine"].any() else ""
    return f"{names}; measured {clock}{note}.{legend}"


# Tables.


def _accuracy_table(comparison: Comparison) -> _Table:
    """One row per primary metric: its value in each precision, and its change with the confidence interval."""
    once = comparison.rows.unique("precision", keep="first", maintain_order=True)
    reference = comparison.about["reference"]
    headings = ["accuracy"]
    rows = [[name] for _, name in comparison.about["metrics"]]
    for values in once.iter_rows(named=True):
        is_compared = values["precision"] != reference
        headings += [format_label(values["precision"]), *(["change [95 % interval]"] if is_compared else [])]
        for row, (column, _) in zip(rows, comparison.about["metrics"], strict=True):
            row += [f"{values[column]:.4f}", *([_format_change(values, column)] if is_compared else [])]
    return _Table(headings, rows)


def _cost_table(comparison: Comparison) -> _Table:
    """One row per precision and batch: latency and throughput if engines ran, file sizes and build time."""
    has_batches = comparison.rows["batch"].n_unique() > 1
    ran = bool(comparison.rows["engine"].any())
    has_batches = has_batches and ran
    headings = ["precision", *(["batch"] if has_batches else [])]
    headings += ["p50 ms/image", "p99 ms/image", "images/s"] if ran else []
    headings += ["ONNX MB", "engine MB", "build s"]
    rows = []
    shown = comparison.rows if ran else comparison.rows.unique("precision", keep="first", maintain_order=True)
    for values in shown.iter_rows(named=True):
        row: list[Any] = [format_label(values["precision"]), *([values["batch"]] if has_batches else [])]
        if ran:
            row += [_format_number(values[name] and values[name] / values["batch"], 2) for name in ("p50_ms", "p99_ms")]
            row.append(_format_number(values["images_per_s"], 1))
        row.append(_format_number(values["onnx_mb"], 1))
        row += [_format_number(values["engine_mb"], 1), _format_number(values["build_s"], 1)]
        rows.append(row)
    return _Table(headings, rows)


def _metric_table(comparison: Comparison) -> _Table:
    once = comparison.rows.unique("precision", keep="first", maintain_order=True)
    names = comparison.about["all_metrics"]
    rows = [[name, *(_format_number(value, 4) for value in once[name])] for name in names]
    return _Table(["metric", *(format_label(label) for label in once["precision"])], rows)


def _difference_table(comparison: Comparison) -> _Table:
    rows = [
        [
            format_label(row["precision"]), row["metric"], "all" if row["scope"] == "all" else row["name"],
            _format_number(row["reference"], 4), _format_number(row["value"], 4), _format_delta(row["delta"]),
            None if row["low"] is None else f"{row['low']:+.4f} to {row['high']:+.4f}",
            "yes" if row["significant"] else "no",
        ]
        for row in comparison.differences.iter_rows(named=True)
    ]  # fmt: skip
    headings = ["precision", "metric", "of", "before", "after", "change", "95 % interval", "significant"]
    return _Table(headings, rows, 3)


def _threshold_table(comparison: Comparison) -> _Table:
    rows = [
        [
            format_label(row["precision"]), row["target"], row["name"] or "all", _format_number(row["reference"], 4),
            _format_number(row["value"], 4), _format_number(row["threshold"], 3),
            None if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}", "yes" if row["differs"] else "no",
        ]
        for row in comparison.thresholds.iter_rows(named=True)
    ]  # fmt: skip
    conf = f"{comparison.about['conf']:g}"
    headings = [
        "precision",
        "target",
        "of",
        f"baseline at {conf}",
        f"at {conf}",
        "threshold",
        "95 % interval",
        "differs",
    ]
    return _Table(headings, rows, 3)


def _latency_table(comparison: Comparison) -> _Table:
    frame = comparison.timing().frame()
    facts = ["label", "runner", "clock", "imgsz", "batch", "runs"]
    numbers = ["mean_ms", "std_ms", "min_ms", "p50_ms", "p90_ms", "p99_ms", "max_ms", "image_ms", "images_per_s"]
    rows = [
        [*(row[name] for name in facts), *(_format_number(row[name], 2) for name in numbers)]
        for row in frame.iter_rows(named=True)
    ]
    return _Table([*facts, *(name.replace("_ms", " ms").replace("_per_s", "/s") for name in numbers)], rows, 4)


def _stage_table(comparison: Comparison) -> _Table:
    headings, rows = tabulate_stages(comparison.timing().stage_frame())
    return _Table(headings, [[format_label(str(label)), *cells] for label, *cells in rows], 1)


def _frame_table(frame: pl.DataFrame) -> _Table:
    rows = [
        [_format_number(value, 4) if isinstance(value, float) else value for value in row] for row in frame.iter_rows()
    ]
    return _Table(frame.columns, rows)


def _engine_table(engines: Mapping[str, Mapping[str, Any]]) -> _Table:
    """Facts of the engines by precision."""
    names = list(dict.fromkeys(name for facts in engines.values() for name in facts))
    rows = [[name.replace("_", " "), *(_shorten(facts.get(name)) for facts in engines.values())] for name in names]
    return _Table(["", *(format_label(label) for label in engines)], rows, 1 + len(engines))


# Changed objects.


def _collect_changes(comparison: Comparison) -> list[dict[str, Any]]:
    """Counts and the first images of the changed objects per precision; [] if detections were not kept."""
    from trtkit.comparison.object_changes import draw_object_changes

    reference = comparison.about["reference"]
    others = [name for name in comparison.rows["precision"].unique(maintain_order=True) if name != reference]
    if "path" not in comparison.images.columns:
        return []
    changes = []
    for precision in others:
        changed = comparison.changes(precision)
        counts = dict(changed.group_by("change").len().iter_rows())
        evaluations = comparison.evaluation(reference), comparison.evaluation(precision)
        drawn = draw_object_changes(changed, *evaluations, limit=GALLERY_LIMIT, conf=comparison.conf)
        rows = drawn.iter_rows(named=True)
        images = [
            {"caption": _describe_change(row), "png": base64.b64encode(row["png"]).decode("ascii")}
            for row in rows
            if row["png"]
        ]
        changes.append({"title": f"{format_label(precision)}: {_format_counts(counts)}", "images": images})
    return changes


def _describe_changes(comparison: Comparison) -> str:
    about = comparison.about
    reference = format_label(about["reference"])
    if about["task"] == "classify":
        return (
            f"Images whose top-1 class is right with {reference} and wrong with the other precision, or the reverse; "
            f"the largest change of score first. Left: {reference}, right: the other precision, each with its top-3 "
            "classes. The caption has the right class and its score."
        )
    return (
        f"Objects detected at confidence {comparison.conf:g} by one of {reference} and the other precision only, and "
        f"their false positives; the largest change of score first. Left: {reference}, right: the other precision. "
        "Thick lines: what changed; thin lines: other detections; white: labels."
    )


def _format_counts(counts: Mapping[str, int]) -> str:
    """ "8 lost, 4 gained, 26 false positives added, 1 removed"; a classifier has no false positives."""
    lost, gained, added, removed = (
        counts.get(name, 0) for name in ("lost", "gained", "false positive added", "false positive removed")
    )
    text = f"{lost} lost, {gained} gained"
    if added or removed:
        text += f", {added} false positive{'' if added == 1 else 's'} added, {removed} removed"
    return text


def _describe_change(row: Mapping[str, Any]) -> str:
    before, after = ("none" if row[name] is None else f"{row[name]:.2f}" for name in ("score_reference", "score"))
    label = ""
    if row["label_class"] is not None:
        same_class = row["label_class"] == row["name"]
        label = ", misplaced or duplicate" if same_class else f", labeled {row['label_class']}"
    return f"{row['change']}: {row['name']}{label}, score {before} to {after}"


# Cells.


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as one, names joined by spaces, values as short text."""
    flat: dict[str, str] = {}
    for name, inner in value.items():
        path = f"{prefix}{name}".replace("_", " ")
        if isinstance(inner, Mapping):
            flat |= _flatten(inner, path + " ")
        elif inner is not None and inner != [] and inner != "":
            flat[path] = inner if isinstance(inner, str) else json.dumps(inner, ensure_ascii=False)
    return flat


def _shorten(value: Any) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 3] + "..."


def _format_number(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:,.{digits}f}"


def _format_change(row: Mapping[str, Any], column: str) -> str:
    """A change and its confidence interval, if there is one."""
    text = _format_delta(row[f"delta {column}"])
    low, high = row.get(f"delta {column} low"), row.get(f"delta {column} high")
    return text if low is None or high is None or low == high == 0 else f"{text} [{low:+.4f}, {high:+.4f}]"


def _format_delta(value: float) -> str:
    return "0" if abs(value) < NEGLIGIBLE_DELTA else f"{value:+.4f}"
