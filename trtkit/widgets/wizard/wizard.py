"""wizard(): from a model to an engine, the proof that it is good enough, and the code that does it again."""

from __future__ import annotations

import html
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets

from trtkit.errors import CancelledError, TrtkitError
from trtkit.progress import CancelToken, Progress
from trtkit.recipe import Recipe
from trtkit.widgets.ui.controls import ErrorBox, catch_errors, make_button
from trtkit.widgets.ui.html import Still, style_widget
from trtkit.widgets.ui.jobs import Job, JobView
from trtkit.widgets.wizard.actions import WizardResult
from trtkit.widgets.wizard.input_steps import ImagesStep, ModelStep, Step, StepHost
from trtkit.widgets.wizard.options import Machine, inspect_machine
from trtkit.widgets.wizard.output_steps import (
    BuildStep,
    ChoicesStep,
    CodePanel,
    EngineStep,
    ResultStep,
    render_engine,
    render_result,
)
from trtkit.widgets.wizard.state import TITLES, WizardState

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["Wizard", "wizard"]

PAUSE = 0.7
"""How long the look at this machine lets the page come up first, s."""

PAGES: dict[str, Callable[[StepHost], Step]] = {
    "model": ModelStep,
    "choices": ChoicesStep,
    "images": ImagesStep,
    "build": BuildStep,
    "result": ResultStep,
    "engine": EngineStep,
}


def wizard(recipe: Recipe | None = None, *, data: str | Path | None = None) -> Wizard:
    """Walk from a model to an engine or an ONNX file, with what it costs in accuracy, and the code that repeats it.

    Display the result in a notebook to click through it, or call its `run` to do the whole thing at once.

    Args:
        recipe: Fills in the form; None fills it in with the embedded model and images.
        data: A data set that judges, where the recipe names none: a `data.yaml`, or a folder for classify.

    Returns:
        The widget. Nothing was read or built yet.
    """
    return Wizard(recipe, "" if data is None else str(data))


