"""Every notebook runs in a clean copy, on a CPU, with its fast values."""

import pytest
from chapters import CHAPTERS, Kernel, list_data, list_outputs

FIGURE = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
WIDGETS = {"02_export_wizard": 1, "03_int8_vs_fp16": 2, "04_calibration_tuning": 1, "06_inside_the_engine": 1}
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
def test_a_notebook_runs_and_shows_its_results(path, kernel, tmp_path):
    notebook = kernel.run(path, tmp_path, without_tensorrt=path.stem in WITHOUT_TENSORRT)
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
    created = [one for one in (tmp_path / "notebooks").iterdir() if one.suffix != ".ipynb"]
    assert [one.name for one in created] == ["runs"]
    assert [one.name for one in created[0].iterdir()] == [path.stem]
