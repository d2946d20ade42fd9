"""What a mix of precisions costs: time on a GPU where one is here, a stated model of it otherwise."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from trtkit.errors import CapabilityError
from trtkit.graph.qdq import QDQPlacement

if TYPE_CHECKING:
    from trtkit.calibration.calibration import Calibration
    from trtkit.models import Model
    from trtkit.progress import Reporter
    from trtkit.tuning.noise import LayerNoise

__all__ = ["ArithmeticCost", "Cost", "CostModel", "EngineCost", "select_cost_model"]

INT8_COST = 0.5
"""Time of an INT8 multiply-accumulate against an FP16 one: the ratio of the tensor cores' peak rates since Turing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """A cost and what kind of number it is.

    Attributes:
        value: Smaller is faster.
        unit: "ms" only where an engine ran.
        source: What it comes from, in words.
    """

    value: float
    unit: str
    source: str


class CostModel(Protocol):
    """Says what a placement costs."""

    def __call__(self, placement: QDQPlacement, keep: Sequence[str], calibration: Calibration | None) -> Cost:
        """The cost of a placement, made by these `keep=` patterns and ranges; without ranges, of FP16 throughout."""


class ArithmeticCost:
    """A cost model for machines without a GPU: multiply-accumulates, those in INT8 counted half.

    It knows nothing of memory traffic, launches and reformats, which weigh more the smaller the model; it orders mixes
    of one model and is no time.

    Args:
        lab: Knows the multiply-accumulates.
    """

    source = "cost model: multiply-accumulates relative to FP16 throughout, INT8 counted half; not a time"

    def __init__(self, lab: LayerNoise) -> None:
        self.macs = lab.macs

    def __call__(self, placement: QDQPlacement, keep: Sequence[str], calibration: Calibration | None) -> Cost:
        """The cost relative to FP16 throughout, 1 at most."""
        total = sum(self.macs.values())
        saved = sum(self.macs.get(name, 0) for name in placement.layers) * (1 - INT8_COST)
        return Cost(value=1 - saved / total if total else 1.0, unit="relative", source=self.source)


class EngineCost:
    """Builds an engine of each mix and times it on the GPU that is here.

    Args:
        model: What is exported.
        imgsz: Height and width, pixels.
        folder: Where engines are written; each replaces the one before it.
        batch: Images a run.
        backend: "tensorrt" or "tensorrt_rtx"; None takes the best that runs here.
        reporter: Receives events.
        settings: Further arguments of `export`, such as `level`.
    """

    def __init__(
        self,
        model: Model,
        imgsz: tuple[int, int],
        folder: Path,
        *,
        batch: int = 1,
        backend: str | None = None,
        reporter: Reporter,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.imgsz = imgsz
        self.folder = folder
        self.batch = batch
        self.backend = backend
        self.reporter = reporter
        self.settings = dict(settings or {})

    def __call__(self, placement: QDQPlacement, keep: Sequence[str], calibration: Calibration | None) -> Cost:
        """The median time of a run, ms."""
        from trtkit.evaluation.latency import benchmark
        from trtkit.exporter import export

        artifact = export(
            self.model,
            format="engine",
            imgsz=self.imgsz,
            int8=calibration is not None,
            half=calibration is None,
            dynamic=False,
            batch=self.batch,
            backend=self.backend,
            calibration=calibration,
            keep=tuple(keep) if calibration is not None else (),
            output=self.folder / "trial.engine",
            overwrite=True,
            progress=self.reporter.progress,
            cancel=self.reporter.cancel,
            **self.settings,
        )
        timing = benchmark(
            {"trial": artifact}, batch=self.batch, progress=self.reporter.progress, cancel=self.reporter.cancel
        )
        row = timing.frame().row(0, named=True)
        return Cost(
            value=float(np.median(timing.samples["ms"].to_numpy())),
            unit="ms",
            source=f"median of {row['runs']} runs at batch {self.batch}, {row['runner']}, {row['clock']} clock",
        )


def select_cost_model(
    model: Model,
    lab: LayerNoise,
    imgsz: tuple[int, int],
    folder: Path,
    *,
    batch: int,
    backend: str | None,
    reporter: Reporter,
) -> CostModel:
    """Engines where this machine builds and runs them, the cost model otherwise.

    Args:
        model: What is exported.
        lab: Knows the multiply-accumulates.
        imgsz: Height and width, pixels.
        folder: Where engines are written.
        batch: Images a run.
        backend: "tensorrt" or "tensorrt_rtx" to insist on engines, "onnxruntime" for the cost model, None for the best.
        reporter: Receives events.

    Raises:
        CapabilityError: Engines were asked for and can't run here.
    """
    from trtkit import backends

    name = backend or backends.best("run")
    if name == "onnxruntime":
        return ArithmeticCost(lab)
    try:
        backends.require_build(name)
        backends.require_run(name)
    except CapabilityError:
        if backend is not None:
            raise
        return ArithmeticCost(lab)
    return EngineCost(model, imgsz, folder, batch=batch, backend=name, reporter=reporter)
