"""What a calibration found, with where it came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl

from trtkit.calibration.algorithms import (
    ALGORITHMS,
    PERCENTILE,
    TensorStats,
    compute_magnitude,
    compute_range,
    figure_looks,
    get_algorithm,
    resolve_percentile,
)
from trtkit.calibration.collector import propagate_ranges
from trtkit.calibration.histogram import Histogram
from trtkit.errors import CalibrationError
from trtkit.files import hash_parts
from trtkit.results import Provenance, Result
from trtkit.threads import parallel_map

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from trtkit.models import Model

__all__ = ["Calibration", "check_fits", "compute_ranges"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Calibration(Result):
    """Ranges by ONNX tensor, and what they were read off.

    Attributes:
        ranges: Lowest and highest value each tensor's INT8 scale has to cover, by tensor name, in graph order.
        algorithm: How they were read off the images: one of `ALGORITHMS`, or "tensorrt" for a cache of TensorRT's.
        percentile: For "percentile", the share of values not clipped, percent; None otherwise.
        images: Images that were seen.
        split: The split they came from.
        skipped: Images that could not be read.
        seen: Exact extremes, moving averages and, where they were kept, histograms of the measured tensors.
        sources: For the other tensors, which only move values, what they take them from.
        corrections: What is added to the bias of a layer that runs in INT8, by node name: what bias correction found.
        notes: What a reader should know, such as why a cache was not used.
        provenance: Model, data, versions, machine, settings and seed.
    """

    kind: ClassVar[str] = "calibration"

    ranges: Mapping[str, tuple[float, float]]
    algorithm: str
    percentile: float | None = None
    images: int
    split: str
    skipped: tuple[str, ...] = ()
    stats: Mapping[str, TensorStats] = dataclasses.field(default_factory=dict)
    sources: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    corrections: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    provenance: Provenance

    @property
    def hash(self) -> str:
        """SHA-256 over the ranges, the model and the data, 64 hex digits."""
        parts = [f"{name} {low!r} {high!r}" for name, (low, high) in self.ranges.items()]
        parts += [f"{name} {values!r}" for name, values in self.corrections.items()]
        return hash_parts(self.algorithm, self.provenance.model_hash, self.provenance.data_hash or "", *parts)

    @property
    def histograms(self) -> Mapping[str, Histogram]:
        """Counts of the magnitudes of each measured tensor; empty where only extremes were taken."""
        return {name: seen.histogram for name, seen in self.stats.items() if seen.histogram is not None}

    def with_algorithm(self, algorithm: str, *, percentile: float | None = None) -> Calibration:
        """The same pass read by another algorithm; no image is looked at again.

        Args:
            algorithm: One of `ALGORITHMS`.
            percentile: For "percentile", the share of values not clipped, percent; None takes 99.999.

        Raises:
            CalibrationError: There is no such algorithm, or it needs histograms and none were kept.
        """
        percentile = resolve_percentile(algorithm, percentile)
        settings = {**self.provenance.settings, "algorithm": algorithm, "percentile": percentile}
        return dataclasses.replace(
            self,
            ranges=compute_ranges(self.stats, self.sources, tuple(self.ranges), algorithm, percentile),
            algorithm=algorithm,
            percentile=percentile,
            corrections={},
            provenance=dataclasses.replace(self.provenance, settings=settings),
        )

    def frame(self) -> pl.DataFrame:
        """One row a tensor: `tensor`, `low`, `high`, `scale` (symmetric: the larger magnitude over 127)."""
        frame = pl.DataFrame(
            {
                "tensor": list(self.ranges),
                "low": [low for low, _ in self.ranges.values()],
                "high": [high for _, high in self.ranges.values()],
            },
            schema={"tensor": pl.String, "low": pl.Float64, "high": pl.Float64},
        )
        return frame.with_columns(scale=pl.max_horizontal(pl.col("low").abs(), pl.col("high").abs()) / 127.0)

    def compare_algorithms(self, percentiles: Sequence[float] = (99.9, 99.99, PERCENTILE)) -> pl.DataFrame:
        """What every algorithm makes of each measured tensor.

        Args:
            percentiles: Percentiles to show, percent.

        Returns:
            One row a tensor: `tensor`, and a column with the magnitude that each algorithm covers (`minmax`,
            `moving_average`, `entropy`, `mse`, `percentile 99.9`, ...); histograms missing, only the first two.
        """
        columns_of: dict[str, tuple[str, float | None]] = {}
        for name, entry in ALGORITHMS.items():
            if entry.needs_histogram and not self.histograms:
                continue
            for value in percentiles if entry.takes_percentile else (None,):
                columns_of[entry.label(value)] = (name, value)
        columns: dict[str, Any] = {"tensor": list(self.stats)}
        for column, (algorithm, value) in columns_of.items():
            columns[column] = [
                compute_magnitude(seen, algorithm, percentile=value, tensor=name) for name, seen in self.stats.items()
            ]
        return pl.DataFrame(columns, schema={name: pl.String if name == "tensor" else pl.Float64 for name in columns})

    def plot(self) -> go.Figure:
        """The ranges in graph order, as bars from the lowest to the highest value."""
        from trtkit.plotting.calibration import ranges_figure

        title = f"Ranges by {self.algorithm} over {self.images} images of {self.split}"
        return ranges_figure(self.frame(), title=title)

    def plot_tensor(self, tensor: str) -> go.Figure:
        """A tensor's histogram, with the magnitude that each algorithm would cover.

        Raises:
            CalibrationError: No histogram of that tensor was kept.
        """
        from trtkit.plotting.calibration import tensor_figure

        stats = self.stats.get(tensor)
        if stats is None or stats.histogram is None:
            raise CalibrationError(
                f"plot tensor {tensor!r}",
                "the calibration has no histogram of it",
                "calibrate with histograms=True and pass one of calibration.histograms",
                code="calibration-histogram-missing",
                value=tensor,
            )
        return tensor_figure(
            stats.histogram.bins(512),
            {name: compute_magnitude(stats, name, tensor=tensor) for name in ALGORITHMS},
            tensor=tensor,
            largest=max(abs(stats.low), abs(stats.high)),
            looks=figure_looks(),
        )

    def to_tensorrt_cache(self, version: str = "8600") -> str:
        """The scales in TensorRT's own `.cache` text.

        Args:
            version: TensorRT's version as four digits, which its reader compares with its own.
        """
        from trtkit.calibration.tensorrt_cache import format_cache

        return format_cache(self.ranges, algorithm=self.algorithm, version=version)

    @classmethod
    def from_tensorrt_cache(cls, source: str | Path, model: Model | str | Path) -> Calibration:
        """Read a `.cache` of TensorRT's calibrators.

        Args:
            source: The file, or its text.
            model: The model it belongs to; the file does not say, so that only names of tensors can be compared.

        Raises:
            CalibrationError: It is no such text, or has no scale for tensors the model needs one for.
        """
        from trtkit.calibration.tensorrt_cache import read_cache_ranges

        ranges, provenance = read_cache_ranges(source, model)
        return cls(
            ranges=ranges,
            algorithm="tensorrt",
            images=0,
            split="",
            notes=("scales from a TensorRT cache, which does not say which weights and images they were measured on",),
            provenance=provenance,
        )

    def tables(self) -> Mapping[str, pl.DataFrame]:
        """The ranges, what was seen of each tensor, and the corrections."""
        sources = [list(self.sources.get(name, ())) for name in self.ranges]
        kept = list(self.stats.values())
        seen = pl.DataFrame(
            {
                "tensor": list(self.stats),
                **{name: [getattr(one, name) for one in kept] for name in _NUMBERS},
                "exponent": [one.histogram.exponent if one.histogram is not None else None for one in kept],
                "counts": [one.histogram.counts.tolist() if one.histogram is not None else None for one in kept],
            },
            schema={
                "tensor": pl.String,
                **dict.fromkeys(_NUMBERS, pl.Float64),
                "exponent": pl.Int64,
                "counts": pl.List(pl.Int64),
            },
        )
        ranges = self.frame().with_columns(sources=pl.Series(sources, dtype=pl.List(pl.String)))
        corrections = pl.DataFrame(
            {"node": list(self.corrections), "added": [list(values) for values in self.corrections.values()]},
            schema={"node": pl.String, "added": pl.List(pl.Float64)},
        )
        return {"ranges": ranges, "seen": seen, "corrections": corrections}

    def facts(self) -> Mapping[str, Any]:
        """Everything but the ranges and what was seen."""
        return {
            "algorithm": self.algorithm,
            "percentile": self.percentile,
            "images": self.images,
            "split": self.split,
            "skipped": list(self.skipped),
            "notes": list(self.notes),
            "hash": self.hash,
        }

    @classmethod
    def restore(
        cls, tables: Mapping[str, pl.DataFrame], facts: Mapping[str, Any], provenance: Provenance
    ) -> Calibration:
        """The inverse of `tables` and `facts`.

        Raises:
            CalibrationError: The files were changed since they were written.
        """
        rows = tables["ranges"].select("tensor", "low", "high", "sources").rows()
        seen = {
            row["tensor"]: TensorStats(
                **{name: row[name] for name in _NUMBERS},
                histogram=None if row["counts"] is None else Histogram(row["counts"], row["exponent"]),
            )
            for row in tables["seen"].iter_rows(named=True)
        }
        found = cls(
            ranges={name: (low, high) for name, low, high, _ in rows},
            algorithm=facts["algorithm"],
            percentile=facts["percentile"],
            images=facts["images"],
            split=facts["split"],
            skipped=tuple(facts["skipped"]),
            stats=seen,
            sources={name: tuple(sources) for name, _, _, sources in rows if sources},
            corrections={name: tuple(added) for name, added in tables["corrections"].rows()},
            notes=tuple(facts["notes"]),
            provenance=provenance,
        )
        if found.hash != facts["hash"]:
            raise CalibrationError(
                "load a calibration", "its ranges are not the ones that were saved", "calibrate this model again"
            )
        return found

    def __repr__(self) -> str:
        how = self.algorithm if self.percentile is None else f"{self.algorithm} {self.percentile:g}"
        kept = ", histograms kept" if self.histograms else ""
        return (
            f"Calibration({how}: {len(self.ranges)} tensors from {self.images} images of {self.split}{kept}, "
            f"model {self.provenance.model_hash[:12]})"
        )


_NUMBERS = ("low", "high", "average_low", "average_high")


def compute_ranges(
    stats: Mapping[str, TensorStats],
    sources: Mapping[str, tuple[str, ...]],
    names: Sequence[str],
    algorithm: str,
    percentile: float | None = None,
) -> dict[str, tuple[float, float]]:
    """The ranges of all tensors by an algorithm: their exact extremes, cut off at the magnitude it covers.

    Args:
        stats: What was seen of the measured tensors.
        sources: What the others take their values from.
        names: All tensors in graph order.
        algorithm: One of `ALGORITHMS`.
        percentile: For "percentile", percent; None takes 99.999.

    Raises:
        CalibrationError: There is no such algorithm, or it needs histograms and none were kept.
    """
    get_algorithm(algorithm)
    if not stats:
        raise CalibrationError(
            f"compute ranges with algorithm={algorithm!r}",
            "the calibration holds scales only, as a TensorRT calibration cache does",
            "calibrate the model with trtkit",
            code="calibration-scales-only",
            value=algorithm,
        )

    def compute(name: str) -> tuple[float, float]:
        return compute_range(stats[name], algorithm, percentile=percentile, tensor=name)

    # The searches of entropy and MSE spend their time in numpy, which lets other threads run.
    return propagate_ranges(dict(zip(stats, parallel_map(compute, stats), strict=True)), sources, names)


def check_fits(calibration: Calibration, model: Model) -> None:
    """Check that a calibration was measured on a model.

    Args:
        calibration: A calibration.
        model: The model that it is used for.

    Raises:
        CalibrationError: It was measured on other weights or another architecture.
    """
    measured_on = calibration.provenance.model_hash
    if measured_on != model.hash:
        raise CalibrationError(
            f"use a calibration for {model.stem}",
            f"it was measured on another model (hash {measured_on[:12]}, not {model.hash[:12]})",
            "calibrate this model",
            code="calibration-model-mismatch",
            value=measured_on,
            expected=model.hash,
        )
