"""Two tiny untrained models as ONNX files with their data sets, and small settings, for tests of zoo()."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from task_models import drawn_set, untrained

import trtkit

SMALL = {"precisions": ("fp32", "int8"), "calibration_images": 2, "resamples": 20, "backends": "onnxruntime"}


@dataclasses.dataclass(frozen=True)
class Kit:
    """Models and data.

    Attributes:
        models: Detect and classify.
        data: By task.
    """

    models: list[str]
    data: dict[str, str]


def make_kit(folder: Path) -> Kit:
    models = []
    for task in ("detect", "classify"):
        path = folder / f"tiny-{task}.onnx"
        trtkit.export(untrained(task), format="onnx", output=path)
        models.append(str(path))
    return Kit(models, {task: str(drawn_set(folder / task, task, count=4)) for task in ("detect", "classify")})
