"""dashboard(): INT8 against FP16 and FP32, with every plot and table following one choice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets

from trtkit.errors import DataError
from trtkit.judgement.comparison import Comparison
from trtkit.judgement.linked_figures import accuracy_figure, classes_change_figure, latency_figure, size_figure
from trtkit.widgets.compared import Compared
from trtkit.widgets.comparison_state import DashboardState
from trtkit.widgets.comparison_words import changes_table, classes_table, headline_table, verdict
from trtkit.widgets.controls import labelled, note_html
from trtkit.widgets.live import Live
from trtkit.widgets.part import NARROW, ROW, SHORT, side

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Dashboard", "dashboard"]

ALL = "all classes"


class Dashboard(Compared):
    """The dashboard; everything that a click does is a method too.

    Attributes:
        state: What stands out; None as long as there is no comparison.
    """

    def __init__(self, source: Comparison | str | Path | None, *, click: bool | None = None) -> None:
        self.state: DashboardState | None = None
        self._click, self._quiet = click, False
        super().__init__(source, "dashboard")

    def choose(self, **choices: Any) -> None:
        """Let another `precision`, `metric`, `name` (of a class, "" for all) or `batch` stand out."""
        self._become(self._known().choosing(**choices))

    def toggle(self, name: str) -> None:
        """Let a class stand out, or all again."""
        self._become(self._known().toggling(name))

    def parts(self, comparison: Comparison) -> list[ipywidgets.Widget]:
        """Controls, plots and tables of a comparison."""
        self.state = state = DashboardState.of(comparison)
        self.precision = labelled(
            ipywidgets.ToggleButtons, "Precision", "The precision that stands out in every plot and table",
            name="precision", options=[(name.upper(), name) for name in state.precisions], value=state.precision,
            style={**SHORT, "button_width": "6rem"},
        )  # fmt: skip
        self.class_name = labelled(
            ipywidgets.Dropdown, "Class", "The class that stands out; a click on its point does the same",
            name="class", options=[(ALL, ""), *((name, name) for name in state.names)], style=SHORT,
            layout=ipywidgets.Layout(width=NARROW),
        )  # fmt: skip
        self.metric = labelled(
            ipywidgets.Dropdown, "By class", "The metric that classes are told by", name="metric",
            options=state.class_metrics, value=state.metric, style=SHORT, layout=ipywidgets.Layout(width=NARROW),
        )  # fmt: skip
        self.batch = labelled(
            ipywidgets.Dropdown, "Batch", "The batch size whose times are shown", name="batch", options=state.batches,
            value=state.batch, style=SHORT, layout=ipywidgets.Layout(width="13rem"),
            disabled=len(state.batches) < 2,
        )  # fmt: skip
        for control, what in (
            (self.precision, "precision"), (self.class_name, "name"), (self.metric, "metric"), (self.batch, "batch"),
        ):  # fmt: skip
            control.observe(self._observer(what), "value")
        toggle = self._asked(self.toggle, self._render)
        self.accuracy = Live("accuracy", click=self._click, carry=True)
        self.latency, self.size = Live("latency", click=self._click), Live("size", self._pick, click=self._click)
        self.classes = Live("classes", toggle, show=self.fault.show, click=self._click)
        self.told = {name: ipywidgets.HTML() for name in ("verdict", "headline", "classes", "changes")}
        for name, place in self.told.items():
            place.add_class(f"trtkit-{name}-table" if name != "verdict" else "trtkit-verdict")
        self._render()
        return [
            self.told["verdict"],
            ipywidgets.HBox(
                [self.precision, self.class_name, self.metric, self.batch], layout=ipywidgets.Layout(**ROW)
            ),
            self.told["headline"],
            _halves("Accuracy", [self.accuracy], [self.told["changes"]]),
            _halves("Times and sizes", [self.latency], [self.size]),
            _halves("Class by class", [self.classes], [self.told["classes"]]),
        ]

    def figures(self) -> Sequence[go.Figure]:
        """The figures as they stand."""
        if self.state is None:
            return []
        lives = (self.accuracy, self.latency, self.size, self.classes)
        return [live.figure for live in lives if live.figure is not None]

    def still(self) -> Sequence[go.Figure | str]:
        """Figures and tables as they stand, for what outlives the kernel."""
        if self.state is None:
            return [note_html("The comparison was still running when this page was written.")]
        told = {name: place.value for name, place in self.told.items()}
        first, *rest = self.figures()
        return [told["verdict"], told["headline"], first, told["changes"], *rest, told["classes"]]

    def _known(self) -> DashboardState:
        if self.state is None:
            raise DataError("choose in the dashboard", "there is no comparison yet", "wait for it: .wait()")
        return self.state

    def _pick(self, precision: str) -> None:
        self._asked(lambda name: self.choose(precision=name), self._render)(precision)

    def _observer(self, what: str) -> Any:
        asked = self._asked(lambda value: self.choose(**{what: value}), self._render)
        return lambda change: None if self._quiet else asked(change["new"])

    def _become(self, state: DashboardState) -> None:
        self.state = state
        self._render()
        self.renew()

    def _render(self) -> None:
        state = self._known()
        self._quiet = True
        try:
            self.precision.value, self.class_name.value = state.precision, state.name
            self.metric.value, self.batch.value = state.metric, state.batch
        finally:
            self._quiet = False
        told, whole = state.comparison.differences, state.comparison
        before, focus = state.reference, state.precision
        if len(told):
            metrics = state.class_metrics if state.name else state.metrics
            self.accuracy.draw(accuracy_figure(told, metrics, reference=before, focus=focus, name=state.name))
            self.classes.draw(
                classes_change_figure(told, state.metric, reference=before, focus=focus, selected=state.name)
            )
        self.latency.draw(latency_figure(whole.samples, whole.runners, state.batch, focus=state.precision))
        self.size.draw(size_figure(whole.rows, focus=state.precision))
        self.told["verdict"].value = verdict(state)
        self.told["headline"].value = headline_table(state)
        self.told["classes"].value = classes_table(state)
        self.told["changes"].value = changes_table(state)


def _halves(title: str, left: Sequence[ipywidgets.Widget], right: Sequence[ipywidgets.Widget]) -> ipywidgets.VBox:
    """A titled row of a plot and what stands beside it."""
    boxes = [ipywidgets.VBox(list(half), layout=side()) for half in (left, right)]
    return ipywidgets.VBox(
        [ipywidgets.HTML(f"<h4>{title}</h4>"), ipywidgets.HBox(boxes, layout=ipywidgets.Layout(**ROW))]
    )


def dashboard(comparison: Comparison | str | Path | None = None, *, click: bool | None = None) -> Dashboard:
    """Read a comparison: accuracy with intervals, times, sizes and classes, linked by one choice.

    Args:
        comparison: From `compare`, or the folder of a saved one. None takes what `trtkit demo` left, and compares the
            embedded model in the background where it left nothing.
        click: Whether points can be clicked; None lets them where anywidget is installed.

    Returns:
        The widget; `.choose(precision=..., name=...)` does what its controls do.

    Raises:
        DataError: The folder holds no comparison.
    """
    return Dashboard(comparison, click=click)
