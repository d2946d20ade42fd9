"""The interrupt button while a job runs and no cell does: it cancels the job, as it would stop a cell."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from typing import Any, Protocol

__all__ = ["watch"]

# A kernel sets its own handler while it serves a message, and sets back the one before when it is done: ours must be
# put in between two messages, and so is tried again until it meets such a moment.
AGAIN = 0.2


class Cancellable(Protocol):
    """What an interrupt stops."""

    @property
    def running(self) -> bool:
        """Whether there is anything to stop."""

    def cancel(self) -> None:
        """Ask it to stop."""


_watched: list[Cancellable] = []


def watch(job: Cancellable) -> None:
    """Cancel `job` when the kernel is interrupted while no cell runs, until the job has ended.

    Does nothing outside a kernel.

    Args:
        job: What to cancel.
    """
    loop = _loop_of_cells()
    if loop is not None:
        _watched.append(job)
        loop.call_soon_threadsafe(loop.call_later, AGAIN, _arrange, loop)


def _loop_of_cells() -> asyncio.AbstractEventLoop | None:
    """The event loop of the kernel's main thread, the one that gets signals; a widget's callbacks may run in others."""
    if "ipykernel" not in sys.modules:
        return None
    from IPython.core.getipython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    loop = getattr(getattr(kernel, "io_loop", None), "asyncio_loop", None)
    return loop if isinstance(loop, asyncio.AbstractEventLoop) else None


def _arrange(loop: asyncio.AbstractEventLoop) -> None:
    """Put our handler in, or take it out, as soon as no message is being served."""
    if threading.current_thread() is not threading.main_thread():
        return
    _watched[:] = [job for job in _watched if job.running]
    now = signal.getsignal(signal.SIGINT)
    if _watched and now is signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt)
    elif not _watched and now is _interrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if _watched:
        loop.call_later(AGAIN, _arrange, loop)


def _interrupt(number: int, frame: Any) -> None:
    for job in _watched:
        # Not in the signal's own moment, where the interrupted code may hold a lock that telling it needs.
        threading.Thread(target=job.cancel).start()
