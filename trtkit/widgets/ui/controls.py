"""Stock ipywidgets with a label, a tooltip and a class that styles and browser tests can name."""

from __future__ import annotations

import dataclasses
import functools
import html
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import ipywidgets

from trtkit.errors import TrtkitError

__all__ = [
    "NARROW_WIDTH",
    "SHORT_LABEL",
    "WRAPPED_ROW",
    "Collapsible",
    "ErrorBox",
    "Option",
    "OptionGroup",
    "Panel",
    "catch_errors",
    "format_error",
    "half_width",
    "has_changed",
    "make_button",
    "make_control",
    "render_error",
    "render_note",
]


# Errors in a widget: one sentence, with the traceback folded below it.


def format_error(error: BaseException) -> str:
    """What went wrong, in one sentence.

    Args:
        error: An error of trtkit says itself what was asked, found and what to do; any other one is named.
    """
    if isinstance(error, TrtkitError):
        text = str(error)
        return text[:1].upper() + text[1:]
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0] if first else 'no message'}"


def render_error(error: BaseException) -> str:
    """The sentence and, folded, the traceback; HTML for an `ipywidgets.HTML`.

    Args:
        error: What was raised.
    """
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return (
        "<div class='trtkit-fault' role='alert'><span class='trtkit-sign' aria-hidden='true'>✕</span>"
        f"<div><p><b>Error.</b> {html.escape(format_error(error))}</p>"
        f"<details><summary>Traceback</summary><pre>{html.escape(trace)}</pre></details></div></div>"
    )


def catch_errors(show: Callable[[BaseException | None], None]) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Make a callback that shows what it raises, instead of losing it in the kernel's log.

    Args:
        show: Receives None before each call, which clears what was shown, and the error after a failed one.

    Returns:
        A decorator. An interrupt ends the callback and is shown like an error, so that no half-done state is hidden.
    """

    def decorate(callback: Callable[..., Any]) -> Callable[..., None]:
        @functools.wraps(callback)
        def call(*arguments: Any, **settings: Any) -> None:
            show(None)
            try:
                callback(*arguments, **settings)
            except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  (shown to the user, traceback and all)
                show(error)

        return call

    return decorate


W = TypeVar("W")

LABEL_WIDTH = "11rem"


def make_control(kind: Callable[..., W], label: str, tooltip: str, *, name: str, **traits: Any) -> W:
    """A stock control with its label beside it.

    Args:
        kind: Such as `ipywidgets.Dropdown`.
        label: Its name, shown.
        tooltip: What it does, shown on hover and read by screen readers.
        name: Gives the class `trtkit-<name>`.
        **traits: Passed on.
    """
    traits.setdefault("layout", ipywidgets.Layout(width="min(34rem, 100%)"))
    traits.setdefault("style", {"description_width": LABEL_WIDTH})
    control: Any = kind(description=label, tooltip=tooltip, **traits)
    control.add_class(f"trtkit-{name}")
    made: W = control
    return made


def make_button(label: str, tooltip: str, clicked: Callable[[], Any], *, name: str, **traits: Any) -> ipywidgets.Button:
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


ICONS = {"note": "i", "warning": "!", "problem": "✕", "good": "✓"}


def render_note(text: str, *, kind: str = "note", detail: str = "") -> str:
    """A sentence in a box, its kind told by a sign and a color.

    Args:
        text: The sentence.
        kind: "note", "warning", "problem" or "good".
        detail: A second, quieter sentence.
    """
    more = f"<p class='trtkit-soft'>{html.escape(detail)}</p>" if detail else ""
    return (
        f"<div class='trtkit-note {kind}'><span class='trtkit-sign' title='{kind}'>{ICONS[kind]}</span>"
        f"<div><p>{html.escape(text)}</p>{more}</div></div>"
    )


class ErrorBox(ipywidgets.HTML):
    """Where a widget shows the last error, or nothing; `show` is what `catch_errors` wants."""

    def __init__(self) -> None:
        super().__init__(layout=ipywidgets.Layout(display="none"))
        self.add_class("trtkit-error")

    def show(self, error: BaseException | None) -> None:
        """Show an error, or clear it."""
        self.value = "" if error is None else render_error(error)
        self.layout.display = "none" if error is None else ""


# One of several as a column of buttons, which unlike a stock drop-down can show what can't be chosen, and why.


ICON_SELECTED, ICON_UNSELECTED, ICON_UNAVAILABLE = "dot-circle-o", "circle-o", "ban"


class OptionGroup(ipywidgets.VBox):
    """Buttons of which one is down; each says what it means, or why it can't be pressed.

    Args:
        name: Gives the class `trtkit-<name>`, and `trtkit-<name>-<value>` to each button.
        chosen: Called with the value that a user pressed.

    Attributes:
        buttons: Each `ToggleButton` by its value.
        value: What is chosen.
    """

    def __init__(self, name: str, chosen: Callable[[str], object]) -> None:
        super().__init__()
        self.add_class("trtkit-choices")
        self.add_class(f"trtkit-{name}")
        self.name = name
        self.chosen = chosen
        self.value = ""
        self.buttons: dict[str, ipywidgets.ToggleButton] = {}
        self._words: dict[str, ipywidgets.HTML] = {}

    def show(self, choices: Sequence[Option], value: str) -> None:
        """Show these choices with one of them down; the same buttons stay, so that the keyboard's place is kept."""
        if list(self.buttons) != [choice.value for choice in choices]:
            self._make(choices)
        self.value = value
        for choice in choices:
            button, words = self.buttons[choice.value], self._words[choice.value]
            here = choice.value == value
            button.description = choice.label
            button.disabled = not choice.possible
            button.tooltip = f"Not here: {choice.reason}" if choice.reason else choice.told
            button.icon = ICON_UNAVAILABLE if not choice.possible else ICON_SELECTED if here else ICON_UNSELECTED
            if button.value != here:
                button.value = here
            reason = f" <span class='trtkit-reason'>Not here: {html.escape(choice.reason)}.</span>"
            words.value = f"<span>{html.escape(choice.told)}{reason if choice.reason else ''}</span>"

    def _make(self, choices: Sequence[Option]) -> None:
        self.buttons, self._words, rows = {}, {}, []
        for choice in choices:
            button = ipywidgets.ToggleButton(layout=ipywidgets.Layout(width="15.5rem", flex="0 0 auto"))
            button.add_class("trtkit-choice")
            button.add_class(f"trtkit-{self.name}-{choice.value.replace('_', '-')}")
            button.observe(lambda change, value=choice.value: self._pressed(value, change["new"]), "value")
            words = ipywidgets.HTML(layout=ipywidgets.Layout(flex="1 1 auto", min_width="12rem"))
            self.buttons[choice.value], self._words[choice.value] = button, words
            rows.append(ipywidgets.HBox([button, words], layout=ipywidgets.Layout(align_items="center")))
        self.children = rows

    def _pressed(self, value: str, down: bool) -> None:
        if down and value != self.value:
            self.chosen(value)
        elif not down and value == self.value:
            # Pressing what is chosen chooses it again: one is always down.
            self.buttons[value].value = True


