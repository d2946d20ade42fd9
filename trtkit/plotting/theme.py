"""Frames to figures: one palette, one template, read on light and dark pages and without color."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
import polars as pl
from plotly.subplots import make_subplots

from trtkit.plotting.notebook import register_renderer

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["TraceStyle", "classes_figure", "comparison_figure", "template", "timing_figure", "trace_style"]

# Okabe and Ito's palette, told apart by people with any common color blindness: M. Okabe, K. Ito, "Color Universal
# Design", 2008. Black and yellow are left out, since one of them vanishes on a dark or a light page.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
# Grays of equal contrast (4.5 to 1) with white and with near-black.
INK, LINE = "#777777", "rgba(128,128,128,0.25)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TraceStyle:
    """How one thing looks in every figure: never by color alone.

    Attributes:
        color: Hex color.
        symbol: Plotly marker symbol.
        pattern: Plotly fill pattern.
        dash: Plotly line dash.
    """

    color: str
    symbol: str
    pattern: str
    dash: str


_PRECISIONS = {
    "fp32": TraceStyle(color=BLUE, symbol="circle", pattern="", dash="solid"),
    "fp16": TraceStyle(color=ORANGE, symbol="square", pattern="/", dash="dash"),
    "int8": TraceStyle(color=GREEN, symbol="diamond", pattern="x", dash="dot"),
}
_HATCHES = ("", "/", "x", "-")
_OTHERS = (
    TraceStyle(color=VERMILION, symbol="triangle-up", pattern="\\", dash="dashdot"),
    TraceStyle(color=PURPLE, symbol="cross", pattern="+", dash="longdash"),
    TraceStyle(color=SKY, symbol="star", pattern=".", dash="longdashdot"),
)


def trace_style(label: str, labels: Sequence[str] = ()) -> TraceStyle:
    """The look of a precision, or of any other label by its place among `labels`."""
    if label in _PRECISIONS:
        return _PRECISIONS[label]
    others = [name for name in labels if name not in _PRECISIONS]
    return _OTHERS[(others.index(label) if label in others else 0) % len(_OTHERS)]


def template() -> go.layout.Template:
    """Plotly's bare template with see-through paper and grays that read on light and dark pages."""
    # Every figure of trtkit's takes this template before a notebook shows it.
    register_renderer()
    axis = {"gridcolor": LINE, "linecolor": LINE, "zerolinecolor": LINE, "ticks": "", "automargin": True}
    return go.layout.Template(
        layout={
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"color": INK, "family": "system-ui, sans-serif", "size": 13},
            "colorway": [BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY],
            "xaxis": axis,
            "yaxis": axis,
            "legend": {"orientation": "h", "yanchor": "top", "y": -0.14, "xanchor": "left", "x": 0},
            "margin": {"l": 60, "r": 20, "t": 60, "b": 60},
            "hoverlabel": {"font": {"family": "system-ui, sans-serif"}},
        }
    )


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
    _accuracy(figure, once, metrics)
    _times(figure, rows, order)
    _sizes(figure, once)
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


def _pattern(shape: str) -> dict[str, Any]:
    """A hatch over the bar's own color."""
    return {"shape": shape, "fillmode": "overlay", "fgcolor": "#ffffff", "fgopacity": 0.7, "size": 7}


def _titled(title: str, below: str) -> str:
    return f"<b>{title}</b><br><span style='font-size:0.75em'>{below}</span>"


def _accuracy(figure: go.Figure, once: pl.DataFrame, metrics: Sequence[tuple[str, str]]) -> None:
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


def _times(figure: go.Figure, rows: pl.DataFrame, order: Sequence[str]) -> None:
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
                "pattern": _pattern(_HATCHES[place % len(_HATCHES)]),
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


def _sizes(figure: go.Figure, once: pl.DataFrame) -> None:
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
                "pattern": _pattern("" if solid else "."),
            },
            text=["" if value is None else f"{value:.1f}" for value in values],
            textposition="outside",
            cliponaxis=False,
            hovertemplate=f"%{{x}}: %{{y:.2f}} MB<extra>{name}</extra>",
            row=1,
            col=3,
        )


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
