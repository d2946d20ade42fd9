"""Figures of calibrations: ranges, histograms with what a scale covers, and data sets compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from trtkit.plotting.theme import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    TraceStyle,
    escape_text,
    hatch,
    stacked_figure,
    template,
    trace_style,
)

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

__all__ = [
    "algorithm_style",
    "diagnosis_figure",
    "histogram_figure",
    "overview_figure",
    "ranges_figure",
    "tensor_figure",
]

LEGEND = {"y": 1.02, "yanchor": "bottom"}

MIN_LOG_SHARE = -7.0
"""Decimal logarithm of the smallest share of values that the overview shades."""

# Transparent at one end, so that light and dark pages show through.
SHADES = ((0.0, "rgba(0,114,178,0.06)"), (1.0, "rgba(0,114,178,0.95)"))

# Vermilion is missing: the figures use it for clipping and for the range in use.
_ALGORITHM_STYLES = (
    TraceStyle(color=ORANGE, symbol="square", pattern="/", dash="dash"),
    TraceStyle(color=GREEN, symbol="diamond", pattern="x", dash="dot"),
    TraceStyle(color=PURPLE, symbol="cross", pattern="+", dash="longdash"),
    TraceStyle(color=SKY, symbol="star", pattern=".", dash="longdashdot"),
    TraceStyle(color=BLUE, symbol="triangle-up", pattern="\\", dash="dashdot"),
    TraceStyle(color=INK, symbol="hexagon", pattern="|", dash="8px,3px"),
    TraceStyle(color=ORANGE, symbol="triangle-down", pattern="-", dash="2px,6px"),
    TraceStyle(color=GREEN, symbol="pentagon", pattern="/", dash="12px,3px,3px,3px"),
)


def algorithm_style(label: str, looks: Mapping[str, int]) -> TraceStyle:
    """The style of a calibration algorithm, the same in every figure.

    Args:
        label: Name of an algorithm, with or without its percentile: "percentile 99.9" looks like "percentile".
        looks: Index of each algorithm's style by name, as `trtkit.calibration.algorithms.figure_looks` gives them.
    """
    return _ALGORITHM_STYLES[looks.get(label.split(" ")[0], 0) % len(_ALGORITHM_STYLES)]


def overview_figure(
    frame: pl.DataFrame, log_shares: NDArray[np.float64], *, selected: str = "", algorithm: str = ""
) -> go.Figure:
    """The histogram of every tensor as a column, and the share of its largest magnitude that the scale covers.

    Args:
        frame: `AlgorithmComparison.frame` of the algorithm in use; `reach` may be that of a shared scale.
        log_shares: (bands, tensors), decimal logarithms of the shares of values by band of magnitude; NaN for none.
        selected: The tensor to mark.
        algorithm: The algorithm in use, for the legend.
    """
    names, positions = frame["tensor"].to_list(), list(range(len(frame)))
    covered = (frame["covered"] * 100).to_list()
    texts = [
        f"{escape_text(name)}<br>covers {reach:.4g} of {largest:.4g}"
        + ("" if clipped is None else f", clips {clipped:.4%} of values")
        for name, reach, largest, clipped in frame.select("tensor", "reach", "largest", "clipped").iter_rows()
    ]
    figure = go.Figure()
    if not np.isnan(log_shares).all():
        bands = len(log_shares)
        figure.add_heatmap(
            x=positions,
            y=(np.arange(bands) + 0.5) * 100 / bands,
            # JSON has no NaN.
            z=[[None if np.isnan(share) else round(float(share), 3) for share in row] for row in log_shares],
            zmin=MIN_LOG_SHARE,
            zmax=0,
            colorscale=SHADES,
            colorbar={
                "title": {"text": "share of<br>values", "side": "top"},
                "tickvals": [0, -2, -4, -6],
                "ticktext": ["all", "1 %", "0.01 %", "1 ppm"],
                "thickness": 12,
                "outlinewidth": 0,
            },
            name="values",
            hoverinfo="skip",
        )
    figure.add_scatter(
        x=positions,
        y=covered,
        name=f"covered by {escape_text(algorithm)}" if algorithm else "covered",
        mode="lines+markers",
        line={"shape": "hvh", "color": VERMILION, "width": 2},
        marker={"symbol": "line-ew", "size": 7, "color": VERMILION, "line": {"width": 2, "color": VERMILION}},
        customdata=names,
        text=texts,
        hovertemplate="%{text}<extra></extra>",
    )
    position = names.index(selected) if selected in names else None
    figure.add_scatter(
        x=[] if position is None else [position],
        y=[] if position is None else [covered[position]],
        name="selected",
        mode="markers",
        marker={"symbol": "diamond-open", "size": 15, "color": INK, "line": {"width": 3}},
        hoverinfo="skip",
    )
    figure.update_xaxes(
        title_text="tensor, in graph order", title_standoff=6, showgrid=False, range=[-0.5, len(names) - 0.5]
    )
    figure.update_yaxes(title_text="|x|, % of its largest", range=[0, 104], showgrid=False)
    return figure.update_layout(template=template(), height=360, legend=LEGEND, hovermode="closest")


def histogram_figure(
    bins: pl.DataFrame | None,
    reach: float,
    *,
    largest: float,
    algorithm: str = "",
    others: Mapping[str, float] | None = None,
    looks: Mapping[str, int] | None = None,
) -> go.Figure:
    """The histogram of one tensor with the magnitude that its scale covers, and what is clipped.

    Args:
        bins: `Histogram.bins`: `middle`, `width` and `count` of each bin of |x|; None if there is no histogram.
        reach: The magnitude that the scale covers.
        largest: The largest magnitude of the tensor.
        algorithm: The algorithm in use, for the legend.
        others: The magnitude that other algorithms cover, by label.
        looks: As for `algorithm_style`.
    """
    figure = go.Figure()
    top = 1.0
    if bins is not None:
        top = float(max(bins["count"].to_list(), default=1) or 1)
        for part, name, pattern in (
            (bins.filter(bins["middle"] <= reach), "covered", ""),
            (bins.filter(bins["middle"] > reach), "clipped", "/"),
        ):
            figure.add_bar(
                x=part["middle"],
                # A logarithmic axis has no zero.
                y=[count or None for count in part["count"]],
                width=part["width"],
                name=name,
                marker={
                    "color": VERMILION if pattern else BLUE,
                    "line": {"width": 0},
                    "pattern": hatch(pattern, size=5),
                },
                hovertemplate=f"|x| near %{{x:.4g}}: %{{y:,}} values, {name}<extra></extra>",
            )
    for name, value in (others or {}).items():
        style = algorithm_style(name, looks or {})
        figure.add_scatter(
            x=[value, value],
            y=[1, top * 2],
            name=escape_text(name),
            mode="lines+markers",
            line={"color": style.color, "dash": style.dash, "width": 1.5},
            marker={"symbol": style.symbol, "size": 8, "color": style.color},
            # What a click selects in the tuner.
            customdata=[name, name],
            hovertemplate=f"{escape_text(name)} covers {value:.4g}<extra></extra>",
        )
    figure.add_scatter(
        x=[reach, reach],
        y=[1, top * 4],
        name=f"in use: {escape_text(algorithm)}" if algorithm else "in use",
        mode="lines+text",
        line={"color": INK, "width": 3},
        text=["", f" ±{reach:.4g}"],
        textposition="middle left" if reach > largest / 2 else "middle right",
        hovertemplate=f"covers {reach:.4g}<extra></extra>",
    )
    figure.update_yaxes(type="log", title_text="values", range=[-0.05, np.log10(top * 12)], exponentformat="power")
    figure.update_xaxes(title_text="|x|", title_standoff=6, range=[0, 1.04 * max(largest, reach, 1e-12)])
    return figure.update_layout(template=template(), height=360, bargap=0, legend=LEGEND, barmode="overlay")


def ranges_figure(ranges: pl.DataFrame, *, title: str) -> go.Figure:
    """The range of every tensor in graph order.

    Args:
        ranges: Columns `tensor`, `low` and `high`.
        title: Title of the figure.
    """
    figure = go.Figure(
        go.Bar(
            x=list(range(len(ranges))),
            y=ranges["high"] - ranges["low"],
            base=ranges["low"],
            customdata=[
                (escape_text(name), low, high) for name, low, high in ranges.select("tensor", "low", "high").rows()
            ],
            hovertemplate="%{customdata[0]}<br>%{customdata[1]:.4g} to %{customdata[2]:.4g}<extra></extra>",
        )
    )
    return figure.update_layout(
        template=template(), title=escape_text(title), xaxis_title="tensor, in graph order", yaxis_title="value"
    )


def tensor_figure(
    bins: pl.DataFrame, reaches: Mapping[str, float], *, tensor: str, largest: float, looks: Mapping[str, int]
) -> go.Figure:
    """The histogram of one tensor with the magnitude that each algorithm covers.

    Args:
        bins: `Histogram.bins`: `middle`, `width` and `count` of each bin of |x|.
        reaches: The covered magnitude by algorithm.
        tensor: Name of the tensor.
        largest: Its largest magnitude.
        looks: As for `algorithm_style`.
    """
    figure = go.Figure(
        go.Scatter(
            x=bins["middle"],
            y=[count or None for count in bins["count"]],
            mode="lines",
            line={"shape": "hvh"},
            fill="tozeroy",
            name="values",
            hovertemplate="|x| near %{x:.4g}: %{y} values<extra></extra>",
        )
    )
    for index, (algorithm, reach) in enumerate(reaches.items()):
        style = algorithm_style(algorithm, looks)
        figure.add_vline(
            x=reach,
            line={"color": style.color, "dash": style.dash, "width": 2},
            annotation={"text": escape_text(algorithm), "font": {"color": style.color}, "yshift": -16 * index},
        )
    figure.update_yaxes(type="log", title_text="values per bin")
    figure.update_xaxes(title_text="|x|", range=[0, 1.05 * largest])
    return figure.update_layout(template=template(), title=escape_text(tensor), showlegend=False)


def diagnosis_figure(images: pl.DataFrame) -> go.Figure:
    """Cumulative distributions of brightness, contrast and aspect ratio of the calibration and the validation set.

    Args:
        images: `Diagnosis.images`: columns `set`, `brightness`, `contrast` and `aspect`.
    """
    columns = {
        "brightness": "mean gray level",
        "contrast": "standard deviation of gray levels",
        "aspect": "width/height",
    }
    figure = stacked_figure([(column.capitalize(), title, 150) for column, title in columns.items()])
    sets = images["set"].unique(maintain_order=True).to_list()
    for position, column in enumerate(columns, 1):
        for name in sets:
            style = trace_style(name, sets)
            values = images.filter(images["set"] == name)[column].sort()
            figure.add_scatter(
                x=values,
                y=[(index + 1) / len(values) for index in range(len(values))],
                name=f"{escape_text(name)} ({len(values)})",
                legendgroup=name,
                showlegend=position == 1,
                mode="lines",
                line={"shape": "hv", "color": style.color, "dash": style.dash},
                row=position,
                col=1,
            )
    return figure.update_yaxes(title_text="images up to", tickformat=".0%")
