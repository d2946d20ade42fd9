"""Throughput and latency of a runner under load: requests of several clients at a time, over batch and concurrency."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import polars as pl

from trtkit.data import to_input
from trtkit.errors import EngineError
from trtkit.evaluation.latency import open_runners, resolve_imgsz
from trtkit.progress import CancelToken, Cost, Plan, Progress, Reporter, start_work
from trtkit.progress_line import verb
from trtkit.results import Provenance, Result, describe_machine

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from typing_extensions import Self

    from trtkit.backends.runner import Runner
    from trtkit.exporter import Artifact

__all__ = ["LoadTest", "load_test"]

REFUSALS = ("triton-overloaded", "triton-timeout")
"""Codes of errors that a load test counts: the server refuses more requests, or answers too late."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class LoadTest(Result):
    """Throughput and latency by batch and concurrency.

    Attributes:
        samples: All answered requests: batch, concurrency, client (its number), ms.
        loads: One row per batch and concurrency: seconds (wall time), refused (requests that the server refused or
            answered too late).
        runner: The runner's name.
    """

    kind: ClassVar[str] = "load-test"

    samples: pl.DataFrame
    loads: pl.DataFrame
    runner: str
    provenance: Provenance

    def frame(self) -> pl.DataFrame:
        """Return one row per batch and concurrency: requests, refused, images_per_s, mean, p50, p90 and p99 in ms."""
        ms, keys = pl.col("ms"), ["batch", "concurrency"]
        summary = self.samples.group_by(keys).agg(
            requests=ms.len().cast(pl.Int64),
            mean_ms=ms.mean(),
            **{f"p{share}_ms": ms.quantile(share / 100, "linear") for share in (50, 90, 99)},
        )
        rows = self.loads.join(summary, on=keys, how="left", maintain_order="left")
        rows = rows.with_columns(pl.col("requests").fill_null(0))
        speed = pl.col("requests") * pl.col("batch") / pl.col("seconds")
        return rows.with_columns(images_per_s=speed).select(
            *keys, "requests", "refused", "images_per_s", "mean_ms", "p50_ms", "p90_ms", "p99_ms"
        )

    def plot(self) -> go.Figure:
        """Plot throughput and latency over the concurrency, a line for each batch."""
        from trtkit.plotting.evaluation import load_figure

        return load_figure(self.frame(), title=self.runner)

    def tables(self) -> Mapping[str, pl.DataFrame]:
        """Return the samples and the loads."""
        return {"samples": self.samples, "loads": self.loads}

    def facts(self) -> Mapping[str, Any]:
        """Return the runner's name."""
        return {"runner": self.runner}

    @classmethod
    def restore(cls, tables: Mapping[str, pl.DataFrame], facts: Mapping[str, Any], provenance: Provenance) -> Self:
        """Invert `tables` and `facts`."""
        return cls(samples=tables["samples"], loads=tables["loads"], runner=str(facts["runner"]), provenance=provenance)

    def __repr__(self) -> str:
        lines = [f"LoadTest of {self.runner}"]
        for row in self.frame().iter_rows(named=True):
            times = "no answer" if row["p50_ms"] is None else f"p50 {row['p50_ms']:.3g} ms, p99 {row['p99_ms']:.3g} ms"
            refused = f", {row['refused']} refused" if row["refused"] else ""
            lines.append(
                f"  batch {row['batch']}, concurrency {row['concurrency']}: {row['images_per_s']:.4g} images/s, "
                f"{times}{refused}"
            )
        return "\n".join(lines)


