"""Build in a child process: a crash inside TensorRT becomes an error, and a cancelled build stops at once."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from trtkit import errors
from trtkit.backends.build_settings import BuildResult, BuildSettings, ImplicitCalibration
from trtkit.backends.requirements import require_build
from trtkit.backends.trt.builder import build_engine, read_graph
from trtkit.backends.trt.callbacks import require_calibrator
from trtkit.child_process import (
    describe_exit,
    error_from_dict,
    error_to_dict,
    exit_with_parent,
    print_event,
    run_child,
)
from trtkit.progress import Reporter
from trtkit.writing import temporary_folder

__all__ = ["build_isolated"]


def build_isolated(
    source: str | Path | bytes | onnx.ModelProto, settings: BuildSettings, *, backend: str | None, reporter: Reporter
) -> BuildResult:
    """Build an engine in a child process; see `build_engine`.

    Args:
        source: The ONNX graph.
        settings: Build settings.
        backend: "tensorrt" or "tensorrt_rtx"; None takes the best present.
        reporter: Progress callback and cancellation token; cancelling kills the child.

    Raises:
        BuildError: TensorRT crashed or failed.
        CancelledError: The caller cancelled.
        TrtkitError: As `build_engine` raised it in the child.
    """
    capabilities = require_build(
        backend, device=settings.device, compatibility=settings.compatibility, weights=settings.weights
    )
    if settings.implicit is not None:
        require_calibrator(capabilities.backend)
    stage = f"build {settings.precision} engine"
    data, _, path = read_graph(source)
    with temporary_folder() as folder:
        if not path:
            (folder / "model.onnx").write_bytes(data)
        _write_job(folder, path or str(folder / "model.onnx"), settings, capabilities.backend)
        code, tail = run_child("trtkit.backends.trt.isolated_build", folder, stage, reporter)
        result_path = folder / "result.json"
        if not result_path.is_file():
            raise errors.BuildError(
                f"build an engine with {capabilities.title} in a child process",
                f"TensorRT crashed the process ({describe_exit(code)}{': ' + tail if tail else ''})",
                "lower batch, imgsz or workspace, or report the model to NVIDIA",
                code="build-crashed",
                exit=describe_exit(code),
                output=tail,
            )
        result = json.loads(result_path.read_text(encoding="utf-8"))
        if "error" in result:
            raise error_from_dict(result)
        return BuildResult(
            plan=(folder / "plan").read_bytes(),
            seconds=result["seconds"],
            facts={**result["facts"], "isolated": True},
            layers=tuple(result["layers"]),
        )


def _write_job(folder: Path, model: str, settings: BuildSettings, backend: str) -> None:
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    values.update(isolate=False, implicit=None)
    if isinstance(settings.timing_cache, Path):
        values["timing_cache"] = str(settings.timing_cache)
    implicit: dict[str, Any] | None = None
    if settings.implicit is not None:
        count = 0
        # One file per batch, so that memory holds one batch at a time.
        for count, batch in enumerate(settings.implicit.batches, start=1):
            np.save(folder / f"batch{count - 1:06d}.npy", batch)
        cache = settings.implicit.cache
        implicit = {"batches": count, "cache": str(cache) if cache is not None else None}
    job = {"model": model, "settings": values, "implicit": implicit, "backend": backend}
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")


def _load_batches(folder: Path, count: int) -> Iterator[np.ndarray]:
    for index in range(count):
        yield np.load(folder / f"batch{index:06d}.npy")


def main(name: str) -> None:
    """Run the job that the parent wrote into a folder.

    Args:
        name: The folder.
    """
    exit_with_parent()
    folder = Path(name)
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    values = job["settings"]
    for size in ("imgsz", "min_imgsz", "max_imgsz"):
        values[size] = None if values[size] is None else tuple(values[size])
    if isinstance(values["timing_cache"], str):
        values["timing_cache"] = Path(values["timing_cache"])
    if job["implicit"] is not None:
        cache = job["implicit"]["cache"]
        values["implicit"] = ImplicitCalibration(
            batches=_load_batches(folder, job["implicit"]["batches"]), cache=None if cache is None else Path(cache)
        )
    result: dict[str, Any]
    try:
        built = build_engine(
            job["model"], BuildSettings(**values), backend=job["backend"], reporter=Reporter(print_event)
        )
    except errors.TrtkitError as error:
        result = error_to_dict(error)
    else:
        (folder / "plan").write_bytes(built.plan)
        result = {"seconds": built.seconds, "facts": dict(built.facts), "layers": list(built.layers)}
    partial = folder / "result.part"
    partial.write_text(json.dumps(result, default=str), encoding="utf-8")
    # The result appears last and whole: without it, the parent knows that the child crashed.
    partial.replace(folder / "result.json")


if __name__ == "__main__":
    main(sys.argv[1])
