"""An evaluation, and what precisions lose, as figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
import polars as pl
from plotly.subplots import make_subplots

from trtkit.plotting.theme import template, trace_style

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtkit.evaluation.evaluation import Evaluation

__all__ = ["classification_figure", "evaluation_figure", "precision_recall_curve", "timing_figure"]

MOST_CLASSES = 30


def evaluation_figure(evaluation: Evaluation) -> go.Figure:
    """Average precision of each class on the left, precision over recall at similarity 0.5 on the right.

    Args:
        evaluation: What `evaluate` returned, of a task that finds objects.
    """
    kinds = [name[len("mAP50-95(") : -1] for name in evaluation.metrics if name.startswith("mAP50-95(")]
    figure = make_subplots(
        rows=1,
        cols=2,
        subplot_titles=["AP by class (Ultralytics' rule)", "Precision over recall, mean of the classes"],
        horizontal_spacing=0.12,
    )
    shown = evaluation.per_class.sort(f"mAP50-95({kinds[0]})").head(MOST_CLASSES)
    columns = [f"{name}({kind})" for kind in kinds for name in ("mAP50-95", "mAP50")]
    for column in columns:
        look = trace_style(column, columns)
        figure.add_scatter(
            x=shown[column],
            y=shown["name"],
            name=column,
            mode="markers",
            marker={"color": look.color, "symbol": look.symbol, "size": 11},
            hovertemplate="%{y}: %{x:.3f}",
            row=1,
            col=1,
        )
    grid = np.linspace(0, 1, 101)
    for kind in kinds:
        look = trace_style(f"mAP50({kind})", columns)
        figure.add_scatter(
            x=grid,
            y=precision_recall_curve(evaluation.detections, evaluation.labels, kind, grid),
            name=f"at similarity 0.5 ({kind})",
            line={"color": look.color, "dash": look.dash},
            hovertemplate="recall %{x:.2f}: precision %{y:.3f}",
            row=1,
            col=2,
        )
    figure.update_xaxes(title_text="AP", range=[-0.02, 1.02], row=1, col=1)
    figure.update_yaxes(type="category", row=1, col=1)
    figure.update_xaxes(title_text="recall", range=[-0.02, 1.02], row=1, col=2)
    figure.update_yaxes(title_text="precision", range=[-0.02, 1.02], row=1, col=2)
    title = f"{evaluation.task} on {evaluation.image_count} images, {evaluation.provenance.runner}"
    height = 260 + 18 * len(shown)
    # The legend stands below the titles of the axes, however tall the figure is.
    legend = {"y": -75 / (height - 120)}
    figure.update_layout(template=template(), title={"text": title, "x": 0}, height=height, legend=legend)
    return figure


def classification_figure(evaluation: Evaluation) -> go.Figure:
    """How often each class is the likeliest, and among the five likeliest, where it should be.

    Args:
        evaluation: What `evaluate` returned for classify.
    """
    shown = evaluation.per_class.sort("top1").head(MOST_CLASSES)
    figure = go.Figure()
    for column, name in (("top1", "the likeliest"), ("top5", "among the five likeliest")):
        look = trace_style(column, ["top1", "top5"])
        figure.add_scatter(
            x=shown[column],
            y=shown["name"],
            name=name,
            mode="markers",
            marker={"color": look.color, "symbol": look.symbol, "size": 11},
            hovertemplate="%{y}: %{x:.3f}",
        )
    figure.update_xaxes(title_text="share of the class's images", range=[-0.02, 1.02])
    figure.update_yaxes(type="category")
    title = f"{evaluation.task} on {evaluation.image_count} images, {evaluation.provenance.runner}"
    height = 260 + 18 * len(shown)
    # The legend stands below the titles of the axes, however tall the figure is.
    legend = {"y": -75 / (height - 120)}
    figure.update_layout(template=template(), title={"text": title, "x": 0}, height=height, legend=legend)
    return figure


def precision_recall_curve(
    detections: pl.DataFrame, truths: pl.DataFrame, kind: str, grid: NDArray[np.float64], *, threshold: int = 0
) -> NDArray[np.float64]:
    """The precision envelope over recall, averaged over the classes that have labels.

    Args:
        detections: `Evaluation.detections`.
        truths: `Evaluation.truths`.
        kind: "B", "M" or "P".
        grid: Recalls to read it at.
        threshold: Which similarity, 0 for 0.50 to 9 for 0.95.

    Returns:
        Shape of `grid`; 0 where a class reaches no such recall.
    """
    total = np.zeros_like(grid)
    counts = dict(truths.group_by("class").len().iter_rows())
    for number, labels in counts.items():
        mine = detections.filter(pl.col("class") == number).sort("score", descending=True, maintain_order=True)
        if not len(mine):
            continue
        right = ((mine[f"matched({kind})"].to_numpy() >> threshold) & 1).cumsum()
        envelope = np.maximum.accumulate((right / np.arange(1, len(right) + 1))[::-1])[::-1]
        total += np.interp(grid, right / labels, envelope, right=0)
    return total / max(1, len(counts))


def timing_figure(samples: pl.DataFrame, runners: pl.DataFrame) -> go.Figure:
    """The share of runs that took at most so long, by runner, one panel a batch size.

    Args:
        samples: `Timing.samples`.
        runners: `Timing.runners`.
    """
    labels = runners["label"].to_list()
    names = dict(zip(labels, runners["runner"].to_list(), strict=True))
    batches = samples["batch"].unique(maintain_order=True).to_list()
    figure = make_subplots(rows=1, cols=len(batches), subplot_titles=[f"batch {size}" for size in batches])
    for column, size in enumerate(batches, start=1):
        for label in labels:
            times = samples.filter((pl.col("label") == label) & (pl.col("batch") == size))["ms"].sort()
            look = trace_style(label, labels)
            figure.add_scatter(
                x=times,
                y=[(place + 1) / len(times) for place in range(len(times))],
                name=label if names[label] == label else f"{label}: {names[label]}",
                legendgroup=label,
                showlegend=column == 1,
                mode="lines",
                line={"color": look.color, "dash": look.dash, "shape": "hv", "width": 2.5},
                hovertemplate="%{y:.0%} of runs within %{x:.3g} ms<extra>" + label + "</extra>",
                row=1,
                col=column,
            )
    figure.update_xaxes(title_text="ms a batch", rangemode="tozero")
    figure.update_yaxes(tickformat=".0%", range=[0, 1.02])
    figure.update_yaxes(title_text="runs done within", col=1)
    figure.update_layout(template=template(), height=380)
    figure.update_layout(legend={"y": -0.25})
    return figure
