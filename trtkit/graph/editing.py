"""Changes of an ONNX graph: nodes and constants to append, constants that nothing reads, the order of nodes."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["GraphBuilder", "get_opset", "make_reduction", "remove_nodes", "remove_unused_constants", "sort_nodes"]


def remove_unused_constants(graph: onnx.GraphProto) -> None:
    """Remove initializers and Constant nodes that nothing reads.

    Args:
        graph: Modified in place.
    """
    read = set(_read_names(graph))
    nodes = [node for node in graph.node if node.op_type != "Constant" or node.output[0] in read]
    if len(nodes) < len(graph.node):
        del graph.node[:]
        graph.node.extend(nodes)
    unused = {tensor.name for tensor in graph.initializer} - read
    # Before IR version 4 initializers are listed among the inputs too.
    for values in (graph.initializer, graph.input):
        used = [value for value in values if value.name not in unused]
        del values[:]
        values.extend(used)


def remove_nodes(graph: onnx.GraphProto, names: Collection[str]) -> None:
    """Remove nodes, the constants that only they read, and recorded shapes, which may be out of date.

    Args:
        graph: Modified in place.
        names: Of the nodes.
    """
    nodes = [node for node in graph.node if node.name not in names]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    remove_unused_constants(graph)


def _read_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Names that a graph's nodes, the subgraphs of If and Loop, and its outputs read."""
    for node in graph.node:
        yield from _read_names_of_node(node)
    yield from (value.name for value in graph.output)


def _read_names_of_node(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:
        for subgraph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
            yield from _read_names(subgraph)


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Bring the nodes into topological order, which ONNX requires and some converters to FP16 do not keep.

    Nodes that are in order stay where they are.

    Args:
        graph: Modified in place; its nodes form no circle.
    """
    computed = {name for node in graph.node for name in node.output if name}
    known: set[str] = set()
    pending, nodes = list(graph.node), list[onnx.NodeProto]()
    while pending:
        waiting: list[onnx.NodeProto] = []
        for node in pending:
            if all(name in known or name not in computed for name in _read_names_of_node(node)):
                known.update(node.output)
                nodes.append(node)
            else:
                waiting.append(node)
        if len(waiting) == len(pending):
            return
        pending = waiting
    if any(one is not other for one, other in zip(nodes, graph.node, strict=True)):
        ordered = [copy.deepcopy(node) for node in nodes]
        del graph.node[:]
        graph.node.extend(ordered)


def get_opset(proto: onnx.ModelProto) -> int:
    """The version of the operator set "ai.onnx" of a graph; 0 if the graph names none.

    Args:
        proto: The graph.
    """
    return next((int(entry.version) for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)


def make_reduction(
    operator: str, source: str, target: str, axes: Sequence[int], opset: int, *, keepdims: int = 0
) -> tuple[onnx.NodeProto, list[onnx.TensorProto]]:
    """A reduction as the operator set wants it: axes are an input since 18 (ReduceSum: 13), an attribute before.

    Args:
        operator: "ReduceMax", "ReduceMin", "ReduceMean" or "ReduceSum".
        source: The tensor to reduce.
        target: The result, and the node's name.
        axes: The reduced axes.
        opset: The graph's operator set.
        keepdims: 1 keeps the reduced axes at length 1.

    Returns:
        The node, and the constants it reads.
    """
    if opset < (13 if operator == "ReduceSum" else 18):
        return helper.make_node(operator, [source], [target], target, axes=list(axes), keepdims=keepdims), []
    constant = numpy_helper.from_array(np.array(axes, np.int64), f"{target}_axes")
    return helper.make_node(operator, [source, constant.name], [target], target, keepdims=keepdims), [constant]


class GraphBuilder:
    """Appends nodes and constants to a graph; methods take and return tensor names.

    Args:
        proto: Modified in place; operator set 13 or newer, where the axes of Squeeze and Unsqueeze are inputs.
        prefix: Prefix of the new names.
    """

    def __init__(self, proto: onnx.ModelProto, prefix: str) -> None:
        self.graph = proto.graph
        self.opset = get_opset(proto)
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

    def reduce(self, operator: str, name: str, axes: Sequence[int], *, keepdims: int = 0) -> str:
        """The tensor reduced along axes, by an operator of `make_reduction`."""
        node, constants = make_reduction(operator, name, self._name(), axes, self.opset, keepdims=keepdims)
        self.graph.node.append(node)
        self.graph.initializer.extend(constants)
        return str(node.output[0])

    def gather_rows(self, table: str, indices: str, *, batch: int | None, count: int) -> str:
        """The rows (N, K, columns) of each image's `table` (N, M, columns) at its `indices` (N, K).

        Args:
            table: The rows.
            indices: Which of them.
            batch: N; None where it is open.
            count: K.
        """
        column = self.unsqueeze(indices, 2)
        if batch is not None:
            image = self.constant(np.repeat(np.arange(batch, dtype=np.int64), count).reshape(batch, count, 1))
        else:
            # Counting along the batch by a cumulative sum, which TensorRT runs as a loop, needs no shape arithmetic.
            zeros = self.node("Mul", [column, self.constant(np.int64(0))])
            ones = self.node("Add", [zeros, self.constant(np.int64(1))])
            summed = self.node("CumSum", [ones, self.constant(np.array(0, np.int64))])
            image = self.node("Sub", [summed, self.constant(np.int64(1))])
        return self.node("GatherND", [table, self.node("Concat", [image, column], axis=2)])
