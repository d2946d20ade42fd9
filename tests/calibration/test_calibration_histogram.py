from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trtkit.calibration.algorithms import BINS, Histogram

# What lies beyond the reach of float32 once it is scaled by the bins has a test of its own.
finite = st.floats(-(2.0**100), 2.0**100, width=32).map(lambda x: 0.0 if abs(x) < 2.0**-90 else x)
batches = st.lists(hnp.arrays(np.float32, st.integers(1, 40), elements=finite), min_size=1, max_size=6)


def counted(parts: list[np.ndarray]) -> Histogram:
    histogram = Histogram()
    for part in parts:
        assert histogram.add(part[None]) == (part.min(), part.max())
    return histogram


def by_numpy(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Counts over the final range, made with numpy in float64 and in one go."""
    largest = np.abs(values).max()
    if largest == 0:
        return np.bincount(np.zeros(len(values), int), minlength=BINS), 0.0
    limit = 1.0
    while limit <= largest:
        limit *= 2
    while limit / 2 > largest:
        limit /= 2
    bins = np.floor(np.abs(values.astype(np.float64)) * BINS / limit).astype(int)
    return np.bincount(bins, minlength=BINS), limit


@settings(max_examples=150, deadline=None)
@given(batches)
def test_growing_gives_the_counts_of_a_second_pass(parts: list[np.ndarray]) -> None:
    counts, limit = by_numpy(np.concatenate(parts))
    found = counted(parts)
    np.testing.assert_array_equal(found.counts, counts)
    assert found.width * BINS == limit
    np.testing.assert_allclose(found.edges()[-1], limit)


@settings(max_examples=100, deadline=None)
@given(batches, st.randoms(use_true_random=False))
def test_order_and_batching_do_not_matter(parts: list[np.ndarray], random: object) -> None:
    whole = counted([np.concatenate(parts)])
    shuffled = list(parts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    other = counted(shuffled)
    np.testing.assert_array_equal(whole.counts, other.counts)
    assert whole.exponent == other.exponent


@settings(max_examples=100, deadline=None)
@given(batches, batches)
def test_merging_is_counting_together(one: list[np.ndarray], other: list[np.ndarray]) -> None:
    merged = counted(one).merge(counted(other))
    together = counted(one + other)
    np.testing.assert_array_equal(merged.counts, together.counts)
    assert merged.exponent == together.exponent


def test_more_values_than_one_step_holds() -> None:
    values = np.random.default_rng(0).normal(0, 3, (3, 7, 200, 301)).astype(np.float32)
    counts, _ = by_numpy(values.reshape(-1))
    np.testing.assert_array_equal(counted([values]).counts, counts)
    # A view whose memory is not in order counts the same.
    np.testing.assert_array_equal(counted([values.transpose(2, 0, 3, 1)]).counts, counts)


def test_zeros_first_leave_the_range_open() -> None:
    found = counted([np.zeros(5, np.float32), np.full(3, 1e-3, np.float32)])
    assert found.total == 8
    assert found.counts[0] == 5
    # 1e-3 lies in [2^-10, 2^-9).
    assert found.exponent == -9
    assert counted([np.zeros(4, np.float32)]).width == 0.0


@pytest.mark.parametrize("power", [-140, -100, 0, 100, 127])
def test_the_ends_of_float32(power: int) -> None:
    values = np.array([2.0**power, -(2.0**power), 0.0], np.float32)
    found = counted([values])
    assert found.total == 3
    assert found.counts[np.flatnonzero(found.counts)[-1]] in (2, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 5, 299_999])
def test_what_is_not_finite_shows_in_the_extremes(value: float, place: int) -> None:
    values = np.ones(300_000, np.float32)
    values[place] = value
    assert not np.isfinite(Histogram().add(values[None])).all()
