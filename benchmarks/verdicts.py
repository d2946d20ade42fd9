"""How often a verdict is right, and whether the number of images that it asks for settles it.

    python benchmarks/verdicts.py            # all kinds, 4 minutes on one core

Samples of images are drawn from a pool whose loss is known; the tolerance lies a number of standard errors of the first
sample above or below that loss: the same number for all samples, or spread evenly from one on. Where the first sample
can't tell, as many images as it asks for decide again, the first ones among them. Three kinds of metric: a mean over
images, mAP50-95 of simulated detections, and top-1 accuracy. Writes `results/verdicts.json` and `.md`.

How often a number can be given follows from the rule, whatever the metric: with a gap of g standard errors the observed
one is normal around g with a standard deviation of 1; a sample is undecided below 1.96, and gets a number from 1 on.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import polars as pl
from records import about, line_of, table, write

from trtkit.evaluation.bootstrap import ResampledMetric, draw_resamples, resample_metric
from trtkit.evaluation.significance import (
    CANNOT_TELL,
    KEPT,
    LOSES,
    Z_INTERVAL,
    ConfidenceInterval,
    compute_differences,
    compute_interval,
    compute_loss_interval,
    decide_accuracy,
    images_to_settle,
)

IMAGES = 120
"""Images of the first sample."""

GAPS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
"""Standard errors between the loss and the tolerance."""

SPREAD = (1.0, 4.0)
"""Ends of the evenly spread gaps: a gap of four standard errors is decided at once in 98 %."""

STEPS = 12
"""Evenly spread gaps of each sample on either side of the loss, where only the numbers of images are counted."""

COVERAGE_IMAGES = (10, 20, 30, 60, 120)
METRIC = "mAP50-95(B)"


@dataclasses.dataclass(frozen=True)
class Pool:
    """Images of which any number can be drawn.

    Attributes:
        size: Number of images.
        loss: The loss on all of them.
        is_share: Whether the metric is a share of the images.
        change: The change on some of them with its interval (negative is a loss), from image numbers.
    """

    size: int
    loss: float
    change: Callable[[np.ndarray], ConfidenceInterval]
    is_share: bool = False


def make_mean_pool() -> Pool:
    """Changes of single images: most hardly change, some gain or lose an object."""
    dice = np.random.default_rng(1)
    size, loss = 20_000, 0.02
    large = dice.random(size) < 0.15
    changes = np.where(large, dice.normal(-0.01, 0.06, size), dice.normal(0, 0.004, size))
    changes += -loss - changes.mean()

    def change(images: np.ndarray) -> ConfidenceInterval:
        values = changes[images]
        means = values @ draw_resamples(len(images), 400, 0) / len(images)
        return compute_interval(ResampledMetric(value=float(means[0]), values=means[1:]))

    return Pool(size, loss, change)


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What a bootstrap reads of an evaluation."""

    metrics: dict[str, float]
    per_class: pl.DataFrame
    per_image: pl.DataFrame
    detections: pl.DataFrame
    labels: pl.DataFrame

    def of(self, images: np.ndarray) -> Evaluated:
        """The evaluation of some of the images."""
        numbers = pl.DataFrame({"image": images.astype(np.int32), "number": np.arange(len(images), dtype=np.int32)})

        def renumber(frame: pl.DataFrame) -> pl.DataFrame:
            return frame.join(numbers, on="image").drop("image").rename({"number": "image"}).sort("image")

        frames = {name: renumber(getattr(self, name)) for name in ("per_image", "labels") if len(getattr(self, name))}
        detections = renumber(self.detections) if len(self.detections) else self.detections
        return dataclasses.replace(self, **frames, detections=detections)


