"""Shards on two worker processes: order, errors, cancellation, and workers that die, hang or do not fit."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raising import raises

import trtkit as tk
from trtkit.backends.devices import Gpu
from trtkit.errors import CalibrationError, CancelledError, CapabilityError, RecipeError
from trtkit.executor import Workers, describe_executor, describe_worker, scheduler, split_into_shards, workers
from trtkit.executor.facts import WorkerFacts, check_gpus, check_versions
from trtkit.executor.scheduler import is_protected
from trtkit.progress import Event, Reporter
from trtkit.results import package_versions

dask_cluster = pytest.importorskip("dask_cluster")


@given(count=st.integers(1, 500), multiple=st.integers(1, 40), slots=st.integers(1, 100))
def test_shards_are_whole_batches_in_order(count: int, multiple: int, slots: int) -> None:
    shards = split_into_shards(count, multiple=multiple, slots=slots)
    assert [index for shard in shards for index in shard] == list(range(count))
    assert all(len(shard) % multiple == 0 for shard in shards[:-1])
    assert max(map(len, shards)) <= max(workers.SHARD_IMAGES + multiple - 1, multiple)


def test_results_come_in_the_order_of_the_shards(executor: Any) -> None:
    events: list[Event] = []
    pool = Workers(executor, Reporter(events.append))
    numbers = list(range(40))
    results = pool.map(dask_cluster.square, numbers, stage="square", prepare=abs, common=[-7], sizes=[2] * 40)
    assert list(results) == [7 + number**2 for number in numbers]
    assert [event.done for event in events] == sorted({0, *(event.done for event in events)})
    assert (events[-1].done, events[-1].total) == (80, 80)
    described = pool.describe()["workers"]
    assert sum(row["tasks"] for row in described) == 40
    assert described[0]["versions"]["trtkit"] == tk.__version__


def test_the_first_error_in_order_is_raised(executor: Any) -> None:
    results = Workers(executor, Reporter()).map(dask_cluster.refuse, [0, 2, 1, 4, 3, 5], stage="refuse")
    assert (next(results), next(results)) == (0, 2)
    with raises(CalibrationError, "test-odd", value=1):
        next(results)


def test_local_workers_have_a_gpu_of_their_own_as_far_as_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [Gpu(index=index, name="A", sm="sm90", memory=1, uuid=uuid) for index, uuid in enumerate(("GPU-x", ""))]
    monkeypatch.setattr(scheduler, "find_gpus", lambda: gpus)
    # The second of the GPUs that this process sees.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setattr("distributed.SpecCluster", lambda workers, **settings: list(workers.values()))
    options = [one["options"] for one in scheduler._start_local(3)]
    assert [one["env"]["CUDA_VISIBLE_DEVICES"] for one in options] == ["GPU-x", "6", ""]
    assert [one.get("resources") for one in options] == [{"GPU": 1}, {"GPU": 1}, None]
    assert len(scheduler._start_local(None)) == 2


def test_warnings_of_workers_are_given_once(executor: Any) -> None:
    with pytest.warns(UserWarning, match="odd") as caught:
        list(Workers(executor, Reporter()).map(dask_cluster.warn_of, range(6), stage="warn"))
    assert [str(one.message) for one in caught] == ["an image is odd"]


def test_cancelling_stops_what_workers_do(executor: Any, tmp_path: Path) -> None:
    cancel, paths = threading.Event(), [tmp_path / "a", tmp_path / "b"]

    def cancel_when_started() -> None:
        while not any(path.with_suffix(".started").exists() for path in paths):
            time.sleep(0.01)
        cancel.set()

    threading.Thread(target=cancel_when_started).start()
    with pytest.raises(CancelledError):
        list(
            Workers(executor, Reporter(None, cancel)).map(
                dask_cluster.wait_until_stopped, list(map(str, paths)), stage="wait"
            )
        )
    started = [path for path in paths if path.with_suffix(".started").exists()]
    deadline = time.monotonic() + 10
    while not all(path.exists() for path in started):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # The workers are free again.
    assert list(Workers(executor, Reporter()).map(dask_cluster.square, [3], stage="square", prepare=int)) == [9]


@pytest.mark.parametrize("repeat_slow", [True, False])
def test_a_shard_of_a_worker_that_hangs_runs_elsewhere(
    executor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repeat_slow: bool
) -> None:
    monkeypatch.setattr(workers, "SLOW_SECONDS", 0.3)
    monkeypatch.setattr(workers, "SILENT_SECONDS", 1.2)
    executor.wait_for_workers(2, timeout=60)
    flag = tmp_path / "stopped"
    items = [(str(flag), number) for number in range(12)]
    try:
        pool = Workers(executor, Reporter())
        results = list(pool.map(dask_cluster.stop_this_process_once, items, stage="hang", repeat_slow=repeat_slow))
    finally:
        os.kill(int(flag.read_text()), signal.SIGCONT)
    assert results == list(range(12))


def test_a_slow_shard_that_ends_before_its_copy_counts(
    executor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "SLOW_SECONDS", 0.2)
    executor.wait_for_workers(2, timeout=60)
    items = [(str(tmp_path / "begun"), number) for number in range(3)]
    results = Workers(executor, Reporter()).map(dask_cluster.finish_before_the_copy, items, stage="slow")
    with contextlib.closing(results):
        found = list(results)
    assert found == [0, 1, 2]
    assert (tmp_path / "begun.copied").exists()


def test_a_slow_shard_of_work_that_differs_in_time_does_not_run_twice(
    executor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "SLOW_SECONDS", 0.1)
    executor.wait_for_workers(2, timeout=60)
    paths = [tmp_path / "a", tmp_path / "b"]
    results = list(
        Workers(executor, Reporter()).map(
            dask_cluster.count_runs, list(map(str, paths)), stage="slow", repeat_slow=False
        )
    )
    assert results == [1, 1]
    assert [path.read_text() for path in paths] == ["run", "run"]


def test_shards_are_submitted_a_few_ahead_of_the_result_that_is_needed(
    executor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler with a million tasks of a large data set would be slow, and cancelling them too."""
    submitted: list[str] = []
    submit = executor.submit

    def count(*arguments: Any, **settings: Any) -> Any:
        submitted.append(settings["key"])
        return submit(*arguments, **settings)

    monkeypatch.setattr(executor, "submit", count)
    pool = Workers(executor, Reporter())
    results = pool.map(dask_cluster.square, range(300), stage="square", prepare=int)
    with contextlib.closing(results):
        assert next(results) == 0
    assert len(submitted) <= 2 * pool.slots + 3


