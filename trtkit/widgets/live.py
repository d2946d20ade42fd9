"""A figure in a widget that changes in place and whose points can be clicked, where the front end has what it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import ipywidgets
import numpy as np

from trtkit.widgets.faults import guarded
from trtkit.widgets.figures import Picture

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Live", "can_click", "changed"]

# What a figure widget gives itself and a fresh figure lacks.
OWN = ("uid", "type")


def can_click() -> bool:
    """Whether plotly's figure widget is there, which needs anywidget."""
    try:
        import anywidget  # noqa: F401
    except ImportError:
        return False
    return True


class Live(ipywidgets.VBox):
    """A figure whose points can be clicked; a plain picture of it where figure widgets are missing.

    Args:
        name: Gives the class `trtkit-<name>`.
        clicked: Receives the `customdata` of a clicked point; None for a figure that nothing follows from.
        show: Shows what `clicked` raises, as `trtkit.widgets.faults.guarded` wants it.
        click: Whether to use a figure widget; None asks `can_click`.

    Attributes:
        clickable: Whether it is a figure widget.
        figure: What is shown, or None.
    """

    def __init__(
        self,
        name: str,
        clicked: Callable[[Any], Any] | None = None,
        *,
        show: Callable[[BaseException | None], None] | None = None,
        click: bool | None = None,
    ) -> None:
        super().__init__()
        self.add_class(f"trtkit-{name}")
        self.clickable = can_click() if click is None else click
        self.figure: go.Figure | None = None
        self._clicked = clicked if clicked is None or show is None else guarded(show)(clicked)
        self._widget: Any = None

    def draw(self, figure: go.Figure) -> None:
        """Show a figure; what equals the one before stays as it is."""
        self.figure = figure
        if not self.clickable:
            if self._widget is None:
                self._widget = Picture()
                self.children = (self._widget,)
            self._widget.draw(figure)
            return
        if self._widget is None:
            self._make(figure)
        elif [trace.type for trace in self._widget.data] != [trace.type for trace in figure.data]:
            with self._widget.batch_update():
                self._widget.data = ()
                self._widget.add_traces(list(figure.data))
                self._widget.update_layout(figure.layout.to_plotly_json(), overwrite=True)
            self._listen()
        else:
            self._renew(figure)

    def press(self, data: Any) -> None:
        """Do what a click on a point with this `customdata` does."""
        if self._clicked is not None:
            self._clicked(data)

    def _make(self, figure: go.Figure) -> None:
        import plotly.graph_objects as go

        self._widget = go.FigureWidget(figure)
        self._widget._config = {"responsive": True, "displaylogo": False, "displayModeBar": False}
        self._listen()
        self.children = (self._widget,)

    def _listen(self) -> None:
        if self._clicked is None:
            return
        for trace in self._widget.data:
            trace.on_click(self._pressed)

    def _pressed(self, trace: Any, points: Any, state: Any) -> None:
        if points.point_inds and trace.customdata is not None:
            self.press(trace.customdata[points.point_inds[0]])

    def _renew(self, figure: go.Figure) -> None:
        """Change only what differs: a widget sends each changed property to the page."""
        with self._widget.batch_update():
            for old, new in zip(self._widget.data, figure.data, strict=True):
                difference = changed(old.to_plotly_json(), new.to_plotly_json())
                if difference:
                    old.update(difference, overwrite=True)
            difference = changed(self._widget.layout.to_plotly_json(), figure.layout.to_plotly_json())
            difference.pop("template", None)
            if difference:
                self._widget.layout.update(difference, overwrite=True)


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The properties of `new` that differ from `old`'s, and None for those that only `old` has."""
    kept = {name: value for name, value in new.items() if name not in OWN and not _same(old.get(name), value)}
    return {**kept, **{name: None for name in old if name not in new and name not in OWN}}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        first, second = np.asarray(one), np.asarray(other)
        if first.shape != second.shape or first.dtype.kind != second.dtype.kind:
            return False
        if first.dtype.kind == "f":
            return bool(np.array_equal(first, second, equal_nan=True))
        return bool(np.array_equal(first, second))
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)
