"""Histograms of tensor values, counted in one pass over any number of batches."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import polars as pl

__all__ = ["BINS", "CountingBuffer", "Histogram", "exponent_above"]

BINS = 4096
"""Bins of |x|; negative values have as many of the same width."""

# Values counted per call. 2^19 keeps the calls of two threads long enough not to wait for each other. OpenCV's float32
# counts are exact up to 2^24.
_CHUNK = 1 << 19

# Below this exponent the factor from a value to its bin leaves float32.
_MIN_EXPONENT = -100


class CountingBuffer:
    """Scratch memory of one counting thread, allocated once."""

    def __init__(self) -> None:
        self.bins = np.empty(_CHUNK, np.int16)


class Histogram:
    """Counts of |x| in `BINS` equal bins over [0, 2^exponent), and how many of each bin's values are negative.

    2^exponent is the power of two just above the largest |x| so far. Powers of two make widening exact: the edges of
    the wider bins are edges of the narrower ones, and scaling a float32 by them does not round. The counts depend on
    the values alone, not on their order or batching, and equal those of a second pass over the final range.

    The first bin holds values of both signs, |x| < `width`, and `negative[0]` is always 0.

    Args:
        counts: (BINS,) counts of |x| to start from; None starts empty.
        exponent: Exponent of the range's end; None as long as every value was 0.
        negative: (BINS,) how many of `counts` are negative values. None with `counts` given means that signs are
            unknown, as in calibrations of trtkit 0.1.0; such a histogram stays unsigned.

    Attributes:
        counts: (BINS,) int64, counts of |x|.
        negative: (BINS,) int64, counts of negative values by |x|; None where signs are unknown.
        exponent: Exponent of the range's end, or None.
    """

    def __init__(
        self,
        counts: NDArray[np.int64] | None = None,
        exponent: int | None = None,
        negative: NDArray[np.int64] | None = None,
    ) -> None:
        self.counts = np.zeros(BINS, np.int64) if counts is None else np.asarray(counts, np.int64)
        self.exponent = exponent
        self.negative: NDArray[np.int64] | None = None
        if negative is not None:
            self.negative = np.asarray(negative, np.int64)
        elif counts is None:
            self.negative = np.zeros(BINS, np.int64)

    @property
    def signed(self) -> bool:
        """Whether negative values are counted apart from positive ones."""
        return self.negative is not None

    @property
    def width(self) -> float:
        """Width of a bin; 0 where every value was 0."""
        return 0.0 if self.exponent is None else math.ldexp(1.0, self.exponent) / BINS

    @property
    def total(self) -> int:
        """Number of values counted."""
        return int(self.counts.sum())

    def edges(self) -> NDArray[np.float64]:
        """(BINS + 1,) edges of the bins of |x|."""
        return np.arange(BINS + 1, dtype=np.float64) * self.width

    def signed_counts(self) -> NDArray[np.int64] | None:
        """(2 * BINS - 1,) counts of x from -2^exponent to 2^exponent, or None where signs are unknown.

        Element `BINS - 1 + k` counts the values that truncate to `k` bins of `width`; the middle one holds
        -width < x < width. Folding the array at its middle gives `counts`.
        """
        if self.negative is None:
            return None
        return np.concatenate([self.negative[:0:-1], self.counts - self.negative])

    def bins(self, limit: int) -> pl.DataFrame:
        """The counts of |x| in at most `limit` bins, up to the last one that is not empty.

        Args:
            limit: Largest number of bins.

        Returns:
            One row per bin: `middle`, `width` and `count`.
        """
        import polars as pl

        used = int(np.flatnonzero(self.counts)[-1]) + 1 if self.total else 1
        merged = -(-used // limit)
        counts = np.add.reduceat(self.counts[:used], np.arange(0, used, merged)).astype(np.int64)
        width = self.width * merged
        return pl.DataFrame({"middle": (np.arange(len(counts)) + 0.5) * width, "width": width, "count": counts})

    def log_shares(self, largest: float, bands: int) -> NDArray[np.float64]:
        """Decimal logarithms of the shares of values in equal bands of |x| from 0 to `largest`.

        Args:
            largest: Largest magnitude of the values.
            bands: Number of bands.

        Returns:
            (bands,); NaN for an empty band.
        """
        if not self.total or not largest or self.exponent is None:
            return np.full(bands, np.nan)
        middles = (np.arange(BINS) + 0.5) * self.width
        # The last band takes the middle of the last bin, which may exceed the largest value.
        band = np.minimum((middles / largest * bands).astype(np.int64), bands - 1)
        counts = np.bincount(band, weights=self.counts.astype(np.float64), minlength=bands)
        return np.where(counts > 0, np.log10(np.maximum(counts, 1) / self.total), np.nan)

    def add(
        self, values: NDArray[np.float32], buffer: CountingBuffer | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Count the values of a tensor.

        Args:
            values: (n, ...) float32, not empty.
            buffer: Scratch memory; None allocates it.

        Returns:
            (n,) minimum and (n,) maximum of each of the n rows. Where a row holds NaN or infinity, one of the two is
            not finite, and its values may not be counted.
        """
        rows = np.ascontiguousarray(values).reshape(len(values), -1)
        buffer = buffer or CountingBuffer()
        if rows.size <= _CHUNK:
            low, high = (
                rows.min(axis=1).astype(np.float64),
                rows.max(axis=1).astype(np.float64),
            )
            self._count(rows.reshape(-1), low.min(), high.max(), buffer)
            return low, high
        low, high = np.full(len(rows), np.inf), np.full(len(rows), -np.inf)
        for index, row in enumerate(rows):
            for start in range(0, row.size, _CHUNK):
                chunk = row[start : start + _CHUNK]
                chunk_low, chunk_high = float(chunk.min()), float(chunk.max())
                # np.minimum, unlike min, propagates NaN.
                low[index], high[index] = (
                    np.minimum(low[index], chunk_low),
                    np.maximum(high[index], chunk_high),
                )
                self._count(chunk, chunk_low, chunk_high, buffer)
        return low, high

    def _count(
        self,
        chunk: NDArray[np.float32],
        low: float,
        high: float,
        buffer: CountingBuffer,
    ) -> None:
        """Count values between `low` and `high`; none where either is not finite."""
        if not (math.isfinite(low) and math.isfinite(high)):
            return
        largest = max(-low, high)
        if largest > 0:
            self.widen(exponent_above(largest))
        if self.exponent is None:
            self.counts[0] += chunk.size
            return
        bins = buffer.bins[: chunk.size]
        # Truncation towards zero puts x and -x into bins k and -k; casting while multiplying needs no float32 copy.
        np.multiply(
            chunk,
            np.float32(math.ldexp(BINS, -self.exponent)),
            out=bins,
            casting="unsafe",
        )
        np.add(bins, BINS - 1, out=bins)
        pixels = bins.view(np.uint16).reshape(1, -1)
        both = cv2.calcHist([pixels], [0], None, [2 * BINS - 1], [0, 2 * BINS - 1]).reshape(-1).astype(np.int64)
        negative = both[BINS - 2 :: -1]
        self.counts += both[BINS - 1 :]
        self.counts[1:] += negative
        if self.negative is not None:
            self.negative[1:] += negative

    def widen(self, exponent: int) -> None:
        """Extend the range to at least 2^exponent by merging neighboring bins."""
        if self.exponent is None:
            self.exponent = exponent
        elif exponent > self.exponent:
            # After log2(BINS) doublings every value lies in the first bin.
            merged = 1 << min(exponent - self.exponent, BINS.bit_length() - 1)
            self.counts = _merge_bins(self.counts, merged)
            if self.negative is not None:
                self.negative = _merge_bins(self.negative, merged)
                self.negative[0] = 0
            self.exponent = exponent

    def merge(self, other: Histogram) -> Histogram:
        """The counts of two histograms together, as a new histogram; unsigned if one of them is."""
        negative = None if self.negative is None or other.negative is None else self.negative.copy()
        result = Histogram(self.counts.copy(), self.exponent, negative)
        if other.exponent is None:
            result.counts[0] += other.total
            return result
        result.widen(other.exponent)
        assert result.exponent is not None
        added = Histogram(other.counts, other.exponent, other.negative)
        added.widen(result.exponent)
        result.counts = result.counts + added.counts
        if result.negative is not None and added.negative is not None:
            result.negative = result.negative + added.negative
        return result


def exponent_above(largest: float) -> int:
    """The smallest exponent whose power of two is above a magnitude, at least `_MIN_EXPONENT`."""
    return max(math.frexp(largest)[1], _MIN_EXPONENT)


def _merge_bins(counts: NDArray[np.int64], merged: int) -> NDArray[np.int64]:
    """(BINS,) counts where each bin holds `merged` bins of `counts`; the upper bins are empty."""
    result = np.zeros(BINS, np.int64)
    result[: BINS // merged] = counts.reshape(-1, merged).sum(axis=1)
    return result
