"""The tuner in JupyterLab, and what its notebook still shows once the kernel is gone."""

import json

import nbformat
import pytest
from nbconvert import HTMLExporter
from playwright.sync_api import expect

BEGIN = [
    "import trtkit as tk",
    "model, data = tk.demo.model_path('classify'), tk.demo.data_path('classify')\n"
    "calibration = tk.calibrate(model, data, calibration_images=4, histograms=True)\ncalibration",
    "calibration.plot()",
    "tuner = tk.tuner(calibration=calibration)\ntuner",
]


def traces(lab, name):
    """What plotly has drawn in a figure: x and y of every trace, by its name."""
    figure = lab.find(name).locator(".js-plotly-plot")
    expect(figure.locator(".main-svg").first).to_be_visible()
    # plotly keeps numbers as typed arrays.
    script = "at => JSON.stringify(at.data.map((one) => [one.name, Array.from(one.x ?? []), Array.from(one.y ?? [])]))"
    return {name: (x, y) for name, x, y in json.loads(figure.evaluate(script))}


def counted(histogram):
    """All values in a histogram, covered or clipped."""
    return sum(count or 0 for name in ("covered", "clipped") for count in histogram[name][1])


def choose(lab, algorithm):
    """Press the button of an algorithm and wait until it is the one in use."""
    button = lab.find("algorithm").get_by_role("button", name=algorithm, exact=True)
    button.click()
    expect(button).to_have_class("widget-toggle-button jupyter-button mod-active")


@pytest.fixture
def tuned(lab):
    lab.open(BEGIN)
    lab.restart()
    lab.run_all()
    expect(lab.find("tuner")).to_be_visible()
    return lab


def test_another_algorithm_redraws_the_ranges_and_the_saved_notebook_still_shows_them(tuned, screenshots, tmp_path):
    lab = tuned
    before, overview = traces(lab, "histogram"), traces(lab, "overview")
    code = lab.find("tuner-code").inner_text()
    choose(lab, "mse")
    lab.page.wait_for_function(
        "name => document.querySelector('.trtkit-histogram .js-plotly-plot').data.some((one) => one.name === name)",
        arg="in use: mse",
    )
    after = traces(lab, "histogram")
    (was,) = (name for name in before if name.startswith("in use"))
    assert was != "in use: mse"
    assert after["in use: mse"][0] != before[was][0]
    # It is the same pass that is read: no value came or went.
    assert counted(after) == counted(before) > 0
    assert traces(lab, "overview") != overview
    assert "mse" in lab.find("tuner-code").inner_text()
    assert lab.find("tuner-code").inner_text() != code
    lab.both_themes("tuner", screenshots, "tuner")
    # The output that outlives the kernel is renewed soon after a change.
    lab.wait_for_output("in use: mse")
    show_offline(lab, lab.save(), tmp_path / "exported.html", screenshots)


def show_offline(lab, notebook, path, screenshots):
    """Open the exported page where no kernel and no network is, and find figures and tables in it."""
    nbformat.validate(notebook)
    path.write_text(HTMLExporter().from_notebook_node(notebook)[0], encoding="utf-8")
    page = lab.page.context.new_page()
    page.route("**/*", lambda route: route.continue_() if route.request.url.startswith("file:") else route.abort())
    page.goto(path.as_uri(), wait_until="domcontentloaded")
    figures = page.locator(".js-plotly-plot .main-svg")
    expect(figures.first).to_be_visible()
    # The cell's own figure, and at least one of the tuner's; each draws several layers.
    expect(page.locator(".js-plotly-plot:visible").nth(1)).to_be_visible()
    assert page.locator("table:visible").count() >= 2
    page.screenshot(path=str(screenshots / "tuner-exported.png"), full_page=True)
    page.close()
