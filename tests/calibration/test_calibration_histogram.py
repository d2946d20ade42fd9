from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trtkit.calibration.histogram import BINS, Histogram

# Values that leave float32 once they are scaled by the bins are in `test_the_ends_of_float32`.
finite = st.floats(-(2.0**100), 2.0**100, width=32).map(lambda x: 0.0 if abs(x) < 2.0**-90 else x)
batches = st.lists(hnp.arrays(np.float32, st.integers(1, 40), elements=finite), min_size=1, max_size=6)


def count(parts: list[np.ndarray]) -> Histogram:
    histogram = Histogram()
    for part in parts:
        assert histogram.add(part[None]) == (part.min(), part.max())
    return histogram


def count_with_numpy(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Counts over the final range, with numpy in float64 and in one pass."""
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
def test_widening_gives_the_counts_of_a_second_pass(parts: list[np.ndarray]) -> None:
    counts, limit = count_with_numpy(np.concatenate(parts))
    histogram = count(parts)
    np.testing.assert_array_equal(histogram.counts, counts)
    assert histogram.width * BINS == limit
    np.testing.assert_allclose(histogram.edges()[-1], limit)


@settings(max_examples=100, deadline=None)
@given(batches, st.randoms(use_true_random=False))
def test_order_and_batching_do_not_matter(parts: list[np.ndarray], random: object) -> None:
    whole = count([np.concatenate(parts)])
    shuffled = list(parts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    other = count(shuffled)
    np.testing.assert_array_equal(whole.counts, other.counts)
    assert whole.exponent == other.exponent


@settings(max_examples=100, deadline=None)
@given(batches, batches)
def test_merging_equals_counting_all_values(one: list[np.ndarray], other: list[np.ndarray]) -> None:
    merged = count(one).merge(count(other))
    together = count(one + other)
    np.testing.assert_array_equal(merged.counts, together.counts)
    assert merged.exponent == together.exponent


def test_more_values_than_one_chunk() -> None:
    values = np.random.default_rng(0).normal(0, 3, (3, 7, 200, 301)).astype(np.float32)
    counts, _ = count_with_numpy(values.reshape(-1))
    np.testing.assert_array_equal(count([values]).counts, counts)
    # A non-contiguous view counts the same.
    np.testing.assert_array_equal(count([values.transpose(2, 0, 3, 1)]).counts, counts)


def test_zeros_do_not_fix_the_range() -> None:
    histogram = count([np.zeros(5, np.float32), np.full(3, 1e-3, np.float32)])
    assert histogram.total == 8
    assert histogram.counts[0] == 5
    # 1e-3 lies in [2^-10, 2^-9).
    assert histogram.exponent == -9
    assert count([np.zeros(4, np.float32)]).width == 0.0


@pytest.mark.parametrize("power", [-140, -100, 0, 100, 127])
def test_the_ends_of_float32(power: int) -> None:
    values = np.array([2.0**power, -(2.0**power), 0.0], np.float32)
    histogram = count([values])
    assert histogram.total == 3
    assert histogram.counts[np.flatnonzero(histogram.counts)[-1]] in (2, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 5, 299_999])
def test_non_finite_values_show_in_the_extremes(value: float, place: int) -> None:
    values = np.ones(300_000, np.float32)
    values[place] = value
    assert not np.isfinite(Histogram().add(values[None])).all()


@settings(max_examples=150, deadline=None)
@given(batches)
def test_signed_counts_fold_to_the_counts_of_magnitudes(parts: list[np.ndarray]) -> None:
    values = np.concatenate(parts)
    histogram = count(parts)
    signed = histogram.signed_counts()
    assert histogram.signed
    assert signed is not None
    assert signed.shape == (2 * BINS - 1,)
    folded = signed[BINS - 1 :].copy()
    folded[1:] += signed[: BINS - 1][::-1]
    np.testing.assert_array_equal(folded, histogram.counts)
    if histogram.exponent is None:
        return
    # An independent count: truncation towards zero, in float64.
    bins = np.trunc(values.astype(np.float64) / histogram.width).astype(int)
    np.testing.assert_array_equal(signed, np.bincount(bins + BINS - 1, minlength=2 * BINS - 1))


@settings(max_examples=100, deadline=None)
@given(batches, batches)
def test_signs_survive_merging_and_order(one: list[np.ndarray], other: list[np.ndarray]) -> None:
    merged, together, reverse = count(one).merge(count(other)), count(one + other), count((one + other)[::-1])
    np.testing.assert_array_equal(merged.signed_counts(), together.signed_counts())
    np.testing.assert_array_equal(reverse.signed_counts(), together.signed_counts())


def test_a_histogram_without_signs_stays_unsigned() -> None:
    values = np.array([-3.0, 1.0, 2.0], np.float32)
    signed = count([values])
    unsigned = Histogram(signed.counts.copy(), signed.exponent)
    assert (unsigned.signed, unsigned.signed_counts()) == (False, None)
    for merged in (signed.merge(unsigned), unsigned.merge(signed)):
        assert not merged.signed
        np.testing.assert_array_equal(merged.counts, 2 * signed.counts)
    unsigned.add(np.array([[-100.0]], np.float32))
    assert not unsigned.signed
    assert unsigned.total == 4
