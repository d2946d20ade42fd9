"""The three panels of the tuner: ranges, layers, and precision assignments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets
import polars as pl

from trtkit.calibration.algorithms import ALGORITHMS, PERCENTILE, PERCENTILES
from trtkit.html import facts_html, render, table_html
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
from trtkit.widgets.ui.output import ClickableFigure, make_section_title, render_scrollable, render_text

__all__ = ["AssignmentsPanel", "LayersPanel", "RangesPanel"]

PROBE_IMAGES = 16
"""Probe images of a sensitivity measurement."""

MEASURE_TOOLTIP = "Run every layer alone in INT8; takes minutes"

PERCENTILE_TOOLTIP = "Share of the values that is not clipped, percent"


class RangesPanel(Panel[TunerState]):
    """Algorithm and percentile, the ranges of all tensors, and the histogram of one tensor.

    Args:
        choose_algorithm: Called with algorithm and percentile.
        choose_tensor: Called with a tensor.
        error_box: Shows errors.
        clickable: As for `ClickableFigure`.
    """

    def __init__(
        self,
        choose_algorithm: Callable[..., Any],
        choose_tensor: Callable[[str], Any],
        error_box: ErrorBox,
        *,
        clickable: bool | None = None,
    ) -> None:
        self.algorithm = make_control(
            ipywidgets.ToggleButtons, "Algorithm", "Calibration algorithm: chooses the range of each tensor",
            name="algorithm", options=[], style={**SHORT_LABEL, "button_width": "auto"},
            layout=ipywidgets.Layout(width="100%"),
        )  # fmt: skip
        self.percentile = make_control(
            ipywidgets.SelectionSlider, "Percentile", PERCENTILE_TOOLTIP, name="percentile",
            options=_percentile_options(PERCENTILES), value=PERCENTILE, disabled=True, continuous_update=True,
            style=SHORT_LABEL, layout=ipywidgets.Layout(width=NARROW_WIDTH),
        )  # fmt: skip
        self.tensor = make_control(
            ipywidgets.Dropdown, "Tensor", "The tensor of the histogram; a click on the overview selects it too",
            name="tensor", options=[], style=SHORT_LABEL, layout=ipywidgets.Layout(width=NARROW_WIDTH),
        )  # fmt: skip
        self._chosen = ""
        self.unavailable = ipywidgets.HTML()
        self.unavailable.add_class("trtkit-unavailable")
        text = "The corrected ranges and biases of the search are in use; choosing an algorithm replaces them."
        self.search_note = ipywidgets.HTML(render_text(text))
        self.search_note.add_class("trtkit-search-note")
        show = error_box.show
        self.overview = ClickableFigure(
            "overview", choose_tensor, show_error=show, clickable=clickable, include_plotlyjs=True
        )
        self.histogram = ClickableFigure("histogram", choose_algorithm, show_error=show, clickable=clickable)
        self.overview.layout, self.histogram.layout = half_width(), half_width()
        self.facts = ipywidgets.HTML()
        self.facts.add_class("trtkit-tensor-facts")
        controls = ipywidgets.HBox([self.percentile, self.tensor], layout=ipywidgets.Layout(**WRAPPED_ROW))
        figures = ipywidgets.HBox([self.overview, self.histogram], layout=ipywidgets.Layout(**WRAPPED_ROW))
        title = make_section_title("Ranges: how much of each tensor its INT8 scale covers")
        super().__init__(
            [title, self.algorithm, self.search_note, controls, self.unavailable, figures, self.facts], "ranges"
        )
        self.algorithm.observe(self.on_change(lambda name: choose_algorithm(name)), "value")
        self.percentile.observe(self.on_change(lambda value: choose_algorithm(self._chosen, value)), "value")
        self.tensor.observe(self.on_change(choose_tensor), "value")

    def _render(self, state: TunerState, before: TunerState | None) -> None:
        if has_changed(state, before, "algorithm_comparison"):
            self._set_options(state)
        self.layout.display = "none" if state.algorithm_comparison is None else ""
        if state.algorithm_comparison is None:
            return
        # No button is pressed while the ranges of the search are in use, so that each of them replaces those.
        self.algorithm.value = None if state.uses_search_ranges else state.algorithm
        self._chosen = state.algorithm
        entry = ALGORITHMS.get(state.algorithm)
        takes_percentile = entry is not None and entry.takes_percentile
        if state.percentile is not None:
            offered = entry.percentiles if entry is not None else PERCENTILES
            self.percentile.options = _percentile_options(sorted({state.percentile, *offered}))
            self.percentile.value = state.percentile
        self.percentile.disabled = not takes_percentile
        self.percentile.tooltip = PERCENTILE_TOOLTIP if takes_percentile else f"{state.algorithm} has no percentile"
        if state.tensor in self.tensor.options:
            self.tensor.value = state.tensor
        self.search_note.layout.display = "" if state.uses_search_ranges else "none"
        shown = (
            "algorithm_comparison", "algorithm", "percentile", "quantizable_layers", "tensor", "uses_search_ranges",
        )  # fmt: skip
        if has_changed(state, before, *shown):
            self._draw(state)

    def _set_options(self, state: TunerState) -> None:
        comparison = state.algorithm_comparison
        reasons = state.unavailable_algorithms()
        names = [name for name, reason in reasons.items() if not reason]
        if comparison is not None and state.algorithm not in reasons:
            names.insert(0, state.algorithm)
        self.algorithm.options = names
        self.algorithm.tooltips = [
            f"{name}: {ALGORITHMS[name].title if name in ALGORITHMS else 'ranges as they were loaded'}"
            for name in names
        ]
        self.tensor.options = [] if comparison is None else list(comparison.calibration.ranges)
        by_reason: dict[str, list[str]] = {}
        for name, reason in reasons.items():
            if reason:
                by_reason.setdefault(reason, []).append(name)
        groups = [{"names": names, "reason": reason} for reason, names in by_reason.items()]
        self.unavailable.value = render("widgets/tuner/templates/unavailable.html.j2", groups=groups)

    def _draw(self, state: TunerState) -> None:
        comparison, layers = state.algorithm_comparison, state.quantizable_layers
        assert comparison is not None
        frame = state.ranges
        self.overview.draw(comparison.plot_overview(frame, selected=state.tensor, algorithm=state.label))
        row = frame.row(by_predicate=pl.col("tensor") == state.tensor, named=True)
        others = state.other_reaches()
        self.histogram.draw(comparison.plot_histogram(state.tensor, row["reach"], algorithm=state.label, others=others))
        shared = [] if layers is None else [name for name in layers.scale_of(state.tensor) if name != state.tensor]
        readers = [] if layers is None else layers.readers.get(state.tensor, [])
        self.facts.value = facts_html(
            {
                "tensor": state.tensor,
                "input of": readers or "",
                "largest |x|": row["largest"],
                "range": f"{row['reach']:.4g} ({row['covered']:.1%} of the largest |x|)",
                "clipped": _format_clipped(row["clipped"]),
                "scale": row["scale"],
                "shares its scale with": f"{len(shared)} tensors, such as {shared[0]}" if shared else "",
            }
        )


def _percentile_options(percentiles: Sequence[float]) -> list[tuple[str, float]]:
    return [(f"{value:g}", value) for value in percentiles]


def _format_clipped(share: float | None) -> str:
    return "" if share is None else "nothing" if share == 0 else f"{share * 1e6:,.1f} per million values"


class LayersPanel(Panel[TunerState]):
    """The layers by sensitivity, and which of them are kept in FP16.

    Args:
        toggle: Called with a clicked layer.
        keep: Called with all layers to keep in FP16.
        measure: Called to measure the sensitivity.
        error_box: Shows errors.
        clickable: As for `ClickableFigure`.
    """

    def __init__(
        self,
        toggle: Callable[[str], Any],
        keep: Callable[[Sequence[str]], Any],
        measure: Callable[[], Any],
        error_box: ErrorBox,
        *,
        clickable: bool | None = None,
    ) -> None:
        self.ranking = ClickableFigure("ranking", toggle, show_error=error_box.show, clickable=clickable)
        self.keep = ipywidgets.SelectMultiple(
            options=[], rows=14, tooltip="Layers kept in FP16; Ctrl, Shift and the space bar select several",
            layout=ipywidgets.Layout(width="100%"),
        )  # fmt: skip
        self.keep.add_class("trtkit-keep")
        self.keep.description, self.keep.style.description_width = "Keep in FP16", "6rem"
        self.measure = make_button(
            "Measure sensitivity", MEASURE_TOOLTIP, measure, name="measure", layout=ipywidgets.Layout(width="12rem")
        )
        self.probe_images = make_control(
            ipywidgets.BoundedIntText, "probe images", "Number of images that every layer is measured on",
            name="probe-images", value=PROBE_IMAGES, min=1, max=4096, layout=ipywidgets.Layout(width="11rem"),
            style=SHORT_LABEL,
        )  # fmt: skip
        self.keep_none = make_button(
            "Keep none", "Run every quantizable layer in INT8", lambda: keep(()), name="keep-none",
            layout=ipywidgets.Layout(width="8rem"),
        )  # fmt: skip
        self.summary = ipywidgets.HTML()
        self.summary.add_class("trtkit-layers-summary")
        self.table = ipywidgets.HTML()
        self.table.add_class("trtkit-layers-table")
        left = ipywidgets.VBox([self.keep], layout=ipywidgets.Layout(flex="1 1 20rem", min_width="0"))
        right = ipywidgets.VBox([self.table], layout=ipywidgets.Layout(flex="2 1 30rem", min_width="0"))
        row = ipywidgets.Layout(**WRAPPED_ROW)
        super().__init__(
            [
                make_section_title("Layers: sensitivity, and which ones are kept in FP16"), self.summary, self.ranking,
                ipywidgets.HBox([left, right], layout=row),
                ipywidgets.HBox([self.measure, self.probe_images, self.keep_none], layout=row),
            ],
            "layers",
        )  # fmt: skip
        self.keep.observe(self.on_change(keep), "value")

    def _render(self, state: TunerState, before: TunerState | None) -> None:
        reason = state.unavailable_reason("sensitivity")
        self.measure.disabled, self.measure.tooltip = bool(reason), reason or MEASURE_TOOLTIP
        layers = state.layer_frame()
        self.layout.display = "none" if layers.is_empty() else ""
        if layers.is_empty():
            return
        if has_changed(state, before, "quantizable_layers", "sensitivity"):
            # One message: a value outside the options would be rejected.
            with self.keep.hold_sync():
                self.keep.value = ()
                self.keep.options = [(_label_layer(row), row["node"]) for row in layers.iter_rows(named=True)]
        kept = set(state.kept_fp16)
        self.keep.value = tuple(node for node in layers["node"] if node in kept)
        quantizable = state.quantizable_layers
        readers = (node for node in layers["node"] if quantizable and quantizable.tensor_of(node) == state.tensor)
        if has_changed(state, before, "quantizable_layers", "sensitivity", "kept_fp16", "tensor"):
            self.ranking.draw(layer_ranking_figure(layers, selected=next(readers, "")))
        self.summary.value = render_text(self._summarize(state, len(layers)))
        shown = (
            "quantizable_layers", "sensitivity", "kept_fp16", "algorithm", "percentile", "algorithm_comparison",
            "uses_search_ranges",
        )  # fmt: skip
        if has_changed(state, before, *shown):
            self.table.value = _render_layers_table(state)

    def _summarize(self, state: TunerState, count: int) -> str:
        how = "Click a point, or use the list," if self.ranking.clickable else "Use the list"
        sentences = [
            f"{how} to keep a layer in FP16.",
            f"{len(state.kept_fp16)} of {count} layers are kept in FP16.",
        ]
        if state.int8_share is not None:
            sentences.append(f"{state.int8_share:.1%} of the multiply-accumulates run in INT8.")
        if state.sensitivity is not None:
            algorithm = state.sensitivity.provenance.settings.get("algorithm", "")
            sentences.append(
                f"Sensitivity was measured on {state.sensitivity.image_count} images with ranges by {algorithm}."
            )
        return " ".join(sentences)


def shorten_node_name(node: str) -> str:
    """The name of a layer without common parts: `/model.2/cv1/conv/Conv` becomes `model.2/cv1`."""
    return node.removeprefix("/").removesuffix("/Conv").removesuffix("/conv") or node


def _label_layer(row: dict[str, Any]) -> str:
    sqnr = "" if row["sqnr_only"] is None else f" · {row['sqnr_only']:.1f} dB"
    return f"{shorten_node_name(row['node'])}{sqnr}"


def _render_layers_table(state: TunerState) -> str:
    frame = state.layer_range_frame()
    columns = [name for name in ("node", "sqnr_only", "gain", "clipped") if name in frame.columns]
    if state.sensitivity is None:
        columns = [name for name in columns if name not in ("sqnr_only", "gain")]
    total = max(int(frame["macs"].sum() or 0), 1)
    frame = frame.with_columns(
        pl.Series("node", [shorten_node_name(node) for node in frame["node"]], dtype=pl.String),
        macs_share=(pl.col("macs") * 100 / total),
        **({"clipped": pl.col("clipped") * 1e6} if "clipped" in frame.columns else {}),
    )
    shown = frame.select(*columns, "macs_share", "kept_fp16")
    marked = {row: "trtkit-marked" for row, kept in enumerate(shown["kept_fp16"]) if kept}
    headings = {
        "node": "layer", "sqnr_only": "SQNR alone, dB", "gain": "gain, dB", "macs_share": "MACs, %",
        "clipped": "clipped, ppm", "kept_fp16": "kept in FP16",
    }  # fmt: skip
    digits = {"sqnr_only": 1, "gain": 2, "macs_share": 1, "clipped": 1}
    return render_scrollable(table_html(shown, headings=headings, digits=digits, row_classes=marked))


class AssignmentsPanel(Panel[TunerState]):
    """The evaluated precision assignments, the allowed loss, and the search.

    Args:
        apply_trial: Called with the row of a trial of the search.
        set_max_drop: Called with the allowed loss.
        search: Called to search.
        evaluate: Called to evaluate the current assignment.
        error_box: Shows errors.
        clickable: As for `ClickableFigure`.
    """

    def __init__(
        self,
        apply_trial: Callable[[int], Any],
        set_max_drop: Callable[[float], Any],
        search: Callable[[], Any],
        evaluate: Callable[[], Any],
        error_box: ErrorBox,
        *,
        clickable: bool | None = None,
    ) -> None:
        self.pareto = ClickableFigure(
            "pareto",
            lambda data: apply_trial(int(data[1])) if data[0] != "evaluated" else None,
            show_error=error_box.show,
            clickable=clickable,
        )
        self.max_drop = make_control(
            ipywidgets.BoundedFloatText, "Max. loss", "Largest allowed loss of the metric", name="max-drop",
            value=0.005, min=0.0, max=0.99, step=0.001, layout=ipywidgets.Layout(width="13rem"),
            style=SHORT_LABEL,
        )  # fmt: skip
        wide = ipywidgets.Layout(width="auto")
        self.search = make_button(
            "Search within this loss", "", search, name="search", layout=wide, button_style="primary"
        )
        self.evaluate = make_button("Evaluate this assignment", "", evaluate, name="evaluate", layout=wide)
        self.trial = make_control(
            ipywidgets.Dropdown, "Apply", "Precision assignment of the search to apply; a click on its point does too",
            name="trial", options=_trial_options(), value=-1, style=SHORT_LABEL,
            layout=ipywidgets.Layout(width=NARROW_WIDTH),
        )  # fmt: skip
        self.table = ipywidgets.HTML()
        self.table.add_class("trtkit-assignments-table")
        row = ipywidgets.HBox(
            [self.max_drop, self.search, self.evaluate, self.trial], layout=ipywidgets.Layout(**WRAPPED_ROW)
        )
        title = make_section_title("Precision assignments: accuracy against the share in INT8")
        super().__init__([title, row, self.pareto, self.table], "assignments")
        self.max_drop.observe(self.on_change(set_max_drop), "value")
        self.trial.observe(self.on_change(lambda trial: apply_trial(trial) if trial >= 0 else None), "value")

    def _render(self, state: TunerState, before: TunerState | None) -> None:
        tooltips = {
            "search": "Find the cheapest assignment within the allowed loss; takes minutes, and can be cancelled",
            "evaluate": "Evaluate the chosen ranges and layers against FP32",
        }
        for action, button in (("search", self.search), ("evaluate", self.evaluate)):
            reason = state.unavailable_reason(action)
            button.disabled, button.tooltip = bool(reason), reason or tooltips[action]
        self.max_drop.value = state.max_drop
        points = state.assignment_frame()
        if has_changed(state, before, "search", "evaluations"):
            searched = points.filter(pl.col("kind") != "evaluated")
            self.trial.options = _trial_options(*zip(searched["label"], searched["row"], strict=True))
            self.trial.value = -1
            self.table.value = _render_assignments_table(state, points)
        self.trial.layout.display = "" if state.search is not None else "none"
        self.pareto.layout.display = "none" if points.is_empty() else ""
        shown = ("search", "evaluations", "kept_fp16", "quantizable_layers", "max_drop")
        if not points.is_empty() and has_changed(state, before, *shown):
            self.pareto.draw(
                int8_share_figure(
                    points,
                    metric=state.metric,
                    value_float=state.value_float,
                    max_drop=state.max_drop,
                    share_now=state.int8_share,
                )
            )


def _trial_options(*trials: tuple[str, int]) -> list[tuple[str, int]]:
    return [("select an assignment", -1), *trials]


def _render_assignments_table(state: TunerState, points: pl.DataFrame) -> str:
    if points.is_empty():
        return render_text("No precision assignment was evaluated yet: evaluate the current one, or search.")
    shown = points.select(
        "label", "kind", pl.col("int8_share") * 100, "metric", "loss", "loss_low", "loss_high", "pareto"
    )
    headings = {
        "label": "assignment", "kind": "source", "int8_share": "in INT8, %", "metric": state.metric,
        "loss_low": "loss, low", "loss_high": "loss, high", "pareto": "Pareto-optimal",
    }  # fmt: skip
    digits = {"int8_share": 1, "metric": 4, "loss": 4, "loss_low": 4, "loss_high": 4}
    marked = {row: "trtkit-marked" for row, kind in enumerate(points["kind"]) if kind == "chosen"}
    caption = "Losses against FP32 on the same images, with their 95 % confidence intervals"
    return table_html(shown, caption=caption, headings=headings, digits=digits, row_classes=marked)
