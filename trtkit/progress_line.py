"""The line that says how far work is: its words, in a notebook and in a terminal, and verbs that show it themselves."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import inspect
import multiprocessing
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar

from trtkit.arguments import check_arguments
from trtkit.progress import DONE, LOADING, Cost, Event, is_planning

__all__ = [
    "SHORTEST_STEP",
    "ProgressLine",
    "ProgressText",
    "describe_step",
    "escape_controls",
    "format_clock",
    "format_time_left",
    "verb",
]

# C0 and C1 controls, marks and overrides of the text direction, line separators, and the lone surrogates of file names
# that are not UTF-8, which no stream can encode. Joiners stay: scripts and emoji need them.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escape_controls(text: object, *, keep: str = "") -> str:
    """Text with characters that would control a terminal written as Python writes them: `\\x1b`, `\\u202e`.

    Args:
        text: A str, or anything with a str.
        keep: Control characters that stay, such as "\\n".
    """

    def escape(match: re.Match[str]) -> str:
        return match[0] if match[0] in keep else match[0].encode("unicode_escape").decode()

    return _CONTROLS.sub(escape, str(text))


def format_clock(seconds: float) -> str:
    """Time since the start: "1:07", "1:02:03".

    Args:
        seconds: The time, s.
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_time_left(seconds: float) -> str:
    """An estimate, as roughly as it is known: "less than 10 s left", "about 40 s left", "about 3 min left".

    Args:
        seconds: The estimate, s.
    """
    if seconds < 10:
        return "less than 10 s left"
    if seconds <= 50:
        return f"about {-(-seconds // 10) * 10:.0f} s left"
    if seconds < 90 * 60:
        return f"about {max(1, round(seconds / 60))} min left"
    return f"about {round(seconds / 3600)} h left"


MIN_MEASURED = 3.0
"""Seconds of counted work from which the time of other work is estimated."""


@dataclasses.dataclass(frozen=True)
class _Count:
    """What an event counts, and when."""

    time: float
    done: int
    total: int


class ProgressText:
    """What notebook, widgets and terminal say: "evaluate int8 · 120 of 400 · step 5 of 12, about 1 min left".

    The time left is that of the counted rest of this step, and of the steps after it by `Plan.costs` and the images
    that this work has run. There is none as long as that of any of them is unknown.

    Attributes:
        event: The last event; None before the first one.
        finished: A line for each step that has ended, such as "evaluate int8 (step 5 of 12): 7.4 s".
    """

    def __init__(self) -> None:
        self.event: Event | None = None
        self.finished: tuple[str, ...] = ()
        self._step, self._step_begun = "", time.perf_counter()
        self._start_time = self._step_time = time.perf_counter()
        # Seconds and images by kind, of the last step of each before this one.
        self._measured: dict[str, tuple[float, float]] = {}
        self._first: _Count | None = None
        self._last: _Count | None = None
        # Events come from the thread that works, and the clock's thread asks.
        self._lock = threading.Lock()

    @property
    def seconds(self) -> float:
        """Time since the start, s."""
        return time.perf_counter() - self._start_time

    def add(self, event: Event) -> None:
        """Take note of an event.

        Args:
            event: The event.
        """
        with self._lock:
            step = "" if event.stage == DONE else describe_step(event)
            if step != self._step:
                self._finish_step()
                self._step, self._step_begun = step, time.perf_counter()
            before = self.event
            if before is None or (before.plan, before.step) != (event.plan, event.step):
                measured = self._measure()
                if before is None or before.plan is not event.plan:
                    measured = {}
                self._measured, self._first, self._last = measured, None, None
                self._step_time = time.perf_counter()
            self.event = event
            # Stages of other names are parts of a step; their share of it is not known.
            if event.total is not None and event.total > 1 and event.stage == _find_step(event):
                self._last = _Count(time.perf_counter(), event.done, event.total)
                if self._first is None or event.done <= self._first.done:
                    # Warm-up counts nothing.
                    self._first = self._last

    def finish(self) -> None:
        """Note that the last step has ended, too."""
        with self._lock:
            self._finish_step()
            self._step = ""

    def _finish_step(self) -> None:
        seconds = time.perf_counter() - self._step_begun
        if self._step and seconds > SHORTEST_STEP:
            self.finished += (f"{self._step}: {seconds:.1f} s",)

    def describe(self, width: int | None = None) -> str:
        """The line.

        Args:
            width: The most characters it may have; a longer stage is cut. None for no limit.
        """
        event = self.event
        if event is None:
            return "starting"
        stage = escape_controls(event.stage)
        rest = f" · {event.done} of {event.total}" if event.total is not None and event.total > 1 else ""
        left = self.estimate_time_left()
        parts = [part for part in (_count_steps(event), "" if left is None else format_time_left(left)) if part]
        rest += f" · {', '.join(parts)}" if parts else ""
        if width is not None and len(stage) + len(rest) > width:
            stage = f"{stage[: max(width - len(rest) - 1, 1)]}…"
        return f"{stage}{rest}"

    def estimate_time_left(self) -> float | None:
        """Seconds until the plan's end; None while too little was measured, or if it takes longer than estimated."""
        with self._lock:
            event = self.event
            if event is None or event.plan is None or not event.step or event.stage == DONE:
                return None
            costs, measured = event.plan.costs, self._measure()
            left = self._estimate_rest(costs.get(event.plan.steps[event.step - 1]), measured)
            for step in event.plan.steps[event.step :]:
                more = _estimate(costs[step], measured) if step in costs else 0.0
                if left is None or more is None:
                    return None
                left += more
            return left if left is not None and left > 0 else None

    def _estimate_rest(self, cost: Cost | None, measured: dict[str, tuple[float, float]]) -> float | None:
        """Seconds until the end of this step."""
        now = time.perf_counter()
        first, last = self._first, self._last
        if first is not None and last is not None and last.done > first.done and last.time - first.time >= MIN_MEASURED:
            pace = (last.time - first.time) / (last.done - first.done)
            left = pace * (last.total - last.done) - (now - last.time)
            return left if cost is None or cost.seconds is None else min(left, cost.seconds - (now - first.time))
        if cost is None:
            return None if first is not None else 0.0
        whole = _estimate(cost, measured)
        return None if whole is None else whole - (now - self._step_time)

    def _measure(self) -> dict[str, tuple[float, float]]:
        """Seconds and images by kind: of this step once that is enough, else of the last one that was."""
        event, first, last = self.event, self._first, self._last
        if event is None or event.plan is None or first is None or last is None:
            return self._measured
        cost = event.plan.costs.get(event.plan.steps[event.step - 1])
        if cost is None or cost.images is None:
            return self._measured
        if last.time - first.time < MIN_MEASURED:
            return self._measured
        share = (last.done - first.done) / last.total
        return {**self._measured, cost.kind: (last.time - first.time, share * cost.images)}


