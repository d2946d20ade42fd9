"""dashboard(): INT8 against FP16 and FP32, with every plot and table following one choice."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets

from trtkit.comparison.comparison import Comparison
from trtkit.errors import DataError
from trtkit.plotting.comparison import accuracy_figure, classes_change_figure, latency_figure, size_figure
from trtkit.widgets.comparison.state import (
    DashboardState,
    compare_demo_model,
    list_compared_precisions,
    resolve_comparison,
)
from trtkit.widgets.ui.controls import (
    NARROW_WIDTH,
    SHORT_LABEL,
    WRAPPED_ROW,
    ErrorBox,
    catch_errors,
    half_width,
    make_control,
    render_note,
)
from trtkit.widgets.ui.figure import ClickableFigure
from trtkit.widgets.ui.html import StaticOutput, render_table, style_widget
from trtkit.widgets.ui.jobs import JobView

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from trtkit.widgets.comparison.state import DashboardState, GalleryState

__all__ = [
    "ComparisonWidget",
    "Dashboard",
    "dashboard",
    "render_change_cards",
    "render_changes_table",
    "render_classes_table",
    "render_summary_table",
    "render_verdict",
]


# A widget about a comparison: one that is given, one that lies in a folder, or the demo's, made in the background.


class ComparisonWidget(StaticOutput):
    """The common frame of dashboard and gallery.

    Args:
        source: A comparison, or its folder; None takes what `trtkit demo` left, else compares the embedded model.
        name: Gives the class `trtkit-<name>`.

    Attributes:
        work: The job that compares where nothing was given.
        fault: Where errors are shown.
    """

    def __init__(self, source: Comparison | str | Path | None, name: str) -> None:
        super().__init__()
        self.add_class("trtkit")
        self.add_class(f"trtkit-{name}")
        self.work = JobView("compare the embedded model", self._ended)
        self.fault = ErrorBox()
        self.children = (style_widget(), self.hidden, self.work, self.fault)
        found = resolve_comparison(source)
        if found is None:
            self.work.start(compare_demo_model)
        else:
            self.fill(found)

    def fill(self, comparison: Comparison) -> None:
        """Show a comparison."""
        self.children = (style_widget(), self.hidden, self.work, self.fault, *self.parts(comparison))
        self.renew()

    def parts(self, comparison: Comparison) -> list[ipywidgets.Widget]:
        """The widgets that show a comparison, made anew."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Stop the comparison that runs, at its next step."""
        self.work.job.cancel()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until what runs has ended; an interrupt cancels it first. See `Job.wait`."""
        return self.work.job.wait(timeout)

    def _ended(self, job: Any) -> None:
        if job.state == "done":
            self.work.layout.display = "none"
            catch_errors(self.fault.show)(self.fill)(job.result)

    def _asked(self, call: Callable[..., Any], settle: Callable[[], Any]) -> Callable[..., None]:
        """What a control calls: an error is shown, and the controls fall back to what holds."""
        shown = catch_errors(self.fault.show)(call)

        def asked(*arguments: Any) -> None:
            shown(*arguments)
            if self.fault.value:
                settle()

        return asked


# A comparison's tables and images as HTML.


CHANGE_LABELS = {"lost": "▼ lost", "new error": "▼ new error", "gained": "▲ won", "error gone": "▲ error gone"}
"""Harm points down, gain up, so that no color has to say it."""


def render_verdict(state: DashboardState) -> str:
    """What the comparison says, in sentences."""
    said = [f"<li>{html.escape(line)}</li>" for line in state.comparison.verdict()]
    first = len(list_compared_precisions(state.comparison)) + 1
    model = html.escape(str(state.comparison.about["model"]))
    rest = f"<details><summary>What else the numbers say</summary><ul>{''.join(said[first:])}</ul></details>"
    return (
        f"<h3>What each precision of {model} costs and buys</h3><ul>{''.join(said[:first])}</ul>"
        f"{rest if said[first:] else ''}"
    )


def render_summary_table(state: DashboardState) -> str:
    """Accuracy with intervals, times and sizes, one row a precision; the one that stands out is marked."""
    frame = state.headline()
    headings: dict[str, str] = {
        "p50_ms": "half within, ms", "p99_ms": "99 % within, ms", "images_per_s": "images/s", "onnx_mb": "ONNX, MB",
        "engine_mb": "engine, MB",
    }  # fmt: skip
    digits = {"p50_ms": 2, "p99_ms": 2, "images_per_s": 1, "onnx_mb": 1, "engine_mb": 1}
    for metric, _ in state.comparison.about["metrics"]:
        headings |= {f"delta {metric}": "change", f"interval {metric}": "95 % interval"}
        digits |= {metric: 4, f"delta {metric}": 4}
    marked = {place: "trtkit-marked" for place, name in enumerate(frame["precision"]) if name == state.precision}
    runners = ", ".join(state.comparison.rows["runner"].unique(maintain_order=True))
    clock = "" if state.comparison.rows["engine"].all() else "; these times are not TensorRT's"
    caption = (
        f"Changes against {state.reference.upper()} with their 95 % intervals; batch {state.batch}, {runners}{clock}"
    )
    return render_table(frame, caption=caption, headings=headings, digits=digits, row_classes=marked)


def render_classes_table(state: DashboardState) -> str:
    """One row a class, the one that loses most first; the one that stands out is marked."""
    frame = state.by_class()
    headings = {"name": "class", "instances": "labels", "reference": state.reference.upper(),
                "value": state.precision.upper(), "delta": "change", "interval": "95 % interval",
                "significant": "more than chance"}  # fmt: skip
    digits = dict.fromkeys(("reference", "value", "delta"), 4)
    marked = {place: "trtkit-marked" for place, name in enumerate(frame["name"]) if name == state.name}
    told = render_table(frame, caption=f"{state.metric} by class", headings=headings, digits=digits, row_classes=marked)
    return f"<div class='trtkit-scroll' tabindex='0'>{told}</div>"


def render_changes_table(state: DashboardState) -> str:
    """How many objects were lost and won."""
    if state.precision == state.reference:
        return render_note(f"{state.reference.upper()} is what the others are told against: nothing changes in it.")
    of = f" of class {state.name}" if state.name else ""
    caption = f"What {state.precision.upper()} changes{of} at confidence 0.25; tk.gallery(comparison) draws it"
    frame = state.changed().rename({"what": ""})
    return render_table(frame, caption=caption)


def render_change_cards(state: GalleryState) -> str:
    """The page's changes as images: the reference on the left, the precision on the right, the label in white."""
    frame = state.drawn()
    if frame.is_empty():
        return render_note("Nothing of this kind changed.", kind="good")
    missing = int(frame["png"].null_count())
    told = "".join(_info(row, state) for row in frame.iter_rows(named=True))
    note = render_note(f"{missing} images are no longer where they were judged, and can't be drawn.", kind="warning")
    return f"{note if missing else ''}<div class='trtkit-cards'>{told}</div>"


