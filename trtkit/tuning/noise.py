"""Quantization noise of INT8 placements: the SQNR of the head's output tensors against FP32."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from trtkit.calibration.sampling import ImageInputs, InputSource
from trtkit.executor import StopToken, Workers
from trtkit.graph.analysis import GraphIndex, block_of, count_macs, escape_pattern
from trtkit.graph.qdq import QDQPlacement, plan_qdq
from trtkit.progress import Reporter, parallel_map
from trtkit.tuning.partial_inference import NO_INT8, Ranges, SegmentedGraph, Variant, VariantSettings

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["LayerNoise", "MeasuredNoise", "compute_sqnr", "prepare_variants", "runner_name"]

NOISE_ERROR = 0.1
"""Error of a variant's noise that ends its measurement, as a share of the reference's noise."""

STANDARD_ERRORS = 3.0
"""Standard errors within `NOISE_ERROR`: by Student's t 97 % confidence on six images, 99 % on twelve."""

FIRST_IMAGES = 6
"""Images that every variant is measured on; then twice as many each time, until its noise is known. Noise has outliers:
on four images it is too often taken for known."""


@dataclasses.dataclass(frozen=True)
class MeasuredNoise:
    """The noise of variants.

    Attributes:
        sqnr: SQNR in dB by label; higher is closer to FP32.
        image_counts: Number of images that each was measured on.
    """

    sqnr: Mapping[str, float]
    image_counts: Mapping[str, int]


