"""Ultralytics reads our ONNX files of YOLO26 and YOLOv10 as its own: the same detections from its `predict`.

Live, where Ultralytics is installed and the shared models are at hand.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trtkit

pytestmark = pytest.mark.ultralytics
MODELS = {
    "yolo26n": "detect",
    "yolo26n-seg": "segment",
    "yolo26n-pose": "pose",
    "yolo26n-obb": "obb",
    "yolov10n": "detect",
}
IMAGES = 3


def predict(path: Path, task: str, images: list[Path], imgsz: int) -> list[dict[str, np.ndarray]]:
    """Ultralytics' detections of each image, by falling score."""
    from ultralytics import YOLO

    found = []
    results = YOLO(path, task=task).predict(images, imgsz=imgsz, conf=0.1, rect=False, device="cpu", verbose=False)
    for result in results:
        boxes = result.obb if task == "obb" else result.boxes
        values = {"boxes": boxes.xywhr if task == "obb" else boxes.xyxy, "scores": boxes.conf, "classes": boxes.cls}
        if task == "pose":
            values["keypoints"] = result.keypoints.data
        if task == "segment":
            values["masks"] = result.masks.data
        found.append({key: value.cpu().numpy() for key, value in values.items()})
    return found


def largest_difference(ours: list[dict[str, np.ndarray]], theirs: list[dict[str, np.ndarray]]) -> float:
    worst = 0.0
    for one, other in zip(ours, theirs, strict=True):
        assert len(one["scores"]) == len(other["scores"])
        np.testing.assert_array_equal(one["classes"], other["classes"])
        for key in set(one) - {"classes", "masks"}:
            worst = max(worst, float(np.abs(one[key] - other[key]).max(initial=0)))
        if "masks" in one:
            # A pixel on the edge of a mask may fall on either side of the threshold.
            assert (one["masks"] != other["masks"]).mean() < 1e-4
    return worst


@pytest.mark.parametrize("end2end", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_ultralytics_reads_our_file_as_its_own(
    shared: Path, tmp_path: Path, name: str, end2end: bool, record_property: Any
) -> None:
    ultralytics = pytest.importorskip("ultralytics")
    if not (shared / "models" / f"{name}.pt").is_file():
        pytest.skip(f"{name}.pt is not in the shared folder")
    task, imgsz = MODELS[name], 320
    source = Path(shutil.copy(shared / "models" / f"{name}.pt", tmp_path))
    images = sorted((shared / "data" / "scenes" / task / "images" / "val").glob("*.jpg"))[:IMAGES]
    theirs = Path(ultralytics.YOLO(source).export(format="onnx", imgsz=imgsz, nms=False if end2end else None))
    expected = predict(theirs, task, images, imgsz)
    assert sum(len(result["scores"]) for result in expected) > 5
    for kind, model in (("from the checkpoint", source), ("from Ultralytics' ONNX file", theirs)):
        of_checkpoint = model is source
        artifact = trtkit.export(
            model,
            format="onnx",
            imgsz=imgsz,
            end2end=end2end and of_checkpoint,
            output=tmp_path / f"{of_checkpoint}.onnx",
        )
        assert artifact.info.end2end == end2end
        difference = largest_difference(predict(artifact.path, task, images, imgsz), expected)
        record_property(kind, difference)
        print(f"{name} end2end={end2end} {kind}: {difference:.2e}")
        assert difference < 1e-3
