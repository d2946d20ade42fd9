"""Tables on a terminal, in a pipe and in a log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import polars as pl

__all__ = ["columns", "frame_table", "print_table"]


def columns(*words: str, numbers: tuple[str, ...] = ()) -> Table:
    """A table without lines: `words` stand left, `numbers` right."""
    table = Table(*words, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def frame_table(frame: pl.DataFrame) -> Table:
    """A frame as a table: every row and column, numbers to four digits, lists as how many they hold."""
    table = columns()
    for name, kind in frame.schema.items():
        table.add_column(name, justify="right" if kind.is_numeric() else "left")
    for row in frame.iter_rows():
        table.add_row(*map(_spelled, row))
    return table


def _spelled(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(len(value)) if isinstance(value, list) else str(value)


def print_table(table: Table) -> None:
    """Print a table as wide as it is, where nothing is a terminal; a cut table is lost in a log."""
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 10_000
        console.width = console.measure(table).maximum
    console.print(table)
