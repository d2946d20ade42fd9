from __future__ import annotations

import threading
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_graphs
from raising import raises

import trtkit as tk
from trtkit import demo
from trtkit.calibration import Calibration
from trtkit.errors import (
    CalibrationError,
    CancelledError,
    CapabilityError,
    OnnxError,
    OutputExistsError,
    RecipeError,
)
from trtkit.graph.onnx_file import read_trtkit_metadata
from trtkit.graph.recipe_graph import build_graph
from trtkit.progress import Event
from trtkit.recipe import Recipe


@pytest.fixture(scope="module")
def model() -> tk.Model:
    return tk.load(demo.model_path())


@pytest.fixture(scope="module")
def calibration(model: tk.Model) -> Calibration:
    return tk.calibrate(model, demo.data_path(), calibration_images=4, imgsz=96)


def test_onnx_in_three_precisions_does_not_overwrite_itself(
    model: tk.Model, calibration: Calibration, tmp_path: Path
) -> None:
    shapes, sizes = {}, {}
    images = np.random.default_rng(0).random((1, 3, 96, 96), np.float32)
    for half, int8 in ((False, False), (True, False), (False, True)):
        precision = "int8" if int8 else "fp16" if half else "fp32"
        artifact = tk.export(
            model,
            format="onnx",
            imgsz=96,
            half=half,
            int8=int8,
            calibration=calibration if int8 else None,
            output=tmp_path / f"{precision}.onnx",
        )
        assert (artifact.precision, artifact.format, artifact.size) == (precision, "onnx", artifact.path.stat().st_size)
        sizes[precision] = artifact.size
        proto = onnx.load(artifact.path)
        onnx.checker.check_model(proto, full_check=True)
        metadata = read_trtkit_metadata(proto)
        assert metadata["precision"] == precision
        assert metadata["model_hash"] == model.hash
        with tk.open(artifact) as runner:
            assert runner.precision == precision
            shapes[precision] = runner.infer(images)["output0"]
    assert sizes["int8"] < 0.3 * sizes["fp32"]
    assert np.abs(shapes["fp16"] - shapes["fp32"]).max() < 1.0
    assert 0 < np.abs(shapes["int8"][:, 4:] - shapes["fp32"][:, 4:]).max() < 0.5


def test_default_names_have_the_precision(tmp_path: Path, calibration: Calibration) -> None:
    import shutil

    source = tmp_path / "yolo11n.pt"
    shutil.copy(demo.model_path(), source)
    assert tk.export(source, format="onnx", imgsz=96).path == tmp_path / "yolo11n.onnx"
    assert tk.export(source, format="onnx", imgsz=96, half=True).path == tmp_path / "yolo11n-fp16.onnx"
    int8 = tk.export(source, format="onnx", imgsz=96, int8=True, calibration=calibration)
    assert int8.path == tmp_path / "yolo11n-int8.onnx"
    with pytest.raises(OutputExistsError) as e:
        tk.export(source, format="onnx", imgsz=96)
    assert e.value.fields["path"] == str(tmp_path / "yolo11n.onnx")
    assert tk.export(source, format="onnx", imgsz=96, overwrite=True).size > 0


def test_the_export_of_an_onnx_file_is_another_file(tmp_path: Path) -> None:
    source = tmp_path / "tiny.onnx"
    onnx.save(tiny_graphs.detector(), source)
    before = source.read_bytes()
    artifact = tk.export(source, "onnx", overwrite=True)
    assert artifact.path == tmp_path / "tiny-trtkit.onnx"
    assert source.read_bytes() == before


def test_an_onnx_file_keeps_its_own_shape(tmp_path: Path) -> None:
    proto = tiny_graphs.detector()
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(proto, tmp_path / "batch.onnx")
    onnx.save(tiny_graphs.detector(), tmp_path / "fixed.onnx")
    onnx.save(tiny_graphs.detector(dynamic=True), tmp_path / "open.onnx")
    for name, dynamic in (("batch", False), ("fixed", False), ("open", True)):
        artifact = tk.export(tmp_path / f"{name}.onnx", "onnx", output=tmp_path / f"{name}-out.onnx")
        assert artifact.recipe.dynamic is dynamic
    for name in ("batch", "fixed"):
        with raises(OnnxError, "onnx-shape-fixed"):
            tk.export(tmp_path / f"{name}.onnx", "onnx", dynamic=True, output=tmp_path / "out.onnx")


def test_an_existing_output_is_refused_before_any_work(model: tk.Model, tmp_path: Path) -> None:
    path = tmp_path / "kept.onnx"
    path.write_bytes(b"mine")
    events: list[Event] = []
    with pytest.raises(OutputExistsError):
        tk.export(model, format="onnx", int8=True, data=demo.data_path(), output=path, progress=events.append)
    assert path.read_bytes() == b"mine"
    assert not any(event.stage.startswith("calibrate") for event in events)


def test_imgsz_is_rounded_up_with_a_warning(model: tk.Model, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="128x160"):
        artifact = tk.export(model, format="onnx", imgsz=(100, 150), output=tmp_path / "a.onnx")
    assert artifact.info.imgsz == (128, 160)
    with tk.open(artifact) as runner:
        assert runner.infer(np.zeros((1, 3, 128, 160), np.float32))["output0"].shape == (
            1,
            14,
            16 * 20 + 8 * 10 + 4 * 5,
        )


