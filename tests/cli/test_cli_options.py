"""Every command has the names and defaults of its function."""

import argparse
import inspect

import pytest

import trtkit
from trtkit.cli import COMMANDS, parse_command
from trtkit.cli.options import WATCHERS, add_options, call_with_options, parse_argument_texts

VERBS = {
    "export": "model", "calibrate": "model", "evaluate": "runner", "benchmark": "runners", "compare": "model",
    "examine": "data", "sweep": "model", "sensitivity": "model", "search": "model",
}  # fmt: skip


def settings(*words):
    return vars(parse_command(words)[1])


@pytest.mark.parametrize("verb", VERBS)
def test_names_and_defaults_are_the_function_s(verb):
    words = {"export": ["a"], "calibrate": ["a"], "benchmark": ["a"], "examine": ["a"]}.get(verb, ["a", "b"])
    found = settings(verb, *words)
    for name, parameter in inspect.signature(getattr(trtkit, verb)).parameters.items():
        if name in WATCHERS or parameter.default is inspect.Parameter.empty or name == "runners":
            continue
        value = found[name]
        assert (tuple(value) if isinstance(value, list) else value) == parameter.default, name


def test_export_has_the_guide_s_table():
    # https://docs.ultralytics.com/integrations/tensorrt: imgsz and data are left to the model and to a warning here.
    found = settings("export", "yolo11n.pt")
    guide = {"format": "engine", "half": False, "int8": False, "simplify": True, "workspace": None, "nms": False,
             "batch": 1, "fraction": 1.0, "device": None}  # fmt: skip
    assert {name: found[name] for name in guide} == guide
    assert {"imgsz", "dynamic", "data"} <= set(found)


def test_export_reads_every_kind_of_value():
    found = settings(
        "export", "--model=my model.pt", "--format=onnx", "--imgsz=480,640", "--half", "--dynamic", "--no-simplify",
        "--workspace=2.5", "--batch=8", "--fraction=0.5", "--device=0", "--keep=/a/*", "--keep=b", "--overwrite",
    )  # fmt: skip
    expected = {
        "model": "my model.pt", "format": "onnx", "imgsz": (480, 640), "half": True, "dynamic": True, "simplify": False,
        "workspace": 2.5, "batch": 8, "fraction": 0.5, "device": 0, "keep": ["/a/*", "b"], "overwrite": True,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected


def test_a_recipe_s_command_line_gives_its_settings():
    recipe = trtkit.Recipe(
        model="a b.pt", half=True, imgsz=(320, 640), batch=4, keep=("/model.23/*",), dynamic=False, workspace=1.5
    )
    import shlex

    found = settings(*shlex.split(recipe.to_command())[1:])
    again = trtkit.Recipe.from_dict({name: found[name] for name in recipe.to_dict()})
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


def test_precisions():
    assert settings("compare", "a.pt", "b.yaml", "--precisions", "fp16,int8")["precisions"] == ("fp16", "int8")
    assert settings("compare", "a.pt", "b.yaml")["precisions"] == ("fp32", "fp16", "int8")


@pytest.mark.parametrize("verb", ["load", "export", "calibrate", "evaluate", "benchmark", "compare"])
def test_every_argument_has_its_words(verb):
    function = getattr(trtkit, verb)
    assert set(parse_argument_texts(function)) == set(inspect.signature(function).parameters)
    assert all(parse_argument_texts(function).values())


def test_docstrings_that_run_over_lines_are_read_whole():
    def verb(alpha, beta=2):
        """Do it.

        Args:
            alpha: First words
                and 100 % of the rest.
            beta: None takes `two`.

        Returns:
            Nothing.
        """
        return alpha, beta

    assert parse_argument_texts(verb) == {"alpha": "First words and 100 % of the rest.", "beta": "None takes `two`."}
    parser = argparse.ArgumentParser()
    add_options(parser, verb)
    text = " ".join(parser.format_help().split())
    assert "100 % of the rest." in text
    assert "leaving it out takes two. [default: 2]" in text
    values = parser.parse_args(["--alpha", "x"])
    assert call_with_options(verb, values, beta=3) == ("x", 3)


def test_every_command_has_help(capsys):
    for verb in COMMANDS:
        with pytest.raises(SystemExit) as stopped:
            parse_command([verb, "--help"])
        assert stopped.value.code == 0
        assert f"usage: trtkit {verb}" in capsys.readouterr().out
