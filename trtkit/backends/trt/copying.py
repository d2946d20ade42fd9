"""Copies on the host, to the pinned memory that a GPU reads."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from trtkit.progress import available_cores

__all__ = ["copy_arrays"]

COPY_THREADS = 4
"""Most threads that copy a batch to pinned memory: one reads memory at a fraction of its rate."""

LEAST_SHARED_COPY = 2**21
"""Bytes from which a batch is copied on several threads: their start takes as long as copying so much."""


def copy_arrays(copies: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Copy arrays on the host, many bytes on a few threads.

    Not by torch: its threads, one for each core, keep spinning after every copy, and take the cores from decoding and
    from other programs.

    Args:
        copies: Target and source of each, of the same shape.
    """
    threads = min(COPY_THREADS, available_cores() // 2, len(copies))
    if threads < 2 or sum(target.nbytes for target, _ in copies) < LEAST_SHARED_COPY:
        threads = 1

    def copy_share(number: int) -> None:
        for target, source in copies[number::threads]:
            target[...] = source

    if threads == 1:
        copy_share(0)
    else:
        # The first error is raised where results are read.
        list(_copiers().map(copy_share, range(threads)))


@functools.cache
def _copiers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(COPY_THREADS, thread_name_prefix="trtkit-copy")
