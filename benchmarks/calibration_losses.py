"""What each calibration algorithm loses against FP32, on each number of images, with intervals; run by hand.

    python benchmarks/calibration_losses.py --model yolo11n.pt --data detect/data.yaml

One task per call; rows of the other tasks stay in `benchmarks/results/calibration_losses.{json,md}`. ONNX Runtime
evaluates every graph on the same images. With --cache-dir an interrupted run resumes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from records import about, earlier, line_of, show, table, write

import trtkit as tk
from trtkit.calibration.algorithms import DEFAULTS, PERCENTILE
from trtkit.models import load
from trtkit.models.model import TASKS

COUNTS = (8, 32, 128, 512)
PERCENTILES = (99.9, 99.99, PERCENTILE, 99.9999)


def measure_losses(model: str, data: str, counts: list[int], cache_dir: str | None) -> dict[str, Any]:
    swept = tk.sweep(
        model, data, percentiles=PERCENTILES, calibration_images=counts, cache_dir=cache_dir, progress=show
    )
    return {
        "model": Path(model).name,
        "imgsz": swept.provenance.settings["imgsz"],
        "metric": swept.metric,
        "fp32": swept.value_float,
        "images": swept.image_count,
        "verdict": swept.verdict(),
        "rows": swept.frame().to_dicts(),
    }


def format_setting(row: dict[str, Any]) -> str:
    return row["algorithm"] if row["percentile"] is None else f"percentile {row['percentile']:g}"


def spans(low: float, high: float) -> str:
    return f"{low:+.4f} to {high:+.4f}"


def summary(tasks: dict[str, Any]) -> list[str]:
    """Each algorithm's loss on the most images, task by task."""
    settings = [format_setting(row) for row in most(next(iter(tasks.values())))]
    rows = []
    for setting in settings:
        cells = []
        for one in tasks.values():
            row = next(row for row in most(one) if format_setting(row) == setting)
            cells.append(f"{row['loss']:+.4f} ({spans(row['loss_low'], row['loss_high'])})")
        rows.append([setting, *cells])
    heads = [f"{task}, {one['metric']}" for task, one in tasks.items()]
    return table(["algorithm", *heads], rows)


def most(one: dict[str, Any]) -> list[dict[str, Any]]:
    count = max(row["calibration_images"] for row in one["rows"])
    return [row for row in one["rows"] if row["calibration_images"] == count]


def default(task: str, one: dict[str, Any]) -> str:
    row = next(row for row in most(one) if row["algorithm"] == DEFAULTS.algorithm and row["percentile"] == PERCENTILE)
    return (
        f"- {task}: the default of `export(int8=True)` ({format_setting(row)}, "
        f"{row['calibration_images']} images) loses {row['loss']:.4f} "
        f"({spans(row['loss_low'], row['loss_high'])}) of {one['metric']} {one['fp32']:.4f} on {one['images']} "
        "images."
    )


def page(tasks: dict[str, Any]) -> list[str]:
    lines = [
        "# What each calibration loses",
        "",
        "Loss of the metric that decides against FP32, evaluated by ONNX Runtime on the same images; in brackets the "
        "middle 95 % of a bootstrap over images, paired with FP32. A negative loss is a gain by chance. Layers that "
        "are excluded from INT8 by default are excluded in all of them.",
        "",
        *summary(tasks),
        "",
        *(default(task, one) for task, one in tasks.items()),
    ]
    for task, one in tasks.items():
        side = "x".join(map(str, one["imgsz"]))
        lines += ["", f"## {task}: {one['model']} at {side}", "", f"`{one['origin']['command']}`", ""]
        lines += [f"FP32: {one['metric']} {one['fp32']:.4f} on {one['images']} images. {one['verdict']}", ""]
        rows = [
            [
                format_setting(row),
                str(row["calibration_images"]),
                f"{row['metric']:.4f}",
                f"{row['loss']:+.4f}",
                spans(row["loss_low"], row["loss_high"]),
                "yes" if row["sufficient"] else "no",
            ]
            for row in one["rows"]
        ]
        lines += table(["algorithm", "images", one["metric"], "loss", "95 % interval of the loss", "sufficient"], rows)
        lines += ["", line_of(one["provenance"])]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a YOLO checkpoint")
    parser.add_argument("--data", required=True, help="a labeled data set of its task")
    parser.add_argument("--images", type=int, nargs="+", default=COUNTS, help="images to calibrate on")
    parser.add_argument("--cache-dir", help="cache directory; an interrupted run resumes from it")
    values = parser.parse_args()
    task = load(values.model).task
    name = Path(values.data).name
    shown = f"{task}/{name}" if Path(values.data).suffix else task
    one = measure_losses(values.model, values.data, list(values.images), values.cache_dir)
    counts = " ".join(map(str, values.images))
    one["provenance"] = about(f"--model {Path(values.model).name} --data {shown} --images {counts}")
    tasks = {**earlier("losses").get("tasks", {}), task: one}
    tasks = {known: tasks[known] for known in TASKS if known in tasks}
    write("losses", {"tasks": tasks}, page(tasks))


if __name__ == "__main__":
    main()
