from __future__ import annotations

import asyncio
from typing import Any

import plotly.graph_objects as go
import pytest

from trtkit.widgets.ui import html as saved
from trtkit.widgets.ui.html import StaticOutput


class Counter(StaticOutput):
    """Shows a number and a figure of it."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        self.children = (self.hidden,)

    def still(self) -> list[Any]:
        return [f"<b>{self.number}</b>", go.Figure(go.Bar(y=[self.number]))]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """HTML that was displayed, and whether it renewed an earlier output."""
    met: list[tuple[str, bool]] = []

    def display(data: dict[str, str], *, raw: bool, display_id: str = "", update: bool = False) -> None:
        met.append((data["text/html"], update))

    monkeypatch.setattr("IPython.display.display", display)
    return met


def test_an_output_beside_the_widget_is_hidden_while_it_lives(shown: list[tuple[str, bool]]) -> None:
    made = Counter()
    made.renew()
    assert not shown  # nothing was displayed yet, so nothing is renewed
    bundle = made._repr_mimebundle_()
    assert bundle["text/html"] == ""
    assert "application/vnd.jupyter.widget-view+json" in bundle
    html, update = shown[-1]
    assert not update
    assert "<b>0</b>" in html
    assert "Plotly.newPlot" in html
    name = html.split("'")[1]
    assert f".{name} {{ display: none; }}" in made.hidden.value


def test_it_is_renewed_once_for_several_changes(shown: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved, "REFRESH_DELAY", 0.01)
    made = Counter()
    made._repr_mimebundle_()
    before = len(shown)

    async def drag() -> None:
        for number in range(1, 6):
            made.number = number
            made.renew()
        await asyncio.sleep(0.1)

    asyncio.run(drag())
    assert len(shown) == before + 1
    assert "<b>5</b>" in shown[-1][0]
    assert shown[-1][1]
    # Without a loop, as in a script, at once.
    made.number = 6
    made.renew()
    assert "<b>6</b>" in shown[-1][0]


def test_the_library_lies_in_an_output_of_its_own(shown: list[tuple[str, bool]]) -> None:
    made = Counter()
    made._repr_mimebundle_()
    assert "data-trtkit-library>" not in shown[-1][0].replace('[data-trtkit-library]"', "")
    assert len(shown[-1][0]) < 100_000
