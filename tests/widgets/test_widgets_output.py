"""ClickableFigure: figures sent as JSON, clicks, no anywidget; StaticOutput: the HTML that a saved notebook keeps."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import ipywidgets
import plotly.graph_objects as go
import pytest

from trtkit.errors import RecipeError
from trtkit.plotting.notebook import MIMETYPE
from trtkit.widgets.ui import output
from trtkit.widgets.ui.controls import ErrorBox
from trtkit.widgets.ui.output import ClickableFigure, FigureOutput, StaticOutput


def test_the_whole_figure_is_sent_each_time() -> None:
    figure = ClickableFigure("thing")
    figure.draw(go.Figure(go.Scatter(x=[1, 2], y=[3, None], customdata=["a", "b"])))
    first = json.loads(figure._view.figure)
    assert first["data"][0]["y"] == [3, None]
    figure.draw(go.Figure(go.Bar(x=[1], y=[2])))
    assert json.loads(figure._view.figure)["data"][0]["type"] == "bar"
    assert figure.figure is not None
    assert figure.figure.data[0].type == "bar"


def test_one_figure_of_a_widget_carries_plotlyjs() -> None:
    import gzip

    carrier, other = ClickableFigure("one", include_plotlyjs=True), ClickableFigure("two")
    assert b"plotly.js" in gzip.decompress(carrier._view.library)
    assert other._view.library == b""


def test_clicks_reach_the_callback_and_their_errors_are_shown() -> None:
    box, clicked = ErrorBox(), []

    def on_click(data: object) -> None:
        clicked.append(data)
        if data == "wrong":
            raise RecipeError("click", "it is wrong", "click elsewhere")

    figure = ClickableFigure("thing", on_click, show_error=box.show)
    figure._view._handle_custom_msg({"kind": "click", "data": "right"}, [])
    figure._view._handle_custom_msg({"kind": "other"}, [])
    figure._view._handle_custom_msg("noise", [])
    assert clicked == ["right"]
    figure._view._handle_custom_msg({"kind": "click", "data": "wrong"}, [])
    assert "it is wrong" in box.value


def test_without_anywidget_the_figure_is_an_output(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "anywidget", None)
    figure = ClickableFigure("thing", lambda data: None)
    assert not figure.clickable
    figure.draw(go.Figure())
    assert isinstance(figure._view, ipywidgets.Output)
    assert figure._view.outputs


def test_a_figure_output_is_replaced_and_cleared() -> None:
    figure = go.Figure(go.Scatter(y=[1, 2, 3]))
    shown = FigureOutput()
    assert shown.outputs == ()
    shown.draw(figure)
    assert shown.outputs[0]["data"][MIMETYPE]["data"][0]["y"] == [1, 2, 3]
    assert len(shown.outputs[0]["data"]["text/html"]) < 20_000
    shown.draw(None)
    assert shown.outputs == ()


class Counter(StaticOutput):
    """Shows a number and a figure of it."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        self.children = (self.hiding_style,)

    def static_parts(self) -> list[Any]:
        return [f"<b>{self.number}</b>", go.Figure(go.Bar(y=[self.number]))]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Displayed HTML, and whether it updated an earlier output."""
    outputs: list[tuple[str, bool]] = []

    def display(data: dict[str, str], *, raw: bool, display_id: str = "", update: bool = False) -> None:
        outputs.append((data["text/html"], update))

    monkeypatch.setattr("IPython.display.display", display)
    return outputs


def test_the_output_is_hidden_while_the_widget_is_shown(shown: list[tuple[str, bool]]) -> None:
    widget = Counter()
    widget.refresh_static()
    assert not shown  # nothing is refreshed before the first display
    bundle = widget._repr_mimebundle_()
    assert bundle["text/html"] == ""
    assert "application/vnd.jupyter.widget-view+json" in bundle
    html, update = shown[-1]
    assert not update
    assert "<b>0</b>" in html
    assert html.count("application/json") == 1
    name = html.split('"')[1]
    assert f".{name} {{ display: none; }}" in widget.hiding_style.value


def test_several_changes_share_one_refresh(shown: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "REFRESH_DELAY", 0.01)
    widget = Counter()
    widget._repr_mimebundle_()
    before = len(shown)

    async def drag() -> None:
        for number in range(1, 6):
            widget.number = number
            widget.refresh_static()
        await asyncio.sleep(0.1)

    asyncio.run(drag())
    assert len(shown) == before + 1
    assert "<b>5</b>" in shown[-1][0]
    assert shown[-1][1]
    # Without an event loop, at once.
    widget.number = 6
    widget.refresh_static()
    assert "<b>6</b>" in shown[-1][0]


def test_plotlyjs_is_in_an_output_of_its_own(shown: list[tuple[str, bool]]) -> None:
    widget = Counter()
    widget._repr_mimebundle_()
    assert "data-trtkit-library>" not in shown[-1][0].replace('[data-trtkit-library]"', "")
    assert len(shown[-1][0]) < 100_000
