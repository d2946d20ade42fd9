"""Figures of comparisons: accuracy, latency and size; changes with confidence intervals; one highlighted precision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
import polars as pl

from trtkit.plotting.theme import (
    INK,
    LINE,
    TraceStyle,
    escape_text,
    escape_texts,
    hatch,
    stacked_figure,
    template,
    trace_style,
)
from trtkit.recipe import format_label

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "accuracy_figure",
    "classes_change_figure",
    "classes_figure",
    "comparison_figure",
    "latency_figure",
    "losses_figure",
    "size_figure",
    "unmeasured_latency_figure",
]

FAINT = 0.45
"""Opacity of what is not highlighted."""

MAX_CLASSES = 40

HATCHES = ("", "/", "x", "-")
"""Patterns of the bars of several batch sizes."""

LEGEND = {"y": 1.02, "yanchor": "bottom"}


def accuracy_figure(
    differences: pl.DataFrame, metrics: Sequence[str], *, reference: str, focus: str, name: str = ""
) -> go.Figure:
    """The change of each metric against the reference, with 95 % confidence intervals; filled if significant.

    Args:
        differences: `Comparison.differences`.
        metrics: The metrics, from the top.
        reference: The precision that changes refer to.
        focus: The highlighted precision.
        name: The class; "" takes all classes.
    """
    rows = differences.filter(
        pl.col("metric").is_in(list(metrics))
        & (pl.col("scope") == ("class" if name else "all"))
        & (pl.col("name") == name)
    )
    present = [metric for metric in metrics if metric in set(rows["metric"])]
    figure = _forest(rows, "metric", present, focus=focus, title=f"change against {format_label(reference)}")
    return figure.update_layout(height=130 + 34 * max(len(present), 1))


def classes_change_figure(
    differences: pl.DataFrame, metric: str, *, reference: str, focus: str, selected: str = "", limit: int = MAX_CLASSES
) -> go.Figure:
    """The change of a metric per class, the class with the largest loss of the highlighted precision at the top.

    Args:
        differences: `Comparison.differences`.
        metric: The metric.
        reference: The precision that changes refer to.
        focus: The highlighted precision.
        selected: The class to mark.
        limit: Largest number of classes.
    """
    rows = differences.filter((pl.col("scope") == "class") & (pl.col("metric") == metric))
    order = rows.filter(pl.col("precision") == focus).sort("delta", maintain_order=True)["name"].to_list()
    order = (order or rows["name"].unique(maintain_order=True).to_list())[:limit]
    figure = _forest(rows, "name", order, focus=focus, title=f"change of {metric} against {format_label(reference)}")
    if selected in order:
        figure.add_hrect(
            y0=order.index(selected) - 0.5, y1=order.index(selected) + 0.5, fillcolor=INK, opacity=0.18, line_width=0,
            layer="below",
        )  # fmt: skip
    return figure.update_layout(height=130 + 26 * max(len(order), 1))


def latency_figure(samples: pl.DataFrame, runners: pl.DataFrame, batch: int, *, focus: str) -> go.Figure:
    """The cumulative distribution of the latency by precision.

    Args:
        samples: `Comparison.samples`.
        runners: `Comparison.runners`.
        batch: The batch size.
        focus: The highlighted precision.
    """
    labels = runners["label"].to_list()
    figure = go.Figure()
    top = float(samples.filter(pl.col("batch") == batch)["ms"].max() or 1.0)  # type: ignore[arg-type]
    for label in _focus_last(labels, focus):
        times = samples.filter((pl.col("label") == label) & (pl.col("batch") == batch))["ms"].sort()
        if times.is_empty():
            continue
        style, highlighted = trace_style(label, labels), label == focus
        p50, p99 = (float(times.quantile(share, "linear") or 0.0) for share in (0.5, 0.99))
        figure.add_scatter(
            x=times,
            y=[(index + 1) / len(times) for index in range(len(times))],
            name=escape_text(format_label(label)),
            mode="lines",
            opacity=1.0 if highlighted else FAINT + 0.1,
            line={"color": style.color, "dash": style.dash, "shape": "hv", "width": 4 if highlighted else 2},
            customdata=[{"precision": label}] * len(times),
            hovertemplate="%{y:.0%} of runs within %{x:.3g} ms<extra>" + escape_text(format_label(label)) + "</extra>",
        )
        figure.add_scatter(
            x=[p50, p99],
            y=[0.5, 0.99],
            name=f"{escape_text(format_label(label))}: p50, p99",
            mode="markers+text" if highlighted else "markers",
            opacity=1.0 if highlighted else FAINT + 0.1,
            text=[f" {p50:.3g} ms", f" {p99:.3g} ms"],
            textposition="bottom right",
            marker={"color": style.color, "symbol": style.symbol, "size": 11 if highlighted else 8},
            showlegend=False,
            customdata=[{"precision": label}] * 2,
            hovertemplate="%{y:.0%} within %{x:.4g} ms<extra>" + escape_text(format_label(label)) + "</extra>",
        )
    names = ", ".join(escape_texts(runners["runner"].unique(maintain_order=True)))
    doubt = "" if runners["engine"].all() else "; not TensorRT"
    # Room for the number beside the slowest p99, on a page of 420 pixels too.
    figure.update_xaxes(
        title_standoff=6, title_text=f"latency, ms per batch of {batch}<br>{names}{doubt}", range=[0, 1.3 * top]
    )
    figure.update_yaxes(title_text="share of runs", tickformat=".0%", range=[0, 1.04])
    return figure.update_layout(template=template(), height=320, legend=LEGEND, margin={"t": 40})


def size_figure(rows: pl.DataFrame, *, focus: str) -> go.Figure:
    """File sizes by precision.

    Args:
        rows: `Comparison.rows`.
        focus: The highlighted precision.
    """
    once = rows.unique("precision", keep="first", maintain_order=True)
    order = once["precision"].to_list()
    figure = go.Figure()
    for column, name, shape in (("onnx_mb", "ONNX file", "."), ("engine_mb", "engine", "")):
        values = once[column].to_list()
        if all(value is None for value in values):
            continue
        figure.add_bar(
            x=_show_labels(order),
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
            customdata=[{"precision": label} for label in order],
            hovertemplate=f"%{{x}}: %{{y:.2f}} MB<extra>{name}</extra>",
        )
    figure.update_xaxes(type="category")
    figure.update_yaxes(title_text="MB", rangemode="tozero")
    return figure.update_layout(template=template(), height=320, barmode="group", legend=LEGEND, margin={"t": 40})


def _show_labels(labels: Iterable[str]) -> list[str]:
    """Precisions and names of candidates as text of a figure."""
    return escape_texts(map(format_label, labels))


def _forest(rows: pl.DataFrame, column: str, order: Sequence[str], *, focus: str, title: str) -> go.Figure:
    """Changes with confidence intervals, one row per name, its precisions below each other."""
    labels = rows["precision"].unique(maintain_order=True).to_list()
    # What a click on a point selects in a dashboard.
    field = {"metric": "metric", "name": "class_name"}[column]
    positions = {name: position for position, name in enumerate(order)}
    figure = go.Figure()
    for number, label in enumerate(labels):
        part = rows.filter((pl.col("precision") == label) & pl.col(column).is_in(list(order)))
        style, highlighted = trace_style(label, labels), label == focus
        shift = 0.16 * (2 * number - len(labels) + 1) if len(labels) > 1 else 0.0
        figure.add_scatter(
            x=part["delta"],
            y=[positions[name] + shift for name in part[column]],
            name=escape_text(format_label(label)),
            mode="markers",
            opacity=1.0 if highlighted else FAINT,
            marker=_markers(part, style, size=11 if highlighted else 8),
            error_x={
                "type": "data",
                "symmetric": False,
                "array": (part["high"] - part["delta"]).fill_null(0.0),
                "arrayminus": (part["delta"] - part["low"]).fill_null(0.0),
                "color": style.color,
                "thickness": 2 if highlighted else 1,
                "width": 4,
            },
            customdata=[{"precision": label, field: name} for name in part[column]],
            text=[_hover_text(row) for row in part.iter_rows(named=True)],
            hovertemplate="%{text}<extra>" + escape_text(format_label(label)) + "</extra>",
        )
    figure.add_vline(x=0, line={"color": INK, "width": 1.5})
    figure.update_xaxes(
        title_standoff=6,
        title_text=f"{escape_text(title)}<br>bars: 95 % interval; filled: significant",
        gridcolor=LINE,
    )
    figure.update_yaxes(
        tickvals=list(positions.values()),
        ticktext=escape_texts(order),
        range=[len(order) - 0.4, -0.6],
        showgrid=False,
        zeroline=False,
    )
    return figure.update_layout(template=template(), legend=LEGEND, margin={"t": 40, "l": 110})


def _markers(part: pl.DataFrame, style: TraceStyle, *, size: int) -> dict[str, Any]:
    return {
        "color": style.color,
        "symbol": [style.symbol if significant else f"{style.symbol}-open" for significant in part["significant"]],
        "size": size,
        "line": {"width": 2, "color": style.color},
    }


def _hover_text(row: dict[str, Any]) -> str:
    interval = "" if row["low"] is None else f", 95 % confidence interval {row['low']:+.4f} to {row['high']:+.4f}"
    significance = "significant" if row["significant"] else "not significant"
    name = f" of {escape_text(row['name'])}" if row["name"] else ""
    values = f"{row['reference']:.4f} to {row['value']:.4f}"
    return f"{escape_text(row['metric'])}{name}: {values}<br>change {row['delta']:+.4f}{interval}<br>{significance}"


def _focus_last(labels: Sequence[str], focus: str) -> list[str]:
    """The labels with the highlighted one last, so that it is drawn on top."""
    return [label for label in labels if label != focus] + [label for label in labels if label == focus]


def comparison_figure(
    rows: pl.DataFrame,
    metrics: Sequence[tuple[str, str]],
    *,
    unmeasured: str = "no engine ran here",
    published: pl.DataFrame | None = None,
    source: str = "",
) -> go.Figure:
    """Accuracy with its 95 % intervals, latency and file size of each precision, in panels below each other.

    Latency and engine size only of engines that ran: another runner's latency does not predict TensorRT's, nor does the
    size of a plan for another machine.

    Args:
        rows: `Comparison.frame()`.
        metrics: Column and readable name of the metrics; the first has filled markers, the others open ones.
        unmeasured: Why latencies were not measured, for a comparison that ran no engine.
        published: `PublishedLatencies.rows`, drawn hatched where no engine ran; None for nothing.
        source: What they are latencies of, for the subtitle.
    """
    once = rows.unique("precision", keep="first", maintain_order=True)
    order = once["precision"].to_list()
    ran = bool(once["engine"].any())
    has_engines = bool(once["engine"].all()) and once["engine_mb"].null_count() == 0
    timed = rows.filter("engine") if ran else _published_rows(published, order)
    note = f"Hatched: published, {source}"
    is_top1 = bool(metrics) and metrics[0][0].startswith("top")
    runners = ", ".join(once.filter("engine")["runner"].unique(maintain_order=True))
    batches = timed["batch"].n_unique()
    accuracy, times, sizes = (30 + len(order) * (22 + 20 * count) for count in (len(metrics), batches, 1 + has_engines))
    figure = stacked_figure(
        [
            (
                f"Accuracy, {'share of images' if is_top1 else 'AP'}",
                "right is better; bars: 95 % interval of the change",
                accuracy,
            ),
            ("Latency per image, ms", f"p50; {runners}" if ran else f"{unmeasured}: not measured. {note}", times)
            if len(timed)
            else ("Latency per image", f"{unmeasured}: not measured", 10),
            ("File size, MB", "ONNX and engine" if has_engines else "ONNX", sizes),
        ]
    )
    _add_accuracy(figure, once, metrics)
    _add_times(figure, timed, order, published=not ran)
    _add_sizes(figure, once, engines=bool(once["engine"].all()))
    for row in (2, 3):
        # Room for the number at the end of the longest bar.
        longest = max((value for trace in figure.select_traces(row=row) for value in trace.x if value), default=1.0)
        figure.update_xaxes(range=[0, 1.2 * longest], row=row)
    labels = _show_labels(order)
    figure.update_yaxes(type="category", tickfont={"size": 14}, range=[len(order) - 0.5, -0.5])
    figure.update_yaxes(categoryorder="array", categoryarray=labels)
    return figure.update_layout(barmode="group", bargap=0.3, scattermode="group", scattergap=0.3)


def _add_accuracy(figure: go.Figure, once: pl.DataFrame, metrics: Sequence[tuple[str, str]]) -> None:
    order = once["precision"].to_list()
    shown: list[float] = []
    for position, (column, name) in enumerate(metrics):
        values = once[column].to_list()
        errors = _interval_errors(once, column)
        shown += [value for value in values if value is not None]
        shown += [value - below for value, below in zip(values, errors["arrayminus"], strict=True) if value is not None]
        shown += [value + above for value, above in zip(values, errors["array"], strict=True) if value is not None]
        figure.add_scatter(
            x=values,
            y=_show_labels(order),
            orientation="h",
            error_x={"type": "data", "thickness": 1.5, "width": 5, "color": INK, **errors},
            name=escape_text(name),
            offsetgroup=str(position),
            mode="markers+text",
            marker={
                "symbol": [trace_style(label, order).symbol + ("-open" if position else "") for label in order],
                "color": [trace_style(label, order).color for label in order],
                "size": 13,
                "line": {"width": 2, "color": [trace_style(label, order).color for label in order]},
            },
            text=["" if value is None else f"{value:.4f}" for value in values],
            textposition="top center",
            hovertemplate=f"%{{y}}: %{{x:.4f}}<extra>{escape_text(name)}</extra>",
            row=1,
            col=1,
        )
    if shown:
        # The axis spans at least 0.02, so that a negligible loss looks negligible.
        center, half_span = (max(shown) + min(shown)) / 2, max(0.01, 0.75 * (max(shown) - min(shown)))
        figure.update_xaxes(range=[center - half_span, center + half_span], row=1)


def _interval_errors(once: pl.DataFrame, column: str) -> dict[str, list[float]]:
    """Lengths of the error bars: the 95 % interval of the change against the reference, which itself has none."""
    names = [f"delta {column}{end}" for end in ("", " low", " high")]
    if not set(names) <= set(once.columns):
        return {"array": [0.0] * len(once), "arrayminus": [0.0] * len(once)}
    rows = [(0.0, 0.0) if None in row else (row[2] - row[0], row[0] - row[1]) for row in once.select(names).iter_rows()]
    return {"array": [above for above, _ in rows], "arrayminus": [below for _, below in rows]}


def unmeasured_latency_figure(
    order: Sequence[str], *, unmeasured: str, published: pl.DataFrame | None = None, source: str = "", focus: str = ""
) -> go.Figure:
    """The latency panel of a comparison that ran no engine: published latencies, hatched, or nothing.

    Args:
        order: The compared precisions.
        unmeasured: As for `comparison_figure`.
        published: As for `comparison_figure`.
        source: As for `comparison_figure`.
        focus: The highlighted precision, "" for none.
    """
    rows = _published_rows(published, order)
    subtitle = f"{unmeasured}: not measured." + (f" Hatched: published, {source}" if len(rows) else "")
    height = 30 + len(order) * (22 + 20 * rows["batch"].n_unique()) if len(rows) else 10
    figure = stacked_figure([("Latency per image, ms", subtitle, height)])
    _add_times(figure, rows, order, published=True, row=1)
    for trace in figure.data:
        trace.marker.opacity = [1.0 if focus in ("", one["precision"]) else FAINT for one in trace.customdata]
    longest = max((value for trace in figure.data for value in trace.x), default=1.0)
    figure.update_xaxes(range=[0, 1.2 * longest], visible=len(rows) > 0)
    figure.update_yaxes(type="category", range=[len(order) - 0.5, -0.5], visible=len(rows) > 0)
    figure.update_yaxes(categoryorder="array", categoryarray=_show_labels(order))
    return figure.update_layout(barmode="group", bargap=0.3)


def _published_rows(published: pl.DataFrame | None, order: Sequence[str]) -> pl.DataFrame:
    """Published latencies of the compared precisions; empty without any."""
    columns = {"precision": pl.String, "batch": pl.Int64, "p50_ms": pl.Float64, "p99_ms": pl.Float64}
    if published is None:
        return pl.DataFrame(schema=columns)
    return published.filter(pl.col("precision").is_in(list(order))).select(*columns)


def _add_times(figure: go.Figure, rows: pl.DataFrame, order: Sequence[str], *, published: bool, row: int = 2) -> None:
    batches = rows["batch"].unique(maintain_order=True).to_list()
    for position, size in enumerate(batches):
        part = rows.filter(pl.col("batch") == size)
        p50 = part["p50_ms"] / size
        name = f"published, batch {size}" if published else f"batch {size}"
        figure.add_bar(
            x=p50,
            y=_show_labels(part["precision"]),
            orientation="h",
            name=name,
            showlegend=published or len(batches) > 1,
            marker=published_bars(HATCHES[1 + position % (len(HATCHES) - 1)])
            if published
            else {
                "color": [trace_style(label, order).color for label in part["precision"]],
                "pattern": hatch(HATCHES[position % len(HATCHES)]),
            },
            text=[f"{value:.3g}" for value in p50],
            textposition="outside",
            cliponaxis=False,
            customdata=[{"precision": label} for label in part["precision"]],
            hovertext=[f"p99 {p99 / size:.3f} ms" for p99 in part["p99_ms"]],
            hovertemplate=f"%{{y}}: p50 %{{x:.3f}} ms, %{{hovertext}}<extra>{name}</extra>",
            row=row,
            col=1,
        )


def published_bars(pattern: str) -> dict[str, Any]:
    """Plotly's settings of bars that show published numbers: gray outlines, hatched, in no precision's color.

    Args:
        pattern: Plotly fill pattern.
    """
    return {
        "color": "rgba(0,0,0,0)",
        "line": {"color": INK, "width": 1},
        "pattern": {"shape": pattern, "fillmode": "overlay", "fgcolor": INK, "size": 6, "solidity": 0.2},
    }


def _add_sizes(figure: go.Figure, once: pl.DataFrame, *, engines: bool) -> None:
    order = once["precision"].to_list()
    for column, name, pattern in (("onnx_mb", "ONNX file", "."), ("engine_mb", "engine file", "")):
        values = once[column].to_list()
        if all(value is None for value in values) or (column == "engine_mb" and not engines):
            continue
        figure.add_bar(
            x=values,
            y=_show_labels(order),
            orientation="h",
            name=name,
            marker={
                "color": [trace_style(label, order).color for label in order],
                "pattern": hatch(pattern),
            },
            text=["" if value is None else f"{value:.1f}" for value in values],
            textposition="outside",
            cliponaxis=False,
            hovertemplate=f"%{{y}}: %{{x:.2f}} MB<extra>{name}</extra>",
            row=3,
            col=1,
        )


def classes_figure(
    classes: pl.DataFrame,
    column: str,
    *,
    reference: str = "fp32",
    differences: pl.DataFrame | None = None,
    limit: int = 30,
) -> go.Figure:
    """Accuracy of each class by precision, the class with the largest loss at the top.

    Args:
        classes: Columns precision, name and `column`.
        column: The metric.
        reference: The precision that losses refer to, in whatever order they were compared.
        differences: `Comparison.differences`, for error bars: the 95 % interval of the change against the reference.
        limit: Largest number of classes.
    """
    order = classes["precision"].unique(maintain_order=True).to_list()
    spread = (
        classes.group_by("name", maintain_order=True)
        .agg(loss=pl.col(column).filter(pl.col("precision") == reference).first() - pl.col(column).min())
        .sort("loss", maintain_order=True)
        .tail(limit)
    )
    names = spread["name"].to_list()
    figure = go.Figure()
    for name in names:
        values = classes.filter(pl.col("name") == name)[column]
        span: list[Any] = [values.min(), values.max()]
        figure.add_scatter(
            x=span,
            y=escape_texts([name, name]),
            mode="lines",
            line={"color": LINE, "width": 3},
            showlegend=False,
            hoverinfo="skip",
        )
    for position, label in enumerate(order):
        part = classes.filter((pl.col("precision") == label) & pl.col("name").is_in(names))
        style = trace_style(label, order)
        errors: dict[str, Any] = {}
        if differences is not None and not differences.is_empty():
            own = differences.filter(scope="class", metric=column, precision=label).select(
                "name", "delta", "low", "high"
            )
            ends = part.join(own, on="name", how="left", maintain_order="left")
            errors = {"array": ends["high"] - ends["delta"], "arrayminus": ends["delta"] - ends["low"]}
        figure.add_scatter(
            x=part[column],
            y=escape_texts(part["name"]),
            error_x={"type": "data", "thickness": 1.5, "width": 4, "color": style.color, **errors} if errors else None,
            name=escape_text(format_label(label)),
            mode="markers",
            # The first one is at the bottom and the largest, so that equal values show every precision.
            marker={"color": style.color, "symbol": style.symbol, "size": max(9, 17 - 4 * position)},
            hovertemplate=f"%{{y}}: %{{x:.3f}}<extra>{escape_text(format_label(label))}</extra>",
        )
    figure.update_xaxes(title_text=escape_text(column))
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=escape_texts(names))
    figure.update_layout(template=template(), height=130 + 26 * len(names))
    figure.update_layout(legend={"y": 1.02, "yanchor": "bottom"})
    return figure


def losses_figure(losses: pl.DataFrame, *, reference: str = "fp32") -> go.Figure:
    """The change of each primary metric by task and precision, with 95 % confidence intervals.

    Args:
        losses: `Comparison.losses()`, of one comparison or several, concatenated.
        reference: The precision that changes refer to, at zero.
    """
    shown = losses.with_columns(row=pl.format("{}: {}", "task", "metric"))
    rows = shown["row"].unique(maintain_order=True).to_list()
    precisions = shown["precision"].unique(maintain_order=True).to_list()
    figure = go.Figure()
    for precision in precisions:
        style = trace_style(precision, precisions)
        part = shown.filter(pl.col("precision") == precision)
        figure.add_scatter(
            x=part["delta"],
            y=escape_texts(part["row"]),
            name=escape_text(format_label(precision)),
            orientation="h",
            mode="markers",
            marker={"color": style.color, "symbol": style.symbol, "size": 11},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": part["high"] - part["delta"],
                "arrayminus": part["delta"] - part["low"],
                "color": style.color,
                "width": 6,
            },
            customdata=part.select("value", "low", "high").rows(),
            hovertemplate="%{x:+.4f} to %{customdata[0]:.4f}, 95 % confidence interval %{customdata[1]:+.4f} to "
            "%{customdata[2]:+.4f}",
        )
    name = escape_text(format_label(reference))
    label = {"text": f"{name} = 0", "yanchor": "bottom", "showarrow": False}
    figure.add_vline(x=0, line={"color": INK, "width": 1}, annotation={"y": 1, **label})
    figure.update_xaxes(
        title_text="change (left is a loss)",
        tickformat="+.3f",
        nticks=4,
    )
    figure.update_yaxes(categoryorder="array", categoryarray=escape_texts(rows[::-1]))
    height = 210 + 46 * len(rows)
    figure.update_layout(
        template=template(),
        title={"text": "Change of accuracy by precision", "x": 0},
        height=height,
        legend={"y": -75 / (height - 120)},
        scattermode="group",
        scattergap=0.5,
    )
    return figure
