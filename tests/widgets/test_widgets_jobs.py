"""Job: its states, the transitions between them, and their reports."""

from __future__ import annotations

import asyncio
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from trtkit.errors import CancelledError, TrtkitError
from trtkit.progress import Event, Reporter
from trtkit.widgets.ui import jobs
from trtkit.widgets.ui.jobs import JOB_STATES, Job, JobView


class Steps:
    """A call of three steps that waits between them until it is released."""

    def __init__(self) -> None:
        self.gate = threading.Semaphore(0)
        self.entered = threading.Event()

    def __call__(self, answer: object = "answer", *, progress: Any, cancel: Any) -> object:
        reporter = Reporter(progress, cancel)
        for step in range(3):
            reporter.step("count", step, 3, "begun" if step == 0 else "")
            self.entered.set()
            assert self.gate.acquire(timeout=60)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def finish(self) -> None:
        self.gate.release(3)


def test_a_new_job_is_idle_and_wait_returns_at_once() -> None:
    job: Job[object] = Job()
    assert (job.state, job.running, job.cancelling, job.result, job.error) == ("idle", False, False, None, None)
    assert job.wait()
    job.cancel()
    assert job.state == "idle"


def test_start_and_end_are_reported() -> None:
    events: list[Event] = []
    states: list[str] = []
    call = Steps()
    job: Job[object] = Job("count", on_event=events.append, on_state=lambda job: states.append(job.state))
    job.start(call)
    assert call.entered.wait(60)
    assert job.running
    assert not job.wait(timeout=0.01)
    call.finish()
    assert job.wait()
    assert (job.state, job.result, job.error, job.log) == ("done", "answer", None, ["begun"])
    assert [event.done for event in events] == [0, 1, 2]
    assert job.event == events[-1]
    assert states == ["running", "done"]
    assert job.seconds > 0
    assert set(states) <= set(JOB_STATES)


def test_cancel_is_reported_at_once_and_stops_at_the_next_step() -> None:
    states: list[tuple[str, bool]] = []
    call = Steps()
    job: Job[object] = Job(on_state=lambda job: states.append((job.state, job.cancelling)))
    job.start(call)
    assert call.entered.wait(60)
    job.cancel()
    job.cancel()
    assert job.cancelling
    call.finish()
    job.wait()
    assert (job.state, job.result, job.error, job.cancelling) == ("cancelled", None, None, False)
    assert states == [("running", False), ("running", True), ("cancelled", False)]


def test_cancelling_what_has_ended_changes_nothing() -> None:
    states: list[str] = []
    job: Job[object] = Job(on_state=lambda job: states.append(job.state))
    job.cancel()
    call = Steps()
    call.finish()
    job.start(call)
    job.wait()
    job.cancel()
    assert (job.state, job.result, job.cancelling) == ("done", "answer", False)
    assert states == ["running", "done"]


@pytest.mark.parametrize("error", [ValueError("wrong"), TrtkitError("a", "b", "c"), SystemExit(3), MemoryError()])
def test_any_error_is_kept(error: BaseException) -> None:
    call = Steps()
    job: Job[object] = Job()
    job.start(call, error)
    call.finish()
    job.wait()
    assert (job.state, job.error, job.result) == ("failed", error, None)


@pytest.mark.parametrize("error", [CancelledError("count"), KeyboardInterrupt()])
def test_a_cancellation_is_no_failure(error: BaseException) -> None:
    call = Steps()
    job: Job[object] = Job()
    job.start(call, error)
    call.finish()
    job.wait()
    assert (job.state, job.error) == ("cancelled", None)


def test_a_running_job_is_not_started_again_and_a_new_run_resets_it() -> None:
    first, second = Steps(), Steps()
    job: Job[object] = Job("counting")
    job.start(first, ValueError("wrong"))
    with pytest.raises(TrtkitError) as e:
        job.start(second)
    assert (e.value.code, e.value.fields["name"]) == ("job-running", "counting")
    first.finish()
    job.wait()
    job.start(second)
    assert (job.state, job.error, job.log) == ("running", None, job.log)
    second.finish()
    job.wait()
    assert (job.state, job.result) == ("done", "answer")


def test_an_earlier_cancel_does_not_cancel_the_next_run() -> None:
    first, second = Steps(), Steps()
    job: Job[object] = Job()
    job.start(first)
    job.cancel()
    first.finish()
    job.wait()
    job.start(second)
    second.finish()
    job.wait()
    assert job.state == "done"


