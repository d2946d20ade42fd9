"""Every command has the names and defaults of its function, and help written for the command line."""

import argparse
import inspect
import re
import shlex

import pytest

import trtkit
from trtkit.backends import Runner
from trtkit.calibration import calibrate, register
from trtkit.calibration.algorithms import unregister
from trtkit.cli import COMMANDS, parse_command
from trtkit.cli.options import OPTIONS, RUN_CONTROL, VERB_OPTIONS, add_options, call_with_options, find_option
from trtkit.exporter import export
from trtkit.recipe import Recipe

REQUIRED = {
    "export": ["a"],
    "calibrate": ["a"],
    "deploy": ["triton", "b"],
    "evaluate": ["a", "b"],
    "evaluate_int8": ["a", "b"],
    "benchmark": ["a"],
    "load_test": ["a"],
    "verify": ["a"],
    "compare": ["a", "b"],
    "examine": ["a"],
    "sweep": ["a", "b"],
    "sensitivity": ["a", "b"],
    "search": ["a", "b"],
    "why_slow": ["a", "b"],
    "zoo": [],
}


def settings(*words):
    return vars(parse_command(words)[1])


def arguments(verb):
    function = Runner.predict if verb == "predict" else getattr(trtkit, verb)
    others = (*RUN_CONTROL, "self", "runners", *(("images",) if verb == "predict" else ()))
    return {name: parameter for name, parameter in inspect.signature(function).parameters.items() if name not in others}


def help_of(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stopped:
        parse_command([*command.split(), "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", REQUIRED)
def test_names_and_defaults_of_the_function(verb):
    values = settings(verb.replace("_", "-"), *REQUIRED[verb])
    for name, parameter in arguments(verb).items():
        if parameter.default is inspect.Parameter.empty:
            continue
        value = values[name]
        assert (tuple(value) if isinstance(value, list) else value) == parameter.default, name


@pytest.mark.parametrize("verb", [*REQUIRED, "predict"])
def test_every_argument_has_a_help_text(verb):
    for name in arguments(verb):
        assert find_option(verb, name).help, name


@pytest.mark.parametrize(
    "verb",
    sorted({*REQUIRED} - {"deploy", "evaluate", "benchmark", "export", "load_test", "verify", "why_slow", "zoo"}),
)
def test_end2end_loads_the_model_with_that_head(verb, monkeypatch):
    """In Python these verbs take a loaded model."""
    seen = {}

    def stand_in(**arguments):
        seen.update(arguments)

    function = getattr(trtkit, verb)
    stand_in.__signature__ = inspect.signature(function)
    monkeypatch.setattr("trtkit.models.load", lambda source, *, end2end: (source, end2end))
    words = ["--model=a.pt", *(f"--{name}=x" for name in ("data",))]
    for options, expected in (([], "a.pt"), (["--end2end"], ("a.pt", True))):
        _, values = parse_command([verb.replace("_", "-"), *words, *options])
        call_with_options(stand_in, values)
        assert (seen["model"], seen["data"]) == (expected, "x")


def test_no_help_text_is_unused():
    used = {name for verb in [*REQUIRED, "predict"] for name in arguments(verb)}
    assert set(OPTIONS) <= used
    for verb, name in VERB_OPTIONS:
        assert name in arguments(verb)


@pytest.mark.parametrize("command", [*COMMANDS, *(f"engine {kind}" for kind in ("show", "check", "strip", "wrap"))])
def test_help_is_written_for_the_command_line(command, capsys, monkeypatch):
    text = help_of(command, capsys, monkeypatch)
    assert text.startswith(f"usage: trtkit {command}")
    assert max(map(len, text.splitlines())) <= 80
    assert not re.search(r"\b(None|True|False|tuple|dict)\b|`|leav\w+ (it|that) out|[a-z]=[A-Z\"]", text)
    # Every option and positional argument has a text, on its own line or on the next.
    body = re.split(r"^(?:positional arguments|options):$", text, flags=re.MULTILINE)[1:]
    for block in body:
        entries = re.split(r"^  (?=\S)", block, flags=re.MULTILINE)[1:]
        for entry in entries:
            assert len(re.split(r" {2,}|\n", entry.strip(), maxsplit=1)) == 2, entry


def test_required_arguments_look_required(capsys, monkeypatch):
    assert "usage: trtkit compare MODEL DATA [options]" in help_of("compare", capsys, monkeypatch)
    with pytest.raises(SystemExit):
        parse_command(["compare"])
    assert "required: MODEL, DATA" in capsys.readouterr().err


def test_registered_algorithms_are_choices(capsys, monkeypatch):
    register("largest", title="largest value")(lambda stats: float(stats.high))
    try:
        assert settings("calibrate", "a.pt", "--algorithm", "largest")["algorithm"] == "largest"
        assert "largest" in help_of("sweep", capsys, monkeypatch)
    finally:
        unregister("largest")


def test_export_has_the_guide_s_table():
    # https://docs.ultralytics.com/integrations/tensorrt: imgsz and data are left to the model and to a warning here.
    values = settings("export", "yolo11n.pt")
    guide = {"format": "engine", "half": False, "int8": False, "simplify": True, "workspace": None, "nms": False,
             "batch": 1, "fraction": 1.0, "device": None}  # fmt: skip
    assert {name: values[name] for name in guide} == guide
    assert {"imgsz", "dynamic", "data"} <= set(values)


def test_export_reads_every_kind_of_value():
    values = settings(
        "export", "--model=my model.pt", "--format=onnx", "--imgsz=480,640", "--half", "--dynamic", "--no-simplify",
        "--workspace=2.5", "--batch=8", "--fraction=0.5", "--device=0", "--keep=/a/*", "--keep=b", "--overwrite",
        "--opt-level=5", "--compatibility=version", "--weights=refittable", "--no-decode", "--builds=3",
        "--aux-streams=4",
    )  # fmt: skip
    expected = {
        "model": "my model.pt", "format": "onnx", "imgsz": (480, 640), "half": True, "dynamic": True, "simplify": False,
        "workspace": 2.5, "batch": 8, "fraction": 0.5, "device": 0, "keep": ["/a/*", "b"], "overwrite": True,
        "opt_level": 5, "compatibility": "version", "weights": "refittable", "decode": False, "builds": 3,
        "aux_streams": 4,
    }  # fmt: skip
    assert {name: values[name] for name in expected} == expected


def test_pixels_in_blocks_on_the_command_line():
    assert settings("export", "--model=m.pt", "--int8", "--space-to-depth")["space_to_depth"] is True
    assert settings("export", "--model=m.pt", "--int8")["space_to_depth"] is False


def test_a_recipe_s_command_line_gives_its_settings():
    recipe = trtkit.Recipe(
        model="a b.pt", half=True, imgsz=(320, 640), batch=4, keep=("/model.23/*",), dynamic=False, workspace=1.5
    )
    values = settings(*shlex.split(recipe.to_command())[1:])
    again = trtkit.Recipe.from_dict({name: values[name] for name in recipe.to_dict()})
    assert again == recipe


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--device", "cuda:1"], "cuda:1"),
        (["--device", "sm89"], "sm89"),
        (["--device", "1"], 1),
        ([], None),
    ],
)
def test_devices_are_numbers_or_names(words, value):
    assert settings("export", "a.pt", *words)["device"] == value


