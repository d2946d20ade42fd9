"""YOLO26 and YOLOv10 as FP16 and INT8 engines, both heads: they build, and agree with ONNX Runtime on boxes.

    python benchmarks/newer_models.py --models shared/models --scenes shared/data/scenes --out runs/newer

On a machine with TensorRT and a GPU. Engines are built beside each other at a low optimization level, which says
nothing about latency: none is timed. ONNX Runtime runs the ONNX graph that each engine was built from, on the same
images; `results/newer_models-GPU.{json,md}` hold what came out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
from parallel_builds import Program, drive, gpus_here
from records import about_engines, line_of, of_gpu, table
from records import write as write_record

import trtkit as tk
from trtkit.data import open_dataset
from trtkit.errors import TrtkitError
from trtkit.exporter import export_with_graph
from trtkit.recipe import Recipe
from trtkit.writing import write_json

MODELS = {
    "yolo26n": "detect",
    "yolov10n": "detect",
    "yolo26n-seg": "segment",
    "yolo26n-pose": "pose",
    "yolo26n-obb": "obb",
}
PRECISIONS = ("fp16", "int8")
CONF = 0.5
"""Boxes from this score on must have a match."""
PIXELS = 2.0
SCORE = 0.12
"""A match is of the same class, within `PIXELS` on each side and `SCORE` in score: the limits of `tests/gpu`."""
IMAGES = 32


def build_and_compare(
    path: Path, data: Path, precision: str, end2end: bool, folder: Path, opt_level: int
) -> dict[str, Any]:
    """Build one engine, run it and its ONNX graph on the same images; facts of both."""
    model = tk.load(path, end2end=end2end)
    recipe = Recipe(
        model=str(path), half=precision == "fp16", int8=precision == "int8", dynamic=False, opt_level=opt_level,
        data=str(data) if precision == "int8" else None, backend="tensorrt", output=str(folder / "model.engine"),
        overwrite=True,
    )  # fmt: skip
    artifact, graph = export_with_graph(model, recipe)
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    images = open_dataset(data, task=model.task).images("val")[:IMAGES]
    with tk.open(artifact) as engine, tk.open(folder / "model.onnx") as reference:
        ours, theirs = engine.predict(images, conf=0.25), reference.predict(images, conf=0.25)
        metrics = {name: tk.evaluate(one, data).metrics for name, one in (("engine", engine), ("onnx", reference))}
    passport = artifact.passport.to_dict() if artifact.passport is not None else {}
    matched, total, distances = count_matches(ours, theirs)
    back, expected, _ = count_matches(theirs, ours)
    return {
        "seconds": round(artifact.build_seconds or 0, 1),
        "plan_bytes": artifact.size,
        "onnx_bytes": (folder / "model.onnx").stat().st_size,
        "layers": dict(tk.read_layers(artifact).frame.group_by("precision").len().iter_rows()),
        "matched": matched + back,
        "boxes": total + expected,
        "median_px": float(np.median(distances)) if len(distances) else None,
        "largest_px": float(distances.max()) if len(distances) else None,
        "metrics": metrics,
        "passport": {key: value for key, value in passport.items() if key != "layers"},
    }


def count_matches(ours: list[Any], theirs: list[Any]) -> tuple[int, int, np.ndarray]:
    """Boxes of `ours` from `CONF` on with a match in `theirs`, how many there are, and the matches' distances, px."""
    matched, total, distances = 0, 0, []
    for one, other in zip(ours, theirs, strict=True):
        for box, score, number in zip(one.boxes, one.scores, one.classes, strict=True):
            if score < CONF:
                continue
            total += 1
            far = np.abs(other.boxes - box).max(1)
            near = (far <= PIXELS) & (other.classes == number) & (np.abs(other.scores - score) <= SCORE)
            if near.any():
                matched += 1
                distances.append(far[near].min())
    return matched, total, np.array(distances)


def child(words: argparse.Namespace) -> None:
    """Build one engine; its facts or its error go to a file."""
    folder = Path(words.child)
    facts: dict[str, Any]
    try:
        facts = build_and_compare(words.models, words.scenes, words.precision, words.end2end, folder, words.opt_level)
    except TrtkitError as error:
        facts = {"error": error.code, "text": str(error), "trace": traceback.format_exc(limit=5)}
    write_json(folder / "facts.json", facts)


