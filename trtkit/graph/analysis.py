"""Structure of an ONNX graph: producers and consumers, the role of each layer, blocks and multiply-accumulates."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import onnx
from onnx import numpy_helper

if TYPE_CHECKING:
    import torch

__all__ = [
    "LAYOUT_OPS",
    "WEIGHTED_OPS",
    "DisjointSets",
    "GraphIndex",
    "Shapes",
    "block_of",
    "block_types",
    "count_macs",
    "escape_pattern",
    "infer_shapes",
    "split_into_segments",
]

WEIGHTED_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators whose second input, where it is a constant, is a weight worth quantizing."""

LAYOUT_OPS = (
    "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Split", "Slice", "Concat", "Identity", "Gather",
)  # fmt: skip
"""Operators that move values without changing them."""

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of tensors by name; 0 where a side is open."""


def infer_shapes(proto: onnx.ModelProto) -> Shapes:
    """Infer the shapes of all tensors of a graph.

    Args:
        proto: The graph.
    """
    graph = onnx.shape_inference.infer_shapes(proto).graph
    return {
        value.name: tuple(int(side.dim_value) for side in value.type.tensor_type.shape.dim)
        for value in (*graph.value_info, *graph.output, *graph.input)
    }


class GraphIndex:
    """Read-only index of one graph; build a new one after changing the graph.

    Args:
        proto: The graph; nodes need unique names.

    Attributes:
        graph: `proto.graph`.
        nodes: Nodes by name.
        constants: Initializers and outputs of Constant nodes by tensor name.
        producer: The node that computes each tensor.
        consumers: The nodes that read each tensor.
        weighted: Nodes with a constant float weight, in graph order.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto
        self.graph = proto.graph
        self.constants: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in self.graph.initializer}
        self.producer: dict[str, onnx.NodeProto] = {}
        self.consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        self.nodes = {node.name: node for node in self.graph.node}
        for node in self.graph.node:
            for name in node.output:
                self.producer[name] = node
            for name in dict.fromkeys(node.input):
                if name:
                    self.consumers[name].append(node)
            if node.op_type == "Constant":
                value = next((a.t for a in node.attribute if a.name == "value"), None)
                if value is not None:
                    self.constants[node.output[0]] = value
        self.weighted = [node for node in self.graph.node if self.weight(node) is not None]

    # Single nodes and tensors.

    def weight(self, node: onnx.NodeProto) -> onnx.TensorProto | None:
        """The constant float weight of a layer; None for any other node."""
        if node.op_type not in WEIGHTED_OPS or len(node.input) < 2:
            return None
        tensor = self.constants.get(node.input[1])
        return tensor if tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT else None

    def array(self, name: str) -> np.ndarray:
        """A constant's value."""
        return numpy_helper.to_array(self.constants[name])

    def data_inputs(self, node: onnx.NodeProto) -> list[str]:
        """Inputs that are computed, not constant."""
        return [name for name in node.input if name and name not in self.constants]

    def sole_consumer(self, name: str) -> onnx.NodeProto | None:
        """The only node that reads a tensor; None if there are several or the tensor is a graph output."""
        consumers = self.consumers[name]
        is_output = any(value.name == name for value in self.graph.output)
        return consumers[0] if len(consumers) == 1 and not is_output else None

    @staticmethod
    def group(node: onnx.NodeProto) -> int:
        """A convolution's `group` attribute, 1 by default."""
        return next((int(a.i) for a in node.attribute if a.name == "group"), 1)

    @staticmethod
    def axis(node: onnx.NodeProto) -> int:
        """A node's `axis` attribute, 0 by default."""
        return next((int(a.i) for a in node.attribute if a.name == "axis"), 0)

    # Traversal.

    def downstream(self, node: onnx.NodeProto, stop: Callable[[onnx.NodeProto], bool]) -> Iterator[onnx.NodeProto]:
        """Nodes reachable from the outputs of `node`; a node where `stop` holds is yielded but not passed.

        Args:
            node: Start, not yielded itself.
            stop: Whether traversal ends at a node.
        """
        return self._walk(node, stop, lambda at: [c for name in at.output for c in self.consumers[name]])

    def upstream(self, node: onnx.NodeProto, stop: Callable[[onnx.NodeProto], bool]) -> Iterator[onnx.NodeProto]:
        """Nodes that the inputs of `node` depend on; a node where `stop` holds is yielded but not passed.

        Args:
            node: Start, not yielded itself.
            stop: Whether traversal ends at a node.
        """
        return self._walk(
            node, stop, lambda at: [self.producer[name] for name in self.data_inputs(at) if name in self.producer]
        )

    def _walk(
        self,
        start: onnx.NodeProto,
        stop: Callable[[onnx.NodeProto], bool],
        neighbors: Callable[[onnx.NodeProto], list[onnx.NodeProto]],
    ) -> Iterator[onnx.NodeProto]:
        visited: set[str] = set()
        pending = neighbors(start)
        while pending:
            node = pending.pop()
            if node.name in visited:
                continue
            visited.add(node.name)
            yield node
            if not stop(node):
                pending.extend(neighbors(node))

    def _is_weighted(self, node: onnx.NodeProto) -> bool:
        return self.weight(node) is not None

    def _is_value_source(self, node: onnx.NodeProto) -> bool:
        """Whether values begin at a node that traversal need not pass: at a layer, or at a tensor's shape."""
        return self._is_weighted(node) or node.op_type == "Shape"

    def _next_layers(self, node: onnx.NodeProto) -> list[str]:
        """Names of the next weighted layers downstream."""
        return [reader.name for reader in self.downstream(node, self._is_weighted) if self._is_weighted(reader)]

    # Roles of layers.

    def dfl_layers(self) -> set[str]:
        """Names of layers that read a Softmax: the expectation over box side bins (distribution focal loss, DFL)."""
        names = set()
        for node in self.weighted:
            source = self.producer.get(node.input[0])
            while source is not None and source.op_type in LAYOUT_OPS:
                source = self.producer.get(source.input[0])
            if source is not None and source.op_type == "Softmax":
                names.add(node.name)
        return names

    def output_layers(self) -> tuple[str, ...]:
        """Names of the last weighted layers before decoding, in graph order; DFL counts as decoding."""
        dfl = self.dfl_layers()
        return tuple(
            node.name
            for node in self.weighted
            if node.name not in dfl and all(name in dfl for name in self._next_layers(node))
        )

    def decode_nodes(self) -> set[str]:
        """Names of the nodes after the output layers: decoding, in pixels and probabilities.

        FP16 resolves coordinates near 640 to half a pixel only, so these stay in FP32. Of a query decoder (RT-DETR)
        also the boxes that its layers hand on to each other, and the selection of queries.
        """
        names = self.dfl_layers()
        output_layers = set(self.output_layers())
        for name in names | output_layers:
            names = names | {node.name for node in self.downstream(self.nodes[name], lambda _: False)}
        if self.query_decoder():
            for name in sorted(names - output_layers):
                boxes = self.upstream(self.nodes[name], self._is_value_source)
                names = names | {node.name for node in boxes if not self._is_weighted(node)}
        return names - output_layers

    def query_decoder(self) -> set[str]:
        """Names of a TopK that selects queries for further layers (RT-DETR), and of all nodes behind it; or {}."""
        names: set[str] = set()
        for node in self.graph.node:
            if node.op_type == "TopK" and node.name not in names:
                behind = list(self.downstream(node, lambda _: False))
                if any(map(self._is_weighted, behind)):
                    names.update((node.name, *(reader.name for reader in behind)))
        return names

    def _query_decoder_layers(self) -> set[str]:
        """Names of a query decoder's layers, of those whose outputs it selects or samples, and of its encoder's.

        The encoder's are the fully connected ones: exporters write them differently for static and dynamic shapes, so
        that a calibration would not fit both.
        """
        decoder = self.query_decoder()
        layers = {node.name for node in self.weighted if decoder and node.op_type in ("MatMul", "Gemm")}
        layers |= {name for name in decoder if self._is_weighted(self.nodes[name])}
        for name in decoder:
            sources = self.upstream(self.nodes[name], self._is_value_source)
            layers.update(source.name for source in sources if self._is_weighted(source))
        return layers

    def layers_excluded_by_default(self, kept_fp16: Iterable[str] = ()) -> dict[str, str]:
        """Weighted layers whose INT8 costs accuracy or fails to build and saves little time, with the reason.

        Determined from the graph's structure alone, so that names do not matter:

        - `dfl`: reads a Softmax (the expectation over box side bins);
        - `output`: an output layer that is no convolution, such as a classifier's fully connected one;
        - `transposed`: transposed convolutions, rare and cheap;
        - `attention`: reads the product of two activations (query x key);
        - `decoder`: of a query decoder (RT-DETR) or its encoder's attention: few positions, and boxes whose errors
          add up from layer to layer;
        - `depthwise`: see `depthwise_layers_before`, for the layers above and those in `kept_fp16`.

        A head's last convolutions are not excluded: in FP16 they cost TensorRT 8.6 two reformats and a separate
        activation in FP32 in front of them (`benchmarks/results/placements.md`).

        Args:
            kept_fp16: Names of layers excluded for other reasons.
        """
        reasons = dict.fromkeys(self.dfl_layers(), "dfl")
        reasons.update(dict.fromkeys(self._query_decoder_layers(), "decoder"))
        output_layers = self.output_layers()
        for node in self.weighted:
            if node.name in reasons:
                continue
            if node.name in output_layers:
                if node.op_type != "Conv":
                    reasons[node.name] = "output"
            elif node.op_type == "ConvTranspose":
                reasons[node.name] = "transposed"
            elif any(map(self._is_activation_product, self.upstream(node, self._is_weighted))):
                reasons[node.name] = "attention"
        depthwise = self.depthwise_layers_before([*reasons, *kept_fp16])
        return {**reasons, **dict.fromkeys(depthwise, "depthwise")}

    def _is_activation_product(self, node: onnx.NodeProto) -> bool:
        return node.op_type == "MatMul" and len(self.data_inputs(node)) == 2

    def depthwise_layers_before(self, kept_fp16: Iterable[str]) -> list[str]:
        """Grouped convolutions that must be excluded from INT8 because an excluded layer reads them.

        TensorRT 8.6 has depthwise kernels from INT8 to INT8 but none from INT8 to a float type, and does not build
        such a graph.

        Args:
            kept_fp16: Names of the excluded layers.
        """
        excluded, names = set(kept_fp16), []
        # Backwards, so that one depthwise layer before another is included.
        for node in reversed(self.weighted):
            if node.name not in excluded and self.group(node) > 1 and not excluded.isdisjoint(self._next_layers(node)):
                excluded.add(node.name)
                names.append(node.name)
        return names


