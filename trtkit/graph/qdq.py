"""FP32 graph -> Q/DQ graph: which tensors carry INT8, where their scales are shared, and the pairs themselves.

The placement follows what TensorRT's explicit quantization accepts and fuses: per-tensor pairs on the inputs of
weighted layers, per-channel pairs on their weights, nothing between a layer and its activation, no quantized bias. A
tensor is quantized once, where it is made, and everything that can read INT8 reads it so: concatenations, poolings,
upsamplings and splits then move bytes instead of halves, which only works where inputs and outputs share one scale.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from trtkit.errors import CalibrationError
from trtkit.graph.analysis import GraphIndex
from trtkit.graph.fp16 import match_node_names
from trtkit.graph.torch_export import update_metadata

__all__ = ["QDQPlacement", "compute_weight_scales", "insert_qdq", "plan_qdq", "quantizable_tensors"]

INT8_PASSTHROUGH_OPS = ("Concat", "MaxPool", "Split", "Slice", "Reshape", "Transpose", "Resize", "Identity")
"""Operators that give the same result on integers as on floats, so that INT8 passes through."""

INT8_MAX = 127.0
"""Symmetric range without -128, so that a scale serves both signs and TensorRT's kernels agree with ONNX Runtime's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QDQPlacement:
    """Where INT8 goes in one graph.

    Attributes:
        layers: Names of the weighted nodes that run in INT8.
        tensors: Tensors that get a Q/DQ pair, in graph order.
        scale_of: For each of `tensors`, the tensors whose ranges make up its scale: itself and those it is joined with.
        kept: Weighted nodes that stay high, with the reason ("dfl", "attention", "depthwise", "asked", ...).
    """

    layers: tuple[str, ...]
    tensors: tuple[str, ...]
    scale_of: Mapping[str, tuple[str, ...]]
    kept: Mapping[str, str]


def plan_qdq(proto: onnx.ModelProto, keep: Iterable[str] = (), *, protect: bool = True) -> QDQPlacement:
    """Decide which layers and tensors of a graph run in INT8.

    Args:
        proto: FP32 graph with unique node names.
        keep: fnmatch patterns of node names that stay high.
        protect: Also keep what `GraphIndex.costly` finds (DFL, attention, what would not build), and depthwise layers in
            front of what stays high.

    Raises:
        RecipeError: A pattern matches no node.
    """
    view = GraphIndex(proto)
    matched = match_node_names(view.nodes, keep)
    asked = [node.name for node in view.weighted if node.name in matched]
    kept = view.layers_excluded_by_default(asked) if protect else {}
    floats = {name for name, reason in kept.items() if reason == "attention"}
    kept.update(dict.fromkeys(asked, "asked"))
    layers = [node for node in view.weighted if node.name not in kept]
    names = {node.name for node in layers}

    wanted: set[str] = set()
    joined = _Groups()
    front = [node.input[0] for node in layers]
    while front:
        name = front.pop()
        if name in wanted or name in view.constants:
            continue
        wanted.add(name)
        maker = view.producer.get(name)
        if maker is None or maker.name in asked:
            continue
        if maker.op_type == "Add" and len(view.data_inputs(maker)) == 2:
            # Both sides of a residual sum are read as INT8, so that the sum is one kernel from bytes to bytes; what
            # attention gives is floats, which its last layer's own kernel adds.
            front.extend(source for source in view.data_inputs(maker) if not _is_output_of(view, source, by=floats))
        elif passes_int8(maker):
            # Of the others only the first input holds values; shapes, sizes and bounds may be computed too.
            for source in view.data_inputs(maker) if maker.op_type == "Concat" else maker.input[:1]:
                joined.join(name, source)
                front.append(source)
    order = [value.name for value in view.graph.input] + [name for node in view.graph.node for name in node.output]
    tensors = tuple(name for name in order if name in wanted)
    members: dict[str, list[str]] = {}
    for name in tensors:
        members.setdefault(joined.root(name), []).append(name)
    return QDQPlacement(
        layers=tuple(node.name for node in layers if node.name in names),
        tensors=tensors,
        scale_of={name: tuple(members[joined.root(name)]) for name in tensors},
        kept=kept,
    )


def quantizable_tensors(proto: onnx.ModelProto) -> tuple[str, ...]:
    """Every tensor that some placement could quantize: what calibration has to measure."""
    return plan_qdq(proto, protect=False).tensors


