"""The options this machine offers: targets, devices and precisions, with the reason where one is unavailable."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from trtkit.errors import CapabilityError, RecipeError, TrtkitError
from trtkit.widgets.ui.controls import Option

if TYPE_CHECKING:
    from trtkit.models import Model

__all__ = [
    "GPU_NAMES",
    "Device",
    "Machine",
    "device_label",
    "device_options",
    "end2end_option",
    "inspect_machine",
    "nms_option",
    "precision_options",
    "target_options",
]

# Product names of the compute capabilities that TensorRT-RTX builds for; https://developer.nvidia.com/cuda-gpus.
GPU_NAMES = {
    "sm75": "GeForce RTX 20 series, T4",
    "sm80": "A100, A30",
    "sm86": "GeForce RTX 30 series, A10, A40",
    "sm89": "GeForce RTX 40 series, L4, L40",
    "sm90": "H100, H200",
    "sm120": "GeForce RTX 50 series",
    "sm121": "DGX Spark",
}

Device = int | str | None
"""A device as `Recipe.device` names it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """What this machine builds and runs, as the backends report it.

    Attributes:
        titles: Name and version of each backend that is present, such as "TensorRT-RTX 1.7.1.116".
        missing: Why a backend is absent and how to install it, by backend.
        gpus: Name and compute capability of each GPU.
        best: The best engine builder present; "onnxruntime" where none is.
        build_problems: Why a backend builds no engine for this machine's GPU, and what to do; "" where it does.
        run_problems: Why its engines do not run here; "" where they do.
        cross_targets: Compute capabilities a backend builds for without such a GPU.
        calibrators: Backends with an INT8 calibrator of their own.
        find_build_problem: Why a backend (None: the best) builds nothing for a device; "" where it does.
    """

    titles: Mapping[str, str] = dataclasses.field(default_factory=dict)
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)
    gpus: tuple[tuple[str, str], ...] = ()
    best: str = "onnxruntime"
    build_problems: Mapping[str, str] = dataclasses.field(default_factory=dict)
    run_problems: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cross_targets: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    calibrators: tuple[str, ...] = ()
    find_build_problem: Callable[[str | None, Device], str] = dataclasses.field(
        default=lambda backend, device: "", repr=False, compare=False
    )

    @property
    def summary(self) -> str:
        """GPUs, builders and runners of this machine, in a few sentences."""
        gpus = ", ".join(f"{name} ({sm})" for name, sm in self.gpus) or "no NVIDIA GPU"
        summary = f"This machine has {gpus}."
        builders = [self.titles[name] for name, problem in self.build_problems.items() if not problem]
        if builders and self.gpus:
            verb = "builds" if len(builders) == 1 else "build"
            summary += f" {' and '.join(builders)} {verb} engines for it."
        for name, targets in self.cross_targets.items():
            summary += f" {self.titles[name]} builds engines for {', '.join(targets)} without such a GPU."
        if not builders and not self.cross_targets:
            summary += " No engines can be built: TensorRT and TensorRT-RTX are missing."
        if any(not problem for problem in self.run_problems.values()):
            return summary
        runner = self.titles.get("onnxruntime", "ONNX Runtime")
        return f"{summary} Engines do not run here; {runner} evaluates the same graphs."


def inspect_machine() -> Machine:
    """Ask every backend what it can do here; with a GPU this imports torch and takes seconds."""
    from trtkit.backends.capabilities import probe
    from trtkit.backends.registry import get_backend, list_backends
    from trtkit.backends.requirements import best, require_build, require_run

    capabilities = {name: probe(name) for name in list_backends()}
    builders = [name for name in capabilities if get_backend(name).needs_gpu]
    build_problems, run_problems = {}, {}
    for name in builders:
        build_problems[name], run_problems[name] = "", ""
        try:
            require_build(name)
            if not capabilities[name].gpus:
                build_problems[name] = "no NVIDIA driver with a GPU was found; build for another GPU instead"
        except CapabilityError as error:
            build_problems[name] = f"{error.found}; {error.do}"
        try:
            require_run(name)
        except CapabilityError as error:
            run_problems[name] = error.found
    present = {name: one for name, one in capabilities.items() if one.present}
    return Machine(
        titles={name: one.title for name, one in present.items()},
        missing={
            name: f"{one.missing}; {get_backend(name).install_hint}"
            for name, one in capabilities.items()
            if not one.present
        },
        gpus=tuple((gpu.name, gpu.sm) for gpu in capabilities["tensorrt"].gpus),
        best=best("build"),
        build_problems=build_problems,
        run_problems=run_problems,
        cross_targets={
            name: present[name].cross_build_targets
            for name in builders
            if name in present and present[name].cross_build_targets
        },
        calibrators=tuple(name for name in builders if name in present and present[name].has_int8_calibrator),
        find_build_problem=_find_build_problem,
    )


def _find_build_problem(backend: str | None, device: Device) -> str:
    from trtkit.backends.requirements import require_build

    try:
        require_build(backend, device=device)
    except TrtkitError as error:
        return str(error)
    return ""


