"""Tiny YOLO26 and YOLOv10 architectures: every branch twice, for NMS and one-to-one."""

from __future__ import annotations

from typing import Any

from fake_checkpoints import TINY, state_dict

import trtkit
from trtkit.models.checkpoint import Checkpoint
from trtkit.models.torch_model import from_checkpoint

BACKBONE = [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [16, 3, 2]], [-1, 1, "C3k2", [16, True, 0.5, True]]]
YOLO26 = {**TINY, "end2end": True, "reg_max": 1, "kpt_shape": [3, 3], "yaml_file": "yolo26n.yaml", "backbone": BACKBONE}
HEADS = {
    "detect": ["Detect", ["nc"]],
    "segment": ["Segment26", ["nc", 4, 16]],
    "pose": ["Pose26", ["nc", "kpt_shape"]],
    "obb": ["OBB26", ["nc", 1]],
}
EXTRA = {"detect": 0, "segment": 4, "pose": 9, "obb": 1}
"""Values of an object besides box, score and class."""

YOLOV10 = {**TINY, "yaml_file": "yolov10n.yaml", "head": [
    [-1, 1, "SCDown", [16, 3, 2]], [-1, 1, "C2fCIB", [16, True, True]], [-1, 1, "PSA", [16]],
    [[2, 5], 1, "v10Detect", ["nc"]],
]}  # fmt: skip


def yolo26(task: str) -> dict[str, Any]:
    name, arguments = HEADS[task]
    return {**YOLO26, "head": [[-1, 1, "Conv", [16, 3, 2]], [[2, 3], 1, name, arguments]]}


def make_model(yaml: dict[str, Any], *, end2end: bool = False) -> trtkit.Model:
    """A model with deterministic weights, at 64 pixels."""
    checkpoint = Checkpoint(
        yaml=yaml, weights=state_dict(yaml), names={0: "ant", 1: "bee", 2: "cat"}, args={"imgsz": 64}
    )
    model = from_checkpoint(checkpoint, None)
    return model.with_end2end() if end2end else model
