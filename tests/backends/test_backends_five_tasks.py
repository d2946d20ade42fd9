"""Every task's network in every precision, static and dynamic, built by TensorRT-RTX without a GPU.

The networks are YOLO11n's with weights made from their names: what builds and fuses does not depend on the values.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import polars as pl
import pytest
from networks import load_network

import trtkit as tk
from trtkit import backends, demo
from trtkit.graph.torch_export import trace

pytest.importorskip("tensorrt_rtx")
SIDE = 64
BY_HAND = pytest.mark.exhaustive
ENDINGS = {"detect": "", "segment": "-seg", "pose": "-pose", "obb": "-obb", "classify": "-cls"}


@functools.cache
def model(task: str, dynamic: bool) -> tk.Model:
    """The network as an ONNX graph: traced and simplified once for all precisions."""
    loaded = load_network(f"yolo11n{ENDINGS[task]}", SIDE)
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


# Each task in each precision, and each precision with both shapes; the rest is built by hand. Dynamic INT8 engines of
# all tasks are built of small networks by `tests/evaluation/test_evaluation_every_verb.py`.
DYNAMIC = {("detect", "int8"), ("detect", "fp16"), ("segment", "fp32"), ("segment", "fp16")}
CASES = [
    pytest.param(task, precision, dynamic, marks=() if dynamic == ((task, precision) in DYNAMIC) else BY_HAND)
    for task in ENDINGS
    for precision in ("fp32", "int8", "fp16")
    for dynamic in (False, True)
]


@pytest.mark.parametrize(("task", "precision", "dynamic"), CASES)
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


SAMPLE = [
    ("yolo26n-obb", True, "int8", True),
    ("yolo12n", False, "fp16", True),
    ("small-yolov9e", False, "int8", True),
    ("small-rtdetr", False, "int8", True),
    ("small-rtdetr", False, "fp16", False),
    # Small networks with these heads are built by `tests/graph/test_graph_end2end.py`.
    pytest.param("yolo26n-pose", True, "fp16", True, marks=BY_HAND),
    pytest.param("yolo26n-seg", False, "int8", False, marks=BY_HAND),
    pytest.param("yolov10n", True, "int8", False, marks=BY_HAND),
]
"""A sample of `benchmarks/rtx_families.py`, which builds all of it: network, end-to-end, precision, dynamic."""


@pytest.mark.parametrize(("name", "end2end", "precision", "dynamic"), SAMPLE)
def test_other_families_build(name: str, end2end: bool, precision: str, dynamic: bool, tmp_path: Path) -> None:
    network = load_network(name, SIDE)
    if end2end:
        network = network.with_end2end()
    int8 = precision == "int8"
    # One trace for the calibration and the build.
    traced = tk.load(trace(network, batch=2, dynamic=dynamic))
    artifact = tk.export(
        traced,
        half=not int8,
        int8=int8,
        calibration=tk.calibrate(traced, demo.data_path().parent / "images" / "train", calibration_images=2)
        if int8
        else None,
        dynamic=dynamic,
        simplify=False,
        batch=2,
        backend="tensorrt_rtx",
        device="sm89",
        output=tmp_path / "m.engine",
    )
    file = backends.read_engine(artifact.path)
    assert file.passport is not None
    assert (file.passport.precision, file.passport.dynamic) == (precision, dynamic)
    assert file.info().output_format == network.output_format
    assert file.metadata["end2end"] == end2end
    shares = dict(backends.layer_frame(file.passport.layers).group_by("precision").len().iter_rows())
    assert shares.get(precision, 0) > 10, shares
