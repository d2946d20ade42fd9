"""The saved output of widgets as a page: on paper nothing is folded, scrolled or cut, and wide screens are used."""

import dataclasses

import polars as pl
import pytest
from example_comparison import example_comparison

from trtkit.plotting.notebook import library_html
from trtkit.widgets.comparison import Dashboard

CHANGES = {"fp16": (0.0, -0.0002, 0.0002), "int8": (-0.0041, -0.0081, -0.0001)}
GROUPS = [("int8", "class", str(number), -0.001 * number, -0.02, 0.01) for number in range(10)]
FOLDED = "() => [...document.querySelectorAll('details > *:not(summary)')].map((one) => one.checkVisibility())"
HIDDEN = """() => [...document.querySelectorAll('.trtkit-scroll, .trtkit-table, .trtkit pre')]
  .filter((one) => getComputedStyle(one).overflow !== 'visible' || getComputedStyle(one).maxHeight !== 'none')
  .map((one) => one.className)"""
SPLIT = """() => [...document.querySelectorAll('.trtkit tr, .trtkit .card')]
  .map((one) => getComputedStyle(one).breakInside)"""
USED = """() => [...document.querySelectorAll('.js-plotly-plot, .trtkit .cards')]
  .map((one) => one.getBoundingClientRect().width / document.documentElement.clientWidth)"""
SCROLLED = """() => [...document.querySelectorAll('.trtkit-table')]
  .filter((one) => one.scrollWidth > one.clientWidth + 1).length"""


@pytest.fixture(scope="module")
def page(page_maker, tmp_path_factory):
    comparison = example_comparison(where="gpu", batches=(1, 8), changes=CHANGES, groups=GROUPS)
    comparison = dataclasses.replace(comparison, classes=comparison.classes.with_columns(instances=pl.lit(5)))
    path = tmp_path_factory.mktemp("static") / "dashboard.html"
    head = "<!doctype html><meta charset='utf-8'><body>"
    path.write_text(f"{head}{library_html()}{Dashboard(comparison).static_html()}", encoding="utf-8")
    opened = page_maker.new_page()
    opened.goto(path.as_uri())
    opened.wait_for_selector(".main-svg")
    yield opened
    opened.close()


def test_print_shows_what_is_folded_and_scrolled_and_keeps_rows_whole(page, screenshots):
    page.set_viewport_size({"width": 794, "height": 1123})
    assert not any(page.evaluate(FOLDED))
    assert page.evaluate(HIDDEN)
    page.emulate_media(media="print")
    shown, hidden, split = (page.evaluate(code) for code in (FOLDED, HIDDEN, SPLIT))
    page.pdf(path=str(screenshots / "dashboard.pdf"), format="A4")
    page.emulate_media(media="screen")
    assert shown
    assert all(shown)
    assert hidden == []
    assert set(split) == {"avoid"}


def test_a_wide_page_is_used(page, screenshots):
    """A third of it was empty while tables scrolled in small boxes."""
    page.set_viewport_size({"width": 1600, "height": 1000})
    page.wait_for_timeout(500)
    page.screenshot(path=str(screenshots / "dashboard-static-1600.png"), full_page=True)
    assert min(page.evaluate(USED)) > 0.9
    assert page.evaluate(SCROLLED) == 0
