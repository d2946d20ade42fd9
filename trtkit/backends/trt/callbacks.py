"""Objects that TensorRT calls back: progress monitor, INT8 calibrator and logger."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trtkit.backends.build_settings import ImplicitCalibration
from trtkit.backends.capabilities import import_bindings, probe, require_torch_cuda
from trtkit.errors import CalibrationError, CapabilityError
from trtkit.progress import Reporter
from trtkit.writing import write_bytes

__all__ = [
    "BuildProgress",
    "Messages",
    "capture_messages",
    "create_calibrator",
    "create_monitor",
    "get_logger",
    "require_calibrator",
]

PROGRESS_STEPS = 100


class BuildProgress:
    """The progress of TensorRT's nested build phases as one monotonic number.

    TensorRT calls from several threads. A phase counts as one step of its parent: the total is the root's finished
    steps plus the progress of its running phases. It never decreases.

    Args:
        reporter: Receives the steps.
        stage: Their name.
    """

    def __init__(self, reporter: Reporter, stage: str) -> None:
        self.reporter = reporter
        self.stage = stage
        self.failure: BaseException | None = None
        self._phases: dict[str, tuple[str | None, int, int]] = {}
        self._reported = -1
        self._lock = threading.Lock()

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Start a phase.

        Args:
            name: Its name, unique among the running phases.
            parent: The enclosing phase, or None.
            steps: Number of its steps.
        """
        with self._lock:
            self._phases[name] = (parent, max(1, steps), 0)

    def step(self, name: str, step: int) -> bool:
        """Complete a step.

        Args:
            name: The phase.
            step: Its index.

        Returns:
            Whether the build should continue.
        """
        with self._lock:
            if name in self._phases:
                parent, steps, _ = self._phases[name]
                self._phases[name] = (parent, steps, step + 1)
            roots = [name for name, (parent, _, _) in self._phases.items() if parent is None]
            share = max(map(self._share, roots), default=0.0)
        return self.report(int(share * PROGRESS_STEPS))

    def finish(self, name: str) -> None:
        """Finish a phase.

        Args:
            name: Its name.
        """
        with self._lock:
            self._phases.pop(name, None)

    def report(self, done: int) -> bool:
        """Report to the caller; an exception in the callback stops the build and is raised after it.

        Args:
            done: Steps of `PROGRESS_STEPS`.

        Returns:
            Whether the build should continue.
        """
        if self.failure is not None:
            return False
        try:
            # TensorRT calls thousands of times: only advances are reported, but every call checks for cancellation. A
            # thread may come here after another one that counted later.
            if done > self._reported or self.reporter.is_cancelled():
                self._reported = done
                self.reporter.step(self.stage, done, PROGRESS_STEPS)
        except BaseException as error:  # noqa: BLE001 - no exception may cross TensorRT's C++ frames; `failure` is raised later
            self.failure = error
            return False
        return True

    def _share(self, name: str) -> float:
        _, steps, done = self._phases[name]
        running = [child for child, (parent, _, _) in self._phases.items() if parent == name]
        return min(1.0, (done + max(map(self._share, running), default=0.0)) / steps)


def create_monitor(backend: str, progress: BuildProgress) -> Any:
    """Create a TensorRT `IProgressMonitor`.

    Args:
        backend: A backend that has it.
        progress: Receives its calls.
    """
    trt = import_bindings(backend)

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return progress.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    return Monitor()


# TensorRT's own INT8 calibrator (implicit quantization).


def require_calibrator(backend: str) -> None:
    """Check that TensorRT's own calibrator exists.

    Args:
        backend: "tensorrt" or "tensorrt_rtx".

    Raises:
        CapabilityError: TensorRT 11 removed it; TensorRT-RTX never had it.
    """
    capabilities = probe(backend)
    if not capabilities.has_int8_calibrator:
        raise CapabilityError(
            "calibrate INT8 with TensorRT's own calibrator",
            f"{capabilities.title} has none (TensorRT 11 removed it)",
            "leave implicit out: Q/DQ nodes in the graph work with every TensorRT",
            code="calibrator-unsupported",
            version=capabilities.version,
        )


