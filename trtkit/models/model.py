"""A model, whatever it was read from."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.errors import ModelError

if TYPE_CHECKING:
    import onnx
    import torch

__all__ = ["TASKS", "Model", "ModelInfo", "count_classes", "resolve_class_names", "resolve_task"]


# What a file says about the model in it, whichever file that is.


TASKS = ("detect", "segment", "classify", "pose", "obb")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """A model's description: what it does and how its images go in.

    Attributes:
        task: One of `TASKS`.
        names: Class names by class index.
        stride: The largest stride, pixels; image sides are multiples of it. 1 for classify.
        imgsz: Height and width the model was trained or exported at, pixels.
        channels: Image channels, 3 for color.
        kpt_shape: Keypoints a box and values a keypoint (2: x, y; 3: x, y, visibility), for pose; None otherwise.
        architecture: Such as "yolo11n"; "" where the file does not say.
        nms: Whether the graph itself ends in non-maximum suppression.
        notes: Whatever else the file told (author, license, date), kept as it was.
    """

    task: str
    names: Mapping[int, str]
    stride: int = 32
    imgsz: tuple[int, int] = (640, 640)
    channels: int = 3
    kpt_shape: tuple[int, int] | None = None
    architecture: str = ""
    nms: bool = False
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_metadata(self, *, batch: int = 1, imgsz: tuple[int, int] | None = None, **args: Any) -> dict[str, Any]:
        """The keys that Ultralytics writes into its exports, so that its loader opens ours.

        Args:
            batch: The largest batch of the export.
            imgsz: Height and width of the export, pixels; None takes the card's.
            **args: Export settings, kept under `args`.
        """
        metadata: dict[str, Any] = {
            "description": f"{self.architecture or 'model'} for {self.task}, exported by trtkit",
            "author": str(self.notes.get("author", "")),
            "date": str(self.notes.get("date", "")),
            "version": str(self.notes.get("version", "")),
            "license": str(self.notes.get("license", "")),
            "docs": str(self.notes.get("docs", "")),
            "stride": self.stride,
            "task": self.task,
            "batch": batch,
            "imgsz": list(imgsz or self.imgsz),
            "names": dict(self.names),
            "args": {**args, "nms": self.nms},
            "channels": self.channels,
            "end2end": False,
            "architecture": self.architecture,
        }
        if self.kpt_shape is not None:
            metadata["kpt_shape"] = list(self.kpt_shape)
        return metadata

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> ModelInfo:
        """The inverse of `to_metadata`, for values as JSON (engines) or as strings (ONNX `metadata_props`).

        Raises:
            KeyError: `task` or `names` is missing.
            ValueError: A value does not parse.
        """
        values = {key: _parse_literal(value) for key, value in metadata.items()}
        names = values["names"]
        if isinstance(names, str):
            raise ValueError(f"names are {names[:40]!r}")
        if not isinstance(names, Mapping):
            names = dict(enumerate(names))
        imgsz = values.get("imgsz", (640, 640))
        height, width = (imgsz, imgsz) if isinstance(imgsz, int) else tuple(imgsz)
        kpt_shape = values.get("kpt_shape")
        arguments = values.get("args")
        return cls(
            task=str(values["task"]),
            names={int(index): str(name) for index, name in names.items()},
            stride=int(values.get("stride", 32)),
            imgsz=(int(height), int(width)),
            channels=int(values.get("channels", 3)),
            kpt_shape=(int(kpt_shape[0]), int(kpt_shape[1])) if kpt_shape else None,
            architecture=str(values.get("architecture", "")),
            nms=isinstance(arguments, Mapping) and bool(arguments.get("nms", False)),
            notes={key: values[key] for key in ("author", "date", "version", "license", "docs") if values.get(key)},
        )


def _parse_literal(value: Any) -> Any:
    """A `metadata_props` string as the Python literal it spells, or as it is where it spells none."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Model(ModelInfo):
    """A card with the weights: either a torch module or an ONNX graph.

    Attributes:
        hash: SHA-256 of architecture and weights, 64 hex digits.
        source: The file it was read from, or None for a module handed over.
        module: The torch module in evaluation mode and FP32, BatchNorm fused, or None.
        proto: The ONNX graph, or None.
        example: An example input, needed to trace a module that is not ours; NCHW float32, or None.
        parameters: Number of weights.
    """

    hash: str
    source: Path | None = None
    module: torch.nn.Module | None = None
    proto: onnx.ModelProto | None = None
    example: Any = None
    parameters: int = 0

    @property
    def info(self) -> ModelInfo:
        """The description without the weights."""
        return ModelInfo(**{field.name: getattr(self, field.name) for field in dataclasses.fields(ModelInfo)})

    @property
    def stem(self) -> str:
        """The name that exports start with: the source's stem, or the architecture."""
        return self.source.stem if self.source is not None else (self.architecture or "model")

    def __repr__(self) -> str:
        kind = "torch" if self.module is not None else "ONNX"
        return (
            f"Model({self.stem}: {self.task}, {len(self.names)} classes, imgsz {self.imgsz[0]}x{self.imgsz[1]}, "
            f"{self.parameters:,} parameters, {kind}, {self.hash[:12]})"
        )


