"""Build engines, open and run them: ONNX Runtime, TensorRT and TensorRT-RTX behind one door.

Nothing heavy is imported until a name is used.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.backends.capabilities import BACKENDS, Capabilities, best, capabilities, require_build, require_run
from trtkit.backends.devices import Gpu, parse_device
from trtkit.errors import CapabilityError, EngineError, RecipeError
from trtkit.progress import Reporter

if TYPE_CHECKING:
    import onnx

    from trtkit.backends.base import Runner
    from trtkit.backends.build_settings import BuildResult, BuildSettings, ImplicitCalibration
    from trtkit.backends.engine_file import (
        EngineFile,
        Mismatch,
        Passport,
        check_compatibility,
        read_engine,
        strip_engine,
        wrap_engine,
        write_engine,
    )
    from trtkit.backends.trt.layer_info import layer_frame
    from trtkit.exporter import Artifact

__all__ = [
    "BACKENDS",
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
    "capabilities",
    "check_compatibility",
    "layer_frame",
    "open",
    "read_engine",
    "require_build",
    "require_run",
    "strip_engine",
    "wrap_engine",
    "write_engine",
]

_HOMES = {
    "Runner": "base",
    **dict.fromkeys(("BuildSettings", "BuildResult", "ImplicitCalibration"), "build_settings"),
    **dict.fromkeys(("EngineFile", "read_engine", "strip_engine", "wrap_engine", "write_engine"), "engine_file"),
    **dict.fromkeys(("Mismatch", "Passport", "check_compatibility"), "engine_file"),
    "layer_frame": "trt.layer_info",
}


def open(
    source: str | Path | Artifact | onnx.ModelProto,
    *,
    task: str | None = None,
    device: str | int | None = None,
    backend: str | None = None,
) -> Runner:
    """Open a model so that it runs.

    Args:
        source: An engine (trtkit's, Ultralytics' or a bare plan), an ONNX file or graph, or what `export` returned.
        task: The task, for a file that does not tell it.
        device: None, 0, "cuda:1" or "dla:0" for engines; None or "cpu" for ONNX.
        backend: "tensorrt", "tensorrt_rtx" or "onnxruntime"; None goes by the file.

    Returns:
        A runner; close it, or use it in a `with` block.

    Raises:
        EngineError: The file is no engine, is cut short, or does not fit this machine; the error says what differs.
        OnnxError: The file is no ONNX graph, or tells no task.
        CapabilityError: What is missing to run it, and the command that brings it.
        RecipeError: No such backend or device name.
    """
    if backend is not None and backend not in BACKENDS:
        raise RecipeError(f"open with backend={backend!r}", "no such backend", f"use one of {', '.join(BACKENDS)}")
    path: Any = getattr(source, "path", source)
    if isinstance(path, (str, Path)) and Path(path).suffix.lower() in (".pt", ".pth"):
        raise EngineError(
            f"open {path}", "it is a checkpoint", "export it first (trtkit.export), or read it with trtkit.load"
        )
    if not isinstance(path, (str, Path)) or Path(path).suffix.lower() == ".onnx":
        if backend not in (None, "onnxruntime"):
            raise RecipeError(
                f"open an ONNX graph with backend={backend!r}", "engines must be built first", "call trtkit.export"
            )
        if parse_device(device).kind not in ("any", "cpu"):
            raise CapabilityError(
                f"open an ONNX graph on {device!r}", "trtkit runs ONNX on the CPU", "export an engine for the GPU"
            )
        from trtkit.backends.ort import OrtRunner

        return OrtRunner(path, task=task)
    if backend == "onnxruntime":
        raise RecipeError(f"open {path} with backend='onnxruntime'", "it is an engine", "open the ONNX file instead")
    from trtkit.backends.trt.runner import open_engine

    return open_engine(path, task=task, device=device, backend=backend)


def build(
    onnx: str | Path | bytes | onnx.ModelProto,
    settings: BuildSettings,
    *,
    backend: str | None = None,
    reporter: Reporter | None = None,
) -> BuildResult:
    """Build an engine from an ONNX graph.

    Args:
        onnx: The graph, a file or its bytes. Its precision is written in it (`trtkit.graph`).
        settings: Batch, sizes, memory, device and the like.
        backend: "tensorrt" or "tensorrt_rtx"; None takes the best present.
        reporter: Receives progress, and is asked whether to go on.

    Returns:
        The plan, and how it was built.

    Raises:
        CapabilityError: This machine can't build what was asked.
        RecipeError: A setting does not fit the graph or the GPU.
        OnnxError: It is no ONNX graph.
        BuildError: TensorRT refused the graph (the error names the node), ran out of memory, failed or crashed.
        CancelledError: The caller cancelled.
    """
    reporter = reporter if reporter is not None else Reporter()
    if settings.isolate:
        from trtkit.backends.trt.isolated_build import build_isolated

        return build_isolated(onnx, settings, backend=backend, reporter=reporter)
    from trtkit.backends.trt.builder import build_engine

    return build_engine(onnx, settings, backend=backend, reporter=reporter)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'trtkit.backends' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"trtkit.backends.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
