"""Throughput under load: the arithmetic on a runner of known latency, refusals, errors and cancellation."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_graphs
from raising import raises
from task_models import CannedRunner

import trtkit as tk
from trtkit.cli import main
from trtkit.errors import CancelledError, EngineError
from trtkit.evaluation.load_test import LoadTest


class Slow(CannedRunner):
    """Answers after `delay` seconds, `lanes` requests at a time."""

    batch = 4
    name = "slow"

    def __init__(self, delay: float = 0.01, lanes: int = 2, limit: int = 99) -> None:
        super().__init__("detect", [])
        self.delay, self.limit, self.waiting_now, self.most = delay, limit, 0, 0
        self.lanes = threading.Semaphore(lanes)
        self.lock = threading.Lock()
        self.error: Exception | None = None

    def infer(self, feeds: Any) -> dict[str, np.ndarray]:
        if self.error is not None:
            raise self.error
        with self.lock:
            self.waiting_now += 1
            self.most = max(self.most, self.waiting_now)
            full = self.waiting_now > self.limit
        try:
            if full:
                time.sleep(0.001)
                raise EngineError("run", "full", "wait", code="triton-overloaded")
            with self.lanes:
                time.sleep(self.delay)
        finally:
            with self.lock:
                self.waiting_now -= 1
        return {}


def test_throughput_grows_until_the_lanes_are_full_and_latency_afterwards(tmp_path: Path) -> None:
    runner = Slow()
    result = tk.load_test(runner, batch=(1, 4), concurrency=(1, 2, 4), seconds=0.25, warmup=1)
    rows = {(row["batch"], row["concurrency"]): row for row in result.frame().iter_rows(named=True)}
    assert list(rows) == [(size, count) for size in (1, 4) for count in (1, 2, 4)]
    assert runner.most == 4
    one, two, four = (rows[1, count] for count in (1, 2, 4))
    # A busy machine makes sleeps longer, never shorter.
    assert one["p50_ms"] >= 10
    assert one["images_per_s"] <= 100
    assert two["images_per_s"] > 1.4 * one["images_per_s"]
    assert four["images_per_s"] < 1.4 * two["images_per_s"]
    assert four["mean_ms"] > 1.5 * one["mean_ms"]
    assert rows[4, 1]["images_per_s"] > 3 * one["images_per_s"]
    assert all(row["refused"] == 0 for row in rows.values())
    assert all(row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"] for row in rows.values())
    figure = result.plot()
    assert len(figure.data) == 2 * 3
    loaded = LoadTest.load(result.save(tmp_path / "out"))
    assert loaded.frame().equals(result.frame())
    assert repr(loaded) == repr(result)
    assert "batch 4, concurrency 2" in repr(result)


def test_refused_requests_are_counted() -> None:
    frame = tk.load_test(Slow(limit=1), concurrency=(1, 3), seconds=0.1, warmup=0).frame()
    alone, three = frame.iter_rows(named=True)
    assert alone["refused"] == 0
    assert three["refused"] > 0
    assert three["requests"] > 0
    result = tk.load_test(Slow(limit=0), concurrency=1, seconds=0.05, warmup=0)
    (none,) = result.frame().iter_rows(named=True)
    assert (none["requests"], none["images_per_s"], none["p50_ms"]) == (0, 0, None)
    assert "no answer" in repr(result)


def test_an_error_of_one_client_ends_all() -> None:
    runner = Slow()
    runner.error = EngineError("run", "gone", "start it", code="triton-unreachable")
    for warmup in (0, 1):
        with raises(EngineError, "triton-unreachable"):
            tk.load_test(runner, concurrency=3, seconds=5.0, warmup=warmup)


def test_cancelling_ends_it_at_once() -> None:
    cancel = threading.Event()
    threading.Timer(0.1, cancel.set).start()
    start = time.perf_counter()
    with pytest.raises(CancelledError):
        tk.load_test(Slow(), concurrency=2, seconds=30.0, cancel=cancel)
    assert time.perf_counter() - start < 5


def test_a_batch_that_does_not_fit(tmp_path: Path) -> None:
    with raises(EngineError, "benchmark-batch-too-large", limit=4):
        tk.load_test(Slow(), batch=(1, 8))
    with raises(EngineError, "benchmark-imgsz-fixed"):
        tk.load_test(Slow(), imgsz=32)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(tiny_graphs.detector(dynamic=True), tmp_path / "a.onnx")
    words = ["load-test", str(tmp_path / "a.onnx"), "--batch", "1,2", "--concurrency", "2", "--seconds", "0.02"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    assert "images_per_s" in capsys.readouterr().out
    assert LoadTest.load(tmp_path / "out").frame()["batch"].to_list() == [1, 2]