@pytest.mark.parametrize(("text", "value"), [("640", 640), ("480,640", (480, 640)), ("480x640", (480, 640))])
def test_sizes(text, value):
    assert settings("export", "a.pt", "--imgsz", text)["imgsz"] == value


@pytest.mark.parametrize(("text", "value"), [("8", 8), ("1,8,32", (1, 8, 32))])
def test_batches(text, value):
    assert settings("compare", "a.pt", "b.yaml", "--batch", text)["batch"] == value


def test_lists():
    assert settings("compare", "a.pt", "b.yaml", "--precisions", "fp16,int8")["precisions"] == ("fp16", "int8")
    assert settings("compare", "a.pt", "b.yaml")["precisions"] == ("fp32", "fp16", "int8")
    values = settings(
        "sweep", "a.pt", "b.yaml", "--algorithms=minmax,mse", "--percentiles=99.9,99.99", "--calibration-images=8"
    )
    assert values["algorithms"] == ("minmax", "mse")
    assert values["percentiles"] == (99.9, 99.99)
    assert values["calibration_images"] == (8,)
    values = settings("examine", "b.yaml", "--image-paths", "a.jpg", "--image-paths", "b.jpg")
    assert values["image_paths"] == ["a.jpg", "b.jpg"]


def test_data_takes_one_word_or_several():
    parser = argparse.ArgumentParser()
    add_options(parser, calibrate, positional=("model", "data"))
    assert parser.parse_args(["m.pt"]).data is None
    assert parser.parse_args(["m.pt", "d.yaml"]).data == "d.yaml"
    assert parser.parse_args(["m.pt", "a.jpg", "b.jpg"]).data == ("a.jpg", "b.jpg")
    assert parser.parse_args(["m.pt", "--data", "d.yaml", "--seed", "3"]).data == "d.yaml"
    assert parser.parse_args(["m.pt", "--data", "a.jpg", "b.jpg"]).data == ("a.jpg", "b.jpg")
    assert parser.parse_args(["--model=m.pt", "--data=d.yaml"]).data == "d.yaml"


def test_command_of_a_recipe_with_several_images_is_read_back():
    recipe = Recipe(model="m.pt", int8=True, data=["a b.jpg", "c.jpg"], fraction=0.5)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    parser = argparse.ArgumentParser()
    add_options(parser, export, positional=("model",))
    values = parser.parse_args(shlex.split(recipe.to_command())[2:])
    assert (values.model, values.data, values.fraction) == ("m.pt", recipe.data, 0.5)
    assert recipe.to_dict()["data"] == ["a b.jpg", "c.jpg"]
    assert Recipe(model="m.pt", data=["one.jpg"]).data == "one.jpg"


def test_pairs_are_collected_and_no_name_is_given_twice(capsys):
    words = ["compare", "m.pt", "d.yaml", "--candidate=a=x.onnx"]
    _, arguments = parse_command([*words, "--candidate", "b=y=z.onnx"])
    assert arguments.candidates == {"a": "x.onnx", "b": "y=z.onnx"}
    for pair, message in (("a=other.onnx", "'a' is given twice"), ("a=", "'a=' is not NAME=PATH")):
        with pytest.raises(SystemExit):
            parse_command([*words, "--candidate", pair])
        assert message in capsys.readouterr().err
