"""Every notebook is a chapter, with its settings in one cell, short cells of code, and nothing that was run."""

import ast
import json
import re

import pytest
from chapters import CHAPTERS, code_of, fast_of, parameters_of, read

NAMES = (
    "01_quickstart",
    "02_export_wizard",
    "03_int8_vs_fp16",
    "04_calibration_tuning",
    "05_five_tasks",
    "06_inside_the_engine",
)
MOST_LINES = 25

chapters = pytest.mark.parametrize("path", CHAPTERS, ids=[path.stem for path in CHAPTERS])


def text_of(notebook):
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def headings(notebook):
    return re.findall(r"^#+ .*$", text_of(notebook), re.MULTILINE)


def python_of(cell):
    """A cell's Python without its magics."""
    return "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))


def assigned(cell):
    """Names that a cell gives a value."""
    nodes = ast.walk(ast.parse(python_of(cell)))
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def test_all_chapters_are_there():
    assert tuple(path.stem for path in CHAPTERS) == NAMES


@chapters
def test_nothing_was_run(path):
    raw = json.loads(path.read_text(encoding="utf-8"))
    for cell in raw["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@chapters
def test_cells_keep_names_of_their_own(path):
    raw = json.loads(path.read_text(encoding="utf-8"))
    assert (raw["nbformat"], raw["nbformat_minor"]) == (4, 5)
    names = [cell["id"] for cell in raw["cells"]]
    assert len(set(names)) == len(names)
    # Words, not the random letters that a front end gives.
    assert all(re.fullmatch(r"[a-z][a-z-]*", name) for name in names)


@chapters
def test_any_python_3_runs_it(path):
    metadata = read(path).metadata
    assert metadata.kernelspec.name == "python3"
    assert set(metadata) == {"kernelspec", "language_info", "trtkit"}
    assert set(metadata.language_info) == {"name"}


@chapters
def test_it_reads_as_a_chapter(path):
    notebook = read(path)
    first, last = notebook.cells[0], notebook.cells[-1]
    assert first.source.startswith(f"# {int(path.stem[:2])} · ")
    assert "**What you learn.**" in first.source
    # How long it takes, for the reader who has a minute.
    assert "minute" in first.source
    assert last.source.startswith("## What to try next")
    assert len(last.source.splitlines()) >= 4
    assert sum(heading.startswith("## Why it matters") for heading in headings(notebook)) == 1
    assert sum(heading.startswith("# ") for heading in headings(notebook)) == 1


@chapters
def test_code_never_comes_without_words(path):
    """Two cells of code may follow each other (a table and its figure), three may not."""
    kinds = "".join(cell.cell_type[0] for cell in read(path).cells)
    assert "ccc" not in kinds
    assert kinds[0] == kinds[-1] == "m"


@chapters
def test_cells_of_code_are_short_and_hold_no_logic(path):
    for cell in code_of(read(path)):
        assert len(cell.source.splitlines()) < MOST_LINES, cell.id
        for node in ast.walk(ast.parse(python_of(cell))):
            unwanted = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.If, ast.While, ast.Try, ast.AsyncFunctionDef)
            assert not isinstance(node, unwanted), cell.id


@chapters
def test_one_cell_holds_everything_to_change_and_all_fast_values_are_in_it(path):
    notebook = read(path)
    place, cell = parameters_of(notebook)
    tree = ast.parse(cell.source)
    assert all(isinstance(node, ast.Assign) for node in tree.body)
    names = {target.id for node in tree.body for target in node.targets}
    assert fast_of(notebook)
    assert set(fast_of(notebook)) <= names
    # Every setting is explained where it stands.
    assert all("  # " in line or line.startswith("output") for line in cell.source.splitlines())
    # And no later cell takes them over.
    for later in code_of(notebook):
        assert later.id == cell.id or not assigned(later) & names, later.id
    assert notebook.cells[place - 1].source.startswith("## Settings")


@chapters
def test_it_names_no_place_of_the_machine_it_was_written_on(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.:/])/(home|Users|work|tmp|root|opt|mnt|usr)/", text)
    assert not re.search(r"[A-Z]:\\\\", text)


@chapters
def test_links_lead_to_chapters_that_are_there(path):
    for link in re.findall(r"\]\(([^)]+)\)", text_of(read(path))):
        assert (path.parent / link).is_file(), link


@chapters
def test_results_are_written_below_runs(path):
    for cell in code_of(read(path)):
        for name in re.findall(r"(?:output|cache_dir)=f?\"([^\"]+)\"", cell.source):
            assert name.startswith(f"runs/{path.stem}"), name
