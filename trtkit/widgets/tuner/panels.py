"""The tuner's first part: algorithm and percentile, every tensor's range at once, and one tensor's histogram."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets
import polars as pl

from trtkit.calibration.algorithm_comparison import PERCENTILES
from trtkit.calibration.algorithms import PERCENTILE
from trtkit.plotting.tuning import int8_share_figure, layer_ranking_figure
from trtkit.widgets.tuner.state import TunerState
from trtkit.widgets.ui.controls import (
    NARROW_WIDTH,
    SHORT_LABEL,
    WRAPPED_ROW,
    ErrorBox,
    Panel,
    half_width,
    has_changed,
    make_button,
    make_control,
)
from trtkit.widgets.ui.figure import ClickableFigure
from trtkit.widgets.ui.html import render_facts, render_table

__all__ = ["AssignmentsPanel", "LayersPanel", "RangesPanel"]

TOLD = {
    "minmax": "minmax: the largest magnitude seen; clips nothing",
    "moving_average": "moving_average: the images' extremes, averaged",
    "entropy": "entropy: TensorRT's search for the range that tells most",
    "percentile": "percentile: leaves out the rarest values",
    "mse": "mse: rounding and clipping together cost least",
}
"""What each algorithm does, in a line."""


class RangesPanel(Panel[TunerState]):
    """Algorithm and percentile, every tensor's range at once, and one tensor's histogram.

    Args:
        use: Receives algorithm and percentile.
        pick: Receives a tensor.
        fault: Shows errors.
        click: As for `ClickableFigure`.
    """

    def __init__(
        self, use: Callable[..., Any], pick: Callable[[str], Any], fault: ErrorBox, *, click: bool | None = None
    ) -> None:
        self.algorithm = make_control(
            ipywidgets.ToggleButtons, "Algorithm", "What decides how much of a tensor its scale covers",
            name="algorithm", options=[], style={**SHORT_LABEL, "button_width": "auto"},
            layout=ipywidgets.Layout(width="100%"),
        )  # fmt: skip
        self.percentile = make_control(
            ipywidgets.SelectionSlider, "Percentile", "Share of the values that is not clipped, percent",
            name="percentile", options=[(f"{value:g}", value) for value in PERCENTILES], value=PERCENTILE,
            disabled=True, continuous_update=True, style=SHORT_LABEL, layout=ipywidgets.Layout(width=NARROW_WIDTH),
        )  # fmt: skip
        self.tensor = make_control(
            ipywidgets.Dropdown, "Tensor", "The tensor whose histogram is shown; a click on the overview picks one too",
            name="tensor", options=[], style=SHORT_LABEL, layout=ipywidgets.Layout(width=NARROW_WIDTH),
        )  # fmt: skip
        self.why = ipywidgets.HTML()
        self.why.add_class("trtkit-why")
        told = "The search's own ranges and bias corrections are in use; choosing an algorithm replaces them."
        self.taken = ipywidgets.HTML(f"<p class='trtkit-soft'>{told}</p>")
        self.taken.add_class("trtkit-taken")
        self.overview = ClickableFigure("overview", pick, show_error=fault.show, clickable=click, include_plotlyjs=True)
        self.histogram = ClickableFigure("histogram", show_error=fault.show, clickable=click)
        self.overview.layout, self.histogram.layout = half_width(), half_width()
        self.facts = ipywidgets.HTML()
        self.facts.add_class("trtkit-tensor-facts")
        title = ipywidgets.HTML("<h4>Ranges: what each scale covers of what was seen</h4>")
        choices = ipywidgets.HBox([self.percentile, self.tensor], layout=ipywidgets.Layout(**WRAPPED_ROW))
        figures = ipywidgets.HBox([self.overview, self.histogram], layout=ipywidgets.Layout(**WRAPPED_ROW))
        super().__init__([title, self.algorithm, self.taken, choices, self.why, figures, self.facts], "ranges")
        self.algorithm.observe(self._told(lambda name: use(name)), "value")
        self.percentile.observe(self._told(lambda value: use("percentile", value)), "value")
        self.tensor.observe(self._told(pick), "value")

    def _render(self, state: TunerState, before: TunerState | None) -> None:
        if has_changed(state, before, "readings"):
            self._offer(state)
        self.layout.display = "none" if state.readings is None else ""
        if state.readings is None:
            return
        # With what a search found in use no button is pressed, so that each of them replaces it.
        self.algorithm.value = None if state.taken else state.algorithm
        by_percentile = state.algorithm == "percentile"
        if state.percentile is not None:
            if state.percentile not in [value for _, value in self.percentile.options]:
                values = sorted({state.percentile, *PERCENTILES})
                self.percentile.options = [(f"{value:g}", value) for value in values]
            self.percentile.value = state.percentile
        self.percentile.disabled = not by_percentile
        told = "Share of the values that is not clipped, percent"
        self.percentile.tooltip = told if by_percentile else "Only the algorithm percentile has one"
        if state.tensor in self.tensor.options:
            self.tensor.value = state.tensor
        self.taken.layout.display = "" if state.taken else "none"
        if has_changed(state, before, "readings", "algorithm", "percentile", "layout", "tensor", "taken"):
            self._draw(state)

    def _offer(self, state: TunerState) -> None:
        refusals = state.refusals()
        possible = [name for name, reason in refusals.items() if not reason]
        if state.readings is not None and state.algorithm not in refusals:
            possible.insert(0, state.algorithm)
        self.algorithm.options = possible
        self.algorithm.tooltips = [TOLD.get(name, f"{name}: as they were read") for name in possible]
        self.tensor.options = [] if state.readings is None else list(state.readings.calibration.ranges)
        reasons: dict[str, list[str]] = {}
        for name, reason in refusals.items():
            if reason:
                reasons.setdefault(reason, []).append(name)
        lines = [f"{', '.join(names)} can't be chosen: {reason}." for reason, names in reasons.items()]
        self.why.value = "".join(f"<p class='trtkit-soft'>{line}</p>" for line in lines)

    def _draw(self, state: TunerState) -> None:
        assert state.readings is not None
        frame = state.ranges
        self.overview.draw(state.readings.plot_overview(frame, selected=state.tensor, algorithm=state.label))
        row = frame.row(by_predicate=pl.col("tensor") == state.tensor, named=True)
        others = state.others()
        self.histogram.draw(
            state.readings.plot_histogram(state.tensor, row["reach"], algorithm=state.label, others=others)
        )
        shared = [] if state.layout is None else [n for n in state.layout.scale_of(state.tensor) if n != state.tensor]
        readers = [] if state.layout is None else state.layout.readers.get(state.tensor, [])
        self.facts.value = render_facts(
            {
                "tensor": state.tensor,
                "read by": readers or "",
                "largest |x| seen": row["largest"],
                "covered": f"{row['reach']:.4g} ({row['covered']:.1%} of the largest)",
                "clipped": _format_clipped(row["clipped"]),
                "one step of INT8": row["scale"],
                "shares its scale with": f"{len(shared)} tensors, such as {shared[0]}" if shared else "",
            }
        )


def _format_clipped(share: float | None) -> str:
    return "" if share is None else "nothing" if share == 0 else f"{share * 1e6:,.1f} of a million values"


# The tuner's second part: layers by what INT8 costs them, and which of them stay high.


class LayersPanel(Panel[TunerState]):
    """Layers by what INT8 costs them, and which of them stay high.

    Args:
        toggle: Receives a layer that was clicked.
        keep: Receives all layers that shall stay high.
        measure: Called to measure what INT8 costs each.
        fault: Shows errors.
        click: As for `ClickableFigure`.
    """

    def __init__(
        self,
        toggle: Callable[[str], Any],
        keep: Callable[[Sequence[str]], Any],
        measure: Callable[[], Any],
        fault: ErrorBox,
        *,
        click: bool | None = None,
    ) -> None:
        self.ranking = ClickableFigure("ranking", toggle, show_error=fault.show, clickable=click)
        self.keep = ipywidgets.SelectMultiple(
            options=[], rows=14, tooltip="Layers that stay high; Ctrl, Shift and the space bar choose several",
            layout=ipywidgets.Layout(width="100%"),
        )  # fmt: skip
        self.keep.add_class("trtkit-keep")
        self.keep.description, self.keep.style.description_width = "Keep high", "6rem"
        self.measure = make_button(
            "Measure sensitivity", "Run every layer alone in INT8; takes minutes", measure, name="measure",
            layout=ipywidgets.Layout(width="12rem"),
        )  # fmt: skip
        self.image_count = make_control(
            ipywidgets.BoundedIntText, "on images", "How many images run through every variant",
            name="measure-images", value=16, min=1, max=4096, layout=ipywidgets.Layout(width="11rem"), style=SHORT_LABEL,
        )  # fmt: skip
        self.none = make_button(
            "Keep none", "Let every layer run in INT8 that may", lambda: keep(()), name="keep-none",
            layout=ipywidgets.Layout(width="8rem"),
        )  # fmt: skip
        self.told = ipywidgets.HTML()
        self.told.add_class("trtkit-layers-told")
        self.table = ipywidgets.HTML()
        self.table.add_class("trtkit-layers-table")
        title = ipywidgets.HTML("<h4>Layers: what INT8 costs each, and which stay high</h4>")
        row = ipywidgets.HBox([self.measure, self.image_count, self.none], layout=ipywidgets.Layout(**WRAPPED_ROW))
        left = ipywidgets.VBox([self.keep], layout=ipywidgets.Layout(flex="1 1 20rem", min_width="0"))
        right = ipywidgets.VBox([self.table], layout=ipywidgets.Layout(flex="2 1 30rem", min_width="0"))
        super().__init__(
            [
                title,
                self.told,
                self.ranking,
                ipywidgets.HBox([left, right], layout=ipywidgets.Layout(**WRAPPED_ROW)),
                row,
            ],
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
        if has_changed(state, before, "layout", "sensitivity"):
            # Options and value in one message: a value that is no option would be refused.
            with self.keep.hold_sync():
                self.keep.value = ()
                self.keep.options = [(_label_layer(row), row["node"]) for row in layers.iter_rows(named=True)]
        self.keep.value = tuple(node for node in layers["node"] if node in set(state.high))
        selected = next((n for n in layers["node"] if state.layout and state.layout.tensor_of(n) == state.tensor), "")
        if has_changed(state, before, "layout", "sensitivity", "high", "tensor"):
            self.ranking.draw(layer_ranking_figure(layers, selected=selected))
        share = "" if state.share is None else f" {state.share:.1%} of the arithmetic runs in INT8."
        measured = ""
        if state.sensitivity is not None:
            by = state.sensitivity.provenance.settings.get("algorithm", "")
            measured = f" Cost measured on {state.sensitivity.image_count} images with ranges by {by}."
        clicks = "Click a point, or use the list," if self.ranking.clickable else "Use the list"
        count = f"{len(state.high)} of {len(layers)} layers are kept high."
        self.told.value = f"<p class='trtkit-soft'>{clicks} to keep a layer high. {count}{share}{measured}</p>"
        if has_changed(state, before, "layout", "sensitivity", "high", "algorithm", "percentile", "readings", "taken"):
            self.table.value = _render_layers_table(state)


def shorten_node_name(node: str) -> str:
    """A layer's name without what all of them share: `/model.2/cv1/conv/Conv` is `model.2/cv1`."""
    return node.removeprefix("/").removesuffix("/Conv").removesuffix("/conv") or node


