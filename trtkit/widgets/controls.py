"""Stock ipywidgets with a label, a tooltip and a class that styles and browser tests can name."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any, TypeVar

import ipywidgets

from trtkit.widgets.faults import fault_html

__all__ = ["Fault", "button", "labelled", "note_html"]

W = TypeVar("W")

LABEL = "11rem"


def labelled(kind: Callable[..., W], label: str, tooltip: str, *, name: str, **traits: Any) -> W:
    """A stock control with its label beside it.

    Args:
        kind: Such as `ipywidgets.Dropdown`.
        label: Its name, shown.
        tooltip: What it does, shown on hover and read by screen readers.
        name: Gives the class `trtkit-<name>`.
        **traits: Passed on.
    """
    traits.setdefault("layout", ipywidgets.Layout(width="min(34rem, 100%)"))
    traits.setdefault("style", {"description_width": LABEL})
    control: Any = kind(description=label, tooltip=tooltip, **traits)
    control.add_class(f"trtkit-{name}")
    made: W = control
    return made


def button(label: str, tooltip: str, clicked: Callable[[], Any], *, name: str, **traits: Any) -> ipywidgets.Button:
    """A button that calls `clicked()`.

    Args:
        label: What it says.
        tooltip: What it does.
        clicked: Called with nothing.
        name: Gives the class `trtkit-<name>`.
        **traits: Passed on.
    """
    made = ipywidgets.Button(description=label, tooltip=tooltip, **traits)
    made.add_class(f"trtkit-{name}")
    made.on_click(lambda _: clicked())
    return made


SIGNS = {"note": "i", "warning": "!", "problem": "✕", "good": "✓"}


def note_html(text: str, *, kind: str = "note", detail: str = "") -> str:
    """A sentence in a box, its kind told by a sign and a colour.

    Args:
        text: The sentence.
        kind: "note", "warning", "problem" or "good".
        detail: A second, quieter sentence.
    """
    more = f"<p class='trtkit-soft'>{html.escape(detail)}</p>" if detail else ""
    return (
        f"<div class='trtkit-note {kind}'><span class='trtkit-sign' title='{kind}'>{SIGNS[kind]}</span>"
        f"<div><p>{html.escape(text)}</p>{more}</div></div>"
    )


class Fault(ipywidgets.HTML):
    """Where a widget shows the last error, or nothing; `show` is what `guarded` wants."""

    def __init__(self) -> None:
        super().__init__(layout=ipywidgets.Layout(display="none"))
        self.add_class("trtkit-error")

    def show(self, error: BaseException | None) -> None:
        """Show an error, or clear it."""
        self.value = "" if error is None else fault_html(error)
        self.layout.display = "none" if error is None else ""
