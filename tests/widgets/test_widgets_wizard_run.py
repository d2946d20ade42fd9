"""The wizard without anybody to press it: run() does all of it, and what a saved notebook keeps of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from wizard_steps import made, press, read_once, small_recipe

import trtkit as tk
from trtkit import demo
from trtkit.errors import CancelledError, CheckpointError
from trtkit.recipe import Recipe
from trtkit.widgets.wizard import input_steps as wizard_inputs
from trtkit.widgets.wizard.wizard import wizard


@pytest.fixture
def small(tmp_path: Path) -> Recipe:
    return small_recipe(tmp_path)


@pytest.fixture(autouse=True)
def _read_once(model: tk.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    read_once(model, monkeypatch)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_it_runs_headless_without_images_to_calibrate(precision: str, tmp_path: Path) -> None:
    output = tmp_path / "headless.onnx"
    recipe = Recipe(model=str(demo.model_path()), format="onnx", imgsz=96, half=precision == "fp16", output=str(output))
    found = wizard(recipe, data=demo.data_path())
    found.update(lambda session: session.fill(images=4))
    outcome = found.run()
    assert outcome.artifact.path == output
    assert outcome.artifact.precision == precision
    assert outcome.evaluation is not None
    assert outcome.evaluation.image_count == 4
    assert outcome.diagnosis is None
    assert not outcome.timing.frame()["engine"].any()
    assert (outcome.measured.baseline is None) == (precision == "fp32")
    assert found.session.step == "engine"


def test_it_runs_headless_to_a_tensorrt_rtx_engine_that_onnx_runtime_judges(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    recipe = Recipe(
        model=str(demo.model_path()), imgsz=96, int8=True, data=str(demo.data_path()), fraction=0.05, device="sm89",
        output=str(tmp_path / "a.engine"),
    )  # fmt: skip
    found = wizard(recipe)
    found.update(lambda session: session.fill(images=4))
    outcome = found.run()
    assert outcome.artifact.passport is not None
    assert outcome.artifact.passport.sm == "sm89"
    assert outcome.artifact.passport.recipe == recipe.to_dict()
    assert outcome.diagnosis is not None
    assert outcome.evaluation is not None
    if not outcome.measured.why_not_engine:
        pytest.skip("the engine runs here")
    assert outcome.evaluation.provenance.runner.startswith("ONNX Runtime")
    assert outcome.timing.runners["runner"].str.starts_with("ONNX Runtime").all()
    # The very graph that was built: its Q/DQ pairs come from the calibration in the passport.
    made_graph = found.session.made
    assert made_graph is not None
    from trtkit.graph.torch_export import read_trtkit_metadata

    assert read_trtkit_metadata(made_graph.graph)["calibration_hash"] == outcome.artifact.passport.calibration_hash


def test_headless_errors_go_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Recipe) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        wizard(Recipe(model="/nowhere/x.pt")).run()

    def cancelled(*arguments: Any, progress: Any, cancel: Any) -> None:
        raise CancelledError("examine")

    monkeypatch.setattr(wizard_inputs, "examine_images", cancelled)
    with pytest.raises(CancelledError):
        wizard(small).run()
    assert not list(tmp_path.iterdir())


def test_what_a_saved_notebook_keeps_is_shown_beside_it_and_renewed(
    small: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[dict[str, str], bool]] = []

    def display(bundle: dict[str, str], *, raw: bool, display_id: str, update: bool) -> None:
        shown.append((bundle, update))

    monkeypatch.setattr("IPython.display.display", display)
    found = made(small)
    assert not shown
    bundle = found._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert [update for _, update in shown] == [False]
    press(found, "model")
    press(found, "build")
    found.update(lambda session: session.fill(images=4))
    press(found, "result")
    last, update = shown[-1]
    assert update
    page = last["text/html"]
    assert "small.onnx" in page
    assert "mAP50-95" in page
    assert page.count("data-trtkit-library>") == 1
    assert page.count("<script type='application/json'>") == 2
    assert "recipe = tk.Recipe(" in page
    # Unseen while the widget lives.
    assert f".{found._still.name} {{ display: none; }}" in found._still.hidden.value
    assert f"class='{found._still.name}'" in page
