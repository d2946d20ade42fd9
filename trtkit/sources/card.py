"""What a file says about the model in it, whichever file that is."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping
from typing import Any

__all__ = ["TASKS", "Card"]

TASKS = ("detect", "segment", "classify", "pose", "obb")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """A model's description: what it does and how its pictures go in.

    Attributes:
        task: One of `TASKS`.
        names: Class names by class index.
        stride: The largest stride, pixels; picture sides are multiples of it. 1 for classify.
        imgsz: Height and width the model was trained or exported at, pixels.
        channels: Picture channels, 3 for colour.
        kpt_shape: Keypoints a box and values a keypoint (2: x, y; 3: x, y, visibility), for pose; None otherwise.
        architecture: Such as "yolo11n"; "" where the file does not say.
        nms: Whether the graph itself ends in non-maximum suppression.
        notes: Whatever else the file told (author, licence, date), kept as it was.
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
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Card:
        """The inverse of `to_metadata`, for values as JSON (engines) or as strings (ONNX `metadata_props`).

        Raises:
            KeyError: `task` or `names` is missing.
            ValueError: A value does not parse.
        """
        values = {key: _parsed(value) for key, value in metadata.items()}
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


def _parsed(value: Any) -> Any:
    """A `metadata_props` string as the Python literal it spells, or as it is where it spells none."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
