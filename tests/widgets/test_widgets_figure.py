from __future__ import annotations

import json

import ipywidgets
import plotly.graph_objects as go
import pytest

from trtkit.errors import RecipeError
from trtkit.widgets.ui.controls import ErrorBox
from trtkit.widgets.ui.figure import ClickableFigure


def test_the_page_gets_the_whole_figure_each_time() -> None:
    live = ClickableFigure("thing")
    live.draw(go.Figure(go.Scatter(x=[1, 2], y=[3, None], customdata=["a", "b"])))
    first = json.loads(live._place.figure)
    assert first["data"][0]["y"] == [3, None]
    live.draw(go.Figure(go.Bar(x=[1], y=[2])))
    assert json.loads(live._place.figure)["data"][0]["type"] == "bar"
    assert live.figure is not None
    assert live.figure.data[0].type == "bar"


def test_one_figure_of_a_widget_carries_the_library() -> None:
    import gzip

    carrier, other = ClickableFigure("one", include_plotlyjs=True), ClickableFigure("two")
    assert b"plotly.js" in gzip.decompress(carrier._place.library)
    assert other._place.library == b""


def test_clicks_reach_the_callback_and_their_errors_are_shown() -> None:
    fault, met = ErrorBox(), []

    def clicked(data: object) -> None:
        met.append(data)
        if data == "wrong":
            raise RecipeError("click", "it is wrong", "click elsewhere")

    live = ClickableFigure("thing", clicked, show_error=fault.show)
    live._place._handle_custom_msg({"kind": "click", "data": "right"}, [])
    live._place._handle_custom_msg({"kind": "other"}, [])
    live._place._handle_custom_msg("noise", [])
    assert met == ["right"]
    live._place._handle_custom_msg({"kind": "click", "data": "wrong"}, [])
    assert "it is wrong" in fault.value


def test_without_anywidget_a_image_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "anywidget", None)
    live = ClickableFigure("thing", lambda data: None)
    assert not live.clickable
    live.draw(go.Figure())
    assert isinstance(live._place, ipywidgets.Output)
    assert live._place.outputs
