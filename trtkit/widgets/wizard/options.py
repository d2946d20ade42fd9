"""What can be chosen on this machine, and why the rest can't: asked of the backends, never guessed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from trtkit.errors import CapabilityError, RecipeError, TrtkitError
from trtkit.widgets.ui.controls import Option

__all__ = [
    "Device",
    "Machine",
    "device_label",
    "device_options",
    "inspect_machine",
    "nms_option",
    "precision_options",
    "target_options",
]

# What people call the compute capabilities that TensorRT-RTX builds for; https://developer.nvidia.com/cuda-gpus.
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
    """What this machine builds and runs; one look, so that a widget asks once.

    Attributes:
        titles: Name and version of each backend that is present, such as "TensorRT-RTX 1.7.1.116".
        missing: Why a backend is absent, and what brings it, by backend.
        gpus: Name and compute capability of each GPU.
        best: What an engine is built by where nothing is asked for, "onnxruntime" where nothing builds.
        builds: Why a backend builds no engine for the GPU that is here, and what to do; "" where it does.
        runs: Why its engines don't run here; "" where they do.
        cross: Compute capabilities that a backend builds for with no such GPU.
        calibrates: Backends with an INT8 calibrator of their own.
        refuses: Why a backend, None for the best, builds nothing for a device; "" where it does.
    """

    titles: Mapping[str, str] = dataclasses.field(default_factory=dict)
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)
    gpus: tuple[tuple[str, str], ...] = ()
    best: str = "onnxruntime"
    builds: Mapping[str, str] = dataclasses.field(default_factory=dict)
    runs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cross: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    calibrates: tuple[str, ...] = ()
    refuses: Callable[[str | None, Device], str] = dataclasses.field(
        default=lambda backend, device: "", repr=False, compare=False
    )

    @property
    def told(self) -> str:
        """What this machine can do, in a sentence or two."""
        here = ", ".join(f"{name} ({sm})" for name, sm in self.gpus) or "no NVIDIA GPU"
        said = f"This machine has {here}."
        engines = [self.titles[name] for name, reason in self.builds.items() if not reason]
        if engines and self.gpus:
            said += f" {' and '.join(engines)} build engines for it."
        for name, sms in self.cross.items():
            said += f" {self.titles[name]} builds engines here for {', '.join(sms)}, with no such GPU."
        if not engines and not self.cross:
            said += " It builds no engines: it lacks TensorRT and TensorRT-RTX."
        if any(not reason for reason in self.runs.values()):
            return said
        runner = self.titles.get("onnxruntime", "ONNX Runtime")
        return f"{said} Engines don't run here; {runner} runs the same graphs, so accuracy can be judged."


def inspect_machine() -> Machine:
    """Look at this machine; on one with a GPU this imports torch and takes seconds.

    Returns:
        What was found. Nothing here compares versions: every answer is the backends' own.
    """
    from trtkit.backends.base import get_backend, list_backends
    from trtkit.backends.capabilities import best, probe, require_build, require_run

    found = {name: probe(name) for name in list_backends()}
    engines = [name for name in found if get_backend(name).needs_gpu]
    builds, runs = {}, {}
    for name in engines:
        builds[name], runs[name] = "", ""
        try:
            require_build(name)
            if not found[name].gpus:
                builds[name] = "no NVIDIA driver with a GPU was found; build for another GPU instead"
        except CapabilityError as error:
            builds[name] = f"{error.found}; {error.do}"
        try:
            require_run(name)
        except CapabilityError as error:
            runs[name] = error.found
    return Machine(
        titles={name: one.title for name, one in found.items() if one.present},
        missing={
            name: f"{one.missing}; {get_backend(name).install_hint}" for name, one in found.items() if not one.present
        },
        gpus=tuple((gpu.name, gpu.sm) for gpu in found["tensorrt"].gpus),
        best=best("build"),
        builds=builds,
        runs=runs,
        cross={
            name: found[name].cross_build_targets
            for name in engines
            if found[name].present and found[name].cross_build_targets
        },
        calibrates=tuple(name for name in engines if found[name].present and found[name].has_int8_calibrator),
        refuses=_build_problem,
    )


def _build_problem(backend: str | None, device: Device) -> str:
    from trtkit.backends.capabilities import require_build

    try:
        require_build(backend, device=device)
    except TrtkitError as error:
        return str(error)
    return ""


def target_options(machine: Machine) -> tuple[Option, ...]:
    """What to make: an engine by each builder, or an ONNX file."""
    best = machine.best
    if best == "onnxruntime":
        auto = Option(
            value="best",
            label="Best engine here",
            told="An engine by the best builder of this machine.",
            reason=machine.missing.get("tensorrt_rtx") or "neither TensorRT nor TensorRT-RTX works here",
        )
    else:
        aim = machine.gpus[0][0] if machine.gpus else f"{device_label(None, 'best', machine)}"
        auto = Option(value="best", label="Best engine here", told=f"{machine.titles[best]}, for {aim}.")
    return (
        auto,
        _engine("tensorrt", "TensorRT engine", "For the GPU of this machine, and only for it.", machine),
        _engine(
            "tensorrt_rtx",
            "TensorRT-RTX engine",
            "For GeForce and RTX cards; builds without one, and the user's machine finishes the work when it loads it.",
            machine,
        ),
        Option(
            value="onnx",
            label="ONNX file",
            told="The same graph, its precision included, for any runtime; needs no GPU.",
        ),
    )


def _engine(backend: str, label: str, told: str, machine: Machine) -> Option:
    reason = machine.missing.get(backend, "")
    if not reason and not machine.cross.get(backend):
        reason = machine.builds.get(backend, "")
    title = machine.titles.get(backend)
    return Option(value=backend, label=label, told=f"{title}. {told}" if title else told, reason=reason)


def device_options(target: str, machine: Machine, asked: Device = None) -> tuple[tuple[str, Device], ...]:
    """Labels and values of what an engine can be built for.

    Args:
        target: One of `target_options`' values.
        machine: This one.
        asked: What a recipe asks for; it is among them even where this machine does not offer it.
    """
    if target == "onnx":
        return (("none: the file fits any", None),)
    builder = machine.best if target == "best" else target
    found: list[Device] = [None] if machine.gpus or target == "best" else []
    found += list(range(1, len(machine.gpus)))
    found += list(machine.cross.get(builder, ()))
    if asked not in found:
        found.append(asked)
    return tuple((device_label(device, target, machine), device) for device in found)


def device_label(device: Device, target: str, machine: Machine) -> str:
    """A device as people know it."""
    from trtkit.backends.capabilities import DEFAULT_TARGET
    from trtkit.backends.devices import parse_device

    if device is None and machine.gpus:
        return f"this machine's {machine.gpus[0][0]}"
    try:
        wanted = parse_device(device)
    except RecipeError:
        return str(device)
    sm = DEFAULT_TARGET if wanted.kind == "any" else wanted.sm
    if sm:
        return f"{sm}: {GPU_NAMES[sm]}" if sm in GPU_NAMES else sm
    if wanted.kind == "cuda" and wanted.index < len(machine.gpus):
        return f"GPU {wanted.index}: {machine.gpus[wanted.index][0]}"
    return str(device)


def precision_options(target: str, machine: Machine) -> tuple[Option, ...]:
    """FP32, FP16, INT8, and INT8 by TensorRT's own calibrator, for a target."""
    builder = {"best": machine.best, "onnx": ""}.get(target, target)
    title = machine.titles.get(builder, "it")
    implicit = ""
    if target == "onnx":
        implicit = "an ONNX file has no builder that could calibrate"
    elif builder not in machine.calibrates:
        implicit = (
            f"{title} has no calibrator of its own (TensorRT up to 10 has)"
            if builder in machine.titles
            else "TensorRT up to 10 has it, and there is none here"
        )
    return (
        Option(value="fp32", label="FP32", told="The model as it was trained: the yardstick for the others."),
        Option(value="fp16", label="FP16", told="Half the size; nearly always as accurate. Needs no images."),
        Option(
            value="int8",
            label="INT8",
            told="The fastest where it pays, at some accuracy. Ranges come from your images and go into the graph.",
        ),
        Option(
            value="implicit",
            label="INT8, TensorRT's calibrator",
            told="TensorRT measures the ranges while it builds and chooses the layers itself.",
            reason=implicit,
        ),
    )


def nms_option(task: str | None, already: bool) -> Option:
    """Whether suppression can be put into the graph.

    Args:
        task: The model's, None where no model was read yet.
        already: Whether the model's graph has it.
    """
    reason = ""
    if already:
        reason = "it is in the model's graph already"
    elif task == "classify":
        reason = "a classifier finds no boxes, so there are none to suppress"
    return Option(value="nms", label="Suppression in the graph", told="Boxes come out final.", reason=reason)
