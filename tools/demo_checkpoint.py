"""Checkpoints in the form that Ultralytics' loader and trtkit read, written without Ultralytics.

A checkpoint is a pickle of a dictionary with the module itself, so it holds the names of Ultralytics' classes and of
their attributes, which belong to the file format. The classes here are empty stand-ins of those names.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from demo_models import DemoModel
from torch import nn

from trtkit.models import heads, layers
from trtkit.models.yolo import Yolo

__all__ = ["save_checkpoint"]

MODULES = {"Conv": "conv", "DWConv": "conv", "Concat": "conv", "Proto": "block", "DFL": "block"}
"""Where in `ultralytics.nn.modules` a class is; others of `trtkit.models.heads` are in `head`, the rest in `block`."""

ROOTS = {
    "detect": "DetectionModel", "segment": "SegmentationModel", "pose": "PoseModel", "obb": "OBBModel",
    "classify": "ClassificationModel",
}  # fmt: skip
FORMAT_VERSION = "8.3.0"
"""The oldest Ultralytics that has every class in these files."""


def save_checkpoint(path: Path, model: DemoModel, yolo: Yolo, notes: dict[str, str]) -> None:
    """Write a checkpoint in half precision.

    Args:
        path: The `.pt` file; it appears whole or not at all.
        model: What the module is.
        yolo: The trained module; it is not changed.
        notes: Further entries, such as the date.
    """
    with _stand_ins():
        root = _convert_root(model, yolo)
        content = {
            "epoch": -1, "model": _pack(root.half()), "ema": None, "train_args": _arguments(model),
            "version": FORMAT_VERSION, "license": "Apache-2.0", **notes,
        }  # fmt: skip
        part = path.with_suffix(".part")
        torch.save(content, part)
    part.replace(path)


def _pack(root: nn.Module) -> nn.Module:
    """Move all weights of half precision into one storage: the archive has a header of 300 bytes for each storage."""
    slots = [
        (group, name)
        for module in root.modules()
        for group in (module._parameters, module._buffers)
        for name, value in group.items()
        if value is not None and value.dtype == torch.float16
    ]
    whole = torch.cat([group[name].detach().flatten() for group, name in slots])  # type: ignore[union-attr]
    start = 0
    for group, name in slots:
        value = group[name]
        assert value is not None
        part = whole[start : start + value.numel()].view(value.shape)
        start += value.numel()
        group[name] = nn.Parameter(part, requires_grad=False) if isinstance(value, nn.Parameter) else part
    return root


def _arguments(model: DemoModel) -> dict[str, Any]:
    return {"task": model.task, "mode": "train", "imgsz": model.imgsz, "model": f"{model.name}.yaml"}


def _convert_root(model: DemoModel, yolo: Yolo) -> nn.Module:
    """The whole model as a module of stand-ins."""
    root = _make("ultralytics.nn.tasks", ROOTS[model.task])
    root.model = nn.Sequential()
    for index, (layer, source) in enumerate(zip(yolo.model, yolo.sources, strict=True)):
        converted = _convert(layer)
        kind = type(converted)
        vars(converted).update(
            i=index,
            f=source[0] if len(source) == 1 else list(source),
            type=f"{kind.__module__}.{kind.__name__}",
            np=sum(parameter.numel() for parameter in layer.parameters()),
        )
        root.model.add_module(str(index), converted)
    yaml = copy.deepcopy(model.yaml)
    strides = torch.tensor([float(stride) for stride in yolo.strides])
    vars(root).update(
        yaml=yaml,
        save=sorted(yolo.saved_layers),
        names={number: str(number) for number in range(yaml["nc"])},
        inplace=True,
        stride=strides,
        nc=yaml["nc"],
        task=model.task,
        args=_arguments(model),
    )
    if model.task == "pose":
        root.kpt_shape = yaml["kpt_shape"]
    return root.eval().requires_grad_(False)


def _convert(module: nn.Module) -> nn.Module:
    """A copy of a module in which the classes of trtkit are stand-ins."""
    kind = type(module)
    if kind.__module__.startswith("torch."):
        copied = copy.copy(module)
        copied._modules = {name: _convert(child) for name, child in module.named_children()}
        copied._parameters = {name: _detach(value) for name, value in module._parameters.items()}
        copied._buffers = {name: value.detach().cpu().clone() for name, value in module._buffers.items()}
        return copied
    default = "head" if kind.__module__.endswith("heads") else "block"
    copied = _make(f"ultralytics.nn.modules.{MODULES.get(kind.__name__, default)}", kind.__name__)
    for name, child in module.named_children():
        copied.add_module(name, _convert(child))
    vars(copied).update(_attributes(module))
    if isinstance(module, heads.Detect) and module.dfl is None:
        copied.dfl = nn.Identity()
    if isinstance(module, heads.Classify):
        copied.drop = nn.Dropout(0.0, inplace=True)
    return copied


def _detach(value: nn.Parameter | None) -> nn.Parameter | None:
    return None if value is None else nn.Parameter(value.detach().cpu().clone(), requires_grad=False)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What the format has besides weights in a module of this class."""
    if isinstance(module, layers.Concat):
        return {"d": module.dimension}
    if isinstance(module, (layers.Bottleneck, layers.PSABlock)):
        return {"add": module.add}
    if isinstance(module, (layers.C2f, layers.C2PSA)):
        return {"c": module.c}
    if isinstance(module, layers.SPPF):
        return {"n": module.n, "add": module.add}
    if isinstance(module, layers.Attention):
        names = ("head_dim", "key_dim", "scale")
        return {"num_heads": module.heads, **{name: getattr(module, name) for name in names}}
    if isinstance(module, heads.DFL):
        return {"c1": module.bins}
    return _head_attributes(module) if isinstance(module, heads.Detect) else {}


def _head_attributes(head: heads.Detect) -> dict[str, Any]:
    values = {
        "nc": head.nc, "nl": len(head.strides), "reg_max": head.bins, "no": head.nc + 4 * head.bins,
        "stride": torch.tensor([float(stride) for stride in head.strides]), "inplace": True, "max_det": head.max_det,
        "anchors": torch.empty(0), "strides": torch.empty(0), "shape": None,
    }  # fmt: skip
    if isinstance(head, heads.Segment):
        values.update(nm=head.masks, npr=head.proto.cv1.conv.out_channels)  # type: ignore[union-attr]
    elif isinstance(head, heads.Pose):
        values.update(kpt_shape=[head.points, head.values], nk=head.points * head.values)
    elif isinstance(head, heads.OBB):
        values.update(ne=head.angles)
    return values


def _make(module: str, name: str) -> nn.Module:
    """An instance of the stand-in of that name."""
    container = sys.modules[module]
    if not hasattr(container, name):
        setattr(container, name, type(name, (nn.Module,), {"__module__": module}))
    made: nn.Module = getattr(container, name)()
    return made


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    """Modules of Ultralytics' names, to which the pickle's classes belong, in place of those that may be loaded."""
    names = ["ultralytics", "ultralytics.nn", "ultralytics.nn.tasks", "ultralytics.nn.modules"]
    names += [f"ultralytics.nn.modules.{part}" for part in ("block", "conv", "head")]
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update({name: types.ModuleType(name) for name in names})
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
