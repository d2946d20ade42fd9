"""Channels in whole blocks of 32, as TensorRT's INT8 kernels lay them out.

INT8 convolutions keep 32 channels of a pixel together (TensorRT's format kCHW32). A split into halves of 16 then cuts
through blocks, and joining such halves moves every byte: the slices, the sum and the concatenation all get copies
into another layout and back: in the layer table of yolo11n at batch 8 the six of model.2 took 0.076 of 1.7 ms, the two
of model.4, whose halves are of 32, 0.015. Halves filled up with channels of zero weight take the same memory, for the
blocks were filled up anyway, and need fewer copies: INT8 took 0.900 ms a batch without and 0.879 with them on an H200
(`benchmarks/results/placements.md`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from trtkit.graph.analysis import GraphIndex
from trtkit.graph.builder import remove_unused_initializers

__all__ = ["CHANNEL_BLOCK", "pad_channels"]

CHANNEL_BLOCK = 32
"""Channels that lie together."""

CHANNELWISE_OPS = (
    "Add", "Clip", "DequantizeLinear", "Elu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "MaxPool", "Mul",
    "QuantizeLinear", "Relu", "Resize", "Sigmoid", "Sub",
)  # fmt: skip
"""Operators that work on each channel for itself and keep their order."""

Channels = tuple[tuple[int, int], ...]
"""Parts of a tensor's channels, each with what it holds and what it is filled up to."""


def pad_channels(proto: onnx.ModelProto, block: int = CHANNEL_BLOCK) -> onnx.ModelProto:
    """Fill up the channels of split tensors to whole blocks.

    A split is left as it is where its parts would more than double, where something but convolutions, sums and
    concatenations reads them, or where a number that is no weight would have to change.

    Args:
        proto: Graph with or without Q/DQ pairs, unique node names; left alone.
        block: Channels that lie together.

    Returns:
        A graph that gives the same outputs.
    """
    result = copy.deepcopy(proto)
    for name in [node.name for node in result.graph.node if node.op_type == "Split"]:
        view = GraphIndex(result)
        found = _PaddingPlan(view, block).of(view.nodes[name])
        if found is not None:
            _apply(view, found)
    return result


