"""The backend that builds or runs an engine here, and checks that fail before slow work starts."""

from __future__ import annotations

from trtkit.backends.capabilities import Capabilities, probe, require_torch_cuda
from trtkit.backends.devices import INTEGRATED, Device, is_ampere_plus, parse_device
from trtkit.backends.registry import get_backend, get_title, list_backends
from trtkit.errors import CapabilityError

__all__ = ["DEFAULT_TARGET", "best", "capabilities", "get_build_target", "require_build", "require_run"]

DEFAULT_TARGET = "sm89"
"""The GPU an engine is built for on a machine without one: the RTX 40 series."""

BUILD_ELSEWHERE = "pass one of these as device, or use backend='tensorrt' on that GPU"


def capabilities(backend: str | None = None) -> Capabilities:
    """What a backend can do on this machine.

    Args:
        backend: The name of a registered backend; None takes the best one for building.

    Raises:
        RecipeError: No such backend.
    """
    return probe(backend if backend is not None else best())


def best(kind: str = "build") -> str:
    """The name of the best backend on this machine.

    Args:
        kind: "build" or "run".

    Returns:
        The first registered GPU backend that does it here ("tensorrt", then "tensorrt_rtx"), else "onnxruntime".
    """
    for name in list_backends():
        try:
            backend, caps = get_backend(name), probe(name)
        except CapabilityError:
            # A package that does not import can't be chosen; `trtkit doctor` shows why.
            continue
        if not (backend.needs_gpu and caps.present and (kind == "run" or backend.build is not None)):
            continue
        targets = caps.cross_build_targets
        if kind == "build" and (caps.gpus or targets):
            return name
        if kind == "run" and caps.gpu is not None and (not targets or caps.gpu.sm in targets):
            return name
    return "onnxruntime"


def require_build(
    backend: str | None = None,
    *,
    device: str | int | None = None,
    compatibility: str | None = None,
    weights: str | None = None,
) -> Capabilities:
    """Check that a backend builds engines for a device on this machine.

    Args:
        backend: The name of a registered backend; None takes the best present.
        device: As in `parse_device`.
        compatibility: As in `BuildSettings`.
        weights: As in `BuildSettings`.

    Returns:
        The backend's capabilities.

    Raises:
        CapabilityError: What is missing, and the command that installs it.
        RecipeError: No such backend or device name.
    """
    target = parse_device(device)
    if backend is None:
        backend = "tensorrt_rtx" if target.kind == "sm" and probe("tensorrt_rtx").present else best("build")
        if backend == "onnxruntime":
            raise CapabilityError(
                "build a TensorRT engine",
                "neither TensorRT nor TensorRT-RTX is usable here",
                get_backend("tensorrt_rtx").install_hint,
                code="backend-none-builds",
            )
    caps = _require_present(backend, "build")
    builder = get_backend(backend)
    if builder.build is None:
        raise CapabilityError(
            f"build an engine with {builder.title}",
            f"{builder.title} runs {builder.models} and builds nothing",
            "pass format='onnx', or another backend",
            code="backend-builds-nothing",
            backend=backend,
        )
    lean = "put libnvinfer_lean.so of the same TensorRT on the library path (Debian: libnvinfer-lean), or " * (
        compatibility == "version" and backend == "tensorrt"
    )
    _require_choice(caps, "compatibility", compatibility, caps.compatibilities, lean)
    _require_choice(caps, "weights", weights, caps.weights)
    if not builder.needs_gpu:
        return caps
    asked = f"build a {builder.title} engine"
    if target.kind == "cpu":
        raise _device_error(asked, device, "pass device=0, or format='onnx'")
    if target.kind == "sm":
        _require_target(caps, target.sm, f"{asked} for {target.sm}", BUILD_ELSEWHERE)
        return caps
    if target.kind == "dla" and not caps.has_dla:
        raise CapabilityError(
            f"{asked} for DLA core {target.index}",
            f"{caps.title} has no DLA (TensorRT 11 removed it; TensorRT-RTX never had it)",
            "use TensorRT 10.x on a Jetson, or device=0",
            code="dla-unsupported",
            version=caps.version,
        )
    if target.kind == "any" and not caps.gpus and caps.cross_build_targets:
        return caps
    gpu = caps.gpu_at(
        target, asked, "run it on a machine with one, or build for one with backend='tensorrt_rtx', device='sm89'"
    )
    if caps.cross_build_targets:
        _require_target(caps, gpu.sm, f"{asked} for {gpu.name} ({gpu.sm})", BUILD_ELSEWHERE)
    elif compatibility == "ampere_plus" and not is_ampere_plus(gpu.sm):
        reason = (
            "is a Jetson's, which has no hardware compatibility" if gpu.sm in INTEGRATED else "is older than Ampere"
        )
        raise CapabilityError(
            f"{asked} with compatibility='ampere_plus'",
            f"{gpu.name} ({gpu.sm}) {reason}",
            "leave out compatibility, or build it on a discrete GPU of Ampere or later",
            code="build-compatibility-gpu",
            value=gpu.sm,
        )
    return caps


