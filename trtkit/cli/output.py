"""Text, progress bars and tables: on a terminal, in a pipe and in a log.

Everything the command line prints passes here, because names of classes, layers and files come from others' files: a
control character in one would clear the screen, hide a line or forge the next one.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import re
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trtkit.errors import TrtkitError
from trtkit.progress import Event
from trtkit.progress_line import SHORTEST_STEP, ProgressText, describe_step, escape_controls, format_clock

if TYPE_CHECKING:
    import polars as pl
    from typing_extensions import Self

    from trtkit.results import Result

__all__ = [
    "Outcome",
    "ProgressBars",
    "escape_controls",
    "make_frame_table",
    "make_table",
    "print_error",
    "print_json",
    "print_table",
    "print_text",
    "print_wrapped",
]

BEAT = 1.5
"""Longest silence on a stream that is no terminal, s."""

BAR_FROM = 100
"""Columns of a terminal from which a bar stands beside the line."""


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
    _OPEN_LINE.close()
    print(escape_controls(text), file=sys.stderr)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a command has to say, for people and for programs; everything is saved by then.

    Attributes:
        show: Prints it.
        facts: What no row holds, by name, for `--json`.
        rows: The records of the result, for `--json`.
        output: The file or folder that was written.
        status: The exit status.
        error: What is wrong with what was found: told after it was printed.
    """

    show: Callable[[], None]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()
    output: str | Path | None = None
    status: int = 0
    error: TrtkitError | None = None

    @classmethod
    def of(cls, result: Result, show: Callable[[], None], output: str | Path | None = None) -> Outcome:
        """The outcome of a verb with a result.

        Args:
            result: The result.
            show: Prints it.
            output: The folder it was saved in.
        """
        return cls(show, facts=result.facts(), rows=result.frame().to_dicts(), output=output)

    @classmethod
    def of_file(cls, path: Path) -> Outcome:
        """The outcome of a command that wrote one file.

        Args:
            path: The file.
        """
        return cls(lambda: print_text(path), output=path)

    def to_dict(self, command: str) -> dict[str, Any]:
        """What `--json` prints: the command, the facts, the rows, and the file or folder.

        Args:
            command: The command.
        """
        return {"command": command, **self.facts, "rows": list(self.rows), "output": self.output}


def print_json(value: Any) -> None:
    """Print JSON to stdout; what JSON has no number for is null."""
    print(json.dumps(_to_json(value), indent=2))


def _to_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _to_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_to_json(item) for item in value]
    if hasattr(value, "tolist"):
        return _to_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return value.isoformat() if isinstance(value, (datetime.date, datetime.time)) else str(value)


