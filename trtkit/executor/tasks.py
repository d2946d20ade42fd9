"""Tasks, as they run in a worker."""

from __future__ import annotations

import collections
import pickle
import threading
import warnings
from typing import Any

from trtkit.executor.facts import WorkerFacts, describe_worker
from trtkit.executor.task_events import EventSender, get_sender, sending_to
from trtkit.progress import Reporter

__all__ = ["StopToken", "keep", "make_task_reporter", "run_task"]

CACHED_STATES = 2
"""Models that a worker process holds open at the same time."""


class StopToken:
    """A cancellation token for work inside a task: set once the caller cancelled it, or another worker did it."""

    def __init__(self) -> None:
        from distributed import get_worker

        self._worker = get_worker()
        self._key = self._worker.get_current_task()

    def is_set(self) -> bool:
        """Whether nobody waits for the task any more."""
        task = self._worker.state.tasks.get(self._key)
        return task is None or task.state in ("cancelled", "resumed")


def keep(blob: bytes) -> bytes:
    """What all tasks of a run share, as a task of its own, which Dask computes again where its worker is lost."""
    return blob


def make_task_reporter() -> Reporter:
    """Progress and cancellation of the task that runs in this thread: its events reach the caller's callback."""
    return Reporter(get_sender().make_progress(), StopToken())


_STATES: collections.OrderedDict[str, Any] = collections.OrderedDict()
_STATES_LOCK = threading.Lock()


def run_task(
    item: bytes, payload: bytes, state_key: str, sender: EventSender
) -> tuple[str, WorkerFacts, tuple[str, ...], Any]:
    """Run a function on a shard.

    Args:
        item: The function and the shard, pickled.
        payload: What `prepare` of `Workers.map` takes, pickled with it.
        state_key: Hash of the payload.
        sender: Where its events go.

    Returns:
        The worker's address and facts, the warnings, and what the function returned.
    """
    from distributed import get_worker

    function, shard = pickle.loads(item)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        value = sending_to(sender, lambda: function(_get_state(payload, state_key), shard))
    warned = tuple(dict.fromkeys(str(one.message) for one in caught))
    return get_worker().address, describe_worker(), warned, value


def _get_state(payload: bytes, key: str) -> Any:
    """What `prepare` returns, made once in this process; only the last few are kept."""
    with _STATES_LOCK:
        if key not in _STATES:
            prepare, common = pickle.loads(payload)
            # The oldest goes first: two large models need not be in memory at once.
            while len(_STATES) >= CACHED_STATES:
                _STATES.popitem(last=False)
            _STATES[key] = None if prepare is None else prepare(*common)
        _STATES.move_to_end(key)
        return _STATES[key]
