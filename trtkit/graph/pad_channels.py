"""Pad channels of split tensors to multiples of 32, the block in which TensorRT's INT8 kernels store channels.

INT8 convolutions store 32 channels of a pixel together (TensorRT's format kCHW32). A split into halves of 16 channels
cuts through blocks, so that the slices, the sum and the concatenation each need copies to another layout and back.
Halves padded with channels of zero weight take the same memory, because blocks are padded anyway, and need fewer
copies (`benchmarks/results/placements.md`).
"""

from __future__ import annotations

import copy

import numpy as np
import onnx

from trtkit.graph.analysis import GraphIndex, infer_shapes
from trtkit.graph.conv_weights import add_constant, is_dense_conv, list_weight_qdq
from trtkit.graph.editing import remove_unused_constants

__all__ = ["CHANNEL_BLOCK", "pad_channels"]

CHANNEL_BLOCK = 32
"""Channels stored together."""

CHANNELWISE_OPS = (
    "Add", "Clip", "DequantizeLinear", "Elu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "MaxPool", "Mul",
    "QuantizeLinear", "Relu", "Resize", "Sigmoid", "Sub",
)  # fmt: skip
"""Operators that treat each channel separately and keep the channels' order."""

Channels = tuple[tuple[int, int], ...]
"""Groups of a tensor's channels, each as (channels, channels after padding)."""


def pad_channels(proto: onnx.ModelProto, block: int = CHANNEL_BLOCK) -> onnx.ModelProto:
    """Pad the channels of split tensors to whole blocks.

    A split is not changed if its outputs would more than double, if other operators than convolutions, channel-wise
    operators and concatenations read them, or if a constant other than a weight would have to change.

    Args:
        proto: Graph with or without Q/DQ, unique node names; not modified.
        block: Channels stored together.

    Returns:
        A graph with the same outputs.
    """
    result = copy.deepcopy(proto)
    for name in [node.name for node in result.graph.node if node.op_type == "Split"]:
        index = GraphIndex(result)
        channels = _PaddingPlan(index, block).plan(index.nodes[name])
        if channels is not None:
            _apply(index, channels)
    return result


