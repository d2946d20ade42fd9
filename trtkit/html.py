"""HTML by jinja2 templates with autoescape: one environment for the package, and polars frames as tables."""

from __future__ import annotations

import dataclasses
import functools
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2
    import polars as pl
    from markupsafe import Markup

__all__ = ["MAX_ROWS", "TableView", "asset", "asset_bytes", "facts_html", "render", "script_json", "table_html"]

MAX_ROWS = 200
"""Rows of a table unless more are asked for; a layer table of a large model has a few hundred."""

_PACKAGE = Path(__file__).resolve().parent


def render(template: str, **values: Any) -> Markup:
    """Render one of the package's templates; every value is escaped unless it is `Markup`.

    Args:
        template: Path inside the package, e.g. "comparison/templates/report.html.j2".
        **values: What the template names.

    Returns:
        HTML that other templates do not escape again.
    """
    from markupsafe import Markup

    return Markup(_environment().get_template(template).render(**values))


def asset(path: str) -> str:
    """The text of a `.js` or `.css` file of the package.

    Args:
        path: Path inside the package, e.g. "plotting/plotly_loader.js".
    """
    return asset_bytes(path).decode()


def asset_bytes(path: str) -> bytes:
    """The content of a file of the package.

    Args:
        path: Path inside the package.
    """
    return (_PACKAGE / path).read_bytes()


def script_json(value: Any) -> Markup:
    """JSON for a `<script>` element: `<`, `>` and `&` are written as escapes, so that no value can end the script.

    Args:
        value: Anything JSON-ready; a str is taken as JSON text already.
    """
    from markupsafe import Markup

    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def table_html(
    frame: pl.DataFrame,
    *,
    caption: str = "",
    headings: Mapping[str, str] | None = None,
    digits: Mapping[str, int] | None = None,
    limit: int = MAX_ROWS,
    row_classes: Mapping[int, str] | None = None,
) -> Markup:
    """A frame as an HTML table: numbers to the right, text to the left.

    Args:
        frame: The rows.
        caption: A line above the table.
        headings: Readable names of columns; the others keep theirs.
        digits: Decimals of float columns; the others show four significant digits.
        limit: Largest number of rows; a line below the table states how many are left out.
        row_classes: CSS classes of rows, by index.
    """
    headings, digits, row_classes = headings or {}, digits or {}, row_classes or {}
    columns = [
        {"heading": headings.get(name, name), "number": kind.is_numeric()} for name, kind in frame.schema.items()
    ]
    rows = [
        {
            "css": row_classes.get(index, ""),
            "cells": [_format(value, digits.get(name)) for name, value in zip(frame.columns, row, strict=True)],
        }
        for index, row in enumerate(frame.head(limit).iter_rows())
    ]
    omitted = max(0, len(frame) - limit)
    return render("templates/table.html.j2", caption=caption, columns=columns, rows=rows, omitted=omitted)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TableView:
    """A frame shown in a notebook as a table for reading: text without quotes, no data types, "–" for null.

    Attributes:
        frame: The rows.
        limit: Largest number of rows shown.
    """

    frame: pl.DataFrame
    limit: int = 40

    def _repr_html_(self) -> Markup:
        return table_html(self.frame, limit=self.limit)

    def __repr__(self) -> str:
        return str(self.frame)


def facts_html(facts: Mapping[str, Any], *, caption: str = "") -> Markup:
    """Names and values as a two-column table; None and "" are left out.

    Args:
        facts: Values by readable name.
        caption: A line above the table.
    """
    rows = {name: _format(value, None) for name, value in facts.items() if value not in (None, "")}
    return render("templates/facts.html.j2", caption=caption, rows=rows)


def _format(value: Any, digits: int | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        # A loss that rounds to nothing has no sign: "-0.0000" reads as one.
        return f"{round(value, digits) + 0.0:.{digits}f}" if digits is not None else f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PACKAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["script_json"] = script_json
    environment.globals["unique_name"] = lambda: f"trtkit-{uuid.uuid4().hex[:12]}"
    environment.globals["asset"] = lambda path: Markup(asset(path))
    return environment
