"""Some of many pictures, the same ones every time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from trtkit.errors import RecipeError

__all__ = ["sample"]


def sample(
    paths: Sequence[Path], *, count: int | None = None, fraction: float = 1.0, seed: int = 0
) -> tuple[Path, ...]:
    """Draw pictures without replacement; their order is kept.

    `fraction` is taken first, then at most `count` of what it left. The same seed gives the same pictures on every
    machine, and a smaller count draws from the same shuffle, so that 64 pictures are among the 512 of the same seed.

    Args:
        paths: What to draw from.
        count: At most so many; None = no limit.
        fraction: Share of `paths`, in (0, 1]; at least one picture is drawn.
        seed: Of the shuffle.

    Returns:
        The drawn paths in the order of `paths`.

    Raises:
        RecipeError: `fraction` or `count` is out of range.
    """
    if not 0 < fraction <= 1:
        raise RecipeError(
            f"draw a fraction of {fraction} of the pictures", "it is not in (0, 1]", "pass a share such as 0.5"
        )
    if count is not None and count < 1:
        raise RecipeError(f"draw {count} pictures", "it is less than 1", "pass a positive number, or None for all")
    wanted = min(len(paths), max(1, round(len(paths) * fraction)))
    if count is not None:
        wanted = min(wanted, count)
    if wanted == len(paths):
        return tuple(paths)
    order = list(range(len(paths)))
    random.Random(seed).shuffle(order)
    return tuple(paths[index] for index in sorted(order[:wanted]))
