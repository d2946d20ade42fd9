"""Bias correction: what rounding shifts on average, taken back in each layer's bias."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from trtkit.calibration.calibration import Calibration
from trtkit.graph.analysis import GraphIndex
from trtkit.graph.qdq import INT8_MAX, QDQPlacement, compute_weight_scales, passes_int8
from trtkit.progress import Reporter
from trtkit.threads import parallel_map
from trtkit.tuning.noise import InputSource, LayerNoise

__all__ = ["RANGE_CANDIDATES", "ChosenRanges", "choose_ranges", "compute_bias_corrections", "group_tensors_by_scale"]

BIASED_OPERATORS = {"Conv": 0, "ConvTranspose": 1, "Gemm": -1}
"""Operators with a bias, and where their weight has the output channels (for Gemm it depends on `transB`)."""


def compute_bias_corrections(
    graph: onnx.ModelProto,
    placement: QDQPlacement,
    ranges: Mapping[str, tuple[float, float]],
    images: Iterable[NDArray[np.float32]],
    count: int,
    reporter: Reporter,
    *,
    threads: int | None = None,
) -> dict[str, tuple[float, ...]]:
    """What to add to the bias of each INT8 layer so that its mean output is that of FP32.

    Rounding is not even: most of what a SiLU gives lies between -0.28 and 0, where a scale made for its largest values
    has two or three steps, so that whole channels shift one way, and the weights behind them sum the shifts up. Each
    layer's mean error, channel by channel, is measured on FP32's own activations, so that it holds this layer's share
    and no other's (M. Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction", 2019,
    section 4.2, measured here on images as in its appendix).

    Args:
        graph: FP32 graph with unique node names.
        placement: Where INT8 goes.
        ranges: Lowest and highest value by tensor.
        images: Inputs (1, C, H, W).
        count: How many.
        reporter: Receives a step for each image.
        threads: Images that run beside each other; None takes one for each core.

    Returns:
        By node name, one number for each output channel; layers without a bias are left out.

    Raises:
        CancelledError: The caller cancelled.
    """
    import onnxruntime as ort

    whole, targets = _add_quantized_twins(graph, placement, ranges)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(whole.SerializeToString(), options, providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0].name
    outputs = list(targets.values())
    stage = "correct biases"
    reporter.step(stage, 0, count)
    sums: list[Any] = [0.0] * len(outputs)
    done = 0
    for found in parallel_map(lambda image: session.run(outputs, {source: image}), images, threads):
        sums = [total + np.asarray(mean, np.float64) for total, mean in zip(sums, found, strict=True)]
        done += 1
        reporter.step(stage, done, count)
    if not done:
        return {}
    return {name: tuple((-total / done).tolist()) for name, total in zip(targets, sums, strict=True)}


def _add_quantized_twins(
    graph: onnx.ModelProto, placement: QDQPlacement, ranges: Mapping[str, tuple[float, float]]
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The float graph with each INT8 layer computed once more beside itself, rounded, and their mean difference.

    Returns:
        The graph, and by layer the name of the output (channels,) that holds its mean error.
    """
    result = copy.deepcopy(graph)
    view = GraphIndex(result)
    quantized, layers = set(placement.tensors), set(placement.layers)
    nodes: list[onnx.NodeProto] = []
    constants = [numpy_helper.from_array(np.zeros((), np.int8), "trtkit_zero")]
    targets: dict[str, str] = {}

    def rounded(name: str, source: str) -> None:
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
            rounded(value.name, value.name)
    for node in result.graph.node:
        nodes.append(node)
        mine = [name for name in node.output if name in quantized]
        sources = {name: name for name in node.output}
        if mine and (node.op_type == "Add" or passes_int8(node)) and any(name in quantized for name in node.input):
            # Such a node reads INT8 where its output is INT8.
            twin = copy.deepcopy(node)
            twin.name = f"{node.name}/twin"
            twin.input[:] = [f"{name}/rounded" if name in quantized else name for name in node.input]
            twin.output[:] = [f"{name}/twin" for name in node.output]
            nodes.append(twin)
            sources = {name: f"{name}/twin" for name in node.output}
        for name in mine:
            rounded(name, sources[name])
        if node.name in layers and node.op_type in BIASED_OPERATORS:
            twin, weight = _make_quantized_twin(node, view)
            constants.append(weight)
            target = f"{node.name}/shift"
            axes = [0] if node.op_type == "Gemm" else [0, 2, 3]
            nodes.append(twin)
            nodes.append(
                helper.make_node("Sub", [twin.output[0], node.output[0]], [f"{node.name}/error"], f"{node.name}/sub")
            )
            nodes.append(_make_mean_node(f"{node.name}/error", target, axes, constants, result))
            targets[node.name] = target
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(constants)
    result.graph.output.extend(
        helper.make_tensor_value_info(target, TensorProto.FLOAT, None) for target in targets.values()
    )
    return result, targets


