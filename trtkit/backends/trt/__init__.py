"""TensorRT and TensorRT-RTX: two backends with one builder and one runner."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.backends.capabilities import probe_tensorrt
from trtkit.backends.compatibility import trust_plan
from trtkit.backends.engine_file import detect_backend
from trtkit.backends.registry import Backend
from trtkit.errors import RecipeError

if TYPE_CHECKING:
    import onnx

    from trtkit.backends.build_settings import BuildResult, BuildSettings
    from trtkit.backends.runner import Runner
    from trtkit.progress import Reporter

__all__ = ["TENSORRT", "TENSORRT_RTX"]


def _accepts(source: Any, *, name: str) -> bool:
    return isinstance(source, (str, Path)) and detect_backend(source) == name


def _open(source: Any, *, task: str | None, device: str | int | None, name: str) -> Runner:
    if not isinstance(source, (str, Path)) or Path(source).suffix.lower() == ".onnx":
        raise RecipeError(
            f"open an ONNX graph with backend={name!r}",
            "an engine must be built first",
            "call trtkit.export",
            code="open-onnx-as-engine",
            backend=name,
        )
    from trtkit.backends.trt.runner import open_engine

    return open_engine(source, task=task, device=device, backend=name)


def _build(
    graph: str | Path | bytes | onnx.ModelProto, settings: BuildSettings, *, reporter: Reporter, name: str
) -> BuildResult:
    if settings.isolate:
        from trtkit.backends.trt.isolated_build import build_isolated

        built = build_isolated(graph, settings, backend=name, reporter=reporter)
    else:
        from trtkit.backends.trt.builder import build_engine

        built = build_engine(graph, settings, backend=name, reporter=reporter)
    if settings.compatibility == "version":
        trust_plan(built.plan)
    return built


def _describe(name: str, title: str, install_hint: str) -> Backend:
    return Backend(
        name=name,
        title=title,
        install_hint=install_hint,
        probe=functools.partial(probe_tensorrt, name),
        accepts=functools.partial(_accepts, name=name),
        open=functools.partial(_open, name=name),
        build=functools.partial(_build, name=name),
        needs_gpu=True,
    )


TENSORRT = _describe("tensorrt", "TensorRT", "run pip install 'trtkit[tensorrt]'")
TENSORRT_RTX = _describe("tensorrt_rtx", "TensorRT-RTX", "run pip install 'trtkit[rtx]'")
