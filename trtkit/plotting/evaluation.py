"""An evaluation, and what precisions lose, as figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
import polars as pl
from plotly.subplots import make_subplots

from trtkit.plotting.theme import INK, template, trace_style

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtkit.evaluation.evaluation import Evaluation

__all__ = ["classification_figure", "evaluation_figure", "losses_figure", "precision_recall_curve"]

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


def losses_figure(losses: pl.DataFrame) -> go.Figure:
    """What each precision changes of each task's metrics, with the 95 % interval of each change.

    Args:
        losses: `Comparison.losses()`, of one comparison or of several below each other.
    """
    shown = losses.with_columns(row=pl.format("{}: {}", "task", "metric"))
    rows = shown["row"].unique(maintain_order=True).to_list()
    precisions = shown["precision"].unique(maintain_order=True).to_list()
    figure = go.Figure()
    for precision in precisions:
        look = trace_style(precision, precisions)
        mine = shown.filter(pl.col("precision") == precision)
        figure.add_scatter(
            x=mine["delta"],
            y=mine["row"],
            name=precision.upper(),
            orientation="h",
            mode="markers",
            marker={"color": look.color, "symbol": look.symbol, "size": 11},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": mine["high"] - mine["delta"],
                "arrayminus": mine["delta"] - mine["low"],
                "color": look.color,
                "width": 6,
            },
            customdata=mine.select("value", "low", "high").rows(),
            hovertemplate="%{x:+.4f} to %{customdata[0]:.4f}, 95 % interval %{customdata[1]:+.4f} to "
            "%{customdata[2]:+.4f}",
        )
    figure.add_vline(x=0, line={"color": INK, "width": 1})
    figure.update_xaxes(title_text="change against the reference (left is a loss)", tickformat="+.3f")
    figure.update_yaxes(categoryorder="array", categoryarray=rows[::-1])
    height = 210 + 46 * len(rows)
    figure.update_layout(
        template=template(),
        title={"text": "What each precision changes", "x": 0},
        height=height,
        legend={"y": -75 / (height - 120)},
        scattermode="group",
        scattergap=0.5,
    )
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
