"""Dashboard and gallery: every choice by state, control and click."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

import trtkit as tk
from trtkit.comparison.comparison import Comparison
from trtkit.comparison.object_changes import draw_object_changes
from trtkit.comparison.report import render_report
from trtkit.errors import DataError, RecipeError
from trtkit.widgets import comparison as compared
from trtkit.widgets.comparison_state import (
    CHANGES,
    PAGE_SIZE,
    DashboardState,
    GalleryState,
    choose_shown_precision,
    resolve_comparison,
)


def figure(live: Any) -> Any:
    return json.loads(live._view.figure)


@pytest.fixture(scope="module")
def on_gpu(comparison: Comparison) -> Comparison:
    """The comparison as engines that ran would have given it."""
    as_engines = {name: getattr(comparison, name).with_columns(engine=True) for name in ("rows", "runners")}
    return dataclasses.replace(comparison, **as_engines)


# ---- the dashboard's state


def test_the_lowest_precision_is_selected_initially(comparison: Comparison) -> None:
    state = DashboardState.from_comparison(comparison)
    assert (state.precision, state.metric, state.class_name, state.batch) == ("int8", "mAP50-95(B)", "", 1)
    assert state.precisions == ["fp32", "fp16", "int8"]
    assert state.batches == [1, 2]
    assert state.metrics[:3] == ["mAP50-95(B)", "pycocotools/AP", "mAP50(B)"]
    assert len(state.metrics) == len(set(state.metrics))
    assert state.class_metrics == ["mAP50-95(B)", "mAP50(B)"]


def test_unknown_choices_are_rejected(comparison: Comparison) -> None:
    state = DashboardState.from_comparison(comparison)
    for choice in ({"precision": "fp8"}, {"metric": "speed"}, {"class_name": "cat"}, {"batch": 64}):
        with pytest.raises(RecipeError) as error:
            state.with_choices(**choice)
        assert error.value.code == "dashboard-choice-unknown"
        assert {error.value.fields["name"]: error.value.fields["value"]} == choice
    assert state.with_class_toggled("3").class_name == "3"
    assert state.with_class_toggled("3").with_class_toggled("3").class_name == ""


def test_the_summary_has_the_latencies_of_the_batch(on_gpu: Comparison) -> None:
    comparison = on_gpu
    frame = DashboardState.from_comparison(comparison).with_choices(batch=2).summary_frame()
    assert frame["precision"].to_list() == ["fp32", "fp16", "int8"]
    expected = comparison.rows.filter(pl.col("batch") == 2)
    assert frame["p50_ms"].to_list() == expected["p50_ms"].to_list()
    # The reference has no change.
    assert frame["delta mAP50-95(B)"].to_list() == [None, *expected["delta mAP50-95(B)"].to_list()[1:]]
    low, high = (expected[f"delta mAP50-95(B) {end}"][2] for end in ("low", "high"))
    assert frame["interval mAP50-95(B)"].to_list()[2] == f"{low:+.4f} to {high:+.4f}"


def test_classes_are_sorted_by_loss(comparison: Comparison) -> None:
    state = DashboardState.from_comparison(comparison).with_choices(metric="mAP50(B)")
    frame = state.class_frame()
    assert frame["delta"].is_sorted()
    rows = comparison.differences.filter(
        (pl.col("precision") == "int8") & (pl.col("scope") == "class") & (pl.col("metric") == "mAP50(B)")
    )
    assert dict(frame.select("name", "delta").iter_rows()) == dict(rows.select("name", "delta").iter_rows())
    assert state.with_choices(precision="fp32").class_frame()["delta"].null_count() == len(frame)


def test_changes_are_counted_by_class(comparison: Comparison) -> None:
    state = DashboardState.from_comparison(comparison)
    changes = comparison.changes("int8")
    counts = dict(state.change_counts().select("change", "count").iter_rows())
    assert list(counts) == list(CHANGES)
    assert sum(counts.values()) == len(changes)
    by_class = [state.with_choices(class_name=name).change_counts()["count"].sum() for name in state.class_names]
    assert sum(by_class) == len(changes)
    assert state.with_choices(precision="fp32").change_counts()["count"].sum() == 0


# ---- the dashboard


def test_one_choice_updates_every_figure_and_table(on_gpu: Comparison) -> None:
    widget = tk.dashboard(on_gpu)
    widths = {trace["name"]: trace["line"]["width"] for trace in figure(widget.latency)["data"] if "line" in trace}
    assert widths["INT8"] > widths["FP16"] == widths["FP32"]
    widget.precision.value = "fp16"
    assert widget.state is not None
    assert widget.state.precision == "fp16"
    widths = {trace["name"]: trace["line"]["width"] for trace in figure(widget.latency)["data"] if "line" in trace}
    assert widths["FP16"] > widths["INT8"]
    bars = figure(widget.size)["data"][0]["marker"]["opacity"]
    assert bars[1] == 1 > bars[0] == bars[2]
    assert re.search(r"trtkit-marked.>\s*<td[^>]*>FP16", widget.texts["summary"].value)
    accuracy = {trace["name"]: trace.get("opacity") for trace in figure(widget.accuracy)["data"]}
    assert accuracy["FP16"] == 1 > accuracy["INT8"]
    assert "FP16" in widget.texts["changes"].value
    widget.size._on_message({"kind": "click", "data": {"precision": "fp32"}})
    assert widget.precision.value == "fp32"
    assert "FP32" in widget.texts["changes"].value


def test_a_class_is_selected_by_list_and_by_click(on_gpu: Comparison) -> None:
    widget = tk.dashboard(on_gpu)
    point = {"precision": "int8", "class_name": "3"}
    widget.classes._on_message({"kind": "click", "data": point})
    assert widget.class_name.value == "3"
    assert figure(widget.classes)["layout"]["shapes"][-1]["type"] == "rect"
    assert figure(widget.accuracy)["layout"]["yaxis"]["ticktext"] == ["mAP50-95(B)", "mAP50(B)"]
    assert "of class 3" in widget.texts["changes"].value
    widget.class_name.value = ""
    assert len(figure(widget.accuracy)["layout"]["yaxis"]["ticktext"]) > 4
    widget.batch.value = 2
    assert "2" in figure(widget.latency)["layout"]["xaxis"]["title"]["text"]


def list_points(live: Any) -> list[dict[str, Any]]:
    """What clicks on the points of a figure send."""
    return [point for trace in live.figure.data for point in trace.customdata or ()]


def test_every_point_of_every_figure_selects_for_all_of_them(on_gpu: Comparison) -> None:
    widget = tk.dashboard(on_gpu)
    for name in ("accuracy", "latency", "size", "classes"):
        live = getattr(widget, name)
        points = list_points(live)
        assert len(points) == sum(len(trace.x) for trace in live.figure.data if trace.hoverinfo != "skip")
        assert {point["precision"] for point in points} >= {"fp16", "int8"}
        for precision in ("fp16", "int8"):
            live._on_message({"kind": "click", "data": next(one for one in points if one["precision"] == precision)})
            assert not widget.error_box.value
            assert widget.precision.value == precision
    metric = next(one for one in list_points(widget.accuracy) if one["metric"] == "mAP50(B)")
    widget.accuracy._on_message({"kind": "click", "data": metric})
    assert widget.metric.value == "mAP50(B)"
    # A second click on the class that is selected takes all classes again.
    point = {"precision": "int8", "class_name": "3"}
    for expected in ("3", ""):
        widget.classes._on_message({"kind": "click", "data": point})
        assert (widget.class_name.value, widget.precision.value) == (expected, "int8")


def test_an_error_keeps_the_selection(comparison: Comparison) -> None:
    widget = tk.dashboard(comparison)
    widget.classes._on_message({"kind": "click", "data": {"class_name": "nothing"}})
    assert "nothing" in widget.error_box.value
    assert widget.state is not None
    assert widget.state.class_name == widget.class_name.value == ""
    widget.choose(class_name="1")
    with pytest.raises(RecipeError):
        widget.choose(precision="fp64")


def test_a_significant_change_has_another_symbol(comparison: Comparison) -> None:
    differences = comparison.differences.with_columns(significant=pl.col("metric") == "mAP50-95(B)")
    widget = tk.dashboard(dataclasses.replace(comparison, differences=differences))
    trace = next(trace for trace in figure(widget.accuracy)["data"] if trace["name"] == "INT8")
    metrics = [point["metric"] for point in trace["customdata"]]
    symbols = dict(zip(metrics, trace["marker"]["symbol"], strict=True))
    assert symbols["mAP50-95(B)"] == "diamond"
    assert symbols["pycocotools/AP"] == "diamond-open"


def test_the_static_output_of_the_dashboard_has_all_figures(comparison: Comparison) -> None:
    page = tk.dashboard(comparison).static_html()
    assert page.count("Plotly.newPlot") == 4
    assert "<h3>" in page


def test_latencies_of_other_runtimes_are_no_headline(comparison: Comparison, on_gpu: Comparison) -> None:
    widget = tk.dashboard(comparison)
    assert "not measured" in figure(widget.latency)["layout"]["annotations"][0]["text"]
    assert not [trace for trace in figure(widget.latency)["data"] if trace["x"]]
    assert "p50" not in widget.texts["summary"].value
    assert "not measured" in widget.texts["verdict"].value
    # They are there, in a folded part that says what they are.
    folded = widget.children[-1]
    assert folded.toggle.description == compared.UNPREDICTIVE
    assert not folded.toggle.value
    assert f"{comparison.rows['p50_ms'][0]:.2f}" in widget.texts["latency"].value
    saved = html.unescape(widget.static_html())
    assert saved.index(compared.UNPREDICTIVE) < saved.index("p50 latency (ms)")
    page = html.unescape(tk.dashboard(on_gpu).static_html())
    assert "p50" in page
    assert compared.UNPREDICTIVE not in page


# ---- the gallery


def test_the_gallery_shows_losses_first(comparison: Comparison) -> None:
    state = GalleryState.from_comparison(comparison)
    assert state.precision == "int8"
    assert sum(state.counts.values()) == len(state.changes)
    every = state.with_choices(kinds=tuple(CHANGES), conf=0.05)
    drops = every.selected_changes()["score_drop"].to_list()
    losses = [value for value in drops if value >= 0]
    assert drops[: len(losses)] == sorted(losses, reverse=True)
    assert drops[len(losses) :] == sorted(drops[len(losses) :])
    for wrong in ({"precision": "fp32"}, {"class_name": "cat"}, {"kinds": ("moved",)}):
        with pytest.raises(RecipeError):
            state.with_choices(**wrong)
    with pytest.raises(RecipeError) as error:
        state.with_choices(conf=0.0)
    assert (error.value.code, error.value.fields["value"]) == ("gallery-conf-range", 0.0)


def test_pages_stay_within_their_number(comparison: Comparison) -> None:
    state = GalleryState.from_comparison(comparison).with_choices(kinds=tuple(CHANGES), conf=0.05)
    assert state.page_count == max(1, -(-len(state.selected_changes()) // PAGE_SIZE))
    assert state.with_page_turned(-1).page == 0
    assert state.with_page_turned(1000).page == state.page_count - 1
    assert state.with_page_turned(1).with_choices(class_name="1").page == 0
    drops = [
        row
        for page in range(state.page_count)
        for row in state.with_page_turned(page).page_frame()["score_drop"].to_list()
    ]
    assert drops == state.selected_changes()["score_drop"].to_list()


def test_missing_images_are_counted(comparison: Comparison, tmp_path: Path) -> None:
    state = GalleryState.from_comparison(comparison).with_choices(kinds=tuple(CHANGES), conf=0.05)
    assert len(state.selected_changes())
    assert state.page_frame()["png"].null_count() == 0
    moved = comparison.images.with_columns(path=pl.lit(str(tmp_path)) + "/" + pl.col("image").cast(pl.String))
    gone = tk.gallery(dataclasses.replace(comparison, images=moved))
    gone.choose(kinds=tuple(CHANGES), conf=0.05)
    assert "trtkit-note warning" in gone.cards.value
    assert "<img" not in gone.cards.value


def test_check_boxes_choose_the_kinds_and_show_their_numbers(comparison: Comparison) -> None:
    widget = tk.gallery(comparison, "int8")
    widget.conf.value = 0.05
    assert widget.state is not None
    assert widget.state.conf == 0.05
    for kind, box in widget.kinds.items():
        assert box.description.endswith(f"({widget.state.counts[kind]})")
        box.value = False
    assert "<figure>" not in widget.cards.value
    widget.kinds["false positive added"].value = True
    assert widget.state.kinds == ("false positive added",)
    assert widget.cards.value.count("<figure>") == min(widget.state.counts["false positive added"], PAGE_SIZE)
    widget.class_name.value = "2"
    assert widget.state.class_name == "2"
    widget.precision.value = "fp16"
    assert widget.state.precision == "fp16"


def test_buttons_turn_the_page(comparison: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trtkit.widgets.comparison_state.PAGE_SIZE", 2)
    widget = tk.gallery(comparison)
    widget.choose(kinds=tuple(CHANGES), conf=0.05)
    assert widget.state is not None
    assert widget.state.page_count > 1
    assert widget.previous.disabled
    widget.next.click()
    assert widget.state.page == 1
    assert "page 2 of" in widget.page.value
    widget.previous.click()
    assert widget.state.page == 0


def test_one_precision_has_no_gallery(comparison: Comparison) -> None:
    alone = dataclasses.replace(comparison, rows=comparison.rows.filter(pl.col("precision") == "fp32"))
    with pytest.raises(RecipeError) as error:
        tk.gallery(alone)
    assert error.value.code == "gallery-single-precision"


# ---- where comparisons come from


def test_a_comparison_comes_from_a_folder_or_from_the_demo(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_comparison(None) is None
    comparison.save(tmp_path / "runs" / "demo")
    loaded = resolve_comparison(None)
    assert loaded is not None
    assert loaded.rows.equals(comparison.rows)
    assert resolve_comparison(tmp_path / "runs" / "demo") is not None
    with pytest.raises(DataError):
        tk.dashboard(tmp_path / "nothing")


def test_without_arguments_the_demo_is_compared_in_the_background(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compared, "compare_demo_model", lambda **watch: comparison)
    widget = tk.dashboard()
    assert widget.wait(30)
    assert widget.state is not None
    assert len(widget.figures()) == 4

    def failing(**watch: Any) -> Comparison:
        raise DataError("compare the demo", "its images are gone", "install trtkit again")

    monkeypatch.setattr(compared, "compare_demo_model", failing)
    broken = tk.gallery()
    assert broken.wait(30)
    assert "its images are gone" in broken.job_view.error_box.value
    assert "still running" in broken.static_html()
    with pytest.raises(DataError) as error:
        broken.turn_page()
    assert error.value.code == "gallery-empty"


def test_images_of_the_gallery_show_detections_from_the_chosen_confidence_on(comparison: Comparison) -> None:
    state = GalleryState.from_comparison(comparison).with_choices(kinds=tuple(CHANGES), conf=0.05)
    rows = state.selected_changes().head(PAGE_SIZE)
    sides = [comparison.evaluation(name) for name in (state.reference, state.precision)]
    drawn = {conf: draw_object_changes(rows, *sides, limit=PAGE_SIZE, conf=conf)["png"] for conf in (0.05, 0.25)}
    assert state.page_frame()["png"].to_list() == drawn[0.05].to_list()
    assert drawn[0.05].to_list() != drawn[0.25].to_list()


@pytest.mark.parametrize(
    ("precisions", "shown"),
    [
        (("fp32", "fp16", "int8"), "int8"),
        (("int8", "fp32", "fp16"), "int8"),
        (("fp32", "int8", "qat"), "int8"),
        (("fp32", "distilled", "pruned"), "pruned"),
        (("fp32",), "fp32"),
    ],
)
def test_the_lowest_precision_is_shown_first_in_any_order_and_beside_candidates(
    comparison: Comparison, precisions: tuple[str, ...], shown: str
) -> None:
    rows = pl.DataFrame({"precision": precisions})
    assert choose_shown_precision(dataclasses.replace(comparison, rows=rows)) == shown


def test_object_changes_are_found_once_for_each_precision(comparison: Comparison) -> None:
    state = DashboardState.from_comparison(comparison)
    changes = state.changes
    assert state.with_choices(metric="mAP50(B)").with_choices(class_name="3").changes is changes
    assert state.with_choices(precision="fp16").changes is not changes


def test_the_gallery_shows_names_of_candidates_as_they_were_given() -> None:
    columns = {
        "change": "lost",
        "name": "cat",
        "score_reference": 0.5,
        "score": None,
        "path": "a/b.jpg",
        "png": b"jpeg",
    }
    state: Any = SimpleNamespace(
        page_frame=lambda: pl.DataFrame([columns]), reference="fp32", precision="pruned_v2.onnx"
    )
    page = compared.render_change_cards(state)
    assert "FP32 | pruned_v2.onnx" in page
    assert "FP32 on the left, pruned_v2.onnx on the right" in page


def test_changes_are_counted_at_the_confidence_of_the_comparison(comparison: Comparison) -> None:
    other = dataclasses.replace(comparison, about={**comparison.about, "conf": 0.6})
    assert comparison.conf == 0.25
    assert other.changes("int8").equals(comparison.changes("int8", conf=0.6))
    assert "at confidence 0.6;" in compared.render_changes_table(DashboardState.from_comparison(other))
    assert GalleryState.from_comparison(other).conf == 0.6
    assert "at confidence 0.6 by one of" in render_report(other)
