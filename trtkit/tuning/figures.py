"""Figures of sweeps, sensitivities and searches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go
import polars as pl
from plotly.subplots import make_subplots

from trtkit.plots import mark, template

if TYPE_CHECKING:
    from trtkit.tuning.search import Search
    from trtkit.tuning.sensitivity import Sensitivity
    from trtkit.tuning.sweep import Sweep

__all__ = ["search_figure", "sensitivity_figure", "sweep_figure"]


def sweep_figure(sweep: Sweep) -> go.Figure:
    """The loss by number of pictures, a line an algorithm, with intervals."""
    rows = sweep.rows.with_columns(
        name=pl.when(pl.col("percentile").is_null())
        .then(pl.col("algorithm"))
        .otherwise(pl.format("{} {}", "algorithm", "percentile"))
    )
    names = rows["name"].unique(maintain_order=True).to_list()
    figure = go.Figure()
    for name in names:
        part = rows.filter(pl.col("name") == name).sort("images")
        look = mark(name, names)
        figure.add_scatter(
            x=part["images"],
            y=part["loss"],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": part["loss_high"] - part["loss"],
                "arrayminus": part["loss"] - part["loss_low"],
                "thickness": 1,
            },
            name=name,
            mode="lines+markers",
            line={"color": look.colour, "dash": look.dash},
            marker={"symbol": look.symbol, "size": 9},
            hovertemplate=f"{name}, %{{x}} pictures: loss %{{y:.4f}}<extra></extra>",
        )
    enough = sweep.enough
    figure.add_scatter(
        x=[enough["images"]],
        y=[enough["loss"]],
        name="enough",
        mode="markers",
        marker={"symbol": "circle-open", "size": 20, "line": {"width": 2}},
    )
    figure.update_xaxes(type="log", title_text="pictures to calibrate on", tickvals=rows["images"].unique().to_list())
    figure.update_yaxes(title_text=f"loss of {sweep.metric} against FP32", zeroline=True)
    return figure.update_layout(template=template(), title=sweep.verdict().split(":")[0])


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
            error_y={
                "type": "data",
                "symmetric": False,
                "array": part["loss"] - part["loss_low"],
                "arrayminus": part["loss_high"] - part["loss"],
                "thickness": 1,
            },
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
