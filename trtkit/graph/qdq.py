"""QDQ placement: which tensors of an FP32 graph are INT8, which share a scale, and the Q/DQ pairs themselves.

The placement follows what TensorRT's explicit quantization accepts and fuses: per-tensor pairs on the inputs of
weighted layers, per-channel scales on their weights, nothing between a layer and its activation, no quantized bias. A
tensor is quantized once, where it is computed, and every node that can reads it as INT8: concatenation, pooling,
upsampling and split then move bytes, which requires one scale for their inputs and outputs.

Weights are stored as INT8 behind a DequantizeLinear, a quarter of their float size. `expand_int8_weights` rewrites such
a graph for a TensorRT that reads float weights behind Q/DQ pairs only.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from trtkit.errors import CalibrationError
from trtkit.graph.analysis import WEIGHTED_OPS, DisjointSets, GraphIndex
from trtkit.graph.conv_weights import set_kernel_shapes
from trtkit.graph.editing import remove_unused_constants
from trtkit.graph.fp16 import match_node_names
from trtkit.graph.onnx_file import update_metadata

__all__ = [
    "QDQPlacement",
    "compute_weight_scales",
    "dequantize_constant",
    "expand_int8_weights",
    "insert_qdq",
    "plan_qdq",
    "quantizable_tensors",
    "quantize_weight",
]

INT8_PASSTHROUGH_OPS = ("Concat", "MaxPool", "Split", "Slice", "Reshape", "Transpose", "Resize", "Identity")
"""Operators that give the same result on integers as on floats, so that INT8 passes through."""

WEIGHT_ONLY_REASONS = ("output", "attention")
"""Why `GraphIndex.layers_excluded_by_default` keeps the activations of layers in float, but not the stored weights."""

WEIGHT_ONLY_SHARE = 0.025
"""Share of a model's weights from which those of the layers excluded for one of these reasons are stored as INT8. As
floats they would take that much of the FP32 file. The attention of YOLO12 holds 3 to 5 %, of other YOLOs 1 %."""

INT8_MAX = 127.0
"""Symmetric range without -128, so that a scale serves both signs and TensorRT's kernels agree with ONNX Runtime's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QDQPlacement:
    """Where INT8 goes in one graph.

    Attributes:
        layers: Names of the weighted nodes that run in INT8.
        tensors: Tensors that get a Q/DQ pair, in graph order.
        scale_groups: For each of `tensors`, the tensors that share its scale, itself included.
        excluded: Weighted nodes excluded from INT8, with the reason ("dfl", "attention", "depthwise", "keep", ...).
    """

    layers: tuple[str, ...]
    tensors: tuple[str, ...]
    scale_groups: Mapping[str, tuple[str, ...]]
    excluded: Mapping[str, str]


def plan_qdq(proto: onnx.ModelProto, keep: Iterable[str] = (), *, protect: bool = True) -> QDQPlacement:
    """Decide which layers and tensors of a graph run in INT8.

    Args:
        proto: FP32 graph with unique node names.
        keep: fnmatch patterns of node names that are excluded from INT8.
        protect: Also exclude `GraphIndex.layers_excluded_by_default` (DFL, attention, layers that would not build) and
            depthwise layers in front of excluded layers.

    Raises:
        RecipeError: A pattern matches no node.
    """
    index = GraphIndex(proto)
    matched = match_node_names(index.nodes, keep)
    keep_names = [node.name for node in index.weighted if node.name in matched]
    excluded = index.layers_excluded_by_default(keep_names) if protect else {}
    attention = {name for name, reason in excluded.items() if reason == "attention"}
    excluded.update(dict.fromkeys(keep_names, "keep"))
    layers = [node for node in index.weighted if node.name not in excluded]

    quantized: set[str] = set()
    groups = DisjointSets[str]()
    pending = [node.input[0] for node in layers]
    while pending:
        name = pending.pop()
        if name in quantized or name in index.constants:
            continue
        quantized.add(name)
        producer = index.producer.get(name)
        if producer is None or producer.name in keep_names:
            continue
        if producer.op_type == "Add" and len(index.data_inputs(producer)) == 2:
            # Both inputs of a residual sum are read as INT8, so that the sum is one kernel from bytes to bytes. The
            # output of attention stays float: its last layer's own kernel adds it.
            pending.extend(
                source for source in index.data_inputs(producer) if not _is_output_of(index, source, attention)
            )
        elif passes_int8(producer):
            # Only the first input holds values, except of Concat; shapes, sizes and bounds may be computed, too.
            for source in index.data_inputs(producer) if producer.op_type == "Concat" else producer.input[:1]:
                groups.union(name, source)
                pending.append(source)
    order = [value.name for value in index.graph.input] + [name for node in index.graph.node for name in node.output]
    tensors = tuple(name for name in order if name in quantized)
    members: dict[str, list[str]] = {}
    for name in tensors:
        members.setdefault(groups.find(name), []).append(name)
    return QDQPlacement(
        layers=tuple(node.name for node in layers),
        tensors=tensors,
        scale_groups={name: tuple(members[groups.find(name)]) for name in tensors},
        excluded=excluded,
    )


