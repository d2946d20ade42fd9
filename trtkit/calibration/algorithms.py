"""Calibration algorithms: each maps the statistics of a tensor to the range that its INT8 scale covers.

A scale is the covered magnitude over 127; values beyond it are clipped. An algorithm is a function decorated with
`register`; calibrate, sweep, the tuner, the command line and the figures read the registry, `ALGORITHMS`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from trtkit.arguments import check_argument
from trtkit.calibration.histogram import BINS, Histogram
from trtkit.errors import CalibrationError

__all__ = [
    "ALGORITHMS",
    "DEFAULTS",
    "PERCENTILE",
    "PERCENTILES",
    "CalibrationAlgorithm",
    "CalibrationDefaults",
    "TensorStats",
    "compute_entropy_magnitude",
    "compute_magnitude",
    "compute_mse_magnitude",
    "compute_percentile_magnitude",
    "compute_range",
    "figure_looks",
    "format_algorithm",
    "get_algorithm",
    "register",
    "resolve_percentile",
    "unregister",
]

PERCENTILE = 99.999
"""Default percentile: the share of values that are not clipped, percent."""

PERCENTILES = (99.0, 99.5, 99.9, 99.95, 99.99, 99.995, PERCENTILE, 99.9999, 100.0)
"""Percentiles that the tuner offers, percent; 100 is the largest value rounded up to a bin."""

LEVELS = 128
"""Magnitudes of symmetric INT8, -128 excluded."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationDefaults:
    """The calibration settings that every verb starts from.

    Attributes:
        algorithm: Calibration algorithm.
        percentile: Percentile of the algorithm "percentile", percent.
        calibration_images: Maximum number of calibration images.
        fraction: Share of the split that images are drawn from, in (0, 1].
        seed: Seed of the sample.
        batch: Images per run of the calibration pass.
    """

    algorithm: str = "percentile"
    percentile: float = PERCENTILE
    calibration_images: int = 512
    fraction: float = 1.0
    seed: int = 0
    batch: int = 2


DEFAULTS = CalibrationDefaults()
"""Defaults of calibrate, export, compare, sensitivity, search, the wizard and the tuner."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorStats:
    """Statistics of a tensor over the calibration images.

    Attributes:
        low: Minimum.
        high: Maximum.
        average_low: Moving average of the images' minima.
        average_high: Moving average of the images' maxima.
        histogram: Histogram of the values, or None where only extremes were collected.
    """

    low: float
    high: float
    average_low: float
    average_high: float
    histogram: Histogram | None = None

    @property
    def largest(self) -> float:
        """Largest magnitude."""
        return max(abs(self.low), abs(self.high))


# The registry.


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationAlgorithm:
    """A calibration algorithm.

    Attributes:
        name: Identifier, as in `calibrate(algorithm=...)`.
        title: One line that says what it does.
        function: Maps `TensorStats` (and a percentile, where `takes_percentile`) to the magnitude that the scale
            covers, or to a range (low, high). A magnitude is limited to the tensor's largest one.
        needs_histogram: Whether it reads `TensorStats.histogram`. The function is not called for tensors that hold
            nothing but zeros.
        takes_percentile: Whether the function takes a percentile.
        percentiles: Percentiles that the tuner offers, percent; empty for an algorithm without one.
        is_search: Whether it searches every histogram, which takes seconds over a whole model.
        look: Index of its color, dash and symbol in figures; None takes its place in the registry.
    """

    name: str
    title: str
    function: Callable[..., float | tuple[float, float]]
    needs_histogram: bool = True
    takes_percentile: bool = False
    percentiles: tuple[float, ...] = ()
    is_search: bool = False
    look: int | None = None

    def label(self, percentile: float | None = None) -> str:
        """Name with its percentile, e.g. "percentile 99.9"."""
        return self.name if percentile is None else f"{self.name} {percentile:g}"


_registry: dict[str, CalibrationAlgorithm] = {}

ALGORITHMS: Mapping[str, CalibrationAlgorithm] = types.MappingProxyType(_registry)
"""Registered algorithms by name, in the order of registration; a live, read-only view."""

Function = TypeVar("Function", bound=Callable[..., Any])


def register(
    name: str,
    *,
    title: str,
    needs_histogram: bool = True,
    takes_percentile: bool = False,
    percentiles: tuple[float, ...] = (),
    is_search: bool = False,
    look: int | None = None,
) -> Callable[[Function], Function]:
    """Register the decorated function as a calibration algorithm.

    Args:
        name: Identifier: letters, digits, "_" and "-".
        title: One line that says what it does.
        needs_histogram: Whether it reads `TensorStats.histogram`.
        takes_percentile: Whether the function takes a percentile as its second argument.
        percentiles: Percentiles that the tuner offers, percent.
        is_search: Whether it takes seconds over a whole model.
        look: Index of its color, dash and symbol in figures; None takes its place in the registry.

    Returns:
        A decorator that leaves the function as it is.

    Raises:
        CalibrationError: The name is taken or holds other characters.
    """
    asked = f"register the calibration algorithm {name!r}"
    if name in _registry:
        raise CalibrationError(
            asked,
            "the name is taken",
            "choose another name",
            code="calibration-algorithm-exists",
            value=name,
        )
    if not name or not name.replace("_", "").replace("-", "").isalnum():
        raise CalibrationError(
            asked,
            "a name holds letters, digits, '_' and '-' only",
            "choose another name",
            code="calibration-algorithm-name",
            value=name,
        )

    def add(function: Function) -> Function:
        _registry[name] = CalibrationAlgorithm(
            name=name,
            title=title,
            function=function,
            needs_histogram=needs_histogram,
            takes_percentile=takes_percentile,
            percentiles=percentiles,
            is_search=is_search,
            look=look,
        )
        return function

    return add


def unregister(name: str) -> None:
    """Remove an algorithm from the registry.

    Raises:
        CalibrationError: There is no such algorithm.
    """
    get_algorithm(name)
    del _registry[name]


def figure_looks() -> dict[str, int]:
    """Index of each registered algorithm's style in figures, by name."""
    return {
        name: position if entry.look is None else entry.look
        for position, (name, entry) in enumerate(ALGORITHMS.items())
    }


