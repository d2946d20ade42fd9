"""evaluate_int8() against evaluate() on the graph that export writes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import trtkit as tk
from trtkit import demo
from trtkit.calibration import Calibration
from trtkit.errors import CalibrationError, RecipeError
from trtkit.graph.analysis import GraphIndex, count_macs
from trtkit.graph.qdq import insert_qdq, plan_qdq
from trtkit.graph.torch_export import trace

SIDE = 96


def test_metric_equals_evaluate(model: tk.Model, calibration: Calibration, tmp_path: Path) -> None:
    graph = trace(model, imgsz=(SIDE, SIDE), batch=1)
    keep = plan_qdq(graph).layers[:2]
    settings = {"eval_images": 4, "resamples": 20, "label": "mine", "cache_dir": tmp_path / "cache"}
    evaluated = tk.evaluate_int8(model, demo.data_path(), calibration, keep, **settings)  # type: ignore[arg-type]
    with tk.open(insert_qdq(graph, calibration.ranges, keep)) as runner:
        expected = tk.evaluate(runner, demo.data_path(), batch=1, eval_images=4).metrics["mAP50-95(B)"]
    assert evaluated.metric == "mAP50-95(B)"
    assert evaluated.value == pytest.approx(expected, abs=1e-9)
    assert evaluated.loss == pytest.approx(evaluated.value_float - evaluated.value)
    assert evaluated.loss_low <= evaluated.loss <= evaluated.loss_high
    assert (evaluated.label, evaluated.algorithm) == ("mine", "minmax")
    assert (evaluated.kept_layers, evaluated.image_count) == (2, 4)
    macs = count_macs(graph, GraphIndex(graph))
    layers = plan_qdq(graph, keep).layers
    assert evaluated.int8_share == pytest.approx(sum(macs[name] for name in layers) / sum(macs.values()))

    # A second call evaluates nothing: both evaluations are cached.
    counts: set[int | None] = set()
    again = tk.evaluate_int8(
        model,
        demo.data_path(),
        calibration,
        keep,
        progress=lambda event: counts.add(event.total),
        **settings,  # type: ignore[arg-type]
    )
    assert again.frame().equals(evaluated.frame())
    assert counts == {None, 1}

    loaded = tk.Int8Evaluation.load(evaluated.save(tmp_path / "saved"))
    assert loaded.frame().equals(evaluated.frame())
    assert loaded.keep == keep
    assert repr(loaded) == repr(evaluated)
    assert [trace_.name for trace_ in loaded.plot().data] == ["FP32", "INT8"]


def test_without_calibration_it_calibrates_as_export_does(model: tk.Model, tmp_path: Path) -> None:
    evaluated = tk.evaluate_int8(model, demo.data_path(), calibration_images=4, eval_images=4, imgsz=SIDE, resamples=2)
    artifact = tk.export(
        model,
        "onnx",
        imgsz=SIDE,
        int8=True,
        calibration=tk.calibrate(model, demo.data_path(), calibration_images=4, imgsz=SIDE),
        output=tmp_path / "int8.onnx",
    )
    expected = tk.evaluate(artifact, demo.data_path(), eval_images=4).metrics[evaluated.metric]
    assert evaluated.value == pytest.approx(expected, abs=1e-6)
    assert evaluated.algorithm == "percentile 99.999"


def test_refusals(model: tk.Model, calibration: Calibration) -> None:
    foreign = dataclasses.replace(
        calibration, provenance=dataclasses.replace(calibration.provenance, model_hash="another model")
    )
    with pytest.raises(CalibrationError) as mismatch:
        tk.evaluate_int8(model, demo.data_path(), foreign)
    assert mismatch.value.code == "calibration-model-mismatch"
    with pytest.raises(RecipeError) as too_few:
        tk.evaluate_int8(model, demo.data_path(), calibration, resamples=1)
    assert too_few.value.code == "argument-invalid"
    assert too_few.value.fields["value"] == 1
