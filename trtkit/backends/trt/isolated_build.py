"""Build in a child process: a crash inside TensorRT becomes an error, and a cancelled build stops at once.

The child runs this module in a new interpreter, so a notebook or script needs no `__main__` guard.
"""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx

from trtkit import errors
from trtkit.backends.base import BuildResult, BuildSettings, ImplicitCalibration
from trtkit.backends.capabilities import require_build
from trtkit.backends.trt.builder import build_engine, read_graph
from trtkit.progress import Event, Reporter
from trtkit.writing import temporary_folder

__all__ = ["build_isolated"]

# Prefix of the lines on the child's standard output that are events; TensorRT prints there as well.
EVENT_PREFIX = "\x1etrtkit "
POLL_SECONDS = 0.1


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
    capabilities = require_build(backend, device=settings.device)
    stage = f"build {settings.precision} engine"
    data, _, path = read_graph(source)
    with temporary_folder() as folder:
        if not path:
            (folder / "model.onnx").write_bytes(data)
        _write_job(folder, path or str(folder / "model.onnx"), settings, capabilities.backend)
        code, tail = _run_child(folder, stage, reporter)
        result_path = folder / "result.json"
        if not result_path.is_file():
            raise errors.BuildError(
                f"build an engine with {capabilities.title} in a child process",
                f"TensorRT crashed the process ({_describe_exit(code)}{': ' + tail if tail else ''})",
                "lower batch, imgsz or workspace, or report the model to NVIDIA",
                code="build-crashed",
                exit=_describe_exit(code),
                output=tail,
            )
        result = json.loads(result_path.read_text(encoding="utf-8"))
        if "error" in result:
            kind = getattr(errors, result["error"], errors.BuildError)
            raise kind(result["asked"], result["found"], result["do"], code=result["code"], **result["fields"])
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
        values["timing_cache"] = str(settings.timing_cache.absolute())
    implicit: dict[str, Any] | None = None
    if settings.implicit is not None:
        count = 0
        # One file per batch, so that memory holds one batch at a time.
        for count, batch in enumerate(settings.implicit.batches, start=1):
            np.save(folder / f"batch{count - 1:06d}.npy", batch)
        cache = settings.implicit.cache
        implicit = {"batches": count, "cache": str(cache.absolute()) if cache is not None else None}
    job = {"model": model, "settings": values, "implicit": implicit, "backend": backend}
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")


def _run_child(folder: Path, stage: str, reporter: Reporter) -> tuple[int, str]:
    """Run the child to its end; returns its exit code and the last lines it printed."""
    environment = dict(os.environ, PYTHONUNBUFFERED="1")
    environment["PYTHONPATH"] = os.pathsep.join(part or str(Path.cwd()) for part in sys.path)
    child = subprocess.Popen(
        [sys.executable, "-m", "trtkit.backends.trt.isolated_build", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=environment,
    )
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    assert child.stdout is not None
    reader = threading.Thread(target=_read_lines, args=(child.stdout, lines), daemon=True)
    reader.start()
    last: list[str] = []
    try:
        while True:
            try:
                line = lines.get(timeout=POLL_SECONDS)
            except queue.Empty:
                if reporter.is_cancelled():
                    raise errors.CancelledError(stage) from None
                continue
            if line is None:
                break
            if line.startswith(EVENT_PREFIX):
                event = json.loads(line[len(EVENT_PREFIX) :])
                reporter.step(event["stage"], event["done"], event["total"], event["message"])
            elif line.strip():
                last = [*last[-2:], line.strip()]
        return child.wait(), " | ".join(last)
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
        reader.join(timeout=1)
        child.stdout.close()


def _read_lines(stream: IO[str], lines: queue.SimpleQueue[str | None]) -> None:
    for line in stream:
        lines.put(line.rstrip("\n"))
    lines.put(None)


def _describe_exit(code: int) -> str:
    if code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}"


def _print_event(event: Event) -> None:
    print(EVENT_PREFIX + json.dumps(dataclasses.asdict(event)), flush=True)


def _load_batches(folder: Path, count: int) -> Iterator[np.ndarray]:
    for index in range(count):
        yield np.load(folder / f"batch{index:06d}.npy")


def main(name: str) -> None:
    """Run the job that the parent wrote into a folder.

    Args:
        name: The folder.
    """
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
            job["model"], BuildSettings(**values), backend=job["backend"], reporter=Reporter(_print_event)
        )
    except errors.TrtkitError as error:
        result = {
            "error": type(error).__name__,
            "asked": error.asked,
            "found": error.found,
            "do": error.do,
            "code": error.code,
            "fields": error.fields,
        }
    else:
        (folder / "plan").write_bytes(built.plan)
        result = {"seconds": built.seconds, "facts": dict(built.facts), "layers": list(built.layers)}
    partial = folder / "result.part"
    partial.write_text(json.dumps(result, default=str), encoding="utf-8")
    # The result appears last and whole: without it, the parent knows that the child crashed.
    partial.replace(folder / "result.json")


if __name__ == "__main__":
    main(sys.argv[1])
