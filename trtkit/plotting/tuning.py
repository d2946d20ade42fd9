"""Figures to choose a mix by: layers by what INT8 costs them, and accuracy against the share in INT8."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
import polars as pl
from plotly.subplots import make_subplots

from trtkit.plotting.calibration import ALGORITHM_STYLES
from trtkit.plotting.theme import INK, LINE, ORANGE, PURPLE, VERMILION, template, trace_style

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trtkit.tuning.search import Search
    from trtkit.tuning.sensitivity import Sensitivity
    from trtkit.tuning.sweep import Sweep

__all__ = [
    "SHARE_POINTS",
    "error_bars",
    "int8_evaluation_figure",
    "int8_share_figure",
    "layer_ranking_figure",
    "metric_error_bars",
    "search_figure",
    "sensitivity_figure",
    "sweep_figure",
]


# Figures of sweeps, sensitivities and searches.


# Percentiles share their color.
_PERCENTILES = ("circle", "circle-open", "star", "hourglass")
_DASHES = ("solid", "dash", "dot", "dashdot")


def error_bars(*, up: pl.Series, down: pl.Series, **look: Any) -> dict[str, Any]:
    """Plotly's error bars from the lengths above and below each point.

    Args:
        up: Lengths above.
        down: Lengths below.
        **look: Further settings of the bars, such as `color`.
    """
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1, **look}


def metric_error_bars(trials: pl.DataFrame, **look: Any) -> dict[str, Any]:
    """Error bars of the metric, from the interval of its loss: what raises the loss lowers the metric.

    Args:
        trials: With the columns `loss`, `loss_low` and `loss_high`.
        **look: As for `error_bars`.
    """
    return error_bars(up=trials["loss"] - trials["loss_low"], down=trials["loss_high"] - trials["loss"], **look)


def sweep_figure(sweep: Sweep) -> go.Figure:
    """The loss by number of images, a line an algorithm, with intervals side by side."""
    figure = go.Figure()
    settings = sweep.rows.select("algorithm", "percentile").unique(maintain_order=True).rows()
    percentiles = [percentile for _, percentile in settings if percentile is not None]
    for place, (algorithm, percentile) in enumerate(settings):
        name = algorithm if percentile is None else f"{algorithm} {percentile:g}"
        part = sweep.rows.filter(
            (pl.col("algorithm") == algorithm) & pl.col("percentile").eq_missing(pl.lit(percentile, pl.Float64))
        ).sort("calibration_images")
        look = ALGORITHM_STYLES[algorithm]
        kind = 0 if percentile is None else percentiles.index(percentile) % len(_DASHES)
        figure.add_scatter(
            x=part["calibration_images"].cast(pl.String),
            y=part["loss"],
            error_y=error_bars(up=part["loss_high"] - part["loss"], down=part["loss"] - part["loss_low"], width=0),
            name=name,
            offsetgroup=str(place),
            mode="lines+markers",
            line={"color": look.color, "dash": _DASHES[kind], "width": 1},
            marker={
                "symbol": look.symbol if percentile is None else _PERCENTILES[kind],
                "size": 10,
                "color": look.color,
            },
            hovertemplate=f"{name}, %{{x}} images: loss %{{y:.4f}}<extra></extra>",
        )
    sufficient = sweep.sufficient
    figure.add_scatter(
        x=[str(sufficient["calibration_images"])],
        y=[sufficient["loss"]],
        name="sufficient",
        offsetgroup=str(settings.index((sufficient["algorithm"], sufficient["percentile"]))),
        mode="markers",
        marker={"symbol": "circle-open", "size": 20, "color": INK, "line": {"width": 2}},
        hoverinfo="skip",
    )
    order = [str(count) for count in sweep.rows["calibration_images"].unique().sort()]
    figure.update_xaxes(
        type="category", categoryorder="array", categoryarray=order, title_text="images to calibrate on"
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
    for row, column, look in ((1, "sqnr_only", trace_style("fp32")), (2, "gain", trace_style("int8"))):
        figure.add_bar(
            x=list(range(len(layers))),
            y=layers[column],
            marker={"color": look.color, "opacity": shade},
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
    groups = trials["algorithm"].fill_null("fp16").unique(maintain_order=True).to_list()
    for name in groups:
        part = trials.filter(pl.col("algorithm").fill_null("fp16") == name)
        look = trace_style(name, groups)
        figure.add_scatter(
            x=part["cost"],
            y=part["metric"],
            error_y=metric_error_bars(part),
            mode="markers",
            name=name,
            marker={"color": look.color, "symbol": look.symbol, "size": 10},
            customdata=part.select("assignment", "int8_share", "loss").rows(),
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


def int8_evaluation_figure(rows: pl.DataFrame) -> go.Figure:
    """The metric in INT8 with the 95 % confidence interval of its loss, beside the metric in FP32.

    Args:
        rows: `Int8Evaluation.frame`s: `label`, `metric` (its name), `value`, `value_float`, `loss`, `loss_low` and
            `loss_high`.
    """
    figure = go.Figure()
    figure.add_scatter(
        x=rows["label"],
        y=rows["value_float"],
        mode="markers",
        name="FP32",
        marker={"color": trace_style("fp32").color, "symbol": trace_style("fp32").symbol, "size": 10},
    )
    figure.add_scatter(
        x=rows["label"],
        y=rows["value"],
        error_y=metric_error_bars(rows),
        mode="markers",
        name="INT8",
        marker={"color": trace_style("int8").color, "symbol": trace_style("int8").symbol, "size": 10},
    )
    figure.update_yaxes(title_text=rows["metric"][0])
    return figure.update_layout(template=template(), height=360)


LEGEND = {"y": 1.02, "yanchor": "bottom"}

SHARE_POINTS = {
    "label": pl.String,
    "kind": pl.String,
    **dict.fromkeys(("int8_share", "metric", "loss", "loss_low", "loss_high"), pl.Float64),
    "pareto": pl.Boolean,
    "place": pl.Int64,
}
"""Columns of `int8_share_figure`'s points; `kind` is "searched", "found" or "judged", `place` its row there."""

