"""ClickableFigure: the figure as JSON, plotly.js once, clicks, and the fallback without anywidget."""

from __future__ import annotations

import json

import ipywidgets
import plotly.graph_objects as go
import pytest

from trtkit.errors import RecipeError
from trtkit.plotting.notebook import MIMETYPE
from trtkit.widgets.ui.controls import ErrorBox
from trtkit.widgets.ui.figure import ClickableFigure, FigureOutput


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
    output = FigureOutput()
    assert output.outputs == ()
    output.draw(figure)
    assert output.outputs[0]["data"][MIMETYPE]["data"][0]["y"] == [1, 2, 3]
    assert len(output.outputs[0]["data"]["text/html"]) < 20_000
    output.draw(None)
    assert output.outputs == ()
