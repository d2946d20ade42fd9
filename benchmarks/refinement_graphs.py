"""Rewriting of graphs for `refinement.py`: channels multiplied or shifted before Q/DQ, zero points, errors apart.

What is changed before Q/DQ, the readers' weights and biases take back: in float the graph computes the same.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from trtkit.graph.analysis import DisjointSets, GraphIndex
from trtkit.graph.conv_weights import list_weight_qdq
from trtkit.graph.editing import remove_unused_constants
from trtkit.graph.qdq import INT8_MAX, QDQPlacement, compute_weight_scales, passes_int8, plan_qdq, quantize_weight

__all__ = [
    "ChannelRanges", "Ranges", "center_images", "clip_activations", "find_shiftable_groups", "leave_activations",
    "rescale_channels", "shift_activations", "shift_with_pads", "use_zero_points", "widen_activations",
]  # fmt: skip

Ranges = Mapping[str, tuple[float, float]]

ChannelRanges = Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Lowest and highest value of each channel of a tensor, by tensor."""

LARGEST_FACTOR = 16.0
"""Channels are amplified at most so much, by four bits: rare values of a quiet channel would be clipped."""


# Channels: a factor and a constant for each, which the readers' weights and biases take back.


def rescale_channels(
    graph: onnx.ModelProto,
    ranges: Ranges,
    channels: ChannelRanges,
    *,
    power: float,
    shift: bool = False,
    only: Sequence[str] | None = None,
) -> tuple[onnx.ModelProto, dict[str, tuple[float, float]], dict[str, tuple[float, ...]]]:
    """Multiply each channel of activations by a factor before Q/DQ, so that quiet channels use more of the 255 codes.

    A factor is (R / r) ** power, r the channel's largest magnitude and R the tensor's; the weights that read the
    channel are divided by it (G. Xiao et al., "SmoothQuant", 2023, for transformers, where the normalization before a
    layer takes the factors). Nothing takes them here because SiLU does not commute with factors: each costs a product
    after SiLU. It passes through concatenations, pools, splits and residual sums. With `shift` the middle of the
    channel's range is subtracted first, where only 1x1 convolutions read it and no sum does. `only` names the first
    tensors of the scales whose channels are multiplied.

    Returns:
        An equivalent graph, its ranges, and corrections of biases for the rounding of weights that meet a constant.
    """
    placement, index = plan_qdq(graph), GraphIndex(graph)
    classes = _ChannelClasses.find(graph, placement, channels)
    if only is not None:
        classes = classes.restrict({name for first in only for name in placement.scale_groups[first]})
    factors, middles, limits = classes.choose_factors(placement, ranges, channels, power=power, shift=shift)
    result = copy.deepcopy(graph)
    layers, quantized = set(placement.layers), set(placement.tensors)
    added: dict[str, list[onnx.NodeProto]] = {}
    new_ranges: dict[str, tuple[float, float]] = dict(ranges)
    constants: list[onnx.TensorProto] = []
    corrections: dict[str, tuple[float, ...]] = {}
    renamed: dict[str, str] = {}
    for name in placement.tensors:
        limit = limits[placement.scale_groups[name]]
        new_ranges[name] = (-limit, limit)
        if name not in classes.sources or (np.all(factors[name] == 1) and not np.any(middles[name])):
            continue
        at = name
        for operator, values, neutral in (("Sub", middles[name], 0.0), ("Mul", factors[name], 1.0)):
            if np.any(values != neutral):
                end = f"{at}/{operator.lower()}"
                constants.append(
                    numpy_helper.from_array(values.astype(np.float32).reshape(1, -1, 1, 1), f"{end}/constant")
                )
                added.setdefault(name, []).append(
                    helper.make_node(operator, [at, f"{end}/constant"], [end], f"{end}/node")
                )
                at = end
        renamed[name] = at
        new_ranges[at] = (-limit, limit)
    for node in result.graph.node:
        if node.name in layers:
            source = node.input[0]
            weight = index.array(node.input[1])
            if np.any(factors[source] != 1) or np.any(middles[source]):
                columns = _input_channels(node, index, weight)
                scaled = (weight / factors[source][columns][..., None, None]).astype(np.float32)
                node.input[1] = f"{node.name}/rescaled"
                constants.append(numpy_helper.from_array(scaled, node.input[1]))
                if np.any(middles[source]):
                    sums = (weight.sum((2, 3)) * middles[source][columns]).sum(1)
                    bias = index.array(node.input[2]) + sums
                    node.input[2] = f"{node.name}/shifted_bias"
                    constants.append(numpy_helper.from_array(bias.astype(np.float32), node.input[2]))
                    rounding = _round_weight(scaled) - scaled
                    moved = (rounding.sum((2, 3)) * (middles[source] * factors[source])[columns]).sum(1)
                    corrections[node.name] = tuple(moved.tolist())
        if node.name in layers or (
            (node.op_type == "Add" or passes_int8(node)) and any(name in quantized for name in node.output)
        ):
            for slot, source in enumerate(node.input):
                node.input[slot] = renamed.get(source, source)
    _insert_after(result, added)
    result.graph.initializer.extend(constants)
    remove_unused_constants(result.graph)
    return result, new_ranges, corrections


