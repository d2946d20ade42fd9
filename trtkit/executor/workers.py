"""Workers of a `distributed.Client`: shards run on them, and results come in the order of the shards."""

from __future__ import annotations

import collections
import contextlib
import math
import pickle
import statistics
import threading
import time
import uuid
import warnings
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from trtkit.errors import CancelledError, CapabilityError, TrtkitError, warn
from trtkit.executor.facts import WorkerFacts, check_gpus, check_versions, describe_worker
from trtkit.executor.scheduler import GPU, is_protected
from trtkit.executor.task_events import Subscription
from trtkit.executor.tasks import keep, run_task
from trtkit.files import hash_parts
from trtkit.progress import Progress, Reporter
from trtkit.results import package_versions

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["Workers", "describe_executor", "offers_gpu", "split_into_shards"]

SHARD_IMAGES = 32
"""Most images of a shard, but for larger batches: what a lost worker has to do again, and a cancelled one to finish."""

SHARDS_PER_SLOT = 4
"""Shards for each task that runs at the same time, where there are few images: fast workers take more of them."""

POLL_SECONDS = 0.2
"""Time between looks at the cancellation token."""

WAIT_SECONDS = 60.0
"""How long a run waits for a worker, at its start or after the last one was lost."""

SLOW_FACTOR, SLOW_SECONDS = 4.0, 30.0
"""A shard that takes longer than this many times the median, and than this, also runs on another worker."""

SILENT_SECONDS = 10.0
"""A worker that told the scheduler nothing for so much longer than another one hangs."""

Output = TypeVar("Output")


def split_into_shards(count: int, *, multiple: int = 1, slots: int = 1) -> list[range]:
    """Cut a number of items into shards for workers.

    Args:
        count: Number of items.
        multiple: Items of a batch: shards are whole batches, so that batches are the same for any number of workers.
        slots: Tasks that run at the same time, as `Workers.slots`.

    Returns:
        The indices of each shard, in order.
    """
    wanted = min(math.ceil(count / (slots * SHARDS_PER_SLOT)), SHARD_IMAGES)
    step = max(1, math.ceil(wanted / multiple)) * multiple
    return [range(start, min(start + step, count)) for start in range(0, count, step)]


