"""explorer(): an engine's layers by time, precision and reformats, and two engines side by side."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets

from trtkit.errors import DataError
from trtkit.inspection.layer_table import precision_shares_figure, read_layers
from trtkit.plotting.engine import engine_diff_figure
from trtkit.widgets.explorer.state import (
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
    ErrorBox,
    catch_errors,
    make_button,
    make_control,
    render_note,
)
from trtkit.widgets.ui.figure import ClickableFigure
from trtkit.widgets.ui.html import StaticOutput, render_facts, render_table, style_widget
from trtkit.widgets.ui.jobs import JobView

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Explorer", "explorer"]

RUNS = 50


class Explorer(StaticOutput):
    """The explorer; everything that a click does is a method too.

    Attributes:
        state: What is looked at; None as long as there is no engine.
        work: The job that builds or times.
    """

    def __init__(self, sources: tuple[Any, ...], runs: int, *, click: bool | None = None) -> None:
        super().__init__()
        self.add_class("trtkit")
        self.add_class("trtkit-explorer")
        self.state: ExplorerState | None = None
        self._sources, self._click, self._quiet = sources, click, False
        self.fault, self.work = ErrorBox(), JobView("look into the engines", self._ended)
        self.children = (style_widget(), self.hidden, self.work, self.fault)
        if not sources:
            self.work.start(build_demo_engines)
            return
        self._become(ExplorerState(tables=tuple(read_layers(source, runs=runs) for source in sources)))

    def choose(self, **choices: Any) -> None:
        """Look at another `side`, `kind`, `text`, `order` or `selected` layer; see `ExplorerState`."""
        self._become(self._known().choosing(**choices))

    def select(self, layer: int) -> None:
        """Let a layer stand out."""
        self.choose(selected=int(layer))

    def select_group(self, row: int) -> None:
        """Let an aligned group's layer stand out."""
        self._become(self._known().of_node(int(row)))

    def time(self, runs: int = RUNS) -> None:
        """Time every layer here, in the background."""
        self.work.start(time_layers, self._sources, runs)

    def cancel(self) -> None:
        """Stop what runs, at its next step."""
        self.work.job.cancel()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until what runs has ended; an interrupt cancels it first. See `Job.wait`."""
        return self.work.job.wait(timeout)

    def figures(self) -> Sequence[go.Figure]:
        """The figures as they stand."""
        if self.state is None:
            return []
        lives = (self.shares, self.layers, self.pairs)
        return [live.figure for live in lives if live.figure is not None]

    def still(self) -> Sequence[go.Figure | str]:
        """Figures and tables as they stand, for what outlives the kernel."""
        if self.state is None:
            return [render_note("The engines were still being built when this page was written.")]
        first, second, *rest = self.figures()
        return [self.head.value, first, second, self.table.value, *rest, self.pairs_table.value]

    def _make(self, state: ExplorerState) -> None:
        """The controls; made once there is an engine."""
        several = len(state.tables) == 2
        wide = ipywidgets.Layout(width=NARROW_WIDTH)
        self.head, self.table, self.detail, self.pairs_table = (ipywidgets.HTML() for _ in range(4))
        for place, name in (
            (self.head, "explorer-head"), (self.table, "layers-table"), (self.detail, "layer"),
            (self.pairs_table, "pairs-table"),
        ):  # fmt: skip
            place.add_class(f"trtkit-{name}")
        self.side = make_control(
            ipywidgets.ToggleButtons, "Engine", "Whose layers are listed", name="side",
            options=[(table.name, place) for place, table in enumerate(state.tables)], style=SHORT_LABEL,
        )  # fmt: skip
        self.kind = make_control(
            ipywidgets.Dropdown, "Precision", "List only layers of this precision, or reformats", name="kind",
            options=[("all", "")], style=SHORT_LABEL, layout=wide,
        )  # fmt: skip
        self.text = make_control(
            ipywidgets.Text, "Holding", "List only layers whose name or ONNX nodes hold this", name="text",
            placeholder="such as model.10 or Conv", continuous_update=True, style=SHORT_LABEL, layout=wide,
        )  # fmt: skip
        self.order = make_control(
            ipywidgets.Dropdown, "Order", "The order of the table", name="order", options=list(ORDERS.items()),
            style=SHORT_LABEL, layout=wide,
        )  # fmt: skip
        self.layer = make_control(
            ipywidgets.BoundedIntText, "Layer", "The layer that stands out; a click on its bar does the same",
            name="selected", min=0, max=0, style=SHORT_LABEL, layout=ipywidgets.Layout(width="13rem"),
        )  # fmt: skip
        self.changed = make_control(
            ipywidgets.Checkbox, "only groups in other precisions", "List only where the engines' precisions differ",
            name="changed", indent=False, layout=ipywidgets.Layout(width="auto"), style={},
        )  # fmt: skip
        reason = next(filter(None, map(explain_untimed, self._sources)), "" if self._sources else "they are the demo's")
        self.timer = make_button(
            "Time the layers here", reason or f"Run each engine {RUNS} times and time every layer",
            lambda: self._asked(self.time)(), name="time", disabled=bool(reason),
            layout=ipywidgets.Layout(width="auto"),
        )  # fmt: skip
        why = f"<span class='trtkit-soft'>Can't be timed here: {html.escape(reason)}.</span>" if reason else ""
        for control, what in (
            (self.side, "side"), (self.kind, "kind"), (self.text, "text"), (self.order, "order"),
            (self.layer, "selected"), (self.changed, "changed"),
        ):  # fmt: skip
            control.observe(self._observer(what), "value")
        show = self.fault.show
        self.shares = ClickableFigure("shares", clickable=self._click, include_plotlyjs=True)
        self.layers = ClickableFigure("layers-figure", self.select, show_error=show, clickable=self._click)
        self.pairs = ClickableFigure("pairs", self.select_group, show_error=show, clickable=self._click)
        self.side.layout.display = "" if several else "none"
        row = ipywidgets.Layout(**WRAPPED_ROW)
        both = [ipywidgets.HTML("<h4>Side by side, by ONNX node</h4>"), self.pairs, self.changed, self.pairs_table]
        self.children = (
            style_widget(), self.hidden, self.work, self.fault, self.head, self.shares,
            ipywidgets.HBox([self.timer, ipywidgets.HTML(why)], layout=row),
            *(both if several else []),
            ipywidgets.HTML("<h4>Layers</h4>"), self.side, self.layers,
            ipywidgets.HBox([self.kind, self.text, self.order, self.layer], layout=row), self.table, self.detail,
        )  # fmt: skip

    def _ended(self, job: Any) -> None:
        if job.state == "done":
            self.work.layout.display = "none"
            catch_errors(self.fault.show)(self._become)(ExplorerState(tables=job.result))

    def _known(self) -> ExplorerState:
        if self.state is None:
            raise DataError("choose in the explorer", "there is no engine yet", "wait for it: .wait()")
        return self.state

    def _asked(self, call: Callable[..., Any]) -> Callable[..., None]:
        """What a control calls: an error is shown, and the controls fall back to what holds."""
        shown = catch_errors(self.fault.show)(call)

        def asked(*arguments: Any) -> None:
            shown(*arguments)
            if self.fault.value and self.state is not None:
                self._render(self.state)

        return asked

    def _observer(self, what: str) -> Any:
        asked = self._asked(lambda value: self.choose(**{what: value}))
        return lambda change: None if self._quiet else asked(change["new"])

    def _become(self, state: ExplorerState) -> None:
        if self.state is None:
            self._make(state)
        self.state = state
        self._render(state)
        self.renew()

    def _render(self, state: ExplorerState) -> None:
        self._quiet = True
        try:
            self.kind.options = [("all", ""), *((name, name) for name in state.kinds)]
            self.side.value, self.kind.value, self.text.value = state.side, state.kind, state.text
            self.order.value, self.changed.value = state.order, state.changed
            self.layer.max = len(state.table.frame) - 1
            self.layer.value = state.selected or 0
        finally:
            self._quiet = False
        self.head.value = _render_heading(state)
        self.shares.draw(precision_shares_figure(state.tables))
        self.layers.draw(state.table.plot(selected=state.selected, highlighted=state.shown))
        self.table.value = _render_layers(state)
        self.detail.value = render_facts(state.detail(), caption="The layer that stands out") if state.detail() else ""
        if len(state.tables) == 2:
            first, second = (table.name for table in state.tables)
            self.pairs.draw(engine_diff_figure(state.pairs, (first, second), selected=_find_selected_group(state)))
            table = render_table(state.paired(), digits={"change, ms": 4, f"{first} ms": 4, f"{second} ms": 4})
            self.pairs_table.value = f"<div class='trtkit-scroll' tabindex='0'>{table}</div>"


def _render_heading(state: ExplorerState) -> str:
    names = html.escape(" and ".join(table.name for table in state.tables))
    said = "".join(f"<li>{html.escape(line)}</li>" for line in state.said())
    facts = "".join(render_facts(table.facts, caption=table.name) for table in state.tables if table.facts)
    folded = f"<details><summary>What the engines say of themselves</summary>{facts}</details>" if facts else ""
    return f"<h3>Inside {names}</h3><ul>{said}</ul>{folded}"


def _render_layers(state: ExplorerState) -> str:
    frame = state.listed()
    headings = {"index": "", "nodes": "ONNX nodes", "share": "share, %"}
    marked = {place: "trtkit-marked" for place, index in enumerate(frame["index"]) if index == state.selected}
    caption = f"{len(frame)} of {len(state.table.frame)} layers of {state.table.name}"
    table = render_table(
        frame, caption=caption, headings=headings, digits={"ms": 4, "share": 1}, row_classes=marked, max_rows=400
    )
    return f"<div class='trtkit-scroll' tabindex='0'>{table}</div>"


def _find_selected_group(state: ExplorerState) -> int | None:
    """The aligned group of the layer that stands out."""
    column = ("layers", "other_layers")[state.side]
    return next((row for row, layers in enumerate(state.pairs[column]) if state.selected in layers), None)


def explorer(engine: Any = None, other: Any = None, *, runs: int = 0, click: bool | None = None) -> Explorer:
    """Look into an engine: its layers by time, precision and reformats; and at two engines side by side.

    No GPU is needed for an engine that trtkit built: its layer table lies in its file. Times need a run on the engine's
    GPU: give an open runner and `runs`, or a frame of `runner.layers(runs=50)` that was saved as parquet there.

    Args:
        engine: An engine file, what `export` returned, an open runner, a layer frame, or a parquet file of one. None
            takes FP16 and INT8 engines of the embedded model, building them in the background where there are none.
        other: A second one, which is aligned with the first by ONNX node.
        runs: Time each layer of an open runner over so many runs; 0 reads no times.
        click: Whether points can be clicked; None lets them where anywidget is installed.

    Returns:
        The widget; `.choose(...)`, `.select()` and `.time()` do what its controls do.

    Raises:
        EngineError: An engine can't be read, or holds no layer table.
        DataError: A frame is no layer table.
    """
    given = tuple(source for source in (engine, other) if source is not None)
    return Explorer(given or find_demo_engines(), runs, click=click)
