"""What default INT8 loses on YOLO26 and YOLOv10, both heads, and through Ultralytics' own ONNX files; run by hand.

    python benchmarks/newer_losses.py --models shared/models --scenes scenes --ultralytics folder

Scenes: `make_scenes.py scenes --train 512 --val 300 --seed 1002`, with copies of the images beside each task's labels.
Ultralytics' files (optional) are its dense exports, `yolo export model=NAME.pt format=onnx`. ONNX Runtime evaluates all
graphs on the same images; INT8 is the default of `export(int8=True)`. Writes `results/newer_losses.{json,md}`; a run
for some models keeps the rows of the others.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

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


def measure(model: Any, data: Path) -> dict[str, Any]:
    """FP32, INT8 and the loss with its interval."""
    found = tk.evaluate_int8(model, data)
    return {
        "metric": found.metric,
        "fp32": found.value_float,
        "int8": found.value,
        "loss": found.loss,
        "loss_low": found.loss_low,
        "loss_high": found.loss_high,
        "images": found.image_count,
    }


def page(record: dict[str, Any]) -> list[str]:
    cells = [
        [
            row["model"],
            row["source"],
            row["metric"],
            f"{row['fp32']:.4f}",
            f"{row['int8']:.4f}",
            f"{row['loss']:+.4f} ({row['loss_low']:+.4f} to {row['loss_high']:+.4f})",
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
            row = {"model": name, "source": source, **measure(model, data)}
            print(row, flush=True)
            rows.append(row)
    rows.sort(key=lambda row: list(MODELS).index(row["model"]))
    record = {"about": about(command), "rows": rows}
    write("newer_losses", record, page(record))


if __name__ == "__main__":
    main()
