"""Pixels in blocks as the input of an INT8 or FP16 graph: fewer bytes, and no kernel that converts them.

INT8 convolutions store 32 channels of a pixel together (TensorRT's format kCHW32), so that an image of 3 channels takes
as much memory, and its convolution as much time, as one of 32; FP16 ones store 8 (kHWC8). Here blocks of 2 x 2 or 4 x 4
pixels become channels (ONNX's SpaceToDepth). The first convolution has the same weights, moved, and zeros elsewhere;
where its result is narrow too, it gives that in blocks of 2 x 2, which the convolutions behind it read. No operator is
added.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Collection, Sequence

import numpy as np
import onnx

from trtkit.errors import RecipeError
from trtkit.graph.analysis import GraphIndex, Shapes, infer_shapes
from trtkit.graph.conv_weights import add_constant, is_dense_conv, list_weight_qdq
from trtkit.graph.editing import remove_unused_constants
from trtkit.graph.onnx_file import read_trtkit_metadata, update_metadata
from trtkit.graph.pad_channels import CHANNEL_BLOCK
from trtkit.models.model import PixelInput

__all__ = [
    "LANES",
    "LEAST_GAIN",
    "Region",
    "check_space_to_depth",
    "convert_input",
    "find_region",
    "infer_shapes",
    "move_conv",
    "read_blocks",
    "read_pixel_input",
    "use_pixel_blocks",
]

LANES = 4
"""Channels of a pixel in a block: red, green, blue and one that is not read."""

LEAST_GAIN = 1.25
"""Maps are moved if they take so many times the memory of blocks: convolutions over blocks also multiply by zeros."""

ELEMENTWISE_OPS = (
    "Add", "Clip", "DequantizeLinear", "Elu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Mul",
    "QuantizeLinear", "Relu", "Sigmoid", "Sub",
)  # fmt: skip
"""Operators that treat each value by itself, where their constants are scalars."""

Sides = tuple[int, int]


def check_space_to_depth(proto: onnx.ModelProto, *, kept: Collection[str] = ()) -> None:
    """Check that a graph can read blocks of pixels.

    Args:
        proto: Graph with or without Q/DQ.
        kept: Names of nodes that are to be excluded from the precision.

    Raises:
        RecipeError: It can't.
    """
    index, shapes = GraphIndex(proto), infer_shapes(proto)
    first = _find_first_conv(index)
    shape = shapes[proto.graph.input[0].name]
    if len(proto.graph.input) != 1:
        reason = f"it has {len(proto.graph.input)} inputs"
    elif first is None:
        reason = "a node other than one convolution reads its images"
    elif not _is_foldable(index, first) or _read_ints(first, "strides", (1, 1)) != (2, 2):
        reason = f"its first convolution, {first.name!r}, has groups, dilation, or a stride other than 2"
    elif len(shape) != 4 or not all(shape) or shape[1] > LANES or shape[2] % 4 or shape[3] % 4:
        reason = f"its input has the shape {tuple(side or '?' for side in shape)}"
    elif first.name in kept:
        reason = f"its first convolution, {first.name!r}, is excluded from the precision"
    else:
        return
    raise RecipeError(
        "export with space_to_depth=True",
        reason,
        f"it takes images alone, of fixed shapes, at most {LANES} channels and sides that are multiples of 4, read by "
        "one INT8 or FP16 convolution of stride 2; leave out space_to_depth for any other graph",
        code="space-to-depth-not-applicable",
        reason=reason,
    )


def use_pixel_blocks(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Read pixels in blocks, in the precision of the first convolution; `read_pixel_input` describes them.

    Args:
        proto: Graph of an export in INT8 or FP16; not modified.

    Raises:
        RecipeError: The graph can't read blocks, or does not convert its input to INT8 or FP16.
    """
    check_space_to_depth(proto)
    index = GraphIndex(proto)
    first = _find_first_conv(index)
    assert first is not None
    shapes = infer_shapes(proto)
    region = find_region(index, shapes, first, (2, 2))
    is_narrow = region is not None and len(region.convs) == 1 and region.gain((2, 2), CHANNEL_BLOCK) >= LEAST_GAIN
    pixels = PixelInput(side=4 if is_narrow else 2, scale=_read_scale(index))
    result = convert_input(read_blocks(proto, pixels.side, lanes=LANES))
    return update_metadata(result, {}, {"pixel_input": dataclasses.asdict(pixels)})


def _read_scale(index: GraphIndex) -> float | None:
    """The scale of the input's quantization to INT8, None where it is cast to FP16."""
    converts = index.consumers[index.graph.input[0].name][0]
    if any(item.name == "to" and item.i == onnx.TensorProto.FLOAT16 for item in converts.attribute):
        return None
    constants = [index.array(name) for name in converts.input[1:] if name in index.constants]
    if converts.op_type == "QuantizeLinear" and len(constants) == 2:
        scale, zero_point = constants
        if scale.size == 1 and zero_point.dtype == np.int8 and not zero_point.any():
            return float(scale.reshape(()))
    raise RecipeError(
        "export with space_to_depth=True",
        "the graph converts its images neither to FP16 nor to INT8 by one scale with zero point 0",
        "leave out space_to_depth, or let the first convolution run in the export's precision",
        code="space-to-depth-input-type",
    )


