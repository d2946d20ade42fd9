"""Ultralytics' `.pt` files, read without Ultralytics and without running anything in them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from trtkit.errors import CheckpointError
from trtkit.models.unpickler import Record, SafeOrderedDict, TensorReader, TensorRecord, read_legacy, read_zip

__all__ = ["Checkpoint", "read_checkpoint"]

DEPTH_LIMIT = 32
MODULE_LIMIT = 100_000
NAME_LIMIT = 512
VECTOR_LIMIT = 16
FOREIGN_SIGNATURES = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
    b"<!DOCTYPE": "a web page",
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"\x89HDF": "an HDF5 file",
    b"ftrtLE": "a TensorRT engine",
    b"\x1f\x8b": "a gzip archive",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a YOLO checkpoint holds, as plain values and tensors.

    Attributes:
        yaml: The architecture, as Ultralytics' model files write it.
        weights: Parameters and buffers by name ("model.0.conv.weight"), in the file's own types.
        layers: The class name of each layer of the model, by position.
        activations: The class name of each activation, by the name of its module ("model.0.act").
        epsilons: What each BatchNorm adds to the variance, by the name of its module ("model.0.bn").
        names: Class names as the file keeps them: a dictionary, a list or None.
        stride: Strides of the head's feature maps, pixels; empty where the file does not say.
        args: Training settings.
        notes: The file's own remarks: date, version, license, docs.
        transforms: Mean and standard deviation of a classifier's input, or None where it keeps none.
    """

    yaml: Mapping[str, Any]
    weights: Mapping[str, torch.Tensor]
    layers: tuple[str, ...] = ()
    activations: Mapping[str, str] = dataclasses.field(default_factory=dict)
    epsilons: Mapping[str, float] = dataclasses.field(default_factory=dict)
    names: Any = None
    stride: tuple[float, ...] = ()
    args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    transforms: Mapping[str, Any] | None = None


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a YOLOv8 or YOLO11 checkpoint; the EMA weights are taken where the file has both.

    Args:
        path: A `.pt` file, of today's zip format or of the one before torch 1.6.

    Raises:
        UnsafeCheckpointError: The pickle asks for more than tensors and model records.
        CheckpointError: The file is missing, empty, cut short or holds something else.
    """
    path = Path(path)
    asked = f"load {path}"
    if not path.exists():
        raise CheckpointError(asked, "the file does not exist", "check the path")
    if path.is_dir():
        raise CheckpointError(asked, "it is a folder", "name the .pt file in it")
    if path.stat().st_size == 0:
        raise CheckpointError(asked, "the file is empty", "copy or download it again")
    with path.open("rb") as file:
        start = file.read(64)
        file.seek(0)
        if start.startswith(b"PK"):
            root, fetch = read_zip(file, asked)
        elif start.startswith(b"\x80"):
            root, fetch = read_legacy(file, asked)
        else:
            kind = next(
                (kind for mark, kind in FOREIGN_SIGNATURES.items() if start.startswith(mark)), "no PyTorch file"
            )
            raise CheckpointError(asked, f"it is {kind}", "name a checkpoint that Ultralytics wrote")
        return _build_checkpoint(root, fetch, path.stat().st_size, asked)


def _build_checkpoint(root: Any, fetch: TensorReader, size: int, asked: str) -> Checkpoint:
    """The checkpoint that a pickle's content is."""
    notes = root if isinstance(root, dict) else {}
    model = next((value for value in (notes.get("ema"), notes.get("model"), root) if isinstance(value, Record)), None)
    if model is None:
        raise CheckpointError(
            asked, f"it holds {_describe(root)}, not a YOLO model", "name a checkpoint that Ultralytics wrote"
        )
    state = model.attributes
    if not model.qualified_name.startswith("ultralytics.") or not isinstance(state.get("yaml"), dict):
        raise CheckpointError(
            asked, f"its model is a {model.qualified_name}", "name a YOLOv8 or YOLO11 checkpoint of Ultralytics"
        )
    weights: dict[str, TensorRecord] = {}
    activations: dict[str, str] = {}
    epsilons: dict[str, float] = {}
    for name, module in _walk_modules(model, asked):
        inside = module.attributes
        for group in ("_parameters", "_buffers"):
            for key, value in _as_dict(inside.get(group)).items():
                if isinstance(value, TensorRecord):
                    weights[f"{name}.{key}"] = value
        if name.endswith(".act"):
            activations[name] = module.kind
        if isinstance(inside.get("eps"), float):
            epsilons[name] = inside["eps"]
    # Tensors may share bytes, so that a small file could ask for any amount of memory.
    if sum(math.prod(record.size) for record in weights.values()) > size:
        raise CheckpointError(asked, "its tensors claim more elements than the file has bytes", "download it again")
    modules = _children(_children(model).get("model"))
    stride = state.get("stride")
    return Checkpoint(
        yaml=_to_plain(state["yaml"], asked),
        weights={name: fetch(record) for name, record in weights.items()},
        layers=tuple(layer.kind for layer in modules.values() if isinstance(layer, Record)),
        activations=activations,
        epsilons=epsilons,
        names=_to_plain(state.get("names"), asked),
        stride=_read_vector(stride, fetch),
        args=_read_settings(notes.get("train_args"), asked) or _read_settings(state.get("args"), asked),
        notes={key: notes[key] for key in ("date", "version", "license", "docs") if isinstance(notes.get(key), str)},
        transforms=_read_normalization(state.get("transforms"), fetch, asked),
    )