class Workers:
    """The workers of a `distributed.Client`, as a verb uses them.

    Args:
        executor: The client.
        reporter: Progress, one step for each finished shard, and cancellation.
        gpu: Work takes a worker's GPU (Dask resource "GPU"): engines are built, run or timed.
        alone: Work takes that resource too where a worker offers it, whether or not it has a GPU, so that nothing else
            that takes it runs at the same time: timings of ONNX Runtime.

    Attributes:
        facts: The workers that finished work so far, by address.
        takes_gpu: Whether work takes the resource.

    Raises:
        CapabilityError: No worker comes, one has other versions than this process, or with `gpu` none offers one, two
            offer the same one, or they have different ones.
        CancelledError: The caller cancelled.
    """

    def __init__(self, executor: Client, reporter: Reporter, *, gpu: bool = False, alone: bool = False) -> None:
        self.executor = executor
        self.reporter = reporter
        self.gpu = gpu
        self.takes_gpu = gpu
        self.facts: dict[str, WorkerFacts] = {}
        self.task_counts: collections.Counter[str] = collections.Counter()
        self._warned: set[str] = set()
        self._prepare()
        if alone:
            self.takes_gpu = gpu or any(one["resources"].get(GPU) for one in self._list_workers().values())

    @property
    def slots(self) -> int:
        """Tasks that run at the same time, at least 1."""
        workers = self._list_workers().values()
        return max(
            1,
            int(sum(worker["resources"].get(GPU, 0) if self.takes_gpu else worker["nthreads"] for worker in workers)),
        )

    def map(
        self,
        function: Callable[[Any, Any], Output],
        shards: Sequence[Any],
        *,
        stage: str,
        prepare: Callable[..., Any] | None = None,
        common: Sequence[Any] = (),
        sizes: Sequence[int] | None = None,
        done: int = 0,
        total: int | None = None,
        repeat_slow: bool = True,
        progress: Progress | None = None,
    ) -> Generator[Output, None, None]:
        """Run a function on every shard and yield the results in the order of the shards.

        The first error in that order is raised, as one process would meet it. A shard whose worker is killed runs again
        elsewhere; one that takes far longer than the others also runs on another worker, and the first result counts.

        Args:
            function: A function of a module, which gets what `prepare` returned and a shard.
            shards: Each picklable, and small: they pass through the scheduler.
            stage: Name of the progress stage.
            prepare: A function of a module, which opens once in a worker process what all shards need; None gives None.
            common: Its arguments, picklable; they travel to a worker once.
            sizes: Steps of progress by shard; None counts shards.
            done: Steps of the stage that an earlier call has done.
            total: All steps of the stage; None takes the sum of `sizes`.
            repeat_slow: Run a slow shard a second time; False for work that is expected to differ in time, which runs
                again only if its worker hangs.
            progress: Receives the events of functions that report to `make_task_reporter`; None takes the reporter's.

        Yields:
            One result per shard.

        Raises:
            CapabilityError: All workers are lost, or a shard killed four of them.
            CancelledError: The caller cancelled; workers stop after their shard.
            TrtkitError: What the function raised.
        """
        sizes = [1] * len(shards) if sizes is None else sizes
        blob = pickle.dumps((prepare, tuple(common)), pickle.HIGHEST_PROTOCOL)
        run = _Run(self, function, shards, blob, stage=stage, repeat_slow=repeat_slow, progress=progress)
        total = sum(sizes) if total is None else total
        self.reporter.step(stage, done, total)
        try:
            for index in range(len(shards)):
                while index not in run.results:
                    for finished in run.wait():
                        done += sizes[finished]
                        self.reporter.step(stage, done, total)
                yield run.take(index)
        finally:
            run.close()

    def describe(self) -> dict[str, Any]:
        """The workers that did the work, for `Provenance.machine`."""
        rows = [{**facts.to_dict(), "tasks": self.task_counts[address]} for address, facts in self.facts.items()]
        return {"workers": sorted(rows, key=lambda row: (row["host"], -row["tasks"]))}

    def add_result(self, address: str, facts: WorkerFacts, warned: Sequence[str]) -> None:
        """Note who finished a task, and give its warnings.

        Raises:
            CapabilityError: A worker that came later does not fit the others.
        """
        self.task_counts[address] += 1
        if address not in self.facts:
            self.facts[address] = facts
            check_versions({address: facts})
            if self.gpu:
                check_gpus(self.facts, self._list_workers())
        for sentence in warned:
            if sentence not in self._warned:
                self._warned.add(sentence)
                warn(sentence)

    def lost(self, asked: str, found: str, **fields: Any) -> CapabilityError:
        """The error for work that no worker finishes."""
        return CapabilityError(
            asked,
            found,
            "see the workers' logs, and start it again: what is in a cache directory is not computed again",
            code="executor-workers-lost",
            **fields,
        )

    def list_alive(self) -> tuple[list[str], bool]:
        """Addresses of the workers that can take a task and do not hang, and whether another one hangs."""
        able = {
            address: one
            for address, one in self._list_workers().items()
            if not self.takes_gpu or one["resources"].get(GPU)
        }
        alive = _list_alive(able)
        return alive, len(alive) < len(able)

    def _list_workers(self) -> dict[str, Any]:
        return _list_workers(self.executor)

    def _prepare(self) -> None:
        """Wait for a worker and check those that are there, once for each client and kind of work."""
        asked = "use the scheduler"
        if self.executor.asynchronous or self.executor.status != "running":
            raise CapabilityError(
                asked,
                "its client is closed or asynchronous",
                "pass a running, synchronous distributed.Client",
                code="executor-closed",
                value=self.executor.status,
            )
        address = str(getattr(self.executor.scheduler, "address", ""))
        deadline = time.monotonic() + WAIT_SECONDS
        while not self._list_workers():
            self.reporter.step("wait for workers", 0, None)
            if time.monotonic() > deadline:
                raise CapabilityError(
                    f"{asked} {address}",
                    f"it has no worker after {WAIT_SECONDS:.0f} s",
                    "start workers, and see docs/scale.md",
                    code="executor-workers-missing",
                    value=address,
                )
            time.sleep(POLL_SECONDS)
        checked = _CHECKED.setdefault(self.executor, set())
        if self.gpu in checked:
            return
        if not checked and not is_protected(address):
            warn(
                f"The scheduler {address} has neither TLS nor a loopback address: whoever reaches its port runs code "
                "as you on every worker, and reads what is sent. Use tls:// (docs/scale.md), or a network that nobody "
                "else is on."
            )
        facts = self._ask_workers()
        check_versions(facts)
        if self.gpu:
            check_gpus(facts, self._list_workers())
        processors = sorted({str(one.machine.get("processor")) for one in (*facts.values(), describe_worker())})
        if len(processors) > 1 and not checked:
            warn(
                f"The workers and this machine have different processors ({', '.join(processors)}): results may differ "
                "from those of one machine in the last bits."
            )
        checked.add(self.gpu)

    def _ask_workers(self) -> dict[str, WorkerFacts]:
        facts: dict[str, WorkerFacts] = {}
        for address, answer in _ask_workers(self.executor).items():
            if isinstance(answer, WorkerFacts):
                facts[address] = answer
            elif isinstance(answer, ImportError | AttributeError):
                raise CapabilityError(
                    f"use the worker {address}",
                    f"it has no trtkit like this one ({answer})",
                    f"install trtkit {package_versions()['trtkit']} there",
                    code="executor-trtkit-missing",
                    worker=address,
                )
            # Else it was lost just now.
        return facts


