"""Whether two groups of pictures come from one population: a distance, and how often chance alone makes it as large."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["Shift", "of_counts", "of_values"]

PERMUTATIONS = 999


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shift:
    """How far apart two groups are.

    Attributes:
        distance: In 0..1: the largest gap between their distribution functions (Kolmogorov-Smirnov) for values, half
            the summed differences of the shares (total variation) for classes.
        chance: Share of random regroupings of the same pictures that are at least as far apart; at least 0.001.
    """

    distance: float
    chance: float


def of_values(one: NDArray[np.float64], other: NDArray[np.float64], *, least: float = 0.0, seed: int = 0) -> Shift:
    """The shift between two samples of a number.

    Args:
        one: Shape (n,).
        other: Shape (m,).
        least: A smaller distance is of no interest: its chance is not computed and given as 1.
        seed: Of the regroupings.
    """
    values = np.concatenate([one, other])
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    # Between equal values the distribution functions are not defined: only the last of them counts.
    ends = np.append(ordered[1:] != ordered[:-1], True)
    first = np.zeros(len(values), bool)
    first[: len(one)] = True

    def distance(group: NDArray[np.bool_]) -> float:
        mine = group[order]
        gap = np.cumsum(mine) / mine.sum() - np.cumsum(~mine) / (~mine).sum()
        return float(np.abs(gap[ends]).max())

    return _judged(first, distance, least, seed)


def of_counts(one: NDArray[np.int64], other: NDArray[np.int64], *, least: float = 0.0, seed: int = 0) -> Shift:
    """The shift between two groups of pictures in the shares of their objects' classes.

    Pictures are regrouped, not objects, since objects of one picture are not independent.

    Args:
        one: Objects by picture and class, shape (n, classes).
        other: Shape (m, classes).
        least: As for `of_values`.
        seed: Of the regroupings.
    """
    counts = np.concatenate([one, other]).astype(np.float64)
    first = np.zeros(len(counts), bool)
    first[: len(one)] = True
    total = counts.sum(axis=0)

    def distance(group: NDArray[np.bool_]) -> float:
        mine = group.astype(np.float64) @ counts
        rest = total - mine
        if not mine.sum() or not rest.sum():
            return 0.0
        return float(np.abs(mine / mine.sum() - rest / rest.sum()).sum() / 2)

    return _judged(first, distance, least, seed)


def _judged(first: NDArray[np.bool_], distance: Callable[[NDArray[np.bool_]], float], least: float, seed: int) -> Shift:
    observed = distance(first)
    if observed < least:
        return Shift(distance=observed, chance=1.0)
    random = np.random.default_rng(seed)
    as_far = sum(distance(random.permutation(first)) >= observed - 1e-12 for _ in range(PERMUTATIONS))
    return Shift(distance=observed, chance=(1 + as_far) / (1 + PERMUTATIONS))
