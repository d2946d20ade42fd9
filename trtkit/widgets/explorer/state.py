"""What is looked at in one or two engines: which layers, in which order, and which of them stands out."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import polars as pl

from trtkit.errors import CapabilityError, RecipeError, TrtkitError
from trtkit.inspection.engine_diff import WEIGHTED_NODE, align_engines, original_nodes, summarize_diff, summarize_layers
from trtkit.inspection.layer_table import LayerTable, layer_kinds, read_layers
from trtkit.progress import CancelToken, Progress, Reporter

__all__ = ["ORDERS", "ExplorerState", "build_demo_engines", "explain_untimed", "find_demo_engines", "time_layers"]

ORDERS = {"as they run": "order", "slowest first": "time", "by precision": "precision", "by ONNX node": "node"}
"""Orders of the table, by what they are called."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ExplorerState:
    """One moment of the explorer.

    Attributes:
        tables: One engine's layers, or two.
        side: Whose layers are listed, 0 or 1.
        kind: The precision that is listed, "reformat", or "" for all.
        text: What a listed layer's name or one of its nodes has to hold.
        order: One of `ORDERS`' values.
        selected: The `index` of the layer that stands out.
        changed: List only the groups of two engines whose precisions differ.
    """

    tables: tuple[LayerTable, ...]
    side: int = 0
    kind: str = ""
    text: str = ""
    order: str = "order"
    selected: int | None = None
    changed: bool = False

    @property
    def table(self) -> LayerTable:
        """The engine whose layers are listed."""
        return self.tables[self.side]

    @property
    def kinds(self) -> list[str]:
        """What its layers may be listed by."""
        return [str(name) for name in self.table.by_precision()["precision"]]

    def choosing(self, **choices: Any) -> ExplorerState:
        """With another side, kind, text, order, selected layer or `changed`.

        Raises:
            RecipeError: There is no such side, kind, order or layer.
        """
        state = dataclasses.replace(self, **choices)
        if not 0 <= state.side < len(self.tables):
            raise RecipeError(f"look at engine {state.side}", f"there are {len(self.tables)}", "begin to count at 0")
        if state.side != self.side:
            # The other engine has other layers.
            kind = state.kind if state.kind in state.kinds else ""
            state = dataclasses.replace(state, selected=choices.get("selected"), kind=kind)
        if state.kind and state.kind not in state.kinds:
            raise RecipeError(f"list {state.kind!r}", "no layer is", f"choose from {', '.join(state.kinds)}")
        if state.order not in ORDERS.values():
            raise RecipeError(
                f"order by {state.order!r}", "there is no such order", f"use {', '.join(ORDERS.values())}"
            )
        if state.selected is not None and not 0 <= state.selected < len(state.table.frame):
            raise RecipeError(f"show layer {state.selected}", f"there are {len(state.table.frame)}", "name one of them")
        return state

    def of_node(self, row: int) -> ExplorerState:
        """With the layer of an aligned group standing out, in the engine that is listed if it has one.

        Raises:
            RecipeError: There is no such group.
        """
        if not 0 <= row < len(self.pairs):
            raise RecipeError(f"show group {row}", f"there are {len(self.pairs)}", "name one of them")
        found = self.pairs.row(row, named=True)
        layers = (found["layers"], found["other_layers"])
        side = self.side if layers[self.side] else 1 - self.side
        return self.choosing(side=side, selected=int(layers[side][0]))

    @property
    def shown(self) -> pl.Series:
        """Which layers are listed, as booleans in the order they run."""
        frame = self.table.frame
        keep = pl.lit(value=True)
        if self.kind:
            keep = keep & (layer_kinds(frame) == self.kind)
        if self.text:
            words = pl.concat_list(pl.concat_list("name", "type"), pl.col("onnx_nodes").fill_null([])).list.join(" ")
            keep = keep & words.str.to_lowercase().str.contains(self.text.lower(), literal=True)
        return frame.select(pl.repeat(value=True, n=len(frame)) & keep).to_series().rename("shown")

    def listed(self) -> pl.DataFrame:
        """The listed layers in the order that was chosen: index, layer, nodes, precision, in, out, shape, ms, share."""
        frame = self.table.frame.filter(self.shown)
        by = {
            "order": ["index"],
            "time": ["ms", "index"],
            "precision": ["precision", "index"],
            "node": ["nodes", "index"],
        }
        frame = frame.select(
            "index",
            layer=pl.Series([_shorten(name) for name in frame["name"]], dtype=pl.String),
            nodes=pl.Series([_summarize_nodes(nodes) for nodes in frame["onnx_nodes"].to_list()], dtype=pl.String),
            precision=pl.when("reformat").then(pl.lit("reformat")).otherwise(pl.col("precision")),
            reads="input_precision",
            writes="output_precision",
            shape="shape",
            ms="ms",
            share=pl.col("share") * 100,
        )
        falling = [self.order == "time", False][: len(by[self.order])]
        frame = frame.sort(by[self.order], descending=falling, nulls_last=True, maintain_order=True)
        return frame if self.table.timed else frame.drop("ms", "share")

    def detail(self) -> dict[str, Any]:
        """Everything about the layer that stands out, by readable name; {} where none does."""
        if self.selected is None:
            return {}
        row = self.table.frame.row(self.selected, named=True)
        return {
            "layer": row["name"],
            "type": row["type"],
            "made of": row["onnx_nodes"],
            "reads": row["input_precision"],
            "writes": row["output_precision"],
            "shape": row["shape"],
            "time": None if row["ms"] is None else f"{row['ms']:.4f} ms, {row['share']:.1%}",
            "kernel": row["tactic"],
            "inputs": row["inputs"],
            "outputs": row["outputs"],
        }

    @functools.cached_property
    def pairs(self) -> pl.DataFrame:
        """The two engines' layers aligned by ONNX node; empty where there is one engine."""
        return align_engines(*self.tables) if len(self.tables) == 2 else pl.DataFrame()

    def paired(self) -> pl.DataFrame:
        """The aligned groups that are listed: the node, both precisions, both numbers of layers, both times."""
        rows = self.pairs.filter("differs") if self.changed else self.pairs
        first, second = (table.name for table in self.tables)
        told = rows.select(
            "node",
            pl.col("precision").alias(first),
            pl.col("other_precision").alias(second),
            pl.col("layers").list.len().cast(pl.Int64).alias(f"{first} layers"),
            pl.col("other_layers").list.len().cast(pl.Int64).alias(f"{second} layers"),
            pl.col("ms").alias(f"{first} ms"),
            pl.col("other_ms").alias(f"{second} ms"),
            pl.col("delta_ms").alias("change, ms"),
        )
        return told.select(name for name in told.columns if told[name].null_count() < len(told) or told.is_empty())

    def said(self) -> tuple[str, ...]:
        """What stands out in the engine that is listed, and what the two differ in."""
        lines = summarize_layers(self.table)
        return (*summarize_diff(self.pairs, *self.tables), *lines) if len(self.tables) == 2 else lines


