"""The wizard's form: what was chosen, what follows from it, and the recipe it comes to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from trtkit import demo
from trtkit.errors import RecipeError, TrtkitError
from trtkit.recipe import Recipe
from trtkit.widgets.wizard.options import Device, Machine, device_options, precision_options, target_options

__all__ = ["OUTPUT", "WizardForm"]

OUTPUT = Path("runs/wizard")
"""Where the wizard puts what is made from a model inside the package, which is no place for a user's files."""

NO_DEVICES: Mapping[str, Device] = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WizardForm:
    """Every field of the form, as it was filled in; nothing is lost by choosing something that does not use it.

    Attributes:
        model: The model's path.
        precision: "fp32", "fp16", "int8" or "implicit".
        target: "best", "tensorrt", "tensorrt_rtx" or "onnx".
        devices: What an engine is built for, by target.
        imgsz: "" for the model's own, or "640" or "480,640".
        batch: The largest batch.
        dynamic: Open shapes: yes, no, or None for what suits the target.
        simplify: Simplify the graph.
        nms: Put suppression into the graph.
        workspace: GiB, "" to let TensorRT decide.
        opt_level: Optimization level, or None for TensorRT's own.
        isolate: Build in a child process.
        keep: Patterns of nodes that stay in high precision.
        data: The data set's path; "" for the small example set.
        fraction: Share of the calibration images.
        measured: Whether ranges come from `calibration` instead of being measured on `data`.
        calibration: Folder of a saved calibration.
        check: Whether an FP16 export looks for overflow on the images.
        output: The file to write, "" to name it after the model.
        overwrite: Replace it if it exists.
        images: Images to judge by, None for all.
        baseline: Whether FP32 is judged beside the result.
        onnxruntime: Whether an ONNX recipe named its backend.
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
    workspace: str = ""
    opt_level: int | None = None
    isolate: bool = False
    keep: tuple[str, ...] = ()
    data: str = ""
    fraction: float = 1.0
    measured: bool = False
    calibration: str = ""
    check: bool = False
    output: str = ""
    overwrite: bool = False
    eval_images: int | None = None
    baseline: bool = True
    onnxruntime: bool = False

    @classmethod
    def start(cls) -> WizardForm:
        """The form as it first appears: the embedded model and images, INT8, the best engine here."""
        return cls(model=str(demo.model_path()), data=str(demo.data_path()), check=True)

    @classmethod
    def of(cls, recipe: Recipe) -> WizardForm:
        """The form that a recipe fills in."""
        onnx = recipe.format == "onnx"
        target = "onnx" if onnx else recipe.backend or "best"
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
            workspace="" if recipe.workspace is None else repr(recipe.workspace),
            opt_level=recipe.opt_level,
            isolate=recipe.isolate,
            keep=recipe.keep,
            data=recipe.data or "",
            fraction=recipe.fraction,
            measured=recipe.calibration is not None,
            calibration=recipe.calibration or "",
            check=recipe.half and recipe.data is not None,
            output=recipe.output or "",
            overwrite=recipe.overwrite,
            onnxruntime=onnx and recipe.backend is not None,
        )

    def changed(self, **fields: object) -> WizardForm:
        """This form with some fields filled in otherwise."""
        return dataclasses.replace(self, **fields)  # type: ignore[arg-type]

    @property
    def device(self) -> Device:
        """What the engine is built for."""
        return self.devices.get(self.target)

    def aimed(self, device: Device) -> WizardForm:
        """This form with another device for the same target."""
        return self.changed(devices={**self.devices, self.target: device})

    def targeting(self, target: str, machine: Machine) -> WizardForm:
        """This form with another target; one that was not chosen before starts at the GPU here, or at a common one."""
        from trtkit.backends.capabilities import DEFAULT_TARGET

        plan = self.changed(target=target)
        if target in self.devices:
            return plan
        found = [device for _, device in device_options(target, machine)]
        return plan.aimed(DEFAULT_TARGET if found[0] is not None and DEFAULT_TARGET in found else found[0])

    def fitting(self, task: str) -> WizardForm:
        """This form for a model of that task: the embedded images of another task give way to this one's."""
        embedded = {str(demo.data_path(name)) for name in demo.EMBEDDED_TASKS}
        if self.data not in embedded:
            return self
        return self.changed(data=str(demo.data_path(task)) if task in demo.EMBEDDED_TASKS else "")

    @property
    def int8(self) -> bool:
        """Whether either kind of INT8 is chosen."""
        return self.precision in ("int8", "implicit")

    @property
    def calibrates(self) -> bool:
        """Whether the export measures ranges on images."""
        return self.precision == "implicit" or (self.precision == "int8" and not self.measured)

    @property
    def engine(self) -> bool:
        """Whether an engine is made."""
        return self.target != "onnx"

    @property
    def output_shown(self) -> str:
        """The output that an empty field stands for; "" where that is beside the model."""
        if not Path(self.model).is_absolute() or not Path(self.model).is_relative_to(demo.model_path().parent):
            return ""
        mark = "" if self.precision == "fp32" else "-int8" if self.int8 else "-fp16"
        return str(OUTPUT / f"{Path(self.model).stem}{mark}{'.engine' if self.engine else '.onnx'}")

    def recipe(self) -> Recipe:
        """What the form comes to; settings that the choices have no use for are left at their defaults.

        Raises:
            RecipeError: A field can't be read, or a value is out of range.
        """
        images = self.calibrates or (self.precision == "fp16" and self.check and bool(self.data))
        from_folder = self.precision == "int8" and self.measured
        if from_folder and not self.calibration:
            raise RecipeError(
                "take the ranges from a saved calibration", "no folder is named", "name one, or measure on images"
            )
        backend = self.target if self.engine and self.target != "best" else None
        return Recipe(
            model=self.model,
            format="engine" if self.engine else "onnx",
            backend="onnxruntime" if not self.engine and self.onnxruntime else backend,
            device=self.device if self.engine else None,
            half=self.precision == "fp16",
            int8=self.int8,
            implicit=self.precision == "implicit",
            imgsz=_parse_imgsz(self.imgsz),
            batch=self.batch,
            dynamic=self.dynamic,
            simplify=self.simplify,
            nms=self.nms,
            workspace=_parse_workspace(self.workspace) if self.engine else None,
            opt_level=self.opt_level if self.engine else None,
            isolate=self.isolate and self.engine,
            keep=self.keep if self.precision in ("fp16", "int8") else (),
            data=self.data or None if images else None,
            fraction=self.fraction if images else 1.0,
            calibration=self.calibration if from_folder else None,
            output=self.output or self.output_shown or None,
            overwrite=self.overwrite,
        )

    def problem(self, machine: Machine | None) -> str:
        """Why this form can't be built, in a sentence; "" where it can.

        Args:
            machine: What can be done here; None leaves that question out.
        """
        try:
            recipe = self.recipe()
        except TrtkitError as error:
            return str(error)
        if machine is None:
            return ""
        for choice in (*target_options(machine), *precision_options(self.target, machine)):
            if choice.value in (self.target, self.precision) and not choice.possible:
                return f"{choice.label}: {choice.reason}."
        return machine.refuses(recipe.backend, recipe.device) if self.engine else ""


def _parse_imgsz(text: str) -> int | tuple[int, int] | None:
    """ "640" or "480,640" in pixels; "" as None.

    Raises:
        RecipeError: It is neither.
    """
    parts = [part.strip() for part in text.replace("x", ",").split(",")]
    if parts == [""]:
        return None
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise RecipeError(f"export at imgsz={text}", "that is no image size", "write one side or height,width")
    return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))


def _parse_workspace(text: str) -> float | None:
    """Gibibytes; "" as None.

    Raises:
        RecipeError: It is no number.
    """
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError:
        raise RecipeError(
            f"build with workspace={text}", "that is no size in GiB", "write a number, or leave the field empty"
        ) from None
