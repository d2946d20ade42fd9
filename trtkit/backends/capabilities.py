"""What this machine can do, and whether it can do what is asked: answered before slow work starts.

A refusal names what is missing and the command that brings it. `surfaces` does the looking.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import re
from types import ModuleType
from typing import Any

from trtkit.backends.devices import Device, Gpu, cuda_driver_version, find_gpus, parse_device
from trtkit.errors import CapabilityError, RecipeError

__all__ = [
    "BACKENDS",
    "DEFAULT_TARGET",
    "INSTALL_HINTS",
    "TITLES",
    "Capabilities",
    "best",
    "capabilities",
    "get_build_target",
    "import_bindings",
    "probe",
    "require_build",
    "require_run",
    "require_torch_cuda",
    "same_release",
]


# Looking at the installed TensorRT, TensorRT-RTX and ONNX Runtime, once: what does each of them offer?
#
# No other module compares versions; most answers come from whether a name is there, because names outlive versions.


BACKENDS = ("tensorrt", "tensorrt_rtx", "onnxruntime")
TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX", "onnxruntime": "ONNX Runtime"}
INSTALL_HINTS = {
    "tensorrt": "run pip install 'trtkit[tensorrt]'",
    "tensorrt_rtx": "run pip install 'trtkit[rtx]'",
    "onnxruntime": "run pip install onnxruntime",
}
# The bindings import alone where the package that only re-exports them is missing.
MODULES = {
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
    "onnxruntime": ("onnxruntime",),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What one backend can do on this machine.

    Attributes:
        backend: One of `BACKENDS`.
        present: Whether it imports.
        version: Its version, "" where absent.
        missing: Why it is absent, "" where present.
        explicit_batch_flag: Networks must be created with EXPLICIT_BATCH.
        strongly_typed: Networks can take every type from the graph.
        strongly_typed_only: There is no other way; precision flags are gone.
        has_fp16_flag: `BuilderFlag.FP16` is there.
        has_int8_flag: `BuilderFlag.INT8` is there.
        has_precision_constraints: Single layers can be held at a precision.
        has_int8_calibrator: TensorRT's own INT8 calibrators are there.
        has_dla: The API knows DLA cores; whether the board has any is asked at build time.
        has_progress_monitor: Builds report progress and can be cancelled.
        has_timing_cache: Tactic timings can be kept between builds.
        has_parser_nodes: The ONNX parser's errors name node and operator.
        has_output_allocator: Outputs may have sizes known only after the run.
        limit_tactics: Tactics of cuBLAS and cuDNN exist but the libraries don't, so they must be switched off.
        cross_build_targets: Compute capabilities it builds for with no such GPU here, such as "sm89".
        gpus: The GPUs of this machine.
        torch_cuda: Whether torch is installed with CUDA and sees a GPU; engines run in its memory.
    """

    backend: str
    present: bool = False
    version: str = ""
    missing: str = ""
    explicit_batch_flag: bool = False
    strongly_typed: bool = False
    strongly_typed_only: bool = False
    has_fp16_flag: bool = False
    has_int8_flag: bool = False
    has_precision_constraints: bool = False
    has_int8_calibrator: bool = False
    has_dla: bool = False
    has_progress_monitor: bool = False
    has_timing_cache: bool = False
    has_parser_nodes: bool = False
    has_output_allocator: bool = False
    limit_tactics: bool = False
    cross_build_targets: tuple[str, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    torch_cuda: bool = False

    @property
    def title(self) -> str:
        """Name and version for people, such as "TensorRT 8.6.0"."""
        return f"{TITLES[self.backend]} {self.version}".strip()

    @property
    def gpu(self) -> Gpu | None:
        """The first GPU, or None."""
        return self.gpus[0] if self.gpus else None

    @property
    def driver(self) -> str:
        """The driver's version, "" with no GPU."""
        return self.gpus[0].driver if self.gpus else ""

    def gpu_at(self, device: Device, asked: str) -> Gpu:
        """The GPU that a device name means.

        Args:
            device: From `parse_device`.
            asked: What it is wanted for, for the error.

        Raises:
            CapabilityError: It is not here.
        """
        if not self.gpus:
            raise CapabilityError(
                asked,
                "no NVIDIA driver with a GPU was found",
                "run it on a machine with one, or build for one with backend='tensorrt_rtx', device='sm89'",
            )
        if device.gpu >= len(self.gpus):
            raise CapabilityError(
                f"{asked} on GPU {device.gpu}",
                f"this machine shows {len(self.gpus)}",
                f"pass device=0 to {len(self.gpus) - 1}",
            )
        return self.gpus[device.gpu]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return dataclasses.asdict(self)


@functools.cache
def import_bindings(backend: str) -> ModuleType:
    """The backend's Python module, imported once.

    Args:
        backend: One of `BACKENDS`.

    Raises:
        CapabilityError: It is not installed, or does not import.
    """
    reasons = []
    for name in MODULES[backend]:
        try:
            found = importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            reasons.append(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
            continue
        # Type stubs leave a folder that imports as an empty package.
        if hasattr(found, "Builder") or hasattr(found, "InferenceSession"):
            return found
        reasons.append(f"No module named {name!r} but its type stubs")
    installed = any(not reason.startswith("No module named") for reason in reasons)
    found_out = f"it does not import ({'; '.join(reasons)})" if installed else "it is not installed"
    raise CapabilityError(f"use {TITLES[backend]}", found_out, INSTALL_HINTS[backend])


@functools.cache
def probe(backend: str) -> Capabilities:
    """Look at one backend; the look happens once a process.

    Args:
        backend: One of `BACKENDS`.

    Raises:
        RecipeError: No such backend.
    """
    if backend not in BACKENDS:
        raise RecipeError(f"backend={backend!r}", "no such backend", f"use one of {', '.join(BACKENDS)}")
    gpus = find_gpus()
    try:
        found = import_bindings(backend)
    except CapabilityError as error:
        return Capabilities(backend=backend, missing=error.found, gpus=gpus)
    if backend == "onnxruntime":
        return Capabilities(backend=backend, present=True, version=found.__version__, gpus=gpus)
    return _probe_tensorrt(found, backend, gpus)


def same_release(one: str, other: str) -> bool:
    """Whether engines of one TensorRT version run on another: all the numbers that both versions tell are equal.

    Args:
        one: Such as "10.13.0.35" or "8.6.0".
        other: Likewise.
    """
    left, right = (re.findall(r"\d+", version) for version in (one, other))
    shared = min(len(left), len(right))
    return shared > 0 and left[:shared] == right[:shared]


def require_torch_cuda(asked: str) -> ModuleType:
    """Torch, once it is known to see a GPU.

    Args:
        asked: What it is wanted for, for the error.

    Raises:
        CapabilityError: Torch is missing or has no CUDA.
    """
    try:
        import torch
    except (ImportError, OSError) as error:
        raise CapabilityError(asked, f"torch does not import ({error})", "run pip install torch") from error
    if not torch.cuda.is_available():
        raise CapabilityError(asked, "the installed torch has no CUDA or sees no GPU", "install torch with CUDA")
    return torch


def _probe_tensorrt(trt: Any, backend: str, gpus: tuple[Gpu, ...]) -> Capabilities:
    flags, creation = trt.BuilderFlag, trt.NetworkDefinitionCreationFlag
    typed = hasattr(creation, "STRONGLY_TYPED")
    fp16 = hasattr(flags, "FP16")
    known = getattr(trt, "ComputeCapability", None) if hasattr(trt.IBuilderConfig, "set_compute_capability") else None
    targets = sorted((name for name in dir(known) if re.fullmatch(r"SM\d+", name)), key=lambda name: int(name[2:]))
    return Capabilities(
        backend=backend,
        present=True,
        version=str(trt.__version__),
        explicit_batch_flag=hasattr(creation, "EXPLICIT_BATCH"),
        strongly_typed=typed,
        strongly_typed_only=typed and not fp16,
        has_fp16_flag=fp16,
        has_int8_flag=hasattr(flags, "INT8"),
        has_precision_constraints=hasattr(flags, "PREFER_PRECISION_CONSTRAINTS"),
        has_int8_calibrator=hasattr(trt, "IInt8MinMaxCalibrator"),
        # DLA runs layers by precision flag; the enumeration's name alone outlived the cores.
        has_dla=fp16 and hasattr(getattr(trt, "DeviceType", None), "DLA"),
        has_progress_monitor=hasattr(trt, "IProgressMonitor"),
        # TensorRT-RTX times nothing while it builds: it keeps compiled kernels in a runtime cache instead.
        has_timing_cache=hasattr(trt, "ITimingCache") and not hasattr(trt, "IRuntimeCache"),
        has_parser_nodes=hasattr(trt.ParserError, "node_name"),
        has_output_allocator=hasattr(trt, "IOutputAllocator"),
        limit_tactics=hasattr(trt.TacticSource, "CUDNN") and not _cuda_libraries_load(),
        cross_build_targets=tuple(name.lower() for name in targets),
        gpus=gpus,
        torch_cuda=_torch_sees_gpu(),
    )


def _cuda_libraries_load() -> bool:
    """Whether cuDNN and cuBLAS load and tell a version: an empty stand-in loads too, and its tactics crash a build."""
    import ctypes

    for names, function, least in (
        (("libcudnn.so.8", "cudnn64_8.dll"), "cudnnGetVersion", 8000),
        (("libcublasLt.so.12", "libcublasLt.so.11", "cublasLt64_12.dll"), "cublasLtGetVersion", 11000),
    ):
        for name in names:
            try:
                tell = getattr(ctypes.CDLL(name), function)
            except (OSError, AttributeError):
                continue
            tell.restype = ctypes.c_size_t
            if tell() >= least:
                break
        else:
            return False
    return True


def _torch_sees_gpu() -> bool:
    # With no driver, importing torch would only cost seconds.
    if not cuda_driver_version():
        return False
    try:
        require_torch_cuda("look for CUDA")
    except CapabilityError:
        return False
    return True


# The GPU an engine is built for when there is none to look at: the RTX 40 series.
DEFAULT_TARGET = "sm89"


def capabilities(backend: str | None = None) -> Capabilities:
    """What this machine can do with a backend.

    Args:
        backend: One of `BACKENDS`; None takes the best for building.

    Raises:
        RecipeError: No such backend.
    """
    return probe(backend if backend is not None else best())


def best(kind: str = "build") -> str:
    """The best backend present.

    Args:
        kind: "build" or "run".

    Returns:
        "tensorrt" where it and a GPU are there, else "tensorrt_rtx" where it can do it, else "onnxruntime".
    """
    if probe("tensorrt").present and find_gpus():
        return "tensorrt"
    rtx = probe("tensorrt_rtx")
    if rtx.present and (kind == "build" or (rtx.gpu is not None and rtx.gpu.sm in rtx.cross_build_targets)):
        return "tensorrt_rtx"
    return "onnxruntime"


def require_build(backend: str | None = None, *, device: str | int | None = None) -> Capabilities:
    """Make sure that a backend builds engines for a device here.

    Args:
        backend: "tensorrt" or "tensorrt_rtx"; None takes the best present.
        device: As `parse_device` reads it.

    Returns:
        The backend's capabilities.

    Raises:
        CapabilityError: What is missing, and the command that brings it.
        RecipeError: No such backend or device name.
    """
    wanted = parse_device(device)
    if backend is None:
        backend = "tensorrt_rtx" if wanted.kind == "sm" and probe("tensorrt_rtx").present else best("build")
        if backend == "onnxruntime":
            raise CapabilityError(
                "build a TensorRT engine", "neither TensorRT nor TensorRT-RTX works here", INSTALL_HINTS["tensorrt_rtx"]
            )
    found = probe(backend)
    asked = f"build a {TITLES[backend]} engine"
    if backend == "onnxruntime":
        raise CapabilityError(
            asked, "ONNX Runtime runs graphs and builds nothing", "pass format='onnx', or another backend"
        )
    if not found.present:
        raise CapabilityError(asked, found.missing, INSTALL_HINTS[backend])
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
        device: As `parse_device` reads it.

    Returns:
        The backend's capabilities.

    Raises:
        CapabilityError: What is missing, and the command that brings it.
        RecipeError: No such backend or device name.
    """
    found = probe(backend)
    asked = f"run a {TITLES[backend]} engine"
    if not found.present:
        raise CapabilityError(asked, found.missing, INSTALL_HINTS[backend])
    wanted = parse_device(device)
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


def get_build_target(capabilities: Capabilities, device: Device) -> str:
    """The compute capability that TensorRT-RTX builds for: the named one, the GPU's, or `DEFAULT_TARGET`.

    Args:
        capabilities: Of TensorRT-RTX.
        device: From `parse_device`.
    """
    if device.kind == "sm":
        return device.sm
    return capabilities.gpus[device.gpu].sm if capabilities.gpus else DEFAULT_TARGET


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
