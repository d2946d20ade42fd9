"""A long call beside the kernel's main thread: with events, cancelling, and an end that is told exactly once."""

from __future__ import annotations

import asyncio
import functools
import html
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

import ipywidgets

from trtkit.errors import CancelledError, TrtkitError
from trtkit.progress import Event
from trtkit.widgets.ui.controls import ErrorBox, make_button

__all__ = ["JOB_STATES", "Job", "JobView", "cancel_on_interrupt", "capture_warnings"]


# The interrupt button while a job runs and no cell does: it cancels the job, as it would stop a cell.


# A kernel sets its own handler while it serves a message, and sets back the one before when it is done: ours must be
# put in between two messages, and so is tried again until it meets such a moment.
RETRY_SECONDS = 0.2


class Cancellable(Protocol):
    """What an interrupt stops."""

    @property
    def running(self) -> bool:
        """Whether there is anything to stop."""

    def cancel(self) -> None:
        """Ask it to stop."""


_interruptible_jobs: list[Cancellable] = []


def cancel_on_interrupt(job: Cancellable) -> None:
    """Cancel `job` when the kernel is interrupted while no cell runs, until the job has ended.

    Does nothing outside a kernel.

    Args:
        job: What to cancel.
    """
    loop = _main_event_loop()
    if loop is not None:
        _interruptible_jobs.append(job)
        loop.call_soon_threadsafe(loop.call_later, RETRY_SECONDS, _install_handler, loop)


def _main_event_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop of the kernel's main thread, the one that gets signals; a widget's callbacks may run in others."""
    if "ipykernel" not in sys.modules:
        return None
    from IPython.core.getipython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    loop = getattr(getattr(kernel, "io_loop", None), "asyncio_loop", None)
    return loop if isinstance(loop, asyncio.AbstractEventLoop) else None


def _install_handler(loop: asyncio.AbstractEventLoop) -> None:
    """Put our handler in, or take it out, as soon as no message is being served."""
    if threading.current_thread() is not threading.main_thread():
        return
    _interruptible_jobs[:] = [job for job in _interruptible_jobs if job.running]
    now = signal.getsignal(signal.SIGINT)
    if _interruptible_jobs and now is signal.SIG_IGN:
        signal.signal(signal.SIGINT, _handle_interrupt)
    elif not _interruptible_jobs and now is _handle_interrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if _interruptible_jobs:
        loop.call_later(RETRY_SECONDS, _install_handler, loop)


def _handle_interrupt(number: int, frame: Any) -> None:
    for job in _interruptible_jobs:
        # Not in the signal's own moment, where the interrupted code may hold a lock that telling it needs.
        threading.Thread(target=job.cancel).start()


# The warnings of one thread, told to whoever started it, while those of other threads go where they went before.


# Python's warnings belong to the whole process, so that several jobs must share one hook: the first one in puts it up
# and the last one out takes it down. Each taking its own would leave another's behind.
_lock = threading.Lock()
_receivers: dict[int, Callable[[str], None]] = {}
_hooks: list[warnings.catch_warnings[None]] = []


@contextmanager
def capture_warnings(hear: Callable[[str], None]) -> Iterator[None]:
    """Give the text of each `UserWarning` of this thread to `hear`; its other warnings are for developers and dropped.

    Args:
        hear: Called in this thread.
    """
    thread = threading.get_ident()
    with _lock:
        if not _receivers:
            hook = warnings.catch_warnings()
            hook.__enter__()
            _hooks.append(hook)
            before = warnings.showwarning
            warnings.simplefilter("default", UserWarning)

            def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
                mine = _receivers.get(threading.get_ident())
                if mine is None:
                    before(message, category, *place, **more)
                elif issubclass(category, UserWarning):
                    mine(str(message))

            warnings.showwarning = show
        _receivers[thread] = hear
    try:
        yield
    finally:
        with _lock:
            del _receivers[thread]
            if not _receivers:
                _hooks.pop().__exit__(None, None, None)


JOB_STATES = ("idle", "running", "done", "failed", "cancelled")

T = TypeVar("T")


class Job(Generic[T]):
    """Runs one call at a time in a thread of its own.

    Args:
        name: What runs, as a short phrase for messages.
        on_event: Receives every `Event`, in the job's thread: touch only what shows progress.
        on_state: Receives the job when it starts, is asked to stop, and ends. The end is told in the thread that
            started it where an event loop runs there (a notebook), else in the job's own thread, or in that of `wait`.

    Attributes:
        state: One of `JOB_STATES`.
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
        cancel_on_interrupt(self)

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
        with capture_warnings(self._noted):
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


