"""Small checkpoints and archives as Ultralytics, and as an attacker, would save them."""

from __future__ import annotations

import io
import pickle
import sys
import types
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from deterministic_weights import deterministic_weights
from torch import nn

from trtkit.models.yolo import build_model

TINY = {
    "nc": 3,
    "scales": {"n": [1.0, 1.0, 64]},
    "scale": "n",
    "channels": 3,
    "yaml_file": "yolov8n.yaml",
    "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [16, 3, 2]], [-1, 1, "C2f", [16, True]]],
    "head": [[-1, 1, "Conv", [16, 3, 2]], [[2, 3], 1, "Detect", ["nc"]]],
}
TASK_HEADS = {
    "detect": ["Detect", ["nc"]],
    "segment": ["Segment", ["nc", 4, 16]],
    "pose": ["Pose", ["nc", "kpt_shape"]],
    "obb": ["OBB", ["nc", 1]],
    "classify": ["Classify", ["nc"]],
}
CONVOLUTIONS = ("Conv", "DWConv", "Concat")
"""Layers that Ultralytics has in its module `conv`; its other layers are in `block`."""


def state_dict(yaml: Mapping[str, Any] = TINY) -> dict[str, torch.Tensor]:
    shapes = {name: tuple(value.shape) for name, value in build_model(yaml).state_dict().items()}
    return {name: torch.from_numpy(value) for name, value in deterministic_weights(shapes).items()}


def ultralytics_like(yaml: Mapping[str, Any] = TINY, half: bool = True, **attributes: Any) -> nn.Module:
    """A module tree with class names of Ultralytics and the attributes of a `DetectionModel`.

    The classes are in fake modules: `fake_ultralytics` makes them.
    """
    model = build_model(yaml)
    model.load_state_dict(state_dict(yaml), assign=True)
    root = rename_classes(model)
    root.half() if half else root.float()
    vars(root).update(
        {"yaml": dict(yaml), "names": {0: "ant", 1: "bee", 2: "cat"}, "stride": torch.tensor([4.0, 8.0]), **attributes}
    )
    return root


def write_checkpoint(path: Path, task: str, names: Mapping[int, str], imgsz: int, points: int = 3) -> Path:
    """A checkpoint of a task as Ultralytics saves it, with a network of a few layers, within `fake_ultralytics`."""
    name, arguments = TASK_HEADS[task]
    head = [[-1, 1, name, arguments]] if task == "classify" else [TINY["head"][0], [[2, 3], 1, name, arguments]]
    yaml = {**TINY, "nc": len(names), "kpt_shape": [points, 3], "head": head}
    model = ultralytics_like(yaml, names=dict(names), **({"stride": torch.ones(1)} if task == "classify" else {}))
    torch.save({"model": model, "ema": None, "version": "8.4.190", "train_args": {"task": task, "imgsz": imgsz}}, path)
    return path


def rename_classes(module: nn.Module) -> nn.Module:
    kind = type(module)
    if kind in (nn.Sequential, nn.ModuleList):
        return kind(map(rename_classes, module)) if kind is nn.ModuleList else kind(*map(rename_classes, module))
    if not kind.__module__.startswith("trtkit."):
        return module
    name = "DetectionModel" if kind.__name__ == "Yolo" else kind.__name__
    part = "conv" if name in CONVOLUTIONS else "head" if kind.__module__.endswith(".heads") else "block"
    package = "ultralytics.nn.tasks" if name == "DetectionModel" else f"ultralytics.nn.modules.{part}"
    copied = fake_class(package, name)()
    for key, child in module.named_children():
        copied.add_module(key, rename_classes(child))
    for key, value in module.named_parameters(recurse=False):
        copied.register_parameter(key, value)
    return copied


def fake_class(module: str, name: str, base: type = nn.Module) -> type:
    container = sys.modules[module]
    if not hasattr(container, name):
        setattr(container, name, type(name, (base,), {"__module__": module}))
    return getattr(container, name)


def fake_modules(monkeypatch: Any, *names: str) -> None:
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))


def fake_ultralytics(monkeypatch: Any) -> None:
    """Empty modules with Ultralytics' names, so that fake classes in them can be pickled."""
    parts = (
        "",
        ".nn",
        ".nn.tasks",
        ".utils",
        ".nn.modules",
        *(f".nn.modules.{part}" for part in ("conv", "block", "head")),
    )
    fake_modules(monkeypatch, *(f"ultralytics{part}" for part in parts))


def write_archive(path: Path, program: bytes, storages: Mapping[str, bytes] | None = None, **options: Any) -> Path:
    """A zip archive like that of `torch.save`, with any pickle."""
    with zipfile.ZipFile(path, "w", options.get("compression", zipfile.ZIP_STORED)) as file:
        file.writestr("best/data.pkl", program)
        file.writestr("best/byteorder", options.get("byteorder", sys.byteorder))
        for key, data in (storages or {}).items():
            file.writestr(f"best/data/{key}", data)
    return path


def read_members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def make_call(module: str, name: str, *arguments: Any) -> bytes:
    """A pickle that calls `module.name(*arguments)`."""
    inner = b"".join(pickle.dumps(value, 2)[2:-1] for value in arguments)
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(" + inner + b"tR."


def save_to_bytes(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def rewrite_archive(path: Path, target: Path, change: Callable[[dict[str, bytes]], dict[str, bytes]]) -> Path:
    """A copy of an archive with changed members."""
    with zipfile.ZipFile(target, "w") as file:
        for name, data in change(read_members(path)).items():
            file.writestr(name, data)
    return target
