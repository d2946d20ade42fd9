"""A backend from outside the package: its "engine" is the graph, and a wrapped ONNX Runtime runs it.

On workers it stands for TensorRT: this process need not have it, and a build can be killed or waited in.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import onnx

from trtkit import backends
from trtkit.backends import Backend, BuildResult, BuildSettings, Capabilities, capabilities, registry
from trtkit.backends.ort import OrtRunner
from trtkit.errors import CancelledError, EngineError

FOLDER: Path | None = None
"""Where workers leave notes for the test, and the test for them."""


class ToyRunner(OrtRunner):
    """An engine of the toy backend."""

    def __init__(self, path: str | Path, task: str | None) -> None:
        file = backends.read_engine(path)
        super().__init__(onnx.load_model_from_string(file.plan), task=task)
        self.path, self.passport, self.name = Path(path), file.passport, "Toy 1.0"


def accepts(source: Any) -> bool:
    return isinstance(source, (str, Path)) and backends.detect_backend(source) == "toy"


def build(graph: onnx.ModelProto, settings: BuildSettings, *, reporter: Any) -> BuildResult:
    reporter.step("build toy engine", 1, 1)
    if FOLDER is not None and (FOLDER / "kill").exists():
        (FOLDER / "kill").rename(FOLDER / "killed")
        (FOLDER / "killed").write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    if FOLDER is not None and (FOLDER / "wait").exists():
        try:
            while True:
                reporter.step("build toy engine", 1, 1)
                time.sleep(0.02)
        except CancelledError:
            (FOLDER / "stopped").touch()
            raise
    return BuildResult(plan=graph.SerializeToString(), seconds=0.5, facts={"tensorrt": "1.0"})


TOY = Backend(
    name="toy",
    title="Toy",
    install_hint="run pip install toy",
    probe=lambda: Capabilities(backend="toy", present=True, version="1.0"),
    accepts=accepts,
    open=lambda source, *, task, device: ToyRunner(source, task),
    build=build,
    models="toy engines",
)


def refuse_to_open(source: Any, *, task: str | None, device: Any) -> ToyRunner:
    raise EngineError(f"open {source}", "the toy is not here", "open it on a worker", code="test-toy-opened-here")


ABSENT = Backend(
    name="toy",
    title="Toy",
    install_hint="run pip install toy",
    probe=lambda: Capabilities(backend="toy", missing="it is not installed"),
    accepts=accepts,
    open=refuse_to_open,
    build=build,
    models="toy engines",
)


def register(name: str, folder: Path | None = None) -> None:
    """Register the backend in this process.

    Args:
        name: "TOY", "ABSENT", or "" to remove it.
        folder: `FOLDER`.
    """
    global FOLDER
    FOLDER = folder
    registry.BUILT_IN.pop("toy", None)
    if name:
        registry.BUILT_IN["toy"] = f"toy_backend:{name}"
    registry._find_entry_points.cache_clear()
    capabilities.probe.cache_clear()
