"""Partial inference: run many Q/DQ placements of one graph on the same images and compute shared segments once.

The graph is cut into segments. A segment's result is identified by its quantization and its inputs: a placement that
quantizes one late layer shares all earlier segments with FP32, and one that excludes a layer from INT8 shares the
segments before that layer with full INT8.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from trtkit.graph.analysis import GraphIndex, split_into_segments
from trtkit.graph.ort_session import run_qdq_as_written
from trtkit.graph.qdq import QDQPlacement, insert_qdq, passes_int8

__all__ = ["NO_INT8", "Ranges", "SegmentedGraph", "Variant", "VariantSettings"]

NO_INT8 = QDQPlacement(layers=(), tensors=(), scale_groups={}, excluded={})
"""The placement without INT8 layers."""

Ranges = Mapping[str, tuple[float, float]]
"""Minimum and maximum by tensor."""


@dataclasses.dataclass(frozen=True)
class VariantSettings:
    """What a variant is made from: the arguments of `SegmentedGraph.prepare_variant`, for another process."""

    placement: QDQPlacement
    ranges: Ranges
    corrections: Mapping[str, Sequence[float]] | None = None


@dataclasses.dataclass(frozen=True)
class Variant:
    """A placement with its sessions.

    Attributes:
        sessions: The ONNX Runtime session of each segment; () if only workers run it.
        result_ids: The id of each segment's result; equal ids of two variants are equal results.
        settings: What it was made from.
    """

    sessions: tuple[Any, ...]
    result_ids: tuple[int, ...]
    settings: VariantSettings


@dataclasses.dataclass(eq=False)
class _Segment:
    """A segment of the graph.

    Attributes:
        proto: The segment as a graph of its own.
        inputs: Tensors read from other segments.
        outputs: Tensors read by other segments or output by the graph.
        nodes: Its nodes by name.
    """

    proto: onnx.ModelProto
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: Mapping[str, onnx.NodeProto]


class SegmentedGraph:
    """A float graph cut into segments, which runs under any Q/DQ placement.

    Args:
        proto: FP32 graph with unique node names.
        extra_outputs: Tensors besides the graph's outputs that `run` can return.
        exact: Run Q/DQ segments with the optimization level of the ONNX Runtime backend, so that results are equal to
            its results; False uses faster kernels with another order of summation, which moves single values by one
            quantization step and does not change averages.
    """

    def __init__(self, proto: onnx.ModelProto, extra_outputs: Iterable[str] = (), *, exact: bool = True) -> None:
        self.exact = exact
        self.proto = proto
        self.index = GraphIndex(proto)
        self.input = proto.graph.input[0].name
        self.outputs = tuple(value.name for value in proto.graph.output)
        self.segments = self._cut_segments({*self.outputs, *extra_outputs})
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
            produced = [name for node in run for name in node.output]
            read = [name for node in run for name in node.input if name]
            inputs = dict.fromkeys(n for n in read if n not in self.index.constants and n not in set(produced))
            outputs = [
                name
                for name in produced
                if name in wanted or any(owner[reader.name] != index for reader in self.index.consumers[name])
            ]
            constants = dict.fromkeys(n for n in read if n in self.index.constants and n not in set(produced))
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
                    nodes={node.name: node for node in run},
                )
            )
        return segments

    def _copy_constant(self, name: str) -> onnx.TensorProto:
        tensor = copy.deepcopy(self.index.constants[name])
        # The value of a Constant node has no name.
        tensor.name = name
        return tensor

    def prepare_variant(
        self,
        placement: QDQPlacement,
        ranges: Ranges,
        corrections: Mapping[str, Sequence[float]] | None = None,
    ) -> Variant:
        """Create the sessions of a placement; sessions of equal segments are reused.

        Args:
            placement: From `plan_qdq`.
            ranges: Minimum and maximum by tensor.
            corrections: Bias corrections, as `insert_qdq` takes them.
        """
        settings = VariantSettings(placement, ranges, corrections)
        corrections = corrections or {}
        sessions, result_ids = [], []
        id_of: dict[str, int] = {}
        for index, segment in enumerate(self.segments):
            part = self._restrict_placement(segment, placement)
            scales = (
                max(max(abs(v) for v in ranges[name]) for name in part.scale_groups[tensor]) for tensor in part.tensors
            )
            biases = {name: tuple(corrections[name]) for name in part.layers if name in corrections}
            key = (index, part.layers, part.tensors, tuple(scales), tuple(biases.items()))
            if key not in self.sessions:
                self.sessions[key] = _create_session(segment.proto, part, ranges, biases, exact=self.exact)
            result_id = self.result_ids.setdefault(
                (key, *(id_of.get(name, -1) for name in segment.inputs)), len(self.result_ids)
            )
            id_of.update(dict.fromkeys(segment.outputs, result_id))
            sessions.append(self.sessions[key])
            result_ids.append(result_id)
        return Variant(tuple(sessions), tuple(result_ids), settings)

    def run(
        self,
        images: NDArray[np.float32],
        variants: Sequence[Variant],
        *,
        outputs: Sequence[str] | None = None,
    ) -> Iterator[dict[str, NDArray[np.float32]]]:
        """Run variants on the same images, one after the other; each segment result that several need is computed once.

        Args:
            images: (N, C, H, W) float32 in [0, 1].
            variants: From `prepare_variant`.
            outputs: Tensors to return; None returns the graph's outputs.

        Yields:
            The requested tensors of each variant, by name.
        """
        requested = self.outputs if outputs is None else tuple(outputs)
        needed = self._list_needed_segments(requested)
        uses = Counter(variant.result_ids[index] for variant in variants for index in needed)
        cached: dict[int, list[Any]] = {}
        for variant in variants:
            values: dict[str, Any] = {self.input: images}
            for index in needed:
                segment, session, result_id = self.segments[index], variant.sessions[index], variant.result_ids[index]
                results = cached.pop(result_id, None)
                if results is None:
                    results = session.run(list(segment.outputs), {name: values[name] for name in segment.inputs})
                uses[result_id] -= 1
                if uses[result_id]:
                    cached[result_id] = results
                values.update(zip(segment.outputs, results, strict=True))
            yield {name: values[name] for name in requested}

    def _list_needed_segments(self, outputs: Sequence[str]) -> list[int]:
        """Indices of the segments that some tensors depend on."""
        wanted, needed = set(outputs), []
        for index in reversed(range(len(self.segments))):
            segment = self.segments[index]
            if wanted.intersection(segment.outputs):
                wanted.update(segment.inputs)
                needed.append(index)
        return needed[::-1]

    def _restrict_placement(self, segment: _Segment, placement: QDQPlacement) -> QDQPlacement:
        """The part of a placement that affects a segment."""
        quantized = set(placement.tensors)
        layers = tuple(name for name in placement.layers if name in segment.nodes)

        def reads(node: onnx.NodeProto) -> bool:
            return node.name in layers or (
                (node.op_type == "Add" or passes_int8(node)) and any(name in quantized for name in node.output)
            )

        affected: set[str] = set()
        for node in segment.nodes.values():
            if reads(node):
                affected.update(name for name in node.input if name in quantized)
                if node.name not in layers:
                    # Such a node reads INT8 only if its output is INT8.
                    affected.update(name for name in node.output if name in quantized)
        tensors = tuple(name for name in placement.tensors if name in affected)
        return QDQPlacement(
            layers=layers,
            tensors=tensors,
            scale_groups={name: placement.scale_groups[name] for name in tensors},
            excluded={},
        )


def _create_session(
    proto: onnx.ModelProto,
    part: QDQPlacement,
    ranges: Ranges,
    corrections: Mapping[str, Sequence[float]],
    *,
    exact: bool,
) -> Any:
    """Create a single-threaded session; images run in parallel instead of the operators of one image."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    # Hundreds of sessions with a memory arena each would hold gigabytes, and no run would be faster.
    options.enable_cpu_mem_arena = False
    if part.tensors:
        proto = insert_qdq(proto, ranges, placement=part, corrections=corrections)
        run_qdq_as_written(options)
        if not exact:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
