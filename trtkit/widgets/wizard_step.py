"""A step of the wizard, and what it may ask of the wizard around it."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any, Protocol

import ipywidgets

from trtkit.widgets.controls import note_html
from trtkit.widgets.job_view import JobView
from trtkit.widgets.jobs import Job
from trtkit.widgets.session import Session

__all__ = ["SHORT", "WIDE", "Desk", "Step", "said_html"]

# A mapping, of which every control makes a layout of its own: one that is shared would be hidden by all.
WIDE = {"width": "100%", "max_width": "46rem"}
SHORT = {"width": "22rem"}


class Desk(Protocol):
    """What a step needs of the wizard around it."""

    session: Session
    showing: bool

    def guard(self, callback: Callable[..., Any]) -> Callable[..., None]:
        """A callback that shows what it raises."""

    def update(self, change: Callable[[Session], Session]) -> None:
        """Replace the state and show the new one."""

    def begin(self, view: JobView, call: Callable[..., Any], /, *arguments: Any, **settings: Any) -> None:
        """Start a job, unless another one runs."""

    def finish(self, job: Job[Any], change: Callable[[Session, Any], Session]) -> None:
        """Take in what a job ended with."""

    @property
    def busy(self) -> str:
        """Why no job can be started now; "" where one can."""


class Step(ipywidgets.VBox):
    """One step: its heading, its controls, and `show`, which makes them say what the state says.

    Args:
        desk: The wizard.
        name: Its key in `session.STEPS`.
        title: What is to be done.
        told: Why, in a sentence or two.
    """

    act: ipywidgets.Button | None = None
    """The button that does the step's work, in a step that has any."""

    def __init__(self, desk: Desk, name: str, title: str, told: str) -> None:
        super().__init__()
        self.desk = desk
        self.add_class(f"trtkit-page-{name}")
        words = f"<h3>{html.escape(title)}</h3><p class='trtkit-soft'>{html.escape(told)}</p>"
        self.heading = ipywidgets.HTML(words)

    def show(self, session: Session) -> None:
        """Show a state."""
        raise NotImplementedError

    def fills(
        self, control: ipywidgets.ValueWidget, field: str, read: Callable[[Any], Any] = lambda value: value
    ) -> None:
        """Let a control fill in a field of the form.

        Args:
            control: Anything with a `value`.
            field: Of `Plan`.
            read: From the control's value to the field's.
        """

        def changed(change: dict[str, Any]) -> None:
            if not self.desk.showing:
                self.desk.update(lambda session: session.fill(**{field: read(change["new"])}))

        control.observe(changed, "value")


def said_html(*said: Any) -> str:
    """Sentences of `account` as boxes."""
    return "".join(note_html(one.text, kind=one.kind, detail=one.detail) for one in said)
