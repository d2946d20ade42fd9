"""Models and their descriptions: task, class names, input preprocessing and output format."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.errors import ModelError
from trtkit.files import escape_surrogates
from trtkit.version import FORMAT_VERSION

if TYPE_CHECKING:
    import onnx
    import torch

__all__ = [
    "CLASS_SCORES",
    "DENSE",
    "DESCRIPTION_KEYS",
    "DETR_HEAD",
    "DETR_QUERIES",
    "DETR_ROWS",
    "END2END_ROWS",
    "NMS_ROWS",
    "RAW_MAPS",
    "RAW_ONE_TO_ONE",
    "TASKS",
    "Model",
    "ModelInfo",
    "OutputFormat",
    "PixelInput",
    "Preprocess",
    "default_output_format",
    "default_preprocess",
    "parse_trtkit_entry",
]

TASKS = ("detect", "segment", "classify", "pose", "obb")
"""The tasks of YOLO models."""

MAX_STRIDE, MAX_SIDE, MAX_CHANNELS = 1024, 65_535, 1024
"""The largest stride, image side and number of channels that a file may claim; beyond lies no model that exists."""

MAX_ENTRY = 4 << 20
"""Most characters of an entry of metadata: 20,000 class names have 0.5 million; parsing takes 100 bytes for each."""

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
        color: Order of three channels, "rgb" or "bgr"; other numbers of channels stay in the file's order.
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

    @property
    def reverses_channels(self) -> bool:
        """Whether channels go into the input in reverse: images are read as BGR."""
        return self.color == "rgb" and self.channels == 3

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

    Known formats are `DENSE`, `RAW_MAPS`, `RAW_ONE_TO_ONE`, `END2END_ROWS`, `NMS_ROWS`, `DETR_ROWS`, `DETR_QUERIES` and
    `CLASS_SCORES`. Any other is possible: the decoder registered under its name
    (`trtkit.tasks.base.register_output_format`) reads the model's outputs.

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
"""An output of shape (N, 4 + classes + extra, anchors): center x, center y, width and height in input pixels, class
scores, then mask coefficients, keypoints or an angle; mask prototypes in a further output."""

RAW_MAPS = OutputFormat(name="raw_maps", needs_nms=True)
"""The maps of a detection head before decoding, outputs for each feature map of stride S: `boxes_sS`, shape
(N, 4 x bins, H, W), distances from the cell's center to the sides of the box in cells, or logits of their distributions
(DFL); `scores_sS`, shape (N, classes, H, W), logits; and `coefficients_sS`, `keypoints_sS` or `angles_sS` by the task;
mask prototypes in `output1`."""

RAW_ONE_TO_ONE = OutputFormat(name="raw_maps")
"""`RAW_MAPS` of a one-to-one head, whose boxes need no NMS."""

NMS_ROWS = OutputFormat(name="nms_rows")
"""An output of shape (N, max_det, 6 + extra): x1, y1, x2, y2 in input pixels, score, class, then the task's extra
values; for obb x, y, width, height, score, class, angle. Unused rows are zero."""

END2END_ROWS = OutputFormat(name="end2end_rows")
"""An output of shape (N, rows, 6 + extra) with the columns of `NMS_ROWS`, from a one-to-one head (YOLO26, YOLOv10): the
highest-scoring boxes, which need no NMS."""

DETR_QUERIES = OutputFormat(name="detr_queries")
"""An output of shape (N, queries, 4 + classes): center x, center y, width and height as fractions of the input's width
and height, then class scores (RT-DETR in files of older versions of Ultralytics)."""

DETR_ROWS = OutputFormat(name="detr_rows")
"""An output of shape (N, rows, 6): center x, center y, width and height as fractions of the input's width and height,
score, class; the highest scores of all queries and classes (RT-DETR, as Ultralytics 8.4.190 writes it)."""

DETR_HEAD = "RTDETRDecoder"
"""Ultralytics' `head` of an RT-DETR in metadata: its loader then stretches images and reads `DETR_ROWS`."""

CLASS_SCORES = OutputFormat(name="class_scores")
"""An output of shape (N, classes): class probabilities."""


def default_preprocess(task: str, *, channels: int = 3, output_format: OutputFormat | None = None) -> Preprocess:
    """The usual preprocessing: center crop for classify, stretch for RT-DETR, else letterbox.

    Args:
        task: One of `TASKS`.
        channels: Channels of the input.
        output_format: What the model returns, if it is known.
    """
    kind = (
        "stretch"
        if output_format in (DETR_QUERIES, DETR_ROWS)
        else "center_crop"
        if task == "classify"
        else "letterbox"
    )
    return Preprocess(kind=kind, channels=channels)


