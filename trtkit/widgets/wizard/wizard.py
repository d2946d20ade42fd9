"""wizard(): from a model to an engine or ONNX file, its accuracy and latency, and the code that repeats it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets
from markupsafe import Markup

from trtkit.errors import CancelledError, TrtkitError
from trtkit.progress import CancelToken, Progress
from trtkit.recipe import Recipe
from trtkit.widgets.ui.controls import ErrorBox, catch_errors, make_button
from trtkit.widgets.ui.jobs import Job, JobView
from trtkit.widgets.ui.output import StaticOutput, make_accessible, style_widget
from trtkit.widgets.wizard.actions import WizardResult
from trtkit.widgets.wizard.input_steps import ImagesStep, ModelStep, SettingsStep, Step, StepHost, render_reason
from trtkit.widgets.wizard.options import Machine, inspect_machine
from trtkit.widgets.wizard.output_steps import BuildStep, CodePanel, EngineStep, ResultStep
from trtkit.widgets.wizard.state import TITLES, WizardState
from trtkit.widgets.wizard.summary import render_accuracy, render_engine, render_latency

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["Wizard", "wizard"]

INSPECTION_DELAY = 0.7
"""Delay of the machine's inspection, s: its imports would slow the first display of the widget."""

STEP_CLASSES: dict[str, Callable[[StepHost], Step]] = {
    "model": ModelStep,
    "settings": SettingsStep,
    "images": ImagesStep,
    "build": BuildStep,
    "result": ResultStep,
    "engine": EngineStep,
}


def wizard(recipe: Recipe | None = None, *, data: str | Path | None = None) -> Wizard:
    """Export a model step by step: precision and target, images, build, accuracy and latency, code.

    Display the result in a notebook, or call its `run` to do all steps at once.

    Args:
        recipe: Fills the form; None fills it with the embedded model and images.
        data: Evaluation data where the recipe names none: a `data.yaml`, or a folder for classify.

    Returns:
        The widget. Nothing is read or built yet.
    """
    return Wizard(recipe, "" if data is None else str(data))


