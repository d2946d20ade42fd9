"""Run the backbone's and the head's plan one after the other and compare the detections: `python check_dla.py`.

`./build.sh --dla CORE` builds them first. Ends with 0 if all detections agree.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from check import check, check_file
from infer import Plan
from yolo import Processor

HERE = Path(__file__).resolve().parent


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
    # The plans have a fixed batch.
    processor.model["input"]["batch"] = processor.model["input"]["batch"] or 1
    processor.model["input"]["dynamic"] = False
    backbone, head = Plan(HERE / "dla" / "backbone.plan"), Plan(HERE / "dla" / "head.plan")
    name = processor.model["input"]["name"]

    def run(values: np.ndarray) -> dict[str, np.ndarray]:
        return head(backbone({name: values}))

    return check(lambda images: processor.predict(images, run))


if __name__ == "__main__":
    sys.exit(main())
