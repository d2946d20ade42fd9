"""Figures of a calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from trtkit.calibration.algorithms import ALGORITHMS, magnitude
from trtkit.calibration.histogram import BINS
from trtkit.errors import CalibrationError
from trtkit.plots import BLUE, GREEN, ORANGE, PURPLE, VERMILION, Mark, mark, template

if TYPE_CHECKING:
    from trtkit.calibration.calibration import Calibration
    from trtkit.calibration.doctor import Diagnosis

__all__ = ["LOOKS", "diagnosis_figure", "ranges_figure", "tensor_figure"]

SHOWN_BINS = 512

LOOKS = {
    "minmax": Mark(colour=VERMILION, symbol="triangle-up", pattern="", dash="solid"),
    "moving_average": Mark(colour=PURPLE, symbol="cross", pattern="", dash="longdash"),
    "entropy": Mark(colour=ORANGE, symbol="square", pattern="", dash="dashdot"),
    "percentile": Mark(colour=BLUE, symbol="circle", pattern="", dash="dash"),
    "mse": Mark(colour=GREEN, symbol="diamond", pattern="", dash="dot"),
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
        title=f"Ranges by {calibration.algorithm} over {calibration.images} pictures of {calibration.split}",
        xaxis_title="tensor, in graph order",
        yaxis_title="value",
    )


def tensor_figure(calibration: Calibration, tensor: str) -> go.Figure:
    """How often a tensor's magnitudes fall where, with the magnitude that each algorithm would cover.

    Raises:
        CalibrationError: No histogram of that tensor was kept.
    """
    seen = calibration.seen.get(tensor)
    if seen is None or seen.histogram is None:
        raise CalibrationError(
            f"plot tensor {tensor!r}",
            "no histogram of it was kept",
            "calibrate with histograms=True and name one of calibration.histograms",
        )
    histogram = seen.histogram
    # The range ends at a power of two; what lies beyond the largest value is empty.
    used = int(np.flatnonzero(histogram.counts)[-1]) + 1 if histogram.total else 1
    merged = -(-used // SHOWN_BINS)
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
        look = LOOKS[algorithm]
        reach = magnitude(seen, algorithm, tensor=tensor)
        figure.add_vline(
            x=reach,
            line={"color": look.colour, "dash": look.dash, "width": 2},
            annotation={"text": algorithm, "font": {"color": look.colour}, "yshift": -16 * index},
        )
    figure.update_yaxes(type="log", title_text="values in a bin")
    figure.update_xaxes(title_text="|x|", range=[0, 1.05 * max(abs(seen.low), abs(seen.high))])
    return figure.update_layout(template=template(), title=tensor, showlegend=False)


def diagnosis_figure(diagnosis: Diagnosis) -> go.Figure:
    """Brightness, contrast and aspect of the calibration set beside validation's."""
    from plotly.subplots import make_subplots

    columns = {"brightness": "mean grey level", "contrast": "spread of grey levels", "aspect": "width over height"}
    figure = make_subplots(rows=1, cols=len(columns), subplot_titles=list(columns))
    sets = diagnosis.pictures["set"].unique(maintain_order=True).to_list()
    for place, (column, title) in enumerate(columns.items(), 1):
        for name in sets:
            look = mark(name, sets)
            values = diagnosis.pictures.filter(diagnosis.pictures["set"] == name)[column].sort()
            figure.add_scatter(
                x=values,
                y=[(index + 1) / len(values) for index in range(len(values))],
                name=f"{name} ({len(values)})",
                legendgroup=name,
                showlegend=place == 1,
                mode="lines",
                line={"shape": "hv", "color": look.colour, "dash": look.dash},
                row=1,
                col=place,
            )
        figure.update_xaxes(title_text=title, row=1, col=place)
    figure.update_yaxes(tickformat=".0%")
    figure.update_yaxes(title_text="share of pictures up to", col=1)
    # Below the titles of the axes.
    return figure.update_layout(template=template(), legend={"y": -0.26})
