"""Text, progress bars and tables: on a terminal, in a pipe and in a log.

Everything the command line prints passes here, because names of classes, layers and files come from others' files: a
control character in one would clear the screen, hide a line or forge the next one.
"""

from __future__ import annotations

import re
import sys
import textwrap
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from trtkit.progress import Event

if TYPE_CHECKING:
    import polars as pl
    from typing_extensions import Self

__all__ = [
    "ProgressBars",
    "escape_controls",
    "make_frame_table",
    "make_table",
    "print_error",
    "print_table",
    "print_text",
    "print_wrapped",
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


def print_text(text: object = "") -> None:
    """Print lines to stdout."""
    print(escape_controls(text, keep="\n\t"))


def print_wrapped(text: object) -> None:
    """Print a paragraph to stdout, wrapped between words at the terminal's width; in a pipe it is one line."""
    clean = escape_controls(text)
    if sys.stdout.isatty():
        width = Console().width
        clean = textwrap.fill(
            clean, width=width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
    print(clean)


def print_error(text: object) -> None:
    """Print one line to stderr; a line break inside is escaped too, so that no name can forge a second message."""
    print(escape_controls(text), file=sys.stderr)


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
            TextColumn("{task.description:<28}", markup=False),
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
            self.task = self.bars.add_task(escape_controls(event.stage), total=event.total)
        self.total = event.total
        self.bars.update(self.task, completed=event.done, total=event.total)
        if event.message and self.console.is_terminal:
            # As Text: a str would be read as markup, and "[/x]" in a name is an error there.
            self.bars.log(Text(escape_controls(event.message)))

    def _finish(self) -> None:
        """Complete the bar of the current stage."""
        if self.stage is None:
            return
        self.bars.update(self.task, completed=self.total or 1, total=self.total or 1)
        if not self.console.is_terminal and time.perf_counter() - self.begun > 0.05:
            print_error(f"{self.stage}: {time.perf_counter() - self.begun:.1f} s")
        self.stage = None


class _EscapedTable(Table):
    """A table whose cells hold no control characters."""

    def add_row(self, *cells: Any, **settings: Any) -> None:
        super().add_row(*(escape_controls(cell) if isinstance(cell, str) else cell for cell in cells), **settings)


def make_table(*words: str, numbers: tuple[str, ...] = ()) -> Table:
    """A table without lines.

    Args:
        *words: Headers of left-aligned columns.
        numbers: Headers of right-aligned columns, after them.
    """
    table = _EscapedTable(*words, box=None, pad_edge=False, padding=(0, 2, 0, 0))
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
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 10_000
        console.width = console.measure(table).maximum
    console.print(table)
