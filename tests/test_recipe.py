from __future__ import annotations

import dataclasses
import enum
import json
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtkit.arguments import COMPATIBILITIES, WEIGHTS
from trtkit.cli import parse_command
from trtkit.errors import RecipeError
from trtkit.recipe import Recipe, round_imgsz

# Whatever a path may hold: quotes, backslashes, newlines, unicode, spaces, what looks like an option or a number.
text = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=20
) | st.sampled_from(
    [
        "-1",
        "--half",
        "--model=x",
        'it\'s "here"',
        "C:\\new\\table",
        "a\nb",
        "$HOME `id`",
        "ü ñ 模型.pt",
        "1e5",
        "None",
        "[a-z]*",
        "=",
        "0",
    ]
)
side = st.integers(1, 4096)
devices = st.none() | st.integers(0, 7) | st.sampled_from(["cuda:1", "dla:0", "sm89", "cpu", "3"])


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    half, int8 = draw(st.sampled_from([(False, False), (True, False), (False, True)]))
    format_, backend = draw(
        st.sampled_from(
            [
                ("engine", None),
                ("engine", "tensorrt"),
                ("engine", "tensorrt_rtx"),
                ("onnx", None),
                ("onnx", "onnxruntime"),
            ]
        )
    )
    implicit = int8 and format_ == "engine" and draw(st.booleans())
    blocks = (half or int8) and format_ == "engine" and not implicit and draw(st.booleans())
    nms = draw(st.booleans())
    weights = draw(st.sampled_from([None, *WEIGHTS])) if format_ == "engine" else None
    data = draw(st.none() | text)
    calibration = draw(st.none() | text) if not implicit and not (int8 and data is not None) else None
    return Recipe(
        model=draw(text),
        format=format_,
        backend=backend,
        half=half,
        int8=int8,
        imgsz=draw(st.none() | side | st.tuples(side, side)),
        dynamic=draw(st.sampled_from([None, False]) if blocks else st.none() | st.booleans()),
        simplify=draw(st.booleans()),
        workspace=draw(st.none() | st.floats(1e-6, 1e6) | st.integers(1, 64)),
        nms=nms,
        decode=nms or draw(st.booleans()),
        end2end=not nms and draw(st.booleans()),
        conf=draw(st.floats(0, 1, exclude_max=True)) if nms else 0.25,
        iou=draw(st.floats(0, 1, exclude_min=True)) if nms else 0.7,
        max_det=draw(st.integers(1, 3840)),
        batch=draw(st.integers(1, 64)),
        data=data,
        calibration=calibration,
        implicit=implicit,
        fraction=draw(st.floats(0, 1, exclude_min=True)),
        device=draw(devices),
        keep=() if implicit else tuple(draw(st.lists(text, max_size=3))),
        compatibility=draw(st.sampled_from([None, *COMPATIBILITIES])) if format_ == "engine" else None,
        weights=weights,
        opt_level=draw(st.none() | st.integers(0, 5)),
        aux_streams=draw(st.none() | st.integers(0, 16)) if format_ == "engine" else None,
        space_to_depth=blocks,
        builds=draw(st.integers(1, 3)) if format_ == "engine" and weights != "stripped" else 1,
        isolate=draw(st.booleans()),
        output=draw(st.none() | text),
        overwrite=draw(st.booleans()),
    )


def test_any_recipe_has_every_setting() -> None:
    source = Path(__file__).read_text(encoding="utf-8").partition("def recipes")[2].partition("@given")[0]
    assert all(f"{field.name}=" in source for field in dataclasses.fields(Recipe))


@given(recipes())
def test_python_code_rebuilds_the_recipe(recipe: Recipe) -> None:
    names: dict[str, object] = {}
    exec(recipe.to_python(), names)
    assert names["recipe"] == recipe


@settings(deadline=None)
@given(recipes())
def test_the_command_line_rebuilds_the_recipe(recipe: Recipe) -> None:
    program, *words = shlex.split(recipe.to_command())
    assert program == "trtkit"
    options = vars(parse_command(words)[1])
    assert Recipe.from_dict({name: options[name] for name in recipe.to_dict()}) == recipe


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a POSIX shell")
def test_a_shell_reads_the_command_line() -> None:
    recipe = Recipe(
        model='it\'s "here"\n$HOME/`id`/*.pt',
        int8=True,
        data="C:\\new\\tab",
        keep=("/model.23/*", "-x", "!a", "#b", "~"),
    )
    script = f"trtkit() {{ printf '%s\\0' \"$@\"; }}\n{recipe.to_command()}"
    words = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.split("\0")[:-1]
    options = vars(parse_command(words)[1])
    assert Recipe.from_dict({name: options[name] for name in recipe.to_dict()}) == recipe