class ProgressBars:
    """A progress callback: on a terminal a line per finished step and one for the running one, else lines of text.

    Neither is silent for more than `BEAT` seconds: the terminal's clock ticks, and a line of text grows by dots. A
    context manager, which restores the terminal.

    Args:
        console: The console to draw on; None uses stderr, so that stdout has results only.
        quiet: Show nothing.
        verbose: Also print the log lines of the steps.
        reports: Whether events will come: a terminal shows the time until the first one.
    """

    def __init__(
        self, console: Console | None = None, *, quiet: bool = False, verbose: bool = False, reports: bool = False
    ) -> None:
        self.quiet, self.verbose, self.reports = quiet, verbose, reports
        self.console = console or Console(stderr=True)
        self.progress = ProgressText()
        self.step: str | None = None
        self.begun = time.perf_counter()
        self.live = Live(console=self.console, get_renderable=self._draw, refresh_per_second=4, transient=True)
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        if not self.quiet and self.console.is_terminal:
            self.live.start()
        elif not self.quiet:
            threading.Thread(target=self._beat, name="trtkit progress", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if error is None and not self.quiet:
            self._finish()
        self.live.stop()
        _OPEN_LINE.close()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if self.quiet:
            return
        step = describe_step(event)
        if step != self.step:
            self._finish()
            self.step, self.begun = step, time.perf_counter()
        self.progress.add(event)
        if event.message and self.verbose:
            self._print(event.message)

    def _draw(self) -> Table | Text:
        """The running stage and the time since the start; a bar where there is room for one."""
        if self.progress.event is None and not self.reports:
            return Text()
        clock = f" · {format_clock(self.progress.seconds)}"
        text = self.progress.describe(self.console.width - len(clock) - 1) + clock
        cells: list[RenderableType] = [Text(text, no_wrap=True, overflow="ellipsis")]
        event, room = self.progress.event, self.console.width - len(text) - 2
        if event is not None and event.total is not None and event.total > 1 and self.console.width >= BAR_FROM:
            cells.append(ProgressBar(total=event.total, completed=event.done, width=min(16, room)))
        line = Table.grid(padding=(0, 1, 0, 0))
        line.add_row(*cells)
        return line

    def _print(self, text: str) -> None:
        _OPEN_LINE.close()
        # As Text: a str would be read as markup, and "[/x]" in a name is an error there.
        self.console.print(Text(escape_controls(text)), soft_wrap=True)

    def _finish(self) -> None:
        """Turn the running step into one line; what took no time is not worth one."""
        seconds = time.perf_counter() - self.begun
        if self.step is not None and seconds > SHORTEST_STEP and not _OPEN_LINE.end(self.step, f" {seconds:.1f} s"):
            self._print(f"{self.step}: {seconds:.1f} s")

    def _beat(self) -> None:
        """Where no line can be replaced: begin the line of a long stage and add dots to it."""
        while not self._ended.wait(BEAT):
            step = self.step
            if step is not None and time.perf_counter() - self.begun > SHORTEST_STEP:
                _OPEN_LINE.grow(self.console, step)


class _OpenLine:
    """The line of a running stage in a pipe or log; anything else that is printed ends it first."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.stage: str | None = None
        self.console: Console | None = None

    def grow(self, console: Console, stage: str) -> None:
        """Begin the line of a stage, or add a dot to it."""
        with self.lock:
            if self.stage != stage:
                self.close()
                self.stage, self.console = stage, console
                console.file.write(f"{escape_controls(stage)}: ")
            console.file.write(".")
            console.file.flush()

    def end(self, stage: str, text: str) -> bool:
        """End the line of a stage with a text; whether it was open."""
        with self.lock:
            if self.stage != stage or self.console is None:
                return False
            self.console.file.write(text)
            self.close()
            return True

    def close(self) -> None:
        """End the open line, if there is one."""
        with self.lock:
            if self.console is not None:
                self.console.file.write("\n")
                self.console.file.flush()
            self.stage = self.console = None


_OPEN_LINE = _OpenLine()


class _EscapedTable(Table):
    """A table whose cells hold no control characters."""

    def add_row(self, *cells: Any, **settings: Any) -> None:
        super().add_row(*(escape_controls(cell) if isinstance(cell, str) else cell for cell in cells), **settings)


def make_table(*words: str, numbers: tuple[str, ...] = ()) -> Table:
    """A table without lines, whose cells are folded where a terminal is too narrow, not cut.

    Args:
        *words: Headers of left-aligned columns.
        numbers: Headers of right-aligned columns, after them.
    """
    table = _EscapedTable(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in words:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", overflow="fold")
    return table


def make_frame_table(frame: pl.DataFrame) -> Table:
    """A frame as a table with all rows and columns, numbers with four digits and lists as their length."""
    table = make_table()
    for name, kind in frame.schema.items():
        table.add_column(name, justify="right" if kind.is_numeric() else "left", overflow="fold")
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


# With the styles that begin and end there.
_LINE_END = re.compile(r"(?: |\x1b\[[0-9;]*m)+$", re.MULTILINE)


def print_table(table: Table) -> None:
    """Print a table without blanks at the ends of lines, which wrap where a notebook or a log is narrower.

    In full width if stdout is no terminal, so that no cell of a log is cut.
    """
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 10_000
        console.width = console.measure(table).maximum
    with console.capture() as capture:
        console.print(table)
    print(_LINE_END.sub(lambda end: end[0].replace(" ", ""), capture.get()), end="")
