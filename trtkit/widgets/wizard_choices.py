"""The wizard's form of precision, target and settings. Callbacks only."""

from __future__ import annotations

from typing import Any

import ipywidgets

from trtkit.widgets.choice_group import ChoiceGroup
from trtkit.widgets.choices import devices, precisions, targets
from trtkit.widgets.controls import labelled, note_html
from trtkit.widgets.fold import Fold
from trtkit.widgets.session import Session
from trtkit.widgets.wizard_step import SHORT, WIDE, Desk, Step

__all__ = ["ChoicesStep"]

FIELDS = ("imgsz", "batch", "dynamic", "nms", "simplify", "workspace", "level", "isolate", "output")

# A drop-down whose value is None has nothing chosen.
NONE = "none"


class ChoicesStep(Step):
    """Which precision, for which target, and the settings that have good defaults."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(
            desk,
            "choices",
            "Which precision, for which target?",
            "What this machine can't make is marked, with the reason.",
        )
        self.precision = ChoiceGroup("precision", lambda value: desk.update(lambda s: s.fill(precision=value)))
        self.target = ChoiceGroup("target", lambda value: desk.update(lambda s: s.target(value)))
        self.device = labelled(
            ipywidgets.Dropdown, "Built for", "The GPU that the engine will run on", name="device", layout=WIDE
        )
        self.device.observe(self._aimed, "value")
        self.imgsz = labelled(
            ipywidgets.Text,
            "Picture size",
            "One side or height,width in pixels; empty for the model's own",
            name="imgsz",
            placeholder="the model's own",
            layout=SHORT,
        )
        self.batch = labelled(ipywidgets.IntText, "Largest batch", "Most pictures a run", name="batch", layout=SHORT)
        self.dynamic = labelled(
            ipywidgets.Dropdown,
            "Open shapes",
            "Whether batch, height and width may change at run time",
            name="dynamic",
            options=[("as suits the target", NONE), ("yes", True), ("no", False)],
            layout=SHORT,
        )
        self.nms = labelled(
            ipywidgets.Checkbox,
            "Suppression in the graph",
            "Non-maximum suppression runs inside the engine",
            name="nms",
        )
        self.nms_reason = ipywidgets.HTML()
        self.simplify = labelled(
            ipywidgets.Checkbox, "Simplify the graph", "Run onnxslim over the graph", name="simplify"
        )
        self.keep = labelled(
            ipywidgets.Textarea,
            "Keep in high precision",
            "Patterns of ONNX node names, one a line, such as /model.23/*",
            name="keep",
            placeholder="/model.23/*",
            rows=2,
            layout=WIDE,
        )
        self.workspace = labelled(
            ipywidgets.Text,
            "Workspace, GiB",
            "Memory the builder may use; empty lets TensorRT decide",
            name="workspace",
            placeholder="as TensorRT decides",
            layout=SHORT,
        )
        self.level = labelled(
            ipywidgets.Dropdown,
            "Optimisation level",
            "0 builds quickly, 5 searches longest",
            name="level",
            layout=SHORT,
            options=[("TensorRT's default", NONE), *((str(number), number) for number in range(6))],
        )
        self.isolate = labelled(
            ipywidgets.Checkbox, "Build in a child process", "A crash inside TensorRT becomes an error", name="isolate"
        )
        self.output = labelled(
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
            self.level,
            self.isolate,
            self.output,
        ]
        self.more = Fold("More settings", more, name="more")
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

    def show(self, session: Session) -> None:
        """Show a state."""
        plan, machine = session.plan, session.machine
        if machine is None:
            self.problem.value = note_html("Looking at this machine …")
            return
        self.precision.show(precisions(plan.target, machine), plan.precision)
        self.target.show(targets(machine), plan.target)
        found = devices(plan.target, machine, plan.device)
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
        for control in (self.workspace, self.level, self.isolate):
            control.disabled = not plan.engine
        self.output.placeholder = plan.output_shown or "beside the model, its name saying the precision"
        self.problem.value = note_html(session.problem, kind="problem") if session.problem else ""
