"""Copies on the host, to the pinned memory that a GPU reads."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from trtkit.progress import available_cores

__all__ = ["Copier"]

Copies = Sequence[tuple[np.ndarray, np.ndarray]]
"""Target and source of each, of the same shape."""

COPY_THREADS = 4
"""Most threads that copy a batch to pinned memory: one reads memory at a fraction of its rate."""

LEAST_SHARED_COPY = 2**21
"""Bytes from which a batch is copied on several threads: their start takes as long as copying so much."""


class Copier:
    """Copies arrays on the host, many bytes on a few threads, which start when they are needed.

    Not by torch: its threads, one for each core, keep spinning after every copy, and take the cores from decoding and
    from other programs.
    """

    def __init__(self) -> None:
        self._pool = _make_pool()
        self._lock = threading.Lock()

    def copy(self, copies: Copies) -> None:
        """Copy arrays.

        Args:
            copies: What to copy.
        """
        for future in self.start(copies):
            future.result()

    def start(self, copies: Copies) -> list[Future[None]]:
        """Copy arrays, many bytes on other threads while this one has other work.

        Args:
            copies: What to copy.

        Returns:
            All are copied when these are done; none if they are copied already.
        """
        threads = min(COPY_THREADS, available_cores() // 2, len(copies))
        if threads < 2 or sum(target.nbytes for target, _ in copies) < LEAST_SHARED_COPY:
            _copy(copies)
            return []
        with self._lock:
            return [self._pool.submit(_copy, copies[number::threads]) for number in range(threads)]

    def free(self) -> None:
        """End the threads when they have copied what they were given."""
        with self._lock:
            # A thread that did not know may copy on.
            ended, self._pool = self._pool, _make_pool()
        ended.shutdown()


def _make_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(COPY_THREADS, thread_name_prefix="trtkit-copy")


def _copy(copies: Copies) -> None:
    for target, source in copies:
        target[...] = source
