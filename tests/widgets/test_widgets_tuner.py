from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import ipywidgets
import pytest

import trtkit as tk
from trtkit import demo
from trtkit.calibration import Calibration
from trtkit.calibration.algorithm_comparison import AlgorithmComparison
from trtkit.errors import CancelledError, DataError, RecipeError
from trtkit.tuning.layers import QuantizableLayers
from trtkit.tuning.search import Search
from trtkit.tuning.sensitivity import Sensitivity
from trtkit.widgets.tuner import tuner as tuner_module
from trtkit.widgets.tuner.actions import TunerInputs
from trtkit.widgets.tuner.tuner import Tuner

SIDE = 160


@pytest.fixture
def prepared(
    monkeypatch: pytest.MonkeyPatch,
    model: tk.Model,
    readings: AlgorithmComparison,
    layout: QuantizableLayers,
    costs: Sensitivity,
    tmp_path: Path,
) -> Tuner:
    """A tuner whose background work is done, on a calibration that is there already."""

    def at_once(*arguments: Any, **settings: Any) -> TunerInputs:
        return TunerInputs(model=model, readings=readings, quantizable_layers=layout, sensitivity=costs, search=None)

    monkeypatch.setattr(tuner_module, "prepare_tuner", at_once)
    made = tk.tuner(model, str(demo.data_path()), folder=tmp_path / "tuner")
    assert made.wait(30)
    assert made.work.job.state == "done"
    return made


def drawn(made: Tuner) -> Any:
    """The overview as the page gets it."""
    return json.loads(made.ranges.overview._place.figure)


def test_controls_redraw_at_once(prepared: Tuner, calibration: Calibration) -> None:
    before = drawn(prepared)
    prepared.ranges.algorithm.value = "mse"
    after = drawn(prepared)
    assert prepared.state.algorithm == "mse"
    assert after["data"][1]["name"] == "covered by mse"
    assert after["data"][0] == before["data"][0]  # the histograms are the same
    assert after["data"][1]["y"] != before["data"][1]["y"]
    assert "mse" in prepared.to_python()


def test_the_percentile_is_free_only_for_its_algorithm(prepared: Tuner) -> None:
    assert prepared.ranges.percentile.disabled
    assert "Only the algorithm percentile" in prepared.ranges.percentile.tooltip
    prepared.ranges.algorithm.value = "percentile"
    assert not prepared.ranges.percentile.disabled
    prepared.ranges.percentile.value = 99.9
    assert (prepared.state.algorithm, prepared.state.percentile) == ("percentile", 99.9)
    covered = drawn(prepared)["data"][1]
    assert covered["name"] == "covered by percentile 99.9"
    prepared.use("percentile", 99.97)
    assert prepared.ranges.percentile.value == 99.97
    prepared.ranges.algorithm.value = "minmax"
    assert prepared.ranges.percentile.disabled


def test_a_click_and_the_list_do_the_same(prepared: Tuner, layout: QuantizableLayers) -> None:
    node = layout.quantizable[7]
    prepared.layers.ranking._told({"kind": "click", "data": node})
    assert prepared.state.high == (node,)
    assert prepared.layers.keep.value == (node,)
    assert prepared.state.tensor == layout.tensor_of(node)
    prepared.layers.ranking._told({"kind": "click", "data": node})
    assert prepared.state.high == prepared.layers.keep.value == ()
    prepared.layers.keep.value = (node, layout.free[0])
    assert prepared.state.high == (layout.free[0], node)
    assert "<pre class='trtkit-code trtkit-keep'" in prepared.code.value
    assert node in prepared.code.value
    kept = json.loads(prepared.layers.ranking._place.figure)["data"][2]
    assert kept["name"] == "kept high"
    assert set(kept["customdata"]) == {node, layout.free[0]}


def test_a_click_on_the_overview_shows_a_tensor(prepared: Tuner) -> None:
    tensor = list(prepared.state.readings.calibration.ranges)[9]  # type: ignore[union-attr]
    prepared.ranges.overview._told({"kind": "click", "data": tensor})
    assert prepared.state.tensor == prepared.ranges.tensor.value == tensor
    assert tensor in prepared.ranges.facts.value
    prepared.ranges.tensor.value = "images"
    assert prepared.state.tensor == "images"