def get_algorithm(name: str) -> CalibrationAlgorithm:
    """Look up an algorithm by name.

    Raises:
        CalibrationError: There is no such algorithm.
    """
    if name not in _registry:
        raise CalibrationError(
            f"calibrate with algorithm={name!r}",
            "there is no such algorithm",
            f"use one of {', '.join(ALGORITHMS)}",
            code="calibration-algorithm-unknown",
            value=name,
            names=tuple(ALGORITHMS),
        )
    return _registry[name]


def resolve_percentile(algorithm: str, percentile: float | None = None) -> float | None:
    """The percentile that an algorithm uses.

    Args:
        algorithm: Name of an algorithm.
        percentile: Percent; None takes the default.

    Returns:
        The percentile, or None for an algorithm without one.

    Raises:
        CalibrationError: There is no such algorithm, or it takes no percentile.
        RecipeError: The percentile is not in (0, 100].
    """
    if not get_algorithm(algorithm).takes_percentile:
        if percentile is not None:
            names = tuple(name for name, entry in ALGORITHMS.items() if entry.takes_percentile)
            raise CalibrationError(
                f"calibrate with algorithm={algorithm!r} and percentile={percentile}",
                f"{algorithm} takes no percentile",
                f"omit percentile, or use algorithm={' or '.join(map(repr, names))}",
                code="calibration-percentile-unused",
                value=percentile,
                names=names,
            )
        return None
    percentile = DEFAULTS.percentile if percentile is None else percentile
    return float(check_argument("calibrate", "percentile", percentile))


def compute_magnitude(
    stats: TensorStats,
    algorithm: str,
    *,
    percentile: float | None = None,
    tensor: str = "",
) -> float:
    """The magnitude that a tensor's INT8 scale covers.

    Args:
        stats: Statistics of the tensor.
        algorithm: Name of an algorithm.
        percentile: For an algorithm that takes one, percent; None takes the default.
        tensor: Name of the tensor, for the error.

    Raises:
        CalibrationError: There is no such algorithm, or it needs a histogram and `stats` has none.
    """
    result = _apply(stats, get_algorithm(algorithm), percentile, tensor)
    return max(map(abs, result)) if isinstance(result, tuple) else min(result, stats.largest)


