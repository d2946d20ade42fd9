"""Figures of sweeps, sensitivities and searches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
import polars as pl
from plotly.subplots import make_subplots

from trtkit.calibration.figures import LOOKS
from trtkit.plots import INK, mark, template

if TYPE_CHECKING:
    from trtkit.tuning.search import Search
    from trtkit.tuning.sensitivity import Sensitivity
    from trtkit.tuning.sweep import Sweep

__all__ = ["bars", "metric_bars", "search_figure", "sensitivity_figure", "sweep_figure"]

# Percentiles share their colour.
_PERCENTILES = ("circle", "circle-open", "star", "hourglass")
_DASHES = ("solid", "dash", "dot", "dashdot")


def bars(*, up: pl.Series, down: pl.Series, **look: Any) -> dict[str, Any]:
    """Plotly's error bars from the lengths above and below each point.

    Args:
        up: Lengths above.
        down: Lengths below.
        **look: Further settings of the bars, such as `color`.
    """
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1, **look}


def metric_bars(trials: pl.DataFrame, **look: Any) -> dict[str, Any]:
    """Error bars of the metric, from the interval of its loss: what raises the loss lowers the metric.

    Args:
        trials: With the columns `loss`, `loss_low` and `loss_high`.
        **look: As for `bars`.
    """
    return bars(up=trials["loss"] - trials["loss_low"], down=trials["loss_high"] - trials["loss"], **look)


def sweep_figure(sweep: Sweep) -> go.Figure:
    """The loss by number of pictures, a line an algorithm, with intervals side by side."""
    figure = go.Figure()
    settings = sweep.rows.select("algorithm", "percentile").unique(maintain_order=True).rows()
    percentiles = [percentile for _, percentile in settings if percentile is not None]
    for place, (algorithm, percentile) in enumerate(settings):
        name = algorithm if percentile is None else f"{algorithm} {percentile:g}"
        part = sweep.rows.filter(
            (pl.col("algorithm") == algorithm) & pl.col("percentile").eq_missing(pl.lit(percentile, pl.Float64))
        ).sort("images")
        look = LOOKS[algorithm]
        kind = 0 if percentile is None else percentiles.index(percentile) % len(_DASHES)
        figure.add_scatter(
            x=part["images"].cast(pl.String),
            y=part["loss"],
            error_y=bars(up=part["loss_high"] - part["loss"], down=part["loss"] - part["loss_low"], width=0),
            name=name,
            offsetgroup=str(place),
            mode="lines+markers",
            line={"color": look.colour, "dash": _DASHES[kind], "width": 1},
            marker={
                "symbol": look.symbol if percentile is None else _PERCENTILES[kind],
                "size": 10,
                "color": look.colour,
            },
            hovertemplate=f"{name}, %{{x}} pictures: loss %{{y:.4f}}<extra></extra>",
        )
    enough = sweep.enough
    figure.add_scatter(
        x=[str(enough["images"])],
        y=[enough["loss"]],
        name="enough",
        offsetgroup=str(settings.index((enough["algorithm"], enough["percentile"]))),
        mode="markers",
        marker={"symbol": "circle-open", "size": 20, "color": INK, "line": {"width": 2}},
        hoverinfo="skip",
    )
    order = [str(count) for count in sweep.rows["images"].unique().sort()]
    figure.update_xaxes(
        type="category", categoryorder="array", categoryarray=order, title_text="pictures to calibrate on"
    )
    figure.update_yaxes(title_text=f"loss of {sweep.metric} against FP32", zeroline=True, zerolinecolor=INK)
    figure.update_layout(template=template(), title=sweep.verdict().split(":")[0], height=520)
    return figure.update_layout(scattermode="group", scattergap=0.25, legend={"y": -0.2})


def sensitivity_figure(found: Sensitivity) -> go.Figure:
    """Each layer in graph order: its SQNR when only it is INT8, and what keeping it high gains."""
    layers = found.layers
    figure = make_subplots(
        rows=2,
        cols=1,
        shared_xaxes=True,
        subplot_titles=("Only this layer in INT8", "INT8 throughout but for this layer"),
        vertical_spacing=0.12,
    )
    blocks = layers["block"].unique(maintain_order=True).to_list()
    # Every other block in another shade, so that they can be told apart without a legend of twenty.
    shade = [0.55 if blocks.index(block) % 2 else 1.0 for block in layers["block"]]
    for row, column, look in ((1, "sqnr_only", mark("fp32")), (2, "gain", mark("int8"))):
        figure.add_bar(
            x=list(range(len(layers))),
            y=layers[column],
            marker={"color": look.colour, "opacity": shade},
            customdata=layers.select("node", "block").rows(),
            hovertemplate="%{customdata[0]}<br>%{customdata[1]}: %{y:.2f} dB<extra></extra>",
            showlegend=False,
            row=row,
            col=1,
        )
    figure.update_yaxes(title_text="SQNR, dB", row=1, col=1)
    figure.update_yaxes(title_text="gain, dB", row=2, col=1)
    places = [layers["block"].to_list().index(block) for block in blocks]
    figure.update_xaxes(tickvals=places, ticktext=blocks, row=2, col=1)
    return figure.update_layout(template=template(), height=560)


def search_figure(found: Search) -> go.Figure:
    """The metric over the cost of every trial, with intervals."""
    trials = found.trials
    figure = go.Figure()
    front = trials.filter(pl.col("pareto")).sort("cost")
    figure.add_scatter(
        x=front["cost"], y=front["metric"], mode="lines", name="nothing beats these", line={"dash": "dot", "width": 1}
    )
    groups = trials["ranges"].fill_null("fp16").unique(maintain_order=True).to_list()
    for name in groups:
        part = trials.filter(pl.col("ranges").fill_null("fp16") == name)
        look = mark(name, groups)
        figure.add_scatter(
            x=part["cost"],
            y=part["metric"],
            error_y=metric_bars(part),
            mode="markers",
            name=name,
            marker={"color": look.colour, "symbol": look.symbol, "size": 10},
            customdata=part.select("mix", "int8_share", "loss").rows(),
            hovertemplate="%{customdata[0]}<br>%{customdata[1]:.1%} in INT8, loss %{customdata[2]:.4f}<extra></extra>",
        )
    best = found.best
    figure.add_scatter(
        x=[best["cost"]],
        y=[best["metric"]],
        mode="markers",
        name="found",
        marker={"symbol": "circle-open", "size": 22, "line": {"width": 2}},
    )
    figure.add_hline(y=found.value_float - found.max_drop, line={"dash": "dash", "width": 1})
    unit = "ms a run" if best["unit"] == "ms" else "cost relative to FP16 (a model, not a time)"
    figure.update_xaxes(title_text=unit)
    figure.update_yaxes(title_text=found.metric)
    return figure.update_layout(template=template(), title="What each mix costs and keeps")
