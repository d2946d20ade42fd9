"""Figures of one engine's layers, and of two engines side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
import polars as pl

from trtkit.plotting.theme import INK, LINE, TraceStyle, template, trace_style

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trtkit.inspection.layer_table import LayerTable

__all__ = ["engine_diff_figure", "layers_figure", "precision_shares_figure", "precision_style"]

# Looks of what is no precision of an export; the exports' own come from `plots.mark`.
_PRECISION_STYLES = {
    "reformat": TraceStyle(color="#D55E00", symbol="x", pattern="\\", dash="dot"),
    "bf16": TraceStyle(color="#CC79A7", symbol="pentagon", pattern="+", dash="longdash"),
    "fp8": TraceStyle(color="#56B4E9", symbol="star", pattern=".", dash="longdashdot"),
    "int32": TraceStyle(color="#999999", symbol="triangle-up", pattern="|", dash="dash"),
    "int64": TraceStyle(color="#999999", symbol="triangle-down", pattern="|", dash="dash"),
    "bool": TraceStyle(color="#999999", symbol="hourglass", pattern="|", dash="dash"),
}
_ELSE = TraceStyle(color="#999999", symbol="circle-open", pattern="-", dash="dash")
ORDER = ("int8", "fp8", "fp16", "bf16", "fp32")


def precision_style(precision: str) -> TraceStyle:
    """The look of a layer's precision, of "reformat" and of whatever else TensorRT names."""
    return trace_style(precision) if precision in ("fp32", "fp16", "int8") else _PRECISION_STYLES.get(precision, _ELSE)


def layer_kinds(frame: pl.DataFrame) -> pl.Series:
    """What each layer counts as: its precision, "reformat", or "untyped"."""
    kind = pl.when("reformat").then(pl.lit("reformat")).otherwise(pl.col("precision").fill_null("untyped"))
    return frame.select(kind.alias("kind"))["kind"]


def layers_figure(table: LayerTable, *, selected: int | None = None, shown: pl.Series | None = None) -> go.Figure:
    """Every layer in the order it runs: its time where layers were timed, else its precision alone.

    Args:
        table: The engine.
        selected: The `index` of a layer to mark.
        shown: Which rows stand out, as booleans; the others are faint. None shows all alike.
    """
    frame = table.frame.with_columns(kind=layer_kinds(table.frame), place=pl.col("index").cast(pl.Int64))
    frame = frame.with_columns(bright=pl.lit(value=True) if shown is None else shown)
    height = "ms" if table.timed else "unit"
    frame = frame.with_columns(unit=pl.lit(1.0), told=_hover_text(frame, timed=table.timed))
    figure = go.Figure()
    for name in sort_precisions(frame["kind"].unique().to_list()):
        part, look = frame.filter(pl.col("kind") == name), precision_style(name)
        figure.add_bar(
            x=part["place"],
            y=part[height],
            width=0.9 if table.timed else 1.0,
            name=f"{name} ({len(part)})",
            marker={
                "color": look.color,
                "opacity": [1.0 if bright else 0.2 for bright in part["bright"]],
                "pattern": {
                    "shape": look.pattern,
                    "fillmode": "overlay",
                    "fgcolor": "#ffffff",
                    "fgopacity": 0.7,
                    "size": 5,
                },
                "line": {"width": 0},
            },
            customdata=part["place"].to_list(),
            text=part["told"].to_list(),
            textposition="none",
            hovertemplate="%{text}<extra></extra>",
        )
    if selected is not None and 0 <= selected < len(frame):
        top = float(frame[height].max() or 1.0)  # type: ignore[arg-type]
        figure.add_scatter(
            x=[selected],
            y=[float(frame[height][selected]) + 0.06 * top],
            mode="markers",
            marker={"symbol": "triangle-down", "size": 13, "color": INK},
            name="selected",
            hoverinfo="skip",
        )
    figure.update_xaxes(title_standoff=6, title_text="layer, in the order they run", range=[-1, len(frame)])
    if table.timed:
        figure.update_yaxes(title_text="ms", rangemode="tozero")
    else:
        figure.update_yaxes(visible=False, range=[0, 1.15])
    return figure.update_layout(
        template=template(),
        height=300 if table.timed else 200,
        barmode="overlay",
        bargap=0,
        margin={"t": 30, "b": 50},
        legend={"y": 1.02, "yanchor": "bottom"},
    )


