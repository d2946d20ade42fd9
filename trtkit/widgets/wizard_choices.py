"""The wizard's form of precision, target and settings. Callbacks only."""

from __future__ import annotations

from typing import Any

import ipywidgets

from trtkit.widgets.choice_group import ChoiceGroup
from trtkit.widgets.choices import devices, precisions, targets
from trtkit.widgets.controls import labelled, note_html
from trtkit.widgets.session import Session
from trtkit.widgets.wizard_step import WIDE, Desk, Step

__all__ = ["ChoicesStep"]


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
        short = ipywidgets.Layout(width="22rem")
        self.imgsz = labelled(
            ipywidgets.Text,
            "Picture size",
            "One side or height,width in pixels; empty for the model's own",
            name="imgsz",
            placeholder="the model's own",
            layout=short,
        )
        self.batch = labelled(ipywidgets.IntText, "Largest batch", "Most pictures a run", name="batch", layout=short)
        self.dynamic = labelled(
            ipywidgets.Dropdown,
            "Open shapes",
            "Whether batch, height and width may change at run time",
            name="dynamic",
            options=[("as suits the target", None), ("yes", True), ("no", False)],
            layout=short,
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
            layout=short,
        )
        self.level = labelled(
            ipywidgets.Dropdown,
            "Optimisation level",
            "0 builds quickly, 5 searches longest",
            name="level",
            layout=short,
            options=[("TensorRT's default", None), *((str(number), number) for number in range(6))],
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
        more = ipywidgets.VBox(
            [
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
        )
        self.more = ipywidgets.Accordion([more], titles=("More settings",), selected_index=None)
        self.more.add_class("trtkit-more")
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
        for name in ("imgsz", "batch", "dynamic", "nms", "simplify", "workspace", "level", "isolate", "output"):
            self.fills(getattr(self, name), name)
        self.fills(self.keep, "keep", lambda text: tuple(line.strip() for line in text.splitlines() if line.strip()))

    def _aimed(self, change: dict[str, Any]) -> None:
        if not self.desk.showing:
            self.desk.update(lambda session: session.fill(devices=session.plan.aimed(change["new"]).devices))

    def show(self, session: Session) -> None:
        """Show a state."""
        plan, machine = session.plan, session.machine
        if machine is None:
            self.problem.value = note_html("Looking at this machine …")
            return
        self.precision.show(precisions(plan.target, machine), plan.precision)
        self.target.show(targets(machine), plan.target)
        options = devices(plan.target, machine, plan.device)
        if self.device.options != options:
            self.device.options = options
        self.device.value = plan.device if plan.engine else None
        self.device.disabled = not plan.engine
        for name in ("imgsz", "batch", "dynamic", "nms", "simplify", "workspace", "level", "isolate", "output"):
            getattr(self, name).value = getattr(plan, name)
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