def quantizable_tensors(proto: onnx.ModelProto) -> tuple[str, ...]:
    """Every tensor that any placement quantizes: the tensors that calibration measures.

    Args:
        proto: FP32 graph with unique node names.
    """
    return plan_qdq(proto, protect=False).tensors


def passes_int8(node: onnx.NodeProto) -> bool:
    """Whether INT8 passes through a node unchanged; of the Resize modes only nearest does.

    Args:
        node: A node of an FP32 graph.
    """
    if node.op_type == "Resize":
        return any(a.name == "mode" and a.s == b"nearest" for a in node.attribute) or not any(
            a.name == "mode" for a in node.attribute
        )
    return node.op_type in INT8_PASSTHROUGH_OPS


def insert_qdq(
    proto: onnx.ModelProto,
    ranges: Mapping[str, tuple[float, float]],
    keep: Iterable[str] = (),
    *,
    protect: bool = True,
    placement: QDQPlacement | None = None,
    corrections: Mapping[str, Sequence[float]] | None = None,
) -> onnx.ModelProto:
    """Insert Q/DQ pairs into a graph; the caller's graph is not modified.

    The arithmetic is `x ~ s * clip(round(x / s), -128, 127)` with `s = max(|low|, |high|) / 127` for activations and
    one such scale for each output channel of a weight (Wu et al., 2020, "Integer Quantization for Deep Learning
    Inference"). Weights are stored as INT8, also those of a large output layer that computes in float.

    Args:
        proto: FP32 graph with unique node names.
        ranges: Lowest and highest value by tensor name, from a calibration.
        keep: fnmatch patterns of node names that are excluded from INT8.
        protect: As in `plan_qdq`.
        placement: The placement to use; `keep` and `protect` are ignored then.
        corrections: Bias corrections by node name, one value for each output channel; only those of layers that run in
            INT8 are applied.

    Returns:
        The graph with Q/DQ, operator set unchanged, `precision` set to "int8".

    Raises:
        CalibrationError: A tensor's range is missing or not finite, a weight is not finite, or a bias correction does
            not fit its layer.
        RecipeError: A pattern matches no node.
    """
    placement = placement or plan_qdq(proto, keep, protect=protect)
    result = copy.deepcopy(proto)
    index = GraphIndex(result)
    scales = _compute_activation_scales(placement, ranges)
    graph = result.graph
    layers = set(placement.layers)
    quantized = set(placement.tensors)
    zero = "trtkit_zero_point"
    constants = [numpy_helper.from_array(np.zeros((), np.int8), zero)]
    before: dict[str, onnx.NodeProto] = {}  # node name -> DequantizeLinear of its weight
    stored: dict[tuple[str, int], str] = {}  # (float weight, channel axis) -> prefix of its INT8 constants
    after: dict[str, list[onnx.NodeProto]] = {}  # tensor -> its pair
    for name in placement.tensors:
        scale = f"{name}_scale"
        constants.append(numpy_helper.from_array(np.array(scales[name], np.float32), scale))
        after[name] = _make_qdq_pair(name, scale, zero)
        for node in index.consumers[name]:
            if _reads_int8(node, layers, quantized):
                for slot, source in enumerate(node.input):
                    if source == name:
                        node.input[slot] = f"{name}_dq"
    stored_as_int8 = layers | _find_weight_only_layers(index, placement)
    for node in graph.node:
        if node.name not in stored_as_int8:
            continue
        source, axis, name = node.input[1], _channel_axis(node), f"{node.name}_weight"
        prefix = stored.setdefault((source, axis), name)
        if prefix == name:
            constants += _make_int8_weight(index.array(source), axis, name, node.name)
        inputs = [f"{prefix}_q", f"{prefix}_scale", f"{prefix}_zero_point"]
        before[node.name] = helper.make_node(
            "DequantizeLinear", inputs, [f"{name}_dq"], f"{name}_DequantizeLinear", axis=axis
        )
        node.input[1] = f"{name}_dq"
        if corrections is not None and node.name in layers and node.name in corrections:
            constants.append(_correct_bias(index, node, corrections[node.name]))
    nodes = [pair for value in graph.input for pair in after.get(value.name, [])]
    for node in graph.node:
        if node.name in before:
            nodes.append(before[node.name])
        nodes.append(node)
        nodes += [pair for name in node.output for pair in after.get(name, [])]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants)
    remove_unused_constants(graph)
    set_kernel_shapes(result)
    del graph.value_info[:]
    # A TensorRT that chooses types by itself needs the names of the nodes that must not run in FP16.
    decode_nodes = sorted(GraphIndex(proto).decode_nodes())
    return update_metadata(
        result, {"int8": True}, {"precision": "int8", "kept": dict(placement.excluded), "fp32": decode_nodes}
    )


