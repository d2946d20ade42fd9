"""Which form of INT8 weights a TensorRT builds: INT8 behind DequantizeLinear, or float behind Q/DQ pairs.

    python benchmarks/int8_weights.py                          # TensorRT, on its GPU
    python benchmarks/int8_weights.py --backend tensorrt_rtx   # TensorRT-RTX, where there is no GPU: builds only

Builds the embedded yolo11n from each form, at several sizes and level 0, each in its own process, so that a crash is
recorded. An engine that was built runs on eval images of the demo and is compared with ONNX Runtime on the same graph.
Writes `results/int8_weights-GPU.json` and `.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
from records import line_of, table
from records import write as write_record

import trtkit as tk
from trtkit import backends, demo
from trtkit.backends import BuildSettings, Passport
from trtkit.data import resize_to_input, to_input
from trtkit.errors import TrtkitError
from trtkit.graph.pad_channels import pad_channels
from trtkit.graph.qdq import expand_int8_weights
from trtkit.results import describe_machine, package_versions
from trtkit.writing import write_json

SIZES = (64, 160, 320)
FORMS = {"stored": "INT8 behind DequantizeLinear", "expanded": "float behind Q/DQ"}
IMAGES = 8
SCORE = 0.25
"""Scores from here on count as detections."""


def build(folder: Path, form: str, size: int, backend: str) -> dict[str, Any]:
    """Build one form as it is; where there is a GPU, compare its outputs with ONNX Runtime's."""
    graph = onnx.load(folder / f"{form}-{size}.onnx")
    settings = BuildSettings(precision="int8", imgsz=(size, size), opt_level=0, timing_cache=False)
    caps = backends.probe(backend)
    # Without this the builder would expand the weights for a TensorRT that is said not to read them.
    with mock.patch("trtkit.backends.trt.builder.expand_int8_weights", lambda proto: proto):
        built = backends.build(graph, settings, backend=backend)
    facts: dict[str, Any] = {
        "seconds": round(built.seconds, 1),
        "plan_bytes": len(built.plan),
        "layers": dict(Counter(str(row["precision"]) for row in built.layers)),
        "reformats": sum(bool(row["reformat"]) for row in built.layers),
        "warnings": built.facts["warnings"],
    }
    write_json(folder / f"{form}-{size}.json", {**facts, "run_error": "the process ended while the engine ran"})
    if caps.gpu is None:
        return facts
    reference = backends.open(graph)
    metadata = reference.info.to_metadata(batch=1, imgsz=(size, size), dynamic=False)
    passport = Passport.from_build(built, settings, backend=backend, model_hash="")
    path = backends.write_engine(folder / f"{form}-{size}.engine", built.plan, metadata, passport, overwrite=True)
    try:
        return {**facts, **compare(backends.open(path), reference, size)}
    except TrtkitError as error:
        return {**facts, "run_error": str(error)}


def compare(runner: tk.Runner, reference: tk.Runner, size: int) -> dict[str, Any]:
    """Differences of scores, and of the boxes of detections, over some images."""
    import cv2

    scores, boxes, count, switched = [], [], 0, 0
    paths = sorted((Path(demo.data_path()).parent / "images" / "val").iterdir())[:IMAGES]
    with runner, reference:
        for path in paths:
            image = resize_to_input(cv2.imread(str(path)), (size, size), reference.info.preprocess)[0]
            batch = to_input([image], reference.info.preprocess)
            mine, theirs = (np.asarray(each.infer(batch)["output0"])[0] for each in (runner, reference))
            detected = theirs[4:].max(0) >= SCORE
            scores.append(np.abs(mine[4:] - theirs[4:]).max())
            boxes += np.abs(mine[:4, detected] - theirs[:4, detected]).max(0).tolist()
            count += int(detected.sum())
            switched += int((detected != (mine[4:].max(0) >= SCORE)).sum())
    return {
        "images": len(paths),
        "largest_score_difference": float(max(scores)),
        "detected_anchors": count,
        "anchors_detected_by_one_alone": switched,
        "largest_box_difference_px": float(max(boxes, default=0.0)),
        "median_box_difference_px": float(np.median(boxes)) if boxes else 0.0,
    }


def child(folder: Path, form: str, size: int, backend: str) -> None:
    """One build; leaves its facts, or the error, in a file."""
    facts: dict[str, Any] = {}
    try:
        facts = build(folder, form, size, backend)
    except TrtkitError as error:
        facts = {"error": str(error), "code": error.code}
    write_json(folder / f"{form}-{size}.json", facts)