def count_macs(graph: onnx.ModelProto, index: GraphIndex) -> dict[str, int]:
    """Multiply-accumulates of each weighted layer for one image, by node name.

    Args:
        graph: A graph of known shapes; layers of unknown shape are left out.
        index: Its index.
    """
    shapes = infer_shapes(graph)
    counts: dict[str, int] = {}
    for node in index.weighted:
        weight = index.weight(node)
        output = shapes.get(node.output[0])
        if weight is None or output is None:
            continue
        if node.op_type == "Conv":
            per_element = int(np.prod(weight.dims[1:]))
        elif node.op_type == "ConvTranspose":
            # Every input element meets every weight of its channel.
            output = shapes.get(node.input[0], output)
            per_element = int(np.prod(weight.dims[1:]))
        else:
            # (..., in, out); a Gemm may have it transposed.
            is_transposed = any(a.name == "transB" and a.i for a in node.attribute)
            per_element = int(weight.dims[-1] if is_transposed or len(weight.dims) == 1 else weight.dims[-2])
        counts[node.name] = int(np.prod([max(side, 1) for side in output[1:]])) * per_element
    return counts


# Blocks: nodes grouped by name, and an order that computes one block after another.


_NUMBERED = re.compile(r"^/?(model\.\d+)(?:/|$)")

