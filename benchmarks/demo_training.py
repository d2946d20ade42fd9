"""How the demo's models were trained, and what they reach on scenes kept for claims; run by hand.

    python tools/train_demo.py runs/demo-models --minutes 16
    python tools/scenes.py write runs/claims --train 0 --val 1000 --seed 1002
    python tools/evaluate_demo.py trtkit/demo runs/claims --report runs/claims/metrics.json
    python benchmarks/demo_training.py runs/demo-models runs/claims/metrics.json --gpu "NVIDIA H200" --torch 2.13.0

The first needs a GPU, of which the last one is told the name and its PyTorch. Writes `results/demo_training.{json,md}`,
with every line of the training's logs and the SHA-256 of every checkpoint in the package.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from records import about, line_of, table, write

from trtkit import demo

TRAINING_COMMAND = "python tools/train_demo.py runs/demo-models --minutes {minutes:g}"
CLAIMS = (
    "python tools/scenes.py write runs/claims --train 0 --val 1000 --seed 1002",
    "python tools/evaluate_demo.py trtkit/demo runs/claims --report runs/claims/metrics.json",
)


def read_log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def lines(content: dict[str, Any]) -> list[str]:
    training = content["training"]
    rows = []
    for name, one in content["models"].items():
        last = one["log"][-1]
        score = last.get("top1") or last["mAP50-95"]
        rows.append([name, f"{last['step']:,}", f"{last['images']:,}", f"{last['minutes']:.1f}", f"{score:.4f}"])
    claims = [
        [name, row["task"], str(row["images"]), row["metric"], f"{row['value']:.4f}", f"{row['asked']:.2f}"]
        for name, row in content["metrics"].items()
    ]
    return [
        "# The demo's models: training and accuracy", "", f"`{training['command']}`", "",
        f"All side by side on one {training['gpu']}, PyTorch {training['torch']}, from random weights and an empty "
        "folder, beside other work on the same machine; scenes of seed 7, learning rate by the clock. The score is "
        "that of 128 scenes of seed 900, by the training's own validation.", "",
        *table(["model", "steps", "images", "minutes", "score"], rows), "",
        "On 1,000 scenes of seed 1002 (crops of their digits for classify), by trtkit's own evaluation in ONNX Runtime "
        "at each model's own image size. Nothing was trained or chosen on these scenes; 200 of them were looked at "
        "once before, with the models of a shorter run. Their digits are other scans than those of training, their 14 "
        "photographs the same:", "",
        *(f"`{command}`\n" for command in content["claims"]),
        *table(["model", "task", "images", "metric", "value", "asked"], claims), "", line_of(content),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("training", type=Path)
    parser.add_argument("metrics", type=Path)
    parser.add_argument("--gpu", required=True)
    parser.add_argument("--torch", required=True)
    parser.add_argument("--minutes", type=float, default=16)
    options = parser.parse_args()
    checkpoints = sorted(demo.model_path().parent.glob("*.pt"))
    content = {
        **about("runs/demo-models runs/claims/metrics.json"),
        "training": {
            "command": TRAINING_COMMAND.format(minutes=options.minutes), "gpu": options.gpu, "torch": options.torch,
            "minutes": options.minutes, "seed": 7, "choosing_seed": 900,
        },
        "claims": CLAIMS, "claims_seed": 1002, "metrics": json.loads(options.metrics.read_text(encoding="utf-8")),
        "models": {
            path.stem: {
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size,
                "log": read_log(options.training / f"{path.stem}.log"),
            }
            for path in checkpoints
        },
    }  # fmt: skip
    write("demo_training", content, lines(content))


if __name__ == "__main__":
    main()
