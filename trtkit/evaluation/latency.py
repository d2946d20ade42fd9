"""How long a runner takes, measured so that two runners can be compared."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import polars as pl

from trtkit.errors import EngineError, RecipeError
from trtkit.progress import CancelToken, Progress, Reporter
from trtkit.results import Provenance, Result, describe_machine

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from typing_extensions import Self

    from trtkit.backends.base import Runner
    from trtkit.exporter import Artifact

__all__ = ["Timing", "benchmark", "summarize_runs"]

# Runs measured in a row before the next runner's turn. One run by turns would time each runner while the other's idle
# threads still spin; long stretches would let a slow drift of the clocks hit one runner alone.
BLOCK_RUNS = 5
# Percentiles of fewer runs say little; a slow runner gets these however little time is allowed.
MIN_RUNS = 5


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Timing(Result):
    """Times of one or more runners.

    Attributes:
        samples: Every measured run: label, batch, turn (in order of measurement), ms (of the whole batch).
        runners: One row a label: runner (its name), engine (whether TensorRT ran), precision, clock ("gpu" is time on
            the device alone, "wall" is time around `infer`, copies included), imgsz, and fixed (the one batch a static
            graph runs at, to which smaller ones are padded; null where the batch is open).
    """

    kind: ClassVar[str] = "timing"

    samples: pl.DataFrame
    runners: pl.DataFrame
    provenance: Provenance

    def frame(self) -> pl.DataFrame:
        """One row a runner and batch.

        `_ms` columns are of a whole batch, `image_ms` is mean_ms / batch; `padded` rows ran a larger batch than
        they say.
        """
        joined = self.runners.join(summarize_runs(self.samples), on="label", maintain_order="left")
        return joined.with_columns(padded=(pl.col("batch") < pl.col("fixed")).fill_null(value=False)).select(
            "label", "precision", "runner", "engine", "clock", "imgsz", "batch", "padded", "runs", "mean_ms", "std_ms",
            "min_ms", "p50_ms", "p90_ms", "p99_ms", "max_ms", "image_ms", "images_per_s",
        )  # fmt: skip

    def plot(self) -> go.Figure:
        """The distribution of times by runner, one panel a batch size."""
        from trtkit.plotting.evaluation import timing_figure

        return timing_figure(self.samples, self.runners)

    def tables(self) -> Mapping[str, pl.DataFrame]:
        """The samples and the runners."""
        return {"samples": self.samples, "runners": self.runners}

    def facts(self) -> Mapping[str, Any]:
        """Nothing beyond the tables."""
        return {}

    @classmethod
    def restore(cls, tables: Mapping[str, pl.DataFrame], facts: Mapping[str, Any], provenance: Provenance) -> Self:
        """The inverse of `tables`."""
        return cls(samples=tables["samples"], runners=tables["runners"], provenance=provenance)

    def __repr__(self) -> str:
        rows = (
            f"  {row['label']} batch {row['batch']}: p50 {row['p50_ms']:.3g} ms, p99 {row['p99_ms']:.3g} ms, "
            f"{row['images_per_s']:.4g} images/s ({row['runner']}, {row['clock']} clock, {row['runs']} runs)"
            for row in self.frame().iter_rows(named=True)
        )
        return "\n".join(("Timing", *rows))


def benchmark(
    runners: Runner | str | Path | Artifact | Mapping[str, Runner | str | Path | Artifact],
    *,
    batch: int | Sequence[int] = 1,
    imgsz: int | tuple[int, int] | None = None,
    runs: int = 100,
    warmup: int = 10,
    seconds: float = 5.0,
    device: str | int | None = None,
    backend: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Timing:
    """Time runners against each other on random images.

    The runners take turns, in short stretches whose first run is thrown away, so that what changes over time (clocks,
    temperature, other work on the machine) meets them all alike. All are warmed up before the first is measured, for
    on an H100 each was 3 to 5 % slower once a second engine had run in the process (`benchmarks/results/runner.md`).

    Args:
        runners: A runner or file, or several by label; files are opened here and closed again.
        batch: Batch sizes, each timed by itself.
        imgsz: Side of the square images or (height, width), pixels; None takes each runner's own.
        runs: Most runs measured for each runner and batch.
        warmup: Runs before the first measurement of each runner and batch, not counted.
        seconds: Most seconds measured for each runner and batch; at least five runs are measured anyway.
        device: Where files run, as `trtkit.open` takes it.
        backend: What runs the files, as `trtkit.open` takes it.
        seed: Seed of the images and of the order of turns.
        progress: Receives events.
        cancel: Stops the work when set.

    Returns:
        The times; GPU time where the runner measures it, else wall time around `infer`.

    Raises:
        RecipeError: No runner, or a batch, number of runs or time below what makes sense.
        EngineError: A batch is above what a runner takes, or the image size is not the runner's.
        CancelledError: The caller cancelled.
    """
    batches = (batch,) if isinstance(batch, int) else tuple(batch)
    if not batches or min(batches) < 1 or runs < 1 or warmup < 0 or seconds <= 0:
        raise RecipeError(
            "benchmark", f"batch={batch}, runs={runs}, warmup={warmup}, seconds={seconds}", "give positive numbers"
        )
    reporter = Reporter(progress, cancel)
    before = _load_average()
    with _open_runners(runners, device=device, backend=backend) as opened:
        shapes = {label: _resolve_imgsz(label, runner, batches, imgsz) for label, runner in opened.items()}
        samples = [
            _time_runners(opened, shapes, size, runs=runs, warmup=warmup, seconds=seconds, seed=seed, reporter=reporter)
            for size in batches
        ]
        table = pl.DataFrame(
            [
                {
                    "label": label,
                    "runner": runner.name,
                    "engine": runner.engine,
                    "precision": runner.precision,
                    "clock": "gpu" if _has_gpu_clock(runner) else "wall",
                    "imgsz": "x".join(str(side) for side in shapes[label]),
                    "fixed": None if runner.dynamic else runner.batch,
                }
                for label, runner in opened.items()
            ],
            schema_overrides={"fixed": pl.Int64},
        )
        provenance = Provenance(
            model_hash=" ".join(sorted({runner.hash for runner in opened.values()})),
            runner=", ".join(dict.fromkeys(runner.name for runner in opened.values())),
            machine={**describe_machine(), "load_before": before, **_describe_gpus(opened)},
            settings={
                "batch": list(batches), "imgsz": imgsz, "runs": runs, "warmup": warmup, "seconds": seconds,
                "device": device, "backend": backend,
            },
            seed=seed,
        )  # fmt: skip
    return Timing(samples=pl.concat(samples), runners=table, provenance=provenance)


def summarize_runs(samples: pl.DataFrame) -> pl.DataFrame:
    """Statistics of `Timing.samples` by label and batch; percentiles are interpolated linearly, std has n - 1."""
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
def _open_runners(runners: Any, *, device: str | int | None, backend: str | None) -> Iterator[dict[str, Runner]]:
    """Runners by label; those opened here are closed at the end."""
    from trtkit import backends
    from trtkit.backends.base import Runner

    given = dict(runners) if isinstance(runners, Mapping) else {"": runners}
    if not given:
        raise RecipeError("benchmark", "no runner was given", "give a runner, a file or a mapping of label to either")
    with contextlib.ExitStack() as stack:
        opened: dict[str, Runner] = {}
        for label, source in given.items():
            runner = source
            if not isinstance(source, Runner):
                runner = stack.enter_context(backends.open(source, device=device, backend=backend))
            opened[label or runner.precision] = runner
        yield opened


def _resolve_imgsz(
    label: str, runner: Runner, batches: Sequence[int], imgsz: int | tuple[int, int] | None
) -> tuple[int, int]:
    """The height and width to time `runner` at."""
    if runner.batch is not None and max(batches) > runner.batch:
        raise EngineError(
            f"benchmark {label} at batch {max(batches)}",
            f"it takes at most {runner.batch}",
            f"export it with batch={max(batches)}, or ask for smaller batches",
        )
    size = runner.imgsz if imgsz is None else (imgsz, imgsz) if isinstance(imgsz, int) else imgsz
    if tuple(size) != tuple(runner.imgsz) and not runner.dynamic:
        raise EngineError(
            f"benchmark {label} at {size[0]}x{size[1]}",
            f"it is built for {runner.imgsz[0]}x{runner.imgsz[1]} alone",
            "leave imgsz out, or export it with dynamic=True",
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
    seed: int,
    reporter: Reporter,
) -> pl.DataFrame:
    """Times of every runner at one batch size, taken by turns."""
    random = np.random.default_rng(seed)
    feeds: dict[str, Any] = {}
    for label, runner in runners.items():
        feeds[label] = random.random((batch, runner.info.channels, *shapes[label]), dtype=np.float32)
    stage, total = f"time batch {batch}", runs * len(runners)
    for label, runner in runners.items():
        reporter.step(stage, 0, total, f"warm up {label}")
        for _ in range(warmup):
            runner.infer(feeds[label])
            reporter.step(stage, 0, total)
    taken: dict[str, list[float]] = {label: [] for label in runners}
    order: list[tuple[str, float]] = []
    waiting = list(runners)
    while waiting:
        for label in random.permutation(waiting):
            label, times = str(label), taken[str(label)]
            block = _time_block(runners[label], feeds[label], min(BLOCK_RUNS, runs - len(times)))
            times += block
            order += [(label, ms) for ms in block]
            if len(times) >= runs or (sum(times) >= seconds * 1000 and len(times) >= min(MIN_RUNS, runs)):
                waiting.remove(label)
            # A runner that used up its seconds counts as done with all its runs.
            reporter.step(stage, sum(runs if name not in waiting else len(taken[name]) for name in runners), total)
    return pl.DataFrame(
        {
            "label": [label for label, _ in order],
            "batch": [batch] * len(order),
            "turn": range(len(order)),
            "ms": [ms for _, ms in order],
        },
        schema={"label": pl.String, "batch": pl.Int64, "turn": pl.Int64, "ms": pl.Float64},
    )


def _time_block(runner: Runner, feed: np.ndarray[Any, Any], runs: int) -> list[float]:
    """Milliseconds of `runs` runs in a row, after one that is thrown away."""
    runner.infer(feed)
    if _has_gpu_clock(runner):
        return [float(ms) for ms in runner.measure_gpu_times(feed, runs)]  # type: ignore[attr-defined]
    times = []
    for _ in range(runs):
        begun = time.perf_counter_ns()
        runner.infer(feed)
        times.append((time.perf_counter_ns() - begun) / 1e6)
    return times


def _has_gpu_clock(runner: Runner) -> bool:
    """Whether the runner measures time on the GPU itself."""
    return callable(getattr(runner, "measure_gpu_times", None))


def _describe_gpus(runners: Mapping[str, Runner]) -> dict[str, Any]:
    """The GPUs with their clocks, where an engine ran."""
    if not any(runner.engine for runner in runners.values()):
        return {}
    from trtkit.backends.devices import find_gpus

    return {"gpus": [dataclasses.asdict(gpu) for gpu in find_gpus()]}


def _load_average() -> float | None:
    """Processes that wanted to run in the last minute, where the system says: a busy machine explains slow times."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
