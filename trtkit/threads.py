"""Parallel map over threads, in order and with a bounded number of pending items."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["available_cores", "parallel_map"]

Item = TypeVar("Item")
Output = TypeVar("Output")


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
