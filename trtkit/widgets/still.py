"""What a saved notebook keeps of a widget: an ordinary output beside it, unseen while the widget lives."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import ipywidgets

from trtkit.display import bundle, library_html
from trtkit.widgets.style import STYLE

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Still"]


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
    return str(bundle(figure, library=False)["text/html"])
