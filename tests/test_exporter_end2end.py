"""export(): the one-to-one head, and NMS in the graph with thresholds of its own, kept in the file."""

from __future__ import annotations

import ast
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from fake_checkpoints import TINY
from raising import raises
from two_heads import EXTRA, HEADS, make_model, yolo26

import trtkit as tk
from trtkit.errors import ModelError, RecipeError
from trtkit.graph.onnx_file import read_trtkit_metadata
from trtkit.models.model import DENSE, END2END_ROWS, NMS_ROWS


@pytest.fixture(scope="module")
def both() -> tk.Model:
    return make_model(yolo26("detect"))


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return [np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)]


def read_metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


@pytest.mark.parametrize("task", sorted(HEADS))
def test_rows_are_exported_and_stay_rows(task: str, tmp_path: Path) -> None:
    model = make_model(yolo26(task))
    artifact = tk.export(model, format="onnx", end2end=True, max_det=50, output=tmp_path / "rows.onnx")
    assert artifact.info.output_format == END2END_ROWS
    assert artifact.model_hash == model.with_end2end().hash
    metadata = read_metadata(artifact.path)
    arguments = ast.literal_eval(metadata["args"])
    assert (metadata["end2end"], arguments["nms"], arguments["max_det"]) == ("True", False, 50)
    again = tk.export(artifact.path, format="onnx", output=tmp_path / "again.onnx")
    assert (again.info.output_format, again.info.row_settings) == (END2END_ROWS, {"max_det": 50})
    assert read_metadata(again.path)["end2end"] == "True"
    pixels = np.random.default_rng(1).random((1, 3, 64, 64), np.float32)
    with tk.open(artifact.path) as one, tk.open(again.path) as two:
        rows = one.infer(pixels)["output0"]
        assert rows.shape == (1, 50, 6 + EXTRA[task])
        np.testing.assert_array_equal(two.infer(pixels)["output0"], rows)


def test_the_default_is_the_dense_output(both: tk.Model, tmp_path: Path) -> None:
    artifact = tk.export(both, format="onnx", output=tmp_path / "dense.onnx")
    assert artifact.info.output_format == DENSE
    assert read_metadata(artifact.path)["end2end"] == "False"
    assert artifact.model_hash == both.hash


def test_a_model_loaded_with_the_one_to_one_head_keeps_it(both: tk.Model, tmp_path: Path) -> None:
    artifact = tk.export(both.with_end2end(), format="onnx", output=tmp_path / "rows.onnx")
    assert (artifact.info.end2end, artifact.recipe.end2end) == (True, True)
    with raises(RecipeError, "recipe-nms-and-end2end"):
        tk.export(both.with_end2end(), format="onnx", nms=True, output=tmp_path / "no.onnx")
    with raises(RecipeError, "nms-not-applicable", output_format="end2end_rows"):
        tk.export(artifact.path, format="onnx", nms=True, output=tmp_path / "no.onnx")


def test_what_a_model_cannot_have_is_refused_before_any_work(demo_model: Path, both: tk.Model, tmp_path: Path) -> None:
    with raises(ModelError, "model-without-one-to-one-head"):
        tk.export(demo_model, format="onnx", end2end=True, int8=True, output=tmp_path / "a.onnx")
    with raises(RecipeError, "recipe-row-settings-unused", name="max_det"):
        tk.export(both, format="onnx", max_det=100, output=tmp_path / "a.onnx")
    rows = tk.export(both, format="onnx", end2end=True, output=tmp_path / "rows.onnx")
    with raises(RecipeError, "recipe-row-settings-unused", name="max_det", value=100):
        tk.export(rows.path, format="onnx", max_det=100, output=tmp_path / "a.onnx")
    nms = tk.export(both, format="onnx", nms=True, conf=0.4, output=tmp_path / "nms.onnx")
    with raises(RecipeError, "recipe-row-settings-unused", name="conf", value=0.1):
        tk.export(nms.path, format="onnx", nms=True, conf=0.1, output=tmp_path / "a.onnx")
    assert (
        tk.export(nms.path, format="onnx", nms=True, conf=0.4, output=tmp_path / "b.onnx").info.output_format
        == NMS_ROWS
    )


def test_thresholds_of_nms_are_in_the_graph_and_in_the_file(images: list[np.ndarray], tmp_path: Path) -> None:
    # Distances from distributions are positive with any weights, so that all boxes have an area.
    model = make_model(TINY)
    settings = {"conf": 0.5, "iou": 0.3, "max_det": 20}
    artifact = tk.export(model, format="onnx", nms=True, output=tmp_path / "nms.onnx", **settings)
    assert artifact.info.row_settings == settings
    assert tk.load(artifact.path).row_settings == settings
    arguments = ast.literal_eval(read_metadata(artifact.path)["args"])
    assert {name: arguments[name] for name in settings} == settings
    assert read_trtkit_metadata(onnx.load(artifact.path))["nms"] == settings
    dense = tk.export(model, format="onnx", output=tmp_path / "dense.onnx")
    with tk.open(dense.path) as outside, tk.open(artifact.path) as inside:
        (expected,) = outside.predict(images, **settings)
        (found,) = inside.predict(images, conf=0.5, iou=0.3, max_det=20)
    assert 0 < len(expected) <= 20
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)


def test_a_lower_confidence_than_the_file_s_warns_once(
    both: tk.Model, images: list[np.ndarray], tmp_path: Path
) -> None:
    artifact = tk.export(both, format="onnx", nms=True, conf=0.5, output=tmp_path / "nms.onnx")
    with tk.open(artifact.path) as runner:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            runner.predict(images, conf=0.5)
        with pytest.warns(UserWarning, match=r"conf=0\.1.*0\.5"):
            runner.predict(images, conf=0.1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            runner.predict(images, conf=0.1)


def test_int8_of_the_one_to_one_head(both: tk.Model, demo_data: Path, tmp_path: Path) -> None:
    artifact = tk.export(both, format="onnx", end2end=True, int8=True, data=demo_data, output=tmp_path / "int8.onnx")
    nodes = onnx.load(artifact.path).graph.node
    quantized = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    branches = [node for node in nodes if node.op_type == "Conv" and "one2one_cv" in node.name]
    # Both inputs of every convolution of the head.
    assert len(branches) == 16
    assert all(set(node.input[:2]) <= quantized for node in branches)
    selection = [node for node in nodes if node.op_type in ("TopK", "GatherND")]
    assert len(selection) == 4
    assert not any(set(node.input) & quantized for node in selection)
    dense = tk.calibrate(both, demo_data, calibration_images=1)
    with pytest.raises(tk.errors.CalibrationError) as error:
        tk.export(both, format="onnx", end2end=True, int8=True, calibration=dense, output=tmp_path / "no.onnx")
    assert (error.value.code, error.value.fields["end2end"]) == ("calibration-head-mismatch", True)
    rows = tk.calibrate(both.with_end2end(), demo_data, calibration_images=1)
    with pytest.raises(tk.errors.CalibrationError) as error:
        tk.export(both, format="onnx", int8=True, calibration=rows, output=tmp_path / "no.onnx")
    assert (error.value.code, error.value.fields["end2end"]) == ("calibration-head-mismatch", False)
    assert error.value.fields["value"] == both.with_end2end().hash
