"""Latency and throughput of runners, measured alternately so that they are comparable."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import polars as pl

from trtkit.backends.gpu_state import GpuState, watch_gpu
from trtkit.data import to_input
from trtkit.errors import EngineError, RecipeError
from trtkit.evaluation.rounds import (
    BLOCK_RUNS,
    ROUNDS_SCHEMA,
    compare_latencies,
    find_disturbances,
    measure_noise,
)
from trtkit.progress import CancelToken, Cost, Plan, Progress, Reporter, start_work
from trtkit.progress_line import verb
from trtkit.results import Provenance, Result, describe_machine

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from typing_extensions import Self

    from trtkit.backends.runner import Runner
    from trtkit.exporter import Artifact

__all__ = [
    "OFFLINE_SCHEMA",
    "Timing",
    "benchmark",
    "open_runners",
    "resolve_imgsz",
    "summarize_runs",
]

MIN_RUNS = 5
"""Minimum number of runs, whatever the time limit."""

OFFLINE_SCHEMA = {
    "label": pl.String,
    "batch": pl.Int64,
    "images_per_s": pl.Float64,
    "joules_per_image": pl.Float64,
    "watts": pl.Float64,
    "memory_mib": pl.Float64,
}


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Timing(Result):
    """Latency of one or more runners.

    Attributes:
        samples: All measured runs: label, batch, turn (order of measurement), ms (of the whole batch).
        rounds: One row per block of a runner's runs, in the order of measurement: label, batch, round, p50_ms, and the
            GPU right after it: sm_mhz, watts, celsius, throttling (reasons, "" for none) and other_processes; empty in
            results of older versions.
        offline: Throughput of engines run back to back, the queue never empty (MLPerf's offline scenario): label,
            batch, images_per_s, and by NVML's counter of the board's energy joules_per_image and watts, null without
            it; memory_mib: GPU memory of activations, inputs, outputs and weights.
        runners: One row per label: runner (its name), engine (whether TensorRT ran), precision, clock ("gpu": CUDA
            events, "wall": time around `infer`, copies included), imgsz, and static_batch (the batch of a static
            graph, to which smaller ones are padded; null if the batch is dynamic).
    """

    kind: ClassVar[str] = "timing"

    samples: pl.DataFrame
    runners: pl.DataFrame
    provenance: Provenance
    rounds: pl.DataFrame = dataclasses.field(default_factory=lambda: pl.DataFrame(schema=ROUNDS_SCHEMA))
    offline: pl.DataFrame = dataclasses.field(default_factory=lambda: pl.DataFrame(schema=OFFLINE_SCHEMA))

    def frame(self) -> pl.DataFrame:
        """Return one row per runner and batch.

        `_ms` columns are of the whole batch, `image_ms` is mean_ms / batch; `padded`: the batch was padded to the
        static batch of the graph; `flags`: what disturbed the measurement (`find_disturbances`), "" for nothing.
        """
        rows = self.runners.join(summarize_runs(self.samples), on="label", maintain_order="left")
        flags = (find_disturbances(self.samples, self.rounds, *row) for row in rows.select("label", "batch").rows())
        rows = rows.with_columns(flags=pl.Series(map("; ".join, flags), dtype=pl.String))
        return rows.with_columns(padded=(pl.col("batch") < pl.col("static_batch")).fill_null(value=False)).select(
            "label", "precision", "runner", "engine", "clock", "imgsz", "batch", "padded", "runs", "mean_ms", "std_ms",
            "min_ms", "p50_ms", "p90_ms", "p99_ms", "max_ms", "image_ms", "images_per_s", "flags",
        )  # fmt: skip

    def ratios(self, baseline: str | None = None) -> pl.DataFrame:
        """Return every other runner's latency over the baseline's: label, batch, ratio, low, high, rounds.

        low and high are the paired 95 % interval of `compare_latencies`.

        Args:
            baseline: A label; None takes the first.

        Raises:
            RecipeError: There is no such label.
        """
        labels = self.runners["label"].to_list()
        baseline = labels[0] if baseline is None else baseline
        if baseline not in labels:
            raise RecipeError(
                f"compare latencies with {baseline!r}",
                "it was not timed",
                f"choose from {', '.join(labels)}",
                code="timing-label-unknown",
                value=baseline,
                names=labels,
            )
        rows = [
            {"label": label, "batch": batch, **compare_latencies(self.samples, label, baseline, batch)._asdict()}
            for label in labels
            if label != baseline
            for batch in self.samples["batch"].unique(maintain_order=True)
        ]
        schema = {"label": pl.String, "batch": pl.Int64, **dict.fromkeys(("ratio", "low", "high"), pl.Float64)}
        return pl.DataFrame(rows, schema={**schema, "rounds": pl.Int64})

    def plot(self) -> go.Figure:
        """Plot the distribution of latency per runner, one panel per batch size."""
        from trtkit.plotting.evaluation import timing_figure

        return timing_figure(self.samples, self.runners)

    def tables(self) -> Mapping[str, pl.DataFrame]:
        """Return the samples, the rounds, the offline runs and the runners."""
        return {"samples": self.samples, "rounds": self.rounds, "offline": self.offline, "runners": self.runners}

    def facts(self) -> Mapping[str, Any]:
        """Return {}: the tables are all."""
        return {}

    @classmethod
    def restore(cls, tables: Mapping[str, pl.DataFrame], facts: Mapping[str, Any], provenance: Provenance) -> Self:
        """Invert `tables`."""
        return cls(**tables, provenance=provenance)

    def __repr__(self) -> str:
        rows = (
            f"  {row['label']} batch {row['batch']}: p50 {row['p50_ms']:.3g} ms, p99 {row['p99_ms']:.3g} ms, "
            f"{row['images_per_s']:.4g} images/s ({row['runner']}, {row['clock']} clock, {row['runs']} runs)"
            + (f": {row['flags']}" if row["flags"] else "")
            for row in self.frame().iter_rows(named=True)
        )
        return "\n".join(("Timing", *rows))


@verb
def benchmark(
    runners: Runner | str | Path | Artifact | Mapping[str, Runner | str | Path | Artifact],
    *,
    batch: int | Sequence[int] = 1,
    imgsz: int | tuple[int, int] | None = None,
    runs: int = 100,
    warmup: int = 10,
    seconds: float = 5.0,
    max_noise: float = 0.002,
    offline_seconds: float = 1.0,
    device: str | int | None = None,
    backend: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Timing:
    """Measure the latency of runners on random images.

    The runners alternate in short blocks whose first run is discarded, so that clocks, temperature and other load on
    the machine affect all of them alike: `Timing.ratios` compares round by round. All warm up before the first
    measurement. What disturbed it, such as throttling, stands in the frame's `flags`.

    Args:
        runners: A runner or file, or several by label; files are opened here and closed afterwards.
        batch: Batch sizes, each measured separately.
        imgsz: Image side or (height, width), pixels; None takes each runner's own.
        runs: Maximum number of measured runs per runner and batch.
        warmup: Warm-up runs per runner and batch.
        seconds: Maximum measured time per runner and batch; at least five runs are measured.
        max_noise: Stop once the 95 % interval of every runner's mean round is within this share of it on either side,
            in 0..1; 0 measures all runs.
        offline_seconds: Time of each engine's runs back to back, per batch, for throughput and energy; 0 leaves them
            out.
        device: Device for files, as in `trtkit.open`.
        backend: Backend for files, as in `trtkit.open`.
        seed: Seed of the images and of the order of runners.
        progress: Receives progress events.
        cancel: Cancellation token.

    Returns:
        GPU time where the runner measures it, else wall time around `infer`.

    Raises:
        RecipeError: There is no runner, or a setting is out of range.
        EngineError: The batch is larger than a runner's, or the image size is not the runner's.
        CancelledError: The caller cancelled.
    """
    batches = (batch,) if isinstance(batch, int) else tuple(batch)
    reporter = Reporter(progress, cancel)
    before = _load_average()
    with open_runners(runners, device=device, backend=backend) as opened:
        shapes = {label: resolve_imgsz(label, runner, batches, imgsz) for label, runner in opened.items()}
        start_work(
            Plan(
                verb="benchmark",
                settings={label: "x".join(map(str, shape)) for label, shape in shapes.items()},
                steps=tuple(f"benchmark batch {size}" for size in batches),
                costs=estimate_costs(len(opened), batches, runs=runs, seconds=seconds),
            ),
            reporter,
        )
        measured = [
            _time_runners(
                opened, shapes, size, runs=runs, warmup=warmup, seconds=seconds, max_noise=max_noise,
                offline_seconds=offline_seconds, seed=seed, reporter=reporter,
            )
            for size in batches
        ]  # fmt: skip
        table = pl.DataFrame(
            [
                {
                    "label": label,
                    "runner": runner.name,
                    "engine": runner.engine,
                    "precision": runner.precision,
                    "clock": "gpu" if _has_gpu_clock(runner) else "wall",
                    "imgsz": "x".join(str(side) for side in shapes[label]),
                    "static_batch": None if runner.dynamic else runner.batch,
                }
                for label, runner in opened.items()
            ],
            schema_overrides={"static_batch": pl.Int64},
        )
        provenance = Provenance(
            model_hash=" ".join(sorted({runner.hash for runner in opened.values()})),
            runner=", ".join(dict.fromkeys(runner.name for runner in opened.values())),
            machine={**describe_machine(), "load_before": before, **_describe_gpus(opened)},
            settings={
                "batch": list(batches), "imgsz": imgsz, "runs": runs, "warmup": warmup, "seconds": seconds,
                "max_noise": max_noise, "offline_seconds": offline_seconds, "device": device, "backend": backend,
            },
            seed=seed,
        )  # fmt: skip
    reporter.finish()
    return Timing(
        samples=pl.concat(own[0] for own in measured),
        rounds=pl.concat(own[1] for own in measured),
        offline=pl.concat(own[2] for own in measured),
        runners=table,
        provenance=provenance,
    )


def estimate_costs(runners: int, batches: Sequence[int], *, runs: int, seconds: float) -> dict[str, Cost]:
    """The costs of `benchmark`'s steps, in images of `evaluate`.

    Args:
        runners: Number of runners.
        batches: Batch sizes.
        runs: Maximum number of measured runs per runner and batch.
        seconds: Maximum measured time per runner and batch, s.
    """
    return {
        f"benchmark batch {size}": Cost(kind="evaluate", images=runners * runs * size, seconds=runners * seconds)
        for size in batches
    }


def summarize_runs(samples: pl.DataFrame) -> pl.DataFrame:
    """Summarize `Timing.samples` by label and batch; percentiles are interpolated linearly, std divides by n - 1."""
    ms = pl.col("ms")
    return (
        samples.group_by("label", "batch", maintain_order=True)
        .agg(
            runs=ms.len().cast(pl.Int64),
            mean_ms=ms.mean(),
            std_ms=ms.std(),
            min_ms=ms.min(),
            p50_ms=ms.quantile(0.50, "linear"),
            p90_ms=ms.quantile(0.90, "linear"),
            p99_ms=ms.quantile(0.99, "linear"),
            max_ms=ms.max(),
        )
        .with_columns(
            image_ms=pl.col("mean_ms") / pl.col("batch"), images_per_s=1000 * pl.col("batch") / pl.col("mean_ms")
        )
    )


@contextlib.contextmanager
def open_runners(runners: Any, *, device: str | int | None, backend: str | None) -> Iterator[dict[str, Runner]]:
    """Yield runners by label; those opened here are closed at the end.

    Args:
        runners: As in `benchmark`.
        device: Device for files.
        backend: Backend for files.
    """
    from trtkit import backends
    from trtkit.backends.runner import Runner

    given = dict(runners) if isinstance(runners, Mapping) else {"": runners}
    if not given:
        raise RecipeError(
            "benchmark",
            "no runner was given",
            "pass a runner, a file or a mapping of label to either",
            code="benchmark-runner-missing",
        )
    with contextlib.ExitStack() as stack:
        opened: dict[str, Runner] = {}
        for label, source in given.items():
            runner = source
            if not isinstance(source, Runner):
                runner = stack.enter_context(backends.open(source, device=device, backend=backend))
            opened[label or runner.precision] = runner
        yield opened


def resolve_imgsz(
    label: str, runner: Runner, batches: Sequence[int], imgsz: int | tuple[int, int] | None
) -> tuple[int, int]:
    """Return the height and width to run `runner` at.

    Args:
        label: The runner's name in errors.
        runner: The runner.
        batches: Batch sizes that it will run.
        imgsz: Image side or (height, width), pixels; None takes the runner's own.

    Raises:
        EngineError: A batch is larger than the runner's, or it has another, fixed size.
    """
    if runner.batch is not None and max(batches) > runner.batch:
        raise EngineError(
            f"benchmark {label} at batch {max(batches)}",
            f"its largest batch is {runner.batch}",
            f"export it with batch={max(batches)}, or pass smaller batches",
            code="benchmark-batch-too-large",
            batch=max(batches),
            limit=runner.batch,
        )
    size = runner.imgsz if imgsz is None else (imgsz, imgsz) if isinstance(imgsz, int) else imgsz
    if tuple(size) != tuple(runner.imgsz) and not runner.dynamic:
        raise EngineError(
            f"benchmark {label} at {size[0]}x{size[1]}",
            f"it has the fixed size {runner.imgsz[0]}x{runner.imgsz[1]}",
            "leave imgsz out, or export it with dynamic=True",
            code="benchmark-imgsz-fixed",
            imgsz=(size[0], size[1]),
            limit=tuple(runner.imgsz),
        )
    return size[0], size[1]


def _time_runners(
    runners: Mapping[str, Runner],
    shapes: Mapping[str, tuple[int, int]],
    batch: int,
    *,
    runs: int,
    warmup: int,
    seconds: float,
    max_noise: float,
    offline_seconds: float,
    seed: int,
    reporter: Reporter,
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Measure all runners at one batch size, alternately: `Timing.samples`, `Timing.rounds` and `Timing.offline`."""
    generator = np.random.default_rng(seed)
    feeds: dict[str, Any] = {}
    for label, runner in runners.items():
        preprocess = runner.info.preprocess
        pixels = generator.integers(0, 256, (batch, *shapes[label], preprocess.channels), np.uint8)
        feeds[label] = to_input(list(pixels), preprocess)
    stage, total = f"benchmark batch {batch}", runs * len(runners)
    reporter.begin(stage)
    for label, runner in runners.items():
        reporter.step(stage, 0, total, f"warm up {label}")
        for _ in range(warmup):
            runner.infer(feeds[label])
            reporter.step(stage, 0, total)
    measured: dict[str, list[float]] = {label: [] for label in runners}
    order: list[tuple[str, float]] = []
    rounds: list[dict[str, Any]] = []
    waiting = list(runners)
    with contextlib.ExitStack() as stack:
        read_states = {label: stack.enter_context(watch_gpu(runner.gpu)) for label, runner in runners.items()}
        while waiting:
            for label in generator.permutation(waiting):
                label, times = str(label), measured[str(label)]
                block = _time_block(runners[label], feeds[label], min(BLOCK_RUNS, runs - len(times)))
                state = dataclasses.asdict(read_states[label]())
                state["throttling"] = ", ".join(state["throttling"])
                number = len(times) // BLOCK_RUNS
                rounds.append(
                    {"label": label, "batch": batch, "round": number, "p50_ms": float(np.median(block)), **state}
                )
                times += block
                order += [(label, ms) for ms in block]
                if len(times) >= runs or (sum(times) >= seconds * 1000 and len(times) >= min(MIN_RUNS, runs)):
                    waiting.remove(label)
            if all(measure_noise(measured[label]) < max_noise for label in waiting):
                waiting = []
            # A runner that has ended counts as having all its runs.
            reporter.step(stage, sum(runs if name not in waiting else len(measured[name]) for name in runners), total)
        offline = [
            _run_offline(label, runner, feeds[label], offline_seconds, read_states[label])
            for label, runner in runners.items()
            if offline_seconds and _runs_offline(runner)
        ]
    samples = pl.DataFrame(
        {
            "label": [label for label, _ in order],
            "batch": [batch] * len(order),
            "turn": range(len(order)),
            "ms": [ms for _, ms in order],
        },
        schema={"label": pl.String, "batch": pl.Int64, "turn": pl.Int64, "ms": pl.Float64},
    )
    return samples, pl.DataFrame(rounds, schema=ROUNDS_SCHEMA), pl.DataFrame(offline, schema=OFFLINE_SCHEMA)


def _run_offline(
    label: str, runner: Any, feed: np.ndarray[Any, Any], seconds: float, read_state: Callable[[], GpuState]
) -> dict[str, Any]:
    """Run an engine back to back: a row of `Timing.offline`."""
    # The first runs bring clocks and power to where they stay.
    runner.measure_throughput(feed, seconds / 4)
    before = read_state().joules
    runs, elapsed = runner.measure_throughput(feed, seconds)
    after = read_state().joules
    joules = None if before is None or after is None else after - before
    images = runs * len(feed)
    return {
        "label": label,
        "batch": len(feed),
        "images_per_s": images / elapsed,
        "joules_per_image": None if joules is None else joules / images,
        "watts": None if joules is None else joules / elapsed,
        "memory_mib": (runner.device_memory + (runner.passport.plan_size if runner.passport else 0)) / 2**20,
    }


def _time_block(runner: Runner, feed: np.ndarray[Any, Any], runs: int) -> list[float]:
    """Measure `runs` consecutive runs in milliseconds, after one that is discarded."""
    runner.infer(feed)
    if _has_gpu_clock(runner):
        return [float(ms) for ms in runner.measure_gpu_times(feed, runs)]  # type: ignore[attr-defined]
    times = []
    for _ in range(runs):
        start = time.perf_counter_ns()
        runner.infer(feed)
        times.append((time.perf_counter_ns() - start) / 1e6)
    return times


def _runs_offline(runner: Runner) -> bool:
    """Return whether the runner measures throughput by itself."""
    return callable(getattr(runner, "measure_throughput", None))


def _has_gpu_clock(runner: Runner) -> bool:
    """Return whether the runner measures GPU time."""
    return callable(getattr(runner, "measure_gpu_times", None))


def _describe_gpus(runners: Mapping[str, Runner]) -> dict[str, Any]:
    """Return the GPUs with their clocks if an engine ran."""
    if not any(runner.engine for runner in runners.values()):
        return {}
    from trtkit.backends.devices import find_gpus

    return {"gpus": [dataclasses.asdict(gpu) for gpu in find_gpus()]}


def _load_average() -> float | None:
    """Return the load average of the last minute, if the system has one: a busy machine is slow."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
