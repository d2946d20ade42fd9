"""An engine's layers, from wherever they can be read: the engine file, an open runner, or a saved frame."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from trtkit.errors import DataError, EngineError
from trtkit.files import atomic_write

__all__ = ["LayerTable", "read_layers"]

NEEDED = ("name", "type", "onnx_nodes", "precision", "reformat", "ms")
"""Columns without which a frame is no layer table; `trtkit.backends.layer_frame` names them all."""

FACTS = ("tensorrt", "gpu", "sm", "precision", "batch", "imgsz", "dynamic", "build_seconds", "plan_size", "created")

OPTIONAL: dict[str, Any] = {
    **dict.fromkeys(("input_precision", "output_precision", "tactic", "shape"), pl.String),
    **dict.fromkeys(("inputs", "outputs"), pl.List(pl.String)),
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LayerTable:
    """The layers of one engine.

    Attributes:
        name: What to call the engine.
        frame: As `trtkit.backends.layer_frame` describes it, with `share` of the whole time, 0..1, null without times.
        facts: What the engine's passport says of it, by name; {} where there is none.
        untimed: Why there are no times, "" where there are.
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
        """Sum over the layers, ms; a run that overlaps layers takes less. None without times."""
        return float(self.frame["ms"].sum()) if self.timed else None

    def by_precision(self) -> pl.DataFrame:
        """What each precision has of the engine.

        Returns:
            One row a precision, reformats apart as "reformat": `precision`, `layers`, `ms`, `share` (of the time, or of
            the layers where there are no times), the largest share first.
        """
        kind = pl.when("reformat").then(pl.lit("reformat")).otherwise(pl.col("precision").fill_null("untyped"))
        rows = self.frame.group_by(precision=kind).agg(layers=pl.len().cast(pl.Int64), ms=pl.col("ms").sum())
        weight = pl.col("ms" if self.timed else "layers")
        rows = rows.with_columns(share=weight / weight.sum())
        if not self.timed:
            rows = rows.with_columns(ms=pl.lit(None, pl.Float64))
        return rows.sort("share", "precision", descending=[True, False])

    def save(self, path: str | Path) -> Path:
        """Write the frame as parquet, so that it can be looked at where the engine can't run.

        Raises:
            OutputError: The file can't be written.
        """
        with atomic_write(path) as temporary:
            self.frame.drop("share").write_parquet(temporary)
        return Path(path)


def read_layers(source: Any, *, runs: int = 0, name: str = "") -> LayerTable:
    """The layers of an engine.

    Args:
        source: An engine file (read without a GPU: trtkit writes the table into it), what `export` returned, an open
            runner, a layer frame, a parquet file of one, or a `LayerTable`, which is handed back.
        runs: Time each layer of an open runner over so many runs; 0 reads no times. Only runners can be timed.
        name: What to call the engine; "" takes the file's.

    Raises:
        EngineError: The engine holds no layer table, or can't be read.
        DataError: The frame is no layer table, or its file can't be read.
    """
    if isinstance(source, LayerTable):
        return source
    if isinstance(source, pl.DataFrame):
        return _make_table(source, name or "layers", {}, "the frame holds none")
    if callable(getattr(source, "layers", None)):
        facts = {"runner": source.name, "precision": source.precision, "batch": source.batch}
        return _make_table(source.layers(runs=runs), name or source.name, facts, "they were not asked for (runs=0)")
    path = Path(getattr(source, "path", source))
    if path.suffix == ".parquet":
        return _make_table(_read_parquet(path), name or path.stem, {}, f"{path.name} holds none")
    if path.suffix.lower() in (".onnx", ".pt", ".pth"):
        raise EngineError(f"read the layers of {path}", "it is no engine", "export it with format='engine' first")
    return _read_engine_layers(path, name)


def _read_engine_layers(path: Path, name: str) -> LayerTable:
    from trtkit.backends import layer_frame, read_engine

    passport = read_engine(path).passport
    asked = f"read the layers of {path}"
    if passport is None:
        raise EngineError(
            asked,
            "it was not built by trtkit and holds no layer table",
            "open it with trtkit.open() where it runs, and pass the runner or a saved frame of its .layers()",
        )
    if not passport.layers:
        raise EngineError(asked, "its builder told no layer table", "open it where it runs, and pass the runner")
    facts = {key: getattr(passport, key) for key in FACTS if getattr(passport, key) not in ("", None)}
    untimed = "the file holds the layer table only; times need a run on its GPU: open(...).layers(runs=50)"
    return _make_table(layer_frame(passport.layers), name or path.stem, facts, untimed)


def _read_parquet(path: Path) -> pl.DataFrame:
    if not path.is_file():
        raise DataError(f"read the layers in {path}", "the file does not exist", "check the path")
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"read the layers in {path}", f"it is no parquet file ({error})", "save it again") from error


def _make_table(frame: pl.DataFrame, name: str, facts: Mapping[str, Any], untimed: str) -> LayerTable:
    missing = [column for column in NEEDED if column not in frame.columns]
    if missing or frame.is_empty():
        raise DataError(
            f"read the layers of {name}",
            f"the frame has no column {missing[0]!r}" if missing else "the frame is empty",
            "pass what runner.layers() or trtkit.backends.layer_frame gave",
        )
    whole = frame.with_columns(
        pl.lit(None, kind).alias(column) for column, kind in OPTIONAL.items() if column not in frame.columns
    ).drop("index", strict=False)
    whole = whole.with_row_index("index").with_columns(pl.col("ms").cast(pl.Float64))
    # A profiler leaves out layers that launch nothing: they take no time.
    timed = whole["ms"].is_not_null().any()
    if timed:
        whole = whole.with_columns(pl.col("ms").fill_null(0.0))
    whole = whole.with_columns(share=pl.col("ms") / pl.col("ms").sum())
    return LayerTable(name=name, frame=whole, facts=facts, untimed_reason="" if timed else untimed)
