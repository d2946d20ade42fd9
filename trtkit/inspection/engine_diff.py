"""Two engines of one model side by side, joined by the ONNX nodes that their layers were made of."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import polars as pl

from trtkit.graph.analysis import DisjointSets, block_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from trtkit.inspection.layer_table import LayerTable

__all__ = ["NO_NODE", "WEIGHTED_NODE", "align_engines", "original_nodes", "summarize_diff", "summarize_layers"]

WEIGHTED_NODE = re.compile(r"(?:^|[/_.])(Conv|ConvTranspose|Gemm|MatMul)(_\d+)?$")
"""Names of nodes that hold weights, as exporters spell them."""

ADDED_NODE = re.compile(r"_(QuantizeLinear|DequantizeLinear)(_\d+)?$|_cast$|^trtkit_cast")
"""Nodes that one precision's graph has and another's has not; they join nothing."""

NO_NODE = "(no ONNX node)"

SCHEMA: dict[str, Any] = {
    "node": pl.String,
    "block": pl.String,
    "nodes": pl.List(pl.String),
    "layers": pl.List(pl.Int64),
    "other_layers": pl.List(pl.Int64),
    **dict.fromkeys(("precision", "other_precision"), pl.String),
    **dict.fromkeys(("ms", "other_ms", "delta_ms"), pl.Float64),
    **dict.fromkeys(("reformats", "other_reformats"), pl.Int64),
    "differs": pl.Boolean,
}


def align_engines(first: LayerTable, second: LayerTable) -> pl.DataFrame:
    """The layers of two engines in groups that compute the same ONNX nodes.

    TensorRT fuses differently for each precision: one engine's layer may be three of the other's. Layers that share a
    node, directly or through others, form one group. Layers without a node (moves, reformats, shape arithmetic) can't
    be told apart by it: each engine's are summed in one row at the end.

    Args:
        first: An engine.
        second: Another one of the same model.

    Returns:
        One row a group in the order of the first engine: `node` (the weighted node it is about, else the first one),
        `block`, `nodes`, the places of its layers in each engine (`layers`, `other_layers`; empty where an engine has
        none), the `precision` of each ("fp16", or "fp16 + int8"), each one's `ms` and their difference (null without
        times), how many of the layers only reformat, and `differs`, whether the precisions do.
    """
    groups = DisjointSets[Any]()
    sides = [[_grouping_nodes(nodes) for nodes in table.frame["onnx_nodes"].to_list()] for table in (first, second)]
    for side, layers in enumerate(sides):
        for place, nodes in enumerate(layers):
            for node in nodes:
                groups.union((side, place), node)
    members: dict[Any, tuple[list[int], list[int]]] = {}
    loose: tuple[list[int], list[int]] = ([], [])
    for side, layers in enumerate(sides):
        for place, nodes in enumerate(layers):
            kept = members.setdefault(groups.find((side, place)), ([], [])) if nodes else loose
            kept[side].append(place)
    rows = [_row(group, sides, (first, second)) for group in members.values()]
    rows.sort(key=lambda row: row["order"])
    if any(loose):
        rows.append({**_row(loose, sides, (first, second)), "node": NO_NODE, "block": NO_NODE})
    for row in rows:
        del row["order"]
    return pl.DataFrame(rows, schema=SCHEMA)


def original_nodes(nodes: Iterable[str] | None) -> list[str]:
    """The nodes of the model itself, without those that a precision added."""
    return [node for node in nodes or () if not ADDED_NODE.search(node)]


def _grouping_nodes(nodes: Iterable[str] | None) -> list[str]:
    """What a layer is joined by: its weighted nodes, else all of them.

    A split or a concatenation that TensorRT computes in pieces is named by every layer that holds a piece; joined by
    these, whole blocks would run together.
    """
    plain = original_nodes(nodes)
    weighted = [node for node in plain if WEIGHTED_NODE.search(node)]
    return weighted or plain


def _row(
    group: tuple[Sequence[int], Sequence[int]], sides: Sequence[Sequence[Sequence[str]]], tables: Sequence[LayerTable]
) -> dict[str, Any]:
    told = [_side(places, table) for places, table in zip(group, tables, strict=True)]
    nodes = list(
        dict.fromkeys(node for side, places in zip(sides, group, strict=True) for p in places for node in side[p])
    )
    node = next((name for name in nodes if WEIGHTED_NODE.search(name)), nodes[0] if nodes else "")
    ms, other = told[0]["ms"], told[1]["ms"]
    precision, other_precision = told[0]["precision"], told[1]["precision"]
    # A group that the first engine lacks stands where the second one has it, on the first one's scale.
    order = group[0][0] if group[0] else group[1][0] / max(len(sides[1]), 1) * len(sides[0]) if group[1] else 0
    return {
        "order": order,
        "node": node,
        "block": block_of(node) if node else "",
        "nodes": nodes,
        "layers": list(group[0]),
        "other_layers": list(group[1]),
        "precision": precision,
        "other_precision": other_precision,
        "ms": ms,
        "other_ms": other,
        "delta_ms": None if ms is None or other is None else other - ms,
        "reformats": told[0]["reformats"],
        "other_reformats": told[1]["reformats"],
        "differs": bool(group[0] and group[1] and precision != other_precision),
    }


def _side(places: Sequence[int], table: LayerTable) -> dict[str, Any]:
    rows = table.frame[list(places)]
    kinds = sorted(
        set(rows.filter(~pl.col("reformat"))["precision"].drop_nulls()) or set(rows["precision"].drop_nulls())
    )
    return {
        "precision": " + ".join(kinds) or None,
        "ms": float(rows["ms"].sum()) if table.timed else None,
        "reformats": int(rows["reformat"].sum()),
    }


# What stands out in an engine, in sentences that claim no more than its layer table does.


SLOWEST_SHARE = 0.5
"""Share of the time whose layers are named as where the time goes."""

LISTED_LAYERS = 3
"""Most layers named in a sentence."""


def summarize_layers(table: LayerTable) -> tuple[str, ...]:
    """What to know of an engine.

    Args:
        table: Its layers.

    Returns:
        Sentences, the most important first.
    """
    said = [_sizes(table), _reformats(table)]
    said += _layers_above_int8(table)
    if table.timed:
        said.append(_slowest(table))
    else:
        said.append(f"There are no times: {table.untimed_reason}.")
    return tuple(line for line in said if line)


def summarize_diff(rows: pl.DataFrame, first: LayerTable, second: LayerTable) -> tuple[str, ...]:
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
                f"{node} (+{delta:.4f} ms)"
                for node, delta in slower.head(LISTED_LAYERS).select("node", "delta_ms").iter_rows()
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


def _layers_above_int8(table: LayerTable) -> list[str]:
    """Weighted layers that do not run in the engine's lowest precision."""
    met = set(table.frame["precision"].drop_nulls())
    if "int8" not in met:
        return []
    weighted = table.frame.filter(
        pl.col("onnx_nodes").list.eval(pl.element().str.contains(WEIGHTED_NODE.pattern)).list.any()
        & ~pl.col("reformat")
    )
    # A layer that holds the quantizing of a weighted one names its node too: the node is in INT8 if any of them is.
    nodes: dict[str, set[str]] = {}
    for names, precision in weighted.select("onnx_nodes", "precision").iter_rows():
        for name in names:
            if WEIGHTED_NODE.search(name):
                nodes.setdefault(name, set()).add(precision or "untyped")
    high = [name for name, kinds in nodes.items() if "int8" not in kinds]
    if not high:
        return ["Every layer with weights runs in INT8."]
    named = ", ".join(high[:LISTED_LAYERS]) + (
        f" and {len(high) - LISTED_LAYERS} more" if len(high) > LISTED_LAYERS else ""
    )
    return [f"{len(high)} of {len(nodes)} layers with weights or products stay above INT8: {named}."]


def _slowest(table: LayerTable) -> str:
    ranked = table.frame.sort("ms", descending=True)
    running = ranked["share"].cum_sum()
    count = int((running < SLOWEST_SHARE).sum()) + 1
    named = ", ".join(
        f"{name} ({share:.1%})" for name, share in ranked.head(LISTED_LAYERS).select("name", "share").iter_rows()
    )
    return f"{count} of {len(ranked)} layers take half of the time; the slowest: {named}."
