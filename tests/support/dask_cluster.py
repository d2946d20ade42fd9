"""Two worker processes for the tests of one file, which start within a moment and are killed as the system kills."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import toy_backend
from distributed import Client, WorkerPlugin
from distributed.utils import get_mp_context

from trtkit.calibration import Calibration
from trtkit.errors import CalibrationError, warn
from trtkit.executor import GPU, StopToken, open_executor
from trtkit.progress import Event, Reporter

PRELOADED = ("trtkit.evaluation.image_pass", "trtkit.backends.ort", "trtkit.calibration.image_pass", "onnxruntime")
"""What workers need: imported once, in the process that all of them are forked from."""


@contextlib.contextmanager
def two_workers() -> Iterator[Client]:
    """A client of two workers, each with a nanny that starts a killed one again."""
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        get_mp_context()  # sets a list of its own the first time
        multiprocessing.get_context("forkserver").set_forkserver_preload(["distributed", *PRELOADED])
        with open_executor("local:2") as client:
            client.wait_for_workers(2, timeout=60)
            yield client


@contextlib.contextmanager
def one_gpu_worker() -> Iterator[Client]:
    """A client of a worker that could run two tasks at once and offers one GPU, and of a worker that offers none."""
    from distributed import LocalCluster, Nanny

    shared: dict[str, Any] = {"host": "127.0.0.1", "dashboard_address": None, "memory_limit": 0, "nthreads": 2}
    settings = {"n_workers": 0, "host": "127.0.0.1", "dashboard_address": None, "silence_logs": logging.CRITICAL}
    with LocalCluster(**settings) as cluster:
        cluster.worker_spec = {
            "with": {"cls": Nanny, "options": {**shared, "resources": {GPU: 1}}},
            "without": {"cls": Nanny, "options": shared},
        }
        cluster.sync(cluster._correct_state)
        with Client(cluster.scheduler_address) as client:
            client.wait_for_workers(2, timeout=60)
            yield client


@contextlib.contextmanager
def toy_backend_on(executor: Client, folder: Path) -> Iterator[None]:
    """Workers have the toy backend, those that are started again too; this process knows its name only.

    Args:
        executor: The workers.
        folder: Where they leave notes, and find them.
    """
    executor.register_plugin(_ToyBackend("TOY", folder), name="toy backend")
    toy_backend.register("ABSENT")
    try:
        yield
    finally:
        toy_backend.register("")
        executor.unregister_worker_plugin("toy backend")
        executor.run(toy_backend.register, "")


class _ToyBackend(WorkerPlugin):  # type: ignore[misc]
    def __init__(self, name: str, folder: Path) -> None:
        self.backend, self.folder = name, folder

    def setup(self, worker: Any) -> None:
        toy_backend.register(self.backend, self.folder)


def list_pids(executor: Client) -> dict[str, int]:
    """The process of each worker, by address."""
    return dict(executor.run(os.getpid, on_error="ignore"))


class KillOnce:
    """A progress callback that kills a busy worker once the first shard of a stage is done.

    Args:
        executor: The workers.
        stage: How the name of the stage begins.
    """

    def __init__(self, executor: Client, stage: str) -> None:
        self.executor = executor
        self.stage = stage
        self.killed: int | None = None
        self.pids = list_pids(executor)

    def __call__(self, event: Event) -> None:
        if self.killed is None and event.stage.startswith(self.stage) and event.total and 0 < event.done < event.total:
            busy = [address for address, keys in self.executor.processing().items() if keys]
            self.killed = self.pids[(busy or list(self.pids))[0]]
            os.kill(self.killed, signal.SIGKILL)


def same_after_kill(executor: Client, stage: str, run: Callable[..., Any]) -> Any:
    """What a verb returns although a worker is killed in the middle of a stage.

    Args:
        executor: Two workers.
        stage: How the name of the stage begins.
        run: Calls the verb with `executor` and `progress`.
    """
    executor.wait_for_workers(2, timeout=60)
    kill = KillOnce(executor, stage)
    result = run(executor=executor, progress=kill)
    assert kill.killed is not None
    executor.wait_for_workers(2, timeout=60)
    assert kill.killed not in list_pids(executor).values()
    return result


def allow_failures(count: int, dask_scheduler: Any) -> int:
    """Set how many workers a shard may kill and run on; returns what it was."""
    before: int = dask_scheduler.allowed_failures
    dask_scheduler.allowed_failures = count
    return before


# Tasks: workers import them from here.


def square(state: int, number: int) -> int:
    """The state and the square of a number."""
    return state + number**2


def refuse(state: None, number: int) -> int:
    """Refuse odd numbers; the later, the sooner."""
    time.sleep(0.3 / (1 + number))
    if number % 2:
        raise CalibrationError(f"take {number}", "it is odd", "pass even ones", code="test-odd", value=number)
    return number


def wait_until_stopped(state: None, path: str) -> None:
    """Run until nobody waits for the result, and then write a file."""
    token, path_ = StopToken(), Path(path)
    path_.with_suffix(".started").touch()
    while not token.is_set():
        time.sleep(0.02)
    path_.touch()


def stop_this_process_once(state: None, item: tuple[str, int]) -> int:
    """Stop the process of the first worker that takes number 0, as a machine that hangs."""
    flag, number = Path(item[0]), item[1]
    if number == 0 and not flag.exists():
        flag.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)
    return number


def count_runs(state: None, path: str) -> int:
    """Note a run in a file and take a second; how often it ran."""
    with Path(path).open("a") as file:
        file.write("run")
    time.sleep(1)
    return len(Path(path).read_text()) // 3


def finish_before_the_copy(state: None, item: tuple[str, int]) -> int:
    """Take a second for number 1 once its copy runs, which does not end before it is stopped."""
    begun, copied = Path(item[0]), Path(item[0]).with_suffix(".copied")
    if item[1] != 1:
        return item[1]
    if begun.exists():
        copied.touch()
        token = StopToken()
        while not token.is_set():
            time.sleep(0.02)
        return -1
    begun.touch()
    deadline = time.monotonic() + 20
    while not copied.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return item[1]


def warn_of(state: None, number: int) -> int:
    """Warn, the same for all numbers."""
    warn("an image is odd")
    return number


def record_interval(reporter: Reporter | None, number: int) -> tuple[str, float, float]:
    """Work for a moment: the worker's address, begin and end."""
    from distributed import get_worker

    begin = time.monotonic()
    time.sleep(0.3)
    return get_worker().address, begin, time.monotonic()


def write_and_read_a_cache(calibration: Calibration, folder: str) -> list[str]:
    """Write the same entries of a cache as others do and read them meanwhile; why one was not found."""
    from trtkit.calibration.storage import CalibrationKey, find_calibration, store_calibration
    from trtkit.tuning.measurement import ResultCache

    cache, value, reasons = ResultCache(folder), list(range(5000)), []
    assert cache.calibrations is not None
    for _ in range(8):
        cache.write("layers", "k" * 24, value)
        store_calibration(cache.calibrations, calibration)
        assert cache.read("layers", "k" * 24) == value
        found, reason = find_calibration(cache.calibrations, CalibrationKey.from_provenance(calibration.provenance))
        assert found is None or found.hash == calibration.hash
        reasons += [reason] if found is None else []
    return reasons


def exit_hard(state: None, number: int) -> None:
    """End the process of whichever worker takes it."""
    os._exit(1)
