"""Images a second from images to predictions: trtkit beside Ultralytics, on one engine, in one run.

    python benchmarks/predicting.py yolo11n-fp16.engine --images detect/images/val
    python benchmarks/predicting.py yolo11n-fp16-raw.engine --peer yolo11n-fp16.engine --images detect/images/val
    python benchmarks/predicting.py yolo11n.onnx --images detect/images/val --without-engine
    python benchmarks/predicting.py publish fp16.json int8.json                                  (the record)

Run by hand on an idle GPU. The engine is trtkit's; Ultralytics' own loader opens the same file, or that of --peer, with
the same weights and decoded outputs, which it needs. Both give boxes on the
host and take turns: from decoded JPEGs in BGR, a call for each batch and one call for all of them, and from the files
in one call. The stages of trtkit's `predict` of one batch follow, and their share outside the engine.

`--without-engine` needs no GPU: the model runs once on each batch, and what it gave is then returned at once, so that
what remains is `predict` outside the engine. Times are of this process's processor, threads included, and of the wall.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
from records import table, write

import trtkit as tk
from trtkit.backends.stages import STAGES
from trtkit.progress import available_cores

ROUNDS = 7
THRESHOLDS = {"conf": 0.25, "iou": 0.7}


SOURCES = {"batches": "a call for each batch", "arrays": "one call", "files": "one call, files"}
"""What `measure` reads images from, and what the record calls it."""


def main() -> None:
    if sys.argv[1:2] == ["publish"]:
        publish(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", help="an .engine file; an .onnx file without engine")
    parser.add_argument("--images", required=True, help="a folder of JPEGs")
    parser.add_argument("--peer", help="the engine for Ultralytics (default: the same)")
    parser.add_argument("--without-engine", action="store_true", help="replace the engine by what it gave before")
    parser.add_argument("--out", help="a JSON file")
    options = parser.parse_args()
    with tk.open(options.file) as runner:
        batch = runner.batch or 8
        paths = [str(path) for path in sorted(Path(options.images).iterdir())]
        paths = paths[: len(paths) // batch * batch]
        read = [cv2.imread(path) for path in paths]
        lists = [read[start : start + batch] for start in range(0, len(read), batch)]
        result = {"file": Path(options.file).name, "runner": runner.name, "batch": batch, "images": len(paths)}
        result |= {
            "trtkit": tk.__version__,
            "cores": available_cores(),
            "gpu": None if runner.gpu is None else dataclasses.asdict(runner.gpu),
        }
        if options.without_engine:
            replay(runner, lists)
            result |= measure({"trtkit": predictor(runner)}, lists, paths)
        else:
            import ultralytics

            result["ultralytics"] = ultralytics.__version__
            sides = {"trtkit": predictor(runner), "ultralytics": peer(options.peer or options.file, runner)}
            result |= {"peer": Path(options.peer or options.file).name} | measure(sides, lists, paths)
            result["ratio"] = {
                source: summarize([ours / theirs for ours, theirs in zip(*rates.values(), strict=True)])
                for source, rates in result["rounds"].items()
            }
        result["stages_ms"] = time_stages(runner, batch, {"arrays": read, "files": paths})
    print(json.dumps(result))
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=1))


def publish(files: Sequence[str]) -> None:
    """Write `results/predicting.{json,md}` from what runs left with `--out`."""
    runs = [json.loads(Path(file).read_text()) for file in files]
    first = runs[0]
    cells = [
        [
            run["file"], run["peer"], SOURCES[source],
            *(f"{run['images_per_s'][source][side]:.0f}" for side in ("trtkit", "ultralytics")),
            "{median:.2f} ({min:.2f} to {max:.2f})".format(**ratio),
            ", ".join(str(run["detections"][side]) for side in ("trtkit", "ultralytics")),
        ]
        for run in runs for source, ratio in run["ratio"].items()
    ]  # fmt: skip
    stages = [
        [
            run["file"], source, *(f"{times[stage]:.2f}" if stage in times else "" for stage in STAGES),
            f"{times['outside']:.0%}",
        ]
        for run in runs for source, times in run["stages_ms"].items()
    ]  # fmt: skip
    gpu = first["gpu"]
    lines = [
        "# Images a second from images to predictions, beside Ultralytics",
        "",
        f"{gpu['name']}, driver {gpu['driver']}, CUDA {gpu['cuda']}, {first['cores']} cores; {first['runner']}, "
        f"Ultralytics {first['ultralytics']}, trtkit {first['trtkit']}.",
        "",
        "`python benchmarks/predicting.py ENGINE [--peer ENGINE] --images detect/images/val`",
        "",
        f"{first['images']} images, batches of {first['batch']}, confidence {THRESHOLDS['conf']}. Medians of {ROUNDS} "
        "rounds by turns; a ratio is the median of the rounds' with their range.",
        "",
        *table(
            [
                "engine", "Ultralytics' engine", "images", "trtkit, images a second", "Ultralytics", "times as many",
                "objects: trtkit, Ultralytics",
            ],
            cells,
        ),
        "",
        "Stages of one batch, median ms, and the share of the call outside the engine:",
        "",
        *table(["engine", "images", *STAGES, "outside"], stages),
    ]  # fmt: skip
    write("predicting", {"runs": runs}, lines)


def predictor(runner: Any) -> Callable[[Sequence[Any]], list[Any]]:
    """trtkit's side."""
    return lambda images: runner.predict(images, **THRESHOLDS)