def passes_int8(node: onnx.NodeProto) -> bool:
    """Whether INT8 passes through a node unchanged; of the resizings only the nearest-neighbor one does."""
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
    """Put Q/DQ pairs into a graph; the caller's graph is left alone.

    The arithmetic is `x ~ s * clip(round(x / s), -128, 127)` with `s = max(|low|, |high|) / 127` for activations and
    one such scale for each output channel of a weight (Wu et al., 2020, "Integer Quantization for Deep Learning
    Inference").

    Args:
        proto: FP32 graph with unique node names.
        ranges: Lowest and highest value by tensor name, from a calibration.
        keep: fnmatch patterns of node names that stay high.
        protect: As in `plan_qdq`.
        placement: Use this one instead of deciding anew; `keep` and `protect` are then not read.
        corrections: What is added to the bias of a layer that runs in INT8, one number for each output channel, by node
            name; layers that stay high keep theirs.

    Returns:
        The graph with pairs, operator set unchanged, `precision` set to "int8".

    Raises:
        CalibrationError: A tensor's range is missing or not finite.
        RecipeError: A pattern matches no node.
    """
    placement = placement or plan_qdq(proto, keep, protect=protect)
    result = copy.deepcopy(proto)
    view = GraphIndex(result)
    scales = _compute_activation_scales(placement, ranges)
    graph = result.graph
    layers = set(placement.layers)
    quantized = set(placement.tensors)
    zero = "trtkit_zero_point"
    constants = [numpy_helper.from_array(np.zeros((), np.int8), zero)]
    before: dict[str, list[onnx.NodeProto]] = {}  # node name -> pairs that go right before it
    after: dict[str, list[onnx.NodeProto]] = {}  # tensor -> its pair
    for name in placement.tensors:
        scale = f"{name}_scale"
        constants.append(numpy_helper.from_array(np.array(scales[name], np.float32), scale))
        after[name] = _make_qdq_pair(name, f"{name}_q", f"{name}_dq", scale, zero)
        for node in view.consumers[name]:
            if _reads_int8(node, layers, quantized):
                for index, source in enumerate(node.input):
                    if source == name:
                        node.input[index] = f"{name}_dq"
    for node in graph.node:
        if node.name not in layers:
            continue
        weight, axis = view.array(node.input[1]), _channel_axis(node)
        name = f"{node.name}_weight"
        values = compute_weight_scales(weight, axis)
        constants.append(numpy_helper.from_array(values, f"{name}_scale"))
        constants.append(numpy_helper.from_array(np.zeros(len(values), np.int8), f"{name}_zero_point"))
        # TensorRT 8.6 wants a float weight behind a whole pair, not a ready INT8 one behind a lone DequantizeLinear.
        before[node.name] = _make_qdq_pair(
            node.input[1], f"{name}_q", f"{name}_dq", f"{name}_scale", f"{name}_zero_point", axis
        )
        node.input[1] = f"{name}_dq"
        if corrections is not None and node.name in corrections:
            constants.append(_correct_bias(view, node, corrections[node.name]))
    nodes = [pair for value in graph.input for pair in after.get(value.name, [])]
    for node in graph.node:
        nodes += before.get(node.name, [])
        nodes.append(node)
        nodes += [pair for name in node.output for pair in after.get(name, [])]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants)
    del graph.value_info[:]
    # A TensorRT that chooses types itself must be told which nodes FP16 would blur.
    tail = sorted(GraphIndex(proto).decode_nodes())
    return update_metadata(result, {"int8": True}, {"precision": "int8", "kept": dict(placement.kept), "fp32": tail})


def compute_weight_scales(weight: np.ndarray, axis: int) -> np.ndarray:
    """One scale for each output channel: its largest magnitude over 127.

    Args:
        weight: Float weight of any shape.
        axis: The output channels' axis.

    Returns:
        (channels,) float32; 1 where a channel is all zero.
    """
    others = tuple(index for index in range(weight.ndim) if index != axis % weight.ndim)
    largest = np.abs(weight).max(axis=others).astype(np.float64)
    return np.where(largest > 0, largest / INT8_MAX, 1.0).astype(np.float32)


def _correct_bias(view: GraphIndex, node: onnx.NodeProto, correction: Sequence[float]) -> onnx.TensorProto:
    """A bias of the layer's own with the correction added, which the layer then reads."""
    added = np.asarray(correction, np.float32)
    bias = view.array(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros_like(added)
    if node.op_type == "MatMul" or bias.shape != added.shape:
        raise CalibrationError(
            f"correct the bias of {node.name!r}",
            f"it has {bias.shape if node.op_type != 'MatMul' else 'no'} bias for {len(added)} corrections",
            "use the calibration of this very graph",
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
            f"{len(missing)} of its tensors were never calibrated, such as {missing[0]!r}",
            "calibrate this model again",
        )
    scales: dict[str, float] = {}
    for name in placement.tensors:
        bounds = np.array([ranges[member] for member in placement.scale_of[name]], np.float64)
        if not np.isfinite(bounds).all():
            bad = next(m for m in placement.scale_of[name] if not np.isfinite(ranges[m]).all())
            raise CalibrationError(
                "quantize a graph", f"the range of {bad!r} is {ranges[bad]}", "look for NaN or overflow in the model"
            )
        largest = float(np.abs(bounds).max())
        scales[name] = largest / INT8_MAX if largest > 0 else 1.0
    return scales


def _is_output_of(view: GraphIndex, name: str, *, by: set[str]) -> bool:
    maker = view.producer.get(name)
    return maker is not None and maker.name in by


def _reads_int8(node: onnx.NodeProto, layers: set[str], quantized: set[str]) -> bool:
    """Whether a reader of a quantized tensor takes the INT8 copy; the others read the float and lose nothing."""
    return node.name in layers or (
        (node.op_type == "Add" or passes_int8(node)) and any(name in quantized for name in node.output)
    )


def _channel_axis(node: onnx.NodeProto) -> int:
    if node.op_type == "ConvTranspose" or node.op_type == "MatMul":
        return 1
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if node.op_type == "Conv" or transposed else 1


def _make_qdq_pair(
    source: str, middle: str, target: str, scale: str, zero: str, axis: int | None = None
) -> list[onnx.NodeProto]:
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    stem = re.sub(r"_q$", "", middle)
    return [
        helper.make_node("QuantizeLinear", [source, scale, zero], [middle], f"{stem}_QuantizeLinear", **attributes),
        helper.make_node("DequantizeLinear", [middle, scale, zero], [target], f"{stem}_DequantizeLinear", **attributes),
    ]


class _Groups:
    """Tensors that must share one scale (union-find)."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}

    def root(self, name: str) -> str:
        while self.parent.get(name, name) != name:
            name = self.parent[name]
        return name

    def join(self, one: str, other: str) -> None:
        self.parent[self.root(other)] = self.root(one)
