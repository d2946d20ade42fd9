"""The doctor's checks: each looks at fingerprints for one fault and says what it saw and what to do."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from trtkit.calibration.fingerprints import Fingerprints, near_pairs
from trtkit.calibration.shift import of_counts, of_values

__all__ = ["ADVISED", "SEVERITIES", "Finding", "classes", "drift", "duplicates", "leakage", "number", "order", "sizes"]

SEVERITIES = ("note", "warning", "problem")

ADVISED = 500
"""Pictures that NVIDIA's TensorRT documentation advises for calibration ("at least 500")."""

SCARCE = 64

DISTANCE, CHANCE = 0.15, 0.001
"""A drift counts when it is this large and chance makes one as large no more often than this."""

COCO_SIZES = {"small": (0.0, 32 / 640), "medium": (32 / 640, 96 / 640), "large": (96 / 640, np.inf)}
"""COCO's small, medium and large (32 and 96 px a side) as shares of a 640 px picture's side."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """Something a calibration set should be told.

    Attributes:
        severity: "note", "warning" or "problem".
        code: What kind of fault, for programs.
        evidence: What was seen, with numbers.
        remedy: What to do.
        pictures: The pictures concerned, as far as there are any.
    """

    severity: str
    code: str
    evidence: str
    remedy: str
    pictures: tuple[str, ...] = ()


def number(own: Fingerprints) -> list[Finding]:
    """Too few pictures, or some that can't be read."""
    found = []
    if own.unreadable:
        found.append(
            Finding(
                severity="warning",
                code="unreadable",
                evidence=f"{len(own.unreadable)} of {len(own) + len(own.unreadable)} pictures can't be read",
                remedy="replace or remove them",
                pictures=_names(own.unreadable),
            )
        )
    if len(own) < ADVISED:
        scarce = len(own) < SCARCE
        found.append(
            Finding(
                severity="warning" if scarce else "note",
                code="few",
                evidence=f"{len(own)} pictures; NVIDIA advises at least {ADVISED}",
                remedy="add pictures" if scarce else "add pictures if a sweep shows that more of them still help",
            )
        )
    return found


def duplicates(own: Fingerprints) -> list[Finding]:
    """The same picture twice, or nearly: it weighs double and tells nothing new."""
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
                evidence=f"{extra} pictures are byte for byte the same as another",
                remedy="remove the copies",
                pictures=_names(own.paths[index] for places in groups for index in places),
            )
        )
    near = [(a, b) for a, b in near_pairs(own) if own.content[a] != own.content[b]]
    if near:
        involved = sorted({index for pair in near for index in pair})
        share = len({b for _, b in near}) / len(own)
        found.append(
            Finding(
                severity="warning" if share > 0.02 else "note",
                code="near-duplicates",
                evidence=f"{len(near)} pairs of pictures are nearly the same, such as "
                f"{own.paths[near[0][0]].name} and {own.paths[near[0][1]].name}",
                remedy="keep one of each: frames of a video say the same thing many times",
                pictures=_names(own.paths[index] for index in involved),
            )
        )
    return found


def classes(own: Fingerprints, pool: Fingerprints, judged: Fingerprints | None, names: Sequence[str]) -> list[Finding]:
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
                evidence=f"{len(absent)} of {np.count_nonzero(everywhere)} classes are in none of these pictures; "
                f"objects elsewhere in the data set: {listed}",
                remedy="draw with stratify=True, or more pictures",
            )
        )
    shift = of_counts(own.counts, whole.counts, least=DISTANCE)
    if shift.distance >= DISTANCE and shift.chance <= CHANCE:
        shares = mine / max(mine.sum(), 1) - all_ / all_.sum()
        worst = int(np.abs(shares).argmax())
        found.append(
            Finding(
                severity="warning",
                code="classes-shifted",
                evidence=f"class shares differ from the data set's (total variation {shift.distance:.2f}, chance "
                f"{shift.chance:.3f}); most for {names[worst]}: {mine[worst] / max(mine.sum(), 1):.0%} of objects "
                f"against {all_[worst] / all_.sum():.0%}",
                remedy="draw with stratify=True",
            )
        )
    return found