def read_pixel_input(proto: onnx.ModelProto) -> PixelInput | None:
    """The input of a graph that `use_pixel_blocks` gave; None for any other graph.

    Args:
        proto: The graph.
    """
    value = read_trtkit_metadata(proto).get("pixel_input")
    return None if value is None else PixelInput(**value)


def read_blocks(proto: onnx.ModelProto, side: int, *, lanes: int | None = None) -> onnx.ModelProto:
    """Take blocks of pixels as channels.

    Args:
        proto: Graph of a fixed input (N, C, H, W), with or without Q/DQ, which a convolution of stride 2 reads; not
            modified.
        side: 2 or 4: pixels of a block's side. With 4 the first convolution gives blocks of 2 x 2 too.
        lanes: Channels of a pixel in a block, of which those beyond C are not read; None takes C.

    Returns:
        The graph, of an input (N, lanes x side^2, H / side, W / side) in the order of ONNX's SpaceToDepth: row, column,
        color.
    """
    result = copy.deepcopy(proto)
    graph, index, shapes = result.graph, GraphIndex(result), infer_shapes(result)
    first = _find_first_conv(index)
    assert first is not None, "a node other than one convolution reads the input"
    gives = (side // 2, side // 2)
    if side == 4:
        region = find_region(index, shapes, first, gives)
        assert region is not None, "the first map is read otherwise than by convolutions with a stride"
        assert len(region.convs) == 1, "the first map is read by convolutions of its resolution"
        for node in region.last:
            move_conv(index, node, shapes, gives, (1, 1))
    sides = graph.input[0].type.tensor_type.shape.dim
    lanes = lanes or sides[1].dim_value
    move_conv(index, first, shapes, (side, side), gives, lanes=lanes)
    for place, value in ((1, lanes * side**2), (2, sides[2].dim_value // side), (3, sides[3].dim_value // side)):
        sides[place].dim_value = value
    del graph.value_info[:]
    remove_unused_constants(graph)
    return result


def convert_input(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Take the input as the graph converts it: INT8, x / scale rounded, or FP16.

    Args:
        proto: Graph whose input a QuantizeLinear or a Cast to FP16 reads; modified and returned.
    """
    graph = proto.graph
    value = graph.input[0]
    converts = next(
        node for node in graph.node if node.op_type in ("QuantizeLinear", "Cast") and node.input[0] == value.name
    )
    for node in graph.node:
        node.input[:] = [value.name if one == converts.output[0] else one for one in node.input]
    graph.node.remove(converts)
    is_cast = converts.op_type == "Cast"
    value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16 if is_cast else onnx.TensorProto.INT8
    del graph.value_info[:]
    remove_unused_constants(graph)
    return proto


def _find_first_conv(index: GraphIndex) -> onnx.NodeProto | None:
    """The convolution that reads the input, itself or behind Q, DQ and casts, if nothing else does."""
    name = index.graph.input[0].name
    while len(index.consumers[name]) == 1:
        reader = index.consumers[name][0]
        if reader.op_type == "Conv":
            return reader if reader.input[0] == name else None
        if reader.op_type not in ("Cast", "QuantizeLinear", "DequantizeLinear"):
            return None
        name = reader.output[0]
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Region:
    """Maps of one resolution, and all that computes or reads them; from `find_region`.

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
        """How many times the memory the maps take as they are.

        Args:
            fold: Height and width of a block, pixels.
            block: Channels that a kernel stores together.
        """
        count = math.prod(fold)
        before = sum(math.ceil(channels / block) for channels in self.channels)
        after = sum(math.ceil(channels * count / block) for channels in self.channels)
        return before * count / after


def find_region(index: GraphIndex, shapes: Shapes, first: onnx.NodeProto, fold: Sides) -> Region | None:
    """Find what the map of a convolution reaches at its resolution.

    Args:
        index: Of the graph.
        shapes: From `infer_shapes`.
        first: The convolution.
        fold: Height and width of a block, pixels.

    Returns:
        The region; None where it reaches what can't read blocks.
    """
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
    return Region(
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


def move_conv(
    index: GraphIndex, node: onnx.NodeProto, shapes: Shapes, reads: Sides, gives: Sides, *, lanes: int | None = None
) -> None:
    """Move the weights of a convolution, and set its kernel, stride and padding.

    Args:
        index: Of the graph, which is modified.
        node: The convolution.
        shapes: From `infer_shapes`, before any was moved.
        reads: Height and width of a block of its input, pixels.
        gives: Height and width of a block of its output, pixels.
        lanes: Its input goes by place in the block and then by channel, with so many channels; None: by channel and
            then by place.
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
    if lanes is not None:
        moved = np.moveaxis(moved, 3, 5)
        moved = np.pad(moved, [(0, lanes - channels) if axis == 5 else (0, 0) for axis in range(moved.ndim)])
    kernel = (rows.kernel, columns.kernel)
    _store(index, node, moved.reshape(out * math.prod(gives), -1, *kernel), math.prod(gives))
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
