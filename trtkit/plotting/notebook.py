"""plotly figures in a notebook, and in what is left of it once the kernel is gone: saved, exported, offline."""

from __future__ import annotations

import base64
import functools
import gzip
import html
import json
import sys
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["library_html_once", "mime_bundle", "register_renderer", "show_figure"]

MIMETYPE = "application/vnd.plotly.v1+json"

# What plotly chooses by itself in a notebook. A saved page shows nothing of the first, and the second puts 5 MB of
# uncompressed library into the notebook.
DEFAULT_RENDERERS = ("plotly_mimetype", "plotly_mimetype+notebook")

CDN = "https://cdn.plot.ly/plotly-{version}.min.js"

# Draws once the library is there: brought by an output of the same page, or by the network.
SCRIPT = """(async () => {{
  const page = window, place = document.getElementById("{name}");
  page.trtkitPlotly ||= new Promise((ready, fail) => {{
    if (page.Plotly) return ready(page.Plotly);
    const tag = document.createElement("script"), define = page.define;
    page.define = undefined;
    const carried = document.querySelector("[data-trtkit-library]");
    if (!carried) {{
      Object.assign(tag, {{src: "{cdn}", onload: () => ready(page.Plotly), onerror: fail}});
      return document.head.appendChild(tag);
    }}
    const bytes = Uint8Array.from(atob(carried.textContent), (letter) => letter.charCodeAt(0));
    new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text().then((code) => {{
      tag.text = code; document.head.appendChild(tag); page.define = define; ready(page.Plotly);
    }}, fail);
  }});
  const Plotly = await page.trtkitPlotly;
  const figure = JSON.parse(place.querySelector("script").textContent);
  place.textContent = "";
  Plotly.newPlot(place, figure.data, figure.layout, {{responsive: true, displaylogo: false}});
}})();"""

HEIGHT = 450
"""plotly's own height of a figure that names none, pixels."""

_carrier: dict[str, str] = {}


def mime_bundle(figure: go.Figure | Mapping[str, Any], *, library: bool | None = None) -> dict[str, Any]:
    """A figure as a MIME bundle: plotly's own type for live notebooks, and HTML that draws itself in saved ones.

    Args:
        figure: What to show, or its dict.
        library: Carry plotly.js along (compressed, 2 MB); None lets one cell of a notebook carry it for all. A page
            that has it nowhere fetches it from plotly's own host.
    """
    from plotly.io import to_json

    data = json.loads(to_json(figure, validate=False))
    layout = data.get("layout") or {}
    name = f"trtkit-{uuid.uuid4().hex[:12]}"
    title = (layout.get("title") or {}).get("text") or "figure"
    plain = json.dumps({"data": data["data"], "layout": layout}).replace("</", "<\\/")
    carry = _claim_library_cell() if library is None else library
    markup = (
        (_library_tag() if carry else "")
        + f"<div id='{name}' style='width:100%;height:{layout.get('height') or HEIGHT}px' role='img' "
        f"aria-label='{html.escape(title, quote=True)}'>"
        f"<script type='application/json'>{plain}</script></div>"
        f"<script>{SCRIPT.format(name=name, cdn=CDN.format(version=_version()))}</script>"
    )
    return {MIMETYPE: data, "text/html": markup, "text/plain": f"Figure({title})"}


def library_html_once() -> str:
    """HTML that shows nothing and carries plotly.js (compressed, 2 MB); "" where another cell of the notebook does."""
    return _library_tag() if _claim_library_cell() else ""


def library_html() -> str:
    """plotly.js, compressed, for every figure of the page that this HTML is part of; 2 MB."""
    return f"<script type='text/plain' data-trtkit-library>{_compressed_library()}</script>"


def show_figure(figure: go.Figure) -> None:
    """Display a figure as a cell's output that outlives the kernel."""
    from IPython.display import display

    display(mime_bundle(figure), raw=True)  # type: ignore[no-untyped-call]


def register_renderer() -> None:
    """In a notebook, let every figure that a cell displays outlive the kernel.

    Does nothing outside a notebook, or where another renderer of plotly's was chosen.
    """
    if "ipykernel" not in sys.modules:
        return
    import plotly.io as pio

    if pio.renderers.default not in DEFAULT_RENDERERS:
        return
    from plotly.io.base_renderers import MimetypeRenderer

    class Kept(MimetypeRenderer):  # type: ignore[misc]  # plotly has no types
        """plotly's name for a function from a figure to a MIME bundle."""

        def to_mimebundle(self, figure: dict[str, Any]) -> dict[str, Any]:
            """As `mime_bundle`."""
            return mime_bundle(figure)

    pio.renderers["trtkit"] = Kept()
    pio.renderers.default = "trtkit"


def _claim_library_cell() -> bool:
    """Whether this output is the one to carry the library: the first of its notebook, also when its cell runs again."""
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


def _library_tag() -> str:
    return f"<script type='text/plain' data-trtkit-library>{_compressed_library()}</script>"


@functools.cache
def _compressed_library() -> str:
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9)).decode()


@functools.cache
def _version() -> str:
    from plotly.offline import get_plotlyjs_version

    return str(get_plotlyjs_version())
