"""A torch whose CUDA is the CPU: enough of `torch.cuda` to test the engine runner without a GPU."""

from __future__ import annotations

import contextlib
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch

CAPTURING: list[list[Callable[[], None]]] = []


class Stream:
    cuda_stream = 7

    def __init__(self, device: Any = None) -> None:
        self.waits: list[Any] = []

    def synchronize(self) -> None:
        pass

    def wait_stream(self, other: Any) -> None:
        self.waits.append(other)

    def wait_event(self, event: Event) -> None:
        self.waits.append(event)


class Event:
    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self, stream: Any) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        assert self.at

    def elapsed_time(self, other: Event) -> float:
        return (other.at - self.at) * 1e3


class CUDAGraph:
    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []
        self.replays = 0

    def capture_begin(self, capture_error_mode: str = "global") -> None:
        assert capture_error_mode == "thread_local"
        CAPTURING.append(self.calls)

    def capture_end(self) -> None:
        CAPTURING.remove(self.calls)

    def replay(self) -> None:
        self.replays += 1
        for step in self.calls:
            step()

    def reset(self) -> None:
        self.calls = []


class FakeTorch:
    """The real torch, except for CUDA."""

    def __init__(self) -> None:
        self.emptied = 0
        self.cuda = types.SimpleNamespace(
            Stream=Stream,
            Event=Event,
            CUDAGraph=CUDAGraph,
            OutOfMemoryError=torch.OutOfMemoryError,
            device=self._enter,
            stream=self._enter,
            current_stream=lambda device=None: Stream(),
            synchronize=lambda device=None: None,
            empty_cache=self._empty_cache,
            is_available=lambda: True,
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def device(self, kind: str, index: int = 0) -> torch.device:
        return torch.device("cpu")

    def empty(self, *size: Any, pin_memory: bool = False, **settings: Any) -> torch.Tensor:
        return torch.empty(*size, **settings)

    @contextlib.contextmanager
    def _enter(self, thing: Any) -> Iterator[None]:
        yield

    def _empty_cache(self) -> None:
        self.emptied += 1
