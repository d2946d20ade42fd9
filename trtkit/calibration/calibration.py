"""Calibration: the range of every tensor that INT8 can quantize, with statistics and provenance."""

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
from trtkit.data.dataset import describe_images
from trtkit.errors import CalibrationError
from trtkit.files import hash_parts
from trtkit.models.model import OutputFormat, Preprocess
from trtkit.progress import parallel_map
from trtkit.recipe import round_imgsz
from trtkit.results import Provenance, Result, SavedResult, rename_version_1_keys

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from trtkit.models import Model

__all__ = [
    "Calibration",
    "check_fits",
    "compute_ranges",
    "load_calibration",
    "resolve_imgsz",
]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Calibration(Result):
    """Ranges of ONNX tensors, and the statistics they were computed from.

    Attributes:
        ranges: Minimum and maximum that the INT8 scale of each tensor covers, by tensor name, in graph order.
        algorithm: One of `ALGORITHMS`, or "tensorrt" for the scales of a TensorRT calibration cache.
        percentile: Percentile of the algorithm, percent; None for an algorithm without one.
        image_count: Number of images.
        split: Their split.
        skipped: Paths of images that could not be read.
        stats: Statistics of the measured tensors, with histograms if they were collected.
        sources: For tensors of operators that only move values, the tensors those values come from.
        corrections: Bias corrections of INT8 layers, by node name, one number per output channel.
        preprocess: The model's preprocessing; None if unknown, as in files of format version 1.
        output_format: The model's output format; None if unknown.
        notes: Remarks, such as why a cache was not used.
        provenance: Model, data, versions, machine, settings and seed.
    """

    kind: ClassVar[str] = "calibration"

    ranges: Mapping[str, tuple[float, float]]
    algorithm: str
    percentile: float | None = None
    image_count: int
    split: str
    skipped: tuple[str, ...] = ()
    stats: Mapping[str, TensorStats] = dataclasses.field(default_factory=dict)
    sources: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    corrections: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    preprocess: Preprocess | None = None
    output_format: OutputFormat | None = None
    notes: tuple[str, ...] = ()
    provenance: Provenance

    @property
    def hash(self) -> str:
        """SHA-256 of ranges, corrections, algorithm, model and data, 64 hex digits."""
        parts = [f"{name} {low!r} {high!r}" for name, (low, high) in self.ranges.items()]
        parts += [f"{name} {values!r}" for name, values in self.corrections.items()]
        return hash_parts(self.algorithm, self.provenance.model_hash, self.provenance.data_hash or "", *parts)

    @property
    def histograms(self) -> Mapping[str, Histogram]:
        """Histograms by measured tensor; empty if none were collected."""
        return {name: entry.histogram for name, entry in self.stats.items() if entry.histogram is not None}

    def with_algorithm(self, algorithm: str, *, percentile: float | None = None) -> Calibration:
        """Ranges of the same calibration pass by another algorithm; no image is processed again.

        Args:
            algorithm: One of `ALGORITHMS`.
            percentile: For an algorithm that takes one, percent; None takes 99.999.

        Returns:
            The calibration without bias corrections, and not refined.

        Raises:
            CalibrationError: There is no such algorithm, or it needs histograms and none were collected.
        """
        percentile = resolve_percentile(algorithm, percentile)
        settings = {**self.provenance.settings, "algorithm": algorithm, "percentile": percentile}
        settings.pop("refine", None)
        return dataclasses.replace(
            self,
            ranges=compute_ranges(self.stats, self.sources, tuple(self.ranges), algorithm, percentile),
            algorithm=algorithm,
            percentile=percentile,
            corrections={},
            provenance=dataclasses.replace(self.provenance, settings=settings),
        )

    def frame(self) -> pl.DataFrame:
        """One row per tensor: `tensor`, `low`, `high`, `scale` (symmetric: the larger magnitude over 127)."""
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
        """The magnitude that each algorithm covers of each measured tensor.

        Args:
            percentiles: Percentiles of algorithms that take one, percent.

        Returns:
            One row per tensor: `tensor`, and one column per algorithm (`minmax`, `entropy`, `percentile 99.9`, ...).
            Algorithms that need histograms are omitted if none were collected.
        """
        columns_of: dict[str, tuple[str, float | None]] = {}
        for name, algorithm in ALGORITHMS.items():
            if algorithm.needs_histogram and not self.histograms:
                continue
            for value in percentiles if algorithm.takes_percentile else (None,):
                columns_of[algorithm.label(value)] = (name, value)
        columns: dict[str, Any] = {"tensor": list(self.stats)}
        for column, (name, value) in columns_of.items():
            columns[column] = [
                compute_magnitude(entry, name, percentile=value, tensor=tensor) for tensor, entry in self.stats.items()
            ]
        return pl.DataFrame(columns, schema={name: pl.String if name == "tensor" else pl.Float64 for name in columns})

    def plot(self) -> go.Figure:
        """Ranges in graph order, as bars from minimum to maximum."""
        from trtkit.plotting.calibration import ranges_figure

        title = f"Ranges by {self.algorithm} over {describe_images(self.image_count, self.split)}"
        return ranges_figure(self.frame(), title=title)

    def plot_tensor(self, tensor: str) -> go.Figure:
        """Histogram of a tensor, with the magnitude that each algorithm covers.

        Args:
            tensor: Name of a measured tensor.

        Raises:
            CalibrationError: There is no histogram of that tensor.
        """
        from trtkit.plotting.calibration import tensor_figure

        stats = self.stats.get(tensor)
        if stats is None or stats.histogram is None:
            raise CalibrationError(
                f"plot tensor {tensor!r}",
                "the calibration has no histogram of it",
                "calibrate with histograms=True and pass one of calibration.histograms",
                code="calibration-histogram-missing",
                tensor=tensor,
            )
        return tensor_figure(
            stats.histogram.bins(512),
            {name: compute_magnitude(stats, name, tensor=tensor) for name in ALGORITHMS},
            tensor=tensor,
            largest=stats.largest,
            looks=figure_looks(),
        )

    def to_tensorrt_cache(self, version: str = "8600") -> str:
        """The scales as text of a TensorRT calibration cache.

        Args:
            version: TensorRT version as digits; TensorRT compares it with its own.
        """
        from trtkit.calibration.tensorrt_cache import format_cache

        return format_cache(self.ranges, algorithm=self.algorithm, version=version)

    @classmethod
    def from_tensorrt_cache(cls, source: str | Path, model: Model | str | Path) -> Calibration:
        """Read a TensorRT calibration cache.

        Args:
            source: The file, or its text.
            model: The model it belongs to. The file does not record its model, so only tensor names are compared.

        Raises:
            CalibrationError: The text is not a calibration cache, or lacks scales that the model needs.
        """
        from trtkit.calibration.tensorrt_cache import read_cache_ranges

        ranges, provenance = read_cache_ranges(source, model)
        return cls(
            ranges=ranges,
            algorithm="tensorrt",
            image_count=0,
            split="",
            notes=("scales from a TensorRT calibration cache, which records neither weights nor images",),
            provenance=provenance,
        )

    def tables(self) -> Mapping[str, pl.DataFrame]:
        """Ranges, statistics and corrections."""
        sources = [list(self.sources.get(name, ())) for name in self.ranges]
        histograms = [entry.histogram for entry in self.stats.values()]
        stats = pl.DataFrame(
            {
                "tensor": list(self.stats),
                **{column: [getattr(entry, column) for entry in self.stats.values()] for column in _STAT_COLUMNS},
                "exponent": [None if one is None else one.exponent for one in histograms],
                "counts": [None if one is None else one.counts.tolist() for one in histograms],
                "negative": [
                    None if one is None or one.negative is None else one.negative.tolist() for one in histograms
                ],
            },
            schema={
                "tensor": pl.String,
                **dict.fromkeys(_STAT_COLUMNS, pl.Float64),
                "exponent": pl.Int64,
                "counts": pl.List(pl.Int64),
                "negative": pl.List(pl.Int64),
            },
        )
        ranges = self.frame().with_columns(sources=pl.Series(sources, dtype=pl.List(pl.String)))
        corrections = pl.DataFrame(
            {"node": list(self.corrections), "added": [list(values) for values in self.corrections.values()]},
            schema={"node": pl.String, "added": pl.List(pl.Float64)},
        )
        return {"ranges": ranges, "stats": stats, "corrections": corrections}

    def facts(self) -> Mapping[str, Any]:
        """What the tables do not hold."""
        return {
            "algorithm": self.algorithm,
            "percentile": self.percentile,
            "image_count": self.image_count,
            "split": self.split,
            "skipped": list(self.skipped),
            "preprocess": None if self.preprocess is None else self.preprocess.to_dict(),
            "output_format": None if self.output_format is None else self.output_format.to_dict(),
            "notes": list(self.notes),
            "hash": self.hash,
        }

    @classmethod
    def upgrade(cls, saved: SavedResult) -> SavedResult:
        """Convert format version 1: histograms without signs, and the statistics under their old name."""
        saved = super().upgrade(saved)
        stats = saved.tables.pop("seen")
        saved.tables["stats"] = stats.with_columns(pl.lit(None, dtype=pl.List(pl.Int64)).alias("negative"))
        saved.facts = rename_version_1_keys(saved.facts, {"images": "image_count"})
        saved.facts.update(preprocess=None, output_format=None)
        settings = rename_version_1_keys(saved.provenance["settings"], {"images": "calibration_images"})
        saved.provenance["settings"] = settings
        return saved

    @classmethod
    def restore(
        cls, tables: Mapping[str, pl.DataFrame], facts: Mapping[str, Any], provenance: Provenance
    ) -> Calibration:
        """The inverse of `tables` and `facts`.

        Raises:
            CalibrationError: The ranges changed since they were saved.
        """
        rows = tables["ranges"].select("tensor", "low", "high", "sources").rows()
        stats = {
            row["tensor"]: TensorStats(
                **{column: row[column] for column in _STAT_COLUMNS},
                histogram=None
                if row["counts"] is None
                else Histogram(row["counts"], row["exponent"], negative=row["negative"]),
            )
            for row in tables["stats"].iter_rows(named=True)
        }
        preprocess, output_format = facts["preprocess"], facts["output_format"]
        calibration = cls(
            ranges={name: (low, high) for name, low, high, _ in rows},
            algorithm=facts["algorithm"],
            percentile=facts["percentile"],
            image_count=facts["image_count"],
            split=facts["split"],
            skipped=tuple(facts["skipped"]),
            stats=stats,
            sources={name: tuple(sources) for name, _, _, sources in rows if sources},
            corrections={name: tuple(added) for name, added in tables["corrections"].rows()},
            preprocess=None if preprocess is None else Preprocess.from_dict(preprocess),
            output_format=None if output_format is None else OutputFormat.from_dict(output_format),
            notes=tuple(facts["notes"]),
            provenance=provenance,
        )
        if calibration.hash != facts["hash"]:
            raise CalibrationError(
                "load a calibration",
                "its ranges differ from those that were saved",
                "calibrate the model again",
                code="calibration-changed",
                value=calibration.hash,
                expected=facts["hash"],
            )
        return calibration

    def __repr__(self) -> str:
        algorithm = self.algorithm if self.percentile is None else f"{self.algorithm} {self.percentile:g}"
        histograms = ", with histograms" if self.histograms else ""
        return (
            f"Calibration({algorithm}: {len(self.ranges)} tensors, {describe_images(self.image_count, self.split)}"
            f"{histograms}, model {self.provenance.model_hash[:12]})"
        )


