"""Events of long work, and a way to cancel it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

from trtkit.errors import CancelledError

__all__ = ["CancelToken", "Event", "Progress", "Reporter"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One step of long work.

    Attributes:
        stage: What is being done, as a short phrase ("calibrate", "build fp16 engine").
        done: Steps finished.
        total: Steps in all, or None where that is not known.
        message: A line worth keeping in a log, or "".
    """

    stage: str
    done: int
    total: int | None = None
    message: str = ""


Progress = Callable[[Event], None]


class CancelToken(Protocol):
    """Anything that says whether to stop; `threading.Event` is one."""

    def is_set(self) -> bool:
        """Whether the work should stop."""


class Reporter:
    """Carries `progress` and `cancel` through the rooms, so that each step is one call.

    Args:
        progress: Receives every `Event`; None drops them.
        cancel: Asked before every event; None never cancels.
    """

    def __init__(self, progress: Progress | None = None, cancel: CancelToken | None = None) -> None:
        self.progress = progress
        self.cancel = cancel

    def is_cancelled(self) -> bool:
        """Whether the caller asked to stop."""
        return self.cancel is not None and self.cancel.is_set()

    def step(self, stage: str, done: int, total: int | None = None, message: str = "") -> None:
        """Report a step.

        Raises:
            CancelledError: The caller cancelled.
        """
        if self.is_cancelled():
            raise CancelledError(stage)
        if self.progress is not None:
            self.progress(Event(stage=stage, done=done, total=total, message=message))

    def log(self, stage: str, message: str) -> None:
        """Report a line for the log that is no step forward."""
        self.step(stage, 0, None, message)
