"""What default INT8 loses on YOLO26 and YOLOv10, both heads, and through Ultralytics' own ONNX files; run by hand.

    python benchmarks/newer_losses.py --models shared/models --scenes scenes --ultralytics folder

Scenes: `make_scenes.py scenes --train 512 --val 300 --seed 1002`, with copies of the images beside each task's labels.
Ultralytics' files (optional) are its dense exports, `yolo export model=NAME.pt format=onnx`. ONNX Runtime evaluates all
graphs on the same images; INT8 is the default of `export(int8=True)`. Writes `results/newer_losses.{json,md}`; a run
for some models keeps the rows of the others.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
from records import about, earlier, line_of, table, write

import trtkit as tk
from trtkit.calibration import DEFAULTS

MODELS = {
    "yolo26n": "detect",
    "yolo26n-seg": "segment",
    "yolo26n-pose": "pose",
    "yolo26n-obb": "obb",
    "yolov10n": "detect",
}


def measure(model: Any, data: Path, folder: Path) -> list[dict[str, Any]]:
    """Each metric in FP32 and INT8, and its change with the interval."""
    found = tk.compare(
        model, data, precisions=("fp32", "int8"), build=False, runs=1, seconds=0.01, output=folder, overwrite=True
    )
    chosen = (pl.col("precision") == "int8") & (pl.col("scope") == "all")
    rows = found.differences.filter(chosen & pl.col("metric").str.starts_with("mAP50-95"))
    images = found.images["path"].n_unique()
    return [
        {key: row[key] for key in ("metric", "reference", "value", "delta", "low", "high")} | {"images": images}
        for row in rows.to_dicts()
    ]


def page(record: dict[str, Any]) -> list[str]:
    cells = [
        [
            row["model"],
            row["source"],
            row["metric"],
            f"{row['reference']:.4f}",
            f"{row['value']:.4f}",
            f"{-row['delta']:+.4f} ({-row['high']:+.4f} to {-row['low']:+.4f})",
        ]
        for row in record["rows"]
    ]
    return [
        "# What default INT8 loses on YOLO26 and YOLOv10",
        "",
        line_of(record["about"]),
        "",
        f"`{record['about']['command']}`",
        "",
        f"{DEFAULTS.algorithm} {DEFAULTS.percentile:g} on {DEFAULTS.calibration_images} images of `train`, evaluated "
        f"on {record['rows'][0]['images']} images of `val`; 95 % interval of the paired difference. "
        "The two heads of a checkpoint and its dense ONNX of Ultralytics' have the same calibration images.",
        "",
        *table(["model", "source", "metric", "FP32", "INT8", "loss (95 % interval)"], cells),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="Folder of the checkpoints.")
    parser.add_argument("--scenes", type=Path, required=True, help="Folder with a data set for each task.")
    parser.add_argument("--ultralytics", type=Path, help="Folder of Ultralytics' dense ONNX files.")
    parser.add_argument("--only", nargs="*", default=list(MODELS), help="Names of models.")
    words = parser.parse_args()
    command = "--models shared/models --scenes scenes" + (" --ultralytics folder" if words.ultralytics else "")
    rows = [row for row in earlier("newer_losses").get("rows", []) if row["model"] not in words.only]
    for name in words.only:
        data = words.scenes / MODELS[name] / "data.yaml"
        sources: dict[str, Any] = {
            ".pt, one-to-many": tk.load(words.models / f"{name}.pt"),
            ".pt, end-to-end": tk.load(words.models / f"{name}.pt", end2end=True),
        }
        if words.ultralytics is not None:
            sources["Ultralytics' dense ONNX"] = tk.load(words.ultralytics / f"{name}.onnx")
        for source, model in sources.items():
            with tempfile.TemporaryDirectory() as folder:
                for row in measure(model, data, Path(folder)):
                    print(name, source, row, flush=True)
                    rows.append({"model": name, "source": source, **row})
    rows.sort(key=lambda row: list(MODELS).index(row["model"]))
    record = {"about": about(command), "rows": rows}
    write("newer_losses", record, page(record))


if __name__ == "__main__":
    main()
