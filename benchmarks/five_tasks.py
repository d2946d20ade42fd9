"""What FP16 and INT8 lose by default, for all five tasks, as `trtkit compare` tells it; run by hand.

    python benchmarks/five_tasks.py SHARED [--output runs/five]

SHARED holds `models/yolo11n*.pt` and `data/scenes/<task>`. A comparison that is in the output folder already is read
and not made again. Writes `results/five_tasks.{json,md}`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from records import about, line_of, show, table, write

import trtkit as tk

ALLOWED = 0.005
REFERENCES = Path(__file__).resolve().parent.parent / "tests" / "evaluation" / "references"
MODELS = {"detect": "", "segment": "-seg", "pose": "-pose", "obb": "-obb", "classify": "-cls"}
WHAT = (
    "`trtkit compare MODEL DATA --device sm89` with its defaults: INT8 is calibrated on `train` as an export does "
    "by itself, ONNX Runtime evaluates the Q/DQ graphs on all images of `val`. In brackets the 95 % interval of the "
    "change by a paired bootstrap over images (1,000 resamples, seed 0); * where it leaves out 0."
)


def compared(shared: Path, task: str, folder: Path) -> tk.Comparison:
    if (folder / "comparison.json").is_file():
        return tk.Comparison.load(folder)
    data = shared / "data" / "scenes" / task
    return tk.compare(
        shared / "models" / f"yolo11n{MODELS[task]}.pt",
        data if task == "classify" else data / "data.yaml",
        device="sm89",
        output=folder,
        progress=show,
    )


def collect_facts(comparison: tk.Comparison) -> dict[str, Any]:
    about, provenance = comparison.about, comparison.provenance.to_dict()
    changes = {
        label: dict(comparison.changes(label).group_by("change").len().iter_rows())
        for label in comparison.rows["precision"].unique(maintain_order=True)
        if label != about["reference"]
    }
    names = dict(about["metrics"])
    theirs = json.loads((REFERENCES / f"{about['task']}.json").read_text(encoding="utf-8"))
    ours = comparison.evaluated("fp32").metrics
    apart = {
        name: abs(ours[name.removeprefix("accuracy_")] - value)
        for name, value in theirs["metrics"].items()
        if name != "fitness"
    }
    worst = max(apart, key=lambda name: apart[name])
    rows = comparison.differences.filter(comparison.differences["scope"] == "all").drop("scope", "name").to_dicts()
    return {
        "model": f"{about['model']}.pt",
        "imgsz": about["imgsz"],
        "images": about["images"],
        "metric": about["metrics"][0][0],
        "deciding": names,
        "calibration": about["calibration"],
        "changes": rows,
        "objects": changes,
        "beside_ultralytics": {
            "version": theirs["ultralytics"],
            "metrics": len(apart),
            "worst": worst,
            "difference": apart[worst],
        },
        "versions": provenance["versions"],
        "runner": provenance["runner"],
        "created": provenance["created"],
    }


def signed(value: float) -> str:
    return "0" if abs(value) < 0.00005 else f"{value:+.4f}"


def cell(row: dict[str, Any]) -> str:
    return f"{signed(row['delta'])} [{signed(row['low'])}, {signed(row['high'])}]{' *' if row['measurable'] else ''}"


def lines(content: dict[str, Any]) -> list[str]:
    head = ["task", "images", "metric", "FP32", "FP16: change", "INT8: change", f"INT8 loses at most {ALLOWED}"]
    rows, objects, beside = [], [], []
    for task, one in content["tasks"].items():
        for metric in one["deciding"]:
            mine = {row["precision"]: row for row in one["changes"] if row["metric"] == metric}
            main = metric == one["metric"]
            verdict = ("yes" if mine["int8"]["delta"] >= -ALLOWED else "no") if main else ""
            first = [f"**{task}**" if main else "", str(one["images"]) if main else ""]
            values = [f"{mine['int8']['reference']:.4f}", cell(mine["fp16"]), cell(mine["int8"])]
            rows.append([*first, f"**{metric}**" if main else metric, *values, verdict])
        theirs = one["beside_ultralytics"]
        name = theirs["worst"].removeprefix("accuracy_")
        beside.append([task, str(theirs["metrics"]), f"{theirs['difference']:.4f} ({name})"])
        for label, counts in one["objects"].items():
            cells = [
                str(counts.get(name, 0))
                for name in ("lost", "gained", "false positive added", "false positive removed")
            ]
            objects.append([task, label.upper(), *cells])
    return [
        "# Five tasks: what each precision loses by default", "", f"`{content['command']}`", "", WHAT, "",
        *table(head, rows), "", "The metric that decides a task is bold.", "", "Objects at confidence 0.25:", "",
        *table(["task", "precision", "lost", "gained", "false positives: added", "removed"], objects), "",
        "FP32 beside Ultralytics' own `val` (rect=False, same imgsz; numbers in `tests/evaluation/references`):", "",
        *table(["task", "metrics", "largest difference"], beside), "", line_of(content),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shared", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/five"))
    options = parser.parse_args()
    tasks = {task: collect_facts(compared(options.shared, task, options.output / task)) for task in MODELS}
    content = {**about("SHARED"), "tasks": tasks}
    write("five_tasks", content, lines(content))


if __name__ == "__main__":
    main()
