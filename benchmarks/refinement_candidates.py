"""Quantized graphs of one model that `refinement.py` compares: other ranges, other placements, other channels.

Every candidate is a Q/DQ graph in symmetric INT8, as TensorRT builds it, except for the bounds that are named so. What
goes into one is measured on calibration images alone: the ranges, each channel's extremes, each scale's noise.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from refinement_graphs import (
    ChannelRanges,
    Ranges,
    center_images,
    find_shiftable_groups,
    leave_activations,
    rescale_channels,
    shift_activations,
    shift_with_pads,
    use_zero_points,
)  # fmt: skip

from trtkit.graph.analysis import DisjointSets, GraphIndex, escape_pattern
from trtkit.graph.editing import get_opset, make_reduction
from trtkit.graph.ort_session import open_session
from trtkit.graph.qdq import (
    QDQPlacement,
    insert_qdq,
    passes_int8,
    plan_qdq,
)

__all__ = [
    "ScaleNoise", "collect_channel_ranges", "exclude_scales", "find_branches", "find_worst_before", "make_candidates",
    "make_early_candidates", "make_head_candidates", "measure_scale_noise", "separate_concat_scales",
]  # fmt: skip

POWER = 0.75
"""Power of the ratio of a tensor's and a channel's largest magnitudes in the channel's factor."""

WORST = (3, 6, 12)
"""Numbers of scales that are left out of INT8, the noisiest first."""

RESCALED = (12, 24)
"""Numbers of scales whose channels are multiplied, the noisiest first."""

EARLY = 5
"""Number of first blocks whose maps are left in float, one block at a time."""

BLOCKS = ("/model.[0-4]/*", "/model.16/*")
"""Patterns of the blocks whose maps are the noisiest in most models of YOLO11 and YOLO26."""

BUDGETS = (0.02, 0.05, 0.1)
"""Parts of all quantized values that are left out of INT8, the scales with the most noise per value first."""

ScaleNoise = Mapping[str, float]
"""By the first tensor of a scale: the noise at the outputs if nothing else is quantized."""


# What is measured.