def _find_weight_only_layers(index: GraphIndex, placement: QDQPlacement) -> set[str]:
    """Layers that compute in float but hold much of the file together: only their weights are INT8."""
    sizes = {node.name: index.array(node.input[1]).size for node in index.weighted}
    names: set[str] = set()
    for reason in WEIGHT_ONLY_REASONS:
        layers = {name for name, excluded_for in placement.excluded.items() if excluded_for == reason}
        if sum(sizes[name] for name in layers) >= WEIGHT_ONLY_SHARE * sum(sizes.values()):
            names |= layers
    return names


def compute_weight_scales(weight: np.ndarray, axis: int) -> np.ndarray:
    """One scale for each output channel: the channel's largest magnitude over 127.

    Args:
        weight: Float weight of any shape.
        axis: The output channels' axis.

    Returns:
        (channels,) float32; 1 where a channel is all zero.
    """
    others = tuple(index for index in range(weight.ndim) if index != axis % weight.ndim)
    largest = np.abs(weight).max(axis=others).astype(np.float64)
    scales = (largest / INT8_MAX).astype(np.float32)
    # The smallest floats over 127 are zero.
    return np.where(scales > 0, scales, np.float32(1))


def quantize_weight(weight: np.ndarray, scales: np.ndarray, axis: int) -> np.ndarray:
    """Quantize a weight exactly as ONNX's QuantizeLinear does: divide, round half to even, clip to -128..127.

    Args:
        weight: Float weight of any shape.
        scales: (channels,), of the weight's type.
        axis: The output channels' axis.

    Returns:
        INT8, of the weight's shape.
    """
    steps: np.ndarray = np.rint(weight / _broadcast(scales, weight.ndim, axis))
    return steps.clip(-128, 127).astype(np.int8)


