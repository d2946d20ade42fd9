"""export(decode=False): files that return raw maps, with the detections and metrics of those that decode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from raising import raises
from task_models import drawn_set, untrained
from two_heads import make_model, yolo26

import trtkit as tk
from trtkit import demo
from trtkit.backends.capabilities import Capabilities
from trtkit.backends.trt.network import fit_graph, returns_raw_maps
from trtkit.errors import ModelError, RecipeError
from trtkit.graph.onnx_file import read_trtkit_metadata, update_metadata
from trtkit.models.model import DENSE, RAW_MAPS, RAW_ONE_TO_ONE
from trtkit.models.onnx_model import from_proto
from trtkit.tasks.base import BoxLayout
from trtkit.tasks.raw_maps import to_dense

FP16 = onnx.TensorProto.FLOAT16


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn_set(tmp_path_factory.mktemp("drawn"), "detect").parent / "images/train"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> tk.Artifact:
    output = tmp_path_factory.mktemp("raw") / "raw.onnx"
    return tk.export(make_model(yolo26("detect")), format="onnx", decode=False, output=output)


@pytest.mark.parametrize(
    ("family", "end2end"), [("yolo11", False), pytest.param("yolo26", True, marks=pytest.mark.exhaustive)]
)
def test_metrics_are_those_of_the_decoded_output(family: str, end2end: bool, demo_data: Path, tmp_path: Path) -> None:
    model = tk.load(demo.model_path(family=family), end2end=end2end)
    metrics, predictions = [], []
    for decode in (True, False):
        path = tmp_path / f"{decode}.onnx"
        tk.export(model, format="onnx", imgsz=96, decode=decode, end2end=end2end, output=path)
        with tk.open(path) as runner:
            # Evaluation keeps scores from 0.001 on.
            metrics.append(tk.evaluate(runner, demo_data, eval_images=4).metrics)
            predictions.append(runner.predict(sorted((demo_data.parent / "images/val").glob("*"))[:2], conf=0.3))
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-6, abs=1e-6)
    assert metrics[0]["mAP50(B)"] > 0.01
    for ours, theirs in zip(*predictions, strict=True):
        assert ours.classes.tolist() == theirs.classes.tolist()
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-2)


@pytest.mark.parametrize("precision", ["half", "int8"])
def test_the_same_scales_and_layers_in_every_precision(precision: str, images: Path, tmp_path: Path) -> None:
    model = untrained("detect")
    settings = {precision: True, "format": "onnx", "data": str(images) if precision == "int8" else None}
    files = [tmp_path / name for name in ("dense.onnx", "raw.onnx")]
    for decode, path in zip((True, False), files, strict=True):
        tk.export(model, decode=decode, output=path, **settings)
    whole, cut = map(onnx.load, files)
    layers = [[node.name for node in graph.graph.node if node.op_type == "QuantizeLinear"] for graph in (whole, cut)]
    assert layers[1] == [name for name in layers[0] if name in layers[1]]
    assert bool(layers[1]) == (precision == "int8")
    pixels = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    with tk.open(files[0]) as one, tk.open(files[1]) as two:
        assert (one.info.output_format, two.info.output_format) == (DENSE, RAW_MAPS)
        dense = to_dense(two.infer(pixels), two.info, BoxLayout())["output0"]
        # FP16: the outputs of the last layers are rounded in both, and decoded in FP32.
        np.testing.assert_allclose(dense, one.infer(pixels)["output0"], rtol=2e-5, atol=2e-4)
    types = {value.type.tensor_type.elem_type for value in cut.graph.output}
    assert types == {FP16 if precision == "half" else onnx.TensorProto.FLOAT}
    assert returns_raw_maps(cut)
    if precision == "int8":
        typed = Capabilities(backend="tensorrt_rtx", version="1.7", strongly_typed=True, strongly_typed_only=True)
        fitted = fit_graph(cut, typed, precision="int8")
        assert {value.type.tensor_type.elem_type for value in fitted.graph.output} == {FP16}
        assert {value.type.tensor_type.elem_type for value in cut.graph.output} == {onnx.TensorProto.FLOAT}


def test_the_file_says_what_it_returns(raw: tk.Artifact, tmp_path: Path) -> None:
    assert (raw.info.output_format, raw.recipe.decode) == (RAW_MAPS, False)
    assert read_trtkit_metadata(onnx.load(raw.path))["output_format"] == RAW_MAPS.to_dict()
    model = tk.load(raw.path)
    assert model.output_format == RAW_MAPS
    # A file's own graph stays as it is, whatever decode says.
    again = tk.export(model, format="onnx", output=tmp_path / "again.onnx")
    assert again.info.output_format == RAW_MAPS
    rows = tk.export(
        make_model(yolo26("detect")), format="onnx", decode=False, end2end=True, output=tmp_path / "rows.onnx"
    )
    assert (rows.info.output_format, rows.info.row_settings) == (RAW_ONE_TO_ONE, {})
    assert tk.load(rows.path).output_format == RAW_ONE_TO_ONE
    two = update_metadata(onnx.load(raw.path), {"names": {0: "a", 1: "b"}}, {})
    with raises(ModelError, "model-outputs-mismatch", output_format="raw_maps", names=2):
        from_proto(two)


def test_what_raw_maps_cannot_have_is_refused_before_any_work(raw: tk.Artifact, images: Path, tmp_path: Path) -> None:
    model, output = make_model(yolo26("detect")), tmp_path / "no.onnx"
    with raises(RecipeError, "recipe-nms-needs-decode"):
        tk.export(model, format="onnx", nms=True, decode=False, output=output)
    with raises(RecipeError, "nms-not-applicable", output_format="raw_maps"):
        tk.export(raw.path, format="onnx", nms=True, output=output)
    with raises(RecipeError, "recipe-row-settings-unused", name="max_det"):
        tk.export(model, format="onnx", end2end=True, decode=False, max_det=50, output=output)
    with raises(RecipeError, "raw-maps-not-applicable", task="classify"):
        tk.export(untrained("classify"), format="onnx", decode=False, output=output)
    with raises(RecipeError, "deploy-raw-maps"):
        tk.deploy(raw.path, "onnxruntime", tmp_path / "served")
    int8 = tk.export(model, format="onnx", int8=True, data=str(images), output=tmp_path / "int8.onnx")
    with raises(RecipeError, "quantized-model-decode"):
        tk.export(int8.path, format="onnx", int8=True, decode=False, output=output)
    assert not output.exists()
