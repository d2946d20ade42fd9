"""Verbs on two worker processes equal the same verbs in one process, bit for bit, also if a worker is killed midway."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from raising import raises
from replay_runner import ReplayRunner
from task_models import drawn_set

import trtkit as tk
from trtkit import demo
from trtkit.calibration import Calibration
from trtkit.comparison.comparison import Comparison
from trtkit.data import open_dataset
from trtkit.errors import CancelledError, EngineError
from trtkit.evaluation.evaluation import Evaluation
from trtkit.executor import Workers, split_into_shards
from trtkit.progress import Event, Reporter
from trtkit.results import Result

dask_cluster = pytest.importorskip("dask_cluster")
pytestmark = pytest.mark.filterwarnings("ignore:.*skipped")

VARYING = ("speed",)
"""Facts of results that time decides."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of each split, of which three can't be read."""
    path = drawn_set(tmp_path_factory.mktemp("data"), "detect", count=24)
    for split in ("train", "val"):
        for image in sorted((path.parent / "images" / split).iterdir())[3:20:7]:
            image.write_bytes(image.read_bytes()[:100])
    return path


@pytest.fixture(scope="module")
def onnx(model: tk.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    return tk.export(model, format="onnx", output=path).path


def assert_equal(serial: Result, other: Result) -> None:
    for name, table in serial.tables().items():
        assert table.equals(other.tables()[name]), name
    ours, theirs = ({k: v for k, v in one.facts().items() if k not in VARYING} for one in (serial, other))
    assert ours == theirs
    for field in ("model_hash", "data_hash", "runner", "settings", "seed"):
        assert getattr(serial.provenance, field) == getattr(other.provenance, field)
    assert getattr(serial, "hash", None) == getattr(other, "hash", None)


def assert_same_on_workers(executor: Any, stage: str, run: Callable[..., Result]) -> None:
    """A verb gives the same in one process and on two workers, of which one is killed in the middle of a stage."""
    serial = run()
    assert_equal(serial, dask_cluster.same_after_kill(executor, stage, run))


@pytest.fixture(scope="module")
def evaluation(onnx: Path, data: Path) -> Callable[..., Evaluation]:
    return lambda **settings: tk.evaluate(onnx, data, batch=3, **settings)


def test_evaluate(executor: Any, evaluation: Callable[..., Evaluation]) -> None:
    assert_same_on_workers(executor, "evaluate", evaluation)


def test_the_workers_of_an_evaluation_stand_in_its_provenance(
    executor: Any, evaluation: Callable[..., Evaluation], tmp_path: Path
) -> None:
    result = evaluation(executor=executor)
    assert sum(row["tasks"] for row in result.provenance.machine["workers"]) == len(
        split_into_shards(24, multiple=3, slots=2)
    )
    assert Evaluation.load(result.save(tmp_path)).provenance == result.provenance
    assert 0 <= result.overhead < 1


@pytest.mark.parametrize(
    "settings",
    [{"algorithm": "moving_average", "batch": 3}, {"algorithm": "percentile"}],
    ids=["extremes", "histograms"],
)
def test_calibrate(executor: Any, model: tk.Model, data: Path, settings: dict[str, Any]) -> None:
    def run(**more: Any) -> Calibration:
        return tk.calibrate(model, data, device="cpu", **settings, **more)

    assert_same_on_workers(executor, "calibrate", run)


def test_sweep(executor: Any, model: tk.Model, data: Path) -> None:
    assert_same_on_workers(
        executor,
        "evaluate percentile",
        lambda **more: tk.sweep(
            model, data, algorithms=("minmax", "percentile"), calibration_images=(12,), resamples=20, **more
        ),
    )


def test_sensitivity(executor: Any, model: tk.Model, data: Path, calibration: Calibration) -> None:
    def run(**more: Any) -> Result:
        return tk.sensitivity(model, data, probe_images=12, calibration=calibration, worst=1, **more)

    assert_same_on_workers(executor, "measure every layer", run)


def test_search(executor: Any, model: tk.Model, data: Path, calibration: Calibration) -> None:
    def run(**more: Any) -> Result:
        settings: dict[str, Any] = {"probe_images": 6, "trials": 6, "resamples": 20, "backend": "onnxruntime"}
        return tk.search(model, data, calibration=calibration, eval_images=9, **settings, **more)

    assert_same_on_workers(executor, "correct biases", run)


def test_compare(executor: Any, model: tk.Model, data: Path, tmp_path: Path) -> None:
    outputs = iter(range(9))

    def run(**more: Any) -> Comparison:
        return tk.compare(
            model,
            data,
            ("fp32", "int8"),
            build=False,
            runs=2,
            seconds=0.1,
            output=tmp_path / str(next(outputs)),
            **more,
        )

    serial, other = run(), dask_cluster.same_after_kill(executor, "evaluate int8", run)
    assert other.about["calibration"] == serial.about["calibration"]
    assert [row["host"] for row in other.provenance.machine["workers"]]
    for name in ("classes", "images", "detections", "labels", "differences", "thresholds"):
        assert other.tables()[name].equals(serial.tables()[name]), name


def test_a_calibration_of_workers_is_found_in_the_cache(
    executor: Any, model: tk.Model, data: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"calibration_images": 4, "cache_dir": tmp_path, "device": "cpu"}
    events: list[Event] = []
    made = tk.calibrate(model, data, executor=executor, **settings)
    found = tk.calibrate(model, data, progress=events.append, **settings)
    assert found.hash == made.hash
    assert "loaded from the cache" in events[-1].message


def test_a_cache_has_many_writers(executor: Any, calibration: Calibration, tmp_path: Path) -> None:
    pool = Workers(executor, Reporter())
    folders = [str(tmp_path)] * 4
    results = pool.map(
        dask_cluster.write_and_read_a_cache, folders, stage="write", prepare=copy.copy, common=[calibration]
    )
    # Never a wrong value; while another writer moves an entry to its name, it may not be found.
    assert all(reason.startswith("the entry can't be read") for reasons in results for reason in reasons)


def test_cancelling_between_shards(executor: Any, onnx: Path, data: Path) -> None:
    cancel = threading.Event()

    def stop(event: Event) -> None:
        if event.done:
            cancel.set()

    with pytest.raises(CancelledError):
        tk.evaluate(onnx, data, executor=executor, progress=stop, cancel=cancel)


def test_a_runner_that_only_this_process_has_is_refused(executor: Any) -> None:
    dataset = open_dataset(demo.data_path(), task="detect")
    with raises(EngineError, "executor-runner-local", value="stored detections"):
        tk.evaluate(ReplayRunner([], dict(dataset.names)), dataset, executor=executor)


def test_a_file_that_workers_see_another_version_of_is_refused(executor: Any, onnx: Path, data: Path) -> None:
    with tk.open(onnx) as runner:
        runner.hash = "0" * 64
        with raises(EngineError, "executor-file-differs"):
            tk.evaluate(runner, data, executor=executor)
