"""Output of widgets: figures, static HTML for saved notebooks, and the base of widgets with a background job.

plotly's `FigureWidget` is not used: it loses updates made before the page has loaded it, carries 5 MB of plotly.js per
figure and takes seconds to import. `ClickableFigure` sends the whole figure and the page redraws it by `Plotly.react`.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets
from markupsafe import Markup

from trtkit.html import asset, render
from trtkit.plotting.notebook import compressed_plotly, library_html_once, mime_bundle, plotly_loader, plotly_url
from trtkit.widgets.ui.controls import ErrorBox, catch_errors
from trtkit.widgets.ui.jobs import Job, JobView

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = [
    "ClickableFigure",
    "FigureOutput",
    "JobWidget",
    "StaticOutput",
    "can_click",
    "make_accessible",
    "make_section_title",
    "render_folded",
    "render_scrollable",
    "render_text",
    "style_widget",
    "widget_css",
]

REFRESH_DELAY = 1.5
"""Seconds from a change to the refresh of the output; changes in between share one refresh."""


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


def make_accessible() -> ipywidgets.Widget:
    """An invisible child of a box of the class `trtkit`, which gives its controls roles, states and announcements.

    Toggle buttons, bars and sliders of ipywidgets say nothing of that to screen readers. Without anywidget it does
    nothing.
    """
    return _accessibility_class()() if can_click() else _invisible(Markup())


@functools.cache
def _accessibility_class() -> Any:
    import anywidget

    class Accessibility(anywidget.AnyWidget):
        _esm = asset("widgets/ui/accessibility.js")

    return Accessibility


@functools.cache
def widget_css() -> Markup:
    """The style of every widget and of its static output; it applies inside elements of the class `trtkit`."""
    return Markup(asset("widgets/ui/widgets.css") + asset("templates/enlarge.css"))


def style_widget() -> ipywidgets.HTML:
    """The style as an invisible widget, the first child of a box of the class `trtkit`."""
    return _invisible(Markup("<style>{}</style>").format(widget_css()))


def _invisible(markup: Markup) -> ipywidgets.HTML:
    return ipywidgets.HTML(markup, layout=ipywidgets.Layout(display="none"))


class StaticOutput(ipywidgets.VBox):
    """Base of widgets that leave their figures and tables in the notebook's file.

    A widget needs its kernel; the output displayed beside it is part of the notebook's file. `hiding_style` hides the
    output while the widget is shown, so that it appears only where the widget can't be: in a saved notebook that is
    opened again and in a page exported from it. plotly.js is in an output of its own, which is never refreshed: a page
    may render no other cell's output, or the other cell is deleted.

    Attributes:
        has_figures: Whether `static_parts` may hold figures.
        hiding_style: The style that hides the output; a child of the widget.
    """

    has_figures = True

    def __init__(self) -> None:
        super().__init__()
        self._static_name = f"trtkit-static-{uuid.uuid4().hex[:12]}"
        self._displayed = self._refresh_pending = False
        self.hiding_style = _invisible(Markup("<style>.{} {{ display: none; }}</style>").format(self._static_name))

    def static_parts(self) -> Sequence[go.Figure | str]:
        """Figures and HTML, in the order they are shown."""
        raise NotImplementedError

    def static_html(self) -> Markup:
        """`static_parts` as one piece of HTML, without plotly.js."""
        parts = [
            Markup(part if isinstance(part, str) else mime_bundle(part, library=False)["text/html"])
            for part in self.static_parts()
        ]
        return render(
            "widgets/ui/templates/static_output.html.j2", name=self._static_name, css=widget_css(), parts=parts
        )

    def refresh_static(self) -> None:
        """Refresh the output after `REFRESH_DELAY`, if it was displayed; at once where no event loop runs."""
        if not self._displayed or self._refresh_pending:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._refresh()
            return
        self._refresh_pending = True
        loop.call_later(REFRESH_DELAY, self._refresh)

    def display_in_kernel(self) -> None:
        """Display the widget below the running cell, unless it was displayed or no kernel runs."""
        ipython = sys.modules.get("IPython")
        if self._displayed or ipython is None or getattr(ipython.get_ipython(), "kernel", None) is None:
            return
        from IPython.display import display

        display(self)  # type: ignore[no-untyped-call]

    def _refresh(self) -> None:
        self._refresh_pending = False
        self._display(update=True)

    def _display(self, *, update: bool) -> None:
        from IPython.display import display

        data = {"text/html": self.static_html(), "text/plain": ""}
        display(data, raw=True, display_id=self._static_name, update=update)  # type: ignore[no-untyped-call]

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        from IPython.display import display

        if self.has_figures:
            library = library_html_once(needed=True)
            display({"text/html": library, "text/plain": ""}, raw=True)  # type: ignore[no-untyped-call]
        self._display(update=False)
        self._displayed = True
        bundle: dict[str, Any] = dict(super()._repr_mimebundle_(**kwargs) or {})
        # Without the widget the output is shown; the widget's text form would be noise.
        return {**bundle, "text/html": ""}


class JobWidget(StaticOutput):
    """A widget that runs one job at a time in the background and shows its errors.

    Args:
        name: Sets the CSS class `trtkit-<name>`.
        task: What the job does, for messages.

    Attributes:
        job_view: The job with its progress bar, its log and its Cancel button.
        error_box: Shows the last error.
    """

    def __init__(self, name: str, task: str) -> None:
        super().__init__()
        self.add_class("trtkit")
        self.add_class(f"trtkit-{name}")
        self.job_view = JobView(task, self._on_job_end)
        self.error_box = ErrorBox()
        self._updating = False
        self._set_content()

    def cancel(self) -> None:
        """Stop the running job at its next step."""
        self.job_view.job.cancel()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the job has ended; a keyboard interrupt cancels it first.

        Args:
            timeout: Longest wait, s; None waits without limit.

        Returns:
            Whether the job has ended.
        """
        return self.job_view.job.wait(timeout)

    def _set_content(self, *content: ipywidgets.Widget, heading: tuple[ipywidgets.Widget, ...] = ()) -> None:
        """Show `heading` above the job and `content` below it."""
        self.children = (
            style_widget(),
            self.hiding_style,
            make_accessible(),
            *heading,
            self.job_view,
            self.error_box,
            *content,
        )

    def _on_job_end(self, job: Job[Any]) -> None:
        raise NotImplementedError

    def _restore_controls(self) -> None:
        """Set the controls to the current state after a rejected change."""
        raise NotImplementedError

    def _guard(self, call: Callable[..., Any]) -> Callable[..., None]:
        """A callback that shows the error of `call` and restores the controls after one."""
        guarded = catch_errors(self.error_box.show)(call)

        def run(*arguments: Any) -> None:
            guarded(*arguments)
            if self.error_box.value:
                self._restore_controls()

        return run

    def _observe(self, control: ipywidgets.ValueWidget, call: Callable[..., Any], keyword: str) -> None:
        """Pass new values of a control to `call` by keyword, except those that the widget sets while `_updating`."""
        guarded = self._guard(lambda value: call(**{keyword: value}))
        control.observe(lambda change: None if self._updating else guarded(change["new"]), "value")


def render_scrollable(content: Markup) -> Markup:
    """Put a long table into a box that scrolls.

    Args:
        content: HTML.
    """
    return render("widgets/ui/templates/scroll.html.j2", content=content)


def render_folded(title: str, content: str) -> Markup:
    """Fold content below a title.

    Args:
        title: Plain text.
        content: HTML.
    """
    return render("widgets/ui/templates/folded.html.j2", title=title, content=Markup(content))


def render_text(text: str) -> Markup:
    """A quiet paragraph.

    Args:
        text: Plain text.
    """
    return render("widgets/ui/templates/text.html.j2", text=text)


def make_section_title(title: str) -> ipywidgets.HTML:
    """The title of a section of a widget.

    Args:
        title: Plain text.
    """
    return ipywidgets.HTML(render("widgets/ui/templates/section.html.j2", title=title))
