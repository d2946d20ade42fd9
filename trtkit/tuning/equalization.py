"""Cross-layer equalization: equal channel ranges in the weights of consecutive layers.

Dividing a layer's output channels by a factor and multiplying the next layer's input channels by it leaves the result
unchanged if every operator between them commutes with positive factors: ReLU, LeakyReLU, PReLU, pooling and data
movement do. SiLU, the activation of YOLOv8 and YOLO11, does not (SiLU(x / s) is not SiLU(x) / s), nor do Sigmoid and
Clip, so that most layers of these models can't be equalized.

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
"""Operators with f(s x) = s f(x) per channel for every positive s."""

ITERATIONS = 8
"""Passes over all pairs; each pair changes the ranges of adjacent pairs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Equalization:
    """The result of cross-layer equalization.

    Attributes:
        graph: The graph with equalized weights, equivalent in FP32; the given graph if it has no pair.
        pairs: Names of the equalized layers, first and second.
        skipped: Number of layers that can't be equalized, by reason.
    """

    graph: onnx.ModelProto
    pairs: tuple[tuple[str, str], ...]
    skipped: Mapping[str, int]

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.skipped.items())
        return f"cross-layer equalization: {len(self.pairs)} layer pairs; skipped layers: {reasons or 'none'}"


def equalize(graph: onnx.ModelProto, iterations: int = ITERATIONS) -> Equalization:
    """Equalize every pair of consecutive convolutions that allows it.

    Args:
        graph: FP32 graph with unique node names; it is not changed.
        iterations: Passes over all pairs.
    """
    result = copy.deepcopy(graph)
    index = GraphIndex(result)
    outputs = {value.name for value in result.graph.output}
    pairs: list[tuple[onnx.NodeProto, onnx.NodeProto]] = []
    skipped: Counter[str] = Counter()
    for node in index.weighted:
        second = _find_next_layer(node, index, outputs)
        if isinstance(second, str):
            skipped[second] += 1
        else:
            pairs.append((node, second))
    weights: dict[str, NDArray[np.float32]] = {}
    for node in {part.name: part for pair in pairs for part in pair}.values():
        for name in node.input[1:]:
            if name:
                weights[name] = index.array(name).astype(np.float32).copy()
    for _ in range(iterations if pairs else 0):
        for first, second in pairs:
            _balance_channels(first, second, weights)
    for tensor in result.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    return Equalization(
        graph=result if pairs else graph,
        pairs=tuple((first.name, second.name) for first, second in pairs),
        skipped=dict(skipped.most_common()),
    )


def _find_next_layer(node: onnx.NodeProto, index: GraphIndex, outputs: set[str]) -> onnx.NodeProto | str:
    """The only layer that reads this one's output through commuting operators, or the reason why there is none."""
    if node.op_type != "Conv":
        return "not a convolution"
    if any(not _has_single_reader(name, node, index) for name in node.input[1:] if name):
        return "shared weights"
    at = node
    while True:
        name = at.output[0]
        readers = index.consumers[name]
        if name in outputs or len(readers) != 1:
            return "several readers or a graph output"
        at = readers[0]
        if at.op_type == "Conv" and at.input[0] == name:
            if index.group(at) != 1 or index.weight(at) is None or not _has_single_reader(at.input[1], at, index):
                return "feeds a grouped convolution"
            return at
        if at.op_type not in COMMUTING:
            return f"feeds {at.op_type}"


def _has_single_reader(name: str, node: onnx.NodeProto, index: GraphIndex) -> bool:
    stored = any(tensor.name == name for tensor in index.graph.initializer)
    return stored and [reader.name for reader in index.consumers[name]] == [node.name]


def _balance_channels(first: onnx.NodeProto, second: onnx.NodeProto, weights: dict[str, NDArray[np.float32]]) -> None:
    """Scale both layers' channels to the geometric mean of their ranges."""
    one, two = weights[first.input[1]], weights[second.input[1]]
    output_ranges = np.abs(one).reshape(len(one), -1).max(axis=1)
    input_ranges = np.abs(two).max(axis=(0, *range(2, two.ndim)))
    usable = (output_ranges > 0) & (input_ranges > 0)
    factor = np.where(usable, np.sqrt(output_ranges / np.where(usable, input_ranges, 1.0)), 1.0).astype(np.float32)
    one /= factor.reshape(-1, *[1] * (one.ndim - 1))
    if len(first.input) > 2 and first.input[2]:
        weights[first.input[2]] /= factor
    two *= factor.reshape(1, -1, *[1] * (two.ndim - 2))
