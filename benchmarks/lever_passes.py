"""Graph passes of `levers.py`: at the input and in the head, which no option of `export` has until they have won."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trtkit.backends.trt.network import find_kept_fp32
from trtkit.graph.analysis import GraphIndex, infer_shapes
from trtkit.graph.conv_weights import add_constant, is_dense_conv, list_weight_qdq
from trtkit.graph.editing import remove_nodes, remove_unused_constants, sort_nodes
from trtkit.graph.fp16 import convert_to_fp32
from trtkit.graph.onnx_file import update_metadata

__all__ = [
    "expand_sums", "join_branches", "read_int8", "read_uint8", "upsample_by_convolution", "use_flags",
]  # fmt: skip

QDQ = ("QuantizeLinear", "DequantizeLinear")


def join_branches(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, tuple[str, ...]]]:
    """Join convolutions with SiLU that read the same tensor with the same kernel into one, and split its result.

    Args:
        proto: FP32 graph with unique node names; not modified.

    Returns:
        The graph, and for each joined tensor the tensors that it holds, for their ranges.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graph, joined = result.graph, dict[str, tuple[str, ...]]()
    index = GraphIndex(result)
    groups: dict[tuple[Any, ...], list[tuple[onnx.NodeProto, onnx.NodeProto, onnx.NodeProto]]] = {}
    for node in index.weighted:
        activation = _find_silu(index, node)
        if node.op_type == "Conv" and activation is not None and index.group(node) == 1 and len(node.input) == 3:
            attributes = tuple(sorted(item.SerializeToString() for item in node.attribute))
            kernel = tuple(index.constants[node.input[1]].dims[2:])
            groups.setdefault((node.input[0], kernel, attributes), []).append((node, *activation))
    removed: set[str] = set()
    for members in groups.values():
        if len(members) < 2:
            continue
        convs = [conv for conv, _, _ in members]
        stem = f"{convs[0].name}_joined"
        for slot, kind in ((1, "weight"), (2, "bias")):
            value = np.concatenate([index.array(conv.input[slot]) for conv in convs])
            graph.initializer.append(numpy_helper.from_array(value, f"{stem}_{kind}"))
        sizes = np.array([index.constants[conv.input[1]].dims[0] for conv in convs], np.int64)
        graph.initializer.append(numpy_helper.from_array(sizes, f"{stem}_sizes"))
        outputs = tuple(product.output[0] for _, _, product in members)
        conv = onnx.NodeProto()
        conv.CopyFrom(convs[0])
        conv.name, conv.input[1:], conv.output[:] = stem, [f"{stem}_weight", f"{stem}_bias"], [stem]
        graph.node.extend(
            [
                conv,
                helper.make_node("Sigmoid", [stem], [f"{stem}_sigmoid"], f"{stem}_sigmoid"),
                helper.make_node("Mul", [stem, f"{stem}_sigmoid"], [f"{stem}_silu"], f"{stem}_silu"),
                helper.make_node("Split", [f"{stem}_silu", f"{stem}_sizes"], outputs, f"{stem}_split", axis=1),
            ]
        )
        removed |= {node.name for member in members for node in member}
        joined[f"{stem}_silu"] = outputs
    nodes = [node for node in graph.node if node.name not in removed]
    del graph.node[:]
    graph.node.extend(nodes)
    sort_nodes(graph)
    del graph.value_info[:]
    remove_unused_constants(graph)
    return result, joined


