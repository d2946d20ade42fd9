"""A widget that leaves its figures and tables in the notebook's file."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets

from trtkit.display import bundle
from trtkit.widgets.style import STYLE

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Saved"]

QUIET = 1.5
"""Seconds after a change until the output is renewed, so that a slider that is dragged renews it once."""


class Saved(ipywidgets.VBox):
    """A widget with an ordinary output beside it, unseen while the widget lives.

    A widget is nothing without its kernel; the output is part of the notebook's file. A style in the widget hides it,
    so that it comes to light only where the widget can't be shown: in a saved notebook that is opened again, and in a
    page exported from it. It is renewed as the widget goes on; `trtkit.widgets.still` does the same for widgets whose
    figures do not change. plotly.js lies in an output of its own, which is never renewed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._name = f"trtkit-still-{uuid.uuid4().hex[:12]}"
        self._displayed = self._due = False
        style = f"<style>.{self._name} {{ display: none; }}</style>"
        self.hidden = ipywidgets.HTML(style, layout=ipywidgets.Layout(display="none"))

    def still(self) -> Sequence[go.Figure | str]:
        """Figures and HTML in the order to show them."""
        raise NotImplementedError

    def still_html(self) -> str:
        """`still` as one piece of HTML; the library that draws its figures lies beside it."""
        parts = [
            part if isinstance(part, str) else str(bundle(part, library=False)["text/html"]) for part in self.still()
        ]
        return f"<div class='{self._name}'><style>{STYLE}</style><div class='trtkit'>{''.join(parts)}</div></div>"

    def renew(self) -> None:
        """Renew the output soon, if there is one."""
        if not self._displayed or self._due:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._renew()
            return
        self._due = True
        loop.call_later(QUIET, self._renew)

    def _renew(self) -> None:
        self._due = False
        self._display(update=True)

    def _display(self, *, update: bool) -> None:
        from IPython.display import display

        whole = {"text/html": self.still_html(), "text/plain": ""}
        display(whole, raw=True, display_id=self._name, update=update)  # type: ignore[no-untyped-call]

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        from IPython.display import display

        from trtkit.display import carried_library

        display({"text/html": carried_library(), "text/plain": ""}, raw=True)  # type: ignore[no-untyped-call]
        self._display(update=False)
        self._displayed = True
        found: dict[str, Any] = dict(super()._repr_mimebundle_(**kwargs) or {})
        # Where the widget can't be shown, the output beside it is; its name in words would be noise.
        return {**found, "text/html": ""}
