"""Run the backbone's and the head's plan one after the other and compare the detections: `python check_dla.py`.

`./build.sh --dla CORE` builds them first. Ends with 0 if all detections agree. They differ more from the expected ones
than the GPU's: DLA computes in FP16, or in INT8 by other rules than Q/DQ.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from check import check_file, compare
from infer import Plan
from yolo import Processor, read_image

HERE = Path(__file__).resolve().parent
# As far as healthy engines were from ONNX Runtime: pixels and score.
TOLERANCE = {"fp16": {"box": 2.0, "score": 0.03}, "int8": {"box": 8.0, "score": 0.3}}


def main() -> int:
    """Check the model file, then the detections of the two plans."""
    if problem := check_file():
        print(problem)
        return 1
    missing = [path.name for path in (HERE / "dla" / "backbone.plan", HERE / "dla" / "head.plan") if not path.exists()]
    if missing:
        print(f"{' and '.join(missing)} missing: run ./build.sh --dla CORE")
        return 1
    processor = Processor(HERE)
    model = processor.model
    # The plans have a fixed batch.
    model["input"] |= {"batch": model["input"]["batch"] or 1, "dynamic": False}
    backbone, head = Plan(HERE / "dla" / "backbone.plan"), Plan(HERE / "dla" / "head.plan")

    def run(values: np.ndarray) -> dict[str, np.ndarray]:
        return head(backbone({model["input"]["name"]: values}))

    rows = json.loads((HERE / "samples" / "expected.json").read_text(encoding="utf-8"))["images"]
    found = processor.predict([read_image(HERE / "samples" / row["image"]) for row in rows], run)
    tolerance = TOLERANCE["int8" if (HERE / "dla" / "calibration.cache").exists() else "fp16"]
    failed = False
    for row, one in zip(rows, found, strict=True):
        problems = compare(row, one, tolerance, model["thresholds"]["conf"])
        failed = failed or bool(problems)
        print(f"samples/{row['image']}: {'; '.join(problems) or 'as expected'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
