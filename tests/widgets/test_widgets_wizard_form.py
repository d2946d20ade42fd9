"""The wizard's form: every recipe fills it, it comes to that recipe again, and nothing is lost by choosing."""

from __future__ import annotations

import dataclasses

import machines
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtkit import demo
from trtkit.errors import RecipeError
from trtkit.recipe import Recipe
from trtkit.widgets.wizard.form import WizardForm
from trtkit.widgets.wizard.options import inspect_machine

text = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=12)


@st.composite
def plans(draw: st.DrawFn) -> WizardForm:
    side = st.integers(1, 4096)
    size = draw(st.just("") | side.map(str) | st.tuples(side, side).map(lambda pair: f"{pair[0]},{pair[1]}"))
    target = draw(st.sampled_from(["best", "tensorrt", "tensorrt_rtx", "onnx"]))
    precision = draw(st.sampled_from(["fp32", "fp16", "int8"] + (["implicit"] if target != "onnx" else [])))
    measured = draw(st.booleans())
    engines = st.sampled_from(["best", "tensorrt", "tensorrt_rtx"])
    return WizardForm(
        model=draw(text),
        precision=precision,
        target=target,
        devices=draw(st.dictionaries(engines, st.sampled_from([None, 0, 1, "sm89", "dla:0"]))),
        imgsz=size,
        batch=draw(st.integers(1, 64)),
        dynamic=draw(st.none() | st.booleans()),
        simplify=draw(st.booleans()),
        nms=draw(st.booleans()),
        workspace=draw(st.just("") | st.floats(0.01, 64).map(repr)),
        opt_level=draw(st.none() | st.integers(0, 5)),
        isolate=draw(st.booleans()),
        keep=tuple(draw(st.lists(text, max_size=2))),
        data=draw(st.just("") | text),
        fraction=draw(st.floats(0, 1, exclude_min=True)),
        measured=measured,
        calibration=draw(text) if measured else draw(st.just("") | text),
        check=draw(st.booleans()),
        output=draw(st.just("") | text),
        overwrite=draw(st.booleans()),
        onnxruntime=draw(st.booleans()),
    )  # fmt: skip


@given(plans())
def test_the_recipe_of_a_form_fills_the_form_that_comes_to_it_again(plan: WizardForm) -> None:
    recipe = plan.recipe()
    assert WizardForm.of(recipe).recipe() == recipe


@given(plans(), st.data())
def test_choosing_loses_nothing_of_what_was_filled_in(plan: WizardForm, data: st.DataObject) -> None:
    before = plan.recipe()
    other = plan
    for _ in range(3):
        precision = data.draw(st.sampled_from(["fp32", "fp16", "int8", "implicit"]))
        target = data.draw(st.sampled_from(["best", "tensorrt", "tensorrt_rtx", "onnx"]))
        machine = data.draw(st.sampled_from(list(machines.ALL.values())))
        other = other.changed(precision=precision).targeting(target, machine)
    back = other.changed(precision=plan.precision, target=plan.target)
    # A device that was not chosen before may have been filled in; one that was stays.
    if plan.target in plan.devices or plan.target == "onnx":
        assert back.recipe() == before


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"half": True},
        {"half": True, "data": "d.yaml", "fraction": 0.5, "keep": ("/a/*",)},
        {"int8": True, "data": "d.yaml"},
        {"int8": True, "calibration": "runs/c", "keep": ("a", "b")},
        {"int8": True, "implicit": True, "data": "d.yaml", "backend": "tensorrt"},
        {"format": "onnx"},
        {"format": "onnx", "backend": "onnxruntime", "int8": True},
        {"backend": "tensorrt_rtx", "device": "sm86", "opt_level": 5, "workspace": 2.5, "isolate": True},
        {"device": 1, "imgsz": 320, "batch": 8, "dynamic": False, "simplify": False, "nms": True},
        {"imgsz": (320, 640), "output": "x.engine", "overwrite": True, "dynamic": True},
    ],
)
def test_a_recipe_is_kept_as_it_was_given(settings: dict[str, object]) -> None:
    recipe = Recipe(model="m.pt", **settings)  # type: ignore[arg-type]
    assert WizardForm.of(recipe).recipe() == recipe


