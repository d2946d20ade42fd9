"""Events as one line below a cell, rewritten in place; what is left in a saved notebook is the last one."""

from __future__ import annotations

import html
import time
from typing import Any

from trtkit.progress import Event

__all__ = ["ProgressLine"]

# Four lines a second read as movement, and no front end is busy with them.
REFRESH = 0.25


class ProgressLine:
    """A receiver of events for a notebook: pass one as `progress` of a long call.

    Attributes:
        text: What it shows, "" before the first event.
    """

    def __init__(self) -> None:
        self.text = ""
        self._handle: Any = None
        self._begun = self._shown = 0.0
        self._stage = ""

    def __call__(self, event: Event) -> None:
        """Show one event."""
        now = time.perf_counter()
        if self._handle is None:
            self._begun = now
        last = event.total is not None and event.done >= event.total
        if event.stage == self._stage and not last and now - self._shown < REFRESH:
            return
        self._stage, self._shown = event.stage, now
        count = f" · {event.done} of {event.total}" if event.total is not None and event.total > 1 else ""
        self.text = f"{event.stage}{count} · {now - self._begun:.0f} s"
        self._show()

    def _show(self) -> None:
        from IPython.display import display

        bundle = {
            "text/plain": self.text,
            # Half-see-through ink reads on light and dark pages alike.
            "text/html": f"<span role='status' style='opacity:.7'>{html.escape(self.text)}</span>",
        }
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        if self._handle is not None:
            self._handle.update(bundle, raw=True)
