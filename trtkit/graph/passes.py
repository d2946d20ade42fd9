"""Graph passes on FP32 graphs: `remove_copies`, `fuse_box_decoding`, `fold_sums`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from trtkit.graph.analysis import GraphIndex, Shapes, infer_shapes
from trtkit.graph.conv_weights import is_dense_conv
from trtkit.graph.editing import remove_unused_constants

__all__ = ["fold_sums", "fuse_box_decoding", "remove_copies"]


# Remove copies.
#
# TensorRT runs a split, a concatenation or a transposition as a kernel of its own wherever it can't read the source in
# place. Both rewrites are exact: no output value changes.


DFL_CHAIN = ["Reshape", "Transpose", "Softmax", "Conv", "Reshape"]
"""How exporters write the expectation over the bins of each box side."""


def remove_copies(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Remove copies of values that can be read in place; the graph is modified and returned.

    - A concatenation of both halves of a split reads the split's input: one copy instead of two, and none where the
      layer before can write there.
    - The expectation over box sides (distribution focal loss, Li et al., 2020, arXiv:2006.04388) reads its bins in
      place instead of transposing them to the front.

    Args:
        proto: FP32 graph with unique node names.
    """
    _concatenate_sources(proto.graph)
    _remove_dfl_transposes(proto)
    return proto


def _concatenate_sources(graph: onnx.GraphProto) -> None:
    producer = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type == "Concat":
            sources = list(_concat_sources(node, producer))
            # A Concat needs two inputs.
            if len(sources) > 1:
                node.input[:] = sources


def _concat_sources(node: onnx.NodeProto, producer: dict[str, onnx.NodeProto]) -> Iterator[str]:
    """The inputs of a Concat, with a split's input in place of all the split's outputs in order."""
    inputs, position = list(node.input), 0
    while position < len(inputs):
        split = producer.get(inputs[position])
        outputs = list(split.output) if split is not None else []
        if (
            split is not None
            and split.op_type == "Split"
            and GraphIndex.axis(split) == GraphIndex.axis(node)
            and inputs[position : position + len(outputs)] == outputs
        ):
            yield split.input[0]
            position += len(outputs)
        else:
            yield inputs[position]
            position += 1


def _remove_dfl_transposes(proto: onnx.ModelProto) -> None:
    """(N, 4 x 16, A) -> (4 N, 16, A) is the same memory; (N, 4, 16, A) -> (N, 16, 4, A) is a copy."""
    index = GraphIndex(proto)
    shapes = infer_shapes(proto)
    for name in sorted(index.dfl_layers()):
        layer = index.nodes[name]
        chain = [layer]
        for _ in range(3):
            producer = index.producer.get(chain[0].input[0])
            if producer is None or index.sole_consumer(producer.output[0]) is None:
                break
            chain.insert(0, producer)
        after = index.sole_consumer(layer.output[0])
        if after is None or [node.op_type for node in (*chain, after)] != DFL_CHAIN:
            continue
        spread, transpose, softmax, _ = chain
        sizes, flat = (_read_reshape_sizes(index, node) for node in (spread, after))
        permutation = next((list(a.ints) for a in transpose.attribute if a.name == "perm"), [])
        # Sides and bins must be known, the bins brought to the front, summed up there, and weighted into one channel.
        if len(sizes) != 4 or min(sizes[1:3]) < 1 or permutation != [0, 2, 1, 3] or index.axis(softmax) != 1:
            continue
        if len(shapes.get(spread.input[0], ())) != 3 or len(flat) != 3 or flat[1] != sizes[1]:
            continue
        if list(index.constants[layer.input[1]].dims) == [1, sizes[2], 1, 1]:
            _rewrite_dfl(proto.graph, (spread, transpose, softmax, layer, after), sides=sizes[1], bins=sizes[2])


def _read_reshape_sizes(index: GraphIndex, reshape: onnx.NodeProto) -> list[int]:
    """The sizes of a Reshape, where 0 is the input's own size; [] if they are computed or 0 means 0."""
    if reshape.input[1] not in index.constants or any(a.name == "allowzero" and a.i for a in reshape.attribute):
        return []
    return [int(size) for size in index.array(reshape.input[1])]


