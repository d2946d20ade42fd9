"""One function over many items on a few threads, in order, with only a few items in memory."""

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
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallel_map(
    function: Callable[[Item], Output],
    items: Iterable[Item],
    threads: int | None = None,
    *,
    max_pending: int | None = None,
) -> Generator[Output, None, None]:
    """Apply a function to items, several at a time.

    Args:
        function: What to do with one.
        items: What to do it with.
        threads: How many at a time; None takes one for each core.
        max_pending: How many results may wait to be taken; None takes as many as there are threads.

    Yields:
        The results in the order of the items.
    """
    count = threads or available_cores()
    room = max(count, max_pending or 0)
    waiting: collections.deque[Future[Output]] = collections.deque()
    with ThreadPoolExecutor(count, thread_name_prefix="trtkit") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > room:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
