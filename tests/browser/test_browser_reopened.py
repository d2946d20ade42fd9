"""Saved notebooks, opened again without network and kernel: every figure is drawn, whatever became of other cells."""

import dataclasses
import shutil
import time

import polars as pl
import pytest
from example_comparison import example_comparison
from layer_rows import FP16_LAYERS, INT8_LAYERS
from nbconvert import HTMLExporter
from playwright.sync_api import expect

from trtkit.inspection import read_layers

CHANGES = {"fp16": (0.0, -0.0002, 0.0002), "int8": (-0.0041, -0.0081, -0.0001)}
GROUPS = [("int8", "class", str(number), -0.001 * number, -0.02, 0.01) for number in range(4)]
CELLS = [
    "import trtkit as tk\ncomparison = tk.Comparison.load('saved')\ncomparison.plot()",
    "comparison.plot_losses()",
    "tk.dashboard(comparison)",
    "tk.explorer('int8.parquet', 'fp16.parquet')",
]
FIGURES = (1, 1, 4, 3)
"""Number of figures by cell; the dashboard has accuracy, classes, latency, size, the explorer layers and precisions."""

DRAW_SECONDS = 40
"""Longest time until JupyterLab has opened and drawn a notebook."""

DELETE_CELL = """(place) => {
  const notebook = window.jupyterapp.shell.currentWidget.content;
  notebook.activeCellIndex = place;
  notebook.deselectAll();
  return window.jupyterapp.commands.execute('notebook:delete-cell');
}"""
SHUT_DOWN = "() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()"


@pytest.fixture
def saved(lab):
    """The notebook after all of its cells have run."""
    comparison = example_comparison(changes=CHANGES, groups=GROUPS)
    classes = comparison.classes.with_columns(instances=pl.lit(5))
    dataclasses.replace(comparison, classes=classes).save(lab.folder / "saved")
    for name, layers in (("fp16", FP16_LAYERS), ("int8", INT8_LAYERS)):
        read_layers(layers, name=name).save(lab.folder / f"{name}.parquet")
    lab.open(CELLS)
    lab.restart()
    lab.run_all()
    for name in ("dashboard", "explorer"):
        expect(lab.find(name).locator(".main-svg").first).to_be_visible(timeout=60_000)
    # The live widget hides the output that stands for it.
    assert lab.page.locator("[class^=trtkit-static]:visible").count() == 0
    return lab


def count_figures(page, cells):
    """Number of visible figures of each code cell of a page of JupyterLab or nbconvert."""
    # JupyterLab's renderer of figures shows the image that it saved, until the figure is used.
    figures = ".plot-container:visible:has(.main-svg), .jp-OutputArea-output img:visible"
    return tuple(cell.locator(figures).count() for cell in page.locator(cells).all())


def assert_drawn(lab, tmp_path, screenshots, name, expected):
    """Open the saved notebook in JupyterLab and as an exported page, both with every other address blocked."""
    notebook = lab.save()
    path = tmp_path / "exported.html"
    path.write_text(HTMLExporter().from_notebook_node(notebook)[0], encoding="utf-8")
    blocked = []

    def block(route):
        if route.request.url.startswith((lab.address, "file:", "blob:", "data:")):
            return route.continue_()
        blocked.append(route.request.url)
        return route.abort()

    context = lab.page.context.browser.new_context(viewport={"width": 1360, "height": 1000})
    context.set_default_timeout(60_000)
    context.route("**/*", block)
    # The first file's kernel still runs, and would show the widgets themselves.
    shutil.copy(lab.folder / lab.name(), lab.folder / f"{name}.ipynb")
    lab_address = f"{lab.address}/lab/workspaces/again/tree/{name}.ipynb?token=secret&reset"
    for address, cells, stem in (
        (lab_address, ".jp-Notebook .jp-CodeCell", "lab"),
        (path.as_uri(), ".jp-CodeCell", "page"),
    ):
        page = context.new_page()
        page.goto(address, wait_until="domcontentloaded")
        end = time.monotonic() + DRAW_SECONDS
        while (drawn := count_figures(page, cells)) != expected and time.monotonic() < end:
            page.wait_for_timeout(200)
        page.screenshot(path=str(screenshots / f"reopened-{name}-{stem}.png"), full_page=True)
        page.close()
        assert drawn == expected, stem
    context.close()
    assert not [url for url in blocked if "plotly" in url]
    return notebook


def test_every_figure_is_drawn_offline(saved, tmp_path, screenshots):
    notebook = assert_drawn(saved, tmp_path, screenshots, "all", FIGURES)
    # A copy for each widget and two for the figures.
    assert str(notebook).count("data-trtkit-library>") == 4


@pytest.mark.parametrize("change", ["deleted", "emptied"])
def test_the_first_figure_is_not_needed(saved, tmp_path, screenshots, change):
    if change == "deleted":
        saved.page.evaluate(DELETE_CELL, 0)
        expected = FIGURES[1:]
    else:
        saved.page.evaluate(
            "() => window.jupyterapp.shell.currentWidget.content.model.cells.get(0).sharedModel.setSource('1 + 1')"
        )
        saved.page.evaluate(
            "() => { const app = window.jupyterapp; app.shell.currentWidget.content.activeCellIndex = 0;"
            " return app.commands.execute('notebook:run-cell'); }"
        )
        saved.wait_idle()
        expected = (0, *FIGURES[1:])
    assert_drawn(saved, tmp_path, screenshots, change, expected)
