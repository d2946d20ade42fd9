"""Corrections of INT8 without training: bias correction, per-tensor range selection, cross-layer equalization."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from trtkit.calibration.calibration import Calibration
from trtkit.calibration.sampling import ImageInputs, InputSource
from trtkit.executor import StopToken, Workers
from trtkit.graph.analysis import GraphIndex
from trtkit.graph.editing import get_opset, make_reduction
from trtkit.graph.qdq import INT8_MAX, QDQPlacement, compute_weight_scales, passes_int8
from trtkit.progress import Reporter, parallel_map
from trtkit.tuning.noise import LayerNoise

if TYPE_CHECKING:
    from distributed import Client

__all__ = [
    "RANGE_CANDIDATES",
    "ChosenRanges",
    "Equalization",
    "choose_ranges",
    "compute_bias_corrections",
    "equalize",
    "group_tensors_by_scale",
]

BIASED_OPERATORS = {"Conv": 0, "ConvTranspose": 1, "Gemm": -1}
"""Operators with a bias, with the axis of their weight's output channels (-1: depends on `transB`)."""


def compute_bias_corrections(
    graph: onnx.ModelProto,
    placement: QDQPlacement,
    ranges: Mapping[str, tuple[float, float]],
    images: Iterable[NDArray[np.float32]] | ImageInputs,
    count: int,
    reporter: Reporter,
    *,
    threads: int | None = None,
    executor: Client | None = None,
) -> dict[str, tuple[float, ...]]:
    """Compute what to add to the bias of each INT8 layer so that its mean output equals FP32's.

    Rounding errors have a nonzero mean: most outputs of SiLU lie between -0.28 and 0, where a scale set by the largest
    values has two or three quantization steps, so that whole channels shift. Each layer's mean error per channel is
    measured on FP32 inputs, so that it holds no other layer's error (M. Nagel et al., "Data-Free Quantization through
    Weight Equalization and Bias Correction", 2019, section 4.2, with images as in its appendix).

    Args:
        graph: FP32 graph with unique node names.
        placement: The Q/DQ placement.
        ranges: Minimum and maximum by tensor.
        images: Inputs (1, C, H, W), float32 in [0, 1].
        count: Number of inputs.
        reporter: Progress, one step per image, and cancellation.
        threads: Images processed in parallel; None uses one per core.
        executor: Its workers run the images, which are `ImageInputs` then; None runs them here.

    Returns:
        One value per output channel, by node name; layers without a bias are left out.

    Raises:
        CancelledError: The caller cancelled.
    """
    graph_with_twins, targets = _add_quantized_twins(graph, placement, ranges)
    outputs = list(targets.values())
    stage = "correct biases"
    sums: list[Any] = [0.0] * len(outputs)
    done = 0
    for means in _run_twins(graph_with_twins, outputs, images, count, stage, reporter, threads, executor):
        # In the order of the images: the order of a sum decides its last bits.
        sums = [total + np.asarray(mean, np.float64) for total, mean in zip(sums, means, strict=True)]
        done += 1
    if not done:
        return {}
    return {name: tuple((-total / done).tolist()) for name, total in zip(targets, sums, strict=True)}


def _run_twins(
    graph: onnx.ModelProto,
    outputs: list[str],
    images: Iterable[NDArray[np.float32]] | ImageInputs,
    count: int,
    stage: str,
    reporter: Reporter,
    threads: int | None,
    executor: Client | None,
) -> Iterator[list[NDArray[np.float32]]]:
    """Yield the outputs of each image, here or on workers."""
    if executor is None:
        twins = _Twins.prepare(graph, outputs)
        reporter.step(stage, 0, count)
        inputs = images() if isinstance(images, ImageInputs) else images
        for done, means in enumerate(parallel_map(twins.run, inputs, threads), 1):
            reporter.step(stage, done, count)
            yield means
        return
    assert isinstance(images, ImageInputs)
    workers = Workers(executor, reporter)
    shards = images.split(workers.slots)
    results = workers.map(
        _run_shard,
        shards,
        stage=stage,
        prepare=_Twins.prepare,
        common=(graph, outputs),
        sizes=[len(shard.paths) for shard in shards],
    )
    with contextlib.closing(results):
        for rows in results:
            yield from rows


