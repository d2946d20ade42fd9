"""Controls that the widgets share: labeled ipywidgets, error box, note, option buttons, collapsible section, panel."""

from __future__ import annotations

import dataclasses
import functools
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import ipywidgets

from trtkit.errors import TrtkitError
from trtkit.html import render

if TYPE_CHECKING:
    from markupsafe import Markup

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

LABEL_WIDTH = "11rem"
"""Width of a control's label."""

SHORT_LABEL = {"description_width": "6rem"}
"""Style of a control with a short label."""

NARROW_WIDTH = "min(26rem, 100%)"
"""Width of a control that stands beside others."""

WRAPPED_ROW = {"flex_flow": "row wrap", "grid_gap": "0 1rem", "align_items": "flex-start"}
"""Layout of a row that wraps on narrow pages."""

W = TypeVar("W")
S = TypeVar("S")


def half_width() -> ipywidgets.Layout:
    """Layout of one half of a row."""
    return ipywidgets.Layout(flex="1 1 24rem", min_width="0")


def make_control(control_type: Callable[..., W], label: str, tooltip: str, *, name: str, **traits: Any) -> W:
    """Make an ipywidget with a label, a tooltip and a CSS class.

    Args:
        control_type: An ipywidgets class, such as `ipywidgets.Dropdown`.
        label: The label beside the control.
        tooltip: Shown on hover and read by screen readers.
        name: Adds the CSS class `trtkit-<name>`.
        **traits: Passed to `control_type`.
    """
    traits.setdefault("layout", ipywidgets.Layout(width="min(34rem, 100%)"))
    traits.setdefault("style", {"description_width": LABEL_WIDTH})
    control: Any = control_type(description=label, tooltip=tooltip, **traits)
    control.add_class(f"trtkit-{name}")
    typed: W = control
    return typed


def make_button(
    label: str, tooltip: str, on_click: Callable[[], Any], *, name: str, **traits: Any
) -> ipywidgets.Button:
    """Make a button.

    Args:
        label: The button's text.
        tooltip: Shown on hover and read by screen readers.
        on_click: Called without arguments.
        name: Adds the CSS class `trtkit-<name>`.
        **traits: Passed to `ipywidgets.Button`.
    """
    button = ipywidgets.Button(description=label, tooltip=tooltip, **traits)
    button.add_class(f"trtkit-{name}")
    button.on_click(lambda _: on_click())
    return button


# Errors and notes


def format_error(error: BaseException) -> str:
    """The error as one sentence.

    Args:
        error: A `TrtkitError` is its own sentence; any other error is prefixed with its type.
    """
    if isinstance(error, TrtkitError):
        text = str(error)
        return text[:1].upper() + text[1:]
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def render_error(error: BaseException) -> Markup:
    """The error's sentence with the traceback in a closed `<details>`, as HTML.

    Args:
        error: The raised error.
    """
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return render("widgets/ui/templates/error.html.j2", sentence=format_error(error), trace=trace)


class ErrorBox(ipywidgets.HTML):
    """Shows the last error of a widget; hidden without one."""

    def __init__(self) -> None:
        super().__init__(layout=ipywidgets.Layout(display="none"))
        self.add_class("trtkit-error")

    def show(self, error: BaseException | None) -> None:
        """Show an error; None clears the box."""
        self.value = "" if error is None else render_error(error)
        self.layout.display = "none" if error is None else ""