def _rewrite_dfl(graph: onnx.GraphProto, chain: tuple[onnx.NodeProto, ...], *, sides: int, bins: int) -> None:
    spread, transpose, softmax, layer, after = chain

    def constant(name: str, values: list[int]) -> str:
        graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    # A size of 0 is the input's own size at that position, whatever it is.
    spread.input[1] = constant(f"{spread.name}_in_place_shape", [-1, bins, 0])
    softmax.input[0] = spread.output[0]
    axis = constant(f"{layer.name}_axis", [2])
    wide, flat = f"{layer.name}_wide", f"{layer.name}_flat"
    widen = helper.make_node("Unsqueeze", [softmax.output[0], axis], [wide], wide)
    narrow = helper.make_node("Squeeze", [layer.output[0], axis], [flat], flat)
    layer.input[0] = wide
    after.input[0] = flat
    after.input[1] = constant(f"{after.name}_in_place_shape", [-1, sides, 0])
    _drop_shapes(graph, {node.output[0] for node in (spread, softmax, layer)})
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.name == transpose.name:
            continue
        nodes += [widen, node, narrow] if node.name == layer.name else [node]
    del graph.node[:]
    graph.node.extend(nodes)


def _drop_shapes(graph: onnx.GraphProto, changed: set[str]) -> None:
    """Remove the recorded shapes of tensors whose shape changed."""
    shapes = [value for value in graph.value_info if value.name not in changed]
    del graph.value_info[:]
    graph.value_info.extend(shapes)


# Fuse box decoding: one layer from bins to boxes instead of eight nodes.


