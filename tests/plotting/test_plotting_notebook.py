"""Figures as HTML: self-contained JSON, one plotly.js per page, one loader."""

import gzip
import json
import re
from pathlib import Path
from types import SimpleNamespace

import plotly.graph_objects as go
import pytest

from trtkit.plotting import notebook
from trtkit.plotting.notebook import (
    TRACE_TYPES,
    compressed_plotly,
    figure_html,
    library_html,
    library_html_once,
    mime_bundle,
    plotly_loader,
    plotly_url,
)

FIGURE = go.Figure(go.Scatter(y=[1, 2, 3], name="</script>"), {"title": {"text": "A </script> title"}, "height": 321})


def test_a_figure_is_json_that_ends_no_script():
    markup = figure_html(FIGURE, css="wide", toolbar=False)
    (data,) = re.findall(r"<script type='application/json'>(.*?)</script>", markup, re.DOTALL)
    assert json.loads(data)["data"][0]["name"] == "</script>"
    assert markup.count("</script>") == 2
    assert 'class="wide"' in markup
    assert "height:321px" in markup
    assert '"displayModeBar": false' in markup


def test_every_figure_has_its_own_name_and_the_shared_loader():
    first, second = figure_html(FIGURE), figure_html(FIGURE)
    name = re.compile(r'id="(trtkit-\w+)"')
    assert name.search(first)[1] != name.search(second)[1]
    assert plotly_loader() in first
    assert plotly_url() in first
    assert len(first) < 20_000


def test_the_library_is_compressed_plotly():
    assert b"plotly.js (cartesian" in gzip.decompress(compressed_plotly())[:200]
    assert plotly_url().startswith("https://cdn.plot.ly/plotly-cartesian-")
    assert library_html().count("data-trtkit-library>") == 1
    assert len(library_html()) < 700_000


def test_the_library_draws_every_kind_of_trace_that_trtkit_uses():
    code = "".join(path.read_text() for path in Path(notebook.__file__).parent.glob("*.py"))
    kinds = set(re.findall(r"[a-z]\.add_(\w+)\(|go\.(\w+)\(", code))
    shapes = {"hline", "vline", "hrect", "vrect", "annotation", "shape", "figure"}
    assert {(one or other).lower() for one, other in kinds} - shapes - {""} <= TRACE_TYPES


class Cells:
    """A notebook's kernel: which of its cells runs, and in which outputs plotly.js is."""

    def __init__(self):
        self.events = SimpleNamespace(callbacks={"pre_run_cell": []}, register=self.register)
        self.runs, self.parent = 0, {}

    def register(self, event, call):
        self.events.callbacks[event].append(call)

    def get_parent(self):
        return self.parent

    def run(self, cell, *shows, deleted=()):
        """Run a cell that shows figures and widgets; True for each that includes plotly.js."""
        self.runs += 1
        for call in self.events.callbacks["pre_run_cell"]:
            call(SimpleNamespace(cell_id=cell))
        metadata = {"cellId": cell, "deletedCells": list(deleted)}
        self.parent = {"header": {"msg_id": str(self.runs)}, "metadata": metadata}
        return [bool(library_html_once(needed=True) if one == "widget" else self.has_library()) for one in shows]

    def has_library(self):
        return "data-trtkit-library>" in mime_bundle(FIGURE)["text/html"]


@pytest.fixture
def cells(monkeypatch):
    pytest.importorskip("IPython.core.getipython")
    opened = Cells()
    monkeypatch.setattr("IPython.core.getipython.get_ipython", lambda: opened)
    monkeypatch.setattr(notebook, "_library_cells", {})
    return opened


def test_two_cells_carry_the_library_and_a_widget_always_does(cells):
    assert cells.run("a", "figure", "figure") == [True, False]
    assert cells.run("b", "figure") == [True]
    assert cells.run("c", "figure") == [False]
    # JupyterLab renders no HTML of the figures of other cells, nor of its own.
    assert cells.run("d", "figure", "widget") == [False, True]


def test_a_cell_that_runs_again_or_is_deleted_does_not_count(cells):
    cells.run("a", "figure")
    cells.run("b", "figure")
    assert cells.run("a", "figure") == [True]
    assert cells.run("c", "figure", deleted=["a"]) == [True]
    assert cells.run("d", "figure", deleted=["a"]) == [False]
    # It shows no figure any more.
    cells.run("b")
    assert cells.run("d", "figure") == [True]


def test_figures_that_the_library_does_not_draw_are_left_to_plotly(monkeypatch):
    import plotly.io as pio

    monkeypatch.setattr(notebook, "DEFAULT_RENDERERS", (pio.renderers.default,))
    monkeypatch.setitem(notebook.sys.modules, "ipykernel", notebook)
    before = pio.renderers.default
    try:
        notebook.register_renderer()
        bundles = [pio.renderers["trtkit"].to_mimebundle({"data": [{"type": one}]}) for one in ("bar", "scatter3d")]
    finally:
        pio.renderers.default = before
        pio.renderers._renderers.pop("trtkit", None)
    assert ["text/html" in one for one in bundles] == [True, False]
    assert all(notebook.MIMETYPE in one for one in bundles)
