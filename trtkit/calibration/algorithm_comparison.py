"""Comparison of calibration algorithms on one calibration pass: ranges, scales and clipping of each."""

from __future__ import annotations

import functools
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
    """Ranges of one calibration pass by any algorithm, each computed once.

    Args:
        calibration: A calibration, with histograms for all algorithms.
    """

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration
        self._computed: dict[tuple[str, float | None], Calibration] = {
            (calibration.algorithm, calibration.percentile): calibration
        }
        self._merged: dict[str, TensorStats | None] = {}

    def unavailable_reasons(self) -> dict[str, str]:
        """Why an algorithm can't be used on this pass, by name; "" if it can."""
        return {name: self._unavailable_reason(name) for name in ALGORITHMS}

    def with_algorithm(self, algorithm: str, percentile: float | None = None) -> Calibration:
        """As `Calibration.with_algorithm`, cached.

        Raises:
            CalibrationError: There is no such algorithm, or it needs histograms and none were collected.
        """
        if algorithm in ALGORITHMS and percentile is None:
            percentile = resolve_percentile(algorithm)
        key = (algorithm, percentile)
        if key not in self._computed:
            self._computed[key] = self.calibration.with_algorithm(algorithm, percentile=percentile)
        return self._computed[key]

    def is_immediate(self, algorithm: str, percentile: float | None = None) -> bool:
        """Whether `with_algorithm` returns without a search of every histogram."""
        if self._unavailable_reason(algorithm):
            return False
        entry = ALGORITHMS.get(algorithm)
        return entry is None or not entry.is_search or (algorithm, percentile) in self._computed

    def compute_all(
        self, *, progress: Progress | None = None, cancel: CancelToken | None = None
    ) -> AlgorithmComparison:
        """Compute the ranges of all algorithms that take seconds.

        Args:
            progress: Receives an event for each algorithm.
            cancel: Checked before each algorithm.

        Returns:
            This object.

        Raises:
            CancelledError: The caller cancelled; finished algorithms stay cached.
        """
        reporter = Reporter(progress, cancel)
        names = [name for name, entry in ALGORITHMS.items() if entry.is_search and not self._unavailable_reason(name)]
        for done, name in enumerate(names):
            reporter.step("compute ranges of all algorithms", done, len(names))
            self.with_algorithm(name)
        reporter.step("compute ranges of all algorithms", len(names), len(names))
        return self

    def stats(self, tensor: str) -> TensorStats | None:
        """Statistics of a tensor; of a tensor that only moves values, those of its sources merged.

        Pooling and resizing drop or repeat values, so counts are those of the source.

        Returns:
            The statistics, or None if there are none, as for a TensorRT calibration cache.
        """
        if tensor not in self._merged:
            self._merged[tensor] = self._merge_sources(tensor)
        return self._merged[tensor]

    def frame(self, algorithm: str, percentile: float | None = None) -> pl.DataFrame:
        """Range and clipping of every tensor by an algorithm.

        Args:
            algorithm: One of `ALGORITHMS`.
            percentile: For an algorithm that takes one, percent; None takes the default.

        Returns:
            One row per tensor in graph order: `tensor`, `largest` (largest magnitude), `reach` (magnitude that the
            scale covers), `covered` (reach over largest, 0..1), `clipped` (share of values beyond the reach, 0..1;
            null without a histogram) and `scale`.

        Raises:
            CalibrationError: As `with_algorithm`.
        """
        return self.frame_for(self.with_algorithm(algorithm, percentile))

    def frame_for(self, calibration: Calibration) -> pl.DataFrame:
        """As `frame`, for given ranges, such as those of a search.

        Args:
            calibration: Ranges of the same tensors.
        """
        rows = []
        for tensor, (low, high) in calibration.ranges.items():
            reach = max(abs(low), abs(high))
            stats = self.stats(tensor)
            largest = reach if stats is None else stats.largest
            histogram = None if stats is None else stats.histogram
            rows.append(
                {
                    "tensor": tensor,
                    "largest": largest,
                    "reach": reach,
                    "covered": reach / largest if largest else 1.0,
                    "clipped": None if histogram is None else clipped_share(histogram, reach, largest),
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
                shares[:, column] = stats.histogram.log_shares(stats.largest, _BANDS)
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
            largest=reach if stats is None else stats.largest,
            algorithm=algorithm,
            others=others,
            looks=figure_looks(),
        )

    def _unavailable_reason(self, algorithm: str) -> str:
        if algorithm == self.calibration.algorithm:
            return ""
        if not self.calibration.stats:
            return "the calibration holds scales only, as a TensorRT calibration cache does"
        if get_algorithm(algorithm).needs_histogram and not self.calibration.histograms:
            return "the calibration has no histograms; calibrate with histograms=True"
        return ""

    def _merge_sources(self, tensor: str) -> TensorStats | None:
        own = self.calibration.stats.get(tensor)
        if own is not None:
            return own
        parts = [part for name in self.calibration.sources.get(tensor, ()) if (part := self.stats(name)) is not None]
        if not parts:
            return None
        histograms = [part.histogram for part in parts if part.histogram is not None]
        complete = len(histograms) == len(parts)
        return TensorStats(
            low=min(part.low for part in parts),
            high=max(part.high for part in parts),
            average_low=min(part.average_low for part in parts),
            average_high=max(part.average_high for part in parts),
            histogram=functools.reduce(Histogram.merge, histograms) if complete else None,
        )


def clipped_share(histogram: Histogram, reach: float, largest: float) -> float:
    """Share of the values whose magnitude exceeds a reach, 0..1.

    Values of the bin that contains the reach are assumed to be spread evenly, up to the largest one.

    Args:
        histogram: Histogram of the values.
        reach: Magnitude that the scale covers.
        largest: Largest magnitude of the values.

    Raises:
        CalibrationError: The reach is negative or NaN.
    """
    if not reach >= 0:
        raise CalibrationError(
            f"compute the share of values clipped at {reach}",
            "it is not a magnitude",
            "pass a number from 0 on",
            code="calibration-reach-invalid",
            value=reach,
        )
    total = histogram.total
    if reach >= largest or not total or histogram.exponent is None:
        return 0.0
    position = reach / histogram.width
    index = min(math.floor(position), len(histogram.counts) - 1)
    end = min(float(index + 1), largest / histogram.width)
    share_of_bin = max(end - position, 0.0) / max(end - index, np.finfo(np.float64).tiny)
    clipped = int(histogram.counts[index + 1 :].sum()) + share_of_bin * int(histogram.counts[index])
    return float(clipped / total)
