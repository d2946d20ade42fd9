"""ONNX graphs that already hold Q/DQ (quantization-aware training, ModelOpt, NNCF, onnxruntime): taken as they are.

Scales and placement are kept; biases stored as INT32, which TensorRT does not read, become the float numbers that they
stand for. What TensorRT does not build, or builds without fusing, is found by structure and named.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from trtkit.graph.analysis import GraphIndex, remove_unused_constants
from trtkit.graph.onnx_file import update_metadata
from trtkit.graph.qdq import passes_int8

__all__ = ["QDQFinding", "check_qdq", "is_quantized", "prepare_quantized", "remove_qdq"]

INTEGER_OPS = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")
"""Operators on integers, ONNX's other form of quantization; onnxruntime's own also begin with QLinear."""

REASONS = {
    "integer_operators": "operators on integers, which TensorRT does not read: quantize with Q/DQ (QuantFormat.QDQ)",
    "uint8": "UINT8 values, where TensorRT reads INT8: quantize to INT8 (QuantType.QInt8)",
    "zero_point": "zero points other than 0, where TensorRT is symmetric: quantize symmetrically",
    "before_activation": "Q/DQ between a layer and its activation, which prevents their fusion; TensorRT 8.6 does not "
    "build it",
    "dfl": "Q/DQ in front of the DFL convolution, which TensorRT 8.6 does not build",
    "attention": "Q/DQ in front of convolutions behind attention, which TensorRT 8.6 does not build",
    "depthwise": "Q/DQ in front of grouped convolutions that feed a float layer, which TensorRT 8.6 does not build",
}
"""What is wrong, by `QDQFinding.kind`."""

REFUSED = frozenset({"integer_operators", "uint8", "zero_point"})
"""Kinds that no TensorRT reads."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QDQFinding:
    """One way in which a graph's Q/DQ does not suit TensorRT.

    Attributes:
        kind: A key of `REASONS`.
        nodes: Names of the nodes, in graph order.
    """

    kind: str
    nodes: tuple[str, ...]

    @property
    def reason(self) -> str:
        """What is wrong and what to do."""
        return REASONS[self.kind]

    @property
    def refused(self) -> bool:
        """Whether no TensorRT builds such a graph; otherwise only some do, or it runs slower."""
        return self.kind in REFUSED

    def __str__(self) -> str:
        more = f" and {len(self.nodes) - 3} more" if len(self.nodes) > 3 else ""
        return f"{self.reason} ({', '.join(self.nodes[:3])}{more})"


def is_quantized(proto: onnx.ModelProto | None) -> bool:
    """Whether a graph holds Q/DQ or operators on integers; False for None.

    Args:
        proto: The graph.
    """
    return proto is not None and any(
        node.op_type in ("QuantizeLinear", "DequantizeLinear") or _is_integer_operator(node)
        for node in proto.graph.node
    )