class LayerNoise:
    """The SQNR of INT8 placements of one graph.

    Args:
        graph: FP32 graph with unique node names and batch 1.
        classes: Number of classes, which identifies the head's class scores; 0 if the model has none.
        keep: fnmatch patterns of layers that stay in FP16 in every placement.
        protect: Exclude the layers that `plan_qdq` excludes from INT8 by default.
        exact: As for `SegmentedGraph`.
        executor: Its workers run the images; None runs them here.

    Attributes:
        full_int8: The placement with every layer in INT8 that may run in INT8.
        weighted: Names of all weighted layers, in graph order.
        macs: Multiply-accumulates per image, by layer.
        head_tensors: The tensors that SQNR is measured on: outputs of the last weighted layers.
    """

    def __init__(
        self,
        graph: onnx.ModelProto,
        classes: int,
        keep: Sequence[str] = (),
        *,
        protect: bool = True,
        exact: bool = True,
        executor: Client | None = None,
    ) -> None:
        self.executor = executor
        self.arguments = {
            "graph": graph, "classes": classes, "keep": tuple(keep), "protect": protect, "exact": exact,
        }  # fmt: skip
        self.graph = graph
        self.index = GraphIndex(graph)
        self.classes = classes
        self.user_keep = tuple(keep)
        self.protect = protect
        self.full_int8 = plan_qdq(graph, self.user_keep, protect=protect)
        self.weighted = [node.name for node in self.index.weighted]
        self.macs = count_macs(graph, self.index)
        self.head_tensors = _find_head_tensors(self.index)
        self.segments = SegmentedGraph(graph, extra_outputs=self.head_tensors, exact=exact)
        self.float_variant = self.prepare_variant(NO_INT8, {})

    @property
    def blocks(self) -> dict[str, list[str]]:
        """The INT8 layers of each block."""
        blocks: dict[str, list[str]] = {}
        for name in self.full_int8.layers:
            blocks.setdefault(block_of(name), []).append(name)
        return blocks

    def plan_without(self, layers: Iterable[str]) -> QDQPlacement:
        """Full INT8 without some layers, and without the depthwise layers in front of them."""
        return plan_qdq(self.graph, [*self.user_keep, *map(escape_pattern, layers)], protect=self.protect)

    def plan_only(self, layers: Iterable[str]) -> QDQPlacement:
        """Only some layers in INT8, even single depthwise layers that no engine runs that way."""
        others = map(escape_pattern, set(self.weighted) - set(layers))
        return plan_qdq(self.graph, [*self.user_keep, *others], protect=False)

    def prepare_variant(
        self,
        placement: QDQPlacement,
        ranges: Ranges,
        corrections: Mapping[str, Sequence[float]] | None = None,
    ) -> Variant:
        """Prepare a placement; see `SegmentedGraph.prepare_variant`; an executor's workers create its sessions."""
        if self.executor is not None:
            return Variant((), (), VariantSettings(placement, ranges, corrections))
        return self.segments.prepare_variant(placement, ranges, corrections)

    def int8_share(self, placement: QDQPlacement) -> float:
        """Share of the multiply-accumulates in INT8, 0..1."""
        total = sum(self.macs.values())
        return sum(self.macs.get(name, 0) for name in placement.layers) / total if total else 0.0

    def measure_sqnr(
        self,
        variants: Mapping[str, Variant],
        images: InputSource,
        count: int,
        *,
        stage: str,
        reporter: Reporter,
        threads: int | None = None,
    ) -> dict[str, float]:
        """Measure the signal-to-quantization-noise ratio (SQNR, dB) of variants against FP32.

        The noise is averaged over `head_tensors`, each with the same weight. Half of a tensor's noise weights all grid
        cells equally (noise that turns background into false positives), half weights each cell by its FP32
        confidence (noise that moves true positives).

        Args:
            variants: Variants by label.
            images: The probe images.
            count: Number of images.
            stage: Name of the progress stage.
            reporter: Progress, one step per image, and cancellation.
            threads: Images processed in parallel; None uses one per core.

        Returns:
            SQNR in dB by label; higher is closer to FP32.

        Raises:
            CancelledError: The caller cancelled.
        """
        prepared = [self.float_variant, *variants.values()]
        total = np.zeros((len(prepared), 2, len(self.head_tensors)))
        # In the order of the images: the order of a sum decides its last bits.
        for energy in self._measure(
            prepared, range(len(prepared)), images, stage=stage, reporter=reporter, threads=threads, total=count
        ):
            total += energy
        return {label: compute_sqnr(total[0], row) for label, row in zip(variants, total[1:], strict=True)}

    def measure_until_known(
        self,
        variants: Mapping[str, Variant],
        images: ImageInputs,
        *,
        reference: str,
        stage: str,
        reporter: Reporter,
        threads: int | None = None,
    ) -> MeasuredNoise:
        """Measure SQNR as `measure_sqnr` does, each variant on no more images than it needs.

        A variant's noise is compared with the reference's on the same images, which vary in noise far more than their
        ratio does. The variant is left out of the remaining images once its noise is known to `NOISE_ERROR` of the
        reference's; its noise on all images is then that ratio times the reference's noise.

        Args:
            variants: Variants by label.
            images: The probe images.
            reference: The label of the variant that the others are compared with.
            stage: Name of the progress stage.
            reporter: Progress, one step per image, and cancellation.
            threads: Images processed in parallel; None uses one per core.

        Raises:
            CancelledError: The caller cancelled.
        """
        labels, prepared = list(variants), [self.float_variant, *variants.values()]
        unknown = list(range(len(prepared)))
        always = (0, 1 + labels.index(reference))
        energies: list[list[NDArray[np.float64]]] = [[] for _ in prepared]
        skipped: list[str] = []
        done, total = 0, len(images.paths)
        while done < total:
            stop = min(max(FIRST_IMAGES, 2 * done), total)
            part = dataclasses.replace(images, paths=images.paths[done:stop], skipped=[])
            for energy in self._measure(
                prepared, unknown, part, stage=stage, reporter=reporter, threads=threads, done=done, total=total
            ):
                for index, row in zip(unknown, energy, strict=True):
                    energies[index].append(row)
            skipped += part.skipped
            done = stop
            signal, noise = (np.array(energies[index]) for index in always)
            unknown = [
                index for index in unknown if index in always or not _is_known(signal, noise, np.array(energies[index]))
            ]
        images.skipped[:] = skipped
        sqnr = {}
        for label, rows in zip(labels, energies[1:], strict=True):
            some = [_noise_share(energies[0][: len(rows)], one[: len(rows)]) for one in (rows, energies[always[1]])]
            share = some[0]
            if len(rows) < len(energies[0]):
                share *= _noise_share(energies[0], energies[always[1]]) / max(some[1], np.finfo(np.float64).tiny)
            sqnr[label] = _to_decibels(share)
        return MeasuredNoise(sqnr, {label: len(rows) for label, rows in zip(labels, energies[1:], strict=True)})

    def measure_energies(
        self, image: NDArray[np.float32], prepared: Sequence[Variant], reporter: Reporter
    ) -> NDArray[np.float64]:
        """Measure the energy of FP32 and of the errors of variants on one image.

        Args:
            image: (1, C, H, W) float32.
            prepared: The FP32 variant and the others.
            reporter: Stops it if cancelled.

        Returns:
            (variants, 2, head tensors).
        """
        energy = np.zeros((len(prepared), 2, len(self.head_tensors)))
        exact: list[NDArray[np.float32]] = []
        confidence: list[NDArray[np.float32] | None] = []
        results = self.segments.run(image, prepared, outputs=self.head_tensors)
        for number, outputs in enumerate(results):
            values = [outputs[name] for name in self.head_tensors]
            if not number:
                exact, confidence = values, _compute_confidences(self.head_tensors, values, self.classes)
            for index, (value, reference, weight) in enumerate(zip(values, exact, confidence, strict=True)):
                if number and value is reference:
                    continue  # the cached FP32 output: nothing before this tensor is in INT8
                difference = value - reference if number else reference
                energy[number, :, index] = _compute_energies(difference, weight)
            if reporter.is_cancelled():
                break
        return energy

    def _measure(
        self,
        prepared: Sequence[Variant],
        chosen: Sequence[int],
        images: InputSource,
        *,
        stage: str,
        reporter: Reporter,
        threads: int | None,
        done: int = 0,
        total: int,
    ) -> Iterator[NDArray[np.float64]]:
        """The energies of the variants `chosen` by index (the first is 0) on each image, here or on workers.

        Workers create the sessions of all prepared variants, once for all calls. `done` of `total` images came before.
        """
        if self.executor is None:
            variants = [prepared[index] for index in chosen]
            reporter.step(stage, done, total)

            def measure(image: NDArray[np.float32]) -> NDArray[np.float64]:
                return self.measure_energies(image, variants, reporter)

            for number, energy in enumerate(parallel_map(measure, images(), threads), done + 1):
                # Cancellation raises here; running threads stop at their next variant.
                reporter.step(stage, number, total)
                yield energy
            return
        assert isinstance(images, ImageInputs)
        workers = Workers(self.executor, reporter)
        shards = images.split(workers.slots)
        results = workers.map(
            _measure_shard,
            [(shard, tuple(chosen)) for shard in shards],
            stage=stage,
            prepare=prepare_variants,
            common=(self.arguments, [variant.settings for variant in prepared]),
            sizes=[len(shard.paths) for shard in shards],
            done=done,
            total=total,
        )
        images.skipped.clear()
        with contextlib.closing(results):
            for energies, skipped in results:
                images.skipped.extend(skipped)
                yield from energies

    def run_variants(
        self, variants: Sequence[Variant], images: InputSource, threads: int | None = None
    ) -> Iterator[tuple[NDArray[np.float32], list[dict[str, NDArray[np.float32]]]]]:
        """Run variants up to the graph's outputs.

        Args:
            variants: The variants to run.
            images: The inputs.
            threads: Images processed in parallel; None uses one per core.

        Yields:
            Each input, with the graph outputs by name of every variant.
        """

        def run(image: NDArray[np.float32]) -> tuple[NDArray[np.float32], list[dict[str, NDArray[np.float32]]]]:
            return image, list(self.segments.run(image, variants))

        return parallel_map(run, images(), threads)


