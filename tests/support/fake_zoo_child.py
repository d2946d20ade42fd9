"""A child process of the zoo without TensorRT: it says which GPU it saw and when, and fails as its job's model says."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

FACTS = {
    "parameters": 1,
    "runner": "TensorRT 8.6.0",
    "metrics": {"mAP50-95(B)": 0.5, "mAP50(B)": 0.75},
    "eval_images": 4,
    "skipped": 0,
    "notes": [],
    "bytes": 2_000_000,
    "build_s": 1.5,
    "timed_sm": [1700, 1980],
    "kept": {"/dfl/Conv": "dfl"},
    "data_hash": "d" * 64,
    "versions": {"tensorrt": "8.6.0"},
    "created": "2026-01-01T00:00:00+00:00",
    "calibration_hash": None,
    "file": "model.engine",
    "file_hash": "f" * 64,
}


def timing(batch: int, ms: float) -> dict[str, object]:
    return {
        "runner": "TensorRT 8.6.0", "engine": True, "clock": "gpu", "imgsz": "64x64", "batch": batch, "padded": False,
        "runs": 100, "mean_ms": ms, "std_ms": 0.01, "min_ms": ms - 0.1, "p50_ms": ms, "p90_ms": ms, "p99_ms": ms,
        "max_ms": ms + 0.5, "image_ms": ms / batch, "images_per_s": 1000 * batch / ms,
        "flags": "throttling" if ms > 10 else "",
    }  # fmt: skip


def machine(name: str, uuid: str) -> dict[str, object]:
    gpu = {"index": 0, "name": name, "sm": "sm90", "uuid": uuid, "driver": "580.1", "clocks": [["sm", 1980]]}
    return {"processor": "x", "gpus": [gpu]}


def main(folder: Path) -> None:
    content = json.loads((folder / "job.json").read_text())
    job, visible, begun = content["job"], os.environ["CUDA_VISIBLE_DEVICES"], time.time()
    if job["model"] == "crash.pt":
        print("Segmentation fault in a kernel", flush=True)
        os.abort()
    time.sleep(60 if job["model"] == "slow.pt" else 0.05)
    result = {
        **FACTS,
        "machine": machine("A", visible),
        "timings": [timing(batch, 1.0 * batch) for batch in job["batch"]],
        "spent": [begun, time.time()],
    }
    if job["model"] == "refused.pt":
        result = {
            "error": "BuildError", "asked": "build", "found": "refused", "do": "stop", "code": "build-failed",
            "fields": {"node": "/x"},
        }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
