"""One function over many items on a few threads, in order, with only a few items in memory."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["cores", "over"]

Item = TypeVar("Item")
Found = TypeVar("Found")


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def over(
    function: Callable[[Item], Found], items: Iterable[Item], threads: int | None = None, *, ahead: int | None = None
) -> Iterator[Found]:
    """Apply a function to items, several at a time.

    Args:
        function: What to do with one.
        items: What to do it with.
        threads: How many at a time; None takes one for each core.
        ahead: How many results may wait to be taken; None takes as many as there are threads.

    Yields:
        The results in the order of the items.
    """
    count = threads or cores()
    room = max(count, ahead or 0)
    waiting: collections.deque[Future[Found]] = collections.deque()
    with ThreadPoolExecutor(count) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > room:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