def test_a_worker_that_came_later_is_checked_too(executor: Any) -> None:
    pool = Workers(executor, Reporter())
    facts = describe_worker()
    pool.add_result("tcp://late:1", facts, ())
    other = dataclasses.replace(facts, versions={**facts.versions, "onnxruntime": "0.1"})
    with raises(CapabilityError, "executor-versions-differ", worker="tcp://later:1", names=("onnxruntime",)):
        pool.add_result("tcp://later:1", other, ())


def test_a_worker_that_hangs_is_not_waited_for(executor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "SILENT_SECONDS", 1.2)
    executor.wait_for_workers(2, timeout=60)
    pid, *others = dask_cluster.list_pids(executor).values()
    os.kill(pid, signal.SIGSTOP)
    try:
        (row,) = describe_executor(executor)["workers"]
    finally:
        os.kill(pid, signal.SIGCONT)
    assert len(others) == 1
    assert row["versions"] == package_versions()
    assert len(describe_executor(executor)["workers"]) == 2


def test_a_shard_that_kills_every_worker_is_given_up(executor: Any) -> None:
    executor.wait_for_workers(2, timeout=60)
    before = executor.run_on_scheduler(dask_cluster.allow_failures, 0)
    try:
        with raises(CapabilityError, "executor-workers-lost"):
            list(Workers(executor, Reporter()).map(dask_cluster.exit_hard, [1], stage="exit", repeat_slow=False))
    finally:
        executor.run_on_scheduler(dask_cluster.allow_failures, before)
    executor.wait_for_workers(2, timeout=60)


def test_a_closed_client_is_refused(executor: Any) -> None:
    from distributed import Client

    client = Client(executor.scheduler.address, set_as_default=False)
    client.close()
    with raises(CapabilityError, "executor-closed"):
        Workers(client, Reporter())


@pytest.mark.parametrize("value", ["local:2", object(), 4])
def test_verbs_refuse_what_is_no_client(value: Any) -> None:
    with raises(RecipeError, "argument-invalid", name="executor"):
        tk.evaluate("x.onnx", "data.yaml", executor=value)


# Schedulers.


@pytest.mark.parametrize(
    "scheduler", ["local:0", "local:00", "local:", "local:x", "local:-1", "host:8786", "http://host:1", "", "tcp://"]
)
def test_other_schedulers_are_refused(scheduler: str) -> None:
    with raises(RecipeError, "executor-scheduler-invalid", value=scheduler), tk.open_executor(scheduler):
        pass