@dataclasses.dataclass(frozen=True)
class PreparedVariants:
    """Variants in a worker.

    Attributes:
        layer_noise: The graph.
        variants: The variants.
    """

    layer_noise: LayerNoise
    variants: Sequence[Variant]


def prepare_variants(arguments: Mapping[str, Any], settings: Sequence[VariantSettings]) -> PreparedVariants:
    """Create the sessions of variants, in a worker.

    Args:
        arguments: `LayerNoise.arguments`.
        settings: Of the variants.
    """
    layer_noise = LayerNoise(**arguments)
    variants = [layer_noise.prepare_variant(one.placement, one.ranges, one.corrections) for one in settings]
    return PreparedVariants(layer_noise, variants)


def _measure_shard(
    prepared: PreparedVariants, shard: tuple[ImageInputs, Sequence[int]]
) -> tuple[list[NDArray[np.float64]], list[str]]:
    """The energies of each image of a shard under the chosen variants, and the images that can't be read."""
    images, chosen = shard
    variants = [prepared.variants[index] for index in chosen]
    reporter, energies = Reporter(None, StopToken()), list[NDArray[np.float64]]()
    for image in images():
        energies.append(prepared.layer_noise.measure_energies(image, variants, reporter))
        reporter.step("measure", len(energies))
    return energies, images.skipped


