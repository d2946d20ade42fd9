"""ONNX graphs that already hold Q/DQ (quantization-aware training, ModelOpt, NNCF, onnxruntime): taken as they are.

Scales and placement are kept. What TensorRT does not read is rewritten: quantized constants other than weights (INT32
biases, INT8 factors and anchors) become the float numbers that they stand for, and UINT8 with zero point 0 or 128
becomes symmetric INT8. What TensorRT does not build, builds without fusing or runs inaccurately is found by structure
and named.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from trtkit.errors import BuildError, warn
from trtkit.graph.analysis import LAYOUT_OPS, WEIGHTED_OPS, GraphIndex
from trtkit.graph.conv_weights import set_kernel_shapes
from trtkit.graph.editing import remove_unused_constants
from trtkit.graph.onnx_file import update_metadata
from trtkit.graph.qdq import INT8_MAX, dequantize_constant, passes_int8

__all__ = ["QDQFinding", "check_placement", "check_qdq", "is_quantized", "prepare_quantized", "remove_qdq"]

INTEGER_OPS = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")
"""Operators on integers, ONNX's other form of quantization; onnxruntime's own also begin with QLinear."""

REASONS = {
    "integer_operators": "operators on integers, which TensorRT does not read: quantize with Q/DQ (QuantFormat.QDQ)",
    "uint8": "UINT8 values with other zero points than 0 and 128, where TensorRT reads symmetric INT8: quantize "
    "symmetrically to INT8 (QuantType.QInt8)",
    "zero_point": "zero points other than 0, where TensorRT is symmetric: quantize symmetrically",
    "unsigned": "UINT8 values with zero point 0, written as INT8 with 127 steps instead of 255",
    "decode": "Q/DQ behind the output layers, where boxes in pixels get 127 steps and scores that share their scale "
    "become 0: exclude these nodes from quantization",
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
    """Rewrite what TensorRT does not read, and add the metadata of an INT8 graph; the graph is modified and returned.

    Quantized constants other than weights become float; UINT8 with zero point 0 or 128 becomes symmetric INT8;
    convolutions name their kernel's shape.

    Args:
        proto: A graph with Q/DQ, unique node names.
    """
    _fold_constants(proto.graph, GraphIndex(proto))
    _convert_uint8(proto.graph, GraphIndex(proto))
    set_kernel_shapes(proto)
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
        kind = _check_zero_point(index, node)
        if kind:
            add(kind, node)
    floats = GraphIndex(remove_qdq(proto))
    layers = {node.name for node in floats.weighted}
    decode_nodes = floats.decode_nodes()
    for node in proto.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in index.producer:
            if index.producer[node.input[0]].name in decode_nodes and any(
                reader.name not in layers for reader in _read_dequantized(index, node)
            ):
                add("decode", index.producer[node.input[0]])
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


def check_placement(graph: onnx.ModelProto, stem: str, *, build: bool) -> tuple[QDQFinding, ...]:
    """Warn of Q/DQ that does not suit TensorRT.

    Args:
        graph: A graph with Q/DQ, unique node names.
        stem: The model's name, for messages.
        build: Whether an engine is to be built.

    Returns:
        The findings.

    Raises:
        BuildError: No TensorRT builds it, and an engine is to be built.
    """
    findings = check_qdq(graph)
    refused = [finding for finding in findings if finding.refused]
    if build and refused:
        raise BuildError(
            f"build an engine from {stem}, which holds Q/DQ",
            "; ".join(map(str, refused)),
            "run it in ONNX Runtime (format='onnx'), or quantize it that way",
            code="qdq-not-buildable",
            kinds=[finding.kind for finding in refused],
            nodes=[name for finding in refused for name in finding.nodes],
        )
    if findings:
        warn(f"{stem} holds Q/DQ that does not suit TensorRT: {'; '.join(map(str, findings))}.")
    return findings


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
                graph.initializer.append(numpy_helper.from_array(dequantize_constant(index, node), node.output[0]))
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


def _fold_constants(graph: onnx.GraphProto, index: GraphIndex) -> None:
    """Replace each dequantized constant by its value, except the weights of layers, which TensorRT reads as INT8.

    These are biases (INT32), and factors, summands and anchors (INT8), which TensorRT-RTX rejects.
    """
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        is_constant = node.op_type == "DequantizeLinear" and all(name in index.constants for name in node.input if name)
        # Scales by block, of two dimensions and more, belong to weights.
        if is_constant and index.array(node.input[1]).ndim < 2 and not _is_weight(index, node.output[0]):
            graph.initializer.append(numpy_helper.from_array(dequantize_constant(index, node), node.output[0]))
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    remove_unused_constants(graph)


def _is_weight(index: GraphIndex, tensor: str) -> bool:
    """Whether a layer reads a tensor as its weight, perhaps transposed or reshaped."""
    return any(
        (reader.op_type in WEIGHTED_OPS and len(reader.input) > 1 and reader.input[1] == tensor)
        or (reader.op_type in LAYOUT_OPS and any(_is_weight(index, output) for output in reader.output))
        for reader in index.consumers[tensor]
    )


def _convert_uint8(graph: onnx.GraphProto, index: GraphIndex) -> None:
    """Store UINT8 as INT8 with zero point 0, for zero points 128 and, at half the resolution, 0.

    At zero point 128 the same scale gives the same values. At zero point 0 (ranges that begin at 0) 255 steps become
    127, as TensorRT's own symmetric scales have them.
    """
    constants: dict[str, onnx.TensorProto] = {}
    # All are checked before the first one changes: some take their type from the QuantizeLinear before them.
    checked = [(node, _read_zero_point(index, node), _check_zero_point(index, node)) for node in graph.node]
    for node, zero, kind in checked:
        if zero is None or zero.dtype != np.uint8 or kind == "uint8":
            continue
        scale = index.array(node.input[1])
        if kind == "unsigned":
            name = f"{node.input[1]}/int8"
            constants[name] = numpy_helper.from_array((scale * (255 / INT8_MAX)).astype(scale.dtype), name)
            node.input[1] = name
        elif node.op_type == "DequantizeLinear" and node.input[0] in index.constants:
            name = f"{node.input[0]}/int8"
            shifted = (index.array(node.input[0]).astype(np.int16) - 128).astype(np.int8)
            constants[name] = numpy_helper.from_array(shifted, name)
            node.input[0] = name
        name = f"{node.output[0]}/zero_point"
        constants[name] = numpy_helper.from_array(np.zeros(scale.shape, np.int8), name)
        node.input[2:] = [name]
        for attribute in node.attribute:
            if attribute.name == "output_dtype":
                attribute.i = TensorProto.INT8
    if constants:
        graph.initializer.extend(constants.values())
        del graph.value_info[:]
        remove_unused_constants(graph)


def _check_zero_point(index: GraphIndex, node: onnx.NodeProto) -> str:
    """The kind of finding that the integers of a QuantizeLinear or DequantizeLinear give; "" for symmetric INT8."""
    zero = _read_zero_point(index, node)
    if zero is None:
        # Without a zero point QuantizeLinear writes UINT8, which TensorRT takes as INT8.
        has_type = any(a.name == "output_dtype" and a.i not in (0, TensorProto.UINT8) for a in node.attribute)
        return "uint8" if node.op_type == "QuantizeLinear" and len(node.input) < 3 and not has_type else ""
    if zero.dtype != np.uint8:
        return "zero_point" if np.any(zero != 0) else ""
    if np.all(zero == 128):
        return ""
    return "unsigned" if np.all(zero == 0) and node.input[0] not in index.constants else "uint8"


def _read_zero_point(index: GraphIndex, node: onnx.NodeProto) -> np.ndarray | None:
    """The constant zero point of a QuantizeLinear or DequantizeLinear; None if it is computed or of unknown type."""
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return None
    if len(node.input) > 2 and node.input[2]:
        return index.array(node.input[2]) if node.input[2] in index.constants else None
    if node.op_type == "QuantizeLinear":
        return None
    # Without a zero point it is 0, of the type of the integers.
    if node.input[0] in index.constants:
        return np.zeros_like(index.array(node.input[0]), shape=())
    quantize = index.producer.get(node.input[0])
    zero = None if quantize is None else _read_zero_point(index, quantize)
    return None if zero is None else np.zeros_like(zero)


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
