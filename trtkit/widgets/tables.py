"""polars frames as HTML tables that follow the page's light or dark theme."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

__all__ = ["facts_html", "table_html"]

MOST = 200
"""Rows shown unless asked otherwise; a layer table of a large model has a few hundred."""


def table_html(
    frame: pl.DataFrame,
    *,
    caption: str = "",
    headings: Mapping[str, str] | None = None,
    digits: Mapping[str, int] | None = None,
    most: int = MOST,
    marked: Mapping[int, str] | None = None,
) -> str:
    """A frame as one HTML table; numbers stand right, text left, nothing is cut short but the number of rows.

    Args:
        frame: What to show.
        caption: A line above the table.
        headings: Readable names of columns; the others keep theirs.
        digits: Decimals of a column of floats; the others show four significant digits.
        most: Most rows shown; a line below says how many are left out.
        marked: CSS classes of rows, by index.
    """
    headings, digits, marked = headings or {}, digits or {}, marked or {}
    right = {name for name, kind in frame.schema.items() if kind.is_numeric()}
    head = "".join(
        f"<th scope='col'{_side(name, right)}>{html.escape(headings.get(name, name))}</th>" for name in frame.columns
    )
    rows = []
    for index, row in enumerate(frame.head(most).iter_rows()):
        cells = "".join(
            f"<td{_side(name, right)}>{html.escape(_spelled(value, digits.get(name)))}</td>"
            for name, value in zip(frame.columns, row, strict=True)
        )
        mark = f" class='{html.escape(marked[index], quote=True)}'" if index in marked else ""
        rows.append(f"<tr{mark}>{cells}</tr>")
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    left = len(frame) - most
    more = f"<p class='trtkit-soft'>{left} more rows</p>" if left > 0 else ""
    body = f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f"<div class='trtkit-table'>{body}{more}</div>"


def facts_html(facts: Mapping[str, Any], *, caption: str = "") -> str:
    """Names and values as a two-column table; None and "" are left out.

    Args:
        facts: Values by readable name.
        caption: A line above the table.
    """
    rows = "".join(
        f"<tr><th scope='row'>{html.escape(name)}</th><td>{html.escape(_spelled(value, None))}</td></tr>"
        for name, value in facts.items()
        if value not in (None, "")
    )
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f"<div class='trtkit-table trtkit-facts'><table>{title}<tbody>{rows}</tbody></table></div>"


def _side(name: str, right: set[str]) -> str:
    return " class='trtkit-number'" if name in right else ""


def _spelled(value: Any, digits: int | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.{digits}f}" if digits is not None else f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)
