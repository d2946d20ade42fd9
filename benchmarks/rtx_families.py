"""Which families TensorRT-RTX builds: all of `tests/models/families.py`, FP16 and INT8, static and dynamic.

    python benchmarks/rtx_families.py [family ...]

Needs no GPU. Of each family and task the smallest network, both heads, with weights made from their names, calibrated
on noise: what builds does not depend on the values. A child process for each network, so that a crash is one row.
Writes `results/rtx_families.{json,md}`; a sample is built in `tests/backends`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from records import about, earlier, line_of, table, write

import trtkit as tk
from trtkit.errors import TrtkitError

TESTS = Path(__file__).resolve().parents[1] / "tests"
SIDE = 64
DEVICE = "sm89"
PRECISIONS = ("fp16", "int8")


def list_networks() -> list[tuple[str, str]]:
    """Title and architecture of the smallest network of each family and task."""
    sys.path.insert(0, str(TESTS / "models"))
    from families import FAMILIES

    return [
        (family.title, family.pattern.format(size=family.sizes[0], task=task))
        for family in FAMILIES
        for task in family.tasks
    ]


def build_all(name: str) -> None:
    """Build one network in every precision and shape; a JSON line for each."""
    sys.path.insert(0, str(TESTS / "support"))
    from networks import load_network

    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        images = np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 3), np.uint8)
        for index, image in enumerate(images):
            cv2.imwrite(str(folder / f"{index}.png"), image)
        models = [load_network(name, SIDE)]
        try:
            models.append(models[0].with_end2end())
        except TrtkitError as error:
            if error.code != "model-without-one-to-one-head":
                raise
        for model in models:
            calibration = None
            for precision in PRECISIONS:
                for dynamic in (False, True):
                    row: dict[str, Any] = {"head": model.output_format.name, "precision": precision, "dynamic": dynamic}
                    try:
                        if precision == "int8" and calibration is None:
                            calibration = tk.calibrate(model, folder)
                        artifact = tk.export(
                            model, half=precision == "fp16", int8=precision == "int8", dynamic=dynamic, batch=2,
                            calibration=calibration if precision == "int8" else None, backend="tensorrt_rtx",
                            device=DEVICE, output=folder / "model.engine", overwrite=True,
                        )  # fmt: skip
                        row |= {"plan_bytes": artifact.size, "seconds": artifact.build_seconds}
                    except TrtkitError as error:
                        row |= {"error": error.code, "text": str(error)}
                    print(json.dumps(row), flush=True)
            # An INT8 ONNX file as a share of FP32's; its size does not depend on the shapes.
            sizes = [
                tk.export(model, "onnx", output=folder / f"{key}.onnx", overwrite=True, **settings).size
                for key, settings in (("fp32", {}), ("int8", {"int8": True, "calibration": calibration}))
            ]
            print(json.dumps({"head": model.output_format.name, "share": sizes[1] / sizes[0]}), flush=True)


def run_child(name: str) -> list[dict[str, Any]]:
    """The rows of one network; a crash is a row."""
    done = subprocess.run([sys.executable, __file__, "--child", name], capture_output=True, text=True, check=False)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode:
        rows.append({"head": "", "precision": "", "dynamic": False, "error": f"exit {done.returncode}",
                     "text": done.stderr[-2000:]})  # fmt: skip
    return rows


def page(record: dict[str, Any]) -> list[str]:
    rows = [row for row in record["rows"] if "share" not in row]
    shares = {(row["network"], row["head"]): f"{row['share']:.3f}" for row in record["rows"] if "share" in row}
    cells = []
    for title, name, head in dict.fromkeys((row["family"], row["network"], row["head"]) for row in rows):
        marks = []
        for precision in PRECISIONS:
            for dynamic in (False, True):
                row = next(
                    (
                        one
                        for one in rows
                        if (one["network"], one["head"], one["precision"], one["dynamic"])
                        == (name, head, precision, dynamic)
                    ),
                    {"error": "not reached"},
                )
                marks.append(row.get("error") or f"{row['plan_bytes'] / 1e6:.1f} MB")
        cells.append([title, name, head, *marks, shares.get((name, head), "")])
    built = sum("error" not in row for row in rows)
    columns = [f"{precision} {shape}" for precision in PRECISIONS for shape in ("static", "dynamic")]
    columns.append("INT8 ONNX / FP32 ONNX")
    return [
        "# Families that TensorRT-RTX builds",
        "",
        line_of(record["about"]),
        "",
        f"`{record['about']['command']}`",
        "",
        f"{built} of {len(rows)} engines build, for {DEVICE}, batch 2, {SIDE} px; sizes of the plans.",
        "",
        *table(["family", "network", "output", *columns], cells),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="Networks; all without it.")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.child:
        warnings.simplefilter("ignore")
        build_all(words.child)
        return
    order = {name: place for place, (_, name) in enumerate(list_networks())}
    networks = [(title, name) for title, name in list_networks() if not words.names or name in words.names]
    chosen = {name for _, name in networks}
    rows = [row for row in earlier("rtx_families").get("rows", []) if row["network"] not in chosen]
    for title, name in networks:
        found = run_child(name)
        print(name, [row.get("error") or row.get("share", "ok") for row in found], flush=True)
        rows += [{"family": title, "network": name, **row} for row in found]
        rows.sort(key=lambda row: order[row["network"]])
        record = {"about": about(""), "rows": rows}
        write("rtx_families", record, page(record))


if __name__ == "__main__":
    main()
