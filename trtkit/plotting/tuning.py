"""Figures of sweeps, sensitivity analyses, searches and precision assignments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
import polars as pl
from plotly.subplots import make_subplots

from trtkit.plotting.calibration import algorithm_style
from trtkit.plotting.theme import (
    INK,
    LINE,
    ORANGE,
    PURPLE,
    VERMILION,
    escape_text,
    escape_texts,
    template,
    trace_style,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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

# Percentiles share their color.
_PERCENTILE_SYMBOLS = ("circle", "circle-open", "star", "hourglass")
LEGEND = {"y": 1.02, "yanchor": "bottom"}

_DASHES = ("solid", "dash", "dot", "dashdot")


def error_bars(*, up: pl.Series, down: pl.Series, **settings: Any) -> dict[str, Any]:
    """Plotly's settings of error bars.

    Args:
        up: Lengths above the points.
        down: Lengths below the points.
        **settings: Further settings of the bars, such as `color`.
    """
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1, **settings}


def metric_error_bars(trials: pl.DataFrame, **settings: Any) -> dict[str, Any]:
    """Error bars of the metric from the confidence interval of its loss.

    Args:
        trials: With the columns `loss`, `loss_low` and `loss_high`.
        **settings: As for `error_bars`.
    """
    return error_bars(up=trials["loss"] - trials["loss_low"], down=trials["loss_high"] - trials["loss"], **settings)


def sweep_figure(
    rows: pl.DataFrame, *, sufficient: Mapping[str, Any], metric: str, title: str, looks: Mapping[str, int]
) -> go.Figure:
    """The loss by number of calibration images, one line per algorithm, with confidence intervals side by side.

    Args:
        rows: `Sweep.rows`.
        sufficient: The row to mark.
        metric: Name of the metric.
        title: Title of the figure.
        looks: As for `trtkit.plotting.calibration.algorithm_style`.
    """
    figure = go.Figure()
    settings = rows.select("algorithm", "percentile").unique(maintain_order=True).rows()
    percentiles = [percentile for _, percentile in settings if percentile is not None]
    for position, (algorithm, percentile) in enumerate(settings):
        name = algorithm if percentile is None else f"{algorithm} {percentile:g}"
        part = rows.filter(
            (pl.col("algorithm") == algorithm) & pl.col("percentile").eq_missing(pl.lit(percentile, pl.Float64))
        ).sort("calibration_images")
        style = algorithm_style(algorithm, looks)
        variant = 0 if percentile is None else percentiles.index(percentile) % len(_DASHES)
        figure.add_scatter(
            x=part["calibration_images"].cast(pl.String),
            y=part["loss"],
            error_y=error_bars(up=part["loss_high"] - part["loss"], down=part["loss"] - part["loss_low"], width=0),
            name=escape_text(name),
            offsetgroup=str(position),
            mode="lines+markers",
            line={"color": style.color, "dash": _DASHES[variant], "width": 1},
            marker={
                "symbol": style.symbol if percentile is None else _PERCENTILE_SYMBOLS[variant],
                "size": 10,
                "color": style.color,
            },
            hovertemplate=f"{escape_text(name)}, %{{x}} images: loss %{{y:.4f}}<extra></extra>",
        )
    figure.add_scatter(
        x=[str(sufficient["calibration_images"])],
        y=[sufficient["loss"]],
        name="sufficient",
        offsetgroup=str(settings.index((sufficient["algorithm"], sufficient["percentile"]))),
        mode="markers",
        marker={"symbol": "circle-open", "size": 20, "color": INK, "line": {"width": 2}},
        hoverinfo="skip",
    )
    order = [str(count) for count in rows["calibration_images"].unique().sort()]
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=order, title_text="calibration images")
    figure.update_yaxes(title_text=f"loss of {escape_text(metric)} against FP32", zeroline=True, zerolinecolor=INK)
    figure.update_layout(template=template(), title=escape_text(title), height=520)
    return figure.update_layout(scattermode="group", scattergap=0.25, legend={"y": -0.2})


def sensitivity_figure(layers: pl.DataFrame) -> go.Figure:
    """SQNR with only one layer in INT8, and the gain of keeping it in FP16, for every layer in graph order.

    Args:
        layers: `Sensitivity.layers`: `node`, `block`, `sqnr_only` and `gain` (dB).
    """
    figure = make_subplots(
        rows=2,
        cols=1,
        shared_xaxes=True,
        subplot_titles=("Only this layer in INT8", "All layers but this one in INT8"),
        vertical_spacing=0.12,
    )
    blocks = layers["block"].unique(maintain_order=True).to_list()
    # Two alternating shades separate the blocks without a legend.
    shades = [0.55 if blocks.index(block) % 2 else 1.0 for block in layers["block"]]
    for row, column, style in ((1, "sqnr_only", trace_style("fp32")), (2, "gain", trace_style("int8"))):
        figure.add_bar(
            x=list(range(len(layers))),
            y=layers[column],
            marker={"color": style.color, "opacity": shades},
            customdata=[escape_texts(names) for names in layers.select("node", "block").rows()],
            hovertemplate="%{customdata[0]}<br>%{customdata[1]}: %{y:.2f} dB<extra></extra>",
            showlegend=False,
            row=row,
            col=1,
        )
    figure.update_yaxes(title_text="SQNR, dB", row=1, col=1)
    figure.update_yaxes(title_text="gain, dB", row=2, col=1)
    positions = [layers["block"].to_list().index(block) for block in blocks]
    figure.update_xaxes(tickvals=positions, ticktext=escape_texts(blocks), row=2, col=1)
    return figure.update_layout(template=template(), height=560)


def search_figure(trials: pl.DataFrame, *, metric: str, value_float: float, max_drop: float) -> go.Figure:
    """The metric over the cost of every trial, with confidence intervals.

    Args:
        trials: `Search.trials`.
        metric: Name of the metric.
        value_float: The metric in FP32.
        max_drop: The largest accepted loss.
    """
    figure = go.Figure()
    front = trials.filter(pl.col("pareto")).sort("cost")
    figure.add_scatter(
        x=front["cost"], y=front["metric"], mode="lines", name="Pareto front", line={"dash": "dot", "width": 1}
    )
    groups = trials["algorithm"].fill_null("fp16").unique(maintain_order=True).to_list()
    for name in groups:
        part = trials.filter(pl.col("algorithm").fill_null("fp16") == name)
        style = trace_style(name, groups)
        figure.add_scatter(
            x=part["cost"],
            y=part["metric"],
            error_y=metric_error_bars(part),
            mode="markers",
            name=escape_text(name),
            marker={"color": style.color, "symbol": style.symbol, "size": 10},
            customdata=[
                (escape_text(assignment), share, loss)
                for assignment, share, loss in part.select("assignment", "int8_share", "loss").rows()
            ],
            hovertemplate="%{customdata[0]}<br>%{customdata[1]:.1%} in INT8, loss %{customdata[2]:.4f}<extra></extra>",
        )
    chosen = trials.filter(pl.col("chosen"))
    figure.add_scatter(
        x=chosen["cost"],
        y=chosen["metric"],
        mode="markers",
        name="chosen",
        marker={"symbol": "circle-open", "size": 22, "line": {"width": 2}},
    )
    figure.add_hline(y=value_float - max_drop, line={"dash": "dash", "width": 1})
    is_timed = "ms" in chosen["unit"].to_list()
    figure.update_xaxes(title_text="latency, ms" if is_timed else "cost relative to FP16 (modeled, not measured)")
    figure.update_yaxes(title_text=escape_text(metric))
    return figure.update_layout(template=template(), title="Accuracy and cost of the precision assignments")


def int8_evaluation_figure(rows: pl.DataFrame) -> go.Figure:
    """The metric in INT8 with the 95 % confidence interval of its loss, beside the metric in FP32.

    Args:
        rows: `Int8Evaluation.frame`s: `label`, `metric` (its name), `value`, `value_float`, `loss`, `loss_low` and
            `loss_high`.
    """
    figure = go.Figure()
    figure.add_scatter(
        x=escape_texts(rows["label"]),
        y=rows["value_float"],
        mode="markers",
        name="FP32",
        marker={"color": trace_style("fp32").color, "symbol": trace_style("fp32").symbol, "size": 10},
    )
    figure.add_scatter(
        x=escape_texts(rows["label"]),
        y=rows["value"],
        error_y=metric_error_bars(rows),
        mode="markers",
        name="INT8",
        marker={"color": trace_style("int8").color, "symbol": trace_style("int8").symbol, "size": 10},
    )
    figure.update_yaxes(title_text=escape_text(rows["metric"][0]))
    return figure.update_layout(template=template(), height=360)


SHARE_POINTS = {
    "label": pl.String,
    "kind": pl.String,
    **dict.fromkeys(("int8_share", "metric", "loss", "loss_low", "loss_high"), pl.Float64),
    "pareto": pl.Boolean,
    "row": pl.Int64,
}
"""Columns of `int8_share_figure`'s points; `kind` is "searched", "chosen" or "evaluated", `row` the index there."""

