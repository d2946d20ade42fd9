"""Search: the result of `search`, a mixed-precision INT8/FP16 export within an accepted loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl

from trtkit.calibration import Calibration
from trtkit.errors import ResultError
from trtkit.files import hash_parts
from trtkit.results import Provenance, Result, SavedResult
from trtkit.writing import find_published, write_bytes

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Search"]

_VERSION_1_COLUMNS = {
    "trials": {"mix": "assignment", "ranges": "algorithm", "corrected": "bias_corrected", "kept": "kept_layers"},
    "layers": {"noise": "noise_share", "ranges": "algorithm", "excluded_as": "exclusion_rank"},
}
"""Columns of format version 1, by table and by their names in it."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Search(Result):
    """The trials of a mixed-precision search and the chosen precision assignment.

    Attributes:
        trials: One row per trial, in order of evaluation: `assignment` (its name), `algorithm` (of its ranges; null for
            FP16), `bias_corrected`, `kept_layers` (layers in FP16 beyond the default), `int8_share` (of the
            multiply-accumulates), `sqnr` (dB, see `Sensitivity`), `metric`, `loss`, `loss_low`, `loss_high` (against
            FP32, paired bootstrap), `cost` and `unit` ("ms" of an engine that ran, or "relative"), `pareto` (no other
            trial is as fast and as accurate), `chosen`, and `keep`, its patterns.
        layers: One row per layer: `node`, `block`, `macs`, `noise_share` (of the noise of the best INT8 assignment),
            `algorithm` (of its input's range) and `exclusion_rank` (its position in the order of exclusion).
        keep: `keep=` patterns of the chosen assignment.
        calibration: Its ranges and bias corrections.
        reached: Whether its loss is at most `max_drop`.
        max_drop: The largest accepted loss.
        metric: The metric that decides, e.g. "mAP50-95(B)" by Ultralytics' rule.
        value_float: The metric in FP32.
        cost_source: How the costs were obtained.
        notes: Remarks, such as what equalization did.
        equalized: The searched ONNX graph with equalized weights, serialized; None if no weights were equalized.
        provenance: Model, data, settings and seed.
    """

    kind: ClassVar[str] = "search"

    trials: pl.DataFrame
    layers: pl.DataFrame
    keep: tuple[str, ...]
    calibration: Calibration
    reached: bool
    max_drop: float
    metric: str
    value_float: float
    cost_source: str
    notes: tuple[str, ...] = ()
    equalized: bytes | None = None
    provenance: Provenance

    def frame(self) -> pl.DataFrame:
        """`trials`."""
        return self.trials

    def pareto(self) -> pl.DataFrame:
        """The Pareto-optimal trials in cost and metric, the fastest first."""
        return self.trials.filter(pl.col("pareto")).sort("cost")

    @property
    def best(self) -> dict[str, Any]:
        """The chosen assignment, as a row of `trials`."""
        return self.trials.filter(pl.col("chosen")).row(0, named=True)

    def to_python(self, model: str = "model.pt", folder: str = "search") -> str:
        """Python that exports the chosen assignment.

        Args:
            model: The model's file.
            folder: The folder this result was saved in.
        """
        from trtkit.codegen import render_python
        from trtkit.exporter import export

        return render_python("export", export, self._export_arguments(model, folder))

    def to_command(self, model: str = "model.pt", folder: str = "search") -> str:
        """The command line that exports the chosen assignment, quoted for a POSIX shell.

        Args:
            model: The model's file.
            folder: The folder this result was saved in.
        """
        from trtkit.codegen import render_command
        from trtkit.exporter import export

        return render_command("export", export, self._export_arguments(model, folder))

    def _export_arguments(self, model: str, folder: str) -> dict[str, Any]:
        source = model if self.equalized is None else f"{folder}/{self._equalized_names()[0]}"
        arguments: dict[str, Any] = {"model": source, "imgsz": tuple(self.provenance.settings["imgsz"])}
        if self.equalized is None:
            arguments["end2end"] = bool(self.provenance.settings.get("end2end", False))
        if self.best["algorithm"] is None:
            return {**arguments, "half": True}
        return {**arguments, "int8": True, "calibration": f"{folder}/calibration", "keep": self.keep}

    def plot(self) -> go.Figure:
        """The metric over the cost of every trial, with confidence intervals."""
        from trtkit.plotting.tuning import search_figure

        return search_figure(self.trials, metric=self.metric, value_float=self.value_float, max_drop=self.max_drop)

    def write_files(self, folder: Path) -> None:
        """Write the result, its calibration into `calibration/`, and the equalized graph if there is one."""
        self.calibration.save(folder / "calibration")
        if self.equalized is not None:
            write_bytes(folder / self._equalized_names()[0], self.equalized)
        super().write_files(folder)

    @classmethod
    def list_files(cls, folder: str | Path) -> list[str]:
        """Names of files that a saved search has, without the calibration's."""
        return [*super().list_files(folder), *cls._equalized_names()]

    def read_files(self, folder: Path, facts: Mapping[str, Any]) -> Search:
        """Add the calibration and the equalized graph, which must be those saved with the result."""
        calibration = Calibration.load(find_published(folder, "calibration"))
        paths = (find_published(folder, name) for name in self._equalized_names())
        path = next((path for path in paths if path.is_file()), None)
        equalized = None if path is None else path.read_bytes()
        found = {"calibration": calibration.hash, "equalized": _hash_graph(equalized)}
        # Searches of trtkit 0.1.0 name no hashes.
        changed = [name for name, value in found.items() if name in facts and facts[name] != value]
        if changed:
            raise ResultError(
                f"load a search from {folder}",
                f"its {' and its '.join(changed)} is not what was saved (the SHA-256 differs)",
                "restore the file, or search again",
                code="result-changed",
                path=str(folder),
                names=changed,
            )
        return dataclasses.replace(self, calibration=calibration, equalized=equalized)

    @classmethod
    def _equalized_names(cls) -> tuple[str, str]:
        """Names of the equalized graph: the present one, and that of format version 1."""
        return f"{cls.kind}.equalized.onnx", f"{cls.kind}.equalised.onnx"

    def tables(self) -> Mapping[str, pl.DataFrame]:
        """Trials and layers."""
        return {"trials": self.trials, "layers": self.layers}

    def facts(self) -> Mapping[str, Any]:
        """The attributes beside the tables; the calibration is saved in a folder of its own."""
        names = ("reached", "max_drop", "metric", "value_float", "cost_source")
        return {
            **{name: getattr(self, name) for name in names},
            "keep": list(self.keep),
            "notes": list(self.notes),
            "calibration": self.calibration.hash,
            "equalized": _hash_graph(self.equalized),
        }

    @classmethod
    def restore(cls, tables: Mapping[str, pl.DataFrame], facts: Mapping[str, Any], provenance: Provenance) -> Search:
        """The inverse of `tables` and `facts`; `read_files` adds the calibration."""
        own = {name: value for name, value in facts.items() if name not in ("calibration", "equalized")}
        return cls(
            **{**own, "keep": tuple(facts["keep"]), "notes": tuple(facts["notes"])},
            trials=tables["trials"],
            layers=tables["layers"],
            calibration=Calibration(ranges={}, algorithm="", image_count=0, split="", provenance=provenance),
            provenance=provenance,
        )

    @classmethod
    def upgrade(cls, saved: SavedResult) -> SavedResult:
        """Convert a search of format version 1."""
        saved = super().upgrade(saved)
        saved.tables = {name: saved.tables[name].rename(columns) for name, columns in _VERSION_1_COLUMNS.items()}
        return saved

    def __repr__(self) -> str:
        row = self.best
        cost = f"{row['cost']:.3g} ms" if row["unit"] == "ms" else f"{row['cost']:.3f} of FP16's cost"
        lines = [
            f"Search of {len(self.trials)} trials: {row['assignment']}, {row['int8_share']:.1%} of the "
            f"multiply-accumulates in INT8, {cost}",
            f"  {self.metric} {row['metric']:.4f}, FP32 {self.value_float:.4f}: loss {row['loss']:.4f} "
            f"[{row['loss_low']:.4f}, {row['loss_high']:.4f}], accepted {self.max_drop}",
        ]
        if not self.reached:
            lines.append("  no trial is within the accepted loss; this one loses least")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def _hash_graph(graph: bytes | None) -> str | None:
    return None if graph is None else hash_parts(graph)