SMALLEST, LARGEST = 7.0, 26.0
"""Diameters of the layers' markers, pixels."""


def layer_ranking_figure(layers: pl.DataFrame, *, selected: str = "") -> go.Figure:
    """Layers in the order given: what INT8 costs each, how much arithmetic it has, and whether it is kept high.

    Args:
        layers: One row a layer: `node`, `block`, `macs`, `sqnr_only` (dB; null where it was not measured), `gain` (dB)
            and `high` (whether it is kept high).
        selected: The layer to mark.
    """
    measured = layers["sqnr_only"].null_count() < len(layers)
    total = max(int(layers["macs"].sum() or 0), 1)
    rows = layers.with_row_index("rank").with_columns(
        pl.col("rank").cast(pl.Int64),
        part=pl.col("macs").fill_null(0) / total,
        y=pl.col("sqnr_only") if measured else pl.col("macs").fill_null(0) / total,
    )
    figure = go.Figure()
    figure.add_bar(
        x=rows["rank"], y=rows["y"], width=0.12, marker={"color": LINE, "line": {"width": 0}}, showlegend=False,
        hoverinfo="skip",
    )  # fmt: skip
    largest = max(float(rows["part"].max() or 0.0), 1e-12)  # type: ignore[arg-type]
    for high, name, look, color in (
        (False, "INT8", trace_style("int8"), trace_style("int8").color),
        (True, "kept high", trace_style("fp16"), ORANGE),
    ):
        part = rows.filter(pl.col("high") == high)
        figure.add_scatter(
            x=part["rank"],
            y=part["y"],
            mode="markers",
            name=name,
            marker={
                "symbol": look.symbol,
                "color": color,
                "size": [SMALLEST + (LARGEST - SMALLEST) * (share / largest) ** 0.5 for share in part["part"]],
                "line": {"width": 1.5, "color": INK if high else color},
                "opacity": 0.9,
            },
            customdata=part["node"].to_list(),
            text=[_layer_text(row) for row in part.iter_rows(named=True)],
            hovertemplate="%{text}<extra>" + name + "</extra>",
        )
    marked = rows.filter(pl.col("node") == selected)
    figure.add_scatter(
        x=marked["rank"],
        y=marked["y"],
        mode="markers",
        name="shown above",
        marker={"symbol": "circle-open", "size": LARGEST + 8, "color": INK, "line": {"width": 2.5}},
        hoverinfo="skip",
    )
    told = "the costliest on the left" if measured else "in graph order; their cost was not measured yet"
    figure.update_xaxes(title_text=f"layers, {told}", title_standoff=6, range=[-0.8, len(rows) - 0.2], showgrid=False)
    title = "SQNR alone in INT8, dB<br>(lower costs more)" if measured else "share of the arithmetic"
    figure.update_yaxes(title_text=title, rangemode="tozero", tickformat="" if measured else ".1%")
    return figure.update_layout(template=template(), height=320, legend=LEGEND, margin={"t": 40}, hovermode="closest")


