"""The steps from the build on: build, accuracy and latency, engine and code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ipywidgets

from trtkit.deployment import list_targets
from trtkit.errors import TrtkitError
from trtkit.html import facts_html, render
from trtkit.widgets.ui.controls import (
    WRAPPED_ROW,
    Collapsible,
    format_error,
    make_button,
    make_control,
    render_note,
)
from trtkit.widgets.ui.jobs import JobView
from trtkit.widgets.ui.output import FigureOutput, render_text
from trtkit.widgets.wizard.actions import build, deploy_built, find_eval_data, measure
from trtkit.widgets.wizard.input_steps import SHORT, WIDE, Step, StepHost, render_reason
from trtkit.widgets.wizard.state import WizardState
from trtkit.widgets.wizard.summary import recipe_facts, render_accuracy, render_engine, render_latency

if TYPE_CHECKING:
    from trtkit.widgets.wizard.actions import Measurement

__all__ = ["BuildStep", "CodePanel", "EngineStep", "ResultStep"]


class BuildStep(Step):
    """Build the file."""

    def __init__(self, host: StepHost) -> None:
        super().__init__(
            host,
            "build",
            "Build",
            "The build runs in the background. Cancel stops it at the next step and leaves no file.",
        )
        self.facts = ipywidgets.HTML()
        self.overwrite = make_control(
            ipywidgets.Checkbox,
            "Replace an existing file",
            "Otherwise an existing file is kept and nothing is built",
            name="overwrite",
            layout=WIDE,
        )
        self.bind(self.overwrite, "overwrite")
        self.main_button = self.build = make_button(
            "Build",
            "Calibrate and build with these settings",
            host.guard(self.start),
            name="build",
            button_style="primary",
        )
        self.place = ipywidgets.HTML()
        self.place.add_class("trtkit-output-path")
        self.reason = ipywidgets.HTML()
        self.view = JobView("the build", lambda job: host.finish_job(job, WizardState.with_built))
        self.built = ipywidgets.HTML()
        self.built.add_class("trtkit-built")
        row = ipywidgets.HBox([self.build, self.reason], layout=ipywidgets.Layout(align_items="center"))
        self.children = (self.heading, self.facts, self.place, self.overwrite, row, self.view, self.built)

    def show(self, state: WizardState) -> None:
        """Set the controls from a state."""
        blocked = state.blocked("build")
        replaces = not blocked and state.replaces_own_file
        self.overwrite.value = state.form.overwrite or replaces
        self.overwrite.disabled = replaces
        problem = blocked or state.data_problem or state.output_problem
        self.build.disabled = bool(problem or self.host.busy)
        self.reason.value = render_reason(problem)
        self.place.value = "" if blocked else render_text(f"Writes {state.output_path}")
        self.facts.value = ""
        if not blocked and state.model is not None:
            self.facts.value = facts_html(recipe_facts(state.form.recipe(), state.model), caption="Export")
        self.view.show_done(is_current=state.built is not None and not state.outdated)
        self.built.value = ""
        if state.built is not None and not self.view.job.running:
            artifact = state.built.artifact
            self.built.value = render_note(
                f"{artifact.path} · {artifact.size / 1e6:.1f} MB",
                kind="warning" if state.outdated else "good",
                detail=state.outdated,
            )

    def start(self) -> None:
        """Build the file."""
        state = self.host.state
        self.host.start_job(self.view, build, state.model, state.recipe())


class ResultStep(Step):
    """Measure accuracy and latency of the built file."""

    def __init__(self, host: StepHost) -> None:
        super().__init__(
            host,
            "result",
            "Accuracy and latency",
            "The file and FP32 are evaluated on the same images of val by the same runner; changes have a 95 % "
            "confidence interval. Where the engine does not run, ONNX Runtime runs its graph.",
        )
        self.eval_images = make_control(
            ipywidgets.IntText,
            "Evaluation images",
            "Maximum number of images of val, a seeded sample; 0 uses the whole split",
            name="eval-images",
            layout=SHORT,
        )
        note = ipywidgets.HTML(render_text("0 means all images of val; otherwise a seeded sample of as many."))
        eval_row = ipywidgets.HBox([self.eval_images, note], layout=ipywidgets.Layout(**WRAPPED_ROW))
        self.bind(self.eval_images, "eval_images", lambda number: number if number > 0 else None)
        self.compare_fp32 = make_control(
            ipywidgets.Checkbox,
            "Compare with FP32",
            "Evaluate and time FP32 too, on the same images by the same runner",
            name="compare-fp32",
            layout=WIDE,
        )
        self.bind(self.compare_fp32, "compare_fp32")
        self.main_button = self.measure = make_button(
            "Measure", "Evaluate and time the built file", host.guard(self.start), name="measure"
        )
        self.view = JobView("the measurement", lambda job: host.finish_job(job, WizardState.with_measurement))
        self.accuracy, self.latency = ipywidgets.HTML(), ipywidgets.HTML()
        self.accuracy.add_class("trtkit-accuracy")
        self.latency.add_class("trtkit-latency")
        self.figures = (FigureOutput(), FigureOutput())
        self._drawn: Measurement | None = None
        self.children = (
            self.heading,
            eval_row,
            self.compare_fp32,
            self.measure,
            self.view,
            self.accuracy,
            self.figures[0],
            self.latency,
            self.figures[1],
        )

    def show(self, state: WizardState) -> None:
        """Set the controls from a state."""
        self.eval_images.value = state.form.eval_images or 0
        self.compare_fp32.value = state.form.compare_fp32
        self.compare_fp32.disabled = state.built is not None and state.built.artifact.precision == "fp32"
        self.measure.disabled = bool(self.host.busy) or state.built is None
        measurement = state.measurement
        self.view.show_done(is_current=measurement is not None and not state.outdated)
        if measurement is None or state.built is None:
            self.accuracy.value = self.latency.value = ""
        else:
            self.accuracy.value = render(
                "widgets/wizard/templates/section.html.j2",
                title="Accuracy",
                warning=render_note(state.outdated, kind="warning") if state.outdated else "",
                body=render_accuracy(measurement, state.built.artifact.precision),
            )
            self.latency.value = render(
                "widgets/wizard/templates/section.html.j2",
                title="Latency",
                warning="",
                body=render_latency(measurement),
            )
        if measurement is not self._drawn:
            self._drawn = measurement
            figures = (None, None) if measurement is None else measurement.figures
            for output, figure in zip(self.figures, figures, strict=True):
                output.draw(figure)

    def start(self) -> None:
        """Measure the built file."""
        state = self.host.state
        assert state.model is not None
        form = state.form
        data = find_eval_data(form.data, state.model)
        self.host.start_job(
            self.view,
            measure,
            state.model,
            state.built,
            data,
            eval_images=form.eval_images,
            compare_fp32=form.compare_fp32,
        )


class EngineStep(Step):
    """Show the built file, and write a folder that serves it."""

    def __init__(self, host: StepHost) -> None:
        super().__init__(
            host,
            "engine",
            "Engine and code",
            "An engine file stores its passport: model, data, calibration, builder and GPU.",
        )
        self.facts = ipywidgets.HTML()
        self.facts.add_class("trtkit-engine-facts")
        self.target = make_control(
            ipywidgets.Dropdown,
            "Serve it with",
            "The folder holds the file, programs for this target, sample images and a check that needs no trtkit",
            name="deploy-target",
            layout=SHORT,
        )
        self.deploy = make_button(
            "Write its folder", "Beside the file; README.md says how to use it", host.guard(self.start), name="deploy"
        )
        self.view = JobView("the deployment", lambda job: host.finish_job(job, WizardState.with_deployment))
        self.deployed = ipywidgets.HTML()
        self.deployed.add_class("trtkit-deployed")
        row = ipywidgets.HBox([self.target, self.deploy], layout=ipywidgets.Layout(align_items="center"))
        self.children = (self.heading, self.facts, row, self.view, self.deployed)

    def show(self, state: WizardState) -> None:
        """Set the controls from a state."""
        artifact = None if state.built is None else state.built.artifact
        self.facts.value = render_engine(artifact, state.outdated)
        targets = () if artifact is None else list_targets(artifact.format)
        if self.target.options != targets:
            self.target.options = targets
            # A list of options that was empty stays without a choice.
            self.target.value = "triton" if "triton" in targets else next(iter(targets), None)
        self.deploy.disabled = bool(self.host.busy) or not targets
        folder = None if state.deployment is None else state.deployment.folder
        self.view.show_done(is_current=folder is not None and not state.outdated)
        self.deployed.value = "" if folder is None else render_note(f"{folder} · python check.py", kind="good")

    def start(self) -> None:
        """Write the folder."""
        state = self.host.state
        mine = state.deployment is not None and state.deployment.target == self.target.value
        self.host.start_job(
            self.view, deploy_built, state.built, self.target.value, overwrite=mine or state.form.overwrite
        )


class CodePanel(Collapsible):
    """Python and command line of the current settings, below every step."""

    def __init__(self) -> None:
        self.python, self.command = ipywidgets.HTML(), ipywidgets.HTML()
        self.python.add_class("trtkit-python")
        self.command.add_class("trtkit-command")
        super().__init__("Python and command line", [self.python, self.command], name="code-panel")

    def show(self, state: WizardState) -> None:
        """Show the code of a state."""
        try:
            python, command = state.code
        except TrtkitError as error:
            self.python.value, self.command.value = render_note(format_error(error), kind="problem"), ""
            return
        for widget, title, code in ((self.python, "Python", python), (self.command, "Command line", command)):
            widget.value = render("widgets/wizard/templates/code.html.j2", title=title, code=code.rstrip())