class Wizard(StaticOutput):
    """The export wizard; made by `wizard`.

    Args:
        recipe: As in `wizard`.
        data: As in `wizard`; "" for none.

    Attributes:
        state: Everything the wizard holds; each change replaces it as a whole.
        steps: The steps that were shown so far, by name.
        tabs: The buttons that lead to them, by name.
        code: The panel with Python and the command line.
        rendering: Whether the controls are being set from the state, so that their changes are no user's.
    """

    def __init__(self, recipe: Recipe | None = None, data: str = "") -> None:
        super().__init__()
        for css_class in ("trtkit", "trtkit-wizard"):
            self.add_class(css_class)
        self.state = WizardState.initial(recipe, data)
        self.rendering = False
        self.error_box = ErrorBox()
        self.guard = catch_errors(self.error_box.show)
        # Without an event loop a job reports its end in its own thread.
        self._lock = threading.RLock()
        self.tabs = {
            name: make_button(
                f"{number} {title}",
                title,
                self.guard(lambda name=name: self.go(name)),
                name=f"step-{name}",
                layout=ipywidgets.Layout(width="auto"),
            )
            for number, (name, title) in enumerate(TITLES.items(), 1)
        }
        self.steps: dict[str, Step] = {}
        self.code = CodePanel()
        self.back = make_button(
            "Back", "The previous step; all settings are kept", self.guard(self._back), name="back", icon="arrow-left"
        )
        self.next = make_button("Next", "The next step", self.guard(self._next), name="next", icon="arrow-right")
        self.reason = ipywidgets.HTML()
        self.reason.add_class("trtkit-why")
        self._page = ipywidgets.VBox()
        self._page.add_class("trtkit-page")
        tab_row = ipywidgets.HBox(list(self.tabs.values()), layout=ipywidgets.Layout(flex_flow="row wrap"))
        tab_row.add_class("trtkit-steps")
        buttons = ipywidgets.HBox([self.back, self.next, self.reason], layout=ipywidgets.Layout(align_items="center"))
        self.children = (
            style_widget(),
            self.hiding_style,
            make_accessible(),
            tab_row,
            self._page,
            self.error_box,
            buttons,
            self.code,
        )
        self.render()
        self._inspection: Job[Machine] = Job("the machine's inspection", on_state=self._on_inspection)
        self._inspect_now = threading.Event()
        self._inspection.start(_inspect_machine, self._inspect_now)

    def update(self, change: Callable[[WizardState], WizardState]) -> None:
        """Replace the state and render the new one; an error is shown, and the state stays.

        Args:
            change: From the current state to the new one.
        """
        self.guard(self._update)(change)

    def _update(self, change: Callable[[WizardState], WizardState]) -> None:
        with self._lock:
            self.state = change(self.state)
            self.render()

    def go(self, step: str) -> None:
        """Enter a step.

        Args:
            step: One of `state.STEPS`.

        Raises:
            RecipeError: The step can't be entered yet.
        """
        with self._lock:
            entered = step != self.state.step
            self.state = self.state.go(step)
        if entered and step == "engine":
            self.code.toggle.value = True
        self.render()
        self.refresh_static()

    def _back(self) -> None:
        if self.state.previous_step is not None:
            self.go(self.state.previous_step)

    def _next(self) -> None:
        if self.state.next_step is not None:
            self.go(self.state.next_step)

    def page(self, step: str) -> Step:
        """The page of a step, made on first use: pages that are not shown are not sent to the browser.

        Args:
            step: One of `state.STEPS`.
        """
        if step not in self.steps:
            self.steps[step] = STEP_CLASSES[step](self)
        return self.steps[step]

    # Jobs

    @property
    def busy(self) -> str:
        """Why no job can be started now; "" where one can."""
        views: list[JobView] = [step.view for step in self.steps.values() if hasattr(step, "view")]
        running = next((view.job for view in views if view.job.running), None)
        return f"{running.name[:1].upper()}{running.name[1:]} is running." if running is not None else ""

    def start_job(self, view: JobView, call: Callable[..., Any], /, *arguments: Any, **settings: Any) -> None:
        """Start a job, unless another one runs.

        Args:
            view: The view that shows it.
            call: The function to call.
            *arguments: Its arguments.
            **settings: Its keyword arguments.

        Raises:
            TrtkitError: Another job is running.
        """
        if self.busy:
            raise TrtkitError(
                f"start {view.job.name}",
                self.busy.rstrip(".").lower(),
                "wait for it, or cancel it first",
                code="job-running",
                name=view.job.name,
            )
        view.start(call, *arguments, **settings)
        self.render()

    def finish_job(self, job: Job[Any], change: Callable[[WizardState, Any], WizardState]) -> None:
        """Put the result of a job into the state; the job's view shows its error.

        Args:
            job: The ended job.
            change: From the state and the result to the new state.
        """
        self.update(lambda state: change(state, job.result) if job.state == "done" else state)
        if job.state == "done":
            self.guard(self.refresh_static)()

    def _on_inspection(self, job: Job[Machine]) -> None:
        if job.state == "failed":
            self.error_box.show(job.error)
        elif job.state == "done" and job.result is not None:
            machine = job.result
            self.update(lambda state: state.with_machine(machine))

    # Rendering

    def render(self) -> None:
        """Set every control from the state."""
        with self._lock:
            self.rendering = True
            try:
                self._render(self.state)
            finally:
                self.rendering = False

    def _render(self, state: WizardState) -> None:
        for name, title in TITLES.items():
            tab, reason, is_current = self.tabs[name], state.blocked(name), name == state.step
            tab.disabled, tab.tooltip = bool(reason), reason or title
            tab.icon = "check" if name in state.finished_steps else ""
            tab.button_style = "primary" if is_current else ""
            (tab.add_class if is_current else tab.remove_class)("trtkit-current")
        step = self.page(state.step)
        step.show(state)
        if self._page.children != (step,):
            self._page.children = (step,)
        reason = state.blocked(state.next_step) if state.next_step is not None else ""
        self.back.disabled = state.previous_step is None
        self.next.disabled = state.next_step is None or bool(reason)
        # The step's own button is highlighted until the step is finished, then Next.
        button = step.main_button if step.main_button is not None and not step.main_button.disabled else None
        is_ready = button is None or state.step in state.finished_steps
        self.next.button_style = "primary" if is_ready and not self.next.disabled else ""
        if button is not None:
            button.button_style = "" if is_ready else "primary"
        self.reason.value = render_reason(reason or self.busy)
        self.code.show(state)

    def static_parts(self) -> Sequence[Figure | str]:
        """The built file, accuracy and latency with their figures, and the code."""
        built, measurement = self.state.built, self.state.measurement
        parts: list[Figure | str] = [
            Markup("<h3>Export wizard</h3>"),
            render_engine(None if built is None else built.artifact, self.state.outdated),
        ]
        if built is not None and measurement is not None:
            losses_figure, latency_figure = measurement.figures
            parts.append(render_accuracy(measurement, built.artifact.precision))
            parts += [losses_figure] if losses_figure is not None else []
            parts += [render_latency(measurement), *([] if latency_figure is None else [latency_figure])]
        return [*parts, self.code.python.value, self.code.command.value]

    # Without clicking

    def ready(self) -> None:
        """Wait until this machine was inspected."""
        self._inspect_now.set()
        self._inspection.wait()

    def run(self) -> WizardResult:
        """Do all steps at once: read, examine, build, measure. In a notebook the widget is displayed and shows them.

        Returns:
            The file, its comparison with FP32, its latency and the findings about the calibration images.

        Raises:
            TrtkitError: From the step that failed; the results of earlier steps stay in `state`.
            CancelledError: Cancel was pressed.
            KeyboardInterrupt: The user interrupted; the running step was cancelled.
        """
        self.display_in_kernel()
        self.ready()
        for name in ("model", "images", "build", "result"):
            if name == "images" and self.state.examine_problem:
                continue
            self.go(name)
            step: Any = self.page(name)
            step.start()
            job = step.view.job
            job.wait()
            if job.error is not None:
                raise job.error
            if job.state == "cancelled":
                raise CancelledError(job.name)
        self.go("engine")
        built, measurement, examination = self.state.built, self.state.measurement, self.state.examination
        assert built is not None
        assert measurement is not None
        return WizardResult(
            artifact=built.artifact,
            comparison=measurement.comparison,
            timing=measurement.timing,
            diagnosis=None if examination is None or self.state.examine_problem else examination.diagnosis,
        )


def _inspect_machine(now: threading.Event, *, progress: Progress, cancel: CancelToken) -> Machine:
    now.wait(INSPECTION_DELAY)
    return inspect_machine()
