"""Dashboard and gallery: every choice, by its state, by its controls and by clicks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import trtkit as tk
from trtkit.comparison.comparison import Comparison
from trtkit.errors import DataError, RecipeError
from trtkit.widgets.comparison import dashboard as compared
from trtkit.widgets.comparison.state import CHANGES, PER_PAGE, DashboardState, GalleryState, resolve_comparison


def figure(live: Any) -> Any:
    return json.loads(live._place.figure)


# ---- the dashboard's state


def test_at_first_the_lowest_precision_stands_out(comparison: Comparison) -> None:
    state = DashboardState.of(comparison)
    assert (state.precision, state.metric, state.name, state.batch) == ("int8", "mAP50-95(B)", "", 1)
    assert state.precisions == ["fp32", "fp16", "int8"]
    assert state.batches == [1, 2]
    assert state.metrics[:3] == ["mAP50-95(B)", "pycocotools/AP", "mAP50(B)"]
    assert len(state.metrics) == len(set(state.metrics))
    assert state.class_metrics == ["mAP50-95(B)", "mAP50(B)"]


def test_what_was_not_compared_can_not_stand_out(comparison: Comparison) -> None:
    state = DashboardState.of(comparison)
    for choice in ({"precision": "fp8"}, {"metric": "speed"}, {"name": "cat"}, {"batch": 64}):
        with pytest.raises(RecipeError, match="was not compared"):
            state.choosing(**choice)
    assert state.toggling("3").name == "3"
    assert state.toggling("3").toggling("3").name == ""


def test_the_headline_holds_the_batch_that_was_chosen(comparison: Comparison) -> None:
    frame = DashboardState.of(comparison).choosing(batch=2).headline()
    assert frame["precision"].to_list() == ["fp32", "fp16", "int8"]
    expected = comparison.rows.filter(pl.col("batch") == 2)
    assert frame["p50_ms"].to_list() == expected["p50_ms"].to_list()
    # The reference changes by nothing, which is no measurement.
    assert frame["delta mAP50-95(B)"].to_list() == [None, *expected["delta mAP50-95(B)"].to_list()[1:]]
    low, high = (expected[f"delta mAP50-95(B) {end}"][2] for end in ("low", "high"))
    assert frame["interval mAP50-95(B)"].to_list()[2] == f"{low:+.4f} to {high:+.4f}"


def test_classes_come_by_their_loss(comparison: Comparison) -> None:
    state = DashboardState.of(comparison).choosing(metric="mAP50(B)")
    frame = state.by_class()
    assert frame["delta"].is_sorted()
    rows = comparison.differences.filter(
        (pl.col("precision") == "int8") & (pl.col("scope") == "class") & (pl.col("metric") == "mAP50(B)")
    )
    assert dict(frame.select("name", "delta").iter_rows()) == dict(rows.select("name", "delta").iter_rows())
    assert state.choosing(precision="fp32").by_class()["delta"].null_count() == len(frame)


def test_changes_are_counted_by_class(comparison: Comparison) -> None:
    state = DashboardState.of(comparison)
    told = comparison.changes("int8")
    counts = dict(state.changed().select("change", "count").iter_rows())
    assert list(counts) == list(CHANGES)
    assert sum(counts.values()) == len(told)
    by_class = [state.choosing(name=name).changed()["count"].sum() for name in state.names]
    assert sum(by_class) == len(told)
    assert state.choosing(precision="fp32").changed()["count"].sum() == 0


# ---- the dashboard


def test_one_choice_moves_every_plot_and_table(comparison: Comparison) -> None:
    made = tk.dashboard(comparison)
    widths = {trace["name"]: trace["line"]["width"] for trace in figure(made.latency)["data"] if "line" in trace}
    assert widths["int8"] > widths["fp16"] == widths["fp32"]
    made.precision.value = "fp16"
    assert made.state is not None
    assert made.state.precision == "fp16"
    widths = {trace["name"]: trace["line"]["width"] for trace in figure(made.latency)["data"] if "line" in trace}
    assert widths["fp16"] > widths["int8"]
    bars = figure(made.size)["data"][0]["marker"]["opacity"]
    assert bars[1] == 1 > bars[0] == bars[2]
    assert "trtkit-marked'><td>fp16" in made.told["headline"].value
    accuracy = {trace["name"]: trace.get("opacity") for trace in figure(made.accuracy)["data"]}
    assert accuracy["fp16"] == 1 > accuracy["int8"]
    assert "FP16 changes" in made.told["changes"].value
    made.size._told({"kind": "click", "data": "fp32"})
    assert made.precision.value == "fp32"
    assert "nothing changes in it" in made.told["changes"].value


def test_a_class_is_chosen_by_list_and_by_click(comparison: Comparison) -> None:
    made = tk.dashboard(comparison)
    made.classes._told({"kind": "click", "data": "3"})
    assert made.class_name.value == "3"
    assert figure(made.classes)["layout"]["shapes"][-1]["type"] == "rect"
    assert figure(made.accuracy)["layout"]["yaxis"]["ticktext"] == ["mAP50-95(B)", "mAP50(B)"]
    assert "of class 3" in made.told["changes"].value
    made.class_name.value = ""
    assert len(figure(made.accuracy)["layout"]["yaxis"]["ticktext"]) > 4
    made.batch.value = 2
    assert "a batch of 2" in figure(made.latency)["layout"]["xaxis"]["title"]["text"]


def test_an_error_leaves_the_choice_as_it_was(comparison: Comparison) -> None:
    made = tk.dashboard(comparison)
    made.classes._told({"kind": "click", "data": "nothing"})
    assert "was not compared" in made.fault.value
    assert made.state is not None
    assert made.state.name == made.class_name.value == ""
    made.choose(name="1")
    with pytest.raises(RecipeError):
        made.choose(precision="fp64")


def test_a_measurable_change_is_told_by_its_shape(comparison: Comparison) -> None:
    told = comparison.differences.with_columns(measurable=pl.col("metric") == "mAP50-95(B)")
    made = tk.dashboard(dataclasses.replace(comparison, differences=told))
    trace = next(trace for trace in figure(made.accuracy)["data"] if trace["name"] == "int8")
    symbols = dict(zip(trace["customdata"], trace["marker"]["symbol"], strict=True))
    assert symbols["mAP50-95(B)"] == "diamond"
    assert symbols["pycocotools/AP"] == "diamond-open"


def test_the_dashboard_outlives_its_kernel(comparison: Comparison) -> None:
    page = tk.dashboard(comparison).still_html()
    assert page.count("Plotly.newPlot") == 4
    assert "What each precision of" in page


def test_times_that_are_not_tensorrts_say_so(comparison: Comparison) -> None:
    made = tk.dashboard(comparison)
    assert "not TensorRT" in figure(made.latency)["layout"]["xaxis"]["title"]["text"]
    assert "not TensorRT" in made.told["headline"].value


# ---- the gallery


def test_the_gallery_shows_harm_first(comparison: Comparison) -> None:
    state = GalleryState.of(comparison)
    assert state.precision == "int8"
    assert sum(state.counts.values()) == len(state.told)
    every = state.choosing(kinds=tuple(CHANGES), conf=0.05)
    hurt = every.chosen()["score_drop"].to_list()
    harm = [value for value in hurt if value >= 0]
    assert hurt[: len(harm)] == sorted(harm, reverse=True)
    assert hurt[len(harm) :] == sorted(hurt[len(harm) :])
    for wrong in ({"precision": "fp32"}, {"name": "cat"}, {"kinds": ("moved",)}):
        with pytest.raises(RecipeError):
            state.choosing(**wrong)
    with pytest.raises(RecipeError, match="between 0 and 1"):
        state.choosing(conf=0.0)


def test_pages_stay_within_what_there_is(comparison: Comparison) -> None:
    state = GalleryState.of(comparison).choosing(kinds=tuple(CHANGES), conf=0.05)
    assert state.pages == max(1, -(-len(state.chosen()) // PER_PAGE))
    assert state.turning(-1).page == 0
    assert state.turning(1000).page == state.pages - 1
    assert state.turning(1).choosing(name="1").page == 0
    seen = [row for page in range(state.pages) for row in state.turning(page).drawn()["score_drop"].to_list()]
    assert seen == state.chosen()["score_drop"].to_list()


def test_images_are_drawn_and_what_is_gone_is_told(comparison: Comparison, tmp_path: Path) -> None:
    state = GalleryState.of(comparison).choosing(kinds=tuple(CHANGES), conf=0.05)
    assert len(state.chosen())
    assert state.drawn()["png"].null_count() == 0
    moved = comparison.images.with_columns(path=pl.lit(str(tmp_path)) + "/" + pl.col("image").cast(pl.String))
    gone = tk.gallery(dataclasses.replace(comparison, images=moved))
    gone.choose(kinds=tuple(CHANGES), conf=0.05)
    assert "no longer where they were judged" in gone.images.value


def test_boxes_choose_kinds_and_say_how_many(comparison: Comparison) -> None:
    made = tk.gallery(comparison, "int8")
    made.conf.value = 0.05
    assert made.state is not None
    assert made.state.conf == 0.05
    for kind, box in made.kinds.items():
        assert box.description.endswith(f"({made.state.counts[kind]})")
        box.value = False
    assert "Nothing of this kind changed" in made.images.value
    made.kinds["new error"].value = True
    assert made.state.kinds == ("new error",)
    assert made.images.value.count("<figure>") == min(made.state.counts["new error"], PER_PAGE)
    made.class_name.value = "2"
    assert made.state.name == "2"
    made.precision.value = "fp16"
    assert made.state.precision == "fp16"


def test_pages_turn_by_buttons(comparison: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trtkit.widgets.comparison.state.PER_PAGE", 2)
    made = tk.gallery(comparison)
    made.choose(kinds=tuple(CHANGES), conf=0.05)
    assert made.state is not None
    assert made.state.pages > 1
    assert made.back.disabled
    made.on.click()
    assert made.state.page == 1
    assert "page 2 of" in made.place.value
    made.back.click()
    assert made.state.page == 0


def test_one_precision_has_no_gallery(comparison: Comparison) -> None:
    alone = dataclasses.replace(comparison, rows=comparison.rows.filter(pl.col("precision") == "fp32"))
    with pytest.raises(RecipeError, match="only one precision"):
        tk.gallery(alone)


# ---- where comparisons come from


def test_a_comparison_comes_from_a_folder_or_from_the_demo(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_comparison(None) is None
    comparison.save(tmp_path / "runs" / "demo")
    told = resolve_comparison(None)
    assert told is not None
    assert told.rows.equals(comparison.rows)
    assert resolve_comparison(tmp_path / "runs" / "demo") is not None
    with pytest.raises(DataError):
        tk.dashboard(tmp_path / "nothing")


def test_with_nothing_given_the_demo_is_compared_beside(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compared, "compare_demo_model", lambda **watch: comparison)
    made = tk.dashboard()
    assert made.wait(30)
    assert made.state is not None
    assert len(made.figures()) == 4

    def failing(**watch: Any) -> Comparison:
        raise DataError("compare the demo", "its images are gone", "install trtkit again")

    monkeypatch.setattr(compared, "compare_demo_model", failing)
    broken = tk.gallery()
    assert broken.wait(30)
    assert "its images are gone" in broken.work.fault.value
    assert "still running" in broken.still_html()
    with pytest.raises(DataError, match="no comparison yet"):
        broken.turn()