_STAT_COLUMNS = ("low", "high", "average_low", "average_high")


def compute_ranges(
    stats: Mapping[str, TensorStats],
    sources: Mapping[str, tuple[str, ...]],
    names: Sequence[str],
    algorithm: str,
    percentile: float | None = None,
) -> dict[str, tuple[float, float]]:
    """Compute the ranges of all tensors by an algorithm.

    Args:
        stats: Statistics of the measured tensors.
        sources: For the other tensors, the tensors their values come from.
        names: All tensors in graph order.
        algorithm: One of `ALGORITHMS`.
        percentile: For an algorithm that takes one, percent; None takes 99.999.

    Returns:
        Minimum and maximum by tensor, in the order of `names`.

    Raises:
        CalibrationError: There is no such algorithm, or it needs histograms and there are none.
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

    # Entropy and MSE search in numpy, which releases the GIL.
    return propagate_ranges(dict(zip(stats, parallel_map(compute, stats), strict=True)), sources, names)


def check_fits(calibration: Calibration, model: Model) -> None:
    """Check that a calibration was measured on a model.

    Args:
        calibration: A calibration.
        model: The model that it is used for.

    Raises:
        CalibrationError: It was measured on other weights, another architecture or other preprocessing.
    """
    asked = f"use a calibration for {model.stem}"
    model_hash = calibration.provenance.model_hash
    if model_hash != model.hash and model_hash == model.head_hashes.get(not model.end2end):
        kinds = {False: "one-to-many", True: "one-to-one"}
        raise CalibrationError(
            asked,
            f"it was measured with the {kinds[not model.end2end]} head (hash {model_hash[:12]}, not {model.hash[:12]})",
            f"calibrate the {kinds[model.end2end]} head, or take the other one (end2end={not model.end2end})",
            code="calibration-head-mismatch",
            value=model_hash,
            expected=model.hash,
            end2end=model.end2end,
        )
    if model_hash != model.hash:
        raise CalibrationError(
            asked,
            f"it was measured on another model (hash {model_hash[:12]}, not {model.hash[:12]})",
            "calibrate this model",
            code="calibration-model-mismatch",
            value=model_hash,
            expected=model.hash,
        )
    if calibration.preprocess is not None and calibration.preprocess != model.preprocess:
        raise CalibrationError(
            asked,
            f"it was measured with other preprocessing ({calibration.preprocess}, not {model.preprocess})",
            "calibrate this model with its present preprocessing",
            code="calibration-preprocess-mismatch",
            value=calibration.preprocess.to_dict(),
            expected=model.preprocess.to_dict(),
        )


def load_calibration(calibration: Calibration | str | Path | None, model: Model) -> Calibration | None:
    """Load a calibration where a folder is given, and check that it fits the model.

    Args:
        calibration: A calibration, the folder of a saved one, or None.
        model: The model it must have been measured on.

    Raises:
        CalibrationError: It was measured on another model.
        DataError: The folder holds no calibration.
    """
    if calibration is None:
        return None
    loaded = calibration if isinstance(calibration, Calibration) else Calibration.load(calibration)
    check_fits(loaded, model)
    return loaded


def resolve_imgsz(
    imgsz: int | tuple[int, int] | None, model: Model, calibration: Calibration | None
) -> tuple[int, int]:
    """The image size to use: the requested one, else the calibration's, else the model's own.

    Args:
        imgsz: Image side, or (height, width), pixels, as requested; None if not.
        model: The model.
        calibration: A given calibration, or None.

    Returns:
        Height and width, pixels, rounded up to the model's stride.
    """
    measured: Any = None if calibration is None else calibration.provenance.settings.get("imgsz")
    return round_imgsz(imgsz or (tuple(measured) if measured else model.imgsz), model.stride)