def collect_channel_ranges(
    graph: onnx.ModelProto, tensors: Sequence[str], images: Iterable[NDArray[np.float32]]
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """The extremes of each channel of (1, C, H, W) tensors over images."""
    measured = copy.deepcopy(graph)
    for name in tensors:
        for kind in ("Min", "Max"):
            node, constants = make_reduction(f"Reduce{kind}", name, f"{name}/{kind}", [0, 2, 3], get_opset(measured))
            measured.graph.node.append(node)
            measured.graph.initializer.extend(constants)
            measured.graph.output.append(helper.make_tensor_value_info(f"{name}/{kind}", TensorProto.FLOAT, None))
    session = open_session(measured)
    outputs = [f"{name}/{kind}" for name in tensors for kind in ("Min", "Max")]
    low, high = {}, {}
    for image in images:
        values = session.run(outputs, {session.get_inputs()[0].name: image})
        for name, least, most in zip(tensors, values[::2], values[1::2], strict=True):
            low[name] = np.minimum(low.get(name, np.inf), least.ravel().astype(np.float64))
            high[name] = np.maximum(high.get(name, -np.inf), most.ravel().astype(np.float64))
    return {name: (low[name], high[name]) for name in tensors}


def measure_scale_noise(
    graph: onnx.ModelProto, ranges: Ranges, classes: int, images: Sequence[NDArray[np.float32]]
) -> dict[str, float]:
    """The noise of each scale by itself, all weights and other activations in float.

    Noise is the mean squared error of boxes, as a part of their size, plus that of class scores, each as a part of what
    full INT8 gives, over the cells where FP32 sees an object; of a classifier the scores' alone.
    """
    placement = plan_qdq(graph)
    exact = _Outputs.run(graph, images, classes)
    full = exact.compare(_Outputs.run(insert_qdq(graph, ranges), images, classes))
    noise = {}
    for group in dict.fromkeys(placement.scale_groups.values()):
        alone = _quantize_only(graph, ranges, placement, group)
        errors = exact.compare(_Outputs.run(alone, images, classes))
        noise[group[0]] = sum(error / reference for error, reference in zip(errors, full, strict=True) if reference)
    return noise


@dataclasses.dataclass(frozen=True)
class _Outputs:
    """What the cells of a head say, over images."""

    boxes: list[NDArray[np.float64]]
    scores: list[NDArray[np.float64]]

    @classmethod
    def run(cls, graph: onnx.ModelProto, images: Sequence[NDArray[np.float32]], classes: int) -> _Outputs:
        session = open_session(graph)
        boxes, scores = [], []
        for image in images:
            rows = session.run(None, {session.get_inputs()[0].name: image})[0][0].astype(np.float64)
            if rows.ndim == 1:
                rows = rows[:, None]
            start = 4 if len(rows) > classes else 0
            boxes.append(rows[:start])
            scores.append(rows[start : start + classes])
        return cls(boxes, scores)

    def compare(self, other: _Outputs, threshold: float = 0.05) -> tuple[float, float]:
        box_errors, score_errors = [], []
        for boxes, scores, others, other_scores in zip(self.boxes, self.scores, other.boxes, other.scores, strict=True):
            seen = scores.max(0) > threshold
            score_errors.append(((other_scores - scores)[:, seen] ** 2).sum(0))
            if len(boxes):
                size = np.sqrt(np.maximum(boxes[2] * boxes[3], 1.0))
                box_errors.append((((others - boxes) / size)[:, seen] ** 2).sum(0))
        return tuple(float(np.concatenate(errors).mean()) if errors else 0.0 for errors in (box_errors, score_errors))  # type: ignore[return-value]


def _quantize_only(
    graph: onnx.ModelProto, ranges: Ranges, placement: QDQPlacement, group: Sequence[str]
) -> onnx.ModelProto:
    """The float graph with the Q/DQ pairs of one scale."""
    int8 = insert_qdq(graph, ranges, placement=placement)
    result = copy.deepcopy(graph)
    pairs = [
        node
        for node in int8.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.name.startswith(tuple(group))
        and node.output[0] in {f"{name}{end}" for name in group for end in ("_q", "_dq")}
    ]  # fmt: skip
    readers = {node.name: node for node in int8.graph.node}
    for node in result.graph.node:
        for slot, source in enumerate(node.input):
            if source in group and readers[node.name].input[slot] == f"{source}_dq":
                node.input[slot] = f"{source}_dq"
    wanted = {name for pair in pairs for name in pair.input}
    result.graph.initializer.extend(tensor for tensor in int8.graph.initializer if tensor.name in wanted)
    nodes = [pair for pair in pairs if pair.input[0].removesuffix("_q") in {one.name for one in graph.graph.input}]
    for node in result.graph.node:
        nodes.append(node)
        nodes += [pair for pair in pairs if pair.input[0].removesuffix("_q") in node.output]
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result


# Placements.


def separate_concat_scales(graph: onnx.ModelProto, placement: QDQPlacement) -> QDQPlacement:
    """A concatenation's inputs keep scales of their own, and it requantizes them."""
    index, groups = GraphIndex(graph), DisjointSets[str]()
    quantized = set(placement.tensors)
    for name in placement.tensors:
        producer = index.producer.get(name)
        moves = producer is not None and producer.op_type != "Concat" and passes_int8(producer)
        if producer is not None and moves and producer.input[0] in quantized:
            groups.union(name, producer.input[0])
    members: dict[str, list[str]] = {}
    for name in placement.tensors:
        members.setdefault(groups.find(name), []).append(name)
    return dataclasses.replace(
        placement, scale_groups={name: tuple(members[groups.find(name)]) for name in placement.tensors}
    )


def exclude_scales(graph: onnx.ModelProto, firsts: Sequence[str], exclude: Sequence[str] = ()) -> QDQPlacement:
    """The default placement, where layers that read tensors of some scales stay in float, as additions of them do.

    Args:
        graph: The FP32 graph.
        firsts: The first tensor of each scale.
        exclude: Patterns of other layers that stay in float.
    """
    placement, index = plan_qdq(graph), GraphIndex(graph)
    layers, tensors = set(placement.layers), {name for first in firsts for name in placement.scale_groups[first]}
    kept = {node.name for name in tensors for node in index.consumers[name] if node.name in layers}
    result = plan_qdq(graph, [*exclude, *(escape_pattern(name) for name in kept)])
    # Nothing but an addition reads the others: it reads them as floats.
    dropped = {name for name in tensors if all(node.op_type == "Add" for node in index.consumers[name])}
    return dataclasses.replace(
        result,
        tensors=tuple(name for name in result.tensors if name not in dropped),
        scale_groups={name: group for name, group in result.scale_groups.items() if name not in dropped},
    )


# All of them.


def find_branches(graph: onnx.ModelProto) -> dict[str, list[str]]:
    """Layers of the head by branch, of Ultralytics' names, and the first and the last layers of the graph."""
    index, layers = GraphIndex(graph), plan_qdq(graph).layers
    head = f"/model.{max(int(name.split('/')[1].split('.')[1]) for name in layers)}/"
    branches: dict[str, list[str]] = {"first convolution": [layers[0]]}
    for label, part in (("box branch", "cv2"), ("class branch", "cv3"), ("third branch", "cv4")):
        branches[label] = [name for name in layers if name.startswith(head) and f"{part}." in name]
    branches["last convolutions"] = [name for name in index.output_layers() if name in layers]
    branches["head"] = [name for name in layers if name.startswith(head)]
    return {label: names for label, names in branches.items() if names}


def choose_within_budget(
    graph: onnx.ModelProto, placement: QDQPlacement, noise: ScaleNoise, budget: float
) -> list[str]:
    """The scales with the most noise per value that hold at most this part of all quantized values."""
    inferred = onnx.shape_inference.infer_shapes(graph).graph
    sizes = {
        value.name: int(np.prod([dim.dim_value for dim in value.type.tensor_type.shape.dim]))
        for value in (*inferred.value_info, *inferred.input)
    }
    costs = {group[0]: sum(sizes[name] for name in group) for group in placement.scale_groups.values()}
    left, chosen = budget * sum(costs.values()), []
    for first in sorted(costs, key=lambda first: -noise[first] / costs[first]):
        if costs[first] <= left:
            left -= costs[first]
            chosen.append(first)
    return chosen


def make_candidates(
    graph: onnx.ModelProto,
    calibrated: Mapping[str, Ranges],
    channels: ChannelRanges,
    noise: ScaleNoise,
    powers: Sequence[float],
) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Each candidate, by name; `calibrated` holds the ranges of other algorithms, the default's as "default"."""
    ranges, placement = calibrated["default"], plan_qdq(graph)
    for label, others in calibrated.items():
        if label != "default":
            yield f"ranges: {label}", insert_qdq(graph, others)
    rescaled, new_ranges, _ = rescale_channels(graph, calibrated["least noise"], channels, power=POWER)
    yield "ranges: least noise, channels scaled", insert_qdq(rescaled, new_ranges)
    branches = find_branches(graph)
    yield "concat inputs' own scales", insert_qdq(graph, ranges, placement=separate_concat_scales(graph, placement))
    for label, layers in branches.items():
        yield f"float: {label}", insert_qdq(graph, ranges, [escape_pattern(name) for name in layers])
    worst = sorted(noise, key=lambda first: -noise[first])
    excluded = {f"{count} worst": worst[:count] for count in WORST}
    for budget in BUDGETS:
        chosen = choose_within_budget(graph, placement, noise, budget)
        excluded[f"{100 * budget:g} % of values"] = chosen
    for label, firsts in excluded.items():
        yield f"float: {label}", insert_qdq(graph, ranges, placement=exclude_scales(graph, firsts))
    plain = insert_qdq(graph, ranges)
    yield "1x1 inputs shifted", shift_activations(plain, placement, find_shiftable_groups(graph, placement), ranges)
    rescalings = {"channels scaled": (POWER, False)}
    rescalings |= {f"channels scaled, power {power:g}": (power, False) for power in powers}
    rescalings |= {"1x1 inputs shifted by channel": (0.0, True), "channels scaled, 1x1 shifted": (POWER, True)}
    for label, (power, shift) in rescalings.items():
        rescaled, new_ranges, corrections = rescale_channels(graph, ranges, channels, power=power, shift=shift)
        yield label, insert_qdq(rescaled, new_ranges, corrections=corrections)
        if power == POWER:
            for part, firsts in excluded.items():
                if "%" in part:
                    yield f"{label}, float: {part}", _without_worst(rescaled, new_ranges, firsts, corrections)
    for count in RESCALED:
        rescaled, new_ranges, corrections = rescale_channels(graph, ranges, channels, power=POWER, only=worst[:count])
        yield f"channels scaled of {count} worst", insert_qdq(rescaled, new_ranges, corrections=corrections)
    padded, new_ranges, corrections = shift_with_pads(graph, ranges)
    yield "shifted with pads", insert_qdq(padded, new_ranges, corrections=corrections)
    yield "zero points (bound)", use_zero_points(plain, placement, ranges)


def make_head_candidates(
    graph: onnx.ModelProto, ranges: Ranges, noise: ScaleNoise
) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Refined ranges with the head, or parts of it, in float, and with the noisiest scales before it.

    Args:
        graph: The FP32 graph.
        ranges: From `calibrate(refine="ranges")`.
        noise: With these ranges.
    """
    branches = find_branches(graph)
    for label in ("box branch", "head"):
        if label in branches:
            patterns = [escape_pattern(name) for name in branches[label]]
            yield f"ranges: least noise, float: {label}", insert_qdq(graph, ranges, patterns)
    if "head" not in branches:
        return
    head = [escape_pattern(name) for name in branches["head"]]
    worst = find_worst_before(graph, branches["head"], noise)
    for count in WORST:
        placement = exclude_scales(graph, worst[:count], head)
        yield f"ranges: least noise, float: head and {count} worst", insert_qdq(graph, ranges, placement=placement)
    yield f"ranges: least noise, float: {', '.join(BLOCKS)} and head", insert_qdq(graph, ranges, [*BLOCKS, *head])


def find_worst_before(graph: onnx.ModelProto, head: Sequence[str], noise: ScaleNoise) -> list[str]:
    """First tensors of the scales that a head in float leaves, the noisiest first.

    Args:
        graph: The FP32 graph.
        head: Names of the head's layers.
        noise: Of each scale.
    """
    groups = plan_qdq(graph).scale_groups
    left = exclude_scales(graph, (), [escape_pattern(name) for name in head]).scale_groups
    return [first for first in sorted(noise, key=lambda first: -noise[first]) if left.keys() & set(groups[first])]


def make_early_candidates(int8: onnx.ModelProto) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Images and the first maps without rounding, the weights in INT8 as before.

    Args:
        int8: A Q/DQ graph with Ultralytics' names.
    """
    images = int8.graph.input[0].name
    yield "images in float", leave_activations(int8, [images])
    yield "images minus 128", center_images(int8)
    quantized = [node.input[0] for node in int8.graph.node if node.op_type == "QuantizeLinear"]
    blocks = [[name for name in quantized if name.startswith(f"/model.{place}/")] for place in range(EARLY)]
    for place, names in enumerate(blocks):
        yield f"maps of model.{place} in float", leave_activations(int8, names)
    first = [images, *(name for names in blocks[:3] for name in names)]
    yield "images and maps of model.0 to model.2 in float", leave_activations(int8, first)


def _without_worst(
    rescaled: onnx.ModelProto, ranges: Ranges, worst: Sequence[str], corrections: Mapping[str, Sequence[float]]
) -> onnx.ModelProto:
    """A rescaled graph without some scales of the original one."""
    groups = plan_qdq(rescaled).scale_groups
    ends = ("/sub/mul", "/mul", "/sub", "")
    names = [next(name for name in (f"{first}{end}" for end in ends) if name in groups) for first in worst]
    placement = exclude_scales(rescaled, names)
    return insert_qdq(rescaled, ranges, placement=placement, corrections=corrections)
