"""How much of an evaluation is spent outside inference, beside Ultralytics' own validation of the same file.

    python benchmarks/evaluation.py --model yolo11n.pt --data detect/data.yaml --ultralytics ENV/bin/python

Run by hand on an idle machine. Images are repeated until there are as many as asked. Ultralytics is called in an
environment of its own, on the same ONNX file, the same images and at batch 1.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import trtkit as tk
from trtkit.data import open_dataset
from trtkit.results import describe_machine, package_versions
from trtkit.writing import write_bytes, write_json

RESULTS = Path(__file__).resolve().parent / "results"

THEIRS = """
import json, sys, time
from ultralytics import YOLO
model = YOLO(sys.argv[1], task="detect")
begun = time.perf_counter()
quiet = {"plots": False, "verbose": False}
found = model.val(data=sys.argv[2], rect=False, imgsz=640, batch=1, conf=0.001, iou=0.7, device="cpu", **quiet)
print("RESULT " + json.dumps({"wall": time.perf_counter() - begun, "speed": found.speed, "map": found.box.map}))
"""


def repeated(data: str, count: int, folder: Path) -> Path:
    """A data set of `count` images: those of `val`, as often as it takes."""
    images = open_dataset(data, task="detect").images("val")
    for kind in ("images", "labels"):
        (folder / kind / "val").mkdir(parents=True)
    for index in range(count):
        image = images[index % len(images)]
        label = Path(str(image).replace("/images/", "/labels/")).with_suffix(".txt")
        shutil.copy(image, folder / "images" / "val" / f"{index:05}{image.suffix}")
        shutil.copy(label, folder / "labels" / "val" / f"{index:05}.txt")
    names = open_dataset(data, task="detect").names
    text = f"path: {folder}\ntrain: images/val\nval: images/val\nnames:\n"
    write_bytes(folder / "data.yaml", (text + "".join(f"  {i}: '{name}'\n" for i, name in names.items())).encode())
    return folder / "data.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--ultralytics", help="a Python that has Ultralytics")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        data = repeated(options.data, options.images, Path(name))
        artifact = tk.export(options.model, format="onnx", output=Path(name) / "model.onnx")
        with tk.open(artifact) as runner:
            begun = time.perf_counter()
            ours = tk.evaluate(runner, data)
            wall = time.perf_counter() - begun
        inference = ours.speed["inference"] * options.images / 1e3
        rows.append(
            {"who": "trtkit", "wall_s": wall, "inference_s": inference, "mAP50-95": ours.metrics["mAP50-95(B)"]}
        )
        if options.ultralytics:
            done = subprocess.run(
                [options.ultralytics, "-c", THEIRS, str(artifact.path), str(data)],
                capture_output=True,
                text=True,
                check=True,
            )
            line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
            theirs = json.loads(line.removeprefix("RESULT "))
            inference = theirs["speed"]["inference"] * options.images / 1e3
            rows.append(
                {
                    "who": "Ultralytics val",
                    "wall_s": theirs["wall"],
                    "inference_s": inference,
                    "mAP50-95": theirs["map"],
                }
            )
    for row in rows:
        row["outside"] = 1 - row["inference_s"] / row["wall_s"]
    command = "python benchmarks/evaluation.py --model yolo11n.pt --data detect/data.yaml --ultralytics ENV/bin/python"
    about = {
        "machine": describe_machine(),
        "versions": package_versions(),
        "command": command,
        "images": options.images,
    }
    write_json(RESULTS / "evaluation.json", {**about, "rows": rows})
    table = [
        f"# Evaluating {options.images} images",
        "",
        f"`{command}`",
        "",
        "| who | wall, s | inference, s | outside inference | mAP50-95 (Ultralytics' rule) |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        shares = f"{row['inference_s']:.1f} | {row['outside']:.1%} | {row['mAP50-95']:.4f}"
        table += [f"| {row['who']} | {row['wall_s']:.1f} | {shares} |"]
    table += [
        "",
        f"{about['machine']['processor']}, {about['machine']['cores']} cores; the same ONNX file, batch 1.",
        "",
    ]
    write_bytes(RESULTS / "evaluation.md", "\n".join(table).encode())
    print("\n".join(table))


if __name__ == "__main__":
    main()
