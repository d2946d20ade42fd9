"""Figures of engines: layers in execution order, share of each precision, two engines side by side."""

from __future__ import annotations

from collections.abc import Iterable

import plotly.graph_objects as go
import polars as pl

from trtkit.plotting.theme import INK, LINE, TraceStyle, escape_text, escape_texts, hatch, template, trace_style

__all__ = ["engine_diff_figure", "layers_figure", "precision_style", "shares_figure", "verification_figure"]

# Styles of precisions that no export has; `trace_style` has the others.
_PRECISION_STYLES = {
    "reformat": TraceStyle(color="#D55E00", symbol="x", pattern="\\", dash="dot"),
    "bf16": TraceStyle(color="#CC79A7", symbol="pentagon", pattern="+", dash="longdash"),
    "fp8": TraceStyle(color="#56B4E9", symbol="star", pattern=".", dash="longdashdot"),
    "int32": TraceStyle(color="#999999", symbol="triangle-up", pattern="|", dash="dash"),
    "int64": TraceStyle(color="#999999", symbol="triangle-down", pattern="|", dash="dash"),
    "bool": TraceStyle(color="#999999", symbol="hourglass", pattern="|", dash="dash"),
}
_OTHER_STYLE = TraceStyle(color="#999999", symbol="circle-open", pattern="-", dash="dash")
FAINT = 0.35
"""Opacity of what is not highlighted."""

ORDER = ("int8", "fp8", "fp16", "bf16", "fp32")
LEGEND = {"y": 1.02, "yanchor": "bottom"}


def precision_style(precision: str) -> TraceStyle:
    """The style of a layer's precision, of "reformat" and of other data types of TensorRT."""
    if precision in ("fp32", "fp16", "int8"):
        return trace_style(precision)
    return _PRECISION_STYLES.get(precision, _OTHER_STYLE)


