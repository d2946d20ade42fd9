"""An FP16 graph as FP32 with every result rounded to FP16: what the graph says, on processors that compute in FP32.

ONNX Runtime has no FP16 kernels for most operators on CPUs. It casts around each of them and then drops the casts
between neighbours, so results are neither rounded nor overflow: 60000 x 2 x 0.001 gives 120 where FP16 gives infinity.
Casts that are written in the graph stay, which is what this module does.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["has_half", "rounded"]

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT
# What these write are values that they read, rounded already.
CARRIERS = frozenset(
    [
        *("Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Max", "MaxPool", "Min"),
        *("Pad", "Relu", "Reshape", "ScatterND", "Slice", "Split", "Squeeze", "Tile", "TopK", "Transpose"),
        *("Unsqueeze", "Where"),
    ]
)


def has_half(proto: onnx.ModelProto) -> bool:
    """Whether any weight, input, output or cast of a graph is FP16.

    Args:
        proto: The graph.
    """
    values = [*proto.graph.input, *proto.graph.output]
    return (
        any(tensor.data_type == HALF for tensor in proto.graph.initializer)
        or any(value.type.tensor_type.elem_type == HALF for value in values)
        or any(
            attribute.name == "to" and attribute.i == HALF for node in proto.graph.node for attribute in node.attribute
        )
    )


def rounded(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite an FP16 graph; the caller's is left alone.

    Args:
        proto: Any graph. One without FP16, or with graphs inside nodes (If, Loop), is handed back as it is.

    Returns:
        A graph of the same names whose inputs and outputs are FP32.
    """
    nested = any(
        attribute.HasField("g") or attribute.graphs for node in proto.graph.node for attribute in node.attribute
    )
    if nested or not has_half(proto):
        return proto
    known = onnx.shape_inference.infer_shapes(proto)
    halves = {
        value.name
        for value in [*known.graph.value_info, *known.graph.input, *known.graph.output]
        if value.type.tensor_type.elem_type == HALF
    }
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graph = result.graph
    nodes: list[onnx.NodeProto] = []
    for value in graph.input:
        if value.name in halves:
            value.type.tensor_type.elem_type = FLOAT
    for value in graph.output:
        if value.type.tensor_type.elem_type == HALF:
            value.type.tensor_type.elem_type = FLOAT
    for tensor in graph.initializer:
        _widen(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen(attribute.t)
        to_half = node.op_type == "Cast" and any(item.name == "to" and item.i == HALF for item in node.attribute)
        nodes.append(node)
        if to_half:
            _round(node, 0, nodes, cast=True)
        elif node.op_type not in CARRIERS and not node.op_type.startswith("Constant"):
            for index, name in enumerate(node.output):
                if name in halves:
                    _round(node, index, nodes, cast=False)
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    return result


def _round(node: onnx.NodeProto, index: int, nodes: list[onnx.NodeProto], *, cast: bool) -> None:
    """Put a Cast to FP16 and one back behind an output; a Cast to FP16 needs the second only."""
    name = node.output[index]
    narrow = f"{name}/narrow"
    if cast:
        node.output[index] = narrow
    else:
        wide = f"{name}/wide"
        node.output[index] = wide
        nodes.append(helper.make_node("Cast", [wide], [narrow], f"{name}/to_half", to=HALF))
    nodes.append(helper.make_node("Cast", [narrow], [name], f"{name}/to_float", to=FLOAT))


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type == HALF:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name))
