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
from trtkit.calibration.algorithms import TensorStats, register, unregister
from trtkit.errors import CancelledError, DataError, RecipeError
from trtkit.tuning.layers import QuantizableLayers
from trtkit.tuning.search import Search
from trtkit.tuning.sensitivity import Sensitivity
from trtkit.widgets.tuner import tuner as tuner_module
from trtkit.widgets.tuner.tuner import Tuner, TunerInputs

SIDE = 96


@pytest.fixture
def prepared(
    monkeypatch: pytest.MonkeyPatch,
    model: tk.Model,
    algorithm_comparison: AlgorithmComparison,
    quantizable_layers: QuantizableLayers,
    layer_sensitivity: Sensitivity,
    tmp_path: Path,
) -> Tuner:
    """A tuner after its first background job, with a small calibration."""

    def prepare(*arguments: Any, **settings: Any) -> TunerInputs:
        return TunerInputs(
            model=model,
            algorithm_comparison=algorithm_comparison,
            quantizable_layers=quantizable_layers,
            sensitivity=layer_sensitivity,
            search=None,
        )

    monkeypatch.setattr(tuner_module, "prepare_tuner", prepare)
    widget = tk.tuner(model, str(demo.data_path()), cache_dir=tmp_path / "tuner")
    assert widget.wait(30)
    assert widget.job_view.job.state == "done"
    return widget


def overview(widget: Tuner) -> Any:
    """The overview figure as the page gets it."""
    return json.loads(widget.ranges.overview._view.figure)


def test_an_algorithm_redraws_the_overview(prepared: Tuner, calibration: Calibration) -> None:
    before = overview(prepared)
    prepared.ranges.algorithm.value = "mse"
    after = overview(prepared)
    assert prepared.state.algorithm == "mse"
    assert "mse" in after["data"][1]["name"]
    assert after["data"][0] == before["data"][0]
    assert after["data"][1]["y"] != before["data"][1]["y"]
    assert "mse" in prepared.to_python()


def test_an_algorithm_registered_elsewhere_can_be_chosen(calibration: Calibration) -> None:
    @register("half_range", title="half of the largest magnitude", needs_histogram=False)
    def compute_half_range(stats: TensorStats) -> float:
        return stats.largest / 2

    try:
        widget = tk.tuner(calibration=calibration)
        widget.ranges.algorithm.value = "half_range"
        assert (widget.state.ranges["covered"] == 0.5).all()
        assert "half of the largest magnitude" in " ".join(widget.ranges.algorithm.tooltips)
        assert "half_range" in overview(widget)["data"][1]["name"]
        assert "half_range" in widget.to_python()
    finally:
        unregister("half_range")


def test_the_percentile_is_enabled_for_its_algorithm_only(prepared: Tuner) -> None:
    assert prepared.ranges.percentile.disabled
    assert "minmax" in prepared.ranges.percentile.tooltip
    prepared.ranges.algorithm.value = "percentile"
    assert not prepared.ranges.percentile.disabled
    prepared.ranges.percentile.value = 99.9
    assert (prepared.state.algorithm, prepared.state.percentile) == ("percentile", 99.9)
    assert "percentile 99.9" in overview(prepared)["data"][1]["name"]
    prepared.choose_algorithm("percentile", 99.97)
    assert prepared.ranges.percentile.value == 99.97
    prepared.ranges.algorithm.value = "minmax"
    assert prepared.ranges.percentile.disabled


def test_a_click_and_the_list_do_the_same(prepared: Tuner, quantizable_layers: QuantizableLayers) -> None:
    node = quantizable_layers.quantizable[7]
    prepared.layers.ranking._on_message({"kind": "click", "data": node})
    assert prepared.state.kept_fp16 == (node,)
    assert prepared.layers.keep.value == (node,)
    assert prepared.state.tensor == quantizable_layers.tensor_of(node)
    prepared.layers.ranking._on_message({"kind": "click", "data": node})
    assert prepared.state.kept_fp16 == prepared.layers.keep.value == ()
    prepared.layers.keep.value = (node, quantizable_layers.quantizable[0])
    assert prepared.state.kept_fp16 == (quantizable_layers.quantizable[0], node)
    assert '<pre class="trtkit-code trtkit-keep"' in prepared.code.value
    assert node in prepared.code.value
    kept = json.loads(prepared.layers.ranking._view.figure)["data"][2]
    assert set(kept["customdata"]) == {node, quantizable_layers.quantizable[0]}


def test_a_click_on_the_overview_shows_a_tensor(prepared: Tuner) -> None:
    tensor = list(prepared.state.algorithm_comparison.calibration.ranges)[9]  # type: ignore[union-attr]
    prepared.ranges.overview._on_message({"kind": "click", "data": tensor})
    assert prepared.state.tensor == prepared.ranges.tensor.value == tensor
    assert tensor in prepared.ranges.facts.value
    prepared.ranges.tensor.value = "images"
    assert prepared.state.tensor == "images"


