"""Measure the demo's checkpoints on scenes of a claims seed, by trtkit's own evaluation in ONNX Runtime.

usage: python tools/evaluate_demo.py CHECKPOINTS SCENES [--images 1000] [--report FILE.json]

CHECKPOINTS is the folder of `train_demo.py`, SCENES that of `scenes.py write`. It prints a table, and fails if a
checkpoint scores less than was asked of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from demo_models import MODELS, DemoModel

import trtkit

__all__ = ["ASKED", "evaluate_checkpoint", "find_metric"]

ASKED = {
    "detect": ("mAP50-95(B)", 0.60),
    "segment": ("mAP50-95(M)", 0.30),
    "pose": ("mAP50-95(P)", 0.45),
    "obb": ("mAP50-95(B)", 0.50),
    "classify": ("top1", 0.55),
}
"""The metric of each task, and the least that a checkpoint must reach."""


def evaluate_checkpoint(
    model: DemoModel, checkpoints: Path, scenes: Path, images: int | None = None
) -> dict[str, dict[str, Any]]:
    """The metrics of a checkpoint, by its name, and of its one-to-one head, if it has one, by "<name> end-to-end"."""
    data = scenes / "classify" if model.task == "classify" else scenes / model.task / "data.yaml"
    found = {}
    for end2end in (False, True) if model.layers.get("end2end") else (False,):
        loaded = trtkit.load(checkpoints / f"{model.name}.pt", end2end=end2end)
        with tempfile.TemporaryDirectory() as folder:
            artifact = trtkit.export(loaded, format="onnx", end2end=end2end, output=Path(folder, "model.onnx"))
            with trtkit.open(artifact) as runner:
                evaluation = trtkit.evaluate(runner, data=data, eval_images=images)
        name = f"{model.name} end-to-end" if end2end else model.name
        found[name] = {
            "task": model.task,
            "images": len(evaluation.per_image),
            **find_metric(evaluation.metrics, model.task),
        }
    return found


def find_metric(metrics: dict[str, float], task: str) -> dict[str, Any]:
    """The task's metric among `evaluation.metrics`, with what was asked of it."""
    name, least = ASKED[task]
    (value,) = (value for key, value in metrics.items() if key.rpartition("/")[2] == name)
    return {"metric": name, "value": round(float(value), 4), "asked": least, "reached": bool(value >= least)}


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("scenes", type=Path)
    parser.add_argument("--images", type=int)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--report", type=Path)
    given = parser.parse_args()
    report: dict[str, dict[str, Any]] = {}
    for name in given.models:
        for key, row in evaluate_checkpoint(MODELS[name], given.checkpoints, given.scenes, given.images).items():
            report[key] = row
            print(f"{key:22} {row['metric']:12} {row['value']:.4f} (asked: {row['asked']})", flush=True)
    if given.report is not None:
        given.report.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if all(row["reached"] for row in report.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
