from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trtkit.calibration.algorithms import (
    ALGORITHMS,
    TensorStats,
    compute_entropy_magnitude,
    compute_magnitude,
    compute_mse_magnitude,
    compute_percentile_magnitude,
)
from trtkit.calibration.histogram import BINS, Histogram
from trtkit.errors import CalibrationError, RecipeError


def build_histogram(values: np.ndarray) -> Histogram:
    histogram = Histogram()
    histogram.add(values.astype(np.float32)[None])
    return histogram


def sample_values(kind: str, seed: int, count: int = 20_000) -> np.ndarray:
    random = np.random.default_rng(seed)
    values = {
        "normal": lambda: random.normal(0, 2, count),
        "laplace": lambda: random.laplace(0, 0.3, count),
        "outliers": lambda: np.append(random.normal(0, 1, count), random.normal(0, 30, 20)),
        "uniform": lambda: random.uniform(-1, 1, count),
        "silu": lambda: (x := random.normal(0, 3, count)) / (1 + np.exp(-x)),
        "sparse": lambda: random.normal(0, 1, count) * (random.random(count) > 0.9),
        "few": lambda: random.integers(-5, 6, count) * 0.37,
    }[kind]()
    return values.astype(np.float32)


KINDS = ("normal", "laplace", "outliers", "uniform", "silu", "sparse", "few")


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 1000), st.integers(1, 10_000), st.floats(1e-6, 1e6))
def test_percentile_matches_numpy_on_the_values(kind: str, seed: int, hundredths: int, scale: float) -> None:
    values = (sample_values(kind, seed, 3000) * np.float32(scale)).astype(np.float32)
    histogram = build_histogram(values)
    # numpy's "inverted_cdf" with the rank in integers: in floats the rank can be off by one.
    exact = np.sort(np.abs(values.astype(np.float64)))[-(-hundredths * len(values) // 10_000) - 1]
    magnitude = compute_percentile_magnitude(histogram, hundredths / 100)
    # The edge above the bin that the exact value lies in.
    assert exact < magnitude <= exact + histogram.width


def test_the_default_percentile_matches_numpy() -> None:
    values = sample_values("silu", 3, 1_000_000)
    histogram = build_histogram(values)
    exact = np.percentile(np.abs(values.astype(np.float64)), 99.999, method="inverted_cdf")
    assert abs(compute_percentile_magnitude(histogram, 99.999) - exact) <= histogram.width


def search_entropy(histogram: Histogram) -> float:
    """The search of S. Migacz's talk, one candidate and one group at a time."""
    counts = histogram.counts.astype(np.float64)
    counts[0] = counts[1]
    stop = int(np.flatnonzero(counts)[-1]) + 1
    best, chosen = np.inf, 0
    for size in range(128, stop + 1):
        inside = counts[:size]
        reference = inside.copy()
        reference[-1] += counts[size:].sum()
        candidate = np.zeros(size)
        for group in range(128):
            first, last = -(-group * size // 128), -(-(group + 1) * size // 128)
            filled = inside[first:last] > 0
            if filled.any():
                candidate[first:last][filled] = inside[first:last].sum() / filled.sum()
        p, q = reference / reference.sum(), candidate / max(candidate.sum(), 1e-300)
        if (q[p > 0] == 0).any():
            continue
        divergence = (p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum()
        if divergence <= best + 1e-12:
            best, chosen = min(best, divergence), size
    return chosen * histogram.width


@pytest.mark.parametrize("kind", KINDS)
def test_entropy_matches_a_direct_search(kind: str) -> None:
    histogram = build_histogram(sample_values(kind, 7))
    # A quarter of the bins keeps the direct search short and is a histogram like any other.
    small = Histogram(np.concatenate([histogram.counts.reshape(-1, 8).sum(1), np.zeros(BINS - BINS // 8, int)]), 0)
    assert compute_entropy_magnitude(small) == pytest.approx(search_entropy(small), abs=1e-12)


def squared_error(histogram: Histogram, size: int) -> float:
    """Squared error of every bin's center, quantized with numpy's own rounding."""
    centers = (np.arange(BINS) + 0.5) * histogram.width
    scale = size * histogram.width / 127
    rounded = np.clip(np.rint(centers / scale), 0, 127) * scale
    return float((histogram.counts * (centers - rounded) ** 2).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_mse_matches_a_direct_search(kind: str) -> None:
    histogram = build_histogram(sample_values(kind, 11))
    stop = int(np.flatnonzero(histogram.counts)[-1]) + 1
    errors = {size: squared_error(histogram, size) for size in range(128, stop + 1)}
    magnitude = compute_mse_magnitude(histogram)
    assert errors[round(magnitude / histogram.width)] == pytest.approx(min(errors.values()), rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 1000), st.sampled_from(tuple(ALGORITHMS)))
def test_no_algorithm_exceeds_the_largest_value(kind: str, seed: int, algorithm: str) -> None:
    values = sample_values(kind, seed, 2000)
    stats = TensorStats(
        low=float(values.min()),
        high=float(values.max()),
        average_low=float(values.min()) / 2,
        average_high=float(values.max()) / 2,
        histogram=build_histogram(values),
    )
    assert 0 < compute_magnitude(stats, algorithm) <= np.abs(values).max()


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(tuple(ALGORITHMS)),
    st.floats(-(2.0**100), 2.0**100, width=32).filter(lambda x: x == 0 or abs(x) > 2.0**-90),
    st.integers(1, 500),
)
@example("mse", 0.0, 1000)
@example("entropy", 1.0, 1000)
@example("percentile", -2.5, 1)
def test_a_constant_is_covered_up_to_its_bin(algorithm: str, exact: float, count: int) -> None:
    histogram = build_histogram(np.full(count, exact, np.float32))
    stats = TensorStats(low=exact, high=exact, average_low=exact, average_high=exact, histogram=histogram)
    magnitude = compute_magnitude(stats, algorithm)
    assert magnitude <= abs(exact)
    if algorithm in ("minmax", "moving_average", "percentile"):
        assert magnitude == abs(exact)
    # A level is 16 bins or more of those a constant lies in the upper half of; no search gives up one.
    assert magnitude >= abs(exact) - 16 * histogram.width


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_values_below_the_smallest_bins_are_covered(algorithm: str) -> None:
    """Histograms end at 2^-100 or above, beyond which FP32 has no factor from a value to its bin."""
    values = np.float32([1, 2, 3]) * np.float32(2.0**-130)
    histogram = build_histogram(values)
    low, high = float(values.min()), float(values.max())
    stats = TensorStats(low=low, high=high, average_low=low, average_high=high, histogram=histogram)
    assert compute_magnitude(stats, algorithm) == high


def test_a_percentile_of_a_round_number_of_values_has_no_rounding_error() -> None:
    # 0.999 x 1000 is 999.0000000000001 in floats: the largest value would count.
    values = np.arange(1, 1001, dtype=np.float32)
    histogram = build_histogram(values)
    assert 999 < compute_percentile_magnitude(histogram, 99.9) <= 999 + histogram.width


def test_missing_histograms_and_unknown_names() -> None:
    stats = TensorStats(low=-1.0, high=2.0, average_low=-0.5, average_high=1.0)
    assert compute_magnitude(stats, "minmax") == 2.0
    assert compute_magnitude(stats, "moving_average") == 1.0
    with pytest.raises(CalibrationError) as error:
        compute_magnitude(stats, "mse", tensor="x")
    assert error.value.code == "calibration-histogram-missing"
    assert error.value.fields["tensor"] == "x"
    with pytest.raises(CalibrationError) as error:
        compute_magnitude(stats, "best")
    assert error.value.code == "calibration-algorithm-unknown"
    assert error.value.fields["names"] == tuple(ALGORITHMS)
    with pytest.raises(RecipeError) as error:
        compute_percentile_magnitude(build_histogram(np.ones(3)), 0.0)
    assert error.value.code == "argument-invalid"