def _label_layer(row: dict[str, Any]) -> str:
    cost = "" if row["sqnr_only"] is None else f" · {row['sqnr_only']:.1f} dB"
    return f"{shorten_node_name(row['node'])}{cost}"


def _render_layers_table(state: TunerState) -> str:
    frame = state.table()
    columns = [name for name in ("node", "sqnr_only", "gain", "clipped", "high") if name in frame.columns]
    if state.sensitivity is None:
        columns = [name for name in columns if name not in ("sqnr_only", "gain")]
    total = max(int(frame["macs"].sum() or 0), 1)
    frame = frame.with_columns(
        pl.Series("node", [shorten_node_name(node) for node in frame["node"]], dtype=pl.String),
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
    table = render_table(shown, headings=headings, digits=digits, row_classes=marked)
    return f"<div class='trtkit-scroll' tabindex='0'>{table}</div>"


# The tuner's third part: mixes that were judged, what may be lost, and the search.


class AssignmentsPanel(Panel[TunerState]):
    """Mixes that were judged, what may be lost, and the search.

    Args:
        take: Receives the place of a searched mix that was chosen.
        allow: Receives the loss that may be spent.
        find: Called to search.
        judge: Called to judge the mix that is being put together.
        fault: Shows errors.
        click: As for `ClickableFigure`.
    """

    def __init__(
        self,
        take: Callable[[int], Any],
        allow: Callable[[float], Any],
        find: Callable[[], Any],
        judge: Callable[[], Any],
        fault: ErrorBox,
        *,
        click: bool | None = None,
    ) -> None:
        self.pareto = ClickableFigure(
            "pareto",
            lambda data: take(int(data[1])) if data[0] != "judged" else None,
            show_error=fault.show,
            clickable=click,
        )
        self.max_drop = make_control(
            ipywidgets.BoundedFloatText, "May lose", "The largest loss of the metric that is allowed", name="max-drop",
            value=0.005, min=0.0, max=0.99, step=0.001, layout=ipywidgets.Layout(width="13rem"),
            style=SHORT_LABEL,
        )  # fmt: skip
        wide = ipywidgets.Layout(width="auto")
        self.find = make_button("Find the best within this", "", find, name="find", layout=wide, button_style="primary")
        self.judge = make_button("Judge this mix", "", judge, name="judge", layout=wide)
        self.trial = make_control(
            ipywidgets.Dropdown, "Take over", "A mix that the search judged; a click on its point does the same",
            name="trial", options=[("choose a mix", -1)], value=-1, style=SHORT_LABEL, layout=ipywidgets.Layout(width=NARROW_WIDTH),
        )  # fmt: skip
        self.table = ipywidgets.HTML()
        self.table.add_class("trtkit-mixes-table")
        title = ipywidgets.HTML("<h4>Accuracy against the share in INT8</h4>")
        row = ipywidgets.HBox(
            [self.max_drop, self.find, self.judge, self.trial], layout=ipywidgets.Layout(**WRAPPED_ROW)
        )
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
        if has_changed(state, before, "found", "judged"):
            searched = points.filter(pl.col("kind") != "judged")
            self.trial.options = [("choose a mix", -1), *zip(searched["label"], searched["place"], strict=True)]
            self.trial.value = -1
            self.table.value = _render_assignments_table(state, points)
        self.trial.layout.display = "" if state.found is not None else "none"
        self.pareto.layout.display = "none" if points.is_empty() else ""
        if not points.is_empty() and has_changed(state, before, "found", "judged", "high", "layout", "max_drop"):
            self.pareto.draw(
                int8_share_figure(
                    points,
                    metric=state.metric,
                    value_float=state.value_float,
                    max_drop=state.max_drop,
                    share_now=state.share,
                )
            )


def _render_assignments_table(state: TunerState, points: pl.DataFrame) -> str:
    if points.is_empty():
        return "<p class='trtkit-soft'>No mix was judged yet: judge the one chosen above, or search.</p>"
    shown = points.select(
        "label", "kind", pl.col("int8_share") * 100, "metric", "loss", "loss_low", "loss_high", "pareto"
    )
    headings = {
        "label": "assignment", "kind": "how", "int8_share": "in INT8, %", "metric": state.metric, "loss_low": "at least",
        "loss_high": "at most", "pareto": "nothing beats it",
    }  # fmt: skip
    digits = {"int8_share": 1, "metric": 4, "loss": 4, "loss_low": 4, "loss_high": 4}
    marked = {index: "trtkit-marked" for index, kind in enumerate(points["kind"]) if kind == "found"}
    caption = "Losses against FP32 on the same images, with the ends of their 95 % intervals"
    return render_table(shown, caption=caption, headings=headings, digits=digits, row_classes=marked)