class _PaddingPlan:
    """Which tensors get which channels when one split is filled up; finds nothing where that can't be done."""

    def __init__(self, view: GraphIndex, block: int) -> None:
        self.view = view
        self.block = block
        self.channels: dict[str, Channels] = {}
        self.counts: dict[str, int] = {}
        self.made: set[str] = set()  # tensors whose channels follow from their maker's inputs
        self.front: list[str] = []
        self.leaves = {value.name for value in view.graph.output}

    def of(self, split: onnx.NodeProto) -> _PaddingPlan | None:
        known = len(split.input) > 1 and split.input[1] in self.view.constants
        sizes = [int(size) for size in self.view.array(split.input[1])] if known else [0]
        each = sizes[0]
        filled = -(-each // self.block) * self.block
        if self.view.axis(split) != 1 or set(sizes) != {each} or not each < filled <= 2 * each:
            return None
        # Only now, for it goes over the whole graph.
        self.counts = _infer_channel_counts(self.view.proto)
        try:
            self._set(split.input[0], ((each, filled),) * len(sizes))
            for name in split.output:
                self.made.add(name)
                self._set(name, ((each, filled),))
            while self.front:
                self._follow(self.front.pop())
                if not self.front:
                    self._concatenate()
        except _NotPaddableError:
            return None
        return self

    def _set(self, name: str, channels: Channels) -> None:
        if name in self.leaves or self.channels.get(name, channels) != channels:
            raise _NotPaddableError
        if name not in self.channels:
            self.channels[name] = channels
            self.front.append(name)

    def _follow(self, name: str) -> None:
        channels = self.channels[name]
        if name not in self.made:
            maker = self.view.producer.get(name)
            if maker is None or not (_is_dense_conv(self.view, maker) or maker.op_type in CHANNELWISE_OPS):
                raise _NotPaddableError
            if maker.op_type in CHANNELWISE_OPS:
                for source in self._values(maker):
                    self._set(source, channels)
        for reader in self.view.consumers[name]:
            if reader.op_type in CHANNELWISE_OPS and name in self._values(reader):
                self._set(reader.output[0], channels)
            elif not (
                (_is_dense_conv(self.view, reader) and reader.input[0] == name)
                or reader.op_type == "Concat"
                or (reader.op_type == "Split" and all(part in self.channels for part in reader.output))
            ):
                raise _NotPaddableError

    def _concatenate(self) -> None:
        """What the concatenations of known tensors hold, once nothing else is left to follow."""
        for node in self.view.graph.node:
            if node.op_type != "Concat" or not any(name in self.channels for name in node.input):
                continue
            joined: list[tuple[int, int]] = []
            for name in node.input:
                count = self.counts.get(name, 0)
                if name not in self.channels and not count:
                    raise _NotPaddableError
                joined += self.channels.get(name, ((count, count),))
            if self.view.axis(node) != 1:
                raise _NotPaddableError
            self.made.add(node.output[0])
            self._set(node.output[0], tuple(joined))

    def _values(self, node: onnx.NodeProto) -> list[str]:
        """Inputs that hold channels; scales, bounds and sizes hold none."""
        names = list(node.input) if node.op_type in ("Add", "Mul", "Sub") else [node.input[0]]
        if any(name in self.view.constants for name in names):
            raise _NotPaddableError
        return names


class _NotPaddableError(Exception):
    """The split can't be filled up."""


def _apply(view: GraphIndex, spread: _PaddingPlan) -> None:
    """Give the layers that make and read the tensors their larger weights, and the splits their sizes."""
    graph = view.graph
    for node in graph.node:
        if node.op_type == "Split" and node.input[0] in spread.channels:
            sizes = [sum(filled for _, filled in spread.channels[name]) for name in node.output]
            node.input[1] = _add_constant(graph, f"{node.name}_filled_sizes", np.array(sizes, np.int64))
        if not _is_dense_conv(view, node):
            continue
        reads, makes = spread.channels.get(node.input[0]), spread.channels.get(node.output[0])
        if reads is None and makes is None:
            continue
        pairs = list(_weight_qdq_nodes(view, node))
        first = pairs[0] if pairs else node
        slot = 0 if pairs else 1
        weight = view.array(first.input[slot])
        if reads is not None:
            weight = _pad_array(weight, reads, axis=1)
        if makes is not None:
            weight = _pad_array(weight, makes, axis=0)
            if len(node.input) > 2 and node.input[2]:
                bias = _pad_array(view.array(node.input[2]), makes, axis=0)
                node.input[2] = _add_constant(graph, f"{node.name}_filled_bias", bias)
            for pair in pairs:
                # A scale of 1 for channels that hold nothing; both halves of a pair read the same two constants.
                pair.input[1] = _add_constant(
                    graph, f"{node.name}_filled_scale", _pad_array(view.array(pair.input[1]), makes, axis=0, rest=1)
                )
                pair.input[2] = _add_constant(
                    graph, f"{node.name}_filled_zero_point", _pad_array(view.array(pair.input[2]), makes, axis=0)
                )
        first.input[slot] = _add_constant(graph, f"{node.name}_filled_weight", weight)
    # Shapes written down before no longer hold.
    del graph.value_info[:]
    remove_unused_initializers(graph)


def _add_constant(graph: onnx.GraphProto, name: str, value: np.ndarray) -> str:
    if all(tensor.name != name for tensor in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def _pad_array(value: np.ndarray, channels: Channels, *, axis: int, rest: float = 0) -> np.ndarray:
    """The array with every part of an axis filled up."""
    ends = np.cumsum([held for held, _ in channels])
    parts = []
    for part, (held, filled) in zip(np.split(value, ends[:-1], axis=axis), channels, strict=True):
        wanted = [(0, 0)] * value.ndim
        wanted[axis] = (0, filled - held)
        parts.append(np.pad(part, wanted, constant_values=rest))
    return np.concatenate(parts, axis=axis)


def _weight_qdq_nodes(view: GraphIndex, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """The Q/DQ pair in front of a layer's weight; nothing where the weight is read as it is."""
    last = view.producer.get(node.input[1])
    if last is not None and last.op_type == "DequantizeLinear":
        first = view.producer.get(last.input[0])
        if first is not None and first.op_type == "QuantizeLinear":
            yield from (first, last)


def _is_dense_conv(view: GraphIndex, node: onnx.NodeProto) -> bool:
    """Whether a node is a convolution of one group whose weight and bias are constants."""
    if node.op_type != "Conv" or view.group(node) != 1:
        return False
    pairs = list(_weight_qdq_nodes(view, node))
    source = pairs[0].input[0] if pairs else node.input[1]
    return source in view.constants and all(name in view.constants for name in node.input[2:] if name)


def _infer_channel_counts(proto: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(proto)
    found = {}
    for value in (*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input):
        dims = value.type.tensor_type.shape.dim
        if len(dims) > 1:
            found[value.name] = int(dims[1].dim_value)
    return found