@dataclasses.dataclass(frozen=True)
class _Twins:
    """A session of a graph with quantized twins."""

    session: Any
    outputs: list[str]

    @classmethod
    def prepare(cls, graph: onnx.ModelProto, outputs: list[str]) -> _Twins:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        return cls(
            ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"]), outputs
        )

    def run(self, image: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        outputs: list[NDArray[np.float32]] = self.session.run(self.outputs, {self.session.get_inputs()[0].name: image})
        return outputs


def _run_shard(twins: _Twins, images: ImageInputs) -> list[list[NDArray[np.float32]]]:
    """The outputs of each image of a shard, in a worker."""
    reporter, rows = Reporter(None, StopToken()), list[list[NDArray[np.float32]]]()
    for image in images():
        rows.append(twins.run(image))
        reporter.step("correct biases", len(rows))
    return rows


def _add_quantized_twins(
    graph: onnx.ModelProto, placement: QDQPlacement, ranges: Mapping[str, tuple[float, float]]
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Add an INT8 copy of each INT8 layer to the float graph, and the mean difference of the two.

    Returns:
        The graph, and by layer the name of the output (channels,) with its mean error.
    """
    result = copy.deepcopy(graph)
    index = GraphIndex(result)
    quantized, layers = set(placement.tensors), set(placement.layers)
    nodes: list[onnx.NodeProto] = []
    constants = [numpy_helper.from_array(np.zeros((), np.int8), "trtkit_zero")]
    targets: dict[str, str] = {}

    def add_qdq(name: str, source: str) -> None:
        largest = max(max(abs(value) for value in ranges[member]) for member in placement.scale_groups[name])
        scale = np.array(largest / INT8_MAX if largest > 0 else 1.0, np.float32)
        constants.append(numpy_helper.from_array(scale, f"{name}/scale"))
        for operator, start, end in (
            ("QuantizeLinear", source, f"{name}/int8"),
            ("DequantizeLinear", f"{name}/int8", f"{name}/rounded"),
        ):
            nodes.append(
                helper.make_node(operator, [start, f"{name}/scale", "trtkit_zero"], [end], f"{end}/{operator}")
            )

    for value in result.graph.input:
        if value.name in quantized:
            add_qdq(value.name, value.name)
    for node in result.graph.node:
        nodes.append(node)
        quantized_outputs = [name for name in node.output if name in quantized]
        sources = {name: name for name in node.output}
        if (
            quantized_outputs
            and (node.op_type == "Add" or passes_int8(node))
            and any(name in quantized for name in node.input)
        ):
            # Such a node reads INT8 if its output is INT8.
            twin = copy.deepcopy(node)
            twin.name = f"{node.name}/twin"
            twin.input[:] = [f"{name}/rounded" if name in quantized else name for name in node.input]
            twin.output[:] = [f"{name}/twin" for name in node.output]
            nodes.append(twin)
            sources = {name: f"{name}/twin" for name in node.output}
        for name in quantized_outputs:
            add_qdq(name, sources[name])
        if node.name in layers and node.op_type in BIASED_OPERATORS:
            twin, weight = _make_quantized_twin(node, index)
            constants.append(weight)
            target = f"{node.name}/shift"
            axes = [0] if node.op_type == "Gemm" else [0, 2, 3]
            nodes.append(twin)
            nodes.append(
                helper.make_node("Sub", [twin.output[0], node.output[0]], [f"{node.name}/error"], f"{node.name}/sub")
            )
            mean, mean_constants = make_reduction("ReduceMean", f"{node.name}/error", target, axes, get_opset(result))
            nodes.append(mean)
            constants += mean_constants
            targets[node.name] = target
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(constants)
    result.graph.output.extend(
        helper.make_tensor_value_info(target, TensorProto.FLOAT, None) for target in targets.values()
    )
    return result, targets


def _make_quantized_twin(node: onnx.NodeProto, index: GraphIndex) -> tuple[onnx.NodeProto, onnx.TensorProto]:
    """A copy of a layer that reads the quantized input, and its quantized weight."""
    twin = copy.deepcopy(node)
    twin.name = f"{node.name}/twin"
    twin.input[0] = f"{node.input[0]}/rounded"
    twin.input[1] = f"{node.name}/weight"
    twin.output[0] = f"{node.output[0]}/twin"
    weight = index.array(node.input[1])
    axis = BIASED_OPERATORS[node.op_type]
    if node.op_type == "Gemm":
        axis = 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    shape = [1] * weight.ndim
    shape[axis] = -1
    scale = compute_weight_scales(weight, axis).reshape(shape)
    values = (np.clip(np.rint(weight / scale), -128, 127) * scale).astype(np.float32)
    return twin, numpy_helper.from_array(values, f"{node.name}/weight")


# Per-tensor range selection: for each scale, the calibration algorithm with the best SQNR.


RANGE_CANDIDATES: tuple[tuple[str, float | None], ...] = (
    ("percentile", 99.999),
    ("minmax", None),
    ("percentile", 99.9999),
    ("percentile", 99.99),
    ("moving_average", None),
    ("mse", None),
)
"""Calibration algorithms with their percentile; the first is used where no other one is tried."""

MIN_NOISE_SHARE = 0.003
"""Scales with a smaller share of the total noise keep the first candidate: differences there are not significant."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChosenRanges:
    """Ranges selected per tensor from several calibration algorithms.

    Attributes:
        calibration: The selected ranges, with matching bias corrections.
        algorithms: The selected algorithm, by the first tensor of each scale.
    """

    calibration: Calibration
    algorithms: Mapping[str, str]


def choose_ranges(
    layer_noise: LayerNoise,
    calibration: Calibration,
    images: InputSource,
    count: int,
    reporter: Reporter,
    *,
    candidates: Sequence[tuple[str, float | None]] = RANGE_CANDIDATES,
    threads: int | None = None,
) -> ChosenRanges:
    """Choose, for each scale, the calibration algorithm with the best SQNR if only its layers run in INT8.

    With corrected biases the noise of layers is nearly additive, so that each tensor's range can be chosen on its own.

    Args:
        layer_noise: The graph.
        calibration: A calibration with histograms.
        images: The probe images.
        count: Number of probe images.
        reporter: Progress and cancellation.
        candidates: Calibration algorithms with their percentile.
        threads: Images processed in parallel; None uses one per core.

    Raises:
        CalibrationError: The calibration holds no histograms.
        CancelledError: The caller cancelled.
    """
    calibrations = {
        _format_candidate(*candidate): calibration.with_algorithm(candidate[0], percentile=candidate[1])
        for candidate in candidates
    }
    corrections = {
        label: compute_bias_corrections(
            layer_noise.graph,
            layer_noise.full_int8,
            one.ranges,
            images if layer_noise.executor is not None else images(),  # type: ignore[arg-type]
            count,
            reporter,
            threads=threads,
            executor=layer_noise.executor,
        )
        for label, one in calibrations.items()
    }
    groups = group_tensors_by_scale(layer_noise)
    first = next(iter(calibrations))
    magnitudes = {
        label: {group: _largest_magnitude(one, group) for group in groups} for label, one in calibrations.items()
    }

    def measure_noise(
        labels: Sequence[str], tried: Sequence[tuple[str, ...]], stage: str
    ) -> dict[tuple[str, str], float]:
        variants = {}
        for group in tried:
            placement = layer_noise.plan_only(groups[group])
            for label in labels:
                # In this placement fewer tensors may share the scale than in full INT8: use the full group's scale.
                magnitude = magnitudes[label][group]
                ranges = {**calibrations[first].ranges, **dict.fromkeys(group, (-magnitude, magnitude))}
                own = {name: corrections[label][name] for name in groups[group] if name in corrections[label]}
                variants[f"{label} {group[0]}"] = layer_noise.prepare_variant(placement, ranges, own)
        sqnr = layer_noise.measure_sqnr(variants, images, count, stage=stage, reporter=reporter, threads=threads)
        return {(key.split(" ", 1)[0], key.split(" ", 1)[1]): 10 ** (-value / 10) for key, value in sqnr.items()}

    shares = measure_noise([first], list(groups), "measure the noise of each scale")
    total = sum(shares.values())
    promising = [group for group in groups if shares[first, group[0]] > MIN_NOISE_SHARE * total]
    shares.update(measure_noise([label for label in calibrations if label != first], promising, "choose ranges"))
    best = {
        group: min(
            (label for label in calibrations if (label, group[0]) in shares), key=lambda label: shares[label, group[0]]
        )
        for group in groups
    }
    return ChosenRanges(
        calibration=_merge_ranges(layer_noise, calibration, groups, best, magnitudes, corrections),
        algorithms={group[0]: label for group, label in best.items()},
    )


def group_tensors_by_scale(layer_noise: LayerNoise) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Group tensors that share a scale, each group with the INT8 layers that use the scale."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for layer in layer_noise.full_int8.layers:
        for tensor in layer_noise.plan_only([layer]).tensors:
            members = layer_noise.full_int8.scale_groups.get(tensor)
            if members is not None and layer not in groups.setdefault(members, []):
                groups[members].append(layer)
    return {members: tuple(layers) for members, layers in groups.items()}


def _merge_ranges(
    layer_noise: LayerNoise,
    calibration: Calibration,
    groups: Mapping[tuple[str, ...], Sequence[str]],
    best: Mapping[tuple[str, ...], str],
    magnitudes: Mapping[str, Mapping[tuple[str, ...], float]],
    corrections: Mapping[str, Mapping[str, tuple[float, ...]]],
) -> Calibration:
    """The calibration with each group's range by its algorithm, and each layer's bias correction to match."""
    exact = calibration.with_algorithm("minmax").ranges
    ranges = dict(exact)
    biases: dict[str, tuple[float, ...]] = {}
    for group, label in best.items():
        magnitude = magnitudes[label][group]
        ranges.update({name: (max(exact[name][0], -magnitude), min(exact[name][1], magnitude)) for name in group})
        for layer in groups[group]:
            if layer_noise.index.nodes[layer].input[0] in group and layer in corrections[label]:
                biases[layer] = corrections[label][layer]
    return dataclasses.replace(
        calibration,
        ranges=ranges,
        algorithm="mixed",
        percentile=None,
        corrections=biases,
        provenance=dataclasses.replace(
            calibration.provenance,
            settings={**calibration.provenance.settings, "algorithm": "mixed", "percentile": None},
        ),
    )


def _largest_magnitude(calibration: Calibration, group: Sequence[str]) -> float:
    return max(max(map(abs, calibration.ranges[name])) for name in group)


def _format_candidate(algorithm: str, percentile: float | None) -> str:
    return algorithm if percentile is None else f"{algorithm}-{percentile:g}"


# Cross-layer equalization: equal channel ranges in the weights of consecutive layers.
#
# Dividing a layer's output channels by a factor and multiplying the next layer's input channels by it leaves the result
# unchanged if every operator between them commutes with positive factors: ReLU, LeakyReLU, PReLU, pooling and data
# movement do. SiLU, the activation of YOLOv8 and YOLO11, does not (SiLU(x / s) is not SiLU(x) / s), nor do Sigmoid and
# Clip, so that most layers of these models can't be equalized.
#
# Source: M. Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction", 2019, section 4.1.

COMMUTING = ("Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity", "Dropout")
"""Operators with f(s x) = s f(x) per channel for every positive s."""

ITERATIONS = 8
"""Passes over all pairs; each pair changes the ranges of adjacent pairs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Equalization:
    """The result of cross-layer equalization.

    Attributes:
        graph: The graph with equalized weights, equivalent in FP32; the given graph if it has no pair.
        pairs: Names of the equalized layers, first and second.
        skipped: Number of layers that can't be equalized, by reason.
    """

    graph: onnx.ModelProto
    pairs: tuple[tuple[str, str], ...]
    skipped: Mapping[str, int]

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.skipped.items())
        return f"cross-layer equalization: {len(self.pairs)} layer pairs; skipped layers: {reasons or 'none'}"


def equalize(graph: onnx.ModelProto, iterations: int = ITERATIONS) -> Equalization:
    """Equalize every pair of consecutive convolutions that allows it.

    Args:
        graph: FP32 graph with unique node names; it is not changed.
        iterations: Passes over all pairs.
    """
    result = copy.deepcopy(graph)
    index = GraphIndex(result)
    outputs = {value.name for value in result.graph.output}
    pairs: list[tuple[onnx.NodeProto, onnx.NodeProto]] = []
    skipped: Counter[str] = Counter()
    for node in index.weighted:
        second = _find_next_layer(node, index, outputs)
        if isinstance(second, str):
            skipped[second] += 1
        else:
            pairs.append((node, second))
    weights: dict[str, NDArray[np.float32]] = {}
    for node in {part.name: part for pair in pairs for part in pair}.values():
        for name in node.input[1:]:
            if name:
                weights[name] = index.array(name).astype(np.float32).copy()
    for _ in range(iterations if pairs else 0):
        for first, second in pairs:
            _balance_channels(first, second, weights)
    for tensor in result.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    return Equalization(
        graph=result if pairs else graph,
        pairs=tuple((first.name, second.name) for first, second in pairs),
        skipped=dict(skipped.most_common()),
    )


def _find_next_layer(node: onnx.NodeProto, index: GraphIndex, outputs: set[str]) -> onnx.NodeProto | str:
    """The only layer that reads this one's output through commuting operators, or the reason why there is none."""
    if node.op_type != "Conv":
        return "not a convolution"
    if any(not _has_single_reader(name, node, index) for name in node.input[1:] if name):
        return "shared weights"
    at = node
    while True:
        name = at.output[0]
        readers = index.consumers[name]
        if name in outputs or len(readers) != 1:
            return "several readers or a graph output"
        at = readers[0]
        if at.op_type == "Conv" and at.input[0] == name:
            if index.group(at) != 1 or index.weight(at) is None or not _has_single_reader(at.input[1], at, index):
                return "feeds a grouped convolution"
            return at
        if at.op_type not in COMMUTING:
            return f"feeds {at.op_type}"


def _has_single_reader(name: str, node: onnx.NodeProto, index: GraphIndex) -> bool:
    stored = any(tensor.name == name for tensor in index.graph.initializer)
    return stored and [reader.name for reader in index.consumers[name]] == [node.name]


def _balance_channels(first: onnx.NodeProto, second: onnx.NodeProto, weights: dict[str, NDArray[np.float32]]) -> None:
    """Scale both layers' channels to the geometric mean of their ranges."""
    one, two = weights[first.input[1]], weights[second.input[1]]
    output_ranges = np.abs(one).reshape(len(one), -1).max(axis=1)
    input_ranges = np.abs(two).max(axis=(0, *range(2, two.ndim)))
    usable = (output_ranges > 0) & (input_ranges > 0)
    factor = np.where(usable, np.sqrt(output_ranges / np.where(usable, input_ranges, 1.0)), 1.0).astype(np.float32)
    one /= factor.reshape(-1, *[1] * (one.ndim - 1))
    if len(first.input) > 2 and first.input[2]:
        weights[first.input[2]] /= factor
    two *= factor.reshape(1, -1, *[1] * (two.ndim - 2))
