"""How long the tuner takes to follow a control, and to open; run by hand.

    python benchmarks/tuner.py --model yolo11n.pt --data scenes/detect/data.yaml

A change is timed from the control's new value to the last figure and table that the page is sent, all in the kernel:
ranges by the algorithm, shared scales, both figures of the ranges, the layers' table, and the code to paste. Results go
to `benchmarks/results/` as JSON and as a table.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from records import about, line_of, show, table, write

LIMIT_MS = 150.0
ROUNDS = 20
PERCENTILES = (99.9, 99.99, 99.999)


class Clock:
    """Times changes, and apart from it Python's garbage collector, which goes through all there is at times."""

    def __init__(self) -> None:
        self.collecting, self._begun = 0.0, 0.0
        gc.callbacks.append(self._collected)

    def timed(self, change: Callable[[], None], drawn: Callable[[], str]) -> tuple[float, float]:
        """Milliseconds of a change, which has to draw something new, and how many of them collected garbage."""
        before = drawn()
        self.collecting = 0.0
        begun = time.perf_counter()
        change()
        taken = 1000 * (time.perf_counter() - begun)
        assert drawn() != before, "nothing was redrawn"
        return taken, 1000 * self.collecting

    def _collected(self, phase: str, info: Any) -> None:
        if phase == "start":
            self._begun = time.perf_counter()
        else:
            self.collecting += time.perf_counter() - self._begun


def measure(model: str, data: str, images: int, folder: Path) -> dict[str, Any]:
    import trtkit as tk

    loaded = tk.load(model)
    calibration = tk.calibrate(loaded, data, calibration_images=images, histograms=True, progress=show)
    costs = tk.sensitivity(loaded, data, probe_images=1, worst=0, calibration=calibration, progress=show)
    begun = time.perf_counter()
    made = tk.tuner(loaded, data, calibration, sensitivity=costs, cache_dir=folder)
    opened = time.perf_counter() - begun
    made.wait()
    assert made.job_view.job.state == "done", made.job_view.job.error
    ready = time.perf_counter() - begun
    ranges, layers = made.ranges, made.layers

    def overview() -> str:
        return str(ranges.overview._place.figure)

    def algorithm(name: str) -> Callable[[], None]:
        return lambda: setattr(ranges.algorithm, "value", name)

    def percentile(value: float) -> Callable[[], None]:
        return lambda: setattr(ranges.percentile, "value", value)

    changes: dict[str, list[tuple[float, float]]] = {}
    timed = Clock().timed
    names = ("entropy", "mse", "moving_average", "percentile", "minmax")
    for _ in range(ROUNDS):
        for name in names:
            changes.setdefault(f"algorithm to {name}", []).append(timed(algorithm(name), overview))
    ranges.algorithm.value = "percentile"
    for _ in range(ROUNDS):
        for value in PERCENTILES:
            changes.setdefault("percentile", []).append(timed(percentile(value), overview))
    tensors = list(ranges.tensor.options)
    for place in range(ROUNDS):
        show_tensor = lambda place=place: setattr(ranges.tensor, "value", tensors[3 + 5 * place])  # noqa: E731
        changes.setdefault("another tensor", []).append(timed(show_tensor, overview))
    nodes = [node for _, node in layers.keep.options]
    for place in range(ROUNDS):
        keep = lambda place=place: setattr(layers.keep, "value", tuple(nodes[: place + 1]))  # noqa: E731
        changes.setdefault("a layer kept in FP16", []).append(timed(keep, lambda: str(layers.ranking._place.figure)))
    return {
        "model": loaded.stem,
        "imgsz": list(loaded.imgsz),
        "tensors": len(calibration.ranges),
        "layers": len(nodes),
        "opened_s": opened,
        "ready_s": ready,
        "changes_ms": {
            name: {
                "first": times[0][0],
                "median": statistics.median(taken for taken, _ in times),
                "most": max(times)[0],
                "collecting": max(times)[1],
                "runs": len(times),
            }
            for name, times in changes.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=64, help="images to calibrate on")
    values = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(values.model, values.data, values.images, Path(folder))
    data = "/".join(Path(values.data).parts[-3:])
    provenance = about(f"--model {Path(values.model).name} --data {data} --images {values.images}")
    rows = [
        [name, *(f"{times[column]:.0f}" for column in ("first", "median", "most", "collecting")), str(times["runs"])]
        for name, times in found["changes_ms"].items()
    ]
    worst = max(times["most"] - times["collecting"] for times in found["changes_ms"].values())
    lines = [
        "# The tuner follows its controls",
        "",
        f"{found['model']} at {found['imgsz'][0]}: {found['tensors']} tensors, {found['layers']} layers. A change is "
        "timed from the control's new value to the last figure and table that the page is sent; "
        f"{LIMIT_MS:.0f} ms are allowed, the slowest took {worst:.0f} ms beside what Python's garbage collector took, "
        "which now and then goes through all that the kernel holds.",
        "",
        *table(["change", "first, ms", "median, ms", "most, ms", "of it garbage collection, ms", "runs"], rows),
        "",
        f"With a calibration given it is there after {found['opened_s']:.2f} s, and has read the layers and every "
        f"algorithm after {found['ready_s']:.1f} s in the background.",
        "",
        f"`{provenance['command']}`",
        "",
        line_of(provenance),
    ]
    write("tuner", {**found, **provenance}, lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
