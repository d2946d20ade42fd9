"""Run a long call in a thread: progress events, cancellation by button or kernel interrupt, a log, and its view."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

import ipywidgets
from markupsafe import Markup, escape

from trtkit.errors import CancelledError, TrtkitError
from trtkit.html import render
from trtkit.progress import Event
from trtkit.progress_line import ProgressText, format_clock
from trtkit.widgets.ui.controls import ErrorBox, make_button

__all__ = ["JOB_STATES", "Job", "JobView", "cancel_on_interrupt", "capture_warnings"]

JOB_STATES = ("idle", "running", "done", "failed", "cancelled")

T = TypeVar("T")


class Job(Generic[T]):
    """Runs one call at a time in a thread of its own.

    Args:
        name: What runs, a short phrase for messages.
        on_event: Called with every `Event`, in the job's thread: it may only update a progress display.
        on_state: Called with the job when it starts, when it is asked to stop and once when it has ended. The end is
            reported in the thread that started the job where an event loop runs there (a notebook), otherwise in the
            job's thread or in the thread of `wait`.

    Attributes:
        state: One of `JOB_STATES`.
        event: The last event, or None.
        log: Messages of the events and warnings of the call, oldest first.
        result: What the call returned; None unless the state is "done".
        error: What the call raised; None unless the state is "failed".
        seconds: Wall time of the call, s.
    """

    def __init__(
        self,
        name: str = "job",
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
        self._start_time = self._end_time = 0.0
        # Acquired by whoever reports the end, so that it is reported once.
        self._end_lock = threading.Lock()
        # Held while "running" is reported, so that the job can't end meanwhile.
        self._state_lock = threading.RLock()

    @property
    def running(self) -> bool:
        """Whether the call runs."""
        return self.state == "running"

    @property
    def token(self) -> threading.Event:
        """The cancellation token of this run; another run has another."""
        return self._cancel

    @property
    def cancelling(self) -> bool:
        """Whether the call was asked to stop and still runs."""
        return self.running and self._cancel.is_set()

    @property
    def seconds(self) -> float:
        """Wall time of the call so far, or in total, s."""
        return (time.perf_counter() if self.running else self._end_time) - self._start_time

    def start(self, call: Callable[..., T], /, *arguments: Any, **settings: Any) -> None:
        """Start `call(*arguments, **settings, progress=..., cancel=...)` and return at once.

        Args:
            call: A verb of trtkit, or any function with `progress` and `cancel`.
            *arguments: Its arguments.
            **settings: Its keyword arguments.

        Raises:
            TrtkitError: The job is running.
        """
        if self.running:
            raise TrtkitError(
                f"start {self.name}",
                "it is running",
                "wait for it, or cancel it first",
                code="job-running",
                name=self.name,
            )
        self.state, self.event, self.result, self.error, self.log = "running", None, None, None, []
        # A new token per run: an earlier call that still holds the old one stays cancelled.
        self._cancel = threading.Event()
        self._start_time = time.perf_counter()
        self._end_lock = end_lock = threading.Lock()
        try:
            loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        self._report_state()
        bound = functools.partial(call, *arguments, progress=self._on_event, cancel=self._cancel, **settings)
        self._thread = threading.Thread(
            target=self._run, args=(bound, loop, end_lock), name=f"trtkit {self.name}", daemon=True
        )
        self._thread.start()
        cancel_on_interrupt(self)

    def cancel(self) -> None:
        """Ask the call to stop at its next step; the state is "cancelled" once it has stopped."""
        with self._state_lock:
            if self.running and not self._cancel.is_set():
                self._cancel.set()
                self._report_state()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the call has ended and its end was reported.

        A kernel interrupt or Ctrl-C cancels the call, waits for it to stop and is raised again.

        Args:
            timeout: Maximum wait, s; None waits without limit.

        Returns:
            Whether the call has ended.

        Raises:
            KeyboardInterrupt: The user interrupted; the call was cancelled.
        """
        if self._thread is None:
            return True
        try:
            self._thread.join(timeout)
        except KeyboardInterrupt:
            self.cancel()
            self._thread.join()
            self._report_end(self._end_lock)
            raise
        if self._thread.is_alive():
            return False
        self._report_end(self._end_lock)
        return True

    @contextmanager
    def keep_state(self) -> Iterator[None]:
        """Let no state be reported meanwhile."""
        with self._state_lock:
            yield

    def _run(self, bound: Callable[[], T], loop: asyncio.AbstractEventLoop | None, end_lock: threading.Lock) -> None:
        state = "done"
        result: T | None = None
        error: BaseException | None = None
        with capture_warnings(self._on_warning):
            try:
                result = bound()
            except (CancelledError, KeyboardInterrupt):
                state = "cancelled"
            except BaseException as raised:  # noqa: BLE001  (kept and shown; no caller above this thread could catch it)
                state, error = "failed", raised
        with self._state_lock:
            self.result, self.error, self._end_time = result, error, time.perf_counter()
            self.state = state
        if loop is None:
            self._report_end(end_lock)
            return
        try:
            loop.call_soon_threadsafe(self._report_end, end_lock)
        except RuntimeError:
            # The loop was closed meanwhile, as when a kernel shuts down.
            self._report_end(end_lock)

    def _report_end(self, end_lock: threading.Lock) -> None:
        """Report the end of one run; only the first call for a run does."""
        if end_lock.acquire(blocking=False):
            self._report_state()

    def _report_state(self) -> None:
        if self.on_state is not None:
            self.on_state(self)

    def _on_event(self, event: Event) -> None:
        self.event = event
        if event.message:
            self.log.append(event.message)
        if self.on_event is not None:
            self.on_event(event)

    def _on_warning(self, text: str) -> None:
        event = self.event if self.event is not None else Event(stage=self.name, done=0)
        self._on_event(dataclasses.replace(event, message=f"note: {text}"))


