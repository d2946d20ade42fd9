"""polars frames as HTML tables that follow the page's light or dark theme."""

from __future__ import annotations

import asyncio
import html
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets

from trtkit.plotting.notebook import library_html, mime_bundle

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import polars as pl

__all__ = ["STYLE", "StaticOutput", "Still", "render_facts", "render_table", "style_widget"]

MAX_ROWS = 200
"""Rows shown unless asked otherwise; a layer table of a large model has a few hundred."""


def render_table(
    frame: pl.DataFrame,
    *,
    caption: str = "",
    headings: Mapping[str, str] | None = None,
    digits: Mapping[str, int] | None = None,
    max_rows: int = MAX_ROWS,
    row_classes: Mapping[int, str] | None = None,
) -> str:
    """A frame as one HTML table; numbers stand right, text left, nothing is cut short but the number of rows.

    Args:
        frame: What to show.
        caption: A line above the table.
        headings: Readable names of columns; the others keep theirs.
        digits: Decimals of a column of floats; the others show four significant digits.
        max_rows: Most rows shown; a line below says how many are left out.
        row_classes: CSS classes of rows, by index.
    """
    headings, digits, row_classes = headings or {}, digits or {}, row_classes or {}
    right = {name for name, kind in frame.schema.items() if kind.is_numeric()}
    head = "".join(
        f"<th scope='col'{_side(name, right)}>{html.escape(headings.get(name, name))}</th>" for name in frame.columns
    )
    rows = []
    for index, row in enumerate(frame.head(max_rows).iter_rows()):
        cells = "".join(
            f"<td{_side(name, right)}>{html.escape(_spelled(value, digits.get(name)))}</td>"
            for name, value in zip(frame.columns, row, strict=True)
        )
        mark = f" class='{html.escape(row_classes[index], quote=True)}'" if index in row_classes else ""
        rows.append(f"<tr{mark}>{cells}</tr>")
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    left = len(frame) - max_rows
    more = f"<p class='trtkit-soft'>{left} more rows</p>" if left > 0 else ""
    body = f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f"<div class='trtkit-table'>{body}{more}</div>"


def render_facts(facts: Mapping[str, Any], *, caption: str = "") -> str:
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


# The look of every widget: one ink color taken from the page, everything else mixed from it.


