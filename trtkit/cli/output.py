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

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from trtkit.errors import TrtkitError
from trtkit.progress import Event

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

SHORTEST = 0.2
"""Seconds below which a stage gets no line."""

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
    """A progress callback: on a terminal a line per finished stage and a bar for the running one, else lines of text.

    Neither is silent for more than `BEAT` seconds: the terminal's clocks tick, and a line of text grows by dots. A
    context manager, which restores the terminal.

    Args:
        console: The console to draw on; None uses stderr, so that stdout has results only.
        quiet: Show nothing.
        verbose: Also print the log lines of the steps.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet, self.verbose = quiet, verbose
        self.console = console or Console(stderr=True)
        self.stage: str | None = None
        self.begun = self.started = time.perf_counter()
        self.bars = Progress(
            TextColumn("{task.description:<24}", markup=False),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[whole]} in all"),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
            transient=True,
        )
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self.bars.start()
        if not self.quiet:
            threading.Thread(target=self._beat, name="trtkit progress", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if error is None:
            self._finish()
        self.bars.stop()
        _OPEN_LINE.close()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if self.quiet:
            return
        if event.stage != self.stage:
            self._finish()
            self.stage, self.begun = event.stage, time.perf_counter()
            self.task = self.bars.add_task(escape_controls(event.stage), total=event.total, whole=self._whole())
        self.bars.update(self.task, completed=event.done, total=event.total, whole=self._whole())
        if event.message and self.verbose:
            self._print(event.message)

    def _whole(self) -> str:
        """The time since the start."""
        minutes, seconds = divmod(int(time.perf_counter() - self.started), 60)
        return f"{minutes}:{seconds:02}"

    def _print(self, text: str) -> None:
        _OPEN_LINE.close()
        # As Text: a str would be read as markup, and "[/x]" in a name is an error there.
        self.bars.console.print(Text(escape_controls(text)), soft_wrap=True)

    def _finish(self) -> None:
        """Turn the running stage into one line; what took no time is not worth one."""
        if self.stage is None:
            return
        seconds = time.perf_counter() - self.begun
        if self.console.is_terminal:
            self.bars.remove_task(self.task)
        if seconds > SHORTEST and not _OPEN_LINE.end(self.stage, f" {seconds:.1f} s"):
            self._print(f"{self.stage}: {seconds:.1f} s")
        self.stage = None

    def _beat(self) -> None:
        """Update the overall clock on a terminal; elsewhere begin the line of a long stage and add dots to it."""
        while not self._ended.wait(1.0 if self.console.is_terminal else BEAT):
            stage = self.stage
            if self.console.is_terminal:
                for task in self.bars.tasks:
                    self.bars.update(task.id, whole=self._whole())
            elif stage is not None and time.perf_counter() - self.begun > SHORTEST:
                _OPEN_LINE.grow(self.console, stage)


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
