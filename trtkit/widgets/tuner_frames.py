"""The tuner's frames: ranges with shared scales, layers by cost, and the mixes that were judged."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

import polars as pl

from trtkit.calibration.readings import Readings, clipped_share
from trtkit.tuning.mix_figures import POINTS, pareto_of

if TYPE_CHECKING:
    from trtkit.calibration import Calibration
    from trtkit.tuning.judging import Judged
    from trtkit.tuning.layout import Layout
    from trtkit.tuning.search import Search
    from trtkit.tuning.sensitivity import Sensitivity

__all__ = ["layer_costs", "mix_points", "shared_ranges"]


def shared_ranges(readings: Readings, found: Calibration, layout: Layout | None) -> pl.DataFrame:
    """`Readings.frame_of` some ranges, `reach` and what follows from it those of the scales that tensors share.

    Args:
        readings: Of the pass, for what was seen.
        found: The ranges.
        layout: Says which tensors share a scale; None leaves each its own.
    """
    frame = readings.frame_of(found)
    if layout is None:
        return frame
    reaches = dict(frame.select("tensor", "reach").iter_rows())
    widened = {}
    for tensor, reach in reaches.items():
        shared = max([reach, *(reaches.get(name, 0.0) for name in layout.scale_of(tensor))])
        if shared > reach:
            widened[tensor] = shared
    if not widened:
        return frame
    rows = [_widened(readings, row, widened.get(row["tensor"])) for row in frame.iter_rows(named=True)]
    return pl.DataFrame(rows, schema=frame.schema)


def layer_costs(layout: Layout | None, sensitivity: Sensitivity | None, high: Collection[str]) -> pl.DataFrame:
    """The layers that may run in INT8, the costliest first where that was measured, else in graph order.

    Args:
        layout: The model's layers, or None.
        sensitivity: What INT8 costs each, or None.
        high: Names of those that stay high.

    Returns:
        One row a layer: `node`, `block`, `macs`, `sqnr_only`, `gain` (null before they were measured) and `high`.
    """
    unknown = {name: pl.lit(None, pl.Float64) for name in ("sqnr_only", "gain")}
    if sensitivity is not None:
        frame = sensitivity.layers.select("node", "block", "macs", "sqnr_only", "gain").sort("sqnr_only")
    elif layout is not None:
        frame = layout.layers.filter(pl.col("kept").is_null()).select("node", "block", "macs").with_columns(**unknown)
    else:
        empty = pl.DataFrame(schema={"node": pl.String, "block": pl.String, "macs": pl.Int64})
        frame = empty.with_columns(**unknown)
    return frame.with_columns(high=pl.col("node").is_in(list(high)))


def mix_points(found: Search | None, judged: Iterable[Judged]) -> pl.DataFrame:
    """Every mix that was judged, by a search and by hand, as `mix_figures.share_figure` takes them.

    Args:
        found: The search, or None.
        judged: By hand, in order.
    """
    rows: list[dict[str, Any]] = []
    if found is not None:
        for place, row in enumerate(found.trials.iter_rows(named=True)):
            kind = "found" if row["chosen"] else "searched"
            told = {name: row[name] for name in ("int8_share", "metric", "loss", "loss_low", "loss_high")}
            rows.append({"label": row["mix"], "kind": kind, **told, "place": place})
    for place, one in enumerate(judged):
        told = {name: getattr(one, name) for name in ("int8_share", "loss", "loss_low", "loss_high")}
        rows.append({"label": one.label, "kind": "judged", "metric": one.value, **told, "place": place})
    front = pareto_of([row["int8_share"] for row in rows], [row["metric"] for row in rows])
    rows = [{**row, "pareto": there} for row, there in zip(rows, front, strict=True)]
    return pl.DataFrame(rows, schema=POINTS)


def _widened(readings: Readings, row: dict[str, Any], reach: float | None) -> dict[str, Any]:
    """A row with the reach of its shared scale; as it is where that is its own."""
    if reach is None:
        return row
    seen, largest, clipped = readings.seen(row["tensor"]), row["largest"], row["clipped"]
    if seen is not None and seen.histogram is not None:
        clipped = clipped_share(seen.histogram, reach, largest)
    covered = min(reach / largest, 1.0) if largest else 1.0
    return {**row, "reach": reach, "covered": covered, "clipped": clipped, "scale": reach / 127.0}
