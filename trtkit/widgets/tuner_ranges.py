"""The tuner's first part: algorithm and percentile, every tensor's range at once, and one tensor's histogram."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets
import polars as pl

from trtkit.calibration.algorithms import PERCENTILE
from trtkit.calibration.range_figures import histogram_figure, overview_figure
from trtkit.calibration.readings import PERCENTILES
from trtkit.widgets.controls import Fault, labelled
from trtkit.widgets.live import Live
from trtkit.widgets.part import NARROW, ROW, SHORT, Part, differs, side
from trtkit.widgets.tables import facts_html
from trtkit.widgets.tuner_state import TunerState

__all__ = ["RangesPart"]

TOLD = {
    "minmax": "minmax: the largest magnitude seen; clips nothing",
    "moving_average": "moving_average: the pictures' extremes, averaged",
    "entropy": "entropy: TensorRT's search for the range that tells most",
    "percentile": "percentile: leaves out the rarest values",
    "mse": "mse: rounding and clipping together cost least",
}
"""What each algorithm does, in a line."""


class RangesPart(Part[TunerState]):
    """Algorithm and percentile, every tensor's range at once, and one tensor's histogram.

    Args:
        use: Receives algorithm and percentile.
        pick: Receives a tensor.
        fault: Shows errors.
        click: As for `Live`.
    """

    def __init__(
        self, use: Callable[..., Any], pick: Callable[[str], Any], fault: Fault, *, click: bool | None = None
    ) -> None:
        self.algorithm = labelled(
            ipywidgets.ToggleButtons, "Algorithm", "What decides how much of a tensor its scale covers",
            name="algorithm", options=[], style={**SHORT, "button_width": "auto"},
            layout=ipywidgets.Layout(width="100%"),
        )  # fmt: skip
        self.percentile = labelled(
            ipywidgets.SelectionSlider, "Percentile", "Share of the values that is not clipped, percent",
            name="percentile", options=[(f"{value:g}", value) for value in PERCENTILES], value=PERCENTILE,
            disabled=True, continuous_update=True, style=SHORT, layout=ipywidgets.Layout(width=NARROW),
        )  # fmt: skip
        self.tensor = labelled(
            ipywidgets.Dropdown, "Tensor", "The tensor whose histogram is shown; a click on the overview picks one too",
            name="tensor", options=[], style=SHORT, layout=ipywidgets.Layout(width=NARROW),
        )  # fmt: skip
        self.why = ipywidgets.HTML()
        self.why.add_class("trtkit-why")
        told = "The search's own ranges and bias corrections are in use; choosing an algorithm replaces them."
        self.taken = ipywidgets.HTML(f"<p class='trtkit-soft'>{told}</p>")
        self.taken.add_class("trtkit-taken")
        self.overview = Live("overview", pick, show=fault.show, click=click, carry=True)
        self.histogram = Live("histogram", show=fault.show, click=click)
        self.overview.layout, self.histogram.layout = side(), side()
        self.facts = ipywidgets.HTML()
        self.facts.add_class("trtkit-tensor-facts")
        title = ipywidgets.HTML("<h4>Ranges: what each scale covers of what was seen</h4>")
        choices = ipywidgets.HBox([self.percentile, self.tensor], layout=ipywidgets.Layout(**ROW))
        figures = ipywidgets.HBox([self.overview, self.histogram], layout=ipywidgets.Layout(**ROW))
        super().__init__([title, self.algorithm, self.taken, choices, self.why, figures, self.facts], "ranges")
        self.algorithm.observe(self._told(lambda name: use(name)), "value")
        self.percentile.observe(self._told(lambda value: use("percentile", value)), "value")
        self.tensor.observe(self._told(pick), "value")

    def _render(self, state: TunerState, before: TunerState | None) -> None:
        if differs(state, before, "readings"):
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
        if differs(state, before, "readings", "algorithm", "percentile", "layout", "tensor", "taken"):
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
        self.overview.draw(overview_figure(state.readings, frame, selected=state.tensor, named=state.label))
        row = frame.row(by_predicate=pl.col("tensor") == state.tensor, named=True)
        others = state.others()
        self.histogram.draw(
            histogram_figure(state.readings, state.tensor, row["reach"], named=state.label, others=others)
        )
        shared = [] if state.layout is None else [n for n in state.layout.scale_of(state.tensor) if n != state.tensor]
        readers = [] if state.layout is None else state.layout.readers.get(state.tensor, [])
        self.facts.value = facts_html(
            {
                "tensor": state.tensor,
                "read by": readers or "",
                "largest |x| seen": row["largest"],
                "covered": f"{row['reach']:.4g} ({row['covered']:.1%} of the largest)",
                "clipped": _clipped(row["clipped"]),
                "one step of INT8": row["scale"],
                "shares its scale with": f"{len(shared)} tensors, such as {shared[0]}" if shared else "",
            }
        )


def _clipped(share: float | None) -> str:
    return "" if share is None else "nothing" if share == 0 else f"{share * 1e6:,.1f} of a million values"
