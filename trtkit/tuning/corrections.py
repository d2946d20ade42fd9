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
from trtkit.graph.analysis import View
from trtkit.graph.qdq import INT8_MAX, Placement, carries, weight_scales
from trtkit.progress import Work
from trtkit.threads import over
from trtkit.tuning.noise import Lab, Pictures

__all__ = ["CANDIDATES", "Chosen", "bias_corrections", "choose_ranges", "groups_of"]

CORRECTED = {"Conv": 0, "ConvTranspose": 1, "Gemm": -1}
"""Operators with a bias, and where their weight has the output channels (for Gemm it depends on `transB`)."""


def bias_corrections(
    graph: onnx.ModelProto,
    placement: Placement,
    ranges: Mapping[str, tuple[float, float]],
    pictures: Iterable[NDArray[np.float32]],
    count: int,
    work: Work,
    *,
    threads: int | None = None,
) -> dict[str, tuple[float, ...]]:
    """What to add to the bias of each INT8 layer so that its mean output is that of FP32.

    Rounding is not even: most of what a SiLU gives lies between -0.28 and 0, where a scale made for its largest values
    has two or three steps, so that whole channels shift one way, and the weights behind them sum the shifts up. Each
    layer's mean error, channel by channel, is measured on FP32's own activations, so that it holds this layer's share
    and no other's (M. Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction", 2019,
    section 4.2, measured here on pictures as in its appendix).

    Args:
        graph: FP32 graph with unique node names.
        placement: Where INT8 goes.
        ranges: Lowest and highest value by tensor.
        pictures: Inputs (1, C, H, W).
        count: How many.
        work: Receives a step for each picture.
        threads: Pictures that run beside each other; None takes one for each core.

    Returns:
        By node name, one number for each output channel; layers without a bias are left out.

    Raises:
        CancelledError: The caller cancelled.
    """
    import onnxruntime as ort

    whole, targets = _beside(graph, placement, ranges)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(whole.SerializeToString(), options, providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0].name
    outputs = list(targets.values())
    stage = "correct biases"
    work.step(stage, 0, count)
    sums: list[Any] = [0.0] * len(outputs)
    done = 0
    for found in over(lambda picture: session.run(outputs, {source: picture}), pictures, threads):
        sums = [total + np.asarray(mean, np.float64) for total, mean in zip(sums, found, strict=True)]
        done += 1
        work.step(stage, done, count)
    if not done:
        return {}
    return {name: tuple((-total / done).tolist()) for name, total in zip(targets, sums, strict=True)}


def _beside(
    graph: onnx.ModelProto, placement: Placement, ranges: Mapping[str, tuple[float, float]]
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The float graph with each INT8 layer computed once more beside itself, rounded, and their mean difference.

    Returns:
        The graph, and by layer the name of the output (channels,) that holds its mean error.
    """
    result = copy.deepcopy(graph)
    view = View(result)
    quantised, layers = set(placement.tensors), set(placement.layers)
    nodes: list[onnx.NodeProto] = []
    constants = [numpy_helper.from_array(np.zeros((), np.int8), "trtkit_zero")]
    targets: dict[str, str] = {}

    def rounded(name: str, source: str) -> None:
        largest = max(max(abs(value) for value in ranges[member]) for member in placement.scale_of[name])
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
        if value.name in quantised:
            rounded(value.name, value.name)
    for node in result.graph.node:
        nodes.append(node)
        mine = [name for name in node.output if name in quantised]
        sources = {name: name for name in node.output}
        if mine and (node.op_type == "Add" or carries(node)) and any(name in quantised for name in node.input):
            # Such a node reads INT8 where its output is INT8.
            twin = copy.deepcopy(node)
            twin.name = f"{node.name}/twin"
            twin.input[:] = [f"{name}/rounded" if name in quantised else name for name in node.input]
            twin.output[:] = [f"{name}/twin" for name in node.output]
            nodes.append(twin)
            sources = {name: f"{name}/twin" for name in node.output}
        for name in mine:
            rounded(name, sources[name])
        if node.name in layers and node.op_type in CORRECTED:
            twin, weight = _twin(node, view)
            constants.append(weight)
            target = f"{node.name}/shift"
            axes = [0] if node.op_type == "Gemm" else [0, 2, 3]
            nodes.append(twin)
            nodes.append(
                helper.make_node("Sub", [twin.output[0], node.output[0]], [f"{node.name}/error"], f"{node.name}/sub")
            )
            nodes.append(_mean(f"{node.name}/error", target, axes, constants, result))
            targets[node.name] = target
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(constants)
    result.graph.output.extend(
        helper.make_tensor_value_info(target, TensorProto.FLOAT, None) for target in targets.values()
    )
    return result, targets


def _twin(node: onnx.NodeProto, view: View) -> tuple[onnx.NodeProto, onnx.TensorProto]:
    """A copy of a layer that reads the rounded input, and its weight as INT8 holds it."""
    twin = copy.deepcopy(node)
    twin.name = f"{node.name}/twin"
    twin.input[0] = f"{node.input[0]}/rounded"
    twin.input[1] = f"{node.name}/weight"
    twin.output[0] = f"{node.output[0]}/twin"
    weight = view.array(node.input[1])
    axis = CORRECTED[node.op_type]
    if node.op_type == "Gemm":
        axis = 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    shape = [1] * weight.ndim
    shape[axis] = -1
    scale = weight_scales(weight, axis).reshape(shape)
    values = (np.clip(np.rint(weight / scale), -128, 127) * scale).astype(np.float32)
    return twin, numpy_helper.from_array(values, f"{node.name}/weight")


def _mean(
    source: str, target: str, axes: list[int], constants: list[onnx.TensorProto], proto: onnx.ModelProto
) -> onnx.NodeProto:
    version = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if version < 18:
        return helper.make_node("ReduceMean", [source], [target], target, axes=axes, keepdims=0)
    constants.append(numpy_helper.from_array(np.array(axes, np.int64), f"{target}/axes"))
    return helper.make_node("ReduceMean", [source, f"{target}/axes"], [target], target, keepdims=0)


# A better range for that one tensor: each scale by the algorithm that disturbs the model least there.


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
