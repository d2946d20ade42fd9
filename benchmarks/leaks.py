"""Memory, file descriptors, threads and temporary files over many rounds of open/predict/close and of exports.

    python benchmarks/leaks.py open      200 rounds of trtkit.open, predict, close on ONNX Runtime
    python benchmarks/leaks.py bare      the same rounds by ONNX Runtime alone: session, run, del
    python benchmarks/leaks.py export    60 exports to ONNX: FP32, FP16 and INT8 in turn

Prints a row of a Markdown table: anonymous resident memory (MB, after garbage collection and `malloc_trim`), its slope
over the last half of the rounds (MB a round, least squares), and what was left of descriptors, threads and files
(temporary ones, and those beside the outputs) since a tenth of the rounds. Pages of mapped files do not count: the
kernel drops them when memory is short, which would hide a leak. `--json FILE` also writes every round. Linux, glibc.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import trtkit as tk
from trtkit import demo

ROUNDS = {"open": 200, "bare": 200, "export": 60}
PRECISIONS: tuple[dict[str, Any], ...] = ({}, {"half": True}, {"int8": True})
SIDE = 96
LIMIT = 0.05
"""Largest accepted slope, MB a round."""


def measure(folder: Path) -> dict[str, float]:
    """What the process holds: anonymous resident memory (MB), descriptors, threads, files below `folder`."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "memory_mb": int(status["RssAnon"].split()[0]) * 1024 / 1e6,
        "descriptors": sum(1 for _ in Path("/proc/self/fd").iterdir()),
        "threads": sum(1 for _ in Path("/proc/self/task").iterdir()),
        "files": sum(1 for _ in folder.rglob("*")),
    }


def open_rounds(folder: Path) -> Callable[[int], None]:
    """Open an ONNX file, predict on one image, close it."""
    path = export_demo(folder)
    image = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), np.uint8)

    def run(_: int) -> None:
        with tk.open(path) as runner:
            runner.predict([image], conf=0.01)

    return run


def bare_rounds(folder: Path) -> Callable[[int], None]:
    """The peer: an ONNX Runtime session alone."""
    import onnxruntime

    path, pixels = str(export_demo(folder)), np.random.default_rng(0).random((1, 3, SIDE, SIDE), np.float32)

    def run(_: int) -> None:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        session.run(None, {session.get_inputs()[0].name: pixels})

    return run


def export_rounds(folder: Path) -> Callable[[int], None]:
    """Export the embedded model, the precisions in turn."""
    calibration = tk.calibrate(demo.model_path(), demo.data_path(), imgsz=SIDE, calibration_images=4)

    def run(index: int) -> None:
        settings = PRECISIONS[index % len(PRECISIONS)]
        if "int8" in settings:
            settings = {**settings, "calibration": calibration}
        export_demo(folder, name=f"{index % len(PRECISIONS)}", **settings)

    return run


def export_demo(folder: Path, *, name: str = "model", **settings: Any) -> Path:
    """Export the embedded model to a file in `folder`, which is replaced."""
    artifact = tk.export(
        demo.model_path(), format="onnx", imgsz=SIDE, output=folder / f"{name}.onnx", overwrite=True, **settings
    )
    return Path(artifact.path)


MAKERS = {"open": open_rounds, "bare": bare_rounds, "export": export_rounds}


def main() -> None:
    """Run the rounds and print the row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=MAKERS)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--json", type=Path)
    values = parser.parse_args()
    count = values.rounds or ROUNDS[values.kind]
    rounds = []
    with tempfile.TemporaryDirectory() as root:
        temporary, outputs = Path(root, "temporary"), Path(root, "outputs")
        for folder in (temporary, outputs):
            folder.mkdir()
        tempfile.tempdir = str(temporary)
        run = MAKERS[values.kind](outputs)
        for index in range(count):
            run(index)
            # Outputs are replaced: a file more in their folder is one that was left beside them.
            rounds.append(measure(Path(root)))
    if values.json is not None:
        values.json.write_text(json.dumps(rounds))
    half = [one["memory_mb"] for one in rounds[count // 2 :]]
    slope = float(np.polyfit(np.arange(len(half)), half, 1)[0])
    early, last = rounds[count // 10], rounds[-1]
    left = [int(last[name] - early[name]) for name in ("descriptors", "threads", "files")]
    memory = (
        f"{early['memory_mb']:.1f} | {rounds[count // 2]['memory_mb']:.1f} | {last['memory_mb']:.1f} | {slope:+.4f}"
    )
    print(f"| {values.kind} | {count} | {memory} | {' | '.join(map(str, left))} |")
    if slope > LIMIT or any(number > 0 for number in left):
        raise SystemExit(f"more than {LIMIT} MB a round, or something was left")


if __name__ == "__main__":
    main()
