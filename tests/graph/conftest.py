from __future__ import annotations

import numpy as np
import onnx
import pytest
from detector_graph import detector


@pytest.fixture
def proto() -> onnx.ModelProto:
    return detector()


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).random((2, 3, 32, 32), np.float32)
