"""The figure of a zoo: accuracy over latency or file size, one panel per task."""

from __future__ import annotations

import plotly.graph_objects as go
import polars as pl

from trtkit.plotting.theme import escape_text, stacked_figure, trace_style
from trtkit.recipe import format_label

__all__ = ["zoo_figure"]

PANEL_HEIGHT = 260


def zoo_figure(rows: pl.DataFrame) -> go.Figure:
    """Accuracy with its 95 % confidence interval over p50 latency, or over file size where none was measured.

    Args:
        rows: `Zoo.rows`; failed ones are left out. Different GPUs get panels of their own.
    """
    done = rows.filter(pl.col("status") == "done")
    panels = list(done.group_by("task", "gpu", "metric", maintain_order=True))
    titles = []
    for (task, gpu, metric), part in panels:
        axis = "p50 latency, ms" if _is_timed(part) else "file size, MB; latency was not measured"
        titles.append((f"{task}{f', {gpu}' if gpu else ''}", f"{metric} over {axis}", PANEL_HEIGHT))
    figure = stacked_figure(titles or [("no row is done", "", PANEL_HEIGHT)], title="")
    shown: set[str] = set()
    precisions = done["precision"].unique(maintain_order=True).to_list()
    for number, (_, part) in enumerate(panels, 1):
        column = "p50_ms" if _is_timed(part) else "size_mb"
        for (precision,), points in part.group_by("precision", maintain_order=True):
            style = trace_style(str(precision), precisions)
            names = [
                escape_text(f"{row['model']} {row['imgsz']} {row['backend']}") for row in points.iter_rows(named=True)
            ]
            figure.add_scatter(
                x=points[column],
                y=points["value"],
                error_y={
                    "array": points["high"] - points["value"],
                    "arrayminus": points["value"] - points["low"],
                    "thickness": 1,
                },
                name=format_label(str(precision)),
                legendgroup=str(precision),
                showlegend=str(precision) not in shown,
                mode="markers",
                marker={"color": style.color, "symbol": style.symbol, "size": 11},
                text=names,
                hovertemplate="%{text}<br>%{y:.4f} at %{x:.3g}<extra></extra>",
                row=number,
                col=1,
            )
            shown.add(str(precision))
    return figure


def _is_timed(rows: pl.DataFrame) -> bool:
    return rows["p50_ms"].null_count() == 0
