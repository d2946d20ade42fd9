"""Fewer copies into concatenations: splits read in whole, pixels repeated behind a convolution.

TensorRT copies into a concatenation each map that a split, a Resize or a pool reads or wrote; what convolutions alone
write and read, in whole, it computes there (`docs/benchmarks.md`).
"""

from __future__ import annotations

import copy

import numpy as np
import onnx
from onnx import helper

from trtkit.graph.analysis import GraphIndex, Shapes, infer_shapes
from trtkit.graph.conv_weights import add_constant, is_dense_conv, list_weight_qdq
from trtkit.graph.editing import remove_nodes, sort_nodes

__all__ = ["read_splits_whole", "upsample_after_conv"]


def read_splits_whole(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Let convolutions that read one half of a split read both, by weights that are zero for the other.

    A split stays if other operators read its halves, or if Q/DQ behind it has another scale.

    Args:
        proto: Graph with or without Q/DQ, unique node names; not modified.

    Returns:
        A graph with the same outputs; `proto` itself if there is no such split.
    """
    if not any(node.op_type == "Split" for node in proto.graph.node):
        return proto
    result = copy.deepcopy(proto)
    index, shapes, removed = GraphIndex(result), infer_shapes(result), set[str]()
    for split in result.graph.node:
        counts = [_count_channels(shapes, name) for name in split.output]
        if split.op_type != "Split" or index.axis(split) != 1 or len(counts) != 2 or not counts[0] == counts[1] > 0:
            continue
        readers = [found for name in split.output if (found := _find_half_readers(index, split, name)) is not None]
        if len(readers) < len(counts):
            continue
        for place, (convs, qdq) in enumerate(readers):
            for conv in convs:
                _widen_weight(index, conv, at=place * counts[0], count=sum(counts))
                conv.input[0] = split.input[0]
            removed.update(node.name for node in qdq)
        removed.add(split.name)
    remove_nodes(result.graph, removed)
    return result if removed else proto


def _find_half_readers(
    index: GraphIndex, split: onnx.NodeProto, name: str
) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]] | None:
    """What reads one output of a split: convolutions, and the Q/DQ before them; None if anything else does."""
    convs, qdq = list[onnx.NodeProto](), list[onnx.NodeProto]()
    whole = index.producer.get(split.input[0])
    outputs, pending = {value.name for value in index.graph.output}, [name]
    while pending:
        source = pending.pop()
        if source in outputs:
            return None
        for node in index.consumers[source]:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                if whole is None or whole.op_type != "DequantizeLinear" or not _have_equal_steps(index, whole, node):
                    return None
                qdq.append(node)
                pending.append(node.output[0])
            elif is_dense_conv(index, node) and node.input[0] == source:
                convs.append(node)
            else:
                return None
    return convs, qdq


def _have_equal_steps(index: GraphIndex, one: onnx.NodeProto, other: onnx.NodeProto) -> bool:
    """Whether two nodes of Q/DQ have equal constants: scale and zero point, whose type is the integers'."""
    if any(name not in index.constants for node in (one, other) for name in node.input[1:]):
        return False
    ours, theirs = ([index.array(name) for name in node.input[1:]] for node in (one, other))
    return len(ours) == len(theirs) and all(
        first.dtype == second.dtype and np.array_equal(first, second)
        for first, second in zip(ours, theirs, strict=True)
    )


def _widen_weight(index: GraphIndex, conv: onnx.NodeProto, *, at: int, count: int) -> None:
    """Give a convolution `count` input channels, with zeros for those that are new.

    Args:
        index: Of its graph.
        conv: From `is_dense_conv`.
        at: Where its own channels begin.
        count: Input channels.
    """
    qdq = list_weight_qdq(index, conv)
    reader, slot = (qdq[0], 0) if qdq else (conv, 1)
    weight = index.array(reader.input[slot])
    whole = np.zeros((weight.shape[0], count, *weight.shape[2:]), weight.dtype)
    whole[:, at : at + weight.shape[1]] = weight
    reader.input[slot] = add_constant(index.graph, f"{conv.name}_whole_weight", whole)


def upsample_after_conv(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Repeat pixels behind the 1x1 convolution that reads them in a concatenation.

    (V, W) (up(a), b) = up(V a) + W b: what reads the small map is computed there, at twice the size a quarter of the
    work, and nothing copies its repeated pixels.

    Args:
        proto: Graph with unique node names; convolutions behind Q/DQ are left alone. Not modified.

    Returns:
        A graph whose outputs agree up to rounding; `proto` itself if there is no such convolution.
    """
    if not any(node.op_type == "Resize" for node in proto.graph.node):
        return proto
    result = copy.deepcopy(proto)
    index, shapes = GraphIndex(result), infer_shapes(result)
    added, removed = list[onnx.NodeProto](), set[str]()
    for concat in [node for node in result.graph.node if node.op_type == "Concat" and index.axis(node) == 1]:
        conv = index.sole_consumer(concat.output[0])
        counts = [_count_channels(shapes, name) for name in concat.input]
        if conv is None or not all(counts) or len(set(concat.input)) < len(counts) or not _is_pointwise(index, conv):
            continue
        parts = np.split(index.array(conv.input[1]), np.cumsum(counts)[:-1], axis=1)
        weights = dict(zip(concat.input, parts, strict=True))
        small = [name for name in concat.input if _repeats_pixels(index, name)]
        large = [name for name in concat.input if name not in small]
        if not small or not large:
            continue
        target, total = conv.output[0], f"{conv.name}_large"
        weight = np.concatenate([weights[name] for name in large], axis=1)
        conv.input[1] = add_constant(result.graph, f"{conv.name}_large_weight", weight)
        conv.output[0] = total
        if len(large) == 1:
            conv.input[0] = large[0]
            removed.add(concat.name)
        concat.input[:] = large
        for place, name in enumerate(small):
            resize, stem = index.producer[name], f"{conv.name}_small_{place}"
            weight = np.ascontiguousarray(weights[name])
            inputs = [resize.input[0], add_constant(result.graph, f"{stem}_weight", weight)]
            added.append(helper.make_node("Conv", inputs, [stem], stem, kernel_shape=[1, 1]))
            resize.input[0] = stem
            after = target if name == small[-1] else f"{stem}_sum"
            added.append(helper.make_node("Add", [total, name], [after], f"{stem}_sum"))
            total = after
    if not added:
        return proto
    result.graph.node.extend(added)
    remove_nodes(result.graph, removed)
    sort_nodes(result.graph)
    return result


def _is_pointwise(index: GraphIndex, node: onnx.NodeProto) -> bool:
    """Whether a node is a convolution without Q/DQ that computes each pixel from that pixel."""
    if not is_dense_conv(index, node) or list_weight_qdq(index, node):
        return False
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    return (
        tuple(index.constants[node.input[1]].dims[2:]) == (1, 1)
        and set(attributes.get("strides", ())) <= {1}
        and not any(attributes.get("pads", ()))
    )


def _repeats_pixels(index: GraphIndex, name: str) -> bool:
    """Whether a tensor is a map whose pixels a Resize repeats, and is read once."""
    node = index.producer.get(name)
    if node is None or node.op_type != "Resize" or index.sole_consumer(name) is None:
        return False
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    scales = index.array(node.input[2]).tolist() if node.input[2:] and node.input[2] in index.constants else []
    return (
        attributes.get("mode", b"nearest") == b"nearest"
        and attributes.get("coordinate_transformation_mode") != b"tf_crop_and_resize"
        and len(scales) == 4
        and scales[:2] == [1, 1]
        and min(scales) >= 1
        and max(scales) > 1
    )


def _count_channels(shapes: Shapes, name: str) -> int:
    """The channels of a map; 0 where they are open, or it is none."""
    sides = shapes.get(name, ())
    return sides[1] if len(sides) == 4 else 0