# A job as a user sees it: what it does, how far it is, what it said, and a button that stops it.


# Ten frames a second are enough for a bar, and a slow connection carries them.
REFRESH_SECONDS = 0.1

MAX_LOG_LINES = 200


class JobView(ipywidgets.VBox):
    """A job's bar, its log and its Cancel button; hidden until the job first runs.

    Args:
        name: What runs, for messages.
        ended: Receives the job when it has ended, in whatever state.

    Attributes:
        job: The job.
        stage: An `ipywidgets.HTML` that says what is being done.
        bar: The progress bar.
        messages: An `ipywidgets.HTML` with the job's log.
        cancel: The button.
        fault: The error of a failed job.
    """

    def __init__(self, name: str = "work", on_end: Callable[[Job[Any]], None] | None = None) -> None:
        self.job: Job[Any] = Job(name, on_event=self._received, on_state=self._changed)
        self.ended = on_end
        self.stage = ipywidgets.HTML()
        self.stage.add_class("trtkit-stage")
        self.bar = ipywidgets.IntProgress(
            value=0, max=1, tooltip="progress of this stage", layout=ipywidgets.Layout(width="min(28rem, 60%)")
        )
        self.bar.add_class("trtkit-bar")
        self.cancel = make_button(
            "Cancel", "Stop at the next step; nothing is left half-written", self._stop, name="cancel"
        )
        self.messages = ipywidgets.HTML()
        self.messages.add_class("trtkit-messages")
        self.fault = ErrorBox()
        self._shown = 0.0
        row = ipywidgets.HBox([self.bar, self.cancel], layout=ipywidgets.Layout(align_items="center"))
        super().__init__([self.stage, row, self.messages, self.fault], layout=ipywidgets.Layout(display="none"))
        self.add_class("trtkit-job")

    def start(self, call: Callable[..., Any], /, *arguments: Any, **settings: Any) -> None:
        """As `Job.start`."""
        self.job.start(call, *arguments, **settings)

    def _stop(self) -> None:
        self.job.cancel()

    def _changed(self, job: Job[Any]) -> None:
        self.layout.display = ""
        self.cancel.disabled = not job.running or job.cancelling
        for control in (self.bar, self.cancel):
            control.layout.display = "" if job.running else "none"
        self.fault.show(job.error)
        if job.cancelling:
            self.stage.value = "Stopping after this step …"
            return
        if job.running:
            self.stage.value, self.messages.value = f"Starting {html.escape(job.name)} …", ""
            self.bar.value, self._shown = 0, 0.0
            return
        self.stage.value = {
            "done": f"✓ Done in {job.seconds:.1f} s",
            "failed": f"✕ Failed after {job.seconds:.1f} s",
            "cancelled": f"Cancelled after {job.seconds:.1f} s; nothing was left half-written.",
        }[job.state]
        self._write_log(job.log, folded=job.state == "done")
        if self.ended is not None:
            self.ended(job)

    def _received(self, event: Event) -> None:
        now = time.perf_counter()
        last = event.total is not None and event.done >= event.total
        if now - self._shown < REFRESH_SECONDS and not event.message and not last:
            return
        self._shown = now
        count = f" · {event.done} of {event.total}" if event.total is not None and event.total > 1 else ""
        if not self.job.cancelling:
            self.stage.value = f"{html.escape(event.stage)}{count}"
        self.bar.max, self.bar.value = max(1, event.total or 1), event.done
        if event.message:
            self._write_log(self.job.log)

    def _write_log(self, lines: Sequence[str], *, folded: bool = False) -> None:
        if not lines:
            self.messages.value = ""
            return
        text = html.escape("\n".join(lines[-MAX_LOG_LINES:]))
        box = f"<div class='trtkit-log' role='log' tabindex='0'>{text}</div>"
        # Notes are warnings: they stay in sight.
        folded = folded and not any(line.startswith("note: ") for line in lines)
        self.messages.value = f"<details><summary>Log</summary>{box}</details>" if folded else box
