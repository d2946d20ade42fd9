"""Hostile names in pages of a real browser: no script runs, and the names are shown as text."""

import pytest
from hostile import NAMES, hostile_comparison, hostile_figures, hostile_pages
from playwright.sync_api import expect

from trtkit.plotting.notebook import figure_html, library_html

TEXT = """() => {
  const texts = Array.from(document.querySelectorAll("body *")).flatMap((element) => [
    ...["alt", "title", "aria-label", "value"].map((name) => element.getAttribute(name) ?? ""),
    ...(element.tagName === "SCRIPT" ? [] : [element.textContent]),
  ]);
  return texts.join("\\n");
}"""
HOVER = """async (index) => {
  const place = document.querySelectorAll(".shown")[index], found = [];
  for (const [curve, trace] of place.data.entries()) {
    if (!trace.hovertemplate) continue;
    for (let point = 0; point < place.calcdata[curve].length; point++) {
      Plotly.Fx.hover(place, [{ curveNumber: curve, pointNumber: point }], Object.keys(place._fullLayout._plots));
      // plotly shows at most one hover label in 50 ms.
      await new Promise((done) => setTimeout(done, 70));
      place.querySelectorAll(".hovertext").forEach((text) => found.push(text.textContent));
    }
  }
  return found;
}"""
RAN = "() => window.hacked ?? 0"


def normal(text):
    """Text with its white space as single spaces: a page's own breaks and U+2028 look like one."""
    return " ".join(text.split())


@pytest.fixture
def page(page_maker):
    page = page_maker.new_page()
    page.set_default_timeout(30_000)
    yield page
    page.close()


def assert_harmless(page, names=NAMES):
    """No script of a name ran and no element of one is there, and `names` are shown."""
    assert page.evaluate(RAN) == 0
    assert page.locator("img[src=x], a[href^=javascript], [onmouseover], svg[onload]").count() == 0
    shown = normal(page.evaluate(TEXT))
    missing = [name for name in names if normal(name) not in shown]
    assert not missing, missing


def test_the_check_sees_a_script_that_runs(page):
    page.set_content(f"<body>{NAMES[0]}</body>")
    page.wait_for_function("() => window.hacked === 1")
    with pytest.raises(AssertionError):
        assert_harmless(page, ())


def test_pages_show_names_and_run_nothing(page, tmp_path):
    pages = hostile_pages()
    expected = {"table": NAMES, "facts": NAMES, "images": NAMES, "report": NAMES[:4], "dashboard": NAMES[:1]}
    for place, markup in pages.items():
        path = tmp_path / f"{place}.html"
        path.write_text(markup if place == "report" else f"<!doctype html><meta charset=utf-8><body>{markup}</body>")
        page.goto(path.as_uri())
        assert_harmless(page, expected.get(place, ()))


def test_figures_draw_and_show_names(page, tmp_path):
    figures = hostile_figures()
    drawn = "".join(figure_html(figure, css="shown") for figure in figures.values())
    path = tmp_path / "figures.html"
    path.write_text(f"<!doctype html><meta charset=utf-8><body>{library_html()}{drawn}</body>")
    page.goto(path.as_uri())
    page.wait_for_function(
        "count => document.querySelectorAll('.shown .main-svg').length >= count", arg=2 * len(figures)
    )
    assert page.locator(".shown").count() == len(figures)
    assert_harmless(page)
    assert page.locator(".shown a").count() == 0
    for name in ("layer ranking", "sensitivity"):
        seen = normal(" ".join(page.evaluate(HOVER, list(figures).index(name))))
        assert not [name for name in NAMES if normal(name) not in seen], seen
    assert_harmless(page)
    assert page.locator(".hovertext a").count() == 0


def test_live_widgets_show_names_and_run_nothing(lab):
    hostile_comparison().save(lab.folder / "stranger")
    lab.open(
        [
            "import trtkit as tk\n"
            "from trtkit.comparison.comparison import Comparison\n"
            "comparison = Comparison.load('stranger')\ncomparison",
            "dashboard = tk.dashboard(comparison)\ndashboard",
        ]
    )
    lab.run_all()
    expect(lab.find("dashboard")).to_be_visible()
    expect(lab.find("dashboard").locator(".main-svg").first).to_be_visible()
    assert_harmless(lab.page, NAMES[:1])