def test_an_error_is_shown_until_the_next_choice(prepared: Tuner) -> None:
    prepared.layers.ranking._on_message({"kind": "click", "data": "/model.23/dfl/conv/Conv"})
    assert "/model.23/dfl/conv/Conv" in prepared.error_box.value
    assert "<details><summary>Traceback" in prepared.error_box.value
    assert prepared.state.kept_fp16 == ()
    prepared.ranges.algorithm.value = "mse"
    assert prepared.error_box.value == ""
    with pytest.raises(RecipeError):
        prepared.toggle("nothing")


def test_a_click_on_another_algorithms_line_chooses_it(prepared: Tuner) -> None:
    before = prepared.state.algorithm
    lines = [trace for trace in json.loads(prepared.ranges.histogram._view.figure)["data"] if trace.get("customdata")]
    names = [trace["customdata"][0] for trace in lines]
    assert names
    assert before not in names
    prepared.ranges.histogram._on_message({"kind": "click", "data": names[0]})
    assert prepared.state.algorithm == prepared.ranges.algorithm.value == names[0]
    prepared.choose_algorithm(before)


def test_figures_without_clicks_are_plain_outputs(prepared: Tuner, algorithm_comparison: AlgorithmComparison) -> None:
    widget = tk.tuner(calibration=algorithm_comparison.calibration, clickable=False)
    widget.choose_algorithm("percentile", 99.9)
    assert not widget.ranges.overview.clickable
    assert isinstance(widget.ranges.overview._view, ipywidgets.Output)
    assert widget.ranges.overview._view.outputs


def test_a_calibration_can_be_shown_without_a_model(calibration: Calibration) -> None:
    widget = tk.tuner(calibration=calibration)
    assert widget.job_view.job.state == "idle"
    assert widget.layers.layout.display == "none"
    assert widget.assignments.search.disabled
    assert "tuner(model=...)" in widget.assignments.search.tooltip
    assert widget.ranges.algorithm.value == "minmax"
    with pytest.raises(RecipeError) as error:
        widget.evaluate()
    assert (error.value.code, error.value.fields["name"]) == ("tuner-action-unavailable", "evaluate")


def test_the_scales_of_a_tensorrt_cache_are_shown(model: tk.Model, calibration: Calibration) -> None:
    widget = tk.tuner(calibration=Calibration.from_tensorrt_cache(calibration.to_tensorrt_cache(), model))
    assert widget.ranges.algorithm.value == "tensorrt"
    assert widget.ranges.algorithm.options == ("tensorrt",)
    assert "minmax" in widget.ranges.unavailable.value
    assert any("tensorrt" in trace.get("name", "") for trace in overview(widget)["data"])
    widget.show_tensor(list(calibration.ranges)[5])


def test_saved_results_are_shown_at_once(saved: Path, search: Search) -> None:
    widget = tk.tuner(
        calibration=saved / "calibration",
        sensitivity=saved / "tuner" / "sensitivity",
        search=saved / "tuner" / "search",
    )
    assert widget.state.uses_search_ranges
    assert widget.keep_list == search.keep
    assert len(widget.figures()) == 4
    assert "yes" in widget.assignments.table.value
    with pytest.raises(DataError):
        tk.tuner(calibration=saved / "nothing")


def test_a_trial_is_applied_by_its_point_and_by_the_list(
    saved: Path, search: Search, quantizable_layers: QuantizableLayers
) -> None:
    widget = tk.tuner(calibration=saved / "calibration", search=search)
    widget._set_state(widget.state.with_layers(quantizable_layers))
    assert widget.state.uses_search_ranges
    assert widget.ranges.algorithm.value is None
    assert widget.ranges.search_note.layout.display == ""
    assert "search" in overview(widget)["data"][1]["name"]
    reach = dict(widget.state.ranges.select("tensor", "reach").iter_rows())
    assert reach["images"] == max(map(abs, search.calibration.ranges["images"]))
    widget.assignments.pareto._on_message({"kind": "click", "data": ["searched", 1]})
    assert widget.state.kept_fp16 == ()
    assert widget.ranges.algorithm.value == "minmax"
    assert widget.ranges.search_note.layout.display == "none"
    widget.assignments.trial.value = 0
    assert widget.state.kept_fp16 == quantizable_layers.quantizable
    widget.assignments.pareto._on_message({"kind": "click", "data": ["chosen", 2]})
    assert widget.state.kept_fp16 == search.keep
    widget.assignments.pareto._on_message({"kind": "click", "data": ["evaluated", 0]})
    assert widget.state.kept_fp16 == search.keep


