"""Scenes of a fifth of the usual size, which are drawn 25 times as fast, and models of a quarter of the channels."""

import demo_models
import pytest
import scene_renderer
import scenes

FULL_SCALE = list(demo_models.SCALE["t"])


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for module in (scenes, scene_renderer):
        monkeypatch.setattr(module, "SIDES", (96, 160))
    monkeypatch.setitem(demo_models.SCALE, "t", [0.5, 0.05, 256])


@pytest.fixture
def full_models(small, monkeypatch):
    monkeypatch.setitem(demo_models.SCALE, "t", FULL_SCALE)
