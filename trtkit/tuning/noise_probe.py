"""Measurements of a search on its probe images, without labels: ranges, bias corrections and the noise of layers."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence

from trtkit.calibration import Calibration
from trtkit.calibration.algorithms import format_algorithm
from trtkit.calibration.sampling import ImageInputs, make_input_source
from trtkit.data import sample_images
from trtkit.data.dataset import Dataset
from trtkit.errors import ResultError
from trtkit.files import hash_parts
from trtkit.models.model import Preprocess
from trtkit.progress import Reporter
from trtkit.tuning.corrections import choose_ranges, compute_bias_corrections
from trtkit.tuning.int8_evaluation import PrecisionAssignment
from trtkit.tuning.measurement import ResultCache, measurement_versions
from trtkit.tuning.noise import LayerNoise

__all__ = ["NoiseProbe", "measure_noise_shares", "repair_ranges", "select_probe_split"]

CORRECTION_IMAGES = 64
"""Images for bias correction: a mean error needs more images than a comparison of variants."""

REPAIRED_ASSIGNMENTS = 4
"""Number of assignments that `repair_ranges` returns."""


def select_probe_split(dataset: Dataset, calibration: Calibration | None, split: str) -> str:
    """The split of the probe images: the calibration's, else `train`, else `split`."""
    # A calibration may have been measured on another set, or on images without labels.
    if calibration is not None and calibration.split in dataset.splits:
        return calibration.split
    return "train" if "train" in dataset.splits else split


class NoiseProbe:
    """Measures the noise of precision assignments on a sample of the calibration images.

    Args:
        layer_noise: The graph.
        dataset: The images.
        calibration: Its split is sampled.
        preprocess: The model's preprocessing.
        imgsz: Height and width, pixels.
        split: The split to sample if neither the calibration nor a `train` split names another.
        probe_images: Number of images.
        seed: Seed of the sample.
        threads: Images processed in parallel; None uses one per core.
        reporter: Progress and cancellation.
    """

    def __init__(
        self,
        layer_noise: LayerNoise,
        dataset: Dataset,
        calibration: Calibration,
        *,
        preprocess: Preprocess,
        imgsz: tuple[int, int],
        split: str,
        probe_images: int,
        seed: int,
        threads: int | None,
        reporter: Reporter,
    ) -> None:
        self.layer_noise = layer_noise
        self.settings_key = f"{probe_images} {seed} {layer_noise.user_keep} {measurement_versions()}"
        self.threads = threads
        self.reporter = reporter
        self.preprocess = preprocess
        self.imgsz = imgsz
        pool = dataset.images(select_probe_split(dataset, calibration, split))
        self.probe_paths = sample_images(pool, count=probe_images, seed=seed)
        self.correction_paths = sample_images(pool, count=CORRECTION_IMAGES, seed=seed)
        self.data_hash = dataset.hash_images(self.correction_paths)

    @property
    def inputs(self) -> ImageInputs:
        """The preprocessed probe images."""
        return make_input_source(self.probe_paths, preprocess=self.preprocess, imgsz=self.imgsz)

    def cache_key(self, calibration: Calibration) -> str:
        """The hash of everything that a measurement depends on."""
        return hash_parts(calibration.hash, self.data_hash, self.settings_key)

    def choose_ranges(self, calibration: Calibration) -> tuple[Calibration, dict[str, str]]:
        """Per-tensor range selection and bias correction.

        Args:
            calibration: A calibration with histograms.

        Returns:
            The corrected calibration, and the algorithm of each scale by its first tensor.
        """
        chosen = choose_ranges(
            self.layer_noise,
            calibration,
            self.inputs,
            len(self.probe_paths),
            self.reporter,
            threads=self.threads,
        )
        images = make_input_source(self.correction_paths, preprocess=self.preprocess, imgsz=self.imgsz)
        corrections = compute_bias_corrections(
            self.layer_noise.graph,
            self.layer_noise.full_int8,
            chosen.calibration.ranges,
            images,
            len(self.correction_paths),
            self.reporter,
            threads=self.threads,
            executor=self.layer_noise.executor,
        )
        return dataclasses.replace(chosen.calibration, corrections=corrections), dict(chosen.algorithms)

    def measure_assignments(self, assignments: Sequence[PrecisionAssignment]) -> dict[str, float]:
        """Measure the SQNR of precision assignments.

        Returns:
            SQNR in dB, by label.
        """
        variants = {
            assignment.label: self.layer_noise.prepare_variant(
                self.layer_noise.plan_without(assignment.kept_layers),
                assignment.calibration.ranges,
                assignment.calibration.corrections,
            )
            for assignment in assignments
        }
        return self.layer_noise.measure_sqnr(
            variants,
            self.inputs,
            len(self.probe_paths),
            stage="measure SQNR",
            reporter=self.reporter,
            threads=self.threads,
        )


def repair_ranges(
    probe: NoiseProbe, calibration: Calibration, cache: ResultCache
) -> tuple[list[PrecisionAssignment], Mapping[str, str]]:
    """Build the full-INT8 assignments: min-max, percentile, per-tensor ranges, and these with bias correction.

    Args:
        probe: The probe images.
        calibration: A calibration with histograms.
        cache: Stores the selected ranges.

    Returns:
        The assignments, and the selected algorithm by the first tensor of each scale.
    """
    key = probe.cache_key(calibration)
    path, algorithms = cache.entry_path("ranges", key), cache.read("ranges", key)
    corrected = None
    if path is not None and algorithms is not None:
        # Another search may be writing the entry just now: then it is computed again.
        with contextlib.suppress(ResultError):
            corrected = Calibration.load(path)
    if corrected is None:
        corrected, algorithms = probe.choose_ranges(calibration)
        if path is not None:
            corrected.save(path)
            cache.write("ranges", key, algorithms)
    uncorrected = dataclasses.replace(corrected, corrections={})
    plain = [calibration.with_algorithm("minmax"), calibration.with_algorithm("percentile")]
    return [
        *(PrecisionAssignment(label=format_algorithm(one.algorithm, one.percentile), calibration=one) for one in plain),
        PrecisionAssignment(label="per-tensor ranges", calibration=uncorrected),
        PrecisionAssignment(label="per-tensor ranges, bias correction", calibration=corrected),
    ], algorithms


def measure_noise_shares(probe: NoiseProbe, base: PrecisionAssignment, cache: ResultCache) -> dict[str, float]:
    """Measure each layer's share of the total noise, with only that layer in INT8.

    Args:
        probe: The probe images.
        base: The assignment whose ranges and bias corrections are used.
        cache: Stores the shares.

    Returns:
        Shares by layer; their sum is 1.
    """
    key = hash_parts(probe.cache_key(base.calibration), "shares")
    cached = cache.read("noise", key)
    if cached is not None:
        return {str(name): float(value) for name, value in cached.items()}
    layer_noise, calibration = probe.layer_noise, base.calibration
    variants = {
        name: layer_noise.prepare_variant(layer_noise.plan_only([name]), calibration.ranges, calibration.corrections)
        for name in layer_noise.full_int8.layers
    }
    sqnr = layer_noise.measure_sqnr(
        variants,
        probe.inputs,
        len(probe.probe_paths),
        stage="measure every layer",
        reporter=probe.reporter,
        threads=probe.threads,
    )
    powers = {name: 10 ** (-value / 10) for name, value in sqnr.items()}
    total = sum(powers.values()) or 1.0
    shares = {name: power / total for name, power in powers.items()}
    cache.write("noise", key, shares)
    return shares