def test_an_interrupt_of_wait_cancels_and_is_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    call = Steps()
    states: list[str] = []
    job: Job[object] = Job(on_state=lambda job: states.append(job.state))
    job.start(call)
    thread = job._thread
    assert thread is not None
    real = thread.join

    def interrupted(timeout: float | None = None) -> None:
        monkeypatch.setattr(thread, "join", real)
        call.finish()
        raise KeyboardInterrupt

    monkeypatch.setattr(thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        job.wait()
    assert job.state == "cancelled"
    assert not thread.is_alive()
    assert states[-1] == "cancelled"
    again = Steps()
    job.start(again)
    again.finish()
    job.wait()
    assert job.state == "done"


def test_user_warnings_of_the_call_are_logged() -> None:
    call = Steps()

    def warn(*, progress: Any, cancel: Any) -> None:
        warnings.warn("careful", stacklevel=1)
        warnings.warn("only for developers", DeprecationWarning, stacklevel=1)
        call(progress=progress, cancel=cancel)

    events: list[Event] = []
    job: Job[None] = Job(on_event=events.append)
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        job.start(warn)
        assert call.entered.wait(60)
        warnings.warn("of another thread", stacklevel=1)
        call.finish()
        job.wait()
    assert job.log == ["note: careful", "begun"]
    assert events[0].message == "note: careful"
    assert [str(one.message) for one in others] == ["of another thread"]


def test_overlapping_jobs_capture_their_own_warnings() -> None:
    hook = warnings.showwarning
    first, second = Steps(), Steps()

    def warn(call: Steps, text: str, *, progress: Any, cancel: Any) -> None:
        call(progress=progress, cancel=cancel)
        warnings.warn(text, stacklevel=1)

    one: Job[None] = Job()
    two: Job[None] = Job()
    one.start(warn, first, "of the first")
    assert first.entered.wait(60)
    two.start(warn, second, "of the second")
    assert second.entered.wait(60)
    first.finish()
    one.wait()
    second.finish()
    two.wait()
    assert (one.log[1:], two.log[1:]) == (["note: of the first"], ["note: of the second"])
    assert warnings.showwarning is hook


def in_loop(body: Callable[[], Any]) -> Any:
    async def main() -> Any:
        return await body()

    return asyncio.run(main())


def test_with_an_event_loop_the_end_is_reported_in_its_thread() -> None:
    threads: list[str] = []

    async def body() -> None:
        ended = asyncio.Event()

        def states(job: Job[object]) -> None:
            threads.append(f"{job.state} in {threading.current_thread().name}")
            if not job.running:
                ended.set()

        call = Steps()
        job: Job[object] = Job(on_state=states)
        job.start(call)
        call.finish()
        await asyncio.wait_for(ended.wait(), 60)

    in_loop(body)
    assert threads == ["running in MainThread", "done in MainThread"]


def test_wait_inside_a_loop_reports_the_end_once() -> None:
    states: list[str] = []

    async def body() -> None:
        call = Steps()
        job: Job[object] = Job(on_state=lambda job: states.append(job.state))
        job.start(call)
        call.finish()
        job.wait()
        assert states == ["running", "done"]
        again = Steps()
        job.start(again)
        # The first run's callback in the loop must not report the end of the second.
        await asyncio.sleep(0.05)
        assert states == ["running", "done", "running"]
        again.finish()
        job.wait()

    in_loop(body)
    assert states == ["running", "done", "running", "done"]


def test_a_closed_loop_does_not_lose_the_end() -> None:
    states: list[str] = []
    call = Steps()
    job: Job[object] = Job(on_state=lambda job: states.append(job.state))

    async def body() -> None:
        job.start(call)

    in_loop(body)
    call.finish()
    job.wait()
    assert states == ["running", "done"]


def test_the_clock_goes_on_between_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "TICK_SECONDS", 0.005)
    go_on, shown = threading.Event(), []
    view = JobView("work")
    view.clock.observe(lambda change: shown.append(change["new"]), "value")
    clock = iter([0.0, *(index / 2 for index in range(1000))])
    monkeypatch.setattr(Job, "seconds", property(lambda self: next(clock)))
    view.start(lambda progress, cancel: go_on.wait(10))
    end = time.monotonic() + 5
    while len(shown) < 3 and time.monotonic() < end:
        time.sleep(0.005)
    assert shown[:3] == ["0:00", "0:01", "0:02"]
    assert view.clock.layout.display == ""
    go_on.set()
    view.job.wait()
    assert view.clock.layout.display == "none"
