"""Builds and timings on workers: results are those of one process, killed or not, and no two share a GPU."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import polars as pl
import pytest
from raising import raises
from task_models import drawn_set

import trtkit as tk
from trtkit.backends import read_engine
from trtkit.calibration import Calibration
from trtkit.cli import main
from trtkit.errors import CancelledError, CapabilityError, EngineError
from trtkit.executor import EngineWorkers, Workers
from trtkit.progress import Event, Reporter

dask_cluster = pytest.importorskip("dask_cluster")
toy_backend = pytest.importorskip("toy_backend")

ACCURACY = ("classes", "images", "detections", "labels", "differences", "thresholds")
"""Tables of a comparison that accuracy decides."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn_set(tmp_path_factory.mktemp("data"), "detect", count=12)


@pytest.fixture
def toy(executor: Any, tmp_path: Path) -> Iterator[Path]:
    """The workers have a backend that this process has not; the folder of their notes."""
    notes = tmp_path / "notes"
    notes.mkdir()
    executor.wait_for_workers(2, timeout=60)
    with dask_cluster.toy_backend_on(executor, notes):
        yield notes


def compare(model: tk.Model, data: Path, output: Path, **settings: Any) -> Any:
    values: dict[str, Any] = {"precisions": ("fp32", "int8"), "runs": 60, "seconds": 1.0, "output": output}
    return tk.compare(model, data, **{**values, **settings})


