"""Work in a child process: a crash there is an error here, events come through, and cancelling ends it at once.

The child runs a module of the package in a new interpreter, so a notebook or script needs no `__main__` guard.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from trtkit import errors
from trtkit.progress import Event, Reporter

__all__ = ["describe_exit", "error_from_dict", "error_to_dict", "exit_with_parent", "print_event", "run_child"]

# Prefix of the lines on the child's standard output that are events; TensorRT prints there as well.
EVENT_PREFIX = "\x1etrtkit "
POLL_SECONDS = 0.1


def run_child(
    module: str, folder: Path, stage: str, reporter: Reporter, *, environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run `python -m MODULE FOLDER` to its end.

    Args:
        module: A module whose `main` does the job that lies in the folder.
        folder: The job, and later its result.
        stage: The stage, for the error of a cancelled job.
        reporter: Receives the child's events; cancelling kills the child.
        environment: Variables that differ from this process's.

    Returns:
        The child's exit code, and the last lines it printed.

    Raises:
        CancelledError: The caller cancelled.
    """
    variables = {**os.environ, **(environment or {}), "PYTHONUNBUFFERED": "1"}
    variables["PYTHONPATH"] = os.pathsep.join(part or str(Path.cwd()) for part in sys.path)
    child = subprocess.Popen(
        [sys.executable, "-m", module, str(folder)],
        # Closed by the system when this process ends, however it ends: see `exit_with_parent`.
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=variables,
    )
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    assert child.stdin is not None
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
        code = child.wait()
        if code and reporter.is_cancelled():
            # Ctrl-C at a terminal reaches the child too, which may end first.
            raise errors.CancelledError(stage)
        return code, " | ".join(last)
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
        reader.join(timeout=1)
        child.stdin.close()
        child.stdout.close()


def _read_lines(stream: IO[str], lines: queue.SimpleQueue[str | None]) -> None:
    for line in stream:
        lines.put(line.rstrip("\n"))
    lines.put(None)


def describe_exit(code: int) -> str:
    """ "exit code 1", or the name of the signal that ended a process.

    Args:
        code: Its return code, negative for a signal.
    """
    if code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}"


# In the child


def print_event(event: Event) -> None:
    """The progress callback of a child: its parent reports the event."""
    values = {name: getattr(event, name) for name in ("stage", "done", "total", "message")}
    print(EVENT_PREFIX + json.dumps(values), flush=True)


def exit_with_parent() -> None:
    """End this process as soon as its parent has ended; what is written atomically stays whole."""

    def watch() -> None:
        while sys.stdin.buffer.read(1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def error_to_dict(error: errors.TrtkitError) -> dict[str, Any]:
    """An error as JSON-ready data; `error_from_dict` is the inverse, fields of other types apart."""
    return {
        "error": type(error).__name__,
        "asked": error.asked,
        "found": error.found,
        "do": error.do,
        "code": error.code,
        "fields": error.fields,
    }


def error_from_dict(value: Mapping[str, Any]) -> errors.TrtkitError:
    """The error that `error_to_dict` described."""
    kind = getattr(errors, value["error"], errors.TrtkitError)
    error: errors.TrtkitError = kind(value["asked"], value["found"], value["do"], code=value["code"], **value["fields"])
    return error
