"""The last steps of the wizard as controls: build, accuracy and latency, engine and code. Callbacks only."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import ipywidgets

from trtkit.errors import TrtkitError
from trtkit.widgets.ui.controls import Collapsible, OptionGroup, format_error, make_button, make_control, render_note
from trtkit.widgets.ui.figure import FigureOutput
from trtkit.widgets.ui.html import render_facts, render_table
from trtkit.widgets.ui.jobs import JobView
from trtkit.widgets.wizard.actions import (
    accuracy_frame,
    accuracy_messages,
    build,
    engine_facts,
    latency_frame,
    latency_messages,
    measure,
    passport_facts,
    recipe_facts,
    resolve_eval_data,
)
from trtkit.widgets.wizard.input_steps import SHORT, WIDE, Step, StepHost, render_messages
from trtkit.widgets.wizard.options import device_options, precision_options, target_options
from trtkit.widgets.wizard.state import WizardState

if TYPE_CHECKING:
    from trtkit.widgets.wizard.actions import Measurement

__all__ = ["BuildStep", "ChoicesStep", "CodePanel", "EngineStep", "ResultStep", "render_engine", "render_result"]

ACCURACY = {"metric": "Metric", "rule": "Rule", "value": "Result", "change": "Change", "interval": "95 % interval",
            "significant": "More than chance"}  # fmt: skip
LATENCY = {"label": "Precision", "runner": "Run by", "clock": "Clock", "batch": "Batch", "runs": "Runs",
           "p50_ms": "Median, ms", "p90_ms": "90 % within, ms", "p99_ms": "99 % within, ms",
           "images_per_s": "Images a second"}  # fmt: skip


def render_result(measured: Measurement, precision: str) -> tuple[str, str]:
    """Accuracy and latency, each as sentences and a table."""
    accuracy = render_messages(*accuracy_messages(measured, precision))
    if measured.evaluation is not None:
        digits = dict.fromkeys(("FP32", "value", "change"), 4)
        headings = {**ACCURACY, "value": precision.upper()}
        frame = accuracy_frame(measured)
        sure = frame.filter(frame["interval"].is_not_null()) if "interval" in frame.columns else frame
        accuracy += render_table(sure, headings=headings, digits=digits)
        if len(sure) < len(frame):
            rest = render_table(frame.filter(frame["interval"].is_null()), headings=headings, digits=digits)
            accuracy += f"<details><summary>Metrics without an interval</summary>{rest}</details>"
    latency = render_messages(*latency_messages(measured))
    latency += render_table(
        latency_frame(measured),
        headings=LATENCY,
        digits=dict.fromkeys(("p50_ms", "p90_ms", "p99_ms", "images_per_s"), 2),
    )
    return accuracy, latency


def render_engine(session: WizardState) -> str:
    """The file and its passport; a line where there is none yet."""
    if session.made is None:
        return render_note("Nothing was built yet; the code below builds it.")
    artifact = session.made.artifact
    whole = render_facts(engine_facts(artifact), caption="What was made")
    if artifact.passport is not None:
        whole += render_facts(passport_facts(artifact), caption="Passport, kept in the file itself")
    return (render_note(session.stale, kind="warning") if session.stale else "") + whole


class BuildStep(Step):
    """Build the file."""

    def __init__(self, desk: StepHost) -> None:
        super().__init__(
            desk,
            "build",
            "Build",
            "Other cells and steps work meanwhile. Cancel stops at the next step and leaves no file.",
        )
        self.facts = ipywidgets.HTML()
        self.overwrite = make_control(
            ipywidgets.Checkbox,
            "Replace the file if it is there",
            "Otherwise a file of that name is kept and nothing built",
            name="overwrite",
            layout=WIDE,
        )
        self.fills(self.overwrite, "overwrite")
        self.act = self.build = make_button(
            "Build",
            "Calibrate and build with the choices above",
            desk.guard(self.start),
            name="build",
            button_style="primary",
        )
        self.why = ipywidgets.HTML()
        self.view = JobView("the build", lambda job: desk.finish(job, WizardState.has_built))
        self.made = ipywidgets.HTML()
        self.made.add_class("trtkit-made")
        row = ipywidgets.HBox([self.build, self.why], layout=ipywidgets.Layout(align_items="center"))
        self.children = (self.heading, self.facts, self.overwrite, row, self.view, self.made)

    def show(self, session: WizardState) -> None:
        """Show a state."""
        why = session.blocked("build")
        rewrites = not why and session.rewrites
        self.overwrite.value = session.plan.overwrite or rewrites
        self.overwrite.disabled = rewrites
        self.build.disabled = bool(why or self.desk.busy)
        self.why.value = f"<span class='trtkit-reason'>{html.escape(why)}</span>" if why else ""
        self.facts.value = ""
        if not why and session.model is not None:
            self.facts.value = render_facts(
                recipe_facts(session.plan.recipe(), session.model), caption="What will be made"
            )
        self.made.value = ""
        if session.made is not None and not self.view.job.running:
            told = f"{session.made.artifact.path} · {session.made.artifact.size / 1e6:.1f} MB"
            self.made.value = render_note(told, kind="warning" if session.stale else "good", detail=session.stale)

    def start(self) -> None:
        """Build."""
        session = self.desk.session
        self.desk.begin(self.view, build, session.model, session.recipe())


class ResultStep(Step):
    """Measure what was built."""

    def __init__(self, desk: StepHost) -> None:
        super().__init__(
            desk,
            "result",
            "How accurate, how fast?",
            "The images of val judge the result and FP32 alike, and an interval says how much of the change may be "
            "chance. The engine is measured where it runs; elsewhere ONNX Runtime runs its graph, and says so.",
        )
        self.images = make_control(
            ipywidgets.IntText,
            "Images to judge by",
            "A seeded sample of val; 0 takes all",
            name="images",
            layout=SHORT,
        )
        self.fills(self.images, "images", lambda number: number if number > 0 else None)
        self.baseline = make_control(
            ipywidgets.Checkbox,
            "Compare with FP32",
            "Judge and time FP32 too, on the same images by the same runner",
            name="baseline",
            layout=WIDE,
        )
        self.fills(self.baseline, "baseline")
        self.act = self.measure = make_button(
            "Measure", "Judge and time what was built", desk.guard(self.start), name="measure"
        )
        self.view = JobView("the measurement", lambda job: desk.finish(job, WizardState.has_measured))
        self.accuracy, self.latency = ipywidgets.HTML(), ipywidgets.HTML()
        self.accuracy.add_class("trtkit-accuracy")
        self.latency.add_class("trtkit-latency")
        self.figures = (FigureOutput(), FigureOutput())
        self._drawn: Measurement | None = None
        self.children = (
            self.heading,
            self.images,
            self.baseline,
            self.measure,
            self.view,
            self.accuracy,
            self.figures[0],
            self.latency,
            self.figures[1],
        )

    def show(self, session: WizardState) -> None:
        """Show a state."""
        self.images.value = session.plan.eval_images or 0
        self.baseline.value = session.plan.baseline
        self.baseline.disabled = session.made is not None and session.made.artifact.precision == "fp32"
        self.measure.disabled = bool(self.desk.busy) or session.made is None
        found = session.measured
        if found is None or session.made is None:
            self.accuracy.value = self.latency.value = ""
        else:
            accuracy, latency = render_result(found, session.made.artifact.precision)
            stale = render_note(session.stale, kind="warning") if session.stale else ""
            self.accuracy.value, self.latency.value = (
                f"{stale}<h4>Accuracy</h4>{accuracy}",
                f"<h4>Latency</h4>{latency}",
            )
        if found is not self._drawn:
            self._drawn = found
            for image, figure in zip(self.figures, (None, None) if found is None else found.figures, strict=True):
                image.draw(figure)

    def start(self) -> None:
        """Measure."""
        session = self.desk.session
        assert session.model is not None
        data = resolve_eval_data(session.plan.data, session.model)
        plan = session.plan
        self.desk.begin(
            self.view, measure, session.model, session.made, data, images=plan.eval_images, baseline=plan.baseline
        )


class EngineStep(Step):
    """What the user leaves with."""

    def __init__(self, desk: StepHost) -> None:
        super().__init__(
            desk,
            "engine",
            "Engine and code",
            "The file carries its passport: what it was made from, by what, and where it runs.",
        )
        self.facts = ipywidgets.HTML()
        self.facts.add_class("trtkit-engine-facts")
        self.children = (self.heading, self.facts)

    def show(self, session: WizardState) -> None:
        """Show a state."""
        self.facts.value = render_engine(session)


class CodePanel(Collapsible):
    """The Python and the command line that repeat the choices, below every step and always in step with them."""

    def __init__(self) -> None:
        self.python, self.command = ipywidgets.HTML(), ipywidgets.HTML()
        self.python.add_class("trtkit-python")
        self.command.add_class("trtkit-command")
        title = "Python and command line that repeat these choices"
        super().__init__(title, [self.python, self.command], name="code-panel")

    def show(self, session: WizardState) -> None:
        """Show a state."""
        try:
            python, command = session.code
        except TrtkitError as error:
            self.python.value, self.command.value = render_note(format_error(error), kind="problem"), ""
            return
        for widget, title, text in ((self.python, "Python", python), (self.command, "Command line", command)):
            code = f"<pre class='trtkit-code' tabindex='0'>{html.escape(text.rstrip())}</pre>"
            widget.value = f"<p class='trtkit-soft'>{title}</p>{code}"


# The wizard's form of precision, target and settings. Callbacks only.


FIELDS = ("imgsz", "batch", "dynamic", "nms", "simplify", "workspace", "opt_level", "isolate", "output")

# A drop-down whose value is None has nothing chosen.
NONE = "none"


class ChoicesStep(Step):
    """Which precision, for which target, and the settings that have good defaults."""

    def __init__(self, desk: StepHost) -> None:
        super().__init__(
            desk,
            "choices",
            "Which precision, for which target?",
            "What this machine can't make is marked, with the reason.",
        )
        self.precision = OptionGroup("precision", lambda value: desk.update(lambda s: s.fill(precision=value)))
        self.target = OptionGroup("target", lambda value: desk.update(lambda s: s.target(value)))
        self.device = make_control(
            ipywidgets.Dropdown, "Built for", "The GPU that the engine will run on", name="device", layout=WIDE
        )
        self.device.observe(self._aimed, "value")
        self.imgsz = make_control(
            ipywidgets.Text,
            "Image size",
            "One side or height,width in pixels; empty for the model's own",
            name="imgsz",
            placeholder="the model's own",
            layout=SHORT,
        )
        self.batch = make_control(ipywidgets.IntText, "Largest batch", "Most images a run", name="batch", layout=SHORT)
        self.dynamic = make_control(
            ipywidgets.Dropdown,
            "Open shapes",
            "Whether batch, height and width may change at run time",
            name="dynamic",
            options=[("as suits the target", NONE), ("yes", True), ("no", False)],
            layout=SHORT,
        )
        self.nms = make_control(
            ipywidgets.Checkbox,
            "Suppression in the graph",
            "Non-maximum suppression runs inside the engine",
            name="nms",
        )
        self.nms_reason = ipywidgets.HTML()
        self.simplify = make_control(
            ipywidgets.Checkbox, "Simplify the graph", "Run onnxslim over the graph", name="simplify"
        )
        self.keep = make_control(
            ipywidgets.Textarea,
            "Keep in high precision",
            "Patterns of ONNX node names, one a line, such as /model.23/*",
            name="keep",
            placeholder="/model.23/*",
            rows=2,
            layout=WIDE,
        )
        self.workspace = make_control(
            ipywidgets.Text,
            "Workspace, GiB",
            "Memory the builder may use; empty lets TensorRT decide",
            name="workspace",
            placeholder="as TensorRT decides",
            layout=SHORT,
        )
        self.opt_level = make_control(
            ipywidgets.Dropdown,
            "Optimization level",
            "0 builds quickly, 5 searches longest",
            name="opt_level",
            layout=SHORT,
            options=[("TensorRT's default", NONE), *((str(number), number) for number in range(6))],
        )
        self.isolate = make_control(
            ipywidgets.Checkbox, "Build in a child process", "A crash inside TensorRT becomes an error", name="isolate"
        )
        self.output = make_control(
            ipywidgets.Text,
            "Output file",
            "Where the file goes; empty names it after the model",
            name="output",
            layout=WIDE,
        )
        self._bind()
        more = [
            self.imgsz,
            self.batch,
            self.dynamic,
            self.keep,
            self.nms,
            self.nms_reason,
            self.simplify,
            self.workspace,
            self.opt_level,
            self.isolate,
            self.output,
        ]
        self.more = Collapsible("More settings", more, name="more")
        self.problem = ipywidgets.HTML()
        self.problem.add_class("trtkit-problem")
        head = [ipywidgets.HTML(f"<h4>{title}</h4>") for title in ("Precision", "Target")]
        self.children = (
            self.heading,
            head[0],
            self.precision,
            head[1],
            self.target,
            self.device,
            self.more,
            self.problem,
        )

    def _bind(self) -> None:
        for name in FIELDS:
            self.fills(getattr(self, name), name, lambda value: None if value == NONE else value)
        self.fills(self.keep, "keep", lambda text: tuple(line.strip() for line in text.splitlines() if line.strip()))

    def _aimed(self, change: dict[str, Any]) -> None:
        if not self.desk.showing:
            device = None if change["new"] == NONE else change["new"]
            self.desk.update(lambda session: session.fill(devices=session.plan.aimed(device).devices))

    def show(self, session: WizardState) -> None:
        """Show a state."""
        plan, machine = session.plan, session.machine
        if machine is None:
            self.problem.value = render_note("Looking at this machine …")
            return
        self.precision.show(precision_options(plan.target, machine), plan.precision)
        self.target.show(target_options(machine), plan.target)
        found = device_options(plan.target, machine, plan.device)
        options = tuple((label, NONE if device is None else device) for label, device in found)
        if self.device.options != options:
            self.device.options = options
        self.device.value = plan.device if plan.engine and plan.device is not None else NONE
        self.device.disabled = not plan.engine
        for name in FIELDS:
            value = getattr(plan, name)
            getattr(self, name).value = NONE if value is None else value
        kept = "\n".join(plan.keep)
        if tuple(line.strip() for line in self.keep.value.splitlines() if line.strip()) != plan.keep:
            self.keep.value = kept
        self.nms.disabled = not session.nms.possible
        self.nms_reason.value = (
            f"<p class='trtkit-reason'>Not here: {session.nms.reason}.</p>" if session.nms.reason else ""
        )
        self.keep.disabled = plan.precision not in ("fp16", "int8")
        for control in (self.workspace, self.opt_level, self.isolate):
            control.disabled = not plan.engine
        self.output.placeholder = plan.output_shown or "beside the model, its name saying the precision"
        self.problem.value = render_note(session.problem, kind="problem") if session.problem else ""