def layers_figure(
    frame: pl.DataFrame, *, timed: bool, selected: int | None = None, highlighted: pl.Series | None = None
) -> go.Figure:
    """Layers in execution order: their latency if they were timed, else their precision alone.

    Args:
        frame: `LayerTable.frame` with the column `kind`, as `trtkit.inspection.layer_kinds` gives it.
        timed: Whether the layers were timed.
        selected: `index` of the layer to mark.
        highlighted: Which rows stand out, as booleans; the others are faint. None highlights all.
    """
    frame = frame.with_columns(
        position=pl.col("index").cast(pl.Int64),
        highlighted=pl.lit(value=True) if highlighted is None else highlighted,
        unit=pl.lit(1.0),
        text=_hover_texts(frame, timed=timed),
    )
    height = "ms" if timed else "unit"
    figure = go.Figure()
    for name in sort_precisions(frame["kind"].unique().to_list()):
        part, style = frame.filter(pl.col("kind") == name), precision_style(name)
        figure.add_bar(
            x=part["position"],
            y=part[height],
            width=0.9 if timed else 1.0,
            name=f"{escape_text(name)} ({len(part)})",
            marker={
                "color": style.color,
                "opacity": [1.0 if bright else 0.2 for bright in part["highlighted"]],
                "pattern": hatch(style.pattern, size=5),
                "line": {"width": 0},
            },
            customdata=part["position"].to_list(),
            text=part["text"].to_list(),
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
    figure.update_xaxes(title_standoff=6, title_text="layer, in execution order", range=[-1, len(frame)])
    if timed:
        figure.update_yaxes(title_text="ms", rangemode="tozero")
    else:
        figure.update_yaxes(visible=False, range=[0, 1.15])
    return figure.update_layout(
        template=template(),
        height=300 if timed else 200,
        barmode="overlay",
        bargap=0,
        margin={"t": 30, "b": 50},
        legend=LEGEND,
    )


def shares_figure(rows: pl.DataFrame, *, timed: bool, engine: int = 0, precision: str = "") -> go.Figure:
    """The share of each precision in each engine: of the latency if all engines were timed, else of the layers.

    Args:
        rows: `LayerTable.by_precision` of each engine with the column `engine`: its name.
        timed: Whether all engines were timed.
        engine: Index of the engine that `precision` is of.
        precision: The highlighted precision, "" for all.
    """
    column, unit = ("ms", " ms") if timed else ("layers", " layers")
    engines = rows["engine"].unique(maintain_order=True).to_list()
    totals = [rows.filter(pl.col("engine") == engine)[column].sum() or 1 for engine in engines]
    figure = go.Figure()
    for name in sort_precisions(rows["precision"].unique().to_list()):
        style = precision_style(name)
        by_engine = dict(rows.filter(pl.col("precision") == name).select("engine", column).iter_rows())
        values = [by_engine.get(engine, 0) for engine in engines]
        shares = [value / total for value, total in zip(values, totals, strict=True)]
        figure.add_bar(
            y=escape_texts(engines),
            x=shares,
            orientation="h",
            name=escape_text(name),
            marker={
                "color": style.color,
                "pattern": hatch(style.pattern),
                "opacity": [
                    1.0 if not precision or (engine, precision) == (row, name) else FAINT for row in range(len(engines))
                ],
            },
            text=[
                f"{escape_text(name)} {value:.3g}{unit}" if share > 0.12 else ""
                for value, share in zip(values, shares, strict=True)
            ],
            textposition="inside",
            insidetextanchor="middle",
            insidetextfont={"color": "#000000"},
            textangle=0,
            customdata=[{"engine": row, "precision": name} for row in range(len(engines))],
            hovertext=[f"{value:.4g}{unit}" for value in values],
            hovertemplate=f"%{{y}}: {escape_text(name)} %{{hovertext}}, %{{x:.1%}}<extra></extra>",
        )
    title = "share of the layers' latency" if timed else "share of the layers (not of the latency: not all were timed)"
    figure.update_xaxes(title_standoff=6, title_text=title, tickformat=".0%", range=[0, 1])
    figure.update_yaxes(autorange="reversed", type="category")
    return figure.update_layout(
        template=template(),
        barmode="stack",
        height=130 + 46 * len(engines),
        margin={"t": 30, "b": 50},
        legend={**LEGEND, "traceorder": "normal"},
    )


def engine_diff_figure(
    rows: pl.DataFrame, names: tuple[str, str], *, limit: int = 25, selected: int | None = None
) -> go.Figure:
    """Two engines side by side: the groups with the largest change of latency, or precisions in graph order.

    Args:
        rows: From `trtkit.inspection.align_engines`.
        names: Names of the two engines.
        limit: Largest number of groups if layers were timed.
        selected: Row to mark.
    """
    rows = rows.with_row_index("row")
    if rows["delta_ms"].null_count() < len(rows):
        return _draw_dumbbells(rows, names, limit, selected)
    return _draw_strips(rows, names, selected)


def _draw_dumbbells(rows: pl.DataFrame, names: tuple[str, str], limit: int, selected: int | None) -> go.Figure:
    part = rows.sort(pl.col("delta_ms").abs(), descending=True).head(limit).sort("delta_ms", descending=True)
    labels = [escape_text(_shorten(node)) for node in part["node"]]
    figure = go.Figure()
    for label, first, second in zip(labels, part["ms"], part["other_ms"], strict=True):
        figure.add_scatter(
            x=[first, second], y=[label, label], mode="lines", line={"color": LINE, "width": 4}, showlegend=False,
            hoverinfo="skip",
        )  # fmt: skip
    for name, column, precision, variant in (
        (names[0], "ms", "precision", "-open"),
        (names[1], "other_ms", "other_precision", ""),
    ):
        styles = [precision_style((kind or "untyped").split(" + ")[0]) for kind in part[precision]]
        figure.add_scatter(
            x=part[column],
            y=labels,
            mode="markers",
            name=escape_text(name),
            marker={
                "color": [style.color for style in styles],
                "symbol": [style.symbol.removesuffix("-open") + variant for style in styles],
                "size": 11,
                "line": {"width": 2, "color": [style.color for style in styles]},
            },
            customdata=part["row"].to_list(),
            text=[
                f"{escape_text(node)}<br>{escape_text(name)}: {escape_text(kind or 'no layer')}"
                for node, kind in part.select("node", precision).iter_rows()
            ],
            hovertemplate="%{text}, %{x:.4f} ms<extra></extra>",
        )
    figure.update_xaxes(title_standoff=6, title_text="ms; largest changes, speedups at the top", rangemode="tozero")
    if selected is not None and selected in part["row"].to_list():
        figure.add_hline(
            y=labels[part["row"].to_list().index(selected)], line={"color": INK, "width": 1, "dash": "dot"}
        )
    figure.update_yaxes(type="category", autorange=True)
    return figure.update_layout(
        template=template(), height=150 + 22 * len(labels), margin={"l": 260, "t": 40}, legend=LEGEND
    )


def _draw_strips(rows: pl.DataFrame, names: tuple[str, str], selected: int | None) -> go.Figure:
    figure = go.Figure()
    in_legend: set[str] = set()
    for engine, column in zip(names, ("precision", "other_precision"), strict=True):
        kinds = [kind or "no layer" for kind in rows[column]]
        for kind in sort_precisions(set(kinds)):
            part = rows.filter(pl.Series(kinds) == kind)
            style = precision_style(kind.split(" + ")[0])
            is_mixed = " + " in kind
            figure.add_scatter(
                x=part["row"].cast(pl.Int64),
                y=escape_texts([engine] * len(part)),
                mode="markers",
                name=escape_text(kind),
                legendgroup=kind,
                showlegend=kind not in in_legend,
                marker={
                    "symbol": style.symbol + ("-open" if is_mixed and not style.symbol.endswith("-open") else ""),
                    "color": style.color,
                    "size": 9,
                    "line": {"width": 2 if is_mixed else 0, "color": style.color},
                },
                customdata=part["row"].to_list(),
                text=[f"{escape_text(node)}<br>{escape_text(kind)}" for node in part["node"]],
                hovertemplate="%{text}<extra></extra>",
            )
            in_legend.add(kind)
    if selected is not None and 0 <= selected < len(rows):
        figure.add_vline(x=selected, line={"color": INK, "width": 2, "dash": "dot"})
    first_rows = rows.group_by("block", maintain_order=True).agg(pl.col("row").first().cast(pl.Int64))
    ticks = _spread_labels(first_rows, len(rows))
    figure.update_xaxes(
        title_standoff=6,
        title_text="groups of layers that compute the same ONNX nodes, in graph order",
        tickvals=ticks["row"].to_list(),
        ticktext=[escape_text(block.removeprefix("model.")) for block in ticks["block"]],
        tickangle=0,
        tickfont={"size": 10},
        range=[-1, len(rows)],
    )
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=escape_texts([names[1], names[0]]))
    return figure.update_layout(
        template=template(), height=190, margin={"t": 40, "b": 60}, legend={"y": 1.05, "yanchor": "bottom"}
    )


