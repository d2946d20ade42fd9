"""plotly figures in a notebook, in a widget and in what is left of both when the kernel is gone."""

from __future__ import annotations

import base64
import functools
import gzip
import html
import json
import uuid
from typing import TYPE_CHECKING, Any

import ipywidgets

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Picture", "bundle", "show"]

MIMETYPE = "application/vnd.plotly.v1+json"

CDN = "https://cdn.plot.ly/plotly-{version}.min.js"

# Draws once the library is there: brought by this output, by an earlier one of the same page, or by the network.
SCRIPT = """(async () => {{
  const place = document.getElementById("{name}");
  const packed = document.getElementById("{name}-library");
  const page = window;
  page.trtkitPlotly ||= new Promise((ready, fail) => {{
    if (page.Plotly) return ready(page.Plotly);
    const take = (code) => {{
      const tag = document.createElement("script");
      const define = page.define; page.define = undefined;
      if (code) tag.text = code;
      else {{ tag.src = "{cdn}"; tag.onload = () => ready(page.Plotly); tag.onerror = fail; }}
      document.head.appendChild(tag);
      page.define = define;
      if (code) ready(page.Plotly);
    }};
    const carried = document.querySelector("[data-trtkit-library]");
    if (!carried) return take(null);
    const bytes = Uint8Array.from(atob(carried.textContent), (letter) => letter.charCodeAt(0));
    new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text().then(take, fail);
  }});
  const Plotly = await page.trtkitPlotly;
  const figure = JSON.parse(place.querySelector("script").textContent);
  place.textContent = "";
  Plotly.newPlot(place, figure.data, figure.layout, {{responsive: true, displaylogo: false}});
}})();"""

_carried = False


def bundle(figure: go.Figure, *, library: bool | None = None) -> dict[str, Any]:
    """A figure as a MIME bundle: plotly's own type for live notebooks, and HTML that draws itself in saved ones.

    Args:
        figure: What to show.
        library: Carry plotly.js along (compressed, 2 MB); None carries it in the first figure of a kernel alone, which
            serves every other figure of the notebook. A page without it fetches the library from plotly's own host.
    """
    global _carried
    carry = not _carried if library is None else library
    _carried = _carried or carry
    name = f"trtkit-{uuid.uuid4().hex[:12]}"
    data = json.loads(figure.to_json())
    plain = json.dumps({"data": data["data"], "layout": data["layout"]}).replace("</", "<\\/")
    height = (data["layout"] or {}).get("height") or 450
    title = figure.layout.title.text or "figure"
    carried = f"<script type='text/plain' data-trtkit-library>{_library()}</script>" if carry else ""
    code = SCRIPT.format(name=name, cdn=CDN.format(version=_version()))
    markup = (
        f"{carried}<div id='{name}' style='width:100%;height:{height}px' role='img' "
        f"aria-label='{html.escape(title, quote=True)}'>"
        f"<script type='application/json'>{plain}</script></div><script>{code}</script>"
    )
    return {MIMETYPE: data, "text/html": markup, "text/plain": f"Figure({title})"}


class Picture(ipywidgets.Output):
    """A place in a widget that shows one figure and may be given another from any thread."""

    def __init__(self, figure: go.Figure | None = None) -> None:
        super().__init__()
        self.add_class("trtkit-figure")
        self.draw(figure)

    def draw(self, figure: go.Figure | None) -> None:
        """Show `figure`, or nothing."""
        self.figure = figure
        shown = () if figure is None else ({"output_type": "display_data", "data": bundle(figure), "metadata": {}},)
        # Setting the trait, unlike `with output:`, captures no other thread's prints.
        self.outputs: tuple[Any, ...] = shown


def show(figure: go.Figure) -> None:
    """Display a figure as a cell's output that outlives the kernel: saved, exported and offline."""
    from IPython.display import display

    display(bundle(figure), raw=True)  # type: ignore[no-untyped-call]


@functools.cache
def _library() -> str:
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9)).decode()


@functools.cache
def _version() -> str:
    from plotly.offline import get_plotlyjs_version

    return str(get_plotlyjs_version())
