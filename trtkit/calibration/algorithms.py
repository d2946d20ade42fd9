"""From what one pass saw of a tensor to the magnitude its INT8 scale shall reach.

Each algorithm is a function of the histogram and of the exact extremes, so that any of them can be asked afterwards.
What lies beyond the chosen magnitude is clipped; a scale is that magnitude over 127.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import cv2
import numpy as np
from numpy.typing import NDArray

from trtkit.errors import CalibrationError

__all__ = [
    "ALGORITHMS",
    "BINS",
    "PERCENTILE",
    "CountingBuffer",
    "Histogram",
    "TensorStats",
    "compute_magnitude",
    "entropy",
    "mean_squared_error",
    "percentile_of",
]


# How often a tensor's magnitudes fall where, counted in one pass over any number of batches.


BINS = 4096

# Values a step. Smaller steps would stay in nearer caches, but then the threads that count wait for each other at every
# call: measured on two cores, 2^19 was a third faster than 2^17. OpenCV's float32 counts are exact up to 2^24.
_STEP = 1 << 19

# Beyond these a power of two times BINS leaves float32.
_SMALLEST, _LARGEST = -100, 128


class CountingBuffer:
    """Room to count in, for one thread; taken once, since memory fresh from the system costs more than the counting."""

    def __init__(self) -> None:
        self.bins = np.empty(_STEP, np.int16)


class Histogram:
    """Counts of |x| in `BINS` equal bins over [0, 2^exponent), the power of two just above the largest |x| so far.

    Powers of two make growing exact: the edges of the wider bins are edges of the narrower ones, and scaling a float32
    by them does not round. So the counts depend on the values alone, not on their order nor on how they were batched,
    and equal those of a second pass over the final range.

    Args:
        counts: (BINS,) counts to start from; None starts empty.
        exponent: Of the range's end; None as long as nothing but zeros was seen.
    """

    def __init__(self, counts: NDArray[np.int64] | None = None, exponent: int | None = None) -> None:
        self.counts = np.zeros(BINS, np.int64) if counts is None else np.asarray(counts, np.int64)
        self.exponent = exponent

    @property
    def width(self) -> float:
        """Width of a bin; 0 where only zeros were seen."""
        return 0.0 if self.exponent is None else math.ldexp(1.0, self.exponent) / BINS

    @property
    def total(self) -> int:
        """Values counted."""
        return int(self.counts.sum())

    def edges(self) -> NDArray[np.float64]:
        """(BINS + 1,) edges of the bins."""
        return np.arange(BINS + 1, dtype=np.float64) * self.width

    def add(
        self, values: NDArray[np.float32], buffer: CountingBuffer | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Count the values of a tensor.

        Args:
            values: Float32 of shape (n, ...), none of it 0.
            buffer: To count in; None takes new room.

        Returns:
            The lowest and the highest of each of the n parts; where a part holds NaN or an infinity, one of the two is
            not finite, and not all values were counted.
        """
        rows = np.ascontiguousarray(values).reshape(len(values), -1)
        buffer = buffer or CountingBuffer()
        if rows.size <= _STEP:
            low, high = rows.min(axis=1).astype(np.float64), rows.max(axis=1).astype(np.float64)
            self._count(rows.reshape(-1), low.min(), high.max(), buffer)
            return low, high
        low, high = np.full(len(rows), np.inf), np.full(len(rows), -np.inf)
        for index, row in enumerate(rows):
            for start in range(0, row.size, _STEP):
                part = row[start : start + _STEP]
                lowest, highest = float(part.min()), float(part.max())
                # np.minimum, unlike min, keeps a NaN.
                low[index], high[index] = np.minimum(low[index], lowest), np.maximum(high[index], highest)
                self._count(part, lowest, highest, buffer)
        return low, high

    def _count(self, part: NDArray[np.float32], low: float, high: float, room: CountingBuffer) -> None:
        """Count values between `low` and `high`."""
        if not (math.isfinite(low) and math.isfinite(high)):
            return
        largest = max(-low, high)
        if largest > 0:
            self.widen(exponent_above(largest))
        if self.exponent is None:
            self.counts[0] += part.size
            return
        bins = room.bins[: part.size]
        # Cutting off towards zero puts x and -x into the same bin; a product never leaves the nearest cache as float32.
        np.multiply(part, np.float32(math.ldexp(BINS, -self.exponent)), out=bins, casting="unsafe")
        np.abs(bins, out=bins)
        counts = cv2.calcHist([bins.view(np.uint16).reshape(1, -1)], [0], None, [BINS], [0, BINS])
        self.counts += counts.reshape(-1).astype(np.int64)

    def widen(self, exponent: int) -> None:
        """Make the range reach at least to 2^exponent, merging bins pairwise."""
        if self.exponent is None:
            self.exponent = exponent
        elif exponent > self.exponent:
            # Beyond log2(BINS) doublings everything lies in the first bin.
            merged = 1 << min(exponent - self.exponent, BINS.bit_length() - 1)
            narrow = self.counts.reshape(-1, merged).sum(axis=1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[: narrow.size] = narrow
            self.exponent = exponent

    def merge(self, other: Histogram) -> Histogram:
        """Both counted together, as a new histogram."""
        result = Histogram(self.counts.copy(), self.exponent)
        if other.exponent is None:
            result.counts[0] += other.total
            return result
        result.widen(other.exponent)
        added = Histogram(other.counts, other.exponent)
        assert result.exponent is not None
        added.widen(result.exponent)
        result.counts = result.counts + added.counts
        return result


def exponent_above(largest: float) -> int:
    """The smallest exponent whose power of two lies above a magnitude, within float32's reach."""
    return min(max(math.frexp(largest)[1], _SMALLEST), _LARGEST)


ALGORITHMS = ("minmax", "moving_average", "entropy", "percentile", "mse")
"""`minmax` and `moving_average` need no histograms, the others do."""

PERCENTILE = 99.999

LEVELS = 128
"""Magnitudes that signed INT8 tells apart, -128 left out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorStats:
    """What one pass saw of a tensor.

    Attributes:
        low: Its lowest value.
        high: Its highest value.
        average_low: The moving average of the images' lowest values.
        average_high: The moving average of their highest.
        histogram: Counts of |x|, or None where only the extremes were taken.
    """

    low: float
    high: float
    average_low: float
    average_high: float
    histogram: Histogram | None = None


def compute_magnitude(stats: TensorStats, algorithm: str, *, percentile: float = PERCENTILE, tensor: str = "") -> float:
    """The magnitude that a tensor's INT8 scale reaches, by an algorithm.

    Args:
        stats: What was seen of the tensor.
        algorithm: One of `ALGORITHMS`.
        percentile: For "percentile": the share of values that are not clipped, percent.
        tensor: Its name, for the error.

    Raises:
        CalibrationError: The algorithm needs a histogram and none was kept, or there is no such algorithm.
    """
    largest = max(abs(stats.low), abs(stats.high))
    if algorithm == "minmax":
        return largest
    if algorithm == "moving_average":
        return max(abs(stats.average_low), abs(stats.average_high))
    if algorithm not in ALGORITHMS:
        raise CalibrationError(
            f"calibrate with {algorithm!r}", "there is no such algorithm", f"use one of {', '.join(ALGORITHMS)}"
        )
    histogram = stats.histogram
    if histogram is None:
        raise CalibrationError(
            f"read ranges by {algorithm} off a calibration",
            f"it holds no histogram{f' of {tensor!r}' if tensor else ''}",
            "calibrate with histograms=True, or with this algorithm from the start",
        )
    if histogram.exponent is None:
        return 0.0
    if algorithm == "percentile":
        chosen = percentile_of(histogram, percentile)
    elif algorithm == "entropy":
        chosen = entropy(histogram)
    else:
        chosen = mean_squared_error(histogram)
    # The last bin reaches beyond the largest value.
    return min(chosen, largest)


def percentile_of(histogram: Histogram, percentile: float) -> float:
    """The smallest bin edge below which at least `percentile` percent of the magnitudes lie.

    Raises:
        CalibrationError: The percentile is not in (0, 100].
    """
    if not 0 < percentile <= 100:
        raise CalibrationError(
            f"calibrate with percentile={percentile}", "a percentile lies above 0 and at most at 100", "use e.g. 99.99"
        )
    reached = np.cumsum(histogram.counts)
    # A count is an integer: what rounding adds to the product must not ask for one value more.
    wanted = math.ceil(round(percentile / 100 * reached[-1], 6))
    return float((np.searchsorted(reached, wanted) + 1) * histogram.width)


def entropy(histogram: Histogram) -> float:
    """The magnitude at which 128 levels tell most about the distribution: TensorRT's search.

    For every `i` from 128 bins on, the reference P is the first `i` bins with all that lies beyond added to the last
    one, and Q is the same bins without it, put into 128 groups and spread evenly over each group's bins that are not
    empty. The `i` with the smallest divergence sum(P log(P / Q)) wins, the largest of equals; where Q is 0 and P is
    not, it is infinite. As in NVIDIA's own code the first bin counts as much as the second, since exact zeros and what
    is next to them need no scale.

    Source: S. Migacz, "8-bit Inference with TensorRT", GTC 2017; pytorch-quantization, `_compute_amax_entropy`.
    """
    counts = histogram.counts.astype(np.float64)
    counts[0] = counts[1]
    stop = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 0
    if stop <= LEVELS:
        return float(max(stop, 1) * histogram.width)
    sizes = np.arange(LEVELS, stop + 1)  # (C,) candidates, in bins
    total = counts.sum()
    mass, filled = _prefix(counts), _prefix(counts > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = _prefix(np.where(counts > 0, counts * np.log(counts), 0.0))
        bounds = _groups()[: len(sizes)]
        group = np.diff(mass.take(bounds), axis=1)
        spread = np.log(group / np.diff(filled.take(bounds), axis=1))
        # sum(P log Q) without the outliers: each bin of a group has the same Q.
        cross = np.where(group > 0, group * spread, 0.0).sum(axis=1)
        last = counts[sizes - 1]
        outliers = total - mass[sizes]
        cross += np.where(outliers > 0, outliers * np.where(last > 0, spread[:, -1], -np.inf), 0.0)
        together = last + outliers
        own = logs[sizes - 1] + np.where(together > 0, together * np.log(together), 0.0)
        # P sums to the total, Q to what is inside: the logarithm of the shares' quotient.
        divergence = (own - cross) / total - math.log(total) + np.log(mass[sizes])
    divergence[np.isnan(divergence)] = np.inf
    best = len(sizes) - 1 - int(np.argmin(divergence[::-1]))
    return float(sizes[best] * histogram.width)


def mean_squared_error(histogram: Histogram) -> float:
    """The bin edge at which rounding and clipping together cost least, every bin standing for its middle."""
    counts = histogram.counts.astype(np.float64)
    stop = int(np.flatnonzero(counts)[-1]) + 1
    if stop < LEVELS:
        return float(stop * histogram.width)
    sizes = np.arange(LEVELS, stop + 1)
    middles = np.arange(BINS) + 0.5  # in bins
    zeroth, second = _prefix(counts), _prefix(counts * middles**2)
    once = _prefix(counts * middles)
    scale = sizes / (LEVELS - 1)
    bounds = _roundings()[: len(sizes)]
    levels = np.arange(LEVELS) * scale[:, None]
    error = second[-1] - 2 * (levels * np.diff(once.take(bounds), axis=1)).sum(axis=1)
    error += (levels**2 * np.diff(zeroth.take(bounds), axis=1)).sum(axis=1)
    return float(sizes[int(np.argmin(error))] * histogram.width)


@functools.lru_cache(maxsize=1)
def _groups() -> NDArray[np.int64]:
    """(candidates, 129) first bins of the 128 groups of the first `i` bins: group g starts at ceil(g i / 128)."""
    sizes = np.arange(LEVELS, BINS + 1)
    return -(-np.arange(LEVELS + 1) * sizes[:, None] // LEVELS)


@functools.lru_cache(maxsize=1)
def _roundings() -> NDArray[np.int64]:
    """(candidates, 129) first bins whose middles round to each of 128 levels when the scale is `i` bins over 127.

    Level k takes the middles in [(k - 1/2) scale, (k + 1/2) scale), the last level all above.
    """
    scale = np.arange(LEVELS, BINS + 1)[:, None] / (LEVELS - 1)
    bounds = np.ceil((np.arange(LEVELS + 1) - 0.5) * scale - 0.5).astype(np.int64)
    bounds[:, 0], bounds[:, -1] = 0, BINS
    return np.clip(bounds, 0, BINS)


def _prefix(values: NDArray[np.float64] | NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n + 1,) sums of the first 0, 1, ..., n values."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
