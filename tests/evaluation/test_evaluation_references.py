"""A checkpoint to metrics through the public interface, against Ultralytics' own validation (references/make.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import trtkit

REFERENCES = Path(__file__).parent / "references"


def evaluate_onnx(model, data, folder, **settings):
    artifact = trtkit.export(trtkit.load(model), format="onnx", output=folder / "model.onnx", **settings)
    with trtkit.open(artifact) as runner:
        return trtkit.evaluate(runner, data)


def agree(evaluation, name):
    expected = json.loads((REFERENCES / f"{name}.json").read_text())["metrics"]
    for metric, value in expected.items():
        if metric != "fitness":
            assert evaluation.metrics[metric.removeprefix("accuracy_")] == pytest.approx(value, abs=0.003), metric


def test_demo_equals_ultralytics(demo_model, demo_data, tmp_path):
    agree(evaluate_onnx(demo_model, demo_data, tmp_path), "demo-detect")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb", "classify"])
def test_shared_scenes_equal_ultralytics(task, shared, tmp_path):
    reference = json.loads((REFERENCES / f"{task}.json").read_text())
    data = shared / "data" / "scenes" / task
    if task != "classify":
        data = select_images(data, reference["images"], tmp_path)
    imgsz = reference["arguments"]["imgsz"]
    agree(evaluate_onnx(shared / "models" / reference["model"], data, tmp_path, imgsz=imgsz), task)


def select_images(scenes, count, folder):
    """A data.yaml of the first images of val, as references/make.py takes them."""
    description = yaml.safe_load((scenes / "data.yaml").read_text())
    images = sorted((scenes / "images" / "val").iterdir())[:count]
    (folder / "val.txt").write_text("\n".join(map(str, images)))
    (folder / "data.yaml").write_text(yaml.safe_dump({**description, "path": str(folder), "val": "val.txt"}))
    return folder / "data.yaml"