def require_run(backend: str, *, device: str | int | None = None) -> Capabilities:
    """Check that a backend runs its models on a device of this machine.

    Args:
        backend: The name of a registered backend.
        device: As in `parse_device`.

    Returns:
        The backend's capabilities.

    Raises:
        CapabilityError: What is missing, and the command that installs it.
        RecipeError: No such backend or device name.
    """
    caps = _require_present(backend, "run")
    target = parse_device(device)
    runtime = get_backend(backend)
    if not runtime.needs_gpu:
        return caps
    asked = f"run a {runtime.title} engine"
    if target.kind in ("cpu", "sm"):
        raise _device_error(asked, device, "pass device=0, or open the ONNX file")
    gpu = caps.gpu_at(target, asked, "open it on a machine with one, or open the ONNX file here")
    if caps.cross_build_targets:
        _require_target(
            caps,
            gpu.sm,
            f"{asked} on {gpu.name} ({gpu.sm})",
            "run it on one of these, or build with backend='tensorrt'",
        )
    if not caps.torch_cuda:
        require_torch_cuda(asked)
    return caps


def get_build_target(capabilities: Capabilities, device: Device) -> str:
    """The compute capability that TensorRT-RTX builds for: the named one, the GPU's, or `DEFAULT_TARGET`.

    Args:
        capabilities: Of TensorRT-RTX.
        device: From `parse_device`.
    """
    if device.kind == "sm":
        return device.sm
    return capabilities.gpus[device.gpu].sm if capabilities.gpus else DEFAULT_TARGET


def _device_error(asked: str, device: str | int | None, do: str) -> CapabilityError:
    return CapabilityError(f"{asked} on {device!r}", "engines run on GPUs", do, code="device-not-gpu", device=device)


def _require_present(name: str, verb: str) -> Capabilities:
    caps = probe(name)
    if not caps.present:
        backend = get_backend(name)
        raise CapabilityError(
            f"{verb} a {backend.title} engine" if backend.needs_gpu else f"{verb} a model with {backend.title}",
            caps.missing,
            backend.install_hint,
            code="backend-missing",
            backend=name,
        )
    return caps


def _require_choice(
    caps: Capabilities, name: str, value: str | None, supported: tuple[str, ...], first: str = ""
) -> None:
    if value is None or value in supported:
        return
    raise CapabilityError(
        f"build a {get_title(caps.backend)} engine with {name}={value!r}",
        f"{caps.title} has {' and '.join(map(repr, supported)) or 'no such engines'} on this machine",
        f"{first}leave out {name}, or build with another version",
        code=f"build-{name}-unsupported",
        value=value,
        supported=supported,
    )


def _require_target(caps: Capabilities, sm: str, asked: str, do: str) -> None:
    if not caps.cross_build_targets:
        raise CapabilityError(
            asked,
            f"{caps.title} builds only for the GPU of this machine",
            "use backend='tensorrt_rtx', or device=0",
            code="device-no-cross-build",
            value=sm,
        )
    if sm not in caps.cross_build_targets:
        raise CapabilityError(
            asked,
            f"{caps.title} supports {', '.join(caps.cross_build_targets)}",
            do,
            code="device-unsupported-target",
            value=sm,
            supported=caps.cross_build_targets,
        )
