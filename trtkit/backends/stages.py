"""The stages of `predict`, timed apart: their names, and the clocks of the host and the GPU that time them.

A runner's code says where a stage begins (`enter_stage`), which ends the one before; that costs nothing unless
`time_stages` listens in the same thread.
"""

from __future__ import annotations

import contextvars
import itertools
import time
from collections.abc import Callable
from typing import Any, Protocol

from trtkit.errors import RecipeError

__all__ = ["STAGES", "HostClock", "StageClock", "enter_stage", "time_stages"]

STAGES = {
    "decode": "read and decode image files",
    "preprocess": "resize, pad, color order, scale",
    "upload": "copy to the GPU",
    "engine": "the model itself, on whichever runtime",
    "download": "copy from the GPU",
    "postprocess": "boxes, scores and NMS, in pixels of the image",
}
"""The stages of `predict` in the order of a batch, and what each is. A runner has those that it does: arrays are not
decoded, and a model on the CPU copies nothing."""


class StageClock(Protocol):
    """What stages are timed by."""

    def read(self) -> Any:
        """The time now; must not wait for a GPU."""

    def elapsed_ms(self, begin: Any, end: Any) -> float:
        """Milliseconds between two readings, once `synchronize` has returned."""

    def synchronize(self) -> None:
        """Wait until every reading is known."""


class HostClock:
    """The clock of the host: right where a stage ends when its code does."""

    def read(self) -> int:
        """Nanoseconds."""
        return time.perf_counter_ns()

    def elapsed_ms(self, begin: int, end: int) -> float:
        """Milliseconds between two readings."""
        return (end - begin) / 1e6

    def synchronize(self) -> None:
        """Nothing to wait for."""


class _StageTimer:
    """Readings of a clock at the begin of every stage.

    Args:
        clock: The clock.
    """

    def __init__(self, clock: StageClock) -> None:
        self._clock = clock
        self._begun = clock.read()
        self._marks: list[tuple[str, Any]] = []

    def enter(self, stage: str) -> None:
        """Begin a stage; see `enter_stage`."""
        if stage not in STAGES:
            raise RecipeError(
                f"time the stage {stage!r}",
                "there is no such stage",
                f"use one of {', '.join(STAGES)}",
                code="stage-unknown",
                value=stage,
                names=tuple(STAGES),
            )
        self._marks.append((stage, self._clock.read()))

    def stop(self) -> tuple[float, dict[str, float]]:
        """End the last stage; see `time_stages`."""
        end = self._clock.read()
        self._clock.synchronize()
        spent: dict[str, float] = {}
        for (stage, begin), (_, following) in itertools.pairwise([*self._marks, ("", end)]):
            spent[stage] = spent.get(stage, 0.0) + self._clock.elapsed_ms(begin, following)
        return self._clock.elapsed_ms(self._begun, end), {stage: spent[stage] for stage in STAGES if stage in spent}


_LISTENING: contextvars.ContextVar[_StageTimer | None] = contextvars.ContextVar("trtkit_stages", default=None)


def enter_stage(stage: str) -> None:
    """Say that a stage of `predict` begins here; the times of one that is entered again add up.

    Args:
        stage: One of `STAGES`.

    Raises:
        RecipeError: There is no such stage, and `time_stages` listens.
    """
    timer = _LISTENING.get()
    if timer is not None:
        timer.enter(stage)


def time_stages(work: Callable[[], object], clock: StageClock) -> tuple[float, dict[str, float]]:
    """Time work and the stages that it enters in this thread.

    Args:
        work: Such as a call of `predict` on one batch.
        clock: `Runner.stage_clock()`.

    Returns:
        Milliseconds from begin to end, and those of each stage that was entered, in the order of `STAGES`. What comes
        before the first stage belongs to none.
    """
    timer = _StageTimer(clock)
    token = _LISTENING.set(timer)
    try:
        work()
        return timer.stop()
    finally:
        _LISTENING.reset(token)