def test_a_scheduler_that_is_not_there() -> None:
    from dask import config

    with (
        config.set({"distributed.comm.timeouts.connect": 0.1}),
        raises(CapabilityError, "executor-unreachable"),
        tk.open_executor("tcp://127.0.0.1:9"),
    ):
        pass
    with raises(CapabilityError, "executor-file-missing"), tk.open_executor("/nowhere/scheduler.json"):
        pass


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "tls://127.0.0.1:9"])
def test_a_client_that_connects_nowhere_is_closed_at_once(address: str) -> None:
    """The garbage collector would close it while the next client starts, which then waits for itself."""
    from dask import config

    def list_loops() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "IO loop"]

    before = list_loops()
    with (
        config.set({"distributed.comm.timeouts.connect": 0.1}),
        raises(CapabilityError, "executor-unreachable") as caught,
        tk.open_executor(address),
    ):
        pass
    # The error still holds what was begun.
    assert caught.value.__cause__ is not None
    assert list_loops() == before


def test_tls_without_certificates_says_where_they_belong() -> None:
    with raises(CapabilityError, "executor-unreachable") as caught, tk.open_executor("tls://127.0.0.1:9"):
        pass
    assert "distributed.comm.tls" in str(caught.value)


@pytest.mark.parametrize(
    ("address", "protected"),
    [
        ("tcp://127.0.0.1:8786", True),
        ("tcp://127.1.2.3:8786", True),
        ("tcp://[::1]:8786", True),
        ("tcp://localhost:8786", True),
        ("inproc://10.0.0.1/1/1", True),
        ("tls://10.0.0.1:8786", True),
        ("wss://cluster:443", True),
        ("tcp://10.0.0.1:8786", False),
        ("tcp://localhost.example.org:8786", False),
        ("tcp://127.0.0.1.example.org:8786", False),
        ("ws://cluster:80", False),
        ("tcp://[2001:db8::1]:8786", False),
        ("tcp://0.0.0.0:8786", False),
    ],
)
def test_only_tls_and_loopback_are_protected(address: str, protected: bool) -> None:
    assert is_protected(address) is protected


def test_an_unprotected_scheduler_is_used_with_a_warning(executor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import Client

    monkeypatch.setattr(workers, "is_protected", lambda address: False)
    with Client(executor.scheduler.address, set_as_default=False) as client:
        with pytest.warns(UserWarning, match="runs code as you"):
            Workers(client, Reporter())
        with warnings.catch_warnings(record=True) as again:
            warnings.simplefilter("always")
            Workers(client, Reporter())
    # Once for each client.
    assert not [warning for warning in again if "runs code as you" in str(warning.message)]


# Workers that do not fit.


def gpu(name: str = "H200", uuid: str = "GPU-1", driver: str = "580") -> dict[str, Any]:
    return {"index": 0, "name": name, "uuid": uuid, "driver": driver}


def facts(*gpus: dict[str, Any], **versions: str) -> WorkerFacts:
    own = describe_worker()
    return dataclasses.replace(own, gpus=gpus, versions={**own.versions, **versions})


def offer(count: float = 1, **facts: WorkerFacts) -> tuple[dict[str, WorkerFacts], dict[str, Any]]:
    return facts, {name: {"resources": {"GPU": count}} for name in facts}


def test_other_versions_are_refused() -> None:
    check_versions({"a": facts(python="3.10.1", tensorrt="11.0")})
    torch = package_versions()["torch"].partition("+")[0]
    check_versions({"a": facts(torch=f"{torch}+cu130")})
    with raises(CapabilityError, "executor-versions-differ", worker="a", names=("torch",)):
        check_versions({"a": facts(torch="1.13.0+cpu")})
    with raises(CapabilityError, "executor-versions-differ", worker="b", names=("onnxruntime",)):
        check_versions({"a": facts(), "b": facts(onnxruntime="1.0")})


def test_gpus_of_one_kind_are_accepted() -> None:
    check_gpus(*offer(a=facts(gpu()), b=facts(gpu(uuid="GPU-2"))))


@pytest.mark.parametrize(
    ("other", "code"),
    [
        (facts(gpu()), "executor-gpu-shared"),
        (facts(gpu("A100", "GPU-2")), "executor-gpus-mixed"),
        (facts(gpu(uuid="GPU-2", driver="570")), "executor-gpus-mixed"),
        (facts(gpu(uuid="GPU-2"), tensorrt="10.0"), "executor-gpus-mixed"),
    ],
)
def test_gpus_that_are_shared_or_mixed_are_refused(other: WorkerFacts, code: str) -> None:
    with raises(CapabilityError, code):
        check_gpus(*offer(a=facts(gpu()), b=other))


def test_a_gpu_is_one_resource() -> None:
    with raises(CapabilityError, "executor-gpu-shared", names=["a"]):
        check_gpus(*offer(2, a=facts(gpu())))


def test_a_worker_that_offers_a_gpu_has_one() -> None:
    with raises(CapabilityError, "executor-gpu-missing", names=["b"]):
        check_gpus(*offer(a=facts(gpu()), b=facts()))


def test_work_on_a_gpu_needs_one(executor: Any) -> None:
    with raises(CapabilityError, "executor-gpu-missing", count=2):
        Workers(executor, Reporter(), gpu=True)
