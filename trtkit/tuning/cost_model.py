"""Cost of a precision assignment: measured engine latency on a GPU, or a cost model without one."""

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

__all__ = ["ArithmeticCost", "Cost", "CostModel", "EngineCost", "select_cost_model"]

INT8_COST = 0.5
"""Time of an INT8 multiply-accumulate relative to FP16: the ratio of the tensor cores' peak rates since Turing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of a precision assignment.

    Attributes:
        value: Latency or relative cost; lower is faster.
        unit: "ms" if an engine ran, else "relative".
        source: How the value was obtained.
    """

    value: float
    unit: str
    source: str


class CostModel(Protocol):
    """Computes the cost of a precision assignment."""

    def __call__(self, placement: QDQPlacement, keep: Sequence[str], calibration: Calibration | None) -> Cost:
        """The cost of a Q/DQ placement, given its `keep=` patterns and calibration (None: everything in FP16)."""


class ArithmeticCost:
    """A cost model for machines without a GPU: multiply-accumulates, with INT8 ones counted half.

    It ignores memory traffic, kernel launches and reformats, which matter more in smaller models. It ranks precision
    assignments of one model; it is not a latency.

    Args:
        macs: Multiply-accumulates per image, by layer.
    """

    source = "cost model: multiply-accumulates relative to FP16, INT8 counted half; not a latency"

    def __init__(self, macs: Mapping[str, int]) -> None:
        self.macs = macs

    def __call__(self, placement: QDQPlacement, keep: Sequence[str], calibration: Calibration | None) -> Cost:
        """The cost relative to FP16, 1 at most."""
        total = sum(self.macs.values())
        saved = sum(self.macs.get(name, 0) for name in placement.layers) * (1 - INT8_COST)
        return Cost(value=1 - saved / total if total else 1.0, unit="relative", source=self.source)


class EngineCost:
    """Builds an engine of each precision assignment and times it on this machine's GPU.

    Args:
        model: The model to export.
        imgsz: Height and width, pixels.
        folder: The folder of the engine file; each engine replaces the previous one.
        batch: Images per run.
        backend: "tensorrt" or "tensorrt_rtx"; None uses the best one that runs on this machine.
        reporter: Progress and cancellation.
        export_settings: Further arguments of `export`, such as `opt_level`.
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
        export_settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.imgsz = imgsz
        self.folder = folder
        self.batch = batch
        self.backend = backend
        self.reporter = reporter
        self.export_settings = dict(export_settings or {})

    def __call__(self, placement: QDQPlacement, keep: Sequence[str], calibration: Calibration | None) -> Cost:
        """The median latency of a run, ms."""
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
            **self.export_settings,
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
    macs: Mapping[str, int],
    imgsz: tuple[int, int],
    folder: Path,
    *,
    batch: int,
    backend: str | None,
    reporter: Reporter,
) -> CostModel:
    """Select engine latency if this machine builds and runs engines, else the cost model.

    Args:
        model: The model to export.
        macs: Multiply-accumulates per image, by layer.
        imgsz: Height and width, pixels.
        folder: The folder of the engine file.
        batch: Images per run.
        backend: "tensorrt" or "tensorrt_rtx" to require engines, "onnxruntime" for the cost model, None for either.
        reporter: Progress and cancellation.

    Raises:
        CapabilityError: Engines were required and can't be built or run on this machine.
    """
    from trtkit import backends

    name = backend or backends.best("run")
    if name == "onnxruntime":
        return ArithmeticCost(macs)
    try:
        backends.require_build(name)
        backends.require_run(name)
    except CapabilityError:
        if backend is not None:
            raise
        return ArithmeticCost(macs)
    return EngineCost(model, imgsz, folder, batch=batch, backend=name, reporter=reporter)
