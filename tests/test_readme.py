"""What the README shows can be done: its commands parse, its Python names what is there, its files exist."""

import ast
import importlib
import inspect
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

import trtkit
from trtkit.cli import COMMANDS, parse_command

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MEASURED = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def lines():
    return [shlex.split(line, comments=True) for block in blocks("bash") for line in block.splitlines()]


def test_every_trtkit_command_is_understood():
    commands = [words for words in lines() if words[0] == "trtkit"]
    assert len(commands) >= 4
    for words in commands:
        parse_command(words[1:])


def test_every_make_target_is_there():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in lines():
        if words[0] == "make":
            assert set(words[1:]) <= targets


def test_the_python_uses_names_and_arguments_that_are_there():
    (code,) = blocks("python")
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    verbs = 0
    for call in calls:
        if isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") == "tk":
            parameters = inspect.signature(getattr(trtkit, call.func.attr)).parameters
            assert {word.arg for word in call.keywords} <= set(parameters)
            verbs += 1
    assert verbs == 3
    for name in ("frame", "plot"):
        assert callable(getattr(trtkit.Comparison, name))


def test_the_table_names_what_is_there():
    table = README[README.index("| command | Python |") :].split("\n\n")[0].splitlines()[2:]
    assert len(table) == 18
    for line in table:
        command, function = (cell.strip("` ") for cell in line.split("|")[1:3])
        assert command in ("", *COMMANDS)
        member = trtkit
        for part in function.split("."):
            member = getattr(member, part)
        assert callable(member)


def test_the_list_of_families_is_the_one_of_the_tests():
    sys.path.insert(0, str(ROOT / "tests" / "models"))
    families = importlib.import_module("families")
    assert README.partition(families.BEGIN)[2].partition(families.END)[0] == families.render_table()
    names = [name for name, _ in families.NAMES.items()]
    structures = json.loads((ROOT / "tests" / "models" / "references" / "structures.json").read_text())
    # Every listed network is one whose weights test_models_yolo.py compares.
    assert set(names) <= set(structures)


@pytest.mark.parametrize(
    "page",
    ["README.md", "README.zh-CN.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "docs/benchmarks.md"],
)
def test_every_linked_file_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)|(?:src|srcset)=\"([^\"]+)\"", text)
    missing = [path for link in links for path in link if path and not ((ROOT / page).parent / path).exists()]
    assert not missing


def test_architecture_names_tests_and_modules_that_exist():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    paths = [path for path in re.findall(r"`((?:tests/)?\w+/[\w/]+\.py)`", text) if "<" not in path]
    assert len(paths) > 8
    missing = [path for path in paths if not (ROOT / path).exists() and not (ROOT / "trtkit" / path).exists()]
    assert not missing


def test_published_losses_are_the_measured_ones():
    measured = json.loads((ROOT / "benchmarks" / "results" / "five_tasks.json").read_text(encoding="utf-8"))["tasks"]
    table = MEASURED[MEASURED.index("| task | predictions |") :].split("\n\n")[0].splitlines()[2:]
    assert [line.split("|")[1].strip() for line in table] == list(measured)
    for line, one in zip(table, measured.values(), strict=True):
        row = next(row for row in one["changes"] if (row["metric"], row["precision"]) == (one["metric"], "int8"))
        cells = [cell.strip() for cell in line.split("|")[4:7]]
        interval = f"{row['delta']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"
        assert cells == [f"{row['reference']:.4f}", f"{row['value']:.4f}", interval]
        assert not row["significant"]
