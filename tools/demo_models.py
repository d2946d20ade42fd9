"""The demo's models: architectures narrower than YOLO11-n and YOLO26-n, and their heads' outputs before decoding."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trtkit.models import heads
from trtkit.models.yolo import Yolo, build_model

__all__ = ["MODELS", "DemoModel", "RawOutputs", "build"]

CLASSES = 10
SCALE = {"t": [0.5, 0.1875, 512]}
"""Depth, width and most channels before the width: two thirds of the n models' channels, half in the deepest layers."""

PRIOR = 0.01
"""Every score at the start (Lin et al., Focal Loss, 2017, section 4.1)."""

KPT_SHAPE = [4, 3]


def _rows(neck_c3k: bool, pooling: list[Any], last: list[Any], head: list[Any]) -> dict[str, Any]:
    """Layers as in Ultralytics' model files: source, repetitions, name and arguments."""
    return {
        "backbone": [
            [-1, 1, "Conv", [64, 3, 2]],
            [-1, 1, "Conv", [128, 3, 2]],
            [-1, 2, "C3k2", [256, False, 0.25]],
            [-1, 1, "Conv", [256, 3, 2]],
            [-1, 2, "C3k2", [512, False, 0.25]],
            [-1, 1, "Conv", [512, 3, 2]],
            [-1, 2, "C3k2", [512, True]],
            [-1, 1, "Conv", [1024, 3, 2]],
            [-1, 2, "C3k2", [1024, True]],
            [-1, 1, "SPPF", pooling],
            [-1, 2, "C2PSA", [1024]],
        ],
        "head": [
            [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
            [[-1, 6], 1, "Concat", [1]],
            [-1, 2, "C3k2", [512, neck_c3k]],
            [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
            [[-1, 4], 1, "Concat", [1]],
            [-1, 2, "C3k2", [256, neck_c3k]],
            [-1, 1, "Conv", [256, 3, 2]],
            [[-1, 13], 1, "Concat", [1]],
            [-1, 2, "C3k2", [512, neck_c3k]],
            [-1, 1, "Conv", [512, 3, 2]],
            [[-1, 10], 1, "Concat", [1]],
            last,
            [[16, 19, 22], 1, *head],
        ],
    }


def _yolo11(*head: Any) -> dict[str, Any]:
    return _rows(False, [1024, 5], [-1, 2, "C3k2", [1024, True]], list(head))


def _yolo26(*head: Any) -> dict[str, Any]:
    rows = _rows(True, [1024, 5, 3, True], [-1, 1, "C3k2", [1024, True, 0.5, True]], list(head))
    return {"end2end": True, "reg_max": 1, **rows}


def _classifier() -> dict[str, Any]:
    rows = _rows(False, [], [], [])["backbone"]
    return {"backbone": [*rows[:9], rows[10]], "head": [[-1, 1, "Classify", ["nc"]]]}


@dataclasses.dataclass(frozen=True)
class DemoModel:
    """One of the models.

    Attributes:
        name: Of its file, without ending.
        task: Its task.
        imgsz: Side of its input, pixels.
        batch: Images per step of its training.
        layers: Its architecture.
    """

    name: str
    task: str
    imgsz: int
    batch: int
    layers: dict[str, Any]

    @property
    def yaml(self) -> dict[str, Any]:
        """The architecture as checkpoints hold it."""
        family, dash, ending = self.name.partition("-")
        extra = {"kpt_shape": KPT_SHAPE} if self.task == "pose" else {}
        return {
            "nc": CLASSES, **extra, "scales": SCALE, "scale": "t", "channels": 3,
            "yaml_file": f"{family}{dash}{ending}.yaml", **self.layers,
        }  # fmt: skip


MODELS = {
    model.name: model
    for model in (
        DemoModel("yolo11t", "detect", 640, 64, _yolo11("Detect", ["nc"])),
        DemoModel("yolo26t", "detect", 640, 64, _yolo26("Detect", ["nc"])),
        DemoModel("yolo11t-seg", "segment", 384, 64, _yolo11("Segment", ["nc", 32, 256])),
        DemoModel("yolo11t-pose", "pose", 320, 96, _yolo11("Pose", ["nc", "kpt_shape"])),
        DemoModel("yolo11t-obb", "obb", 320, 96, _yolo11("OBB", ["nc", 1])),
        DemoModel("yolo11t-cls", "classify", 64, 512, _classifier()),
    )
}


@dataclasses.dataclass(frozen=True, eq=False)
class RawOutputs:
    """A head's outputs before decoding.

    Attributes:
        distances: (B, 4 * bins, A).
        scores: Logits, (B, classes, A).
        extra: Mask coefficients, keypoints or the angle before decoding, (B, values, A), or None.
        prototypes: Mask prototypes, or None.
    """

    distances: Tensor
    scores: Tensor
    extra: Tensor | None
    prototypes: Tensor | None


def build(model: DemoModel, device: torch.device, seed: int) -> Yolo:
    """A model with random weights, whose head returns what its losses need while it is trained.

    In training mode the head returns a list of `RawOutputs`: of the one-to-many branches and, if it has them, of the
    one-to-one branches, whose gradients end at the head (Wang et al., YOLOv10, 2024, section 3.1); a classifier returns
    logits.
    """
    torch.manual_seed(seed)
    yolo = build_model(model.yaml).to_empty(device="cpu")
    for module in yolo.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.03
    head = yolo.head
    if isinstance(head, heads.Detect):
        _start_head(head)
        head.forward = types.MethodType(_forward_detector, head)  # type: ignore[method-assign]
    elif isinstance(head, heads.Classify):
        head.forward = types.MethodType(_forward_classifier, head)  # type: ignore[method-assign]
    return yolo.to(device)


def _start_head(head: heads.Detect) -> None:
    """Set what does not start at random: the distances' values, and the biases of scores and distances."""
    if head.dfl is not None:
        head.dfl.conv.weight.data.copy_(torch.arange(head.bins, dtype=torch.float32).reshape(1, -1, 1, 1))
        head.dfl.conv.weight.requires_grad_(False)
    for prefix in ("", "one2one_"):
        for name, bias in (("cv2", 1.0 if head.bins > 1 else 2.0), ("cv3", math.log(PRIOR / (1 - PRIOR)))):
            for branch in getattr(head, prefix + name, None) or ():
                branch[-1].bias.data.fill_(bias)


def _forward_detector(head: heads.Detect, x: Sequence[Tensor]) -> Any:
    if not head.training:
        return type(head).forward(head, x)
    outputs = [_raw(head, x)]
    if head.has_branches(end2end=True):
        head.end2end = True
        outputs.append(_raw(head, [level.detach() for level in x]))
        head.end2end = False
    return outputs


def _forward_classifier(head: heads.Classify, x: Tensor) -> Tensor:
    if not head.training:
        return type(head).forward(head, x)
    return head.linear(head.pool(head.conv(x)).flatten(1))  # type: ignore[no-any-return]


def _raw(head: heads.Detect, x: Sequence[Tensor]) -> RawOutputs:
    extra = prototypes = None
    if isinstance(head, heads.Segment):
        extra, prototypes = head.concat_branches(head.branch("cv4"), x, head.masks), head.prototypes(x)
    elif isinstance(head, heads.Pose):
        extra = head.raw_keypoints(x)
    elif isinstance(head, heads.OBB):
        extra = head.concat_branches(head.branch("cv4"), x, head.angles)
    distances = head.concat_branches(head.branch("cv2"), x, 4 * head.bins)
    return RawOutputs(distances, head.concat_branches(head.branch("cv3"), x, head.nc), extra, prototypes)