def _spread_labels(blocks: pl.DataFrame, width: int) -> pl.DataFrame:
    """The blocks whose labels do not overlap the one before."""
    kept, next_free = [], 0.0
    for block, row in blocks.iter_rows():
        if row >= next_free:
            kept.append((block, row))
            next_free = row + (len(block.removeprefix("model.")) + 1) * width / 160
    return pl.DataFrame(kept, schema=blocks.schema, orient="row")


def sort_precisions(names: Iterable[str]) -> list[str]:
    """Precisions from the lowest to the highest, then other names alphabetically."""
    order = {name: position for position, name in enumerate(ORDER)}
    return sorted(names, key=lambda name: (order.get(name.split(" + ")[0], len(ORDER)), name))


def _hover_texts(frame: pl.DataFrame, *, timed: bool) -> pl.Series:
    lines = []
    for row in frame.iter_rows(named=True):
        nodes = row["onnx_nodes"] or []
        listed = "<br>".join(escape_texts(nodes[:6])) + (f"<br>and {len(nodes) - 6} more" if len(nodes) > 6 else "")
        precisions = escape_text(f"{row['input_precision'] or '?'} in, {row['output_precision'] or '?'} out")
        latency = f", {row['ms']:.4f} ms" if timed else ""
        name, kind = escape_text(_shorten(row["name"], 60)), escape_text(row["type"])
        lines.append(f"<b>{name}</b><br>{kind}, {precisions}{latency}<br>{listed}")
    return pl.Series("text", lines, pl.String)


def _shorten(name: str, limit: int = 38) -> str:
    return name if len(name) <= limit else "…" + name[1 - limit :]


def verification_figure(images: pl.DataFrame) -> go.Figure:
    """The differences between an engine and ONNX Runtime as shares of their limits, a point per image and batch.

    Args:
        images: `Verification.images`.
    """
    figure = go.Figure()
    for (output,), part in images.group_by("output", maintain_order=True):
        shares = part["difference"] / part["limit"]
        text = escape_texts([f"{path}, batch {batch}" for path, batch in part.select("path", "batch").iter_rows()])
        figure.add_scatter(y=shares, text=text, mode="markers", name=escape_text(output))
    figure.add_hline(y=1, line_dash="dash", annotation_text="limit")
    figure.update_layout(template=template(), xaxis_title="image and batch", yaxis_title="difference / limit")
    return figure
