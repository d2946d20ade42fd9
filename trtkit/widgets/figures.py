"""A plotly figure in a widget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ipywidgets

from trtkit.display import bundle

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Picture"]


class Picture(ipywidgets.Output):
    """A place in a widget that shows one figure and may be given another from any thread.

    Attributes:
        figure: What is shown, or None.
    """

    def __init__(self, figure: go.Figure | None = None) -> None:
        super().__init__()
        self.add_class("trtkit-figure")
        self.draw(figure)

    def draw(self, figure: go.Figure | None) -> None:
        """Show `figure`, or nothing."""
        self.figure = figure
        # A widget is not saved with its notebook, so it need not carry the library for what is.
        data = None if figure is None else bundle(figure, library=False)
        shown = () if data is None else ({"output_type": "display_data", "data": data, "metadata": {}},)
        # Setting the trait, unlike `with output:`, captures no other thread's prints.
        self.outputs: tuple[Any, ...] = shown
