"""Every task's network in every precision, static and dynamic, built by TensorRT-RTX without a GPU.

The networks are YOLO11n's with weights made from their names: what builds and fuses does not depend on the values.
"""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import polars as pl
import pytest
import torch
from deterministic_weights import deterministic_weights

import trtkit as tk
from trtkit import backends, demo
from trtkit.graph.torch_export import trace
from trtkit.models.checkpoint import Checkpoint
from trtkit.models.torch_model import from_checkpoint
from trtkit.models.yolo import build_model

pytest.importorskip("tensorrt_rtx")
SOURCES = Path(__file__).resolve().parents[1] / "models"
SIDE = 64
ENDINGS = {"detect": "", "segment": "-seg", "pose": "-pose", "obb": "-obb", "classify": "-cls"}


@functools.cache
def model(task: str, dynamic: bool) -> tk.Model:
    """The network as an ONNX graph: traced and simplified once for all precisions."""
    structures = json.loads((SOURCES / "references" / "structures.json").read_text())
    yaml = structures[f"yolo11n{ENDINGS[task]}"]["yaml"]
    shapes = {name: tuple(value.shape) for name, value in build_model(yaml).state_dict().items()}
    weights = {name: torch.from_numpy(value) for name, value in deterministic_weights(shapes).items()}
    loaded = from_checkpoint(Checkpoint(yaml=yaml, weights=weights), None, imgsz=SIDE)
    return tk.load(trace(loaded, batch=2, dynamic=dynamic))


@functools.cache
def calibration(task: str, dynamic: bool) -> tk.Calibration:
    data = demo.data_path("classify" if task == "classify" else "detect")
    if task == "pose":
        # A pose data set states the number of keypoints; the labels are not used.
        description = f"path: {data.parent}\ntrain: images/train\nnames: [person]\nkpt_shape: [17, 3]\n"
        data = Path(tempfile.mkdtemp()) / "data.yaml"
        data.write_text(description)
    return tk.calibrate(model(task, dynamic), data, calibration_images=4)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("task", list(ENDINGS))
def test_every_task_builds_in_every_precision(task: str, precision: str, dynamic: bool, tmp_path: Path) -> None:
    """FP16 with NMS in the graph, which classify has not."""
    artifact = tk.export(
        model(task, dynamic),
        half=precision == "fp16",
        int8=precision == "int8",
        calibration=calibration(task, dynamic) if precision == "int8" else None,
        dynamic=dynamic,
        simplify=False,
        nms=precision == "fp16" and task != "classify",
        batch=2,
        backend="tensorrt_rtx",
        device="sm89",
        output=tmp_path / "m.engine",
    )
    file = backends.read_engine(artifact.path)
    assert file.passport is not None
    assert file.info().task == task
    assert file.info().nms == (precision == "fp16" and task != "classify")
    assert artifact.precision == precision
    assert len(file.plan) > 1000
    assert (file.passport.precision, file.passport.dynamic, file.passport.batch) == (precision, dynamic, 2)
    frame = backends.layer_frame(file.passport.layers)
    convolutions = frame.filter(pl.col("onnx_nodes").list.eval(pl.element().str.ends_with("/Conv")).list.any())
    counts = dict(convolutions.group_by("precision").len().iter_rows())
    weighted = {"fp32": 0, "fp16": 0, "int8": 0} | counts
    # Every convolution is in the table by its ONNX node, and most compute in the requested precision.
    assert len(convolutions) > 15
    assert weighted[precision] > 0.5 * len(convolutions), counts
