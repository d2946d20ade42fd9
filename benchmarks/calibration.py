"""How long calibration takes and what it needs in memory, beside onnxruntime.quantization; run by hand, machine idle.

    python benchmarks/calibration.py --model yolo11n.pt --data detect/data.yaml

Each measurement runs in a process of its own, so that its peak memory is its own; onnxruntime.quantization reads the
same prepared images in the same run. What calibrations lose is `calibration_losses.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from records import about, line_of, table, write

SIDE = 640
BATCH = 2
REAL_BINS = 2048
"""Bins for a search of onnxruntime's that has something to choose from; its own default leaves one candidate."""


def images(model: Any, data: str, count: int, batch: int = BATCH) -> Iterator[Any]:
    """Prepared batches of `count` images of the training split, repeated where there are fewer."""
    from trtkit.calibration.sampling import load_input_batches
    from trtkit.data import open_dataset

    pool = open_dataset(data, task=model.task).images("train")
    paths = [pool[index % len(pool)] for index in range(count)]
    return load_input_batches(paths, preprocess=model.preprocess, size=(SIDE, SIDE), batch=batch, skipped=[])


def traced(model: str) -> tuple[Any, Any]:
    import trtkit as tk
    from trtkit.graph.torch_export import trace

    loaded = tk.load(model)
    return loaded, trace(loaded, imgsz=(SIDE, SIDE), batch=BATCH, dynamic_batch=True)


def forward(model: str, data: str, count: int) -> dict[str, Any]:
    import onnxruntime as ort

    loaded, graph = traced(model)
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    start = time.perf_counter()
    for batch in images(loaded, data, count):
        session.run(None, {"images": batch})
    return {"seconds": time.perf_counter() - start}


def ours(model: str, data: str, count: int, *, histograms: bool) -> dict[str, Any]:
    from trtkit.calibration.algorithms import ALGORITHMS
    from trtkit.calibration.calibration import compute_ranges
    from trtkit.calibration.collector import HistogramCollector, MinMaxCollector
    from trtkit.calibration.image_pass import IMAGES_PER_PASS

    loaded, graph = traced(model)
    start = time.perf_counter()
    collector = (HistogramCollector if histograms else MinMaxCollector)(graph, device="cpu")
    for batch in images(loaded, data, count, IMAGES_PER_PASS if histograms else BATCH):
        collector.add(batch)
    read = time.perf_counter()
    stats = collector.stats()
    for algorithm in ALGORITHMS if histograms else ("minmax", "moving_average"):
        compute_ranges(stats, collector.sources, collector.names, algorithm)
    return {"seconds": time.perf_counter() - start, "reading_s": time.perf_counter() - read}


