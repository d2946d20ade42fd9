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
from trtkit.evaluation.stage_times import STAGES_SCHEMA, summarize_stages, time_predict, widen_stages
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
        stages: Every timed call of `predict`: label, batch, run, stage ("predict" is the whole call, the others are
            those of `trtkit.backends.stages.STAGES`) and ms; a runner lacks the stages that it does not have.
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
    stages: pl.DataFrame = dataclasses.field(default_factory=lambda: pl.DataFrame(schema=STAGES_SCHEMA))

    def frame(self) -> pl.DataFrame:
        """Return one row per runner and batch.

        `_ms` columns are of the whole batch, `image_ms` is mean_ms / batch; p90_ms at batch 1 is MLPerf's latency of a
        single stream. `padded`: the batch was padded to the static batch of the graph; `flags`: what disturbed the
        measurement (`find_disturbances`), "" for nothing. Where `predict` was timed, its median and those of its stages
        follow, such as `decode_ms`; null for a stage that a runner does not have.
        """
        rows = self.runners.join(summarize_runs(self.samples), on="label", maintain_order="left")
        flags = (find_disturbances(self.samples, self.rounds, *row) for row in rows.select("label", "batch").rows())
        rows = rows.with_columns(flags=pl.Series(map("; ".join, flags), dtype=pl.String))
        rows = rows.with_columns(padded=(pl.col("batch") < pl.col("static_batch")).fill_null(value=False)).select(
            "label", "precision", "runner", "engine", "clock", "imgsz", "batch", "padded", "runs", "mean_ms", "std_ms",
            "min_ms", "p50_ms", "p90_ms", "p99_ms", "max_ms", "image_ms", "images_per_s", "flags",
        )  # fmt: skip
        if self.stages.is_empty():
            return rows
        return rows.join(widen_stages(self.stages), on=["label", "batch"], how="left", maintain_order="left")

    def stage_frame(self) -> pl.DataFrame:
        """Return the stages of `predict`, the whole call last: label, batch, stage, runs, p50_ms, low, high, share.

        low and high are the 95 % interval of the median, share is that of the whole call's time.
        """
        return summarize_stages(self.stages)

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
        """Plot the distribution of latency per runner, and the stages of `predict`, a panel of each per batch size."""
        from trtkit.plotting.evaluation import timing_figure

        return timing_figure(self.samples, self.runners, self.stage_frame())

    def tables(self) -> Mapping[str, pl.DataFrame]:
        """Return the samples, the rounds, the offline runs, the stages and the runners."""
        names = ("samples", "rounds", "offline", "stages", "runners")
        return {name: getattr(self, name) for name in names}

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
    images: Sequence[np.ndarray | str | Path] | np.ndarray | str | Path | None = None,
    stage_runs: int = 20,
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
        images: Images to time the stages of `predict` on, as in `Runner.predict`; None takes random ones of the model's
            own size, which need no decoding, and hold no objects.
        stage_runs: Maximum number of timed calls of `predict` per runner and batch, and never more than `runs`; at
            least five, else within a fifth of `seconds`. 0 leaves them out, as does another `imgsz` than the runner's.
        device: Device for files, as in `trtkit.open`.
        backend: Backend for files, as in `trtkit.open`.
        seed: Seed of the images and of the order of runners.
        progress: Receives progress events.
        cancel: Cancellation token.

    Returns:
        GPU time where the runner measures it, else wall time around `infer`.

    Raises:
        DataError: An image can't be read.
        RecipeError: There is no runner, or a setting is out of range.
        EngineError: The batch is larger than a runner's, or the image size is not the runner's.
        CancelledError: The caller cancelled.
    """
    batches = (batch,) if isinstance(batch, int) else tuple(batch)
    reporter = Reporter(progress, cancel)
    listed = None if images is None else _list_images(images)
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
                offline_seconds=offline_seconds, images=listed, stage_runs=min(stage_runs, runs), seed=seed,
                reporter=reporter,
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
                "max_noise": max_noise, "offline_seconds": offline_seconds, "stage_runs": stage_runs,
                "stage_images": None if listed is None else len(listed), "device": device, "backend": backend,
            },
            seed=seed,
        )  # fmt: skip
    reporter.finish()
    return Timing(
        samples=pl.concat(own[0] for own in measured),
        rounds=pl.concat(own[1] for own in measured),
        offline=pl.concat(own[2] for own in measured),
        stages=pl.concat(own[3] for own in measured),
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
    images: Sequence[Any] | None,
    stage_runs: int,
    seed: int,
    reporter: Reporter,
) -> tuple[pl.DataFrame, ...]:
    """Measure all runners at one batch size, alternately: samples, rounds, offline and stages of a `Timing`."""
    generator = np.random.default_rng(seed)
    feeds: dict[str, Any] = {}
    shown: dict[str, Sequence[Any]] = {}
    for label, runner in runners.items():
        preprocess = runner.info.preprocess
        pixels = generator.integers(0, 256, (batch, *shapes[label], preprocess.channels), np.uint8)
        feeds[label] = to_input(list(pixels), preprocess)
        if shapes[label] == tuple(runner.imgsz):
            shown[label] = list(pixels) if images is None else images
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
        stages: list[dict[str, Any]] = []
        predicting = {label: runners[label] for label in shown} if stage_runs else {}
        for rows in time_predict(predicting, shown, batch, calls=stage_runs, seconds=seconds, generator=generator):
            stages += rows
            reporter.step(stage, total, total, "stages of predict")
        # Each round had an order of its own.
        places = {label: place for place, label in enumerate(runners)}
        stages.sort(key=lambda row: places[row["label"]])
    samples = pl.DataFrame(
        {
            "label": [label for label, _ in order],
            "batch": [batch] * len(order),
            "turn": range(len(order)),
            "ms": [ms for _, ms in order],
        },
        schema={"label": pl.String, "batch": pl.Int64, "turn": pl.Int64, "ms": pl.Float64},
    )
    return (
        samples,
        pl.DataFrame(rounds, schema=ROUNDS_SCHEMA),
        pl.DataFrame(offline, schema=OFFLINE_SCHEMA),
        pl.DataFrame(stages, schema=STAGES_SCHEMA),
    )


def _list_images(images: Any) -> Sequence[Any]:
    """The images of an argument, those of folders and patterns in it too; refuses none at all."""
    from trtkit.data.image_arguments import list_image_arguments

    several = images if isinstance(images, (list, tuple)) else [images]
    listed = [one for image in several for one in list_image_arguments(image)]
    if not listed:
        raise RecipeError(
            "time the stages of predict", "there is no image", "pass one image or more", code="benchmark-no-image"
        )
    return listed


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