def test_the_first_job_calibrates_and_its_results_are_reused(
    saved: Path, model: tk.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    widget = tk.tuner(model, demo.data_path(), calibration_images=2, imgsz=SIDE, cache_dir=saved / "tuner")
    assert widget.assignments.evaluate.disabled
    assert widget.job_view.job.name in widget.assignments.evaluate.tooltip
    assert widget.wait(120)
    assert widget.job_view.job.error is None
    assert widget.state.algorithm_comparison is not None
    assert widget.state.algorithm_comparison.calibration.image_count == 2
    assert widget.state.algorithm_comparison.is_immediate("entropy")
    # The saved results are of this model.
    assert widget.state.sensitivity is not None
    assert widget.state.search is not None
    assert not widget.assignments.evaluate.disabled
    assert len(widget.figures()) == 4
    passes = []
    monkeypatch.setattr(
        "trtkit.calibration.calibrator.load_input_batches", lambda *a, **k: passes.append(1) or iter(())
    )
    again = tk.tuner(model, demo.data_path(), calibration_images=2, imgsz=SIDE, cache_dir=saved / "tuner")
    assert again.wait(120)
    assert again.job_view.job.error is None
    assert not passes


def test_a_missing_model_is_shown_as_an_error_of_the_job(tmp_path: Path) -> None:
    widget = tk.tuner(tmp_path / "missing.pt", cache_dir=tmp_path)
    assert widget.wait(60)
    assert widget.job_view.job.state == "failed"
    assert "missing.pt" in widget.job_view.error_box.value
    assert "<details>" in widget.job_view.error_box.value
    assert widget.state.algorithm_comparison is None


def test_cancel_keeps_the_state(prepared: Tuner, monkeypatch: pytest.MonkeyPatch) -> None:
    started = threading.Event()

    def run_until_cancelled(*arguments: Any, cancel: threading.Event, **settings: Any) -> None:
        started.set()
        cancel.wait(30)
        raise CancelledError("search")

    monkeypatch.setattr(tuner_module, "search", run_until_cancelled)
    before = prepared.state
    prepared.assignments.search.click()
    assert started.wait(10)
    assert prepared.assignments.search.disabled
    with pytest.raises(RecipeError) as error:
        prepared.evaluate()
    assert error.value.code == "tuner-busy"
    # Ranges and layers can be chosen while a job runs.
    prepared.ranges.algorithm.value = "mse"
    assert prepared.state.algorithm == "mse"
    prepared.job_view.cancel.click()
    assert prepared.wait(30)
    assert prepared.job_view.job.state == "cancelled"
    assert prepared.state.search is before.search is None
    assert not prepared.assignments.search.disabled


def test_a_keyboard_interrupt_cancels(prepared: Tuner, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_until_cancelled(*arguments: Any, cancel: threading.Event, **settings: Any) -> None:
        cancel.wait(30)
        raise CancelledError("search")

    monkeypatch.setattr(tuner_module, "search", run_until_cancelled)
    prepared.search()
    thread = prepared.job_view.job._thread
    assert thread is not None
    join, interrupts = thread.join, iter([KeyboardInterrupt()])

    def interrupted(timeout: float | None = None) -> None:
        for error in interrupts:
            raise error
        join(timeout)

    monkeypatch.setattr(thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepared.wait()
    assert prepared.job_view.job.state == "cancelled"
    assert not prepared.assignments.search.disabled


def test_a_search_is_saved_and_applied(prepared: Tuner, search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    received: dict[str, Any] = {}

    def call(*arguments: Any, **settings: Any) -> Search:
        received.update(settings, max_drop=arguments[2])
        return search

    monkeypatch.setattr(tuner_module, "search", call)
    prepared.assignments.max_drop.value = 0.004
    prepared.assignments.search.click()
    assert prepared.wait(30)
    assert received["max_drop"] == 0.004
    assert received["calibration"].algorithm == "minmax"
    assert prepared.state.uses_search_ranges
    assert Search.load(Path(prepared.state.cache_dir) / "search").keep == search.keep
    assert "search/calibration" in prepared.to_python()


def test_sensitivity_is_measured_and_saved(
    prepared: Tuner, layer_sensitivity: Sensitivity, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: dict[str, Any] = {}

    def call(*arguments: Any, **settings: Any) -> Sensitivity:
        received.update(settings)
        return layer_sensitivity

    monkeypatch.setattr(tuner_module, "sensitivity", call)
    prepared.choose_algorithm("mse")
    prepared.layers.probe_images.value = 3
    prepared.layers.measure.click()
    assert prepared.wait(30)
    assert received["probe_images"] == 3
    assert received["calibration"].algorithm == "mse"
    assert (Path(prepared.state.cache_dir) / "sensitivity" / "sensitivity.json").is_file()


def test_the_static_output_holds_figures_tables_and_code(prepared: Tuner) -> None:
    prepared.choose_algorithm("percentile", 99.9)
    page = prepared.static_html()
    assert page.count("Plotly.newPlot") == 3
    assert "trtkit-python" in page
    assert "percentile 99.9" in page


def test_every_control_has_a_label_and_a_tooltip(prepared: Tuner) -> None:
    controls = [w for w in _all(prepared) if isinstance(w, (ipywidgets.ValueWidget, ipywidgets.Button))]
    labeled = [w for w in controls if not isinstance(w, (ipywidgets.HTML, ipywidgets.IntProgress, ipywidgets.Output))]
    assert len(labeled) >= 10
    for control in labeled:
        assert control.description, control
        assert control.tooltip, control.description
        assert any(name.startswith("trtkit-") for name in control._dom_classes), control.description


def _all(widget: Any) -> list[Any]:
    return [widget, *(inner for child in getattr(widget, "children", ()) for inner in _all(child))]
