"""Stages of `predict` timed apart, for several runners by turns, with the interval of each."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from trtkit.backends.stages import STAGES, time_stages
from trtkit.evaluation.rounds import median_interval

if TYPE_CHECKING:
    from trtkit.backends.runner import Runner

__all__ = ["PREDICT", "STAGES_SCHEMA", "summarize_stages", "tabulate_stages", "time_predict", "widen_stages"]

PREDICT = "predict"
"""The whole call, in the place of a stage."""

STAGES_SCHEMA = {"label": pl.String, "batch": pl.Int64, "run": pl.Int64, "stage": pl.String, "ms": pl.Float64}

TIME_SHARE = 0.2
"""Share of the time limit of a runner's runs that its calls of `predict` may take."""

MIN_CALLS = 5
"""Least calls of `predict`, whatever the time limit."""


def time_predict(
    runners: Mapping[str, Runner],
    images: Mapping[str, Sequence[Any]],
    batch: int,
    *,
    calls: int,
    seconds: float,
    generator: np.random.Generator,
) -> Iterator[list[dict[str, Any]]]:
    """Call `predict` of all runners by turns, each first once untimed: rows of `STAGES_SCHEMA`.

    Args:
        runners: The runners by label.
        images: Images of each, in turn one batch of them after the other.
        batch: Images per call.
        calls: Maximum number of timed calls per runner.
        seconds: Time limit of a runner's other runs; `TIME_SHARE` of it applies here.
        generator: Decides the order within a round.

    Yields:
        The rows of one call: `PREDICT` and the runner's stages.
    """
    spent = dict.fromkeys(runners, 0.0)
    waiting = list(runners)
    for run in range(-1, calls):
        for label in map(str, generator.permutation(waiting)):
            runner, own = runners[label], images[label]
            chosen = [own[(max(run, 0) * batch + index) % len(own)] for index in range(batch)]
            total, stages = time_stages(functools.partial(runner.predict, chosen), runner.stage_clock())
            if run < 0:
                continue
            spent[label] += total / 1000
            yield [
                {"label": label, "batch": batch, "run": run, "stage": stage, "ms": ms}
                for stage, ms in {PREDICT: total, **stages}.items()
            ]
            if spent[label] >= TIME_SHARE * seconds and run + 1 >= MIN_CALLS:
                waiting.remove(label)


def summarize_stages(stages: pl.DataFrame) -> pl.DataFrame:
    """Summarize `Timing.stages`: label, batch, stage, runs, p50_ms, low, high and share.

    low and high are the bootstrap 95 % interval of the median; share is that of the whole call's time, and what is
    missing from 1 belongs to no stage.

    Args:
        stages: `Timing.stages`.
    """
    order = {stage: place for place, stage in enumerate((*STAGES, PREDICT))}
    rows = []
    for (label, batch), own in stages.group_by("label", "batch", maintain_order=True):
        total = own.filter(stage=PREDICT)["ms"].sum()
        for stage in sorted(own["stage"].unique(), key=order.__getitem__):
            times = own.filter(stage=stage)["ms"].to_numpy()
            low, high = median_interval(times)
            rows.append(
                {"label": label, "batch": batch, "stage": stage, "runs": len(times), "p50_ms": float(np.median(times)),
                 "low": low, "high": high, "share": times.sum() / total}
            )  # fmt: skip
    numbers = dict.fromkeys(("p50_ms", "low", "high", "share"), pl.Float64)
    return pl.DataFrame(
        rows, schema={"label": pl.String, "batch": pl.Int64, "stage": pl.String, "runs": pl.Int64, **numbers}
    )


def widen_stages(stages: pl.DataFrame) -> pl.DataFrame:
    """The medians with a column for each stage, such as `decode_ms`: null where a runner does not have the stage.

    Args:
        stages: `Timing.stages`, not empty.
    """
    timed = set(stages["stage"])
    columns = (
        (pl.col(stage) if stage in timed else pl.lit(None, pl.Float64)).alias(f"{stage}_ms")
        for stage in (*STAGES, PREDICT)
    )
    medians = stages.group_by("label", "batch", "stage", maintain_order=True).agg(pl.col("ms").median())
    wide = medians.pivot("stage", index=["label", "batch"], values="ms", maintain_order=True)
    return wide.select("label", "batch", *columns)


def tabulate_stages(summary: pl.DataFrame) -> tuple[list[str], list[list[str | None]]]:
    """The medians with their intervals as a table of text: headings, and a row per runner and batch.

    Args:
        summary: From `summarize_stages`.

    Returns:
        A column for each stage that any runner has; None where one does not have it.
    """
    timed = set(summary["stage"])
    names = [stage for stage in (*STAGES, PREDICT) if stage in timed]
    rows: list[list[str | None]] = []
    for (label, batch), own in summary.group_by("label", "batch", maintain_order=True):
        cells = {
            row["stage"]: f"{row['p50_ms']:.3g} [{row['low']:.3g}, {row['high']:.3g}]"
            for row in own.iter_rows(named=True)
        }
        rows.append([str(label), str(batch), *(cells.get(name) for name in names)])
    return ["label", "batch", *names], rows
