"""Structure of the notebooks: one settings cell, short code cells, no outputs."""

import ast
import json
import re

import pytest
from chapters import CHAPTERS, find_parameters, list_code_cells, read, read_fast_values

NAMES = (
    "01_quickstart",
    "02_export_wizard",
    "03_int8_vs_fp16",
    "04_calibration_tuning",
    "05_five_tasks",
    "06_inside_the_engine",
    "07_deployment",
)
MAX_LINES = 25

chapters = pytest.mark.parametrize("path", CHAPTERS, ids=[path.stem for path in CHAPTERS])


def join_markdown(notebook):
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def list_headings(notebook):
    return re.findall(r"^#+ .*$", join_markdown(notebook), re.MULTILINE)


def remove_magics(cell):
    """The Python code of a cell without magics."""
    return "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))


def list_assigned_names(cell):
    """Names that a cell assigns."""
    nodes = ast.walk(ast.parse(remove_magics(cell)))
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def test_all_notebooks_exist():
    assert tuple(path.stem for path in CHAPTERS) == NAMES


@chapters
def test_notebooks_have_no_outputs(path):
    raw = json.loads(path.read_text(encoding="utf-8"))
    for cell in raw["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@chapters
def test_cell_ids_are_unique_words(path):
    raw = json.loads(path.read_text(encoding="utf-8"))
    assert (raw["nbformat"], raw["nbformat_minor"]) == (4, 5)
    names = [cell["id"] for cell in raw["cells"]]
    assert len(set(names)) == len(names)
    # Words instead of the random ids of a front end.
    assert all(re.fullmatch(r"[a-z][a-z-]*", name) for name in names)


@chapters
def test_the_kernel_is_python3(path):
    metadata = read(path).metadata
    assert metadata.kernelspec.name == "python3"
    assert set(metadata) == {"kernelspec", "language_info", "trtkit"}
    assert set(metadata.language_info) == {"name"}


@chapters
def test_a_notebook_has_title_goal_reason_and_next_steps(path):
    notebook = read(path)
    first, last = notebook.cells[0], notebook.cells[-1]
    assert first.source.startswith(f"# {int(path.stem[:2])} · ")
    assert "**What you learn.**" in first.source
    # The duration.
    assert "minute" in first.source
    assert last.source.startswith("## What to try next")
    assert len(last.source.splitlines()) >= 4
    assert sum(heading.startswith("## Why it matters") for heading in list_headings(notebook)) == 1
    assert sum(heading.startswith("# ") for heading in list_headings(notebook)) == 1


@chapters
def test_code_cells_have_text_between_them(path):
    """Two consecutive code cells are fine (a table and its figure), three are not."""
    kinds = "".join(cell.cell_type[0] for cell in read(path).cells)
    assert "ccc" not in kinds
    assert kinds[0] == kinds[-1] == "m"


@chapters
def test_code_cells_are_short_and_without_control_flow(path):
    for cell in list_code_cells(read(path)):
        assert len(cell.source.splitlines()) <= MAX_LINES, cell.id
        for node in ast.walk(ast.parse(remove_magics(cell))):
            forbidden = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.If, ast.While, ast.Try, ast.AsyncFunctionDef)
            assert not isinstance(node, forbidden), cell.id


@chapters
def test_all_settings_are_in_the_parameters_cell(path):
    notebook = read(path)
    index, cell = find_parameters(notebook)
    tree = ast.parse(cell.source)
    assert all(isinstance(node, ast.Assign) for node in tree.body)
    names = {target.id for node in tree.body for target in node.targets}
    assert read_fast_values(notebook)
    assert set(read_fast_values(notebook)) <= names
    # Every setting has a comment.
    assert all("  # " in line or line.startswith("output") for line in cell.source.splitlines())
    # No later cell assigns them.
    for later in list_code_cells(notebook):
        assert later.id == cell.id or not list_assigned_names(later) & names, later.id
    assert notebook.cells[index - 1].source.startswith("## Settings")


@chapters
def test_no_absolute_paths(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.:/])/(home|Users|work|tmp|root|opt|mnt|usr)/", text)
    assert not re.search(r"[A-Z]:\\\\", text)


