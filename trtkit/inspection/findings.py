"""What stands out in an engine, in sentences that claim no more than its layer table does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from trtkit.inspection.alignment import WEIGHTED

if TYPE_CHECKING:
    from trtkit.inspection.layer_table import LayerTable

__all__ = ["differences", "findings"]

HALF_OF = 0.5
"""Share of the time whose layers are named as where the time goes."""

NAMED = 3
"""Most layers named in a sentence."""


def findings(table: LayerTable) -> tuple[str, ...]:
    """What to know of an engine.

    Args:
        table: Its layers.

    Returns:
        Sentences, the most important first.
    """
    said = [_sizes(table), _reformats(table)]
    said += _high(table)
    if table.timed:
        said.append(_slowest(table))
    else:
        said.append(f"There are no times: {table.untimed}.")
    return tuple(line for line in said if line)


def differences(rows: pl.DataFrame, first: LayerTable, second: LayerTable) -> tuple[str, ...]:
    """What two aligned engines differ in.

    Args:
        rows: From `trtkit.inspection.aligned`.
        first: An engine.
        second: The other.
    """
    said = []
    both = rows.filter((pl.col("layers").list.len() > 0) & (pl.col("other_layers").list.len() > 0))
    changed = both.filter("differs")
    said.append(
        f"{len(both)} groups of layers compute the same ONNX nodes in both engines, "
        f"{len(changed)} of them in other precisions."
    )
    if first.timed and second.timed and first.total and second.total:
        ratio = second.total / first.total
        said.append(
            f"The layers of {second.name} take {second.total:.3f} ms, {ratio:.2f} times the {first.total:.3f} ms of "
            f"{first.name}."
        )
        slower = rows.filter(pl.col("delta_ms") > 0).sort("delta_ms", descending=True)
        if len(slower):
            worst = ", ".join(
                f"{node} (+{delta:.4f} ms)" for node, delta in slower.head(NAMED).select("node", "delta_ms").iter_rows()
            )
            said.append(f"{len(slower)} groups are slower in {second.name}, most of all {worst}.")
    elif first.timed != second.timed:
        said.append(f"Only {(first if first.timed else second).name} was timed, so that times can't be compared.")
    return tuple(said)


def _sizes(table: LayerTable) -> str:
    parts = [f"{row['layers']} {row['precision']}" for row in table.by_precision().iter_rows(named=True)]
    time = f", {table.total:.3f} ms together" if table.timed else ""
    return f"{len(table.frame)} layers{time}: {', '.join(parts)}."


def _reformats(table: LayerTable) -> str:
    moves = table.frame.filter("reformat")
    if moves.is_empty():
        return "No layer only changes layout or type."
    time = ""
    if table.timed and table.total:
        time = f", {float(moves['share'].sum()):.1%} of the time"
    return f"{len(moves)} layers only change layout or type (reformats){time}."


def _high(table: LayerTable) -> list[str]:
    """Weighted layers that do not run in the engine's lowest precision."""
    met = set(table.frame["precision"].drop_nulls())
    if "int8" not in met:
        return []
    weighted = table.frame.filter(
        pl.col("onnx_nodes").list.eval(pl.element().str.contains(WEIGHTED.pattern)).list.any() & ~pl.col("reformat")
    )
    # A layer that holds the quantising of a weighted one names its node too: the node is in INT8 if any of them is.
    nodes: dict[str, set[str]] = {}
    for names, precision in weighted.select("onnx_nodes", "precision").iter_rows():
        for name in names:
            if WEIGHTED.search(name):
                nodes.setdefault(name, set()).add(precision or "untyped")
    high = [name for name, kinds in nodes.items() if "int8" not in kinds]
    if not high:
        return ["Every layer with weights runs in INT8."]
    named = ", ".join(high[:NAMED]) + (f" and {len(high) - NAMED} more" if len(high) > NAMED else "")
    return [f"{len(high)} of {len(nodes)} layers with weights or products stay above INT8: {named}."]


def _slowest(table: LayerTable) -> str:
    ranked = table.frame.sort("ms", descending=True)
    running = ranked["share"].cum_sum()
    count = int((running < HALF_OF).sum()) + 1
    named = ", ".join(f"{name} ({share:.1%})" for name, share in ranked.head(NAMED).select("name", "share").iter_rows())
    return f"{count} of {len(ranked)} layers take half of the time; the slowest: {named}."
