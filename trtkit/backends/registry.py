"""The backends: `Backend` describes one runtime; the registry lists those that are built in and those of entry points.

A backend is one module with a `Backend` in it, and an entry point in the group `trtkit.backends` that names it:

    [project.entry-points."trtkit.backends"]
    openvino = "my_package.openvino:OPENVINO"
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from trtkit.errors import CapabilityError, RecipeError, TrtkitError, warn

if TYPE_CHECKING:
    import importlib.metadata
    from collections.abc import Callable

    from trtkit.backends.build_settings import BuildResult
    from trtkit.backends.capabilities import Capabilities
    from trtkit.backends.runner import Runner

__all__ = ["ENTRY_POINT_GROUP", "Backend", "get_backend", "get_title", "list_backends"]

ENTRY_POINT_GROUP = "trtkit.backends"


BUILT_IN = {
    "tensorrt": "trtkit.backends.trt:TENSORRT",
    "tensorrt_rtx": "trtkit.backends.trt:TENSORRT_RTX",
    "onnxruntime": "trtkit.backends.ort:ONNXRUNTIME",
    "triton": "trtkit.backends.triton:TRITON",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backend:
    """One runtime: what it can do on this machine, how it opens models and how it builds them.

    Attributes:
        name: The value of `backend=`, such as "tensorrt".
        title: The product's name, such as "TensorRT".
        install_hint: What to do where it is missing, in the imperative ("run pip install ...").
        probe: Returns its `Capabilities` on this machine; it must not raise where the runtime is missing.
        accepts: Whether a file (or a graph in memory) is one that `open` opens; cheap, and must not raise.
        open: `open(source, *, task, device) -> Runner`. It raises a TrtkitError where the source can't be opened.
        build: `build(onnx, settings, *, reporter) -> BuildResult`; None for a runtime that builds nothing.
        needs_gpu: Whether it builds and runs on NVIDIA GPUs only. Such backends may be chosen automatically.
        models: The models it runs, for `trtkit doctor`.
    """

    name: str
    title: str
    install_hint: str
    probe: Callable[[], Capabilities]
    accepts: Callable[[Any], bool]
    open: Callable[..., Runner]
    build: Callable[..., BuildResult] | None = None
    needs_gpu: bool = False
    models: str = "engines"


def list_backends() -> tuple[str, ...]:
    """The names of the registered backends: the built-in ones, then those of entry points."""
    return tuple(_find_entry_points())


def get_backend(name: str) -> Backend:
    """Load a registered backend.

    Args:
        name: One of `list_backends()`.

    Raises:
        RecipeError: No backend of that name is registered.
        CapabilityError: The package that registers it can't be imported, or its entry point is not a `Backend`.
    """
    entry_point = _find_entry_points().get(name)
    asked = f"use backend={name!r}"
    if entry_point is None:
        names = list_backends()
        raise RecipeError(
            asked, "no such backend", f"use one of {', '.join(names)}", code="backend-unknown", value=name, names=names
        )
    try:
        backend = entry_point.load()
    except Exception as error:
        # A package of others may fail in any way while it is imported.
        raise CapabilityError(
            asked,
            f"its package does not import ({type(error).__name__}: {error})",
            f"check the package that provides {entry_point.value}",
            code="backend-import-failed",
            value=name,
        ) from error
    if not isinstance(backend, Backend):
        raise CapabilityError(
            asked,
            f"{entry_point.value} is {type(backend).__name__}, not trtkit.backends.Backend",
            "correct the entry point",
            code="backend-invalid",
            value=name,
        )
    return backend


def get_title(name: str) -> str:
    """The product name of a backend; the name itself where it is not registered or does not import.

    Args:
        name: Such as "tensorrt_rtx".
    """
    try:
        return get_backend(name).title
    except TrtkitError:
        return name


@functools.cache
def _find_entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    import importlib.metadata

    found = {
        name: importlib.metadata.EntryPoint(name=name, value=value, group=ENTRY_POINT_GROUP)
        for name, value in BUILT_IN.items()
    }
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        if found.setdefault(entry_point.name, entry_point) is not entry_point:
            warn(f"Two backends are named {entry_point.name!r}: {entry_point.value} is ignored.")
    return found
