"""Boxes straight from the bins of their sides: a detector's decoding as one layer instead of eight."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

from trtkit.graph.analysis import GraphIndex
from trtkit.graph.builder import remove_unused_initializers

__all__ = ["fuse_box_decoding", "remove_copies"]


def fuse_box_decoding(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Take a box's center and size from its bins by one convolution; the graph is changed and returned.

    The distances `l, t, r, b` of an anchor to the sides of its box are expectations over bins (distribution focal loss,
    Li et al., 2020, arXiv:2006.04388). Center and size are linear in them:

        (x + (r - l) / 2, y + (b - t) / 2, l + r, t + b)

    so one convolution from the bins of all sides gives them but for the anchor, instead of one convolution to a single
    channel, which GPUs hardly fill, and seven sums, differences and copies of half a box each. Results agree but for
    the rounding of FP32. Decodings written another way, such as those of turned boxes, are left alone.

    Args:
        proto: FP32 graph with unique node names, after `remove_copies`.
    """
    view = GraphIndex(proto)
    for name in sorted(view.dfl_layers()):
        found = _BoxDecoding.at(view, view.nodes[name])
        if found is not None:
            _rewrite_box_decoding(view, found)
            view = GraphIndex(proto)
    return proto


@dataclasses.dataclass(frozen=True, kw_only=True)
class _BoxDecoding:
    """The nodes from the bins to the box, in their order."""

    softmax: onnx.NodeProto
    wide: onnx.NodeProto
    layer: onnx.NodeProto
    flat: onnx.NodeProto
    between: tuple[str, ...]
    """Names of what falls away: from the distances to center and size side by side."""
    joined: onnx.NodeProto
    scaled: onnx.NodeProto
    anchors: str

    @classmethod
    def at(cls, view: GraphIndex, layer: onnx.NodeProto) -> _BoxDecoding | None:
        """What surrounds the layer that weighs the bins, None where that is no such decoding."""
        wide = view.producer.get(layer.input[0])
        softmax = view.producer.get(wide.input[0]) if wide is not None else None
        flat = _sole_consumer_of_type(view, layer.output[0], "Squeeze")
        sides = _sole_consumer_of_type(view, flat.output[0], "Reshape") if flat is not None else None
        split = _sole_consumer_of_type(view, sides.output[0], "Split") if sides is not None else None
        if wide is None or softmax is None or flat is None or sides is None or split is None:
            return None
        bins = list(view.constants[layer.input[1]].dims)
        if (
            (softmax.op_type, view.axis(softmax), wide.op_type) != ("Softmax", 1, "Unsqueeze")
            or [_read_second_input(view, node) for node in (wide, flat, sides, split)] != [[2], [2], [-1, 4, 0], [2, 2]]
            or (len(layer.input), bins, view.axis(split)) != (2, [1, bins[1], 1, 1], 1)
        ):
            return None
        low, high = (
            _sole_consumer_of_type(view, name, kind) for name, kind in zip(split.output, ("Sub", "Add"), strict=True)
        )
        if low is None or high is None or low.input[1] != split.output[0] or not _has_two_rows(view, low.input[0]):
            return None
        if sorted(high.input) != sorted((low.input[0], split.output[1])):
            return None
        corners = [low.output[0], high.output[0]]
        ends = [{node.op_type: node for node in view.consumers[name]} for name in corners]
        if [sorted(readers) for readers in ends] != [["Add", "Sub"]] * 2 or ends[0] != ends[1]:
            return None
        total, size = ends[0]["Add"], ends[0]["Sub"]
        center = _sole_consumer_of_type(view, total.output[0], "Div")
        joined = _sole_consumer_of_type(view, size.output[0], "Concat")
        scaled = _sole_consumer_of_type(view, joined.output[0], "Mul") if joined is not None else None
        if center is None or joined is None or scaled is None or _read_second_input(view, center) != [2]:
            return None
        if list(size.input) != corners[::-1] or list(joined.input) != [center.output[0], size.output[0]]:
            return None
        if view.axis(joined) != 1:
            return None
        between = (sides, split, low, high, total, size, center, joined)
        return cls(
            softmax=softmax, wide=wide, layer=layer, flat=flat, between=tuple(node.name for node in between),
            joined=joined, scaled=scaled, anchors=low.input[0],
        )  # fmt: skip