@chapters
def test_links_lead_to_notebooks_that_exist(path):
    for link in re.findall(r"\]\(([^)]+)\)", join_markdown(read(path))):
        assert (path.parent / link).is_file(), link


UNITS = r"(?:%|ms\b|s\b|MB\b|dB\b|minutes?\b|points?\b)"
MEASUREMENT = re.compile(rf"\d+(?:\.\d+)?(?= ?{UNITS})|\d+\.\d+")
"""What a cell may compute: a decimal, a share, a time, a size. Text beside it states none: it would differ some day."""

NOT_MEASURED = re.compile(r"```.*?```|`[^`]*`|\]\([^)]*\)|\b(?:TensorRT|Ultralytics|Python|CUDA) \d[\d.]*", re.DOTALL)
"""Code, links and versions."""

STATED = {
    ("01_quickstart", "read-text"): ({"95", "0.02"}, "the level of every interval; a bound measured elsewhere"),
    ("03_int8_vs_fp16", "losses-text"): ({"95"}, "the level of every interval"),
    ("03_int8_vs_fp16", "why"): (
        {"0.138", "0.113", "1.09", "0.75", "0.37", "0.33"},
        "published measurements of named models on named GPUs, which no cell here can repeat",
    ),
    ("04_calibration_tuning", "title"): ({"15"}, "the minutes of the whole notebook with its own settings"),
    ("04_calibration_tuning", "why"): ({"0.003", "0.25", "99.999"}, "a published measurement of a named model"),
    ("04_calibration_tuning", "sweep-text"): ({"0.001"}, "the rule of `sufficient`, not its outcome"),
    ("04_calibration_tuning", "next"): ({"0.001"}, "a setting to try"),
    ("05_five_tasks", "losses-text"): ({"95"}, "the level of every interval"),
    ("06_inside_the_engine", "times-text"): ({"2.48", "1.54"}, "a published measurement that needs a GPU"),
}
"""By notebook and cell: figures that are no result of a cell, and why."""


def find_measurements(text):
    """Numbers of a text that look like measured ones."""
    return MEASUREMENT.findall(NOT_MEASURED.sub("", text))


@chapters
def test_text_states_no_number_that_a_cell_computes(path):
    cells = [cell for cell in read(path).cells if cell.cell_type == "markdown"]
    for cell in cells:
        allowed, _ = STATED.get((path.stem, cell.id), (set(), ""))
        # Equal, so that nothing stays in the list that no text states any more.
        assert set(find_measurements(cell.source)) == allowed, cell.id
    names = {(path.stem, cell.id) for cell in cells}
    assert {key for key in STATED if key[0] == path.stem} <= names


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("INT8 loses 0.0086 of mAP50-95.", ["0.0086"]),
        ("It takes 1.7 ms, 4 % more, in 3 minutes.", ["1.7", "4", "3"]),
        ("yolo11n at 640 pixels, 512 images, batch 8, TensorRT 8.6.0, mAP50-95", []),
    ],
)
def test_measurements_are_told_from_settings(text, found):
    assert find_measurements(text) == found


PUBLISHED_SMALLER = {
    "eval_images",
    "calibration_images",
    "algorithms",
    "counts",
    "probe_images",
    "trials",
    "fraction",
    "seconds",
}


@chapters
def test_the_site_runs_notebooks_with_settings_that_they_have(path):
    """Only numbers of images, times and trials are smaller there: the image size is the notebook's own."""
    published = read(path).metadata["trtkit"].get("published", {})
    _, cell = find_parameters(read(path))
    own = ast.parse(cell.source).body
    assert set(published) <= PUBLISHED_SMALLER & {target.id for node in own for target in node.targets}


@chapters
def test_only_public_names_are_used(path):
    for cell in list_code_cells(read(path)):
        assert "from trtkit" not in cell.source, cell.id
        assert "import trtkit." not in cell.source, cell.id


@chapters
def test_results_are_written_below_runs(path):
    for cell in list_code_cells(read(path)):
        for name in re.findall(r"(?:output|cache_dir)=f?\"([^\"]+)\"", cell.source):
            assert name.startswith(f"runs/{path.stem}"), name
