"""sensitivity(): what each layer and each block costs in INT8."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl

from trtkit.origin import Origin
from trtkit.progress import Cancel, Progress
from trtkit.results import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import torch

    from trtkit.calibration import Calibration
    from trtkit.data import Dataset
    from trtkit.sources import Model

__all__ = ["Sensitivity", "sensitivity"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Sensitivity(Result):
    """What INT8 costs, layer by layer and block by block.

    Signal-to-noise ratios (SQNR, dB, higher is better) compare what the head's last layers give with what they give in
    FP32: minus ten times the logarithm of the error's share of the energy, averaged over these layers, half of it over
    all places alike, half over each by the confidence FP32 has there.

    Attributes:
        layers: One row a layer, in graph order: `node`, `block`, `operator`, `macs` (multiply-accumulates a picture),
            `sqnr_only` (only it is INT8), `sqnr_without` (all but it are), `gain` (what keeping it high gains over INT8
            throughout, dB), and for the worst `metric_only`, `metric_without`.
        blocks: The same by block; `layers` counts those of it that run in INT8, `type` is the module's.
        metric: The metric that judges, e.g. "mAP50-95(B)" by Ultralytics' rule; "" where none was asked for.
        sqnr: Of INT8 throughout, dB.
        metric_float: The metric in FP32, or None.
        metric_int8: The metric of INT8 throughout, or None.
        kept: Layers that no variant put in INT8, with the reason.
        images: Pictures that ran.
        origin: Model, data, settings and seed.
    """

    kind: ClassVar[str] = "sensitivity"

    layers: pl.DataFrame
    blocks: pl.DataFrame
    metric: str
    sqnr: float
    metric_float: float | None
    metric_int8: float | None
    kept: Mapping[str, str]
    images: int
    origin: Origin

    def frame(self) -> pl.DataFrame:
        """`layers`."""
        return self.layers

    def worst(self, count: int = 5) -> pl.DataFrame:
        """The layers that cost most when only they are INT8, the worst first."""
        return self.layers.sort("sqnr_only").head(count)

    def keep(self, count: int) -> tuple[str, ...]:
        """`keep=` patterns for the layers whose staying high gains most.

        Args:
            count: How many layers.
        """
        from trtkit.tuning.blocks import pattern_of

        return tuple(pattern_of(name) for name in self.layers.sort("gain", descending=True).head(count)["node"])

    def plot(self) -> go.Figure:
        """Each layer in graph order: its SQNR when only it is INT8, and what keeping it high gains."""
        from trtkit.tuning.figures import sensitivity_figure

        return sensitivity_figure(self)

    def tables(self) -> Mapping[str, pl.DataFrame]:
        """Both frames."""
        return {"layers": self.layers, "blocks": self.blocks}

    def facts(self) -> Mapping[str, Any]:
        """What no frame holds."""
        names = ("metric", "sqnr", "metric_float", "metric_int8", "images")
        return {**{name: getattr(self, name) for name in names}, "kept": dict(self.kept)}

    @classmethod
    def restore(cls, tables: Mapping[str, pl.DataFrame], facts: Mapping[str, Any], origin: Origin) -> Sensitivity:
        """The inverse of `tables` and `facts`."""
        return cls(**{**tables, **facts}, origin=origin)

    def __repr__(self) -> str:
        lines = [
            f"Sensitivity of {len(self.layers)} layers over {self.images} pictures: INT8 throughout {self.sqnr:.1f} dB"
        ]
        if self.metric_float is not None and self.metric_int8 is not None:
            lines[0] += f", {self.metric} {self.metric_int8:.4f} against {self.metric_float:.4f} in FP32"
        lines += [
            f"  {row['node']} ({row['block']}): {row['sqnr_only']:.1f} dB alone, keeping it gains {row['gain']:+.2f} dB"
            for row in self.worst(3).iter_rows(named=True)
        ]
        return "\n".join(lines)


def sensitivity(
    model: Model | str | Path | torch.nn.Module,
    data: str | Path | Dataset,
    split: str = "val",
    *,
    images: int = 32,
    calibration: Calibration | str | Path | None = None,
    worst: int = 3,
    protect: bool = True,
    imgsz: int | tuple[int, int] | None = None,
    threads: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Sensitivity:
    """Measure what each layer and each block costs when only it is INT8, and when all but it are.

    Everything runs on ONNX Runtime's processor kernels, with the arithmetic of the Q/DQ graph that every backend gets.

    Args:
        model: From `load`, or what `load` takes.
        data: A data set's YAML file; its labels are read for the metric only.
        split: The split whose pictures run.
        images: How many of them, a seeded sample.
        calibration: Ranges, or the folder of a saved calibration; None calibrates by min-max on `images` pictures of
            `train`.
        worst: The metric is measured for so many of the worst layers; 0 measures none.
        protect: Leave layers alone that stay high by default (`View.costly`: DFL, attention); False
            measures them like the others.
        imgsz: Height and width, pixels; None takes the model's.
        threads: Pictures that run beside each other; None takes one for each core.
        seed: Seed of the sample.
        progress: Receives an event for each picture.
        cancel: Asked at each picture.

    Returns:
        SQNR of every layer and block, the metric of the worst layers.

    Raises:
        CalibrationError: The calibration is of another model.
        DataError: The data set can't be read.
        CancelledError: The caller cancelled.
    """
    from trtkit.tuning.measuring import Settings, measure

    settings = Settings(
        split=split,
        images=images,
        worst=worst,
        protect=protect,
        imgsz=imgsz,
        threads=threads,
        seed=seed,
    )
    return measure(model, data, settings, calibration, progress, cancel)