def compute_range(
    stats: TensorStats,
    algorithm: str,
    *,
    percentile: float | None = None,
    tensor: str = "",
) -> tuple[float, float]:
    """The range of a tensor: its exact minimum and maximum, limited to the magnitude that the algorithm covers.

    Args:
        stats: As for `compute_magnitude`.
        algorithm: As for `compute_magnitude`.
        percentile: As for `compute_magnitude`.
        tensor: As for `compute_magnitude`.

    Returns:
        Low and high.

    Raises:
        CalibrationError: As for `compute_magnitude`.
    """
    result = _apply(stats, get_algorithm(algorithm), percentile, tensor)
    if isinstance(result, tuple):
        return result
    magnitude = min(result, stats.largest)
    return max(stats.low, -magnitude), min(stats.high, magnitude)


def _apply(
    stats: TensorStats,
    algorithm: CalibrationAlgorithm,
    percentile: float | None,
    tensor: str,
) -> float | tuple[float, float]:
    if algorithm.needs_histogram:
        if stats.histogram is None:
            raise CalibrationError(
                f"compute ranges with algorithm={algorithm.name!r}",
                f"the calibration has no histogram{f' of tensor {tensor!r}' if tensor else ''}",
                "calibrate with histograms=True, or with this algorithm",
                code="calibration-histogram-missing",
                value=algorithm.name,
                tensor=tensor,
            )
        if stats.histogram.exponent is None:
            return 0.0
    if algorithm.takes_percentile:
        return algorithm.function(stats, DEFAULTS.percentile if percentile is None else percentile)
    return algorithm.function(stats)


# The algorithms.


@register("minmax", title="full range of the values; clips nothing", needs_histogram=False)
def _minmax(stats: TensorStats) -> tuple[float, float]:
    return stats.low, stats.high


@register(
    "moving_average",
    title="moving average of the images' minima and maxima",
    needs_histogram=False,
)
def _moving_average(stats: TensorStats) -> tuple[float, float]:
    return stats.average_low, stats.average_high


@register("entropy", title="TensorRT's search for the smallest KL divergence", is_search=True)
def _entropy(stats: TensorStats) -> float:
    assert stats.histogram is not None
    return compute_entropy_magnitude(stats.histogram)


@register(
    "percentile",
    title="clips the largest values beyond a percentile",
    takes_percentile=True,
    percentiles=PERCENTILES,
)
def _percentile(stats: TensorStats, percentile: float) -> float:
    assert stats.histogram is not None
    return compute_percentile_magnitude(stats.histogram, percentile)


@register("mse", title="minimizes the squared error of rounding and clipping", is_search=True)
def _mse(stats: TensorStats) -> float:
    assert stats.histogram is not None
    return compute_mse_magnitude(stats.histogram)


def compute_percentile_magnitude(histogram: Histogram, percentile: float) -> float:
    """The smallest bin edge below which at least `percentile` percent of the magnitudes lie.

    Raises:
        RecipeError: The percentile is not in (0, 100].
    """
    percentile = check_argument("calibrate", "percentile", percentile)
    cumulative = np.cumsum(histogram.counts)
    # The rank is an integer; rounding removes the float error of the product, which could add one.
    rank = math.ceil(round(percentile / 100 * cumulative[-1], 6))
    return float((np.searchsorted(cumulative, rank) + 1) * histogram.width)


