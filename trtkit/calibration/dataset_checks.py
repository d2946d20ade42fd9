"""Checks of a calibration set: each looks for one problem and returns findings with evidence and remedy."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trtkit.calibration.image_hashes import ImageFingerprints, find_near_duplicates

__all__ = [
    "DOMAIN_IMAGES",
    "RECOMMENDED_IMAGES",
    "SEVERITIES",
    "DatasetShift",
    "Finding",
    "check_class_shares",
    "check_count",
    "check_domain",
    "check_duplicates",
    "check_leakage",
    "check_object_sizes",
    "check_order",
    "check_value_shifts",
    "measure_class_shift",
    "measure_value_shift",
]

SEVERITIES = ("note", "warning", "problem")

RECOMMENDED_IMAGES = 500
"""Calibration images that NVIDIA's TensorRT documentation recommends ("at least 500")."""

MIN_IMAGES = 64
"""Fewer calibration images give a warning."""

PERMUTATIONS = 999
"""Permutations of the test for dataset shift."""

MIN_SHIFT, MAX_P_VALUE = 0.15, 0.001
"""A dataset shift is reported from this distance on and up to this p-value."""

DOMAIN_IMAGES = 32
"""Images that detections are counted on: enough to tell nearly all from a minority, cheap beside a calibration."""

MIN_DOMAIN_IMAGES = 8
"""On fewer images chance decides how many have detections."""

MIN_DETECTION_SHARE = 0.5
"""A smaller share of images with detections gives a warning: a detector finds objects in nearly all images of its
domain that show some, and makes false detections in up to four of ten foreign photographs."""

COCO_SIZES = {"small": (0.0, 32 / 640), "medium": (32 / 640, 96 / 640), "large": (96 / 640, np.inf)}
"""COCO's small, medium and large (32 and 96 px per side) as shares of the side of a 640 px image."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """A problem of a calibration set.

    Attributes:
        severity: "note", "warning" or "problem".
        code: Kind of problem, in kebab-case.
        evidence: Evidence, with numbers.
        remedy: What to do.
        images: Paths of the images concerned, if any.
    """

    severity: str
    code: str
    evidence: str
    remedy: str
    images: tuple[str, ...] = ()


def check_count(own: ImageFingerprints) -> list[Finding]:
    """Too few images, or images that can't be read."""
    findings = []
    if own.unreadable:
        findings.append(
            Finding(
                severity="warning",
                code="unreadable",
                evidence=f"{len(own.unreadable)} of {len(own) + len(own.unreadable)} images can't be read",
                remedy="replace or remove them",
                images=_to_strings(own.unreadable),
            )
        )
    if len(own) < RECOMMENDED_IMAGES:
        scarce = len(own) < MIN_IMAGES
        findings.append(
            Finding(
                severity="warning" if scarce else "note",
                code="few",
                evidence=f"{len(own)} images; NVIDIA recommends at least {RECOMMENDED_IMAGES}",
                remedy="add images" if scarce else "add images if a sweep shows that more of them help",
            )
        )
    return findings


def check_domain(detections: Sequence[int], conf: float) -> list[Finding]:
    """Images unlike those of the model's domain: it detects hardly anything in them.

    Args:
        detections: Detections of the FP32 model in each image that may show objects.
        conf: Their score threshold.
    """
    detecting = sum(count > 0 for count in detections)
    if len(detections) < MIN_DOMAIN_IMAGES or detecting >= MIN_DETECTION_SHARE * len(detections):
        return []
    return [
        Finding(
            severity="warning",
            code="unlike-domain",
            evidence=f"the FP32 model detects objects (score > {conf:g}) in only {detecting} of {len(detections)} "
            "images, so they look unlike those it was trained on",
            remedy="calibrate on images of the model's application",
        )
    ]


def check_duplicates(own: ImageFingerprints) -> list[Finding]:
    """Identical and nearly identical images: they weigh more and add no information."""
    same: dict[str, list[int]] = defaultdict(list)
    for index, content in enumerate(own.content_hashes):
        same[content].append(index)
    groups = [indices for indices in same.values() if len(indices) > 1]
    findings = []
    if groups:
        extra = sum(len(indices) - 1 for indices in groups)
        findings.append(
            Finding(
                severity="warning",
                code="duplicates",
                evidence=f"{extra} images are byte-identical copies of another image",
                remedy="remove the copies",
                images=_to_strings(own.paths[index] for indices in groups for index in indices),
            )
        )
    near = [(a, b) for a, b in find_near_duplicates(own) if own.content_hashes[a] != own.content_hashes[b]]
    if near:
        involved = sorted({index for pair in near for index in pair})
        share = len({b for _, b in near}) / len(own)
        findings.append(
            Finding(
                severity="warning" if share > 0.02 else "note",
                code="near-duplicates",
                evidence=f"{len(near)} pairs of images are nearly identical, such as "
                f"{own.paths[near[0][0]].name} and {own.paths[near[0][1]].name}",
                remedy="keep one of each, such as one frame of a video scene",
                images=_to_strings(own.paths[index] for index in involved),
            )
        )
    return findings