def expand_int8_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite weights stored as INT8 to float weights behind Q/DQ pairs, with unchanged outputs.

    TensorRT 8.6 builds both forms, from this one with fewer reformats (`benchmarks/results/int8_weights-*.md`);
    `trtkit.backends.build` rewrites graphs for it. Every INT8 value is restored exactly, because a product with the
    scale divided by the scale rounds to it. A weight whose layer computes in float becomes float without a pair.

    Args:
        proto: Any graph; not modified. DequantizeLinear nodes that read no INT8 constant stay as they are.
    """
    result = copy.deepcopy(proto)
    graph = result.graph
    index = GraphIndex(result)
    nodes: list[onnx.NodeProto] = []
    expanded: dict[tuple[str, ...], str] = {}  # inputs and axis of a DequantizeLinear -> float weight
    for node in graph.node:
        if _reads_int8_constants(index, node):
            name = node.output[0]
            axis = [a for a in node.attribute if a.name == "axis"]
            weight = dequantize_constant(index, node)
            if len(node.input) < 3 or not node.input[2]:
                # Without a zero point QuantizeLinear would write UINT8.
                zero_points = np.zeros(tuple(index.constants[node.input[1]].dims), np.int8)
                node.input[2:] = [f"{name}/zero_point"]
                graph.initializer.append(numpy_helper.from_array(zero_points, node.input[2]))
            key = (*node.input, *(str(a.i) for a in axis))
            if key not in expanded:
                expanded[key] = f"{name}/float"
                graph.initializer.append(numpy_helper.from_array(weight, expanded[key]))
            readers = index.consumers[name]
            if readers and all(_is_weight_only(index, reader) for reader in readers):
                for reader in readers:
                    for slot, source in enumerate(reader.input):
                        if source == name:
                            reader.input[slot] = expanded[key]
                continue
            quantize = helper.make_node(
                "QuantizeLinear",
                [expanded[key], *node.input[1:]],
                [f"{name}/int8"],
                re.sub(r"DequantizeLinear$", "", node.name) + "QuantizeLinear",
            )
            quantize.attribute.extend(axis)
            nodes.append(quantize)
            node.input[0] = f"{name}/int8"
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    if expanded:
        remove_unused_constants(graph)
    return result


def _is_weight_only(index: GraphIndex, node: onnx.NodeProto) -> bool:
    """Whether a layer computes in float: its first input is not dequantized, nor moved since."""
    producer = index.producer.get(node.input[0])
    while producer is not None and passes_int8(producer):
        producer = index.producer.get(producer.input[0])
    return node.op_type in WEIGHTED_OPS and (producer is None or producer.op_type != "DequantizeLinear")


def _reads_int8_constants(index: GraphIndex, node: onnx.NodeProto) -> bool:
    """Whether a node dequantizes an INT8 constant, by tensor or by channel."""
    if node.op_type != "DequantizeLinear" or any(a.name == "block_size" and a.i for a in node.attribute):
        return False
    names = [name for name in node.input if name]
    return all(n in index.constants for n in names) and index.constants[names[0]].data_type == onnx.TensorProto.INT8


def dequantize_constant(index: GraphIndex, node: onnx.NodeProto) -> np.ndarray:
    """What a DequantizeLinear of constants computes: by tensor, by channel or by block, of its scale's type.

    Args:
        index: The graph.
        node: The node; all its inputs are constants.
    """
    values, scales = index.array(node.input[0]).astype(np.float32), index.array(node.input[1])
    has_zero = len(node.input) > 2 and bool(node.input[2])
    zero_points = index.array(node.input[2]) if has_zero else np.zeros(scales.shape, np.int8)
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    axis = int(attributes.get("axis", 1))
    dtype, block = scales.dtype, int(attributes.get("block_size", 0))
    # In FP32 every product is exact before it is rounded to the type.
    parts = [part.astype(np.float32) for part in (scales, zero_points)]
    if block:
        parts = [np.repeat(part, block, axis).take(range(values.shape[axis]), axis) for part in parts]
    elif scales.size == 1:
        parts = [part.reshape(()) for part in parts]
    elif values.ndim:
        parts = [_broadcast(part, values.ndim, axis % values.ndim) for part in parts]
    return np.asarray((values - parts[1]) * parts[0], dtype)


def _broadcast(values: np.ndarray, dimensions: int, axis: int) -> np.ndarray:
    """One value for each channel, shaped to multiply a weight; a scalar as it is."""
    if values.ndim == 0:
        return values
    shape = [1] * dimensions
    shape[axis] = -1
    return values.reshape(shape)


def _make_int8_weight(weight: np.ndarray, axis: int, name: str, node: str) -> list[onnx.TensorProto]:
    """The INT8 weight of a layer, its scales and its zero points."""
    if not np.isfinite(weight).all():
        raise CalibrationError(
            "quantize a graph",
            f"the weight of {node!r} holds NaN or infinity",
            "train the model again, or look for a damaged file",
            code="weight-not-finite",
            node=node,
        )
    scales = compute_weight_scales(weight, axis)
    return [
        numpy_helper.from_array(quantize_weight(weight, scales, axis), f"{name}_q"),
        numpy_helper.from_array(scales, f"{name}_scale"),
        numpy_helper.from_array(np.zeros(len(scales), np.int8), f"{name}_zero_point"),
    ]


def _correct_bias(index: GraphIndex, node: onnx.NodeProto, correction: Sequence[float]) -> onnx.TensorProto:
    """A new bias, the layer's own plus the correction, which the layer then reads."""
    added = np.asarray(correction, np.float32)
    bias = index.array(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros_like(added)
    if node.op_type == "MatMul" or bias.shape != added.shape:
        raise CalibrationError(
            f"correct the bias of {node.name!r}",
            f"it has {bias.shape if node.op_type != 'MatMul' else 'no'} bias for {len(added)} corrections",
            "use the calibration of this graph",
            code="bias-correction-mismatch",
            node=node.name,
            corrections=len(added),
        )
    name = f"{node.name}_corrected_bias"
    del node.input[2:]
    node.input.append(name)
    return numpy_helper.from_array((bias + added).astype(np.float32), name)


def _compute_activation_scales(placement: QDQPlacement, ranges: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    missing = [name for name in placement.tensors if name not in ranges]
    if missing:
        raise CalibrationError(
            "quantize a graph",
            f"{len(missing)} of its tensors have no calibrated range, such as {missing[0]!r}",
            "calibrate this model again",
            code="calibration-range-missing",
            names=missing,
        )
    scales: dict[str, float] = {}
    for name in placement.tensors:
        group = placement.scale_groups[name]
        bounds = np.array([ranges[member] for member in group], np.float64)
        if not np.isfinite(bounds).all():
            invalid = next(member for member in group if not np.isfinite(ranges[member]).all())
            raise CalibrationError(
                "quantize a graph",
                f"the range of {invalid!r} is {ranges[invalid]}",
                "look for NaN or overflow in the model",
                code="calibration-range-not-finite",
                name=invalid,
                value=ranges[invalid],
            )
        # Scales are FP32, where the smallest magnitudes over 127 are zero.
        scales[name] = float(np.float32(np.abs(bounds).max() / INT8_MAX)) or 1.0
    return scales


def _is_output_of(index: GraphIndex, tensor: str, nodes: set[str]) -> bool:
    producer = index.producer.get(tensor)
    return producer is not None and producer.name in nodes


def _reads_int8(node: onnx.NodeProto, layers: set[str], quantized: set[str]) -> bool:
    """Whether a consumer of a quantized tensor reads the dequantized copy; the others read the float tensor."""
    return node.name in layers or (
        (node.op_type == "Add" or passes_int8(node)) and any(name in quantized for name in node.output)
    )


def _channel_axis(node: onnx.NodeProto) -> int:
    """The axis of a weight's output channels."""
    if node.op_type in ("ConvTranspose", "MatMul"):
        return 1
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if node.op_type == "Conv" or transposed else 1


def _make_qdq_pair(name: str, scale: str, zero: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}_q"], f"{name}_QuantizeLinear"),
        helper.make_node("DequantizeLinear", [f"{name}_q", scale, zero], [f"{name}_dq"], f"{name}_DequantizeLinear"),
    ]
