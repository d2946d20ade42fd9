"""What README.md and docs show exists: commands parse, Python names what is there, links lead to files."""

import ast
import importlib
import inspect
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from documentation import snippets

import trtkit
from trtkit.cli import COMMANDS, parse_command

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MEASURED = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")


PAGES = [path.relative_to(ROOT).as_posix() for path in snippets.list_pages()]
SNIPPETS = [
    snippet for page in PAGES for snippet in snippets.list_snippets((ROOT / page).read_text(encoding="utf-8"), page)
]


def blocks(language):
    return [pytest.param(snippet.code, id=str(snippet)) for snippet in SNIPPETS if snippet.language == language]


def split_lines(code):
    return [shlex.split(line, comments=True) for line in re.sub(r"\\\n\s*", "", code).splitlines() if line.strip()]


def test_the_pages_have_code():
    assert {"README.md", "docs/index.md", "docs/verbs.md", "docs/errors/engine-header.md"} <= {s.page for s in SNIPPETS}
    assert {len(blocks(language)) > 10 for language in ("bash", "python")} == {True}
    # Of the README and each error message something runs.
    pages = {page for page in PAGES if page.startswith("docs/errors/") and not page.endswith("index.md")}
    assert pages | {"README.md"} <= {snippet.page for snippet in SNIPPETS if snippet.reason is None}


@pytest.mark.parametrize("snippet", [pytest.param(s, id=str(s)) for s in SNIPPETS if s.reason is not None])
def test_what_is_not_run_has_a_reason(snippet):
    assert len(snippet.reason.split()) > 1


@pytest.mark.parametrize("code", blocks("bash"))
def test_every_command_is_understood(code):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in split_lines(code):
        if words[0] == "trtkit":
            parse_command(words[1 : words.index("||") if "||" in words else None])
        elif words[0] == "make":
            assert set(words[1:]) <= targets
        elif words[0] == "python" and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file()


@pytest.mark.parametrize("code", blocks("python"))
def test_the_python_uses_names_and_arguments_that_are_there(code):
    for call in (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") == "tk":
            member = getattr(trtkit, call.func.attr)
            assert {word.arg for word in call.keywords} <= set(inspect.signature(member).parameters)


def test_the_table_names_what_is_there():
    table = README[README.index("| command | Python |") :].split("\n\n")[0].splitlines()[2:]
    assert len(table) == 19
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
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)|(?:src|srcset)=\"([^\"]+)\"", text)
    missing = [path for link in links for path in link if path and not ((ROOT / page).parent / path).exists()]
    assert not missing


def list_anchors(path):
    """What GitHub calls the headings of a page."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, "ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_every_linked_heading_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", text)
    targets = [((ROOT / page).parent / name if name else ROOT / page, anchor) for name, anchor in links]
    missing = [(path.name, anchor) for path, anchor in targets if anchor not in list_anchors(path)]
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