def theirs(model: str, data: str, count: int, *, method: str, **options: int) -> dict[str, Any]:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

    class Reader(CalibrationDataReader):
        def __init__(self, batches: Iterator[Any]) -> None:
            # One image at a time, as its own examples do.
            self.single = ({"images": batch[i : i + 1]} for batch in batches for i in range(len(batch)))

        def get_next(self) -> dict[str, Any] | None:
            return next(self.single, None)

    loaded, graph = traced(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(graph, path)
        start = time.perf_counter()
        calibrator = create_calibrator(
            path,
            ["Conv"],
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=getattr(CalibrationMethod, method),
            extra_options=options,
        )
        calibrator.collect_data(Reader(images(loaded, data, count)))
        read = time.perf_counter()
        calibrator.compute_data()
        return {"seconds": time.perf_counter() - start, "reading_s": time.perf_counter() - read}


# What is compared runs one right after the other.
JOBS: dict[str, tuple[str, Any]] = {
    "forward 64": ("plain forward pass, 64 images", lambda m, d: forward(m, d, 64)),
    "all 64": ("trtkit all algorithms, 64 images", lambda m, d: ours(m, d, 64, histograms=True)),
    "all 128": ("trtkit all algorithms, 128 images", lambda m, d: ours(m, d, 128, histograms=True)),
    "ort entropy 64": (
        "onnxruntime entropy as it comes (128 bins: one candidate), 64 images",
        lambda m, d: theirs(m, d, 64, method="Entropy"),
    ),
    "ort search 64": (
        f"onnxruntime entropy with num_bins={REAL_BINS} (a search), 64 images",
        lambda m, d: theirs(m, d, 64, method="Entropy", num_bins=REAL_BINS),
    ),
    "minmax 64": ("trtkit min-max, 64 images", lambda m, d: ours(m, d, 64, histograms=False)),
    "ort minmax 64": ("onnxruntime min-max, 64 images", lambda m, d: theirs(m, d, 64, method="MinMax")),
    "all 512": ("trtkit all algorithms, 512 images", lambda m, d: ours(m, d, 512, histograms=True)),
}

ONCE = ("all 512", "ort entropy 64", "ort search 64")


def alone(job: str, model: str, data: str) -> dict[str, Any]:
    """Run a job in a process of its own."""
    command = [sys.executable, __file__, "--job", job, "--model", model, "--data", data]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{job} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measured(model: str, data: str, jobs: list[str], repeats: int) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for job in jobs:
        title, _ = JOBS[job]
        # The quickest of several: what else the machine does only ever adds.
        runs = [alone(job, model, data) for _ in range(1 if job in ONCE else repeats)]
        found[job] = {**min(runs, key=lambda run: run["seconds"]), "title": title, "runs": len(runs)}
        print(f"{title}: {found[job]['seconds']:.1f} s, {found[job]['peak_gb']:.2f} GB", flush=True)
    return found


def ratios_of(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The ratios of what was measured."""

    def on_128(job: str) -> float:
        """Collecting takes twice as long on twice the images, reading the ranges does not."""
        return 2 * found[job]["seconds"] - found[job]["reading_s"]

    def seconds(job: str) -> float:
        return found[job]["seconds"]

    wanted = {
        "onnxruntime entropy as it comes over trtkit all algorithms, 128 images each": (
            ("ort entropy 64", "all 128"),
            lambda: on_128("ort entropy 64") / seconds("all 128"),
        ),
        f"onnxruntime entropy with num_bins={REAL_BINS} over trtkit all algorithms, 128 images each": (
            ("ort search 64", "all 128"),
            lambda: on_128("ort search 64") / seconds("all 128"),
        ),
        "onnxruntime entropy as it comes over trtkit all algorithms, 64 images each": (
            ("ort entropy 64", "all 64"),
            lambda: seconds("ort entropy 64") / seconds("all 64"),
        ),
        "onnxruntime min-max over trtkit min-max, 64 images each": (
            ("ort minmax 64", "minmax 64"),
            lambda: seconds("ort minmax 64") / seconds("minmax 64"),
        ),
        "trtkit min-max over a plain forward pass": (
            ("minmax 64", "forward 64"),
            lambda: seconds("minmax 64") / seconds("forward 64"),
        ),
        "trtkit all algorithms over a plain forward pass": (
            ("all 64", "forward 64"),
            lambda: seconds("all 64") / seconds("forward 64"),
        ),
        "peak memory at 512 images over 64, all algorithms": (
            ("all 512", "all 64"),
            lambda: found["all 512"]["peak_gb"] / found["all 64"]["peak_gb"],
        ),
    }
    return {name: ratio() for name, (jobs, ratio) in wanted.items() if set(jobs) <= set(found)}


def page(provenance: dict[str, Any], found: dict[str, dict[str, Any]], ratios: dict[str, float]) -> list[str]:
    jobs = [
        [
            one["title"],
            f"{one['seconds']:.1f}",
            f"{one['reading_s']:.1f}" if "reading_s" in one else "",
            f"{one['peak_gb']:.2f}",
            f"{one['load']:.1f}",
        ]
        for one in found.values()
    ]
    return [
        "# Calibration: time and memory",
        "",
        f"`{provenance['command']}`",
        "",
        *table(["what", "s", "of it reading ranges", "peak GB of the process", "load"], jobs),
        "",
        *table(["ratio", ""], [[name, f"{value:.2f}"] for name, value in ratios.items()]),
        "",
        f"Images of {SIDE} x {SIDE}, read and letterboxed within the time; tracing and loading are not. Both "
        "run image by image where tensors are counted, theirs on every Conv; 512 images repeat those there are. "
        "onnxruntime keeps every tensor of every image until the end; 128 images would need twice its memory: "
        "its time on 128 is twice that on 64, reading counted once. "
        "Load is the processes that wanted a core, this one included: above the number of cores others slowed it down, "
        "and what needs every core more than what needs one.",
        "",
        line_of(provenance),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a YOLO checkpoint")
    parser.add_argument("--data", required=True, help="a labeled data.yaml")
    parser.add_argument("--job", choices=tuple(JOBS), help="make this one measurement and print it")
    parser.add_argument("--jobs", choices=tuple(JOBS), nargs="+", default=list(JOBS), help="what to measure")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each short measurement")
    values = parser.parse_args()
    if values.job is not None:
        warnings.simplefilter("ignore")
        one = JOBS[values.job][1](values.model, values.data)
        # ru_maxrss is in KiB on Linux.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        print(json.dumps({**one, "peak_gb": peak, "load": os.getloadavg()[0]}))
        return
    found = measured(values.model, values.data, values.jobs, values.repeats)
    place = Path(values.data).absolute()
    chosen = "" if set(values.jobs) == set(JOBS) else " --jobs " + " ".join(f'"{job}"' for job in values.jobs)
    provenance = about(f"--model {Path(values.model).name} --data {place.parent.name}/{place.name}{chosen}")
    ratios = ratios_of(found)
    write("calibration", {**provenance, "jobs": found, "ratios": ratios}, page(provenance, found, ratios))


if __name__ == "__main__":
    main()