def describe_executor(executor: Client | None) -> dict[str, Any]:
    """The workers that an executor has, for `Provenance.machine` of verbs that call others; {} without an executor.

    Args:
        executor: The client, or None.
    """
    if executor is None:
        return {}
    rows = [answer.to_dict() for answer in _ask_workers(executor).values() if isinstance(answer, WorkerFacts)]
    return {"workers": sorted(rows, key=lambda row: str(row["host"]))}


def offers_gpu(executor: Client) -> bool:
    """Whether a worker has a GPU and offers it as a resource.

    Args:
        executor: The client.
    """
    offering = [address for address, one in _list_workers(executor).items() if one["resources"].get(GPU)]
    facts = _ask_workers(executor) if offering else {}
    return any(isinstance(facts.get(address), WorkerFacts) and facts[address].gpus for address in offering)


def _list_workers(executor: Client) -> dict[str, Any]:
    return dict(executor.scheduler_info(n_workers=-1)["workers"])


def _list_alive(workers: Mapping[str, Any]) -> list[str]:
    """Addresses of the workers that do not hang."""
    newest = max((one["last_seen"] for one in workers.values()), default=0.0)
    return [address for address, one in workers.items() if newest - one["last_seen"] < SILENT_SECONDS]


def _ask_workers(executor: Client) -> dict[str, Any]:
    """What each worker that does not hang says of itself, or the error that it gave instead, by address."""
    answers: dict[str, Any] = {}

    def ask(address: str) -> None:
        answers.update(executor.run(describe_worker, workers=[address], on_error="return"))

    # Dask waits for a worker that hangs without end; a thread that does can be left behind.
    waiting = {
        address: threading.Thread(target=ask, args=(address,), daemon=True) for address in _list_workers(executor)
    }
    for thread in waiting.values():
        thread.start()
    deadline = time.monotonic() + WAIT_SECONDS
    while waiting and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS / 10)
        alive = _list_alive(_list_workers(executor))
        waiting = {address: one for address, one in waiting.items() if one.is_alive() and address in alive}
    return dict(answers)


_CHECKED: weakref.WeakKeyDictionary[Any, set[bool]] = weakref.WeakKeyDictionary()
"""Clients whose workers were checked: for work with a GPU, without one, or both."""