def shift_with_pads(
    graph: onnx.ModelProto, ranges: Ranges
) -> tuple[onnx.ModelProto, dict[str, tuple[float, float]], dict[str, tuple[float, ...]]]:
    """Subtract the middle of a range before Q/DQ wherever only convolutions read it; a Pad writes what was zero.

    Returns:
        As `rescale_channels`.
    """
    placement, index = plan_qdq(graph), GraphIndex(graph)
    layers, quantized = set(placement.layers), set(placement.tensors)
    result = copy.deepcopy(graph)
    nodes = {node.name: node for node in result.graph.node}
    added: dict[str, list[onnx.NodeProto]] = {}
    before: dict[str, list[onnx.NodeProto]] = {}
    constants: list[onnx.TensorProto] = []
    corrections: dict[str, tuple[float, ...]] = {}
    new_ranges: dict[str, tuple[float, float]] = dict(ranges)
    for group in dict.fromkeys(placement.scale_groups.values()):
        readers = [node for name in group for node in index.consumers[name]]
        if any(name not in index.producer for name in group) or not all(
            node.name in layers or (passes_int8(node) and node.output[0] in quantized) for node in readers
        ):
            continue
        sources = [name for name in group if not passes_int8(index.producer[name])]
        low, high = (extreme(ranges[name][side] for name in group) for side, extreme in ((0, min), (1, max)))
        limit = (high - low) / 2
        # Zero falls on a code, so that the Pad's value is exact.
        middle = round((low + high) / 2 / (limit / INT8_MAX)) * limit / INT8_MAX
        limit = max(high - middle, middle - low)
        constants.append(numpy_helper.from_array(np.float32(middle), f"{group[0]}/middle"))
        constants.append(numpy_helper.from_array(np.float32(-middle), f"{group[0]}/padding"))
        for name in sources:
            shifted = f"{name}/shifted"
            added[name] = [helper.make_node("Sub", [name, f"{group[0]}/middle"], [shifted], f"{shifted}/node")]
            new_ranges[shifted] = (-limit, limit)
        for name in group:
            new_ranges[name] = (-limit, limit)
            for reader in index.consumers[name]:
                node = nodes[reader.name]
                start = f"{name}/shifted" if name in sources else name
                for slot, source in enumerate(node.input):
                    if source == name:
                        node.input[slot] = start
                if node.name not in layers:
                    continue
                weight = index.array(reader.input[1]).astype(np.float64)
                sums = weight.sum((1, 2, 3)) * middle
                rounding = (_round_weight(weight.astype(np.float32)) - weight).sum((1, 2, 3)) * middle
                bias = index.array(reader.input[2]) + sums
                node.input[2] = f"{node.name}/shifted_bias"
                constants.append(numpy_helper.from_array(bias.astype(np.float32), node.input[2]))
                corrections[node.name] = tuple(rounding.tolist())
                pads = next((attribute for attribute in node.attribute if attribute.name == "pads"), None)
                if pads is not None and any(pads.ints):
                    top, left, bottom, right = pads.ints
                    end, sides = f"{node.name}/padded", f"{node.name}/pads"
                    constants.append(
                        numpy_helper.from_array(np.array([0, 0, top, left, 0, 0, bottom, right], np.int64), sides)
                    )
                    before[node.name] = [
                        helper.make_node("Pad", [start, sides, f"{group[0]}/padding"], [end], f"{end}/node")
                    ]
                    node.input[0] = end
                    new_ranges[end] = (-limit, limit)
                    del pads.ints[:]
                    pads.ints.extend([0, 0, 0, 0])
    _insert_after(result, added, before)
    result.graph.initializer.extend(constants)
    remove_unused_constants(result.graph)
    return result, new_ranges, corrections


