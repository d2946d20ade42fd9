"""A build's progress, and a way to stop it, where TensorRT reports any."""

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
from trtkit.files import write_bytes
from trtkit.progress import Reporter

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
    """Nested phases as one share of the whole.

    TensorRT calls from several threads. A phase counts for one step of its parent, so the share of the whole is the
    root's finished steps plus what its running phases have done of theirs. It never falls.

    Args:
        work: Receives the steps.
        stage: Their name.
    """

    def __init__(self, reporter: Reporter, stage: str) -> None:
        self.reporter = reporter
        self.stage = stage
        self.failure: BaseException | None = None
        self._phases: dict[str, tuple[str | None, int, int]] = {}
        self._most = 0.0
        self._reported = -1
        self._lock = threading.Lock()

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Enter a phase.

        Args:
            name: Its name, unique among the running ones.
            parent: The phase it is a part of, or None.
            steps: Its steps.
        """
        with self._lock:
            self._phases[name] = (parent, max(1, steps), 0)

    def step(self, name: str, step: int) -> bool:
        """Count a step.

        Args:
            name: The phase.
            step: Its index.

        Returns:
            Whether to go on.
        """
        with self._lock:
            if name in self._phases:
                parent, steps, _ = self._phases[name]
                self._phases[name] = (parent, steps, min(steps, step + 1))
            share = max(
                (self._share(root) for root, (above, _, _) in self._phases.items() if above is None), default=0.0
            )
            self._most = max(self._most, share)
            done = int(self._most * PROGRESS_STEPS)
        return self.tell(done)

    def finish(self, name: str) -> None:
        """Leave a phase.

        Args:
            name: Its name.
        """
        with self._lock:
            self._phases.pop(name, None)

    def tell(self, done: int) -> bool:
        """Report to the caller; an error of theirs stops the build and is raised after it.

        Args:
            done: Steps of `PROGRESS_STEPS`.

        Returns:
            Whether to go on.
        """
        if self.failure is not None:
            return False
        try:
            # TensorRT steps thousands of times: only those that move the bar are told, and all ask whether to go on.
            if done != self._reported or self.reporter.is_cancelled():
                self._reported = done
                self.reporter.step(self.stage, done, PROGRESS_STEPS)
        except BaseException as error:  # noqa: BLE001 - no exception may cross TensorRT's C++ frames; `failure` is raised later
            self.failure = error
            return False
        return True

    def _share(self, name: str) -> float:
        _, steps, done = self._phases[name]
        running = [child for child, (parent, _, _) in self._phases.items() if parent == name]
        inside = max((self._share(child) for child in running), default=0.0)
        return min(1.0, (done + inside) / steps)


def create_monitor(backend: str, phases: BuildProgress) -> Any:
    """TensorRT's `IProgressMonitor` that reports to `phases`.

    Args:
        backend: One that has it.
        phases: The listener.
    """
    trt = import_bindings(backend)

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return phases.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()


# TensorRT's own INT8 calibrator (implicit quantization), where the installed TensorRT still has it.


def require_calibrator(backend: str) -> None:
    """Make sure that implicit calibration exists.

    Args:
        backend: "tensorrt" or "tensorrt_rtx".

    Raises:
        CapabilityError: It left with TensorRT 11 and was never in TensorRT-RTX.
    """
    found = probe(backend)
    if not found.has_int8_calibrator:
        raise CapabilityError(
            "calibrate INT8 with TensorRT's own calibrator",
            f"{found.title} has none (it left with TensorRT 11)",
            "leave implicit out: Q/DQ pairs in the graph do it everywhere",
        )


def create_calibrator(backend: str, settings: ImplicitCalibration, *, device: int = 0) -> Any:
    """An `IInt8MinMaxCalibrator` over the images.

    Args:
        backend: One that has calibrators.
        settings: The images and the cache.
        device: The GPU.

    Raises:
        CapabilityError: There is no calibrator, or torch has no CUDA to hold the images.
        CalibrationError: No images and no cache.
    """
    require_calibrator(backend)
    trt = import_bindings(backend)
    found = _read_cache(settings.cache)
    batches = iter(settings.batches)
    first = next(batches, None)
    if first is None and not found:
        raise CalibrationError(
            "calibrate INT8 with TensorRT's own calibrator", "there is no image", "pass data with images"
        )
    torch = require_torch_cuda("feed TensorRT's calibrator")

    class MinMax(trt.IInt8MinMaxCalibrator):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.IInt8MinMaxCalibrator.__init__(self)
            self.batch = len(first) if first is not None else 1
            self.source: Iterator[np.ndarray] = _prepend(first, batches)
            self.memory: Any = None
            self.fed = 0
            # A build may be tried twice with one calibrator, whose images are gone by then.
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


def _prepend(first: np.ndarray | None, rest: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    if first is not None:
        yield first
        yield from rest


def _read_cache(cache: Path | None) -> bytes:
    return cache.read_bytes() if cache is not None and cache.is_file() else b""


# What TensorRT says while it works: one logger a process and module, listened to by whoever is at work.


LOG = logging.getLogger("trtkit.tensorrt")
# The builder prints its layer table under one of these lines when the engine keeps detailed profiling information.
TABLE_HEADERS = ("Layers:\n", "Engine Layer Information:\n")


class Messages:
    """What was said during one piece of work.

    Attributes:
        errors: Error messages, in order.
        warnings: Warnings, in order.
        table: The builder's layer table as text, "" where it printed none.
    """

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.table = ""

    def hear(self, severity: str, text: str) -> None:
        """Keep a message.

        Args:
            severity: TensorRT's name of it.
            text: The message.
        """
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self.errors.append(text)
        elif severity == "WARNING":
            self.warnings.append(text)
        elif text.startswith(TABLE_HEADERS):
            self.table = text

    def why(self, otherwise: str = "TensorRT gives no reason") -> str:
        """The errors as one clause.

        Args:
            otherwise: What to say where there was none.
        """
        lines = list(dict.fromkeys(" ".join(text.split()) for text in self.errors))
        return " | ".join(lines[:3]) or otherwise


_LISTENERS: list[Messages] = []
_LOCK = threading.Lock()


@contextlib.contextmanager
def capture_messages() -> Iterator[Messages]:
    """Yield the messages that arrive while the block runs, those of other threads included.

    Yields:
        A collection that grows.
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
    """The one logger of a backend: TensorRT keeps the first it gets for the whole process.

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
                messages.hear(name, msg)

    found = Logger()
    # Graphs with suppression become one of these plugins on TensorRT 8; both reading and running them need it.
    if hasattr(trt, "init_libnvinfer_plugins"):
        trt.init_libnvinfer_plugins(found, "")
    return found