def describe_step(event: Event) -> str:
    """The plan's step, "evaluate int8 (step 5 of 12)"; the stage where no steps are counted.

    Args:
        event: An event.
    """
    count = _count_steps(event)
    return f"{escape_controls(_find_step(event))} ({count})" if count else escape_controls(event.stage)


def _count_steps(event: Event) -> str:
    """ "step 5 of 12"; "" before the first step, and for a plan of one."""
    count = 0 if event.plan is None else len(event.plan.steps)
    return f"step {event.step} of {count}" if event.step and count > 1 else ""


def _find_step(event: Event) -> str | None:
    return event.plan.steps[event.step - 1] if event.plan is not None and event.step else None


def _estimate(cost: Cost, measured: dict[str, tuple[float, float]]) -> float | None:
    """Seconds of a whole step."""
    if cost.images is None:
        return cost.seconds
    seconds, images = measured.get(cost.kind, (0.0, 0.0))
    if not images:
        return None
    estimate = seconds / images * cost.images
    return estimate if cost.seconds is None else min(estimate, cost.seconds)


# The line, where someone sees it

REFRESH_SECONDS = 0.25
"""Shortest time between two updates that show the same stage."""

TICK_SECONDS = 1.0
"""Longest time between two updates of a verb's line."""

SHORTEST_STEP = 0.2
"""Steps that took less, s, are not worth a line of their own."""

DELAY_SECONDS = 1.0
"""Verbs that take less show no line by themselves."""


class _View(Protocol):
    """Where a line is shown."""

    def show(self, text: str, finished: Sequence[str], *, is_over: bool) -> None:
        """Replace the line; above it stand those of the finished steps."""

    def close(self) -> None:
        """Leave the line as it is, or remove it if it was for the moment only."""


