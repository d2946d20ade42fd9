from __future__ import annotations

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

SIDE = 160


@pytest.fixture(scope="module")
def found(model: tk.Model, calibration: Calibration) -> Sensitivity:
    return sensitivity(model, demo.data_path(), probe_images=4, worst=1, imgsz=SIDE, calibration=calibration)


def test_every_layer_and_every_block_is_there(found: Sensitivity) -> None:
    assert len(found.layers) == 85
    assert found.layers["node"].n_unique() == 85
    assert len(found.kept) == 3
    assert set(found.kept.values()) == {"dfl", "attention", "depthwise"}
    assert found.layers["macs"].sum() == found.blocks["macs"].sum()
    assert found.blocks["layers"].sum() == 85
    types = dict(found.blocks.select("block", "type").rows())
    assert types["model.0"] == "Conv"
    assert types["model.2"] == types["model.8"] == "C3k2"
    assert types["model.9"] == "SPPF"
    assert types["model.10"] == "C2PSA"
    assert types["model.23/cv2.0"] == types["model.23/cv3.2"] == "Detect"


def test_one_layer_costs_less_than_all(found: Sensitivity) -> None:
    assert (found.layers["sqnr_only"] > found.sqnr).all()
    # Noise adds up: what all layers make together is of the size of the sum of what each makes alone.
    together = 10 ** (-found.sqnr / 10)
    alone = sum(10 ** (-value / 10) for value in found.layers["sqnr_only"])
    assert 0.3 < alone / together < 3
    assert found.layers["gain"].max() > 0
    gains = found.layers["sqnr_without"] - found.sqnr
    assert (gains - found.layers["gain"]).abs().max() < 1e-9


def test_metrics_are_those_of_evaluate(found: Sensitivity, model: tk.Model, calibration: Calibration) -> None:
    assert found.metric == "mAP50-95(B)"
    judged = found.layers.filter(found.layers["metric_only"].is_not_null())
    assert judged["node"].to_list() == found.worst(1)["node"].to_list()
    graph = trace(model, imgsz=(SIDE, SIDE))
    # One thread, as variants run: another number of threads adds in another order, which moves values across roundings.
    for proto, value in ((graph, found.metric_float), (insert_qdq(graph, calibration.ranges), found.metric_int8)):
        with OrtRunner(proto, threads=1) as runner:
            expected = tk.evaluate(runner, demo.data_path(), eval_images=4).metrics["mAP50-95(B)"]
        assert value == pytest.approx(expected, abs=1e-3)
    name = judged["node"][0]
    with OrtRunner(insert_qdq(graph, calibration.ranges, [name]), threads=1) as runner:
        expected = tk.evaluate(runner, demo.data_path(), eval_images=4).metrics["mAP50-95(B)"]
    assert judged["metric_without"][0] == pytest.approx(expected, abs=1e-3)


def test_keep_pastes_into_export(found: Sensitivity, model: tk.Model, calibration: Calibration, tmp_path: Path) -> None:
    keep = found.keep(3)
    assert len(keep) == 3
    artifact = tk.export(
        model, "onnx", imgsz=SIDE, int8=True, calibration=calibration, keep=keep, output=tmp_path / "a.onnx"
    )
    assert artifact.recipe.keep == keep


def test_saved_loaded_and_shown(found: Sensitivity, tmp_path: Path) -> None:
    loaded = Sensitivity.load(found.save(tmp_path / "sensitivity"))
    assert loaded.layers.equals(found.layers)
    assert loaded.blocks.equals(found.blocks)
    assert repr(loaded) == repr(found)
    assert "dB alone" in repr(found)
    figure = loaded.plot()
    assert [len(trace_.x) for trace_ in figure.data] == [85, 85]


def test_settings_that_measure_nothing_are_refused(model: tk.Model, calibration: Calibration) -> None:
    with pytest.raises(RecipeError, match="images=0"):
        sensitivity(model, demo.data_path(), probe_images=0)
    import dataclasses

    other = dataclasses.replace(
        calibration, provenance=dataclasses.replace(calibration.provenance, model_hash="0" * 64)
    )
    with pytest.raises(CalibrationError, match="another model"):
        sensitivity(model, demo.data_path(), calibration=other)


def test_cancelled_at_a_image(model: tk.Model, calibration: Calibration) -> None:
    stop = threading.Event()

    def watch(event: Event) -> None:
        if event.stage == "measure every layer":
            stop.set()

    with pytest.raises(CancelledError):
        sensitivity(
            model, demo.data_path(), probe_images=4, imgsz=SIDE, calibration=calibration, progress=watch, cancel=stop
        )
