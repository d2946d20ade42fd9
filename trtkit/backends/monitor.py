"""A build's progress, and a way to stop it, where TensorRT reports any."""

from __future__ import annotations

import threading
from typing import Any

from trtkit.backends.surfaces import module
from trtkit.progress import Work

__all__ = ["Phases", "monitor"]

STEPS = 100


class Phases:
    """Nested phases as one share of the whole.

    TensorRT calls from several threads. A phase counts for one step of its parent, so the share of the whole is the
    root's finished steps plus what its running phases have done of theirs. It never falls.

    Args:
        work: Receives the steps.
        stage: Their name.
    """

    def __init__(self, work: Work, stage: str) -> None:
        self.work = work
        self.stage = stage
        self.failure: BaseException | None = None
        self._phases: dict[str, tuple[str | None, int, int]] = {}
        self._most = 0.0
        self._told = -1
        self._lock = threading.Lock()

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Enter a phase.

        Args:
            name: Its name, unique among the running ones.
            parent: The phase it is a part of, or None.
            steps: Its steps.
        """
        with self._lock:
            self._phases[name] = (parent, max(1, steps), 0)

    def step(self, name: str, step: int) -> bool:
        """Count a step.

        Args:
            name: The phase.
            step: Its index.

        Returns:
            Whether to go on.
        """
        with self._lock:
            if name in self._phases:
                parent, steps, _ = self._phases[name]
                self._phases[name] = (parent, steps, min(steps, step + 1))
            share = max(
                (self._share(root) for root, (above, _, _) in self._phases.items() if above is None), default=0.0
            )
            self._most = max(self._most, share)
            done = int(self._most * STEPS)
        return self.tell(done)

    def finish(self, name: str) -> None:
        """Leave a phase.

        Args:
            name: Its name.
        """
        with self._lock:
            self._phases.pop(name, None)

    def tell(self, done: int) -> bool:
        """Report to the caller; an error of theirs stops the build and is raised after it.

        Args:
            done: Steps of `STEPS`.

        Returns:
            Whether to go on.
        """
        if self.failure is not None:
            return False
        try:
            # TensorRT steps thousands of times: only those that move the bar are told, and all ask whether to go on.
            if done != self._told or self.work.cancelled():
                self._told = done
                self.work.step(self.stage, done, STEPS)
        except BaseException as error:  # noqa: BLE001 - no exception may cross TensorRT's C++ frames; `failure` is raised later
            self.failure = error
            return False
        return True

    def _share(self, name: str) -> float:
        _, steps, done = self._phases[name]
        running = [child for child, (parent, _, _) in self._phases.items() if parent == name]
        inside = max((self._share(child) for child in running), default=0.0)
        return min(1.0, (done + inside) / steps)


def monitor(backend: str, phases: Phases) -> Any:
    """TensorRT's `IProgressMonitor` that reports to `phases`.

    Args:
        backend: One that has it.
        phases: The listener.
    """
    trt = module(backend)

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return phases.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()