def _info(row: dict[str, Any], state: GalleryState) -> str:
    before, after = ("none" if row[name] is None else f"{row[name]:.2f}" for name in ("score_reference", "score"))
    name = html.escape(str(row["name"]))
    told = f"{CHANGE_LABELS[row['change']]}: {name}, score {before} to {after}"
    file = html.escape(Path(row["path"]).name)
    alt = f"{told}, in {file}; {state.reference} on the left, {state.precision} on the right"
    image = ""
    if row["png"] is not None:
        source = base64.b64encode(row["png"]).decode("ascii")
        kind = "png" if row["png"][:4] == b"\x89PNG" else "jpeg"
        image = f"<img alt=\"{html.escape(alt, quote=True)}\" src='data:image/{kind};base64,{source}' loading='lazy'>"
    heads = f"<span class='trtkit-soft'>{state.reference.upper()} | {state.precision.upper()} · {file}</span>"
    return f"<figure>{image}<figcaption><b>{told}</b><br>{heads}</figcaption></figure>"


ALL_CLASSES = "all classes"


class Dashboard(ComparisonWidget):
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
        self.precision = make_control(
            ipywidgets.ToggleButtons, "Precision", "The precision that stands out in every plot and table",
            name="precision", options=[(name.upper(), name) for name in state.precisions], value=state.precision,
            style={**SHORT_LABEL, "button_width": "6rem"},
        )  # fmt: skip
        self.class_name = make_control(
            ipywidgets.Dropdown, "Class", "The class that stands out; a click on its point does the same",
            name="class", options=[(ALL_CLASSES, ""), *((name, name) for name in state.names)], style=SHORT_LABEL,
            layout=ipywidgets.Layout(width=NARROW_WIDTH),
        )  # fmt: skip
        self.metric = make_control(
            ipywidgets.Dropdown, "By class", "The metric that classes are told by", name="metric",
            options=state.class_metrics, value=state.metric, style=SHORT_LABEL, layout=ipywidgets.Layout(width=NARROW_WIDTH),
        )  # fmt: skip
        self.batch = make_control(
            ipywidgets.Dropdown, "Batch", "The batch size whose times are shown", name="batch", options=state.batches,
            value=state.batch, style=SHORT_LABEL, layout=ipywidgets.Layout(width="13rem"),
            disabled=len(state.batches) < 2,
        )  # fmt: skip
        for control, what in (
            (self.precision, "precision"), (self.class_name, "name"), (self.metric, "metric"), (self.batch, "batch"),
        ):  # fmt: skip
            control.observe(self._observer(what), "value")
        toggle = self._asked(self.toggle, self._render)
        self.accuracy = ClickableFigure("accuracy", clickable=self._click, include_plotlyjs=True)
        self.latency, self.size = (
            ClickableFigure("latency", clickable=self._click),
            ClickableFigure("size", self._pick, clickable=self._click),
        )
        self.classes = ClickableFigure("classes", toggle, show_error=self.fault.show, clickable=self._click)
        self.told = {name: ipywidgets.HTML() for name in ("verdict", "headline", "classes", "changes")}
        for name, place in self.told.items():
            place.add_class(f"trtkit-{name}-table" if name != "verdict" else "trtkit-verdict")
        self._render()
        return [
            self.told["verdict"],
            ipywidgets.HBox(
                [self.precision, self.class_name, self.metric, self.batch], layout=ipywidgets.Layout(**WRAPPED_ROW)
            ),
            self.told["headline"],
            _build_row("Accuracy", [self.accuracy], [self.told["changes"]]),
            _build_row("Times and sizes", [self.latency], [self.size]),
            _build_row("Class by class", [self.classes], [self.told["classes"]]),
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
            return [render_note("The comparison was still running when this page was written.")]
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
        self.told["verdict"].value = render_verdict(state)
        self.told["headline"].value = render_summary_table(state)
        self.told["classes"].value = render_classes_table(state)
        self.told["changes"].value = render_changes_table(state)


def _build_row(title: str, left: Sequence[ipywidgets.Widget], right: Sequence[ipywidgets.Widget]) -> ipywidgets.VBox:
    """A titled row of a plot and what stands beside it."""
    boxes = [ipywidgets.VBox(list(half), layout=half_width()) for half in (left, right)]
    return ipywidgets.VBox(
        [ipywidgets.HTML(f"<h4>{title}</h4>"), ipywidgets.HBox(boxes, layout=ipywidgets.Layout(**WRAPPED_ROW))]
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