def test_half_and_int8_together_are_refused(model: tk.Model) -> None:
    with pytest.raises(RecipeError) as e:
        tk.export(model, half=True, int8=True)
    assert e.value.code == "recipe-two-precisions"


def test_a_calibration_of_another_model_is_refused(model: tk.Model, calibration: Calibration, tmp_path: Path) -> None:
    import dataclasses

    other = dataclasses.replace(
        calibration, provenance=dataclasses.replace(calibration.provenance, model_hash="0" * 64)
    )
    with pytest.raises(CalibrationError) as e:
        tk.export(model, format="onnx", int8=True, calibration=other, output=tmp_path / "a.onnx")
    assert e.value.code == "calibration-model-mismatch"
    assert not list(tmp_path.iterdir())


def test_a_saved_calibration_gives_the_same_graph(model: tk.Model, calibration: Calibration, tmp_path: Path) -> None:
    folder = calibration.save(tmp_path / "calibration")
    one = tk.export(model, format="onnx", imgsz=96, int8=True, calibration=calibration, output=tmp_path / "a.onnx")
    two = tk.export(model, format="onnx", imgsz=96, int8=True, calibration=folder, output=tmp_path / "b.onnx")
    assert one.calibration_hash == two.calibration_hash == Calibration.load(folder).hash
    first, second = onnx.load(one.path), onnx.load(two.path)
    assert [t.raw_data for t in first.graph.initializer] == [t.raw_data for t in second.graph.initializer]


def test_a_tensorrt_calibration_cache_is_used(model: tk.Model, calibration: Calibration, tmp_path: Path) -> None:
    cache = tmp_path / "old.cache"
    cache.write_text(calibration.to_tensorrt_cache())
    one = tk.export(model, format="onnx", imgsz=96, int8=True, calibration=calibration, output=tmp_path / "a.onnx")
    with pytest.warns(UserWarning, match="TensorRT calibration cache"):
        two = tk.export(model, format="onnx", imgsz=96, int8=True, calibration=cache, output=tmp_path / "b.onnx")
    first, second = onnx.load(one.path), onnx.load(two.path)
    assert [t.raw_data for t in first.graph.initializer] == [t.raw_data for t in second.graph.initializer]


def test_int8_without_data_warns(model: tk.Model, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="example set"):
        artifact = tk.export(model, format="onnx", imgsz=64, int8=True, output=tmp_path / "a.onnx")
    assert artifact.calibration_hash is not None


def test_decoding_is_marked_fp32_for_tensorrts_own_calibrator(model: tk.Model, calibration: Calibration) -> None:
    own = build_graph(model, Recipe(model="m.pt", int8=True, implicit=True, imgsz=96), None, imgsz=(96, 96))
    named = set(read_trtkit_metadata(own)["fp32"])
    kinds = {node.op_type for node in own.graph.node if node.name in named}
    # The convolution that makes boxes of all bins has weights as the head's last layers do, but comes after them.
    assert {"Conv", "Sigmoid"} <= kinds
    assert not named & {node.name for node in own.graph.node if "/cv2." in node.name or "/cv3." in node.name}
    pairs = build_graph(model, Recipe(model="m.pt", int8=True, imgsz=96), calibration, imgsz=(96, 96))
    assert set(read_trtkit_metadata(pairs)["fp32"]) == named


def test_cancel_leaves_nothing(model: tk.Model, tmp_path: Path) -> None:
    cancel = threading.Event()

    def progress(event: Event) -> None:
        if event.stage.startswith("calibrate"):
            cancel.set()

    with pytest.raises(CancelledError):
        tk.export(
            model,
            format="onnx",
            imgsz=64,
            int8=True,
            data=demo.data_path(),
            output=tmp_path / "a.onnx",
            progress=progress,
            cancel=cancel,
        )
    assert not list(tmp_path.iterdir())


def test_tensorrt_that_is_missing_is_named_with_its_package(model: tk.Model, tmp_path: Path) -> None:
    if tk.capabilities("tensorrt").present:
        pytest.skip("TensorRT is installed here")
    with pytest.raises(CapabilityError) as caught:
        tk.export(model, backend="tensorrt", output=tmp_path / "a.engine")
    assert caught.value.code == "backend-missing"
    assert "trtkit[tensorrt]" in caught.value.do


BUILT = [(False, "fp32"), (True, "fp16"), (False, "int8")]
# `tests/backends` builds detect and the other tasks at either shape.
BUILT_BY_HAND = [(True, "fp32"), (False, "fp16"), (True, "int8")]


@pytest.mark.parametrize(
    ("dynamic", "precision"), [*BUILT, *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in BUILT_BY_HAND)]
)
def test_tensorrt_rtx_builds_without_a_gpu(
    model: tk.Model, calibration: Calibration, tmp_path: Path, precision: str, dynamic: bool
) -> None:
    pytest.importorskip("tensorrt_rtx")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        artifact = tk.export(
            model,
            imgsz=96,
            half=precision == "fp16",
            int8=precision == "int8",
            dynamic=dynamic,
            backend="tensorrt_rtx",
            device="sm89",
            calibration=calibration if precision == "int8" else None,
            output=tmp_path / "a.engine",
        )
    assert artifact.passport is not None
    assert (artifact.passport.sm, artifact.passport.precision) == ("sm89", precision)
    assert artifact.passport.model_hash == model.hash
    assert artifact.size > 1_000_000
    if precision == "int8":
        assert artifact.passport.calibration_hash == calibration.hash