@verb
def load_test(
    runner: Runner | Artifact | str | Path,
    *,
    batch: int | Sequence[int] = 1,
    concurrency: int | Sequence[int] = (1, 2, 4, 8),
    imgsz: int | tuple[int, int] | None = None,
    warmup: int = 3,
    seconds: float = 3.0,
    seed: int = 0,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> LoadTest:
    """Measure throughput and latency while several clients send requests at the same time.

    >>> import trtkit as tk
    >>> tk.load_test("triton+http://localhost:8000/yolo11n", batch=(1, 8)).plot()

    Each client sends its next request when the last one is answered.

    Args:
        runner: The address of a served model, a runner or a file.
        batch: Images per request; each is measured separately.
        concurrency: Clients at the same time; each is measured separately.
        imgsz: Image side or (height, width), pixels; None takes the model's own.
        warmup: Requests of each client before the measurement.
        seconds: Time per batch and concurrency; a client's last request may take longer.
        seed: Seed of the random images.
        progress: Receives progress events.
        cancel: Cancellation token.

    Returns:
        Throughput, latency and refused requests by batch and concurrency.

    Raises:
        EngineError: The batch is larger than the model's, the size is not the model's, or the server is gone.
        CancelledError: The caller cancelled.
    """
    batches = (batch,) if isinstance(batch, int) else tuple(batch)
    counts = (concurrency,) if isinstance(concurrency, int) else tuple(concurrency)
    reporter = Reporter(progress, cancel)
    with open_runners(runner, device=None, backend=None) as opened:
        (one,) = opened.values()
        size = resolve_imgsz(one.name, one, batches, imgsz)
        start_work(
            Plan(
                verb="load_test",
                settings={"runner": one.name, "imgsz": size},
                steps=tuple(_name_step(number, count) for number in batches for count in counts),
                costs={
                    _name_step(number, count): Cost(kind="send", seconds=seconds)
                    for number in batches
                    for count in counts
                },
            ),
            reporter,
        )
        samples: list[dict[str, Any]] = []
        loads: list[dict[str, Any]] = []
        for number in batches:
            preprocess = one.info.preprocess
            pixels = np.random.default_rng(seed).integers(0, 256, (number, *size, preprocess.channels), np.uint8)
            feed = to_input(list(pixels), preprocess)
            for count in counts:
                reporter.begin(_name_step(number, count))
                times, refused, elapsed = _send(one, feed, count, warmup, seconds, reporter)
                samples += [
                    {"batch": number, "concurrency": count, "client": client, "ms": ms}
                    for client, own in enumerate(times)
                    for ms in own
                ]
                loads.append({"batch": number, "concurrency": count, "seconds": elapsed, "refused": refused})
        reporter.finish()
        provenance = Provenance(
            model_hash=one.hash,
            runner=one.name,
            machine=describe_machine(),
            settings={
                "batch": list(batches), "concurrency": list(counts), "imgsz": list(size), "warmup": warmup,
                "seconds": seconds,
            },
            seed=seed,
        )  # fmt: skip
    schema = {"batch": pl.Int64, "concurrency": pl.Int64, "client": pl.Int64, "ms": pl.Float64}
    return LoadTest(
        samples=pl.DataFrame(samples, schema=schema), loads=pl.DataFrame(loads), runner=one.name, provenance=provenance
    )


def _name_step(batch: int, clients: int) -> str:
    return f"send batches of {batch} by {clients} clients"


def _send(
    runner: Runner, feed: np.ndarray[Any, Any], clients: int, warmup: int, seconds: float, reporter: Reporter
) -> tuple[list[list[float]], int, float]:
    """Let clients send one batch again and again: milliseconds of each, refused requests, and the wall time."""
    ready, stop = threading.Barrier(clients), threading.Event()
    clock: list[float] = []

    def work(number: int) -> tuple[list[float], int]:
        times: list[float] = []
        refused = 0
        try:
            for _ in range(warmup):
                _ask(runner, feed)
            ready.wait()
        except BaseException:
            # The others must not wait for this one.
            ready.abort()
            raise
        start = time.perf_counter()
        clock.append(start)
        while not stop.is_set() and (time.perf_counter() - start < seconds or not (times or refused)):
            ms = _ask(runner, feed)
            if ms is None:
                refused += 1
            else:
                times.append(ms)
        clock.append(time.perf_counter())
        return times, refused

    with ThreadPoolExecutor(clients) as pool:
        futures = [pool.submit(work, number) for number in range(clients)]
        try:
            while not all(future.done() for future in futures):
                reporter.step(_name_step(len(feed), clients), 0) if reporter.is_cancelled() else time.sleep(0.01)
        finally:
            stop.set()
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    results = [future.result() for future in futures]
    return [times for times, _ in results], sum(refused for _, refused in results), max(clock) - min(clock)


def _ask(runner: Runner, feed: np.ndarray[Any, Any]) -> float | None:
    """Send one request: milliseconds until its answer, or None if it was refused."""
    start = time.perf_counter()
    try:
        runner.infer(feed)
    except EngineError as error:
        if error.code not in REFUSALS:
            raise
        return None
    return (time.perf_counter() - start) * 1e3
