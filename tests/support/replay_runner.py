"""A runner that returns stored detections, to test evaluation without a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trtkit.backends.runner import Runner
from trtkit.models.model import NMS_ROWS, ModelInfo

ROWS = 300


class ReplayRunner(Runner):
    """Returns rows in the order of the images, as a graph with NMS does.

    Args:
        detections: Of each image, x1, y1, x2, y2 (input pixels), score, class; shape (n, 6).
        names: Class names.
        batch: The largest batch.
    """

    name = "stored detections"
    engine = False
    precision = "fp32"
    dynamic = False
    passport = None
    hash = "0" * 64
    path: Path | None = None

    def __init__(self, detections: Sequence[np.ndarray], names: dict[int, str], batch: int | None = 1) -> None:
        self.info = ModelInfo(task="detect", names=names, output_format=NMS_ROWS)
        self.imgsz = (640, 640)
        self.batch = batch
        self.waiting = list(detections)
        self.batches: list[int] = []

    def infer(self, feeds):
        self.batches.append(len(feeds))
        output = np.zeros((len(feeds), ROWS, 6), np.float32)
        for row in output:
            found = self.waiting.pop(0)
            row[: len(found)] = found
        return {"output0": output}

    def close(self) -> None:
        self.waiting.clear()