# Part of a widget that is folded away until it is asked for; unlike a stock accordion, a keyboard opens it too.


class Collapsible(ipywidgets.VBox):
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


# A part of a widget: it shows states, and tells what its controls chose.


WRAPPED_ROW = {"flex_flow": "row wrap", "grid_gap": "0 1rem", "align_items": "flex-start"}
"""Layout of things beside each other, below each other where there is no room."""

NARROW_WIDTH = "min(26rem, 100%)"
"""Width of a control that stands beside others."""

SHORT_LABEL = {"description_width": "6rem"}
"""Style of a control with a short label."""

S = TypeVar("S")


def half_width() -> ipywidgets.Layout:
    """The layout of one of two halves."""
    return ipywidgets.Layout(flex="1 1 24rem", min_width="0")


class Panel(ipywidgets.VBox, Generic[S]):
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

    def on_change(self, call: Callable[..., Any]) -> Callable[[Any], None]:
        """An observer that passes a control's new value on, unless it was set here."""

        def observe(change: Any) -> None:
            if not self.quiet:
                call(change["new"])

        return observe


def has_changed(state: S, before: S | None, *names: str) -> bool:
    """Whether any of these attributes changed; they are compared by identity where equality would look inside."""
    return before is None or any(getattr(state, name) is not getattr(before, name) for name in names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """One of several things to choose from.

    Attributes:
        value: What is chosen.
        label: Its name, short enough for a button.
        told: What it means, in a line.
        reason: Why it can't be chosen; "" where it can.
    """

    value: str
    label: str
    told: str = ""
    reason: str = ""

    @property
    def possible(self) -> bool:
        """Whether it can be chosen."""
        return not self.reason
