"""StaticOutput: the HTML beside a widget that a saved notebook keeps."""

from __future__ import annotations

import asyncio
from typing import Any

import plotly.graph_objects as go
import pytest

from trtkit.widgets.ui import static_output
from trtkit.widgets.ui.static_output import StaticOutput


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
    monkeypatch.setattr(static_output, "REFRESH_DELAY", 0.01)
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
