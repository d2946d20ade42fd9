"""The tuner's third part: mixes that were judged, what may be lost, and the search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets
import polars as pl

from trtkit.tuning.mix_figures import share_figure
from trtkit.widgets.controls import Fault, button, labelled
from trtkit.widgets.live import Live
from trtkit.widgets.part import NARROW, ROW, SHORT, Part, differs
from trtkit.widgets.tables import table_html
from trtkit.widgets.tuner_state import TunerState

__all__ = ["MixesPart"]


class MixesPart(Part[TunerState]):
    """Mixes that were judged, what may be lost, and the search.

    Args:
        take: Receives the place of a searched mix that was chosen.
        allow: Receives the loss that may be spent.
        find: Called to search.
        judge: Called to judge the mix that is being put together.
        fault: Shows errors.
        click: As for `Live`.
    """

    def __init__(
        self,
        take: Callable[[int], Any],
        allow: Callable[[float], Any],
        find: Callable[[], Any],
        judge: Callable[[], Any],
        fault: Fault,
        *,
        click: bool | None = None,
    ) -> None:
        self.pareto = Live(
            "pareto", lambda data: take(int(data[1])) if data[0] != "judged" else None, show=fault.show, click=click
        )
        self.max_drop = labelled(
            ipywidgets.BoundedFloatText, "May lose", "The largest loss of the metric that is allowed", name="max-drop",
            value=0.005, min=0.0, max=0.99, step=0.001, layout=ipywidgets.Layout(width="13rem"),
            style=SHORT,
        )  # fmt: skip
        wide = ipywidgets.Layout(width="auto")
        self.find = button("Find the best within this", "", find, name="find", layout=wide, button_style="primary")
        self.judge = button("Judge this mix", "", judge, name="judge", layout=wide)
        self.trial = labelled(
            ipywidgets.Dropdown, "Take over", "A mix that the search judged; a click on its point does the same",
            name="trial", options=[("choose a mix", -1)], value=-1, style=SHORT, layout=ipywidgets.Layout(width=NARROW),
        )  # fmt: skip
        self.table = ipywidgets.HTML()
        self.table.add_class("trtkit-mixes-table")
        title = ipywidgets.HTML("<h4>Accuracy against the share in INT8</h4>")
        row = ipywidgets.HBox([self.max_drop, self.find, self.judge, self.trial], layout=ipywidgets.Layout(**ROW))
        super().__init__([title, row, self.pareto, self.table], "mixes")
        self.max_drop.observe(self._told(allow), "value")
        self.trial.observe(self._told(lambda place: take(place) if place >= 0 else None), "value")

    def _render(self, state: TunerState, before: TunerState | None) -> None:
        for made, what, told in (
            (
                self.find,
                "search",
                "Search for the cheapest mix that loses no more; takes minutes, and can be cancelled",
            ),
            (self.judge, "judge", "Judge the ranges and layers that are chosen now, against FP32"),
        ):
            refusal = state.refusal(what)
            made.disabled, made.tooltip = bool(refusal), refusal or told
        self.max_drop.value = state.max_drop
        points = state.points()
        if differs(state, before, "found", "judged"):
            searched = points.filter(pl.col("kind") != "judged")
            self.trial.options = [("choose a mix", -1), *zip(searched["label"], searched["place"], strict=True)]
            self.trial.value = -1
            self.table.value = _mixes_table(state, points)
        self.trial.layout.display = "" if state.found is not None else "none"
        self.pareto.layout.display = "none" if points.is_empty() else ""
        if not points.is_empty() and differs(state, before, "found", "judged", "high", "layout", "max_drop"):
            self.pareto.draw(
                share_figure(
                    points,
                    metric=state.metric,
                    value_float=state.value_float,
                    max_drop=state.max_drop,
                    share_now=state.share,
                )
            )


def _mixes_table(state: TunerState, points: pl.DataFrame) -> str:
    if points.is_empty():
        return "<p class='trtkit-soft'>No mix was judged yet: judge the one chosen above, or search.</p>"
    shown = points.select(
        "label", "kind", pl.col("int8_share") * 100, "metric", "loss", "loss_low", "loss_high", "pareto"
    )
    headings = {
        "label": "mix", "kind": "how", "int8_share": "in INT8, %", "metric": state.metric, "loss_low": "at least",
        "loss_high": "at most", "pareto": "nothing beats it",
    }  # fmt: skip
    digits = {"int8_share": 1, "metric": 4, "loss": 4, "loss_low": 4, "loss_high": 4}
    marked = {index: "trtkit-marked" for index, kind in enumerate(points["kind"]) if kind == "found"}
    caption = "Losses against FP32 on the same pictures, with the ends of their 95 % intervals"
    return table_html(shown, caption=caption, headings=headings, digits=digits, marked=marked)
