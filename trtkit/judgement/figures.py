"""An evaluation as a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
import polars as pl
from plotly.subplots import make_subplots

from trtkit.plots import mark, template

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtkit.judgement.evaluation import Evaluation

__all__ = ["evaluation_figure", "precision_recall_curve", "ranking_figure"]

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
        look = mark(column, columns)
        figure.add_scatter(
            x=shown[column],
            y=shown["name"],
            name=column,
            mode="markers",
            marker={"color": look.colour, "symbol": look.symbol, "size": 11},
            hovertemplate="%{y}: %{x:.3f}",
            row=1,
            col=1,
        )
    grid = np.linspace(0, 1, 101)
    for kind in kinds:
        look = mark(f"mAP50({kind})", columns)
        figure.add_scatter(
            x=grid,
            y=precision_recall_curve(evaluation.detections, evaluation.truths, kind, grid),
            name=f"at similarity 0.5 ({kind})",
            line={"color": look.colour, "dash": look.dash},
            hovertemplate="recall %{x:.2f}: precision %{y:.3f}",
            row=1,
            col=2,
        )
    figure.update_xaxes(title_text="AP", range=[-0.02, 1.02], row=1, col=1)
    figure.update_yaxes(type="category", row=1, col=1)
    figure.update_xaxes(title_text="recall", range=[-0.02, 1.02], row=1, col=2)
    figure.update_yaxes(title_text="precision", range=[-0.02, 1.02], row=1, col=2)
    title = f"{evaluation.task} on {evaluation.pictures} pictures, {evaluation.origin.runner}"
    figure.update_layout(template=template(), title={"text": title, "x": 0}, height=260 + 18 * len(shown))
    return figure


def ranking_figure(evaluation: Evaluation) -> go.Figure:
    """How often each class is the likeliest, and among the five likeliest, where it should be.

    Args:
        evaluation: What `evaluate` returned for classify.
    """
    shown = evaluation.per_class.sort("top1").head(MOST_CLASSES)
    figure = go.Figure()
    for column, name in (("top1", "the likeliest"), ("top5", "among the five likeliest")):
        look = mark(column, ["top1", "top5"])
        figure.add_scatter(
            x=shown[column],
            y=shown["name"],
            name=name,
            mode="markers",
            marker={"color": look.colour, "symbol": look.symbol, "size": 11},
            hovertemplate="%{y}: %{x:.3f}",
        )
    figure.update_xaxes(title_text="share of the class's pictures", range=[-0.02, 1.02])
    figure.update_yaxes(type="category")
    title = f"{evaluation.task} on {evaluation.pictures} pictures, {evaluation.origin.runner}"
    figure.update_layout(template=template(), title={"text": title, "x": 0}, height=260 + 18 * len(shown))
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