def compute_entropy_magnitude(histogram: Histogram) -> float:
    """The magnitude with the smallest KL divergence between the values and their 128 levels: TensorRT's search.

    For each candidate of `i` bins, i >= 128, the reference P is the first `i` bins with the outliers added to the last
    one; Q is the same bins without outliers, put into 128 groups, each group's sum spread evenly over its bins that are
    not empty. The candidate with the smallest sum(P log(P / Q)) is chosen, the largest of equals; it is infinite where
    Q is 0 and P is not. As in NVIDIA's code, the first bin counts as much as the second one: zeros need no scale.

    Source: S. Migacz, "8-bit Inference with TensorRT", GTC 2017; pytorch-quantization, `_compute_amax_entropy`.
    """
    counts = histogram.counts.astype(np.float64)
    counts[0] = counts[1]
    stop = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 0
    if stop <= LEVELS:
        return float(max(stop, 1) * histogram.width)
    sizes = np.arange(LEVELS, stop + 1)  # (C,) candidates, in bins
    total = counts.sum()
    mass, nonempty = _prefix_sums(counts), _prefix_sums(counts > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = _prefix_sums(np.where(counts > 0, counts * np.log(counts), 0.0))
        bounds = _group_bounds()[: len(sizes)]
        group = np.diff(mass.take(bounds), axis=1)
        spread = np.log(group / np.diff(nonempty.take(bounds), axis=1))
        # sum(P log Q) without the outliers: all bins of a group have the same Q.
        cross = np.where(group > 0, group * spread, 0.0).sum(axis=1)
        last = counts[sizes - 1]
        outliers = total - mass[sizes]
        cross += np.where(outliers > 0, outliers * np.where(last > 0, spread[:, -1], -np.inf), 0.0)
        last_with_outliers = last + outliers
        self_term = logs[sizes - 1] + np.where(
            last_with_outliers > 0, last_with_outliers * np.log(last_with_outliers), 0.0
        )
        # P sums to `total` and Q to `mass`: normalizing adds the logarithm of their quotient.
        divergence = (self_term - cross) / total - math.log(total) + np.log(mass[sizes])
    divergence[np.isnan(divergence)] = np.inf
    best = len(sizes) - 1 - int(np.argmin(divergence[::-1]))
    return float(sizes[best] * histogram.width)


def compute_mse_magnitude(histogram: Histogram) -> float:
    """The bin edge with the smallest squared error of rounding and clipping; each bin stands for its center."""
    counts = histogram.counts.astype(np.float64)
    stop = int(np.flatnonzero(counts)[-1]) + 1
    if stop < LEVELS:
        return float(stop * histogram.width)
    sizes = np.arange(LEVELS, stop + 1)
    centers = np.arange(BINS) + 0.5  # in bins
    zeroth, first, second = (
        _prefix_sums(counts),
        _prefix_sums(counts * centers),
        _prefix_sums(counts * centers**2),
    )
    scale = sizes / (LEVELS - 1)
    bounds = _rounding_bounds()[: len(sizes)]
    levels = np.arange(LEVELS) * scale[:, None]
    error = second[-1] - 2 * (levels * np.diff(first.take(bounds), axis=1)).sum(axis=1)
    error += (levels**2 * np.diff(zeroth.take(bounds), axis=1)).sum(axis=1)
    return float(sizes[int(np.argmin(error))] * histogram.width)


@functools.lru_cache(maxsize=1)
def _group_bounds() -> NDArray[np.int64]:
    """(candidates, 129) first bin of each of 128 groups of `i` bins: group g starts at ceil(g i / 128)."""
    sizes = np.arange(LEVELS, BINS + 1)
    return -(-np.arange(LEVELS + 1) * sizes[:, None] // LEVELS)


@functools.lru_cache(maxsize=1)
def _rounding_bounds() -> NDArray[np.int64]:
    """(candidates, 129) first bins whose centers round to each of 128 levels when the scale is `i` bins over 127.

    Level k takes centers in [(k - 1/2) scale, (k + 1/2) scale); the last level takes all above.
    """
    scale = np.arange(LEVELS, BINS + 1)[:, None] / (LEVELS - 1)
    bounds = np.ceil((np.arange(LEVELS + 1) - 0.5) * scale - 0.5).astype(np.int64)
    bounds[:, 0], bounds[:, -1] = 0, BINS
    return np.clip(bounds, 0, BINS)


def _prefix_sums(
    values: NDArray[np.float64] | NDArray[np.bool_],
) -> NDArray[np.float64]:
    """(n + 1,) sums of the first 0, 1, ..., n values."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def format_algorithm(algorithm: str, percentile: float | None) -> str:
    """A calibration algorithm as text, with its percentile if it has one: "percentile 99.999"."""
    return algorithm if percentile is None else f"{algorithm} {percentile:g}"
