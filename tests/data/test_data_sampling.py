from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtkit.data import sample_images
from trtkit.errors import RecipeError

PATHS = [Path(f"{number:03}.jpg") for number in range(100)]


def test_everything_by_default():
    assert sample_images(PATHS) == tuple(PATHS)


@given(st.integers(1, 200), st.floats(0.01, 1), st.integers(0, 5))
def test_size_and_order(count, fraction, seed):
    drawn = sample_images(PATHS, count=count, fraction=fraction, seed=seed)
    assert len(drawn) == min(count, max(1, round(100 * fraction)))
    assert list(drawn) == sorted(set(drawn))
    assert drawn == sample_images(PATHS, count=count, fraction=fraction, seed=seed)


def test_seeds_differ_and_small_draws_lie_in_large_ones():
    assert sample_images(PATHS, count=20, seed=1) != sample_images(PATHS, count=20, seed=2)
    assert set(sample_images(PATHS, count=10)) < set(sample_images(PATHS, count=30))


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"fraction": 0}, "argument-invalid"),
        ({"fraction": 1.1}, "argument-invalid"),
        ({"count": 0}, "argument-invalid"),
    ],
)
def test_out_of_range(options, code):
    with pytest.raises(RecipeError) as caught:
        sample_images(PATHS, **options)
    assert caught.value.code == code