def create_calibrator(backend: str, settings: ImplicitCalibration, *, device: int) -> Any:
    """Create a TensorRT `IInt8MinMaxCalibrator` that reads batches.

    Args:
        backend: A backend that has calibrators.
        settings: The images and the cache.
        device: The GPU's index.

    Raises:
        CapabilityError: There is no calibrator, or torch has no CUDA to hold the images.
        CalibrationError: There are no images and no cache.
    """
    require_calibrator(backend)
    trt = import_bindings(backend)
    cached_scales = _read_cache(settings.cache)
    batches = iter(settings.batches)
    first = next(batches, None)
    if first is None and not cached_scales:
        raise CalibrationError(
            "calibrate INT8 with TensorRT's own calibrator",
            "there are no images",
            "pass data with images",
            code="calibrator-no-images",
        )
    torch = require_torch_cuda("feed TensorRT's calibrator")

    class MinMax(trt.IInt8MinMaxCalibrator):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.IInt8MinMaxCalibrator.__init__(self)
            self.batch = len(first) if first is not None else 1
            self.source: Iterator[np.ndarray] = _prepend(first, batches)
            self.memory: Any = None
            # A build may be repeated with the same calibrator after its images are consumed.
            self.scales = cached_scales
            self.failure: BaseException | None = None

        def get_batch_size(self) -> int:
            return self.batch

        def get_batch(self, names: list[str]) -> list[int] | None:
            try:
                value = next(self.source, None)
                # TensorRT 8.6 needs every batch at `get_batch_size`: a shorter last one ends the calibration.
                if value is None or len(value) != self.batch:
                    return None
                value = np.ascontiguousarray(value, dtype=np.float32)
                self.memory = torch.from_numpy(value).to(torch.device("cuda", device))
                torch.cuda.synchronize(device)
            except BaseException as error:  # noqa: BLE001 - must not cross TensorRT's C++ frames; the builder raises it
                self.failure = error
                return None
            return [int(self.memory.data_ptr())]

        def read_calibration_cache(self) -> bytes | None:
            return self.scales or None

        def write_calibration_cache(self, cache: Any) -> None:
            self.scales = bytes(cache)
            if settings.cache is not None:
                try:
                    write_bytes(settings.cache, self.scales)
                except BaseException as error:  # noqa: BLE001 - as above
                    self.failure = error

    return MinMax()


def _prepend(first: np.ndarray | None, rest: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    if first is not None:
        yield first
        yield from rest


def _read_cache(cache: Path | None) -> bytes:
    return cache.read_bytes() if cache is not None and cache.is_file() else b""


# The logger: one per process and backend, since TensorRT keeps the first one it gets.


LOG = logging.getLogger("trtkit.tensorrt")
# The builder prints its layer table below one of these lines with detailed profiling verbosity.
TABLE_HEADERS = ("Layers:\n", "Engine Layer Information:\n")


class Messages:
    """TensorRT's messages during one operation.

    Attributes:
        errors: Error messages, in order.
        warnings: Warnings, in order.
        table: The builder's layer table as text, "" where it printed none.
    """

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.table = ""

    def add(self, severity: str, text: str) -> None:
        """Add a message.

        Args:
            severity: The name of TensorRT's severity.
            text: The message.
        """
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self.errors.append(text)
        elif severity == "WARNING":
            self.warnings.append(text)
        elif text.startswith(TABLE_HEADERS):
            self.table = text

    def summary(self, default: str = "TensorRT gives no reason") -> str:
        """The first errors as one clause.

        Args:
            default: The clause where there were none.
        """
        lines = list(dict.fromkeys(" ".join(text.split()) for text in self.errors))
        return " | ".join(lines[:3]) or default


_LISTENERS: list[Messages] = []
_LOCK = threading.Lock()


@contextlib.contextmanager
def capture_messages() -> Iterator[Messages]:
    """Capture TensorRT's messages while the block runs, those of other threads included.

    Yields:
        The messages so far; it grows.
    """
    messages = Messages()
    with _LOCK:
        _LISTENERS.append(messages)
    try:
        yield messages
    finally:
        with _LOCK:
            _LISTENERS.remove(messages)


@functools.cache
def get_logger(backend: str) -> Any:
    """The TensorRT logger of a backend, created once.

    Args:
        backend: "tensorrt" or "tensorrt_rtx".
    """
    trt = import_bindings(backend)

    class Logger(trt.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            name = str(getattr(severity, "name", severity)).rsplit(".", 1)[-1]
            if name != "VERBOSE":
                LOG.debug("%s: %s", name, msg)
            for messages in tuple(_LISTENERS):
                messages.add(name, msg)

    logger = Logger()
    # On TensorRT 8, NMS in a graph becomes one of these plugins; parsing and running need them registered.
    if hasattr(trt, "init_libnvinfer_plugins"):
        trt.init_libnvinfer_plugins(logger, "")
    return logger