def summarize(rows: list[dict[str, Any]], command: str) -> None:
    """Write the table and the JSON of all engines."""
    built = [row for row in rows if "error" not in row]
    lines = [
        "# YOLO26 and YOLOv10 on TensorRT: engines that build and agree",
        "",
        line_of(about_engines(command, {**built[0], "cores": len(os.sched_getaffinity(0))})),
        "",
        f"`{command}`",
        "",
        f"A box of score >= {CONF} agrees if the other runtime has one of its class within {PIXELS:g} px a side and "
        f"{SCORE} in score, counted both ways on {IMAGES} images. mAP50-95(B) by Ultralytics' rule on the whole "
        "`val` split. Built beside each other at a low level: not timed.",
        "",
    ]
    cells = []
    for row in rows:
        name = [row["model"], "end-to-end" if row["end2end"] else "one-to-many", row["precision"]]
        if "error" in row:
            cells.append([*name, row["error"], "", "", "", ""])
            continue
        metric = next(key for key in row["metrics"]["onnx"] if key.startswith("mAP50-95"))
        cells.append(
            [
                *name,
                f"{row['matched']} of {row['boxes']}",
                f"{row['median_px']:.3f}" if row["median_px"] is not None else "",
                f"{row['metrics']['onnx'][metric]:.4f}",
                f"{row['metrics']['engine'][metric]:.4f}",
                f"{row['plan_bytes'] / 1e6:.1f} / {row['onnx_bytes'] / 1e6:.1f}",
            ]
        )
    columns = [
        "model",
        "head",
        "precision",
        "boxes that agree",
        "median px",
        "mAP ONNX Runtime",
        "mAP engine",
        "MB engine / ONNX",
    ]
    write_record(of_gpu("newer_models", built[0]), {"command": command, "rows": rows}, [*lines, *table(columns, cells)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="Folder of the checkpoints.")
    parser.add_argument("--scenes", type=Path, required=True, help="Folder with a data set for each task.")
    parser.add_argument("--out", type=Path, required=True, help="Folder for engines and facts.")
    parser.add_argument("--lanes", type=int, default=8, help="Builds at once on each GPU.")
    parser.add_argument("--opt-level", type=int, default=1, help="TensorRT's optimization level.")
    parser.add_argument("--seconds", type=float, help="Stop after so long; what was not built is missing.")
    parser.add_argument("--only", nargs="*", default=list(MODELS), help="Names of models.")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    parser.add_argument("--end2end", action="store_true", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.child:
        child(words)
        return
    programs, keys = [], []
    # FP16 builds take longest: first.
    for precision in PRECISIONS:
        for name in words.only:
            task = MODELS[name]
            for end2end in (False, True):
                folder = words.out / f"{name}-{'end2end' if end2end else 'dense'}-{precision}"
                folder.mkdir(parents=True, exist_ok=True)
                command = [
                    sys.executable, __file__, "--models", str(words.models / f"{name}.pt"),
                    "--scenes", str(words.scenes / task / "data.yaml"), "--out", str(words.out),
                    "--opt-level", str(words.opt_level), "--child", str(folder), "--precision", precision,
                    *(["--end2end"] if end2end else []),
                ]  # fmt: skip
                programs.append(Program(name=folder.name, words=command, log=folder / "log.txt"))
                keys.append({"model": name, "end2end": end2end, "precision": precision, "folder": folder})
    started = time.monotonic()
    drive(programs, gpus=gpus_here(), lanes=words.lanes, seconds=words.seconds)
    print(f"{time.monotonic() - started:.0f} s in all")
    rows = []
    for key in keys:
        folder = key.pop("folder")
        if (folder / "facts.json").is_file():
            read = json.loads((folder / "facts.json").read_text())
        else:
            # Out of time, or ended by something that is no error of ours: the last line of its log.
            read = {"error": "no result", "text": (folder / "log.txt").read_text().strip().rpartition("\n")[2]}
        rows.append({**key, **read})
        print(json.dumps(rows[-1]), flush=True)
    only = "" if words.only == list(MODELS) else f" --only {' '.join(words.only)}"
    summarize(
        rows,
        "python benchmarks/newer_models.py --models shared/models --scenes shared/data/scenes --out runs/newer "
        f"--lanes {words.lanes} --opt-level {words.opt_level}{only}",
    )


if __name__ == "__main__":
    main()