def sizes(own: Fingerprints, whole: Fingerprints) -> list[Finding]:
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
            remedy="add pictures that show them: near and far things drive different layers",
        )
    ]


def drift(own: Fingerprints, judged: Fingerprints) -> list[Finding]:
    """Brightness, contrast or shape other than that of the pictures the model will be judged on."""
    found: list[Finding] = []
    if min(len(own), len(judged)) < 8:
        return found
    for what, remedy in (
        ("brightness", "add pictures taken in the light the model will work in"),
        ("contrast", "add pictures with the contrast (weather, lens, compression) the model will meet"),
        ("aspect", "add pictures of the shapes the model will meet: padding changes what the first layers see"),
    ):
        mine, theirs = getattr(own, what), getattr(judged, what)
        shift = of_values(mine, theirs, least=DISTANCE)
        if shift.distance >= DISTANCE and shift.chance <= CHANCE:
            found.append(
                Finding(
                    severity="warning",
                    code=f"drift-{what}",
                    evidence=f"the median {what} is {np.median(mine):.2f} against {np.median(theirs):.2f} in "
                    f"validation (Kolmogorov-Smirnov {shift.distance:.2f}, chance {shift.chance:.3f})",
                    remedy=remedy,
                )
            )
    return found


def leakage(own: Fingerprints, judged: Fingerprints) -> list[Finding]:
    """Pictures that judge the model as well: their accuracy is flattered."""
    pairs = near_pairs(own, judged)
    same = {a for a, b in pairs if own.content[a] == judged.content[b]}
    near = {a for a, _ in pairs} - same
    if not pairs:
        return []
    return [
        Finding(
            severity="problem" if same else "warning",
            code="leakage",
            evidence=f"{len(same)} pictures are in validation too and {len(near)} more nearly so, "
            f"{len(same | near) / len(own):.0%} of the calibration set",
            remedy="take them out of one of the two, or say that validation pictures calibrated the model",
            pictures=_names(own.paths[index] for index in sorted(same | near)),
        )
    ]


def order(pool: Fingerprints, own: Fingerprints, names: Sequence[str]) -> list[Finding]:
    """Whether "the first n" of the pool, in the order of their names, would be other pictures than the rest."""
    count = len(own)
    if not 8 <= count <= len(pool) - 8:
        return []
    head, rest = pool.only(pool.paths[:count]), pool.only(pool.paths[count:])
    taken = set(own.paths) == set(head.paths)
    seen = []
    shift = of_counts(head.counts, rest.counts, least=DISTANCE)
    if shift.distance >= DISTANCE and shift.chance <= CHANCE:
        shares = head.counts.sum(0) / max(head.counts.sum(), 1) - rest.counts.sum(0) / max(rest.counts.sum(), 1)
        worst = int(np.abs(shares).argmax())
        seen.append(f"classes differ by {shift.distance:.2f} (most for {names[worst]}, {shares[worst]:+.0%})")
    for what in ("brightness", "contrast", "aspect"):
        shift = of_values(getattr(head, what), getattr(rest, what), least=DISTANCE)
        if shift.distance >= DISTANCE and shift.chance <= CHANCE:
            seen.append(f"{what} differs by {shift.distance:.2f}")
    if not seen:
        return []
    return [
        Finding(
            severity="warning" if taken else "note",
            code="order",
            evidence=f"the first {count} of {len(pool)} pictures are not like the rest: {'; '.join(seen)}",
            remedy="draw with a seed, as trtkit's images= and fraction= do, never the first n"
            if taken
            else "keep drawing with a seed; a tool that takes the first n calibrates on a biased set here",
        )
    ]


def _names(paths: Iterable[Path]) -> tuple[str, ...]:
    return tuple(str(path) for path in paths)
