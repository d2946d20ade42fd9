"""The number of images that settles an undecided change: simulated samples from pools whose loss is known."""

from __future__ import annotations

import functools
import itertools
from statistics import NormalDist

import numpy as np
import pytest

from trtkit.evaluation.bootstrap import ResampledMetric, draw_resamples
from trtkit.evaluation.significance import Z_INTERVAL, compute_interval, decide_accuracy, images_to_settle

MAX_DROP = 0.005
LOSSES = (0.0, 0.001, 0.01, 0.012)
"""Of the pools: the gap to the limit is 1.8 to 3.1 standard errors of the first sample."""
IMAGES, RESAMPLES = 120, 300


@functools.cache
def draw_copies(images):
    return draw_resamples(images, RESAMPLES, seed=0)


@functools.cache
def make_pool(loss):
    """Changes of 20,000 images with this mean loss: most hardly change, some gain or lose an object."""
    dice = np.random.default_rng(1)
    size = 20_000
    large = dice.random(size) < 0.15
    changes = np.where(large, dice.normal(-0.01, 0.06, size), dice.normal(0, 0.004, size))
    return changes - changes.mean() - loss


def decide(changes):
    copies = draw_copies(len(changes))
    means = (changes @ copies) / len(changes)
    interval = compute_interval(ResampledMetric(value=float(means[0]), values=means[1:]))
    return interval, decide_accuracy(interval.low, interval.high, MAX_DROP, len(changes))


@pytest.fixture(scope="module")
def undecided():
    """(the number that is asked for, the decision on so many images, the true one) of 200 seeds, where undecided."""
    cases = []
    for seed in range(200):
        loss = LOSSES[seed % len(LOSSES)]
        pool = make_pool(loss)
        order = np.random.default_rng(seed).permutation(len(pool))
        interval, decision = decide(pool[order[:IMAGES]])
        if decision == "can't tell":
            size = images_to_settle(interval.value, interval.low, interval.high, MAX_DROP, IMAGES)
            # Rounded up to tens, so that resamples are drawn once for several seeds.
            more = pool[order[: -(-size.images // 10) * 10]]
            cases.append((size, decide(more)[1], "kept" if loss <= MAX_DROP else "loses"))
    return cases


def test_a_number_is_given_for_most_of_what_can_not_be_told(undecided):
    assert len(undecided) > 60
    assert np.mean([not size.is_lower_bound for size, _, _ in undecided]) >= 0.6
    assert all(size.images >= 3.24**2 * IMAGES * 0.99 for size, _, _ in undecided if size.is_lower_bound)


def test_that_number_of_images_settles_it_on_the_right_side(undecided):
    asked = [(decision, truth) for size, decision, truth in undecided if not size.is_lower_bound]
    settled = [(decision, truth) for decision, truth in asked if decision != "can't tell"]
    assert len(settled) >= 0.8 * len(asked)
    assert sum(decision == truth for decision, truth in settled) >= 0.95 * len(settled)


def share_of_numbers(gaps):
    """Of undecided samples, whose change is normal around each gap to the limit (in standard errors)."""
    error, undecided, numbers = 0.002, 0, 0
    scatter = [NormalDist().inv_cdf((step + 0.5) / 200) for step in range(200)]
    for gap, noise in itertools.product(gaps, scatter):
        change = -MAX_DROP + (gap + noise) * error
        ends = change - Z_INTERVAL * error, change + Z_INTERVAL * error
        if decide_accuracy(*ends, MAX_DROP, IMAGES) == "can't tell":
            undecided += 1
            numbers += not images_to_settle(change, *ends, MAX_DROP, IMAGES).is_lower_bound
    return numbers / undecided


def test_gaps_from_one_standard_error_on_get_a_number_in_three_of_five_undecided_cases():
    spread = np.linspace(1, 4, 41)[:-1] + 3 / 80
    assert share_of_numbers(spread) == pytest.approx(0.626, abs=0.01)
    assert share_of_numbers(-spread) == pytest.approx(0.626, abs=0.01)


def test_no_rule_of_one_standard_error_gives_more_than_half_where_all_gaps_are_alike():
    spread = np.linspace(-6, 6, 121)
    assert share_of_numbers(spread) == pytest.approx((Z_INTERVAL - 1) / Z_INTERVAL, abs=0.01)
