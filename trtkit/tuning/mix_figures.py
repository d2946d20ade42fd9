"""Figures to choose a mix by: layers by what INT8 costs them, and accuracy against the share in INT8."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go
import polars as pl

from trtkit.plots import INK, LINE, ORANGE, PURPLE, VERMILION, mark, template
from trtkit.tuning.figures import metric_bars

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["POINTS", "ranking_figure", "share_figure"]

LEGEND = {"y": 1.02, "yanchor": "bottom"}

POINTS = {
    "label": pl.String,
    "kind": pl.String,
    **dict.fromkeys(("int8_share", "metric", "loss", "loss_low", "loss_high"), pl.Float64),
    "pareto": pl.Boolean,
    "place": pl.Int64,
}
"""Columns of `share_figure`'s points; `kind` is "searched", "found" or "judged", `place` its row there."""

SMALLEST, LARGEST = 7.0, 26.0
"""Diameters of the layers' markers, pixels."""


def ranking_figure(layers: pl.DataFrame, *, selected: str = "") -> go.Figure:
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
    for high, name, look, colour in (
        (False, "INT8", mark("int8"), mark("int8").colour),
        (True, "kept high", mark("fp16"), ORANGE),
    ):
        part = rows.filter(pl.col("high") == high)
        figure.add_scatter(
            x=part["rank"],
            y=part["y"],
            mode="markers",
            name=name,
            marker={
                "symbol": look.symbol,
                "color": colour,
                "size": [SMALLEST + (LARGEST - SMALLEST) * (share / largest) ** 0.5 for share in part["part"]],
                "line": {"width": 1.5, "color": INK if high else colour},
                "opacity": 0.9,
            },
            customdata=part["node"].to_list(),
            text=[_layer(row) for row in part.iter_rows(named=True)],
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


def share_figure(
    points: pl.DataFrame, *, metric: str, value_float: float | None, max_drop: float, share_now: float | None
) -> go.Figure:
    """Accuracy against the share of the arithmetic in INT8, with intervals, and what may be lost.

    Args:
        points: Mixes that were judged, with the columns `POINTS`.
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
        ("searched", "circle", mark("fp32").colour, 10),
        ("judged", "square", PURPLE, 12),
        ("found", "star", VERMILION, 18),
    )
    for kind, symbol, colour, size in looks:
        part = points.filter(pl.col("kind") == kind)
        figure.add_scatter(
            x=part["int8_share"],
            y=part["metric"],
            error_y=metric_bars(part, color=colour),
            mode="markers",
            name={"searched": "searched", "judged": "judged by hand", "found": "found"}[kind],
            marker={"symbol": symbol, "color": colour, "size": size, "line": {"width": 1, "color": INK}},
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


def pareto_of(shares: Sequence[float], values: Sequence[float]) -> list[bool]:
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


def _layer(row: dict[str, object]) -> str:
    cost = (
        ""
        if row["sqnr_only"] is None
        else f"<br>{row['sqnr_only']:.1f} dB alone, keeping it high gains {row['gain']:+.2f} dB"
    )
    return f"<b>{row['node']}</b><br>{row['part']:.1%} of the arithmetic{cost}"