def _walk_modules(model: Record, asked: str) -> Iterator[tuple[str, Record]]:
    """A model record's modules and theirs, with their names."""
    pending = [("", model)]
    for _ in range(MODULE_LIMIT):
        if not pending:
            return
        name, module = pending.pop()
        yield name, module
        if name.count(".") > DEPTH_LIMIT or len(name) > NAME_LIMIT:
            break
        prefix = f"{name}." if name else ""
        children = _children(module).items()
        pending += [(f"{prefix}{key}", child) for key, child in children if isinstance(child, Record)]
    raise CheckpointError(asked, "its modules are nested without end", "use a checkpoint from a source you trust")


def _children(module: Any) -> dict[Any, Any]:
    return _as_dict(module.attributes.get("_modules")) if isinstance(module, Record) else {}


def _as_dict(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _read_settings(value: Any, asked: str) -> dict[str, Any]:
    """Training settings, which files keep as a dictionary or as a namespace."""
    value = value.attributes if isinstance(value, Record) else value
    return {str(key): _to_plain(item, asked) for key, item in _as_dict(value).items()}


def _to_plain(value: Any, asked: str) -> Any:
    """`value` with dictionaries, lists and scalars only; records become their names.

    Raises:
        CheckpointError: It holds itself, or so many copies of its parts that it would never end.
    """
    budget = MODULE_LIMIT

    def plain(value: Any, depth: int) -> Any:
        nonlocal budget
        budget -= 1
        if budget < 0 or depth > DEPTH_LIMIT:
            raise CheckpointError(
                asked, "its settings are nested without end", "use a checkpoint from a source you trust"
            )
        if isinstance(value, dict):
            return {key: plain(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item, depth + 1) for item in value]
        return value.qualified_name if isinstance(value, Record) else value

    return plain(value, 0)


def _read_normalization(transforms: Any, fetch: TensorReader, asked: str) -> dict[str, list[float]] | None:
    """Mean and standard deviation kept in a classifier's torchvision transforms."""
    steps = transforms.attributes.get("transforms") if isinstance(transforms, Record) else None
    for step in steps if isinstance(steps, list) else []:
        if isinstance(step, Record) and step.kind == "Normalize":
            found = {key: step.attributes.get(key) for key in ("mean", "std")}
            return {
                key: list(_read_vector(value, fetch)) if isinstance(value, TensorRecord) else _to_plain(value, asked)
                for key, value in found.items()
            }
    return None


def _read_vector(value: Any, fetch: TensorReader) -> tuple[float, ...]:
    """The elements of a short vector; none where it is something else."""
    if not isinstance(value, TensorRecord) or len(value.size) != 1 or value.size[0] > VECTOR_LIMIT:
        return ()
    return tuple(float(number) for number in fetch(value))


def _describe(root: Any) -> str:
    """What a pickle holds, in words."""
    if isinstance(root, (dict, SafeOrderedDict)) and root:
        values = list(root.values())
        if all(isinstance(value, TensorRecord) for value in values):
            return f"a state_dict of {len(values)} tensors without an architecture"
        return "a dictionary of " + ", ".join(str(key) for key in list(root)[:5])
    return "a tensor" if isinstance(root, TensorRecord) else f"a {type(root).__name__}"
