"""What is left of a widget when its kernel is gone: its figures and tables as they stood when it was displayed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets

from trtkit.display import bundle
from trtkit.widgets.style import STYLE

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Saved"]


class Saved(ipywidgets.VBox):
    """A widget whose output also holds still figures and tables, for exported pages and for readers of the file.

    A live notebook shows the widget. Where it can't be had any more, as in a page that was exported without widgets,
    the HTML beside it is shown. `show` puts the same below a cell as an output of its own, as it stands then.
    """

    def still(self) -> Sequence[go.Figure | str]:
        """Figures and HTML in the order to show them."""
        raise NotImplementedError

    def still_html(self) -> str:
        """`still` as one piece of HTML that draws itself offline."""
        parts = [part if isinstance(part, str) else str(bundle(part)["text/html"]) for part in self.still()]
        return f"<style>{STYLE}</style><div class='trtkit'>{''.join(parts)}</div>"

    def show(self) -> None:
        """Display figures and tables as they stand, as an output that outlives the kernel."""
        from IPython.display import HTML, display

        display(HTML(self.still_html()))  # type: ignore[no-untyped-call]

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        found: dict[str, Any] = dict(super()._repr_mimebundle_(**kwargs) or {})
        return {**found, "text/html": self.still_html()}