def _insert_after(
    graph: onnx.ModelProto,
    added: Mapping[str, Sequence[onnx.NodeProto]],
    before: Mapping[str, Sequence[onnx.NodeProto]] | None = None,
) -> None:
    """Insert nodes after the producers of tensors, and before nodes."""
    nodes = []
    for node in graph.graph.node:
        nodes += (before or {}).get(node.name, [])
        nodes.append(node)
        nodes += [one for name in node.output for one in added.get(name, [])]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    del graph.graph.value_info[:]


def _round_weight(weight: NDArray[np.float32]) -> NDArray[np.float64]:
    """A convolution's weight as INT8 holds it."""
    scales = compute_weight_scales(weight, 0)
    result: NDArray[np.float64] = quantize_weight(weight, scales, 0).astype(np.float64) * scales.reshape(-1, 1, 1, 1)
    return result


def _input_channels(node: onnx.NodeProto, index: GraphIndex, weight: NDArray[np.float64]) -> NDArray[np.int64]:
    """The input channel of each weight, (output channels, input channels of a group)."""
    groups, (outputs, inputs) = index.group(node), weight.shape[:2]
    first = np.arange(outputs) // (outputs // groups) * inputs
    result: NDArray[np.int64] = first[:, None] + np.arange(inputs)
    return result


@dataclasses.dataclass(frozen=True)
class _ChannelClasses:
    """Channels of quantized tensors that must have one factor because INT8 passes from one to another.

    Attributes:
        ids: By tensor, the class of each channel.
        sources: Tensors that are computed in float: theirs are the products.
        fixed: Classes whose factor must be 1.
        summed: Classes of residual sums.
        padded: Classes that a convolution with a zero padding reads.
    """

    ids: Mapping[str, NDArray[np.int64]]
    sources: frozenset[str]
    fixed: frozenset[int]
    summed: frozenset[int]
    padded: frozenset[int]

    @classmethod
    def find(cls, graph: onnx.ModelProto, placement: QDQPlacement, channels: ChannelRanges) -> _ChannelClasses:
        index, sets = GraphIndex(graph), DisjointSets[tuple[str, int]]()
        quantized, layers = set(placement.tensors), set(placement.layers)
        count = {name: len(channels[name][0]) for name in placement.tensors}
        sources: set[str] = set()
        fixed: list[tuple[str, int]] = []
        summed: list[tuple[str, int]] = []
        padded: list[tuple[str, int]] = []

        def fix(name: str) -> None:
            fixed.extend((name, channel) for channel in range(count[name]))

        for name in placement.tensors:
            producer = index.producer.get(name)
            if producer is None:
                sources.add(name)
                fix(name)
                continue
            inputs = [source for source in index.data_inputs(producer) if source in quantized]
            if producer.op_type == "Add" and inputs:
                if len(inputs) == 2:
                    for channel in range(count[name]):
                        for source in inputs:
                            sets.union((name, channel), (source, channel))
                        summed.append((name, channel))
                else:
                    fix(name)
                    fix(inputs[0])
            elif passes_int8(producer) and inputs:
                moved = list(_follow(index, producer, name, count))
                for source, channel, target in moved:
                    sets.union((name, target), (source, channel))
                if len(moved) != count[name]:
                    for one in (name, *inputs):
                        fix(one)
            else:
                sources.add(name)
        outputs = {value.name for value in graph.graph.output}
        for name in placement.tensors:
            if name in outputs:
                fix(name)
            for reader in index.consumers[name]:
                if reader.name in layers:
                    if reader.op_type != "Conv" or len(reader.input) < 3:
                        fix(name)
                    elif any(any(a.ints) for a in reader.attribute if a.name == "pads"):
                        padded.extend((name, channel) for channel in range(count[name]))
                elif name not in sources and not (
                    (reader.op_type == "Add" or passes_int8(reader))
                    and any(output in quantized for output in reader.output)
                ):
                    fix(name)
        numbers: dict[tuple[str, int], int] = {}
        ids = {
            name: np.array([numbers.setdefault(sets.find((name, channel)), len(numbers)) for channel in range(total)])
            for name, total in count.items()
        }
        found = [frozenset(int(ids[name][channel]) for name, channel in some) for some in (fixed, summed, padded)]
        return cls(ids, frozenset(sources), *found)

    def restrict(self, tensors: set[str]) -> _ChannelClasses:
        """Fixes every class that has no channel in these tensors."""
        free = {int(number) for name in tensors for number in self.ids[name]}
        every = {int(number) for ids in self.ids.values() for number in ids}
        return dataclasses.replace(self, fixed=self.fixed | (every - free))

    def choose_factors(
        self, placement: QDQPlacement, ranges: Ranges, channels: ChannelRanges, *, power: float, shift: bool
    ) -> tuple[dict[str, Any], dict[str, Any], dict[tuple[str, ...], float]]:
        """By tensor the factor and constant of each channel, and the largest magnitude of each scale."""
        total = 1 + max(int(ids.max()) for ids in self.ids.values())
        groups = dict.fromkeys(placement.scale_groups.values())
        whole = {group: max(max(map(abs, ranges[name])) for name in group) for group in groups}
        low, high = np.full(total, np.inf), np.full(total, -np.inf)
        for name, ids in self.ids.items():
            limit = whole[placement.scale_groups[name]]
            np.minimum.at(low, ids, np.clip(channels[name][0], -limit, limit))
            np.maximum.at(high, ids, np.clip(channels[name][1], -limit, limit))
        middle = np.zeros(total)
        if shift:
            can = np.ones(total, bool)
            for classes in (self.fixed, self.summed, self.padded):
                can[list(classes)] = False
            middle[can] = (low + high)[can] / 2
        reach: dict[str, NDArray[np.float64]] = {}
        for name, ids in self.ids.items():
            limit = whole[placement.scale_groups[name]]
            least, most = (np.clip(side, -limit, limit) for side in channels[name])
            reach[name] = np.maximum(np.abs(least - middle[ids]), np.abs(most - middle[ids]))
        limits = {group: max(float(reach[name].max()) for name in group) or 1.0 for group in groups} if shift else whole
        # Channels of one class may lie in tensors of several scales: none may exceed its own.
        share = np.zeros(total)
        for name, ids in self.ids.items():
            np.maximum.at(share, ids, reach[name] / limits[placement.scale_groups[name]])
        factor = np.clip(1 / np.maximum(share, 1e-6), 1, LARGEST_FACTOR) ** power
        factor[list(self.fixed)] = 1
        return (
            {name: factor[ids].astype(np.float32) for name, ids in self.ids.items()},
            {name: middle[ids] for name, ids in self.ids.items()},
            limits,
        )


