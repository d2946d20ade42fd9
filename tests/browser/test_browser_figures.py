"""Figures of several panels on pages of 420, 900 and 1600 pixels: no text covers another or leaves the page."""

import polars as pl
import pytest
from example_comparison import example_comparison

from trtkit.comparison.published import describe_unmeasured
from trtkit.plotting import calibration, evaluation
from trtkit.plotting.comparison import unmeasured_latency_figure
from trtkit.plotting.notebook import figure_html, library_html

CHANGES = {"fp16": (0.0, -0.0002, 0.0002), "int8": (-0.0041, -0.0081, -0.0001)}
WIDTHS = (420, 900, 1600)
CLEARANCE = 1
"""Overlap of two boxes of text that is still no collision of their letters, pixels."""

TEXTS = """() => [...document.querySelectorAll("svg text")].map((one) => [one.textContent.trim(),
  one.getBoundingClientRect()]).filter(([text, box]) => text && box.width).map(([text, box]) =>
  [text, box.left, box.top, box.right, box.bottom])"""


def list_figures():
    classes = [f"class {number}" for number in range(12)]
    per_class = pl.DataFrame({"name": classes, "mAP50-95(B)": [0.05 * number for number in range(12)]})
    nothing = pl.DataFrame({"class": []}, schema={"class": pl.Int64})
    load = pl.DataFrame([(1, 1, 9.0, 1.0, 2.0), (1, 8, 30.0, 2.0, 3.0), (8, 1, 20.0, 3.0, 6.0)], orient="row",
                        schema=["batch", "concurrency", "images_per_s", "p50_ms", "p99_ms"])  # fmt: skip
    images = [(name, 20.0 * number, 9.0 * number, 1 + number / 9) for name in ("train", "val") for number in range(9)]
    sets = pl.DataFrame(images, orient="row", schema=["set", "brightness", "contrast", "aspect"])
    evaluated = per_class.with_columns(pl.lit(0.7).alias("mAP50(B)"))
    whole = example_comparison(where="gpu", batches=(1, 8), changes=CHANGES)
    return {
        "comparison-gpu": whole.plot(),
        "comparison-cpu": example_comparison(changes=CHANGES).plot(),
        "comparison-unpublished": example_comparison(changes=CHANGES, model="mine").plot(),
        "unmeasured": unmeasured_latency_figure(["fp32", "int8"], **describe_unmeasured(example_comparison())),
        "losses": whole.plot_losses(),
        "timing": whole.timing().plot(),
        "evaluation": evaluation.evaluation_figure(evaluated, nothing, nothing, kinds=["B"], title="detect"),
        "load": evaluation.load_figure(load, title="load test"),
        "diagnosis": calibration.diagnosis_figure(sets),
    }


@pytest.fixture(scope="module")
def page(page_maker):
    opened = page_maker.new_page()
    yield opened
    opened.close()


def overlaps(one, other):
    _, *a = one
    _, *b = other
    return min(a[2], b[2]) - max(a[0], b[0]) > CLEARANCE and min(a[3], b[3]) - max(a[1], b[1]) > 2 * CLEARANCE


def test_the_check_sees_an_overlap(page):
    page.set_content("<svg width=300><text x=9 y=30>one</text><text x=12 y=32>other</text></svg>")
    assert overlaps(*page.evaluate(TEXTS))


@pytest.mark.parametrize("width", WIDTHS)
def test_panels_fit_the_page_and_no_text_covers_another(page, width, tmp_path, screenshots):
    page.set_viewport_size({"width": width, "height": 900})
    for name, figure in list_figures().items():
        path = tmp_path / f"{name}.html"
        path.write_text(f"<!doctype html><meta charset=utf-8><body>{library_html()}{figure_html(figure)}")
        page.goto(path.as_uri())
        page.wait_for_selector(".main-svg")
        texts = page.evaluate(TEXTS)
        page.screenshot(path=str(screenshots / f"figure-{name}-{width}.png"), full_page=True)
        assert len(texts) > 5
        assert not [text for text, left, _, right, _ in texts if left < 0 or right > width], (name, width)
        covered = [(one[0], other[0]) for place, one in enumerate(texts) for other in texts[place + 1 :]
                   if overlaps(one, other)]  # fmt: skip
        assert covered == [], (name, width)