_HEAD_BRANCH = re.compile(r"^/?(model\.\d+/(?:one2one_)?cv\d(?:_kpts)?\.\d+)(?:/|$)")


def block_of(node: str) -> str:
    """The block of a node, by the node's name: `/model.4/m.0/cv1/conv/Conv` is in `model.4`.

    Each branch of a detection head is a block (`model.23/cv2.0`), because it is as long as a whole backbone block. For
    other graphs the block is the first part of the node's path, or the node itself.

    Args:
        node: A node's name.
    """
    for pattern in (_HEAD_BRANCH, _NUMBERED):
        match = pattern.match(node)
        if match is not None:
            return match[1]
    parts = [part for part in node.split("/") if part]
    return parts[0] if len(parts) > 1 else node


def block_types(module: torch.nn.Module | None) -> dict[str, str]:
    """The class name of each numbered block, by the block's name; {} without a torch module.

    Args:
        module: A model with numbered blocks; None for a graph from a file.
    """
    if module is None:
        return {}
    types = {name: type(part).__name__ for name, part in module.named_modules() if _NUMBERED.fullmatch(name)}
    # A head's branches are blocks, too, of the head's class.
    types.update(
        {
            f"{block}/{branch}": types[block]
            for block in list(types)
            for branch, _ in module.get_submodule(block).named_modules()
            if _HEAD_BRANCH.fullmatch(f"{block}/{branch}")
        }
    )
    return types


