"""Compute narrow layers of high resolution on blocks of pixels: less padding in TensorRT's INT8 kernels.

INT8 convolutions store 32 channels of a pixel together (TensorRT's format kCHW32), so that a map of 8 channels takes
as much memory, and its convolutions as much time, as one of 32. The first maps of a small detector are such. Here
blocks of 2 x 2 pixels become channels (ONNX's SpaceToDepth, by channel and then by place in the block): 8 channels of
160 x 160 are 32 of 80 x 80. No operator is added: a convolution over blocks has the weights of that over pixels, moved,
and zeros elsewhere. One that reads pixels gives the first blocks, and those with a stride read the last.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from trtkit.graph.analysis import GraphIndex
from trtkit.graph.conv_weights import add_constant, is_dense_conv, list_weight_qdq
from trtkit.graph.editing import remove_unused_constants
from trtkit.graph.pad_channels import CHANNEL_BLOCK

__all__ = ["LEAST_GAIN", "move_space_to_depth", "read_blocks"]

LEAST_GAIN = 1.25
"""Maps are moved if they take so many times the memory of blocks: convolutions over blocks also multiply by zeros."""

ELEMENTWISE_OPS = (
    "Add", "Clip", "DequantizeLinear", "Elu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Mul",
    "QuantizeLinear", "Relu", "Sigmoid", "Sub",
)  # fmt: skip
"""Operators that treat each value by itself, where their constants are scalars."""

Sides = tuple[int, int]
Shapes = Mapping[str, tuple[int, ...]]


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
        index, shapes = GraphIndex(result), _infer_shapes(result)
        regions = [_find_region(index, shapes, node, fold) for node in result.graph.node if node.op_type == "Conv"]
        chosen = max(
            (one for one in regions if one is not None and moved.isdisjoint(node.name for node in one.convs)),
            key=lambda one: one.gain(fold, block),
            default=None,
        )
        if chosen is None or chosen.gain(fold, block) < least_gain:
            return result
        moved |= {node.name for node in chosen.convs}
        _apply(index, chosen, shapes, fold)


def read_blocks(proto: onnx.ModelProto, side: int, *, in_graph: bool = False) -> onnx.ModelProto:
    """Take blocks of pixels as channels, since three channels fill a tenth of what an INT8 kernel reads at once.

    Args:
        proto: Graph of a fixed input (N, C, H, W), with or without Q/DQ, whose first convolution has stride 2; not
            modified.
        side: 2 or 4: pixels of a block's side. With 4 the first convolution gives blocks of 2 x 2 too.
        in_graph: Whether the graph makes the blocks, of its input as it was.

    Returns:
        The graph, of an input (N, C x side^2, H / side, W / side) in the order of ONNX's SpaceToDepth: row, column,
        color.
    """
    result = copy.deepcopy(proto)
    graph, index, shapes = result.graph, GraphIndex(result), _infer_shapes(result)
    first = next(node for node in graph.node if node.op_type == "Conv")
    gives = (side // 2, side // 2)
    if side == 4:
        region = _find_region(index, shapes, first, gives)
        assert region is not None, "the first map is read otherwise than by convolutions with a stride"
        assert len(region.convs) == 1, "the first map is read by convolutions of its resolution"
        for node in region.last:
            _move_conv(index, node, shapes, gives, (1, 1))
    _move_conv(index, first, shapes, (side, side), gives, colors_last=True)
    name, shape = graph.input[0].name, graph.input[0].type.tensor_type.shape.dim
    if in_graph:
        for node in graph.node:
            node.input[:] = ["pixels_in_blocks" if one == name else one for one in node.input]
        make_blocks = onnx.helper.make_node(
            "SpaceToDepth", [name], ["pixels_in_blocks"], "pixels_blocks", blocksize=side
        )
        graph.node.insert(0, make_blocks)
    else:
        shape[1].dim_value *= side**2
        for place in (2, 3):
            shape[place].dim_value //= side
    del graph.value_info[:]
    remove_unused_constants(graph)
    return result


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Region:
    """Maps of one resolution, and all that computes or reads them.

    Attributes:
        first: The convolution that computes the first map.
        convs: Those within.
        last: Those that read maps of the region with a stride and compute none.
        splits: Splits of channels.
        channels: Of each map that a convolution, sum or concatenation computes.
    """

    first: onnx.NodeProto
    convs: Sequence[onnx.NodeProto]
    last: Sequence[onnx.NodeProto]
    splits: Sequence[onnx.NodeProto]
    channels: Sequence[int]

    def gain(self, fold: Sides, block: int) -> float:
        """How many times the memory the maps take as they are."""
        count = math.prod(fold)
        before = sum(math.ceil(channels / block) for channels in self.channels)
        after = sum(math.ceil(channels * count / block) for channels in self.channels)
        return before * count / after


def _infer_shapes(proto: onnx.ModelProto) -> Shapes:
    """Shapes by name, 0 where a side is open."""
    graph = onnx.shape_inference.infer_shapes(proto).graph
    return {
        value.name: tuple(int(side.dim_value) for side in value.type.tensor_type.shape.dim)
        for value in (*graph.value_info, *graph.output, *graph.input)
    }


def _find_region(index: GraphIndex, shapes: Shapes, first: onnx.NodeProto, fold: Sides) -> _Region | None:
    """What the map of a convolution reaches at its resolution; None where it reaches what can't read blocks."""
    start = first.output[0]
    sides = shapes.get(start, ())[2:]
    if (
        not _is_foldable(index, first)
        or len(sides) != 2
        or any(not side or side % by for side, by in zip(sides, fold, strict=True))
    ):
        return None
    outputs = {value.name for value in index.graph.output}
    maps, pending = {start}, [start]
    convs, last, splits = {first.name: first}, dict[str, onnx.NodeProto](), dict[str, onnx.NodeProto]()
    nodes: list[onnx.NodeProto] = []
    while pending:
        name = pending.pop()
        shape = shapes.get(name, ())
        if name in outputs or len(shape) != 4 or shape[2:] != sides or not shape[1]:
            return None
        for reader in index.consumers[name]:
            if reader.op_type == "Conv":
                if not _is_foldable(index, reader) or reader.input[0] != name:
                    return None
                strides = _read_ints(reader, "strides", (1, 1))
                if strides != (1, 1):
                    if any(stride % by for stride, by in zip(strides, fold, strict=True)):
                        return None
                    last[reader.name] = reader
                    continue
                convs[reader.name] = reader
            elif reader.op_type in ("Split", "Concat"):
                if index.axis(reader) != 1:
                    return None
                if reader.op_type == "Split":
                    splits[reader.name] = reader
            elif reader.op_type not in ELEMENTWISE_OPS:
                return None
            if reader not in nodes:
                nodes.append(reader)
                new = set(reader.output) - maps
                maps |= new
                pending += new
    for node in nodes:
        if node.op_type == "Conv":
            continue
        constants = [name for name in node.input if name in index.constants]
        sizes = node.input[1:] if node.op_type == "Split" else ()
        if any(index.array(name).size != 1 for name in constants if name not in sizes):
            return None
        if any(name not in maps for name in node.input if name and name not in constants):
            return None
    if not last:
        return None
    computed = [node.output[0] for node in (first, *nodes) if node.op_type in ("Conv", "Concat", "Add")]
    return _Region(
        first=first,
        convs=list(convs.values()),
        last=list(last.values()),
        splits=list(splits.values()),
        channels=[shapes[name][1] for name in computed],
    )


