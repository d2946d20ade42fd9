"""Frames as HTML, and figures that outlive their kernel."""

from __future__ import annotations

import json
import re
import sys

import plotly.graph_objects as go
import plotly.io as pio
import polars as pl
import pytest

from trtkit.plotting import notebook as display
from trtkit.plotting.notebook import MIMETYPE, mime_bundle, register_renderer
from trtkit.widgets.ui.figure import FigureOutput
from trtkit.widgets.ui.html import render_facts, render_table


def cells(markup: str, tag: str = "td") -> list[str]:
    return re.findall(rf"<{tag}(?: [^>]*)?>(.*?)</{tag}>", markup)


def test_a_frame_is_a_table_with_numbers_on_the_right() -> None:
    frame = pl.DataFrame({"name": ["a<b", None], "value": [0.123456, None], "n": [1234, 5], "ok": [True, False]})
    markup = render_table(frame, headings={"name": "Name"}, digits={"value": 2}, row_classes={1: "trtkit-marked"})
    assert cells(markup, "th") == ["Name", "value", "n", "ok"]
    assert cells(markup) == ["a&lt;b", "0.12", "1,234", "yes", "–", "–", "5", "no"]
    assert markup.count("trtkit-number") == 2 * 3
    assert markup.count("<tr class='trtkit-marked'>") == 1


def test_rows_beyond_the_most_are_counted_and_not_lost_in_silence() -> None:
    frame = pl.DataFrame({"n": range(7)})
    assert "4 more rows" in render_table(frame, max_rows=3)
    assert "more rows" not in render_table(frame, max_rows=7)


def test_facts_leave_out_what_is_not_known() -> None:
    markup = render_facts(
        {"Task": "detect", "Driver": "", "Level": None, "Zero": 0, "Names": ("a", "b")}, caption="All"
    )
    assert cells(markup, "th") == ["Task", "Zero", "Names"]
    assert cells(markup) == ["detect", "0", "a, b"]
    assert "<caption>All</caption>" in markup


@pytest.fixture
def figure() -> go.Figure:
    return go.Figure(go.Scatter(y=[1, 2, 3]), {"title": {"text": "A </script> title"}, "height": 321})


def test_a_bundle_holds_the_figure_twice_and_the_library_when_asked(figure: go.Figure) -> None:
    small, large = mime_bundle(figure, library=False), mime_bundle(figure, library=True)
    for one in (small, large):
        assert one[MIMETYPE]["layout"]["height"] == 321
        inside = re.search(r"<script type='application/json'>(.*?)</script>", one["text/html"], re.DOTALL)
        assert inside is not None
        assert json.loads(inside[1])["data"][0]["y"] == [1, 2, 3]
        assert "height:321px" in one["text/html"]
    assert "data-trtkit-library>" not in small["text/html"]
    assert 1e6 < len(large["text/html"]) < 3e6


def test_a_image_in_a_widget_is_replaced_and_taken_away(figure: go.Figure) -> None:
    image = FigureOutput()
    assert image.outputs == ()
    image.draw(figure)
    assert image.outputs[0]["data"][MIMETYPE]["data"][0]["y"] == [1, 2, 3]
    assert len(image.outputs[0]["data"]["text/html"]) < 20_000
    image.draw(None)
    assert image.outputs == ()


class Shell:
    """IPython's shell as `display` asks it: which cell runs, and which run of it."""

    def __init__(self, cell: str, run: str) -> None:
        self.parent = {"metadata": {"cellId": cell}, "header": {"msg_id": run}}

    def get_parent(self) -> dict[str, dict[str, str]]:
        return self.parent


def test_one_cell_carries_the_library_also_when_it_runs_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import IPython.core.getipython

    monkeypatch.setattr(display, "_carrier", {})
    carried = []
    for cell, run in (("a", "1"), ("a", "1"), ("b", "2"), ("a", "3"), ("", "4"), ("b", "5")):
        monkeypatch.setattr(IPython.core.getipython, "get_ipython", lambda cell=cell, run=run: Shell(cell, run))
        carried.append(display._claim_library_cell())
    assert carried == [True, False, False, True, False, False]


@pytest.mark.parametrize(("chosen", "becomes"), [("plotly_mimetype", "trtkit"), ("png", "png")])
def test_in_a_notebook_every_figure_outlives_the_kernel_unless_another_renderer_was_chosen(
    monkeypatch: pytest.MonkeyPatch, figure: go.Figure, chosen: str, becomes: str
) -> None:
    before = pio.renderers.default
    try:
        pio.renderers.default = chosen
        monkeypatch.setitem(sys.modules, "ipykernel", sys)
        register_renderer()
        assert pio.renderers.default == becomes
        if becomes == "trtkit":
            made = pio.renderers._build_mime_bundle(figure.to_dict())
            assert set(made) == {MIMETYPE, "text/html", "text/plain"}
    finally:
        pio.renderers.default = before


def test_outside_a_notebook_plotly_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = pio.renderers.default
    try:
        pio.renderers.default = "plotly_mimetype"
        monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
        register_renderer()
        assert pio.renderers.default == "plotly_mimetype"
    finally:
        pio.renderers.default = before
