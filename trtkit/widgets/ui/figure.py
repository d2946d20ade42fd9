"""plotly figures inside widgets: one that is replaced as a whole, and one that updates in place and reports clicks.

plotly's `FigureWidget` is not used: it loses updates made before the page has loaded it, carries 5 MB of plotly.js per
figure and takes seconds to import. `ClickableFigure` sends the whole figure and the page redraws it by `Plotly.react`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ipywidgets

from trtkit.html import asset
from trtkit.plotting.notebook import compressed_plotly, mime_bundle, plotly_loader, plotly_url
from trtkit.widgets.ui.controls import catch_errors

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["ClickableFigure", "FigureOutput", "can_click"]


class FigureOutput(ipywidgets.Output):
    """Shows one figure, which any thread may replace.

    Args:
        figure: The first figure.

    Attributes:
        figure: The shown figure, or None.
    """

    def __init__(self, figure: go.Figure | None = None) -> None:
        super().__init__()
        self.add_class("trtkit-figure")
        self.draw(figure)

    def draw(self, figure: go.Figure | None) -> None:
        """Show `figure`; None clears the output."""
        self.figure = figure
        # Widgets are not saved with the notebook, so that the output need not carry plotly.js for it.
        data = None if figure is None else mime_bundle(figure, library=False)
        outputs = () if data is None else ({"output_type": "display_data", "data": data, "metadata": {}},)
        # Setting the trait captures no prints of other threads, as `with output:` would.
        self.outputs: tuple[Any, ...] = outputs


def can_click() -> bool:
    """Whether figures can report clicks, which needs anywidget."""
    try:
        import anywidget  # noqa: F401
    except ImportError:
        return False
    return True


class ClickableFigure(ipywidgets.VBox):
    """A figure that updates in place and whose points can be clicked; a `FigureOutput` where anywidget is missing.

    Args:
        name: Adds the CSS class `trtkit-<name>`.
        on_click: Called with the `customdata` of a clicked point; None ignores clicks.
        show_error: Shows the errors of `on_click`, as `ErrorBox.show` does.
        clickable: Whether points can be clicked; None asks `can_click`.
        include_plotlyjs: Carry plotly.js; one figure of a widget does, for all of them.

    Attributes:
        clickable: Whether points can be clicked.
        figure: The shown figure, or None.
    """

    def __init__(
        self,
        name: str,
        on_click: Callable[[Any], Any] | None = None,
        *,
        show_error: Callable[[BaseException | None], None] | None = None,
        clickable: bool | None = None,
        include_plotlyjs: bool = False,
    ) -> None:
        super().__init__(layout=ipywidgets.Layout(width="100%", min_width="0"))
        self.add_class(f"trtkit-{name}")
        self.name = name
        self.clickable = can_click() if clickable is None else clickable
        self.figure: go.Figure | None = None
        self._on_click = on_click if on_click is None or show_error is None else catch_errors(show_error)(on_click)
        self._view: Any = (
            _figure_widget_class()(f"{name} figure", self._on_message, include_plotlyjs=include_plotlyjs)
            if self.clickable
            else FigureOutput()
        )
        self.children = (self._view,)

    def draw(self, figure: go.Figure) -> None:
        """Show a figure in place of the previous one."""
        self.figure = figure
        if not self.clickable:
            self._view.draw(figure)
            return
        from plotly.io import to_json

        self._view.figure = to_json(figure, validate=False)

    def click(self, data: Any) -> None:
        """Do what a click on a point with this `customdata` does."""
        if self._on_click is not None:
            self._on_click(data)

    def _on_message(self, message: Any) -> None:
        if isinstance(message, dict) and message.get("kind") == "click":
            self.click(message.get("data"))


@functools.cache
def _figure_widget_class() -> Any:
    """The anywidget class, defined on first use: importing anywidget is slow."""
    import anywidget
    import traitlets

    class FigureWidget(anywidget.AnyWidget):
        """A figure as JSON, and plotly.js where it is carried.

        Args:
            label: The name that screen readers read.
            on_message: Called with each message of the page.
            include_plotlyjs: Carry plotly.js.
        """

        _esm = plotly_loader() + asset("widgets/ui/figure.js")
        figure = traitlets.Unicode().tag(sync=True)
        label = traitlets.Unicode().tag(sync=True)
        library = traitlets.Bytes().tag(sync=True)
        host = traitlets.Unicode(plotly_url()).tag(sync=True)

        def __init__(self, label: str, on_message: Callable[[Any], None], *, include_plotlyjs: bool) -> None:
            super().__init__(label=label, library=compressed_plotly() if include_plotlyjs else b"")
            self.on_msg(lambda _, message, buffers: on_message(message))

    return FigureWidget
