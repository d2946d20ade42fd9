"""Ultralytics' `.pt` checkpoints, read without Ultralytics and without running the pickle in them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from trtkit.downloads import describe_download
from trtkit.errors import CheckpointError
from trtkit.models.layers import describe_activation
from trtkit.models.torch_file import TensorReader, read_legacy, read_zip
from trtkit.models.unpickler import Record, SafeOrderedDict, TensorRecord

__all__ = ["Checkpoint", "read_checkpoint"]

DEPTH_LIMIT = 32
"""Most levels of nested modules and settings."""

MODULE_LIMIT = 100_000
"""Most modules, and most values in settings."""

NAME_LIMIT = 512
"""Most characters of a module's name."""

VECTOR_LIMIT = 16
"""Most elements of a vector such as strides or a mean."""

PARALLEL_WRAPPERS = (
    "torch.nn.parallel.data_parallel.DataParallel",
    "torch.nn.parallel.distributed.DistributedDataParallel",
)
"""Modules that hold the model as `module`."""

FOREIGN_SIGNATURES = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
    b"<!DOCTYPE": "a web page",
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"\x89HDF": "an HDF5 file",
    b"ftrtLE": "a TensorRT engine",
    b"\x1f\x8b": "a gzip archive",
}
"""First bytes of files that are commonly mistaken for checkpoints."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The content of a YOLO checkpoint as plain values and tensors.

    Attributes:
        yaml: The architecture, in the form of Ultralytics' model files.
        weights: Parameters and buffers by name ("model.0.conv.weight"), in the file's own types.
        layers: The class name of each layer of the model, by position.
        activations: Each activation's text (`describe_activation`), by module name ("model.0.act").
        epsilons: The epsilon of each BatchNorm, by module name ("model.0.bn").
        names: Class names as stored: a dictionary, a list or None.
        stride: Strides of the head's feature maps, pixels; empty if unknown.
        args: Training settings.
        notes: Date, version, license and docs.
        transforms: Mean and standard deviation of a classifier's input, or None.
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
    """Read a checkpoint of Ultralytics; EMA weights are preferred if the file has them.

    Args:
        path: A `.pt` file, in the zip format or the format before torch 1.6.

    Raises:
        UnsafeCheckpointError: The pickle names something other than tensors, containers and known classes.
        CheckpointError: The file is missing, empty, truncated or no YOLO checkpoint.
    """
    path = Path(path)
    asked = f"load {path}"
    if not path.exists():
        do = describe_download(path) or "check the path"
        raise CheckpointError(asked, "the file does not exist", do, code="model-file-missing", path=path)
    if path.is_dir():
        raise CheckpointError(
            asked, "it is a folder", "name the .pt file in it", code="model-file-is-folder", path=path
        )
    if path.stat().st_size == 0:
        raise CheckpointError(
            asked, "the file is empty", "copy or download it again", code="model-file-empty", path=path
        )
    with path.open("rb") as file:
        start = file.read(64)
        file.seek(0)
        if start.startswith(b"PK"):
            root, read_tensor = read_zip(file, asked)
        elif start.startswith(b"\x80"):
            root, read_tensor = read_legacy(file, asked)
        else:
            kind = next(
                (kind for mark, kind in FOREIGN_SIGNATURES.items() if start.startswith(mark)), "no PyTorch file"
            )
            raise CheckpointError(
                asked,
                f"it is {kind}",
                "name an Ultralytics checkpoint",
                code="checkpoint-foreign",
                path=path,
                kind=kind,
            )
        return _build_checkpoint(root, read_tensor, path.stat().st_size, asked)


def _build_checkpoint(root: Any, read_tensor: TensorReader, size: int, asked: str) -> Checkpoint:
    """The checkpoint in a pickle's content."""
    notes = root if isinstance(root, dict) else {}
    model = next((value for value in (notes.get("ema"), notes.get("model"), root) if isinstance(value, Record)), None)
    if model is None:
        raise CheckpointError(
            asked,
            f"it holds {_describe(root)}, not a YOLO model",
            "name an Ultralytics checkpoint",
            code="checkpoint-without-model",
            content=_describe(root),
        )
    if model.qualified_name in PARALLEL_WRAPPERS:
        model = next((part for part in _children(model).values() if isinstance(part, Record)), model)
    state = model.attributes
    if not model.qualified_name.startswith("ultralytics.") or not isinstance(state.get("yaml"), dict):
        raise CheckpointError(
            asked,
            f"its model is a {model.qualified_name}",
            "name a YOLO or RT-DETR checkpoint of Ultralytics",
            code="checkpoint-model-unknown",
            model=model.qualified_name,
        )
    weights: dict[str, TensorRecord] = {}
    activations: dict[str, str] = {}
    epsilons: dict[str, float] = {}
    for name, module in _walk_modules(model, asked):
        attributes = module.attributes
        for group in ("_parameters", "_buffers"):
            for key, value in _as_dict(attributes.get(group)).items():
                if isinstance(value, TensorRecord):
                    weights[f"{name}.{key}"] = value
        if name.endswith(".act"):
            activations[name] = describe_activation(module.kind, attributes)
        if isinstance(attributes.get("eps"), float):
            epsilons[name] = attributes["eps"]
    # Tensors may share bytes, so that a small file could claim any amount of memory.
    elements = sum(math.prod(record.size) for record in weights.values())
    if elements > size:
        raise CheckpointError(
            asked,
            "its tensors claim more elements than the file has bytes",
            "download it again",
            code="checkpoint-oversized-tensors",
            elements=elements,
            bytes=size,
        )
    modules = _children(_children(model).get("model"))
    stride = state.get("stride")
    return Checkpoint(
        yaml=_to_plain(state["yaml"], asked),
        weights={name: read_tensor(record) for name, record in weights.items()},
        layers=tuple(layer.kind for layer in modules.values() if isinstance(layer, Record)),
        activations=activations,
        epsilons=epsilons,
        names=_to_plain(state.get("names"), asked),
        stride=_read_vector(stride, read_tensor),
        args=_read_settings(notes.get("train_args"), asked) or _read_settings(state.get("args"), asked),
        notes={key: notes[key] for key in ("date", "version", "license", "docs") if isinstance(notes.get(key), str)},
        transforms=_read_normalization(state.get("transforms"), read_tensor, asked),
    )


