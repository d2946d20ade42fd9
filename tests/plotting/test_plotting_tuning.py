"""Figures of the tuner: layer ranking and accuracy by INT8 share."""

from __future__ import annotations

import polars as pl
import pytest

from trtkit.plotting.tuning import SHARE_POINTS, find_pareto, int8_share_figure, layer_ranking_figure


def test_pareto_front() -> None:
    assert find_pareto([0.9, 0.5, 0.5, 0.9], [0.7, 0.8, 0.7, 0.7]) == [True, True, False, True]
    assert find_pareto([], []) == []


def test_layer_ranking_marks_fp16_layers_by_shape() -> None:
    layers = pl.DataFrame(
        {"node": ["a", "b", "c"], "block": ["x"] * 3, "macs": [4, 1, 1], "sqnr_only": [30.0, 40.0, 50.0],
         "gain": [1.0, 0.5, 0.0], "kept_fp16": [False, True, False]}
    )  # fmt: skip
    figure = layer_ranking_figure(layers, selected="c")
    _, low, high, selected = figure.data
    assert list(low.customdata) == ["a", "c"]
    assert list(high.customdata) == ["b"]
    assert low.marker.symbol != high.marker.symbol
    # Areas are proportional to the multiply-accumulates: a has four times as many as c.
    smallest, largest = 7.0, 26.0
    assert low.marker.size == (largest, smallest + (largest - smallest) * 0.5)
    assert list(selected.x) == [2]
    unmeasured = layer_ranking_figure(layers.with_columns(sqnr_only=pl.lit(None, pl.Float64)))
    assert "not measured" in unmeasured.layout.xaxis.title.text
    assert list(unmeasured.data[1].y) == pytest.approx([4 / 6, 1 / 6])


def test_int8_share_figure_marks_the_accepted_loss_and_the_current_share() -> None:
    row = {"label": "m", "kind": "chosen", "int8_share": 0.9, "metric": 0.79, "loss": 0.01, "loss_low": 0.0,
           "loss_high": 0.03, "pareto": True, "row": 0}  # fmt: skip
    points = pl.DataFrame([row], schema=SHARE_POINTS)
    figure = int8_share_figure(points, metric="mAP50-95(B)", value_float=0.8, max_drop=0.005, share_now=0.7)
    heights = [shape.y0 for shape in figure.layout.shapes if shape.xref == "paper"]
    assert heights == [0.8, pytest.approx(0.795)]
    assert [shape.x0 for shape in figure.layout.shapes if shape.yref == "paper"] == [0.7]
    result = next(trace for trace in figure.data if trace.name == "chosen")
    assert result.error_y.array[0] == pytest.approx(0.01)
    assert result.error_y.arrayminus[0] == pytest.approx(0.02)
    empty = int8_share_figure(points.clear(), metric="", value_float=None, max_drop=0.005, share_now=None)
    assert not empty.layout.shapes