def split_into_segments(index: GraphIndex) -> list[list[onnx.NodeProto]]:
    """The nodes in segments of one block each, in topological order.

    Blocks may interleave in the graph's own order; here a block continues while one of its nodes is ready. A block that
    depends on another block halfway is split in two. A segment without weights joins the one after it.

    Args:
        index: The graph.
    """
    missing = {
        node.name: len({index.producer[name].name for name in index.data_inputs(node) if name in index.producer})
        for node in index.graph.node
    }
    position = {node.name: number for number, node in enumerate(index.graph.node)}
    ready = [node for node in index.graph.node if not missing[node.name]]
    segments: list[list[onnx.NodeProto]] = []
    block = ""
    while ready:
        same_block = [node for node in ready if block_of(node.name) == block]
        node = min(same_block or ready, key=lambda node: position[node.name])
        ready.remove(node)
        if not same_block:
            block = block_of(node.name)
            segments.append([])
        segments[-1].append(node)
        for reader in {reader.name: reader for name in node.output for reader in index.consumers[name]}.values():
            missing[reader.name] -= 1
            if not missing[reader.name]:
                ready.append(reader)
    return _merge_weightless_segments(segments)


def _merge_weightless_segments(segments: list[list[onnx.NodeProto]]) -> list[list[onnx.NodeProto]]:
    """Segments without weights (a lone reshape) merged into the next one or, at the end, into the previous one."""
    merged: list[list[onnx.NodeProto]] = []
    pending: list[onnx.NodeProto] = []
    for segment in segments:
        pending += segment
        if any(node.op_type in WEIGHTED_OPS for node in segment):
            merged.append(pending)
            pending = []
    if pending:
        if merged:
            merged[-1].extend(pending)
        else:
            merged.append(pending)
    return merged


def escape_pattern(name: str) -> str:
    """The `keep=` pattern that matches this node name and no other.

    Args:
        name: A node's name.
    """
    return re.sub(r"([\[*?])", r"[\1]", name)


Item = TypeVar("Item")


class DisjointSets(Generic[Item]):
    """Sets of items that are merged pair by pair (union-find); every item starts alone."""

    def __init__(self) -> None:
        self._parent: dict[Item, Item] = {}

    def find(self, item: Item) -> Item:
        """The representative of an item's set."""
        while (parent := self._parent.get(item, item)) != item:
            item = parent
        return item

    def union(self, one: Item, other: Item) -> None:
        """Merge the sets of two items; the representative of `one` stays."""
        self._parent[self.find(other)] = self.find(one)