def run_child(folder: Path, form: str, size: int, backend: str, seconds: float) -> dict[str, Any]:
    """The facts of one build; how its process ended if it left none."""
    words = [
        sys.executable,
        str(Path(__file__).resolve()),
        "--backend",
        backend,
        "--child",
        str(folder),
        form,
        str(size),
    ]
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=seconds, check=False)
        code, output = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        code, output = f"stopped after {seconds:g} s", str(error.stderr or "")
    path = folder / f"{form}-{size}.json"
    if path.is_file():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    return {"error": f"the process ended ({code}): {' | '.join(output.strip().splitlines()[-5:])}", "code": "crashed"}


def export_forms(folder: Path) -> dict[str, int]:
    """Write both forms at every size; returns the files' sizes."""
    sizes = {}
    calibration = tk.calibrate(demo.model_path(), demo.data_path(), calibration_images=32)
    for size in SIZES:
        path = folder / f"stored-{size}.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tk.export(
                demo.model_path(), format="onnx", imgsz=size, int8=True, dynamic=False, calibration=calibration,
                output=path,
            )  # fmt: skip
        # As engines are exported.
        graph = pad_channels(onnx.load(path))
        onnx.save(graph, path)
        onnx.save(expand_int8_weights(graph), folder / f"expanded-{size}.onnx")
        sizes.update({f"{form}-{size}": (folder / f"{form}-{size}.onnx").stat().st_size for form in FORMS})
    return sizes


def page(about: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    heads = [
        "weights", "imgsz", "ONNX MB", "build", "plan MB", "layers", "largest score difference",
        "largest box difference, px", "detected anchors (by one alone)",
    ]  # fmt: skip
    body = []
    for row in rows:
        ran = "detected_anchors" in row
        body.append(
            [
                FORMS[row["form"]],
                str(row["imgsz"]),
                f"{row['onnx_bytes'] / 1e6:.2f}",
                f"{row['seconds']} s" if "seconds" in row else f"fails: `{clean(row['error'])}`",
                f"{row['plan_bytes'] / 1e6:.2f}" if "plan_bytes" in row else "",
                ", ".join(f"{count} {name}" for name, count in row.get("layers", {}).items()),
                f"{row['largest_score_difference']:.4f}" if ran else clean(row.get("run_error", "")),
                f"{row['largest_box_difference_px']:.2f}" if ran else "",
                f"{row['detected_anchors']} ({row['anchors_detected_by_one_alone']})" if ran else "",
            ]
        )
    return [
        "# INT8 weights that TensorRT reads",
        "",
        f"`{about['command']}`",
        "",
        line_of(about),
        "",
        "The embedded yolo11n, batch 1, level 0, each build in its own process. Differences are to ONNX Runtime on the "
        f"same graph, over {IMAGES} images; boxes are those of anchors with a score of {SCORE} or more.",
        "",
        *table(heads, body),
    ]


def clean(text: str) -> str:
    """An error as a cell of a Markdown table."""
    return re.sub(r"\s+", " ", text).replace("|", "/").replace("`", "'")[:600]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="tensorrt", choices=["tensorrt", "tensorrt_rtx"])
    parser.add_argument("--seconds", type=float, default=600, help="stop a build after so long")
    parser.add_argument("--child", nargs=3, metavar=("FOLDER", "FORM", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        folder, form, size = options.child
        return child(Path(folder), form, int(size), options.backend)
    caps = backends.require_build(options.backend)
    gpu = caps.gpu
    about = {
        "command": f"python benchmarks/int8_weights.py --backend {options.backend}",
        "machine": describe_machine(),
        "versions": {caps.title.rsplit(" ", 1)[0]: caps.version, **package_versions()},
    }
    if gpu is not None:
        about["machine"]["processor"] = f"{gpu.name} (driver {gpu.driver}, CUDA {gpu.cuda})"
    rows = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sizes = export_forms(folder)
        for size in SIZES:
            for form in FORMS:
                facts = run_child(folder, form, size, options.backend, options.seconds)
                rows.append({"form": form, "imgsz": size, "onnx_bytes": sizes[f"{form}-{size}"], **facts})
                print(json.dumps(rows[-1]), flush=True)
    suffix = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-") if gpu is not None else "no-gpu"
    write_record(f"int8_weights-{options.backend}-{suffix}", {"about": about, "rows": rows}, page(about, rows))
    return None


if __name__ == "__main__":
    main()
