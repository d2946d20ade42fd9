"""Base of the tuner, the explorer, the dashboard and the gallery: a background job, an error box, and content."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ipywidgets

from trtkit.html import render
from trtkit.widgets.ui.controls import ErrorBox, catch_errors
from trtkit.widgets.ui.jobs import Job, JobView
from trtkit.widgets.ui.static_output import StaticOutput, style_widget

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["JobWidget", "make_section_title", "render_scrollable", "render_text"]


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
        self.children = (style_widget(), self.hiding_style, *heading, self.job_view, self.error_box, *content)

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
