"""The wizard's form: recipe to form and back, and no field loses its value."""

from __future__ import annotations

import dataclasses

import machines
import pytest
from hypothesis import given
from hypothesis import strategies as st
from raising import raises

from trtkit import demo
from trtkit.errors import RecipeError
from trtkit.recipe import Recipe
from trtkit.widgets.wizard.form import WizardForm
from trtkit.widgets.wizard.options import inspect_machine
from trtkit.widgets.wizard.state import WizardState

text = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=12)


@st.composite
def forms(draw: st.DrawFn) -> WizardForm:
    side = st.integers(1, 4096)
    size = draw(st.just("") | side.map(str) | st.tuples(side, side).map(lambda pair: f"{pair[0]},{pair[1]}"))
    target = draw(st.sampled_from(["best", "tensorrt", "tensorrt_rtx", "onnx"]))
    precision = draw(st.sampled_from(["fp32", "fp16", "int8"] + (["implicit"] if target != "onnx" else [])))
    saved, nms = draw(st.booleans()), draw(st.booleans())
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
        nms=nms,
        end2end=not nms and draw(st.booleans()),
        conf=draw(st.floats(0, 1, exclude_max=True)),
        iou=draw(st.floats(0, 1, exclude_min=True)),
        max_det=draw(st.integers(1, 3840)),
        workspace=draw(st.just("") | st.floats(0.01, 64).map(repr)),
        opt_level=draw(st.none() | st.integers(0, 5)),
        compatibility=draw(st.sampled_from([None, "ampere_plus", "version"])),
        weights=draw(st.sampled_from([None, "refittable", "stripped"])),
        isolate=draw(st.booleans()),
        keep=tuple(draw(st.lists(text, max_size=2))),
        data=draw(st.just("") | text),
        fraction=draw(st.floats(0, 1, exclude_min=True)),
        use_saved_calibration=saved,
        calibration=draw(text) if saved else draw(st.just("") | text),
        check_overflow=draw(st.booleans()),
        output=draw(st.just("") | text),
        overwrite=draw(st.booleans()),
        names_onnxruntime=draw(st.booleans()),
    )  # fmt: skip


@given(forms())
def test_recipe_to_form_and_back(form: WizardForm) -> None:
    recipe = form.recipe()
    assert WizardForm.from_recipe(recipe).recipe() == recipe


@given(forms(), st.data())
def test_changing_precision_and_target_keeps_every_field(form: WizardForm, data: st.DataObject) -> None:
    before = form.recipe()
    other = form
    for _ in range(3):
        precision = data.draw(st.sampled_from(["fp32", "fp16", "int8", "implicit"]))
        target = data.draw(st.sampled_from(["best", "tensorrt", "tensorrt_rtx", "onnx"]))
        machine = data.draw(st.sampled_from(list(machines.ALL.values())))
        other = other.replace(precision=precision).with_target(target, machine)
    back = other.replace(precision=form.precision, target=form.target)
    # A target gets a device when it is first selected; one that was selected before stays.
    if form.target in form.devices or form.target == "onnx":
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
        {"compatibility": "ampere_plus", "weights": "refittable"},
        {"device": 1, "imgsz": 320, "batch": 8, "dynamic": False, "simplify": False, "nms": True},
        {"nms": True, "conf": 0.1, "iou": 0.5, "max_det": 100},
        {"end2end": True, "max_det": 100},
        {"imgsz": (320, 640), "output": "x.engine", "overwrite": True, "dynamic": True},
    ],
)
def test_a_recipe_comes_back_unchanged(settings: dict[str, object]) -> None:
    recipe = Recipe(model="m.pt", **settings)  # type: ignore[arg-type]
    assert WizardForm.from_recipe(recipe).recipe() == recipe


@pytest.mark.parametrize(
    ("given_", "left"),
    [
        ({"data": "d.yaml"}, {}),
        ({"half": True, "calibration": "c"}, {"half": True}),
        ({"format": "onnx", "opt_level": 3, "workspace": 1.0, "device": 0}, {"format": "onnx"}),
        ({"keep": ("a",)}, {}),
    ],
)
def test_unused_settings_are_left_out(given_: dict[str, object], left: dict[str, object]) -> None:
    assert WizardForm.from_recipe(Recipe(model="m.pt", **given_)).recipe() == Recipe(model="m.pt", **left)  # type: ignore[arg-type]