SMALLEST, LARGEST = 7.0, 26.0
"""Diameters of the layers' markers, pixels."""


def layer_ranking_figure(layers: pl.DataFrame, *, selected: str = "") -> go.Figure:
    """Layers in the given order: SQNR alone in INT8, share of the multiply-accumulates, INT8 or kept in FP16.

    Args:
        layers: One row per layer: `node`, `block`, `macs`, `sqnr_only` (dB, null if not measured), `gain` (dB) and
            `kept_fp16`.
        selected: The layer to mark.
    """
    is_measured = layers["sqnr_only"].null_count() < len(layers)
    total = max(int(layers["macs"].sum() or 0), 1)
    rows = layers.with_row_index("rank").with_columns(
        pl.col("rank").cast(pl.Int64),
        share=pl.col("macs").fill_null(0) / total,
        y=pl.col("sqnr_only") if is_measured else pl.col("macs").fill_null(0) / total,
    )
    figure = go.Figure()
    figure.add_bar(
        x=rows["rank"], y=rows["y"], width=0.12, marker={"color": LINE, "line": {"width": 0}}, showlegend=False,
        hoverinfo="skip",
    )  # fmt: skip
    largest = max(float(rows["share"].max() or 0.0), 1e-12)  # type: ignore[arg-type]
    for kept, name, style, color in (
        (False, "INT8", trace_style("int8"), trace_style("int8").color),
        (True, "kept in FP16", trace_style("fp16"), ORANGE),
    ):
        part = rows.filter(pl.col("kept_fp16") == kept)
        figure.add_scatter(
            x=part["rank"],
            y=part["y"],
            mode="markers",
            name=name,
            marker={
                "symbol": style.symbol,
                "color": color,
                "size": [SMALLEST + (LARGEST - SMALLEST) * (share / largest) ** 0.5 for share in part["share"]],
                "line": {"width": 1.5, "color": INK if kept else color},
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
        name="selected",
        marker={"symbol": "circle-open", "size": LARGEST + 8, "color": INK, "line": {"width": 2.5}},
        hoverinfo="skip",
    )
    order = "lowest SQNR on the left" if is_measured else "in graph order; SQNR was not measured yet"
    figure.update_xaxes(title_text=f"layers, {order}", title_standoff=6, range=[-0.8, len(rows) - 0.2], showgrid=False)
    title = "SQNR alone in INT8, dB" if is_measured else "share of multiply-accumulates"
    figure.update_yaxes(title_text=title, rangemode="tozero", tickformat="" if is_measured else ".1%")
    return figure.update_layout(template=template(), height=320, legend=LEGEND, margin={"t": 40}, hovermode="closest")


def int8_share_figure(
    points: pl.DataFrame, *, metric: str, value_float: float | None, max_drop: float, share_now: float | None
) -> go.Figure:
    """Accuracy over the share of multiply-accumulates in INT8, with confidence intervals and the largest accepted loss.

    Args:
        points: Evaluated precision assignments, with the columns `SHARE_POINTS`.
        metric: Name of the metric.
        value_float: The metric in FP32, or None before any evaluation.
        max_drop: The largest accepted loss.
        share_now: The share of the current assignment, 0..1, or None if it is not known.
    """
    figure = go.Figure()
    front = points.filter("pareto").sort("int8_share")
    figure.add_scatter(
        x=front["int8_share"], y=front["metric"], mode="lines", name="Pareto front",
        line={"color": INK, "dash": "dot", "width": 1.5}, hoverinfo="skip",
    )  # fmt: skip
    markers = (
        ("searched", "circle", trace_style("fp32").color, 10),
        ("evaluated", "square", PURPLE, 12),
        ("chosen", "star", VERMILION, 18),
    )
    for kind, symbol, color, size in markers:
        part = points.filter(pl.col("kind") == kind)
        figure.add_scatter(
            x=part["int8_share"],
            y=part["metric"],
            error_y=metric_error_bars(part, color=color),
            mode="markers",
            name={"searched": "searched", "evaluated": "evaluated by hand", "chosen": "chosen"}[kind],
            marker={"symbol": symbol, "color": color, "size": size, "line": {"width": 1, "color": INK}},
            customdata=part.select("kind", "row").rows(),
            text=[
                f"{escape_text(label)}<br>{share:.1%} in INT8, {escape_text(metric)} {value:.4f}"
                f"<br>loss {loss:.4f} [{low:.4f}, {high:.4f}]"
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
            (value_float - max_drop, f"largest accepted loss: {max_drop:g}", "dash"),
        ):
            shapes.append(_line(y=value, dash=dash))
            notes.append(
                {"xref": "paper", "x": 1, "y": value, "text": name, "showarrow": False, "yshift": 8, "xanchor": "right"}
            )
    span = _span(points, share_now)
    if span[0] > 0:
        # The axis shows its right end only: assignments without INT8 are horizontal lines.
        without = points.filter(pl.col("int8_share") == 0)
        for label, value, loss, low, high in without.select(
            "label", "metric", "loss", "loss_low", "loss_high"
        ).iter_rows():
            shapes.append(_line(y=value, dash="dot"))
            shapes.append(_band(value - (high - loss), value + (loss - low)))
            notes.append(
                {
                    "xref": "paper", "x": 0, "y": value, "text": escape_text(label), "showarrow": False, "yshift": -8,
                    "xanchor": "left",
                }
            )  # fmt: skip
    if share_now is not None:
        shapes.append(_line(x=share_now, dash="dot"))
        anchor, shift = ("right", -4) if share_now > 0.5 else ("left", 4)
        notes.append(
            {
                "yref": "paper", "y": 0.0, "x": share_now, "text": "current", "showarrow": False, "xshift": shift,
                "yshift": 10, "xanchor": anchor,
            }
        )  # fmt: skip
    figure.update_layout(shapes=shapes, annotations=notes)
    figure.update_xaxes(
        title_text="share of multiply-accumulates in INT8", title_standoff=6, tickformat=".0%", range=span
    )
    figure.update_yaxes(title_text=escape_text(metric or "accuracy"))
    return figure.update_layout(template=template(), height=340, legend=LEGEND, margin={"t": 40}, hovermode="closest")


def _span(points: pl.DataFrame, share_now: float | None) -> list[float]:
    """The range of the axis: 0 to 1, or its right end if all assignments with INT8 are there."""
    shares = [share for share in (*points["int8_share"], share_now) if share]
    lowest = min(shares, default=0.0)
    return [-0.03, 1.03] if lowest < 0.5 else [lowest - max(0.02, 0.15 * (1 - lowest)), 1.01]


def find_pareto(first: Sequence[float], second: Sequence[float]) -> list[bool]:
    """Find the Pareto-optimal points in two figures.

    Args:
        first: One figure of each point, such as its share in INT8; larger is better.
        second: The other, such as its accuracy; larger is better.

    Returns:
        Whether each point is Pareto-optimal: none is better in one figure and no worse in the other.
    """
    points = list(zip(first, second, strict=True))
    return [not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points) for x, y in points]


def _line(*, x: float | None = None, y: float | None = None, dash: str) -> dict[str, object]:
    base = {"type": "line", "line": {"color": INK, "width": 1.5, "dash": dash}}
    if x is not None:
        return {**base, "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper"}
    return {**base, "y0": y, "y1": y, "x0": 0, "x1": 1, "xref": "paper"}


def _band(low: float, high: float) -> dict[str, object]:
    """An interval over the whole width."""
    return {
        "type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": low, "y1": high, "fillcolor": INK, "opacity": 0.12,
        "line": {"width": 0}, "layer": "below",
    }  # fmt: skip


def _layer_text(row: dict[str, object]) -> str:
    cost = (
        ""
        if row["sqnr_only"] is None
        else f"<br>{row['sqnr_only']:.1f} dB alone in INT8, {row['gain']:+.2f} dB if kept in FP16"
    )
    return f"<b>{escape_text(row['node'])}</b><br>{row['share']:.1%} of multiply-accumulates{cost}"
