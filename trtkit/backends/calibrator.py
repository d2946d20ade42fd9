"""TensorRT's own INT8 calibrator (implicit quantisation), where the installed TensorRT still has it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trtkit.backends.base import ImplicitCalibration
from trtkit.backends.surfaces import describe, module, torch_with_cuda
from trtkit.errors import CalibrationError, CapabilityError
from trtkit.files import write_bytes

__all__ = ["calibrator", "require_calibrator"]


def require_calibrator(backend: str) -> None:
    """Make sure that implicit calibration exists.

    Args:
        backend: "tensorrt" or "tensorrt_rtx".

    Raises:
        CapabilityError: It left with TensorRT 11 and was never in TensorRT-RTX.
    """
    found = describe(backend)
    if not found.has_int8_calibrator:
        raise CapabilityError(
            "calibrate INT8 with TensorRT's own calibrator",
            f"{found.title} has none (it left with TensorRT 11)",
            "leave implicit out: Q/DQ pairs in the graph do it everywhere",
        )


def calibrator(backend: str, settings: ImplicitCalibration, *, device: int = 0) -> Any:
    """An `IInt8MinMaxCalibrator` over the pictures.

    Args:
        backend: One that has calibrators.
        settings: The pictures and the cache.
        device: The GPU.

    Raises:
        CapabilityError: There is no calibrator, or torch has no CUDA to hold the pictures.
        CalibrationError: No pictures and no cache.
    """
    require_calibrator(backend)
    trt = module(backend)
    found = _read(settings.cache)
    batches = iter(settings.batches)
    first = next(batches, None)
    if first is None and not found:
        raise CalibrationError(
            "calibrate INT8 with TensorRT's own calibrator", "there is no picture", "pass data with pictures"
        )
    torch = torch_with_cuda("feed TensorRT's calibrator")

    class MinMax(trt.IInt8MinMaxCalibrator):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.IInt8MinMaxCalibrator.__init__(self)
            self.batch = len(first) if first is not None else 1
            self.source: Iterator[np.ndarray] = _with_first(first, batches)
            self.memory: Any = None
            self.fed = 0
            # A build may be tried twice with one calibrator, whose pictures are gone by then.
            self.known = found
            self.failure: BaseException | None = None

        def get_batch_size(self) -> int:
            return self.batch

        def get_batch(self, names: list[str]) -> list[int] | None:
            try:
                value = next(self.source, None)
                # TensorRT 8.6 wants every batch at the size it asked for: a shorter last one ends the run.
                if value is None or len(value) != self.batch:
                    return None
                value = np.ascontiguousarray(value, dtype=np.float32)
                self.memory = torch.from_numpy(value).to(torch.device("cuda", device))
                torch.cuda.synchronize(device)
            except BaseException as error:  # noqa: BLE001 - none may cross TensorRT's C++ frames; the builder raises it
                self.failure = error
                return None
            self.fed += len(value)
            return [int(self.memory.data_ptr())]

        def read_calibration_cache(self) -> bytes | None:
            return self.known or None

        def write_calibration_cache(self, cache: Any) -> None:
            self.known = bytes(cache)
            if settings.cache is not None:
                try:
                    write_bytes(settings.cache, self.known)
                except BaseException as error:  # noqa: BLE001 - as above
                    self.failure = error

    return MinMax()


def _with_first(first: np.ndarray | None, rest: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    if first is not None:
        yield first
        yield from rest


def _read(cache: Path | None) -> bytes:
    return cache.read_bytes() if cache is not None and cache.is_file() else b""