def make_detection_pool() -> Pool:
    """Five classes, one to five objects an image; INT8 moves boxes and scores and loses 2 % of the objects."""
    dice = np.random.default_rng(2)
    size, classes = 3000, 5
    image = np.repeat(np.arange(size), dice.integers(1, 6, size)).astype(np.int32)
    number = dice.integers(0, classes, len(image)).astype(np.int32)
    quality, score = dice.beta(5, 2, len(image)), dice.beta(4, 2, len(image))
    # Hard images lose more: the objects of an image are alike.
    hard = dice.beta(0.5, 10, size)[image]
    false = dice.poisson(1.0, size)
    false_image = np.repeat(np.arange(size), false).astype(np.int32)
    false_class, false_score = dice.integers(0, classes, len(false_image)), dice.beta(2, 4, len(false_image))
    sides = {"x1": 0.0, "y1": 0.0, "x2": 50.0, "y2": 50.0}

    def evaluate(quality: np.ndarray, score: np.ndarray, found: np.ndarray) -> Evaluated:
        thresholds = np.clip(np.floor((quality - 0.45) / 0.05), 0, 10).astype(int)
        bits = np.concatenate([(1 << thresholds[found]) - 1, np.zeros(len(false_image), int)])
        detections = pl.DataFrame(
            {
                "image": np.concatenate([image[found], false_image]),
                "class": np.concatenate([number[found], false_class]).astype(np.int32),
                "score": np.concatenate([score[found], false_score]),
                "matched(B)": bits.astype(np.uint16),
                "object(B)": np.full(len(bits), -1),
            }
        ).with_columns(**{name: pl.lit(value) for name, value in sides.items()})
        return Evaluated(
            metrics={METRIC: 0.0},
            per_class=pl.DataFrame({"class": range(classes), "name": [str(n) for n in range(classes)]}),
            per_image=pl.DataFrame({"image": np.arange(size, dtype=np.int32)}),
            detections=detections,
            labels=pl.DataFrame({"image": image, "class": number, "area": np.full(len(image), 2500.0)}),
        )

    found = dice.random(len(image)) < 0.93
    before = evaluate(quality, score, found)
    after = evaluate(
        quality + dice.normal(-0.004, 0.02, len(image)),
        np.clip(score + dice.normal(-0.01, 0.03, len(image)), 0.001, 1),
        found & (dice.random(len(image)) > 0.4 * hard),
    )

    def change(images: np.ndarray) -> ConfidenceInterval:
        first, second = (resample_metric(one.of(images), METRIC, resamples=300) for one in (before, after))
        return compute_loss_interval(second, first)

    whole = [resample_metric(one, METRIC, resamples=2).value for one in (before, after)]
    return Pool(size, whole[0] - whole[1], change)


def make_share_pool() -> Pool:
    """Top-1 accuracy: 6 % of the images become wrong, 4 % right."""
    dice = np.random.default_rng(3)
    size = 20_000
    right = dice.random(size) < 0.8
    flips = dice.random(size)
    after = np.where(right, flips >= 0.075, flips < 0.2)
    ranks = [np.where(one, 1, 6) for one in (right, after)]

    def change(images: np.ndarray) -> ConfidenceInterval:
        paths = pl.DataFrame({"image": range(len(images)), "path": [str(n) for n in images]})
        none = pl.DataFrame({"class": [0], "name": ["a"]})
        first, second = (
            Evaluated(
                {"top1": float((one[images] == 1).mean())}, none, paths, pl.DataFrame(),
                pl.DataFrame({"image": range(len(images)), "class": [0] * len(images), "rank": one[images]}),
            )
            for one in ranks
        )  # fmt: skip
        row = compute_differences(first, second, resamples=2).row(0, named=True)
        return ConfidenceInterval(row["delta"], row["low"], row["high"])

    return Pool(size, float(right.mean() - after.mean()), change, is_share=True)


POOLS = {"mean over images": make_mean_pool, "mAP50-95": make_detection_pool, "top-1 accuracy": make_share_pool}


def simulate(pool: Pool, first: Sequence[ConfidenceInterval], gaps: Sequence[float]) -> dict[str, Any]:
    """Samples whose tolerance lies a number of standard errors from the loss, above it and below it in turn.

    Args:
        pool: The pool.
        first: The interval of the first images, by seed.
        gaps: The number of standard errors, by seed.
    """
    error = float(np.std([one.value for one in first]))
    facts = dict.fromkeys(("decided", "decided_right", "numbers", "settled", "settled_right"), 0)
    for seed, (interval, gap) in enumerate(zip(first, gaps, strict=True)):
        is_kept = seed % 2 == 0
        max_drop = pool.loss + gap * error * (1 if is_kept else -1)
        truth = KEPT if is_kept else LOSES
        decision = decide_accuracy(interval.low, interval.high, max_drop, IMAGES)
        if decision != CANNOT_TELL:
            facts["decided"] += 1
            facts["decided_right"] += decision == truth
            continue
        ends = interval.low, interval.high
        size = images_to_settle(interval.value, *ends, max_drop, IMAGES, is_share=pool.is_share)
        if size.is_lower_bound:
            continue
        facts["numbers"] += 1
        more = pool.change(draw(pool, seed)[: min(size.images, pool.size)])
        decision = decide_accuracy(more.low, more.high, max_drop, size.images)
        facts["settled"] += decision != CANNOT_TELL
        facts["settled_right"] += decision == truth
    counts = {name: int(value) for name, value in facts.items()}
    return {"seeds": len(gaps), "standard_error": error, "expected_numbers": expect_numbers(gaps), **counts}


def expect_numbers(gaps: Sequence[float]) -> float:
    """The share of undecided samples that get a number, of gaps of so many standard errors."""
    cumulative = NormalDist().cdf
    shares = {
        width: sum(cumulative(width - gap) - cumulative(-width - gap) for gap in gaps) for width in (1.0, Z_INTERVAL)
    }
    return 1 - shares[1.0] / shares[Z_INTERVAL]


