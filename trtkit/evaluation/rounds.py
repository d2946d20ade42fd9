"""Rounds of a timing: how two runners compare round by round, how much a runner's vary, and what disturbed them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

__all__ = [
    "BLOCK_RUNS",
    "ROUNDS_SCHEMA",
    "LatencyRatio",
    "compare_latencies",
    "find_disturbances",
    "measure_noise",
    "median_interval",
    "round_medians",
]

BLOCK_RUNS = 5
"""Consecutive runs of a runner before the next one's turn. With single runs, idle threads of the other runner would
still spin; with long blocks, drifting clocks would affect one runner alone."""

MIN_ROUNDS = 10
"""Blocks of a runner before its noise is known well enough to stop."""

PAIRED_ROUNDS = 5
"""Rounds from which a ratio's interval follows from rounds; below, from single runs."""

RESAMPLES = 500
"""Bootstrap resamples of a ratio of latencies."""

SLOW_ROUND = 1.1
"""A round this many times as long as the median round was disturbed."""

DRIFT = 0.03
"""Share by which the last third of the rounds differs from the first where something has changed for good."""

CLOCK_CHANGE = 0.05
"""Share by which the clock of the multiprocessors may vary."""

ROUNDS_SCHEMA = {
    "label": pl.String,
    "batch": pl.Int64,
    "round": pl.Int64,
    "p50_ms": pl.Float64,
    "sm_mhz": pl.Int64,
    "watts": pl.Float64,
    "celsius": pl.Int64,
    "throttling": pl.String,
    "other_processes": pl.Int64,
}


class LatencyRatio(NamedTuple):
    """How long a runner takes compared with another.

    Attributes:
        ratio: The median over rounds of the ratio of both medians.
        low: Lower end of its 95 % interval.
        high: Upper end.
        rounds: Rounds in which both were measured.
    """

    ratio: float
    low: float
    high: float
    rounds: int


def compare_latencies(samples: pl.DataFrame, label: str, baseline: str, batch: int) -> LatencyRatio:
    """The ratio of the latencies of two runners at one batch, with its 95 % interval.

    Round by round: in a round both were measured one after the other, so that what slows the machine down for a while
    slows both. The interval is a bootstrap of rounds. With fewer than five rounds, ratio and interval are those of the
    medians of all runs.

    Args:
        samples: `Timing.samples`.
        label: The runner.
        baseline: The runner it is compared with.
        batch: The batch.
    """
    mine, base = (
        samples.filter((pl.col("label") == name) & (pl.col("batch") == batch))["ms"].to_numpy()
        for name in (label, baseline)
    )
    if not len(mine) or not len(base):
        return LatencyRatio(math.nan, math.nan, math.nan, 0)
    dice = np.random.default_rng(0)
    rounds = min(len(round_medians(mine)), len(round_medians(base)))
    if rounds < PAIRED_ROUNDS:
        ratio = float(np.median(mine) / np.median(base))
        medians = [_resample_medians(times, dice) for times in (mine, base)]
        low, high = np.percentile(medians[0] / medians[1], (2.5, 97.5))
    else:
        ratios = round_medians(mine)[:rounds] / round_medians(base)[:rounds]
        ratio = float(np.median(ratios))
        low, high = np.percentile(_resample_medians(ratios, dice), (2.5, 97.5))
    return LatencyRatio(ratio, float(low), float(high), rounds)


def median_interval(values: np.ndarray[Any, Any]) -> tuple[float, float]:
    """The 95 % interval of a median: a bootstrap of the values."""
    low, high = np.percentile(_resample_medians(values, np.random.default_rng(0)), (2.5, 97.5))
    return float(low), float(high)


def _resample_medians(values: np.ndarray[Any, Any], dice: np.random.Generator) -> np.ndarray[Any, Any]:
    medians: np.ndarray[Any, Any] = np.median(values[dice.integers(0, len(values), (RESAMPLES, len(values)))], axis=1)
    return medians


def round_medians(times: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The median of every block of runs."""
    return np.array([np.median(times[start : start + BLOCK_RUNS]) for start in range(0, len(times), BLOCK_RUNS)])


def find_disturbances(samples: pl.DataFrame, rounds: pl.DataFrame, label: str, batch: int) -> tuple[str, ...]:
    """What makes a latency doubtful: throttling, other load, clocks that changed, slow or drifting rounds.

    Args:
        samples: `Timing.samples`.
        rounds: `Timing.rounds`; may be empty.
        label: The runner.
        batch: The batch.
    """
    chosen = (pl.col("label") == label) & (pl.col("batch") == batch)
    own, times = rounds.filter(chosen), samples.filter(chosen)["ms"].to_numpy()
    found = []
    throttled = own.filter(pl.col("throttling") != "")
    if len(throttled):
        reasons = sorted({reason for text in throttled["throttling"] for reason in text.split(", ")})
        found.append(f"the GPU was slowed down in {len(throttled)} of {len(own)} rounds ({', '.join(reasons)})")
    others = max(own["other_processes"].drop_nulls(), default=0)
    if others:
        found.append(f"{others} other processes used the GPU")
    clocks = own["sm_mhz"].drop_nulls().to_list()
    if clocks and min(clocks) < (1 - CLOCK_CHANGE) * max(clocks):
        found.append(f"the GPU's clock varied from {min(clocks)} to {max(clocks)} MHz")
    medians = round_medians(times)
    if len(medians) < MIN_ROUNDS:
        return tuple(found)
    third = len(medians) // 3
    change = float(np.median(medians[-third:]) / np.median(medians[:third])) - 1
    slow = int((medians > SLOW_ROUND * np.median(medians)).sum())
    if abs(change) > DRIFT:
        found.append(f"the last rounds took {abs(change):.0%} {'more' if change > 0 else 'less'} time than the first")
    elif 10 * slow > len(medians):
        found.append(f"{slow} of {len(medians)} rounds took over {SLOW_ROUND:g} times the median")
    return tuple(found)


def measure_noise(times: Sequence[float]) -> float:
    """Half the 95 % interval of the mean round, as a share of it; infinite for too few rounds."""
    medians = round_medians(np.asarray(times))
    if len(medians) < MIN_ROUNDS:
        return math.inf
    return float(1.96 * medians.std(ddof=1) / math.sqrt(len(medians)) / medians.mean())
