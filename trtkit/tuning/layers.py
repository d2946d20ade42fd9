"""Layers of a model in INT8: which ones may run in it, and the quantization noise of any INT8 placement.

Noise is the SQNR of the head's output tensors against FP32.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import polars as pl
from numpy.typing import NDArray

from trtkit.calibration.sampling import ImageInputs, InputSource
from trtkit.executor import StopToken, Workers
from trtkit.files import hash_parts
from trtkit.graph.analysis import GraphIndex, block_of, count_macs, escape_pattern
from trtkit.graph.qdq import QDQPlacement, plan_qdq
from trtkit.progress import CancelToken, Progress, Reporter, parallel_map
from trtkit.recipe import round_imgsz
from trtkit.tuning.measurement import ResultCache
from trtkit.tuning.partial_inference import NO_INT8, Ranges, SegmentedGraph, Variant, VariantSettings

if TYPE_CHECKING:
    from pathlib import Path

    from distributed import Client

    from trtkit.models import Model

__all__ = ["LayerNoise", "QuantizableLayers", "compute_sqnr", "find_quantizable_layers", "runner_name"]

SCHEMA: dict[str, Any] = {
    **dict.fromkeys(("node", "block", "operator"), pl.String),
    "macs": pl.Int64,
    "tensor": pl.String,
    "scale": pl.List(pl.String),
    "kept": pl.String,
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class QuantizableLayers:
    """The weighted layers of one graph.

    Attributes:
        layers: One row per layer, in graph order: `node`, `block`, `operator`, `macs` (multiply-accumulates per image),
            `tensor` (its input), `scale` (the tensors that share its input's scale) and `kept` (why it is excluded from
            INT8 by default; null if it may run in INT8).
        model_hash: SHA-256 of the model.
    """

    layers: pl.DataFrame
    model_hash: str

    @functools.cached_property
    def quantizable(self) -> tuple[str, ...]:
        """Names of the layers that may run in INT8, in graph order."""
        return tuple(self.layers.filter(pl.col("kept").is_null())["node"])

    def int8_share(self, keep: Iterable[str] = ()) -> float:
        """Share of the multiply-accumulates in INT8 if some layers are kept in FP16, 0..1.

        Args:
            keep: Names of layers, not patterns.
        """
        excluded = set(keep)
        total = int8 = 0
        for node, macs, kept in self.layers.select("node", "macs", "kept").iter_rows():
            total += macs
            int8 += macs if kept is None and node not in excluded else 0
        return int8 / total if total else 0.0

    def tensor_of(self, node: str) -> str | None:
        """The input tensor of a layer; None for an unknown layer."""
        return self._tensors.get(node)

    @functools.cached_property
    def readers(self) -> Mapping[str, list[str]]:
        """The layers that read each tensor."""
        readers: dict[str, list[str]] = {}
        for node, tensor in self._tensors.items():
            readers.setdefault(tensor, []).append(node)
        return readers

    def scale_of(self, tensor: str) -> tuple[str, ...]:
        """The tensors that share a tensor's scale; the tensor itself if it is unknown."""
        return self._scales.get(tensor) or (tensor,)

    @functools.cached_property
    def _tensors(self) -> dict[str, str]:
        return dict(self.layers.select("node", "tensor").iter_rows())

    @functools.cached_property
    def _scales(self) -> dict[str, tuple[str, ...]]:
        """By tensor, including tensors that share a scale with a layer's input but are not one."""
        scales: dict[str, tuple[str, ...]] = {}
        for scale in self.layers["scale"].to_list():
            for tensor in scale:
                scales[tensor] = tuple(scale)
        return scales


