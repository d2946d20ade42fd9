"""Wizard.run, and the static output that a saved notebook keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from wizard_steps import press, read_once, ready_wizard, small_recipe

import trtkit as tk
from trtkit import demo
from trtkit.errors import CancelledError, CheckpointError
from trtkit.recipe import Recipe
from trtkit.widgets.wizard import input_steps
from trtkit.widgets.wizard.wizard import wizard


@pytest.fixture
def small(tmp_path: Path) -> Recipe:
    return small_recipe(tmp_path)


@pytest.fixture(autouse=True)
def _read_once(model: tk.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    read_once(model, monkeypatch)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_run_without_calibration(precision: str, tmp_path: Path) -> None:
    output = tmp_path / "headless.onnx"
    recipe = Recipe(model=str(demo.model_path()), format="onnx", imgsz=96, half=precision == "fp16", output=str(output))
    widget = wizard(recipe, data=demo.data_path())
    widget.update(lambda state: state.fill(eval_images=4))
    result = widget.run()
    assert result.artifact.path == output
    assert result.artifact.precision == precision
    assert result.comparison is not None
    assert result.comparison.evaluation(precision).per_image.height == 4
    assert result.diagnosis is None
    assert not result.timing.frame()["engine"].any()
    assert result.comparison.about["reference"] == "fp32"
    assert result.comparison.frame()["precision"].to_list() == list(dict.fromkeys(("fp32", precision)))
    assert widget.state.step == "engine"


def test_run_builds_a_tensorrt_rtx_engine_and_evaluates_its_graph(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    recipe = Recipe(
        model=str(demo.model_path()), imgsz=96, int8=True, data=str(demo.data_path()), fraction=0.05, device="sm89",
        output=str(tmp_path / "a.engine"),
    )  # fmt: skip
    widget = wizard(recipe)
    widget.update(lambda state: state.fill(eval_images=4))
    result = widget.run()
    assert result.artifact.passport is not None
    assert result.artifact.passport.sm == "sm89"
    assert result.artifact.passport.recipe == recipe.to_dict()
    assert result.diagnosis is not None
    assert result.comparison is not None
    if result.comparison.frame()["engine"].any():
        pytest.skip("the engine runs here")
    assert result.comparison.about["why_not_run"]
    assert result.comparison.frame()["engine_mb"].null_count() == 1  # FP32 was not built
    assert result.timing.runners["runner"].str.starts_with("ONNX Runtime").all()
    # The evaluated graph is the built one: its Q/DQ come from the calibration in the passport.
    built = widget.state.built
    assert built is not None
    from trtkit.graph.onnx_file import read_trtkit_metadata

    assert read_trtkit_metadata(built.graph)["calibration_hash"] == result.artifact.passport.calibration_hash


def test_errors_of_a_step_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Recipe) -> None:
    with pytest.raises(CheckpointError) as e:
        wizard(Recipe(model="/nowhere/x.pt")).run()
    assert "/nowhere/x.pt" in str(e.value)

    def cancelled(*arguments: Any, progress: Any, cancel: Any) -> None:
        raise CancelledError("examine")

    monkeypatch.setattr(input_steps, "examine_images", cancelled)
    with pytest.raises(CancelledError):
        wizard(small).run()
    assert not list(tmp_path.iterdir())


def test_the_static_output_is_displayed_and_refreshed(small: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    displayed: list[tuple[str, bool]] = []

    def display(bundle: dict[str, str], *, raw: bool, display_id: str = "", update: bool = False) -> None:
        if display_id:
            displayed.append((bundle["text/html"], update))

    monkeypatch.setattr("IPython.display.display", display)
    widget = ready_wizard(small)
    assert not displayed
    bundle = widget._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert [update for _, update in displayed] == [False]
    press(widget, "model")
    press(widget, "build")
    widget.update(lambda state: state.fill(eval_images=4))
    press(widget, "result")
    page, update = displayed[-1]
    assert update
    assert "small.onnx" in page
    assert "mAP50-95" in page
    assert page.count("application/json") == 1
    assert "recipe = tk.Recipe(" in page
