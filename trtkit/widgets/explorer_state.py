"""State of the explorer: which layers of one or two engines are listed, in which order, and which one is selected."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import polars as pl

from trtkit.errors import CapabilityError, RecipeError, TrtkitError
from trtkit.inspection import (
    WEIGHTED_NODE,
    LayerTable,
    align_engines,
    layer_kinds,
    original_nodes,
    read_layers,
    summarize_diff,
    summarize_layers,
)
from trtkit.progress import CancelToken, Progress, Reporter

__all__ = ["ORDERS", "ExplorerState", "build_demo_engines", "explain_untimed", "find_demo_engines", "time_layers"]

ORDERS = {"execution order": "execution", "slowest first": "time", "by precision": "precision", "by ONNX node": "node"}
"""Orders of the layer list by their labels."""

MAX_NAME_LENGTH = 36
"""Characters of a layer's name in the list."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ExplorerState:
    """An immutable state of the explorer.

    Attributes:
        tables: The layers of one or two engines.
        engine: Index of the engine whose layers are listed, 0 or 1.
        precision: Precision to list, "reformat", or "" for all.
        text: Substring of a layer's name, type or ONNX nodes; "" lists all.
        order: One of the values of `ORDERS`.
        selected: `index` of the selected layer, or None.
        only_differing: List only groups whose precisions differ between the two engines.
    """

    tables: tuple[LayerTable, ...]
    engine: int = 0
    precision: str = ""
    text: str = ""
    order: str = "execution"
    selected: int | None = None
    only_differing: bool = False

    @property
    def table(self) -> LayerTable:
        """The engine whose layers are listed."""
        return self.tables[self.engine]

    @property
    def precisions(self) -> list[str]:
        """Precisions of its layers, and "reformat" if it has reformats."""
        return [str(name) for name in self.table.by_precision()["precision"]]

    def with_choices(self, **choices: Any) -> ExplorerState:
        """The state with other values of some attributes.

        Raises:
            RecipeError: There is no such engine, precision, order or layer.
        """
        state = dataclasses.replace(self, **choices)
        if not 0 <= state.engine < len(self.tables):
            raise RecipeError(
                f"show engine {state.engine}",
                f"there are {len(self.tables)} engines",
                "use an index from 0 on",
                code="explorer-engine-unknown",
                value=state.engine,
            )
        if state.engine != self.engine:
            # The other engine has other layers and other precisions.
            precision = state.precision if state.precision in state.precisions else ""
            state = dataclasses.replace(state, selected=choices.get("selected"), precision=precision)
        if state.precision and state.precision not in state.precisions:
            raise RecipeError(
                f"list {state.precision!r} layers",
                "the engine has none",
                f"choose from {', '.join(state.precisions)}",
                code="explorer-precision-unknown",
                value=state.precision,
                names=state.precisions,
            )
        if state.order not in ORDERS.values():
            raise RecipeError(
                f"order the layers by {state.order!r}",
                "there is no such order",
                f"use {', '.join(ORDERS.values())}",
                code="explorer-order-unknown",
                value=state.order,
            )
        if state.selected is not None and not 0 <= state.selected < len(state.table.frame):
            raise RecipeError(
                f"show layer {state.selected}",
                f"there are {len(state.table.frame)} layers",
                "use an index from 0 on",
                code="explorer-layer-unknown",
                value=state.selected,
            )
        return state

    def with_group(self, row: int) -> ExplorerState:
        """The state with the first layer of an aligned group selected, in the listed engine if it is part of the group.

        Args:
            row: Row of `groups`.

        Raises:
            RecipeError: There is no such group.
        """
        if not 0 <= row < len(self.groups):
            raise RecipeError(
                f"show group {row}",
                f"there are {len(self.groups)} groups",
                "use an index from 0 on",
                code="explorer-group-unknown",
                value=row,
            )
        group = self.groups.row(row, named=True)
        layers = (group["layers"], group["other_layers"])
        engine = self.engine if layers[self.engine] else 1 - self.engine
        return self.with_choices(engine=engine, selected=int(layers[engine][0]))

    def with_share(self, engine: int, precision: str) -> ExplorerState:
        """The state that lists the layers of one precision of an engine, or all layers if it lists those already.

        Args:
            engine: Index of the engine.
            precision: A precision, or "reformat".

        Raises:
            RecipeError: There is no such engine or precision.
        """
        is_listed = (engine, precision) == (self.engine, self.precision)
        return self.with_choices(engine=engine, precision="" if is_listed else precision)

    @property
    def listed(self) -> pl.Series:
        """Whether each layer is listed, in execution order."""
        frame = self.table.frame
        keep = pl.lit(value=True)
        if self.precision:
            keep = keep & (layer_kinds(frame) == self.precision)
        if self.text:
            words = pl.concat_list(pl.concat_list("name", "type"), pl.col("onnx_nodes").fill_null([])).list.join(" ")
            keep = keep & words.str.to_lowercase().str.contains(self.text.lower(), literal=True)
        return frame.select(pl.repeat(value=True, n=len(frame)) & keep).to_series().rename("listed")

    def layer_frame(self) -> pl.DataFrame:
        """The listed layers in the chosen order.

        Returns:
            One row per layer: `index`, `layer`, `nodes`, `precision`, `input` and `output` (precisions), `shape`, and
            for a timed engine `ms` and `share` (percent of the time).
        """
        frame = self.table.frame.filter(self.listed)
        columns = {
            "execution": ["index"],
            "time": ["ms", "index"],
            "precision": ["precision", "index"],
            "node": ["nodes", "index"],
        }[self.order]
        frame = frame.select(
            "index",
            layer=pl.Series([_shorten(name) for name in frame["name"]], dtype=pl.String),
            nodes=pl.Series([_summarize_nodes(nodes) for nodes in frame["onnx_nodes"].to_list()], dtype=pl.String),
            precision=pl.when("reformat").then(pl.lit("reformat")).otherwise(pl.col("precision")),
            input="input_precision",
            output="output_precision",
            shape="shape",
            ms="ms",
            share=pl.col("share") * 100,
        )
        descending = [self.order == "time", False][: len(columns)]
        frame = frame.sort(columns, descending=descending, nulls_last=True, maintain_order=True)
        return frame if self.table.timed else frame.drop("ms", "share")

    def layer_facts(self) -> dict[str, Any]:
        """Everything about the selected layer by label; {} if none is selected."""
        if self.selected is None:
            return {}
        row = self.table.frame.row(self.selected, named=True)
        return {
            "layer": row["name"],
            "type": row["type"],
            "ONNX nodes": row["onnx_nodes"],
            "input precision": row["input_precision"],
            "output precision": row["output_precision"],
            "shape": row["shape"],
            "latency": None if row["ms"] is None else f"{row['ms']:.4f} ms, {row['share']:.1%}",
            "tactic": row["tactic"],
            "inputs": row["inputs"],
            "outputs": row["outputs"],
        }

    @functools.cached_property
    def groups(self) -> pl.DataFrame:
        """The layers of the two engines aligned by ONNX node; empty for one engine."""
        return align_engines(*self.tables) if len(self.tables) == 2 else pl.DataFrame()

    def group_frame(self) -> pl.DataFrame:
        """The listed groups: their node, and both precisions, numbers of layers and latencies; columns of nulls go."""
        rows = self.groups.filter("differs") if self.only_differing else self.groups
        first, second = (table.name for table in self.tables)
        frame = rows.select(
            "node",
            pl.col("precision").alias(first),
            pl.col("other_precision").alias(second),
            pl.col("layers").list.len().cast(pl.Int64).alias(f"{first} layers"),
            pl.col("other_layers").list.len().cast(pl.Int64).alias(f"{second} layers"),
            pl.col("ms").alias(f"{first} ms"),
            pl.col("other_ms").alias(f"{second} ms"),
            pl.col("delta_ms").alias("change, ms"),
        )
        return frame.select(name for name in frame.columns if frame[name].null_count() < len(frame) or frame.is_empty())

    def findings(self) -> tuple[str, ...]:
        """Findings about the listed engine, after those about the differences of the two."""
        lines = summarize_layers(self.table)
        return (*summarize_diff(self.groups, *self.tables), *lines) if len(self.tables) == 2 else lines


