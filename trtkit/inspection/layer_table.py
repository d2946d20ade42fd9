"""Layer tables of engines: their layers, precisions and latencies, and a summary in sentences."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from trtkit.errors import DataError, EngineError
from trtkit.writing import atomic_write

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = [
    "LISTED_LAYERS",
    "WEIGHTED_NODE",
    "LayerTable",
    "count_kinds",
    "layer_kinds",
    "precision_shares_figure",
    "read_layers",
    "summarize_layers",
    "weighted_node_precisions",
]

NEEDED = ("name", "type", "onnx_nodes", "precision", "reformat", "ms")
"""Columns that every layer frame has; `trtkit.backends.layer_frame` lists them all."""

FACTS = (
    "backend",
    "tensorrt",
    "gpu",
    "sm",
    "precision",
    "batch",
    "imgsz",
    "dynamic",
    "build_seconds",
    "plan_size",
    "created",
)

OPTIONAL: dict[str, Any] = {
    **dict.fromkeys(("input_precision", "output_precision", "tactic", "shape"), pl.String),
    **dict.fromkeys(("inputs", "outputs"), pl.List(pl.String)),
}

WEIGHTED_NODE = re.compile(r"(?:^|[/_.])(Conv|ConvTranspose|Gemm|MatMul)(_\d+)?$")
"""Names of nodes with weights or products, as exporters spell them."""

SLOWEST_SHARE = 0.5
"""Share of the latency that the slowest layers are counted up to."""

LISTED_LAYERS = 3
"""Largest number of layers named in a sentence."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LayerTable:
    """The layers of one engine.

    Attributes:
        name: Name of the engine.
        frame: As `trtkit.backends.layer_frame`, with `share` of the total latency, 0..1, null if layers were not timed.
        facts: Facts of the engine's passport by name; {} if there is none.
        untimed_reason: Why there are no latencies, "" if there are.
    """

    name: str
    frame: pl.DataFrame
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    untimed_reason: str = ""

    @property
    def timed(self) -> bool:
        """Whether layers were timed."""
        return not self.untimed_reason

    @property
    def total(self) -> float | None:
        """Sum of the layers' latencies, ms; a run with overlapping layers takes less. None if they were not timed."""
        return float(self.frame["ms"].sum()) if self.timed else None

    def by_precision(self) -> pl.DataFrame:
        """The share of each precision in the engine.

        Returns:
            One row per precision, with reformats as "reformat": `precision`, `layers`, `ms`, `share` (of the latency,
            or of the layers if they were not timed), the largest share first.
        """
        rows = self.frame.with_columns(precision=layer_kinds(self.frame))
        rows = rows.group_by("precision").agg(layers=pl.len().cast(pl.Int64), ms=pl.col("ms").sum())
        weight = pl.col("ms" if self.timed else "layers")
        rows = rows.with_columns(share=weight / weight.sum())
        if not self.timed:
            rows = rows.with_columns(ms=pl.lit(None, pl.Float64))
        return rows.sort("share", "precision", descending=[True, False])

    def plot(self, *, selected: int | None = None, highlighted: pl.Series | None = None) -> go.Figure:
        """Layers in execution order: their latency if they were timed, else their precision alone.

        Args:
            selected: `index` of the layer to mark.
            highlighted: Which rows stand out, as booleans; None highlights all.
        """
        from trtkit.plotting.engine import layers_figure

        frame = self.frame.with_columns(kind=layer_kinds(self.frame))
        return layers_figure(frame, timed=self.timed, selected=selected, highlighted=highlighted)

    def save(self, path: str | Path) -> Path:
        """Write the frame as parquet, to be read where the engine can't run.

        Returns:
            The file.

        Raises:
            OutputError: The file can't be written.
        """
        with atomic_write(path) as temporary:
            self.frame.drop("share").write_parquet(temporary)
        return Path(path)


def layer_kinds(frame: pl.DataFrame) -> pl.Series:
    """The precision of each layer, "reformat" for reformats and "untyped" if TensorRT names none.

    Args:
        frame: `LayerTable.frame`.
    """
    kind = pl.when("reformat").then(pl.lit("reformat")).otherwise(pl.col("precision").fill_null("untyped"))
    return frame.select(kind=kind)["kind"]


