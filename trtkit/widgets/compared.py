"""A widget about a comparison: one that is given, one that lies in a folder, or the demo's, made in the background."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets

from trtkit.judgement.comparison import Comparison
from trtkit.widgets.comparison_state import demo_comparison, given_comparison
from trtkit.widgets.controls import Fault
from trtkit.widgets.faults import guarded
from trtkit.widgets.job_view import JobView
from trtkit.widgets.saved import Saved
from trtkit.widgets.style import sheet

__all__ = ["Compared"]


class Compared(Saved):
    """The common frame of dashboard and gallery.

    Args:
        source: A comparison, or its folder; None takes what `trtkit demo` left, else compares the embedded model.
        name: Gives the class `trtkit-<name>`.

    Attributes:
        work: The job that compares where nothing was given.
        fault: Where errors are shown.
    """

    def __init__(self, source: Comparison | str | Path | None, name: str) -> None:
        super().__init__()
        self.add_class("trtkit")
        self.add_class(f"trtkit-{name}")
        self.work = JobView("compare the embedded model", self._ended)
        self.fault = Fault()
        self.children = (sheet(), self.hidden, self.work, self.fault)
        found = given_comparison(source)
        if found is None:
            self.work.start(demo_comparison)
        else:
            self.fill(found)

    def fill(self, comparison: Comparison) -> None:
        """Show a comparison."""
        self.children = (sheet(), self.hidden, self.work, self.fault, *self.parts(comparison))
        self.renew()

    def parts(self, comparison: Comparison) -> list[ipywidgets.Widget]:
        """The widgets that show a comparison, made anew."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Stop the comparison that runs, at its next step."""
        self.work.job.cancel()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until what runs has ended; an interrupt cancels it first. See `Job.wait`."""
        return self.work.job.wait(timeout)

    def _ended(self, job: Any) -> None:
        if job.state == "done":
            self.work.layout.display = "none"
            guarded(self.fault.show)(self.fill)(job.result)

    def _asked(self, call: Callable[..., Any], settle: Callable[[], Any]) -> Callable[..., None]:
        """What a control calls: an error is shown, and the controls fall back to what holds."""
        shown = guarded(self.fault.show)(call)

        def asked(*arguments: Any) -> None:
            shown(*arguments)
            if self.fault.value:
                settle()

        return asked