def explain_untimed(source: Any) -> str:
    """Why the layers of an engine can't be timed on this machine.

    Args:
        source: An engine file, an artifact, or anything else that `read_layers` accepts.

    Returns:
        The reason; "" if they can be timed.
    """
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
    """Open engines and time their layers.

    Args:
        sources: Engine files.
        runs: Number of runs per engine.
        progress: Receives an event per engine.
        cancel: Checked before each engine.

    Returns:
        A timed layer table per engine.

    Raises:
        CapabilityError, EngineError: An engine can't run on this machine.
        CancelledError: The caller cancelled.
    """
    from trtkit import backends

    reporter, stage, tables = Reporter(progress, cancel), "time the layers", []
    for index, source in enumerate(sources):
        reporter.step(stage, index, len(sources))
        with backends.open(source) as runner:
            tables.append(read_layers(runner, runs=runs, name=Path(getattr(source, "path", source)).stem))
    reporter.step(stage, len(sources), len(sources))
    return tuple(tables)


def find_demo_engines() -> tuple[Path, ...]:
    """The FP16 and INT8 engines that `trtkit demo` built; () if there are none."""
    from trtkit import demo

    files = tuple(demo.OUTPUT_DIR / f"{demo.model_path().stem}-{name}.engine" for name in ("fp16", "int8"))
    return files if all(file.is_file() for file in files) else ()


def build_demo_engines(
    *, progress: Progress | None = None, cancel: CancelToken | None = None
) -> tuple[LayerTable, ...]:
    """Build the embedded model in FP16 and INT8, for the GPU of this machine or else for the demo's.

    Args:
        progress: Receives the events of both exports.
        cancel: Checked at every step.

    Returns:
        The layer tables of the two engines.

    Raises:
        CapabilityError: No builder is installed.
        CancelledError: The caller cancelled.
    """
    from trtkit import demo
    from trtkit.backends.capabilities import probe
    from trtkit.exporter import export

    device = None if probe("tensorrt_rtx").gpus else demo.DEVICE
    stem = demo.model_path().stem
    artifacts = [
        export(
            demo.model_path(), data=demo.data_path() if name == "int8" else None, imgsz=demo.IMGSZ, device=device,
            half=name == "fp16", int8=name == "int8", output=demo.OUTPUT_DIR / f"{stem}-{name}.engine", overwrite=True,
            progress=progress, cancel=cancel,
        )
        for name in ("fp16", "int8")
    ]  # fmt: skip
    return tuple(read_layers(artifact) for artifact in artifacts)


def _shorten(name: str) -> str:
    return name if len(name) <= MAX_NAME_LENGTH else name[: MAX_NAME_LENGTH - 1] + "…"


def _summarize_nodes(nodes: list[str] | None) -> str:
    """The first node with weights, or else the first node, and the number of further nodes."""
    original = original_nodes(nodes)
    if not original:
        return ""
    first = next((node for node in original if WEIGHTED_NODE.search(node)), original[0])
    return first if len(original) == 1 else f"{first} + {len(original) - 1}"