# View of a job

# Seconds between updates of the progress bar: ten a second, which a slow connection carries.
REFRESH_SECONDS = 0.1

TICK_SECONDS = 1.0
"""Seconds between updates of the clock."""

MAX_LOG_LINES = 200


class JobView(ipywidgets.VBox):
    """Stage, progress bar, Cancel button and log of a job; hidden until the job first runs.

    Args:
        name: What runs, a short phrase for messages.
        on_end: Called with the job when it has ended, in whatever state.

    Attributes:
        job: The job.
        stage: An `ipywidgets.HTML` with the current stage.
        bar: The progress bar.
        messages: An `ipywidgets.HTML` with the log.
        clock: An `ipywidgets.HTML` with the time since the start, which goes on between events.
        cancel: The Cancel button.
        error_box: The error of a failed job.
    """

    def __init__(self, name: str = "job", on_end: Callable[[Job[Any]], None] | None = None) -> None:
        self.job: Job[Any] = Job(name, on_event=self._on_event, on_state=self._on_state)
        self.on_end = on_end
        self.stage = ipywidgets.HTML()
        self.stage.add_class("trtkit-stage")
        self.bar = ipywidgets.IntProgress(
            value=0, max=1, tooltip="progress of this stage", layout=ipywidgets.Layout(width="min(28rem, 60%)")
        )
        self.bar.add_class("trtkit-bar")
        self.clock = ipywidgets.HTML()
        self.clock.add_class("trtkit-clock")
        self.cancel = make_button(
            "Cancel", "Stop at the next step; no partial files are left", self._cancel_job, name="cancel"
        )
        self.finished = ipywidgets.HTML(layout=ipywidgets.Layout(display="none"))
        self.finished.add_class("trtkit-clock")
        self.messages = ipywidgets.HTML()
        self.messages.add_class("trtkit-messages")
        self.error_box = ErrorBox()
        self.progress = ProgressText()
        self._last_update = 0.0
        row = ipywidgets.HBox([self.bar, self.clock, self.cancel], layout=ipywidgets.Layout(align_items="center"))
        super().__init__(
            [self.finished, self.stage, row, self.messages, self.error_box], layout=ipywidgets.Layout(display="none")
        )
        self.add_class("trtkit-job")

    def start(self, call: Callable[..., Any], /, *arguments: Any, **settings: Any) -> None:
        """As `Job.start`."""
        self.job.start(call, *arguments, **settings)

    def show_done(self, *, is_current: bool) -> None:
        """Show that a job is done only as long as its result is that of the page's settings.

        Args:
            is_current: Whether it is.
        """
        if self.job.state == "done":
            self.layout.display = "" if is_current else "none"

    def _cancel_job(self) -> None:
        self.job.cancel()

    def _on_state(self, job: Job[Any]) -> None:
        self.layout.display = ""
        self.cancel.disabled = not job.running or job.cancelling
        for control in (self.bar, self.clock, self.cancel):
            control.layout.display = "" if job.running else "none"
        self.error_box.show(job.error)
        if job.cancelling:
            self.stage.value = "Stopping after this step …"
            return
        if job.running:
            self.stage.value, self.messages.value = escape(f"Starting {job.name} …"), ""
            self.bar.value, self._last_update, self.progress = 0, 0.0, ProgressText()
            self._show_finished()
            threading.Thread(target=self._tick, args=(job.token,), name="trtkit clock", daemon=True).start()
            return
        self.stage.value = {
            "done": f"✓ Done in {job.seconds:.1f} s",
            "failed": f"✕ Failed after {job.seconds:.1f} s",
            "cancelled": f"Cancelled after {job.seconds:.1f} s; no partial files were left.",
        }[job.state]
        if job.state == "done":
            # The steps stay only where one of them failed.
            self.finished.layout.display = "none"
        self._write_log(job.log, folded=job.state == "done")
        if self.on_end is not None:
            self.on_end(job)

    def _tick(self, token: threading.Event) -> None:
        """Show the time of one run, second by second, until it has ended."""
        while self.job.running and self.job.token is token:
            self.clock.value = format_clock(self.job.seconds)
            with self.job.keep_state():
                # The time left goes on too.
                if self.progress.event is not None and self.job.running and not self.job.cancelling:
                    self.stage.value = escape(self.progress.describe())
            time.sleep(TICK_SECONDS)

    def _on_event(self, event: Event) -> None:
        now = time.perf_counter()
        self.progress.add(event)
        is_last = event.total is not None and event.done >= event.total
        if now - self._last_update < REFRESH_SECONDS and not event.message and not is_last:
            return
        self._last_update = now
        if not self.job.cancelling:
            self.stage.value = escape(self.progress.describe())
        self._show_finished()
        self.bar.max, self.bar.value = max(1, event.total or 1), event.done
        if event.message:
            self._write_log(self.job.log)

    def _show_finished(self) -> None:
        """A line for each step that has ended."""
        lines = self.progress.finished
        self.finished.value = Markup("<br>").join(lines)
        self.finished.layout.display = "" if lines else "none"

    def _write_log(self, lines: Sequence[str], *, folded: bool = False) -> None:
        # Notes are warnings: a log that holds one stays open.
        folded = folded and not any(line.startswith("note: ") for line in lines)
        self.messages.value = (
            render("widgets/ui/templates/log.html.j2", lines=lines[-MAX_LOG_LINES:], folded=folded) if lines else ""
        )


