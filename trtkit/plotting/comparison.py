"""Figures of a comparison in which one precision and one class stand out, so that several can be read together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
import polars as pl

from trtkit.plotting.theme import INK, LINE, TraceStyle, template, trace_style

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["accuracy_figure", "classes_change_figure", "latency_figure", "size_figure"]

FAINT = 0.45
"""Opacity of what does not stand out: still readable, and told apart by its shape."""

MOST_CLASSES = 40

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
