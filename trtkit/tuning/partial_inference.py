"""Many placements of INT8 over the same images, each computing only what differs from the ones before it.

The graph is cut into segments. What a segment computes depends on how it is quantized and on what comes in, so a
result is known by both: a placement that quantizes one late layer shares everything before that layer with the float
graph, and one that keeps a layer high shares the beginning with the graph that is INT8 throughout.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from trtkit.graph.analysis import GraphIndex, split_into_segments
from trtkit.graph.qdq import QDQPlacement, insert_qdq, passes_int8

__all__ = ["NO_INT8", "SegmentedGraph", "Variant"]

NO_INT8 = QDQPlacement(layers=(), tensors=(), scale_groups={}, excluded={})
"""Nothing in INT8."""

Ranges = Mapping[str, tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Variant:
    """A placement, prepared.

    Attributes:
        sessions: By segment, which session computes it.
        results: By segment, the number of its result: two variants with the same number compute the same there.
    """

    sessions: tuple[Any, ...]
    result_ids: tuple[int, ...]


@dataclasses.dataclass(eq=False)
class _Segment:
    """One part of the graph.

    Attributes:
        proto: Its own graph.
        inputs: Tensors it reads from others.
        outputs: Tensors that others or the graph's outputs read.
        made: Every tensor its nodes make.
        nodes: Its nodes by name.
    """

    proto: onnx.ModelProto
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    produced: frozenset[str]
    nodes: Mapping[str, onnx.NodeProto]


class SegmentedGraph:
    """A float graph, cut up, that runs under any placement of INT8.

    Args:
        proto: FP32 graph with unique node names.
        also: Tensors besides the graph's outputs that `run` may be asked for.
        exact: Run Q/DQ segments by the very arithmetic of the ONNX Runtime backend; else by faster kernels that add in
            another order, which moves single values across a rounding step and leaves averages alone.
    """

    def __init__(self, proto: onnx.ModelProto, also: Iterable[str] = (), *, exact: bool = True) -> None:
        self.exact = exact
        self.proto = proto
        self.index = GraphIndex(proto)
        self.input = proto.graph.input[0].name
        self.outputs = tuple(value.name for value in proto.graph.output)
        self.segments = self._cut_segments({*self.outputs, *also})
        self.sessions: dict[tuple[Any, ...], Any] = {}
        self.result_ids: dict[tuple[Any, ...], int] = {}

    def _cut_segments(self, wanted: set[str]) -> list[_Segment]:
        inferred = onnx.shape_inference.infer_shapes(self.proto)
        types = {
            value.name: value.type.tensor_type.elem_type
            for value in [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
        }
        runs = split_into_segments(self.index)
        owner = {node.name: index for index, run in enumerate(runs) for node in run}
        segments = []
        for index, run in enumerate(runs):
            made = [name for node in run for name in node.output]
            read = [name for node in run for name in node.input if name]
            inputs = dict.fromkeys(n for n in read if n not in self.index.constants and n not in set(made))
            outputs = [
                name
                for name in made
                if name in wanted or any(owner[reader.name] != index for reader in self.index.consumers[name])
            ]
            constants = dict.fromkeys(name for name in read if name in self.index.constants and name not in set(made))
            graph = helper.make_graph(
                run,
                f"segment_{index}",
                [helper.make_tensor_value_info(name, types[name], None) for name in inputs],
                [helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), None) for name in outputs],
                [self._copy_constant(name) for name in constants],
            )
            proto = helper.make_model(graph, opset_imports=list(self.proto.opset_import))
            proto.ir_version = self.proto.ir_version
            segments.append(
                _Segment(
                    proto=proto,
                    inputs=tuple(inputs),
                    outputs=tuple(outputs),
                    produced=frozenset(made),
                    nodes={node.name: node for node in run},
                )
            )
        return segments

    def _copy_constant(self, name: str) -> onnx.TensorProto:
        tensor = copy.deepcopy(self.index.constants[name])
        # A Constant node's value has no name of its own.
        tensor.name = name
        return tensor

    def prepare_variant(
        self,
        placement: QDQPlacement,
        ranges: Ranges,
        corrections: Mapping[str, Sequence[float]] | None = None,
        *,
        shared: bool = False,
    ) -> Variant:
        """Prepare a placement; sessions that other placements made are taken over.

        Args:
            placement: From `graph.quantized.place`.
            ranges: Lowest and highest value by tensor.
            corrections: As `graph.quantized.quantize` takes them.
            shared: Whether many other variants share its segments: those then keep their scratch memory.
        """
        sessions, results = [], []
        made: dict[str, int] = {}
        for index, segment in enumerate(self.segments):
            own = self._restrict_placement(segment, placement)
            scales = (
                max(max(abs(v) for v in ranges[name]) for name in own.scale_groups[tensor]) for tensor in own.tensors
            )
            mine = {name: tuple((corrections or {})[name]) for name in own.layers if name in (corrections or {})}
            key = (index, own.layers, own.tensors, tuple(scales), tuple(mine.items()))
            if key not in self.sessions:
                self.sessions[key] = _create_session(segment.proto, own, ranges, mine, exact=self.exact, arena=shared)
            number = self.result_ids.setdefault(
                (key, *(made.get(name, -1) for name in segment.inputs)), len(self.result_ids)
            )
            made.update(dict.fromkeys(segment.outputs, number))
            sessions.append(self.sessions[key])
            results.append(number)
        return Variant(tuple(sessions), tuple(results))

    def run(
        self,
        images: NDArray[np.float32],
        variants: Sequence[Variant],
        *,
        outputs: Sequence[str] | None = None,
        pin: int = 2,
    ) -> Iterator[dict[str, NDArray[np.float32]]]:
        """Run variants over the same images, one after the other.

        Args:
            images: (N, C, H, W) float32 in [0, 1].
            variants: From `variant`.
            outputs: Tensors to compute; None takes the graph's outputs.
            pin: Of the first so many variants all results are kept for those that follow.

        Yields:
            The tensors asked for of each variant, by name.
        """
        asked = self.outputs if outputs is None else tuple(outputs)
        needed = self._list_needed_segments(asked)
        pinned: dict[int, list[Any]] = {}
        for place, variant in enumerate(variants):
            values: dict[str, Any] = {self.input: images}
            for index in needed:
                segment, session, number = self.segments[index], variant.sessions[index], variant.result_ids[index]
                found = pinned.get(number)
                if found is None:
                    found = session.run(list(segment.outputs), {name: values[name] for name in segment.inputs})
                    if place < pin:
                        pinned[number] = found
                values.update(zip(segment.outputs, found, strict=True))
            yield {name: values[name] for name in asked}

    def _list_needed_segments(self, outputs: Sequence[str]) -> list[int]:
        """Places of the segments that some tensors hang on."""
        wanted, found = set(outputs), []
        for index in reversed(range(len(self.segments))):
            segment = self.segments[index]
            if wanted.intersection(segment.outputs):
                wanted.update(segment.inputs)
                found.append(index)
        return found[::-1]

    def _restrict_placement(self, segment: _Segment, placement: QDQPlacement) -> QDQPlacement:
        """The part of a placement that shows inside a segment."""
        quantized = set(placement.tensors)
        layers = tuple(name for name in placement.layers if name in segment.nodes)

        def reads(node: onnx.NodeProto) -> bool:
            return node.name in layers or (
                (node.op_type == "Add" or passes_int8(node)) and any(name in quantized for name in node.output)
            )

        shown: set[str] = set()
        for node in segment.nodes.values():
            if reads(node):
                shown.update(name for name in node.input if name in quantized)
                if node.name not in layers:
                    # Whether such a node reads INT8 hangs on its output being INT8.
                    shown.update(name for name in node.output if name in quantized)
        tensors = tuple(name for name in placement.tensors if name in shown)
        return QDQPlacement(
            layers=layers,
            tensors=tensors,
            scale_groups={name: placement.scale_groups[name] for name in tensors},
            excluded={},
        )


def _create_session(
    proto: onnx.ModelProto,
    own: QDQPlacement,
    ranges: Ranges,
    corrections: Mapping[str, Sequence[float]],
    *,
    exact: bool,
    arena: bool,
) -> Any:
    """A session on one thread: images run beside each other, which wastes less than sharing the layers of one."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    # Hundreds of sessions that each keep their scratch memory would hold gigabytes.
    options.enable_cpu_mem_arena = arena
    if own.tensors:
        proto = insert_qdq(proto, ranges, placement=own, corrections=corrections)
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        if exact:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
