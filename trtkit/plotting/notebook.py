"""Notebooks and HTML pages: plotly figures that draw offline and without a kernel, and a progress line."""

from __future__ import annotations

import base64
import functools
import gzip
import html
import json
import sys
import time
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trtkit.html import asset, render
from trtkit.progress import Event

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from markupsafe import Markup

__all__ = [
    "MIMETYPE",
    "ProgressLine",
    "compressed_plotly",
    "figure_html",
    "format_stage",
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

_carrier: dict[str, str] = {}


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
        library: Include plotly.js (compressed, 2 MB); None includes it in one cell per notebook.
    """
    data = _figure_data(figure)
    include = _claim_library_cell() if library is None else library
    markup = (library_html() if include else "") + figure_html(data)
    return {MIMETYPE: data, "text/html": str(markup), "text/plain": f"Figure({_title(data)})"}


def library_html() -> Markup:
    """plotly.js, compressed (2 MB), for all figures of a page; shows nothing."""
    return render("plotting/templates/library.html.j2", library=base64.b64encode(compressed_plotly()).decode())


def library_html_once() -> str:
    """`library_html`; "" if another cell of the notebook has it."""
    return library_html() if _claim_library_cell() else ""


def plotly_loader() -> str:
    """JavaScript that defines `loadPlotly`, which resolves to the page's plotly.js."""
    return asset("plotting/plotly_loader.js")


@functools.cache
def plotly_url() -> str:
    """Address of plotly.js on plotly's own host."""
    from plotly.offline import get_plotlyjs_version

    return f"https://cdn.plot.ly/plotly-{get_plotlyjs_version()}.min.js"


@functools.cache
def compressed_plotly() -> bytes:
    """plotly.js, compressed by gzip."""
    from plotly.offline import get_plotlyjs

    return gzip.compress(get_plotlyjs().encode(), 9)


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
    from plotly.io.base_renderers import MimetypeRenderer

    class BundleRenderer(MimetypeRenderer):  # type: ignore[misc]  # plotly has no types
        """Renders figures by `mime_bundle`."""

        def to_mimebundle(self, figure: dict[str, Any]) -> dict[str, Any]:
            """As `mime_bundle`."""
            return mime_bundle(figure)

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


def _claim_library_cell() -> bool:
    """Whether this output includes plotly.js: the first one of its notebook, and that cell when it runs again."""
    if "IPython" not in sys.modules:
        return True
    from IPython.core.getipython import get_ipython

    shell: Any = get_ipython()
    parent = shell.get_parent() if hasattr(shell, "get_parent") else {}
    cell = str((parent.get("metadata") or {}).get("cellId") or "")
    run = str((parent.get("header") or {}).get("msg_id") or "")
    if _carrier and not (cell and cell == _carrier["cell"] and run != _carrier["run"]):
        return False
    _carrier.update(cell=cell, run=run)
    return True


REFRESH_SECONDS = 0.25


class ProgressLine:
    """Shows the progress of a long call below its cell: pass one as `progress`.

    A saved notebook keeps the last line.

    Attributes:
        text: The shown line; "" before the first event.
    """

    def __init__(self) -> None:
        self.text = ""
        self._handle: Any = None
        self._start_time = self._last_update = 0.0
        self._stage = ""

    def __call__(self, event: Event) -> None:
        """Show one event; events in quick succession are skipped, except the last one of a stage."""
        now = time.perf_counter()
        if self._handle is None:
            self._start_time = now
        is_last = event.total is not None and event.done >= event.total
        if event.stage == self._stage and not is_last and now - self._last_update < REFRESH_SECONDS:
            return
        self._stage, self._last_update = event.stage, now
        self.text = f"{format_stage(event)} · {now - self._start_time:.0f} s"
        self._show()

    def _show(self) -> None:
        from IPython.display import display
        from markupsafe import Markup

        # Opacity keeps the line readable on light and dark pages.
        markup = Markup("<span role='status' style='opacity:.7'>{}</span>").format(self.text)
        bundle = {"text/plain": self.text, "text/html": markup}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        if self._handle is not None:
            self._handle.update(bundle, raw=True)


def format_stage(event: Event) -> str:
    """The stage of an event, with "3 of 8" where its number of steps is known.

    Args:
        event: The event.
    """
    count = f" · {event.done} of {event.total}" if event.total is not None and event.total > 1 else ""
    return f"{event.stage}{count}"
