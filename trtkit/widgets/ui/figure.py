"""A figure in a widget that changes in place and whose points can be clicked.

plotly's own `FigureWidget` is not used: changes made before the page has loaded it are lost, each figure brings its own
5 MB of library, and importing it takes seconds. Here the page always has the whole figure, draws what differs by
`Plotly.react`, and gets the library once.
"""

from __future__ import annotations

import functools
import gzip
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ipywidgets

from trtkit.plotting.notebook import mime_bundle
from trtkit.widgets.ui.controls import catch_errors

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["ClickableFigure", "FigureOutput", "can_click"]


# A plotly figure in a widget.


class FigureOutput(ipywidgets.Output):
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
        data = None if figure is None else mime_bundle(figure, library=False)
        shown = () if data is None else ({"output_type": "display_data", "data": data, "metadata": {}},)
        # Setting the trait, unlike `with output:`, captures no other thread's prints.
        self.outputs: tuple[Any, ...] = shown


# One promise a page, which figures outside of widgets share (see `trtkit.plotting.notebook`): kept by the first figure
# that brings the library along, or after a while by plotly's own host, where a page has lost its kernel.
SCRIPT = """
function library(model) {
  const page = window;
  if (page.Plotly) return Promise.resolve(page.Plotly);
  if (!page.trtkitPlotly) {
    page.trtkitPlotly = new Promise((ready) => { page.trtkitPlotlyReady = ready; });
    setTimeout(() => { if (!page.Plotly) {
      const tag = document.createElement("script"), define = page.define;
      page.define = undefined;
      Object.assign(tag, { src: model.get("host"), onload: () => { page.define = define; given(page.Plotly); } });
      document.head.appendChild(tag);
    } }, 15000);
  }
  const packed = model.get("library");
  if (packed && packed.byteLength && page.trtkitPlotlyReady && !page.trtkitPlotlyLoading) {
    page.trtkitPlotlyLoading = true;
    const text = new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
    text.then((code) => {
      const tag = document.createElement("script"), define = page.define;
      page.define = undefined;
      tag.text = code;
      document.head.appendChild(tag);
      page.define = define;
      given(page.Plotly);
    });
  }
  return page.trtkitPlotly;
}

function given(plotly) { window.trtkitPlotlyReady?.(plotly); }

async function render({ model, el }) {
  const place = document.createElement("div");
  place.style.width = "100%";
  const parse = () => JSON.parse(model.get("figure") || "null");
  const named = (figure) => {
    place.style.minHeight = `${figure.layout.height ?? 450}px`;
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", model.get("told"));
  };
  const first = parse();
  if (first) named(first);
  el.appendChild(place);
  const options = { responsive: true, displaylogo: false, displayModeBar: false };
  const plotly = await library(model);
  let listening = false;
  const draw = async () => {
    const figure = parse();
    if (!figure) return;
    named(figure);
    await plotly.react(place, figure.data, { ...figure.layout, autosize: true }, options);
    if (listening) return;
    listening = true;
    place.on("plotly_click", (event) => {
      const point = event.points[0];
      if (point?.customdata !== undefined) model.send({ kind: "click", data: point.customdata });
    });
  };
  model.on("change:figure", draw);
  await draw();
  const observer = new ResizeObserver(() => { if (place.offsetWidth && listening) plotly.Plots.resize(place); });
  observer.observe(place);
  return () => { observer.disconnect(); model.off("change:figure", draw); plotly.purge(place); };
}

export default { render };
"""


def can_click() -> bool:
    """Whether figures can change in place and be clicked here, which needs anywidget."""
    try:
        import anywidget  # noqa: F401
    except ImportError:
        return False
    return True


class ClickableFigure(ipywidgets.VBox):
    """A figure whose points can be clicked; a plain image of it where anywidget is missing.

    Args:
        name: Gives the class `trtkit-<name>`.
        clicked: Receives the `customdata` of a clicked point; None for a figure that nothing follows from.
        show: Shows what `clicked` raises, as `trtkit.widgets.ui.controls.catch_errors` wants it.
        click: Whether points can be clicked; None asks `can_click`.
        carry: Bring the library along; one figure of a widget does.

    Attributes:
        clickable: Whether points can be clicked.
        figure: What is shown, or None.
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
        self._clicked = on_click if on_click is None or show_error is None else catch_errors(show_error)(on_click)
        self._place: Any = (
            _figure_widget_class()(name, self._on_message, carry=include_plotlyjs) if self.clickable else FigureOutput()
        )
        self.children = (self._place,)

    def draw(self, figure: go.Figure) -> None:
        """Show a figure in the place of the one before."""
        self.figure = figure
        if not self.clickable:
            self._place.draw(figure)
            return
        from plotly.io import to_json

        self._place.figure = to_json(figure, validate=False)

    def click(self, data: Any) -> None:
        """Do what a click on a point with this `customdata` does."""
        if self._clicked is not None:
            self._clicked(data)

    def _on_message(self, message: Any) -> None:
        """What the page sent."""
        if isinstance(message, dict) and message.get("kind") == "click":
            self.click(message.get("data"))


@functools.cache
def _figure_widget_class() -> Any:
    """The widget's class, made when it is first needed: importing anywidget takes a while."""
    import anywidget
    import traitlets
    from plotly.offline import get_plotlyjs_version

    class Plot(anywidget.AnyWidget):
        """A figure as JSON, and the library that draws it.

        Args:
            told: What it is called by screen readers.
            receive: Receives what the page sends.
            carry: Bring the library along.
        """

        _esm = SCRIPT
        figure = traitlets.Unicode().tag(sync=True)
        told = traitlets.Unicode().tag(sync=True)
        library = traitlets.Bytes().tag(sync=True)
        host = traitlets.Unicode(f"https://cdn.plot.ly/plotly-{get_plotlyjs_version()}.min.js").tag(sync=True)

        def __init__(self, told: str, receive: Callable[[Any], None], *, carry: bool) -> None:
            super().__init__(told=f"{told} figure", library=_compressed_plotlyjs() if carry else b"")
            self.on_msg(lambda _, message, buffers: receive(message))

    return Plot


@functools.cache
def _compressed_plotlyjs() -> bytes:
    """plotly.js, compressed."""
    from plotly.offline import get_plotlyjs

    return gzip.compress(get_plotlyjs().encode(), 6)
