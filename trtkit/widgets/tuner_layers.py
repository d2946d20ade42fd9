"""The tuner's second part: layers by what INT8 costs them, and which of them stay high."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets
import polars as pl

from trtkit.tuning.mix_figures import ranking_figure
from trtkit.widgets.controls import Fault, button, labelled
from trtkit.widgets.live import Live
from trtkit.widgets.part import ROW, SHORT, Part, differs
from trtkit.widgets.tables import table_html
from trtkit.widgets.tuner_state import TunerState

__all__ = ["LayersPart"]


class LayersPart(Part[TunerState]):
    """Layers by what INT8 costs them, and which of them stay high.

    Args:
        toggle: Receives a layer that was clicked.
        keep: Receives all layers that shall stay high.
        measure: Called to measure what INT8 costs each.
        fault: Shows errors.
        click: As for `Live`.
    """

    def __init__(
        self,
        toggle: Callable[[str], Any],
        keep: Callable[[Sequence[str]], Any],
        measure: Callable[[], Any],
        fault: Fault,
        *,
        click: bool | None = None,
    ) -> None:
        self.ranking = Live("ranking", toggle, show=fault.show, click=click)
        self.keep = ipywidgets.SelectMultiple(
            options=[], rows=14, tooltip="Layers that stay high; Ctrl, Shift and the space bar choose several",
            layout=ipywidgets.Layout(width="100%"),
        )  # fmt: skip
        self.keep.add_class("trtkit-keep")
        self.keep.description, self.keep.style.description_width = "Keep high", "6rem"
        self.measure = button(
            "Measure sensitivity", "Run every layer alone in INT8; takes minutes", measure, name="measure",
            layout=ipywidgets.Layout(width="12rem"),
        )  # fmt: skip
        self.pictures = labelled(
            ipywidgets.BoundedIntText, "on pictures", "How many pictures run through every variant",
            name="measure-images", value=16, min=1, max=4096, layout=ipywidgets.Layout(width="11rem"), style=SHORT,
        )  # fmt: skip
        self.none = button(
            "Keep none", "Let every layer run in INT8 that may", lambda: keep(()), name="keep-none",
            layout=ipywidgets.Layout(width="8rem"),
        )  # fmt: skip
        self.told = ipywidgets.HTML()
        self.told.add_class("trtkit-layers-told")
        self.table = ipywidgets.HTML()
        self.table.add_class("trtkit-layers-table")
        title = ipywidgets.HTML("<h4>Layers: what INT8 costs each, and which stay high</h4>")
        row = ipywidgets.HBox([self.measure, self.pictures, self.none], layout=ipywidgets.Layout(**ROW))
        left = ipywidgets.VBox([self.keep], layout=ipywidgets.Layout(flex="1 1 20rem", min_width="0"))
        right = ipywidgets.VBox([self.table], layout=ipywidgets.Layout(flex="2 1 30rem", min_width="0"))
        super().__init__(
            [title, self.told, self.ranking, ipywidgets.HBox([left, right], layout=ipywidgets.Layout(**ROW)), row],
            "layers",
        )
        self.keep.observe(self._told(keep), "value")

    def _render(self, state: TunerState, before: TunerState | None) -> None:
        refusal = state.refusal("sensitivity")
        self.measure.disabled, self.measure.tooltip = (
            bool(refusal),
            refusal or "Run every layer alone in INT8; takes minutes",
        )
        layers = state.layers()
        self.layout.display = "none" if layers.is_empty() else ""
        if layers.is_empty():
            return
        if differs(state, before, "layout", "sensitivity"):
            # Options and value in one message: a value that is no option would be refused.
            with self.keep.hold_sync():
                self.keep.value = ()
                self.keep.options = [(_label(row), row["node"]) for row in layers.iter_rows(named=True)]
        self.keep.value = tuple(node for node in layers["node"] if node in set(state.high))
        selected = next((n for n in layers["node"] if state.layout and state.layout.tensor_of(n) == state.tensor), "")
        if differs(state, before, "layout", "sensitivity", "high", "tensor"):
            self.ranking.draw(ranking_figure(layers, selected=selected))
        share = "" if state.share is None else f" {state.share:.1%} of the arithmetic runs in INT8."
        measured = ""
        if state.sensitivity is not None:
            by = state.sensitivity.origin.settings.get("algorithm", "")
            measured = f" Cost measured on {state.sensitivity.images} pictures with ranges by {by}."
        clicks = "Click a point, or use the list," if self.ranking.clickable else "Use the list"
        count = f"{len(state.high)} of {len(layers)} layers are kept high."
        self.told.value = f"<p class='trtkit-soft'>{clicks} to keep a layer high. {count}{share}{measured}</p>"
        if differs(state, before, "layout", "sensitivity", "high", "algorithm", "percentile", "readings", "taken"):
            self.table.value = _layers_table(state)


def short(node: str) -> str:
    """A layer's name without what all of them share: `/model.2/cv1/conv/Conv` is `model.2/cv1`."""
    return node.removeprefix("/").removesuffix("/Conv").removesuffix("/conv") or node


def _label(row: dict[str, Any]) -> str:
    cost = "" if row["sqnr_only"] is None else f" · {row['sqnr_only']:.1f} dB"
    return f"{short(row['node'])}{cost}"


def _layers_table(state: TunerState) -> str:
    frame = state.table()
    columns = [name for name in ("node", "sqnr_only", "gain", "clipped", "high") if name in frame.columns]
    if state.sensitivity is None:
        columns = [name for name in columns if name not in ("sqnr_only", "gain")]
    total = max(int(frame["macs"].sum() or 0), 1)
    frame = frame.with_columns(
        pl.Series("node", [short(node) for node in frame["node"]], dtype=pl.String),
        arithmetic=(pl.col("macs") * 100 / total),
        **({"clipped": pl.col("clipped") * 1e6} if "clipped" in frame.columns else {}),
    )
    shown = frame.select(*columns[:-1], "arithmetic", "high")
    marked = {index: "trtkit-marked" for index, high in enumerate(shown["high"]) if high}
    headings = {
        "node": "layer", "sqnr_only": "alone, dB", "gain": "gain, dB", "arithmetic": "arithmetic, %",
        "clipped": "clipped, ppm", "high": "kept high",
    }  # fmt: skip
    digits = {"sqnr_only": 1, "gain": 2, "arithmetic": 1, "clipped": 1}
    table = table_html(shown, headings=headings, digits=digits, marked=marked)
    return f"<div class='trtkit-scroll' tabindex='0'>{table}</div>"
