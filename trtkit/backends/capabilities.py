"""What each backend can do on this machine.

No other module compares TensorRT versions. Most answers come from whether a name exists in the bindings, since names
outlive version numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from trtkit.backends.devices import Device, Gpu, cuda_driver_version, find_gpus
from trtkit.backends.registry import get_backend, get_title
from trtkit.errors import CapabilityError

__all__ = [
    "Capabilities",
    "import_bindings",
    "probe",
    "probe_onnxruntime",
    "probe_tensorrt",
    "require_torch_cuda",
    "same_release",
]

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
        backend: The backend's name.
        present: Whether it imports.
        version: Its version, "" where absent.
        missing: Why it is absent, "" where present.
        explicit_batch_flag: Networks must be created with EXPLICIT_BATCH.
        strongly_typed: Networks can take every type from the graph.
        strongly_typed_only: Networks always do; precision flags are gone.
        has_fp16_flag: `BuilderFlag.FP16` exists.
        has_int8_flag: `BuilderFlag.INT8` exists.
        has_precision_constraints: Single layers can be constrained to a precision.
        has_int8_calibrator: TensorRT's own INT8 calibrators exist.
        has_int8_weights: Weights stored as INT8 build as well as float ones behind Q/DQ pairs; otherwise, on
            TensorRT 8.6, they cost reformats.
        has_dla: The API supports DLA cores; the build checks whether the board has any.
        has_progress_monitor: Builds report progress and can be cancelled.
        has_timing_cache: Tactic timings can be kept between builds.
        has_parser_nodes: The ONNX parser's errors name node and operator.
        has_output_allocator: Outputs may have sizes known only after the run.
        limit_tactics: cuBLAS and cuDNN tactics exist but the libraries don't, so the tactics must be disabled.
        compatibilities: What `export(compatibility=)` can ask of it.
        weights: What `export(weights=)` can ask of it.
        cross_build_targets: Compute capabilities it builds for without such a GPU, such as "sm89".
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
    has_int8_weights: bool = False
    has_dla: bool = False
    has_progress_monitor: bool = False
    has_timing_cache: bool = False
    has_parser_nodes: bool = False
    has_output_allocator: bool = False
    limit_tactics: bool = False
    compatibilities: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    cross_build_targets: tuple[str, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    torch_cuda: bool = False

    @property
    def title(self) -> str:
        """Product name and version, such as "TensorRT 8.6.0"."""
        return f"{get_title(self.backend)} {self.version}".strip()

    @property
    def gpu(self) -> Gpu | None:
        """The first GPU, or None."""
        return self.gpus[0] if self.gpus else None

    @property
    def driver(self) -> str:
        """The driver's version, "" without a GPU."""
        return self.gpus[0].driver if self.gpus else ""

    def gpu_at(self, device: Device, asked: str, elsewhere: str) -> Gpu:
        """The GPU that a device name stands for.

        Args:
            device: From `parse_device`.
            asked: What it is needed for, for the error.
            elsewhere: What to do on a machine without a GPU, for the error.

        Raises:
            CapabilityError: This machine does not have it.
        """
        if not self.gpus:
            raise CapabilityError(
                asked,
                "no NVIDIA driver with a GPU was found",
                elsewhere,
                code="gpu-missing",
            )
        if device.gpu >= len(self.gpus):
            raise CapabilityError(
                f"{asked} on GPU {device.gpu}",
                f"this machine has {len(self.gpus)}",
                f"pass device=0 to {len(self.gpus) - 1}",
                code="gpu-index",
                value=device.gpu,
                count=len(self.gpus),
            )
        return self.gpus[device.gpu]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return dataclasses.asdict(self)


# Probing: one look at the installed runtime per process.


@functools.cache
def probe(backend: str) -> Capabilities:
    """Probe one backend, once per process.

    Args:
        backend: The name of a registered backend.

    Raises:
        RecipeError: No such backend.
        CapabilityError: The package that registers it does not import.
    """
    return get_backend(backend).probe()


