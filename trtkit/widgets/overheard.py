"""The warnings of one thread, told to whoever started it, while those of other threads go where they went before."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["overheard"]

# Python's warnings belong to the whole process, so that several jobs must share one hook: the first one in puts it up
# and the last one out takes it down. Each taking its own would leave another's behind.
_lock = threading.Lock()
_hearers: dict[int, Callable[[str], None]] = {}
_hooks: list[warnings.catch_warnings[None]] = []


@contextmanager
def overheard(hear: Callable[[str], None]) -> Iterator[None]:
    """Give the text of each `UserWarning` of this thread to `hear`; its other warnings are for developers and dropped.

    Args:
        hear: Called in this thread.
    """
    thread = threading.get_ident()
    with _lock:
        if not _hearers:
            hook = warnings.catch_warnings()
            hook.__enter__()
            _hooks.append(hook)
            before = warnings.showwarning
            warnings.simplefilter("default", UserWarning)

            def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
                mine = _hearers.get(threading.get_ident())
                if mine is None:
                    before(message, category, *place, **more)
                elif issubclass(category, UserWarning):
                    mine(str(message))

            warnings.showwarning = show
        _hearers[thread] = hear
    try:
        yield
    finally:
        with _lock:
            del _hearers[thread]
            if not _hearers:
                _hooks.pop().__exit__(None, None, None)