def catch_errors(show: Callable[[BaseException | None], None]) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Make a decorator that shows a callback's errors, which the kernel would only log.

    Args:
        show: Called with None before the callback and with the error after a failure, as `ErrorBox.show` is.

    Returns:
        The decorator. KeyboardInterrupt is shown like an error.
    """

    def decorate(callback: Callable[..., Any]) -> Callable[..., None]:
        @functools.wraps(callback)
        def call(*arguments: Any, **settings: Any) -> None:
            show(None)
            try:
                callback(*arguments, **settings)
            except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  (shown to the user with its traceback)
                show(error)

        return call

    return decorate


ICONS = {"note": "i", "warning": "!", "problem": "✕", "good": "✓"}


def render_note(text: str, *, kind: str = "note", detail: str = "") -> Markup:
    """A sentence in a box with an icon, as HTML.

    Args:
        text: The sentence.
        kind: "note", "warning", "problem" or "good"; sets icon and color.
        detail: A second sentence in a softer color.
    """
    return render("widgets/ui/templates/note.html.j2", text=text, kind=kind, icon=ICONS[kind], detail=detail)


# Option buttons


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """One option of an `OptionGroup`.

    Attributes:
        value: The value it stands for.
        label: The button's text.
        description: One line beside the button.
        reason: Why it is unavailable; "" where it is available.
    """

    value: str
    label: str
    description: str = ""
    reason: str = ""

    @property
    def available(self) -> bool:
        """Whether it can be selected."""
        return not self.reason


ICON_SELECTED, ICON_UNSELECTED, ICON_UNAVAILABLE = "dot-circle-o", "circle-o", "ban"


class OptionGroup(ipywidgets.VBox):
    """Radio buttons with a description each; unlike `ipywidgets.Dropdown`, unavailable options state their reason.

    Args:
        name: Adds the CSS class `trtkit-<name>`, and `trtkit-<name>-<value>` to each button.
        on_select: Called with the value of the pressed button.

    Attributes:
        buttons: The `ToggleButton` of each value.
        value: The selected value.
    """

    def __init__(self, name: str, on_select: Callable[[str], object]) -> None:
        super().__init__()
        self.add_class("trtkit-options")
        self.add_class(f"trtkit-{name}")
        self.name = name
        self.on_select = on_select
        self.value = ""
        self.buttons: dict[str, ipywidgets.ToggleButton] = {}
        self._descriptions: dict[str, ipywidgets.HTML] = {}

    def show(self, options: Sequence[Option], value: str) -> None:
        """Show options and select one.

        Args:
            options: The options; the buttons are kept where the values are the same, which keeps the keyboard focus.
            value: The selected value.
        """
        if list(self.buttons) != [option.value for option in options]:
            self._make_buttons(options)
        self.value = value
        for option in options:
            button, selected = self.buttons[option.value], option.value == value
            button.description = option.label
            button.disabled = not option.available
            button.tooltip = f"Not available: {option.reason}" if option.reason else option.description
            button.icon = ICON_UNAVAILABLE if not option.available else ICON_SELECTED if selected else ICON_UNSELECTED
            if button.value != selected:
                button.value = selected
            self._descriptions[option.value].value = render("widgets/ui/templates/option.html.j2", option=option)

    def _make_buttons(self, options: Sequence[Option]) -> None:
        self.buttons, self._descriptions, rows = {}, {}, []
        for option in options:
            button = ipywidgets.ToggleButton(layout=ipywidgets.Layout(width="15.5rem", flex="0 0 auto"))
            button.add_class("trtkit-option")
            button.add_class(f"trtkit-{self.name}-{option.value.replace('_', '-')}")
            button.observe(lambda change, value=option.value: self._on_toggle(value, change["new"]), "value")
            description = ipywidgets.HTML(layout=ipywidgets.Layout(flex="1 1 auto", min_width="12rem"))
            self.buttons[option.value], self._descriptions[option.value] = button, description
            rows.append(ipywidgets.HBox([button, description], layout=ipywidgets.Layout(align_items="center")))
        self.children = rows

    def _on_toggle(self, value: str, pressed: bool) -> None:
        if pressed and value != self.value:
            self.on_select(value)
        elif not pressed and value == self.value:
            # One button is always pressed: pressing the selected one selects it again.
            self.buttons[value].value = True


# Collapsible section and panel


class Collapsible(ipywidgets.VBox):
    """A button that shows and hides its children; unlike `ipywidgets.Accordion`, it works by keyboard.

    Args:
        title: The button's text.
        children: The widgets below.
        name: Adds the CSS class `trtkit-<name>`, and `trtkit-<name>-open` to the button.

    Attributes:
        toggle: The button; its value states whether the children are visible.
    """

    def __init__(self, title: str, children: Sequence[ipywidgets.Widget], *, name: str) -> None:
        self.toggle = ipywidgets.ToggleButton(
            description=title, tooltip=f"Show or hide: {title}", layout=ipywidgets.Layout(width="auto")
        )
        for css_class in ("trtkit-collapsible", f"trtkit-{name}-open"):
            self.toggle.add_class(css_class)
        self._body = ipywidgets.VBox(list(children))
        self._body.add_class("trtkit-collapsible-body")
        super().__init__([self.toggle, self._body])
        self.add_class(f"trtkit-{name}")
        self.toggle.observe(lambda change: self._set_open(change["new"]), "value")
        self._set_open(False)

    def _set_open(self, is_open: bool) -> None:
        self._body.layout.display = "" if is_open else "none"
        self.toggle.icon = "caret-down" if is_open else "caret-right"


class Panel(ipywidgets.VBox, Generic[S]):
    """A part of a widget that renders a state; rendering triggers none of its own `on_change` callbacks.

    Args:
        children: Its widgets.
        name: Adds the CSS class `trtkit-<name>`.
    """

    def __init__(self, children: Sequence[ipywidgets.Widget], name: str) -> None:
        super().__init__(children)
        self.add_class(f"trtkit-{name}")
        self._previous: S | None = None
        self._rendering = False

    def render(self, state: S) -> None:
        """Show a state; `_render` redraws what differs from the previous one."""
        self._rendering = True
        try:
            self._render(state, self._previous)
        finally:
            self._rendering = False
        self._previous = state

    def _render(self, state: S, before: S | None) -> None:
        raise NotImplementedError

    def on_change(self, callback: Callable[..., Any]) -> Callable[[Any], None]:
        """An observer that passes a control's new value to `callback`, except while the panel renders."""

        def observe(change: Any) -> None:
            if not self._rendering:
                callback(change["new"])

        return observe


def has_changed(state: S, before: S | None, *names: str) -> bool:
    """Whether any of these attributes is another object than before.

    Args:
        state: The new state.
        before: The previous state; None counts as changed.
        *names: Attributes to compare, by identity: equality of frames would compare their contents.
    """
    return before is None or any(getattr(state, name) is not getattr(before, name) for name in names)
