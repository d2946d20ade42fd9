from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trtkit.calibration.algorithms import (
    ALGORITHMS,
    BINS,
    Histogram,
    TensorStats,
    compute_entropy_magnitude,
    compute_magnitude,
    compute_mse_magnitude,
    compute_percentile_magnitude,
)
from trtkit.errors import CalibrationError


def histogram_of(values: np.ndarray) -> Histogram:
    found = Histogram()
    found.add(values.astype(np.float32)[None])
    return found


def drawn(kind: str, seed: int, count: int = 20_000) -> np.ndarray:
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
def test_percentile_agrees_with_numpy_on_the_raw_data(kind: str, seed: int, hundredths: int, scale: float) -> None:
    values = (drawn(kind, seed, 3000) * np.float32(scale)).astype(np.float32)
    histogram = histogram_of(values)
    # numpy's "inverted_cdf" with the rank in integers: in floats it is at times one off where the product is whole.
    exact = np.sort(np.abs(values.astype(np.float64)))[-(-hundredths * len(values) // 10_000) - 1]
    found = compute_percentile_magnitude(histogram, hundredths / 100)
    # The edge above the bin that the exact value lies in.
    assert exact < found <= exact + histogram.width


def test_the_default_percentile_agrees_with_numpy() -> None:
    values = drawn("silu", 3, 1_000_000)
    histogram = histogram_of(values)
    exact = np.percentile(np.abs(values.astype(np.float64)), 99.999, method="inverted_cdf")
    assert abs(compute_percentile_magnitude(histogram, 99.999) - exact) <= histogram.width


def entropy_by_hand(histogram: Histogram) -> float:
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
def test_entropy_agrees_with_a_direct_search(kind: str) -> None:
    histogram = histogram_of(drawn(kind, 7))
    # A quarter of the bins keeps the direct search short and is a histogram like any other.
    small = Histogram(np.concatenate([histogram.counts.reshape(-1, 8).sum(1), np.zeros(BINS - BINS // 8, int)]), 0)
    assert compute_entropy_magnitude(small) == pytest.approx(entropy_by_hand(small), abs=1e-12)


def error_by_hand(histogram: Histogram, size: int) -> float:
    """Squared error of every bin's middle, quantized with numpy's own rounding."""
    middles = (np.arange(BINS) + 0.5) * histogram.width
    scale = size * histogram.width / 127
    rounded = np.clip(np.rint(middles / scale), 0, 127) * scale
    return float((histogram.counts * (middles - rounded) ** 2).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_mse_agrees_with_a_direct_search(kind: str) -> None:
    histogram = histogram_of(drawn(kind, 11))
    stop = int(np.flatnonzero(histogram.counts)[-1]) + 1
    errors = {size: error_by_hand(histogram, size) for size in range(128, stop + 1)}
    found = compute_mse_magnitude(histogram)
    assert errors[round(found / histogram.width)] == pytest.approx(min(errors.values()), rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 1000), st.sampled_from(tuple(ALGORITHMS)))
def test_no_algorithm_reaches_beyond_the_largest_value(kind: str, seed: int, algorithm: str) -> None:
    values = drawn(kind, seed, 2000)
    seen = TensorStats(
        low=float(values.min()),
        high=float(values.max()),
        average_low=float(values.min()) / 2,
        average_high=float(values.max()) / 2,
        histogram=histogram_of(values),
    )
    assert 0 < compute_magnitude(seen, algorithm) <= np.abs(values).max()


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
    histogram = histogram_of(np.full(count, exact, np.float32))
    seen = TensorStats(low=exact, high=exact, average_low=exact, average_high=exact, histogram=histogram)
    found = compute_magnitude(seen, algorithm)
    assert found <= abs(exact)
    if algorithm in ("minmax", "moving_average", "percentile"):
        assert found == abs(exact)
    # A level is 16 bins or more of those a constant lies in the upper half of; no search gives up one.
    assert found >= abs(exact) - 16 * histogram.width


def test_what_is_not_there_is_said() -> None:
    seen = TensorStats(low=-1.0, high=2.0, average_low=-0.5, average_high=1.0)
    assert compute_magnitude(seen, "minmax") == 2.0
    assert compute_magnitude(seen, "moving_average") == 1.0
    with pytest.raises(CalibrationError, match="no histogram of tensor 'x'"):
        compute_magnitude(seen, "mse", tensor="x")
    with pytest.raises(CalibrationError, match="no such algorithm"):
        compute_magnitude(seen, "best")
    with pytest.raises(CalibrationError, match="not in"):
        compute_percentile_magnitude(histogram_of(np.ones(3)), 0.0)
