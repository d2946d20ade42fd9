from __future__ import annotations

from pathlib import Path

import pytest

import trtkit as tk
from trtkit import demo
from trtkit.calibration import Calibration

SIDE = 96


@pytest.fixture(scope="session")
def model() -> tk.Model:
    return tk.load(demo.model_path())


@pytest.fixture(scope="session")
def calibration(model: tk.Model) -> Calibration:
    return tk.calibrate(
        model, demo.data_path(), calibration_images=8, imgsz=SIDE, algorithm="minmax", histograms=True, device="cpu"
    )


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"
