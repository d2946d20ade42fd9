"""Recipe: the settings of one export, validated before anything slow starts, and their replay code."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from typing import Any

from trtkit.arguments import ARGUMENTS, FORMATS, PRECISIONS, Rule, check_argument, to_path
from trtkit.errors import RecipeError

__all__ = [
    "FORMATS",
    "PRECISIONS",
    "Recipe",
    "command_words",
    "format_label",
    "python_arguments",
    "round_imgsz",
]

MAX_ROWS = 3840
"""The largest k of TensorRT's TopK."""

_VERSION_1 = {"level": "opt_level"}
"""Names of settings that trtkit 0.1.0 wrote, and the present ones."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of one export; names and defaults are those of `export`.

    Attributes:
        model: The model file.
        format: "engine" or "onnx".
        imgsz: Image side, or height and width, pixels; None takes the model's own.
        half: FP16.
        int8: INT8.
        dynamic: Leave batch, height and width open; None means yes for an INT8 engine without `space_to_depth` and no
            otherwise.
        simplify: Simplify the graph with onnxslim.
        workspace: Memory the builder may use, GiB; None lets TensorRT decide.
        nms: Put NMS into the graph.
        decode: Decode boxes and scores in the graph; False returns the head's raw maps.
        end2end: Take the checkpoint's one-to-one head, whose rows need no NMS.
        conf: With `nms`, the lowest score, exclusive.
        iou: With `nms`, of two boxes of one class with IoU > `iou` the lower score is dropped.
        max_det: Rows of NMS in the graph or of the one-to-one head, 1 to 3840.
        batch: The largest batch.
        data: Calibration data for INT8, one path or glob pattern or several; None takes the task's embedded example set
            and warns.
        fraction: Share of the split that calibration images are drawn from, in (0, 1].
        device: GPU index or name ("cuda:1"), "dla:0", or "sm89" (build for a GPU that is not here); None = first GPU.
        backend: Name of a registered backend, such as "tensorrt"; None takes the best present.
        calibration: Folder of a saved calibration; None calibrates on `data`.
        implicit: INT8 by TensorRT's own calibrator (TensorRT <= 10) instead of Q/DQ in the graph.
        keep: fnmatch patterns of ONNX node names excluded from INT8 (with FP16: kept in FP32).
        compatibility: Machines that run the engine besides those like the builder's; None for no others.
        weights: "refittable" or "stripped"; None for weights that stay as they are.
        opt_level: TensorRT's optimization level, 0 (fast build) to 5; None takes TensorRT's default, 3.
        aux_streams: Streams beside the first on which TensorRT may run layers that do not depend on each other, 0 to
            16; None lets TensorRT decide.
        space_to_depth: Read pixels in blocks instead of FP32 images; see `export`.
        builds: Builds of an engine, of which the fastest is kept.
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
    decode: bool = True
    end2end: bool = False
    conf: float = 0.25
    iou: float = 0.7
    max_det: int = 300
    batch: int = 1
    data: str | tuple[str, ...] | None = None
    fraction: float = 1.0
    device: int | str | None = None
    backend: str | None = None
    calibration: str | None = None
    implicit: bool = False
    keep: tuple[str, ...] = ()
    compatibility: str | None = None
    weights: str | None = None
    opt_level: int | None = None
    aux_streams: int | None = None
    space_to_depth: bool = False
    builds: int = 1
    isolate: bool = False
    output: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        self._convert_settings()
        if self.backend == "onnxruntime" and self.format == "engine":
            raise RecipeError(
                "export format='engine' with backend='onnxruntime'",
                "ONNX Runtime runs ONNX files and builds no engines",
                "use format='onnx', or backend='tensorrt' or 'tensorrt_rtx'",
                code="recipe-backend-builds-no-engine",
                value=self.backend,
            )
        if self.half and self.int8:
            raise RecipeError(
                "export with half=True and int8=True",
                "they request two precisions",
                "use int8=True alone: layers that do not gain from INT8 run in FP16",
                code="recipe-two-precisions",
            )
        if self.int8 and self.calibration is not None and self.data is not None:
            raise RecipeError(
                "export with calibration= and data=",
                "only one of them can give the ranges",
                "leave out data, or leave out calibration to calibrate again",
                code="recipe-calibration-and-data",
            )
        properties = {"compatibility": None, "weights": None, "aux_streams": None, "space_to_depth": False, "builds": 1}
        for name, absent in properties.items():
            if getattr(self, name) != absent and self.format != "engine":
                raise RecipeError(
                    f"export format={self.format!r} with {name}={getattr(self, name)!r}",
                    "it is a property of engines",
                    f"use format='engine', or leave out {name}",
                    code="recipe-needs-engine",
                    name=name,
                )
        if self.builds > 1 and self.weights == "stripped":
            raise RecipeError(
                f"export with builds={self.builds} and weights='stripped'",
                "an engine without weights can't be timed",
                "leave out builds, or build with weights='refittable'",
                code="recipe-builds-need-weights",
            )
        if self.implicit and not (self.int8 and self.format == "engine"):
            raise RecipeError(
                "export with implicit=True",
                "TensorRT's own calibrator makes INT8 engines only",
                "add int8=True and format='engine', or leave out implicit",
                code="recipe-implicit-needs-int8-engine",
            )
        if self.implicit and (self.keep or self.calibration is not None):
            raise RecipeError(
                "export with implicit=True and keep= or calibration=",
                "TensorRT's own calibrator computes the ranges and chooses the layers",
                "leave out implicit to choose them",
                code="recipe-implicit-excludes-keep-and-calibration",
            )
        if self.space_to_depth and (self.precision == "fp32" or self.implicit):
            raise RecipeError(
                "export with space_to_depth=True",
                "the graph gives its pixels INT8 or FP16",
                "add half=True, or int8=True without implicit; or leave out space_to_depth",
                code="recipe-space-to-depth-precision",
                precision=self.precision,
            )
        if self.space_to_depth and self.dynamic:
            raise RecipeError(
                "export with space_to_depth=True and a dynamic graph",
                "blocks of pixels need fixed shapes",
                "pass dynamic=False and the batch, or leave out space_to_depth",
                code="recipe-space-to-depth-needs-fixed-shapes",
            )
        if self.nms and self.end2end:
            raise RecipeError(
                "export with nms=True and end2end=True",
                "a one-to-one head's boxes need no NMS",
                "leave out nms, or leave out end2end to take the one-to-many head",
                code="recipe-nms-and-end2end",
            )
        if self.nms and not self.decode:
            raise RecipeError(
                "export with nms=True and decode=False",
                "NMS compares decoded boxes",
                "leave out nms: predict applies it to raw maps too; or leave out decode",
                code="recipe-nms-needs-decode",
            )
        if self.max_det > MAX_ROWS:
            raise RecipeError(
                f"export with max_det={self.max_det}",
                f"TensorRT selects at most {MAX_ROWS} rows",
                f"use max_det={MAX_ROWS} or less",
                code="recipe-too-many-rows",
                name="max_det",
                value=self.max_det,
            )
        for name, default in (("conf", 0.25), ("iou", 0.7)):
            if getattr(self, name) != default and not self.nms:
                raise RecipeError(
                    f"export with {name}={getattr(self, name)}",
                    "it is a setting of NMS in the graph",
                    f"add nms=True, or pass {name} to predict instead",
                    code="recipe-setting-needs-nms",
                    name=name,
                    value=getattr(self, name),
                )

    def _convert_settings(self) -> None:
        """Check every setting, and convert it to the type with one spelling in Python, JSON and on a command line."""
        for field in dataclasses.fields(self):
            given = getattr(self, field.name)
            if given is not None or "None" not in str(field.type):
                rule = _FILES.get(field.name) or ARGUMENTS[field.name]
                object.__setattr__(self, field.name, check_argument("export", field.name, given, rule))

    @property
    def precision(self) -> str:
        """ "fp32", "fp16" or "int8"."""
        return "int8" if self.int8 else "fp16" if self.half else "fp32"

    @property
    def is_dynamic(self) -> bool:
        """Whether batch, height and width are open: `dynamic`, or by default for INT8 engines that read images."""
        if self.dynamic is not None:
            return self.dynamic
        return self.int8 and self.format == "engine" and not self.space_to_depth

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping of every setting."""
        values = dataclasses.asdict(self)
        values["keep"] = list(self.keep)
        for name in ("imgsz", "data"):
            if isinstance(values[name], tuple):
                values[name] = list(values[name])
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The inverse of `to_dict`.

        Raises:
            RecipeError: A name is unknown, `model` is missing, or a value is out of range.
        """
        if not isinstance(values, Mapping):
            raise RecipeError(
                "read a recipe",
                f"it is a {type(values).__name__}",
                "pass a mapping of settings by name",
                code="recipe-not-a-mapping",
            )
        # trtkit 0.1.0 wrote "level".
        values = {_VERSION_1.get(name, name): value for name, value in values.items()}
        names = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(names))
        if unknown or "model" not in values:
            raise RecipeError(
                "read a recipe",
                f"unknown settings {', '.join(unknown)}" if unknown else "it has no model",
                "use the arguments of export()",
                code="recipe-settings-unknown" if unknown else "recipe-model-missing",
                names=unknown,
            )
        return cls(**values)

    def non_default_settings(self) -> dict[str, Any]:
        """The settings that differ from their defaults, without the model."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "model" and getattr(self, field.name) != field.default
        }

    def to_python(self) -> str:
        """Python code that creates this recipe as `recipe`; `tk.export(**recipe.to_dict())` repeats the export."""
        arguments = python_arguments({"model": self.model, **self.non_default_settings()})
        return f"import trtkit as tk\n\nrecipe = tk.Recipe(\n{arguments})\n"

    def to_command(self) -> str:
        """The command line that repeats the export, quoted for a POSIX shell."""
        return shlex.join(["trtkit", "export", *command_words({"model": self.model, **self.non_default_settings()})])