def test_settings_of_other_types_are_converted() -> None:
    class Spelled(str, enum.Enum):
        FORMAT = "onnx"

    given = Recipe(
        model=Path("a") / "b.pt",  # type: ignore[arg-type]
        format=Spelled.FORMAT,
        imgsz=np.array([320, 640]),  # type: ignore[arg-type]
        half=np.bool_(True),  # type: ignore[arg-type]
        batch=np.int64(4),  # type: ignore[arg-type]
        fraction=np.float64(0.5),
        device="2",
        keep="/a/*",  # type: ignore[arg-type]
        workspace=2,
    )
    plain = Recipe(
        model=str(Path("a") / "b.pt"), format="onnx", imgsz=(320, 640), half=True, batch=4, fraction=0.5, device=2,
        keep=("/a/*",), workspace=2.0,
    )  # fmt: skip
    assert given == plain
    assert given.to_python() == plain.to_python()
    assert given.to_command() == plain.to_command()
    names: dict[str, object] = {}
    exec(given.to_python(), names)
    assert names["recipe"] == plain


@given(recipes())
def test_json_rebuilds_the_recipe(recipe: Recipe) -> None:
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@settings(deadline=None)
@given(st.tuples(side, side), st.sampled_from([1, 16, 32, 64]))
def test_sizes_round_up_to_the_stride(imgsz: tuple[int, int], stride: int) -> None:
    rounded = round_imgsz(imgsz, stride)
    assert all(new % stride == 0 and 0 <= new - old < stride for new, old in zip(rounded, imgsz, strict=True))


@pytest.mark.parametrize(
    ("wrong", "code", "name"),
    [
        ({"half": True, "int8": True}, "recipe-two-precisions", None),
        ({"nms": True, "end2end": True}, "recipe-nms-and-end2end", None),
        ({"nms": True, "conf": 1.0}, "argument-invalid", "conf"),
        ({"nms": True, "conf": -0.1}, "argument-invalid", "conf"),
        ({"nms": True, "iou": 1.1}, "argument-invalid", "iou"),
        ({"nms": True, "max_det": 0}, "argument-invalid", "max_det"),
        ({"nms": True, "max_det": 3841}, "recipe-too-many-rows", "max_det"),
        ({"conf": 0.1}, "recipe-setting-needs-nms", "conf"),
        ({"end2end": True, "iou": 0.5}, "recipe-setting-needs-nms", "iou"),
        ({"format": "tflite"}, "argument-invalid", "format"),
        ({"backend": "onnxruntime"}, "recipe-backend-builds-no-engine", None),
        ({"batch": 0}, "argument-invalid", "batch"),
        ({"fraction": 0.0}, "argument-invalid", "fraction"),
        ({"fraction": 1.5}, "argument-invalid", "fraction"),
        ({"workspace": -1.0}, "argument-invalid", "workspace"),
        ({"imgsz": 0}, "argument-invalid", "imgsz"),
        ({"imgsz": (640, 640, 3)}, "argument-invalid", "imgsz"),
        ({"opt_level": 6}, "argument-invalid", "opt_level"),
        ({"compatibility": "turing"}, "argument-invalid", "compatibility"),
        ({"weights": "none"}, "argument-invalid", "weights"),
        ({"format": "onnx", "compatibility": "version"}, "recipe-needs-engine", "compatibility"),
        ({"format": "onnx", "weights": "stripped"}, "recipe-needs-engine", "weights"),
        ({"format": "onnx", "aux_streams": 0}, "recipe-needs-engine", "aux_streams"),
        ({"format": "onnx", "int8": True, "space_to_depth": True}, "recipe-needs-engine", "space_to_depth"),
        ({"space_to_depth": True}, "recipe-space-to-depth-precision", None),
        (
            {"space_to_depth": True, "int8": True, "dynamic": True},
            "recipe-space-to-depth-needs-fixed-shapes",
            None,
        ),
        ({"implicit": True}, "recipe-implicit-needs-int8-engine", None),
        ({"implicit": True, "int8": True, "keep": ("x",)}, "recipe-implicit-excludes-keep-and-calibration", None),
        ({"int8": True, "calibration": "c", "data": "d.yaml"}, "recipe-calibration-and-data", None),
        ({"batch": 2.5}, "argument-invalid", "batch"),
        ({"half": "yes"}, "argument-invalid", "half"),
        ({"fraction": "many"}, "argument-invalid", "fraction"),
        ({"imgsz": "large"}, "argument-invalid", "imgsz"),
    ],
)
def test_invalid_settings_are_refused(wrong: dict[str, object], code: str, name: str | None) -> None:
    with pytest.raises(RecipeError) as e:
        Recipe(model="m.pt", **wrong)  # type: ignore[arg-type]
    assert (e.value.code, e.value.fields.get("name")) == (code, name)


def test_unknown_settings_are_named() -> None:
    with pytest.raises(RecipeError) as e:
        Recipe.from_dict({"model": "m.pt", "precison": "int8"})
    assert (e.value.code, e.value.fields["names"]) == ("recipe-settings-unknown", ["precison"])
    with pytest.raises(RecipeError) as e:
        Recipe.from_dict({"int8": True})
    assert e.value.code == "recipe-model-missing"


def test_a_recipe_of_format_version_1_is_read() -> None:
    assert Recipe.from_dict({"model": "m.pt", "level": 2}).opt_level == 2


def test_a_recipe_may_leave_the_model_to_be_chosen() -> None:
    assert Recipe(model="").model == ""
