"""explorer(): the layers of an engine by latency, precision and reformats, and two engines side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets

from trtkit.errors import DataError
from trtkit.html import facts_html, render, table_html
from trtkit.inspection import precision_shares_figure, read_layers
from trtkit.plotting.engine import engine_diff_figure
from trtkit.widgets.explorer_state import (
    ORDERS,
    ExplorerState,
    build_demo_engines,
    explain_untimed,
    find_demo_engines,
    time_layers,
)
from trtkit.widgets.ui.controls import (
    NARROW_WIDTH,
    SHORT_LABEL,
    WRAPPED_ROW,
    catch_errors,
    make_button,
    make_control,
    render_note,
)
from trtkit.widgets.ui.output import ClickableFigure, JobWidget, make_section_title, render_scrollable, render_text
from trtkit.widgets.ui.words import render_words

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Explorer", "explorer"]

RUNS = 50
"""Runs over which the button times the layers."""

MAX_LAYERS = 400
"""Rows of the layer list."""


class Explorer(JobWidget):
    """The explorer widget; every control has a method that does the same.

    Args:
        sources: One or two engines, as `read_layers` accepts them; () builds the demo's engines.
        runs: Runs over which an open runner is timed; 0 reads no latencies.
        clickable: Whether points can be clicked; None enables it if anywidget is installed.

    Attributes:
        state: The current state; None until there is an engine.
    """

    def __init__(self, sources: tuple[Any, ...], runs: int, *, clickable: bool | None = None) -> None:
        super().__init__("explorer", "read the engines")
        self.state: ExplorerState | None = None
        self._sources, self._clickable = sources, clickable
        if not sources:
            self.job_view.start(build_demo_engines)
            return
        self._set_state(ExplorerState(tables=tuple(read_layers(source, runs=runs) for source in sources)))

    def choose(self, **choices: Any) -> None:
        """Change `engine`, `precision`, `text`, `order`, `selected` or `only_differing` of `ExplorerState`.

        Raises:
            DataError: There is no engine yet.
            RecipeError: There is no such engine, precision, order or layer.
        """
        self._set_state(self._require_state().with_choices(**choices))

    def select(self, layer: int) -> None:
        """Select a layer by its index."""
        self.choose(selected=int(layer))

    def select_group(self, row: int) -> None:
        """Select the first layer of an aligned group."""
        self._set_state(self._require_state().with_group(int(row)))

    def select_share(self, point: Mapping[str, Any]) -> None:
        """List the layers of a clicked `precision` of an `engine`, or all layers if those are listed already."""
        self._set_state(self._require_state().with_share(int(point["engine"]), str(point["precision"])))

    def time(self, runs: int = RUNS) -> None:
        """Time every layer on this machine, in the background.

        Args:
            runs: Number of runs per engine.
        """
        self.job_view.start(time_layers, self._sources, runs)

    def figures(self) -> Sequence[go.Figure]:
        """The current figures."""
        if self.state is None:
            return []
        places = (self.shares, self.layers, self.groups)
        return [place.figure for place in places if place.figure is not None]

    def static_parts(self) -> Sequence[go.Figure | str]:
        """The current figures and tables, for the saved notebook."""
        if self.state is None:
            return [render_note("The engines were still being built when this page was saved.")]
        first, second, *rest = self.figures()
        return [self.heading.value, first, second, self.table.value, *rest, self.group_table.value]

    def _create_controls(self, state: ExplorerState) -> None:
        wide = ipywidgets.Layout(width=NARROW_WIDTH)
        self.heading, self.table, self.layer_facts, self.group_table = (ipywidgets.HTML() for _ in range(4))
        for place, name in (
            (self.heading, "explorer-heading"), (self.table, "layers-table"), (self.layer_facts, "layer"),
            (self.group_table, "groups-table"),
        ):  # fmt: skip
            place.add_class(f"trtkit-{name}")
        self.engine = make_control(
            ipywidgets.ToggleButtons, "Engine", "The engine whose layers are listed", name="engine",
            options=[(table.name, index) for index, table in enumerate(state.tables)], style=SHORT_LABEL,
        )  # fmt: skip
        self.precision = make_control(
            ipywidgets.Dropdown, "Precision", "List layers of this precision only, or reformats only", name="precision",
            options=[("all", "")], style=SHORT_LABEL, layout=wide,
        )  # fmt: skip
        self.text = make_control(
            ipywidgets.Text, "Search", "List layers only whose name, type or ONNX nodes contain this text", name="text",
            placeholder="such as model.10 or Conv", continuous_update=True, style=SHORT_LABEL, layout=wide,
        )  # fmt: skip
        self.order = make_control(
            ipywidgets.Dropdown, "Order", "Order of the list", name="order", options=list(ORDERS.items()),
            style=SHORT_LABEL, layout=wide,
        )  # fmt: skip
        self.layer = make_control(
            ipywidgets.BoundedIntText, "Layer", "Index of the selected layer; a click on its bar selects it too",
            name="selected", min=0, max=0, style=SHORT_LABEL, layout=ipywidgets.Layout(width="13rem"),
        )  # fmt: skip
        self.only_differing = make_control(
            ipywidgets.Checkbox, "only groups that differ in precision", "Hide groups of equal precision",
            name="only-differing", indent=False, layout=ipywidgets.Layout(width="auto"), style={},
        )  # fmt: skip
        default = "" if self._sources else "the demo's engines can't be timed"
        reason = next(filter(None, map(explain_untimed, self._sources)), default)
        self.timer = make_button(
            "Time the layers here", reason or f"Run each engine {RUNS} times and time every layer",
            lambda: self._guard(self.time)(), name="time", disabled=bool(reason),
            layout=ipywidgets.Layout(width="auto"),
        )  # fmt: skip
        for control, choice in (
            (self.engine, "engine"), (self.precision, "precision"), (self.text, "text"), (self.order, "order"),
            (self.layer, "selected"), (self.only_differing, "only_differing"),
        ):  # fmt: skip
            self._observe(control, self.choose, choice)
        show, clickable = self.error_box.show, self._clickable
        self.shares = ClickableFigure(
            "shares", self.select_share, show_error=show, clickable=clickable, include_plotlyjs=True
        )
        self.layers = ClickableFigure("layers-figure", self.select, show_error=show, clickable=clickable)
        self.groups = ClickableFigure("groups", self.select_group, show_error=show, clickable=clickable)
        two = len(state.tables) == 2
        self.engine.layout.display = "" if two else "none"
        row = ipywidgets.Layout(**WRAPPED_ROW)
        title = make_section_title("Side by side, by ONNX node")
        untimed = ipywidgets.HTML(render_text(f"Not available: {reason}.") if reason else "")
        self._set_content(
            self.heading, self.shares, ipywidgets.HBox([self.timer, untimed], layout=row),
            *((title, self.groups, self.only_differing, self.group_table) if two else ()),
            make_section_title("Layers"), self.engine, self.layers,
            ipywidgets.HBox([self.precision, self.text, self.order, self.layer], layout=row), self.table,
            self.layer_facts, ipywidgets.HTML(render_words("reformat", "ONNX node", "tactic", "Q/DQ")),
        )  # fmt: skip

    def _on_job_end(self, job: Any) -> None:
        if job.state == "done":
            self.job_view.layout.display = "none"
            catch_errors(self.error_box.show)(self._set_state)(ExplorerState(tables=job.result))

    def _require_state(self) -> ExplorerState:
        if self.state is None:
            raise DataError(
                "choose in the explorer", "there is no engine yet", "call .wait() first", code="explorer-empty"
            )
        return self.state

    def _set_state(self, state: ExplorerState) -> None:
        if self.state is None:
            self._create_controls(state)
        self.state = state
        self._render(state)
        self.refresh_static()

    def _restore_controls(self) -> None:
        if self.state is not None:
            self._render(self.state)

    def _render(self, state: ExplorerState) -> None:
        self._updating = True
        try:
            self.precision.options = [("all", ""), *((name, name) for name in state.precisions)]
            self.engine.value, self.precision.value, self.text.value = state.engine, state.precision, state.text
            self.order.value, self.only_differing.value = state.order, state.only_differing
            self.layer.max = len(state.table.frame) - 1
            self.layer.value = state.selected or 0
        finally:
            self._updating = False
        self.heading.value = _render_heading(state)
        self.shares.draw(precision_shares_figure(state.tables, engine=state.engine, precision=state.precision))
        self.layers.draw(state.table.plot(selected=state.selected, highlighted=state.listed))
        self.table.value = _render_layers(state)
        facts = state.layer_facts()
        self.layer_facts.value = facts_html(facts, caption="The selected layer") if facts else ""
        if len(state.tables) == 2:
            first, second = (table.name for table in state.tables)
            self.groups.draw(engine_diff_figure(state.groups, (first, second), selected=_find_selected_group(state)))
            digits = {"change, ms": 4, f"{first} ms": 4, f"{second} ms": 4}
            self.group_table.value = render_scrollable(table_html(state.group_frame(), digits=digits))


def _render_heading(state: ExplorerState) -> str:
    return render(
        "widgets/templates/explorer_heading.html.j2",
        names=" and ".join(table.name for table in state.tables),
        findings=state.findings(),
        facts=[facts_html(table.facts, caption=table.name) for table in state.tables if table.facts],
    )


def _render_layers(state: ExplorerState) -> str:
    frame = state.layer_frame()
    headings = {"index": "", "nodes": "ONNX nodes", "share": "share, %"}
    marked = {row: "trtkit-marked" for row, index in enumerate(frame["index"]) if index == state.selected}
    caption = f"{len(frame)} of {len(state.table.frame)} layers of {state.table.name}"
    return render_scrollable(
        table_html(
            frame,
            caption=caption,
            headings=headings,
            digits={"ms": 4, "share": 1},
            row_classes=marked,
            limit=MAX_LAYERS,
        )
    )


def _find_selected_group(state: ExplorerState) -> int | None:
    """Row of the aligned group that contains the selected layer."""
    column = ("layers", "other_layers")[state.engine]
    return next((row for row, layers in enumerate(state.groups[column]) if state.selected in layers), None)


def explorer(engine: Any = None, other: Any = None, *, runs: int = 0, clickable: bool | None = None) -> Explorer:
    """Show the layers of an engine by latency, precision and reformats, and two engines side by side.

    An engine that trtkit built needs no GPU: the file holds its layer table. Latencies need a run on the engine's GPU:
    pass an open runner and `runs`, or a frame of `runner.layers(runs=50)` that was saved there as parquet.

    Args:
        engine: An engine file, an `Artifact`, an open runner, a layer frame, or a parquet file of one. None uses the
            FP16 and INT8 engines of the embedded model, and builds them in the background if there are none.
        other: A second engine, which is aligned with the first one by ONNX node.
        runs: Number of runs over which the layers of an open runner are timed; 0 reads no latencies.
        clickable: Whether points can be clicked; None enables it if anywidget is installed.

    Returns:
        The widget; `.choose(...)`, `.select()` and `.time()` do what its controls do.

    Raises:
        EngineError: An engine can't be read, or holds no layer table.
        DataError: A frame is no layer table.
    """
    sources = tuple(source for source in (engine, other) if source is not None)
    return Explorer(sources or find_demo_engines(), runs, clickable=clickable)
