"""ProgressLine: progress events as one line below a notebook cell, updated in place."""

from __future__ import annotations

import time
from typing import Any

from trtkit.progress import Event

__all__ = ["ProgressLine", "format_stage"]

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