def expand_sums(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Concatenate both terms of a sum in its place: W (a + b) is (W, W) (a, b).

    Such is the last sum of a C3's bottlenecks. Where a term comes from a convolution without activation, TensorRT adds
    in that convolution's kernel, and the sum stays.

    Args:
        proto: FP32 graph with unique node names, after `fold_sums`; modified and returned.
    """
    index, shapes = GraphIndex(proto), infer_shapes(proto)
    expanded: set[str] = set()
    for concat in [node for node in proto.graph.node if node.op_type == "Concat" and index.axis(node) == 1]:
        conv = index.sole_consumer(concat.output[0])
        if conv is None or not is_dense_conv(index, conv) or list_weight_qdq(index, conv):
            continue
        names, parts, begin = list[str](), list[np.ndarray](), 0
        for name in concat.input:
            part = index.array(conv.input[1])[:, begin : begin + shapes[name][1]]
            begin += shapes[name][1]
            total = index.producer.get(name)
            terms = [name]
            if total is not None and total.op_type == "Add" and index.sole_consumer(name) is not None:
                sources = [index.producer.get(term) for term in total.input]
                alike = all(shapes.get(term) == shapes[name] for term in total.input)
                if alike and all(source is not None and source.op_type != "Conv" for source in sources):
                    terms = list(total.input)
                    expanded.add(total.name)
            names += terms
            parts += [part] * len(terms)
        if len(names) > len(concat.input):
            concat.input[:] = names
            conv.input[1] = add_constant(proto.graph, f"{conv.name}_expanded_weight", np.concatenate(parts, axis=1))
    remove_nodes(proto.graph, expanded)
    return proto


def _repeats_pixels(index: GraphIndex, node: onnx.NodeProto) -> bool:
    """Whether a node is a Resize that repeats each pixel in a block of 2 x 2."""
    values = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    scales = index.array(node.input[2]).tolist() if node.input[2:] and node.input[2] in index.constants else []
    settings = tuple(values.get(name) for name in ("mode", "nearest_mode", "coordinate_transformation_mode"))
    return node.op_type == "Resize" and settings == (b"nearest", b"floor", b"asymmetric") and scales == [1, 1, 2, 2]


def _find_silu(index: GraphIndex, conv: onnx.NodeProto) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
    """The Sigmoid and the product that are the only readers of a convolution."""
    readers = {node.op_type: node for node in index.consumers[conv.output[0]]}
    if sorted(readers) != ["Mul", "Sigmoid"] or len(index.consumers[conv.output[0]]) != 2:
        return None
    sigmoid, product = readers["Sigmoid"], readers["Mul"]
    return (sigmoid, product) if set(product.input) == {conv.output[0], sigmoid.output[0]} else None


def read_uint8(proto: onnx.ModelProto, *, nhwc: bool) -> onnx.ModelProto:
    """Take pixels 0..255 as uint8, in the layout of decoded images or in planes; normalization is part of the graph.

    Args:
        proto: Graph whose input is (N, C, H, W), pixels / 255; modified and returned.
        nhwc: Whether the input is (N, H, W, C).
    """
    graph = proto.graph
    value = graph.input[0]
    name, half = value.name, value.type.tensor_type.elem_type == TensorProto.FLOAT16
    sides = [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
    for node in graph.node:
        node.input[:] = ["pixels_scaled" if one == name else one for one in node.input]
    scale = np.array(1 / 255, np.float16 if half else np.float32)
    graph.initializer.append(numpy_helper.from_array(scale, "pixels_scale"))
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    nodes = [helper.make_node("Cast", [name], ["pixels_float"], "pixels_cast", to=kind)]
    source = "pixels_float"
    if nhwc:
        nodes.append(helper.make_node("Transpose", [source], ["pixels_planes"], "pixels_transpose", perm=[0, 3, 1, 2]))
        source, sides = "pixels_planes", [sides[0], *sides[2:], sides[1]]
    nodes.append(helper.make_node("Mul", [source, "pixels_scale"], ["pixels_scaled"], "pixels_mul"))
    nodes += graph.node
    del graph.node[:]
    graph.node.extend(nodes)
    value.CopyFrom(helper.make_tensor_value_info(name, TensorProto.UINT8, sides))
    return proto


def read_int8(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Take pixel - 128 as INT8 with scale 1 / 255, which needs no quantization; modified and returned.

    x = (q + 128) / 255: the offset is a constant per output channel, added to the bias of the first convolution. It
    holds where no padding is read, so the input brings its padding along, pixels of value -128.

    Args:
        proto: Q/DQ graph with float weights behind Q/DQ, of a static input (N, C, H, W).
    """
    graph = proto.graph
    value = graph.input[0]
    producer = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    conv = next(node for node in graph.node if node.op_type == "Conv")
    dequantize = producer[conv.input[1]]
    scale = constants[dequantize.input[1]].reshape(-1, 1, 1, 1)
    source = producer.get(dequantize.input[0])
    weight = constants[dequantize.input[0] if source is None else source.input[0]].astype(np.float32)
    steps = weight if source is None else np.clip(np.round(weight / scale), -127, 127)
    weight = steps * scale
    bias = constants[conv.input[2]]
    shifted = (bias + weight.sum((1, 2, 3)) * np.float32(128 / 255)).astype(bias.dtype)
    pads = next(item for item in conv.attribute if item.name == "pads")
    top, left, bottom, right = pads.ints
    pads.ints[:] = [0, 0, 0, 0]
    for name, array in (
        ("input_bias", shifted),
        ("input_scale", np.array(1 / 255, np.float32)),
        ("input_zero", np.array(0, np.int8)),
    ):
        graph.initializer.append(numpy_helper.from_array(array, name))
    node = helper.make_node("DequantizeLinear", [value.name, "input_scale", "input_zero"], ["input_float"], "input_dq")
    conv.input[0], conv.input[2] = "input_float", "input_bias"
    old = {value.name}
    nodes = [node]
    for one in graph.node:
        # Q and DQ of the float input read it no longer.
        if one.op_type in ("QuantizeLinear", "DequantizeLinear", "Cast") and one.input[0] in old:
            old.add(one.output[0])
        else:
            nodes.append(one)
    del graph.node[:]
    graph.node.extend(nodes)
    count, channels, height, width = (side.dim_value for side in value.type.tensor_type.shape.dim)
    shape = [count, channels, height + top + bottom, width + left + right]
    value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.INT8, shape))
    del graph.value_info[:]
    remove_unused_constants(graph)
    return proto