def count_kinds(frame: pl.DataFrame) -> dict[str, int]:
    """Number of layers of each of `layer_kinds`, the most frequent first: what every place that counts layers says.

    Args:
        frame: `LayerTable.frame`.
    """
    kinds = (
        layer_kinds(frame)
        .rename("kind")
        .to_frame()
        .group_by("kind")
        .len()
        .sort("len", "kind", descending=[True, False])
    )
    return dict(kinds.sort("len", "kind", descending=[True, False]).iter_rows())


def precision_shares_figure(tables: Sequence[LayerTable], *, engine: int = 0, precision: str = "") -> go.Figure:
    """The share of each precision in each engine: of the latency if all were timed, else of the layers.

    Args:
        tables: One table per engine.
        engine: Index of the table that `precision` is of.
        precision: The highlighted precision, or "reformat"; "" for all.
    """
    from trtkit.plotting.engine import shares_figure

    rows = pl.concat([table.by_precision().with_columns(engine=pl.lit(table.name)) for table in tables])
    timed = all(table.timed for table in tables)
    return shares_figure(rows, timed=timed, engine=engine, precision=precision)


def read_layers(source: Any, *, runs: int = 0, name: str = "") -> LayerTable:
    """The layers of an engine.

    Args:
        source: An engine file of trtkit (no GPU needed), an `Artifact`, an open runner, a layer frame, a parquet file
            of one, or a `LayerTable`, which is returned.
        runs: Runs over which each layer of an open runner is timed; 0 does not time. Only runners can be timed.
        name: Name of the engine; "" takes the file's.

    Raises:
        EngineError: The engine has no layer table, or can't be read.
        DataError: The frame is not a layer table, or its file can't be read.
    """
    if isinstance(source, LayerTable):
        return source
    if isinstance(source, pl.DataFrame):
        return _make_table(source, name or "layers", {}, "the frame has none")
    if callable(getattr(source, "layers", None)):
        facts = {"runner": source.name, "precision": source.precision, "batch": source.batch}
        return _make_table(source.layers(runs=runs), name or source.name, facts, "layers were not timed (runs=0)")
    path = Path(getattr(source, "path", source))
    if path.suffix == ".parquet":
        return _make_table(_read_parquet(path), name or path.stem, {}, f"{path.name} has none")
    if path.suffix.lower() in (".onnx", ".pt", ".pth"):
        raise EngineError(
            f"read the layers of {path}",
            "it is not an engine",
            "export it with format='engine' first",
            code="layers-not-an-engine",
            path=str(path),
        )
    return _read_engine_layers(path, name)


def _read_engine_layers(path: Path, name: str) -> LayerTable:
    from trtkit.backends import layer_frame, read_engine

    passport = read_engine(path).passport
    asked = f"read the layers of {path}"
    if passport is None:
        raise EngineError(
            asked,
            "trtkit did not build it, so it has no layer table",
            "open it where it runs, and pass the runner or a saved frame of the runner's layers",
            code="layers-foreign-engine",
            path=str(path),
        )
    if not passport.layers:
        raise EngineError(
            asked,
            "its builder gave no layer table",
            "open it where it runs, and pass the runner",
            code="layers-missing",
            path=str(path),
        )
    facts = {key: getattr(passport, key) for key in FACTS if getattr(passport, key) not in ("", None)}
    reason = "the file has no latencies; they need a run on its GPU: open(...).layers(runs=50)"
    return _make_table(layer_frame(passport.layers), name or path.stem, facts, reason)


def _read_parquet(path: Path) -> pl.DataFrame:
    asked = f"read the layers in {path}"
    if not path.is_file():
        raise DataError(asked, "the file does not exist", "check the path", code="layers-file-missing", path=str(path))
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(
            asked, f"it is not a parquet file ({error})", "save it again", code="layers-file-damaged", path=str(path)
        ) from error