# The ink is what the front end itself writes with: VS Code's, Colab's or JupyterLab's and Notebook's. All grays are
# mixed from it, so that light and dark pages need no second sheet. The accents are Okabe and Ito's, as in the figures.
STYLE = """
.trtkit {
  --trtkit-ink: var(--vscode-foreground, var(--colab-primary-text-color, var(--jp-content-font-color1, CanvasText)));
  --trtkit-page: var(--vscode-editor-background, var(--colab-primary-surface-color, var(--jp-layout-color0, Canvas)));
  --trtkit-soft: color-mix(in srgb, var(--trtkit-ink) 72%, transparent);
  --trtkit-line: color-mix(in srgb, var(--trtkit-ink) 20%, transparent);
  --trtkit-card: color-mix(in srgb, var(--trtkit-ink) 5%, transparent);
  --trtkit-blue: #2b8cc4; --trtkit-vermilion: #d55e00; --trtkit-orange: #e69f00; --trtkit-green: #009e73;
  color: var(--trtkit-ink); font: 14px/1.5 system-ui, sans-serif; max-width: 64rem;
}
.trtkit .widget-html-content, .trtkit .widget-html { color: var(--trtkit-ink); }
.trtkit .widget-html-content { line-height: 1.5; }
.trtkit .widget-label { color: var(--trtkit-ink); }
.trtkit p { margin: .25rem 0; }
.trtkit h3 { font-size: 1.15rem; line-height: 1.3; margin: .2rem 0 .3rem; }
.trtkit summary { cursor: pointer; color: var(--trtkit-soft); font-size: 13px; }
.trtkit h4 { font-size: 1rem; margin: .8rem 0 .2rem; }
.trtkit .trtkit-soft { color: var(--trtkit-soft); }
.trtkit code, .trtkit pre { font-family: var(--jp-code-font-family, ui-monospace, monospace); font-size: 12.5px; }
.trtkit button:focus-visible, .trtkit input:focus-visible, .trtkit select:focus-visible, .trtkit summary:focus-visible {
  outline: 2px solid var(--trtkit-blue); outline-offset: 2px; }
.trtkit-table { overflow-x: auto; margin: .4rem 0; }
.trtkit-table table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; margin: 0; }
.trtkit-table caption { caption-side: top; text-align: left; color: var(--trtkit-soft); padding: .2rem 0; }
.trtkit .trtkit-table table th, .trtkit .trtkit-table table td { text-align: left; vertical-align: top;
  padding: .25rem .8rem .25rem 0;
  border-bottom: 1px solid var(--trtkit-line); background: none; color: var(--trtkit-ink); white-space: normal; }
.trtkit .trtkit-table table th { font-weight: 600; }
.trtkit .trtkit-table table tr { background: none; }
.trtkit .trtkit-facts table th { color: var(--trtkit-soft); font-weight: 400; white-space: nowrap; }
.trtkit .trtkit-table table .trtkit-number { text-align: right; padding-right: 1rem; }
.trtkit .trtkit-table table .trtkit-marked td { font-weight: 600;
  background: color-mix(in srgb, var(--trtkit-orange) 16%, transparent); }
.trtkit-scroll { max-height: 19rem; overflow: auto; }
.trtkit .trtkit-scroll table thead th { position: sticky; top: 0; background: var(--trtkit-page); }
.trtkit-cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)); gap: .9rem; }
.trtkit-cards figure { margin: 0; background: var(--trtkit-card); border-radius: 6px; padding: .5rem; }
.trtkit-cards img { width: 100%; display: block; border-radius: 3px; }
.trtkit-cards figcaption { padding: .35rem .1rem 0; font-size: 13px; }
.trtkit .trtkit-code { background: var(--trtkit-card); border-radius: 4px; padding: .5rem .7rem; margin: .3rem 0;
  overflow: auto; user-select: text; white-space: pre; }
.trtkit .trtkit-reason { color: var(--trtkit-soft); font-style: italic; }
.trtkit-steps { border-bottom: 1px solid var(--trtkit-line); padding-bottom: .4rem; gap: .15rem; }
.trtkit-steps .trtkit-here { font-weight: 600; }
.trtkit-page { padding: .3rem 0 .6rem; }
.trtkit .trtkit-fold { text-align: left; padding: 0 .7rem; font-weight: 600; }
.trtkit .trtkit-fold i { width: 1rem; }
.trtkit-folded { border-left: 2px solid var(--trtkit-line); margin: .2rem 0 .2rem .35rem;
  padding: .2rem .2rem .2rem .8rem; }
.trtkit .trtkit-command .trtkit-code { white-space: pre-wrap; overflow-wrap: anywhere; }
.trtkit-choices { gap: .25rem; }
.trtkit-choices .trtkit-choice { text-align: left; padding-left: .7rem; }
.trtkit-choices .trtkit-choice i { width: 1.2rem; }
.trtkit-choices > div { gap: .7rem; }
.trtkit-fault, .trtkit-note { display: flex; gap: .6rem; border: 1px solid var(--trtkit-line); border-left-width: 4px;
  border-radius: 4px; padding: .4rem .7rem; margin: .4rem 0; background: var(--trtkit-card); }
.trtkit-fault { border-left-color: var(--trtkit-vermilion); }
.trtkit-note { border-left-color: var(--trtkit-blue); }
.trtkit-note.warning { border-left-color: var(--trtkit-orange); }
.trtkit-note.problem { border-left-color: var(--trtkit-vermilion); }
.trtkit-note.good { border-left-color: var(--trtkit-green); }
.trtkit-fault pre { overflow: auto; max-height: 20rem; white-space: pre; background: none; color: var(--trtkit-ink); }
.trtkit-fault > div, .trtkit-note > div { min-width: 0; flex: 1; }
.trtkit-sign { font-weight: 700; width: 1.1rem; text-align: center; flex: none; }
.trtkit .trtkit-log { max-height: 11rem; overflow: auto; margin: .3rem 0; padding: .4rem .6rem;
  background: var(--trtkit-card); border-radius: 4px; white-space: pre-wrap; }
"""


def style_widget() -> ipywidgets.HTML:
    """The style, to be put first into a widget whose box has the class `trtkit`."""
    return ipywidgets.HTML(f"<style>{STYLE}</style>", layout=ipywidgets.Layout(display="none"))


# A widget that leaves its figures and tables in the notebook's file.


REFRESH_DELAY = 1.5
"""Seconds after a change until the output is renewed, so that a slider that is dragged renews it once."""