def check_class_shares(
    own: ImageFingerprints, pool: ImageFingerprints, validation: ImageFingerprints | None, names: Sequence[str]
) -> list[Finding]:
    """Classes of the data set that the calibration set lacks or has in other shares."""
    reference = validation if validation is not None and validation.counts.any() else pool
    own_counts, reference_counts = own.counts.sum(axis=0), reference.counts.sum(axis=0)
    all_counts = pool.counts.sum(axis=0) + (0 if reference is pool else reference_counts)
    if not reference_counts.sum() or not len(own):
        return []
    missing = [int(index) for index in np.flatnonzero(all_counts) if not own_counts[index]]
    findings = []
    if missing:
        examples = ", ".join(f"{names[index]} ({all_counts[index]})" for index in missing[:8])
        findings.append(
            Finding(
                severity="warning",
                code="classes-missing",
                evidence=f"{len(missing)} of {np.count_nonzero(all_counts)} classes are missing from the calibration "
                f"set; objects of them in the data set: {examples}",
                remedy="sample with stratify=True, or more images",
            )
        )
    shift = measure_class_shift(own.counts, reference.counts, min_distance=MIN_SHIFT)
    if shift.reported:
        own_shares, reference_shares = own_counts / max(own_counts.sum(), 1), reference_counts / reference_counts.sum()
        most_shifted = int(np.abs(own_shares - reference_shares).argmax())
        findings.append(
            Finding(
                severity="warning",
                code="classes-shifted",
                evidence=f"class shares differ from the data set's (total variation distance {shift.distance:.2f}, "
                f"p = {shift.p_value:.3f}); most for {names[most_shifted]}: {own_shares[most_shifted]:.0%} of objects "
                f"against {reference_shares[most_shifted]:.0%}",
                remedy="sample with stratify=True",
            )
        )
    return findings


def check_object_sizes(own: ImageFingerprints, reference: ImageFingerprints) -> list[Finding]:
    """Object sizes of the data set that the calibration set lacks."""
    if len(reference.sizes) < 50 or not len(own):
        return []
    missing = []
    for name, (low, high) in COCO_SIZES.items():
        reference_share = float(((reference.sizes >= low) & (reference.sizes < high)).mean())
        own_share = float(((own.sizes >= low) & (own.sizes < high)).mean()) if len(own.sizes) else 0.0
        expected = reference_share * len(own.sizes)
        # With eight or more expected, less than a quarter of them is not due to sampling.
        if reference_share >= 0.05 and own_share < reference_share / 4 and (expected >= 8 or not len(own.sizes)):
            missing.append(f"{name} objects are {own_share:.1%} against {reference_share:.1%} in the data set")
    if not missing:
        return []
    return [
        Finding(
            severity="warning",
            code="sizes-missing",
            evidence="; ".join(missing),
            remedy="add images with such objects: object sizes activate different layers",
        )
    ]


def check_value_shifts(own: ImageFingerprints, validation: ImageFingerprints) -> list[Finding]:
    """Shifts of brightness, contrast and aspect ratio between calibration and validation images."""
    findings: list[Finding] = []
    if min(len(own), len(validation)) < 8:
        return findings
    for attribute, remedy in (
        ("brightness", "add images with the lighting of the application"),
        ("contrast", "add images with the contrast (weather, lens, compression) of the application"),
        ("aspect", "add images with the aspect ratios of the application: padding changes the input"),
    ):
        own_values, validation_values = getattr(own, attribute), getattr(validation, attribute)
        shift = measure_value_shift(own_values, validation_values, min_distance=MIN_SHIFT)
        if shift.reported:
            findings.append(
                Finding(
                    severity="warning",
                    code=f"drift-{attribute}",
                    evidence=f"the median {attribute} is {np.median(own_values):.2f} against "
                    f"{np.median(validation_values):.2f} in validation (Kolmogorov-Smirnov {shift.distance:.2f}, "
                    f"p = {shift.p_value:.3f})",
                    remedy=remedy,
                )
            )
    return findings


def check_leakage(own: ImageFingerprints, validation: ImageFingerprints) -> list[Finding]:
    """Images that are used for calibration and evaluation: INT8 accuracy is then optimistic."""
    pairs = find_near_duplicates(own, validation)
    same = {a for a, b in pairs if own.content_hashes[a] == validation.content_hashes[b]}
    near = {a for a, _ in pairs} - same
    if not pairs:
        return []
    return [
        Finding(
            severity="problem" if same else "warning",
            code="leakage",
            evidence=f"{len(same)} images are in validation too, {len(near)} more are near-duplicates of validation "
            f"images, {len(same | near) / len(own):.0%} of the calibration set",
            remedy="remove them from one of the two sets, or report that validation images calibrated the model",
            images=_to_strings(own.paths[index] for index in sorted(same | near)),
        )
    ]