# Warnings of a thread

# `warnings.showwarning` belongs to the process: the first capture installs one hook for all, the last one removes it.
_hook_lock = threading.Lock()
_receivers: dict[int, Callable[[str], None]] = {}
_hooks: list[warnings.catch_warnings[None]] = []


@contextmanager
def capture_warnings(receive: Callable[[str], None]) -> Iterator[None]:
    """Capture the warnings of this thread; those of other threads are shown as before.

    Args:
        receive: Called in this thread with the text of each `UserWarning`; other warnings, which address developers,
            are dropped.
    """
    thread = threading.get_ident()
    with _hook_lock:
        if not _receivers:
            hook = warnings.catch_warnings()
            hook.__enter__()
            _hooks.append(hook)
            original = warnings.showwarning
            warnings.simplefilter("default", UserWarning)

            def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
                receiver = _receivers.get(threading.get_ident())
                if receiver is None:
                    original(message, category, *place, **more)
                elif issubclass(category, UserWarning):
                    receiver(str(message))

            warnings.showwarning = show
        _receivers[thread] = receive
    try:
        yield
    finally:
        with _hook_lock:
            del _receivers[thread]
            if not _receivers:
                _hooks.pop().__exit__(None, None, None)


# Kernel interrupt while a job and no cell runs

# A kernel replaces the SIGINT handler while it serves a message and restores the previous one afterwards, so that the
# handler can only be installed between two messages: installing is retried until it meets such a moment.
RETRY_SECONDS = 0.2


class Cancellable(Protocol):
    """What an interrupt cancels."""

    @property
    def running(self) -> bool:
        """Whether there is anything to cancel."""

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
    """The event loop of the kernel's main thread, which receives signals; widget callbacks may run in other threads."""
    if "ipykernel" not in sys.modules:
        return None
    from IPython.core.getipython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    loop = getattr(getattr(kernel, "io_loop", None), "asyncio_loop", None)
    return loop if isinstance(loop, asyncio.AbstractEventLoop) else None


def _install_handler(loop: asyncio.AbstractEventLoop) -> None:
    """Install the handler while a job runs and remove it afterwards, as soon as no message is served."""
    if threading.current_thread() is not threading.main_thread():
        return
    _interruptible_jobs[:] = [job for job in _interruptible_jobs if job.running]
    current = signal.getsignal(signal.SIGINT)
    if _interruptible_jobs and current is signal.SIG_IGN:
        signal.signal(signal.SIGINT, _handle_interrupt)
    elif not _interruptible_jobs and current is _handle_interrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if _interruptible_jobs:
        loop.call_later(RETRY_SECONDS, _install_handler, loop)


def _handle_interrupt(number: int, frame: Any) -> None:
    for job in _interruptible_jobs:
        # In another thread: the interrupted code may hold a lock that reporting the state needs.
        threading.Thread(target=job.cancel).start()
