"""Figures of a comparison in which one precision and one class stand out, so that several can be read together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
import polars as pl
from plotly.subplots import make_subplots

from trtkit.plotting.theme import INK, LINE, TraceStyle, hatch, template, trace_style

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "accuracy_figure",
    "classes_change_figure",
    "classes_figure",
    "comparison_figure",
    "latency_figure",
    "losses_figure",
    "size_figure",
]

FAINT = 0.45
"""Opacity of what does not stand out: still readable, and told apart by its shape."""

MOST_CLASSES = 40

HATCHES = ("", "/", "x", "-")
"""Patterns of the bars of several batch sizes."""

LEGEND = {"y": 1.02, "yanchor": "bottom"}


def accuracy_figure(
    differences: pl.DataFrame, metrics: Sequence[str], *, reference: str, focus: str, name: str = ""
) -> go.Figure:
    """How each metric changes against the reference, with 95 % intervals; filled where the change is measurable.

    Args:
        differences: `Comparison.differences`.
        metrics: Which metrics, from the top.
        reference: What changes are told against.
        focus: The precision that stands out.
        name: The class whose metrics to show; "" shows those of all.
    """
    rows = differences.filter(
        pl.col("metric").is_in(list(metrics))
        & (pl.col("scope") == ("class" if name else "all"))
        & (pl.col("name") == name)
    )
    present = [metric for metric in metrics if metric in set(rows["metric"])]
    figure = _forest(rows, "metric", present, focus=focus, title=f"change against {reference.upper()}")
    return figure.update_layout(height=130 + 34 * max(len(present), 1))


def classes_change_figure(
    differences: pl.DataFrame, metric: str, *, reference: str, focus: str, selected: str = "", most: int = MOST_CLASSES
) -> go.Figure:
    """How a metric changes by class, the class that loses most in the focus on top.

    Args:
        differences: `Comparison.differences`.
        metric: Which metric.
        reference: What changes are told against.
        focus: The precision that stands out.
        selected: A class to mark.
        most: Most classes shown.
    """
    rows = differences.filter((pl.col("scope") == "class") & (pl.col("metric") == metric))
    order = rows.filter(pl.col("precision") == focus).sort("delta", maintain_order=True)["name"].to_list()
    order = (order or rows["name"].unique(maintain_order=True).to_list())[:most]
    figure = _forest(rows, "name", order, focus=focus, title=f"change of {metric} against {reference.upper()}")
    if selected in order:
        figure.add_hrect(
            y0=order.index(selected) - 0.5, y1=order.index(selected) + 0.5, fillcolor=INK, opacity=0.18, line_width=0,
            layer="below",
        )  # fmt: skip
    return figure.update_layout(height=130 + 26 * max(len(order), 1))


def latency_figure(samples: pl.DataFrame, runners: pl.DataFrame, batch: int, *, focus: str) -> go.Figure:
    """The share of runs that took at most so long, by precision.

    Args:
        samples: `Comparison.samples`.
        runners: `Comparison.runners`.
        batch: The batch size to show.
        focus: The precision that stands out.
    """
    labels = runners["label"].to_list()
    figure = go.Figure()
    top = float(samples.filter(pl.col("batch") == batch)["ms"].max() or 1.0)  # type: ignore[arg-type]
    for label in _focus_last(labels, focus):
        times = samples.filter((pl.col("label") == label) & (pl.col("batch") == batch))["ms"].sort()
        if times.is_empty():
            continue
        look, bright = trace_style(label, labels), label == focus
        half, most = (float(times.quantile(share, "linear") or 0.0) for share in (0.5, 0.99))
        figure.add_scatter(
            x=times,
            y=[(place + 1) / len(times) for place in range(len(times))],
            name=label,
            mode="lines",
            opacity=1.0 if bright else FAINT + 0.1,
            line={"color": look.color, "dash": look.dash, "shape": "hv", "width": 4 if bright else 2},
            hovertemplate="%{y:.0%} of runs within %{x:.3g} ms<extra>" + label + "</extra>",
        )
        figure.add_scatter(
            x=[half, most],
            y=[0.5, 0.99],
            name=f"{label}: half within, 99 % within",
            mode="markers+text" if bright else "markers",
            opacity=1.0 if bright else FAINT + 0.1,
            text=[f" {half:.3g} ms", f" {most:.3g} ms"],
            textposition="bottom right",
            marker={"color": look.color, "symbol": look.symbol, "size": 11 if bright else 8},
            showlegend=False,
            hovertemplate="%{y:.0%} within %{x:.4g} ms<extra>" + label + "</extra>",
        )
    clock = "not TensorRT" if not runners["engine"].all() else "TensorRT"
    names = ", ".join(runners["runner"].unique(maintain_order=True))
    figure.update_xaxes(
        title_standoff=6, title_text=f"ms a batch of {batch}<br>{names}; {clock}", range=[0, 1.16 * top]
    )
    figure.update_yaxes(title_text="runs done within", tickformat=".0%", range=[0, 1.04])
    return figure.update_layout(template=template(), height=320, legend=LEGEND, margin={"t": 40})


def size_figure(rows: pl.DataFrame, *, focus: str) -> go.Figure:
    """File sizes by precision.

    Args:
        rows: `Comparison.rows`.
        focus: The precision that stands out.
    """
    once = rows.unique("precision", keep="first", maintain_order=True)
    order = once["precision"].to_list()
    figure = go.Figure()
    for column, name, shape in (("onnx_mb", "ONNX file", "."), ("engine_mb", "engine", "")):
        values = once[column].to_list()
        if all(value is None for value in values):
            continue
        figure.add_bar(
            x=order,
            y=values,
            name=name,
            marker={
                "color": [trace_style(label, order).color for label in order],
                "opacity": [1.0 if label == focus else FAINT + 0.1 for label in order],
                "pattern": {"shape": shape, "fillmode": "overlay", "fgcolor": "#ffffff", "fgopacity": 0.8, "size": 7},
            },
            text=["" if value is None else f"{value:.1f}" for value in values],
            textposition="outside",
            cliponaxis=False,
            customdata=order,
            hovertemplate=f"%{{x}}: %{{y:.2f}} MB<extra>{name}</extra>",
        )
    figure.update_xaxes(type="category")
    figure.update_yaxes(title_text="MB", rangemode="tozero")
    return figure.update_layout(template=template(), height=320, barmode="group", legend=LEGEND, margin={"t": 40})


def _forest(rows: pl.DataFrame, column: str, order: Sequence[str], *, focus: str, title: str) -> go.Figure:
    """Changes with their intervals, a line a name, the precisions of a name below each other."""
    labels = rows["precision"].unique(maintain_order=True).to_list()
    places = {name: place for place, name in enumerate(order)}
    figure = go.Figure()
    for number, label in enumerate(labels):
        part = rows.filter((pl.col("precision") == label) & pl.col(column).is_in(list(order)))
        look, bright = trace_style(label, labels), label == focus
        shift = 0.16 * (2 * number - len(labels) + 1) if len(labels) > 1 else 0.0
        figure.add_scatter(
            x=part["delta"],
            y=[places[name] + shift for name in part[column]],
            name=label,
            mode="markers",
            opacity=1.0 if bright else FAINT,
            marker=_markers(part, look, size=11 if bright else 8),
            error_x={
                "type": "data",
                "symmetric": False,
                "array": (part["high"] - part["delta"]).fill_null(0.0),
                "arrayminus": (part["delta"] - part["low"]).fill_null(0.0),
                "color": look.color,
                "thickness": 2 if bright else 1,
                "width": 4,
            },
            customdata=part[column].to_list(),
            text=[_hover_text(row) for row in part.iter_rows(named=True)],
            hovertemplate="%{text}<extra>" + label + "</extra>",
        )
    figure.add_vline(x=0, line={"color": INK, "width": 1.5})
    figure.update_xaxes(
        title_standoff=6, title_text=f"{title}<br>bars: 95 % interval; filled: 0 is outside", gridcolor=LINE
    )
    figure.update_yaxes(
        tickvals=list(places.values()),
        ticktext=list(order),
        range=[len(order) - 0.4, -0.6],
        showgrid=False,
        zeroline=False,
    )
    return figure.update_layout(template=template(), legend=LEGEND, margin={"t": 40, "l": 110})


def _markers(part: pl.DataFrame, look: TraceStyle, *, size: int) -> dict[str, Any]:
    return {
        "color": look.color,
        "symbol": [look.symbol if sure else f"{look.symbol}-open" for sure in part["significant"]],
        "size": size,
        "line": {"width": 2, "color": look.color},
    }


def _hover_text(row: dict[str, Any]) -> str:
    interval = "" if row["low"] is None else f", 95 % interval {row['low']:+.4f} to {row['high']:+.4f}"
    sure = "significant" if row["significant"] else "not measurable"
    name = f" of {row['name']}" if row["name"] else ""
    values = f"{row['reference']:.4f} to {row['value']:.4f}"
    return f"{row['metric']}{name}: {values}<br>change {row['delta']:+.4f}{interval}<br>{sure}"


def _focus_last(labels: Sequence[str], focus: str) -> list[str]:
    """The focus drawn last, so that it lies on top."""
    return [label for label in labels if label != focus] + [label for label in labels if label == focus]


def comparison_figure(rows: pl.DataFrame, metrics: Sequence[tuple[str, str]]) -> go.Figure:
    """What each precision costs and buys: accuracy, time and size side by side.

    Args:
        rows: `Comparison.frame()`.
        metrics: Column and readable name of the accuracies to show, the first one filled, the others open.
    """
    once = rows.unique("precision", keep="first", maintain_order=True)
    order = once["precision"].to_list()
    names = ", ".join(once["runner"].unique(maintain_order=True))
    clock = names if once["engine"].all() else f"{names}, not TensorRT"
    figure = make_subplots(
        rows=1,
        cols=3,
        subplot_titles=[
            _titled("Accuracy", "higher is better; the axis does not begin at 0"),
            _titled("Time an image", f"median; {clock}"),
            _titled("File size", "ONNX beside engine" if once["engine_mb"].null_count() == 0 else "ONNX"),
        ],
        horizontal_spacing=0.09,
    )
    _add_accuracy(figure, once, metrics)
    _add_times(figure, rows, order)
    _add_sizes(figure, once)
    ranked = bool(metrics) and metrics[0][0].startswith("top")
    figure.update_yaxes(title_text="share of images" if ranked else "AP", row=1, col=1)
    figure.update_yaxes(title_text="ms", rangemode="tozero", row=1, col=2)
    figure.update_yaxes(title_text="MB", rangemode="tozero", row=1, col=3)
    figure.update_xaxes(type="category", tickfont={"size": 14}, range=[-0.5, len(order) - 0.5])
    figure.update_layout(
        template=template(),
        height=430,
        barmode="group",
        bargap=0.35,
        scattermode="group",
        scattergap=0.6,
        margin={"t": 80},
    )
    return figure


def _titled(title: str, below: str) -> str:
    return f"<b>{title}</b><br><span style='font-size:0.75em'>{below}</span>"


def _add_accuracy(figure: go.Figure, once: pl.DataFrame, metrics: Sequence[tuple[str, str]]) -> None:
    order = once["precision"].to_list()
    shown: list[float] = []
    for place, (column, name) in enumerate(metrics):
        values = once[column].to_list()
        shown += [value for value in values if value is not None]
        figure.add_scatter(
            x=order,
            y=values,
            name=name,
            offsetgroup=str(place),
            mode="lines+markers+text",
            line={"color": LINE, "width": 1},
            marker={
                "symbol": [trace_style(label, order).symbol + ("-open" if place else "") for label in order],
                "color": [trace_style(label, order).color for label in order],
                "size": 13,
                "line": {"width": 2, "color": [trace_style(label, order).color for label in order]},
            },
            text=["" if value is None else f"{value:.4f}" for value in values],
            textposition="bottom center" if place else "top center",
            hovertemplate=f"%{{x}}: %{{y:.4f}}<extra>{name}</extra>",
            row=1,
            col=1,
        )
    if shown:
        # At least two points of AP are shown, so that a loss of nothing looks like nothing.
        middle, half = (max(shown) + min(shown)) / 2, max(0.01, 0.75 * (max(shown) - min(shown)))
        figure.update_yaxes(range=[middle - half, middle + half], row=1, col=1)


def _add_times(figure: go.Figure, rows: pl.DataFrame, order: Sequence[str]) -> None:
    batches = rows["batch"].unique(maintain_order=True).to_list()
    for place, size in enumerate(batches):
        part = rows.filter(pl.col("batch") == size)
        half = part["p50_ms"] / size
        figure.add_bar(
            x=part["precision"],
            y=half,
            name=f"batch {size}",
            showlegend=len(batches) > 1,
            marker={
                "color": [trace_style(label, order).color for label in part["precision"]],
                "pattern": hatch(HATCHES[place % len(HATCHES)]),
            },
            text=[f"{value:.3g}" for value in half],
            textposition="outside",
            cliponaxis=False,
            customdata=part["p99_ms"] / size,
            hovertemplate=(
                f"%{{x}}: half within %{{y:.3f}} ms, 99 % within %{{customdata:.3f}} ms<extra>batch {size}</extra>"
            ),
            row=1,
            col=2,
        )


def _add_sizes(figure: go.Figure, once: pl.DataFrame) -> None:
    order = once["precision"].to_list()
    for column, name, solid in (("onnx_mb", "ONNX file", False), ("engine_mb", "engine file", True)):
        values = once[column].to_list()
        if all(value is None for value in values):
            continue
        figure.add_bar(
            x=order,
            y=values,
            name=name,
            marker={
                "color": [trace_style(label, order).color for label in order],
                "pattern": hatch("" if solid else "."),
            },
            text=["" if value is None else f"{value:.1f}" for value in values],
            textposition="outside",
            cliponaxis=False,
            hovertemplate=f"%{{x}}: %{{y:.2f}} MB<extra>{name}</extra>",
            row=1,
            col=3,
        )


def classes_figure(classes: pl.DataFrame, column: str, *, most: int = 30) -> go.Figure:
    """Accuracy of each class by precision, the class that loses most on top.

    Args:
        classes: Columns precision, name and `column`.
        column: The accuracy to show.
        most: Most classes shown.
    """
    order = classes["precision"].unique(maintain_order=True).to_list()
    spread = (
        classes.group_by("name", maintain_order=True)
        .agg(loss=pl.col(column).first() - pl.col(column).min())
        .sort("loss", maintain_order=True)
        .tail(most)
    )
    names = spread["name"].to_list()
    figure = go.Figure()
    for name in names:
        values = classes.filter(pl.col("name") == name)[column]
        span: list[Any] = [values.min(), values.max()]
        figure.add_scatter(
            x=span, y=[name, name], mode="lines", line={"color": LINE, "width": 3}, showlegend=False, hoverinfo="skip"
        )
    for place, label in enumerate(order):
        part = classes.filter((pl.col("precision") == label) & pl.col("name").is_in(names))
        look = trace_style(label, order)
        figure.add_scatter(
            x=part[column],
            y=part["name"],
            name=label,
            mode="markers",
            # The first lies lowest and is largest, so that equal values still show every precision.
            marker={"color": look.color, "symbol": look.symbol, "size": max(9, 17 - 4 * place)},
            hovertemplate=f"%{{y}}: %{{x:.3f}}<extra>{label}</extra>",
        )
    figure.update_xaxes(title_text=column)
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=names)
    figure.update_layout(template=template(), height=130 + 26 * len(names))
    figure.update_layout(legend={"y": 1.02, "yanchor": "bottom"})
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
