"""Two tiny untrained models as ONNX files, and their data sets."""

from __future__ import annotations

import dataclasses

import pytest
from task_models import drawn_set, untrained

import trtkit


@dataclasses.dataclass(frozen=True)
class Kit:
    """Models and data.

    Attributes:
        models: Detect and classify.
        data: By task.
    """

    models: list[str]
    data: dict[str, str]


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    folder = tmp_path_factory.mktemp("zoo-kit")
    models = []
    for task in ("detect", "classify"):
        path = folder / f"tiny-{task}.onnx"
        trtkit.export(untrained(task), format="onnx", output=path)
        models.append(str(path))
    data = {task: str(drawn_set(folder / task, task, count=4)) for task in ("detect", "classify")}
    return Kit(models, data)
