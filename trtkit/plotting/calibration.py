"""The ranges an algorithm chooses over what was seen: of all tensors at once, and of one."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
import polars as pl

from trtkit.calibration.algorithms import ALGORITHMS, BINS, compute_magnitude
from trtkit.errors import CalibrationError
from trtkit.plotting.theme import BLUE, GREEN, INK, ORANGE, PURPLE, SKY, VERMILION, TraceStyle, template, trace_style

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtkit.calibration.algorithm_comparison import AlgorithmComparison
    from trtkit.calibration.algorithms import Histogram
    from trtkit.calibration.calibration import Calibration
    from trtkit.calibration.diagnosis import Diagnosis

__all__ = [
    "ALGORITHM_STYLES",
    "algorithm_style",
    "diagnosis_figure",
    "histogram_figure",
    "overview_figure",
    "ranges_figure",
    "tensor_figure",
]

ROWS = 48
"""Bands of magnitude in the overview."""

SHOWN_BINS = 256

RAREST = -7.0
"""Logarithm of the smallest share of values that the overview still shades: one in ten million."""

LEGEND = {"y": 1.02, "yanchor": "bottom"}

# See-through at one end, so that light and dark pages shine through.
SHADES = ((0.0, "rgba(0,114,178,0.06)"), (1.0, "rgba(0,114,178,0.95)"))


def overview_figure(
    readings: AlgorithmComparison, frame: pl.DataFrame, *, selected: str = "", algorithm: str = ""
) -> go.Figure:
    """Every tensor's histogram as a column, with what the scale covers as a line.

    Args:
        readings: The pass.
        frame: `AlgorithmComparison.frame` of the algorithm in use; `reach` may be that of a shared scale.
        selected: The tensor to mark.
        algorithm: The algorithm in use, for the legend.
    """
    names, places = frame["tensor"].to_list(), list(range(len(frame)))
    covered = (frame["covered"] * 100).to_list()
    told = [
        f"{name}<br>covers {reach:.4g} of {largest:.4g}{'' if clipped is None else f', clips {clipped:.4%} of values'}"
        for name, reach, largest, clipped in frame.select("tensor", "reach", "largest", "clipped").iter_rows()
    ]
    figure = go.Figure()
    shares = _density_rows(readings, tuple(names))
    if shares is not None:
        figure.add_heatmap(
            x=places,
            y=(np.arange(ROWS) + 0.5) * 100 / ROWS,
            z=shares,
            zmin=RAREST,
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
        x=places,
        y=covered,
        name=f"covered by {algorithm}" if algorithm else "covered",
        mode="lines+markers",
        line={"shape": "hvh", "color": VERMILION, "width": 2},
        marker={"symbol": "line-ew", "size": 7, "color": VERMILION, "line": {"width": 2, "color": VERMILION}},
        customdata=names,
        text=told,
        hovertemplate="%{text}<extra></extra>",
    )
    place = names.index(selected) if selected in names else None
    figure.add_scatter(
        x=[] if place is None else [place],
        y=[] if place is None else [covered[place]],
        name="shown beside",
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
    readings: AlgorithmComparison,
    tensor: str,
    reach: float,
    *,
    algorithm: str = "",
    others: Mapping[str, float] | None = None,
) -> go.Figure:
    """One tensor's histogram with the chosen range, what it clips, and what other algorithms would cover.

    Args:
        readings: The pass.
        tensor: Its name.
        reach: The magnitude that its scale covers.
        algorithm: The algorithm in use.
        others: What other algorithms cover, by name.
    """
    figure = go.Figure()
    seen = readings.stats(tensor)
    largest = reach if seen is None else max(abs(seen.low), abs(seen.high))
    top = 1.0
    if seen is not None and seen.histogram is not None:
        middles, counts, width = merge_bins(seen.histogram)
        top = float(max(counts.max(), 1))
        inside = middles <= reach
        for part, name, hatch in ((inside, "covered", ""), (~inside, "clipped", "/")):
            figure.add_bar(
                x=middles[part],
                # On a logarithmic axis an empty bin has no place; NaN would be no JSON.
                y=[int(count) or None for count in counts[part]],
                width=width,
                name=name,
                marker={
                    "color": VERMILION if hatch else BLUE,
                    "line": {"width": 0},
                    "pattern": {"shape": hatch, "fillmode": "overlay", "fgcolor": "#ffffff", "size": 5},
                },
                hovertemplate=f"|x| near %{{x:.4g}}: %{{y:,}} values, {name}<extra></extra>",
            )
    for name, value in (others or {}).items():
        look = algorithm_style(name)
        figure.add_scatter(
            x=[value, value],
            y=[1, top * 2],
            name=name,
            mode="lines+markers",
            line={"color": look.color, "dash": look.dash, "width": 1.5},
            marker={"symbol": look.symbol, "size": 8, "color": look.color},
            hovertemplate=f"{name} covers {value:.4g}<extra></extra>",
        )
    figure.add_scatter(
        x=[reach, reach],
        y=[1, top * 4],
        name=f"in use: {algorithm}" if algorithm else "in use",
        mode="lines+text",
        line={"color": INK, "width": 3},
        text=["", f" ±{reach:.4g}"],
        textposition="middle left" if reach > largest / 2 else "middle right",
        hovertemplate=f"covers {reach:.4g}<extra></extra>",
    )
    figure.update_yaxes(type="log", title_text="values", range=[-0.05, np.log10(top * 12)], exponentformat="power")
    figure.update_xaxes(title_text="|x|", title_standoff=6, range=[0, 1.04 * max(largest, reach, 1e-12)])
    return figure.update_layout(template=template(), height=360, bargap=0, legend=LEGEND, barmode="overlay")


def algorithm_style(name: str) -> TraceStyle:
    """The look of an algorithm, the same in every figure; "percentile 99.9" looks like "percentile"."""
    return _LOOKS.get(name.split(" ")[0], _LOOKS["minmax"])


# Five algorithms need five looks, and `plots.mark` keeps three of its six for the precisions.
_LOOKS = {
    "minmax": TraceStyle(color=ORANGE, symbol="square", pattern="/", dash="dash"),
    "moving_average": TraceStyle(color=GREEN, symbol="diamond", pattern="x", dash="dot"),
    "entropy": TraceStyle(color=PURPLE, symbol="cross", pattern="+", dash="longdash"),
    "percentile": TraceStyle(color=SKY, symbol="star", pattern=".", dash="longdashdot"),
    "mse": TraceStyle(color=BLUE, symbol="triangle-up", pattern="\\", dash="dashdot"),
}


@functools.lru_cache(maxsize=2)
def _density_rows(readings: AlgorithmComparison, tensors: tuple[str, ...]) -> list[list[float | None]] | None:
    """`magnitude_densities` as a page takes them, which knows no NaN; None where nothing was counted."""
    shares = magnitude_densities(readings, tensors)
    if np.isnan(shares).all():
        return None
    return [[None if np.isnan(value) else round(float(value), 3) for value in row] for row in shares]


def magnitude_densities(readings: AlgorithmComparison, tensors: tuple[str, ...]) -> NDArray[np.float64]:
    """Logarithms of the shares of values by band of magnitude, a column a tensor.

    Returns:
        (ROWS, tensors); NaN where there is none, or no histogram.
    """
    columns = np.full((ROWS, len(tensors)), np.nan)
    for place, tensor in enumerate(tensors):
        seen = readings.stats(tensor)
        if seen is not None and seen.histogram is not None and seen.histogram.exponent is not None:
            columns[:, place] = _bands(seen.histogram, max(abs(seen.low), abs(seen.high)))
    return columns


def _bands(histogram: Histogram, largest: float) -> NDArray[np.float64]:
    total = histogram.total
    if not total or not largest:
        return np.full(ROWS, np.nan)
    middles = (np.arange(BINS) + 0.5) * histogram.width
    # The last band also takes the last bin's middle, which may lie beyond the largest value.
    band = np.minimum((middles / largest * ROWS).astype(np.int64), ROWS - 1)
    counts = np.bincount(band, weights=histogram.counts.astype(np.float64), minlength=ROWS)
    return np.where(counts > 0, np.log10(np.maximum(counts, 1) / total), np.nan)


def merge_bins(histogram: Histogram) -> tuple[NDArray[np.float64], NDArray[np.int64], float]:
    """A histogram in at most `SHOWN_BINS` bins up to the last one that holds anything.

    Returns:
        Middles of the bins, their counts, and their width.
    """
    used = int(np.flatnonzero(histogram.counts)[-1]) + 1 if histogram.total else 1
    each = -(-used // SHOWN_BINS)
    counts = np.asarray(np.add.reduceat(histogram.counts[:used], np.arange(0, used, each)), np.int64)
    width = histogram.width * each
    middles = np.asarray((np.arange(len(counts)) + 0.5) * width, np.float64)
    return middles, counts, width


# Figures of a calibration.


FIGURES_SHOWN_BINS = 512

ALGORITHM_STYLES = {
    "minmax": TraceStyle(color=VERMILION, symbol="triangle-up", pattern="", dash="solid"),
    "moving_average": TraceStyle(color=PURPLE, symbol="cross", pattern="", dash="longdash"),
    "entropy": TraceStyle(color=ORANGE, symbol="square", pattern="", dash="dashdot"),
    "percentile": TraceStyle(color=BLUE, symbol="circle", pattern="", dash="dash"),
    "mse": TraceStyle(color=GREEN, symbol="diamond", pattern="", dash="dot"),
}
"""How each algorithm looks in every figure."""


def ranges_figure(calibration: Calibration) -> go.Figure:
    """The ranges in graph order, as bars from the lowest to the highest value."""
    frame = calibration.frame()
    figure = go.Figure(
        go.Bar(
            x=list(range(len(frame))),
            y=frame["high"] - frame["low"],
            base=frame["low"],
            customdata=frame.select("tensor", "low", "high").rows(),
            hovertemplate="%{customdata[0]}<br>%{customdata[1]:.4g} to %{customdata[2]:.4g}<extra></extra>",
        )
    )
    return figure.update_layout(
        template=template(),
        title=f"Ranges by {calibration.algorithm} over {calibration.images} images of {calibration.split}",
        xaxis_title="tensor, in graph order",
        yaxis_title="value",
    )


def tensor_figure(calibration: Calibration, tensor: str) -> go.Figure:
    """How often a tensor's magnitudes fall where, with the magnitude that each algorithm would cover.

    Raises:
        CalibrationError: No histogram of that tensor was kept.
    """
    seen = calibration.stats.get(tensor)
    if seen is None or seen.histogram is None:
        raise CalibrationError(
            f"plot tensor {tensor!r}",
            "no histogram of it was kept",
            "calibrate with histograms=True and name one of calibration.histograms",
        )
    histogram = seen.histogram
    # The range ends at a power of two; what lies beyond the largest value is empty.
    used = int(np.flatnonzero(histogram.counts)[-1]) + 1 if histogram.total else 1
    merged = -(-used // FIGURES_SHOWN_BINS)
    shown = np.add.reduceat(histogram.counts, np.arange(0, BINS, merged))
    width = histogram.width * merged
    figure = go.Figure(
        go.Scatter(
            x=(np.arange(len(shown)) + 0.5) * width,
            y=np.where(shown > 0, shown, np.nan),
            mode="lines",
            line={"shape": "hvh"},
            fill="tozeroy",
            name="values",
            hovertemplate="|x| near %{x:.4g}: %{y} values<extra></extra>",
        )
    )
    for index, algorithm in enumerate(ALGORITHMS):
        look = ALGORITHM_STYLES[algorithm]
        reach = compute_magnitude(seen, algorithm, tensor=tensor)
        figure.add_vline(
            x=reach,
            line={"color": look.color, "dash": look.dash, "width": 2},
            annotation={"text": algorithm, "font": {"color": look.color}, "yshift": -16 * index},
        )
    figure.update_yaxes(type="log", title_text="values in a bin")
    figure.update_xaxes(title_text="|x|", range=[0, 1.05 * max(abs(seen.low), abs(seen.high))])
    return figure.update_layout(template=template(), title=tensor, showlegend=False)


def diagnosis_figure(diagnosis: Diagnosis) -> go.Figure:
    """Brightness, contrast and aspect of the calibration set beside validation's."""
    from plotly.subplots import make_subplots

    columns = {"brightness": "mean gray level", "contrast": "spread of gray levels", "aspect": "width over height"}
    figure = make_subplots(rows=1, cols=len(columns), subplot_titles=list(columns))
    sets = diagnosis.images["set"].unique(maintain_order=True).to_list()
    for place, (column, title) in enumerate(columns.items(), 1):
        for name in sets:
            look = trace_style(name, sets)
            values = diagnosis.images.filter(diagnosis.images["set"] == name)[column].sort()
            figure.add_scatter(
                x=values,
                y=[(index + 1) / len(values) for index in range(len(values))],
                name=f"{name} ({len(values)})",
                legendgroup=name,
                showlegend=place == 1,
                mode="lines",
                line={"shape": "hv", "color": look.color, "dash": look.dash},
                row=1,
                col=place,
            )
        figure.update_xaxes(title_text=title, row=1, col=place)
    figure.update_yaxes(tickformat=".0%")
    figure.update_yaxes(title_text="share of images up to", col=1)
    # Below the titles of the axes.
    return figure.update_layout(template=template(), legend={"y": -0.26})
