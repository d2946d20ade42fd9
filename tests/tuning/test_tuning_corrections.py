"""What the tuner stands on: a model's layers, a mix that is judged, and the figures to choose by."""

from __future__ import annotations

import threading
from pathlib import Path

import polars as pl
import pytest

import trtkit as tk
from trtkit import demo
from trtkit.calibration import Calibration
from trtkit.errors import CalibrationError, CancelledError, RecipeError
from trtkit.graph.qdq import insert_qdq, plan_qdq
from trtkit.graph.torch_export import trace
from trtkit.plotting.tuning import SHARE_POINTS, find_pareto, int8_share_figure, layer_ranking_figure
from trtkit.tuning.layers import QuantizableLayers, find_quantizable_layers
from trtkit.tuning.noise import LayerNoise
from trtkit.tuning.trials import evaluate_int8

SIDE = 160


@pytest.fixture(scope="module")
def layout(model: tk.Model) -> QuantizableLayers:
    return find_quantizable_layers(model, SIDE)


def test_layers_are_those_that_quantizing_takes(layout: QuantizableLayers, model: tk.Model) -> None:
    graph = trace(model, imgsz=(SIDE, SIDE), batch=1)
    placement = plan_qdq(graph)
    assert layout.quantizable == placement.layers
    kept = layout.layers.filter(pl.col("kept").is_not_null())
    assert dict(kept.select("node", "kept").iter_rows()) == dict(placement.excluded)
    for tensor, group in placement.scale_groups.items():
        if tensor in layout.readers and any(node in layout.quantizable for node in layout.readers[tensor]):
            assert set(layout.scale_of(tensor)) == set(group)
    assert layout.scale_of("unknown") == ("unknown",)
    assert layout.tensor_of("unknown") is None


def test_the_share_is_the_labs(layout: QuantizableLayers, model: tk.Model) -> None:
    graph = trace(model, imgsz=(SIDE, SIDE), batch=1)
    lab = LayerNoise(graph, len(model.names))
    assert layout.share() == pytest.approx(lab.int8_share(lab.full_int8))
    high = layout.quantizable[3:6]
    assert layout.share(high) == pytest.approx(lab.int8_share(lab.plan_without(high)))
    assert layout.share(layout.quantizable) == 0


def test_a_layout_is_remembered(model: tk.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = find_quantizable_layers(model, SIDE, cache_dir=tmp_path)
    monkeypatch.setattr("trtkit.graph.torch_export.trace", None)
    assert find_quantizable_layers(model, SIDE, cache_dir=tmp_path).layers.equals(first.layers)
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(CancelledError):
        find_quantizable_layers(model, SIDE, cancel=cancel)


def test_a_mix_is_judged_as_evaluate_does(
    model: tk.Model, calibration: Calibration, layout: QuantizableLayers, tmp_path: Path
) -> None:
    keep = layout.quantizable[:2]
    found = evaluate_int8(
        model, demo.data_path(), calibration, keep, eval_images=4, resamples=20, label="mine", cache_dir=tmp_path
    )
    graph = insert_qdq(trace(model, imgsz=(SIDE, SIDE), batch=1), calibration.ranges, keep)
    with tk.open(graph) as runner:
        expected = tk.evaluate(runner, demo.data_path(), batch=1, eval_images=4).metrics["mAP50-95(B)"]
    assert found.metric == "mAP50-95(B)"
    assert found.value == pytest.approx(expected, abs=1e-9)
    assert found.loss == pytest.approx(found.value_float - found.value)
    assert found.loss_low <= found.loss <= found.loss_high
    assert (found.label, found.algorithm, found.kept, found.images) == ("mine", "minmax", 2, 4)
    assert found.int8_share == pytest.approx(layout.share(keep))
    events: list[str] = []
    again = evaluate_int8(
        model, demo.data_path(), calibration, keep, eval_images=4, resamples=20, label="mine", cache_dir=tmp_path,
        progress=lambda event: events.append(event.stage),
    )  # fmt: skip
    # Both evaluations were remembered.
    assert again == found
    assert set(events) == {"read the model's layers"}


def test_a_foreign_calibration_is_not_judged(model: tk.Model, calibration: Calibration) -> None:
    import dataclasses

    foreign = dataclasses.replace(
        calibration, provenance=dataclasses.replace(calibration.provenance, model_hash="another model")
    )
    with pytest.raises(CalibrationError, match="measured on another model"):
        evaluate_int8(model, demo.data_path(), foreign)
    with pytest.raises(RecipeError, match="at least 2"):
        evaluate_int8(model, demo.data_path(), calibration, resamples=1)


def test_nothing_beats_the_front() -> None:
    assert find_pareto([0.9, 0.5, 0.5, 0.9], [0.7, 0.8, 0.7, 0.7]) == [True, True, False, True]
    assert find_pareto([], []) == []


def test_the_ranking_shows_what_is_kept_by_shape() -> None:
    layers = pl.DataFrame(
        {"node": ["a", "b", "c"], "block": ["x"] * 3, "macs": [4, 1, 1], "sqnr_only": [30.0, 40.0, 50.0],
         "gain": [1.0, 0.5, 0.0], "high": [False, True, False]}
    )  # fmt: skip
    figure = layer_ranking_figure(layers, selected="c")
    _, low, high, selected = figure.data
    assert list(low.customdata) == ["a", "c"]
    assert list(high.customdata) == ["b"]
    assert low.marker.symbol != high.marker.symbol
    # Areas follow the arithmetic: a has four times c's.
    smallest, largest = 7.0, 26.0
    assert low.marker.size == (largest, smallest + (largest - smallest) * 0.5)
    assert list(selected.x) == [2]
    unmeasured = layer_ranking_figure(layers.with_columns(sqnr_only=pl.lit(None, pl.Float64)))
    assert "not measured" in unmeasured.layout.xaxis.title.text
    assert list(unmeasured.data[1].y) == pytest.approx([4 / 6, 1 / 6])


def test_the_share_figure_marks_what_may_be_lost_and_the_mix_in_hand() -> None:
    row = {"label": "m", "kind": "found", "int8_share": 0.9, "metric": 0.79, "loss": 0.01, "loss_low": 0.0,
           "loss_high": 0.03, "pareto": True, "place": 0}  # fmt: skip
    points = pl.DataFrame([row], schema=SHARE_POINTS)
    figure = int8_share_figure(points, metric="mAP50-95(B)", value_float=0.8, max_drop=0.005, share_now=0.7)
    heights = [shape.y0 for shape in figure.layout.shapes if shape.xref == "paper"]
    assert heights == [0.8, pytest.approx(0.795)]
    assert [shape.x0 for shape in figure.layout.shapes if shape.yref == "paper"] == [0.7]
    found = next(trace for trace in figure.data if trace.name == "found")
    assert found.error_y.array[0] == pytest.approx(0.01)
    assert found.error_y.arrayminus[0] == pytest.approx(0.02)
    empty = int8_share_figure(points.clear(), metric="", value_float=None, max_drop=0.005, share_now=None)
    assert not empty.layout.shapes