def find_quantizable_layers(
    model: Model,
    imgsz: int | tuple[int, int] | None = None,
    *,
    cache_dir: str | Path | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> QuantizableLayers:
    """Trace a model and list its weighted layers.

    Args:
        model: From `load`.
        imgsz: Height and width, pixels; None uses the model's own size.
        cache_dir: Cache directory; a cached list needs no trace.
        progress: Progress callback.
        cancel: Cancellation token.

    Raises:
        CancelledError: The caller cancelled.
    """
    from trtkit.graph.torch_export import trace

    reporter, cache, stage = Reporter(progress, cancel), ResultCache(cache_dir), "read the model's layers"
    size = round_imgsz(model.imgsz if imgsz is None else imgsz, model.stride)
    key = hash_parts(model.hash, f"{size}", *SCHEMA)
    reporter.step(stage, 0, 2)
    rows = cache.read("layers", key)
    if rows is None:
        graph = trace(model, imgsz=size, batch=1)
        reporter.step(stage, 1, 2)
        rows = _layer_rows(graph)
        cache.write("layers", key, rows)
    reporter.step(stage, 2, 2)
    return QuantizableLayers(layers=pl.DataFrame(rows, schema=SCHEMA), model_hash=model.hash)


def _layer_rows(graph: onnx.ModelProto) -> list[dict[str, Any]]:
    placement, index = plan_qdq(graph), GraphIndex(graph)
    macs = count_macs(graph, index)
    return [
        {
            "node": node.name,
            "block": block_of(node.name),
            "operator": node.op_type,
            "macs": macs.get(node.name, 0),
            "tensor": node.input[0],
            "scale": list(placement.scale_groups.get(node.input[0], ())),
            "kept": placement.excluded.get(node.name),
        }
        for node in index.weighted
    ]


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
        self.float_variant = self.prepare_variant(NO_INT8, {}, shared=True)

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
        *,
        shared: bool = False,
    ) -> Variant:
        """Prepare a placement; see `SegmentedGraph.prepare_variant`; an executor's workers create its sessions."""
        if self.executor is not None:
            return Variant((), (), VariantSettings(placement, ranges, corrections, shared))
        return self.segments.prepare_variant(placement, ranges, corrections, shared=shared)

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
        cache_first: int = 1,
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
            cache_first: Number of leading variants whose segment outputs are reused by later ones.

        Returns:
            SQNR in dB by label; higher is closer to FP32.

        Raises:
            CancelledError: The caller cancelled.
        """
        prepared = [self.float_variant, *variants.values()]
        if self.executor is not None:
            energies = self._measure_on_workers(prepared, images, stage, reporter, 1 + cache_first)
        else:
            energies = self._measure_here(prepared, images, count, stage, reporter, 1 + cache_first, threads)
        total = np.zeros((len(prepared), 2, len(self.head_tensors)))
        # In the order of the images: the order of a sum decides its last bits.
        for energy in energies:
            total += energy
        return {label: compute_sqnr(total[0], row) for label, row in zip(variants, total[1:], strict=True)}

    def measure_energies(
        self, image: NDArray[np.float32], prepared: Sequence[Variant], cache_first: int, reporter: Reporter
    ) -> NDArray[np.float64]:
        """Measure the energy of FP32 and of the errors of variants on one image.

        Args:
            image: (1, C, H, W) float32.
            prepared: The FP32 variant and the others.
            cache_first: As for `SegmentedGraph.run`.
            reporter: Stops it if cancelled.

        Returns:
            (variants, 2, head tensors).
        """
        energy = np.zeros((len(prepared), 2, len(self.head_tensors)))
        exact: list[NDArray[np.float32]] = []
        confidence: list[NDArray[np.float32] | None] = []
        results = self.segments.run(image, prepared, outputs=self.head_tensors, cache_first=cache_first)
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

    def _measure_here(
        self,
        prepared: Sequence[Variant],
        images: InputSource,
        count: int,
        stage: str,
        reporter: Reporter,
        cache_first: int,
        threads: int | None,
    ) -> Iterator[NDArray[np.float64]]:
        reporter.step(stage, 0, count)

        def measure(image: NDArray[np.float32]) -> NDArray[np.float64]:
            return self.measure_energies(image, prepared, cache_first, reporter)

        for done, energy in enumerate(parallel_map(measure, images(), threads), 1):
            # Cancellation raises here; running threads stop at their next variant.
            reporter.step(stage, done, count)
            yield energy

    def _measure_on_workers(
        self, prepared: Sequence[Variant], images: InputSource, stage: str, reporter: Reporter, cache_first: int
    ) -> Iterator[NDArray[np.float64]]:
        assert self.executor is not None
        assert isinstance(images, ImageInputs)
        workers = Workers(self.executor, reporter)
        shards = images.split(workers.slots)
        results = workers.map(
            _measure_shard,
            shards,
            stage=stage,
            prepare=prepare_variants,
            common=(self.arguments, [variant.settings for variant in prepared], cache_first),
            sizes=[len(shard.paths) for shard in shards],
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
        cache_first: As for `SegmentedGraph.run`.
    """

    layer_noise: LayerNoise
    variants: Sequence[Variant]
    cache_first: int


def prepare_variants(
    arguments: Mapping[str, Any], settings: Sequence[VariantSettings], cache_first: int
) -> PreparedVariants:
    """Create the sessions of variants, in a worker.

    Args:
        arguments: `LayerNoise.arguments`.
        settings: Of the variants.
        cache_first: As for `SegmentedGraph.run`.
    """
    layer_noise = LayerNoise(**arguments)
    variants = [
        layer_noise.prepare_variant(one.placement, one.ranges, one.corrections, shared=one.shared) for one in settings
    ]
    return PreparedVariants(layer_noise, variants, cache_first)


def _measure_shard(prepared: PreparedVariants, images: ImageInputs) -> tuple[list[NDArray[np.float64]], list[str]]:
    """The energies of each image of a shard, and the images that can't be read."""
    reporter, energies = Reporter(None, StopToken()), list[NDArray[np.float64]]()
    for image in images():
        energies.append(prepared.layer_noise.measure_energies(image, prepared.variants, prepared.cache_first, reporter))
        reporter.step("measure", len(energies))
    return energies, images.skipped


def compute_sqnr(signal: NDArray[np.float64], noise: NDArray[np.float64]) -> float:
    """Compute the SQNR of several tensors, each with the same weight whatever its energy.

    Args:
        signal: Energy of each tensor in FP32.
        noise: Energy of each tensor's error, same shape.

    Returns:
        -10 log10 of the mean noise-to-signal ratio, dB; 200 if the noise is below float32 resolution.
    """
    share = float(np.mean(noise / np.maximum(signal, np.finfo(np.float64).tiny)))
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
