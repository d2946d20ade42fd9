"""One of several as a column of buttons, which unlike a stock drop-down can show what can't be chosen, and why."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence

import ipywidgets

from trtkit.widgets.choices import Choice

__all__ = ["ChoiceGroup"]

CHOSEN, OPEN, CLOSED = "dot-circle-o", "circle-o", "ban"


class ChoiceGroup(ipywidgets.VBox):
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

    def show(self, choices: Sequence[Choice], value: str) -> None:
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
            button.icon = CLOSED if not choice.possible else CHOSEN if here else OPEN
            if button.value != here:
                button.value = here
            reason = f" <span class='trtkit-reason'>Not here: {html.escape(choice.reason)}.</span>"
            words.value = f"<span>{html.escape(choice.told)}{reason if choice.reason else ''}</span>"

    def _make(self, choices: Sequence[Choice]) -> None:
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
