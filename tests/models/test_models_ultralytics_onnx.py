"""ONNX files that Ultralytics writes now, read and written again; needs Ultralytics beside trtkit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from deterministic_weights import deterministic_weights
from families import SMALL

import trtkit as tk
from trtkit.graph.editing import get_opset
from trtkit.graph.fp16 import has_fp16
from trtkit.models.model import DENSE, DETR_ROWS, END2END_ROWS, NMS_ROWS

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


@pytest.fixture(scope="module")
def rtdetr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small RT-DETR."""
    import torch

    folder = tmp_path_factory.mktemp("rtdetr")
    (folder / "rtdetr-small.yaml").write_text(yaml.safe_dump({**SMALL["small-rtdetr"], "scale": "l"}))
    network = ultralytics.RTDETR(folder / "rtdetr-small.yaml")
    shapes = {key: tuple(value.shape) for key, value in network.model.state_dict().items()}
    weights = {key: torch.from_numpy(value) for key, value in deterministic_weights(shapes).items()}
    network.model.load_state_dict(weights)
    network.save(folder / "rtdetr-small.pt")
    return folder / "rtdetr-small.pt"


def assert_same_objects(found: np.ndarray, expected: np.ndarray, shape: tuple[int, ...]) -> None:
    """Rows x1, y1, x2, y2, score, class; ours are clipped to the image, and rounding may exchange the last ones."""
    expected = expected.copy()
    expected[:, :4] = expected[:, :4].clip(0, np.tile(shape[1::-1], 2))
    assert len(found) == len(expected) > 10
    np.testing.assert_allclose(found[:, 4], expected[:, 4], atol=1e-4)
    distances = np.abs(found[:, None] - expected[None, :-2]).max(2).min(0)
    assert distances.max() < 1e-3


@pytest.mark.parametrize("nms", [None, False, True])
def test_rtdetr_is_read_as_ultralytics_reads_it(nms: bool | None, rtdetr: Path, tmp_path: Path) -> None:
    exported = Path(ultralytics.RTDETR(rtdetr).export(format="onnx", imgsz=128, verbose=False, nms=nms))
    exported = exported.rename(tmp_path / "theirs.onnx")
    model = tk.load(exported)
    assert (model.output_format, model.preprocess.kind, len(model.names)) == (DETR_ROWS, "stretch", 5)
    image = np.random.default_rng(0).integers(0, 256, (90, 200, 3), np.uint8)
    ours = tk.export(rtdetr, format="onnx", imgsz=128, output=tmp_path / "ours.onnx").path
    again = tk.export(model, format="onnx", output=tmp_path / "again.onnx").path
    settings = {"imgsz": 128, "conf": 0.05, "verbose": False, "device": "cpu"}
    (result,) = ultralytics.RTDETR(rtdetr).predict(image, **settings)
    expected = result.boxes.data.numpy()
    for path in (exported, ours, again):
        with tk.open(path) as runner:
            (found,) = runner.predict([image], conf=0.05)
        rows = np.column_stack((found.boxes, found.scores, found.classes))
        assert_same_objects(rows, expected, image.shape)
        # Either class of Ultralytics takes the file: its metadata names the head.
        for kind in (ultralytics.RTDETR, ultralytics.YOLO):
            (theirs,) = kind(path).predict(image, **settings)
            clipped = theirs.boxes.data.numpy().copy()
            clipped[:, :4] = clipped[:, :4].clip(0, np.tile(image.shape[1::-1], 2))
            assert_same_objects(clipped, expected, image.shape)