class _Run:
    """The tasks of one `Workers.map`: a bounded number is submitted ahead of the result that is needed next."""

    def __init__(
        self,
        workers: Workers,
        function: Callable[..., Any],
        shards: Sequence[Any],
        blob: bytes,
        *,
        stage: str,
        repeat_slow: bool,
        progress: Progress | None,
    ) -> None:
        self.workers = workers
        self.function = function
        self.shards = shards
        self.blob = blob
        self.state_key = hash_parts(blob)
        self.stage = stage
        self.repeat_slow = repeat_slow
        self.name = f"trtkit-{uuid.uuid4().hex}"
        self.results: dict[int, Any] = {}
        self.pending: dict[Any, int] = {}
        self.started: dict[int, float] = {}
        self.seconds: list[float] = []
        self.repeated: set[int] = set()
        self.next = 0
        self.taken = 0
        self.heard = time.monotonic()
        self.progress = progress or workers.reporter.progress
        self.events = Subscription(workers.executor, self.name)
        self.payload = self._submit_payload({})

    def wait(self) -> list[int]:
        """Wait a moment for tasks; the indices of those that have finished since."""
        from distributed import TimeoutError as Late
        from distributed import wait

        if self.workers.reporter.is_cancelled():
            raise CancelledError(self.stage)
        self._submit_ahead()
        with contextlib.suppress(Late):
            wait(list(self.pending), timeout=POLL_SECONDS, return_when="FIRST_COMPLETED")
        events = self.events.take()
        if self.progress is not None:
            for event in events:
                self.progress(event)
        finished = [index for future in list(self.pending) if future.done() for index in self._collect(future)]
        if finished or events:
            self.heard = time.monotonic()
        else:
            self._check_alive()
            self._repeat_slow()
        return finished

    def take(self, index: int) -> Any:
        """The result of a shard, which is given once."""
        self.taken = index + 1
        value, error = self.results.pop(index)
        if error is not None:
            raise error
        return value

    def close(self) -> None:
        """Cancel what is not finished."""
        with contextlib.suppress(Exception):  # the scheduler may be gone, and with it all tasks
            self.workers.executor.cancel(list(self.pending), force=True)
        self.pending.clear()

    def _submit_ahead(self) -> None:
        limit = self.taken + 2 * self.workers.slots + 2 if self.next < len(self.shards) else 0
        while self.next < min(len(self.shards), limit):
            self._submit(self.next, {})
            self.next += 1

    def _submit_payload(self, settings: Mapping[str, Any]) -> Future[bytes]:
        """What all shards share, as a task and no scattered object: Dask computes it again if its worker is killed."""
        with _large_tasks_expected():
            return self.workers.executor.submit(
                keep, self.blob, key=f"{self.name}-common-{uuid.uuid4().hex}", **settings
            )

    def _submit(self, index: int, settings: Mapping[str, Any]) -> None:
        item = pickle.dumps((self.function, self.shards[index]), pickle.HIGHEST_PROTOCOL)
        resources = {GPU: 1} if self.workers.takes_gpu else None
        with _large_tasks_expected():
            future = self.workers.executor.submit(
                run_task,
                item,
                self.payload,
                self.state_key,
                self.events.sender,
                key=f"{self.name}-{index}-{len(self.pending)}-{uuid.uuid4().hex[:6]}",
                # Earlier shards first: results are needed in order.
                priority=-index,
                resources=resources,
                pure=False,
                **settings,
            )
        self.pending[future] = index
        self.started.setdefault(index, time.monotonic())

    def _collect(self, future: Future[Any]) -> list[int]:
        """Take the outcome of a finished task: its shard's index, unless another task was faster."""
        index = self.pending.pop(future, None)
        if index is None:
            return []  # it was cancelled a moment ago, after the other task of its shard
        try:
            value, error = self._read(future), None
        except CancelledError:
            raise
        except TrtkitError as raised:
            value, error = None, raised
        for other in [other for other, same in self.pending.items() if same == index]:
            self.workers.executor.cancel([other], force=True)
            del self.pending[other]
        self.seconds.append(time.monotonic() - self.started[index])
        self.results[index] = (value, error)
        return [index]

    def _read(self, future: Future[Any]) -> Any:
        """What a task returned.

        Raises:
            TrtkitError: What it raised.
        """
        from distributed import KilledWorker

        try:
            address, facts, warned, value = future.result()
        except KilledWorker as error:
            raise self.workers.lost(
                self.stage, "a task was on four workers that were lost, such as for want of memory", count=4
            ) from error
        except Exception as error:
            if future.status in ("cancelled", "lost"):
                raise self.workers.lost(self.stage, "the scheduler is gone") from error
            raise
        self.workers.add_result(address, facts, warned)
        return value

    def _check_alive(self) -> None:
        """Raise where nobody is left to wait for."""
        if self.workers.executor.status != "running":
            raise self.workers.lost(self.stage, "the scheduler is gone")
        if time.monotonic() - self.heard > WAIT_SECONDS and not self.workers._list_workers():
            raise self.workers.lost(self.stage, f"all workers are gone for {WAIT_SECONDS:.0f} s")

    def _repeat_slow(self) -> None:
        """Run shards that take far too long on another worker too; a stopped machine never ends its own."""
        now, limit = time.monotonic(), SLOW_SECONDS
        if self.seconds:
            limit = max(limit, SLOW_FACTOR * statistics.median(self.seconds))
        slow = [
            (future, index)
            for future, index in self.pending.items()
            if now - self.started[index] > limit and index not in self.repeated
        ]
        if not slow:
            return
        alive, another_hangs = self.workers.list_alive()
        if not (another_hangs or (self.seconds and self.repeat_slow)):
            return  # nothing shows yet how long a shard takes
        processing = self.workers.executor.processing()
        for future, index in slow:
            holders = [address for address, keys in processing.items() if str(future.key) in map(str, keys)]
            if not self.repeat_slow and (not holders or set(holders) & set(alive)):
                continue
            others = [address for address in alive if address not in holders]
            # A worker that is alive may wait for one that hangs: then it takes the shard again.
            others = others or (alive if another_hangs else [])
            if others:
                self.repeated.add(index)
                settings = {"workers": others, "allow_other_workers": False}
                # Nothing of it may be needed from the worker that hangs.
                self.payload = self._submit_payload(settings)
                self._submit(index, settings)


@contextlib.contextmanager
def _large_tasks_expected() -> Iterator[None]:
    """Without Dask's advice to scatter what is large: scattered objects are lost with their worker."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sending large graph", category=UserWarning)
        yield
