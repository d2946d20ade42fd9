"""Progress of tasks: what a worker reports while it works reaches the callback of the process that waits for it."""

from __future__ import annotations

import collections
import contextvars
import dataclasses
import pickle
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trtkit.progress import Event, Progress

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["EventSender", "Subscription", "get_sender", "sending_to"]

SEND_SECONDS = 0.2
"""Least time between two events that only count on within a stage."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EventSender:
    """Where the events of a task go.

    Attributes:
        topic: The client's topic of Dask.
        run: The run that waits for the task.
    """

    topic: str
    run: str

    def make_progress(self) -> Progress:
        """A progress callback for a task: it sends each new stage and message, and steps in between now and then."""
        from distributed import get_worker

        worker, last, sent = get_worker(), "", 0.0

        def send(event: Event) -> None:
            nonlocal last, sent
            now = time.monotonic()
            if event.stage == last and not event.message and now - sent < SEND_SECONDS:
                return
            last, sent = event.stage, now
            worker.log_event(self.topic, {"run": self.run, "event": pickle.dumps(event)})

        return send


_SENDER = contextvars.ContextVar[EventSender]("trtkit_event_sender")


def get_sender() -> EventSender:
    """Where the events of the task of this thread go."""
    return _SENDER.get()


def sending_to(sender: EventSender, function: Callable[[], Any]) -> Any:
    """Call a function whose events go to a sender.

    Args:
        sender: Where they go.
        function: The work.
    """
    token = _SENDER.set(sender)
    try:
        return function()
    finally:
        _SENDER.reset(token)


class Subscription:
    """The events of one run, in the process that waits for it.

    Args:
        client: The client of the run.
        run: Name of the run.

    Attributes:
        sender: What its tasks send to.
    """

    def __init__(self, client: Client, run: str) -> None:
        self.sender = EventSender(topic=f"trtkit-progress-{client.id}", run=run)
        self._waiting: collections.deque[bytes] = collections.deque()
        with _LOCK:
            # A topic has one handler in a client, and the scheduler keeps the last events of each topic for good.
            if client not in _RUNS:
                _RUNS[client] = weakref.WeakValueDictionary()
                client.subscribe_topic(self.sender.topic, _make_handler(_RUNS[client]))
            _RUNS[client][run] = self

    def add(self, event: bytes) -> None:
        """Keep an event until it is taken; called by Dask's thread.

        Args:
            event: Pickled.
        """
        self._waiting.append(event)

    def take(self) -> list[Event]:
        """The events since the last call."""
        # More may come meanwhile.
        return [pickle.loads(self._waiting.popleft()) for _ in range(len(self._waiting))]


_LOCK = threading.Lock()
_RUNS: weakref.WeakKeyDictionary[Any, weakref.WeakValueDictionary[str, Subscription]] = weakref.WeakKeyDictionary()
"""Runs that wait for events, by client and name."""


def _make_handler(runs: weakref.WeakValueDictionary[str, Subscription]) -> Callable[[tuple[float, Any]], None]:
    def handle(event: tuple[float, Any]) -> None:
        run = runs.get(event[1]["run"])
        if run is not None:
            run.add(event[1]["event"])

    return handle
