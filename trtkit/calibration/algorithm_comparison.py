"""One pass read in many ways: what each algorithm makes of it, computed once each, and what each would clip."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from trtkit.calibration.algorithms import (
    ALGORITHMS,
    PERCENTILES,
    TensorStats,
    figure_looks,
    get_algorithm,
    resolve_percentile,
)
from trtkit.calibration.calibration import Calibration
from trtkit.calibration.histogram import Histogram
from trtkit.errors import CalibrationError
from trtkit.progress import CancelToken, Progress, Reporter

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["PERCENTILES", "AlgorithmComparison", "clipped_share"]

_BANDS = 48
"""Bands of magnitude in the overview figure."""

_HISTOGRAM_BINS = 256
"""Largest number of bins in the histogram figure."""


class AlgorithmComparison:
    """A calibration read by any algorithm, each once.

    Args:
        calibration: Of one pass.
    """

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration
        self._read: dict[tuple[str, float | None], Calibration] = {
            (calibration.algorithm, calibration.percentile): calibration
        }
        self._merged: dict[str, TensorStats | None] = {}

    def unavailable_reasons(self) -> dict[str, str]:
        """By algorithm, why this pass can't be read by it; "" where it can."""
        return {name: self._refusal(name) for name in ALGORITHMS}

    def with_algorithm(self, algorithm: str, percentile: float | None = None) -> Calibration:
        """As `Calibration.using`, at once where it was asked before.

        Raises:
            CalibrationError: There is no such algorithm, or what it needs was not kept.
        """
        if algorithm in ALGORITHMS and percentile is None:
            percentile = resolve_percentile(algorithm)
        key = (algorithm, percentile)
        if key not in self._read:
            self._read[key] = self.calibration.with_algorithm(algorithm, percentile=percentile)
        return self._read[key]

    def is_immediate(self, algorithm: str, percentile: float | None = None) -> bool:
        """Whether `using` answers without searching every histogram."""
        if self._refusal(algorithm):
            return False
        entry = ALGORITHMS.get(algorithm)
        return entry is None or not entry.is_search or (algorithm, percentile) in self._read

    def compute_all(
        self, *, progress: Progress | None = None, cancel: CancelToken | None = None
    ) -> AlgorithmComparison:
        """Read every algorithm that takes seconds, so that each is there at once later.

        Args:
            progress: Receives an event for each algorithm.
            cancel: Asked at each.

        Raises:
            CancelledError: The caller cancelled; what was read stays.
        """
        reporter = Reporter(progress, cancel)
        names = [name for name, entry in ALGORITHMS.items() if entry.is_search and not self._refusal(name)]
        for done, name in enumerate(names):
            reporter.step("read every algorithm off the pass", done, len(names))
            self.with_algorithm(name)
        reporter.step("read every algorithm off the pass", len(names), len(names))
        return self

    def stats(self, tensor: str) -> TensorStats | None:
        """What the pass saw of a tensor; of one that only moves values, its sources taken together.

        A pooling or a resizing drops or repeats values of its source, so that counts are then its source's.

        Returns:
            None where nothing was seen, as for a cache of TensorRT's.
        """
        if tensor not in self._merged:
            self._merged[tensor] = self._together(tensor)
        return self._merged[tensor]

    def frame(self, algorithm: str, percentile: float | None = None) -> pl.DataFrame:
        """What an algorithm makes of every tensor, in graph order.

        Returns:
            One row a tensor: `tensor`, `largest` (largest magnitude seen), `reach` (the magnitude that its scale
            covers), `covered` (reach over largest, 0..1), `clipped` (share of the values beyond the reach, 0..1; null
            without a histogram) and `scale`.

        Raises:
            CalibrationError: As `using`.
        """
        return self.frame_for(self.with_algorithm(algorithm, percentile))

    def frame_for(self, found: Calibration) -> pl.DataFrame:
        """As `frame`, of ranges that were chosen by other means, such as a search's.

        Args:
            found: Ranges of the same tensors.
        """
        rows = []
        for tensor, (low, high) in found.ranges.items():
            reach = max(abs(low), abs(high))
            seen = self.stats(tensor)
            largest = reach if seen is None else max(abs(seen.low), abs(seen.high))
            rows.append(
                {
                    "tensor": tensor,
                    "largest": largest,
                    "reach": reach,
                    "covered": reach / largest if largest else 1.0,
                    "clipped": None
                    if seen is None or seen.histogram is None
                    else clipped_share(seen.histogram, reach, largest),
                    "scale": reach / 127.0,
                }
            )
        numbers = ("largest", "reach", "covered", "clipped", "scale")
        return pl.DataFrame(rows, schema={"tensor": pl.String, **dict.fromkeys(numbers, pl.Float64)})

    def plot_overview(self, frame: pl.DataFrame, *, selected: str = "", algorithm: str = "") -> go.Figure:
        """The histogram of every tensor, and the share of its largest magnitude that the scale covers.

        Args:
            frame: As `frame`; `reach` may be that of a shared scale.
            selected: The tensor to mark.
            algorithm: The algorithm in use, for the legend.
        """
        from trtkit.plotting.calibration import overview_figure

        shares = np.full((_BANDS, len(frame)), np.nan)
        for column, tensor in enumerate(frame["tensor"]):
            stats = self.stats(tensor)
            if stats is not None and stats.histogram is not None:
                shares[:, column] = stats.histogram.log_shares(max(abs(stats.low), abs(stats.high)), _BANDS)
        return overview_figure(frame, shares, selected=selected, algorithm=algorithm)

    def plot_histogram(
        self, tensor: str, reach: float, *, algorithm: str = "", others: Mapping[str, float] | None = None
    ) -> go.Figure:
        """The histogram of a tensor with the magnitude that its scale covers, and what is clipped.

        Args:
            tensor: Name of the tensor.
            reach: The magnitude that the scale covers.
            algorithm: The algorithm in use, for the legend.
            others: The magnitude that other algorithms cover, by label.
        """
        from trtkit.plotting.calibration import histogram_figure

        stats = self.stats(tensor)
        return histogram_figure(
            None if stats is None or stats.histogram is None else stats.histogram.bins(_HISTOGRAM_BINS),
            reach,
            largest=reach if stats is None else max(abs(stats.low), abs(stats.high)),
            algorithm=algorithm,
            others=others,
            looks=figure_looks(),
        )

    def _refusal(self, algorithm: str) -> str:
        if algorithm == self.calibration.algorithm:
            return ""
        if not self.calibration.stats:
            return "the calibration holds scales only, as a cache of TensorRT's does"
        if get_algorithm(algorithm).needs_histogram and not self.calibration.histograms:
            return "no histograms were kept; calibrate with histograms=True"
        return ""

    def _together(self, tensor: str) -> TensorStats | None:
        found = self.calibration.stats.get(tensor)
        if found is not None:
            return found
        parts = [part for name in self.calibration.sources.get(tensor, ()) if (part := self.stats(name)) is not None]
        if not parts:
            return None
        histogram: Histogram | None = None
        kept = [part.histogram for part in parts if part.histogram is not None]
        if len(kept) == len(parts):
            histogram = kept[0]
            for other in kept[1:]:
                histogram = histogram.merge(other)
        return TensorStats(
            low=min(part.low for part in parts),
            high=max(part.high for part in parts),
            average_low=min(part.average_low for part in parts),
            average_high=max(part.average_high for part in parts),
            histogram=histogram,
        )


def clipped_share(histogram: Histogram, reach: float, largest: float) -> float:
    """Share of the counted magnitudes that lie beyond a reach, 0..1.

    Within the bin that the reach falls into, values are taken as spread evenly up to the largest one.

    Args:
        histogram: Counts of |x|.
        reach: What the scale covers.
        largest: The largest magnitude seen, beyond which the last bin is empty.

    Raises:
        CalibrationError: The reach is negative or not a number.
    """
    if not reach >= 0:
        raise CalibrationError(f"tell what a reach of {reach} clips", "it is no magnitude", "use a number from 0 on")
    total = histogram.total
    if reach >= largest or not total or histogram.exponent is None:
        return 0.0
    place = reach / histogram.width
    index = min(math.floor(place), len(histogram.counts) - 1)
    end = min(float(index + 1), largest / histogram.width)
    inside = max(end - place, 0.0) / max(end - index, np.finfo(np.float64).tiny)
    beyond = int(histogram.counts[index + 1 :].sum()) + inside * int(histogram.counts[index])
    return float(beyond / total)