def _walk_modules(model: Record, asked: str) -> Iterator[tuple[str, Record]]:
    """All modules of a model record, recursively, with their names."""
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
    raise CheckpointError(
        asked,
        "its modules are nested without end",
        "use a checkpoint from a source you trust",
        code="checkpoint-nesting",
    )


def _children(module: Any) -> dict[Any, Any]:
    return _as_dict(module.attributes.get("_modules")) if isinstance(module, Record) else {}


def _as_dict(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _read_settings(value: Any, asked: str) -> dict[str, Any]:
    """Training settings, stored as a dictionary or as a namespace."""
    value = value.attributes if isinstance(value, Record) else value
    return {str(key): _to_plain(item, asked) for key, item in _as_dict(value).items()}


def _to_plain(value: Any, asked: str) -> Any:
    """`value` with dictionaries, lists and scalars only; records become their names.

    Raises:
        CheckpointError: It contains itself or is nested too deep.
    """
    budget = MODULE_LIMIT

    def plain(value: Any, depth: int) -> Any:
        nonlocal budget
        budget -= 1
        if budget < 0 or depth > DEPTH_LIMIT:
            raise CheckpointError(
                asked,
                "its settings are nested without end",
                "use a checkpoint from a source you trust",
                code="checkpoint-nesting",
            )
        if isinstance(value, dict):
            return {key: plain(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item, depth + 1) for item in value]
        return value.qualified_name if isinstance(value, Record) else value

    return plain(value, 0)


def _read_normalization(transforms: Any, read_tensor: TensorReader, asked: str) -> dict[str, list[float]] | None:
    """Mean and standard deviation in a classifier's torchvision transforms."""
    steps = transforms.attributes.get("transforms") if isinstance(transforms, Record) else None
    for step in steps if isinstance(steps, list) else []:
        if isinstance(step, Record) and step.kind == "Normalize":
            values = {key: step.attributes.get(key) for key in ("mean", "std")}
            return {
                key: list(_read_vector(value, read_tensor))
                if isinstance(value, TensorRecord)
                else _to_plain(value, asked)
                for key, value in values.items()
            }
    return None


def _read_vector(value: Any, read_tensor: TensorReader) -> tuple[float, ...]:
    """The elements of a short vector; () for anything else."""
    if not isinstance(value, TensorRecord) or len(value.size) != 1 or value.size[0] > VECTOR_LIMIT:
        return ()
    return tuple(float(number) for number in read_tensor(value))


def _describe(root: Any) -> str:
    """A pickle's content in words."""
    if isinstance(root, (dict, SafeOrderedDict)) and root:
        values = list(root.values())
        if all(isinstance(value, TensorRecord) for value in values):
            return f"a state_dict of {len(values)} tensors without an architecture"
        return "a dictionary of " + ", ".join(str(key) for key in list(root)[:5])
    return "a tensor" if isinstance(root, TensorRecord) else f"a {type(root).__name__}"
