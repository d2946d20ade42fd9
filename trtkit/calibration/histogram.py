"""How often a tensor's magnitudes fall where, counted in one pass over any number of batches."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["BINS", "Histogram", "Room"]

BINS = 4096

# Values a step. Smaller steps would stay in nearer caches, but then the threads that count wait for each other at every
# call: measured on two cores, 2^19 was a third faster than 2^17. OpenCV's float32 counts are exact up to 2^24.
_STEP = 1 << 19

# Beyond these a power of two times BINS leaves float32.
_SMALLEST, _LARGEST = -100, 128


class Room:
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
        self, values: NDArray[np.float32], room: Room | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Count the values of a tensor.

        Args:
            values: Float32 of shape (n, ...), none of it 0.
            room: To count in; None takes new room.

        Returns:
            The lowest and the highest of each of the n parts; where a part holds NaN or an infinity, one of the two is
            not finite, and not all values were counted.
        """
        rows = np.ascontiguousarray(values).reshape(len(values), -1)
        room = room or Room()
        if rows.size <= _STEP:
            low, high = rows.min(axis=1).astype(np.float64), rows.max(axis=1).astype(np.float64)
            self._count(rows.reshape(-1), low.min(), high.max(), room)
            return low, high
        low, high = np.full(len(rows), np.inf), np.full(len(rows), -np.inf)
        for index, row in enumerate(rows):
            for start in range(0, row.size, _STEP):
                part = row[start : start + _STEP]
                lowest, highest = float(part.min()), float(part.max())
                # np.minimum, unlike min, keeps a NaN.
                low[index], high[index] = np.minimum(low[index], lowest), np.maximum(high[index], highest)
                self._count(part, lowest, highest, room)
        return low, high

    def _count(self, part: NDArray[np.float32], low: float, high: float, room: Room) -> None:
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