@functools.cache
def import_bindings(backend: str) -> ModuleType:
    """Import a built-in backend's Python package, once.

    Args:
        backend: "tensorrt", "tensorrt_rtx" or "onnxruntime".

    Raises:
        CapabilityError: It is not installed, or does not import.
    """
    reasons = []
    for name in MODULES[backend]:
        try:
            bindings = importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            reasons.append(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
            continue
        # Type stubs leave a folder that imports as an empty package.
        if hasattr(bindings, "Builder") or hasattr(bindings, "InferenceSession"):
            return bindings
        reasons.append(f"No module named {name!r} but its type stubs")
    is_installed = any(not reason.startswith("No module named") for reason in reasons)
    found = f"it does not import ({'; '.join(reasons)})" if is_installed else "it is not installed"
    raise CapabilityError(
        f"use {get_title(backend)}",
        found,
        get_backend(backend).install_hint,
        code="backend-import-failed" if is_installed else "backend-missing",
        backend=backend,
    )


def probe_onnxruntime() -> Capabilities:
    """Probe ONNX Runtime."""
    try:
        bindings = import_bindings("onnxruntime")
    except CapabilityError as error:
        return Capabilities(backend="onnxruntime", missing=error.found, gpus=find_gpus())
    return Capabilities(backend="onnxruntime", present=True, version=bindings.__version__, gpus=find_gpus())


def probe_tensorrt(backend: str) -> Capabilities:
    """Probe TensorRT or TensorRT-RTX.

    Args:
        backend: "tensorrt" or "tensorrt_rtx".
    """
    try:
        trt: Any = import_bindings(backend)
    except CapabilityError as error:
        return Capabilities(backend=backend, missing=error.found, gpus=find_gpus())
    flags, creation = trt.BuilderFlag, trt.NetworkDefinitionCreationFlag
    strongly_typed = hasattr(creation, "STRONGLY_TYPED")
    fp16 = hasattr(flags, "FP16")
    targets: Any = ()
    if hasattr(trt.IBuilderConfig, "set_compute_capability"):
        names = (name for name in dir(getattr(trt, "ComputeCapability", None)) if re.fullmatch(r"SM\d+", name))
        targets = sorted(names, key=lambda name: int(name[2:]))
    gpus = find_gpus()
    return Capabilities(
        backend=backend,
        present=True,
        version=str(trt.__version__),
        explicit_batch_flag=hasattr(creation, "EXPLICIT_BATCH"),
        strongly_typed=strongly_typed,
        strongly_typed_only=strongly_typed and not fp16,
        has_fp16_flag=fp16,
        has_int8_flag=hasattr(flags, "INT8"),
        has_precision_constraints=hasattr(flags, "PREFER_PRECISION_CONSTRAINTS"),
        has_int8_calibrator=hasattr(trt, "IInt8MinMaxCalibrator"),
        # Quantized constants came together with INT4, which exists for weights only.
        has_int8_weights=hasattr(trt.DataType, "INT4"),
        # DLA runs layers by precision flag; the enumeration's name alone outlived the cores.
        has_dla=fp16 and hasattr(getattr(trt, "DeviceType", None), "DLA"),
        has_progress_monitor=hasattr(trt, "IProgressMonitor"),
        # TensorRT-RTX times no tactics while it builds: it keeps compiled kernels in a runtime cache instead.
        has_timing_cache=hasattr(trt, "ITimingCache") and not hasattr(trt, "IRuntimeCache"),
        has_parser_nodes=hasattr(trt.ParserError, "node_name"),
        has_output_allocator=hasattr(trt, "IOutputAllocator"),
        limit_tactics=hasattr(trt.TacticSource, "CUDNN") and not _cuda_libraries_load(),
        compatibilities=_find_compatibilities(trt, is_rtx=bool(targets)),
        # TensorRT-RTX compiles refittable engines on the GPU.
        weights=_find_weights(trt) if gpus or not targets else (),
        cross_build_targets=tuple(name.lower() for name in targets),
        gpus=gpus,
        torch_cuda=_torch_sees_gpu(),
    )


def _find_compatibilities(trt: Any, *, is_rtx: bool) -> tuple[str, ...]:
    if is_rtx:
        # By the compute capabilities it builds for; its version-compatible engines need a library that it lacks.
        return ("same_compute_capability", "ampere_plus")
    levels = getattr(trt, "HardwareCompatibilityLevel", None)
    names = ("same_compute_capability", "ampere_plus")
    found = tuple(name for name in names if hasattr(levels, name.upper()))
    return (*found, "version") if hasattr(trt.BuilderFlag, "VERSION_COMPATIBLE") and _finds_lean_runtime(trt) else found


def _finds_lean_runtime(trt: Any) -> bool:
    """Whether TensorRT finds the library that it puts into version-compatible engines: pip's package lacks it."""
    import ctypes

    release = ".".join(str(trt.__version__).split(".")[:3])
    names = (f"libnvinfer_lean.so.{release}", f"nvinfer_lean_{release.split('.')[0]}.dll")
    folder = Path(getattr(trt, "__file__", None) or ".").parent
    if any((folder / name).is_file() for name in names):
        return True
    for name in names:
        with contextlib.suppress(OSError):
            ctypes.CDLL(name)
            return True
    return False


def _find_weights(trt: Any) -> tuple[str, ...]:
    flags = trt.BuilderFlag
    refittable = ("refittable",) if hasattr(flags, "REFIT") and hasattr(trt, "Refitter") else ()
    return (*refittable, "stripped") if refittable and hasattr(flags, "STRIP_PLAN") else refittable


def _cuda_libraries_load() -> bool:
    """Whether cuDNN and cuBLAS load and return a version: an empty stub loads too, and its tactics crash a build."""
    import ctypes

    for names, function, minimum in (
        (("libcudnn.so.8", "cudnn64_8.dll"), "cudnnGetVersion", 8000),
        (("libcublasLt.so.12", "libcublasLt.so.11", "cublasLt64_12.dll"), "cublasLtGetVersion", 11000),
    ):
        for name in names:
            try:
                get_version = getattr(ctypes.CDLL(name), function)
            except (OSError, AttributeError):
                continue
            get_version.restype = ctypes.c_size_t
            if get_version() >= minimum:
                break
        else:
            return False
    return True


def _torch_sees_gpu() -> bool:
    # Without a driver, importing torch would only cost seconds.
    if not cuda_driver_version():
        return False
    try:
        require_torch_cuda("look for CUDA")
    except CapabilityError:
        return False
    return True


def require_torch_cuda(asked: str) -> ModuleType:
    """Import torch and check that it sees a GPU.

    Args:
        asked: What it is needed for, for the error.

    Raises:
        CapabilityError: Torch is missing or has no CUDA.
    """
    try:
        import torch
    except (ImportError, OSError) as error:
        raise CapabilityError(
            asked, f"torch does not import ({error})", "run pip install torch", code="torch-missing"
        ) from error
    if not torch.cuda.is_available():
        raise CapabilityError(
            asked,
            "the installed torch has no CUDA or sees no GPU",
            "install torch with CUDA from https://pytorch.org",
            code="torch-no-cuda",
        )
    return torch


def same_release(one: str, other: str) -> bool:
    """Whether an engine of one TensorRT version runs on another: all numbers that both versions state are equal.

    Args:
        one: Such as "10.13.0.35" or "8.6.0".
        other: Likewise.
    """
    left, right = (re.findall(r"\d+", version) for version in (one, other))
    shared = min(len(left), len(right))
    return shared > 0 and left[:shared] == right[:shared]