def _make_quantized_twin(node: onnx.NodeProto, view: GraphIndex) -> tuple[onnx.NodeProto, onnx.TensorProto]:
    """A copy of a layer that reads the rounded input, and its weight as INT8 holds it."""
    twin = copy.deepcopy(node)
    twin.name = f"{node.name}/twin"
    twin.input[0] = f"{node.input[0]}/rounded"
    twin.input[1] = f"{node.name}/weight"
    twin.output[0] = f"{node.output[0]}/twin"
    weight = view.array(node.input[1])
    axis = BIASED_OPERATORS[node.op_type]
    if node.op_type == "Gemm":
        axis = 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    shape = [1] * weight.ndim
    shape[axis] = -1
    scale = compute_weight_scales(weight, axis).reshape(shape)
    values = (np.clip(np.rint(weight / scale), -128, 127) * scale).astype(np.float32)
    return twin, numpy_helper.from_array(values, f"{node.name}/weight")


def _make_mean_node(
    source: str, target: str, axes: list[int], constants: list[onnx.TensorProto], proto: onnx.ModelProto
) -> onnx.NodeProto:
    version = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if version < 18:
        return helper.make_node("ReduceMean", [source], [target], target, axes=axes, keepdims=0)
    constants.append(numpy_helper.from_array(np.array(axes, np.int64), f"{target}/axes"))
    return helper.make_node("ReduceMean", [source, f"{target}/axes"], [target], target, keepdims=0)


# A better range for that one tensor: each scale by the algorithm that disturbs the model least there.


RANGE_CANDIDATES: tuple[tuple[str, float | None], ...] = (
    ("percentile", 99.999),
    ("minmax", None),
    ("percentile", 99.9999),
    ("percentile", 99.99),
    ("moving_average", None),
    ("mse", None),
)
"""Algorithms, with their percentile, that compete for each scale; the first is where nothing is to be gained."""

