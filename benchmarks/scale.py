"""Calibration and evaluation on 1 and 2 local workers beside one process, and what the scheduler costs.

    python benchmarks/scale.py --model yolo11n.pt --data detect/data.yaml --images 128

Run by hand on an idle machine. Every result is compared with the serial one before its time counts. On two cores one
process already uses both, so that two workers can gain little; what they cost is what this shows. `results/scale.md` is
the source of the table in docs/scale.md.
"""

from __future__ import annotations

import argparse
import pickle
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import records

import trtkit as tk
from trtkit.executor import Workers
from trtkit.progress import Event, Reporter
from trtkit.results import Result

TASKS = 500
"""Empty tasks that the scheduler's own time is measured on."""


def do_nothing(state: None, number: int) -> int:
    return number


def timed(run: Callable[[], Result], repeats: int) -> tuple[float, Result]:
    """The shortest of several runs, s: other work only adds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - start)
    return min(times), result


def is_equal(one: Result, other: Result) -> bool:
    """Whether all tables are equal, bit for bit."""
    return all(table.equals(other.tables()[name]) for name, table in one.tables().items())


def measure_scheduler(executor: Any) -> dict[str, float]:
    """Seconds of an empty task, and seconds until the first of a new run is back."""
    workers = Workers(executor, Reporter())
    list(workers.map(do_nothing, range(10), stage="warm up"))
    start = time.perf_counter()
    list(workers.map(do_nothing, [0], stage="one"))
    first = time.perf_counter() - start
    start = time.perf_counter()
    list(workers.map(do_nothing, range(TASKS), stage="many"))
    return {"first_s": first, "task_s": (time.perf_counter() - start) / TASKS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--imgsz", type=int)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    model = tk.load(options.model)
    rows: list[dict[str, Any]] = []
    scheduler: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = tk.export(model, format="onnx", imgsz=options.imgsz, output=Path(folder) / "model.onnx").path
        read_bytes: list[int] = []

        def evaluate(**more: Any) -> Result:
            result = tk.evaluate(file, options.data, eval_images=options.images, **more)
            read_bytes[:] = [Path(path).stat().st_size for path in result.per_image["path"]]
            return result

        def calibrate(**more: Any) -> Result:
            return tk.calibrate(
                model, options.data, imgsz=options.imgsz, calibration_images=options.images, histograms=True,
                device="cpu", **more,
            )  # fmt: skip

        verbs: dict[str, Callable[..., Result]] = {"evaluate": evaluate, "calibrate": calibrate}
        serial = {}
        for name, verb in verbs.items():
            seconds, serial[name] = timed(verb, options.repeats)
            rows.append({"verb": name, "workers": 0, "seconds": seconds, "count": options.images})
        for count in (1, 2):
            start = time.perf_counter()
            with tk.open_executor(f"local:{count}") as executor:
                executor.wait_for_workers(count)
                started = time.perf_counter() - start
                for name, verb in verbs.items():
                    events: list[Event] = []
                    verb(executor=executor, progress=events.append)  # workers import and open the model once
                    seconds, result = timed(lambda verb=verb: verb(executor=executor), options.repeats)
                    assert is_equal(serial[name], result), name
                    tasks = sum(row["tasks"] for row in result.provenance.machine["workers"])
                    rows.append(
                        {
                            "verb": name, "workers": count, "seconds": seconds, "count": options.images,
                            "start_s": started, "tasks": tasks,
                        }
                    )  # fmt: skip
                if count == 2:
                    scheduler = measure_scheduler(executor)
        sizes = {
            "model_bytes": file.stat().st_size,
            "image_bytes": sum(read_bytes) / len(read_bytes),
            "evaluation_bytes": len(pickle.dumps(serial["evaluate"])) / options.images,
        }
    name = Path(options.model).name
    about = records.about(f"--model {name} --data DATA --images {options.images}")
    base = {row["verb"]: row["seconds"] for row in rows if not row["workers"]}
    lines = [
        f"# Work on local workers: {name}",
        "",
        records.line_of(about),
        "",
        *records.table(
            ["verb", "workers", "ms an image", "speed-up against one process", "tasks", "start of the workers, s"],
            [
                [
                    row["verb"],
                    str(row["workers"] or "none"),
                    f"{1000 * row['seconds'] / row['count']:.1f}",
                    f"{base[row['verb']] / row['seconds']:.2f}",
                    str(row.get("tasks", "")),
                    f"{row['start_s']:.1f}" if "start_s" in row else "",
                ]
                for row in rows
            ],
        ),
        "",
        f"An empty task takes {1000 * scheduler['task_s']:.2f} ms, the first of a run "
        f"{1000 * scheduler['first_s']:.0f} ms.",
        f"An image file has {sizes['image_bytes'] / 1e3:.0f} kB, its rows of an evaluation "
        f"{sizes['evaluation_bytes'] / 1e3:.1f} kB; the ONNX file {sizes['model_bytes'] / 1e6:.1f} MB.",
    ]
    records.write("scale", {**about, "rows": rows, "scheduler": scheduler, **sizes}, lines)


if __name__ == "__main__":
    main()
