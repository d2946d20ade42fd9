"""Notebooks and HTML pages: plotly figures that draw offline and without a kernel."""

from __future__ import annotations

import base64
import functools
import gzip
import html
import json
import re
import sys
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trtkit.html import asset, asset_bytes, render

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from markupsafe import Markup

__all__ = [
    "MIMETYPE",
    "compressed_plotly",
    "figure_html",
    "library_html",
    "library_html_once",
    "mime_bundle",
    "plotly_loader",
    "plotly_url",
    "register_renderer",
    "show_figure",
]

MIMETYPE = "application/vnd.plotly.v1+json"

# plotly's own choices in a notebook. A saved page shows nothing of the first; the second puts 5 MB of uncompressed
# library into the notebook.
DEFAULT_RENDERERS = ("plotly_mimetype", "plotly_mimetype+notebook")

DEFAULT_HEIGHT = 450
"""Height that plotly gives a figure without one, pixels."""

TRACE_TYPES = frozenset(
    ("bar", "box", "contour", "heatmap", "histogram", "histogram2d", "histogram2dcontour", "image", "pie", "scatter",
     "scatterternary", "violin")
)  # fmt: skip
"""What the embedded plotly.js draws: its cartesian bundle, a third of the whole."""

LIBRARY_COPIES = 2
"""Cells of figures that include plotly.js, so that a saved notebook draws after one of them was deleted."""

_library_cells: dict[str, str] = {}
"""The run of each cell whose output includes plotly.js, by the cell's id."""


def figure_html(figure: go.Figure | Mapping[str, Any], *, css: str = "", toolbar: bool = True) -> Markup:
    """A figure as HTML that draws itself once the page has plotly.js, as `library_html` brings it.

    A page without it loads plotly.js from plotly's own host.

    Args:
        figure: A figure or its dict.
        css: CSS class of the element.
        toolbar: Whether plotly's toolbar appears.
    """
    data = _figure_data(figure)
    return render(
        "plotting/templates/figure.html.j2",
        name=f"trtkit-{uuid.uuid4().hex[:12]}",
        css=css,
        height=data["layout"].get("height") or DEFAULT_HEIGHT,
        title=_title(data),
        figure={"data": data["data"], "layout": data["layout"]},
        code=_draw_code(),
        host=plotly_url(),
        options={"responsive": True, "displaylogo": False, **({} if toolbar else {"displayModeBar": False})},
    )


def mime_bundle(figure: go.Figure | Mapping[str, Any], *, library: bool | None = None) -> dict[str, Any]:
    """A figure as a MIME bundle: plotly's type for live notebooks, HTML for saved ones.

    Args:
        figure: A figure or its dict.
        library: Include plotly.js (compressed, 0.7 MB); None includes it in `LIBRARY_COPIES` cells per notebook.
    """
    data = _figure_data(figure)
    markup = (library_html_once() if library is None else library_html() if library else "") + figure_html(data)
    return {MIMETYPE: data, "text/html": str(markup), "text/plain": f"Figure({_title(data)})"}


def library_html() -> Markup:
    """plotly.js, compressed (0.7 MB), for all figures of a page; shows nothing."""
    return render("plotting/templates/library.html.j2", library=base64.b64encode(compressed_plotly()).decode())


def library_html_once(*, needed: bool = False) -> str:
    """`library_html`; "" if the cell or `LIBRARY_COPIES` others of the notebook have it, as far as the kernel knows.

    JupyterLab draws a cell's figures itself and renders no HTML of them, so that a widget's output beside them finds no
    plotly.js there.

    Args:
        needed: Include it whatever other cells and outputs have.
    """
    return library_html() if _claim_library_cell(needed=needed) else ""


def plotly_loader() -> str:
    """JavaScript that defines `loadPlotly`, which resolves to the page's plotly.js."""
    return asset("plotting/plotly_loader.js")


@functools.cache
def plotly_url() -> str:
    """Address of the embedded plotly.js on plotly's own host."""
    version = re.search(rb"v(\d+\.\d+\.\d+)", gzip.decompress(compressed_plotly())[:200])
    assert version is not None
    return f"https://cdn.plot.ly/plotly-cartesian-{version[1].decode()}.min.js"


@functools.cache
def compressed_plotly() -> bytes:
    """plotly.js's cartesian bundle (`TRACE_TYPES`), compressed by gzip."""
    return asset_bytes("plotting/plotly-cartesian.min.js.gz")


def show_figure(figure: go.Figure) -> None:
    """Display a figure as a cell's output that is drawn without a kernel too."""
    from IPython.display import display

    display(mime_bundle(figure), raw=True)  # type: ignore[no-untyped-call]


def register_renderer() -> None:
    """Display figures by `mime_bundle` in a notebook, so that saved notebooks show them.

    Does nothing outside a notebook, or if another plotly renderer was chosen.
    """
    if "ipykernel" not in sys.modules:
        return
    import plotly.io as pio

    if pio.renderers.default not in DEFAULT_RENDERERS:
        return
    from plotly.io.base_renderers import PlotlyRenderer

    class BundleRenderer(PlotlyRenderer):  # type: ignore[misc]  # plotly has no types
        """Renders figures by `mime_bundle`, and those that the embedded plotly.js does not draw as plotly does."""

        def to_mimebundle(self, figure: dict[str, Any]) -> dict[str, Any]:
            """As `mime_bundle`."""
            kinds = {trace.get("type", "scatter") for trace in figure.get("data", ())}
            bundle: dict[str, Any] = mime_bundle(figure) if kinds <= TRACE_TYPES else super().to_mimebundle(figure)
            return bundle

    pio.renderers["trtkit"] = BundleRenderer()
    pio.renderers.default = "trtkit"


def _figure_data(figure: go.Figure | Mapping[str, Any]) -> dict[str, Any]:
    from plotly.io import to_json

    data: dict[str, Any] = json.loads(to_json(figure, validate=False))
    return {**data, "layout": data.get("layout") or {}}


def _title(data: Mapping[str, Any]) -> str:
    # A figure's texts are escaped for plotly; this one is read elsewhere.
    return html.unescape(str((data["layout"].get("title") or {}).get("text") or "figure"))


@functools.cache
def _draw_code() -> Markup:
    from markupsafe import Markup

    return Markup(f"{plotly_loader()}{asset('plotting/draw_figure.js')}")


def _claim_library_cell(*, needed: bool) -> bool:
    """Whether this output includes plotly.js; if so, its cell is noted."""
    if "IPython" not in sys.modules:
        return True
    from IPython.core.getipython import get_ipython

    shell: Any = get_ipython()
    parent = shell.get_parent() if hasattr(shell, "get_parent") else {}
    metadata = parent.get("metadata") or {}
    run = str((parent.get("header") or {}).get("msg_id") or "")
    cell = str(metadata.get("cellId") or run)
    if shell is not None and _forget_cleared_cell not in shell.events.callbacks["pre_run_cell"]:
        shell.events.register("pre_run_cell", _forget_cleared_cell)
    for deleted in metadata.get("deletedCells") or ():
        _library_cells.pop(str(deleted), None)
    if _library_cells.get(cell) == run:
        return needed
    _library_cells.pop(cell, None)
    if needed or len(_library_cells) < LIBRARY_COPIES:
        _library_cells[cell] = run
        return True
    return False


def _forget_cleared_cell(info: Any) -> None:
    """A cell that runs again loses its outputs, and perhaps shows no figure this time."""
    _library_cells.pop(str(getattr(info, "cell_id", None)), None)