def test_an_error_is_shown_in_a_sentence_and_goes_again(prepared: Tuner) -> None:
    prepared.layers.ranking._told({"kind": "click", "data": "/model.23/dfl/conv/Conv"})
    assert "is no layer that would run in INT8" in prepared.fault.value
    assert "<details><summary>Traceback" in prepared.fault.value
    assert prepared.state.high == ()
    prepared.ranges.algorithm.value = "mse"
    assert prepared.fault.value == ""
    with pytest.raises(RecipeError):
        prepared.toggle("nothing")


def test_without_clicks_the_figures_are_plain(prepared: Tuner, readings: AlgorithmComparison) -> None:
    made = tk.tuner(calibration=readings.calibration, click=False)
    made.use("percentile", 99.9)
    assert not made.ranges.overview.clickable
    assert isinstance(made.ranges.overview._place, ipywidgets.Output)
    assert made.ranges.overview._place.outputs


def test_a_calibration_alone_can_be_looked_at(calibration: Calibration) -> None:
    made = tk.tuner(calibration=calibration)
    assert made.work.job.state == "idle"
    assert made.layers.layout.display == "none"
    assert made.mixes.find.disabled
    assert "tuner(model=...)" in made.mixes.find.tooltip
    assert made.ranges.algorithm.value == "minmax"
    with pytest.raises(RecipeError, match="no model was given"):
        made.judge()


def test_scales_of_tensorrts_own_cache_are_shown(model: tk.Model, calibration: Calibration) -> None:
    made = tk.tuner(calibration=Calibration.from_tensorrt_cache(calibration.to_tensorrt_cache(), model))
    assert made.ranges.algorithm.value == "tensorrt"
    assert made.ranges.algorithm.options == ("tensorrt",)
    assert "scales only" in made.ranges.why.value
    assert "covered by tensorrt" in made.ranges.overview._place.figure
    made.show_tensor(list(calibration.ranges)[5])


def test_what_lies_in_folders_is_shown_at_once(saved: Path, found: Search) -> None:
    made = tk.tuner(
        calibration=saved / "calibration",
        sensitivity=saved / "tuner" / "sensitivity",
        search=saved / "tuner" / "search",
    )
    assert made.state.taken
    assert made.keep_list == found.keep
    assert len(made.figures()) == 4
    assert "yes" in made.mixes.table.value
    with pytest.raises(DataError, match=r"there is no calibration\.json"):
        tk.tuner(calibration=saved / "nothing")


def test_taking_over_a_mix_by_point_and_by_list(saved: Path, found: Search, layout: QuantizableLayers) -> None:
    made = tk.tuner(calibration=saved / "calibration", search=found)
    made._become(made.state.with_layers(layout))
    assert made.state.taken
    assert made.ranges.algorithm.value is None
    assert made.ranges.taken.layout.display == ""
    assert drawn(made)["data"][1]["name"] == "covered by the search"
    reach = dict(made.state.ranges.select("tensor", "reach").iter_rows())
    assert reach["images"] == max(map(abs, found.calibration.ranges["images"]))
    made.mixes.pareto._told({"kind": "click", "data": ["searched", 1]})
    assert made.state.high == ()
    assert made.ranges.algorithm.value == "minmax"
    assert made.ranges.taken.layout.display == "none"
    made.mixes.trial.value = 0
    assert made.state.high == layout.free
    made.mixes.pareto._told({"kind": "click", "data": ["found", 2]})
    assert made.state.high == found.keep
    made.mixes.pareto._told({"kind": "click", "data": ["judged", 0]})
    assert made.state.high == found.keep


