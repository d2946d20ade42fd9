"""Pictures a second from decoded JPEGs to predictions: trtkit beside Ultralytics, on one engine, in one run.

    python benchmarks/predicting.py yolo11n-fp16.engine --pictures detect/images/val

Run by hand on an idle GPU. The engine is trtkit's; Ultralytics' own loader opens the same file. Both get the same lists
of BGR pictures, as many as the engine's batch, and give boxes on the host; they take turns.
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
    parser.add_argument("--pictures", required=True, help="a folder of JPEGs")
    parser.add_argument("--out", help="a JSON file")
    options = parser.parse_args()
    import ultralytics
    from ultralytics import YOLO

    runner = tk.open(options.engine)
    batch = runner.batch or 1
    read = [cv2.imread(str(path)) for path in sorted(Path(options.pictures).iterdir())]
    lists = [read[start : start + batch] for start in range(0, len(read) - batch + 1, batch)]
    theirs = YOLO(options.engine, task=runner.card.task)
    size = list(runner.imgsz)

    def peer(pictures: list[Any]) -> list[Any]:
        found = theirs.predict(pictures, imgsz=size, conf=0.25, iou=0.7, rect=False, verbose=False, device=0)
        return [one.boxes.data.cpu().numpy() for one in found]

    def ours(pictures: list[Any]) -> list[Any]:
        return runner.predict(pictures, conf=0.25, iou=0.7)

    rates: dict[str, list[float]] = {"trtkit": [], "ultralytics": []}
    found: dict[str, int] = {}
    sides: dict[str, Callable[[list[Any]], list[Any]]] = {"trtkit": ours, "ultralytics": peer}
    for name, predict in sides.items():
        found[name] = sum(len(one) for pictures in lists for one in predict(pictures))
    for _ in range(ROUNDS):
        for name, predict in sides.items():
            begun = time.perf_counter()
            for pictures in lists:
                predict(pictures)
            rates[name].append(len(lists) * batch / (time.perf_counter() - begun))
    result = {
        "engine": Path(options.engine).name,
        "runner": runner.name,
        "ultralytics": ultralytics.__version__,
        "batch": batch,
        "pictures": len(lists) * batch,
        "rounds": ROUNDS,
        "detections": found,
        "pictures_per_s": {name: statistics.median(values) for name, values in rates.items()},
    }
    result["ratio"] = result["pictures_per_s"]["trtkit"] / result["pictures_per_s"]["ultralytics"]
    runner.close()
    print(json.dumps(result))
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