def target_options(machine: Machine) -> tuple[Option, ...]:
    """What to export: an engine by each builder, or an ONNX file.

    Args:
        machine: From `inspect_machine`.
    """
    if machine.best == "onnxruntime":
        best = Option(
            value="best",
            label="Best engine here",
            description="An engine by the best builder of this machine.",
            reason=machine.missing.get("tensorrt_rtx") or "neither TensorRT nor TensorRT-RTX works here",
        )
    else:
        device = machine.gpus[0][0] if machine.gpus else device_label(None, "best", machine)
        best = Option(
            value="best", label="Best engine here", description=f"{machine.titles[machine.best]}, for {device}."
        )
    return (
        best,
        _engine_option("tensorrt", "TensorRT engine", "For this machine's GPU only.", machine),
        _engine_option(
            "tensorrt_rtx",
            "TensorRT-RTX engine",
            "For GeForce and RTX GPUs; builds without a GPU and is compiled on the user's machine when it is loaded.",
            machine,
        ),
        Option(
            value="onnx",
            label="ONNX file",
            description="The same graph with its precision, for any runtime; needs no GPU.",
        ),
    )


def _engine_option(backend: str, label: str, description: str, machine: Machine) -> Option:
    reason = machine.missing.get(backend, "")
    if not reason and not machine.cross_targets.get(backend):
        reason = machine.build_problems.get(backend, "")
    title = machine.titles.get(backend)
    description = f"{title}. {description}" if title else description
    return Option(value=backend, label=label, description=description, reason=reason)


def device_options(target: str, machine: Machine, selected: Device = None) -> tuple[tuple[str, Device], ...]:
    """Labels and values of the devices an engine can be built for.

    Args:
        target: A value of `target_options`.
        machine: From `inspect_machine`.
        selected: The selected device; it is listed even where this machine does not offer it.
    """
    if target == "onnx":
        return (("none: the file runs on any", None),)
    builder = machine.best if target == "best" else target
    devices: list[Device] = [None] if machine.gpus or target == "best" else []
    devices += list(range(1, len(machine.gpus)))
    devices += list(machine.cross_targets.get(builder, ()))
    if selected not in devices:
        devices.append(selected)
    return tuple((device_label(device, target, machine), device) for device in devices)


def device_label(device: Device, target: str, machine: Machine) -> str:
    """Readable name of a device.

    Args:
        device: The device.
        target: A value of `target_options`.
        machine: From `inspect_machine`.
    """
    from trtkit.backends.devices import parse_device
    from trtkit.backends.requirements import DEFAULT_TARGET

    if device is None and machine.gpus:
        return f"this machine's {machine.gpus[0][0]}"
    try:
        parsed = parse_device(device)
    except RecipeError:
        return str(device)
    sm = DEFAULT_TARGET if parsed.kind == "any" else parsed.sm
    if sm:
        return f"{sm}: {GPU_NAMES[sm]}" if sm in GPU_NAMES else sm
    if parsed.kind == "cuda" and parsed.index < len(machine.gpus):
        return f"GPU {parsed.index}: {machine.gpus[parsed.index][0]}"
    return str(device)


def precision_options(target: str, machine: Machine) -> tuple[Option, ...]:
    """FP32, FP16, INT8, and INT8 by TensorRT's own calibrator.

    Args:
        target: A value of `target_options`.
        machine: From `inspect_machine`.
    """
    builder = {"best": machine.best, "onnx": ""}.get(target, target)
    title = machine.titles.get(builder, "it")
    reason = ""
    if target == "onnx":
        reason = "an ONNX file is not built, so that no builder calibrates it"
    elif builder not in machine.calibrators:
        reason = (
            f"{title} has no calibrator of its own (TensorRT 10 and older have one)"
            if builder in machine.titles
            else "it needs TensorRT 10 or older, which is not installed"
        )
    return (
        Option(value="fp32", label="FP32", description="The model as trained; the reference for the others."),
        Option(
            value="fp16",
            label="FP16",
            description="Half the size, practically no accuracy loss, no calibration data.",
        ),
        Option(
            value="int8",
            label="INT8",
            description="Lowest latency where layers support it, at some accuracy loss; calibrated on your images, "
            "with the scales stored in the graph (Q/DQ).",
        ),
        Option(
            value="implicit",
            label="INT8, TensorRT's calibrator",
            description="TensorRT calibrates during the build and selects the INT8 layers itself.",
            reason=reason,
        ),
    )


def nms_option(task: str | None, in_graph: bool) -> Option:
    """NMS in the graph.

    Args:
        task: The model's task; None before a model was read.
        in_graph: Whether the model's graph contains NMS already.
    """
    reason = ""
    if in_graph:
        reason = "the model's graph contains NMS already"
    elif task == "classify":
        reason = "a classifier has no boxes"
    return Option(
        value="nms", label="NMS in the graph (nms=True)", description="The engine returns final boxes.", reason=reason
    )


def end2end_option(model: Model | None) -> Option:
    """The one-to-one head.

    Args:
        model: The model; None before one was read.
    """
    has = model is None or model.has_one_to_one_head
    return Option(
        value="end2end",
        label="One-to-one head (end2end=True)",
        description="Boxes of YOLO26 and YOLOv10 that need no NMS.",
        reason="" if has else "the model has no one-to-one head, as YOLO26 and YOLOv10 do",
    )