def peer(file: str, runner: Any) -> Callable[[Sequence[Any]], list[Any]]:
    """Ultralytics' side."""
    from ultralytics import YOLO

    model, settings = YOLO(file, task=runner.info.task), {"imgsz": list(runner.imgsz), "rect": False, "verbose": False}

    def predict(images: Sequence[Any]) -> list[Any]:
        found = model.predict(list(images), batch=runner.batch or 8, device=0, **settings, **THRESHOLDS)
        return [one.boxes.data.cpu().numpy() for one in found]

    return predict


def replay(runner: Any, lists: Sequence[Sequence[Any]]) -> None:
    """Run each batch once, and then return what it gave, batch after batch."""
    infer, given = runner.infer, []

    def record(feeds: Any) -> Any:
        given.append(infer(feeds))
        return given[-1]

    runner.infer = record
    for images in lists:
        runner.predict(images, **THRESHOLDS)
    calls = iter(range(10**9))
    runner.infer = lambda feeds: given[next(calls) % len(given)]


def measure(
    sides: dict[str, Callable[[Sequence[Any]], list[Any]]], lists: Sequence[Sequence[Any]], paths: Sequence[str]
) -> dict[str, Any]:
    """The rates of both by turns and their medians, from each source, and how many objects each found."""
    arrays = [image for images in lists for image in images]
    sources: dict[str, Sequence[Sequence[Any]]] = {"batches": lists, "arrays": [arrays], "files": [paths]}
    found = {name: sum(len(one) for images in lists for one in predict(images)) for name, predict in sides.items()}
    wall: dict[str, dict[str, list[float]]] = {source: {name: [] for name in sides} for source in sources}
    processor: dict[str, dict[str, list[float]]] = {source: {name: [] for name in sides} for source in sources}
    for _ in range(ROUNDS):
        for source, calls in sources.items():
            for name, predict in sides.items():
                begun, busy = time.perf_counter(), time.process_time()
                for images in calls:
                    predict(images)
                wall[source][name].append(len(paths) / (time.perf_counter() - begun))
                processor[source][name].append(1000 * (time.process_time() - busy) / len(paths))
    return {
        "detections": found,
        "rounds": wall,
        "images_per_s": {
            source: {name: statistics.median(one) for name, one in rates.items()} for source, rates in wall.items()
        },
        "processor_ms_per_image": {
            source: {name: statistics.median(one) for name, one in spent.items()} for source, spent in processor.items()
        },
    }


def summarize(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def time_stages(runner: Any, batch: int, sources: dict[str, Sequence[Any]]) -> dict[str, Any]:
    """Median ms a batch of each stage of `predict`, and the share of the call outside the engine."""
    found = {}
    for source, images in sources.items():
        timing = tk.benchmark(
            runner, batch=batch, runs=50, stage_runs=50, seconds=10, offline_seconds=0, images=list(images)
        )
        frame = timing.stage_frame()
        shares = dict(frame.select("stage", "share").iter_rows())
        found[source] = dict(frame.select("stage", "p50_ms").iter_rows()) | {"outside": 1 - shares["engine"]}
    return found


if __name__ == "__main__":
    main()
