"""Long work: progress events, cancellation, the plan of a verb and its steps, and a parallel map over threads."""

from __future__ import annotations

import collections
import contextvars
import dataclasses
import os
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

from trtkit.arguments import is_verb
from trtkit.errors import CancelledError, RecipeError

__all__ = [
    "DONE",
    "LOADING",
    "CancelToken",
    "Cost",
    "Event",
    "Plan",
    "Progress",
    "Reporter",
    "available_cores",
    "catch_plan",
    "is_planning",
    "parallel_map",
    "plan",
    "start_work",
]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One step of long work.

    Attributes:
        stage: The stage, as a short phrase ("calibrate", "build fp16 engine").
        done: Images, runs or the like that are finished in this stage.
        total: Their number, or None if that is not known.
        message: A line for a log, or "".
        plan: The plan of the outermost verb, whose steps are counted; None before it has one.
        step: Number of the plan's step, from 1; 0 before the first one.
    """

    stage: str
    done: int
    total: int | None = None
    message: str = ""
    plan: Plan | None = dataclasses.field(default=None, repr=False)
    step: int = 0


Progress = Callable[[Event], None]


class CancelToken(Protocol):
    """A cancellation token; `threading.Event` is one."""

    def is_set(self) -> bool:
        """Whether to stop."""


LOADING, DONE = "load", "done"
"""Stages before a verb's first step and after its last one."""


class Reporter:
    """Progress callback and cancellation token, and the step of its plan that a verb is at.

    Args:
        progress: Receives every `Event`; None drops them.
        cancel: Checked before every event; None never cancels.

    Attributes:
        progress: The callback for verbs that this one calls: their events count as those of the step at hand. None if
            events are dropped.
        shared_progress: The same for a verb whose steps are steps of this plan too, which begin with them.
        cancel: The token.
    """

    def __init__(self, progress: Progress | None = None, cancel: CancelToken | None = None) -> None:
        self._receiver = progress
        self.progress: Progress | None = None if progress is None else self._forward
        self.shared_progress: Progress | None = None if progress is None else self._forward_shared
        self.cancel = cancel
        self._plan: Plan | None = None
        self._number = 0

    def is_cancelled(self) -> bool:
        """Whether the caller cancelled."""
        return self.cancel is not None and self.cancel.is_set()

    def start(self, plan: Plan) -> None:
        """Count steps of a plan from here on.

        Args:
            plan: The plan.
        """
        self._plan, self._number = plan, 0

    def begin(self, step: str) -> None:
        """Report that a step of the plan begins; steps between the last one and this one were not needed.

        Args:
            step: One of `Plan.steps`, after the last one.

        Raises:
            CancelledError: The caller cancelled.
        """
        assert self._plan is not None, step
        self._number = self._plan.steps.index(step, self._number) + 1
        self.step(step, 0)

    def count(self, done: int) -> None:
        """Where steps run side by side: so many are done, and the next one is the step at hand.

        Args:
            done: Number of steps.
        """
        assert self._plan is not None
        self._number = min(done + 1, len(self._plan.steps))

    def finish(self, message: str = "") -> None:
        """Report that the plan's last step is done; too late to cancel.

        Args:
            message: A line for a log, or "".
        """
        self._number = len(self._plan.steps) if self._plan is not None else 0
        self._send(DONE, 1, 1, message)

    def step(self, stage: str, done: int, total: int | None = None, message: str = "") -> None:
        """Report what is done of a stage.

        Args:
            stage: As `Event.stage`.
            done: As `Event.done`.
            total: Their number, or None.
            message: A line for a log, or "".

        Raises:
            CancelledError: The caller cancelled.
        """
        if self.is_cancelled():
            raise CancelledError(stage)
        self._send(stage, done, total, message)

    def _send(self, stage: str, done: int, total: int | None, message: str) -> None:
        if self._receiver is not None:
            self._receiver(
                Event(stage=stage, done=done, total=total, message=message, plan=self._plan, step=self._number)
            )

    def log(self, stage: str, message: str) -> None:
        """Report a line for a log, without a step.

        Args:
            stage: As `Event.stage`.
            message: The line.

        Raises:
            CancelledError: The caller cancelled.
        """
        self.step(stage, 0, None, message)

    def _forward(self, event: Event) -> None:
        """Pass on the event of a verb that this one called: its own steps, loading and end are those of this step."""
        assert self._receiver is not None
        if self._plan is not None:
            own_steps = event.plan.steps if event.plan is not None else ()
            folds = self._number > 0 and event.stage in (*own_steps, LOADING, DONE)
            stage = self._plan.steps[self._number - 1] if folds else event.stage
            event = dataclasses.replace(event, stage=stage, plan=self._plan, step=self._number)
        self._receiver(event)

    def _forward_shared(self, event: Event) -> None:
        if self._plan is not None and event.plan is not None and event.stage in event.plan.steps:
            coming = self._plan.steps[self._number :]
            self._number += coming.index(event.stage) + 1 if event.stage in coming else 0
        self._forward(event)


