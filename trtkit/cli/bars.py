"""Events as progress bars on a terminal, and as one line a stage everywhere else."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from trtkit.progress import Event

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Bars"]


class Bars:
    """A receiver of events; a context manager, so that the terminal is left as it was.

    Args:
        console: Where to draw; None is stderr, so that stdout carries results alone.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.stage: str | None = None
        self.total: int | None = None
        self.begun = time.perf_counter()
        self.bars = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._finish()
        self.bars.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if event.stage != self.stage:
            self._finish()
            self.stage, self.begun = event.stage, time.perf_counter()
            self.task = self.bars.add_task(event.stage, total=event.total)
        self.total = event.total
        self.bars.update(self.task, completed=event.done, total=event.total)
        if event.message and self.console.is_terminal:
            self.bars.log(event.message)

    def _finish(self) -> None:
        """Close the bar of the stage that ended."""
        if self.stage is None:
            return
        self.bars.update(self.task, completed=self.total or 1, total=self.total or 1)
        if not self.console.is_terminal and time.perf_counter() - self.begun > 0.05:
            print(f"{self.stage}: {time.perf_counter() - self.begun:.1f} s", file=sys.stderr)
        self.stage = None
