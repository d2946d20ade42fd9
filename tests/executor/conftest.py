from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from detector_graph import detector

import trtkit as tk

if TYPE_CHECKING:
    from distributed import Client

    from trtkit.calibration import Calibration


@pytest.fixture(scope="session")
def executor() -> Iterator[Client]:
    """Two worker processes."""
    pytest.importorskip("distributed")
    from dask_cluster import two_workers

    with two_workers() as client:
        yield client


@pytest.fixture(scope="module")
def model() -> tk.Model:
    return tk.load(detector(), task="detect", names=["a", "b", "c"], imgsz=32)


@pytest.fixture(scope="module")
def calibration(model: tk.Model, data: Path) -> Calibration:
    """On the images of the module's own `data`."""
    return tk.calibrate(model, data, algorithm="minmax", histograms=True, device="cpu")
