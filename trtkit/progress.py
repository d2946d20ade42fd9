"""Long work: progress events, cancellation, and a parallel map over threads."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

from trtkit.errors import CancelledError

__all__ = ["CancelToken", "Event", "Progress", "Reporter", "available_cores", "parallel_map"]

Item = TypeVar("Item")
Output = TypeVar("Output")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One step of long work.

    Attributes:
        stage: The stage, as a short phrase ("calibrate", "build fp16 engine").
        done: Steps finished.
        total: Steps in all, or None if that is not known.
        message: A line for a log, or "".
    """

    stage: str
    done: int
    total: int | None = None
    message: str = ""


Progress = Callable[[Event], None]


class CancelToken(Protocol):
    """A cancellation token; `threading.Event` is one."""

    def is_set(self) -> bool:
        """Whether to stop."""


class Reporter:
    """Progress callback and cancellation token.

    Args:
        progress: Receives every `Event`; None drops them.
        cancel: Checked before every event; None never cancels.
    """

    def __init__(self, progress: Progress | None = None, cancel: CancelToken | None = None) -> None:
        self.progress = progress
        self.cancel = cancel

    def is_cancelled(self) -> bool:
        """Whether the caller cancelled."""
        return self.cancel is not None and self.cancel.is_set()

    def step(self, stage: str, done: int, total: int | None = None, message: str = "") -> None:
        """Report a step.

        Args:
            stage: As `Event.stage`.
            done: Steps finished.
            total: Steps in all, or None.
            message: A line for a log, or "".

        Raises:
            CancelledError: The caller cancelled.
        """
        if self.is_cancelled():
            raise CancelledError(stage)
        if self.progress is not None:
            self.progress(Event(stage=stage, done=done, total=total, message=message))

    def log(self, stage: str, message: str) -> None:
        """Report a line for a log, without a step.

        Args:
            stage: As `Event.stage`.
            message: The line.

        Raises:
            CancelledError: The caller cancelled.
        """
        self.step(stage, 0, None, message)


def available_cores() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallel_map(
    function: Callable[[Item], Output],
    items: Iterable[Item],
    threads: int | None = None,
    *,
    max_pending: int | None = None,
) -> Generator[Output, None, None]:
    """Apply a function to items on several threads.

    Args:
        function: The function.
        items: Its arguments.
        threads: Number of threads; None takes one per core.
        max_pending: Largest number of results that wait to be taken; None takes the number of threads.

    Yields:
        The results in the order of the items.
    """
    count = threads or available_cores()
    limit = max(count, max_pending or 0)
    pending: collections.deque[Future[Output]] = collections.deque()
    with ThreadPoolExecutor(count, thread_name_prefix="trtkit") as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > limit:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
