"""Progress events and cancellation of long work."""

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
        stage: The stage, as a short phrase ("calibrate", "build fp16 engine").
        done: Steps finished.
        total: Steps in all, or None if that is not known.
        message: A line for a log, or "".
    """

    stage: str
    done: int
    total: int | None = None
    message: str = ""


Progress = Callable[[Event], None]


class CancelToken(Protocol):
    """A cancellation token; `threading.Event` is one."""

    def is_set(self) -> bool:
        """Whether to stop."""


class Reporter:
    """Progress callback and cancellation token.

    Args:
        progress: Receives every `Event`; None drops them.
        cancel: Checked before every event; None never cancels.
    """

    def __init__(self, progress: Progress | None = None, cancel: CancelToken | None = None) -> None:
        self.progress = progress
        self.cancel = cancel

    def is_cancelled(self) -> bool:
        """Whether the caller cancelled."""
        return self.cancel is not None and self.cancel.is_set()

    def step(self, stage: str, done: int, total: int | None = None, message: str = "") -> None:
        """Report a step.

        Args:
            stage: As `Event.stage`.
            done: Steps finished.
            total: Steps in all, or None.
            message: A line for a log, or "".

        Raises:
            CancelledError: The caller cancelled.
        """
        if self.is_cancelled():
            raise CancelledError(stage)
        if self.progress is not None:
            self.progress(Event(stage=stage, done=done, total=total, message=message))

    def log(self, stage: str, message: str) -> None:
        """Report a line for a log, without a step.

        Args:
            stage: As `Event.stage`.
            message: The line.

        Raises:
            CancelledError: The caller cancelled.
        """
        self.step(stage, 0, None, message)
