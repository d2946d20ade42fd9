"""`--json` of every command, `--recipe`, `-q` and `-v`."""

import argparse
import json
import math
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_graphs
import yaml
from raising import raises
from task_models import drawn_set

import trtkit
from trtkit.cli import COMMANDS, WITHOUT_RESULT, main, make_full_parser, parse_command
from trtkit.cli.model_commands import read_recipe
from trtkit.cli.output import Outcome, print_json
from trtkit.errors import RecipeError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny detector and three labeled images."""
    path = tmp_path_factory.mktemp("json")
    onnx.save(tiny_graphs.detector(dynamic=True), path / "m.onnx")
    drawn_set(path, "detect", count=3)
    return path


def run_json(words, capsys, status=0):
    assert main([*words, "--json"]) == status
    out = capsys.readouterr().out

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(out, parse_constant=refuse)


FEW = "--calibration-images=2 --imgsz=64"
RUNS = {
    "predict m.onnx {image} --conf=0.001": {"class", "path"},
    "evaluate m.onnx data.yaml --eval-images=2": {"metric", "value"},
    "benchmark a=m.onnx --runs=2 --warmup=0": {"label", "p50_ms"},
    f"calibrate m.onnx data.yaml {FEW}": {"tensor", "scale"},
    "examine data.yaml --calibration-images=2": set(),
    "export m.onnx --format=onnx --output=b.onnx --simplify": set(),
    "doctor": {"backend", "builds"},
}


@pytest.mark.parametrize("line", RUNS)
def test_the_json_of_a_command_is_its_whole_stdout(line, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    image = next(path for path in folder.rglob("*") if path.suffix in (".png", ".jpg"))
    words = line.format(image=image).split()
    content = run_json(words, capsys)
    assert content["command"] == words[0]
    assert isinstance(content["rows"], list)
    assert content["output"] is None or Path(content["output"]).exists()
    for row in content["rows"][:1]:
        assert RUNS[line] <= set(row), row.keys()


def test_every_command_with_a_result_has_the_options():
    commands = make_full_parser()._subparsers._group_actions[0].choices
    for name, parser in commands.items():
        subparsers = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        for each in [one for action in subparsers for one in action.choices.values()] or [parser]:
            known = set(each._option_string_actions)
            assert ({"--json", "-q", "--quiet", "-v", "--verbose"} <= known) is (name not in WITHOUT_RESULT), name
    assert set(commands) == set(COMMANDS)


def test_an_error_is_an_object_too(capsys):
    content = run_json(["export", "a.pt", "--batch", "0"], capsys, 2)
    assert (content["error"]["code"], content["error"]["name"]) == ("argument-invalid", "batch")
    assert "--batch" in content["error"]["message"]


def test_an_error_after_the_result_leaves_one_document(capsys, monkeypatch):
    error = RecipeError("a", "b", "c", code="x")
    monkeypatch.setattr(
        "trtkit.cli.parse_command",
        lambda words: (lambda *_: Outcome(lambda: None, error=error), argparse.Namespace(json=True, command="c")),
    )
    assert main(["c", "--json"]) == 2
    printed = capsys.readouterr()
    assert json.loads(printed.out)["command"] == "c"
    assert printed.err == "trtkit: a: b; c.\n"


def test_a_plan_is_json_too(folder, capsys):
    content = run_json(["evaluate", str(folder / "m.onnx"), str(folder / "data.yaml"), "--dry-run"], capsys)
    assert (content["command"], content["verb"]) == ("evaluate", "evaluate")
    assert content["steps"]


def test_values_that_json_lacks(capsys):
    print_json({"a": math.nan, "b": np.float32(1.5), "c": (np.array([1, 2]),), "d": Path("x"), "e": -math.inf})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": 1.5, "c": [[1, 2]], "d": "x", "e": None}


def test_quiet_prints_neither_progress_nor_notes(folder, tmp_path, capsys):
    words = ["calibrate", str(folder / "m.onnx"), *FEW.split(), "--output", str(tmp_path)]
    assert main([*words, "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert main([*words, "--overwrite"]) == 0
    assert "note:" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "-q", "-v"])


@pytest.mark.parametrize("write", [json.dumps, yaml.safe_dump])
def test_a_recipe_gives_the_options_and_words_win(write, tmp_path):
    recipe = trtkit.Recipe(
        model="m.pt", int8=True, imgsz=(320, 640), batch=4, keep=("a", "b"), data=["x.jpg", "y.jpg"], opt_level=2
    )
    (tmp_path / "r").write_text(write(recipe.to_dict()))
    values = parse_command(["export", "--recipe", str(tmp_path / "r")])[1]
    assert trtkit.Recipe.from_dict({name: getattr(values, name) for name in recipe.to_dict()}) == recipe
    words = ["export", "n.pt", "--recipe", str(tmp_path / "r"), "--batch=8", "--keep=c", "--no-simplify"]
    values = parse_command(words)[1]
    assert (values.model, values.batch, values.simplify, values.int8) == ("n.pt", 8, False, True)
    assert values.keep == ["a", "b", "c"]
    assert parse_command(["export", "--model=n.pt", "--recipe", str(tmp_path / "r")])[1].model == "n.pt"


def test_a_recipe_exports(folder, tmp_path, capsys):
    settings = {"format": "onnx", "model": str(folder / "m.onnx"), "output": str(tmp_path / "b.onnx")}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(settings))
    assert main(["export", "--recipe", str(tmp_path / "r.yaml")]) == 0
    assert str(tmp_path / "b.onnx") in capsys.readouterr().out


def test_the_recipes_of_a_comparison_are_chosen_by_precision(tmp_path):
    recipes = {
        name: {"onnx": trtkit.Recipe(model="m.pt", format="onnx", half=name == "fp16", int8=name == "int8").to_dict()}
        for name in ("fp16", "int8")
    }
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps({"verb": "compare", "recipes": recipes}))
    words = ["export", "--recipe", str(file), "--format=onnx"]
    assert parse_command([*words, "--int8"])[1].int8
    with raises(RecipeError, "recipe-file-precision-missing", precision="fp32"):
        parse_command(words)
    with raises(RecipeError, "recipe-file-precision-missing"):
        parse_command(["export", "--recipe", str(file), "--int8"])


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("a: [", "recipe-file-unreadable"),
        ("- a", "recipe-not-a-mapping"),
        ("{model: m.pt, hlaf: true}", "recipe-settings-unknown"),
        ("{half: true}", "recipe-model-missing"),
        ("{model: m.pt, batch: 0}", "argument-invalid"),
        (None, "recipe-file-unreadable"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(content, code, tmp_path, capsys):
    file = tmp_path / "r.yaml"
    if content is not None:
        file.write_text(content)
    with raises(RecipeError, code):
        parse_command(["export", "--recipe", str(file)])
    assert main(["export", "--recipe", str(file)]) == 2
    assert re.match(r"trtkit: .*\.\n", capsys.readouterr().err)
    assert read_recipe(argparse.Namespace(recipe=None)) == {}