class _PaddingPlan:
    """The padding of every tensor that one split affects.

    Args:
        index: The graph.
        block: Channels stored together.
    """

    def __init__(self, index: GraphIndex, block: int) -> None:
        self.index = index
        self.block = block
        self.channels: dict[str, Channels] = {}
        self.counts: dict[str, int] = {}
        self.derived: set[str] = set()  # tensors whose channels follow from their producer's inputs
        self.pending: list[str] = []
        self.outputs = {value.name for value in index.graph.output}

    def plan(self, split: onnx.NodeProto) -> dict[str, Channels] | None:
        """Channels by tensor name; None if the split can't be padded."""
        is_constant = len(split.input) > 1 and split.input[1] in self.index.constants
        sizes = [int(size) for size in self.index.array(split.input[1])] if is_constant else [0]
        size = sizes[0]
        padded = -(-size // self.block) * self.block
        if self.index.axis(split) != 1 or set(sizes) != {size} or not size < padded <= 2 * size:
            return None
        # Shape inference covers the whole graph, so it comes after the cheap checks.
        self.counts = {name: sides[1] for name, sides in infer_shapes(self.index.proto).items() if len(sides) > 1}
        try:
            self._set(split.input[0], ((size, padded),) * len(sizes))
            for name in split.output:
                self.derived.add(name)
                self._set(name, ((size, padded),))
            while self.pending:
                self._follow(self.pending.pop())
                if not self.pending:
                    self._concatenate()
        except _NotPaddableError:
            return None
        return self.channels

    def _set(self, name: str, channels: Channels) -> None:
        # A factor that all channels share, such as a map of spatial attention, has a single one.
        is_broadcast = self.counts.get(name) not in (None, 0, sum(count for count, _ in channels))
        if name in self.outputs or is_broadcast or self.channels.get(name, channels) != channels:
            raise _NotPaddableError
        if name not in self.channels:
            self.channels[name] = channels
            self.pending.append(name)

    def _follow(self, name: str) -> None:
        channels = self.channels[name]
        if name not in self.derived:
            producer = self.index.producer.get(name)
            if producer is None or not (is_dense_conv(self.index, producer) or producer.op_type in CHANNELWISE_OPS):
                raise _NotPaddableError
            if producer.op_type in CHANNELWISE_OPS:
                for source in self._channel_inputs(producer):
                    self._set(source, channels)
        for reader in self.index.consumers[name]:
            if reader.op_type in CHANNELWISE_OPS and name in self._channel_inputs(reader):
                self._set(reader.output[0], channels)
            elif not (
                (is_dense_conv(self.index, reader) and reader.input[0] == name)
                or reader.op_type == "Concat"
                or (reader.op_type == "Split" and all(part in self.channels for part in reader.output))
            ):
                raise _NotPaddableError

    def _concatenate(self) -> None:
        """Set the channels of concatenations of planned tensors, once all other operators are followed."""
        for node in self.index.graph.node:
            if node.op_type != "Concat" or not any(name in self.channels for name in node.input):
                continue
            groups: list[tuple[int, int]] = []
            for name in node.input:
                count = self.counts.get(name, 0)
                if name not in self.channels and not count:
                    raise _NotPaddableError
                groups += self.channels.get(name, ((count, count),))
            if self.index.axis(node) != 1:
                raise _NotPaddableError
            self.derived.add(node.output[0])
            self._set(node.output[0], tuple(groups))

    def _channel_inputs(self, node: onnx.NodeProto) -> list[str]:
        """Inputs that have channels; scales, bounds and sizes have none."""
        names = list(node.input) if node.op_type in ("Add", "Mul", "Sub") else [node.input[0]]
        if any(name in self.index.constants for name in names):
            raise _NotPaddableError
        return names


class _NotPaddableError(Exception):
    """The split can't be padded."""


def _apply(index: GraphIndex, channels: dict[str, Channels]) -> None:
    """Pad the weights of the layers that compute and read the tensors, and the sizes of the splits."""
    graph = index.graph
    for node in graph.node:
        if node.op_type == "Split" and node.input[0] in channels:
            sizes = [sum(padded for _, padded in channels[name]) for name in node.output]
            node.input[1] = add_constant(graph, f"{node.name}_filled_sizes", np.array(sizes, np.int64))
        if not is_dense_conv(index, node):
            continue
        inputs, outputs = channels.get(node.input[0]), channels.get(node.output[0])
        if inputs is None and outputs is None:
            continue
        qdq = list_weight_qdq(index, node)
        reader, slot = (qdq[0], 0) if qdq else (node, 1)
        weight = index.array(reader.input[slot])
        if inputs is not None:
            weight = _pad_array(weight, inputs, axis=1)
        if outputs is not None:
            weight = _pad_array(weight, outputs, axis=0)
            if len(node.input) > 2 and node.input[2]:
                bias = _pad_array(index.array(node.input[2]), outputs, axis=0)
                node.input[2] = add_constant(graph, f"{node.name}_filled_bias", bias)
            for one in qdq:
                # Empty channels get scale 1; Q and DQ of a float weight read the same two constants.
                for place, suffix, value in ((1, "scale", 1), (2, "zero_point", 0)):
                    if place < len(one.input) and index.array(one.input[place]).size > 1:
                        padded = _pad_array(index.array(one.input[place]), outputs, axis=0, value=value)
                        one.input[place] = add_constant(graph, f"{node.name}_filled_{suffix}", padded)
        reader.input[slot] = add_constant(graph, f"{node.name}_filled_weight", weight)
    # Recorded shapes are out of date.
    del graph.value_info[:]
    remove_unused_constants(graph)


def _pad_array(array: np.ndarray, channels: Channels, *, axis: int, value: float = 0) -> np.ndarray:
    """The array with every channel group along an axis padded."""
    ends = np.cumsum([count for count, _ in channels])
    parts = []
    for part, (count, padded) in zip(np.split(array, ends[:-1], axis=axis), channels, strict=True):
        widths = [(0, 0)] * array.ndim
        widths[axis] = (0, padded - count)
        parts.append(np.pad(part, widths, constant_values=value))
    return np.concatenate(parts, axis=axis)
