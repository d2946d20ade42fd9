"""The wizard's state: which steps are open, why others are not, and what is outdated."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import machines
import plotly.graph_objects as go
import polars as pl
import pytest
from two_heads import make_model, yolo26

import trtkit as tk
from trtkit import demo
from trtkit.calibration.diagnosis import Diagnosis
from trtkit.errors import RecipeError
from trtkit.exporter import Artifact
from trtkit.models.model import NMS_ROWS
from trtkit.recipe import Recipe
from trtkit.results import Provenance
from trtkit.widgets.wizard.actions import BuiltArtifact, Examination, Measurement
from trtkit.widgets.wizard.state import STEPS, TITLES, WizardState

PATH = str(demo.model_path())


def built_from(recipe: Recipe, model: tk.Model) -> BuiltArtifact:
    artifact = Artifact(
        path=Path("x.engine"), format=recipe.format, precision=recipe.precision, info=model.info, recipe=recipe,
        model_hash=model.hash, seconds=1.0, size=1,
    )  # fmt: skip
    return BuiltArtifact(artifact=artifact, graph=None)  # type: ignore[arg-type]


def examination(data: str, fraction: float = 1.0, task: str = "detect") -> Examination:
    settings = {"data": data, "fraction": fraction, "task": task}
    diagnosis = Diagnosis(
        findings=(), images=pl.DataFrame(), classes=pl.DataFrame(), split="train",
        provenance=Provenance(model_hash="", settings=settings),
    )  # fmt: skip
    return Examination(diagnosis=diagnosis, figure=go.Figure())


MEASUREMENT = Measurement(timing=None, figures=(None, go.Figure()))  # type: ignore[arg-type]


@pytest.fixture
def fresh() -> WizardState:
    return WizardState.initial(None)


@pytest.fixture
def read(fresh: WizardState, model: tk.Model) -> WizardState:
    return fresh.with_machine(machines.CROSS).with_model(model, PATH)


@pytest.fixture
def built(read: WizardState, model: tk.Model) -> WizardState:
    return read.with_built(built_from(read.recipe(), model))


def open_steps(state: WizardState) -> list[str]:
    return [step for step in STEPS if not state.blocked(step)]


def test_every_step_has_a_title() -> None:
    assert STEPS == tuple(TITLES) == ("model", "settings", "images", "build", "result", "engine")


def test_at_first_only_the_model_step_is_open(fresh: WizardState) -> None:
    assert open_steps(fresh) == ["model"]
    assert fresh.blocked("settings") == "Read the model first."
    assert fresh.fill(model=" ").blocked("settings") == "Name a model first."
    assert (fresh.previous_step, fresh.next_step) == (None, "settings")
    assert fresh.finished_steps == frozenset()


def test_a_read_model_opens_the_settings_and_the_inspection_the_rest(fresh: WizardState, model: tk.Model) -> None:
    read = fresh.with_model(model, PATH)
    assert open_steps(read) == ["model", "settings"]
    assert read.blocked("build") == "This machine is still being inspected."
    looked = read.with_machine(machines.CROSS)
    assert open_steps(looked) == ["model", "settings", "images", "build", "engine"]
    assert looked.blocked("result") == "Build the file first."
    assert looked.finished_steps == {"model", "settings"}


def test_another_path_closes_the_later_steps_until_it_is_read(read: WizardState, model: tk.Model) -> None:
    changed = read.fill(model="other.pt")
    assert open_steps(changed) == ["model"]
    assert changed.blocked("build") == "Read the model first: its path was changed."
    assert open_steps(changed.fill(model=PATH)) == open_steps(read)
    assert open_steps(changed.with_model(model, "other.pt")) == open_steps(read)


def test_the_one_to_one_head_is_reset_where_a_model_has_none(read: WizardState, model: tk.Model) -> None:
    two_heads = make_model(yolo26("detect"))
    state = read.fill(end2end=True).with_model(two_heads, PATH)
    assert (state.form.end2end, state.recipe().end2end, state.end2end_option.reason) == (True, True, "")
    state = state.with_model(model, PATH)
    assert not state.form.end2end
    assert not state.end2end_option.available


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"imgsz": "wide"}, "imgsz=wide"),
        ({"batch": 0}, "batch=0"),
        ({"target": "tensorrt"}, "TensorRT engine"),
        ({"precision": "implicit"}, "no calibrator"),
        ({"use_saved_calibration": True}, "saved calibration"),
    ],
)
def test_settings_that_can_t_be_built_close_the_later_steps(
    read: WizardState, fields: dict[str, object], words: str
) -> None:
    wrong = read.fill(**fields)
    assert open_steps(wrong) == ["model", "settings"]
    assert words in wrong.blocked("build")
    assert "settings" not in wrong.finished_steps
    with pytest.raises(RecipeError) as e:
        wrong.go("build")
    assert (e.value.code, e.value.fields["step"]) == ("wizard-step-blocked", "build")


def test_going_forth_and_back_keeps_the_state(built: WizardState) -> None:
    state = built
    for step in STEPS[1:]:
        assert state.next_step == step
        state = state.go(step)
    assert state.next_step is None
    for step in reversed(STEPS[:-1]):
        assert state.previous_step == step
        state = state.go(step)
    assert state == built


def test_a_target_without_the_precision_falls_back_to_int8(read: WizardState) -> None:
    old = read.with_machine(machines.OLD).select_target("tensorrt").fill(precision="implicit")
    assert old.problem == ""
    onnx = old.select_target("onnx")
    assert (onnx.form.precision, onnx.problem) == ("int8", "")
    assert old.fill(precision="fp16").select_target("onnx").form.precision == "fp16"


def test_nms_is_reset_where_a_model_can_t_have_it(read: WizardState, model: tk.Model) -> None:
    assert read.fill(nms=True).with_model(model, PATH).form.nms
    with_nms = dataclasses.replace(model, output_format=NMS_ROWS)
    state = read.fill(nms=True).with_model(with_nms, PATH)
    assert not state.form.nms
    assert "already" in state.nms_option.reason
    classifier = dataclasses.replace(model, task="classify")
    state = read.fill(nms=True).with_model(classifier, PATH)
    assert not state.form.nms
    assert state.form.data == str(demo.data_path("classify"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"precision": "fp32"}, "FP32"),
        ({"precision": "fp16"}, "FP16"),
        ({"use_saved_calibration": True, "calibration": "runs/c"}, "saved calibration"),
        ({"precision": "int8"}, ""),
    ],
)
def test_only_calibration_images_are_examined(read: WizardState, fields: dict[str, object], words: str) -> None:
    problem = read.fill(**fields).examine_problem
    assert words in problem
    assert bool(problem) == bool(words)


def test_findings_are_outdated_when_the_images_change(read: WizardState) -> None:
    data = str(demo.data_path())
    state = read.with_examination(examination(data))
    assert "images" in state.finished_steps
    assert not state.examination_outdated
    assert state.fill(fraction=0.5).examination_outdated
    assert state.fill(data="other.yaml").examination_outdated
    assert not state.fill(data="other.yaml").fill(data=data).examination_outdated
    # An empty field stands for the embedded images.
    assert not state.fill(data="").examination_outdated
    assert not read.examination_outdated


def test_a_build_opens_the_result_and_a_change_makes_it_outdated(built: WizardState, model: tk.Model) -> None:
    assert open_steps(built) == list(STEPS)
    assert built.outdated == ""
    assert built.finished_steps == {"model", "settings", "build", "engine"}
    measured = built.with_measurement(MEASUREMENT)
    assert "result" in measured.finished_steps
    changed = measured.fill(precision="fp16")
    assert "Build again" in changed.outdated
    assert changed.finished_steps == {"model", "settings"}
    assert changed.measurement is MEASUREMENT
    assert changed.fill(precision="int8").outdated == ""
    assert "Build again" in measured.fill(imgsz="wide").outdated
    # A new file has no measurements yet.
    assert changed.with_built(built_from(changed.recipe(), model)).measurement is None


def test_only_own_files_are_replaced_without_overwrite(built: WizardState, read: WizardState) -> None:
    assert not read.recipe().overwrite
    assert not read.replaces_own_file
    assert built.replaces_own_file
    assert built.recipe().overwrite
    assert not built.fill(precision="fp16").recipe().overwrite
    assert not built.fill(output="elsewhere.engine").recipe().overwrite
    assert built.fill(batch=4).recipe().overwrite
    assert built.fill(output="elsewhere.engine", overwrite=True).recipe().overwrite


def test_the_code_gives_the_recipe(read: WizardState) -> None:
    for fields in ({}, {"precision": "fp16"}, {"imgsz": "320,640", "batch": 8}, {"target": "onnx"}):
        state = read.fill(**fields)
        python, command = state.code
        names: dict[str, object] = {}
        exec(python.removesuffix("artifact = tk.export(**recipe.to_dict())\n"), names)
        assert names["recipe"] == state.recipe()
        assert command == state.recipe().to_command()
        assert python.endswith("artifact = tk.export(**recipe.to_dict())\n")
    with pytest.raises(RecipeError):
        _ = read.fill(imgsz="wide").code


def test_a_recipe_and_data_fill_the_form() -> None:
    state = WizardState.initial(Recipe(model="m.pt", half=True), "eval.yaml")
    assert (state.form.model, state.form.precision, state.form.data) == ("m.pt", "fp16", "eval.yaml")
    assert state.recipe() == Recipe(model="m.pt", half=True)