def _follow(
    index: GraphIndex, node: onnx.NodeProto, output: str, count: Mapping[str, int]
) -> Iterator[tuple[str, int, int]]:
    """Input, its channel and the output's channel, of a node that moves values; nothing for one that mixes channels."""
    if node.op_type in ("MaxPool", "Resize", "Identity"):
        yield from ((node.input[0], channel, channel) for channel in range(count[output]))
    elif node.op_type == "Concat" and index.axis(node) == 1 and all(name in count for name in node.input):
        places = ((name, channel) for name in node.input for channel in range(count[name]))
        yield from ((name, channel, target) for target, (name, channel) in enumerate(places))
    elif node.op_type == "Split" and index.axis(node) == 1 and node.input[0] in count:
        sizes = _split_sizes(index, node, count[node.input[0]])
        start = sum(sizes[: list(node.output).index(output)])
        yield from ((node.input[0], start + channel, channel) for channel in range(count[output]))


def _split_sizes(index: GraphIndex, node: onnx.NodeProto, total: int) -> list[int]:
    if len(node.input) > 1 and node.input[1]:
        return [int(size) for size in index.array(node.input[1])]
    return next(
        (list(a.ints) for a in node.attribute if a.name == "split"), [total // len(node.output)] * len(node.output)
    )


# The constant before 1x1 convolutions and zero points, on the finished Q/DQ graph.
def find_shiftable_groups(graph: onnx.ModelProto, placement: QDQPlacement) -> list[tuple[str, ...]]:
    """Scale groups that nothing but 1x1 convolutions reads, through nodes that move values."""
    index, layers, tensors = GraphIndex(graph), set(placement.layers), set(placement.tensors)

    def can_shift(node: onnx.NodeProto) -> bool:
        if node.name in layers:
            return node.op_type == "Conv" and len(node.input) > 2 and index.array(node.input[1]).shape[2:] == (1, 1)
        # Others read the tensor before its constant is subtracted, but not behind a node that moves shifted values.
        return passes_int8(node) and node.output[0] in tensors

    return [
        group
        for group in dict.fromkeys(placement.scale_groups.values())
        if all(can_shift(node) for name in group for node in index.consumers[name])
    ]


def shift_activations(
    int8: onnx.ModelProto,
    placement: QDQPlacement,
    groups: list[tuple[str, ...]],
    ranges: Mapping[str, tuple[float, float]],
) -> onnx.ModelProto:
    """Subtract the middle of a range before Q/DQ and add its product with the weights to the readers' biases."""
    result = copy.deepcopy(int8)
    constants = {tensor.name: tensor for tensor in result.graph.initializer}
    producers = {name: node for node in result.graph.node for name in node.output}
    middles: dict[str, float] = {}
    for group in groups:
        low, high = (extreme(ranges[name][side] for name in group) for side, extreme in ((0, min), (1, max)))
        for name in group:
            middles[name] = (low + high) / 2
            scale = np.array((high - low) / 2 / INT8_MAX, np.float32)
            constants[f"{name}_scale"].CopyFrom(numpy_helper.from_array(scale, f"{name}_scale"))
    nodes = []
    for node in result.graph.node:
        source = node.input[0] if node.input else ""
        if node.op_type == "QuantizeLinear" and source in middles and not passes_int8(producers[source]):
            middle = np.array(-middles[source], np.float32)
            result.graph.initializer.append(numpy_helper.from_array(middle, f"{source}_middle"))
            nodes.append(
                helper.make_node("Add", [source, f"{source}_middle"], [f"{source}_shifted"], f"{source}_Shift")
            )
            node.input[0] = f"{source}_shifted"
        if node.name in placement.layers and source.removesuffix("_dq") in middles:
            values, scales = (numpy_helper.to_array(constants[name]) for name in producers[node.input[1]].input[:2])
            sums = (values.astype(np.float32) * scales.reshape(-1, 1, 1, 1)).sum((1, 2, 3))
            bias = numpy_helper.to_array(constants[node.input[2]]) + middles[source.removesuffix("_dq")] * sums
            node.input[2] = f"{node.name}_shifted_bias"
            result.graph.initializer.append(numpy_helper.from_array(bias.astype(np.float32), node.input[2]))
        nodes.append(node)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    remove_unused_constants(result.graph)
    return result


def use_zero_points(
    int8: onnx.ModelProto, placement: QDQPlacement, ranges: Mapping[str, tuple[float, float]]
) -> onnx.ModelProto:
    """UINT8 with a zero point for every activation."""
    result = copy.deepcopy(int8)
    constants = {tensor.name: tensor for tensor in result.graph.initializer}
    zero_points = {}
    for name, group in placement.scale_groups.items():
        low = min(0.0, *(ranges[member][0] for member in group))
        scale = (max(ranges[member][1] for member in group) - low) / 255
        constants[f"{name}_scale"].CopyFrom(numpy_helper.from_array(np.array(scale, np.float32), f"{name}_scale"))
        zero_points[f"{name}_scale"] = f"{name}_zero_point"
        zero = np.array(round(-low / scale), np.uint8)
        result.graph.initializer.append(numpy_helper.from_array(zero, f"{name}_zero_point"))
    for node in result.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[1] in zero_points:
            node.input[2] = zero_points[node.input[1]]
    remove_unused_constants(result.graph)
    return result


# Errors of activations apart: bounds, which no TensorRT builds.


def widen_activations(int8: onnx.ModelProto, parts: int) -> onnx.ModelProto:
    """Activations in INT16: none is clipped, and a step is one of so many parts of INT8's."""

    def widen(node: onnx.NodeProto, graph: onnx.GraphProto, scale: float) -> list[onnx.NodeProto]:
        name = f"{node.input[1]}_int16"
        known = {tensor.name for tensor in graph.initializer}
        for one, value in ((name, np.float32(scale / parts)), ("zero_int16", np.int16(0))):
            if one not in known:
                graph.initializer.append(numpy_helper.from_array(np.array(value), one))
        node.input[1], node.input[2] = name, "zero_int16"
        # The standard's operators take INT16 from opset 21 on.
        node.domain = "com.microsoft"
        return [node]

    return _replace_pairs(int8, widen)


def clip_activations(int8: onnx.ModelProto) -> onnx.ModelProto:
    """Activations in float, clipped where INT8 clips them."""

    def clip(node: onnx.NodeProto, graph: onnx.GraphProto, scale: float) -> list[onnx.NodeProto]:
        if node.op_type == "DequantizeLinear":
            return [helper.make_node("Identity", node.input[:1], node.output, node.name)]
        bounds = [f"{node.output[0]}_{side}" for side in ("low", "high")]
        for name, step in zip(bounds, (-INT8_MAX - 1, INT8_MAX), strict=True):
            graph.initializer.append(numpy_helper.from_array(np.array(step * scale, np.float32), name))
        return [helper.make_node("Clip", [node.input[0], *bounds], node.output, node.name)]

    return _replace_pairs(int8, clip)


def leave_activations(int8: onnx.ModelProto, tensors: Collection[str] | None = None) -> onnx.ModelProto:
    """Weights in INT8 and activations in float.

    Args:
        int8: A Q/DQ graph.
        tensors: Names of the activations; None takes all.
    """

    def leave(node: onnx.NodeProto, graph: onnx.GraphProto, scale: float) -> list[onnx.NodeProto]:
        if tensors is not None and node.input[0].removesuffix("_q") not in tensors:
            return [node]
        return [helper.make_node("Identity", node.input[:1], node.output, node.name)]

    return _replace_pairs(int8, leave)


def center_images(int8: onnx.ModelProto) -> onnx.ModelProto:
    """Images minus 128 gray levels, which INT8 holds exactly; the first convolution's bias gives them back.

    What lies beyond the border is then gray instead of black.

    Args:
        int8: A Q/DQ graph with weights in INT8, whose first convolution alone reads the images.
    """
    result = copy.deepcopy(int8)
    graph, index = result.graph, GraphIndex(result)
    images = graph.input[0].name
    quantize = index.sole_consumer(images)
    assert quantize is not None
    dequantize = index.sole_consumer(quantize.output[0])
    assert dequantize is not None
    conv = index.sole_consumer(dequantize.output[0])
    assert conv is not None
    (dequantize_weight,) = list_weight_qdq(index, conv)
    weight = index.array(dequantize_weight.input[0]).astype(np.float64)
    weight *= index.array(dequantize_weight.input[1]).reshape(-1, 1, 1, 1)
    middle = 128 / 255
    bias = index.array(conv.input[2]) + middle * weight.sum(axis=(1, 2, 3))
    for name, value in (("middle", middle), ("step", 1 / 255), ("bias", bias)):
        graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), f"{images}_{name}"))
    conv.input[2] = f"{images}_bias"
    quantize.input[:2] = [f"{images}_centered", f"{images}_step"]
    dequantize.input[1] = f"{images}_step"
    graph.node.insert(0, helper.make_node("Sub", [images, f"{images}_middle"], [f"{images}_centered"], "center_images"))
    remove_unused_constants(graph)
    return result


def _replace_pairs(
    int8: onnx.ModelProto, replace: Callable[[onnx.NodeProto, onnx.GraphProto, float], list[onnx.NodeProto]]
) -> onnx.ModelProto:
    """Replace each node of the Q/DQ pairs of activations, given the graph and the pair's scale."""
    result = copy.deepcopy(int8)
    constants = {tensor.name: tensor for tensor in result.graph.initializer}
    nodes, quantized = [], set()
    for node in result.graph.node:
        is_quantizer = node.op_type == "QuantizeLinear" and node.input[0] not in constants
        if is_quantizer:
            quantized.add(node.output[0])
        if is_quantizer or (node.op_type == "DequantizeLinear" and node.input[0] in quantized):
            scale = float(numpy_helper.to_array(constants[node.input[1]]).item())
            nodes += replace(node, result.graph, scale)
        else:
            nodes.append(node)
    del result.graph.node[:], result.graph.value_info[:]
    result.graph.node.extend(nodes)
    if not any(one.domain == "com.microsoft" for one in result.opset_import):
        result.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    remove_unused_constants(result.graph)
    return result
