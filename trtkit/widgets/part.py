"""A part of a widget: it shows states, and tells what its controls chose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import ipywidgets

__all__ = ["NARROW", "ROW", "SHORT", "Part", "differs", "side"]

ROW = {"flex_flow": "row wrap", "grid_gap": "0 1rem", "align_items": "flex-start"}
"""Layout of things beside each other, below each other where there is no room."""

NARROW = "min(26rem, 100%)"
"""Width of a control that stands beside others."""

SHORT = {"description_width": "6rem"}
"""Style of a control with a short label."""

S = TypeVar("S")


def side() -> ipywidgets.Layout:
    """The layout of one of two halves."""
    return ipywidgets.Layout(flex="1 1 24rem", min_width="0")


class Part(ipywidgets.VBox, Generic[S]):
    """A part that shows states; while it does, its controls tell nothing.

    Args:
        children: Its widgets.
        name: Gives the class `trtkit-<name>`.
    """

    def __init__(self, children: Sequence[ipywidgets.Widget], name: str) -> None:
        super().__init__(children)
        self.add_class(f"trtkit-{name}")
        self.shown: S | None = None
        self.quiet = False

    def render(self, state: S) -> None:
        """Show a state: only what differs from the one before is drawn again."""
        self.quiet = True
        try:
            self._render(state, self.shown)
        finally:
            self.quiet = False
        self.shown = state

    def _render(self, state: S, before: S | None) -> None:
        raise NotImplementedError

    def _told(self, call: Callable[..., Any]) -> Callable[[Any], None]:
        """An observer that passes a control's new value on, unless it was set here."""

        def observe(change: Any) -> None:
            if not self.quiet:
                call(change["new"])

        return observe


def differs(state: S, before: S | None, *names: str) -> bool:
    """Whether any of these attributes changed; they are compared by identity where equality would look inside."""
    return before is None or any(getattr(state, name) is not getattr(before, name) for name in names)
