"""The doctor's checks: each looks at fingerprints for one fault and says what it saw and what to do."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trtkit.calibration.image_hashes import ImageFingerprints, find_near_duplicates

__all__ = [
    "ADVISED",
    "SEVERITIES",
    "Finding",
    "Shift",
    "classes",
    "drift",
    "duplicates",
    "leakage",
    "measure_class_shift",
    "measure_value_shift",
    "number",
    "order",
    "sizes",
]


# Whether two groups of images come from one population: a distance, and how often chance alone makes it as large.


PERMUTATIONS = 999


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shift:
    """How far apart two groups are.

    Attributes:
        distance: In 0..1: the largest gap between their distribution functions (Kolmogorov-Smirnov) for values, half
            the summed differences of the shares (total variation) for classes.
        chance: Share of random regroupings of the same images that are at least as far apart; at least 0.001.
    """

    distance: float
    p_value: float


def measure_value_shift(
    one: NDArray[np.float64], other: NDArray[np.float64], *, least: float = 0.0, seed: int = 0
) -> Shift:
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


def measure_class_shift(
    one: NDArray[np.int64], other: NDArray[np.int64], *, least: float = 0.0, seed: int = 0
) -> Shift:
    """The shift between two groups of images in the shares of their objects' classes.

    Images are regrouped, not objects, since objects of one image are not independent.

    Args:
        one: Objects by image and class, shape (n, classes).
        other: Shape (m, classes).
        least: As for `measure_value_shift`.
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
        return Shift(distance=observed, p_value=1.0)
    random = np.random.default_rng(seed)
    as_far = sum(distance(random.permutation(first)) >= observed - 1e-12 for _ in range(PERMUTATIONS))
    return Shift(distance=observed, p_value=(1 + as_far) / (1 + PERMUTATIONS))


SEVERITIES = ("note", "warning", "problem")

ADVISED = 500
"""Images that NVIDIA's TensorRT documentation advises for calibration ("at least 500")."""

SCARCE = 64

DISTANCE, CHANCE = 0.15, 0.001
"""A drift counts when it is this large and chance makes one as large no more often than this."""

COCO_SIZES = {"small": (0.0, 32 / 640), "medium": (32 / 640, 96 / 640), "large": (96 / 640, np.inf)}
"""COCO's small, medium and large (32 and 96 px a side) as shares of a 640 px image's side."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """Something a calibration set should be told.

    Attributes:
        severity: "note", "warning" or "problem".
        code: What kind of fault, for programs.
        evidence: What was seen, with numbers.
        remedy: What to do.
        images: The images concerned, as far as there are any.
    """

    severity: str
    code: str
    evidence: str
    remedy: str
    images: tuple[str, ...] = ()


def number(own: ImageFingerprints) -> list[Finding]:
    """Too few images, or some that can't be read."""
    found = []
    if own.unreadable:
        found.append(
            Finding(
                severity="warning",
                code="unreadable",
                evidence=f"{len(own.unreadable)} of {len(own) + len(own.unreadable)} images can't be read",
                remedy="replace or remove them",
                images=_names(own.unreadable),
            )
        )
    if len(own) < ADVISED:
        scarce = len(own) < SCARCE
        found.append(
            Finding(
                severity="warning" if scarce else "note",
                code="few",
                evidence=f"{len(own)} images; NVIDIA advises at least {ADVISED}",
                remedy="add images" if scarce else "add images if a sweep shows that more of them still help",
            )
        )
    return found


def duplicates(own: ImageFingerprints) -> list[Finding]:
    """The same image twice, or nearly: it weighs double and tells nothing new."""
    same: dict[str, list[int]] = defaultdict(list)
    for index, content in enumerate(own.content):
        same[content].append(index)
    groups = [places for places in same.values() if len(places) > 1]
    found = []
    if groups:
        extra = sum(len(places) - 1 for places in groups)
        found.append(
            Finding(
                severity="warning",
                code="duplicates",
                evidence=f"{extra} images are byte for byte the same as another",
                remedy="remove the copies",
                images=_names(own.paths[index] for places in groups for index in places),
            )
        )
    near = [(a, b) for a, b in find_near_duplicates(own) if own.content[a] != own.content[b]]
    if near:
        involved = sorted({index for pair in near for index in pair})
        share = len({b for _, b in near}) / len(own)
        found.append(
            Finding(
                severity="warning" if share > 0.02 else "note",
                code="near-duplicates",
                evidence=f"{len(near)} pairs of images are nearly the same, such as "
                f"{own.paths[near[0][0]].name} and {own.paths[near[0][1]].name}",
                remedy="keep one of each: frames of a video say the same thing many times",
                images=_names(own.paths[index] for index in involved),
            )
        )
    return found