def precision_shares_figure(tables: Sequence[LayerTable]) -> go.Figure:
    """What each precision has of each engine: of its time where all were timed, else of its layers."""
    timed = all(table.timed for table in tables)
    column = "ms" if timed else "layers"
    figure = go.Figure()
    rows = {table.name: dict(table.by_precision().select("precision", column).iter_rows()) for table in tables}
    for name in sort_precisions({kind for row in rows.values() for kind in row}):
        look = precision_style(name)
        values = [row.get(name, 0) for row in rows.values()]
        wholes = [sum(row.values()) or 1 for row in rows.values()]
        unit = " ms" if timed else " layers"
        figure.add_bar(
            y=list(rows),
            x=[value / whole for value, whole in zip(values, wholes, strict=True)],
            orientation="h",
            name=name,
            marker={
                "color": look.color,
                "pattern": {
                    "shape": look.pattern,
                    "fillmode": "overlay",
                    "fgcolor": "#ffffff",
                    "fgopacity": 0.7,
                    "size": 7,
                },
            },
            text=[
                f"{name} {value:.3g}{unit}" if value / whole > 0.12 else ""
                for value, whole in zip(values, wholes, strict=True)
            ],
            textposition="inside",
            insidetextanchor="middle",
            insidetextfont={"color": "#000000"},
            textangle=0,
            customdata=values,
            hovertemplate=f"%{{y}}: {name} %{{customdata:.4g}}{unit}, %{{x:.1%}}<extra></extra>",
        )
    title = "share of the layers' time" if timed else "share of the layers (not of time: not all were timed)"
    figure.update_xaxes(title_standoff=6, title_text=title, tickformat=".0%", range=[0, 1])
    figure.update_yaxes(autorange="reversed", type="category")
    return figure.update_layout(
        template=template(),
        barmode="stack",
        height=130 + 46 * len(tables),
        margin={"t": 30, "b": 50},
        legend={"y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
    )


def engine_diff_figure(
    rows: pl.DataFrame, names: tuple[str, str], *, most: int = 25, selected: int | None = None
) -> go.Figure:
    """Two engines side by side: the groups whose time changes most, or both precisions in graph order.

    Args:
        rows: From `aligned`.
        names: Of the two engines.
        most: Most groups shown where layers were timed.
        selected: The row to mark.
    """
    rows = rows.with_row_index("row")
    if rows["delta_ms"].null_count() < len(rows):
        return _dumbbells(rows, names, most, selected)
    return _strips(rows, names, selected)


def _dumbbells(rows: pl.DataFrame, names: tuple[str, str], most: int, selected: int | None) -> go.Figure:
    part = rows.sort(pl.col("delta_ms").abs(), descending=True).head(most).sort("delta_ms", descending=True)
    labels = [_short(node) for node in part["node"]]
    figure = go.Figure()
    for label, first, second in zip(labels, part["ms"], part["other_ms"], strict=True):
        figure.add_scatter(
            x=[first, second], y=[label, label], mode="lines", line={"color": LINE, "width": 4}, showlegend=False,
            hoverinfo="skip",
        )  # fmt: skip
    for name, column, precision, open_ in (
        (names[0], "ms", "precision", "-open"),
        (names[1], "other_ms", "other_precision", ""),
    ):
        looks = [precision_style((kind or "untyped").split(" + ")[0]) for kind in part[precision]]
        figure.add_scatter(
            x=part[column],
            y=labels,
            mode="markers",
            name=name,
            marker={
                "color": [look.color for look in looks],
                "symbol": [look.symbol.removesuffix("-open") + open_ for look in looks],
                "size": 11,
                "line": {"width": 2, "color": [look.color for look in looks]},
            },
            customdata=part["row"].to_list(),
            text=[
                f"{node}<br>{name}: {kind or 'no layer'}" for node, kind in part.select("node", precision).iter_rows()
            ],
            hovertemplate="%{text}, %{x:.4f} ms<extra></extra>",
        )
    figure.update_xaxes(title_standoff=6, title_text="ms; the largest changes, gains at the top", rangemode="tozero")
    _mark_row(figure, part, labels, selected)
    figure.update_yaxes(type="category", autorange=True)
    return figure.update_layout(
        template=template(),
        height=150 + 22 * len(labels),
        margin={"l": 260, "t": 40},
        legend={"y": 1.02, "yanchor": "bottom"},
    )


def _strips(rows: pl.DataFrame, names: tuple[str, str], selected: int | None) -> go.Figure:
    figure = go.Figure()
    met: set[str] = set()
    for engine, column in zip(names, ("precision", "other_precision"), strict=True):
        kinds_here = [kind or "no layer" for kind in rows[column]]
        for kind in sort_precisions(set(kinds_here)):
            part = rows.filter(pl.Series(kinds_here) == kind)
            look = precision_style(kind.split(" + ")[0])
            figure.add_scatter(
                x=part["row"].cast(pl.Int64),
                y=[engine] * len(part),
                mode="markers",
                name=kind,
                legendgroup=kind,
                showlegend=kind not in met,
                marker={
                    "symbol": look.symbol + ("-open" if " + " in kind and not look.symbol.endswith("-open") else ""),
                    "color": look.color,
                    "size": 9,
                    "line": {"width": 2 if " + " in kind else 0, "color": look.color},
                },
                customdata=part["row"].to_list(),
                text=[f"{node}<br>{kind}" for node in part["node"]],
                hovertemplate="%{text}<extra></extra>",
            )
            met.add(kind)
    if selected is not None and 0 <= selected < len(rows):
        figure.add_vline(x=selected, line={"color": INK, "width": 2, "dash": "dot"})
    blocks = _spread_labels(
        rows.group_by("block", maintain_order=True).agg(pl.col("row").first().cast(pl.Int64)), len(rows)
    )
    figure.update_xaxes(
        title_standoff=6,
        title_text="groups of layers that compute the same ONNX nodes, in graph order",
        tickvals=blocks["row"].to_list(),
        ticktext=[block.removeprefix("model.") for block in blocks["block"]],
        tickangle=0,
        tickfont={"size": 10},
        range=[-1, len(rows)],
    )
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=[names[1], names[0]])
    return figure.update_layout(
        template=template(), height=190, margin={"t": 40, "b": 60}, legend={"y": 1.05, "yanchor": "bottom"}
    )