@pytest.fixture(scope="module")
def serial(model: tk.Model, data: Path, calibration: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A comparison of engines that this process built and timed."""
    toy_backend.register("TOY")
    try:
        output = tmp_path_factory.mktemp("serial")
        yield compare(model, data, output, calibration=calibration, backend="toy", runs=5, seconds=0.1), output
    finally:
        toy_backend.register("")


def assert_same_accuracy(comparison: Any, output: Path, serial: tuple[Any, Path]) -> None:
    reference, folder = serial
    for name in ACCURACY:
        assert comparison.tables()[name].equals(reference.tables()[name]), name
    for kind in ("onnx", "engine"):
        names = sorted(path.name for path in folder.glob(f"*.{kind}"))
        assert sorted(path.name for path in output.glob(f"*.{kind}")) == names
    for path in output.glob("*.engine"):
        mine, theirs = read_engine(path), read_engine(folder / path.name)
        assert read_computation(mine.plan) == read_computation(theirs.plan)


def read_computation(plan: bytes) -> bytes:
    """The graph that is the toy's plan, without its recipe, which names the output."""
    graph = onnx.load_model_from_string(plan)
    del graph.metadata_props[:]
    return bytes(graph.SerializeToString(deterministic=True))


def test_engines_of_workers_are_those_of_one_process_also_if_a_build_is_killed(
    executor: Any, toy: Path, model: tk.Model, data: Path, calibration: Calibration, serial: Any, tmp_path: Path
) -> None:
    (toy / "kill").touch()
    output = tmp_path / "out"
    comparison = compare(model, data, output, calibration=calibration, backend="toy", executor=executor)
    killed = int((toy / "killed").read_text())
    executor.wait_for_workers(2, timeout=60)
    assert killed not in dask_cluster.list_pids(executor).values()
    assert_same_accuracy(comparison, output, serial)
    assert comparison.about["builder"] == "Toy 1.0"
    assert comparison.frame()["runner"].to_list() == ["Toy 1.0"] * 2
    assert comparison.about["recipes"] == {
        label: {kind: {**recipe, "output": str(output / Path(recipe["output"]).name)} for kind, recipe in both.items()}
        for label, both in serial[0].about["recipes"].items()
    }
    workers = comparison.provenance.machine["workers"]
    assert {row["versions"]["trtkit"] for row in workers} == {tk.__version__}


def test_a_timing_whose_worker_is_killed_runs_again(
    executor: Any, toy: Path, model: tk.Model, data: Path, calibration: Calibration, serial: Any, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    comparison = dask_cluster.same_after_kill(
        executor,
        "benchmark batch 1",
        lambda **more: compare(
            model, data, output, calibration=calibration, backend="toy", runs=100_000, seconds=1.0, **more
        ),
    )
    assert_same_accuracy(comparison, output, serial)
    assert comparison.samples["label"].unique().sort().to_list() == ["fp32", "int8"]


def test_steps_of_the_plan_begin_in_order_while_workers_do_them(
    executor: Any, toy: Path, model: tk.Model, data: Path, calibration: Calibration, tmp_path: Path
) -> None:
    events: list[Event] = []
    compare(
        model, data, tmp_path / "out", calibration=calibration, backend="toy", runs=5, seconds=0.1,
        executor=executor, progress=events.append,
    )  # fmt: skip
    plan = next(event.plan for event in events if event.plan is not None)
    steps = [event.step for event in events]
    assert steps == sorted(steps)
    assert set(range(1, len(plan.steps) + 1)) <= set(steps)
    assert [step for step in plan.steps if step.startswith("build")] == ["build fp32 engine", "build int8 engine"]
    assert any(event.stage.startswith("benchmark batch 1") and event.done for event in events)


def test_cancelling_stops_a_build_on_a_worker(
    executor: Any, toy: Path, model: tk.Model, data: Path, calibration: Calibration, tmp_path: Path
) -> None:
    (toy / "wait").touch()
    cancel = threading.Event()

    def stop(event: Event) -> None:
        if "toy" in event.stage:
            cancel.set()

    with pytest.raises(CancelledError):
        compare(
            model, data, tmp_path / "out", calibration=calibration, backend="toy", executor=executor, progress=stop,
            cancel=cancel,
        )  # fmt: skip
    assert not (tmp_path / "out" / "comparison.json").exists()
    deadline = time.monotonic() + 20
    while not (toy / "stopped").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_plan_on_the_command_line_asks_the_workers_of_a_scheduler(
    executor: Any, toy: Path, model: tk.Model, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tk.export(model, format="onnx", output=tmp_path / "tiny.onnx").path
    words = ["compare", str(file), str(data), "--backend", "toy", "--output", str(tmp_path / "out"), "--dry-run"]
    assert main(words) == 2
    assert "not installed" in capsys.readouterr().err
    assert main([*words, "--scheduler", executor.scheduler.address]) == 0
    assert "builder: Toy 1.0" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_search_times_engines_on_workers_also_if_one_is_killed(
    executor: Any, toy: Path, model: tk.Model, data: Path, calibration: Calibration
) -> None:
    settings: dict[str, Any] = {
        "calibration": calibration, "probe_images": 4, "trials": 4, "resamples": 20, "eval_images": 6, "repair": False,
    }  # fmt: skip
    reference = tk.search(model, data, backend="onnxruntime", **settings)
    (toy / "kill").touch()
    result = tk.search(model, data, backend="toy", executor=executor, **settings)
    assert (toy / "killed").exists()
    accuracy = ["assignment", "metric", "loss", "loss_low", "loss_high", "int8_share", "sqnr"]
    assert result.trials.select(accuracy).equals(reference.trials.select(accuracy))
    assert result.trials["unit"].unique().to_list() == ["ms"]
    assert result.trials.select(pl.col("cost").min()).item() > 0
    assert "Toy 1.0" in result.cost_source
    executor.wait_for_workers(2, timeout=60)


def test_an_engine_that_workers_opened_is_evaluated_by_them_alone(
    executor: Any, toy: Path, data: Path, serial: Any
) -> None:
    comparison, folder = serial
    (path,) = folder.glob("*-int8.engine")
    with EngineWorkers(executor, Reporter()).open(path) as runner:
        assert (runner.name, runner.precision, runner.path) == ("Toy 1.0", "int8", path)
        assert runner.opener is not None
        with raises(EngineError, "runner-on-workers", path=path):
            runner.infer({})
        evaluation = tk.evaluate(runner, data, executor=executor)
    expected = comparison.detections.filter(pl.col("precision") == "int8").drop("precision")
    assert evaluation.detections.equals(expected.select(evaluation.detections.columns))


def test_engines_are_judged_by_the_workers(executor: Any, model: tk.Model, data: Path, tmp_path: Path) -> None:
    for verb in (
        lambda backend: compare(model, data, tmp_path / "out", backend=backend, executor=executor),
        lambda backend: tk.search(model, data, backend=backend, executor=executor),
    ):
        with raises(CapabilityError, "backend-missing", backend="tensorrt"):
            verb("tensorrt")
    assert not (tmp_path / "out").exists()
    pool = EngineWorkers(executor, Reporter())
    assert not pool.has_gpu
    with raises(CapabilityError, "executor-gpu-missing", value="tensorrt"):
        pool.require_gpu("tensorrt")


def test_gpus_of_workers_are_checked_where_engines_may_run(executor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trtkit.executor.engines.offers_gpu", lambda client: True)
    with raises(CapabilityError, "executor-gpu-missing", count=2):
        EngineWorkers(executor, Reporter())
    assert not EngineWorkers(executor, Reporter(), engines=False).has_gpu


def test_two_tasks_that_want_the_one_gpu_never_overlap() -> None:
    """Of two verbs at once, on a worker with two threads; the same tasks overlap where they don't take the GPU."""
    with dask_cluster.one_gpu_worker() as client:
        intervals: list[tuple[str, float, float]] = []

        def run() -> None:
            pool = EngineWorkers(client, Reporter())
            intervals.extend(pool.map(dask_cluster.record_interval, range(3), stage="record"))

        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        free = list(Workers(client, Reporter()).map(dask_cluster.record_interval, range(8), stage="record"))
        (offering,) = (
            address for address, one in client.scheduler_info(n_workers=-1)["workers"].items() if one["resources"]
        )
    assert len(intervals) == 6
    assert {address for address, _, _ in intervals} == {offering}
    assert not count_overlaps(intervals)
    assert count_overlaps(free)


def count_overlaps(intervals: list[tuple[str, float, float]]) -> int:
    ordered = sorted((begin, end) for _, begin, end in intervals)
    return sum(begin < end for (_, end), (begin, _) in itertools.pairwise(ordered))
