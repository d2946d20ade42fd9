"""A graph seen by its structure: who makes and reads each tensor, and what part each weighted layer plays."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import numpy_helper

if TYPE_CHECKING:
    import torch

__all__ = [
    "LAYOUT_OPS",
    "WEIGHTED_OPS",
    "GraphIndex",
    "block_of",
    "block_types",
    "count_macs",
    "escape_pattern",
    "split_into_segments",
]

WEIGHTED_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that hold weights worth quantizing, where their second input is a constant."""

LAYOUT_OPS = (
    "Reshape",
    "Transpose",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Split",
    "Slice",
    "Concat",
    "Identity",
    "Gather",
)
"""Operators that move values without changing them."""


class GraphIndex:
    """Read-only look-ups over one graph; make it anew after changing the graph.

    Args:
        proto: The graph; nodes need unique names.
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

    def weight(self, node: onnx.NodeProto) -> onnx.TensorProto | None:
        """The constant float weight of a weighted layer, None for any other node."""
        if node.op_type not in WEIGHTED_OPS or len(node.input) < 2:
            return None
        tensor = self.constants.get(node.input[1])
        return tensor if tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT else None

    def array(self, name: str) -> np.ndarray:
        """A constant's value."""
        return numpy_helper.to_array(self.constants[name])

    def data_inputs(self, node: onnx.NodeProto) -> list[str]:
        """Inputs that are computed, not constants."""
        return [name for name in node.input if name and name not in self.constants]

    def sole_consumer(self, name: str) -> onnx.NodeProto | None:
        """The one node that reads a tensor, None where there are others or the tensor leaves the graph."""
        readers = self.consumers[name]
        leaves = any(value.name == name for value in self.graph.output)
        return readers[0] if len(readers) == 1 and not leaves else None

    def downstream(self, node: onnx.NodeProto, stop: Callable[[onnx.NodeProto], bool]) -> Iterator[onnx.NodeProto]:
        """Nodes that read from `node`, directly or not; a node where `stop` holds is given but not passed."""
        return self._walk(node, stop, lambda at: [c for name in at.output for c in self.consumers[name]])

    def upstream(self, node: onnx.NodeProto, stop: Callable[[onnx.NodeProto], bool]) -> Iterator[onnx.NodeProto]:
        """Nodes that `node` reads from, directly or not; a node where `stop` holds is given but not passed."""
        return self._walk(
            node, stop, lambda at: [self.producer[name] for name in self.data_inputs(at) if name in self.producer]
        )

    def _walk(
        self,
        start: onnx.NodeProto,
        stop: Callable[[onnx.NodeProto], bool],
        neighbors: Callable[[onnx.NodeProto], list[onnx.NodeProto]],
    ) -> Iterator[onnx.NodeProto]:
        seen: set[str] = set()
        front = neighbors(start)
        while front:
            node = front.pop()
            if node.name in seen:
                continue
            seen.add(node.name)
            yield node
            if not stop(node):
                front.extend(neighbors(node))

    def dfl_layers(self) -> set[str]:
        """Names of layers that read a Softmax: the distribution-focal-loss expectation of box sides."""
        found = set()
        for node in self.weighted:
            source = self.producer.get(node.input[0])
            while source is not None and source.op_type in LAYOUT_OPS:
                source = self.producer.get(source.input[0])
            if source is not None and source.op_type == "Softmax":
                found.add(node.name)
        return found

    def output_layers(self) -> tuple[str, ...]:
        """Names of the last layers, in graph order: what they give is only decoded into boxes, scores or classes."""
        expectations = self.dfl_layers()
        return tuple(
            node.name
            for node in self.weighted
            if node.name not in expectations and all(name in expectations for name in self._readers(node))
        )

    def layers_excluded_by_default(self, kept_fp16: Iterable[str] = ()) -> dict[str, str]:
        """Weighted layers whose INT8 costs accuracy or fails to build and saves little time, with the reason.

        Found from the graph's structure, so that renamed or foreign graphs are served too:

        - `dfl`: reads a Softmax (the distribution-focal-loss expectation of box sides);
        - `output`: a last layer that is no convolution, such as the fully connected one of a classifier;
        - `transposed`: transposed convolutions, rare and cheap;
        - `attention`: reads what a product of two activations (query x key) gives;
        - `depthwise`: from `depthwise_before` the others and what else stays high.

        A head's last convolutions are none of these. Kept high they made TensorRT 8.6 write the layers before them in
        FP32, activation apart, and reformat twice; `benchmarks/results/placements.md` has the figures.

        Args:
            kept_fp16: Names of layers that stay high for reasons of their own.
        """

        def product(node: onnx.NodeProto) -> bool:
            return node.op_type == "MatMul" and len(self.data_inputs(node)) == 2

        reasons = dict.fromkeys(self.dfl_layers(), "dfl")
        last = self.output_layers()
        for node in self.weighted:
            if node.name in reasons:
                continue
            if node.name in last:
                if node.op_type != "Conv":
                    reasons[node.name] = "output"
            elif node.op_type == "ConvTranspose":
                reasons[node.name] = "transposed"
            elif any(map(product, self._up(node))):
                reasons[node.name] = "attention"
        return {**reasons, **dict.fromkeys(self.depthwise_layers_before([*reasons, *kept_fp16]), "depthwise")}

    def depthwise_layers_before(self, kept_fp16: Iterable[str]) -> list[str]:
        """Grouped convolutions that must stay high because a layer that does reads them.

        TensorRT 8.6 runs depthwise layers from INT8 to INT8; with all of them in INT8, the one in attention included,
        whose output floats read, it does not build.

        Args:
            kept_fp16: Names of the layers that stay high.
        """
        known, found = set(kept_fp16), []
        # Backwards, so that one depthwise layer before another is seen.
        for node in reversed(self.weighted):
            if node.name not in known and self.group(node) > 1 and not known.isdisjoint(self._readers(node)):
                known.add(node.name)
                found.append(node.name)
        return found

    def _is_weighted(self, node: onnx.NodeProto) -> bool:
        return self.weight(node) is not None

    def _down(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """What reads a layer's output, as far as the next weighted layers."""
        return list(self.downstream(node, self._is_weighted))

    def _up(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """What a layer's input is made by, as far back as the weighted layers before it."""
        return list(self.upstream(node, self._is_weighted))

    def _readers(self, node: onnx.NodeProto) -> list[str]:
        """Names of the next weighted layers."""
        return [reader.name for reader in self._down(node) if self._is_weighted(reader)]

    @staticmethod
    def group(node: onnx.NodeProto) -> int:
        """A convolution's number of groups, 1 where it has none."""
        return next((int(a.i) for a in node.attribute if a.name == "group"), 1)

    @staticmethod
    def axis(node: onnx.NodeProto) -> int:
        """The axis that a node names, 0 where it names none."""
        return next((int(a.i) for a in node.attribute if a.name == "axis"), 0)

    def decode_nodes(self) -> set[str]:
        """Names of nodes after the last weighted layers: decoding, in pixels and probabilities.

        FP16 holds 640 only to half a pixel, so these stay in FP32.
        """
        names = self.dfl_layers()
        last = set(self.output_layers())
        for name in names | last:
            names = names | {node.name for node in self.downstream(self.nodes[name], lambda _: False)}
        return names - last

    def count_macs(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
        """Multiply-accumulates of each weighted layer for one image, by node name.

        Args:
            shapes: Shapes of the layers' outputs, as ONNX shape inference gives them.
        """
        counts: dict[str, int] = {}
        for node in self.weighted:
            weight = self.weight(node)
            output = shapes.get(node.output[0])
            if weight is None or output is None:
                continue
            if node.op_type == "Conv":
                each = int(np.prod(weight.dims[1:]))
            elif node.op_type == "ConvTranspose":
                # Each input element meets every weight of its channel.
                output = shapes.get(node.input[0], output)
                each = int(np.prod(weight.dims[1:]))
            else:
                each = int(weight.dims[0] if node.op_type == "MatMul" else weight.dims[1])
            counts[node.name] = int(np.prod([max(side, 1) for side in output[1:]])) * each
        return counts


# A graph's nodes in blocks, as their names tell, and in an order that computes one block after the other.


_NUMBERED = re.compile(r"^/?(model\.\d+)(?:/|$)")

_HEAD_BRANCH = re.compile(r"^/?(model\.\d+/(?:cv|one2one_cv)\d\.\d+)(?:/|$)")


def block_of(node: str) -> str:
    """The block that a node belongs to, by its name: `/model.4/m.0/cv1/conv/Conv` is in `model.4`.

    Branches of a detection head are blocks of their own (`model.23/cv2.0`): each is as long as a whole block before
    it. A node of another graph belongs to the first part of its path, or stands for itself.
    """
    for pattern in (_HEAD_BRANCH, _NUMBERED):
        found = pattern.match(node)
        if found is not None:
            return found[1]
    parts = [part for part in node.split("/") if part]
    return parts[0] if len(parts) > 1 else node


def split_into_segments(view: GraphIndex) -> list[list[onnx.NodeProto]]:
    """The nodes in runs of one block each, every run after all that it reads.

    Blocks may interleave in the graph's own order; here a block goes on as long as one of its nodes is ready. A block
    that waits for another in its midst is cut in two.

    Args:
        view: The graph.
    """
    waiting = {
        node.name: len({view.producer[name].name for name in view.data_inputs(node) if name in view.producer})
        for node in view.graph.node
    }
    place = {node.name: index for index, node in enumerate(view.graph.node)}
    ready = [node for node in view.graph.node if not waiting[node.name]]
    runs: list[list[onnx.NodeProto]] = []
    current = ""
    while ready:
        mine = [node for node in ready if block_of(node.name) == current]
        node = min(mine or ready, key=lambda node: place[node.name])
        ready.remove(node)
        if not mine:
            current = block_of(node.name)
            runs.append([])
        runs[-1].append(node)
        for reader in {reader.name: reader for name in node.output for reader in view.consumers[name]}.values():
            waiting[reader.name] -= 1
            if not waiting[reader.name]:
                ready.append(reader)
    return _merge_weightless_runs(runs)


def _merge_weightless_runs(runs: list[list[onnx.NodeProto]]) -> list[list[onnx.NodeProto]]:
    """Runs without a weight (a lone reshape) joined to the one that follows or, at the end, to the one before."""
    result: list[list[onnx.NodeProto]] = []
    pending: list[onnx.NodeProto] = []
    for run in runs:
        pending += run
        if any(node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") for node in run):
            result.append(pending)
            pending = []
    if pending:
        if result:
            result[-1].extend(pending)
        else:
            result.append(pending)
    return result


def block_types(module: torch.nn.Module | None) -> dict[str, str]:
    """The class of each numbered block, by the block's name; {} where there is no torch module."""
    if module is None:
        return {}
    types = {name: type(part).__name__ for name, part in module.named_modules() if _NUMBERED.fullmatch(name)}
    # A head's branch is a block of its own, and says whose it is.
    types.update(
        {
            f"{block}/{branch}": types[block]
            for block in list(types)
            for branch, _ in module.get_submodule(block).named_modules()
            if _HEAD_BRANCH.fullmatch(f"{block}/{branch}")
        }
    )
    return types


def escape_pattern(name: str) -> str:
    """The `keep=` pattern that matches this name and no other."""
    return re.sub(r"([\[*?])", r"[\1]", name)


def count_macs(graph: onnx.ModelProto, view: GraphIndex) -> dict[str, int]:
    """Multiply-accumulates of each weighted layer for one image."""
    inferred = onnx.shape_inference.infer_shapes(graph)
    values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    return view.count_macs(
        {value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in values}
    )
