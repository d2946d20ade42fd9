"""The search's measurements: what repairs gain and what each layer disturbs, on a few pictures and without labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trtkit.calibration import Calibration
from trtkit.calibration.selection import input_batches
from trtkit.data import sample
from trtkit.files import hash_of
from trtkit.progress import Work
from trtkit.tuning.bias import bias_corrections
from trtkit.tuning.lab import Lab, Pictures
from trtkit.tuning.ranges import choose_ranges
from trtkit.tuning.state import State, deciding_versions
from trtkit.tuning.trials import Mix

if TYPE_CHECKING:
    from trtkit.data import Dataset

__all__ = ["Bench", "how", "repaired", "shares_of"]

CORRECTING = 64
"""Pictures that biases are corrected on: a mean needs more of them than a comparison does."""


class Bench:
    """A lab with its probe pictures: a sample of those that calibrate."""

    def __init__(
        self,
        lab: Lab,
        dataset: Dataset,
        calibration: Calibration,
        task: str,
        size: tuple[int, int],
        *,
        split: str,
        probe: int,
        seed: int,
        keep: tuple[str, ...],
        threads: int | None,
        work: Work,
    ) -> None:
        self.lab = lab
        self.made_with = f"{probe} {seed} {keep} {deciding_versions()}"
        self.threads = threads
        self.work = work
        self.task = task
        self.size = size
        pool = dataset.pictures(calibration.split or ("train" if "train" in dataset.splits else split))
        self.probe = sample(pool, count=probe, seed=seed)
        self.correcting = sample(pool, count=CORRECTING, seed=seed)
        self.data = dataset.hash_of(self.correcting)

    def pictures(self, paths: Sequence[Path]) -> Pictures:
        """Gives the pictures of these files."""

        def inputs() -> Iterable[NDArray[np.float32]]:
            return input_batches(paths, task=self.task, size=self.size, batch=1, skipped=[])

        return inputs

    def key(self, calibration: Calibration) -> str:
        """What a measurement on this bench depends on."""
        return hash_of(calibration.hash, self.data, self.made_with)

    def noise_of(self, mixes: Sequence[Mix]) -> dict[str, float]:
        """SQNR of each mix with nothing excluded, dB."""
        variants = {
            mix.label: self.lab.variant(self.lab.whole, mix.calibration.ranges, mix.calibration.corrections)
            for mix in mixes
        }
        return self.lab.noise(
            variants,
            self.pictures(self.probe),
            len(self.probe),
            stage="measure the whole",
            work=self.work,
            threads=self.threads,
        )

    def noise_without(self, mix: Mix, layers: Sequence[str]) -> float:
        """SQNR of a mix without some layers, dB."""
        variant = self.lab.variant(self.lab.without(layers), mix.calibration.ranges, mix.calibration.corrections)
        found = self.lab.noise(
            {"one": variant},
            self.pictures(self.probe),
            len(self.probe),
            stage="measure a mix",
            work=self.work,
            threads=self.threads,
        )
        return found["one"]


def repaired(bench: Bench, measured: Calibration, state: State) -> tuple[list[Mix], Mapping[str, str]]:
    """The calibration as it is usually read, with chosen ranges, and with corrected biases on top."""
    plain = [measured.using("minmax"), measured.using("percentile")]
    key = bench.key(measured)
    place, algorithms = state.place("ranges", key), state.read("ranges", key)
    if place is not None and algorithms is not None:
        mixed = Calibration.load(place)
    else:
        chosen = choose_ranges(
            bench.lab,
            measured,
            bench.pictures(bench.probe),
            len(bench.probe),
            bench.work,
            threads=bench.threads,
        )
        corrections = bias_corrections(
            bench.lab.graph,
            bench.lab.whole,
            chosen.calibration.ranges,
            bench.pictures(bench.correcting)(),
            len(bench.correcting),
            bench.work,
            threads=bench.threads,
        )
        mixed = dataclasses.replace(chosen.calibration, corrections=corrections)
        algorithms = dict(chosen.algorithms)
        if place is not None:
            mixed.save(place)
            state.write("ranges", key, algorithms)
    mixes = [Mix(label=how(one), calibration=one) for one in plain]
    mixes.append(Mix(label="best ranges", calibration=dataclasses.replace(mixed, corrections={})))
    mixes.append(Mix(label="best ranges, biases corrected", calibration=mixed))
    return mixes, algorithms


def shares_of(bench: Bench, base: Mix, state: State) -> dict[str, float]:
    """Each layer's share of the noise when only it is INT8."""
    key = hash_of(bench.key(base.calibration), "shares")
    found = state.read("noise", key)
    if found is not None:
        return {str(name): float(value) for name, value in found.items()}
    lab, calibration = bench.lab, base.calibration
    variants = {
        name: lab.variant(lab.only([name]), calibration.ranges, calibration.corrections) for name in lab.whole.layers
    }
    noise = lab.noise(
        variants,
        bench.pictures(bench.probe),
        len(bench.probe),
        stage="measure every layer",
        work=bench.work,
        threads=bench.threads,
        pin=0,
    )
    powers = {name: 10 ** (-value / 10) for name, value in noise.items()}
    total = sum(powers.values()) or 1.0
    shares = {name: power / total for name, power in powers.items()}
    state.write("noise", key, shares)
    return shares


def how(calibration: Calibration) -> str:
    """The algorithm of a calibration, with its percentile where it has one."""
    if calibration.percentile is None:
        return calibration.algorithm
    return f"{calibration.algorithm} {calibration.percentile:g}"
