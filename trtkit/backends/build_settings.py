"""How an ONNX graph becomes an engine, and what building gives back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trtkit.errors import RecipeError

__all__ = [
    "PRECISIONS",
    "BuildResult",
    "BuildSettings",
    "ImplicitCalibration",
]


PRECISIONS = ("fp32", "fp16", "int8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImplicitCalibration:
    """Images for TensorRT's own INT8 calibrator (`IInt8MinMaxCalibrator`), which TensorRT 11 no longer has.

    Attributes:
        batches: Float32 NCHW batches in [0, 1], of one shape; a shorter last one is left out.
        cache: A file of scales to reuse and to write, or None.
    """

    batches: Iterable[np.ndarray] = ()
    cache: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """How an ONNX graph becomes an engine. The precision lives in the graph; it is named here to check and to report.

    Attributes:
        precision: "fp32", "fp16" or "int8".
        batch: The largest batch the engine accepts.
        imgsz: Height and width, pixels; for a dynamic engine the size it is tuned for.
        dynamic: Whether batch, height and width may change at run time.
        smallest: Height and width of the smallest image of a dynamic engine, pixels.
        largest: Height and width of the largest image of a dynamic engine, pixels; None takes `imgsz`.
        workspace: GiB of scratch memory TensorRT may use; None lets TensorRT decide.
        device: None, 0, "cuda:1", "dla:0", or "sm89" to build TensorRT-RTX engines for a GPU that is not here.
        opt_level: TensorRT's `builder_optimization_level`, 0 to 5; None takes TensorRT's default.
        isolate: Build in a child process, so that a crash inside TensorRT ends as a BuildError.
        timing_cache: True for a file by GPU and TensorRT version in the user's cache folder, False for none, or a file.
        implicit: Calibrate with TensorRT's own calibrator instead of Q/DQ pairs in the graph.
    """

    precision: str = "fp32"
    batch: int = 1
    imgsz: tuple[int, int] = (640, 640)
    dynamic: bool = False
    min_imgsz: tuple[int, int] = (32, 32)
    max_imgsz: tuple[int, int] | None = None
    workspace: float | None = None
    device: str | int | None = None
    opt_level: int | None = None
    isolate: bool = False
    timing_cache: bool | Path = True
    implicit: ImplicitCalibration | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise RecipeError(
                f"precision={self.precision!r}", "no such precision", f"choose one of {', '.join(PRECISIONS)}"
            )
        if self.batch < 1:
            raise RecipeError(f"batch={self.batch}", "a batch holds at least one image", "pass batch=1 or more")
        if self.workspace is not None and self.workspace <= 0:
            raise RecipeError(
                f"workspace={self.workspace}", "it must be above 0 GiB", "pass None to let TensorRT decide"
            )
        if self.opt_level is not None and not 0 <= self.opt_level <= 5:
            raise RecipeError(
                f"opt_level={self.opt_level}", "TensorRT knows levels 0 to 5", "pass None for TensorRT's default"
            )
        if self.implicit is not None and self.precision != "int8":
            raise RecipeError(
                f"implicit calibration with precision={self.precision!r}",
                "it belongs to INT8 only",
                "pass precision='int8'",
            )
        top = self.max_imgsz or self.imgsz
        if self.dynamic and not all(
            low <= best <= high for low, best, high in zip(self.min_imgsz, self.imgsz, top, strict=True)
        ):
            raise RecipeError(
                f"dynamic sizes {self.min_imgsz} to {top} around imgsz {self.imgsz}",
                "they are not in ascending order",
                "let smallest <= imgsz <= largest hold for height and width",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildResult:
    """An engine in memory.

    Attributes:
        plan: What TensorRT serialized, without a header.
        seconds: Wall time of the build, seconds.
        facts: Where and how it was built: backend, tensorrt, cuda, driver, gpu, sm, warnings; JSON-ready.
        layers: The layer table as rows (see `layers.COLUMNS`), where the builder told it.
    """

    plan: bytes
    seconds: float
    facts: Mapping[str, Any]
    layers: tuple[Mapping[str, Any], ...] = ()
