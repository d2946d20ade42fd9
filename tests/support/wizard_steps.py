"""Drives the wizard as a user does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import trtkit as tk
from trtkit import demo
from trtkit.recipe import Recipe
from trtkit.widgets.wizard import input_steps
from trtkit.widgets.wizard.wizard import Wizard, wizard


def small_recipe(folder: Path) -> Recipe:
    """An INT8 ONNX file of 96 x 96 pixels, calibrated on three images."""
    return Recipe(
        model=str(demo.model_path()), format="onnx", imgsz=96, int8=True, data=str(demo.data_path()), fraction=0.05,
        output=str(folder / "small.onnx"),
    )  # fmt: skip


def read_once(model: tk.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the wizard take the embedded model from `model`: reading it is the slowest step of these tests."""
    real = input_steps.read_model

    def read(path: str, **watch: Any) -> tk.Model:
        return model if path == str(demo.model_path()) else real(path, **watch)

    monkeypatch.setattr(input_steps, "read_model", read)


def ready_wizard(recipe: Recipe | None = None, **settings: Any) -> Wizard:
    """A wizard that has inspected this machine."""
    widget = wizard(recipe, **settings)
    widget.ready()
    return widget


def press(widget: Wizard, step: str) -> Any:
    """Press the main button of a step, wait for its job and return the step."""
    widget.go(step)
    page: Any = widget.page(step)
    assert not page.main_button.disabled
    page.main_button.click()
    page.view.job.wait()
    return page


def with_model(recipe: Recipe | None = None) -> Wizard:
    """A wizard that has read its model."""
    widget = ready_wizard(recipe)
    press(widget, "model")
    assert not widget.error_box.value
    return widget