MIN_NOISE_SHARE = 0.003
"""A scale that makes less than this share of the noise is left as it is: nothing better could be told from chance."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChosenRanges:
    """Ranges put together from several algorithms.

    Attributes:
        calibration: With the ranges, and with bias corrections that fit them.
        algorithms: By the first tensor of each scale, the algorithm it follows.
    """

    calibration: Calibration
    algorithms: Mapping[str, str]


def choose_ranges(
    lab: LayerNoise,
    calibration: Calibration,
    images: InputSource,
    count: int,
    reporter: Reporter,
    *,
    candidates: Sequence[tuple[str, float | None]] = RANGE_CANDIDATES,
    threads: int | None = None,
) -> ChosenRanges:
    """Choose each scale's algorithm by what it does to the head's output when only its readers are INT8.

    Once biases are corrected, the noise of layers adds up: over yolo11n the noise of INT8 throughout was within 7 % of
    the sum of what each layer made alone. So the best range of each tensor can be found on its own.

    Args:
        lab: The graph.
        calibration: With histograms.
        images: Images to compare on, such as some of those that were calibrated on.
        count: How many.
        reporter: Receives steps.
        candidates: Algorithms that compete.
        threads: Images that run beside each other; None takes one for each core.

    Raises:
        CalibrationError: The calibration holds no histograms.
        CancelledError: The caller cancelled.
    """
    read = {
        _format_candidate(*candidate): calibration.with_algorithm(candidate[0], percentile=candidate[1])
        for candidate in candidates
    }
    corrections = {
        label: compute_bias_corrections(
            lab.graph, lab.full_int8, one.ranges, images(), count, reporter, threads=threads
        )
        for label, one in read.items()
    }
    groups = group_tensors_by_scale(lab)
    first = next(iter(read))
    reaches = {label: {group: _largest_magnitude(one, group) for group in groups} for label, one in read.items()}

    def noise(labels: Sequence[str], asked: Sequence[tuple[str, ...]], stage: str) -> dict[tuple[str, str], float]:
        variants = {}
        for group in asked:
            placement = lab.plan_only(groups[group])
            for label in labels:
                # Alone, fewer tensors may share the scale than do in the whole: all get the whole group's.
                reach = reaches[label][group]
                ranges = {**read[first].ranges, **dict.fromkeys(group, (-reach, reach))}
                own = {name: corrections[label][name] for name in groups[group] if name in corrections[label]}
                variants[f"{label} {group[0]}"] = lab.prepare_variant(placement, ranges, own)
        found = lab.measure_sqnr(variants, images, count, stage=stage, reporter=reporter, threads=threads, pin=0)
        return {(key.split(" ", 1)[0], key.split(" ", 1)[1]): 10 ** (-value / 10) for key, value in found.items()}

    shares = noise([first], list(groups), "measure each range")
    total = sum(shares.values())
    promising = [group for group in groups if shares[first, group[0]] > MIN_NOISE_SHARE * total]
    shares.update(noise([label for label in read if label != first], promising, "choose each range"))
    best = {
        group: min((label for label in read if (label, group[0]) in shares), key=lambda label: shares[label, group[0]])
        for group in groups
    }
    return ChosenRanges(
        calibration=_merge_ranges(lab, calibration, groups, best, reaches, corrections),
        algorithms={group[0]: label for group, label in best.items()},
    )


def group_tensors_by_scale(lab: LayerNoise) -> dict[tuple[str, ...], tuple[str, ...]]:
    """The tensors that share each scale, with the INT8 layers whose arithmetic it enters."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for layer in lab.full_int8.layers:
        for tensor in lab.plan_only([layer]).tensors:
            members = lab.full_int8.scale_groups.get(tensor)
            if members is not None and layer not in groups.setdefault(members, []):
                groups[members].append(layer)
    return {members: tuple(layers) for members, layers in groups.items()}


def _merge_ranges(
    lab: LayerNoise,
    calibration: Calibration,
    groups: Mapping[tuple[str, ...], Sequence[str]],
    best: Mapping[tuple[str, ...], str],
    reaches: Mapping[str, Mapping[tuple[str, ...], float]],
    corrections: Mapping[str, Mapping[str, tuple[float, ...]]],
) -> Calibration:
    """The calibration with each group's range by its algorithm, and each layer's correction by its input's."""
    exact = calibration.with_algorithm("minmax").ranges
    ranges = dict(exact)
    added: dict[str, tuple[float, ...]] = {}
    for group, label in best.items():
        reach = reaches[label][group]
        ranges.update({name: (max(exact[name][0], -reach), min(exact[name][1], reach)) for name in group})
        for layer in groups[group]:
            if lab.index.nodes[layer].input[0] in group and layer in corrections[label]:
                added[layer] = corrections[label][layer]
    return dataclasses.replace(
        calibration,
        ranges=ranges,
        algorithm="mixed",
        percentile=None,
        corrections=added,
        provenance=dataclasses.replace(
            calibration.provenance,
            settings={**calibration.provenance.settings, "algorithm": "mixed", "percentile": None},
        ),
    )


def _largest_magnitude(calibration: Calibration, group: Sequence[str]) -> float:
    return max(max(map(abs, calibration.ranges[name])) for name in group)


def _format_candidate(algorithm: str, percentile: float | None) -> str:
    return algorithm if percentile is None else f"{algorithm}-{percentile:g}"
