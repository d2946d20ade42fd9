"""The wizard's state: form, results so far, and which steps can be entered; each change gives a new state."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

from trtkit import demo
from trtkit.errors import OutputError, OutputExistsError, RecipeError, TrtkitError
from trtkit.exporter import default_output
from trtkit.recipe import Recipe
from trtkit.widgets.ui.controls import Option
from trtkit.widgets.wizard.files import find_data_problem
from trtkit.widgets.wizard.form import WizardForm
from trtkit.widgets.wizard.options import Machine, end2end_option, nms_option, precision_options
from trtkit.writing import check_output

if TYPE_CHECKING:
    from trtkit.deployment import Deployment
    from trtkit.models import Model
    from trtkit.widgets.wizard.actions import BuiltArtifact, Examination, Measurement

__all__ = ["STEPS", "TITLES", "WizardState"]

TITLES = {
    "model": "Model",
    "settings": "Precision and target",
    "images": "Images",
    "build": "Build",
    "result": "Accuracy and latency",
    "engine": "Engine and code",
}
"""Titles of the steps, in order."""

STEPS = tuple(TITLES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WizardState:
    """Everything the wizard holds.

    Attributes:
        form: The form.
        step: One of `STEPS`.
        machine: What this machine builds and runs; None until it was inspected.
        model: The model; None until it was read.
        model_path: The path it was read from.
        examination: Findings about the calibration images; None until they were examined.
        built: The built file; None before the build.
        measurement: Accuracy and latency of the built file; None before it was measured.
        deployment: The folder that serves the built file; None before it was written.
        own_files: Identity of each file this wizard built, which it may replace.
    """

    form: WizardForm
    step: str = "model"
    machine: Machine | None = None
    model: Model | None = None
    model_path: str = ""
    examination: Examination | None = None
    built: BuiltArtifact | None = None
    measurement: Measurement | None = None
    deployment: Deployment | None = None
    own_files: frozenset[tuple[str, ...]] = frozenset()

    @classmethod
    def initial(cls, recipe: Recipe | None, data: str = "") -> WizardState:
        """The state of a new wizard.

        Args:
            recipe: Fills the form; None fills it with the embedded model and images.
            data: The evaluation data, where the recipe names none.
        """
        form = WizardForm.default() if recipe is None else WizardForm.from_recipe(recipe)
        return cls(form=form.replace(data=data) if data else form)

    def _replace(self, **changes: object) -> WizardState:
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    # Changes

    def fill(self, **fields: object) -> WizardState:
        """Fill in fields of the form."""
        return self._replace(form=self.form.replace(**fields))

    def select_target(self, target: str) -> WizardState:
        """Select a target; a precision it does not offer becomes INT8 (Q/DQ)."""
        assert self.machine is not None
        form = self.form.with_target(target, self.machine)
        available = {option.value for option in precision_options(target, self.machine) if option.available}
        return self._replace(form=form if form.precision in available else form.replace(precision="int8"))

    def with_machine(self, machine: Machine) -> WizardState:
        """Store what this machine builds and runs."""
        return self._replace(machine=machine)

    def with_model(self, model: Model, path: str) -> WizardState:
        """Store the model; images of another task, NMS and a head that the model can't have are reset."""
        form = self.form.replace(model=path).for_task(model.task)
        if not nms_option(model.task, model.nms).available:
            form = form.replace(nms=False)
        if not end2end_option(model).available:
            form = form.replace(end2end=False)
        return self._replace(form=form, model=model, model_path=path)

    def with_examination(self, examination: Examination) -> WizardState:
        """Store the findings about the calibration images."""
        return self._replace(examination=examination)

    def with_built(self, built: BuiltArtifact) -> WizardState:
        """Store the built file; building it again may replace it."""
        own_files = self.own_files | {_file_identity(built.artifact.recipe)}
        return self._replace(built=built, measurement=None, deployment=None, own_files=own_files)

    def with_measurement(self, measurement: Measurement) -> WizardState:
        """Store accuracy and latency."""
        return self._replace(measurement=measurement)

    def with_deployment(self, deployment: Deployment) -> WizardState:
        """Store the folder that serves the built file."""
        return self._replace(deployment=deployment)

    def go(self, step: str) -> WizardState:
        """Enter a step.

        Raises:
            RecipeError: The step can't be entered yet.
        """
        reason = self.blocked(step)
        if reason:
            raise RecipeError(
                f"go to {TITLES[step]!r}", reason.rstrip("."), "then try again", code="wizard-step-blocked", step=step
            )
        return self._replace(step=step)

    # Recipe and code

    def recipe(self) -> Recipe:
        """The recipe of the form.

        Raises:
            RecipeError: A field can't be parsed, or a value is out of range.
        """
        recipe = self.form.recipe()
        return dataclasses.replace(recipe, overwrite=True) if self.replaces_own_file else recipe

    @property
    def replaces_own_file(self) -> bool:
        """Whether the form's output was built by this wizard.

        Raises:
            RecipeError: The form gives no recipe.
        """
        return _file_identity(self.form.recipe()) in self.own_files

    @property
    def output_path(self) -> Path | None:
        """The file that a build writes; None before the model was read.

        Raises:
            RecipeError: The form gives no recipe.
        """
        recipe = self.form.recipe()
        if recipe.output is not None:
            return Path(recipe.output).absolute()
        return None if self.model is None else default_output(self.model, recipe).absolute()

    @property
    def output_problem(self) -> str:
        """Why the output can't be written; "" where it can, or before the model was read."""
        if self.problem:
            return ""
        path = self.output_path
        try:
            if path is not None:
                check_output(path, overwrite=self.recipe().overwrite)
        except OutputExistsError:
            return f"{path} exists: allow replacing it, or name another output."
        except OutputError as error:
            return str(error)
        return ""

    @property
    def code(self) -> tuple[str, str]:
        """Python and the command line that repeat the build.

        Raises:
            RecipeError: The form gives no recipe.
        """
        recipe = self.recipe()
        return f"{recipe.to_python()}artifact = tk.export(**recipe.to_dict())\n", recipe.to_command()

    # What is possible, outdated and finished

    @property
    def nms_option(self) -> Option:
        """NMS in the graph, and whether the model can have it."""
        return nms_option(self.model.task if self.model else None, self.model.nms if self.model else False)

    @property
    def end2end_option(self) -> Option:
        """The one-to-one head, and whether the model has one."""
        return end2end_option(self.model)

    @property
    def problem(self) -> str:
        """Why the form can't be built; "" where it can."""
        return self.form.find_problem(self.machine)

    @property
    def data_problem(self) -> str:
        """Why the images can't be for this model, as far as a look at the path tells; "" otherwise."""
        if self.model_problem or self.model is None or not self.form.data:
            return ""
        return find_data_problem(self.form.data, self.model.task)

    @property
    def model_problem(self) -> str:
        """Why the model is unknown; "" once it was read."""
        if not self.form.model.strip():
            return "Name a model first."
        if self.model is None:
            return "Read the model first."
        return "" if self.model_path == self.form.model else "Read the model first: its path was changed."

    @property
    def examine_problem(self) -> str:
        """Why there are no calibration images to examine; "" where there are."""
        if self.model_problem:
            return self.model_problem
        if not self.form.int8:
            return f"{self.form.precision.upper()} needs no calibration images."
        if not self.form.calibrates:
            return "A saved calibration is used: no calibration images are needed."
        return ""

    @property
    def examination_outdated(self) -> bool:
        """Whether the findings are about other images than the form names."""
        if self.examination is None:
            return False
        settings = self.examination.diagnosis.provenance.settings
        task = settings["task"]
        data = self.form.data or (demo.data_path(task) if task in demo.EMBEDDED_TASKS else "")
        same_data = Path(settings["data"]).absolute() == Path(os.path.expanduser(data)).absolute()  # noqa: PTH111
        return not same_data or settings["fraction"] != self.form.fraction

    @property
    def outdated(self) -> str:
        """A warning where the form was changed after the build; "" where the built file fits the form."""
        if self.built is None:
            return ""
        try:
            recipe = self.form.recipe()
        except TrtkitError:
            recipe = None
        # `overwrite` does not change the file.
        built = dataclasses.replace(self.built.artifact.recipe, overwrite=False)
        if recipe is not None and dataclasses.replace(recipe, overwrite=False) == built:
            return ""
        return "The settings were changed after the build: this is the file of the earlier settings. Build again."

    def blocked(self, step: str) -> str:
        """Why a step can't be entered; "" where it can.

        Args:
            step: One of `STEPS`.
        """
        if step == "model":
            return ""
        if self.model_problem:
            return self.model_problem
        if step == "settings":
            return ""
        if self.machine is None:
            return "This machine is still being inspected."
        if self.problem:
            return self.problem
        if step == "result" and self.built is None:
            return "Build the file first."
        return ""

    @property
    def next_step(self) -> str | None:
        """The step after this one; None after the last."""
        index = STEPS.index(self.step) + 1
        return STEPS[index] if index < len(STEPS) else None

    @property
    def previous_step(self) -> str | None:
        """The step before this one; None before the first."""
        index = STEPS.index(self.step) - 1
        return STEPS[index] if index >= 0 else None

    @property
    def finished_steps(self) -> frozenset[str]:
        """Steps that are done and fit the form."""
        finished = set()
        if not self.model_problem:
            finished.add("model")
            if self.machine is not None and not self.problem:
                finished.add("settings")
        if self.examination is not None and not self.examination_outdated:
            finished.add("images")
        if self.built is not None and not self.outdated:
            finished |= {"build", "engine"} | ({"result"} if self.measurement is not None else set())
        return frozenset(finished)


def _file_identity(recipe: Recipe) -> tuple[str, ...]:
    """What an export names its file by."""
    return recipe.model, recipe.output or "", recipe.precision, recipe.format
