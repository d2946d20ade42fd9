"""Every notebook runs from a clean copy, on a processor, with the values it declares for that."""

import pytest
from chapters import CHAPTERS, outputs_of, run, shown

FIGURE = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
# How many widgets a chapter shows.
WIDGETS = {"02_export_wizard": 1, "03_int8_vs_fp16": 2, "04_calibration_tuning": 1, "06_inside_the_engine": 1}


@pytest.mark.slow
@pytest.mark.parametrize("path", CHAPTERS, ids=[path.stem for path in CHAPTERS])
def test_it_runs_and_shows_what_it_found(path, tmp_path):
    notebook = run(path, tmp_path)
    outputs = outputs_of(notebook)
    assert not [output for output in outputs if output.output_type == "error"]
    # Warnings and logs would stand between the chapter's lines.
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert len(shown(notebook, WIDGET)) == WIDGETS.get(path.stem, 0)
    # What it shows outlives the kernel: figures draw themselves, and tables are tables.
    for output in outputs:
        if FIGURE in output.get("data", {}):
            assert "Plotly.newPlot" in output.data["text/html"]
    if path.stem != "02_export_wizard":
        assert shown(notebook, FIGURE)
    assert any("<table" in text for text in shown(notebook, "text/html"))
    # It leaves its results in one place.
    left = [one for one in (tmp_path / "notebooks").iterdir() if one.suffix != ".ipynb"]
    assert [one.name for one in left] == ["runs"]
    assert [one.name for one in left[0].iterdir()] == [path.stem]
