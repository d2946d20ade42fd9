"""Tables on a terminal, in a pipe and in a log."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

__all__ = ["columns", "print_table"]


def columns(*words: str, numbers: tuple[str, ...] = ()) -> Table:
    """A table without lines: `words` stand left, `numbers` right."""
    table = Table(*words, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def print_table(table: Table) -> None:
    """Print a table as wide as it is, where nothing is a terminal; a cut table is lost in a log."""
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 10_000
        console.width = console.measure(table).maximum
    console.print(table)
