"""DLA: which nodes of a graph run on it, and the graph cut into a backbone for DLA and a head for the GPU.

The rules are those of NVIDIA's lists of operators on Orin's DLA and of the restrictions of each layer (TensorRT 8.5 to
10). The DLA compiler decides; nothing here was run on one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from trtkit.errors import OnnxError
from trtkit.graph.analysis import GraphIndex, block_of

__all__ = [
    "GraphCut",
    "cut_at_head",
    "explain_fallback",
    "find_head_inputs",
    "fix_shape",
    "list_fallbacks",
    "read_activation_ranges",
]

MAX_BATCH, MAX_SIDE = 4096, 8192
"""The largest batch and the largest size of any other axis on DLA."""

DLA_OPS = frozenset(
    (
        *("Abs", "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Conv", "ConvTranspose", "Cos", "Equal"),
        *("Gemm", "LeakyRelu", "LRN", "MatMul", "Max", "MaxPool", "Mul", "PRelu", "Relu", "Reshape", "Resize"),
        *("Sigmoid", "Slice", "Softmax", "Split", "Sub", "Sum", "Tanh", "Transpose"),
    )
)
"""Operators that Orin's DLA runs. TensorRT reads Split as slices."""

NO_LAYER_OPS = frozenset(("Constant", "Identity", "Cast", "Dropout"))
"""Operators that become no layer of their own."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GraphCut:
    """A graph in two.

    Attributes:
        backbone: From the input to the tensors between.
        head: From the tensors between to the outputs.
        tensors: Names of the tensors between.
    """

    backbone: onnx.ModelProto
    head: onnx.ModelProto
    tensors: tuple[str, ...]


def fix_shape(proto: onnx.ModelProto, shape: Sequence[int]) -> onnx.ModelProto:
    """A graph whose only input has a fixed shape, with all shapes inferred and shape arithmetic folded.

    DLA takes no open sizes.

    Args:
        proto: The graph; not modified.
        shape: Of the input.
    """
    import onnxslim

    result = onnx.ModelProto()
    result.CopyFrom(proto)
    dims = result.graph.input[0].type.tensor_type.shape.dim
    is_open = any(not dim.HasField("dim_value") for dim in dims)
    for dim, size in zip(dims, shape, strict=True):
        dim.dim_value = size
    del result.graph.value_info[:]
    if is_open:
        for output in result.graph.output:
            for dim in output.type.tensor_type.shape.dim:
                dim.Clear()
        result = onnxslim.slim(result)
    return onnx.shape_inference.infer_shapes(result, data_prop=True)


def find_head_inputs(proto: onnx.ModelProto) -> tuple[str, ...]:
    """The tensors where the head begins: the modules of the graph's output layers, and everything behind them.

    Args:
        proto: A graph with unique node names.

    Raises:
        OnnxError: The head reads the image itself, so that nothing remains for DLA.
    """
    index = GraphIndex(proto)
    modules = {_module_of(name) for name in index.output_layers()}
    head = {node.name for node in proto.graph.node if _module_of(node.name) in modules}
    for name in sorted(head):
        head.update(node.name for node in index.downstream(index.nodes[name], lambda _: False))
    inside = {name for node in head for name in index.nodes[node].output} | {"", *index.constants}
    read = dict.fromkeys(name for node in proto.graph.node if node.name in head for name in node.input)
    tensors = tuple(name for name in read if name not in inside)
    if not tensors or proto.graph.input[0].name in tensors or {one.name for one in proto.graph.output} - inside:
        raise OnnxError(
            "cut the graph for DLA",
            "its head reads the image or does not give all outputs",
            "use the target trtexec, which builds the whole graph",
            code="dla-no-head",
            names=tensors,
        )
    return tensors


def cut_at_head(proto: onnx.ModelProto) -> GraphCut:
    """Cut a graph at `find_head_inputs`.

    Args:
        proto: A graph with inferred shapes and unique node names; not modified.

    Raises:
        OnnxError: As `find_head_inputs`.
    """
    tensors = find_head_inputs(proto)
    extractor = onnx.utils.Extractor(proto)
    return GraphCut(
        backbone=extractor.extract_model([proto.graph.input[0].name], list(tensors)),
        head=extractor.extract_model(list(tensors), [output.name for output in proto.graph.output]),
        tensors=tensors,
    )


def _module_of(node: str) -> str:
    """The numbered module of a node (`model.23`), or its block."""
    block = block_of(node)
    return block.split("/")[0] if block.startswith("model.") else block


def list_fallbacks(proto: onnx.ModelProto) -> dict[str, str]:
    """Why nodes fall back to the GPU, by name; nodes that run on DLA are not listed.

    Args:
        proto: A graph with inferred shapes and unique node names.
    """
    index = GraphIndex(proto)
    values = (*proto.graph.value_info, *proto.graph.input, *proto.graph.output)
    shapes = {value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in values}
    shapes.update({name: tuple(tensor.dims) for name, tensor in index.constants.items()})
    found = ((node.name, explain_fallback(node, index, shapes)) for node in proto.graph.node)
    return {name: reason for name, reason in found if reason}


def explain_fallback(node: onnx.NodeProto, index: GraphIndex, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Why a node falls back to the GPU; "" if it runs on DLA or becomes no layer.

    Args:
        node: The node.
        index: Its graph.
        shapes: Shapes of tensors by name; 0 for an open size.
    """
    if node.op_type in NO_LAYER_OPS:
        return ""
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return "DLA takes scales from a calibration cache, not from Q/DQ"
    if node.op_type not in DLA_OPS:
        return f"DLA has no {node.op_type}"
    tensors = [name for name in (*node.input, *node.output) if name and name not in index.constants]
    for name in tensors:
        shape = shapes.get(name)
        if shape is None or 0 in shape:
            return "a size is open"
        if len(shape) != 4:
            return f"a tensor of {len(shape)} axes; DLA takes four"
        if shape[0] > MAX_BATCH or max(shape[1:]) > MAX_SIDE:
            return f"a size beyond {MAX_SIDE} or a batch beyond {MAX_BATCH}"
    attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    check = _CHECKS.get(node.op_type)
    return check(node, index, attributes) if check else ""


