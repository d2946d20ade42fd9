"""Where rows run: those of engines in one process per GPU, the others in this process, and failures as facts.

A GPU builds and times one engine at a time, in a process of its own: a second engine in the process makes all of them
slower, and a crash inside TensorRT ends one row alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import queue
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.backends.devices import find_gpus, parse_device
from trtkit.child_process import (
    describe_exit,
    error_from_dict,
    error_to_dict,
    exit_with_parent,
    print_event,
    run_child,
)
from trtkit.errors import CancelledError, EngineError, OutputError, TrtkitError
from trtkit.files import read_json
from trtkit.model_zoo.rows import RowJob, load_row, run_row
from trtkit.progress import Event, Reporter
from trtkit.writing import temporary_folder, write_json

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Facts", "Slot", "describe_error", "find_slots", "group_jobs", "run_jobs", "run_on_executor"]

Facts = dict[str, Any]
"""What `run_row` returns, or "error_code" and "error" of a row that failed."""

STOPPED_BY = (CancelledError, OutputError)
"""Errors that end the zoo instead of one row: it was cancelled, or no row can be written."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slot:
    """A device that runs one row at a time, in a process of its own.

    Attributes:
        name: The GPU's name, or the device as given.
        visible: `CUDA_VISIBLE_DEVICES` of the process; None leaves the variable as it is.
        device: The device inside the process; None takes the first GPU that it sees.
    """

    name: str
    visible: str | None = None
    device: int | str | None = None


def find_slots(device: int | str | None) -> tuple[Slot, ...]:
    """The devices that engines run on: every GPU of this machine, or the one that was named.

    Args:
        device: As in `zoo`.
    """
    target, gpus = parse_device(device), find_gpus()
    if target.kind == "any" and gpus:
        return tuple(Slot(name=gpu.name, visible=gpu.visible_name()) for gpu in gpus)
    if target.kind == "cuda" and target.index < len(gpus):
        return (Slot(name=gpus[target.index].name, visible=gpus[target.index].visible_name()),)
    return (Slot(name=str(device or "first GPU"), device=device),)


def group_jobs(jobs: Sequence[RowJob], slots: Sequence[Slot]) -> list[list[RowJob]]:
    """Jobs that must run on one device: each alone on GPUs of one kind, all of a model and size on a mix of GPUs.

    Args:
        jobs: Jobs of engines.
        slots: The devices.
    """
    if len({slot.name for slot in slots}) == 1:
        return [[job] for job in jobs]
    groups: dict[tuple[str, bool, str], list[RowJob]] = {}
    for job in jobs:
        groups.setdefault((job.model, job.end2end, job.size), []).append(job)
    return list(groups.values())


def run_jobs(
    jobs: Sequence[RowJob],
    output: Path,
    *,
    slots: Sequence[Slot],
    reporter: Reporter,
    on_done: Callable[[RowJob, Facts], None],
) -> None:
    """Run all jobs; each is kept when it is done, and one that fails does not stop the others.

    Args:
        jobs: The rows, in the order of the table.
        output: The folder of the zoo.
        slots: The devices of engines.
        reporter: Progress callback, called from one thread at a time, and cancellation token.
        on_done: Called for each job with its facts, from one thread at a time.

    Raises:
        CancelledError: The caller cancelled; finished rows are kept.
        OutputError: The folder can't be written, or the disk is full.
    """
    lock = threading.Lock()
    engines = [job for job in jobs if job.is_engine]

    def finish(job: RowJob, facts: Facts) -> None:
        with lock:
            on_done(job, facts)

    if engines:
        _run_on_slots(group_jobs(engines, slots), output, slots, reporter, lock, finish)
    # After the engines: a busy processor would disturb their builds.
    for job in jobs:
        if not job.is_engine:
            watch = {"progress": _prefixed(reporter, job.label), "cancel": reporter.cancel}
            finish(job, attempt(lambda job=job, watch=watch: run_row(job, output, **watch)))  # type: ignore[misc]


def run_on_executor(
    jobs: Sequence[RowJob],
    output: Path,
    *,
    executor: Client,
    reporter: Reporter,
    on_done: Callable[[RowJob, Facts], None],
) -> None:
    """Run all jobs on the workers of a Dask scheduler: those of engines take a worker's GPU, which none shares.

    A row whose worker is killed runs again elsewhere; what is finished lies in `output`, which the workers share.

    Args:
        jobs: The rows, in the order of the table.
        output: The folder of the zoo.
        executor: A `distributed.Client`.
        reporter: Progress callback and cancellation token.
        on_done: Called for each job with its facts.

    Raises:
        CapabilityError: Workers are missing, lost or other than this process, or their GPUs differ or are shared.
        CancelledError: The caller cancelled; finished rows are kept.
        OutputError: The folder can't be written, or the workers write to another one.
    """
    from trtkit.executor import Workers

    for is_engine in (True, False):
        same = [_with_absolute_paths(job) for job in jobs if job.is_engine == is_engine]
        if not same:
            continue
        workers = Workers(executor, reporter, gpu=is_engine)
        shards = [(job.to_dict(), str(output.absolute())) for job in same]
        stage = "zoo rows with engines" if is_engine else "zoo rows"
        # Rows differ in time, so that a slow one means nothing.
        results = workers.map(run_on_worker, shards, stage=stage, repeat_slow=False)
        with contextlib.closing(results):
            for job, facts in zip(same, results, strict=True):
                if "error_code" not in facts and load_row(output, job) is None:
                    raise OutputError(
                        f"keep the row {job.label}",
                        f"a worker wrote it, and it is not in {output}",
                        "name an output folder on a disk that this machine and the workers share",
                        code="zoo-output-not-shared",
                        path=str(output),
                    )
                on_done(job, facts)


