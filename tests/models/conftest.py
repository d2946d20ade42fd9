from __future__ import annotations

from pathlib import Path
from typing import Any

import fake_checkpoints
import pytest
from fake_checkpoints import ultralytics_like


@pytest.fixture
def fake_ultralytics(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of `fake_checkpoints`."""
    fake_checkpoints.fake_ultralytics(monkeypatch)


@pytest.fixture
def content(fake_ultralytics: None) -> dict[str, Any]:
    """The content of an Ultralytics checkpoint with a tiny detector."""
    return {
        "date": "2026-01-02",
        "version": "8.4.190",
        "license": "AGPL-3.0",
        "docs": "https://docs.ultralytics.com",
        "epoch": -1,
        "ema": None,
        "model": ultralytics_like(),
        "train_args": {"task": "detect", "imgsz": 96, "optimizer": "auto"},
        "train_metrics": {"fitness": 0.5},
    }


@pytest.fixture
def checkpoint(content: dict[str, Any], tmp_path: Path) -> Path:
    import torch

    path = tmp_path / "best.pt"
    torch.save(content, path)
    return path
