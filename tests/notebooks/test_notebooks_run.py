"""Every notebook runs in a clean copy, on a CPU, with its fast values."""

import pytest
from chapters import CHAPTERS, Kernel, list_code_cells, list_data, list_outputs

FIGURE = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
WIDGETS = {"02_export_wizard": 2, "03_int8_vs_fp16": 2, "04_calibration_tuning": 1, "06_inside_the_engine": 1}
"""Number of widgets per notebook."""
WITHOUT_TENSORRT = ("05_five_tasks",)
"""Notebooks that run as where neither TensorRT nor TensorRT-RTX is installed; the others build engines if one is."""


@pytest.fixture(scope="module")
def kernel():
    opened = Kernel()
    yield opened
    opened.close()


@pytest.mark.slow
@pytest.mark.parametrize("path", CHAPTERS, ids=[path.stem for path in CHAPTERS])
def test_a_notebook_runs_and_shows_its_results(path, kernel, request, tmp_path):
    if path == CHAPTERS[0]:
        notebook, runs = request.getfixturevalue("quickstart")
        folder = runs.parents[1]
    else:
        notebook = kernel.run(path, tmp_path, without_tensorrt=path.stem in WITHOUT_TENSORRT)
        folder = tmp_path / "notebooks"
    outputs = list_outputs(notebook)
    assert not [output for output in outputs if output.output_type == "error"]
    # No warnings and no logs.
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert len(list_data(notebook, WIDGET)) == WIDGETS.get(path.stem, 0)
    # Figures and tables are in the saved outputs, independent of the kernel.
    for output in outputs:
        if FIGURE in output.get("data", {}):
            assert "Plotly.newPlot" in output.data["text/html"]
    if path.stem != "02_export_wizard":
        assert list_data(notebook, FIGURE)
    assert any("<table" in text for text in list_data(notebook, "text/html"))
    # All results are in one folder.
    created = [one for one in folder.iterdir() if one.suffix != ".ipynb"]
    assert [one.name for one in created] == ["runs"]
    assert [one.name for one in created[0].iterdir()] == [path.stem]


@pytest.fixture(scope="module")
def quickstart(kernel, tmp_path_factory):
    """Notebook 1 after its run, and the folder of its files."""
    folder = tmp_path_factory.mktemp("quickstart")
    return kernel.run(CHAPTERS[0], folder), folder / "notebooks" / "runs" / "01_quickstart"


@pytest.mark.slow
def test_notebook_1_opens_with_one_image_in_both_precisions(quickstart):
    notebook, _ = quickstart
    setup, parameters, _, first = [cell for cell in list_code_cells(notebook) if cell.id != "reset"][:4]
    assert (setup.outputs, parameters.outputs) == ([], [])
    html = first.outputs[-1].data["text/html"]
    assert html.count("data:image/jpeg") == 2
    assert 0 < html.index("FP32: Detections(") < html.index("INT8: Detections(")


@pytest.mark.slow
def test_notebook_3_loads_what_notebook_1_saved(quickstart, kernel, tmp_path):
    _, saved = quickstart
    notebook = kernel.run(CHAPTERS[2], tmp_path, saved=str(saved))
    outputs = list_outputs(notebook)
    assert not [output for output in outputs if output.output_type == "error"]
    assert any(f"Loaded from {saved}." in output.get("text", "") for output in outputs)
    assert len(list_data(notebook, WIDGET)) == WIDGETS["03_int8_vs_fp16"]
    assert not (tmp_path / "notebooks" / "runs").exists()


BARE_CALL = """\
import os, time
os.environ.pop("CI", None)
from trtkit import progress_line
from trtkit.progress import Plan, Reporter, start_work
progress_line.DELAY_SECONDS = progress_line.TICK_SECONDS = 0.05
@progress_line.verb
def work(seconds=0.0, *, progress=None, cancel=None):
    reporter = Reporter(progress, cancel)
    start_work(Plan(verb="work", steps=("first", "second")), reporter)
    reporter.begin("first")
    time.sleep(seconds)
    reporter.finish()
"""


def test_a_bare_call_shows_its_progress_below_its_cell(kernel):
    cells = [BARE_CALL, "work(0.3)", "work()", "work(0.3, progress=progress_line.ProgressLine())"]
    # The kernel is others' too.
    restore = "progress_line.DELAY_SECONDS = progress_line.TICK_SECONDS = 1.0"
    _, bare, quick, given, _ = kernel.run_cells([*cells, restore])
    # Updated from the clock's thread, in the cell that called.
    for shown in (bare, given):
        assert [output.data["text/plain"] for output in shown.outputs] == ["work · done in 0:00"]
        assert "role='status'" in shown.outputs[0].data["text/html"]
    assert quick.outputs == []
