from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from drawn import detector


@pytest.fixture
def proto() -> onnx.ModelProto:
    return detector()


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(1).random((2, 3, 32, 32), np.float32)