def use_flags(proto: onnx.ModelProto) -> onnx.ModelProto:
    """An FP16 graph in FP32, so that TensorRT's FP16 flag decides; what was FP32 is to stay.

    Args:
        proto: FP16 graph; not modified.
    """
    kept = sorted(find_kept_fp32(proto))
    return update_metadata(convert_to_fp32(proto), {}, {"fp32": kept})


def upsample_by_convolution(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Repeat pixels by a transposed INT8 convolution of unit weights, which can write into a concatenation in place.

    TensorRT 8.6 copies what a Resize gives. The values are the same: 127 steps of 1 / 127 are 1.

    Args:
        proto: Q/DQ graph, its weights stored as INT8; not modified.

    Returns:
        A graph in which each nearest Resize by 2 between DQ and Q of one scale is a ConvTranspose.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graph, index = result.graph, GraphIndex(result)
    shapes = infer_shapes(result)
    for node in [one for one in graph.node if _repeats_pixels(index, one)]:
        before, after = index.producer.get(node.input[0]), index.consumers[node.output[0]]
        if (
            before is None
            or before.op_type != "DequantizeLinear"
            or [one.op_type for one in after] != ["QuantizeLinear"]
            or not np.array_equal(index.array(before.input[1]), index.array(after[0].input[1]))
        ):
            continue
        channels, stem = shapes[node.input[0]][1], f"{node.name}_unit"
        weight = np.broadcast_to(127 * np.eye(channels, dtype=np.int8)[:, :, None, None], (channels, channels, 2, 2))
        add_constant(graph, f"{stem}_weight", np.ascontiguousarray(weight))
        add_constant(graph, f"{stem}_scale", np.array(1 / 127, np.float32))
        add_constant(graph, f"{stem}_zero_point", np.array(0, np.int8))
        names = [f"{stem}_weight", f"{stem}_scale", f"{stem}_zero_point"]
        place = list(graph.node).index(node)
        graph.node.remove(node)
        graph.node.insert(
            place, helper.make_node("DequantizeLinear", names, [f"{stem}_weight_dq"], f"{stem}_weight_dq")
        )
        graph.node.insert(
            place + 1,
            helper.make_node(
                "ConvTranspose", [before.output[0], f"{stem}_weight_dq"], node.output, node.name, kernel_shape=[2, 2],
                strides=[2, 2],
            ),
        )  # fmt: skip
    del graph.value_info[:]
    remove_unused_constants(graph)
    return result
