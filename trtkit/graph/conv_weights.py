"""The constants of convolutions, which graph passes replace: weights, biases, and the scales of Q/DQ before weights."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from trtkit.graph.analysis import GraphIndex

__all__ = ["add_constant", "is_dense_conv", "list_weight_qdq", "set_kernel_shapes"]


def add_constant(graph: onnx.GraphProto, name: str, value: np.ndarray) -> str:
    """Add a constant, unless there is one of this name.

    Args:
        graph: Modified in place.
        name: Its name.
        value: Its value.

    Returns:
        The name.
    """
    if all(tensor.name != name for tensor in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def list_weight_qdq(index: GraphIndex, node: onnx.NodeProto) -> tuple[onnx.NodeProto, ...]:
    """What stands in front of a layer's weight: the DQ node of an INT8 one, Q and DQ of a float one, or nothing.

    Args:
        index: Of the graph.
        node: The layer.
    """
    dequantize = index.producer.get(node.input[1])
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return ()
    quantize = index.producer.get(dequantize.input[0])
    if quantize is None or quantize.op_type == "Constant":
        return (dequantize,)
    return (quantize, dequantize) if quantize.op_type == "QuantizeLinear" else ()


def is_dense_conv(index: GraphIndex, node: onnx.NodeProto) -> bool:
    """Whether a node is a convolution of one group with constant weight and bias, where 0 stands for 0.

    Q/DQ before the weight must be its own: whoever replaces the weight would replace another layer's as well.

    Args:
        index: Of the graph.
        node: Any node.
    """
    if node.op_type != "Conv" or index.group(node) != 1:
        return False
    qdq = list_weight_qdq(index, node)
    if any(index.sole_consumer(one.output[0]) is None for one in qdq):
        return False
    if any(name not in index.constants for one in qdq for name in one.input[1:]):
        return False
    if any(index.array(name).any() for one in qdq for name in one.input[2:]):
        return False
    source = qdq[0].input[0] if qdq else node.input[1]
    return source in index.constants and all(name in index.constants for name in node.input[2:] if name)


def set_kernel_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Write the attribute `kernel_shape` of convolutions behind Q/DQ, which TensorRT's parser demands there.

    Args:
        proto: Modified in place, and returned.
    """
    index = GraphIndex(proto)
    for node in proto.graph.node:
        qdq = list_weight_qdq(index, node) if node.op_type in ("Conv", "ConvTranspose") else ()
        weight = index.constants.get(qdq[0].input[0]) if qdq else None
        if weight is not None and all(item.name != "kernel_shape" for item in node.attribute):
            node.attribute.append(helper.make_attribute("kernel_shape", list(weight.dims[2:])))
    return proto