# Plans: a verb checks its arguments and inputs, hands its plan to `start_work`, and works.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What is known of the time of a step before it begins.

    Attributes:
        kind: Steps of one kind take about the same time per image, such as "calibrate" or "evaluate".
        images: Number of images that are run; None if the time does not follow from images, as for an engine build.
        seconds: The time it takes, with `images` the longest; None if that is not known.
    """

    kind: str
    images: int | None = None
    seconds: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Plan:
    """What a verb is about to do, after all its checks.

    Attributes:
        verb: The function's name.
        steps: What is done, in order.
        images: Number of images by use, such as "calibration" and "evaluation".
        files: Files that are written, and folders that hold further ones.
        settings: What the arguments resolve to, such as "model", "imgsz" (height, width) and "batch".
        costs: What is known of the time of steps, by step; those without a cost take seconds.
    """

    verb: str
    steps: tuple[str, ...]
    images: Mapping[str, int] = dataclasses.field(default_factory=dict)
    files: tuple[Path, ...] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    costs: Mapping[str, Cost] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping of every attribute but the costs."""
        values = dataclasses.asdict(self)
        del values["costs"]
        values["files"] = [str(path) for path in self.files]
        values["steps"] = list(self.steps)
        values["settings"] = {
            name: list(value) if isinstance(value, tuple) else value for name, value in self.settings.items()
        }
        return values

    def __repr__(self) -> str:
        lines = [f"Plan of {self.verb}; nothing was computed or written"]
        lines += [f"  {name}: {_format_setting(value)}" for name, value in self.settings.items() if value is not None]
        lines += [f"  {name} images: {count}" for name, count in self.images.items()]
        lines += [f"  {number}. {step}" for number, step in enumerate(self.steps, 1)]
        lines += [f"  writes {path}" for path in self.files]
        return "\n".join(lines)


def _format_setting(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


_PLANNING = contextvars.ContextVar("trtkit_planning", default=False)


class _PlanReached(BaseException):
    """Leaves a verb where its work would begin; no handler of errors may take it, so it is not an Exception."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.plan = plan


def is_planning() -> bool:
    """Whether `plan` runs, so that nothing may be written or downloaded."""
    return _PLANNING.get()


def start_work(plan: Plan, reporter: Reporter | None = None) -> None:
    """Called by each verb between its checks and its work; leaves it here if only its plan is asked for.

    Args:
        plan: What the verb is about to do.
        reporter: Counts the plan's steps from here on.
    """
    if is_planning():
        raise _PlanReached(plan)
    if reporter is not None:
        reporter.start(plan)


def plan(verb: Callable[..., Any], *arguments: Any, **settings: Any) -> Plan:
    """Run all checks of a verb and say what it would do, without doing it.

    >>> import trtkit as tk
    >>> tk.plan(tk.compare, "yolo11n.pt", data="coco.yaml")

    Nothing is calibrated, built, evaluated, written or downloaded.
    A checkpoint is traced only where `keep` names nodes.

    Args:
        verb: A verb of trtkit, such as `trtkit.compare` or `trtkit.export`.
        *arguments: Its arguments.
        **settings: Its arguments by name.

    Returns:
        The plan.

    Raises:
        RecipeError: The function has no plan.
        TrtkitError: What the verb itself would raise before its work.
    """
    if not is_verb(verb):
        name = getattr(verb, "__name__", repr(verb))
        raise RecipeError(
            f"plan {name}",
            "it has no plan",
            "pass a verb such as trtkit.export or trtkit.compare",
            code="plan-verb-unknown",
            value=name,
        )
    return catch_plan(lambda: verb(*arguments, **settings))


def catch_plan(call: Callable[[], Any]) -> Plan:
    """The plan of the first verb that a function calls.

    Args:
        call: The function; it is left where the verb's work would begin.

    Raises:
        RuntimeError: It ended without reaching a verb's work.
    """
    token = _PLANNING.set(True)
    try:
        call()
    except _PlanReached as reached:
        return reached.plan
    finally:
        _PLANNING.reset(token)
    raise RuntimeError("no verb reached its work")


# Threads


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
    """Apply a function to items on several threads, in order and with a bounded number of pending items.

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
