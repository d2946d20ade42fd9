"""Two engines of one model, aligned by the ONNX nodes that their layers compute."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import polars as pl

from trtkit.graph.analysis import DisjointSets, block_of
from trtkit.inspection.layer_table import LISTED_LAYERS, WEIGHTED_NODE, LayerTable

__all__ = ["NO_NODE", "align_engines", "original_nodes", "summarize_diff"]

ADDED_NODE = re.compile(r"_(QuantizeLinear|DequantizeLinear)(_\d+)?$|_cast$|^trtkit_cast")
"""Nodes that only the graph of one precision has; alignment ignores them."""

NO_NODE = "(no ONNX node)"

DIFF_SCHEMA: dict[str, Any] = {
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

    TensorRT fuses differently in each precision: one layer of an engine may be three of the other. Layers that share a
    node, directly or through others, form one group. Layers without a node (moves, reformats, shape arithmetic) are
    summed in the last row.

    Args:
        first: An engine.
        second: Another engine of the same model.

    Returns:
        One row per group in the order of the first engine: `node` (its weighted node, else its first), `block`,
        `nodes`, the indices of its layers in each engine (`layers`, `other_layers`; may be empty), the `precision` in
        each ("fp16", or "fp16 + int8"), the `ms` in each and their difference (null if not timed), the number of
        reformats in each, and `differs` (the precisions differ).
    """
    groups = DisjointSets[Any]()
    sides = [[_grouping_nodes(nodes) for nodes in table.frame["onnx_nodes"].to_list()] for table in (first, second)]
    for side, layers in enumerate(sides):
        for index, nodes in enumerate(layers):
            for node in nodes:
                groups.union((side, index), node)
    members: dict[Any, tuple[list[int], list[int]]] = {}
    without_node: tuple[list[int], list[int]] = ([], [])
    for side, layers in enumerate(sides):
        for index, nodes in enumerate(layers):
            group = members.setdefault(groups.find((side, index)), ([], [])) if nodes else without_node
            group[side].append(index)
    rows = [_make_row(group, sides, (first, second)) for group in members.values()]
    rows.sort(key=lambda row: row["order"])
    if any(without_node):
        rows.append({**_make_row(without_node, sides, (first, second)), "node": NO_NODE, "block": NO_NODE})
    for row in rows:
        del row["order"]
    return pl.DataFrame(rows, schema=DIFF_SCHEMA)


def original_nodes(nodes: Iterable[str] | None) -> list[str]:
    """The nodes of the model, without those that a precision added.

    Args:
        nodes: Names of ONNX nodes.
    """
    return [node for node in nodes or () if not ADDED_NODE.search(node)]


def _grouping_nodes(nodes: Iterable[str] | None) -> list[str]:
    """The nodes that a layer is aligned by: its weighted ones, else all.

    Every layer that computes a piece of a split or a concatenation names it; aligned by these, whole blocks would
    merge.
    """
    plain = original_nodes(nodes)
    weighted = [node for node in plain if WEIGHTED_NODE.search(node)]
    return weighted or plain


def _make_row(
    group: tuple[Sequence[int], Sequence[int]], sides: Sequence[Sequence[Sequence[str]]], tables: Sequence[LayerTable]
) -> dict[str, Any]:
    first, second = (_summarize_side(indices, table) for indices, table in zip(group, tables, strict=True))
    nodes = list(
        dict.fromkeys(
            node for side, indices in zip(sides, group, strict=True) for index in indices for node in side[index]
        )
    )
    node = next((name for name in nodes if WEIGHTED_NODE.search(name)), nodes[0] if nodes else "")
    ms, other_ms = first["ms"], second["ms"]
    precision, other_precision = first["precision"], second["precision"]
    # A group that only the second engine has is placed by its position there, scaled to the first engine.
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
        "other_ms": other_ms,
        "delta_ms": None if ms is None or other_ms is None else other_ms - ms,
        "reformats": first["reformats"],
        "other_reformats": second["reformats"],
        "differs": bool(group[0] and group[1] and precision != other_precision),
    }


def _summarize_side(indices: Sequence[int], table: LayerTable) -> dict[str, Any]:
    rows = table.frame[list(indices)]
    precisions = sorted(
        set(rows.filter(~pl.col("reformat"))["precision"].drop_nulls()) or set(rows["precision"].drop_nulls())
    )
    return {
        "precision": " + ".join(precisions) or None,
        "ms": float(rows["ms"].sum()) if table.timed else None,
        "reformats": int(rows["reformat"].sum()),
    }


def summarize_diff(rows: pl.DataFrame, first: LayerTable, second: LayerTable) -> tuple[str, ...]:
    """Precisions and latencies in which two engines differ.

    Args:
        rows: From `align_engines`.
        first: An engine.
        second: The other engine.

    Returns:
        Sentences, the most important first.
    """
    in_both = rows.filter((pl.col("layers").list.len() > 0) & (pl.col("other_layers").list.len() > 0))
    sentences = [
        f"{len(in_both)} groups of layers compute the same ONNX nodes in both engines, "
        f"{len(in_both.filter('differs'))} of them in different precisions."
    ]
    if first.timed and second.timed and first.total and second.total:
        ratio = second.total / first.total
        sentences.append(
            f"Sum of the layers: {second.name} {second.total:.3f} ms, {first.name} {first.total:.3f} ms ({ratio:.2f}x)."
        )
        slower = rows.filter(pl.col("delta_ms") > 0).sort("delta_ms", descending=True)
        if len(slower):
            worst = ", ".join(
                f"{node} (+{delta:.4f} ms)"
                for node, delta in slower.head(LISTED_LAYERS).select("node", "delta_ms").iter_rows()
            )
            groups = "1 group is" if len(slower) == 1 else f"{len(slower)} groups are"
            sentences.append(f"{groups} slower in {second.name}: {worst}.")
    elif first.timed != second.timed:
        timed = first if first.timed else second
        sentences.append(f"Only {timed.name} was timed: latencies can't be compared.")
    return tuple(sentences)
