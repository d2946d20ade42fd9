"""The wizard's form: every field, what the fields imply, and the recipe they give."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from trtkit import demo
from trtkit.errors import RecipeError, TrtkitError
from trtkit.recipe import Recipe
from trtkit.widgets.wizard.options import Device, Machine, device_options, precision_options, target_options

__all__ = ["OUTPUT_DIR", "WizardForm"]

OUTPUT_DIR = Path("runs/wizard")
"""Output folder for a model inside the package, where nothing may be written."""

NO_DEVICES: Mapping[str, Device] = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WizardForm:
    """Every field of the form. A field that the precision or target does not use keeps its value.

    Attributes:
        model: Path of the model.
        precision: "fp32", "fp16", "int8" or "implicit" (INT8 by TensorRT's own calibrator).
        target: "best", "tensorrt", "tensorrt_rtx" or "onnx".
        devices: The device an engine is built for, by target.
        imgsz: "" for the model's own, or "640" or "480,640", pixels.
        batch: Largest batch.
        dynamic: Dynamic shapes: yes, no, or None for the default of the precision and format.
        simplify: Simplify the graph.
        nms: Put NMS into the graph.
        end2end: Take the model's one-to-one head.
        conf: Lowest score of NMS in the graph.
        iou: IoU above which NMS in the graph drops a box.
        max_det: Rows of NMS in the graph or of the one-to-one head.
        workspace: Builder memory in GiB; "" for TensorRT's own default.
        opt_level: Optimization level; None for TensorRT's own default.
        compatibility: Machines that run the engine besides those like the builder's; None for no others.
        weights: "refittable" or "stripped"; None for weights that stay as they are.
        isolate: Build in a child process.
        keep: Patterns of nodes kept in higher precision (INT8: in FP16; FP16: in FP32).
        data: Path of the data set; "" for the embedded example set.
        fraction: Share of the calibration split to draw from, (0, 1].
        use_saved_calibration: Take INT8 ranges from `calibration`; otherwise calibrate on `data`.
        calibration: Folder of a saved calibration.
        check_overflow: Check an FP16 export for overflow on `data`.
        output: File to write; "" names it after the model.
        overwrite: Replace the file if it exists.
        eval_images: Maximum number of evaluation images; None uses the whole split.
        compare_fp32: Measure FP32 as well, as the reference.
        names_onnxruntime: Whether the recipe of an ONNX file names ONNX Runtime as its backend.
    """

    model: str = ""
    precision: str = "int8"
    target: str = "best"
    devices: Mapping[str, Device] = dataclasses.field(default_factory=lambda: NO_DEVICES)
    imgsz: str = ""
    batch: int = 1
    dynamic: bool | None = None
    simplify: bool = True
    nms: bool = False
    end2end: bool = False
    conf: float = 0.25
    iou: float = 0.7
    max_det: int = 300
    workspace: str = ""
    opt_level: int | None = None
    compatibility: str | None = None
    weights: str | None = None
    isolate: bool = False
    keep: tuple[str, ...] = ()
    data: str = ""
    fraction: float = 1.0
    use_saved_calibration: bool = False
    calibration: str = ""
    check_overflow: bool = False
    output: str = ""
    overwrite: bool = False
    eval_images: int | None = None
    compare_fp32: bool = True
    names_onnxruntime: bool = False

    @classmethod
    def default(cls) -> WizardForm:
        """The initial form: the embedded model and images, INT8, the best engine of this machine."""
        return cls(model=str(demo.model_path()), data=str(demo.data_path()), check_overflow=True)

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> WizardForm:
        """The form filled from a recipe.

        Raises:
            RecipeError: Its data are several paths, or it has a setting that the form has no field for.
        """
        fieldless = {"decode": True, "aux_streams": None, "space_to_depth": False, "builds": 1}
        unknown = [name for name, default in fieldless.items() if getattr(recipe, name) != default]
        if unknown:
            raise RecipeError(
                f"show a recipe with {', '.join(f'{name}={getattr(recipe, name)}' for name in unknown)}",
                "the form has no field for it",
                "export it in Python or on the command line",
                code="wizard-settings-without-field",
                names=unknown,
            )
        is_onnx = recipe.format == "onnx"
        if isinstance(recipe.data, tuple):
            raise RecipeError(
                f"show a recipe with {len(recipe.data)} paths as data",
                "the form has one field for the images",
                "give a folder, a glob pattern, or a text file with one path per line",
                code="wizard-data-list",
                count=len(recipe.data),
            )
        target = "onnx" if is_onnx else recipe.backend or "best"
        size = recipe.imgsz
        return cls(
            model=recipe.model,
            precision="implicit" if recipe.implicit else recipe.precision,
            target=target,
            devices={target: recipe.device},
            imgsz="" if size is None else str(size) if isinstance(size, int) else f"{size[0]},{size[1]}",
            batch=recipe.batch,
            dynamic=recipe.dynamic,
            simplify=recipe.simplify,
            nms=recipe.nms,
            end2end=recipe.end2end,
            conf=recipe.conf,
            iou=recipe.iou,
            max_det=recipe.max_det,
            workspace="" if recipe.workspace is None else repr(recipe.workspace),
            opt_level=recipe.opt_level,
            compatibility=recipe.compatibility,
            weights=recipe.weights,
            isolate=recipe.isolate,
            keep=recipe.keep,
            data=recipe.data or "",
            fraction=recipe.fraction,
            use_saved_calibration=recipe.calibration is not None,
            calibration=recipe.calibration or "",
            check_overflow=recipe.half and recipe.data is not None,
            output=recipe.output or "",
            overwrite=recipe.overwrite,
            names_onnxruntime=is_onnx and recipe.backend is not None,
        )

    def replace(self, **fields: object) -> WizardForm:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **fields)  # type: ignore[arg-type]

    @property
    def device(self) -> Device:
        """The device the engine is built for."""
        return self.devices.get(self.target)

    def with_device(self, device: Device) -> WizardForm:
        """A copy with another device for the same target."""
        return self.replace(devices={**self.devices, self.target: device})

    def with_target(self, target: str, machine: Machine) -> WizardForm:
        """A copy with another target; its device is the one chosen before, else this machine's GPU or a common one."""
        from trtkit.backends.requirements import DEFAULT_TARGET

        form = self.replace(target=target)
        if target in self.devices:
            return form
        devices = [device for _, device in device_options(target, machine)]
        prefers_common = devices[0] is not None and DEFAULT_TARGET in devices
        return form.with_device(DEFAULT_TARGET if prefers_common else devices[0])

    def for_task(self, task: str) -> WizardForm:
        """A copy for a model of that task: embedded images of another task are replaced by those of `task`."""
        embedded = {str(demo.data_path(name)) for name in demo.EMBEDDED_TASKS}
        if self.data not in embedded:
            return self
        return self.replace(data=str(demo.data_path(task)) if task in demo.EMBEDDED_TASKS else "")

    @property
    def int8(self) -> bool:
        """Whether either kind of INT8 is selected."""
        return self.precision in ("int8", "implicit")

    @property
    def calibrates(self) -> bool:
        """Whether the export calibrates on images."""
        return self.precision == "implicit" or (self.precision == "int8" and not self.use_saved_calibration)

    @property
    def builds_engine(self) -> bool:
        """Whether an engine is built."""
        return self.target != "onnx"

    @property
    def default_output(self) -> str:
        """The output an empty field stands for; "" where that is a file beside the model."""
        if not Path(self.model).is_absolute() or not Path(self.model).is_relative_to(demo.model_path().parent):
            return ""
        suffix = "" if self.precision == "fp32" else "-int8" if self.int8 else "-fp16"
        extension = ".engine" if self.builds_engine else ".onnx"
        return str(OUTPUT_DIR / f"{Path(self.model).stem}{suffix}{extension}")

    def recipe(self) -> Recipe:
        """The recipe; fields that the precision or target does not use are left at their defaults.

        Paths have no "~", which only a shell or the field reads as the home folder.

        Raises:
            RecipeError: A field can't be parsed, or a value is out of range.
        """
        uses_images = self.calibrates or (self.precision == "fp16" and self.check_overflow and bool(self.data))
        from_folder = self.precision == "int8" and self.use_saved_calibration
        if from_folder and not self.calibration:
            raise RecipeError(
                "use a saved calibration",
                "no folder is named",
                "name one, or calibrate on images",
                code="wizard-calibration-missing",
            )
        backend = self.target if self.builds_engine and self.target != "best" else None
        return Recipe(
            model=os.path.expanduser(self.model),  # noqa: PTH111 - Path.expanduser raises for an unknown user
            format="engine" if self.builds_engine else "onnx",
            backend="onnxruntime" if not self.builds_engine and self.names_onnxruntime else backend,
            device=self.device if self.builds_engine else None,
            half=self.precision == "fp16",
            int8=self.int8,
            implicit=self.precision == "implicit",
            imgsz=_parse_imgsz(self.imgsz),
            batch=self.batch,
            dynamic=self.dynamic,
            simplify=self.simplify,
            nms=self.nms,
            end2end=self.end2end,
            conf=self.conf if self.nms else 0.25,
            iou=self.iou if self.nms else 0.7,
            max_det=self.max_det if self.nms or self.end2end else 300,
            workspace=_parse_workspace(self.workspace) if self.builds_engine else None,
            opt_level=self.opt_level if self.builds_engine else None,
            compatibility=self.compatibility if self.builds_engine else None,
            weights=self.weights if self.builds_engine else None,
            isolate=self.isolate and self.builds_engine,
            keep=self.keep if self.precision in ("fp16", "int8") else (),
            data=os.path.expanduser(self.data) or None if uses_images else None,  # noqa: PTH111
            fraction=self.fraction if uses_images else 1.0,
            calibration=os.path.expanduser(self.calibration) if from_folder else None,  # noqa: PTH111
            output=os.path.expanduser(self.output) or self.default_output or None,  # noqa: PTH111
            overwrite=self.overwrite,
        )

    def find_problem(self, machine: Machine | None) -> str:
        """Why this form can't be built, in one sentence; "" where it can.

        Args:
            machine: What this machine can build; None checks the fields only.
        """
        try:
            recipe = self.recipe()
        except TrtkitError as error:
            return str(error)
        if machine is None:
            return ""
        for option in (*target_options(machine), *precision_options(self.target, machine)):
            if option.value in (self.target, self.precision) and not option.available:
                return f"{option.label}: {option.reason}."
        return machine.find_build_problem(recipe.backend, recipe.device) if self.builds_engine else ""


def _parse_imgsz(text: str) -> int | tuple[int, int] | None:
    """ "640", "480,640" or "480x640" in pixels; "" as None.

    Raises:
        RecipeError: The text is no image size.
    """
    sides = [side.strip() for side in text.replace("x", ",").split(",")]
    if sides == [""]:
        return None
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise RecipeError(
            f"export at imgsz={text}",
            "that is no image size",
            "use one side or height,width",
            code="wizard-imgsz-unreadable",
            value=text,
        )
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def _parse_workspace(text: str) -> float | None:
    """A number of GiB; "" as None.

    Raises:
        RecipeError: The text is no number.
    """
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError:
        raise RecipeError(
            f"build with workspace={text}",
            "that is no size in GiB",
            "use a number, or leave the field empty",
            code="wizard-workspace-unreadable",
            value=text,
        ) from None