Check = Callable[[onnx.NodeProto, GraphIndex, Mapping[str, object]], str]


def _check_window(kernel: int, padding: int, stride: int, dilation: int) -> Check:
    limits = {"kernel_shape": kernel, "pads": padding, "strides": stride, "dilations": dilation}

    def check(node: onnx.NodeProto, index: GraphIndex, attributes: Mapping[str, object]) -> str:
        for name, most in limits.items():
            values = attributes.get(name) or ()
            if max(values, default=0) > most:  # type: ignore[call-overload]
                return f"{name} {list(values)}: DLA takes up to {most}"  # type: ignore[call-overload]
        return ""

    return check


def _check_concat(node: onnx.NodeProto, index: GraphIndex, attributes: Mapping[str, object]) -> str:
    return "" if attributes.get("axis") in (1, -3) else "DLA concatenates channels alone"


def _check_matmul(node: onnx.NodeProto, index: GraphIndex, attributes: Mapping[str, object]) -> str:
    return "" if node.input[1] in index.constants else "a product of two activations; DLA wants a constant"


def _check_resize(node: onnx.NodeProto, index: GraphIndex, attributes: Mapping[str, object]) -> str:
    mode = attributes.get("mode", b"nearest")
    most = {b"nearest": 32, b"linear": 4}.get(mode, 0)  # type: ignore[call-overload]
    if not most:
        return f"{mode.decode()} interpolation"  # type: ignore[attr-defined]
    if len(node.input) < 3 or node.input[2] not in index.constants:
        return "its scales are no constants"
    scales = numpy_helper.to_array(index.constants[node.input[2]])
    if len(scales) != 4 or not np.array_equal(scales[:2], (1, 1)) or (scales % 1).any() or scales.max() > most:
        return f"scales {scales.tolist()}: DLA takes whole numbers up to {most}"
    return ""


_CHECKS: dict[str, Check] = {
    "Conv": _check_window(32, 31, 8, 32),
    "ConvTranspose": _check_window(32, 0, 32, 1),
    "MaxPool": _check_window(8, 7, 16, 1),
    "AveragePool": _check_window(8, 7, 16, 1),
    "Concat": _check_concat,
    "MatMul": _check_matmul,
    "Resize": _check_resize,
}


def read_activation_ranges(proto: onnx.ModelProto) -> dict[str, tuple[float, float]]:
    """The symmetric ranges that a Q/DQ graph gives its activations, by tensor of the graph without Q/DQ.

    Args:
        proto: A graph with Q/DQ, per-tensor on activations.
    """
    index = GraphIndex(proto)
    ranges = {}
    for node in proto.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in index.constants:
            scale = index.array(node.input[1])
            if scale.size == 1:
                reach = float(scale.reshape(())) * 127
                ranges[node.input[0]] = (-reach, reach)
    return ranges
