"""Open, run and build models with TensorRT, TensorRT-RTX, ONNX Runtime and any backend that registers itself.

Importing this package imports no runtime; `open` and `build` import the one they use.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.backends.capabilities import Capabilities, probe
from trtkit.backends.devices import Gpu
from trtkit.backends.registry import Backend, get_backend, get_title, list_backends
from trtkit.backends.requirements import best, require_build, require_run
from trtkit.backends.runner import HasPath, Runner
from trtkit.errors import CapabilityError, EngineError, warn
from trtkit.progress import Reporter

if TYPE_CHECKING:
    import onnx

    from trtkit.backends.build_settings import BuildResult, BuildSettings, ImplicitCalibration
    from trtkit.backends.compatibility import Mismatch, check_compatibility, describe_machine_elsewhere
    from trtkit.backends.engine_file import (
        EngineFile,
        Passport,
        detect_backend,
        read_engine,
        strip_engine,
        wrap_engine,
        write_engine,
    )
    from trtkit.backends.trt.layer_info import layer_frame
    from trtkit.backends.trt.refit import refit_engine

__all__ = [
    "Backend",
    "BuildResult",
    "BuildSettings",
    "Capabilities",
    "EngineFile",
    "Gpu",
    "ImplicitCalibration",
    "Mismatch",
    "Passport",
    "Runner",
    "best",
    "build",
    "check_compatibility",
    "describe_machine_elsewhere",
    "detect_backend",
    "get_backend",
    "get_title",
    "layer_frame",
    "list_backends",
    "open",
    "probe",
    "read_engine",
    "refit_engine",
    "require_build",
    "require_run",
    "strip_engine",
    "wrap_engine",
    "write_engine",
]

_HOMES = {
    **dict.fromkeys(("BuildSettings", "BuildResult", "ImplicitCalibration"), "build_settings"),
    **dict.fromkeys(("EngineFile", "read_engine", "strip_engine", "wrap_engine", "write_engine"), "engine_file"),
    **dict.fromkeys(("Passport", "detect_backend"), "engine_file"),
    **dict.fromkeys(("Mismatch", "check_compatibility", "describe_machine_elsewhere"), "compatibility"),
    "refit_engine": "trt.refit",
    "layer_frame": "trt.layer_info",
}


def open(
    source: str | Path | HasPath | onnx.ModelProto,
    *,
    task: str | None = None,
    device: str | int | None = None,
    backend: str | None = None,
) -> Runner:
    """Open a model to run it.

    Args:
        source: An engine (trtkit's, Ultralytics' or a bare plan), an ONNX file or graph, or an object with a `path`
            such as what `export` returns.
        task: The task, for a file that does not name it.
        device: None, 0, "cuda:1" or "dla:0" for engines; None or "cpu" for ONNX.
        backend: The name of a registered backend; None takes the first that accepts the source.

    Returns:
        A runner; close it, or use it in a `with` block.

    Raises:
        EngineError: It is no model, or the file is no engine, is truncated, or was built for another machine.
        OnnxError: The file is not an ONNX graph, or names no task.
        CapabilityError: The backend or the GPU is missing; the error names the command that installs it.
        RecipeError: No such backend or device name.
    """
    model: Any = getattr(source, "path", source)
    if backend is not None:
        return get_backend(backend).open(model, task=task, device=device)
    for name in list_backends():
        try:
            candidate = get_backend(name)
        except CapabilityError as error:
            warn(f"The backend {name!r} is skipped: {error}")
            continue
        if candidate.accepts(model):
            return candidate.open(model, task=task, device=device)
    if not isinstance(model, (str, Path)):
        raise EngineError(
            "open a model",
            f"a value of type {type(model).__name__} is no model",
            "pass an engine, an ONNX file or graph, or what export returned",
            code="open-type-unknown",
            value=type(model).__name__,
        )
    if Path(model).suffix.lower() in (".pt", ".pth"):
        raise EngineError(
            f"open {model}",
            "it is a checkpoint",
            "export it first (trtkit.export), or read it with trtkit.load",
            code="open-checkpoint",
            path=model,
        )
    from trtkit.backends.engine_file import read_engine

    # No backend accepts it: reading it as an engine raises the reason.
    file = read_engine(model)
    raise EngineError(
        f"open {model}",
        f"it was built by the backend {file.backend!r}, which is not registered here",
        "install the package that provides it",
        code="backend-unknown",
        path=model,
        value=file.backend,
    )


def build(
    onnx: str | Path | bytes | onnx.ModelProto,
    settings: BuildSettings,
    *,
    backend: str | None = None,
    reporter: Reporter | None = None,
) -> BuildResult:
    """Build an engine from an ONNX graph.

    Args:
        onnx: The graph, a file or its bytes. Its types and Q/DQ nodes set the precision (`trtkit.graph`).
        settings: Batch, sizes, memory, device and the like.
        backend: The name of a registered backend that builds; None takes the best present.
        reporter: Progress callback and cancellation token.

    Returns:
        The plan, and how it was built.

    Raises:
        CapabilityError: This machine can't build what was asked.
        RecipeError: A setting does not fit the graph or the GPU, or there is no such backend.
        OnnxError: It is not an ONNX graph.
        BuildError: TensorRT rejected the graph (the error names the node), ran out of memory, failed or crashed.
        CancelledError: The caller cancelled.
    """
    chosen = get_backend(require_build(backend, device=settings.device).backend)
    assert chosen.build is not None
    return chosen.build(onnx, settings, reporter=reporter if reporter is not None else Reporter())


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'trtkit.backends' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"trtkit.backends.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
