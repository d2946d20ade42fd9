"""Base of the wizard's steps, and the steps before the build: model, precision and target, images."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import ipywidgets
from markupsafe import Markup

from trtkit import demo
from trtkit.arguments import COMPATIBILITIES, WEIGHTS
from trtkit.html import facts_html, render, table_html
from trtkit.widgets.ui.controls import Collapsible, Option, OptionGroup, make_button, make_control, render_note
from trtkit.widgets.ui.jobs import Job, JobView
from trtkit.widgets.ui.output import FigureOutput
from trtkit.widgets.ui.thumbnails import Thumbnails
from trtkit.widgets.ui.words import render_words
from trtkit.widgets.wizard.actions import examine_images, read_model
from trtkit.widgets.wizard.files import DATA_SUFFIXES, MODEL_SUFFIXES, find_files
from trtkit.widgets.wizard.options import device_options, precision_options, target_options
from trtkit.widgets.wizard.state import WizardState
from trtkit.widgets.wizard.summary import diagnosis_messages, model_facts, render_messages

if TYPE_CHECKING:
    from trtkit.widgets.wizard.actions import Examination

__all__ = [
    "SHORT",
    "WIDE",
    "ImagesStep",
    "ModelStep",
    "SettingsStep",
    "Step",
    "StepHost",
    "render_reason",
]


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


class ModelStep(Step):
    """Name and read the model."""

    def __init__(self, host: StepHost) -> None:
        super().__init__(
            host,
            "model",
            "Model",
            "A YOLO checkpoint (.pt) or an ONNX file. A checkpoint is read without executing its pickle.",
        )
        self.path = make_control(
            ipywidgets.Combobox,
            "Model file",
            "Path of a .pt or .onnx file on the kernel's machine",
            name="model-path",
            layout=WIDE,
            placeholder="yolo11n.pt",
            options=find_files(MODEL_SUFFIXES),
        )
        self.main_button = self.read = make_button(
            "Read model",
            "Read the file and show its contents",
            host.guard(self.start),
            name="read-model",
        )
        self.embedded = make_button(
            "Use the embedded model",
            "A small detector with images that comes with trtkit",
            host.guard(self._use_embedded),
            name="embedded-model",
            layout=ipywidgets.Layout(width="13rem"),
        )
        self.view = JobView("reading the model", self._on_end)
        self.facts = ipywidgets.HTML()
        self.facts.add_class("trtkit-model-facts")
        self.machine = ipywidgets.HTML()
        self.machine.add_class("trtkit-machine")
        self._path_read = ""
        self.bind(self.path, "model")
        row = ipywidgets.HBox([self.read, self.embedded])
        self.children = (self.heading, self.path, row, self.view, self.facts, self.machine)

    def show(self, state: WizardState) -> None:
        """Set the controls from a state."""
        self.path.value = state.form.model
        self.read.disabled = bool(self.host.busy) or not state.form.model.strip()
        is_read = state.model is not None and not state.model_problem
        self.facts.value = facts_html(model_facts(state.model), caption="Model") if is_read and state.model else ""
        self.machine.value = render_note(
            "Inspecting this machine …" if state.machine is None else state.machine.summary
        )

    def _use_embedded(self) -> None:
        model, data = str(demo.model_path()), str(demo.data_path())
        self.host.update(lambda state: state.fill(model=model, data=state.form.data or data))
        self.start()

    def start(self) -> None:
        """Read the model."""
        self._path_read = self.host.state.form.model
        self.host.start_job(self.view, read_model, self._path_read)

    def _on_end(self, job: Job[Any]) -> None:
        self.host.finish_job(job, lambda state, model: state.with_model(model, self._path_read))


# Fields whose control has the name of the field and needs no conversion but that of NONE.
FIELDS = (
    *("imgsz", "batch", "dynamic", "nms", "end2end", "conf", "iou", "max_det", "simplify", "workspace", "opt_level"),
    *("compatibility", "weights", "isolate", "output"),
)


COMPATIBILITY_LABELS = {
    "same_compute_capability": "GPUs of the same compute capability",
    "ampere_plus": "Ampere and newer GPUs",
    "version": "later TensorRT versions",
}


# Stands for None in a drop-down, where the value None means that nothing is selected.
NONE = "none"


class SettingsStep(Step):
    """Select precision, target and build settings."""

    def __init__(self, host: StepHost) -> None:
        super().__init__(
            host,
            "settings",
            "Precision and target",
            "Options that are not available on this machine are disabled and state the reason.",
        )
        self.precision = OptionGroup("precision", lambda value: host.update(lambda state: state.fill(precision=value)))
        self.target = OptionGroup("target", lambda value: host.update(lambda state: state.select_target(value)))
        self.device = make_control(
            ipywidgets.Dropdown, "Device", "The GPU that the engine runs on", name="device", layout=WIDE
        )
        self.device.observe(self._on_device, "value")
        self.imgsz = make_control(
            ipywidgets.Text,
            "Image size",
            "One side or height,width in pixels; empty for the model's own",
            name="imgsz",
            placeholder="the model's own",
            layout=SHORT,
        )
        self.batch = make_control(
            ipywidgets.IntText, "Largest batch", "Maximum number of images per run", name="batch", layout=SHORT
        )
        self.dynamic = make_control(
            ipywidgets.Dropdown,
            "Dynamic shapes",
            "Whether batch, height and width may change at run time; by default they may in an INT8 engine",
            name="dynamic",
            options=[("default", NONE), ("yes", True), ("no", False)],
            layout=SHORT,
        )
        self.nms = make_control(
            ipywidgets.Checkbox, "NMS in the graph", "The engine returns final boxes (nms=True)", name="nms"
        )
        self.nms_reason = ipywidgets.HTML()
        self.end2end = make_control(
            ipywidgets.Checkbox, "One-to-one head", "Boxes that need no NMS (end2end=True)", name="end2end"
        )
        self.end2end_reason = ipywidgets.HTML()
        self.conf = make_control(
            ipywidgets.FloatText,
            "Confidence",
            "Lowest score of NMS in the graph, at least 0 and below 1 (conf=)",
            name="conf",
            step=0.05,
            layout=SHORT,
        )
        self.iou = make_control(
            ipywidgets.FloatText,
            "IoU",
            "IoU above which NMS in the graph drops the lower-scoring of two boxes, above 0 and at most 1 (iou=)",
            name="iou",
            step=0.05,
            layout=SHORT,
        )
        self.max_det = make_control(
            ipywidgets.IntText,
            "Detections per image",
            "Rows of NMS in the graph or of the one-to-one head (max_det=)",
            name="max-det",
            layout=SHORT,
        )
        self.simplify = make_control(
            ipywidgets.Checkbox, "Simplify the graph", "Simplify the ONNX graph with onnxslim", name="simplify"
        )
        self.keep = make_control(
            ipywidgets.Textarea,
            "Keep",
            "Nodes excluded from INT8 (kept in FP16), or from FP16 (kept in FP32): patterns of ONNX node names, "
            "one a line, such as /model.23/*",
            name="keep",
            placeholder="/model.23/*",
            rows=2,
            layout=WIDE,
        )
        self.workspace = make_control(
            ipywidgets.Text,
            "Workspace (GiB)",
            "Memory the builder may use; empty for TensorRT's default",
            name="workspace",
            placeholder="TensorRT's default",
            layout=SHORT,
        )
        self.opt_level = make_control(
            ipywidgets.Dropdown,
            "Optimization level",
            "Builder optimization level: 0 builds fastest, 5 searches most tactics",
            name="level",
            layout=SHORT,
            options=[("TensorRT's default", NONE), *((str(number), number) for number in range(6))],
        )
        self.compatibility = make_control(
            ipywidgets.Dropdown,
            "Also runs on",
            "Machines that run the engine besides those like its builder's; it may be slower",
            name="compatibility",
            layout=SHORT,
            options=[("no other machine", NONE), *((COMPATIBILITY_LABELS[name], name) for name in COMPATIBILITIES)],
        )
        self.weights = make_control(
            ipywidgets.Dropdown,
            "Weights",
            "Whether weights can be replaced in the engine, or are left out until it is refitted",
            name="weights",
            layout=SHORT,
            options=[("fixed", NONE), *((name, name) for name in WEIGHTS)],
        )
        self.isolate = make_control(
            ipywidgets.Checkbox, "Build in a child process", "A crash inside TensorRT becomes an error", name="isolate"
        )
        self.output = make_control(
            ipywidgets.Text,
            "Output file",
            "Path of the output; empty names it after the model",
            name="output",
            layout=WIDE,
        )
        for name in FIELDS:
            self.bind(getattr(self, name), name, lambda value: None if value == NONE else value)
        self.bind(self.keep, "keep", _split_lines)
        more = [
            self.imgsz,
            self.batch,
            self.dynamic,
            self.keep,
            self.nms,
            self.nms_reason,
            self.end2end,
            self.end2end_reason,
            self.conf,
            self.iou,
            self.max_det,
            self.simplify,
            self.workspace,
            self.opt_level,
            self.compatibility,
            self.weights,
            self.isolate,
            self.output,
        ]
        self.more = Collapsible("More settings", more, name="more")
        self.problem = ipywidgets.HTML()
        self.problem.add_class("trtkit-problem")
        titles = [ipywidgets.HTML(Markup("<h4>{}</h4>").format(title)) for title in ("Precision", "Target")]
        self.children = (
            self.heading,
            titles[0],
            self.precision,
            titles[1],
            self.target,
            self.device,
            self.more,
            ipywidgets.HTML(render_words("Q/DQ", "calibration", "range, scale", "optimization profile", "ONNX node")),
            self.problem,
        )

    def _on_device(self, change: dict[str, Any]) -> None:
        if not self.host.rendering:
            device = None if change["new"] == NONE else change["new"]
            self.host.update(lambda state: state.fill(devices=state.form.with_device(device).devices))

    def show(self, state: WizardState) -> None:
        """Set the controls from a state."""
        form, machine = state.form, state.machine
        if machine is None:
            self.problem.value = render_note("Inspecting this machine …")
            return
        self.precision.show(precision_options(form.target, machine), form.precision)
        self.target.show(target_options(machine), form.target)
        devices = device_options(form.target, machine, form.device)
        options = tuple((label, NONE if device is None else device) for label, device in devices)
        if self.device.options != options:
            self.device.options = options
        self.device.value = form.device if form.builds_engine and form.device is not None else NONE
        self.device.disabled = not form.builds_engine
        for name in FIELDS:
            value = getattr(form, name)
            getattr(self, name).value = NONE if value is None else value
        # Text that gives the same patterns stays as it was typed.
        if _split_lines(self.keep.value) != form.keep:
            self.keep.value = "\n".join(form.keep)
        self.keep.disabled = form.precision not in ("fp16", "int8")
        choices = (
            (self.nms, self.nms_reason, state.nms_option),
            (self.end2end, self.end2end_reason, state.end2end_option),
        )
        for control, reason, option in choices:
            control.disabled = not option.available
            reason.value = render_reason(f"Not available: {option.reason}." if option.reason else "")
        for control, used in ((self.conf, form.nms), (self.iou, form.nms), (self.max_det, form.nms or form.end2end)):
            control.layout.display = "" if used else "none"
        for control in (self.workspace, self.opt_level, self.compatibility, self.weights, self.isolate):
            control.disabled = not form.builds_engine
        self.output.placeholder = form.default_output or "beside the model, named by model and precision"
        self.problem.value = render_note(state.problem, kind="problem") if state.problem else ""


def _split_lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


class ImagesStep(Step):
    """Name the images for calibration and evaluation, and examine those for calibration."""

    def __init__(self, host: StepHost) -> None:
        super().__init__(
            host,
            "images",
            "Images",
            "INT8 is calibrated on images of train, and the result is evaluated on val. Calibration images should be "
            "like those of the application.",
        )
        self.data = make_control(
            ipywidgets.Combobox,
            "Data set",
            "Path of a data.yaml, or of a folder of class folders for classify; a folder or pattern of images without "
            "labels calibrates too, but accuracy is then not measured",
            name="data",
            layout=WIDE,
            placeholder="data.yaml",
            options=find_files(DATA_SUFFIXES),
        )
        self.data_problem = ipywidgets.HTML()
        self.data_problem.add_class("trtkit-data-problem")
        self.thumbnails = Thumbnails()
        self.source = OptionGroup(
            "ranges", lambda value: host.update(lambda state: state.fill(use_saved_calibration=value == "saved"))
        )
        self.fraction = make_control(
            ipywidgets.FloatText,
            "Fraction of train",
            "Share of the split to draw calibration images from, above 0 and at most 1",
            name="fraction",
            step=0.05,
            layout=SHORT,
        )
        self.calibration = make_control(
            ipywidgets.Text,
            "Calibration folder",
            "A folder written by trtkit.calibrate(...).save()",
            name="calibration",
            layout=WIDE,
            placeholder="runs/calibrate",
        )
        self.check_overflow = make_control(
            ipywidgets.Checkbox,
            "Check for FP16 overflow on 32 of these images",
            "Layers that exceed FP16's range stay in FP32",
            name="check",
            layout=WIDE,
        )
        self.main_button = self.examine = make_button(
            "Examine images",
            "Check the calibration images for problems",
            host.guard(self.start),
            name="examine",
            layout=ipywidgets.Layout(width="11rem"),
        )
        self.reason = ipywidgets.HTML()
        self.view = JobView("the image checks", lambda job: host.finish_job(job, WizardState.with_examination))
        self.findings = ipywidgets.HTML()
        self.findings.add_class("trtkit-findings")
        self.figure = FigureOutput()
        self._drawn: Examination | None = None
        for name in ("data", "fraction", "check_overflow", "calibration"):
            self.bind(getattr(self, name), name)
        self.children = (
            self.heading,
            self.data,
            self.data_problem,
            self.thumbnails,
            self.source,
            self.fraction,
            self.calibration,
            self.check_overflow,
            ipywidgets.HBox([self.examine, self.reason], layout=ipywidgets.Layout(align_items="center")),
            self.view,
            self.findings,
            self.figure,
        )

    def show(self, state: WizardState) -> None:
        """Set the controls from a state."""
        form = state.form
        self.data.value, self.fraction.value = form.data, form.fraction
        data_problem = state.data_problem
        self.data_problem.value = render_note(data_problem, kind="problem") if data_problem else ""
        self.thumbnails.show(form.data)
        self.calibration.value, self.check_overflow.value = form.calibration, form.check_overflow
        self.source.show(
            (
                Option(value="images", label="Calibrate on images", description="During the build."),
                Option(value="saved", label="Saved calibration", description="From tk.calibrate or the tuner."),
            ),
            "saved" if form.use_saved_calibration else "images",
        )
        self.source.layout.display = "" if form.precision == "int8" else "none"
        uses_folder = form.precision == "int8" and form.use_saved_calibration
        self.calibration.layout.display = "" if uses_folder else "none"
        self.fraction.layout.display = "" if form.calibrates or form.precision == "fp16" else "none"
        self.check_overflow.layout.display = "" if form.precision == "fp16" else "none"
        self.check_overflow.disabled = not form.data
        problem = state.examine_problem or data_problem
        self.examine.disabled = bool(self.host.busy or problem)
        self.reason.value = render_reason(problem)
        examination = None if state.examine_problem else state.examination
        self.view.show_done(is_current=examination is not None and not state.examination_outdated)
        self.findings.value = "" if examination is None else self._render_findings(state, examination)
        if examination is not self._drawn:
            self._drawn = examination
            self.figure.draw(None if examination is None else examination.figure)

    def _render_findings(self, state: WizardState, examination: Examination) -> str:
        parts = []
        if state.examination_outdated:
            parts.append(render_note("These findings are about other images than the form names.", kind="warning"))
        parts.append(render_messages(*diagnosis_messages(examination.diagnosis)))
        classes = examination.diagnosis.classes
        if classes.height:
            parts.append(table_html(classes, caption="Objects of each class", headings={"class": "Class"}))
        return render("widgets/wizard/templates/parts.html.j2", parts=parts)

    def start(self) -> None:
        """Examine the calibration images."""
        state = self.host.state
        assert state.model is not None
        self.host.start_job(self.view, examine_images, state.form.data, state.model, state.form.fraction)
