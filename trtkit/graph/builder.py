"""Adding nodes and constants to an ONNX graph, under unique names."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["GraphBuilder", "remove_unused_initializers"]


def remove_unused_initializers(graph: onnx.GraphProto) -> None:
    """Remove the constants that no node reads.

    Args:
        graph: Modified in place.
    """
    read = {name for node in graph.node for name in node.input}
    used = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(used)


class GraphBuilder:
    """Appends nodes and constants to a graph; methods take and return tensor names.

    Args:
        graph: Modified in place.
        prefix: Prefix of the new names.
    """

    def __init__(self, graph: onnx.GraphProto, prefix: str) -> None:
        self.graph = graph
        self.prefix = prefix
        self.count = 0

    def _name(self) -> str:
        self.count += 1
        return f"{self.prefix}_{self.count}"

    def constant(self, value: np.ndarray | np.generic) -> str:
        """Add an initializer."""
        name = self._name()
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def scalar(self, value: float) -> str:
        """Add a float32 scalar."""
        return self.constant(np.float32(value))

    def node(self, operator: str, inputs: list[str], **attributes: Any) -> str:
        """Add a node with one output."""
        return self.nodes(operator, inputs, 1, **attributes)[0]

    def nodes(self, operator: str, inputs: list[str], outputs: int, **attributes: Any) -> list[str]:
        """Add a node with several outputs."""
        name = self._name()
        names = [f"{name}_{index}" for index in range(outputs)]
        self.graph.node.append(helper.make_node(operator, inputs, names, f"{name}_{operator}", **attributes))
        return names

    def slice(self, name: str, start: int, end: int, *, axis: int) -> str:
        """Elements `start` to `end`, exclusive, along an axis."""
        ends = [self.constant(np.array([value], np.int64)) for value in (start, end, axis)]
        return self.node("Slice", [name, *ends])

    def unsqueeze(self, name: str, axis: int) -> str:
        """The tensor with a new axis of length 1."""
        return self.node("Unsqueeze", [name, self.constant(np.array([axis], np.int64))])

    def gather_rows(self, table: str, indices: str) -> str:
        """The rows (N, K, columns) of each image's `table` (N, M, columns) at its `indices` (N, K)."""
        column = self.unsqueeze(indices, 2)
        # Counting along the batch by a cumulative sum needs no shape arithmetic, whatever the batch is.
        ones = self.node("Add", [self.node("Mul", [column, self.constant(np.int64(0))]), self.constant(np.int64(1))])
        summed = self.node("CumSum", [ones, self.constant(np.array(0, np.int64))])
        image = self.node("Sub", [summed, self.constant(np.int64(1))])
        return self.node("GatherND", [table, self.node("Concat", [image, column], axis=2)])