def int8_share_figure(
    points: pl.DataFrame, *, metric: str, value_float: float | None, max_drop: float, share_now: float | None
) -> go.Figure:
    """Accuracy against the share of the arithmetic in INT8, with intervals, and what may be lost.

    Args:
        points: Mixes that were judged, with the columns `SHARE_POINTS`.
        metric: The name of what judges.
        value_float: What FP32 gets, or None where nothing was judged.
        max_drop: The loss that is allowed.
        share_now: The share of the mix that is being put together, 0..1, or None where it is not known.
    """
    figure = go.Figure()
    front = points.filter("pareto").sort("int8_share")
    figure.add_scatter(
        x=front["int8_share"], y=front["metric"], mode="lines", name="nothing beats these",
        line={"color": INK, "dash": "dot", "width": 1.5}, hoverinfo="skip",
    )  # fmt: skip
    looks = (
        ("searched", "circle", trace_style("fp32").color, 10),
        ("judged", "square", PURPLE, 12),
        ("found", "star", VERMILION, 18),
    )
    for kind, symbol, color, size in looks:
        part = points.filter(pl.col("kind") == kind)
        figure.add_scatter(
            x=part["int8_share"],
            y=part["metric"],
            error_y=metric_error_bars(part, color=color),
            mode="markers",
            name={"searched": "searched", "judged": "judged by hand", "found": "found"}[kind],
            marker={"symbol": symbol, "color": color, "size": size, "line": {"width": 1, "color": INK}},
            customdata=part.select("kind", "place").rows(),
            text=[
                f"{label}<br>{share:.1%} in INT8, {metric} {value:.4f}<br>loss {loss:.4f} [{low:.4f}, {high:.4f}]"
                for label, share, value, loss, low, high in part.select(
                    "label", "int8_share", "metric", "loss", "loss_low", "loss_high"
                ).iter_rows()
            ],
            hovertemplate="%{text}<extra></extra>",
        )
    shapes, notes = [], []
    if value_float is not None:
        for value, name, dash in (
            (value_float, "FP32", "solid"),
            (value_float - max_drop, f"may lose {max_drop:g}", "dash"),
        ):
            shapes.append(_line(y=value, dash=dash))
            notes.append(
                {"xref": "paper", "x": 1, "y": value, "text": name, "showarrow": False, "yshift": 8, "xanchor": "right"}
            )
    span = _span(points, share_now)
    if span[0] > 0:
        # Mixes crowd near the right end; what has nothing in INT8 is told by its height alone.
        for label, value in points.filter(pl.col("int8_share") == 0).select("label", "metric").iter_rows():
            shapes.append(_line(y=value, dash="dot"))
            notes.append({"xref": "paper", "x": 0, "y": value, "text": label, "showarrow": False, "yshift": -8,
                          "xanchor": "left"})  # fmt: skip
    if share_now is not None:
        shapes.append(_line(x=share_now, dash="dot"))
        anchor, shift = ("right", -4) if share_now > 0.5 else ("left", 4)
        notes.append(
            {
                "yref": "paper", "y": 0.0, "x": share_now, "text": "your mix", "showarrow": False, "xshift": shift,
                "yshift": 10, "xanchor": anchor,
            }
        )  # fmt: skip
    figure.update_layout(shapes=shapes, annotations=notes)
    figure.update_xaxes(title_text="share of the arithmetic in INT8", title_standoff=6, tickformat=".0%", range=span)
    figure.update_yaxes(title_text=metric or "accuracy")
    return figure.update_layout(template=template(), height=340, legend=LEGEND, margin={"t": 40}, hovermode="closest")


def _span(points: pl.DataFrame, share_now: float | None) -> list[float]:
    """The shares to show: all of them, or the right end where all mixes with anything in INT8 lie there."""
    shares = [share for share in (*points["int8_share"], share_now) if share]
    lowest = min(shares, default=0.0)
    return [-0.03, 1.03] if lowest < 0.5 else [lowest - max(0.02, 0.15 * (1 - lowest)), 1.01]


def find_pareto(shares: Sequence[float], values: Sequence[float]) -> list[bool]:
    """Which points no other one beats in both the share in INT8 and the accuracy.

    Args:
        shares: Larger is better.
        values: Larger is better.
    """
    points = list(zip(shares, values, strict=True))
    return [
        not any(a >= share and b >= value and (a, b) != (share, value) for a, b in points) for share, value in points
    ]


def _line(*, x: float | None = None, y: float | None = None, dash: str) -> dict[str, object]:
    look = {"type": "line", "line": {"color": INK, "width": 1.5, "dash": dash}}
    if x is not None:
        return {**look, "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper"}
    return {**look, "y0": y, "y1": y, "x0": 0, "x1": 1, "xref": "paper"}


def _layer_text(row: dict[str, object]) -> str:
    cost = (
        ""
        if row["sqnr_only"] is None
        else f"<br>{row['sqnr_only']:.1f} dB alone, keeping it high gains {row['gain']:+.2f} dB"
    )
    return f"<b>{row['node']}</b><br>{row['part']:.1%} of the arithmetic{cost}"