class StaticOutput(ipywidgets.VBox):
    """A widget with an ordinary output beside it, unseen while the widget lives.

    A widget is nothing without its kernel; the output is part of the notebook's file. A style in the widget hides it,
    so that it comes to light only where the widget can't be shown: in a saved notebook that is opened again, and in a
    page exported from it. It is renewed as the widget goes on; `trtkit.widgets.ui.html` does the same for widgets whose
    figures do not change. plotly.js lies in an output of its own, which is never renewed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._name = f"trtkit-still-{uuid.uuid4().hex[:12]}"
        self._displayed = self._due = False
        style = f"<style>.{self._name} {{ display: none; }}</style>"
        self.hiding_style = ipywidgets.HTML(style, layout=ipywidgets.Layout(display="none"))

    def static_parts(self) -> Sequence[go.Figure | str]:
        """Figures and HTML in the order to show them."""
        raise NotImplementedError

    def static_html(self) -> str:
        """`still` as one piece of HTML; the library that draws its figures lies beside it."""
        parts = [
            part if isinstance(part, str) else str(mime_bundle(part, library=False)["text/html"])
            for part in self.static_parts()
        ]
        return f"<div class='{self._name}'><style>{STYLE}</style><div class='trtkit'>{''.join(parts)}</div></div>"

    def refresh_static(self) -> None:
        """Renew the output soon, if there is one."""
        if not self._displayed or self._due:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._renew()
            return
        self._due = True
        loop.call_later(REFRESH_DELAY, self._renew)

    def _renew(self) -> None:
        self._due = False
        self._display(update=True)

    def _display(self, *, update: bool) -> None:
        from IPython.display import display

        whole = {"text/html": self.static_html(), "text/plain": ""}
        display(whole, raw=True, display_id=self._name, update=update)  # type: ignore[no-untyped-call]

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        from IPython.display import display

        from trtkit.plotting.notebook import library_html_once

        display({"text/html": library_html_once(), "text/plain": ""}, raw=True)  # type: ignore[no-untyped-call]
        self._display(update=False)
        self._displayed = True
        found: dict[str, Any] = dict(super()._repr_mimebundle_(**kwargs) or {})
        # Where the widget can't be shown, the output beside it is; its name in words would be noise.
        return {**found, "text/html": ""}


# What a saved notebook keeps of a widget: an ordinary output beside it, unseen while the widget lives.


class Still:
    """An output below a widget that says the same in plain HTML, and is renewed as the widget goes on.

    A widget is nothing without its kernel; this output is part of the notebook's file. The widget carries a style that
    hides it, so that it comes to light only where the widget can't be shown: in a saved notebook that is opened again,
    and in a page exported from it.

    Args:
        parts: Gives figures and HTML in the order to show them.

    Attributes:
        hidden: The style; a child of the widget.
    """

    def __init__(self, parts: Callable[[], Sequence[go.Figure | str]]) -> None:
        self.parts = parts
        self.name = f"trtkit-still-{uuid.uuid4().hex[:12]}"
        self.shown = False
        style = f"<style>.{self.name} {{ display: none; }}</style>"
        self.hidden = ipywidgets.HTML(style, layout=ipywidgets.Layout(display="none"))
        self._drawn: dict[int, tuple[go.Figure, str]] = {}

    def html(self) -> str:
        """All parts as one piece of HTML that draws itself offline."""
        parts = self.parts()
        figures = [part for part in parts if not isinstance(part, str)]
        # A figure becomes HTML once; the library comes along whatever other cells carry: they may be deleted.
        drawn = {id(one): self._drawn.get(id(one)) or (one, _markup(one)) for one in figures}
        self._drawn = drawn
        whole = "".join(part if isinstance(part, str) else drawn[id(part)][1] for part in parts)
        library = library_html() if figures else ""
        return f"<div class='{self.name}'><style>{STYLE}</style>{library}<div class='trtkit'>{whole}</div></div>"

    def show(self) -> None:
        """Display the output, below which or above which the widget is displayed."""
        self.shown = True
        self._display(update=False)

    def renew(self) -> None:
        """Renew the output, if it was displayed."""
        if self.shown:
            self._display(update=True)

    def _display(self, *, update: bool) -> None:
        from IPython.display import display

        whole = {"text/html": self.html(), "text/plain": ""}
        display(whole, raw=True, display_id=self.name, update=update)  # type: ignore[no-untyped-call]


def _markup(figure: go.Figure) -> str:
    return str(mime_bundle(figure, library=False)["text/html"])