def test_it_prepares_itself_and_remembers(saved: Path, model: tk.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tk.tuner(model, demo.data_path(), calibration_images=2, imgsz=SIDE, folder=saved / "tuner")
    assert made.mixes.judge.disabled
    assert "runs; wait for it" in made.mixes.judge.tooltip
    assert made.wait(120)
    assert made.work.job.error is None
    assert made.state.readings is not None
    assert made.state.readings.calibration.images == 2
    assert made.state.readings.is_immediate("entropy")
    # What lay in the folder is of this model, and taken.
    assert made.state.sensitivity is not None
    assert made.state.found is not None
    assert not made.mixes.judge.disabled
    assert len(made.figures()) == 4
    passes = []
    monkeypatch.setattr("trtkit.calibration.calibrator.input_batches", lambda *a, **k: passes.append(1) or iter(()))
    again = tk.tuner(model, demo.data_path(), calibration_images=2, imgsz=SIDE, folder=saved / "tuner")
    assert again.wait(120)
    assert again.work.job.error is None
    assert not passes


def test_a_wrong_path_is_told_where_it_happens(tmp_path: Path) -> None:
    made = tk.tuner(tmp_path / "missing.pt", folder=tmp_path)
    assert made.wait(60)
    assert made.work.job.state == "failed"
    assert "missing.pt" in made.work.fault.value
    assert "<details>" in made.work.fault.value
    assert made.state.readings is None


def test_cancel_leaves_what_was_there(prepared: Tuner, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threading.Event()

    def endless(*arguments: Any, cancel: threading.Event, **settings: Any) -> None:
        begun.set()
        cancel.wait(30)
        raise CancelledError("search")

    monkeypatch.setattr(tuner_module, "search", endless)
    before = prepared.state
    prepared.mixes.find.click()
    assert begun.wait(10)
    assert prepared.mixes.find.disabled
    with pytest.raises(RecipeError, match="one runs already"):
        prepared.judge()
    # Choosing goes on while it runs.
    prepared.ranges.algorithm.value = "mse"
    assert prepared.state.algorithm == "mse"
    prepared.work.cancel.click()
    assert prepared.wait(30)
    assert prepared.work.job.state == "cancelled"
    assert "nothing was left half-written" in prepared.work.stage.value
    assert prepared.state.found is before.found is None
    assert not prepared.mixes.find.disabled


def test_an_interrupt_cancels(prepared: Tuner, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(*arguments: Any, cancel: threading.Event, **settings: Any) -> None:
        cancel.wait(30)
        raise CancelledError("search")

    monkeypatch.setattr(tuner_module, "search", endless)
    prepared.find()
    thread = prepared.work.job._thread
    assert thread is not None
    join, interrupts = thread.join, iter([KeyboardInterrupt()])

    def interrupted(timeout: float | None = None) -> None:
        for error in interrupts:
            raise error
        join(timeout)

    monkeypatch.setattr(thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepared.wait()
    assert prepared.work.job.state == "cancelled"
    assert not prepared.mixes.find.disabled


def test_what_a_search_finds_is_saved_and_taken(
    prepared: Tuner, found: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def quick(*arguments: Any, **settings: Any) -> Search:
        asked.update(settings, max_drop=arguments[2])
        return found

    monkeypatch.setattr(tuner_module, "search", quick)
    prepared.mixes.max_drop.value = 0.004
    prepared.mixes.find.click()
    assert prepared.wait(30)
    assert asked["max_drop"] == 0.004
    assert asked["calibration"].algorithm == "minmax"
    assert prepared.state.taken
    assert Search.load(Path(prepared.state.folder) / "search").keep == found.keep
    assert "search/calibration" in prepared.to_python()


def test_measuring_sorts_the_layers(prepared: Tuner, costs: Sensitivity, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def quick(*arguments: Any, **settings: Any) -> Sensitivity:
        asked.update(settings)
        return costs

    monkeypatch.setattr(tuner_module, "sensitivity", quick)
    prepared.use("mse")
    prepared.layers.image_count.value = 3
    prepared.layers.measure.click()
    assert prepared.wait(30)
    assert asked["images"] == 3
    assert asked["calibration"].algorithm == "mse"
    assert (Path(prepared.state.folder) / "sensitivity" / "sensitivity.json").is_file()


def test_what_outlives_the_kernel_holds_figures_tables_and_code(prepared: Tuner) -> None:
    prepared.use("percentile", 99.9)
    page = prepared.still_html()
    assert page.count("Plotly.newPlot") == 3
    assert "Take it with you" in page
    assert "covered by percentile 99.9" in page


def test_every_control_has_a_label_and_a_tooltip(prepared: Tuner) -> None:
    controls = [w for w in _all(prepared) if isinstance(w, (ipywidgets.ValueWidget, ipywidgets.Button))]
    told = [w for w in controls if not isinstance(w, (ipywidgets.HTML, ipywidgets.IntProgress, ipywidgets.Output))]
    assert len(told) >= 10
    for control in told:
        assert control.description, control
        assert control.tooltip, control.description
        assert any(name.startswith("trtkit-") for name in control._dom_classes), control.description


def _all(widget: Any) -> list[Any]:
    return [widget, *(inner for child in getattr(widget, "children", ()) for inner in _all(child))]
