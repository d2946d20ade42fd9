"""What the wizard starts from: the model, and the images with what the doctor says of them. Callbacks only."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import ipywidgets

from trtkit import demo
from trtkit.widgets.ui.controls import Option, OptionGroup, make_button, make_control, render_note
from trtkit.widgets.ui.figure import FigureOutput
from trtkit.widgets.ui.html import render_facts, render_table
from trtkit.widgets.ui.jobs import Job, JobView
from trtkit.widgets.wizard.actions import diagnosis_messages, examine_images, model_facts, read_model
from trtkit.widgets.wizard.state import WizardState

if TYPE_CHECKING:
    from trtkit.widgets.wizard.actions import Examination

__all__ = ["SHORT", "WIDE", "ImagesStep", "ModelStep", "Step", "StepHost", "render_messages"]


# A step of the wizard, and what it may ask of the wizard around it.


# A mapping, of which every control makes a layout of its own: one that is shared would be hidden by all.
WIDE = {"width": "100%", "max_width": "46rem"}
SHORT = {"width": "22rem"}


class StepHost(Protocol):
    """What a step needs of the wizard around it."""

    session: WizardState
    showing: bool

    def guard(self, callback: Callable[..., Any]) -> Callable[..., None]:
        """A callback that shows what it raises."""

    def update(self, change: Callable[[WizardState], WizardState]) -> None:
        """Replace the state and show the new one."""

    def begin(self, view: JobView, call: Callable[..., Any], /, *arguments: Any, **settings: Any) -> None:
        """Start a job, unless another one runs."""

    def finish(self, job: Job[Any], change: Callable[[WizardState, Any], WizardState]) -> None:
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

    def __init__(self, desk: StepHost, name: str, title: str, told: str) -> None:
        super().__init__()
        self.desk = desk
        self.add_class(f"trtkit-page-{name}")
        words = f"<h3>{html.escape(title)}</h3><p class='trtkit-soft'>{html.escape(told)}</p>"
        self.heading = ipywidgets.HTML(words)

    def show(self, session: WizardState) -> None:
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


def render_messages(*said: Any) -> str:
    """Sentences of `account` as boxes."""
    return "".join(render_note(one.text, kind=one.kind, detail=one.detail) for one in said)


class ModelStep(Step):
    """Which model."""

    def __init__(self, desk: StepHost) -> None:
        super().__init__(
            desk,
            "model",
            "Which model?",
            "A YOLO11 or YOLOv8 checkpoint (.pt), or an .onnx file. A checkpoint is read without running its pickle.",
        )
        self.path = make_control(
            ipywidgets.Text,
            "Model file",
            "Path of a .pt or .onnx file on the machine of this kernel",
            name="model-path",
            layout=WIDE,
            placeholder="yolo11n.pt",
        )
        self.act = self.read = make_button(
            "Read model",
            "Read the file and show what is in it",
            desk.guard(self.start),
            name="read-model",
        )
        self.embedded = make_button(
            "Use the embedded model",
            "A small detector that comes with trtkit, with images",
            desk.guard(self._embedded),
            name="embedded-model",
            layout=ipywidgets.Layout(width="13rem"),
        )
        self.view = JobView("reading the model", self._ended)
        self.facts = ipywidgets.HTML()
        self.facts.add_class("trtkit-model-facts")
        self.machine = ipywidgets.HTML()
        self.machine.add_class("trtkit-machine")
        self._asked = ""
        self.fills(self.path, "model")
        row = ipywidgets.HBox([self.read, self.embedded])
        self.children = (self.heading, self.path, row, self.view, self.facts, self.machine)

    def show(self, session: WizardState) -> None:
        """Show a state."""
        self.path.value = session.plan.model
        self.read.disabled = bool(self.desk.busy) or not session.plan.model.strip()
        known = session.model is not None and not session.unread
        self.facts.value = (
            render_facts(model_facts(session.model), caption="What was read") if known and session.model else ""
        )
        told = "Looking at this machine …" if session.machine is None else session.machine.told
        self.machine.value = render_note(told)

    def _embedded(self) -> None:
        path, data = str(demo.model_path()), str(demo.data_path())
        self.desk.update(lambda session: session.fill(model=path, data=session.plan.data or data))
        self.start()

    def start(self) -> None:
        """Read the model."""
        self._asked = self.desk.session.plan.model
        self.desk.begin(self.view, read_model, self._asked)

    def _ended(self, job: Job[Any]) -> None:
        self.desk.finish(job, lambda session, model: session.has_read(model, self._asked))


class ImagesStep(Step):
    """Which images calibrate and judge, and what the doctor says of them."""

    def __init__(self, desk: StepHost) -> None:
        super().__init__(
            desk,
            "images",
            "Which images?",
            "INT8 takes the range of every tensor from the images of train; those of val judge the result. Ranges "
            "are only as good as the images are like the ones the model will meet.",
        )
        self.data = make_control(
            ipywidgets.Text,
            "Data set",
            "Path of a data.yaml, or of a folder of class folders for classify",
            name="data",
            layout=WIDE,
            placeholder="data.yaml",
        )
        self.source = OptionGroup("ranges", lambda value: desk.update(lambda s: s.fill(measured=value == "saved")))
        self.fraction = make_control(
            ipywidgets.FloatText,
            "Share of train",
            "Share of the images to draw from, above 0 and at most 1",
            name="fraction",
            step=0.05,
            layout=SHORT,
        )
        self.calibration = make_control(
            ipywidgets.Text,
            "Calibration folder",
            "A folder that trtkit.calibrate(...).save() wrote",
            name="calibration",
            layout=WIDE,
            placeholder="runs/calibrate",
        )
        self.check = make_control(
            ipywidgets.Checkbox,
            "Look for overflow on 32 of these images",
            "Layers that leave FP16's range stay in FP32",
            name="check",
            layout=WIDE,
        )
        self.act = self.examine = make_button(
            "Examine images",
            "Ask the doctor what is wrong with the calibration images",
            desk.guard(self.start),
            name="examine",
            layout=ipywidgets.Layout(width="11rem"),
        )
        self.why = ipywidgets.HTML()
        self.view = JobView("the examination", lambda job: desk.finish(job, WizardState.has_examined))
        self.findings = ipywidgets.HTML()
        self.findings.add_class("trtkit-findings")
        self.image = FigureOutput()
        self._drawn: Examination | None = None
        for control, field in ((self.data, "data"), (self.fraction, "fraction"), (self.check, "check")):
            self.fills(control, field)
        self.fills(self.calibration, "calibration")
        self.children = (
            self.heading,
            self.data,
            self.source,
            self.fraction,
            self.calibration,
            self.check,
            ipywidgets.HBox([self.examine, self.why], layout=ipywidgets.Layout(align_items="center")),
            self.view,
            self.findings,
            self.image,
        )

    def show(self, session: WizardState) -> None:
        """Show a state."""
        plan = session.plan
        self.data.value, self.fraction.value = plan.data, plan.fraction
        self.calibration.value, self.check.value = plan.calibration, plan.check
        self.source.show(
            (
                Option(value="images", label="Measure on images", told="A pass over the images while it builds."),
                Option(
                    value="saved", label="Saved calibration", told="Ranges measured before, with the tuner perhaps."
                ),
            ),
            "saved" if plan.measured else "images",
        )
        self.source.layout.display = "" if plan.precision == "int8" else "none"
        self.calibration.layout.display = "" if plan.precision == "int8" and plan.measured else "none"
        self.fraction.layout.display = "" if plan.calibrates or plan.precision == "fp16" else "none"
        self.check.layout.display = "" if plan.precision == "fp16" else "none"
        self.check.disabled = not plan.data
        why = session.unexaminable
        self.examine.disabled = bool(self.desk.busy or why)
        self.why.value = f"<span class='trtkit-reason'>{html.escape(why)}</span>" if why else ""
        found = session.examined if not why else None
        if found is None:
            self.findings.value = ""
            self._draw(None)
            return
        old = ""
        if session.out_of_date:
            old = render_note("This is about other images than are chosen now.", kind="warning")
        classes = render_table(found.diagnosis.classes, caption="Objects of each class", headings={"class": "Class"})
        self.findings.value = (
            (old if session.out_of_date else "") + render_messages(*diagnosis_messages(found.diagnosis)) + classes
        )
        self._draw(found)

    def _draw(self, found: Examination | None) -> None:
        if found is not self._drawn:
            self._drawn = found
            self.image.draw(None if found is None else found.figure)

    def start(self) -> None:
        """Examine the images."""
        session = self.desk.session
        assert session.model is not None
        self.desk.begin(self.view, examine_images, session.plan.data, session.model.task, session.plan.fraction)