def run_on_worker(state: None, shard: tuple[Mapping[str, Any], str]) -> Facts:
    """Run a row in a worker of a scheduler.

    Args:
        state: Nothing: a row reads its model itself.
        shard: `RowJob.to_dict`, and the folder of the zoo.

    Raises:
        CancelledError: The caller cancelled.
        OutputError: The row can't be written.
    """
    from trtkit.executor import StopToken

    job, output, token = RowJob.from_dict(shard[0]), Path(shard[1]), StopToken()
    if not job.is_engine:
        return attempt(lambda: run_row(job, output, cancel=token))
    # The worker sees its own GPU only; a crash inside TensorRT must not take it along.
    slot = find_slots(None)[0]
    return attempt(
        lambda: _run_in_child(dataclasses.replace(job, device=slot.device), output, slot, Reporter(None, token))
    )


def _with_absolute_paths(job: RowJob) -> RowJob:
    """A job that workers with another working folder understand."""
    return dataclasses.replace(job, model=str(Path(job.model).absolute()), data=str(Path(job.data).absolute()))


def _run_on_slots(
    groups: Sequence[Sequence[RowJob]],
    output: Path,
    slots: Sequence[Slot],
    reporter: Reporter,
    lock: threading.Lock,
    finish: Callable[[RowJob, Facts], None],
) -> None:
    """Run groups of jobs, each on the first device that is free."""
    waiting: queue.SimpleQueue[Sequence[RowJob]] = queue.SimpleQueue()
    for group in groups:
        waiting.put(group)
    stop = threading.Event()

    class Token:
        def is_set(self) -> bool:
            return stop.is_set() or reporter.is_cancelled()

    def drive(slot: Slot) -> None:
        try:
            while not stop.is_set():
                try:
                    group = waiting.get_nowait()
                except queue.Empty:
                    return
                for job in group:
                    progress = _prefixed(reporter, f"{job.label} on {slot.name}", lock)
                    own = Reporter(progress, Token())
                    placed = dataclasses.replace(job, device=slot.device)
                    finish(job, attempt(lambda placed=placed, own=own: _run_in_child(placed, output, slot, own)))  # type: ignore[misc]
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(len(slots), thread_name_prefix="trtkit zoo") as pool:
        try:
            futures = [pool.submit(drive, slot) for slot in slots]
            wait(futures)
        finally:
            # After an interruption: otherwise the threads would go on with the other rows.
            stop.set()
    errors = [error for future in futures if (error := future.exception()) is not None]
    # The others were cancelled because of the first.
    for error in sorted(errors, key=lambda one: isinstance(one, CancelledError)):
        raise error


def describe_error(error: TrtkitError) -> Facts:
    """An error as the facts of a row.

    Args:
        error: Why the row can't be measured.
    """
    return {"error_code": error.code, "error": str(error)}


def attempt(run: Callable[[], Facts]) -> Facts:
    """The facts of a row, or its error as facts.

    Args:
        run: Measures the row.

    Raises:
        CancelledError: The caller cancelled.
        OutputError: The row can't be written.
    """
    try:
        return run()
    except STOPPED_BY:
        raise
    except TrtkitError as error:
        return describe_error(error)
    except Exception as error:  # noqa: BLE001 - a fault of one model, whatever it is, must not cost the others' rows
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", type(error).__name__).lower()
        return {"error_code": f"unexpected-{name}", "error": f"{type(error).__name__}: {error}"[:1000]}


def _run_in_child(job: RowJob, output: Path, slot: Slot, reporter: Reporter) -> Facts:
    """Run a row in a process that sees only the slot's GPU.

    Raises:
        TrtkitError: As `run_row` does in the child; EngineError if it crashed.
    """
    environment = {} if slot.visible is None else {"CUDA_VISIBLE_DEVICES": slot.visible}
    with temporary_folder() as folder:
        write_json(folder / "job.json", {"job": job.to_dict(), "output": str(output.absolute())})
        code, tail = run_child(CHILD, folder, f"zoo: {job.label}", reporter, environment=environment)
        result = folder / "result.json"
        if not result.is_file():
            raise EngineError(
                f"measure {job.label} on {slot.name}",
                f"its process crashed ({describe_exit(code)}{': ' + tail if tail else ''})",
                "lower batch, size or workspace; the other rows go on",
                code="zoo-row-crashed",
                exit=describe_exit(code),
                output=tail,
            )
        value: Facts = read_json(result)
        if "error" in value:
            raise error_from_dict(value)
        return value


CHILD = "trtkit.model_zoo.workers"
"""The module that a child process runs."""


def _prefixed(
    reporter: Reporter, label: str, lock: contextlib.AbstractContextManager[Any] | None = None
) -> Callable[[Event], None]:
    """A progress callback that names the row in each event's stage."""

    def report(event: Event) -> None:
        with lock or contextlib.nullcontext():
            reporter.step(f"{label}: {event.stage}", event.done, event.total, event.message)

    return report


@contextlib.contextmanager
def _errors_written(folder: Path) -> Iterator[None]:
    """Write the error of a child for its parent."""
    try:
        yield
    except TrtkitError as error:
        # Fields may be of any type; a message needs their text alone.
        write_json(folder / "result.json", json.loads(json.dumps(error_to_dict(error), default=str)))


def main(name: str) -> None:
    """Run the row whose job the parent wrote into a folder.

    Args:
        name: The folder.
    """
    exit_with_parent()
    folder = Path(name)
    content = read_json(folder / "job.json")
    with _errors_written(folder):
        facts = run_row(RowJob.from_dict(content["job"]), content["output"], progress=print_event)
        write_json(folder / "result.json", facts)


if __name__ == "__main__":
    main(sys.argv[1])
