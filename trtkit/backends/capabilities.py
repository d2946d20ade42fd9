"""What this machine can do, and whether it can do what is asked: answered before slow work starts.

A refusal names what is missing and the command that brings it. `surfaces` does the looking.
"""

from __future__ import annotations

from trtkit.backends.gpus import Device, device_of, find_gpus
from trtkit.backends.surfaces import BACKENDS, INSTALL, TITLES, Capabilities, describe
from trtkit.errors import CapabilityError

__all__ = [
    "BACKENDS",
    "DEFAULT_TARGET",
    "TITLES",
    "Capabilities",
    "best",
    "capabilities",
    "describe",
    "require_build",
    "require_run",
    "target_of",
]

# The GPU an engine is built for when there is none to look at: the RTX 40 series.
DEFAULT_TARGET = "sm89"


def capabilities(backend: str | None = None) -> Capabilities:
    """What this machine can do with a backend.

    Args:
        backend: One of `BACKENDS`; None takes the best for building.

    Raises:
        RecipeError: No such backend.
    """
    return describe(backend if backend is not None else best())


def best(kind: str = "build") -> str:
    """The best backend present.

    Args:
        kind: "build" or "run".

    Returns:
        "tensorrt" where it and a GPU are there, else "tensorrt_rtx" where it can do it, else "onnxruntime".
    """
    if describe("tensorrt").present and find_gpus():
        return "tensorrt"
    rtx = describe("tensorrt_rtx")
    if rtx.present and (kind == "build" or (rtx.gpu is not None and rtx.gpu.sm in rtx.cross_build_targets)):
        return "tensorrt_rtx"
    return "onnxruntime"


def require_build(backend: str | None = None, *, device: str | int | None = None) -> Capabilities:
    """Make sure that a backend builds engines for a device here.

    Args:
        backend: "tensorrt" or "tensorrt_rtx"; None takes the best present.
        device: As `device_of` reads it.

    Returns:
        The backend's capabilities.

    Raises:
        CapabilityError: What is missing, and the command that brings it.
        RecipeError: No such backend or device name.
    """
    wanted = device_of(device)
    if backend is None:
        backend = "tensorrt_rtx" if wanted.kind == "sm" and describe("tensorrt_rtx").present else best("build")
        if backend == "onnxruntime":
            raise CapabilityError(
                "build a TensorRT engine", "neither TensorRT nor TensorRT-RTX works here", INSTALL["tensorrt_rtx"]
            )
    found = describe(backend)
    asked = f"build a {TITLES[backend]} engine"
    if backend == "onnxruntime":
        raise CapabilityError(
            asked, "ONNX Runtime runs graphs and builds nothing", "pass format='onnx', or another backend"
        )
    if not found.present:
        raise CapabilityError(asked, found.missing, INSTALL[backend])
    if wanted.kind == "cpu":
        raise CapabilityError(f"{asked} for device='cpu'", "engines are for GPUs", "pass device=0, or format='onnx'")
    if wanted.kind == "sm":
        _require_target(found, wanted.sm, asked)
        return found
    if wanted.kind == "dla" and not found.has_dla:
        raise CapabilityError(
            f"{asked} for DLA core {wanted.index}",
            f"{found.title} has no DLA (it left with TensorRT 11; TensorRT-RTX never had it)",
            "use TensorRT 10.x on a Jetson, or device=0",
        )
    if wanted.kind == "any" and not found.gpus and found.cross_build_targets:
        return found
    gpu = found.gpu_at(wanted, asked)
    if found.cross_build_targets:
        _require_target(found, gpu.sm, f"{asked} for {gpu.name}")
    return found


def require_run(backend: str, *, device: str | int | None = None) -> Capabilities:
    """Make sure that a backend runs engines on a device here.

    Args:
        backend: "tensorrt" or "tensorrt_rtx".
        device: As `device_of` reads it.

    Returns:
        The backend's capabilities.

    Raises:
        CapabilityError: What is missing, and the command that brings it.
        RecipeError: No such backend or device name.
    """
    found = describe(backend)
    asked = f"run a {TITLES[backend]} engine"
    if not found.present:
        raise CapabilityError(asked, found.missing, INSTALL[backend])
    wanted = device_of(device)
    if wanted.kind in ("cpu", "sm"):
        raise CapabilityError(f"{asked} on {device!r}", "engines run on GPUs", "pass device=0, or open the ONNX file")
    if not found.gpus:
        raise CapabilityError(
            asked, "no NVIDIA driver with a GPU was found", "open it on a machine with one, or open the ONNX file here"
        )
    found.gpu_at(wanted, asked)
    if not found.torch_cuda:
        raise CapabilityError(
            asked, "the installed torch has no CUDA", "install torch from https://pytorch.org with CUDA"
        )
    return found


def target_of(found: Capabilities, device: Device) -> str:
    """The compute capability that TensorRT-RTX builds for: the named one, the GPU's, or `DEFAULT_TARGET`.

    Args:
        found: Of TensorRT-RTX.
        device: From `device_of`.
    """
    if device.kind == "sm":
        return device.sm
    return found.gpus[device.gpu].sm if found.gpus else DEFAULT_TARGET


def _require_target(found: Capabilities, sm: str, asked: str) -> None:
    if not found.cross_build_targets:
        raise CapabilityError(
            f"{asked} for {sm}",
            f"{found.title} builds only for the GPU that is here",
            "use backend='tensorrt_rtx', or device=0",
        )
    if sm not in found.cross_build_targets:
        raise CapabilityError(
            f"{asked} for {sm}",
            f"{found.title} supports {', '.join(found.cross_build_targets)}",
            "pass one of these as device, or use backend='tensorrt' on that GPU",
        )
