"""sensitivity() on the demo model, against evaluate() on whole graphs."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest

import trtkit as tk
from trtkit import demo
from trtkit.backends.ort import OrtRunner
from trtkit.calibration import Calibration
from trtkit.errors import CalibrationError, CancelledError, RecipeError
from trtkit.graph.qdq import insert_qdq
from trtkit.graph.torch_export import trace
from trtkit.progress import Event
from trtkit.tuning.sensitivity import Sensitivity, sensitivity

SIDE = 96


@pytest.fixture(scope="module")
def result(model: tk.Model, calibration: Calibration) -> Sensitivity:
    return sensitivity(model, demo.data_path(), probe_images=4, worst=1, imgsz=SIDE, calibration=calibration)


def test_layers_and_blocks(result: Sensitivity) -> None:
    assert len(result.layers) == 85
    assert result.layers["node"].n_unique() == 85
    assert len(result.kept) == 3
    assert set(result.kept.values()) == {"dfl", "attention", "depthwise"}
    assert result.layers["macs"].sum() == result.blocks["macs"].sum()
    assert result.blocks["layers"].sum() == 85
    types = dict(result.blocks.select("block", "type").rows())
    assert types["model.0"] == "Conv"
    assert types["model.2"] == types["model.8"] == "C3k2"
    assert types["model.9"] == "SPPF"
    assert types["model.10"] == "C2PSA"
    assert types["model.23/cv2.0"] == types["model.23/cv3.2"] == "Detect"


def test_one_layer_has_less_noise_than_all(result: Sensitivity) -> None:
    assert (result.layers["sqnr_only"] > result.sqnr).all()
    # Noise is nearly additive: full INT8 has about the sum of the noise of single layers.
    together = 10 ** (-result.sqnr / 10)
    alone = sum(10 ** (-value / 10) for value in result.layers["sqnr_only"])
    assert 0.3 < alone / together < 3
    assert result.layers["gain"].max() > 0
    gains = result.layers["sqnr_without"] - result.sqnr
    assert (gains - result.layers["gain"]).abs().max() < 1e-9


def test_metrics_equal_evaluate(result: Sensitivity, model: tk.Model, calibration: Calibration) -> None:
    assert result.metric == "mAP50-95(B)"
    measured = result.layers.filter(result.layers["metric_only"].is_not_null())
    assert measured["node"].to_list() == result.worst(1)["node"].to_list()
    graph = trace(model, imgsz=(SIDE, SIDE))
    # One thread, as variants run: the order of summation decides the rounding of single values.
    for proto, value in ((graph, result.metric_float), (insert_qdq(graph, calibration.ranges), result.metric_int8)):
        with OrtRunner(proto, threads=1) as runner:
            expected = tk.evaluate(runner, demo.data_path(), eval_images=4).metrics["mAP50-95(B)"]
        assert value == pytest.approx(expected, abs=1e-3)
    name = measured["node"][0]
    with OrtRunner(insert_qdq(graph, calibration.ranges, [name]), threads=1) as runner:
        expected = tk.evaluate(runner, demo.data_path(), eval_images=4).metrics["mAP50-95(B)"]
    assert measured["metric_without"][0] == pytest.approx(expected, abs=1e-3)


def test_keep_works_in_export(result: Sensitivity, model: tk.Model, calibration: Calibration, tmp_path: Path) -> None:
    keep = result.keep(3)
    assert len(keep) == 3
    artifact = tk.export(
        model, "onnx", imgsz=SIDE, int8=True, calibration=calibration, keep=keep, output=tmp_path / "a.onnx"
    )
    assert artifact.recipe.keep == keep


def test_save_load_and_plot(result: Sensitivity, tmp_path: Path) -> None:
    loaded = Sensitivity.load(result.save(tmp_path / "sensitivity"))
    assert loaded.layers.equals(result.layers)
    assert loaded.blocks.equals(result.blocks)
    assert repr(loaded) == repr(result)
    assert "dB alone" in repr(result)
    figure = loaded.plot()
    assert [len(trace_.x) for trace_ in figure.data] == [85, 85]


def test_refusals(model: tk.Model, calibration: Calibration) -> None:
    with pytest.raises(RecipeError) as refused:
        sensitivity(model, demo.data_path(), probe_images=0)
    assert refused.value.code == "argument-invalid"
    assert refused.value.fields["name"] == "probe_images"

    other = dataclasses.replace(
        calibration, provenance=dataclasses.replace(calibration.provenance, model_hash="0" * 64)
    )
    with pytest.raises(CalibrationError) as mismatch:
        sensitivity(model, demo.data_path(), calibration=other)
    assert mismatch.value.code == "calibration-model-mismatch"


def test_cancelled_at_an_image(model: tk.Model, calibration: Calibration) -> None:
    stop = threading.Event()

    def watch(event: Event) -> None:
        if event.stage == "measure every layer":
            stop.set()

    with pytest.raises(CancelledError):
        sensitivity(
            model, demo.data_path(), probe_images=4, imgsz=SIDE, calibration=calibration, progress=watch, cancel=stop
        )