@pytest.mark.parametrize(
    ("given_", "left"),
    [
        ({"data": "d.yaml"}, {}),
        ({"half": True, "calibration": "c"}, {"half": True}),
        ({"format": "onnx", "opt_level": 3, "workspace": 1.0, "device": 0}, {"format": "onnx"}),
        ({"keep": ("a",)}, {}),
    ],
)
def test_settings_without_a_use_are_left_out(given_: dict[str, object], left: dict[str, object]) -> None:
    assert WizardForm.of(Recipe(model="m.pt", **given_)).recipe() == Recipe(model="m.pt", **left)  # type: ignore[arg-type]


def test_the_form_begins_with_what_is_embedded_and_writes_outside_the_package() -> None:
    recipe = WizardForm.start().recipe()
    assert (recipe.model, recipe.data) == (str(demo.model_path()), str(demo.data_path()))
    assert recipe.int8
    assert recipe.output == "runs/wizard/yolo11n-int8.engine"
    other = WizardForm.start().changed(precision="fp16", target="onnx")
    assert other.recipe().output == "runs/wizard/yolo11n-fp16.onnx"
    assert other.changed(output="mine.onnx").recipe().output == "mine.onnx"
    assert WizardForm.start().changed(model="mine.pt").recipe().output is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"imgsz": "wide"}, "no image size"),
        ({"imgsz": "1,2,3"}, "no image size"),
        ({"imgsz": "0"}, "no image size"),
        ({"workspace": "lots"}, "no size in GiB"),
        ({"workspace": "-1"}, "no size in GiB"),
        ({"batch": 0}, "at least one image"),
        ({"fraction": 0.0}, "above 0"),
        ({"measured": True}, "no folder is named"),
    ],
)
def test_a_field_that_makes_no_sense_is_told_in_a_sentence(fields: dict[str, object], words: str) -> None:
    plan = WizardForm.start().changed(**fields)
    with pytest.raises(RecipeError, match=words):
        plan.recipe()
    assert words in plan.problem(None)
    assert words in plan.problem(machines.CROSS)


@pytest.mark.parametrize("text", ["480,640", "480 , 640", "480x640"])
def test_sizes_are_read_as_people_write_them(text: str) -> None:
    assert WizardForm.start().changed(imgsz=text).recipe().imgsz == (480, 640)


def test_what_can_t_be_built_here_says_why() -> None:
    plan = WizardForm.start()
    assert "pip install" in plan.problem(machines.BARE)
    assert "TensorRT engine: it is not installed" in plan.changed(target="tensorrt").problem(machines.CROSS)
    assert "has no calibrator" in plan.changed(precision="implicit").problem(machines.CROSS)
    assert plan.changed(target="onnx").problem(machines.BARE) == ""


def test_the_backends_have_the_last_word_on_a_device() -> None:
    machine = dataclasses.replace(machines.CROSS, refuses=inspect_machine().refuses)
    plan = WizardForm.start().changed(devices={"best": "abacus"})
    assert "no such device name" in plan.problem(machine)
    assert plan.changed(target="onnx").problem(machine) == ""
    assert plan.changed(devices={"best": "cpu"}).problem(machine) != ""


def test_a_target_that_was_not_chosen_before_starts_at_the_gpu_here_or_a_common_one() -> None:
    plan = WizardForm.start().targeting("tensorrt_rtx", machines.CROSS)
    assert plan.device == "sm89"
    assert plan.recipe().backend == "tensorrt_rtx"
    away = plan.aimed("sm86").targeting("onnx", machines.CROSS)
    assert away.targeting("tensorrt_rtx", machines.CROSS).device == "sm86"
    assert WizardForm.start().targeting("tensorrt", machines.OLD).device is None


@pytest.mark.parametrize(
    ("data", "task", "becomes"),
    [
        (str(demo.data_path()), "detect", str(demo.data_path())),
        (str(demo.data_path()), "classify", str(demo.data_path("classify"))),
        (str(demo.data_path("classify")), "detect", str(demo.data_path())),
        ("mine.yaml", "classify", "mine.yaml"),
        ("", "detect", ""),
    ],
)
def test_embedded_images_give_way_to_those_of_the_model_s_task(data: str, task: str, becomes: str) -> None:
    assert WizardForm.start().changed(data=data).fitting(task).data == becomes