def explain_untimed(source: Any) -> str:
    """Why the layers of an engine file can't be timed here; "" where they can."""
    from trtkit import backends

    path = getattr(source, "path", source)
    if not isinstance(path, (str, Path)) or Path(path).suffix == ".parquet":
        return "only an engine file can be timed here"
    try:
        backends.require_run(backends.read_engine(path).backend)
    except CapabilityError as error:
        return error.found
    except TrtkitError as error:
        return str(error)
    return ""


def time_layers(
    sources: tuple[Any, ...], runs: int, *, progress: Progress | None = None, cancel: CancelToken | None = None
) -> tuple[LayerTable, ...]:
    """Open engines here and time their layers.

    Args:
        sources: Engine files.
        runs: Over so many runs.
        progress: Receives an event for each engine.
        cancel: Asked at each.

    Raises:
        CapabilityError, EngineError: They don't run here.
        CancelledError: The caller cancelled.
    """
    from trtkit import backends

    work, found = Reporter(progress, cancel), []
    for place, source in enumerate(sources):
        work.step("time the layers", place, len(sources))
        with backends.open(source) as runner:
            found.append(read_layers(runner, runs=runs, name=Path(getattr(source, "path", source)).stem))
    work.step("time the layers", len(sources), len(sources))
    return tuple(found)


def find_demo_engines() -> tuple[Path, ...]:
    """The FP16 and INT8 engines that `trtkit demo` built; () where it did not."""
    from trtkit import demo

    files = tuple(demo.OUTPUT_DIR / f"{demo.model_path().stem}-{name}.engine" for name in ("fp16", "int8"))
    return files if all(file.is_file() for file in files) else ()


def build_demo_engines(
    *, progress: Progress | None = None, cancel: CancelToken | None = None
) -> tuple[LayerTable, ...]:
    """Build the embedded model in FP16 and INT8, for a common GPU where none is here.

    Raises:
        CapabilityError: Nothing builds engines here.
        CancelledError: The caller cancelled.
    """
    from trtkit import demo
    from trtkit.backends.capabilities import probe
    from trtkit.exporter import export

    device = None if probe("tensorrt_rtx").gpus else demo.DEVICE
    stem = demo.model_path().stem
    made = [
        export(
            demo.model_path(), data=demo.data_path() if name == "int8" else None, device=device, half=name == "fp16",
            int8=name == "int8", output=demo.OUTPUT_DIR / f"{stem}-{name}.engine", overwrite=True, progress=progress,
            cancel=cancel,
        )
        for name in ("fp16", "int8")
    ]  # fmt: skip
    return tuple(read_layers(one) for one in made)


def _shorten(name: str, most: int = 36) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _summarize_nodes(nodes: list[str] | None) -> str:
    """The node with weights, else the first, and how many more there are."""
    plain = original_nodes(nodes)
    if not plain:
        return ""
    first = next((node for node in plain if WEIGHTED_NODE.search(node)), plain[0])
    return first if len(plain) == 1 else f"{first} + {len(plain) - 1}"
