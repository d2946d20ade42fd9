"""search(): the fastest mix of INT8 and FP16 within an allowed loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl

from trtkit.calibration.calibration import Calibration
from trtkit.files import write_bytes
from trtkit.results import Provenance, Result

if TYPE_CHECKING:
    import plotly.graph_objects as go


__all__ = [
    "Search",
]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Search(Result):
    """Mixes of INT8 and FP16, each judged, and the one that was found.

    Attributes:
        trials: One row a mix, in the order they were judged: `mix` (what it is), `ranges` (the algorithm),
            `corrected` (whether biases are), `kept` (how many layers stay high beyond the default), `int8_share` (of
            the multiply-accumulates), `sqnr` (dB, see `Sensitivity`), `metric`, `loss`, `loss_low`, `loss_high`
            (against FP32, on the same draws of images), `cost` and `unit` ("ms" of an engine that ran, or
            "relative"), `pareto` (nothing is both faster and better), `chosen`, and `keep`, the patterns.
        layers: One row a layer: `node`, `block`, `macs`, `noise` (its share of the repaired INT8's noise), `ranges`
            (the algorithm of its input's range) and `excluded_as` (its place in the order of exclusion).
        keep: `keep=` patterns of the mix that was found.
        calibration: Its ranges and bias corrections.
        reached: Whether its loss is within what was allowed.
        max_drop: What was allowed.
        metric: What judges, e.g. "mAP50-95(B)" by Ultralytics' rule.
        value_float: The metric in FP32.
        cost_source: Where the costs come from, in words.
        notes: What a reader should know.
        equalized: The ONNX graph with equalized weights that the mix is of, serialized; None where nothing was.
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
        """The trials that no other one beats in both cost and metric, the fastest first."""
        return self.trials.filter(pl.col("pareto")).sort("cost")

    @property
    def best(self) -> dict[str, Any]:
        """The mix that was found, as a row of `trials`."""
        return self.trials.filter(pl.col("chosen")).row(0, named=True)

    def to_python(self, model: str = "model.pt", folder: str = "search") -> str:
        """Python that exports what was found.

        Args:
            model: The model's file.
            folder: Where this result was saved.
        """
        source = f"{folder}/{self.kind}.equalized.onnx" if self.equalized is not None else model
        listed = "".join(f"\n        {pattern!r}," for pattern in self.keep)
        keep = f"[{listed}\n    ]" if self.keep else "[]"
        return (
            f"import trtkit as tk\n\nartifact = tk.export(\n    {source!r},\n    int8=True,\n"
            f"    calibration={folder + '/calibration'!r},\n    keep={keep},\n)\n"
        )

    def plot(self) -> go.Figure:
        """The metric over the cost of every trial, with intervals."""
        from trtkit.plotting.tuning import search_figure

        return search_figure(self)

    def save(self, folder: str | Path) -> Path:
        """Write the result, its calibration into `calibration/`, and the equalized graph where there is one."""
        self.calibration.save(Path(folder) / "calibration")
        if self.equalized is not None:
            write_bytes(Path(folder) / f"{self.kind}.equalized.onnx", self.equalized)
        return super().save(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Search:
        """Read what `save` wrote.

        Raises:
            DataError: The folder holds no search.
        """
        found: Search = super().load(folder)
        graph = Path(folder) / f"{cls.kind}.equalized.onnx"
        return dataclasses.replace(
            found,
            calibration=Calibration.load(Path(folder) / "calibration"),
            equalized=graph.read_bytes() if graph.is_file() else None,
        )

    def tables(self) -> Mapping[str, pl.DataFrame]:
        """Both frames."""
        return {"trials": self.trials, "layers": self.layers}

    def facts(self) -> Mapping[str, Any]:
        """What no frame holds; the calibration is saved beside."""
        names = ("reached", "max_drop", "metric", "value_float", "cost_source")
        return {
            **{name: getattr(self, name) for name in names},
            "keep": list(self.keep),
            "notes": list(self.notes),
        }

    @classmethod
    def restore(cls, tables: Mapping[str, pl.DataFrame], facts: Mapping[str, Any], provenance: Provenance) -> Search:
        """The inverse of `tables` and `facts`; `load` puts the calibration in its place."""
        values = {**tables, **facts, "keep": tuple(facts["keep"]), "notes": tuple(facts["notes"])}
        nothing = Calibration(ranges={}, algorithm="", images=0, split="", provenance=provenance)
        return cls(**values, calibration=nothing, provenance=provenance)

    def __repr__(self) -> str:
        row = self.best
        cost = f"{row['cost']:.3g} ms" if row["unit"] == "ms" else f"{row['cost']:.3f} of FP16's arithmetic"
        lines = [
            f"Search over {len(self.trials)} mixes: {row['assignment']}, {row['int8_share']:.1%} of the arithmetic in INT8, "
            f"{cost}",
            f"  {self.metric} {row['metric']:.4f} against {self.value_float:.4f} in FP32: a loss of {row['loss']:.4f} "
            f"[{row['loss_low']:.4f}, {row['loss_high']:.4f}], allowed {self.max_drop}",
        ]
        if not self.reached:
            lines.append("  no mix is within the allowed loss; this is the one that loses least")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])
