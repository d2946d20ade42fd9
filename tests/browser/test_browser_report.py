"""The report on screens of three widths and on paper: nothing scrolls sideways, is folded, or is cut."""

import pytest
from example_comparison import example_comparison

from trtkit.comparison.report import render_report

CHANGES = {"fp16": (0.0, -0.0002, 0.0002), "int8": (-0.0041, -0.0081, -0.0001)}
FITS = "() => document.documentElement.scrollWidth <= document.documentElement.clientWidth"
FOLDED = "() => [...document.querySelectorAll('details > *:not(summary)')].map((one) => one.checkVisibility())"
SPLIT = "() => [...document.querySelectorAll('.figure, tr, .card')].map((one) => getComputedStyle(one).breakInside)"


@pytest.fixture(scope="module")
def page(page_maker, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    # Many batches and precisions make wide tables.
    path.write_text(render_report(example_comparison(where="gpu", batches=(1, 8), changes=CHANGES)))
    opened = page_maker.new_page()
    opened.goto(path.as_uri())
    opened.wait_for_selector(".main-svg")
    yield opened
    opened.close()


@pytest.mark.parametrize("width", [420, 900, 1600])
def test_the_page_does_not_scroll_sideways(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.evaluate("() => document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    # Figures take the new width a moment later.
    page.wait_for_function(FITS, timeout=10_000)
    page.evaluate("() => document.querySelectorAll('details').forEach((one) => { one.open = false; })")


def test_print_shows_what_is_folded_and_keeps_figures_whole(page, screenshots):
    page.set_viewport_size({"width": 794, "height": 1123})
    closed = page.evaluate(FOLDED)
    assert closed
    assert not any(closed)
    page.emulate_media(media="print")
    shown = page.evaluate(FOLDED)
    pdf = page.pdf(path=str(screenshots / "report.pdf"), format="A4")
    split = page.evaluate(SPLIT)
    page.emulate_media(media="screen")
    assert all(shown)
    assert pdf.startswith(b"%PDF")
    assert split
    assert set(split) == {"avoid"}