def fuse_box_decoding(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Compute a box, center and size or corners, from its bins by one convolution; the graph is modified and returned.

    The distances `l, t, r, b` of an anchor to the sides of its box are expectations over bins (distribution focal loss,
    Li et al., 2020, arXiv:2006.04388). Center and size are linear in them:

        (x + (r - l) / 2, y + (b - t) / 2, l + r, t + b)

    so one convolution over the bins of all sides computes them up to the anchor. It replaces a convolution to a single
    channel, which GPUs run inefficiently, and seven sums, differences and copies of half a box each. Corners, which
    one-to-one heads return, are linear in the distances, too. Results agree up to FP32 rounding. Other decodings are
    not changed: those of oriented boxes, and those of YOLO26, whose distances have no bins.

    Args:
        proto: FP32 graph with unique node names, after `remove_copies`.
    """
    index = GraphIndex(proto)
    for name in sorted(index.dfl_layers()):
        decoding = _BoxDecoding.match(index, index.nodes[name])
        if decoding is not None:
            _rewrite_box_decoding(index, decoding)
            index = GraphIndex(proto)
    return proto


@dataclasses.dataclass(frozen=True, kw_only=True)
class _BoxDecoding:
    """The nodes from the bins to the box, in order.

    Attributes:
        softmax: Probabilities of the bins.
        wide: Unsqueeze before the layer.
        layer: The convolution that computes the expectation over bins.
        flat: Squeeze after it.
        removed: Names of the nodes from the distances to the concatenated box.
        joined: Concatenation of center and size, or of both corners.
        corners: Whether the box is x1, y1, x2, y2 instead of center, width and height.
        scaled: Product with the stride.
        anchors: The tensor of anchor positions.
    """

    softmax: onnx.NodeProto
    wide: onnx.NodeProto
    layer: onnx.NodeProto
    flat: onnx.NodeProto
    removed: tuple[str, ...]
    joined: onnx.NodeProto
    scaled: onnx.NodeProto
    anchors: str
    corners: bool

    @classmethod
    def match(cls, index: GraphIndex, layer: onnx.NodeProto) -> _BoxDecoding | None:
        """The decoding around the layer that computes the expectation; None if the nodes are not such a decoding."""
        wide = index.producer.get(layer.input[0])
        softmax = index.producer.get(wide.input[0]) if wide is not None else None
        flat = _sole_consumer_of_type(index, layer.output[0], "Squeeze")
        sides = _sole_consumer_of_type(index, flat.output[0], "Reshape") if flat is not None else None
        split = _sole_consumer_of_type(index, sides.output[0], "Split") if sides is not None else None
        if wide is None or softmax is None or flat is None or sides is None or split is None:
            return None
        bins = list(index.constants[layer.input[1]].dims)
        if (
            (softmax.op_type, index.axis(softmax), wide.op_type) != ("Softmax", 1, "Unsqueeze")
            or [_read_second_input(index, node) for node in (wide, flat, sides, split)]
            != [[2], [2], [-1, 4, 0], [2, 2]]
            or (len(layer.input), bins, index.axis(split)) != (2, [1, bins[1], 1, 1], 1)
        ):
            return None
        low, high = (
            _sole_consumer_of_type(index, name, kind) for name, kind in zip(split.output, ("Sub", "Add"), strict=True)
        )
        if low is None or high is None or not _has_two_rows(index, low.input[0]):
            return None
        if sorted(high.input) != sorted((low.input[0], split.output[1])):
            return None
        corners = [low.output[0], high.output[0]]
        before = (sides, split, low, high)
        joined = _sole_consumer_of_type(index, corners[0], "Concat")
        if joined is not None and list(joined.input) == corners and joined == index.sole_consumer(corners[1]):
            scaled = _sole_consumer_of_type(index, joined.output[0], "Mul")
            if scaled is None or index.axis(joined) != 1:
                return None
            return cls(
                softmax=softmax, wide=wide, layer=layer, flat=flat,
                removed=tuple(node.name for node in (*before, joined)),
                joined=joined, scaled=scaled, anchors=low.input[0], corners=True,
            )  # fmt: skip
        ends = [{node.op_type: node for node in index.consumers[name]} for name in corners]
        if [sorted(readers) for readers in ends] != [["Add", "Sub"]] * 2 or ends[0] != ends[1]:
            return None
        total, size = ends[0]["Add"], ends[0]["Sub"]
        center = _sole_consumer_of_type(index, total.output[0], "Div")
        joined = _sole_consumer_of_type(index, size.output[0], "Concat")
        scaled = _sole_consumer_of_type(index, joined.output[0], "Mul") if joined is not None else None
        if center is None or joined is None or scaled is None or _read_second_input(index, center) != [2]:
            return None
        if list(size.input) != corners[::-1] or list(joined.input) != [center.output[0], size.output[0]]:
            return None
        if index.axis(joined) != 1:
            return None
        return cls(
            softmax=softmax, wide=wide, layer=layer, flat=flat,
            removed=tuple(node.name for node in (*before, total, size, center, joined)),
            joined=joined, scaled=scaled, anchors=low.input[0], corners=False,
        )  # fmt: skip


def _sole_consumer_of_type(index: GraphIndex, name: str, operator: str) -> onnx.NodeProto | None:
    """The only node that reads a tensor, if it is of this operator."""
    consumer = index.sole_consumer(name)
    return consumer if consumer is not None and consumer.op_type == operator else None


def _read_second_input(index: GraphIndex, node: onnx.NodeProto) -> list[float]:
    """The values of a node's second input (axes, a shape, sizes, a divisor); [] if it is computed."""
    is_constant = len(node.input) > 1 and node.input[1] in index.constants
    return [float(number) for number in index.array(node.input[1]).reshape(-1)] if is_constant else []


def _has_two_rows(index: GraphIndex, name: str) -> bool:
    """Whether a tensor holds x and y, so that a box has twice as many numbers."""
    if name in index.constants:
        dims = list(index.constants[name].dims)
    else:
        inferred = onnx.shape_inference.infer_shapes(index.proto).graph
        values = [*inferred.value_info, *inferred.input]
        shape = next((value.type.tensor_type.shape for value in values if value.name == name), None)
        dims = [side.dim_value for side in shape.dim] if shape is not None else []
    return len(dims) > 1 and dims[-2] == 2


def _rewrite_box_decoding(index: GraphIndex, decoding: _BoxDecoding) -> None:
    graph, stem = index.graph, decoding.layer.name
    bins = index.array(decoding.layer.input[1]).reshape(-1).astype(np.float64)
    # Rows: center x and y, width and height, or both corners; columns: the coefficients of left, top, right and bottom.
    center_and_size = np.array([[-0.5, 0, 0.5, 0], [0, -0.5, 0, 0.5], [1, 0, 1, 0], [0, 1, 0, 1]])
    coefficients = np.diag([-1.0, -1, 1, 1]) if decoding.corners else center_and_size
    weight = (coefficients[:, :, None] * bins).reshape(4, -1, 1, 1).astype(np.float32)

    def constant(name: str, value: np.ndarray) -> str:
        graph.initializer.append(numpy_helper.from_array(value, f"{stem}_{name}"))
        return f"{stem}_{name}"

    together = f"{stem}_together"
    # A size of 0 is the input's own size at that position, whatever it is.
    sizes = constant("together_shape", np.array([-1, 4 * len(bins), 0], np.int64))
    before = [helper.make_node("Reshape", [decoding.softmax.output[0], sizes], [together], together)]
    decoding.wide.input[0] = together
    decoding.layer.input[1] = constant("box_weight", weight)
    after, anchors = _extend_anchors(index, decoding.anchors, constant, repeat=decoding.corners)
    moved = f"{stem}_moved"
    after.append(helper.make_node("Add", [decoding.flat.output[0], anchors], [moved], moved))
    for slot, name in enumerate(decoding.scaled.input):
        if name == decoding.joined.output[0]:
            decoding.scaled.input[slot] = moved
    removed = set(decoding.removed)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.name in removed:
            continue
        if node.name == decoding.wide.name:
            nodes += before
        if node.name == decoding.scaled.name:
            nodes += after
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    remove_unused_constants(graph)
    _drop_shapes(graph, {decoding.wide.output[0], decoding.layer.output[0], decoding.flat.output[0]})


def _extend_anchors(
    index: GraphIndex, anchors: str, constant: Callable[[str, np.ndarray], str], *, repeat: bool
) -> tuple[list[onnx.NodeProto], str]:
    """Anchors twice, for both corners, or with zeros for width and height: a constant, or nodes that append them."""
    if anchors in index.constants:
        values = index.array(anchors)
        return [], constant("anchors", np.concatenate([values, values if repeat else np.zeros_like(values)], axis=-2))
    if repeat:
        extended = f"{anchors}_twice"
        return [helper.make_node("Concat", [anchors, anchors], [extended], extended, axis=-2)], extended
    zero = constant("zero", np.array(0, np.float32))
    zeros, extended = f"{zero}_sizes", f"{zero}_anchors"
    return [
        helper.make_node("Mul", [anchors, zero], [zeros], zeros),
        helper.make_node("Concat", [anchors, zeros], [extended], extended, axis=-2),
    ], extended


# Fold sums: a sum that a concatenation holds beside one of its terms becomes part of the weights behind it.


def fold_sums(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Leave out sums that are concatenated with one of their terms; the graph is modified and returned.

    The last bottleneck of C2f and of C3k2 adds its input `a` to its result `b`; the sum is read by a concatenation
    alone, which holds `a` too, and a convolution with weights `(V, W)` reads that:

        V a + W (a + b) = (V + W) a + W b

    So the concatenation holds `b` in place of the sum, and a kernel that reads two maps and writes one is saved.
    Results agree up to FP32 rounding.

    Args:
        proto: FP32 graph with unique node names, after `remove_copies`.
    """
    index, shapes = GraphIndex(proto), infer_shapes(proto)
    folded: set[str] = set()
    for concat in proto.graph.node:
        conv = index.sole_consumer(concat.output[0]) if concat.op_type == "Concat" else None
        if conv is None or index.axis(concat) != 1 or not is_dense_conv(index, conv) or index.weight(conv) is None:
            continue
        counts = [shapes[name][1] if len(shapes.get(name, ())) == 4 else 0 for name in concat.input]
        if not all(counts):
            continue
        begins = np.cumsum([0, *counts[:-1]]).tolist()
        places = dict(zip(concat.input, begins, strict=True))
        weight = index.array(conv.input[1]).copy()
        for place, (name, begin, count) in enumerate(zip(list(concat.input), begins, counts, strict=True)):
            total = index.producer.get(name)
            if total is None or total.op_type != "Add" or index.sole_consumer(name) is None:
                continue
            for first, second in (tuple(total.input), tuple(reversed(total.input))):
                at = _find_channels(index, shapes, places, first)
                # Open sides count as equal: if one were broadcast after all, the concatenation would refuse it.
                if at is None or index.sole_consumer(second) is None or shapes.get(second) != shapes[first]:
                    continue
                weight[:, at : at + count] += weight[:, begin : begin + count]
                concat.input[place] = second
                folded.add(total.name)
                break
        if not np.array_equal(weight, index.array(conv.input[1])):
            _set_weight(proto.graph, conv, weight)
    nodes = [node for node in proto.graph.node if node.name not in folded]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    remove_unused_constants(proto.graph)
    return proto


def _find_channels(index: GraphIndex, shapes: Shapes, places: Mapping[str, int], name: str) -> int | None:
    """The first channel of a tensor within a concatenation that holds it, or what it was split from; None if neither.

    Args:
        index: Of the graph.
        shapes: Of its tensors.
        places: The first channel of each input of the concatenation.
        name: The tensor.
    """
    if name in places:
        return places[name]
    split = index.producer.get(name)
    if split is None or split.op_type != "Split" or index.axis(split) != 1 or split.input[0] not in places:
        return None
    outputs = list(split.output)
    if any(len(shapes.get(one, ())) != 4 for one in outputs):
        return None
    return places[split.input[0]] + sum(shapes[one][1] for one in outputs[: outputs.index(name)])


def _set_weight(graph: onnx.GraphProto, conv: onnx.NodeProto, weight: np.ndarray) -> None:
    """Give a convolution a weight of its own; others may read the one that it has."""
    used = {tensor.name for tensor in graph.initializer}
    name = f"{conv.name}_weight"
    while name in used:
        name += "_"
    graph.initializer.append(numpy_helper.from_array(weight, name))
    conv.input[1] = name
