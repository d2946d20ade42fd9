"""Where the wizard is, what it has found, and where it may go; each move gives a new state and loses nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from trtkit import demo
from trtkit.errors import RecipeError, TrtkitError
from trtkit.recipe import Recipe
from trtkit.widgets.ui.controls import Option
from trtkit.widgets.wizard.form import WizardForm
from trtkit.widgets.wizard.options import Machine, nms_option

if TYPE_CHECKING:
    from trtkit.models import Model
    from trtkit.widgets.wizard.actions import BuiltArtifact, Examination, Measurement

__all__ = ["STEPS", "TITLES", "WizardState"]

TITLES = {
    "model": "Model",
    "choices": "Precision and target",
    "images": "Images",
    "build": "Build",
    "result": "Accuracy and latency",
    "engine": "Engine and code",
}
"""Readable names of the steps, in order."""

STEPS = tuple(TITLES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WizardState:
    """Everything the wizard knows.

    Attributes:
        plan: The form.
        step: One of `STEPS`.
        machine: What can be done here; None until it was looked at.
        model: The model that was read; None until then.
        read: The path it was read from.
        examined: What the doctor said of the calibration images; None until asked.
        made: What was built; None until then.
        measured: Its accuracy and latency; None until then.
        written: What names each file that was built here; those may be replaced.
    """

    plan: WizardForm
    step: str = "model"
    machine: Machine | None = None
    model: Model | None = None
    read: str = ""
    examined: Examination | None = None
    made: BuiltArtifact | None = None
    measured: Measurement | None = None
    written: frozenset[tuple[str, ...]] = frozenset()

    @classmethod
    def of(cls, recipe: Recipe | None, data: str = "") -> WizardState:
        """The state a wizard begins in.

        Args:
            recipe: What fills the form; None fills it with the embedded model and images.
            data: Images to judge by, where the recipe names none.
        """
        plan = WizardForm.start() if recipe is None else WizardForm.of(recipe)
        return cls(plan=plan.changed(data=data) if data else plan)

    def fill(self, **fields: object) -> WizardState:
        """Fill in some fields of the form."""
        return self._with(plan=self.plan.changed(**fields))

    def _with(self, **changes: object) -> WizardState:
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def looked(self, machine: Machine) -> WizardState:
        """The machine was looked at."""
        return self._with(machine=machine)

    def target(self, target: str) -> WizardState:
        """Choose a target; a precision that it can't have gives way to INT8 by the graph."""
        assert self.machine is not None
        plan = self.plan.targeting(target, self.machine)
        from trtkit.widgets.wizard.options import precision_options

        possible = {one.value for one in precision_options(target, self.machine) if one.possible}
        return self._with(plan=plan if plan.precision in possible else plan.changed(precision="int8"))

    def has_read(self, model: Model, path: str) -> WizardState:
        """A model was read: images of another task and suppression that it can't have are left behind."""
        plan = self.plan.changed(model=path).fitting(model.task)
        if not nms_option(model.task, model.nms).possible:
            plan = plan.changed(nms=False)
        return self._with(plan=plan, model=model, read=path)

    def has_examined(self, examined: Examination) -> WizardState:
        """The doctor has answered."""
        return self._with(examined=examined)

    def has_built(self, made: BuiltArtifact) -> WizardState:
        """A file was made; making it again may replace it."""
        written = self.written | {_name(made.artifact.recipe)}
        return self._with(made=made, measured=None, written=written)

    def has_measured(self, measured: Measurement) -> WizardState:
        """The file was measured."""
        return self._with(measured=measured)

    @property
    def nms(self) -> Option:
        """Whether suppression can be put into the graph."""
        return nms_option(self.model.task if self.model else None, self.model.nms if self.model else False)

    @property
    def rewrites(self) -> bool:
        """Whether the file that the choices lead to was written by this wizard before.

        Raises:
            RecipeError: The form has no recipe yet.
        """
        return _name(self.plan.recipe()) in self.written

    def recipe(self) -> Recipe:
        """What the choices come to.

        Raises:
            RecipeError: A field can't be read, or a value is out of range.
        """
        recipe = self.plan.recipe()
        return dataclasses.replace(recipe, overwrite=True) if self.rewrites else recipe

    @property
    def problem(self) -> str:
        """Why the choices can't be built; "" where they can."""
        return self.plan.problem(self.machine)

    @property
    def unread(self) -> str:
        """Why nothing is known of the model; "" once it was read."""
        if not self.plan.model.strip():
            return "Name a model first."
        if self.model is None:
            return "Read the model first."
        return "" if self.read == self.plan.model else "Read the model first: its path was changed."

    @property
    def stale(self) -> str:
        """What a reader of the results must know when the choices were changed since; "" where they fit."""
        if self.made is None:
            return ""
        try:
            wanted = self.plan.recipe()
        except TrtkitError:
            wanted = None
        # Whether a file may be replaced changes nothing in it.
        old = dataclasses.replace(self.made.artifact.recipe, overwrite=False)
        if wanted is not None and dataclasses.replace(wanted, overwrite=False) == old:
            return ""
        return "The choices were changed since: this is about the file that was built before. Build again to renew it."

    @property
    def unexaminable(self) -> str:
        """Why the doctor has nothing to look at; "" where it has."""
        if self.unread:
            return self.unread
        if not self.plan.int8:
            return f"{self.plan.precision.upper()} is not calibrated: there are no calibration images to examine."
        if not self.plan.calibrates:
            return "The ranges come from a saved calibration: no images are measured."
        return ""

    @property
    def out_of_date(self) -> bool:
        """Whether the doctor spoke of other images than are chosen now."""
        if self.examined is None:
            return False
        settings = self.examined.diagnosis.provenance.settings
        data = self.plan.data or (demo.data_path(settings["task"]) if settings["task"] in demo.EMBEDDED_TASKS else "")
        same = Path(settings["data"]).absolute() == Path(data).expanduser().absolute()
        return not same or settings["fraction"] != self.plan.fraction

    def blocked(self, step: str) -> str:
        """Why a step can't be entered; "" where it can."""
        if step == "model":
            return ""
        if self.unread:
            return self.unread
        if step == "choices":
            return ""
        if self.machine is None:
            return "This machine is still being looked at."
        if self.problem:
            return self.problem
        if step == "result" and self.made is None:
            return "Build the file first."
        return ""

    def go(self, step: str) -> WizardState:
        """Enter a step.

        Raises:
            RecipeError: It is blocked.
        """
        reason = self.blocked(step)
        if reason:
            raise RecipeError(f"go to {TITLES[step]!r}", reason.rstrip("."), "then try again")
        return self._with(step=step)

    @property
    def following(self) -> str | None:
        """The step after this one, None after the last."""
        place = STEPS.index(self.step) + 1
        return STEPS[place] if place < len(STEPS) else None

    @property
    def preceding(self) -> str | None:
        """The step before this one, None before the first."""
        place = STEPS.index(self.step) - 1
        return STEPS[place] if place >= 0 else None

    @property
    def finished(self) -> frozenset[str]:
        """Steps whose work is done and fits the choices."""
        done = set()
        if not self.unread:
            done.add("model")
            if self.machine is not None and not self.problem:
                done.add("choices")
        if self.examined is not None and not self.out_of_date:
            done.add("images")
        if self.made is not None and not self.stale:
            done |= {"build", "engine"} | ({"result"} if self.measured is not None else set())
        return frozenset(done)

    @property
    def code(self) -> tuple[str, str]:
        """Python and the command line that repeat the build.

        Raises:
            RecipeError: The form has no recipe yet.
        """
        recipe = self.recipe()
        return f"{recipe.to_python()}artifact = tk.export(**recipe.to_dict())\n", recipe.to_command()


def _name(recipe: Recipe) -> tuple[str, ...]:
    """What an export names its file by."""
    return recipe.model, recipe.output or "", recipe.precision, recipe.format
