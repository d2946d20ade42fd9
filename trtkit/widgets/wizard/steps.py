"""Base class of the wizard's steps, what a step may use of the wizard, and small HTML pieces the steps share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import ipywidgets
from markupsafe import Markup

from trtkit.html import render
from trtkit.widgets.ui.jobs import Job, JobView
from trtkit.widgets.wizard.state import WizardState

__all__ = ["SHORT", "WIDE", "Step", "StepHost", "render_reason"]

# Keyword arguments of a layout, not a layout: a shared one would hide all controls at once.
WIDE = {"width": "100%", "max_width": "46rem"}
SHORT = {"width": "22rem"}


def render_reason(reason: str) -> Markup:
    """Why a control is disabled, as HTML; "" for none."""
    return Markup('<span class="trtkit-reason">{}</span>').format(reason) if reason else Markup("")


class StepHost(Protocol):
    """What a step uses of the wizard."""

    state: WizardState
    rendering: bool

    def guard(self, callback: Callable[..., Any]) -> Callable[..., None]:
        """Wrap a callback so that its errors are shown."""

    def update(self, change: Callable[[WizardState], WizardState]) -> None:
        """Replace the state and render the new one."""

    def start_job(self, view: JobView, call: Callable[..., Any], /, *arguments: Any, **settings: Any) -> None:
        """Start a job, unless another one runs."""

    def finish_job(self, job: Job[Any], change: Callable[[WizardState, Any], WizardState]) -> None:
        """Put the result of a job into the state."""

    @property
    def busy(self) -> str:
        """Why no job can be started now; "" where one can."""


class Step(ipywidgets.VBox):
    """One step: its heading, its controls, and `show`, which sets them from a state.

    Args:
        host: The wizard.
        name: Its key in `state.STEPS`.
        title: The heading.
        description: One or two sentences below the heading.
    """

    main_button: ipywidgets.Button | None = None
    """The button of the step's job, where the step has one."""

    def __init__(self, host: StepHost, name: str, title: str, description: str) -> None:
        super().__init__()
        self.host = host
        self.add_class(f"trtkit-page-{name}")
        self.heading = ipywidgets.HTML(
            render("widgets/wizard/templates/heading.html.j2", title=title, description=description)
        )

    def show(self, state: WizardState) -> None:
        """Set the controls from a state."""
        raise NotImplementedError

    def bind(
        self, control: ipywidgets.ValueWidget, field: str, convert: Callable[[Any], Any] = lambda value: value
    ) -> None:
        """Write a control's value to a field of the form.

        Args:
            control: Anything with a `value`.
            field: A field of `WizardForm`.
            convert: From the control's value to the field's.
        """

        def on_change(change: dict[str, Any]) -> None:
            if not self.host.rendering:
                self.host.update(lambda state: state.fill(**{field: convert(change["new"])}))

        control.observe(on_change, "value")