class Wizard(ipywidgets.VBox):
    """The wizard; made by `wizard`.

    Args:
        recipe: As `wizard` takes it.
        data: As `wizard` takes it, "" for none.

    Attributes:
        session: Everything it knows; replaced as a whole by each change.
        steps: The pages that were shown so far, by name.
        tabs: The buttons that lead to them, by name.
        code: The panel with Python and the command line.
        showing: Whether the controls are being set from the state, and not by a user.
    """

    def __init__(self, recipe: Recipe | None = None, data: str = "") -> None:
        super().__init__()
        for name in ("trtkit", "trtkit-wizard"):
            self.add_class(name)
        self.session = WizardState.of(recipe, data)
        self.showing = False
        self.fault = ErrorBox()
        self.guard = catch_errors(self.fault.show)
        # Without an event loop a job ends in its own thread.
        self._lock = threading.RLock()
        self.tabs = {
            name: make_button(f"{number} {title}", title, self.guard(lambda name=name: self.go(name)), name=f"step-{name}",
                         layout=ipywidgets.Layout(width="auto"))
            for number, (name, title) in enumerate(TITLES.items(), 1)
        }  # fmt: skip
        self.steps: dict[str, Step] = {}
        self.code = CodePanel()
        self.back = make_button(
            "Back", "The step before; nothing is lost", self.guard(self._back), name="back", icon="arrow-left"
        )
        self.next = make_button("Next", "The next step", self.guard(self._next), name="next", icon="arrow-right")
        self.why = ipywidgets.HTML()
        self.why.add_class("trtkit-why")
        self._still = Still(self.still)
        self._page = ipywidgets.VBox()
        self._page.add_class("trtkit-page")
        bar = ipywidgets.HBox(list(self.tabs.values()), layout=ipywidgets.Layout(flex_flow="row wrap"))
        bar.add_class("trtkit-steps")
        foot = ipywidgets.HBox([self.back, self.next, self.why], layout=ipywidgets.Layout(align_items="center"))
        self.children = (style_widget(), self._still.hidden, bar, self._page, self.fault, foot, self.code)
        self.render()
        self._looking: Job[Machine] = Job("looking at this machine", on_state=self._looked)
        self._hurry = threading.Event()
        self._looking.start(_inspect_machine_later, self._hurry)

    def update(self, change: Callable[[WizardState], WizardState]) -> None:
        """Replace the state and show the new one; what goes wrong is shown, and the old state stays."""
        self.guard(self._update)(change)

    def _update(self, change: Callable[[WizardState], WizardState]) -> None:
        with self._lock:
            self.session = change(self.session)
            self.render()

    def finish(self, job: Job[Any], change: Callable[[WizardState, Any], WizardState]) -> None:
        """Take in what a job ended with: its result changes the state, an error is shown where it ran."""
        self.update(lambda session: change(session, job.result) if job.state == "done" else session)
        if job.state == "done":
            self.guard(self._still.renew)()

    def go(self, step: str) -> None:
        """Enter a step.

        Args:
            step: One of `session.STEPS`.

        Raises:
            RecipeError: It can't be entered yet; the message says why.
        """
        moved = step != self.session.step
        self.session = self.session.go(step)
        if moved and step == "engine":
            self.code.toggle.value = True
        self.render()
        self._still.renew()

    def _back(self) -> None:
        if self.session.preceding is not None:
            self.go(self.session.preceding)

    def _next(self) -> None:
        if self.session.following is not None:
            self.go(self.session.following)

    def page(self, step: str) -> Step:
        """The page of a step, made when it is first asked for: what nobody sees need not be sent to the browser."""
        if step not in self.steps:
            self.steps[step] = PAGES[step](self)
        return self.steps[step]

    @property
    def views(self) -> dict[str, JobView]:
        """The jobs of the steps that have one."""
        return {name: step.view for name, step in self.steps.items() if hasattr(step, "view")}

    @property
    def busy(self) -> str:
        """Why no job can be started now; "" where one can."""
        running = next((view.job for view in self.views.values() if view.job.running), None)
        return f"{running.name[:1].upper()}{running.name[1:]} still runs." if running is not None else ""

    def begin(self, view: JobView, call: Callable[..., Any], /, *arguments: Any, **settings: Any) -> None:
        """Start a job, unless another one runs.

        Args:
            view: Where it is shown.
            call: What to call.
            *arguments: Its arguments.
            **settings: Its keyword arguments.

        Raises:
            TrtkitError: Another job runs.
        """
        if self.busy:
            raise TrtkitError(
                f"start {view.job.name}", self.busy.rstrip(".").lower(), "wait for it, or cancel it first"
            )
        view.start(call, *arguments, **settings)
        self.render()

    def render(self) -> None:
        """Make every control say what the state says."""
        session = self.session
        with self._lock:
            self.showing = True
            try:
                self._render(session)
            finally:
                self.showing = False

    def _render(self, session: WizardState) -> None:
        for number, (name, title) in enumerate(TITLES.items(), 1):
            tab, reason = self.tabs[name], session.blocked(name)
            here = name == session.step
            tab.disabled, tab.tooltip = bool(reason), reason or title
            tab.description = f"{number} {title}"
            tab.icon = "check" if name in session.finished else ""
            tab.button_style = "primary" if here else ""
            (tab.add_class if here else tab.remove_class)("trtkit-here")
        step = self.page(session.step)
        step.show(session)
        if self._page.children != (step,):
            self._page.children = (step,)
        following = session.following
        reason = session.blocked(following) if following is not None else ""
        self.back.disabled = session.preceding is None
        self.next.disabled = following is None or bool(reason)
        act = step.act if step.act is not None and not step.act.disabled else None
        ready = act is None or session.step in session.finished
        self.next.button_style = "primary" if ready and not self.next.disabled else ""
        if act is not None:
            act.button_style = "" if ready else "primary"
        reason = reason or self.busy
        self.why.value = f"<span class='trtkit-reason'>{html.escape(reason)}</span>" if reason else ""
        self.code.show(session)

    def _looked(self, job: Job[Machine]) -> None:
        if job.state == "failed":
            self.fault.show(job.error)
        elif job.state == "done" and job.result is not None:
            found = job.result
            self.update(lambda session: session.looked(found))

    def ready(self) -> None:
        """Wait until this machine was looked at."""
        self._hurry.set()
        self._looking.wait()

    def run(self) -> WizardResult:
        """Do all of it at once, with no clicking: read, examine, build, measure.

        The widget shows the same meanwhile, where it is displayed.

        Returns:
            The file, its accuracy and latency, and the doctor's findings.

        Raises:
            TrtkitError: From the step that failed; what came before it stays in `session`.
            CancelledError: Cancel was pressed.
            KeyboardInterrupt: The interrupt button was; the step that ran was cancelled first.
        """
        self.ready()
        for name in ("model", "images", "build", "result"):
            if name == "images" and self.session.unexaminable:
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
        made, measured, examined = self.session.made, self.session.measured, self.session.examined
        assert made is not None
        assert measured is not None
        return WizardResult(
            artifact=made.artifact,
            measured=measured,
            diagnosis=None if examined is None or self.session.unexaminable else examined.diagnosis,
        )

    def still(self) -> Sequence[Figure | str]:
        """What a saved notebook keeps: the code, the file with its passport, the measurements and their figures."""
        session = self.session
        parts: list[Figure | str] = ["<h3>Export wizard</h3>", render_engine(session)]
        if session.made is not None and session.measured is not None:
            accuracy, latency = render_result(session.measured, session.made.artifact.precision)
            first, second = session.measured.figures
            parts += [accuracy, *([first] if first is not None else []), latency, second]
        return [*parts, self.code.python.value, self.code.command.value]

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        self._still.show()
        return dict(super()._repr_mimebundle_(**kwargs) or {})


def _inspect_machine_later(hurry: threading.Event, *, progress: Progress, cancel: CancelToken) -> Machine:
    # Importing what builds engines would hold up the page, which needs none of it yet.
    hurry.wait(PAUSE)
    return inspect_machine()