def default_output_format(task: str, *, nms: bool = False, end2end: bool = False) -> OutputFormat:
    """The output format of YOLO exports.

    Args:
        task: One of `TASKS`.
        nms: Whether the graph ends in NMS.
        end2end: Whether it ends in a one-to-one head.
    """
    if task == "classify":
        return CLASS_SCORES
    return END2END_ROWS if end2end else NMS_ROWS if nms else DENSE


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelInput:
    """An engine's input of pixels in blocks: (N, 4 x side^2, height / side, width / side), by row, column and color.

    Attributes:
        side: Height and width of a block, pixels: 2 or 4.
        scale: What one step of an INT8 value is in the model's own input x: the value is round(x / scale). None where
            values are x itself, in FP16.
    """

    side: int
    scale: float | None

    def image_shape(self, shape: tuple[int, ...], channels: int) -> tuple[int, ...]:
        """The shape of the images.

        Args:
            shape: Of the input.
            channels: Of an image.

        Returns:
            (N, channels, height, width).
        """
        return (shape[0], channels, shape[2] * self.side, shape[3] * self.side)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """A model's description: task, class names, input and output.

    Attributes:
        task: One of `TASKS`, or a registered task.
        names: Class names by class index.
        stride: The largest stride, pixels; image sides are multiples of it. 1 for classify.
        imgsz: Height and width the model was trained or exported at, pixels.
        kpt_shape: Keypoints per box and values per keypoint (2: x, y; 3: x, y, visibility) for pose; None otherwise.
        architecture: Such as "yolo11n"; "" if unknown.
        preprocess: How an image becomes the input; None takes the task's default.
        output_format: What the model returns; None takes the task's default, without NMS.
        row_settings: `conf`, `iou` and `max_det` by which NMS in the graph selects its rows, or `max_det` of a
            one-to-one head; {} if nothing is selected in the graph, or not known.
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
    row_settings: Mapping[str, float] = dataclasses.field(default_factory=dict)
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        given = dict(vars(self))  # as given: the fields' types leave out None
        object.__setattr__(self, "names", {index: escape_surrogates(str(name)) for index, name in self.names.items()})
        if given["output_format"] is None:
            object.__setattr__(self, "output_format", default_output_format(self.task))
        if given["preprocess"] is None:
            preprocess = default_preprocess(self.task, output_format=self.output_format)
            object.__setattr__(self, "preprocess", preprocess)

    @property
    def channels(self) -> int:
        """Channels of the input, 3 for color."""
        return self.preprocess.channels

    @property
    def nms(self) -> bool:
        """Whether the graph ends in NMS."""
        return self.output_format == NMS_ROWS

    @property
    def end2end(self) -> bool:
        """Whether the model ends in a one-to-one head, whose rows need no NMS."""
        return self.output_format == END2END_ROWS

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
            "args": {**args, "nms": self.nms, **self.row_settings},
            "channels": self.channels,
            "end2end": self.end2end,
            "architecture": self.architecture,
            "trtkit": {
                "format_version": FORMAT_VERSION,
                "preprocess": self.preprocess.to_dict(),
                "output_format": self.output_format.to_dict(),
            },
        }
        if self.output_format == DETR_ROWS:
            metadata["head"] = DETR_HEAD
        if self.nms and self.row_settings:
            metadata["trtkit"]["nms"] = dict(self.row_settings)
        if self.kpt_shape is not None:
            metadata["kpt_shape"] = list(self.kpt_shape)
        return metadata

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> ModelInfo:
        """The inverse of `to_metadata`, for values as JSON (engines) or as strings (ONNX `metadata_props`).

        A file without preprocessing and output format (of Ultralytics or of trtkit 0.1.0) gets the task's defaults:
        end-to-end rows if it says `end2end`, NMS rows if its `args` contain `nms`.

        Raises:
            KeyError: `task` or `names` is missing.
            TypeError: A value is of the wrong type.
            ValueError: A value does not parse.
        """
        try:
            return _check_description(cls._parse_metadata(metadata))
        except (AttributeError, ArithmeticError, RecursionError, MemoryError, IndexError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error

    @classmethod
    def _parse_metadata(cls, metadata: Mapping[str, Any]) -> ModelInfo:
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
        arguments = arguments if isinstance(arguments, Mapping) else {}
        end2end = values.get("end2end") is True
        ours = parse_trtkit_entry(metadata.get("trtkit"))
        output_format = (
            OutputFormat.from_dict(ours["output_format"])
            if "output_format" in ours
            else default_output_format(task, nms=bool(arguments.get("nms", False)), end2end=end2end)
        )
        fixed = {NMS_ROWS.name: ("conf", "iou", "max_det"), END2END_ROWS.name: ("max_det",)}
        return cls(
            task=task,
            names=dict(sorted((int(index), str(name)) for index, name in names.items())),
            stride=int(values.get("stride", 32)),
            imgsz=(int(height), int(width)),
            kpt_shape=(int(kpt_shape[0]), int(kpt_shape[1])) if kpt_shape else None,
            architecture=str(values.get("architecture", "")),
            preprocess=Preprocess.from_dict(ours["preprocess"])
            if "preprocess" in ours
            else default_preprocess(task, channels=int(values.get("channels", 3))),
            output_format=output_format,
            row_settings={
                key: arguments[key]
                for key in fixed.get(output_format.name, ())
                if isinstance(arguments.get(key), (int, float))
            },
            notes={key: values[key] for key in ("author", "date", "version", "license", "docs") if values.get(key)},
        )


def _check_description(info: ModelInfo) -> ModelInfo:
    """The description, if its numbers are possible.

    Raises:
        ValueError: They are not.
    """
    if not 1 <= info.stride <= MAX_STRIDE:
        raise ValueError(f"stride is {info.stride}")
    if not all(1 <= side <= MAX_SIDE for side in info.imgsz):
        raise ValueError(f"imgsz is {info.imgsz}")
    if list(info.names) != list(range(len(info.names))):
        raise ValueError(f"classes are numbered {', '.join(map(str, [*info.names][:5]))}, not from 0 on")
    if not 1 <= info.channels <= MAX_CHANNELS:
        raise ValueError(f"{info.channels} channels")
    if info.kpt_shape is not None and not (1 <= info.kpt_shape[0] <= MAX_SIDE and info.kpt_shape[1] in (2, 3)):
        raise ValueError(f"kpt_shape is {info.kpt_shape}")
    return info


def parse_trtkit_entry(value: Any) -> Mapping[str, Any]:
    """The metadata under trtkit's own key, from a mapping, JSON or a Python literal; {} for anything else.

    Args:
        value: A mapping (engines) or text (ONNX `metadata_props`), or None.

    Raises:
        ValueError: The text does not parse.
    """
    if isinstance(value, str):
        literal = _parse_literal(value)
        try:
            value = literal if isinstance(literal, Mapping) else json.loads(value)
        except RecursionError:
            raise ValueError("it is nested too deep") from None
    return value if isinstance(value, Mapping) else {}


def _parse_literal(value: Any) -> Any:
    """A `metadata_props` text as the Python literal it is, or unchanged."""
    if not isinstance(value, str):
        return value
    if len(value) > MAX_ENTRY:
        raise ValueError(f"an entry has {len(value):,} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return value


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Model(ModelInfo):
    """A description with the weights: either a torch module or an ONNX graph.

    Attributes:
        hash: SHA-256 of architecture and weights, 64 hex digits.
        source: The file it was read from, or None for an object in memory.
        module: The torch module in evaluation mode and FP32, BatchNorm fused, or None.
        proto: The ONNX graph, or None.
        example: An example input for tracing a module of the caller's, NCHW float32, or None.
        parameters: Number of weights, without those of branches that do not run.
        head_hashes: `hash` with and without the one-to-one head, by `end2end`, of a checkpoint.
    """

    hash: str
    source: Path | None = None
    module: torch.nn.Module | None = None
    proto: onnx.ModelProto | None = None
    example: Any = None
    parameters: int = 0
    head_hashes: Mapping[bool, str] = dataclasses.field(default_factory=dict)

    @property
    def info(self) -> ModelInfo:
        """The description without weights."""
        return ModelInfo(**{field.name: getattr(self, field.name) for field in dataclasses.fields(ModelInfo)})

    @property
    def stem(self) -> str:
        """The first part of exported file names: the source's stem, or the architecture."""
        return self.source.stem if self.source is not None else (self.architecture or "model")

    @property
    def has_one_to_one_head(self) -> bool:
        """Whether the model has a one-to-one head, whether it runs or not."""
        head: Any = getattr(self.module, "head", None)
        return self.end2end or (hasattr(head, "has_branches") and bool(head.has_branches(end2end=True)))

    def with_end2end(self, end2end: bool = True, *, max_det: int = 300) -> Model:
        """The model with its one-to-one head, or with its one-to-many head; both share the weights before them.

        A one-to-one head (YOLO26, YOLOv10) returns `END2END_ROWS`, a one-to-many head `DENSE` output for NMS.
        Ultralytics 8.4.190 calls them `nms=False` and `nms=None`.

        Args:
            end2end: Whether to take the one-to-one head.
            max_det: Rows of the one-to-one head; a graph from an ONNX file keeps its own.

        Raises:
            ModelError: The model has no such head.
        """
        if self.end2end == end2end and (self.module is None or not end2end):
            return self
        head: Any = getattr(self.module, "head", None)
        kind = "one-to-one" if end2end else "one-to-many"
        if not hasattr(head, "has_branches") or not head.has_branches(end2end=end2end):
            if self.end2end == end2end:
                return self
            raise ModelError(
                f"load {self.source or self.stem} with end2end={end2end}",
                f"it has no {kind} head",
                "leave end2end out; YOLO26 and YOLOv10 checkpoints that were not fused have both heads"
                if end2end
                else "use the checkpoint as it was before it was fused",
                code=f"model-without-{kind}-head",
            )
        module: Any = self.module.with_head(end2end=end2end, max_det=max_det)  # type: ignore[union-attr, operator]
        return dataclasses.replace(
            self,
            output_format=END2END_ROWS if end2end else DENSE,
            row_settings={"max_det": max_det} if end2end else {},
            module=module,
            hash=self.head_hashes[end2end],
            parameters=module.count_parameters(),
        )

    def __repr__(self) -> str:
        kind = "torch" if self.module is not None else "ONNX"
        return (
            f"Model({self.stem}: {self.task}, {len(self.names)} classes, imgsz {self.imgsz[0]}x{self.imgsz[1]}, "
            f"{self.parameters:,} parameters, {kind}, {self.hash[:12]})"
        )