def _make_table(frame: pl.DataFrame, name: str, facts: Mapping[str, Any], untimed_reason: str) -> LayerTable:
    missing = [column for column in NEEDED if column not in frame.columns]
    if missing or frame.is_empty():
        raise DataError(
            f"read the layers of {name}",
            f"the frame has no column {missing[0]!r}" if missing else "the frame is empty",
            "pass a frame of a runner's layers",
            code="layers-frame-invalid",
            names=missing,
        )
    complete = frame.with_columns(
        pl.lit(None, kind).alias(column) for column, kind in OPTIONAL.items() if column not in frame.columns
    ).drop("index", strict=False)
    complete = complete.with_row_index("index").with_columns(pl.col("ms").cast(pl.Float64))
    # A profiler leaves out layers that launch nothing: their latency is 0.
    timed = complete["ms"].is_not_null().any()
    if timed:
        complete = complete.with_columns(pl.col("ms").fill_null(0.0))
    complete = complete.with_columns(share=pl.col("ms") / pl.col("ms").sum())
    return LayerTable(name=name, frame=complete, facts=facts, untimed_reason="" if timed else untimed_reason)


def summarize_layers(table: LayerTable) -> tuple[str, ...]:
    """Layers by precision, reformats, layers above INT8 and the slowest layers of an engine.

    Args:
        table: Its layers.

    Returns:
        Sentences, the most important first.
    """
    sentences = [_describe_precisions(table), _describe_reformats(table), *_describe_layers_above_int8(table)]
    sentences.append(_describe_slowest(table) if table.timed else f"No latencies: {table.untimed_reason}.")
    return tuple(sentences)


def _describe_precisions(table: LayerTable) -> str:
    parts = [f"{row['layers']} {row['precision']}" for row in table.by_precision().iter_rows(named=True)]
    total = f", sum {table.total:.3f} ms" if table.timed else ""
    return f"{len(table.frame)} layers{total}: {', '.join(parts)}."


def _describe_reformats(table: LayerTable) -> str:
    reformats = table.frame.filter("reformat")
    if reformats.is_empty():
        return "No reformats."
    share = f", {float(reformats['share'].sum()):.1%} of the latency" if table.timed and table.total else ""
    count = "1 reformat" if len(reformats) == 1 else f"{len(reformats)} reformats"
    return f"{count} (change of layout or data type only){share}."


def weighted_node_precisions(table: LayerTable) -> dict[str, set[str]]:
    """The precisions in which the nodes with weights or products run, by node.

    A layer that quantizes for a weighted node names it too: the node runs in the lowest of its layers' precisions.

    Args:
        table: An engine's layers.
    """
    weighted = table.frame.filter(
        pl.col("onnx_nodes").list.eval(pl.element().str.contains(WEIGHTED_NODE.pattern)).list.any()
        & ~pl.col("reformat")
    )
    precisions: dict[str, set[str]] = {}
    for names, precision in weighted.select("onnx_nodes", "precision").iter_rows():
        for name in names:
            if WEIGHTED_NODE.search(name):
                precisions.setdefault(name, set()).add(precision or "untyped")
    return precisions


def _describe_layers_above_int8(table: LayerTable) -> list[str]:
    """Weighted layers of an INT8 engine that run in a higher precision."""
    if "int8" not in set(table.frame["precision"].drop_nulls()):
        return []
    precisions = weighted_node_precisions(table)
    above = [name for name, used in precisions.items() if "int8" not in used]
    if not above:
        return ["All layers with weights or products run in INT8."]
    listed = ", ".join(above[:LISTED_LAYERS])
    more = f" and {len(above) - LISTED_LAYERS} more" if len(above) > LISTED_LAYERS else ""
    return [f"{len(above)} of {len(precisions)} layers with weights or products run above INT8: {listed}{more}."]


def _describe_slowest(table: LayerTable) -> str:
    ranked = table.frame.sort("ms", descending=True)
    count = int((ranked["share"].cum_sum() < SLOWEST_SHARE).sum()) + 1
    listed = ", ".join(
        f"{name} ({share:.1%})" for name, share in ranked.head(LISTED_LAYERS).select("name", "share").iter_rows()
    )
    return f"{count} of {len(ranked)} layers take half of the latency; the slowest: {listed}."