def python_arguments(values: Mapping[str, Any]) -> str:
    """Keyword arguments in Python, one per line, indented; the patterns of `keep` one per line too.

    Args:
        values: Values by name.
    """
    lines = []
    for name, value in values.items():
        text = repr(value)
        if name == "keep":
            text = "[" + "".join(f"\n        {pattern!r}," for pattern in value) + "\n    ]"
        lines.append(f"    {name}={text},\n")
    return "".join(lines)


def command_words(values: Mapping[str, Any]) -> list[str]:
    """Options of a command line, not quoted.

    Args:
        values: Values by the name of the Python argument.
    """
    words = []
    for name, value in values.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif name == "keep":
            words += [f"--{option}={pattern}" for pattern in value]
        elif name == "data" and isinstance(value, tuple):
            words += [f"--{option}", *value]
        elif isinstance(value, Mapping):
            words += [f"--{option.removesuffix('s')}={key}={item}" for key, item in value.items()]
        elif isinstance(value, tuple):
            words.append(f"--{option}={','.join(map(str, value))}")
        else:
            words.append(f"--{option}={value}")
    return words


def _to_data(value: Any) -> str | tuple[str, ...]:
    if isinstance(value, (list, tuple)):
        paths = tuple(map(to_path, value))
        if not paths:
            raise ValueError("the list is empty")
        return paths[0] if len(paths) == 1 else paths
    return to_path(value)


_PATH = Rule(convert=to_path, expected="a path", example="'yolo11n.pt'")


def _to_model(value: Any) -> str:
    # "" is a model that is still to be chosen, in the wizard.
    return "" if value == "" else to_path(value)


_FILES: Mapping[str, Rule] = {
    "model": Rule(convert=_to_model, expected="a path", example="'yolo11n.pt'"),
    "calibration": _PATH,
    "data": Rule(convert=_to_data, expected="a path or a list of paths", example="'coco.yaml'"),
}
"""Rules of what verbs take open, and a recipe by its path."""


def format_label(label: str) -> str:
    """The label of a comparison's row as shown: "INT8" for a precision, a candidate's name as it is.

    Args:
        label: A precision or a candidate's name.
    """
    return label.upper() if label in PRECISIONS else label


def round_imgsz(imgsz: int | tuple[int, int], stride: int) -> tuple[int, int]:
    """Round an image size up to a multiple of the stride.

    Args:
        imgsz: One side or (height, width), pixels.
        stride: The model's stride, pixels.

    Returns:
        Height and width, pixels.
    """
    height, width = (imgsz, imgsz) if isinstance(imgsz, int) else imgsz
    return -(-height // stride) * stride, -(-width // stride) * stride
