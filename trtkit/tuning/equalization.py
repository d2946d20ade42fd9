"""Cross-layer equalization: channels of neighboring layers brought to one size, where the maths allows it.

Two layers in a row compute the same after one's output channels are divided by a number and the next one's input
channels are multiplied by it, if whatever lies between commutes with a positive factor: nothing, ReLU, LeakyReLU,
PReLU, poolings and plain moves. SiLU, the activation of YOLOv8 and YOLO11, does not (SiLU(x / s) is not SiLU(x) / s),
nor do Sigmoid and Clip, so that most of their layers have no such neighbor.

Source: M. Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction", 2019, section 4.1.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from trtkit.graph.analysis import GraphIndex

__all__ = ["Equalization", "equalize"]

COMMUTING = ("Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity", "Dropout")
"""Operators that give s f(x) for s x, channel by channel, whenever s is positive."""

ITERATIONS = 8
"""Passes over all pairs: each pair changes its neighbors', and a few rounds settle them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Equalization:
    """What equalization did.

    Attributes:
        graph: The graph with other weights that computes the same in FP32; the one given where no pair was found.
        pairs: Names of the layers that were equalized, first and second.
        refused: How many layers were not, by the reason.
    """

    graph: onnx.ModelProto
    pairs: tuple[tuple[str, str], ...]
    skipped: Mapping[str, int]

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.skipped.items())
        return f"cross-layer equalization: {len(self.pairs)} pairs of layers; the others can't be: {reasons or 'none'}"


def equalize(graph: onnx.ModelProto, iterations: int = ITERATIONS) -> Equalization:
    """Equalize every pair of convolutions that allows it; the caller's graph is left alone.

    Args:
        graph: FP32 graph with unique node names.
        iterations: Passes over all pairs.
    """
    result = copy.deepcopy(graph)
    view = GraphIndex(result)
    outputs = {value.name for value in result.graph.output}
    pairs: list[tuple[onnx.NodeProto, onnx.NodeProto]] = []
    refused: Counter[str] = Counter()
    for node in view.weighted:
        second = _find_next_layer(node, view, outputs)
        if isinstance(second, str):
            refused[second] += 1
        else:
            pairs.append((node, second))
    weights: dict[str, NDArray[np.float32]] = {}
    for node in {part.name: part for pair in pairs for part in pair}.values():
        for name in node.input[1:]:
            if name:
                weights[name] = view.array(name).astype(np.float32).copy()
    for _ in range(iterations if pairs else 0):
        for first, second in pairs:
            _balance_channels(first, second, weights)
    for tensor in result.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    return Equalization(
        graph=result if pairs else graph,
        pairs=tuple((first.name, second.name) for first, second in pairs),
        skipped=dict(refused.most_common()),
    )


def _find_next_layer(node: onnx.NodeProto, view: GraphIndex, outputs: set[str]) -> onnx.NodeProto | str:
    """The layer that alone reads this one's output through what commutes, or why there is none."""
    if node.op_type != "Conv":
        return "are no convolution"
    if any(not _has_single_reader(name, node, view) for name in node.input[1:] if name):
        return "share their weights"
    at = node
    while True:
        name = at.output[0]
        readers = view.consumers[name]
        if name in outputs or len(readers) != 1:
            return "feed several readers or an output"
        at = readers[0]
        if at.op_type == "Conv" and at.input[0] == name:
            if view.group(at) != 1 or view.weight(at) is None or not _has_single_reader(at.input[1], at, view):
                return "feed a grouped convolution"
            return at
        if at.op_type not in COMMUTING:
            return f"feed {at.op_type}"


def _has_single_reader(name: str, node: onnx.NodeProto, view: GraphIndex) -> bool:
    stored = any(tensor.name == name for tensor in view.graph.initializer)
    return stored and [reader.name for reader in view.consumers[name]] == [node.name]


def _balance_channels(first: onnx.NodeProto, second: onnx.NodeProto, weights: dict[str, NDArray[np.float32]]) -> None:
    """Give both layers' channels the geometric mean of their ranges."""
    one, two = weights[first.input[1]], weights[second.input[1]]
    given = np.abs(one).reshape(len(one), -1).max(axis=1)
    taken = np.abs(two).max(axis=(0, *range(2, two.ndim)))
    usable = (given > 0) & (taken > 0)
    factor = np.where(usable, np.sqrt(given / np.where(usable, taken, 1.0)), 1.0).astype(np.float32)
    one /= factor.reshape(-1, *[1] * (one.ndim - 1))
    if len(first.input) > 2 and first.input[2]:
        weights[first.input[2]] /= factor
    two *= factor.reshape(1, -1, *[1] * (two.ndim - 2))
