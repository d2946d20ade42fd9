"""dashboard() and gallery(): a comparison in linked figures and tables, and images of its object changes."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets
import polars as pl

from trtkit.comparison.cards import make_cards
from trtkit.comparison.comparison import Comparison
from trtkit.comparison.published import describe_unmeasured
from trtkit.errors import DataError
from trtkit.html import render, table_html
from trtkit.plotting.comparison import (
    accuracy_figure,
    classes_change_figure,
    latency_figure,
    size_figure,
    unmeasured_latency_figure,
)
from trtkit.recipe import format_label
from trtkit.widgets.comparison_state import (
    CHANGES,
    DashboardState,
    GalleryState,
    compare_demo_model,
    list_compared_precisions,
    resolve_comparison,
)
from trtkit.widgets.ui.controls import (
    NARROW_WIDTH,
    SHORT_LABEL,
    WRAPPED_ROW,
    Collapsible,
    catch_errors,
    half_width,
    make_button,
    make_control,
    render_note,
)
from trtkit.widgets.ui.output import ClickableFigure, JobWidget, make_section_title, render_folded, render_scrollable
from trtkit.widgets.ui.words import render_words

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = [
    "ALL_CLASSES",
    "CHANGE_LABELS",
    "ComparisonWidget",
    "Dashboard",
    "Gallery",
    "dashboard",
    "gallery",
    "render_change_cards",
    "render_changes_table",
    "render_classes_table",
    "render_latency_table",
    "render_summary_table",
    "render_verdict",
]

ALL_CLASSES = "all classes"

CHANGE_LABELS = {
    "lost": "▼ lost",
    "false positive added": "▼ false positive added",
    "gained": "▲ gained",
    "false positive removed": "▲ false positive removed",
}
"""Labels of the kinds of change; the arrow tells losses from gains without color."""


UNPREDICTIVE = "Latencies that do not predict TensorRT's"
"""Heading of what another runner took."""


class ComparisonWidget(JobWidget):
    """Base of the dashboard and the gallery: shows a comparison, or makes the demo's in the background.

    Args:
        source: A comparison, or the folder of a saved one; None uses the one that `trtkit demo` saved, or else compares
            the embedded model.
        name: Sets the CSS class `trtkit-<name>`.
    """

    def __init__(self, source: Comparison | str | Path | None, name: str) -> None:
        super().__init__(name, "compare the embedded model")
        comparison = resolve_comparison(source)
        if comparison is None:
            self.job_view.start(compare_demo_model)
        else:
            self.fill(comparison)

    def fill(self, comparison: Comparison) -> None:
        """Show a comparison."""
        self._set_content(*self.create_content(comparison))
        self.refresh_static()

    def create_content(self, comparison: Comparison) -> list[ipywidgets.Widget]:
        """The controls, figures and tables of a comparison."""
        raise NotImplementedError

    def _on_job_end(self, job: Any) -> None:
        if job.state == "done":
            self.job_view.layout.display = "none"
            catch_errors(self.error_box.show)(self.fill)(job.result)


def render_verdict(state: DashboardState) -> str:
    """The verdict on each precision and the cards, with the findings folded."""
    return render(
        "widgets/templates/dashboard_verdict.html.j2",
        model=state.comparison.about["model"],
        verdicts=list(state.comparison.verdicts.values()),
        cards=make_cards(state.comparison),
        findings=state.comparison.findings(),
    )


def render_summary_table(state: DashboardState) -> str:
    """Primary metrics, latencies and sizes, one row per precision; the selected one is marked."""
    frame = state.summary_frame()
    headings = {
        "p50_ms": "p50 latency (ms)", "p99_ms": "p99 latency (ms)", "images_per_s": "images/s", "onnx_mb": "ONNX, MB",
        "engine_mb": "engine, MB",
    }  # fmt: skip
    digits = {"p50_ms": 2, "p99_ms": 2, "images_per_s": 1, "onnx_mb": 1, "engine_mb": 1}
    for metric, _ in state.comparison.about["metrics"]:
        headings |= {f"delta {metric}": "change", f"interval {metric}": "95 % confidence interval"}
        digits |= {metric: 4, f"delta {metric}": 4}
    marked = {row: "trtkit-marked" for row, name in enumerate(frame["precision"]) if name == state.precision}
    caption = f"Changes against {format_label(state.reference)}"
    if state.engines_ran:
        runners = ", ".join(state.comparison.rows["runner"].unique(maintain_order=True))
        runtime = "" if state.comparison.rows["engine"].all() else "; those of ONNX Runtime do not predict TensorRT's"
        caption += f"; latencies at batch {state.batch}, {runners}{runtime}"
    return table_html(_show_labels(frame), caption=caption, headings=headings, digits=digits, row_classes=marked)


def render_latency_table(state: DashboardState) -> str:
    """Latencies of the runner that evaluated, for a comparison that ran no engine."""
    runners = ", ".join(state.comparison.rows["runner"].unique(maintain_order=True))
    caption = f"{UNPREDICTIVE}: {runners}, batch {state.batch}"
    headings = {"p50_ms": "p50 latency (ms)", "p99_ms": "p99 latency (ms)", "images_per_s": "images/s"}
    digits = {"p50_ms": 2, "p99_ms": 2, "images_per_s": 1}
    return table_html(_show_labels(state.latency_frame()), caption=caption, headings=headings, digits=digits)


def _show_labels(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(precision=pl.Series(map(format_label, frame["precision"]), dtype=pl.String))


def render_classes_table(state: DashboardState) -> str:
    """One row per class, the largest loss first; the selected one is marked."""
    frame = state.class_frame()
    headings = {"name": "class", "instances": "labels", "reference": format_label(state.reference),
                "value": format_label(state.precision), "delta": "change", "interval": "95 % confidence interval",
                "significant": "significant (95 %)"}  # fmt: skip
    digits = dict.fromkeys(("reference", "value", "delta"), 4)
    marked = {row: "trtkit-marked" for row, name in enumerate(frame["name"]) if name == state.class_name}
    caption = f"{state.metric} by class"
    return render_scrollable(table_html(frame, caption=caption, headings=headings, digits=digits, row_classes=marked))


def render_changes_table(state: DashboardState) -> str:
    """Number of lost and gained objects and of false positives added and removed."""
    if state.precision == state.reference:
        return render_note(f"{format_label(state.reference)} is the reference: changes are measured against it.")
    of_class = f" of class {state.class_name}" if state.class_name else ""
    label = format_label(state.precision)
    conf = state.comparison.conf
    caption = f"Object changes of {label}{of_class} at confidence {conf:g}; tk.gallery(comparison) shows them"
    return table_html(state.change_counts().rename({"explanation": ""}), caption=caption)


class Dashboard(ComparisonWidget):
    """The dashboard widget; every control has a method that does the same.

    Attributes:
        state: The current selection; None until there is a comparison.
    """

    def __init__(self, source: Comparison | str | Path | None, *, clickable: bool | None = None) -> None:
        self.state: DashboardState | None = None
        self._clickable = clickable
        super().__init__(source, "dashboard")

    def choose(self, **choices: Any) -> None:
        """Select another `precision`, `metric`, `class_name` ("" for all) or `batch`.

        Raises:
            DataError: There is no comparison yet.
            RecipeError: The comparison has no such value.
        """
        self._set_state(self._require_state().with_choices(**choices))

    def select(self, point: Mapping[str, Any]) -> None:
        """Select what a clicked point of any figure shows: its `precision`, and its `class_name` or `metric`."""
        self._set_state(self._require_state().with_point(point))

    def toggle_class(self, name: str) -> None:
        """Select a class, or all classes if it is selected already."""
        self._set_state(self._require_state().with_class_toggled(name))

    def create_content(self, comparison: Comparison) -> list[ipywidgets.Widget]:
        """The controls, figures and tables of a comparison."""
        self.state = state = DashboardState.from_comparison(comparison)
        narrow = ipywidgets.Layout(width=NARROW_WIDTH)
        self.precision = make_control(
            ipywidgets.ToggleButtons, "Precision", "The precision to highlight in every figure and table",
            name="precision", options=[(format_label(name), name) for name in state.precisions], value=state.precision,
            style={**SHORT_LABEL, "button_width": "6rem"},
        )  # fmt: skip
        self.class_name = make_control(
            ipywidgets.Dropdown, "Class", "The class to highlight; a click on its point selects it too", name="class",
            options=[(ALL_CLASSES, ""), *((name, name) for name in state.class_names)], style=SHORT_LABEL,
            layout=narrow,
        )  # fmt: skip
        self.metric = make_control(
            ipywidgets.Dropdown, "By class", "The metric of the class figure and table", name="metric",
            options=state.class_metrics, value=state.metric, style=SHORT_LABEL, layout=narrow,
        )  # fmt: skip
        self.batch = make_control(
            ipywidgets.Dropdown, "Batch", "The batch size of the latencies", name="batch", options=state.batches,
            value=state.batch, style=SHORT_LABEL, layout=ipywidgets.Layout(width="13rem"),
            disabled=len(state.batches) < 2,
        )  # fmt: skip
        controls = {
            "precision": self.precision, "class_name": self.class_name, "metric": self.metric, "batch": self.batch,
        }  # fmt: skip
        for choice, control in controls.items():
            self._observe(control, self.choose, choice)
        # A click in any figure selects for all of them.
        self.accuracy, self.latency, self.size, self.classes = (
            ClickableFigure(
                name, self._guard(self.select), clickable=self._clickable, include_plotlyjs=name == "accuracy"
            )
            for name in ("accuracy", "latency", "size", "classes")
        )
        self.texts = {name: ipywidgets.HTML() for name in ("verdict", "summary", "classes", "changes", "latency")}
        for name, place in self.texts.items():
            place.add_class(f"trtkit-{name}-table" if name != "verdict" else "trtkit-verdict")
        self._render()
        return [
            self.texts["verdict"],
            ipywidgets.HBox(list(controls.values()), layout=ipywidgets.Layout(**WRAPPED_ROW)),
            self.texts["summary"],
            _build_row("Accuracy", self.accuracy, self.texts["changes"]),
            _build_row("Latency and size", self.latency, self.size),
            _build_row("By class", self.classes, self.texts["classes"]),
            ipywidgets.HTML(render_words("mAP50-95", "95 % interval", "significant", "p50, p99", "false positive")),
            *(() if state.engines_ran else (Collapsible(UNPREDICTIVE, [self.texts["latency"]], name="other-latency"),)),
        ]

    def figures(self) -> Sequence[go.Figure]:
        """The current figures."""
        if self.state is None:
            return []
        places = (self.accuracy, self.latency, self.size, self.classes)
        return [place.figure for place in places if place.figure is not None]

    def static_parts(self) -> Sequence[go.Figure | str]:
        """The current figures and tables, for the saved notebook."""
        if self.state is None:
            return [render_note("The comparison was still running when this page was saved.")]
        texts = {name: place.value for name, place in self.texts.items()}
        first, *rest = self.figures()
        folded = () if self.state.engines_ran else (render_folded(UNPREDICTIVE, texts["latency"]),)
        return [texts["verdict"], texts["summary"], first, texts["changes"], *rest, texts["classes"], *folded]

    def _require_state(self) -> DashboardState:
        if self.state is None:
            raise DataError(
                "choose in the dashboard", "there is no comparison yet", "call .wait() first", code="dashboard-empty"
            )
        return self.state

    def _set_state(self, state: DashboardState) -> None:
        self.state = state
        self._render()
        self.refresh_static()

    def _restore_controls(self) -> None:
        self._render()

    def _render(self) -> None:
        state = self._require_state()
        self._updating = True
        try:
            self.precision.value, self.class_name.value = state.precision, state.class_name
            self.metric.value, self.batch.value = state.metric, state.batch
        finally:
            self._updating = False
        comparison, differences = state.comparison, state.comparison.differences
        reference, focus, name = state.reference, state.precision, state.class_name
        if len(differences):
            metrics = state.class_metrics if name else state.metrics
            self.accuracy.draw(accuracy_figure(differences, metrics, reference=reference, focus=focus, name=name))
            self.classes.draw(
                classes_change_figure(differences, state.metric, reference=reference, focus=focus, selected=name)
            )
        if state.engines_ran:
            self.latency.draw(latency_figure(comparison.samples, comparison.runners, state.batch, focus=focus))
        else:
            self.latency.draw(
                unmeasured_latency_figure(state.precisions, focus=focus, **describe_unmeasured(comparison))
            )
            self.texts["latency"].value = render_latency_table(state)
        self.size.draw(size_figure(comparison.rows, focus=focus))
        self.texts["verdict"].value = render_verdict(state)
        self.texts["summary"].value = render_summary_table(state)
        self.texts["classes"].value = render_classes_table(state)
        self.texts["changes"].value = render_changes_table(state)


def _build_row(title: str, left: ipywidgets.Widget, right: ipywidgets.Widget) -> ipywidgets.VBox:
    """Two widgets side by side below a title."""
    halves = [ipywidgets.VBox([half], layout=half_width()) for half in (left, right)]
    return ipywidgets.VBox(
        [make_section_title(title), ipywidgets.HBox(halves, layout=ipywidgets.Layout(**WRAPPED_ROW))]
    )


def dashboard(comparison: Comparison | str | Path | None = None, *, clickable: bool | None = None) -> Dashboard:
    """Show a comparison: accuracy with confidence intervals, latency, size and classes, linked by one selection.

    Args:
        comparison: From `compare`, or the folder of a saved one. None uses the one that `trtkit demo` saved, or else
            compares the embedded model in the background.
        clickable: Whether points can be clicked; None enables it if anywidget is installed.

    Returns:
        The widget; `.choose(precision=..., class_name=...)` does what its controls do.

    Raises:
        DataError: The folder holds no comparison.
    """
    return Dashboard(comparison, clickable=clickable)


def render_change_cards(state: GalleryState) -> str:
    """The changes of the page as images: reference left, precision right, labels in white."""
    frame = state.page_frame()
    if frame.is_empty():
        return render_note("There are no such changes.", kind="good")
    cards = [_describe_card(row) for row in frame.iter_rows(named=True)]
    markup = render(
        "widgets/templates/gallery_cards.html.j2",
        cards=cards,
        reference=format_label(state.reference),
        precision=format_label(state.precision),
    )
    missing = int(frame["png"].null_count())
    if not missing:
        return markup
    note = render_note(f"{missing} images can't be shown: their files no longer exist.", kind="warning")
    return "".join((note, markup))


def _describe_card(row: dict[str, Any]) -> dict[str, str]:
    before, after = ("none" if row[name] is None else f"{row[name]:.2f}" for name in ("score_reference", "score"))
    image = row["png"]
    return {
        "label": f"{CHANGE_LABELS[row['change']]}: {row['name']}, score {before} to {after}",
        "file": Path(row["path"]).name,
        "format": "png" if image is not None and image[:4] == b"\x89PNG" else "jpeg",
        "data": "" if image is None else base64.b64encode(image).decode("ascii"),
    }


class Gallery(ComparisonWidget):
    """The gallery widget; every control has a method that does the same.

    Attributes:
        state: The changes that are shown; None until there is a comparison.
    """

    has_figures = False

    def __init__(self, source: Comparison | str | Path | None, precision: str | None) -> None:
        self.state: GalleryState | None = None
        self._precision = precision
        super().__init__(source, "gallery")

    def choose(self, **choices: Any) -> None:
        """Show another `precision`, other `kinds` of change, one class (`class_name`) or another threshold (`conf`).

        Raises:
            DataError: There is no comparison yet.
            RecipeError: The comparison has no such value.
        """
        self._set_state(self._require_state().with_choices(**choices))

    def turn_page(self, pages: int = 1) -> None:
        """Go some pages forward, or back for a negative number."""
        self._set_state(self._require_state().with_page_turned(pages))

    def create_content(self, comparison: Comparison) -> list[ipywidgets.Widget]:
        """The controls and images of a comparison."""
        self.state = state = GalleryState.from_comparison(comparison, self._precision)
        narrow = ipywidgets.Layout(width=NARROW_WIDTH)
        self.precision = make_control(
            ipywidgets.ToggleButtons, "Precision", "The precision whose changes against the reference are shown",
            name="precision", value=state.precision, style={**SHORT_LABEL, "button_width": "6rem"},
            options=[(format_label(name), name) for name in list_compared_precisions(comparison)],
        )  # fmt: skip
        names = list(comparison.classes["name"].unique(maintain_order=True))
        self.class_name = make_control(
            ipywidgets.Dropdown, "Class", "Show changes of this class only", name="class",
            options=[(ALL_CLASSES, ""), *((name, name) for name in names)], style=SHORT_LABEL, layout=narrow,
        )  # fmt: skip
        self.conf = make_control(
            ipywidgets.FloatSlider, "Confidence", "Detections with a lower score are ignored", name="conf",
            value=state.conf, min=min(0.05, state.conf), max=max(0.95, state.conf), step=0.05, continuous_update=False,
            style=SHORT_LABEL, layout=narrow,
        )  # fmt: skip
        self.kinds = {
            kind: make_control(
                ipywidgets.Checkbox, kind, f"Show {explanation}", name=f"kind-{kind.replace(' ', '-')}", indent=False,
                layout=ipywidgets.Layout(width="auto"), style={},
            )
            for kind, explanation in CHANGES.items()
        }  # fmt: skip
        for box in self.kinds.values():
            self._observe(box, self._choose_kinds, "checked")
        controls = {"precision": self.precision, "class_name": self.class_name, "conf": self.conf}
        for choice, control in controls.items():
            self._observe(control, self.choose, choice)
        turn_page = self._guard(self.turn_page)
        width = ipywidgets.Layout(width="8rem")
        self.previous = make_button(
            "◀ Previous", "The previous page", lambda: turn_page(-1), name="previous", layout=width
        )
        self.next = make_button("Next ▶", "The next page", lambda: turn_page(1), name="next", layout=width)
        self.page, self.cards = ipywidgets.HTML(), ipywidgets.HTML()
        self.page.add_class("trtkit-gallery-page")
        self.cards.add_class("trtkit-change-cards")
        self._render()
        heading = render("widgets/templates/gallery_heading.html.j2", model=comparison.about["model"])
        row = ipywidgets.Layout(**WRAPPED_ROW)
        return [
            ipywidgets.HTML(heading),
            ipywidgets.HBox(list(controls.values()), layout=row),
            ipywidgets.HBox([*self.kinds.values(), self.previous, self.next, self.page], layout=row),
            self.cards,
        ]

    def _choose_kinds(self, checked: bool) -> None:
        """Show the kinds of change whose boxes are checked."""
        self.choose(kinds=tuple(kind for kind, box in self.kinds.items() if box.value))

    def figures(self) -> Sequence[go.Figure]:
        """None: the gallery shows images."""
        return []

    def static_parts(self) -> Sequence[go.Figure | str]:
        """The current images, for the saved notebook."""
        if self.state is None:
            return [render_note("The comparison was still running when this page was saved.")]
        heading = render(
            "widgets/templates/gallery_static_heading.html.j2",
            precision=format_label(self.state.precision),
            reference=format_label(self.state.reference),
        )
        return [heading, self.cards.value]

    def _require_state(self) -> GalleryState:
        if self.state is None:
            raise DataError(
                "choose in the gallery", "there is no comparison yet", "call .wait() first", code="gallery-empty"
            )
        return self.state

    def _set_state(self, state: GalleryState) -> None:
        self.state = state
        self._render()
        self.refresh_static()

    def _restore_controls(self) -> None:
        self._render()

    def _render(self) -> None:
        state = self._require_state()
        counts = state.counts
        self._updating = True
        try:
            self.precision.value, self.class_name.value = state.precision, state.class_name
            self.conf.value = state.conf
            for kind, box in self.kinds.items():
                box.value, box.description = kind in state.kinds, f"{CHANGE_LABELS[kind]} ({counts[kind]})"
        finally:
            self._updating = False
        self.previous.disabled, self.next.disabled = state.page == 0, state.page >= state.page_count - 1
        self.page.value = render(
            "widgets/templates/gallery_page.html.j2", page=state.page + 1, page_count=state.page_count
        )
        self.cards.value = render_change_cards(state)


def gallery(comparison: Comparison | str | Path | None = None, precision: str | None = None) -> Gallery:
    """Show the objects that a precision loses and gains against the reference, the largest score drop first.

    Args:
        comparison: From `compare`, or the folder of a saved one. None uses the one that `trtkit demo` saved, or else
            compares the embedded model in the background.
        precision: The precision to show; None takes the lowest.

    Returns:
        The widget; `.choose(...)` and `.turn_page()` do what its controls do.

    Raises:
        DataError: The folder holds no comparison.
        RecipeError: The precision was not compared.
    """
    return Gallery(comparison, precision)
