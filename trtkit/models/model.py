"""Models and their descriptions: task, class names, input preprocessing and output format."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.errors import ModelError

if TYPE_CHECKING:
    import onnx
    import torch

__all__ = [
    "CLASS_SCORES",
    "DENSE",
    "DESCRIPTION_KEYS",
    "FORMAT_VERSION",
    "NMS_ROWS",
    "TASKS",
    "Model",
    "ModelInfo",
    "OutputFormat",
    "Preprocess",
    "count_classes",
    "default_output_format",
    "default_preprocess",
    "parse_trtkit_entry",
    "resolve_class_names",
    "resolve_task",
]

TASKS = ("detect", "segment", "classify", "pose", "obb")

FORMAT_VERSION = 2
"""Version of what trtkit adds to a file's metadata; files without a version are of version 1."""

DESCRIPTION_KEYS = frozenset({"format_version", "preprocess", "output_format"})
"""Keys of `ModelInfo.to_metadata()["trtkit"]`."""


# What a model needs before it, and what comes out of it.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How an image becomes the model's input: `(resized * scale - mean) / std`, planes in `color` order.

    Attributes:
        kind: "letterbox" (aspect ratio kept, padded), "stretch" (resized to the input, aspect ratio ignored) or
            "center_crop" (shorter side resized, middle cut out).
        channels: Channels of the input.
        color: Order of the channels, "rgb" or "bgr".
        scale: Factor on pixel values 0..255.
        mean: What is subtracted after scaling, one value a channel; () subtracts nothing.
        std: What is divided by after subtracting, one value a channel; () divides by nothing.

    Raises:
        ValueError: A value is unknown or out of range.
    """

    kind: str = "letterbox"
    channels: int = 3
    color: str = "rgb"
    scale: float = 1 / 255
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in ("letterbox", "stretch", "center_crop"):
            raise ValueError(f"preprocessing kind {self.kind!r} is none of letterbox, stretch, center_crop")
        if self.color not in ("rgb", "bgr"):
            raise ValueError(f"color order {self.color!r} is neither rgb nor bgr")
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (0, self.channels):
                raise ValueError(f"{name} has {len(getattr(self, name))} values for {self.channels} channels")
        if not all(math.isfinite(value) for value in (self.scale, *self.mean, *self.std)):
            raise ValueError("scale, mean and std are finite")
        if self.channels < 1 or min(self.scale, *self.std, 1.0) <= 0:
            raise ValueError("channels, scale and std are positive")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return {**dataclasses.asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Preprocess:
        """The inverse of `to_dict`; keys of later versions are ignored."""
        return cls(
            kind=str(value["kind"]),
            channels=int(value["channels"]),
            color=str(value["color"]),
            scale=float(value["scale"]),
            mean=tuple(float(number) for number in value["mean"]),
            std=tuple(float(number) for number in value["std"]),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputFormat:
    """What a model returns.

    The formats of YOLO exports are `DENSE`, `NMS_ROWS` and `CLASS_SCORES`. Any other name is possible: the decoder
    registered under it (`trtkit.tasks.base.register_output_format`) reads the model's outputs.

    Attributes:
        name: The decoder's name.
        needs_nms: Whether overlapping boxes of one object remain, so that NMS comes after the model.
    """

    name: str
    needs_nms: bool = False

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> OutputFormat:
        """The inverse of `to_dict`; keys of later versions are ignored."""
        return cls(name=str(value["name"]), needs_nms=bool(value["needs_nms"]))


DENSE = OutputFormat(name="dense", needs_nms=True)
"""`output0` of shape (N, 4 + classes + extra, anchors): center x, center y, width and height in input pixels, class
scores, then mask coefficients, keypoints or an angle; mask prototypes in `output1`."""

NMS_ROWS = OutputFormat(name="nms_rows")
"""`output0` of shape (N, max_det, 6 + extra): x1, y1, x2, y2 in input pixels, score, class, then the task's extra
values; for obb x, y, width, height, score, class, angle. Unused rows are zero."""

CLASS_SCORES = OutputFormat(name="class_scores")
"""`output0` of shape (N, classes): class probabilities."""


def default_preprocess(task: str, *, channels: int = 3) -> Preprocess:
    """The preprocessing of YOLO models: center crop for classify, letterbox for the other tasks.

    Args:
        task: One of `TASKS`.
        channels: Channels of the input.
    """
    return Preprocess(kind="center_crop" if task == "classify" else "letterbox", channels=channels)


def default_output_format(task: str, *, nms: bool = False) -> OutputFormat:
    """The output format of YOLO exports.

    Args:
        task: One of `TASKS`.
        nms: Whether the graph ends in NMS.
    """
    if task == "classify":
        return CLASS_SCORES
    return NMS_ROWS if nms else DENSE


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """A model's description: task, class names, input and output.

    Attributes:
        task: One of `TASKS`.
        names: Class names by class index.
        stride: The largest stride, pixels; image sides are multiples of it. 1 for classify.
        imgsz: Height and width the model was trained or exported at, pixels.
        kpt_shape: Keypoints per box and values per keypoint (2: x, y; 3: x, y, visibility) for pose; None otherwise.
        architecture: Such as "yolo11n"; "" where the file does not say.
        preprocess: How an image becomes the input; None takes the task's default.
        output_format: What the model returns; None takes the task's default, without NMS.
        notes: Further entries of the file (author, license, date), unchanged.
    """

    task: str
    names: Mapping[int, str]
    stride: int = 32
    imgsz: tuple[int, int] = (640, 640)
    kpt_shape: tuple[int, int] | None = None
    architecture: str = ""
    preprocess: Preprocess = None  # type: ignore[assignment]
    output_format: OutputFormat = None  # type: ignore[assignment]
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        defaults = {"preprocess": default_preprocess(self.task), "output_format": default_output_format(self.task)}
        for name, default in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)

    @property
    def channels(self) -> int:
        """Channels of the input, 3 for color."""
        return self.preprocess.channels

    @property
    def nms(self) -> bool:
        """Whether the graph ends in NMS."""
        return self.output_format == NMS_ROWS

    def to_metadata(self, *, batch: int = 1, imgsz: tuple[int, int] | None = None, **args: Any) -> dict[str, Any]:
        """The keys that Ultralytics writes into its exports, so that its loader opens ours, and ours under "trtkit".

        Args:
            batch: The largest batch of the export.
            imgsz: Height and width of the export, pixels; None takes the model's own.
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
            "trtkit": {
                "format_version": FORMAT_VERSION,
                "preprocess": self.preprocess.to_dict(),
                "output_format": self.output_format.to_dict(),
            },
        }
        if self.kpt_shape is not None:
            metadata["kpt_shape"] = list(self.kpt_shape)
        return metadata

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> ModelInfo:
        """The inverse of `to_metadata`, for values as JSON (engines) or as strings (ONNX `metadata_props`).

        A file without preprocessing and output format (of Ultralytics or of trtkit 0.1.0) gets the task's defaults,
        with NMS where its `args` say so.

        Raises:
            KeyError: `task` or `names` is missing.
            TypeError: A value is of the wrong type.
            ValueError: A value does not parse.
        """
        values = {key: _parse_literal(value) for key, value in metadata.items() if key != "trtkit"}
        names = values["names"]
        if isinstance(names, str):
            raise ValueError(f"names are {names[:40]!r}")
        if not isinstance(names, Mapping):
            names = dict(enumerate(names))
        imgsz = values.get("imgsz", (640, 640))
        height, width = (imgsz, imgsz) if isinstance(imgsz, int) else tuple(imgsz)
        kpt_shape = values.get("kpt_shape")
        arguments = values.get("args")
        task = str(values["task"])
        nms = isinstance(arguments, Mapping) and bool(arguments.get("nms", False))
        ours = parse_trtkit_entry(metadata.get("trtkit"))
        return cls(
            task=task,
            names={int(index): str(name) for index, name in names.items()},
            stride=int(values.get("stride", 32)),
            imgsz=(int(height), int(width)),
            kpt_shape=(int(kpt_shape[0]), int(kpt_shape[1])) if kpt_shape else None,
            architecture=str(values.get("architecture", "")),
            preprocess=Preprocess.from_dict(ours["preprocess"])
            if "preprocess" in ours
            else default_preprocess(task, channels=int(values.get("channels", 3))),
            output_format=OutputFormat.from_dict(ours["output_format"])
            if "output_format" in ours
            else default_output_format(task, nms=nms),
            notes={key: values[key] for key in ("author", "date", "version", "license", "docs") if values.get(key)},
        )


def parse_trtkit_entry(value: Any) -> Mapping[str, Any]:
    """What trtkit wrote under its own key: a mapping, as such or as text; {} where there is none."""
    if isinstance(value, str):
        literal = _parse_literal(value)
        value = literal if isinstance(literal, Mapping) else json.loads(value)
    return value if isinstance(value, Mapping) else {}


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
    """A description with the weights: either a torch module or an ONNX graph.

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