def prepare_quantized(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Store INT32 biases as float, and add the metadata of an INT8 graph; the graph is modified and returned.

    Args:
        proto: A graph with Q/DQ, unique node names.
    """
    _fold_biases(proto.graph, GraphIndex(proto))
    # A TensorRT that chooses types by itself needs the names of the nodes that must not run in FP16.
    decode_nodes = sorted(GraphIndex(remove_qdq(proto)).decode_nodes())
    return update_metadata(proto, {"int8": True}, {"precision": "int8", "fp32": decode_nodes})


def check_qdq(proto: onnx.ModelProto) -> tuple[QDQFinding, ...]:
    """Compare a graph's Q/DQ with what TensorRT builds and fuses (see `trtkit.graph.qdq`).

    Args:
        proto: A graph with Q/DQ, unique node names.
    """
    index = GraphIndex(proto)
    found: dict[str, list[str]] = {}

    def add(kind: str, node: onnx.NodeProto) -> None:
        found.setdefault(kind, []).append(node.name)

    for node in proto.graph.node:
        if _is_integer_operator(node):
            add("integer_operators", node)
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        zero = index.constants.get(node.input[2]) if len(node.input) > 2 else None
        if zero is not None and zero.data_type == TensorProto.UINT8:
            add("uint8", node)
        elif zero is not None and np.any(numpy_helper.to_array(zero) != 0):
            add("zero_point", node)
    floats = GraphIndex(remove_qdq(proto))
    layers = {node.name for node in floats.weighted}
    for node in proto.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in index.producer:
            layer = index.producer[node.input[0]]
            if layer.name in layers and any(_is_activation(reader) for reader in _read_dequantized(index, node)):
                add("before_activation", layer)
    excluded = floats.layers_excluded_by_default(
        name for name in layers if not _reads_quantized(index, index.nodes[name])
    )
    for name, reason in excluded.items():
        if reason in REASONS and _reads_quantized(index, index.nodes[name]):
            add(reason, index.nodes[name])
    order = {node.name: position for position, node in enumerate(proto.graph.node)}
    return tuple(
        QDQFinding(kind=kind, nodes=tuple(sorted(found[kind], key=lambda name: order[name])))
        for kind in REASONS
        if kind in found
    )


def remove_qdq(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The float graph under a Q/DQ graph, with the same node names; the caller's graph is not modified.

    Pairs are bypassed, and integers behind a lone DequantizeLinear become the numbers that they stand for.

    Args:
        proto: A graph with Q/DQ.
    """
    result = copy.deepcopy(proto)
    graph = result.graph
    index = GraphIndex(result)
    sources: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            quantize = index.producer.get(node.input[0])
            if quantize is not None and quantize.op_type == "QuantizeLinear":
                sources[node.output[0]] = sources.get(quantize.input[0], quantize.input[0])
                continue
            if node.input[0] in index.constants and node.input[1] in index.constants:
                graph.initializer.append(numpy_helper.from_array(_dequantize(index, node), node.output[0]))
                continue
        node.input[:] = [sources.get(name, name) for name in node.input]
        nodes.append(node)
    read = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    nodes = [node for node in nodes if node.op_type != "QuantizeLinear" or node.output[0] in read]
    del graph.node[:]
    graph.node.extend(nodes)
    for value in graph.output:
        if value.name in sources:
            graph.node.append(onnx.helper.make_node("Identity", [sources[value.name]], [value.name], value.name))
    del graph.value_info[:]
    remove_unused_constants(graph)
    return result


def _fold_biases(graph: onnx.GraphProto, index: GraphIndex) -> None:
    """Replace each DequantizeLinear of an INT32 constant by its value."""
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        source = index.constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if source is not None and source.data_type == TensorProto.INT32 and node.input[1] in index.constants:
            graph.initializer.append(numpy_helper.from_array(_dequantize(index, node), node.output[0]))
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    remove_unused_constants(graph)


def _dequantize(index: GraphIndex, node: onnx.NodeProto) -> np.ndarray:
    """The value of a DequantizeLinear of constants, float32."""
    values, scale = index.array(node.input[0]).astype(np.float32), index.array(node.input[1]).astype(np.float32)
    zero = index.array(node.input[2]).astype(np.float32) if len(node.input) > 2 and node.input[2] else np.float32(0)
    if scale.ndim == 1 and scale.size > 1:
        axis = next((int(a.i) for a in node.attribute if a.name == "axis"), 1)
        shape = [-1 if place == axis % values.ndim else 1 for place in range(values.ndim)]
        scale, zero = scale.reshape(shape), np.asarray(zero).reshape(shape) if np.ndim(zero) else zero
    return np.asarray((values - zero) * scale, np.float32)


def _is_integer_operator(node: onnx.NodeProto) -> bool:
    return node.op_type in INTEGER_OPS or node.op_type.startswith("QLinear")


def _is_activation(node: onnx.NodeProto) -> bool:
    """Whether a node computes on values, other than as a sum that reads INT8 or by moving them."""
    return node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add") and not passes_int8(node)


def _read_dequantized(index: GraphIndex, quantize: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """The nodes that read the dequantized copy of a tensor."""
    for dequantize in index.consumers[quantize.output[0]]:
        yield from index.consumers[dequantize.output[0]]


def _reads_quantized(index: GraphIndex, node: onnx.NodeProto) -> bool:
    """Whether a layer's input comes from a DequantizeLinear."""
    producer = index.producer.get(node.input[0])
    return producer is not None and producer.op_type == "DequantizeLinear"
