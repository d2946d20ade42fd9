"""A job as a user sees it: what it does, how far it is, what it said, and a button that stops it."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets

from trtkit.progress import Event
from trtkit.widgets.controls import Fault, button
from trtkit.widgets.jobs import Job

__all__ = ["JobView"]

# Ten frames a second are enough for a bar, and a slow connection carries them.
REFRESH = 0.1

LINES = 200


class JobView(ipywidgets.VBox):
    """A job's bar, its log and its Cancel button; hidden until the job first runs.

    Args:
        name: What runs, for messages.
        ended: Receives the job when it has ended, in whatever state.

    Attributes:
        job: The job.
        stage: An `ipywidgets.HTML` that says what is being done.
        bar: The progress bar.
        messages: An `ipywidgets.HTML` with the job's log.
        cancel: The button.
        fault: The error of a failed job.
    """

    def __init__(self, name: str = "work", ended: Callable[[Job[Any]], None] | None = None) -> None:
        self.job: Job[Any] = Job(name, on_event=self._received, on_state=self._changed)
        self.ended = ended
        self.stage = ipywidgets.HTML()
        self.stage.add_class("trtkit-stage")
        self.bar = ipywidgets.IntProgress(
            value=0, max=1, tooltip="progress of this stage", layout=ipywidgets.Layout(width="min(28rem, 60%)")
        )
        self.bar.add_class("trtkit-bar")
        self.cancel = button("Cancel", "Stop at the next step; nothing is left half-written", self._stop, name="cancel")
        self.messages = ipywidgets.HTML()
        self.messages.add_class("trtkit-messages")
        self.fault = Fault()
        self._shown = 0.0
        row = ipywidgets.HBox([self.bar, self.cancel], layout=ipywidgets.Layout(align_items="center"))
        super().__init__([self.stage, row, self.messages, self.fault], layout=ipywidgets.Layout(display="none"))
        self.add_class("trtkit-job")

    def start(self, call: Callable[..., Any], /, *arguments: Any, **settings: Any) -> None:
        """As `Job.start`."""
        self.job.start(call, *arguments, **settings)

    def _stop(self) -> None:
        self.job.cancel()

    def _changed(self, job: Job[Any]) -> None:
        self.layout.display = ""
        self.cancel.disabled = not job.running or job.cancelling
        for control in (self.bar, self.cancel):
            control.layout.display = "" if job.running else "none"
        self.fault.show(job.error)
        if job.cancelling:
            self.stage.value = "Stopping after this step …"
            return
        if job.running:
            self.stage.value, self.messages.value = f"Starting {html.escape(job.name)} …", ""
            self.bar.value, self._shown = 0, 0.0
            return
        self.stage.value = {
            "done": f"✓ Done in {job.seconds:.1f} s",
            "failed": f"✕ Failed after {job.seconds:.1f} s",
            "cancelled": f"Cancelled after {job.seconds:.1f} s; nothing was left half-written.",
        }[job.state]
        self._write_log(job.log, folded=job.state == "done")
        if self.ended is not None:
            self.ended(job)

    def _received(self, event: Event) -> None:
        now = time.perf_counter()
        last = event.total is not None and event.done >= event.total
        if now - self._shown < REFRESH and not event.message and not last:
            return
        self._shown = now
        count = f" · {event.done} of {event.total}" if event.total is not None and event.total > 1 else ""
        if not self.job.cancelling:
            self.stage.value = f"{html.escape(event.stage)}{count}"
        self.bar.max, self.bar.value = max(1, event.total or 1), event.done
        if event.message:
            self._write_log(self.job.log)

    def _write_log(self, lines: Sequence[str], *, folded: bool = False) -> None:
        if not lines:
            self.messages.value = ""
            return
        text = html.escape("\n".join(lines[-LINES:]))
        box = f"<div class='trtkit-log' role='log' tabindex='0'>{text}</div>"
        # Notes are warnings: they stay in sight.
        folded = folded and not any(line.startswith("note: ") for line in lines)
        self.messages.value = f"<details><summary>Log</summary>{box}</details>" if folded else box