def _sole_consumer_of_type(view: GraphIndex, name: str, operator: str) -> onnx.NodeProto | None:
    """The one node that reads a tensor, if it is of this kind."""
    reader = view.sole_consumer(name)
    return reader if reader is not None and reader.op_type == operator else None


def _read_second_input(view: GraphIndex, node: onnx.NodeProto) -> list[float]:
    """What a node's second input holds: axes, a shape, sizes, a divisor; nothing where that is computed."""
    known = len(node.input) > 1 and node.input[1] in view.constants
    return [float(number) for number in view.array(node.input[1]).reshape(-1)] if known else []


def _has_two_rows(view: GraphIndex, name: str) -> bool:
    """Whether a tensor holds x and y, so that a box's four numbers are twice as many."""
    if name in view.constants:
        dims = list(view.constants[name].dims)
    else:
        inferred = onnx.shape_inference.infer_shapes(view.proto).graph
        values = [*inferred.value_info, *inferred.input]
        shape = next((value.type.tensor_type.shape for value in values if value.name == name), None)
        dims = [side.dim_value for side in shape.dim] if shape is not None else []
    return len(dims) > 1 and dims[-2] == 2


def _rewrite_box_decoding(view: GraphIndex, found: _BoxDecoding) -> None:
    graph, stem = view.graph, found.layer.name
    bins = view.array(found.layer.input[1]).reshape(-1).astype(np.float64)
    # Rows: center x and y, width and height; columns: what left, top, right and bottom give to each.
    shares = np.array([[-0.5, 0, 0.5, 0], [0, -0.5, 0, 0.5], [1, 0, 1, 0], [0, 1, 0, 1]])
    weight = (shares[:, :, None] * bins).reshape(4, -1, 1, 1).astype(np.float32)

    def constant(name: str, value: np.ndarray) -> str:
        graph.initializer.append(numpy_helper.from_array(value, f"{stem}_{name}"))
        return f"{stem}_{name}"

    together = f"{stem}_together"
    # A 0 takes the input's own size at that place, whatever it is.
    sizes = constant("together_shape", np.array([-1, 4 * len(bins), 0], np.int64))
    before = [helper.make_node("Reshape", [found.softmax.output[0], sizes], [together], together)]
    found.wide.input[0] = together
    found.layer.input[1] = constant("box_weight", weight)
    after, anchors = _extend_anchors(view, found.anchors, constant)
    moved = f"{stem}_moved"
    after.append(helper.make_node("Add", [found.flat.output[0], anchors], [moved], moved))
    for index, name in enumerate(found.scaled.input):
        if name == found.joined.output[0]:
            found.scaled.input[index] = moved
    gone = set(found.between)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.name in gone:
            continue
        if node.name == found.wide.name:
            nodes += before
        if node.name == found.scaled.name:
            nodes += after
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    remove_unused_initializers(graph)
    changed = {found.wide.output[0], found.layer.output[0], found.flat.output[0]}
    shapes = [value for value in graph.value_info if value.name not in changed]
    del graph.value_info[:]
    graph.value_info.extend(shapes)


def _extend_anchors(
    view: GraphIndex, anchors: str, constant: Callable[[str, np.ndarray], str]
) -> tuple[list[onnx.NodeProto], str]:
    """Anchors for centers and nothing for sizes: a constant where they are one, else the nodes that join them."""
    if anchors in view.constants:
        values = view.array(anchors)
        return [], constant("anchors", np.concatenate([values, np.zeros_like(values)], axis=-2))
    zero = constant("zero", np.array(0, np.float32))
    nothing, both = f"{zero}_sizes", f"{zero}_anchors"
    return [
        helper.make_node("Mul", [anchors, zero], [nothing], nothing),
        helper.make_node("Concat", [anchors, nothing], [both], both, axis=-2),
    ], both


# The same values with fewer copies: what a graph moves about only because of how it was written down.
#
# TensorRT runs a split, a concatenation or a transposition as a kernel of its own wherever it can't read the source in
# place. Each of these rewritings is exact: no number that leaves the graph changes.


DFL_CHAIN = ["Reshape", "Transpose", "Softmax", "Conv", "Reshape"]
"""How exporters write the expectation over the bins of each box side."""