def _is_foldable(index: GraphIndex, node: onnx.NodeProto) -> bool:
    attributes = {item.name: item for item in node.attribute}
    is_padded_by_number = "auto_pad" not in attributes or attributes["auto_pad"].s in (b"", b"NOTSET")
    return (
        is_dense_conv(index, node)
        and is_padded_by_number
        and _read_ints(node, "dilations", (1, 1)) == (1, 1)
        and len(_read_weights(index, node).shape) == 4
    )


def _read_ints(node: onnx.NodeProto, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    return next((tuple(item.ints) for item in node.attribute if item.name == name), default)


def _read_weights(index: GraphIndex, node: onnx.NodeProto) -> np.ndarray:
    qdq = list_weight_qdq(index, node)
    return index.array(qdq[0].input[0] if qdq else node.input[1])


# The weights over blocks, one axis of the image after the other.


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Axis:
    """A convolution along one axis, over blocks.

    Attributes:
        kernel: Blocks that it reads for an output.
        stride: Blocks from one output to the next.
        pads: Blocks of padding before and after.
        moves: Of each weight the output's place in its block, the step in the kernel before, the input's place in its
            block, and the step in the kernel.
    """

    kernel: int
    stride: int
    pads: Sides
    moves: Sequence[tuple[int, int, int, int]]


def _fold_axis(kernel: int, stride: int, begin: int, sizes: Sides, *, reads: int, gives: int) -> _Axis:
    """A convolution along one axis, over blocks.

    Output p of block b is output `b * gives + p`. It meets pixel `stride * (b * gives + p) + step - begin`, whose block
    and place there are quotient and remainder by `reads`.

    Args:
        kernel: Weights along the axis.
        stride: Pixels from one output to the next.
        begin: Pixels of padding before the first one.
        sizes: Pixels of input and output.
        reads: Pixels of a block of its input; 1 leaves it as it is.
        gives: Pixels of a block of its output.
    """
    places = [
        (output, step, *divmod(stride * output + step - begin, reads))
        for output in range(gives)
        for step in range(kernel)
    ]
    low, high = (function(block for _, _, block, _ in places) for function in (min, max))
    width, by = high - low + 1, stride * gives // reads
    end = by * (sizes[1] // gives - 1) + width - sizes[0] // reads + low
    return _Axis(
        kernel=width,
        stride=by,
        # What lies beyond the last output is not read.
        pads=(-low, max(0, end)),
        moves=[(output, step, at, block - low) for output, step, block, at in places],
    )


def _apply(index: GraphIndex, region: _Region, shapes: Shapes, fold: Sides) -> None:
    within = {node.name for node in region.convs}
    for node in (*region.convs, *region.last):
        reads = (1, 1) if node.name == region.first.name else fold
        _move_conv(index, node, shapes, reads, fold if node.name in within else (1, 1))
    for node in region.splits:
        if len(node.input) > 1:
            sizes = index.array(node.input[1]) * math.prod(fold)
            node.input[1] = add_constant(index.graph, f"{node.name}_folded_sizes", sizes)
    # Recorded shapes are out of date.
    del index.graph.value_info[:]
    remove_unused_constants(index.graph)


def _move_conv(
    index: GraphIndex, node: onnx.NodeProto, shapes: Shapes, reads: Sides, gives: Sides, *, colors_last: bool = False
) -> None:
    """Move the weights of a convolution, and set its kernel, stride and padding.

    Its inputs go by channel and then by place in the block, with `colors_last` by place and then by channel.
    """
    weights = _read_weights(index, node)
    strides, pads = _read_ints(node, "strides", (1, 1)), _read_ints(node, "pads", (0, 0, 0, 0))
    rows, columns = (
        _fold_axis(
            weights.shape[axis], strides[axis - 2], pads[axis - 2],
            (shapes[node.input[0]][axis], shapes[node.output[0]][axis]), reads=reads[axis - 2], gives=gives[axis - 2],
        )
        for axis in (2, 3)
    )  # fmt: skip
    out, channels = weights.shape[:2]
    moved = np.zeros((out, *gives, channels, *reads, rows.kernel, columns.kernel), weights.dtype)
    for p, y, at_y, to_y in rows.moves:
        for q, x, at_x, to_x in columns.moves:
            moved[:, p, q, :, at_y, at_x, to_y, to_x] = weights[:, :, y, x]
    if colors_last:
        moved = np.moveaxis(moved, 3, 5)
    kernel = (rows.kernel, columns.kernel)
    _store(index, node, moved.reshape(out * math.prod(gives), channels * math.prod(reads), *kernel), math.prod(gives))
    kept = [item for item in node.attribute if item.name not in ("kernel_shape", "strides", "pads")]
    del node.attribute[:]
    node.attribute.extend(kept)
    for name, values in (
        ("kernel_shape", kernel),
        ("strides", (rows.stride, columns.stride)),
        ("pads", (rows.pads[0], columns.pads[0], rows.pads[1], columns.pads[1])),
    ):
        node.attribute.append(onnx.helper.make_attribute(name, values))


def _store(index: GraphIndex, node: onnx.NodeProto, weights: np.ndarray, repeats: int) -> None:
    """Give a convolution other weights, and its bias and scales of each channel as often as there are outputs."""
    qdq = list_weight_qdq(index, node)

    def replace(reader: onnx.NodeProto, place: int, value: np.ndarray) -> None:
        # Others may read the same constant.
        name = f"{node.name}_{reader.input[place]}_folded"
        reader.input[place] = add_constant(index.graph, name, value)

    for reader in (*qdq, node):
        # The bias, or scale and zero point, of which a tensor may have one each.
        for place in range(2 if reader is node else 1, len(reader.input)):
            name = reader.input[place]
            if repeats > 1 and name and (reader is node or index.array(name).size > 1):
                replace(reader, place, np.repeat(index.array(name), repeats))
    replace(*((qdq[0], 0) if qdq else (node, 1)), weights)
