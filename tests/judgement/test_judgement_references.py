"""A checkpoint to metrics through the public interface, against Ultralytics' own validation (references/make.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import trtkit

REFERENCES = Path(__file__).parent / "references"


def judged(model, data, folder):
    artifact = trtkit.export(trtkit.load(model), format="onnx", output=folder / "model.onnx")
    with trtkit.open(artifact) as runner:
        return trtkit.evaluate(runner, data)


def agree(evaluation, name):
    expected = json.loads((REFERENCES / f"{name}.json").read_text())["metrics"]
    for metric, value in expected.items():
        if metric != "fitness":
            assert evaluation.metrics[metric] == pytest.approx(value, abs=0.003), metric


def test_demo_equals_ultralytics(demo_model, demo_data, tmp_path):
    agree(judged(demo_model, demo_data, tmp_path), "demo-detect")


@pytest.mark.slow
def test_shared_scenes_equal_ultralytics(shared, tmp_path):
    scenes = shared / "data" / "scenes" / "detect" / "data.yaml"
    agree(judged(shared / "models" / "yolo11n.pt", scenes, tmp_path), "detect")
