"""How long calibration takes, what it needs in memory, and what each algorithm loses; run by hand.

    python benchmarks/calibration.py speed  --model yolo11n.pt --data scenes/detect/data.yaml
    python benchmarks/calibration.py losses --model yolo11n.pt --data scenes/detect/data.yaml

Each measurement of `speed` runs in a process of its own, so that its peak memory is its own; onnxruntime.quantization
reads the same prepared pictures in the same run. Results go to `benchmarks/results/` as JSON and as a table.
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

RESULTS = Path(__file__).parent / "results"
SIDE = 640
BATCH = 2


def pictures(model: Any, data: str, count: int) -> Iterator[Any]:
    """Prepared batches of `count` pictures of the training split, repeated where there are fewer."""
    from trtkit.calibration.selection import input_batches
    from trtkit.data import open_dataset

    pool = open_dataset(data, task=model.task).pictures("train")
    paths = [pool[index % len(pool)] for index in range(count)]
    return input_batches(paths, task=model.task, size=(SIDE, SIDE), batch=BATCH, skipped=[])


def traced(model: str) -> tuple[Any, Any]:
    import trtkit as tk
    from trtkit.graph.tracing import trace

    loaded = tk.load(model)
    return loaded, trace(loaded, imgsz=(SIDE, SIDE), batch=BATCH, dynamic_batch=True)


def forward(model: str, data: str, count: int) -> dict[str, Any]:
    import onnxruntime as ort

    loaded, graph = traced(model)
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    start = time.perf_counter()
    for batch in pictures(loaded, data, count):
        session.run(None, {"images": batch})
    return {"seconds": time.perf_counter() - start}


def ours(model: str, data: str, count: int, *, histograms: bool) -> dict[str, Any]:
    from trtkit.calibration.algorithms import ALGORITHMS
    from trtkit.calibration.calibration import read_ranges
    from trtkit.calibration.collection import Extremes, Histograms

    loaded, graph = traced(model)
    start = time.perf_counter()
    collector = (Histograms if histograms else Extremes)(graph, device="cpu")
    for batch in pictures(loaded, data, count):
        collector.add(batch)
    read = time.perf_counter()
    seen = collector.seen()
    for algorithm in ALGORITHMS if histograms else ("minmax", "moving_average"):
        read_ranges(seen, collector.sources, collector.names, algorithm)
    return {"seconds": time.perf_counter() - start, "reading_s": time.perf_counter() - read}


def theirs(model: str, data: str, count: int, *, method: str) -> dict[str, Any]:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

    class Reader(CalibrationDataReader):
        def __init__(self, batches: Iterator[Any]) -> None:
            # One picture at a time, as its own examples do.
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
        )
        calibrator.collect_data(Reader(pictures(loaded, data, count)))
        calibrator.compute_data()
        return {"seconds": time.perf_counter() - start}


JOBS: dict[str, tuple[str, Any]] = {
    "forward 64": ("plain forward pass, 64 pictures", lambda m, d: forward(m, d, 64)),
    "minmax 64": ("trtkit min-max, 64 pictures", lambda m, d: ours(m, d, 64, histograms=False)),
    "all 64": ("trtkit all algorithms, 64 pictures", lambda m, d: ours(m, d, 64, histograms=True)),
    "all 128": ("trtkit all algorithms, 128 pictures", lambda m, d: ours(m, d, 128, histograms=True)),
    "minmax 512": ("trtkit min-max, 512 pictures", lambda m, d: ours(m, d, 512, histograms=False)),
    "all 512": ("trtkit all algorithms, 512 pictures", lambda m, d: ours(m, d, 512, histograms=True)),
    "ort minmax 64": ("onnxruntime.quantization min-max, 64 pictures", lambda m, d: theirs(m, d, 64, method="MinMax")),
    "ort entropy 64": (
        "onnxruntime.quantization entropy, 64 pictures",
        lambda m, d: theirs(m, d, 64, method="Entropy"),
    ),
}


def alone(job: str, model: str, data: str) -> dict[str, Any]:
    """Run a job in a process of its own."""
    command = [sys.executable, __file__, "job", "--job", job, "--model", model, "--data", data]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{job} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def speed(model: str, data: str, repeats: int) -> None:
    found: dict[str, dict[str, Any]] = {}
    for job, (title, _) in JOBS.items():
        # The quickest of several: what else the machine does only ever adds.
        runs = [alone(job, model, data) for _ in range(1 if "512" in job or "entropy" in job else repeats)]
        found[job] = {**min(runs, key=lambda run: run["seconds"]), "title": title, "runs": len(runs)}
        print(f"{title}: {found[job]['seconds']:.1f} s, {found[job]['peak_gb']:.2f} GB", flush=True)
    entropy = found["ort entropy 64"]["seconds"]
    ratios = {
        "min-max over a plain forward pass": found["minmax 64"]["seconds"] / found["forward 64"]["seconds"],
        "onnxruntime min-max over trtkit min-max": found["ort minmax 64"]["seconds"] / found["minmax 64"]["seconds"],
        "onnxruntime entropy over trtkit all algorithms, 64 pictures each": entropy / found["all 64"]["seconds"],
        "twice onnxruntime entropy on 64 over trtkit all algorithms on 128": 2 * entropy / found["all 128"]["seconds"],
        "peak memory at 512 pictures over 64, all algorithms": found["all 512"]["peak_gb"] / found["all 64"]["peak_gb"],
    }
    rows = [f"| {one['title']} | {one['seconds']:.1f} | {one['peak_gb']:.2f} |" for one in found.values()]
    table = ["| what | s | peak GB of the process |", "|---|---|---|", *rows, "", "| ratio | |", "|---|---|"]
    table += [f"| {name} | {value:.2f} |" for name, value in ratios.items()]
    notes = [
        f"Pictures of {SIDE} x {SIDE}, read and letterboxed within the time; tracing and loading are not. Ours in "
        f"batches of {BATCH}, theirs one at a time with their defaults on every Conv; 512 pictures repeat those there "
        "are.",
    ]
    write("calibration", {"jobs": found, "ratios": ratios}, "Calibration: time and memory", table, notes, model, data)


def losses(model: str, data: str, state: str | None) -> None:
    from trtkit.tuning.search import search
    from trtkit.tuning.sweep import sweep

    counts = (8, 32, 128)
    swept = sweep(
        model,
        data,
        percentiles=(99.9, 99.99, 99.999, 99.9999),
        images=counts,
        state=state,
        progress=shown,
    )
    found = search(model, data, 0.001, state=state, backend="onnxruntime", progress=shown)
    rows = swept.frame().to_dicts()
    table = [
        f"FP32: {swept.metric} {swept.value_float:.4f} on {swept.pictures} pictures. {swept.verdict()}",
        "",
        "| algorithm | pictures | " + swept.metric + " | loss | 95 % interval of the loss | enough |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = row["algorithm"] if row["percentile"] is None else f"percentile {row['percentile']:g}"
        table.append(
            f"| {name} | {row['images']} | {row['metric']:.4f} | {row['loss']:.4f} | "
            f"{row['loss_low']:.4f} to {row['loss_high']:.4f} | {'yes' if row['enough'] else 'no'} |"
        )
    best = found.best
    table += [
        "",
        f"`search(max_drop=0.001)`: {best['mix']}, {best['int8_share']:.1%} of the multiply-accumulates in INT8, "
        f"a loss of {best['loss']:.4f} ({best['loss_low']:.4f} to {best['loss_high']:.4f}).",
        "",
        "| mix | in INT8 | SQNR, dB | " + found.metric + " | loss | 95 % interval of the loss | cost |",
        "|---|---|---|---|---|---|---|",
    ]
    trials = found.trials.to_dicts()
    for row in trials:
        table.append(
            f"| {row['mix']} | {row['int8_share']:.1%} | {'' if row['sqnr'] is None else format(row['sqnr'], '.1f')} | "
            f"{row['metric']:.4f} | {row['loss']:.4f} | {row['loss_low']:.4f} to {row['loss_high']:.4f} | "
            f"{row['cost']:.3f} |"
        )
    table += ["", f"Cost: {found.cost_source}.", "", *found.notes]
    notes = [
        "Every graph is judged by ONNX Runtime on the same pictures; intervals are bootstraps over pictures, losses "
        "paired with FP32. Several mixes were judged on the same pictures and the fastest allowed one was taken, which "
        "flatters it: read its interval, not its loss.",
    ]
    content = {"sweep": rows, "enough": swept.enough, "search": trials, "keep": list(found.keep)}
    write("calibration-losses", content, "What each calibration loses", table, notes, model, data)


def shown(event: Any) -> None:
    if event.done in (0, event.total):
        print(event.stage, event.done, event.total, event.message, flush=True)


def write(
    name: str, content: dict[str, Any], title: str, table: list[str], notes: list[str], model: str, data: str
) -> None:
    from trtkit.files import write_bytes, write_json
    from trtkit.origin import machine, versions

    place = Path(data).absolute().parent
    arguments = f"--model {Path(model).name} --data {place.name}/{Path(data).name}"
    command = f"python benchmarks/calibration.py {sys.argv[1]} {arguments}"
    about = {"machine": machine(), "versions": versions(), "command": command}
    write_json(RESULTS / f"{name}.json", {**about, **content})
    lines = [f"# {title}", "", f"`{command}`", "", *table, "", *notes, ""]
    found = ", ".join(f"{key} {value}" for key, value in about["versions"].items())
    lines += [f"{about['machine']['processor']}, {about['machine']['cores']} cores; {found}."]
    write_bytes(RESULTS / f"{name}.md", ("\n".join(lines) + "\n").encode())
    print(f"wrote {name}.json and {name}.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "losses", "job"))
    parser.add_argument("--model", required=True, help="a YOLO checkpoint")
    parser.add_argument("--data", required=True, help="a labelled data.yaml")
    parser.add_argument("--job", choices=tuple(JOBS), help="for `job`: the one measurement to make")
    parser.add_argument("--repeats", type=int, default=3, help="for `speed`: runs of each short measurement")
    parser.add_argument("--state", help="for `losses`: a folder that remembers finished steps")
    values = parser.parse_args()
    if values.what == "speed":
        speed(values.model, values.data, values.repeats)
    elif values.what == "losses":
        losses(values.model, values.data, values.state)
    else:
        warnings.simplefilter("ignore")
        found = JOBS[values.job][1](values.model, values.data)
        # ru_maxrss is in KiB on Linux.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        print(json.dumps({**found, "peak_gb": peak, "load": os.getloadavg()[0]}))


if __name__ == "__main__":
    main()
