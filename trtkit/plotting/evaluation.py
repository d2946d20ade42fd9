"""Figures of evaluations: accuracy per class, precision-recall curves, latency distributions, throughput."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from trtkit.backends.stages import STAGES
from trtkit.plotting.theme import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    escape_text,
    escape_texts,
    hatch,
    stacked_figure,
    trace_style,
)
from trtkit.recipe import format_label

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["classification_figure", "evaluation_figure", "load_figure", "precision_recall_curve", "timing_figure"]

MAX_CLASSES = 30
"""Classes shown, those with the lowest accuracy."""


def evaluation_figure(
    per_class: pl.DataFrame, detections: pl.DataFrame, labels: pl.DataFrame, *, kinds: Sequence[str], title: str
) -> go.Figure:
    """Average precision per class, and below it precision over recall at IoU or similarity 0.5.

    Args:
        per_class: `Evaluation.per_class`, with intervals where it has the columns `<metric> low` and `<metric> high`.
        detections: `Evaluation.detections`.
        labels: `Evaluation.labels`.
        kinds: What objects are matched by: "B" (boxes), "M" (masks), "P" (poses); the first one sorts the classes.
        title: Title of the figure.
    """
    shown = per_class.sort(f"mAP50-95({kinds[0]})").head(MAX_CLASSES)
    figure = stacked_figure(
        [
            ("AP per class", f"Ultralytics' rule{_note_bars(shown, f'mAP50-95({kinds[0]})')}", 60 + 26 * len(shown)),
            ("Precision over recall", "at IoU or similarity 0.5, mean over classes", 240),
        ],
        title=title,
    )
    columns = [f"{name}({kind})" for kind in kinds for name in ("mAP50-95", "mAP50")]
    for column in columns:
        style = trace_style(column, columns)
        figure.add_scatter(
            x=shown[column],
            y=escape_texts(shown["name"]),
            name=escape_text(column),
            offsetgroup=column,
            orientation="h",
            mode="markers",
            marker={"color": style.color, "symbol": style.symbol, "size": 10},
            **_interval_bars(shown, column, style.color),
            row=1,
            col=1,
        )
    grid = np.linspace(0, 1, 101)
    for kind in kinds:
        style = trace_style(f"mAP50({kind})", columns)
        figure.add_scatter(
            x=grid,
            y=precision_recall_curve(detections, labels, kind, grid),
            name=f"at 0.5 ({kind})",
            line={"color": style.color, "dash": style.dash},
            hovertemplate="recall %{x:.2f}: precision %{y:.3f}",
            row=2,
            col=1,
        )
    figure.update_xaxes(range=[-0.02, 1.02])
    figure.update_yaxes(type="category", row=1)
    figure.update_layout(scattermode="group", scattergap=0.4)
    return figure.update_yaxes(title_text="precision", range=[-0.02, 1.02], row=2)


def classification_figure(per_class: pl.DataFrame, *, title: str) -> go.Figure:
    """Top-1 and top-5 accuracy per class, the lowest ones.

    Args:
        per_class: `Evaluation.per_class` of classify, with intervals as for `evaluation_figure`.
        title: Title of the figure.
    """
    shown = per_class.sort("top1").head(MAX_CLASSES)
    subtitle = f"share of the class's images{_note_bars(shown, 'top1')}"
    figure = stacked_figure([("Accuracy per class", subtitle, 60 + 26 * len(shown))], title=title)
    for column, name in (("top1", "top-1"), ("top5", "top-5")):
        style = trace_style(column, ["top1", "top5"])
        figure.add_scatter(
            x=shown[column],
            y=escape_texts(shown["name"]),
            name=name,
            offsetgroup=column,
            orientation="h",
            mode="markers",
            marker={"color": style.color, "symbol": style.symbol, "size": 10},
            **_interval_bars(shown, column, style.color),
        )
    figure.update_xaxes(range=[-0.02, 1.02])
    figure.update_yaxes(type="category")
    return figure.update_layout(scattermode="group", scattergap=0.4)


def _interval_bars(per_class: pl.DataFrame, metric: str, color: str) -> dict[str, Any]:
    """Plotly's settings of a metric's error bars and hover text."""
    low, high = f"{metric} low", f"{metric} high"
    if not {low, high} <= set(per_class.columns):
        return {"hovertemplate": "%{y}: %{x:.3f}"}
    return {
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": per_class[high] - per_class[metric],
            "arrayminus": per_class[metric] - per_class[low],
            "color": color,
            "thickness": 1.5,
            "width": 3,
        },
        "customdata": per_class.select(low, high).rows(),
        "hovertemplate": "%{y}: %{x:.3f}, 95 % interval %{customdata[0]:.3f} to %{customdata[1]:.3f}",
    }


def _note_bars(per_class: pl.DataFrame, metric: str) -> str:
    return "; bars: 95 % interval" if f"{metric} low" in per_class.columns else ""


def precision_recall_curve(
    detections: pl.DataFrame, labels: pl.DataFrame, kind: str, grid: NDArray[np.float64], *, threshold: int = 0
) -> NDArray[np.float64]:
    """The precision envelope over recall, averaged over the classes that have labels.

    Args:
        detections: `Evaluation.detections`.
        labels: `Evaluation.labels`.
        kind: "B", "M" or "P".
        grid: Recalls, 0..1.
        threshold: Index of the similarity threshold, 0 for 0.50 to 9 for 0.95.

    Returns:
        Precisions in the shape of `grid`; a class counts 0 at recalls that it does not reach.
    """
    total = np.zeros_like(grid)
    counts = dict(labels.group_by("class").len().iter_rows())
    for number, label_count in counts.items():
        ranked = detections.filter(pl.col("class") == number).sort("score", descending=True, maintain_order=True)
        if not len(ranked):
            continue
        true_positives = ((ranked[f"matched({kind})"].to_numpy() >> threshold) & 1).cumsum()
        precision = true_positives / np.arange(1, len(true_positives) + 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        total += np.interp(grid, true_positives / label_count, envelope, right=0)
    return total / max(1, len(counts))


def timing_figure(samples: pl.DataFrame, runners: pl.DataFrame, stages: pl.DataFrame) -> go.Figure:
    """Cumulative distribution of the latency by runner, one panel per batch size, and one of the stages of `predict`.

    Args:
        samples: `Timing.samples`.
        runners: `Timing.runners`.
        stages: `Timing.stage_frame()`; without rows it has no panels.
    """
    labels = runners["label"].to_list()
    names = dict(zip(labels, runners["runner"].to_list(), strict=True))
    batches = samples["batch"].unique(maintain_order=True).to_list()
    panels = [(f"Batch {size}", "latency, ms/batch", 220) for size in batches]
    timed = stages["batch"].unique(maintain_order=True).to_list()
    panels += [(f"Stages of predict at batch {size}", "median, ms/batch", 40 + 34 * len(labels)) for size in timed]
    figure = stacked_figure(panels)
    for row, size in enumerate(batches, start=1):
        for label in labels:
            latencies = samples.filter((pl.col("label") == label) & (pl.col("batch") == size))["ms"].sort()
            style, shown = trace_style(label, labels), format_label(label)
            figure.add_scatter(
                x=latencies,
                y=[(index + 1) / len(latencies) for index in range(len(latencies))],
                name=escape_text(label if names[label] == label else f"{shown}: {names[label]}"),
                legendgroup=label,
                showlegend=row == 1,
                mode="lines",
                line={"color": style.color, "dash": style.dash, "shape": "hv", "width": 2.5},
                hovertemplate="%{y:.0%} of runs within %{x:.3g} ms<extra>" + escape_text(shown) + "</extra>",
                row=row,
                col=1,
            )
    figure.update_yaxes(title_text="share of runs", tickformat=".0%", range=[-0.03, 1.03])
    for row, size in enumerate(timed, start=len(batches) + 1):
        _add_stages(figure, stages.filter(pl.col("batch") == size), row=row, shows_legend=row == len(batches) + 1)
    return figure.update_xaxes(rangemode="tozero").update_layout(barmode="stack")


STAGE_STYLES = tuple(zip((SKY, ORANGE, GREEN, BLUE, PURPLE, VERMILION), ("", "/", ".", "", "\\", "x"), strict=True))
"""Color and pattern of each stage, in their order."""


def _add_stages(figure: go.Figure, stages: pl.DataFrame, *, row: int, shows_legend: bool) -> None:
    """A bar per runner, in which one stage follows the other."""
    for stage, (color, pattern) in zip(STAGES, STAGE_STYLES, strict=True):
        own = stages.filter(pl.col("stage") == stage)
        if own.is_empty():
            continue
        figure.add_bar(
            y=escape_texts(map(format_label, own["label"])),
            x=own["p50_ms"],
            orientation="h",
            name=stage,
            legendgroup=stage,
            showlegend=shows_legend,
            marker={"color": color, "pattern": hatch(pattern)},
            customdata=own.select("low", "high", "share").rows(),
            hovertemplate=f"%{{y}}, {stage}: %{{x:.3g}} ms, 95 % interval %{{customdata[0]:.3g}} to "
            "%{customdata[1]:.3g}, %{customdata[2]:.0%} of the call<extra></extra>",
            row=row,
            col=1,
        )
    figure.update_yaxes(type="category", autorange="reversed", range=None, tickformat="", title_text="", row=row, col=1)


def load_figure(rows: pl.DataFrame, *, title: str) -> go.Figure:
    """Throughput, and below it latency, over the concurrency, a line for each batch.

    Args:
        rows: `LoadTest.frame`.
        title: Title of the figure.
    """
    figure = stacked_figure(
        [
            ("Throughput, images/s", "over the concurrency, clients", 200),
            ("Latency, ms/request", "p50, and p99 dotted, over the concurrency, clients", 200),
        ],
        title=title,
    )
    batches = rows["batch"].unique(maintain_order=True).to_list()
    labels = [f"batch {size}" for size in batches]
    for size, label in zip(batches, labels, strict=True):
        own, style = rows.filter(pl.col("batch") == size), trace_style(label, labels)
        hover = "<extra>" + label + "</extra>"
        for name, row, dash in (("images_per_s", 1, style.dash), ("p50_ms", 2, style.dash), ("p99_ms", 2, "dot")):
            unit = "images/s" if row == 1 else "ms"
            figure.add_scatter(
                x=own["concurrency"],
                y=own[name],
                name=label,
                legendgroup=label,
                showlegend=row == 1,
                mode="lines+markers",
                line={"color": style.color, "dash": dash},
                marker={"symbol": style.symbol, "size": 9},
                hovertemplate="%{x} clients: %{y:.4g} " + unit + hover,
                row=row,
                col=1,
            )
    figure.update_xaxes(tickvals=rows["concurrency"].unique().sort().to_list())
    return figure.update_yaxes(rangemode="tozero")
