"""ONNX files that Ultralytics writes now, read and written again; needs Ultralytics beside trtkit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import trtkit as tk
from trtkit.graph.analysis import get_opset
from trtkit.graph.fp16 import has_fp16
from trtkit.models.model import DENSE, END2END_ROWS, NMS_ROWS

pytestmark = [pytest.mark.ultralytics, pytest.mark.slow]
ultralytics = pytest.importorskip("ultralytics")

SIZE = 64


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, DENSE),
        ({"nms": True}, NMS_ROWS),
        ({"nms": False}, END2END_ROWS),
        ({"opset": 11}, DENSE),
        ({"opset": 22, "nms": False}, END2END_ROWS),
        ({"half": True}, DENSE),
        ({"dynamic": True, "simplify": False}, DENSE),
    ],
    ids=str,
)
def test_a_file_of_ultralytics_is_read_and_written_again(
    settings: dict[str, Any], expected: Any, tmp_path: Path
) -> None:
    network = ultralytics.YOLO("yolo26n.yaml")
    network.save(tmp_path / "yolo26n.pt")
    exported = ultralytics.YOLO(tmp_path / "yolo26n.pt").export(format="onnx", imgsz=SIZE, verbose=False, **settings)
    model = tk.load(exported)
    assert (model.task, len(model.names), model.output_format) == ("detect", 80, expected)
    artifact = tk.export(model, format="onnx", output=tmp_path / "again.onnx")
    written = onnx.load(artifact.path)
    assert get_opset(written) == max(13, get_opset(onnx.load(exported)))
    assert not has_fp16(written)
    assert tk.load(artifact.path).output_format == expected
    images = np.random.default_rng(0).random((1, 3, SIZE, SIZE), np.float32)
    with tk.open(exported) as theirs, tk.open(artifact) as ours:
        before, after = theirs.infer(images)["output0"], ours.infer(images)["output0"]
    np.testing.assert_allclose(after, before, atol=0.5 if "half" in settings else 1e-3)
