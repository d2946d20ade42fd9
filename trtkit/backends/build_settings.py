"""What a builder takes and gives: `BuildSettings` and `BuildResult`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.arguments import COMPATIBILITIES, MAX_AUX_STREAMS, PRECISIONS, WEIGHTS
from trtkit.errors import RecipeError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["BuildResult", "BuildSettings", "ImplicitCalibration"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImplicitCalibration:
    """Images for TensorRT's own INT8 calibrator (`IInt8MinMaxCalibrator`), which TensorRT 11 removed.

    Attributes:
        batches: Float32 NCHW batches in [0, 1], of one shape; a shorter last batch is dropped.
        cache: A calibration cache file to read and to write, or None.
    """

    batches: Iterable[np.ndarray] = ()
    cache: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """How an ONNX graph is built. The graph itself sets the precision; here it is stated for checks and reports.

    Attributes:
        precision: "fp32", "fp16" or "int8".
        batch: The largest batch the engine accepts.
        imgsz: Height and width, pixels; for a dynamic engine the size it is optimized for.
        dynamic: Whether batch, height and width may change at run time.
        min_imgsz: Smallest height and width of a dynamic engine, pixels.
        max_imgsz: Largest height and width of a dynamic engine, pixels; None takes `imgsz`.
        workspace: Scratch memory TensorRT may use, GiB; None lets TensorRT decide.
        device: None, 0, "cuda:1", "dla:0", or "sm89" to build TensorRT-RTX engines for another GPU.
        compatibility: One of `COMPATIBILITIES`, or None for machines like this one.
        weights: One of `WEIGHTS`, or None for weights that stay as they are.
        opt_level: TensorRT's `builder_optimization_level`, 0 to 5; None takes TensorRT's default.
        aux_streams: TensorRT's `max_aux_streams`, 0 to 16; None takes TensorRT's own choice.
        isolate: Build in a child process, so that a crash inside TensorRT becomes a BuildError.
        timing_cache: True for a file per GPU and TensorRT version in the user's cache folder, False for none, or a
            file.
        implicit: Calibrate with TensorRT's own calibrator instead of Q/DQ nodes in the graph.

    Raises:
        RecipeError: A value is out of range, or two settings exclude each other.
    """

    precision: str = "fp32"
    batch: int = 1
    imgsz: tuple[int, int] = (640, 640)
    dynamic: bool = False
    min_imgsz: tuple[int, int] = (32, 32)
    max_imgsz: tuple[int, int] | None = None
    workspace: float | None = None
    device: str | int | None = None
    compatibility: str | None = None
    weights: str | None = None
    opt_level: int | None = None
    aux_streams: int | None = None
    isolate: bool = False
    timing_cache: bool | Path = True
    implicit: ImplicitCalibration | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise RecipeError(
                f"precision={self.precision!r}",
                "no such precision",
                f"choose one of {', '.join(PRECISIONS)}",
                code="build-precision",
                value=self.precision,
            )
        if self.batch < 1:
            raise RecipeError(
                f"batch={self.batch}",
                "a batch has at least one image",
                "pass batch=1 or more",
                code="build-batch",
                value=self.batch,
            )
        if self.workspace is not None and self.workspace <= 0:
            raise RecipeError(
                f"workspace={self.workspace}",
                "it must be above 0 GiB",
                "pass None to let TensorRT decide",
                code="build-workspace",
                value=self.workspace,
            )
        for name, names in (("compatibility", COMPATIBILITIES), ("weights", WEIGHTS)):
            value = getattr(self, name)
            if value is not None and value not in names:
                raise RecipeError(
                    f"{name}={value!r}",
                    "there is no such choice",
                    f"choose one of {', '.join(names)}, or None",
                    code=f"build-{name}",
                    value=value,
                )
        if self.opt_level is not None and not 0 <= self.opt_level <= 5:
            raise RecipeError(
                f"opt_level={self.opt_level}",
                "TensorRT has levels 0 to 5",
                "pass None for TensorRT's default",
                code="build-opt-level",
                value=self.opt_level,
            )
        if self.aux_streams is not None and not 0 <= self.aux_streams <= MAX_AUX_STREAMS:
            raise RecipeError(
                f"aux_streams={self.aux_streams}",
                f"the choice is 0 to {MAX_AUX_STREAMS}",
                "pass None to let TensorRT decide",
                code="build-aux-streams",
                value=self.aux_streams,
            )
        if self.implicit is not None and self.precision != "int8":
            raise RecipeError(
                f"implicit calibration with precision={self.precision!r}",
                "it applies to INT8 only",
                "pass precision='int8'",
                code="build-implicit-precision",
                value=self.precision,
            )
        largest = self.max_imgsz or self.imgsz
        if self.dynamic and not all(
            low <= best <= high for low, best, high in zip(self.min_imgsz, self.imgsz, largest, strict=True)
        ):
            raise RecipeError(
                f"dynamic sizes {self.min_imgsz} to {largest} around imgsz {self.imgsz}",
                "they are not in ascending order",
                "pass min_imgsz <= imgsz <= max_imgsz for height and width",
                code="build-dynamic-sizes",
                value=(self.min_imgsz, self.imgsz, largest),
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildResult:
    """An engine in memory.

    Attributes:
        plan: The serialized engine, without a header.
        seconds: Wall time of the build, s.
        facts: Where and how it was built: backend, tensorrt, cuda, driver, gpu, sm, warnings; JSON-ready.
        layers: The layer table as rows (columns as in `layer_frame`), where the builder reports it.
    """

    plan: bytes
    seconds: float
    facts: Mapping[str, Any]
    layers: tuple[Mapping[str, Any], ...] = ()
