"""Progress bars and tables: on a terminal, in a pipe and in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from trtkit.progress import Event

if TYPE_CHECKING:
    import polars as pl
    from typing_extensions import Self

__all__ = ["ProgressBars", "make_frame_table", "make_table", "print_table"]


class ProgressBars:
    """A progress callback: bars on a terminal, else one line per stage. A context manager that restores the terminal.

    Args:
        console: The console to draw on; None uses stderr, so that stdout has results only.
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
        """Complete the bar of the current stage."""
        if self.stage is None:
            return
        self.bars.update(self.task, completed=self.total or 1, total=self.total or 1)
        if not self.console.is_terminal and time.perf_counter() - self.begun > 0.05:
            print(f"{self.stage}: {time.perf_counter() - self.begun:.1f} s", file=sys.stderr)
        self.stage = None


def make_table(*words: str, numbers: tuple[str, ...] = ()) -> Table:
    """A table without lines.

    Args:
        *words: Headers of left-aligned columns.
        numbers: Headers of right-aligned columns, after them.
    """
    table = Table(*words, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def make_frame_table(frame: pl.DataFrame) -> Table:
    """A frame as a table with all rows and columns, numbers with four digits and lists as their length."""
    table = make_table()
    for name, kind in frame.schema.items():
        table.add_column(name, justify="right" if kind.is_numeric() else "left")
    for row in frame.iter_rows():
        table.add_row(*map(_format_cell, row))
    return table


def _format_cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(len(value)) if isinstance(value, list) else str(value)


def print_table(table: Table) -> None:
    """Print a table; in full width if stdout is no terminal, so that no cell of a log is cut."""
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 10_000
        console.width = console.measure(table).maximum
    console.print(table)