def _is_known(signal: NDArray[np.float64], reference: NDArray[np.float64], noise: NDArray[np.float64]) -> bool:
    """Whether a variant's noise is known to `NOISE_ERROR` of the reference's.

    Args:
        signal: Energies of FP32, (images, 2, head tensors).
        reference: Energies of the reference's errors, same shape.
        noise: Energies of the variant's errors, same shape.
    """
    count = len(signal)
    if count < FIRST_IMAGES:
        return False
    total = np.maximum(signal.sum(axis=0), np.finfo(np.float64).tiny)
    shares, reference_shares = (np.mean(one / total, axis=(1, 2)) for one in (noise, reference))
    level = float(reference_shares.sum())
    ratio = float(shares.sum()) / max(level, np.finfo(np.float64).tiny)
    # The noise of each image beyond what the ratio explains; its sum over the images is 0.
    excess = shares - ratio * reference_shares
    return bool(STANDARD_ERRORS * excess.std(ddof=1) * math.sqrt(count) <= NOISE_ERROR * level)


def compute_sqnr(signal: NDArray[np.float64], noise: NDArray[np.float64]) -> float:
    """Compute the SQNR of several tensors, each with the same weight whatever its energy.

    Args:
        signal: Energy of each tensor in FP32.
        noise: Energy of each tensor's error, same shape.

    Returns:
        -10 log10 of the mean noise-to-signal ratio, dB; 200 if the noise is below float32 resolution.
    """
    return _to_decibels(_noise_share([signal], [noise]))


def _noise_share(signal: Sequence[NDArray[np.float64]], noise: Sequence[NDArray[np.float64]]) -> float:
    """The mean noise-to-signal ratio over tensors, from the energies of each image, summed in their order."""
    total = np.maximum(np.sum(signal, axis=0), np.finfo(np.float64).tiny)
    return float(np.mean(np.sum(noise, axis=0) / total))


def _to_decibels(share: float) -> float:
    return 200.0 if share <= 1e-20 else -10 * math.log10(share)


def _compute_confidences(
    names: Sequence[str], values: Sequence[NDArray[np.float32]], classes: int
) -> list[NDArray[np.float32] | None]:
    """The confidence at each grid cell of each head tensor, from the class scores of the same grid."""
    grids: dict[tuple[int, ...], NDArray[np.float32]] = {}
    # If two tensors have as many channels as classes, the class branch is the one Ultralytics names cv3.
    for _, value in sorted(zip(names, values, strict=True), key=lambda pair: "cv3" in pair[0]):
        if value.ndim == 4 and value.shape[1] == classes:
            grids[value.shape[2:]] = 1 / (1 + np.exp(-value.max(axis=1, keepdims=True)))
    return [grids.get(value.shape[2:]) if value.ndim == 4 else None for value in values]


def _compute_energies(values: NDArray[np.float32], confidence: NDArray[np.float32] | None) -> tuple[float, float]:
    """The energy with all grid cells weighted equally, and weighted by confidence where there is one."""
    squares = np.square(values)
    uniform = float(squares.sum(dtype=np.float64))
    if confidence is None:
        return uniform, uniform
    return uniform, float((squares.sum(axis=1, keepdims=True) * confidence).sum(dtype=np.float64))


def runner_name() -> str:
    """The name of the runtime that runs variants."""
    import onnxruntime

    return f"ONNX Runtime {onnxruntime.__version__} CPU"


def _find_head_tensors(index: GraphIndex) -> tuple[str, ...]:
    """The outputs of the last weighted layers, before decoding; the graph's outputs if there are none."""
    outputs = tuple(index.nodes[name].output[0] for name in index.output_layers())
    return outputs or tuple(value.name for value in index.graph.output)
