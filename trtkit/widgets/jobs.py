"""A long call beside the kernel's main thread: with events, cancelling, and an end that is told exactly once."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from trtkit.errors import CancelledError, TrtkitError
from trtkit.progress import Event
from trtkit.widgets.interrupts import watch
from trtkit.widgets.overheard import overheard

__all__ = ["STATES", "Job"]

STATES = ("idle", "running", "done", "failed", "cancelled")

T = TypeVar("T")


class Job(Generic[T]):
    """Runs one call at a time in a thread of its own.

    Args:
        name: What runs, as a short phrase for messages.
        on_event: Receives every `Event`, in the job's thread: touch only what shows progress.
        on_state: Receives the job when it starts, is asked to stop, and ends. The end is told in the thread that
            started it where an event loop runs there (a notebook), else in the job's own thread, or in that of `wait`.

    Attributes:
        state: One of `STATES`.
        event: The last event, or None.
        log: Messages of the events, and warnings that the call gave, oldest first.
        result: What the call returned; None in every state but "done".
        error: What it raised; None in every state but "failed".
        seconds: How long it ran, wall time, s.
    """

    def __init__(
        self,
        name: str = "work",
        *,
        on_event: Callable[[Event], None] | None = None,
        on_state: Callable[[Job[T]], None] | None = None,
    ) -> None:
        self.name = name
        self.on_event = on_event
        self.on_state = on_state
        self.state = "idle"
        self.event: Event | None = None
        self.log: list[str] = []
        self.result: T | None = None
        self.error: BaseException | None = None
        self._cancel = threading.Event()
        self._thread: threading.Thread | None = None
        self._begun = self._ended = 0.0
        self._end = threading.Lock()
        # Held while it is told that the job runs, so that it can't have ended meanwhile.
        self._steady = threading.RLock()

    @property
    def running(self) -> bool:
        """Whether the call runs."""
        return self.state == "running"

    @property
    def cancelling(self) -> bool:
        """Whether it was asked to stop and has not yet."""
        return self.running and self._cancel.is_set()

    @property
    def seconds(self) -> float:
        """How long the call has run, or ran, wall time, s."""
        return (time.perf_counter() if self.running else self._ended) - self._begun

    def start(self, call: Callable[..., T], /, *arguments: Any, **settings: Any) -> None:
        """Begin `call(*arguments, **settings, progress=..., cancel=...)`, and return at once.

        Args:
            call: A verb of trtkit, or anything that takes `progress` and `cancel` as they do.
            *arguments: Its arguments.
            **settings: Its keyword arguments.

        Raises:
            TrtkitError: The job already runs.
        """
        if self.running:
            raise TrtkitError(f"start {self.name}", "it already runs", "wait for it, or cancel it first")
        self.state, self.event, self.result, self.error, self.log = "running", None, None, None, []
        # A new one: a call of before that still holds the old one stays cancelled.
        self._cancel = threading.Event()
        self._begun = time.perf_counter()
        self._end = end = threading.Lock()
        try:
            loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        self._tell()
        bound = functools.partial(call, *arguments, progress=self._received, cancel=self._cancel, **settings)
        self._thread = threading.Thread(
            target=self._run, args=(bound, loop, end), name=f"trtkit {self.name}", daemon=True
        )
        self._thread.start()
        watch(self)

    def cancel(self) -> None:
        """Ask the call to stop at its next step; its state is "cancelled" once it has."""
        with self._steady:
            if self.running and not self._cancel.is_set():
                self._cancel.set()
                self._tell()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the call has ended and its end was told.

        The interrupt button, or Ctrl-C, cancels the call, waits for it to stop and then raises.

        Args:
            timeout: Seconds to wait at most; None waits for ever.

        Returns:
            Whether it ended.

        Raises:
            KeyboardInterrupt: The user interrupted; the call was cancelled first.
        """
        if self._thread is None:
            return True
        try:
            self._thread.join(timeout)
        except KeyboardInterrupt:
            self.cancel()
            self._thread.join()
            self._settle(self._end)
            raise
        if self._thread.is_alive():
            return False
        self._settle(self._end)
        return True

    def _run(self, bound: Callable[[], T], loop: asyncio.AbstractEventLoop | None, end: threading.Lock) -> None:
        state = "done"
        result: T | None = None
        error: BaseException | None = None
        with overheard(self._noted):
            try:
                result = bound()
            except (CancelledError, KeyboardInterrupt):
                state = "cancelled"
            except BaseException as raised:  # noqa: BLE001  (it is kept and shown; nobody above could catch it)
                state, error = "failed", raised
        with self._steady:
            self.result, self.error, self._ended = result, error, time.perf_counter()
            self.state = state
        if loop is None:
            self._settle(end)
            return
        try:
            loop.call_soon_threadsafe(self._settle, end)
        except RuntimeError:
            # The loop was closed under the job, as when a kernel shuts down.
            self._settle(end)

    def _settle(self, end: threading.Lock) -> None:
        """Tell the end that `end` stands for, once, whoever comes first."""
        if end.acquire(blocking=False):
            self._tell()

    def _tell(self) -> None:
        if self.on_state is not None:
            self.on_state(self)

    def _received(self, event: Event) -> None:
        self.event = event
        if event.message:
            self.log.append(event.message)
        if self.on_event is not None:
            self.on_event(event)

    def _noted(self, text: str) -> None:
        stage = self.event.stage if self.event is not None else self.name
        self._received(Event(stage=stage, done=0, message=f"note: {text}"))
