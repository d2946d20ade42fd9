"""Images a second from decoded JPEGs to predictions: trtkit beside Ultralytics, on one engine, in one run.

    python benchmarks/predicting.py yolo11n-fp16.engine --images detect/images/val

Run by hand on an idle GPU. The engine is trtkit's; Ultralytics' own loader opens the same file. Both get the same lists
of BGR images, as many as the engine's batch, and give boxes on the host; they take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2

import trtkit as tk

ROUNDS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine")
    parser.add_argument("--images", required=True, help="a folder of JPEGs")
    parser.add_argument("--out", help="a JSON file")
    options = parser.parse_args()
    import ultralytics
    from ultralytics import YOLO

    runner = tk.open(options.engine)
    batch = runner.batch or 1
    read = [cv2.imread(str(path)) for path in sorted(Path(options.images).iterdir())]
    lists = [read[start : start + batch] for start in range(0, len(read) - batch + 1, batch)]
    theirs = YOLO(options.engine, task=runner.info.task)
    size = list(runner.imgsz)

    def peer(images: list[Any]) -> list[Any]:
        found = theirs.predict(images, imgsz=size, conf=0.25, iou=0.7, rect=False, verbose=False, device=0)
        return [one.boxes.data.cpu().numpy() for one in found]

    def ours(images: list[Any]) -> list[Any]:
        return runner.predict(images, conf=0.25, iou=0.7)

    rates: dict[str, list[float]] = {"trtkit": [], "ultralytics": []}
    found: dict[str, int] = {}
    sides: dict[str, Callable[[list[Any]], list[Any]]] = {"trtkit": ours, "ultralytics": peer}
    for name, predict in sides.items():
        found[name] = sum(len(one) for images in lists for one in predict(images))
    for _ in range(ROUNDS):
        for name, predict in sides.items():
            begun = time.perf_counter()
            for images in lists:
                predict(images)
            rates[name].append(len(lists) * batch / (time.perf_counter() - begun))
    result = {
        "engine": Path(options.engine).name,
        "runner": runner.name,
        "ultralytics": ultralytics.__version__,
        "batch": batch,
        "images": len(lists) * batch,
        "rounds": ROUNDS,
        "detections": found,
        "images_per_s": {name: statistics.median(values) for name, values in rates.items()},
    }
    result["ratio"] = result["images_per_s"]["trtkit"] / result["images_per_s"]["ultralytics"]
    runner.close()
    print(json.dumps(result))
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
