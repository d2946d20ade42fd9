"""The same values with fewer copies: what a graph moves about only because of how it was written down.

TensorRT runs a split, a concatenation or a transposition as a kernel of its own wherever it can't read the source in
place. Each of these rewritings is exact: no number that leaves the graph changes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

from trtkit.graph.structure import View

__all__ = ["without_copies"]

EXPECTATION = ["Reshape", "Transpose", "Softmax", "Conv", "Reshape"]
"""How exporters write the expectation over the bins of each box side."""


def without_copies(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Read what is already in place; the graph is changed and returned.

    - A concatenation of both halves of a split reads what was split: one copy instead of two, and none where the layer
      before can write there.
    - The expectation over box sides (distribution focal loss, Li et al., 2020, arXiv:2006.04388) takes its bins where
      they are instead of transposing them to the front.

    Args:
        proto: FP32 graph with unique node names.
    """
    _concatenate_sources(proto.graph)
    _keep_bins_in_place(proto)
    return proto


def _concatenate_sources(graph: onnx.GraphProto) -> None:
    maker = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type == "Concat":
            sources = list(_sources(node, maker))
            # One source alone would be no concatenation.
            if len(sources) > 1:
                node.input[:] = sources


def _sources(node: onnx.NodeProto, maker: dict[str, onnx.NodeProto]) -> Iterator[str]:
    """What a concatenation reads, with the source of a split in place of all its parts."""
    inputs, at = list(node.input), 0
    while at < len(inputs):
        before = maker.get(inputs[at])
        parts = list(before.output) if before is not None else []
        if (
            before is not None
            and before.op_type == "Split"
            and View.axis(before) == View.axis(node)
            and inputs[at : at + len(parts)] == parts
        ):
            yield before.input[0]
            at += len(parts)
        else:
            yield inputs[at]
            at += 1


def _keep_bins_in_place(proto: onnx.ModelProto) -> None:
    """(N, 4 x 16, A) -> (4 N, 16, A) is the same memory; (N, 4, 16, A) -> (N, 16, 4, A) is another."""
    view = View(proto)
    inferred = onnx.shape_inference.infer_shapes(proto)
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in inferred.graph.value_info}
    for name in sorted(view.expectations()):
        layer = view.nodes[name]
        chain = [layer]
        for _ in range(3):
            maker = view.producer.get(chain[0].input[0])
            if maker is None or view.sole_reader(maker.output[0]) is None:
                break
            chain.insert(0, maker)
        after = view.sole_reader(layer.output[0])
        if after is None or [node.op_type for node in (*chain, after)] != EXPECTATION:
            continue
        spread, transpose, softmax, _ = chain
        sizes, flat = (_sizes(view, node) for node in (spread, after))
        permuted = next((list(a.ints) for a in transpose.attribute if a.name == "perm"), [])
        # Sides and bins must be known, the bins brought to the front, summed up there, and weighed into one channel.
        if len(sizes) != 4 or min(sizes[1:3]) < 1 or permuted != [0, 2, 1, 3] or view.axis(softmax) != 1:
            continue
        if ranks.get(spread.input[0]) != 3 or len(flat) != 3 or flat[1] != sizes[1]:
            continue
        if list(view.constants[layer.input[1]].dims) == [1, sizes[2], 1, 1]:
            _rewrite(proto.graph, (spread, transpose, softmax, layer, after), sides=sizes[1], bins=sizes[2])


def _rewrite(graph: onnx.GraphProto, chain: tuple[onnx.NodeProto, ...], *, sides: int, bins: int) -> None:
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


def _sizes(view: View, reshape: onnx.NodeProto) -> list[int]:
    """What a Reshape asks for, with 0 for its input's own size; nothing where that is computed or 0 means 0."""
    if reshape.input[1] not in view.constants or any(a.name == "allowzero" and a.i for a in reshape.attribute):
        return []
    return [int(size) for size in view.array(reshape.input[1])]
