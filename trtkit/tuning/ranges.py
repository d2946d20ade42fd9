"""A better range for that one tensor: each scale by the algorithm that disturbs the model least there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from trtkit.calibration import Calibration
from trtkit.progress import Work
from trtkit.tuning.bias import bias_corrections
from trtkit.tuning.lab import Lab, Pictures

__all__ = ["CANDIDATES", "Chosen", "choose_ranges", "groups_of"]

CANDIDATES: tuple[tuple[str, float | None], ...] = (
    ("percentile", 99.999),
    ("minmax", None),
    ("percentile", 99.9999),
    ("percentile", 99.99),
    ("moving_average", None),
    ("mse", None),
)
"""Algorithms, with their percentile, that compete for each scale; the first is where nothing is to be gained."""

WORTHWHILE = 0.003
"""A scale that makes less than this share of the noise is left as it is: nothing better could be told from chance."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chosen:
    """Ranges put together from several algorithms.

    Attributes:
        calibration: With the ranges, and with bias corrections that fit them.
        algorithms: By the first tensor of each scale, the algorithm it follows.
    """

    calibration: Calibration
    algorithms: Mapping[str, str]


def choose_ranges(
    lab: Lab,
    calibration: Calibration,
    pictures: Pictures,
    count: int,
    work: Work,
    *,
    candidates: Sequence[tuple[str, float | None]] = CANDIDATES,
    threads: int | None = None,
) -> Chosen:
    """Choose each scale's algorithm by what it does to the head's output when only its readers are INT8.

    Once biases are corrected, the noise of layers adds up: over yolo11n the noise of INT8 throughout was within 7 % of
    the sum of what each layer made alone. So the best range of each tensor can be found on its own.

    Args:
        lab: The graph.
        calibration: With histograms.
        pictures: Pictures to compare on, such as some of those that were calibrated on.
        count: How many.
        work: Receives steps.
        candidates: Algorithms that compete.
        threads: Pictures that run beside each other; None takes one for each core.

    Raises:
        CalibrationError: The calibration holds no histograms.
        CancelledError: The caller cancelled.
    """
    read = {_label(*candidate): calibration.using(candidate[0], percentile=candidate[1]) for candidate in candidates}
    corrections = {
        label: bias_corrections(lab.graph, lab.whole, one.ranges, pictures(), count, work, threads=threads)
        for label, one in read.items()
    }
    groups = groups_of(lab)
    first = next(iter(read))
    reaches = {label: {group: _reach(one, group) for group in groups} for label, one in read.items()}

    def noise(labels: Sequence[str], asked: Sequence[tuple[str, ...]], stage: str) -> dict[tuple[str, str], float]:
        variants = {}
        for group in asked:
            placement = lab.only(groups[group])
            for label in labels:
                # Alone, fewer tensors may share the scale than do in the whole: all get the whole group's.
                reach = reaches[label][group]
                ranges = {**read[first].ranges, **dict.fromkeys(group, (-reach, reach))}
                own = {name: corrections[label][name] for name in groups[group] if name in corrections[label]}
                variants[f"{label} {group[0]}"] = lab.variant(placement, ranges, own)
        found = lab.noise(variants, pictures, count, stage=stage, work=work, threads=threads, pin=0)
        return {(key.split(" ", 1)[0], key.split(" ", 1)[1]): 10 ** (-value / 10) for key, value in found.items()}

    shares = noise([first], list(groups), "measure each range")
    total = sum(shares.values())
    promising = [group for group in groups if shares[first, group[0]] > WORTHWHILE * total]
    shares.update(noise([label for label in read if label != first], promising, "choose each range"))
    best = {
        group: min((label for label in read if (label, group[0]) in shares), key=lambda label: shares[label, group[0]])
        for group in groups
    }
    return Chosen(
        calibration=_put_together(lab, calibration, groups, best, reaches, corrections),
        algorithms={group[0]: label for group, label in best.items()},
    )


def groups_of(lab: Lab) -> dict[tuple[str, ...], tuple[str, ...]]:
    """The tensors that share each scale, with the INT8 layers whose arithmetic it enters."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for layer in lab.whole.layers:
        for tensor in lab.only([layer]).tensors:
            members = lab.whole.scale_of.get(tensor)
            if members is not None and layer not in groups.setdefault(members, []):
                groups[members].append(layer)
    return {members: tuple(layers) for members, layers in groups.items()}


def _put_together(
    lab: Lab,
    calibration: Calibration,
    groups: Mapping[tuple[str, ...], Sequence[str]],
    best: Mapping[tuple[str, ...], str],
    reaches: Mapping[str, Mapping[tuple[str, ...], float]],
    corrections: Mapping[str, Mapping[str, tuple[float, ...]]],
) -> Calibration:
    """The calibration with each group's range by its algorithm, and each layer's correction by its input's."""
    exact = calibration.using("minmax").ranges
    ranges = dict(exact)
    added: dict[str, tuple[float, ...]] = {}
    for group, label in best.items():
        reach = reaches[label][group]
        ranges.update({name: (max(exact[name][0], -reach), min(exact[name][1], reach)) for name in group})
        for layer in groups[group]:
            if lab.view.nodes[layer].input[0] in group and layer in corrections[label]:
                added[layer] = corrections[label][layer]
    return dataclasses.replace(
        calibration,
        ranges=ranges,
        algorithm="mixed",
        percentile=None,
        corrections=added,
        origin=dataclasses.replace(
            calibration.origin, settings={**calibration.origin.settings, "algorithm": "mixed", "percentile": None}
        ),
    )


def _reach(calibration: Calibration, group: Sequence[str]) -> float:
    return max(max(map(abs, calibration.ranges[name])) for name in group)


def _label(algorithm: str, percentile: float | None) -> str:
    return algorithm if percentile is None else f"{algorithm}-{percentile:g}"
