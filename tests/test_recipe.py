from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtkit.errors import RecipeError
from trtkit.recipe import Recipe, rounded_imgsz

text = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)
side = st.integers(1, 4096)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    half, int8 = draw(st.sampled_from([(False, False), (True, False), (False, True)]))
    format_, backend = draw(
        st.sampled_from([("engine", None), ("engine", "tensorrt"), ("engine", "tensorrt_rtx"), ("onnx", "onnxruntime")])
    )
    data, calibration = draw(st.sampled_from([(None, None), ("coco.yaml", None), (None, "runs/calibration")]))
    return Recipe(
        model=draw(text),
        format=format_,
        backend=backend,
        half=half,
        int8=int8,
        imgsz=draw(st.none() | side | st.tuples(side, side)),
        dynamic=draw(st.none() | st.booleans()),
        simplify=draw(st.booleans()),
        workspace=draw(st.none() | st.floats(0.01, 64)),
        nms=draw(st.booleans()),
        batch=draw(st.integers(1, 64)),
        data=data,
        calibration=calibration,
        fraction=draw(st.floats(0, 1, exclude_min=True)),
        device=draw(st.none() | st.integers(0, 7) | st.sampled_from(["cuda:1", "dla:0", "sm89", "cpu"])),
        keep=tuple(draw(st.lists(text, max_size=3))),
        level=draw(st.none() | st.integers(0, 5)),
        isolate=draw(st.booleans()),
        output=draw(st.none() | text),
        overwrite=draw(st.booleans()),
    )


@given(recipes())
def test_python_code_rebuilds_the_recipe(recipe: Recipe) -> None:
    names: dict[str, object] = {}
    exec(recipe.to_python(), names)
    assert names["recipe"] == recipe


@given(recipes())
def test_json_rebuilds_the_recipe(recipe: Recipe) -> None:
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@settings(deadline=None)
@given(st.tuples(side, side), st.sampled_from([1, 16, 32, 64]))
def test_sizes_round_up_to_the_stride(imgsz: tuple[int, int], stride: int) -> None:
    rounded = rounded_imgsz(imgsz, stride)
    assert all(new % stride == 0 and 0 <= new - old < stride for new, old in zip(rounded, imgsz, strict=True))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"half": True, "int8": True}, "two precisions at once"),
        ({"format": "tflite"}, "no such format"),
        ({"backend": "cuda"}, "no such backend"),
        ({"backend": "onnxruntime"}, "builds no engines"),
        ({"batch": 0}, "at least one picture"),
        ({"fraction": 0.0}, "above 0"),
        ({"fraction": 1.5}, "above 0"),
        ({"workspace": -1.0}, "no size in GiB"),
        ({"imgsz": 0}, "no picture size"),
        ({"imgsz": (640, 640, 3)}, "no picture size"),
        ({"level": 6}, "levels 0 to 5"),
        ({"implicit": True}, "INT8 engines only"),
        ({"implicit": True, "int8": True, "keep": ("x",)}, "chooses the layers"),
        ({"int8": True, "calibration": "c", "data": "d.yaml"}, "only one of them"),
    ],
)
def test_settings_at_odds_are_refused(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        Recipe(model="m.pt", **wrong)  # type: ignore[arg-type]


def test_unknown_settings_are_named() -> None:
    with pytest.raises(RecipeError, match="precison"):
        Recipe.from_dict({"model": "m.pt", "precison": "int8"})