def classes(
    own: ImageFingerprints, pool: ImageFingerprints, judged: ImageFingerprints | None, names: Sequence[str]
) -> list[Finding]:
    """Classes that the data set has and the calibration set lacks, or has in other shares."""
    whole = judged if judged is not None and judged.counts.any() else pool
    mine, all_ = own.counts.sum(axis=0), whole.counts.sum(axis=0)
    everywhere = pool.counts.sum(axis=0) + (0 if whole is pool else all_)
    if not all_.sum() or not len(own):
        return []
    absent = [int(index) for index in np.flatnonzero(everywhere) if not mine[index]]
    found = []
    if absent:
        listed = ", ".join(f"{names[index]} ({everywhere[index]})" for index in absent[:8])
        found.append(
            Finding(
                severity="warning",
                code="classes-missing",
                evidence=f"{len(absent)} of {np.count_nonzero(everywhere)} classes are in none of these images; "
                f"objects elsewhere in the data set: {listed}",
                remedy="draw with stratify=True, or more images",
            )
        )
    shift = measure_class_shift(own.counts, whole.counts, least=DISTANCE)
    if shift.distance >= DISTANCE and shift.p_value <= CHANCE:
        shares = mine / max(mine.sum(), 1) - all_ / all_.sum()
        worst = int(np.abs(shares).argmax())
        found.append(
            Finding(
                severity="warning",
                code="classes-shifted",
                evidence=f"class shares differ from the data set's (total variation {shift.distance:.2f}, chance "
                f"{shift.p_value:.3f}); most for {names[worst]}: {mine[worst] / max(mine.sum(), 1):.0%} of objects "
                f"against {all_[worst] / all_.sum():.0%}",
                remedy="draw with stratify=True",
            )
        )
    return found


def sizes(own: ImageFingerprints, whole: ImageFingerprints) -> list[Finding]:
    """Object sizes that the data set has and the calibration set lacks."""
    if len(whole.sizes) < 50 or not len(own):
        return []
    lacking = []
    for name, (low, high) in COCO_SIZES.items():
        there = float(((whole.sizes >= low) & (whole.sizes < high)).mean())
        here = float(((own.sizes >= low) & (own.sizes < high)).mean()) if len(own.sizes) else 0.0
        expected = there * len(own.sizes)
        # At least eight expected, so that a quarter of them is no accident.
        if there >= 0.05 and here < there / 4 and (expected >= 8 or not len(own.sizes)):
            lacking.append(f"{name} objects are {here:.1%} against {there:.1%} in the data set")
    if not lacking:
        return []
    return [
        Finding(
            severity="warning",
            code="sizes-missing",
            evidence="; ".join(lacking),
            remedy="add images that show them: near and far things drive different layers",
        )
    ]


def drift(own: ImageFingerprints, judged: ImageFingerprints) -> list[Finding]:
    """Brightness, contrast or shape other than that of the images the model will be judged on."""
    found: list[Finding] = []
    if min(len(own), len(judged)) < 8:
        return found
    for what, remedy in (
        ("brightness", "add images taken in the light the model will work in"),
        ("contrast", "add images with the contrast (weather, lens, compression) the model will meet"),
        ("aspect", "add images of the shapes the model will meet: padding changes what the first layers see"),
    ):
        mine, theirs = getattr(own, what), getattr(judged, what)
        shift = measure_value_shift(mine, theirs, least=DISTANCE)
        if shift.distance >= DISTANCE and shift.p_value <= CHANCE:
            found.append(
                Finding(
                    severity="warning",
                    code=f"drift-{what}",
                    evidence=f"the median {what} is {np.median(mine):.2f} against {np.median(theirs):.2f} in "
                    f"validation (Kolmogorov-Smirnov {shift.distance:.2f}, chance {shift.p_value:.3f})",
                    remedy=remedy,
                )
            )
    return found


def leakage(own: ImageFingerprints, judged: ImageFingerprints) -> list[Finding]:
    """Images that judge the model as well: their accuracy is flattered."""
    pairs = find_near_duplicates(own, judged)
    same = {a for a, b in pairs if own.content[a] == judged.content[b]}
    near = {a for a, _ in pairs} - same
    if not pairs:
        return []
    return [
        Finding(
            severity="problem" if same else "warning",
            code="leakage",
            evidence=f"{len(same)} images are in validation too and {len(near)} more nearly so, "
            f"{len(same | near) / len(own):.0%} of the calibration set",
            remedy="take them out of one of the two, or say that validation images calibrated the model",
            images=_names(own.paths[index] for index in sorted(same | near)),
        )
    ]


def order(pool: ImageFingerprints, own: ImageFingerprints, names: Sequence[str]) -> list[Finding]:
    """Whether "the first n" of the pool, in the order of their names, would be other images than the rest."""
    count = len(own)
    if not 8 <= count <= len(pool) - 8:
        return []
    head, rest = pool.select(pool.paths[:count]), pool.select(pool.paths[count:])
    taken = set(own.paths) == set(head.paths)
    seen = []
    shift = measure_class_shift(head.counts, rest.counts, least=DISTANCE)
    if shift.distance >= DISTANCE and shift.p_value <= CHANCE:
        shares = head.counts.sum(0) / max(head.counts.sum(), 1) - rest.counts.sum(0) / max(rest.counts.sum(), 1)
        worst = int(np.abs(shares).argmax())
        seen.append(f"classes differ by {shift.distance:.2f} (most for {names[worst]}, {shares[worst]:+.0%})")
    for what in ("brightness", "contrast", "aspect"):
        shift = measure_value_shift(getattr(head, what), getattr(rest, what), least=DISTANCE)
        if shift.distance >= DISTANCE and shift.p_value <= CHANCE:
            seen.append(f"{what} differs by {shift.distance:.2f}")
    if not seen:
        return []
    return [
        Finding(
            severity="warning" if taken else "note",
            code="order",
            evidence=f"the first {count} of {len(pool)} images are not like the rest: {'; '.join(seen)}",
            remedy="draw with a seed, as trtkit's images= and fraction= do, never the first n"
            if taken
            else "keep drawing with a seed; a tool that takes the first n calibrates on a biased set here",
        )
    ]


def _names(paths: Iterable[Path]) -> tuple[str, ...]:
    return tuple(str(path) for path in paths)
