"""Copies on the host, to the pinned memory that a GPU reads."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from trtkit.progress import available_cores

__all__ = ["copy_ahead", "copy_arrays"]

Copies = Sequence[tuple[np.ndarray, np.ndarray]]
"""Target and source of each, of the same shape."""

COPY_THREADS = 4
"""Most threads that copy a batch to pinned memory: one reads memory at a fraction of its rate."""

LEAST_SHARED_COPY = 2**21
"""Bytes from which a batch is copied on several threads: their start takes as long as copying so much."""


def copy_arrays(copies: Copies) -> None:
    """Copy arrays on the host, many bytes on a few threads.

    Not by torch: its threads, one for each core, keep spinning after every copy, and take the cores from decoding and
    from other programs.

    Args:
        copies: What to copy.
    """
    threads = min(COPY_THREADS, available_cores() // 2, len(copies))
    if threads < 2 or sum(target.nbytes for target, _ in copies) < LEAST_SHARED_COPY:
        threads = 1

    if threads == 1:
        _copy(copies)
    else:
        # The first error is raised where results are read.
        list(_copiers().map(_copy, (copies[number::threads] for number in range(threads))))


def copy_ahead(copies: Copies) -> Future[None]:
    """Copy arrays on another thread, while this one has other work.

    Args:
        copies: What to copy.

    Returns:
        Is done when all are copied.
    """
    return _copiers().submit(_copy, copies)


def _copy(copies: Copies) -> None:
    for target, source in copies:
        target[...] = source


@functools.cache
def _copiers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(COPY_THREADS, thread_name_prefix="trtkit-copy")