def test_the_default_form_uses_the_embedded_model_and_writes_outside_the_package() -> None:
    recipe = WizardForm.default().recipe()
    assert (recipe.model, recipe.data) == (str(demo.model_path()), str(demo.data_path()))
    assert recipe.int8
    assert recipe.output == "runs/wizard/yolo11t-int8.engine"
    other = WizardForm.default().replace(precision="fp16", target="onnx")
    assert other.recipe().output == "runs/wizard/yolo11t-fp16.onnx"
    assert other.replace(output="mine.onnx").recipe().output == "mine.onnx"
    assert WizardForm.default().replace(model="mine.pt").recipe().output is None


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"imgsz": "wide"}, "wizard-imgsz-unreadable"),
        ({"imgsz": "1,2,3"}, "wizard-imgsz-unreadable"),
        ({"imgsz": "0"}, "argument-invalid"),
        ({"workspace": "lots"}, "wizard-workspace-unreadable"),
        ({"workspace": "-1"}, "argument-invalid"),
        ({"batch": 0}, "argument-invalid"),
        ({"fraction": 0.0}, "argument-invalid"),
        ({"use_saved_calibration": True}, "wizard-calibration-missing"),
    ],
)
def test_an_invalid_field_is_an_error_and_a_problem(fields: dict[str, object], code: str) -> None:
    form = WizardForm.default().replace(**fields)
    with pytest.raises(RecipeError) as e:
        form.recipe()
    assert e.value.code == code
    assert form.find_problem(None) == form.find_problem(machines.CROSS) == str(e.value)


@pytest.mark.parametrize("text", ["480,640", "480 , 640", "480x640"])
def test_image_sizes_have_several_spellings(text: str) -> None:
    assert WizardForm.default().replace(imgsz=text).recipe().imgsz == (480, 640)


def test_a_form_that_can_t_be_built_here_states_the_problem() -> None:
    form = WizardForm.default()
    assert "pip install" in form.find_problem(machines.BARE)
    assert "TensorRT engine" in form.replace(target="tensorrt").find_problem(machines.CROSS)
    assert "no calibrator" in form.replace(precision="implicit").find_problem(machines.CROSS)
    assert form.replace(target="onnx").find_problem(machines.BARE) == ""


def test_the_backends_check_the_device() -> None:
    machine = dataclasses.replace(machines.CROSS, find_build_problem=inspect_machine().find_build_problem)
    form = WizardForm.default().replace(devices={"best": "abacus"})
    assert "abacus" in form.find_problem(machine)
    assert form.replace(target="onnx").find_problem(machine) == ""
    assert form.replace(devices={"best": "cpu"}).find_problem(machine) != ""


def test_a_new_target_starts_with_this_machine_s_gpu_or_a_common_one() -> None:
    form = WizardForm.default().with_target("tensorrt_rtx", machines.CROSS)
    assert form.device == "sm89"
    assert form.recipe().backend == "tensorrt_rtx"
    away = form.with_device("sm86").with_target("onnx", machines.CROSS)
    assert away.with_target("tensorrt_rtx", machines.CROSS).device == "sm86"
    assert WizardForm.default().with_target("tensorrt", machines.OLD).device is None


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
def test_embedded_images_follow_the_model_s_task(data: str, task: str, becomes: str) -> None:
    assert WizardForm.default().replace(data=data).for_task(task).data == becomes


def test_a_list_of_images_has_no_place_in_the_form() -> None:
    recipe = Recipe(model="m.pt", int8=True, data=("a.jpg", "b.jpg"))
    with raises(RecipeError, "wizard-data-list", count=2):
        WizardForm.from_recipe(recipe)
    assert WizardForm.from_recipe(Recipe(model="m.pt", int8=True, data="images/*.jpg")).data == "images/*.jpg"


def test_a_setting_without_a_field_is_not_dropped() -> None:
    settings = {"decode": False, "aux_streams": 4, "space_to_depth": True, "builds": 3}
    with raises(RecipeError, "wizard-settings-without-field", names=list(settings)):
        WizardForm.from_recipe(Recipe(model="m.pt", int8=True, **settings))


def test_the_home_folder_is_the_same_for_the_page_the_build_and_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page named /home/me/a.onnx, and the build wrote into a folder called ~."""
    monkeypatch.setenv("HOME", "/home/me")
    form = WizardForm(
        model="~/m.pt", precision="int8", target="onnx", data="~/data.yaml", output="~/a.onnx",
        use_saved_calibration=False,
    )  # fmt: skip
    recipe = form.recipe()
    assert (recipe.model, recipe.data, recipe.output) == ("/home/me/m.pt", "/home/me/data.yaml", "/home/me/a.onnx")
    assert str(WizardState(form=form).output_path) == "/home/me/a.onnx"
    saved = form.replace(use_saved_calibration=True, calibration="~/calibration").recipe()
    assert saved.calibration == "/home/me/calibration"
    # An unknown user is no error of the form: the build says that there is no such file.
    assert form.replace(output="~no-such-user/a.onnx").recipe().output == "~no-such-user/a.onnx"
