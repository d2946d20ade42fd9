"""Run the sample images and compare the detections with `samples/expected.json`: `python check.py`.

Ends with 0 if all agree within the tolerance of that file, with 1 otherwise, and says what differs.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from yolo import read_image

HERE = Path(__file__).resolve().parent


def check(predict: Callable[[Sequence[np.ndarray]], list[dict[str, Any]]], folder: Path = HERE) -> int:
    """Compare predictions on the sample images with the expected ones.

    Args:
        predict: Images to predictions, as `Processor.postprocess` returns them.
        folder: The deployment folder.

    Returns:
        0 if all agree, else 1.
    """
    expected = json.loads((folder / "samples" / "expected.json").read_text(encoding="utf-8"))
    images = [read_image(folder / "samples" / row["image"]) for row in expected["images"]]
    failed = False
    for row, found in zip(expected["images"], predict(images), strict=True):
        conf = json.loads((folder / "model.json").read_text(encoding="utf-8"))["thresholds"]["conf"]
        problems = compare(row, found, expected["tolerance"], conf)
        failed = failed or bool(problems)
        count = "class probabilities" if "probabilities" in row else f"{len(row['scores'])} objects"
        print(f"samples/{row['image']}: {'; '.join(problems) if problems else f'{count} as expected'}")
    return int(failed)


def check_file(folder: Path = HERE) -> str | None:
    """What is wrong with the model file, or None."""
    file = json.loads((folder / "model.json").read_text(encoding="utf-8"))["file"]
    path = folder / file["name"]
    if not path.is_file():
        return f"{path.name} is missing: copy it beside model.json"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != file["sha256"]:
        return (
            f"{path.name} is not the file that this folder was written for (SHA-256 {digest[:12]}, expected "
            f"{file['sha256'][:12]}): restore it, or write the folder again with trtkit deploy"
        )
    return None


def compare(
    expected: Mapping[str, Any], found: Mapping[str, Any], tolerance: Mapping[str, float], conf: float
) -> list[str]:
    """How one image's detections differ from the expected ones.

    Each expected object must have one of the same class whose box and score lie within the tolerance. Objects whose
    scores lie within the tolerance of `conf` may come or go.
    """
    if "probabilities" in expected:
        difference = float(np.abs(np.array(expected["probabilities"]) - found["probabilities"]).max())
        return [f"class probabilities differ by {difference:.4f}"] if difference > tolerance["score"] else []
    problems = []
    boxes = np.asarray(found["boxes"], np.float64)
    free = np.ones(len(boxes), bool)
    limit = conf + tolerance["score"]
    for index, (box, score, number) in enumerate(
        zip(expected["boxes"], expected["scores"], expected["classes"], strict=True)
    ):
        distances = np.abs(boxes.reshape(-1, 4) - np.array(box)).max(1)
        apart = np.where(free & (np.asarray(found["classes"]) == number), distances, np.inf)
        nearest = int(apart.argmin()) if len(apart) else -1
        if nearest < 0 or not np.isfinite(apart[nearest]) or apart[nearest] > 10 * tolerance["box"] + 10:
            if score > limit:
                problems.append(f"class {number} at {', '.join(f'{value:.0f}' for value in box)} was not found")
            continue
        free[nearest] = False
        if apart[nearest] > tolerance["box"]:
            problems.append(f"a box of class {number} is {apart[nearest]:.3f} pixels off")
        difference = abs(float(found["scores"][nearest]) - score)
        if difference > tolerance["score"]:
            problems.append(f"a score of class {number} is {difference:.4f} off")
        problems += _compare_parts(expected, index, found, nearest, tolerance)
    extra = int((free & (np.asarray(found["scores"]) > limit)).sum()) if len(boxes) else 0
    return [*problems, f"{extra} objects more than expected"] if extra else problems


def _compare_parts(
    expected: Mapping[str, Any],
    index: int,
    found: Mapping[str, Any],
    nearest: int,
    tolerance: Mapping[str, float],
) -> list[str]:
    problems = []
    for name, count in (("keypoints", 2), ("xywhr", 4)):
        if name in expected:
            difference = np.asarray(found[name][nearest]) - np.array(expected[name][index])
            apart = float(np.abs(difference[..., :count]).max())
            # A keypoint is less certain than a box: a side of its box counts for both.
            if apart > 2 * tolerance["box"]:
                problems.append(f"{name} are {apart:.3f} pixels off")
    if "masks" in expected:
        runs = np.array(expected["masks"][index])
        mask = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        other = np.asarray(found["masks"][nearest]).T.ravel()
        shared = float((mask & other).sum() / max(1, (mask | other).sum())) if (mask | other).any() else 1.0
        if shared < 1 - tolerance.get("mask", tolerance["score"] * 5):
            problems.append(f"a mask has an IoU of {shared:.3f} with the expected one")
    return problems


def main() -> int:
    """Check the model file, then the detections."""
    if problem := check_file():
        print(problem)
        return 1
    import infer

    return check(infer.open_predictor(HERE))


if __name__ == "__main__":
    sys.exit(main())