def remove_copies(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Read what is already in place; the graph is changed and returned.

    - A concatenation of both halves of a split reads what was split: one copy instead of two, and none where the layer
      before can write there.
    - The expectation over box sides (distribution focal loss, Li et al., 2020, arXiv:2006.04388) takes its bins where
      they are instead of transposing them to the front.

    Args:
        proto: FP32 graph with unique node names.
    """
    _concatenate_sources(proto.graph)
    _remove_dfl_transposes(proto)
    return proto


def _concatenate_sources(graph: onnx.GraphProto) -> None:
    maker = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type == "Concat":
            sources = list(_concat_sources(node, maker))
            # One source alone would be no concatenation.
            if len(sources) > 1:
                node.input[:] = sources


def _concat_sources(node: onnx.NodeProto, maker: dict[str, onnx.NodeProto]) -> Iterator[str]:
    """What a concatenation reads, with the source of a split in place of all its parts."""
    inputs, at = list(node.input), 0
    while at < len(inputs):
        before = maker.get(inputs[at])
        parts = list(before.output) if before is not None else []
        if (
            before is not None
            and before.op_type == "Split"
            and GraphIndex.axis(before) == GraphIndex.axis(node)
            and inputs[at : at + len(parts)] == parts
        ):
            yield before.input[0]
            at += len(parts)
        else:
            yield inputs[at]
            at += 1


def _remove_dfl_transposes(proto: onnx.ModelProto) -> None:
    """(N, 4 x 16, A) -> (4 N, 16, A) is the same memory; (N, 4, 16, A) -> (N, 16, 4, A) is another."""
    view = GraphIndex(proto)
    inferred = onnx.shape_inference.infer_shapes(proto)
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in inferred.graph.value_info}
    for name in sorted(view.dfl_layers()):
        layer = view.nodes[name]
        chain = [layer]
        for _ in range(3):
            maker = view.producer.get(chain[0].input[0])
            if maker is None or view.sole_consumer(maker.output[0]) is None:
                break
            chain.insert(0, maker)
        after = view.sole_consumer(layer.output[0])
        if after is None or [node.op_type for node in (*chain, after)] != DFL_CHAIN:
            continue
        spread, transpose, softmax, _ = chain
        sizes, flat = (_read_reshape_sizes(view, node) for node in (spread, after))
        permuted = next((list(a.ints) for a in transpose.attribute if a.name == "perm"), [])
        # Sides and bins must be known, the bins brought to the front, summed up there, and weighed into one channel.
        if len(sizes) != 4 or min(sizes[1:3]) < 1 or permuted != [0, 2, 1, 3] or view.axis(softmax) != 1:
            continue
        if ranks.get(spread.input[0]) != 3 or len(flat) != 3 or flat[1] != sizes[1]:
            continue
        if list(view.constants[layer.input[1]].dims) == [1, sizes[2], 1, 1]:
            _rewrite_dfl(proto.graph, (spread, transpose, softmax, layer, after), sides=sizes[1], bins=sizes[2])


def _rewrite_dfl(graph: onnx.GraphProto, chain: tuple[onnx.NodeProto, ...], *, sides: int, bins: int) -> None:
    spread, transpose, softmax, layer, after = chain

    def constant(name: str, values: list[int]) -> str:
        graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    # A 0 takes the input's own size at that place, whatever it is.
    spread.input[1] = constant(f"{spread.name}_in_place_shape", [-1, bins, 0])
    softmax.input[0] = spread.output[0]
    axis = constant(f"{layer.name}_axis", [2])
    wide, flat = f"{layer.name}_wide", f"{layer.name}_flat"
    widen = helper.make_node("Unsqueeze", [softmax.output[0], axis], [wide], wide)
    narrow = helper.make_node("Squeeze", [layer.output[0], axis], [flat], flat)
    layer.input[0] = wide
    after.input[0] = flat
    after.input[1] = constant(f"{after.name}_in_place_shape", [-1, sides, 0])
    reshaped = {node.output[0] for node in (spread, softmax, layer)}
    shapes = [value for value in graph.value_info if value.name not in reshaped]
    del graph.value_info[:]
    graph.value_info.extend(shapes)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.name == transpose.name:
            continue
        nodes += [widen, node, narrow] if node.name == layer.name else [node]
    del graph.node[:]
    graph.node.extend(nodes)


def _read_reshape_sizes(view: GraphIndex, reshape: onnx.NodeProto) -> list[int]:
    """What a Reshape asks for, with 0 for its input's own size; nothing where that is computed or 0 means 0."""
    if reshape.input[1] not in view.constants or any(a.name == "allowzero" and a.i for a in reshape.attribute):
        return []
    return [int(size) for size in view.array(reshape.input[1])]