def _spread_labels(blocks: pl.DataFrame, width: int) -> pl.DataFrame:
    """The blocks whose names have room: none nearer to the one before than its name is long."""
    kept, free = [], 0.0
    for block, row in blocks.iter_rows():
        if row >= free:
            kept.append((block, row))
            free = row + (len(block.removeprefix("model.")) + 1) * width / 160
    return pl.DataFrame(kept, schema=blocks.schema, orient="row")


def _mark_row(figure: go.Figure, part: pl.DataFrame, labels: Sequence[str], selected: int | None) -> None:
    if selected is not None and selected in part["row"].to_list():
        figure.add_hline(
            y=labels[part["row"].to_list().index(selected)], line={"color": INK, "width": 1, "dash": "dot"}
        )


def sort_precisions(names: Any) -> list[str]:
    """Precisions from the lowest to the highest, then the rest by name."""
    known = {name: place for place, name in enumerate(ORDER)}
    return sorted(names, key=lambda name: (known.get(name.split(" + ")[0], len(ORDER)), name))


def _hover_text(frame: pl.DataFrame, *, timed: bool) -> pl.Series:
    """What hovering over a layer says."""
    lines = []
    for row in frame.iter_rows(named=True):
        nodes = row["onnx_nodes"] or []
        made = "<br>".join(nodes[:6]) + (f"<br>and {len(nodes) - 6} more" if len(nodes) > 6 else "")
        kind = f"{row['input_precision'] or '?'} in, {row['output_precision'] or '?'} out"
        time = f", {row['ms']:.4f} ms" if timed else ""
        lines.append(f"<b>{_short(row['name'], 60)}</b><br>{row['type']}, {kind}{time}<br>{made}")
    return pl.Series("told", lines)


def _short(name: str, most: int = 38) -> str:
    return name if len(name) <= most else "…" + name[1 - most :]