def check_order(pool: ImageFingerprints, own: ImageFingerprints, names: Sequence[str]) -> list[Finding]:
    """Whether the first n images of the pool, in the order of their names, differ from the rest."""
    count = len(own)
    if not 8 <= count <= len(pool) - 8:
        return []
    head, rest = pool.select(pool.paths[:count]), pool.select(pool.paths[count:])
    takes_first = set(own.paths) == set(head.paths)
    differences = []
    shift = measure_class_shift(head.counts, rest.counts, min_distance=MIN_SHIFT)
    if shift.reported:
        shares = head.counts.sum(0) / max(head.counts.sum(), 1) - rest.counts.sum(0) / max(rest.counts.sum(), 1)
        most_shifted = int(np.abs(shares).argmax())
        differences.append(
            f"classes differ by {shift.distance:.2f} (most for {names[most_shifted]}, {shares[most_shifted]:+.0%})"
        )
    for attribute in ("brightness", "contrast", "aspect"):
        shift = measure_value_shift(getattr(head, attribute), getattr(rest, attribute), min_distance=MIN_SHIFT)
        if shift.reported:
            differences.append(f"{attribute} differs by {shift.distance:.2f}")
    if not differences:
        return []
    return [
        Finding(
            severity="warning" if takes_first else "note",
            code="order",
            evidence=f"the first {count} of {len(pool)} images differ from the rest: {'; '.join(differences)}",
            remedy="sample with a seed, as calibration_images= and fraction= do, instead of the first n"
            if takes_first
            else "keep sampling with a seed; a tool that takes the first n images calibrates on a biased set",
        )
    ]


def _to_strings(paths: Iterable[Path]) -> tuple[str, ...]:
    return tuple(str(path) for path in paths)


# Two-sample permutation test for dataset shift.


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetShift:
    """Difference between two groups of images.

    Attributes:
        distance: In 0..1: the Kolmogorov-Smirnov statistic for values, the total variation distance for classes.
        p_value: Share of random permutations of the images with at least that distance; at least 0.001.
    """

    distance: float
    p_value: float

    @property
    def reported(self) -> bool:
        """Whether the shift is large and significant enough to be reported."""
        return self.distance >= MIN_SHIFT and self.p_value <= MAX_P_VALUE


def measure_value_shift(
    one: NDArray[np.float64], other: NDArray[np.float64], *, min_distance: float = 0.0, seed: int = 0
) -> DatasetShift:
    """Two-sample Kolmogorov-Smirnov permutation test.

    Args:
        one: (n,) values of the first group.
        other: (m,) values of the second group.
        min_distance: Below this distance, no permutations are run and the p-value is 1.
        seed: Seed of the permutations.
    """
    values = np.concatenate([one, other])
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    # Of equal values, the distribution functions are compared at the last one.
    ends = np.append(ordered[1:] != ordered[:-1], True)
    group = np.zeros(len(values), bool)
    group[: len(one)] = True

    def distance(group: NDArray[np.bool_]) -> float:
        members = group[order]
        gap = np.cumsum(members) / members.sum() - np.cumsum(~members) / (~members).sum()
        return float(np.abs(gap[ends]).max())

    return _run_permutation_test(group, distance, min_distance, seed)


def measure_class_shift(
    one: NDArray[np.int64], other: NDArray[np.int64], *, min_distance: float = 0.0, seed: int = 0
) -> DatasetShift:
    """Two-sample permutation test of class shares, by total variation distance.

    Images are permuted, not objects: objects of one image are not independent.

    Args:
        one: (n, classes) objects by image and class.
        other: (m, classes) objects of the second group.
        min_distance: As for `measure_value_shift`.
        seed: Seed of the permutations.
    """
    counts = np.concatenate([one, other]).astype(np.float64)
    group = np.zeros(len(counts), bool)
    group[: len(one)] = True
    total = counts.sum(axis=0)

    def distance(group: NDArray[np.bool_]) -> float:
        first = group.astype(np.float64) @ counts
        second = total - first
        if not first.sum() or not second.sum():
            return 0.0
        return float(np.abs(first / first.sum() - second / second.sum()).sum() / 2)

    return _run_permutation_test(group, distance, min_distance, seed)


def _run_permutation_test(
    group: NDArray[np.bool_], distance: Callable[[NDArray[np.bool_]], float], min_distance: float, seed: int
) -> DatasetShift:
    observed = distance(group)
    if observed < min_distance:
        return DatasetShift(distance=observed, p_value=1.0)
    generator = np.random.default_rng(seed)
    exceeding = sum(distance(generator.permutation(group)) >= observed - 1e-12 for _ in range(PERMUTATIONS))
    return DatasetShift(distance=observed, p_value=(1 + exceeding) / (1 + PERMUTATIONS))
