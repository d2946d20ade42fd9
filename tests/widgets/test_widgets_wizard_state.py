"""Where the wizard may go from every state, why not elsewhere, and what it knows to be out of date."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import machines
import plotly.graph_objects as go
import polars as pl
import pytest

import trtkit as tk
from trtkit import demo
from trtkit.calibration.diagnosis import Diagnosis
from trtkit.errors import RecipeError
from trtkit.exporter import Artifact
from trtkit.recipe import Recipe
from trtkit.results import Provenance
from trtkit.widgets.wizard.actions import BuiltArtifact, Examination, Measurement
from trtkit.widgets.wizard.state import STEPS, TITLES, WizardState

PATH = str(demo.model_path())


def made_by(recipe: Recipe, model: tk.Model) -> BuiltArtifact:
    artifact = Artifact(
        path=Path("x.engine"), format=recipe.format, precision=recipe.precision, info=model.info, recipe=recipe,
        model_hash=model.hash, seconds=1.0, size=1,
    )  # fmt: skip
    return BuiltArtifact(artifact=artifact, graph=None)  # type: ignore[arg-type]


def examined(data: str, fraction: float = 1.0, task: str = "detect") -> Examination:
    settings = {"data": data, "fraction": fraction, "task": task}
    diagnosis = Diagnosis(
        findings=(), images=pl.DataFrame(), classes=pl.DataFrame(), split="train",
        provenance=Provenance(model_hash="", settings=settings),
    )  # fmt: skip
    return Examination(diagnosis=diagnosis, figure=go.Figure())


MEASURED = Measurement(timing=None, figures=(None, go.Figure()))  # type: ignore[arg-type]


@pytest.fixture
def fresh() -> WizardState:
    return WizardState.of(None)


@pytest.fixture
def read(fresh: WizardState, model: tk.Model) -> WizardState:
    return fresh.looked(machines.CROSS).has_read(model, PATH)


@pytest.fixture
def built(read: WizardState, model: tk.Model) -> WizardState:
    return read.has_built(made_by(read.recipe(), model))


def open_steps(session: WizardState) -> list[str]:
    return [step for step in STEPS if not session.blocked(step)]


def test_every_step_has_a_title() -> None:
    assert STEPS == tuple(TITLES) == ("model", "choices", "images", "build", "result", "engine")


def test_at_first_only_the_model_can_be_chosen(fresh: WizardState) -> None:
    assert open_steps(fresh) == ["model"]
    assert fresh.blocked("choices") == "Read the model first."
    assert fresh.fill(model=" ").blocked("choices") == "Name a model first."
    assert (fresh.preceding, fresh.following) == (None, "choices")
    assert fresh.finished == frozenset()


def test_a_model_that_was_read_opens_the_choices_and_a_look_at_the_machine_the_rest(
    fresh: WizardState, model: tk.Model
) -> None:
    read = fresh.has_read(model, PATH)
    assert open_steps(read) == ["model", "choices"]
    assert read.blocked("build") == "This machine is still being looked at."
    looked = read.looked(machines.CROSS)
    assert open_steps(looked) == ["model", "choices", "images", "build", "engine"]
    assert looked.blocked("result") == "Build the file first."
    assert looked.finished == {"model", "choices"}


def test_another_path_closes_what_the_model_opened_until_it_is_read(read: WizardState, model: tk.Model) -> None:
    changed = read.fill(model="other.pt")
    assert open_steps(changed) == ["model"]
    assert changed.blocked("build") == "Read the model first: its path was changed."
    assert open_steps(changed.fill(model=PATH)) == open_steps(read)
    assert open_steps(changed.has_read(model, "other.pt")) == open_steps(read)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"imgsz": "wide"}, "no image size"),
        ({"batch": 0}, "at least one image"),
        ({"target": "tensorrt"}, "TensorRT engine: it is not installed"),
        ({"precision": "implicit"}, "no calibrator of its own"),
        ({"measured": True}, "no folder is named"),
    ],
)
def test_choices_that_can_t_be_built_close_what_comes_after_them(
    read: WizardState, fields: dict[str, object], words: str
) -> None:
    wrong = read.fill(**fields)
    assert open_steps(wrong) == ["model", "choices"]
    assert words in wrong.blocked("build")
    assert "choices" not in wrong.finished
    with pytest.raises(RecipeError, match="go to 'Build'"):
        wrong.go("build")


def test_it_goes_forth_and_back_through_every_step_and_keeps_everything(built: WizardState) -> None:
    session = built
    for step in STEPS[1:]:
        assert session.following == step
        session = session.go(step)
    assert session.following is None
    for step in reversed(STEPS[:-1]):
        assert session.preceding == step
        session = session.go(step)
    assert session == built


def test_a_target_that_lacks_a_precision_falls_back_to_int8_by_the_graph(read: WizardState) -> None:
    old = read.looked(machines.OLD).target("tensorrt").fill(precision="implicit")
    assert old.problem == ""
    onnx = old.target("onnx")
    assert (onnx.plan.precision, onnx.problem) == ("int8", "")
    assert old.fill(precision="fp16").target("onnx").plan.precision == "fp16"


def test_suppression_is_left_behind_where_a_model_can_t_have_it(read: WizardState, model: tk.Model) -> None:
    assert read.fill(nms=True).has_read(model, PATH).plan.nms
    already = dataclasses.replace(model, nms=True)
    session = read.fill(nms=True).has_read(already, PATH)
    assert not session.plan.nms
    assert "already" in session.nms.reason
    classifier = dataclasses.replace(model, task="classify")
    session = read.fill(nms=True).has_read(classifier, PATH)
    assert not session.plan.nms
    assert session.plan.data == str(demo.data_path("classify"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"precision": "fp32"}, "FP32 is not calibrated"),
        ({"precision": "fp16"}, "FP16 is not calibrated"),
        ({"measured": True, "calibration": "runs/c"}, "saved calibration"),
        ({"precision": "int8"}, ""),
    ],
)
def test_the_doctor_looks_only_at_images_that_calibrate(
    read: WizardState, fields: dict[str, object], words: str
) -> None:
    found = read.fill(**fields).unexaminable
    assert words in found
    assert bool(found) == bool(words)


def test_findings_are_about_the_images_they_were_made_of(read: WizardState) -> None:
    data = str(demo.data_path())
    session = read.has_examined(examined(data))
    assert "images" in session.finished
    assert not session.out_of_date
    assert session.fill(fraction=0.5).out_of_date
    assert session.fill(data="other.yaml").out_of_date
    assert not session.fill(data="other.yaml").fill(data=data).out_of_date
    # An empty field stands for the embedded images.
    assert not session.fill(data="").out_of_date
    assert not read.out_of_date


def test_a_build_opens_the_result_and_a_change_makes_it_stale(built: WizardState, model: tk.Model) -> None:
    assert open_steps(built) == list(STEPS)
    assert built.stale == ""
    assert built.finished == {"model", "choices", "build", "engine"}
    measured = built.has_measured(MEASURED)
    assert "result" in measured.finished
    changed = measured.fill(precision="fp16")
    assert "Build again" in changed.stale
    assert changed.finished == {"model", "choices"}
    assert changed.measured is MEASURED
    assert changed.fill(precision="int8").stale == ""
    assert "Build again" in measured.fill(imgsz="wide").stale
    # A new file has no measurements yet.
    assert changed.has_built(made_by(changed.recipe(), model)).measured is None


def test_only_a_file_that_was_written_here_is_replaced_without_asking(built: WizardState, read: WizardState) -> None:
    assert not read.recipe().overwrite
    assert not read.rewrites
    assert built.rewrites
    assert built.recipe().overwrite
    assert not built.fill(precision="fp16").recipe().overwrite
    assert not built.fill(output="elsewhere.engine").recipe().overwrite
    assert built.fill(batch=4).recipe().overwrite
    assert built.fill(output="elsewhere.engine", overwrite=True).recipe().overwrite


def test_the_code_is_in_step_with_the_choices(read: WizardState) -> None:
    for fields in ({}, {"precision": "fp16"}, {"imgsz": "320,640", "batch": 8}, {"target": "onnx"}):
        session = read.fill(**fields)
        python, command = session.code
        names: dict[str, object] = {}
        exec(python.removesuffix("artifact = tk.export(**recipe.to_dict())\n"), names)
        assert names["recipe"] == session.recipe()
        assert command == session.recipe().to_command()
        assert python.endswith("artifact = tk.export(**recipe.to_dict())\n")
    with pytest.raises(RecipeError):
        _ = read.fill(imgsz="wide").code


def test_a_recipe_and_data_fill_the_form() -> None:
    session = WizardState.of(Recipe(model="m.pt", half=True), "judge.yaml")
    assert (session.plan.model, session.plan.precision, session.plan.data) == ("m.pt", "fp16", "judge.yaml")
    assert session.recipe() == Recipe(model="m.pt", half=True)