class ProgressLine:
    """One line with the progress of a long call: below its cell in a notebook, else on stderr.

    >>> import trtkit as tk
    >>> tk.compare("yolo11n.pt", "coco.yaml", progress=tk.ProgressLine())

    In a notebook or a terminal, verbs that are called without `progress` show one by themselves if they take longer
    than a second, unless the environment variable TRTKIT_PROGRESS is 0. Each finished step leaves a line above it; a
    notebook folds them at the end.

    Attributes:
        text: The shown line; "" before the first event.
    """

    def __init__(self) -> None:
        self.text = ""
        self._progress: ProgressText | None = None
        self._view: _View | None = None
        self._last_update = 0.0
        self._shows_from = 0.0
        # Events come from threads that work, and the clock ticks in its own.
        self._lock = threading.RLock()

    def __call__(self, event: Event) -> None:
        """Show one event; events in quick succession are skipped, except the last one of a stage."""
        if self._progress is None:
            self._progress = ProgressText()
        before = self._progress.event
        self._progress.add(event)
        now = time.perf_counter()
        is_last = event.total is not None and event.done >= event.total
        is_new = before is None or (before.stage, before.step) != (event.stage, event.step)
        if is_new or is_last or now - self._last_update >= REFRESH_SECONDS:
            self._update()

    @contextlib.contextmanager
    def watch(self, name: str, *, delay: float = 0.0) -> Iterator[None]:
        """Let the line's clock go on while a call runs, and say at its end how long it took.

        Args:
            name: The call.
            delay: Seconds before the line is shown for the first time.
        """
        self._progress, self._shows_from = ProgressText(), time.perf_counter() + delay
        ended = threading.Event()

        def tick() -> None:
            while not ended.wait(TICK_SECONDS):
                self._update()

        # In a copy of the context: a kernel knows by it to which cell an output belongs.
        context = contextvars.copy_context()
        ticker = threading.Thread(target=context.run, args=(tick,), name="trtkit progress", daemon=True)
        ticker.start()
        how = "stopped after"
        try:
            yield
            how = "done in"
        finally:
            ended.set()
            ticker.join()
            if self._view is not None:
                self._progress.finish()
                self._show(f"{name} · {how} {format_clock(self._progress.seconds)}", is_over=True)
                self._view.close()
            self._progress = self._view = None

    def _update(self) -> None:
        progress = self._progress
        if progress is None or (progress.event is None and not self._shows_from):
            return
        self._last_update = time.perf_counter()
        clock = f" · {format_clock(progress.seconds)}"
        if self._last_update >= self._shows_from:
            width = getattr(self._view, "width", None)
            self._show(f"{progress.describe(None if width is None else width - len(clock))}{clock}")

    def _show(self, text: str, *, is_over: bool = False) -> None:
        with self._lock:
            self.text = text
            if self._view is None:
                self._view = _select_view()
            self._view.show(text, self._progress.finished if self._progress is not None else (), is_over=is_over)


class _NotebookView:
    """Below the cell, updated in place."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, text: str, finished: Sequence[str], *, is_over: bool) -> None:
        from IPython.display import display
        from markupsafe import Markup

        line = Markup("<span role='status'>{}</span>").format(text)
        steps = Markup("<br>").join(finished)
        if steps:
            folded = Markup("<details><summary>{}</summary>{}</details>")
            line = folded.format(line, steps) if is_over else Markup("{}<br>{}").format(steps, line)
        # Opacity keeps the line readable on light and dark pages.
        markup = Markup("<div style='opacity:.7'>{}</div>").format(line)
        bundle = {"text/plain": text, "text/html": markup}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(bundle, raw=True)

    def close(self) -> None:
        pass


class _TerminalView:
    """The last line of a terminal; warnings and other output stand above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False)
        self._live.start()
        self._printed = 0

    @property
    def width(self) -> int:
        """Characters of the line."""
        return self._console.width - 1

    def show(self, text: str, finished: Sequence[str], *, is_over: bool) -> None:
        from rich.text import Text

        for line in finished[self._printed :]:
            self._console.print(Text(line), soft_wrap=True)
        self._printed = len(finished)
        self._live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)

    def close(self) -> None:
        self._live.stop()


class _LogView:
    """A line per stage on stderr, where no line can be replaced."""

    def __init__(self) -> None:
        self._stage = ""

    def show(self, text: str, finished: Sequence[str], *, is_over: bool) -> None:
        stage = text.split(" · ")[0]
        if stage != self._stage:
            self._stage = stage
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


def _in_kernel() -> bool:
    """Whether this is a notebook's kernel."""
    if "ipykernel" not in sys.modules:
        return False
    from IPython.core.getipython import get_ipython

    return hasattr(get_ipython(), "kernel")


def _in_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _select_view() -> _View:
    return _NotebookView() if _in_kernel() else _TerminalView() if _in_terminal() else _LogView()


# Verbs

P = ParamSpec("P")
R = TypeVar("R")

_IN_VERB = contextvars.ContextVar("trtkit_in_verb", default=False)


def _is_watched() -> bool:
    """Whether someone sees a line that was not asked for."""
    if os.environ.get("TRTKIT_PROGRESS") == "0" or os.environ.get("CI"):
        return False
    if threading.current_thread() is not threading.main_thread() or multiprocessing.parent_process() is not None:
        return False
    return _in_kernel() or _in_terminal()


def verb(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a verb: its arguments are checked by `check_arguments`, and it shows its progress where someone sees it.

    A `ProgressLine` that is passed, or one of its own if the caller passes no `progress`, shows the outermost verb;
    verbs that it calls show nothing by themselves.

    Args:
        function: The verb.
    """
    checked = check_arguments(function)
    reports = "progress" in inspect.signature(function).parameters

    @functools.wraps(checked)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if _IN_VERB.get() or is_planning():
            return checked(*args, **kwargs)
        given = kwargs.get("progress")
        line = given if isinstance(given, ProgressLine) else None
        if reports and given is None and _is_watched():
            line = ProgressLine()
            kwargs["progress"] = line
        token = _IN_VERB.set(True)
        try:
            with (
                contextlib.nullcontext()
                if line is None
                else line.watch(function.__name__, delay=DELAY_SECONDS if given is None else 0.0)
            ):
                # Models and data are read before there is a plan.
                if callable(progress := kwargs.get("progress")):
                    progress(Event(stage=LOADING, done=0))
                return checked(*args, **kwargs)
        finally:
            _IN_VERB.reset(token)

    return call
