"""Hand the stored outputs of the sample images to the parser, as Gst-nvinfer does: `python infer.py`.

The parser is compiled against `stub/` for that, so no DeepStream is needed; where DeepStream is installed, its library
is built too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from yolo import Processor, points_to_image, read_image, rotated_corners, rotated_to_image

HERE = Path(__file__).resolve().parent
DEEPSTREAM = Path(os.environ.get("DEEPSTREAM", "/opt/nvidia/deepstream/deepstream"))


def build(folder: Path) -> Path:
    """Build the parser and the program that feeds it."""
    if shutil.which("make") is None:
        raise SystemExit("make was not found: install make and a C++17 compiler")
    targets = ["replay", "STUB=-DSTUB_DEEPSTREAM_9"]
    if (DEEPSTREAM / "sources" / "includes").is_dir():
        targets += ["libnvdsinfer_yolo.so", f"DEEPSTREAM={DEEPSTREAM}"]
    done = subprocess.run(
        ["make", "-C", str(folder), *targets], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout}\nthe parser could not be built")
    return folder / "replay"


def parse(program: Path, folder: Path, tensors: Path) -> list[list[dict[str, Any]]]:
    """The parser's objects of each image, in pixels of the network's input."""
    done = subprocess.run([str(program), str(folder), str(tensors)], capture_output=True)
    if done.returncode:
        raise SystemExit(f"replay failed: {done.stderr.decode().strip()}")
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


def to_detections(objects: Sequence[Mapping[str, Any]], place: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Objects of one image to what `Processor.postprocess` returns.

    Args:
        objects: From `parse`.
        place: From `Processor.preprocess`.
        task: The model's task.
    """
    boxes = np.array([one["box"] for one in objects], np.float32).reshape(-1, 4)
    found: dict[str, Any] = {
        "scores": np.array([one["score"] for one in objects], np.float32),
        "classes": np.array([one["class"] for one in objects], np.int64),
    }
    if task == "obb":
        angles = np.array([[one["rotation"]] for one in objects], np.float32).reshape(-1, 1)
        centers = boxes[:, :2] + boxes[:, 2:] / 2
        found["xywhr"] = rotated_to_image(np.concatenate((centers, boxes[:, 2:], angles), 1), place)
        corners = rotated_corners(found["xywhr"])
        height, width = place["shape"]
        around = np.concatenate((corners.min(1), corners.max(1)), 1)
        found["boxes"] = np.clip(around, 0, np.array([width, height] * 2, np.float32))
        return found
    corners = np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1)
    found["boxes"] = points_to_image(corners, place)
    if task == "segment":
        found["masks"] = [
            place_mask(read_mask(one), box, place) for one, box in zip(objects, found["boxes"], strict=True)
        ]
    elif task == "pose":
        keypoints = np.array([read_mask(one) for one in objects], np.float32)
        if len(keypoints):
            keypoints[..., :2] = points_to_image(keypoints[..., :2], place, clip=False)
        found["keypoints"] = keypoints
    return found


def read_mask(one: Mapping[str, Any]) -> np.ndarray:
    """An object's mask, (height, width)."""
    return np.array(one["mask"], np.float32).reshape(one["mask_shape"])


def place_mask(values: np.ndarray, box: np.ndarray, place: Mapping[str, Any]) -> np.ndarray:
    """A mask of the image's size from one that covers a box: interpolated, and set from a probability of a half on."""
    mask = np.zeros(tuple(place["shape"]), bool)
    x1, y1, x2, y2 = box.tolist()
    rows, columns = np.arange(int(np.ceil(y1)), int(np.ceil(y2))), np.arange(int(np.ceil(x1)), int(np.ceil(x2)))
    if len(rows) and len(columns):
        values = _resample(values, (rows + 0.5 - y1) / (y2 - y1) * values.shape[0])
        values = _resample(values.T, (columns + 0.5 - x1) / (x2 - x1) * values.shape[1]).T
        mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = values >= 0.5
    return mask


def _resample(values: np.ndarray, positions: np.ndarray) -> np.ndarray:
    positions = np.clip(positions - 0.5, 0, len(values) - 1)
    before = positions.astype(np.int64)
    weights = (positions - before)[:, None]
    return values[before] * (1 - weights) + values[np.minimum(before + 1, len(values) - 1)] * weights


def check_plan(folder: Path) -> None:
    """End with a message if `model.plan` is not the plan inside `model.engine`."""
    engine, plan = folder / "model.engine", folder / "model.plan"
    if engine.is_file():
        data = engine.read_bytes()
        start = 4 + int.from_bytes(data[:4], "little") if data[4:5] == b"{" else 0
        if not plan.is_file() or plan.read_bytes() != data[start:]:
            raise SystemExit("model.plan is not the plan of model.engine: write the folder again with trtkit deploy")


def open_predictor(folder: Path) -> Callable[[Sequence[np.ndarray]], list[dict[str, Any]]]:
    """Return a function from the sample images (BGR uint8) to the parser's detections."""
    check_plan(folder)
    processor = Processor(folder)
    if processor.task == "classify":
        # DeepStream reads class probabilities by itself.
        values = np.fromfile(next((folder / "samples" / "tensors").glob("*.bin")), np.float32)
        return lambda images: [{"probabilities": row} for row in values.reshape(len(images), -1)]
    program = build(folder)

    def predict(images: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        objects = parse(program, folder, folder / "samples" / "tensors")
        places = processor.preprocess(images)[1]
        return [to_detections(*pair, processor.task) for pair in zip(objects, places, strict=True)]

    return predict


def main() -> None:
    """Print the parser's detections on the sample images."""
    paths = sorted((HERE / "samples").glob("*.png"))
    processor = Processor(HERE)
    for path, found in zip(paths, open_predictor(HERE)([read_image(path) for path in paths]), strict=True):
        print(path)
        print(processor.describe(found))


if __name__ == "__main__":
    main()