# What the shapes of a model's outputs tell about its classes and keypoints.


OutputShape = Sequence[int | None]
ErrorFactory = Callable[[str, str, str], ModelError]


def resolve_task(task: str | None, found: str | None, asked: str, fail: ErrorFactory) -> str:
    """The task a model has, from what the caller said and what the source says.

    Args:
        task: What the caller said, or None.
        found: What the source says, or None.
        asked: How an error names the work.
        fail: The error to raise.

    Raises:
        ModelError: Both are silent, one is unknown, or they differ.
    """
    task = task or found
    known = ", ".join(TASKS)
    if task is None:
        raise fail(asked, "it does not say what its task is", f"pass task= one of {known}")
    if task not in TASKS:
        raise fail(asked, f"its task {task!r} is unknown", f"pass task= one of {known}")
    if found is not None and found != task:
        raise fail(asked, f"task={task!r} was asked but it is a model for {found}", "leave task= out")
    return task


def count_classes(
    task: str, shapes: Sequence[OutputShape], names: int | None, asked: str, fail: ErrorFactory
) -> tuple[int, tuple[int, int] | None]:
    """The number of classes and, for pose, the keypoint shape.

    Args:
        task: One of `TASKS`.
        shapes: Shapes of the outputs in order, None where a size is dynamic.
        names: How many class names the caller gave, or None.
        asked: How an error names the work.
        fail: The error to raise.

    Returns:
        Classes, and (keypoints, values a keypoint) for pose or None. Keypoint values that divide by both 2 and 3 are
        taken as x, y, visibility.

    Raises:
        ModelError: The shapes do not fit the task, or they do not tell and no names were given.
    """
    rank = 2 if task == "classify" else 3
    if not shapes or len(shapes[0]) != rank or (task == "segment" and (len(shapes) < 2 or len(shapes[1]) != 4)):
        listed = ", ".join("x".join("?" if size is None else str(size) for size in shape) for shape in shapes)
        raise fail(asked, f"outputs of shape {listed or 'nothing'} do not fit {task}", "pass the task it was made for")
    values = shapes[0][1]
    fixed = {"classify": 0, "detect": 4, "obb": 5}.get(task, 4)
    if task == "segment":
        masks = shapes[1][1]
        values = None if masks is None or values is None else values - masks
    if task == "pose":
        if names is None:
            raise fail(asked, "its shapes do not tell classes from keypoints", "pass names=")
        extra = 0 if values is None else values - 4 - names
        if extra < 2 or (extra % 3 and extra % 2):
            raise fail(
                asked, f"{values} values an anchor leave no keypoints for {names} classes", "pass the right names="
            )
        width = 2 if extra % 3 else 3
        return names, (extra // width, width)
    if values is None and names is None:
        raise fail(asked, "the number of classes is dynamic in it", "pass names=")
    classes = names if values is None else values - fixed
    if classes is None or classes < 1 or (names is not None and names != classes):
        raise fail(asked, f"{names} names were given for {classes} classes", "pass one name for each class")
    return classes, None


def resolve_class_names(
    names: Mapping[int, str] | Sequence[str] | None, classes: int, asked: str, fail: ErrorFactory
) -> dict[int, str]:
    """Class names by index; numbers where there are none.

    Raises:
        ModelError: There are more or fewer names than classes.
    """
    if names is None:
        return {index: str(index) for index in range(classes)}
    pairs = names.items() if isinstance(names, Mapping) else enumerate(names)
    found = {int(index): str(name) for index, name in pairs}
    if sorted(found) != list(range(classes)):
        raise fail(asked, f"{len(found)} names were given for {classes} classes", "pass one name for each class")
    return dict(sorted(found.items()))
