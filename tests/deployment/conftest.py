"""Exported models of every task, static and dynamic, and images for them, which the tests of this folder share."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from task_models import untrained

import trtkit as tk
from trtkit.models.model import TASKS

SIZE = 64
CASES = [(task, dynamic) for task in TASKS for dynamic in (False, True)]


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, random = tmp_path_factory.mktemp("samples"), np.random.default_rng(0)
    paths = []
    for number, shape in enumerate(((80, 100), (70, 64), (120, 90))):
        image = cv2.GaussianBlur(random.integers(0, 256, (*shape, 3), np.uint8), (0, 0), 3)
        cv2.imwrite(str(folder / f"{number}.jpg"), cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX))
        paths.append(folder / f"{number}.jpg")
    return paths


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Path]:
    folder = tmp_path_factory.mktemp("files")
    found = {}
    for task, dynamic in CASES:
        path = folder / f"{task}{'-dynamic' if dynamic else ''}.onnx"
        tk.export(untrained(task, SIZE), "onnx", dynamic=dynamic, simplify=False, batch=2, output=path)
        found[task, dynamic] = path
    return found
