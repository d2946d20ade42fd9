"""Error bars wherever an accuracy is drawn: every such figure shows the interval that its frame has."""

from __future__ import annotations

import math

import polars as pl
import pytest
from example_comparison import ULTRALYTICS, example_comparison

from trtkit.plotting import comparison, evaluation, tuning

VALUE, LOW, HIGH = 0.5, 0.46, 0.57
TRIALS = pl.DataFrame(
    {"label": ["a"], "kind": ["searched"], "assignment": ["a"], "algorithm": ["mse"], "percentile": [None],
     "calibration_images": [8], "int8_share": [0.9], "metric": [VALUE], "value": [VALUE], "value_float": [0.6],
     "loss": [0.1], "loss_low": [0.6 - HIGH], "loss_high": [0.6 - LOW], "cost": [1.0], "unit": ["ms"], "row": [0],
     "pareto": [True], "chosen": [False]}, schema_overrides={"percentile": pl.Float64},
)  # fmt: skip
CHANGES = {"int8": (VALUE - 0.6, LOW - 0.6, HIGH - 0.6)}
METRICS = ("mAP50-95(B)", "mAP50(B)", "top1", "top5")
PER_CLASS = pl.DataFrame({"name": ["a", "b"]}).with_columns(
    pl.lit(value).alias(f"{metric}{end}")
    for metric in METRICS
    for end, value in (("", VALUE), (" low", LOW), (" high", HIGH))
)
NOTHING = pl.DataFrame({"class": []}, schema={"class": pl.Int64})
LOSSES = pl.DataFrame({"task": ["detect"], "metric": ["AP"], "precision": ["int8"], "value": [VALUE],
                       "delta": [VALUE - 0.6], "low": [LOW - 0.6], "high": [HIGH - 0.6]})  # fmt: skip
SETTINGS = {"reference": "fp32", "focus": "int8"}


def changed():
    return example_comparison(changes=CHANGES, groups=[("int8", "class", "9", VALUE - 0.6, LOW - 0.6, HIGH - 0.6)])


FIGURES = {
    "comparison": lambda: changed().plot(),
    "classes": lambda: changed().plot_classes(),
    "losses": lambda: comparison.losses_figure(LOSSES),
    "dashboard's accuracy": lambda: comparison.accuracy_figure(changed().differences, [ULTRALYTICS], **SETTINGS),
    "dashboard's classes": lambda: comparison.classes_change_figure(changed().differences, ULTRALYTICS, **SETTINGS),
    "evaluation": lambda: evaluation.evaluation_figure(PER_CLASS, NOTHING, NOTHING, kinds=["B"], title="detect"),
    "classification": lambda: evaluation.classification_figure(PER_CLASS, title="classify"),
    "sweep": lambda: tuning.sweep_figure(
        TRIALS, sufficient=TRIALS.row(0, named=True), metric="AP", title="sweep", looks={"mse": 0}
    ),
    "search": lambda: tuning.search_figure(TRIALS, metric="AP", value_float=0.6, max_drop=0.01),
    "INT8 evaluation": lambda: tuning.int8_evaluation_figure(TRIALS.with_columns(metric=pl.lit("AP"))),
    "tuner's assignments": lambda: tuning.int8_share_figure(
        TRIALS, metric="AP", value_float=0.6, max_drop=0.01, share_now=None
    ),
}


def list_error_bars(figure):
    """Lengths below and above of every error bar that is not empty."""
    bars = [getattr(trace, name) for trace in figure.data for name in ("error_x", "error_y") if name in trace]
    pairs = [pair for bar in bars if bar.array is not None for pair in zip(bar.arrayminus, bar.array, strict=True)]
    return [(below, above) for below, above in pairs if (below or above) and not math.isnan(below)]


@pytest.mark.parametrize("name", FIGURES)
def test_an_accuracy_is_drawn_with_its_interval(name):
    bars = list_error_bars(FIGURES[name]())
    # A loss's interval is the metric's, turned round.
    expected = sorted((VALUE - LOW, HIGH - VALUE))
    assert bars
    assert all(sorted(bar) == pytest.approx(expected) for bar in bars)


def test_each_class_has_error_bars_for_each_metric():
    bars = list_error_bars(FIGURES["classification"]())
    assert bars == [pytest.approx((VALUE - LOW, HIGH - VALUE))] * 4


def test_without_intervals_there_are_no_bars():
    bare = PER_CLASS.select("name", *METRICS)
    figure = evaluation.classification_figure(bare, title="classify")
    assert list_error_bars(figure) == []
    assert "interval" not in figure.layout.annotations[0].text


def test_an_assignment_without_int8_has_its_interval_as_a_band():
    # The axis shows shares from 0.88 on, where FP16 is a line.
    rows = pl.concat([TRIALS, TRIALS.with_columns(int8_share=pl.lit(0.0))])
    figure = tuning.int8_share_figure(rows, metric="AP", value_float=0.6, max_drop=0.01, share_now=None)
    (band,) = [shape for shape in figure.layout.shapes if shape.type == "rect"]
    assert (band.y0, band.y1) == (pytest.approx(LOW), pytest.approx(HIGH))
