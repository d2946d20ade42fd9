"""Compute narrow layers of high resolution on blocks of pixels: less padding in TensorRT's INT8 kernels.

The first maps of a small detector have 16 and 8 channels, where TensorRT's INT8 kernels store 32 of a pixel together.
Here blocks of 2 x 2 pixels become channels (ONNX's SpaceToDepth, by channel and then by place in the block): 8 channels
of 160 x 160 are 32 of 80 x 80. No operator is added: a convolution over blocks has the weights of that over pixels,
moved, and zeros elsewhere. One that reads pixels gives the first blocks, and those with a stride read the last.
"""

from __future__ import annotations

import copy
import math

import onnx

from trtkit.graph.analysis import GraphIndex, Shapes, infer_shapes
from trtkit.graph.conv_weights import add_constant
from trtkit.graph.editing import remove_unused_constants
from trtkit.graph.pad_channels import CHANNEL_BLOCK
from trtkit.graph.space_to_depth import (
    LEAST_GAIN,
    Region,
    Sides,
    find_region,
    move_conv,
    read_blocks,
)

__all__ = ["make_blocks", "move_space_to_depth"]


def make_blocks(proto: onnx.ModelProto, side: int) -> onnx.ModelProto:
    """Read blocks of pixels that the graph makes of its input itself.

    Args:
        proto: As for `read_blocks`; not modified.
        side: 2 or 4, pixels.
    """
    result = read_blocks(proto, side)
    graph = result.graph
    name = graph.input[0].name
    graph.input[0].CopyFrom(proto.graph.input[0])
    for node in graph.node:
        node.input[:] = ["pixels_in_blocks" if one == name else one for one in node.input]
    graph.node.insert(
        0, onnx.helper.make_node("SpaceToDepth", [name], ["pixels_in_blocks"], "pixels_blocks", blocksize=side)
    )
    return result


def move_space_to_depth(
    proto: onnx.ModelProto, fold: Sides = (2, 2), *, block: int = CHANNEL_BLOCK, least_gain: float = LEAST_GAIN
) -> onnx.ModelProto:
    """Move pixels of narrow maps into channels, wherever all that reads such a map can read blocks.

    Args:
        proto: Graph of fixed shapes with or without Q/DQ, unique node names; not modified.
        fold: Height and width of a block, pixels.
        block: Channels that a kernel stores together.
        least_gain: As `LEAST_GAIN`.

    Returns:
        A graph with the same outputs. Open shapes stay as they are.
    """
    result, moved = copy.deepcopy(proto), set[str]()
    while True:
        index, shapes = GraphIndex(result), infer_shapes(result)
        regions = [find_region(index, shapes, node, fold) for node in result.graph.node if node.op_type == "Conv"]
        chosen = max(
            (one for one in regions if one is not None and moved.isdisjoint(node.name for node in one.convs)),
            key=lambda one: one.gain(fold, block),
            default=None,
        )
        if chosen is None or chosen.gain(fold, block) < least_gain:
            return result
        moved |= {node.name for node in chosen.convs}
        _apply(index, chosen, shapes, fold)


def _apply(index: GraphIndex, region: Region, shapes: Shapes, fold: Sides) -> None:
    within = {node.name for node in region.convs}
    for node in (*region.convs, *region.last):
        reads = (1, 1) if node.name == region.first.name else fold
        move_conv(index, node, shapes, reads, fold if node.name in within else (1, 1))
    for node in region.splits:
        if len(node.input) > 1:
            sizes = index.array(node.input[1]) * math.prod(fold)
            node.input[1] = add_constant(index.graph, f"{node.name}_folded_sizes", sizes)
    # Recorded shapes are out of date.
    del index.graph.value_info[:]
    remove_unused_constants(index.graph)
