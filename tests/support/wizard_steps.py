"""The wizard, pressed as a user would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import trtkit as tk
from trtkit import demo
from trtkit.recipe import Recipe
from trtkit.widgets.wizard import input_steps as wizard_inputs
from trtkit.widgets.wizard.wizard import Wizard, wizard


def small_recipe(folder: Path) -> Recipe:
    """An INT8 ONNX file of small images, calibrated on three."""
    return Recipe(
        model=str(demo.model_path()), format="onnx", imgsz=96, int8=True, data=str(demo.data_path()), fraction=0.05,
        output=str(folder / "small.onnx"),
    )  # fmt: skip


def read_once(model: tk.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the embedded model takes longer than all else here; it is read once for all tests."""
    real = wizard_inputs.read_model

    def read(path: str, **watch: Any) -> tk.Model:
        return model if path == str(demo.model_path()) else real(path, **watch)

    monkeypatch.setattr(wizard_inputs, "read_model", read)


def made(recipe: Recipe | None = None, **settings: Any) -> Wizard:
    """A wizard that has looked at this machine."""
    found = wizard(recipe, **settings)
    found.ready()
    return found


def press(found: Wizard, step: str) -> Any:
    """Press a page's own button and wait for its job."""
    found.go(step)
    page: Any = found.page(step)
    assert not page.act.disabled
    page.act.click()
    page.view.job.wait()
    return page


def with_model(recipe: Recipe | None = None) -> Wizard:
    """A wizard that has read its model."""
    found = made(recipe)
    press(found, "model")
    assert not found.fault.value
    return found