def count_numbers(pool: Pool, first: Sequence[ConfidenceInterval]) -> dict[str, Any]:
    """How many undecided samples get a number: each sample with every evenly spread gap, above and below the loss."""
    error = float(np.std([one.value for one in first]))
    low, high = SPREAD
    gaps = [low + (high - low) * (step + 0.5) / STEPS for step in range(STEPS)]
    undecided = numbers = 0
    for one in first:
        for gap in (*gaps, *(-gap for gap in gaps)):
            max_drop = pool.loss + gap * error
            if decide_accuracy(one.low, one.high, max_drop, IMAGES) == CANNOT_TELL:
                size = images_to_settle(one.value, one.low, one.high, max_drop, IMAGES, is_share=pool.is_share)
                undecided, numbers = undecided + 1, numbers + (not size.is_lower_bound)
    cases = 2 * STEPS * len(first)
    return {"cases": cases, "undecided": undecided, "numbers": numbers, "expected_numbers": expect_numbers(gaps)}


def spread_gaps(count: int) -> list[float]:
    """Evenly spread gaps; two samples, one on either side of the loss, have the same."""
    low, high = SPREAD
    pairs = -(-count // 2)
    return [low + (high - low) * (seed // 2 + 0.5) / pairs for seed in range(count)]


def draw(pool: Pool, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(pool.size)


def measure_coverage(pool: Pool, images: int, seeds: int) -> float:
    """Share of samples whose 95 % interval holds the loss of the pool."""
    intervals = [pool.change(draw(pool, 10_000 + seed)[:images]) for seed in range(seeds)]
    return float(np.mean([one.low <= -pool.loss <= one.high for one in intervals]))


def main() -> None:
    """Run all kinds and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200, help="samples per kind and gap [default: 200]")
    values = parser.parse_args()
    start = time.monotonic()
    content: dict[str, Any] = {**about(f"--seeds {values.seeds}"), "images": IMAGES, "kinds": {}}
    for name, make in POOLS.items():
        pool = make()
        first = [pool.change(draw(pool, seed)[:IMAGES]) for seed in range(values.seeds)]
        rows = [{"gap": f"{gap:g}", **simulate(pool, first, [gap] * values.seeds)} for gap in GAPS]
        low, high = SPREAD
        rows.append({"gap": f"{low:g} to {high:g}, evenly", **simulate(pool, first, spread_gaps(values.seeds))})
        coverage = {str(images): measure_coverage(pool, images, values.seeds) for images in COVERAGE_IMAGES}
        spread = count_numbers(pool, first)
        content["kinds"][name] = {"loss": pool.loss, "gaps": rows, "spread": spread, "coverage": coverage}
        print(f"{name}: loss {pool.loss:.4f}, {time.monotonic() - start:.0f} s", flush=True)
    write("verdicts", content, render(content))


def render(content: dict[str, Any]) -> list[str]:
    """The record as Markdown."""
    lines = [
        "# Verdicts on samples from pools whose loss is known", "",
        f"`{content['command']}`: {content['images']} images first, then as many as the verdict asks for. Undecided",
        "samples whose change is within a standard error of the tolerance get a lower bound instead of a number. The",
        "column behind has the share that this leaves by theory.", "",
        line_of(content), "",
    ]  # fmt: skip
    head = ["gap, standard errors", "decided at once", "of them right", "undecided", "with a number", "by theory",
            "settled by it", "of them right"]  # fmt: skip
    for name, kind in content["kinds"].items():
        lines += [f"## {name}: loss {kind['loss']:.4f}", "", *table(head, [summarize(row) for row in kind["gaps"]]), ""]
    low, high = SPREAD
    lines += [f"## Gaps of {low:g} to {high:g} standard errors, evenly, on both sides of each loss", ""]
    body = []
    for name, kind in content["kinds"].items():
        one = kind["spread"]
        ratios = (one["numbers"] / one["undecided"], one["expected_numbers"])
        body.append([name, str(one["cases"]), str(one["undecided"]), *(f"{ratio:.1%}" for ratio in ratios)])
    lines += [*table(["metric", "cases", "undecided", "with a number", "by theory"], body), ""]
    counts = [str(images) for images in COVERAGE_IMAGES]
    rows = [[name, *(f"{kind['coverage'][count]:.1%}" for count in counts)] for name, kind in content["kinds"].items()]
    lines += ["## 95 % intervals that hold the loss, by number of images", "", *table(["metric", *counts], rows)]
    return lines


def summarize(row: dict[str, Any]) -> list[str]:
    """The cells of one gap."""
    undecided = row["seeds"] - row["decided"]
    return [
        row["gap"], share(row["decided"], row["seeds"]), share(row["decided_right"], row["decided"]), str(undecided),
        share(row["numbers"], undecided), f"{row['expected_numbers']:.0%}", share(row["settled"], row["numbers"]),
        share(row["settled_right"], row["settled"]),
    ]  # fmt: skip


def share(part: int, whole: int) -> str:
    """A share of a count in percent."""
    return "-" if not whole else f"{part / whole:.0%}"


if __name__ == "__main__":
    main()
