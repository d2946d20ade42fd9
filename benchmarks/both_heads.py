"""Accuracy of both heads of YOLO26 and YOLOv10, here and by Ultralytics' own `val` on the same images; run by hand.

    python benchmarks/both_heads.py SHARED --ultralytics PYTHON [--output runs/heads]

SHARED holds `models/yolo26n*.pt`, `models/yolov10n.pt` and `data/scenes/<task>`; PYTHON is the interpreter of an
environment with Ultralytics. Figures that are in the output folder already are read and not measured again. Writes
`results/both_heads.{json,md}`.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

MODELS = {
    "yolo26n": "detect",
    "yolo26n-seg": "segment",
    "yolo26n-pose": "pose",
    "yolo26n-obb": "obb",
    "yolov10n": "detect",
}
HEADS = {"one-to-many + NMS": False, "one-to-one": True}
LARGEST_DIFFERENCE = 0.003


def evaluate_here(shared: Path, name: str, end2end: bool, folder: Path) -> dict[str, Any]:
    """mAP50-95 of the exported ONNX file in ONNX Runtime."""
    import trtkit as tk

    model = tk.load(shared / "models" / f"{name}.pt", end2end=end2end)
    artifact = tk.export(model, format="onnx", output=folder / f"{name}-{end2end}.onnx", overwrite=True)
    task = MODELS[name]
    data = shared / "data" / "scenes" / task / "data.yaml"
    evaluation = tk.evaluate(artifact, data=data, split="val")
    metrics = {key: value for key, value in evaluation.metrics.items() if key.startswith("mAP50-95")}
    return {"metrics": metrics, "images": evaluation.image_count, "imgsz": model.imgsz[0]}


def evaluate_by_ultralytics(shared: Path, folder: Path) -> None:
    """Write `ultralytics.json`: mAP50-95 of every checkpoint and head by `val`; runs in Ultralytics' environment."""
    import ultralytics

    found: dict[str, Any] = {"version": ultralytics.__version__}
    for name, task in MODELS.items():
        # Ultralytics writes a cache beside the labels.
        data = folder / "data" / task
        if not data.exists():
            shutil.copytree(shared / "data" / "scenes" / task, data)
            text = (data / "data.yaml").read_text()
            # Ultralytics reads a relative path from the working folder.
            (data / "data.yaml").write_text(re.sub("^path:.*", f"path: {data}", text, flags=re.MULTILINE))
        for end2end in HEADS.values():
            model = ultralytics.YOLO(shared / "models" / f"{name}.pt")
            results = model.val(
                data=data / "data.yaml", imgsz=model.overrides["imgsz"], batch=1, rect=False, device="cpu", workers=0,
                nms=False if end2end else None, plots=False, verbose=False, project=folder, exist_ok=True,
            )  # fmt: skip
            metrics = {key.removeprefix("metrics/"): float(value) for key, value in results.results_dict.items()}
            found[f"{name} {end2end}"] = {k: v for k, v in metrics.items() if k.startswith("mAP50-95")}
    (folder / "ultralytics.json").write_text(json.dumps(found))


def collect(shared: Path, python: str, folder: Path) -> dict[str, Any]:
    """Rows of both sides."""
    rows = []
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "ultralytics.json").is_file():
        command = [python, __file__, str(shared), "--measure-ultralytics", str(folder.absolute())]
        subprocess.run(command, check=True, stdout=sys.stderr)
    theirs = json.loads((folder / "ultralytics.json").read_text())
    for name in MODELS:
        for head, end2end in HEADS.items():
            measured = folder / f"{name}-{end2end}.json"
            if not measured.is_file():
                measured.write_text(json.dumps(evaluate_here(shared, name, end2end, folder)))
            ours = json.loads(measured.read_text())
            # Ours have the exact IoU of oriented boxes, too.
            for metric, reference in theirs[f"{name} {end2end}"].items():
                value = ours["metrics"][metric]
                row = {"model": name, "head": head, "imgsz": ours["imgsz"], "images": ours["images"]}
                rows.append({**row, "metric": metric, "trtkit": value, "ultralytics": reference})
                print(rows[-1], flush=True)
    return {"ultralytics": theirs["version"], "rows": rows}


def lines(content: dict[str, Any]) -> list[str]:
    from records import line_of, table

    columns = ["model", "head", "metric", "trtkit", "Ultralytics", "difference"]
    cells = [
        [
            row["model"], row["head"], row["metric"], f"{row['trtkit']:.4f}", f"{row['ultralytics']:.4f}",
            f"{row['trtkit'] - row['ultralytics']:+.4f}",
        ]
        for row in content["rows"]
    ]  # fmt: skip
    worst = max(abs(row["trtkit"] - row["ultralytics"]) for row in content["rows"])
    verdict = "yes" if worst <= LARGEST_DIFFERENCE else "no"
    return [
        "# Both heads of YOLO26 and YOLOv10", "", f"`{content['command']}`", "",
        f"mAP50-95 on the {content['rows'][0]['images']} images of `val`, each model at its own size: the exported "
        f"ONNX file in ONNX Runtime, and Ultralytics {content['ultralytics']}'s own `val` of the checkpoint "
        "(rect=False, batch 1, CPU; `nms=None` and `nms=False`). Both from score 0.001 on, obb from 0.01, `val`'s "
        "defaults.", "", *table(columns, cells), "",
        f"Largest difference {worst:.4f}; at most {LARGEST_DIFFERENCE}: {verdict}.", "", line_of(content),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shared", type=Path)
    parser.add_argument("--ultralytics", metavar="PYTHON", help="interpreter with Ultralytics")
    parser.add_argument("--output", type=Path, default=Path("runs/heads"))
    parser.add_argument("--measure-ultralytics", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure_ultralytics is not None:
        evaluate_by_ultralytics(options.shared, options.measure_ultralytics)
        return
    from records import about, write

    content = {**about("SHARED --ultralytics PYTHON"), **collect(options.shared, options.ultralytics, options.output)}
    write("both_heads", content, lines(content))


if __name__ == "__main__":
    main()
