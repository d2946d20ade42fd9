"""A run's settings, validated before anything slow starts and replayable as Python or on a command line."""

from __future__ import annotations

import dataclasses
import math
import operator
import os
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from trtkit.errors import RecipeError

__all__ = ["FORMATS", "Recipe", "round_imgsz"]

FORMATS = ("engine", "onnx")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of one export; names and defaults are those of `export`.

    Attributes:
        model: The model file.
        format: "engine" or "onnx".
        imgsz: Image side, or height and width, pixels; None takes the model's own.
        half: FP16.
        int8: INT8.
        dynamic: Leave batch, height and width open; None means yes for an INT8 engine and no otherwise.
        simplify: Simplify the graph with onnxslim.
        workspace: Memory the builder may use, GiB; None lets TensorRT decide.
        nms: Put non-maximum suppression into the graph.
        batch: The largest batch.
        data: Calibration data for INT8; None takes the task's small example set and says so.
        fraction: Share of the calibration images to draw from, (0, 1].
        device: GPU index or name ("cuda:1"), "dla:0", or "sm89" (build for a GPU that is not here); None = first GPU.
        backend: A registered backend, such as "tensorrt"; None takes the best present. The export checks it.
        calibration: Folder of a saved calibration; None calibrates on `data`.
        implicit: Calibrate INT8 by TensorRT's own calibrator (TensorRT up to 10) instead of Q/DQ pairs in the graph.
        keep: fnmatch patterns of ONNX node names that stay in high precision.
        opt_level: TensorRT's optimization level, 0 (quick build) to 5; None takes TensorRT's default.
        isolate: Build in a child process, so that a crash inside TensorRT is an error here.
        output: The file to write; None puts it beside the model.
        overwrite: Replace the output if it exists.

    Raises:
        RecipeError: A value is out of range, or two settings exclude each other.
    """

    model: str
    format: str = "engine"
    imgsz: int | tuple[int, int] | None = None
    half: bool = False
    int8: bool = False
    dynamic: bool | None = None
    simplify: bool = True
    workspace: float | None = None
    nms: bool = False
    batch: int = 1
    data: str | None = None
    fraction: float = 1.0
    device: int | str | None = None
    backend: str | None = None
    calibration: str | None = None
    implicit: bool = False
    keep: tuple[str, ...] = ()
    opt_level: int | None = None
    isolate: bool = False
    output: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        self._convert_settings()
        if self.format not in FORMATS:
            raise RecipeError(
                f"export format={self.format!r}", "there is no such format", f"use one of {', '.join(FORMATS)}"
            )
        if self.backend == "onnxruntime" and self.format == "engine":
            raise RecipeError(
                "export format='engine' with backend='onnxruntime'",
                "ONNX Runtime runs ONNX files and builds no engines",
                "use format='onnx', or backend='tensorrt' or 'tensorrt_rtx'",
            )
        if self.half and self.int8:
            raise RecipeError(
                "export with half=True and int8=True",
                "they ask for two precisions at once",
                "use int8=True alone: what is not worth INT8 runs in FP16 anyway",
            )
        if self.int8 and self.calibration is not None and self.data is not None:
            raise RecipeError(
                "export with both calibration= and data=",
                "only one of them can give the ranges",
                "leave data out, or calibration to measure anew",
            )
        if self.implicit and not (self.int8 and self.format == "engine"):
            raise RecipeError(
                "calibrate by implicit=True",
                "TensorRT's own calibrator makes INT8 engines only",
                "add int8=True and format='engine', or leave implicit out",
            )
        if self.implicit and (self.keep or self.calibration is not None):
            raise RecipeError(
                "calibrate by implicit=True with keep= or calibration=",
                "TensorRT's own calibrator measures by itself and chooses the layers",
                "leave implicit out to choose them yourself",
            )
        if self.opt_level is not None and not 0 <= self.opt_level <= 5:
            raise RecipeError(
                f"build at opt_level={self.opt_level}", "TensorRT knows levels 0 to 5", "use one of them or None"
            )
        sides = (self.imgsz,) if isinstance(self.imgsz, int) else (self.imgsz or ())
        if any(side < 1 for side in sides) or (not isinstance(self.imgsz, int) and len(sides) not in (0, 2)):
            raise RecipeError(
                f"export at imgsz={self.imgsz}", "that is no image size", "use one side or (height, width)"
            )
        if self.batch < 1:
            raise RecipeError(f"export with batch={self.batch}", "a batch holds at least one image", "use batch >= 1")
        if not (0 < self.fraction <= 1):
            raise RecipeError(
                f"calibrate on fraction={self.fraction}",
                "a share lies above 0 and at most at 1",
                "use 0 < fraction <= 1",
            )
        if self.workspace is not None and not (self.workspace > 0 and math.isfinite(self.workspace)):
            raise RecipeError(
                f"build with workspace={self.workspace}", "that is no size in GiB", "use a positive number or None"
            )

    def _convert_settings(self) -> None:
        """Turn paths, numpy's numbers and lists into what Python code, JSON and a command line spell alike."""
        for field in dataclasses.fields(self):
            given = getattr(self, field.name)
            if given is None:
                continue
            try:
                plain = _CONVERTERS[field.name](given)
            except (TypeError, ValueError) as error:
                raise RecipeError(
                    f"export with {field.name}={given!r}",
                    f"that is no value for it ({error})",
                    "see help(trtkit.Recipe)",
                ) from error
            object.__setattr__(self, field.name, plain)

    @property
    def precision(self) -> str:
        """ "fp32", "fp16" or "int8"."""
        return "int8" if self.int8 else "fp16" if self.half else "fp32"

    @property
    def is_dynamic(self) -> bool:
        """Whether shapes are left open: as asked, or for INT8 engines by default, as the export guide has it."""
        return self.dynamic if self.dynamic is not None else (self.int8 and self.format == "engine")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping of every setting."""
        values = dataclasses.asdict(self)
        values["keep"] = list(self.keep)
        if isinstance(self.imgsz, tuple):
            values["imgsz"] = list(self.imgsz)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The inverse of `to_dict`.

        Raises:
            RecipeError: A name is unknown, `model` is missing, or a value is out of range.
        """
        unknown = set(values) - {field.name for field in dataclasses.fields(cls)}
        if unknown or "model" not in values:
            found = f"unknown settings {sorted(unknown)}" if unknown else "no model"
            raise RecipeError("read a recipe", found, "use the names of export()")
        return cls(**values)

    def non_default_settings(self) -> dict[str, Any]:
        """The settings that differ from their defaults, the model left out."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "model" and getattr(self, field.name) != field.default
        }

    def to_python(self) -> str:
        """Python code that rebuilds this recipe as `recipe`; `tk.export(**recipe.to_dict())` makes the file again."""
        settings = "".join(f",\n    {name}={value!r}" for name, value in self.non_default_settings().items())
        return f"import trtkit as tk\n\nrecipe = tk.Recipe(\n    model={self.model!r}{settings},\n)\n"

    def to_command(self) -> str:
        """The command line that does the same, quoted for a POSIX shell."""
        words = ["trtkit", "export", f"--model={self.model}"]
        for name, value in self.non_default_settings().items():
            flag = "--" + name.replace("_", "-")
            if isinstance(value, bool):
                words.append(flag if value else f"--no-{flag[2:]}")
            elif name == "keep":
                words += [f"{flag}={pattern}" for pattern in value]
            elif isinstance(value, tuple):
                words.append(f"{flag}={','.join(map(str, value))}")
            else:
                words.append(f"{flag}={value!r}" if isinstance(value, float) else f"{flag}={value}")
        return shlex.join(words)


def _to_bool(value: Any) -> bool:
    if value not in (False, True):
        raise ValueError("neither True nor False")
    return bool(value)


def _to_int(value: Any) -> int:
    return int(operator.index(value))


def _to_str(value: Any) -> str:
    # Also of a subclass, which may have a spelling of its own.
    return str.__str__(os.fsdecode(value))


def _to_imgsz(value: Any) -> int | tuple[int, ...]:
    return tuple(map(_to_int, value)) if hasattr(value, "__iter__") else _to_int(value)


def _to_device(value: Any) -> int | str:
    """A number where it reads as one: a command line can't tell the two apart."""
    text = _to_str(value) if isinstance(value, str) else str(_to_int(value))
    return int(text) if re.fullmatch(r"-?[0-9]+", text) else text


def _to_patterns(value: Any) -> tuple[str, ...]:
    # One pattern needs no brackets.
    return (_to_str(value),) if isinstance(value, str) else tuple(map(_to_str, value))


_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("model", "format", "data", "backend", "calibration", "output"), _to_str),
    **dict.fromkeys(("half", "int8", "dynamic", "simplify", "nms", "implicit", "isolate", "overwrite"), _to_bool),
    **dict.fromkeys(("batch", "opt_level"), _to_int),
    **dict.fromkeys(("workspace", "fraction"), float),
    "imgsz": _to_imgsz,
    "device": _to_device,
    "keep": _to_patterns,
}
"""What makes a setting plain, by its name."""


def round_imgsz(imgsz: int | tuple[int, int], stride: int) -> tuple[int, int]:
    """Height and width, each rounded up to a multiple of the stride.

    Args:
        imgsz: One side or (height, width), pixels.
        stride: The model's stride, pixels.
    """
    height, width = (imgsz, imgsz) if isinstance(imgsz, int) else imgsz
    return -(-height // stride) * stride, -(-width // stride) * stride
