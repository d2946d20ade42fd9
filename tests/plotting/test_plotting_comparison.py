import dataclasses

import polars as pl
import pytest
from example_comparison import ACCURACY, SIZE, ULTRALYTICS, example_comparison

from trtkit.plotting.comparison import classes_figure
from trtkit.plotting.theme import template, trace_style

PRECISIONS = ("fp32", "fp16", "int8")


def contrast(one, other):
    """The contrast ratio of WCAG 2.1, 1 to 21."""

    def luminance(color):
        parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_precisions_differ_by_more_than_color():
    styles = [trace_style(label) for label in PRECISIONS]
    for part in ("color", "symbol", "pattern", "dash"):
        assert len({getattr(one, part) for one in styles}) == len(styles)


def test_other_labels_get_distinct_styles_in_order():
    labels = ["a", "fp32", "b", "c"]
    styles = [trace_style(label, labels) for label in labels]
    assert len({one.symbol for one in styles}) == 4
    assert styles[1] == trace_style("fp32")


def test_text_is_legible_on_light_and_dark_pages():
    ink = template().layout.font.color
    assert contrast(ink, "#ffffff") >= 4.4
    assert contrast(ink, "#14171a") >= 3.9
    assert template().layout.paper_bgcolor == "rgba(0,0,0,0)"


def test_the_comparison_shows_every_accuracy_latency_and_size():
    figure = example_comparison(batches=(1, 8), where="gpu").plot()
    traces = {trace.name: trace for trace in figure.data}
    accuracy = traces["mAP50-95 by Ultralytics' rule"]
    assert tuple(accuracy.y) == ("FP32", "FP16", "INT8")
    assert tuple(accuracy.x) == tuple(ACCURACY[label][0] for label in PRECISIONS)
    assert tuple(traces["pycocotools/AP by pycocotools' rule"].x) == tuple(ACCURACY[label][1] for label in PRECISIONS)
    assert tuple(traces["ONNX file"].x) == tuple(SIZE[label][0] for label in PRECISIONS)
    assert tuple(traces["engine file"].x) == tuple(SIZE[label][1] for label in PRECISIONS)
    rows = example_comparison(batches=(1, 8), where="gpu").rows
    for size in (1, 8):
        expected = (rows.filter(batch=size)["p50_ms"] / size).to_list()
        assert list(traces[f"batch {size}"].x) == expected


@pytest.mark.parametrize(("where", "name"), [("cpu", "no GPU here: not"), ("gpu", "p50; TensorRT 8.6.0 NVIDIA H100")])
def test_the_comparison_names_the_runner(where, name):
    titles = " ".join(annotation.text for annotation in example_comparison(where=where).plot().layout.annotations)
    assert name in titles
    assert ("not measured" in titles) == (where == "cpu")


def test_latency_and_engine_sizes_are_of_engines_that_ran():
    names = {trace.name for trace in example_comparison(where="cpu").plot().data}
    assert "ONNX file" in names
    assert not {"batch 1", "engine file"} & names


def test_names_of_candidates_are_as_they_were_given_and_precisions_as_in_text():
    comparison = example_comparison(where="gpu")
    rows = comparison.rows.with_columns(pl.col("precision").replace("int8", "pruned_v2.onnx"))
    axis = dataclasses.replace(comparison, rows=rows).plot().layout.yaxis
    assert axis.categoryarray == ("FP32", "FP16", "pruned_v2.onnx")


def test_the_accuracy_has_its_interval_as_error_bars():
    comparison = example_comparison()
    ends = {f"delta {ULTRALYTICS} low": [0.0, -0.0002, -0.0081], f"delta {ULTRALYTICS} high": [0.0, 0.0002, -0.0001]}
    rows = comparison.rows.with_columns(**{name: pl.Series(values) for name, values in ends.items()})
    figure = dataclasses.replace(comparison, rows=rows).plot()
    (trace,) = [one for one in figure.data if one.name == "mAP50-95 by Ultralytics' rule"]
    assert list(trace.error_x.array) == pytest.approx([0, 0.0002, 0.0040], abs=1e-9)
    assert list(trace.error_x.arrayminus) == pytest.approx([0, 0.0002, 0.0040], abs=1e-9)
    low, high = figure.layout.xaxis.range
    assert low < 0.7612 - 0.0081
    assert high > 0.7612 + 0.0002


def test_a_negligible_loss_looks_negligible():
    """Whatever small changes there are, the axis of the accuracy is not only about them."""
    comparison = example_comparison()
    rows = comparison.rows.with_columns(pl.Series(ULTRALYTICS, [0.7612, 0.7611, 0.7610]))
    metrics = comparison.about["metrics"][:1]
    low, high = (
        dataclasses.replace(comparison, rows=rows, about={**comparison.about, "metrics": metrics})
        .plot()
        .layout.xaxis.range
    )
    assert high - low >= 0.02 - 1e-9
    assert (low + high) / 2 == pytest.approx(0.7611)


def test_without_engines_there_is_no_empty_bar():
    assert "engine file" not in {trace.name for trace in example_comparison(built=False).plot().data}


def test_the_class_with_the_largest_loss_is_at_the_top():
    comparison = example_comparison()
    figure = comparison.plot_classes()
    # Class 9 loses 0.018 and class 0 nothing; plotly draws the last category on top.
    assert figure.layout.yaxis.categoryarray[-1] == "9"
    assert figure.layout.yaxis.categoryarray[0] == "0"


def test_classes_have_the_intervals_of_their_changes_as_error_bars():
    changes = {"int8": (-0.004, -0.008, 0.001)}
    comparison = example_comparison(changes=changes, groups=[("int8", "class", "9", -0.018, -0.03, -0.01)])
    (trace,) = [one for one in comparison.plot_classes().data if one.name == "INT8"]
    place = list(trace.y).index("9")
    assert trace.error_x.array[place] == pytest.approx(0.008)
    assert trace.error_x.arrayminus[place] == pytest.approx(0.012)
    assert [value > 0 for value in trace.error_x.array] == [name == "9" for name in trace.y]


def test_only_the_classes_with_the_largest_losses_are_shown():
    classes = pl.DataFrame(
        [
            {"precision": label, "name": f"class {index}", ULTRALYTICS: 0.5 - loss * index}
            for label, loss in (("fp32", 0), ("int8", 0.001))
            for index in range(80)
        ]
    )
    figure = classes_figure(classes, ULTRALYTICS, limit=30)
    assert set(figure.layout.yaxis.categoryarray) == {f"class {index}" for index in range(50, 80)}


@pytest.mark.parametrize("order", [("fp32", "int8"), ("int8", "fp32")])
def test_the_class_with_the_largest_loss_is_at_the_top_in_whatever_order_precisions_were_compared(order):
    values = {"fp32": (0.5, 0.5, 0.5), "int8": (0.5, 0.3, 0.7)}
    rows = [
        {"precision": label, "name": name, ULTRALYTICS: value}
        for label in order
        for name, value in zip(("same", "worse", "better"), values[label], strict=True)
    ]
    figure = classes_figure(pl.DataFrame(rows), ULTRALYTICS, reference="fp32")
    assert figure.layout.yaxis.categoryarray[-1] == "worse"
