"""Part of a widget that is folded away until it is asked for; unlike a stock accordion, a keyboard opens it too."""

from __future__ import annotations

from collections.abc import Sequence

import ipywidgets

__all__ = ["Fold"]


class Fold(ipywidgets.VBox):
    """A button that shows and hides what is below it.

    Args:
        title: What is below.
        children: It.
        name: Gives the class `trtkit-<name>`, and `trtkit-<name>-open` to the button.

    Attributes:
        toggle: The button; its value says whether the fold is open.
    """

    def __init__(self, title: str, children: Sequence[ipywidgets.Widget], *, name: str) -> None:
        self.toggle = ipywidgets.ToggleButton(
            description=title, tooltip=f"Show or hide: {title}", layout=ipywidgets.Layout(width="auto")
        )
        for word in ("trtkit-fold", f"trtkit-{name}-open"):
            self.toggle.add_class(word)
        self._body = ipywidgets.VBox(list(children))
        self._body.add_class("trtkit-folded")
        super().__init__([self.toggle, self._body])
        self.add_class(f"trtkit-{name}")
        self.toggle.observe(lambda change: self._show(change["new"]), "value")
        self._show(False)

    def _show(self, opened: bool) -> None:
        self._body.layout.display = "" if opened else "none"
        self.toggle.icon = "caret-down" if opened else "caret-right"
