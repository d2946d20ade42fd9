"""What search() reaches on the shared scenes: how much stays in INT8 within an allowed loss; run by hand.

    python benchmarks/search.py --model yolo11n.pt --data detect/data.yaml --max-drop 0.001

One task a call; the results of the others stay in `benchmarks/results/search.{json,md}`. Costs come from the cost
model, so that the same assignments are evaluated on every machine. With --cache-dir an interrupted search resumes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from records import about, earlier, line_of, show, table, write

import trtkit as tk
from trtkit.models import load
from trtkit.models.model import TASKS


def run_search(model: str, data: str, max_drop: float, cache_dir: str | None) -> dict[str, Any]:
    result = tk.search(model, data, max_drop, cache_dir=cache_dir, backend="onnxruntime", progress=show)
    best = result.best
    print(result)
    return {
        "model": Path(model).name,
        "imgsz": result.provenance.settings["imgsz"],
        "metric": result.metric,
        "fp32": result.value_float,
        "max_drop": max_drop,
        "reached": result.reached,
        "best": {
            name: best[name]
            for name in ("assignment", "int8_share", "kept_layers", "metric", "loss", "loss_low", "loss_high")
        },
        "keep": list(result.keep),
        "cost": result.cost_source,
        "notes": list(result.notes),
        "trials": result.trials.to_dicts(),
        "worst": result.layers.sort("noise_share", descending=True).head(5).to_dicts(),
    }


def spans(row: dict[str, Any]) -> str:
    return f"{row['loss_low']:+.4f} to {row['loss_high']:+.4f}"


def page(tasks: dict[str, Any]) -> list[str]:
    rows = [
        [
            task,
            f"{one['metric']} {one['fp32']:.4f}",
            f"{one['max_drop']:g}",
            one["best"]["assignment"],
            f"{one['best']['loss']:+.4f} ({spans(one['best'])})",
            f"{one['best']['int8_share']:.1%}",
            "yes" if one["reached"] else "no",
        ]
        for task, one in tasks.items()
    ]
    lines = [
        "# What search() reaches",
        "",
        *table(
            ["task", "FP32", "allowed", "found", "loss (95 % interval)", "multiply-accumulates in INT8", "ok"], rows
        ),
        "",
        "ONNX Runtime evaluates every assignment on all images of `val`; intervals are bootstraps over images, paired "
        "with FP32. The cheapest allowed assignment was chosen on the same images, so its loss is optimistic: read its "
        "interval beside it.",
    ]
    for task, one in tasks.items():
        side = "x".join(map(str, one["imgsz"]))
        lines += ["", f"## {task}: {one['model']} at {side}", "", f"`{one['origin']['command']}`", ""]
        lines += table(
            ["assignment", "in INT8", "SQNR, dB", one["metric"], "loss", "95 % interval", "cost", "Pareto", "found"],
            [
                [
                    row["assignment"],
                    f"{row['int8_share']:.1%}",
                    "" if row["sqnr"] is None else f"{row['sqnr']:.1f}",
                    f"{row['metric']:.4f}",
                    f"{row['loss']:+.4f}",
                    spans(row),
                    f"{row['cost']:.3f}",
                    "yes" if row["pareto"] else "",
                    "yes" if row["chosen"] else "",
                ]
                for row in one["trials"]
            ],
        )
        lines += ["", f"Cost: {one['cost']}.", "", "Layers that make most of the noise when all is repaired:", ""]
        lines += [f"- `{row['node']}` ({row['noise_share']:.1%} of it)" for row in one["worst"]]
        lines += [
            "",
            "Excluded from INT8 beyond the default: " + (", ".join(f"`{name}`" for name in one["keep"]) or "nothing"),
        ]
        lines += ["", *(f"{note[0].upper()}{note[1:]}." for note in one["notes"]), "", line_of(one["provenance"])]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a YOLO checkpoint")
    parser.add_argument("--data", required=True, help="a labeled data set of its task")
    parser.add_argument("--max-drop", type=float, default=0.001, help="the largest loss of the metric")
    parser.add_argument("--cache-dir", help="cache directory; an interrupted run resumes from it")
    values = parser.parse_args()
    task = load(values.model).task
    shown = f"{task}/{Path(values.data).name}" if Path(values.data).suffix else task
    one = run_search(values.model, values.data, values.max_drop, values.cache_dir)
    one["provenance"] = about(f"--model {Path(values.model).name} --data {shown} --max-drop {values.max_drop:g}")
    tasks = {**earlier("search").get("tasks", {}), task: one}
    tasks = {known: tasks[known] for known in TASKS if known in tasks}
    write("search", {"tasks": tasks}, page(tasks))


if __name__ == "__main__":
    main()
