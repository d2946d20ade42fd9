"""FP32 graph -> typed FP16 graph, the way back, and FP16 emulated on processors that compute in FP32.

Inputs, outputs, decoding and nodes that overflow stay in FP32, between Casts.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from fnmatch import fnmatchcase

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trtkit.errors import RecipeError
from trtkit.graph.analysis import GraphIndex
from trtkit.graph.editing import get_opset
from trtkit.graph.onnx_file import read_trtkit_metadata, update_metadata

__all__ = [
    "FP16_MAX",
    "convert_qdq_to_fp16",
    "convert_to_fp16",
    "convert_to_fp32",
    "emulate_fp16",
    "has_fp16",
    "match_node_names",
]

FP16_MAX = 65504.0

FP16, FP32 = TensorProto.FLOAT16, TensorProto.FLOAT

FP32_INPUTS = {"Resize": (1, 2), "NonMaxSuppression": (0, 1, 3, 4)}
"""Inputs that are FP32 by the operator's definition, whatever the precision of the others."""

FIXED_TYPE_OPS = ("Constant", "ConstantOfShape", "RandomNormal", "Range", "Shape", "Size")
"""Operators whose output type does not follow their inputs; their float results are cast."""


def convert_to_fp16(
    proto: onnx.ModelProto, keep: Iterable[str] = (), *, protect: bool = True, keep_nodes: Iterable[str] = ()
) -> onnx.ModelProto:
    """Convert weights and activations to FP16; the caller's graph is not modified.

    Args:
        proto: FP32 graph with unique node names.
        keep: fnmatch patterns of node names that stay in FP32.
        protect: Keep decoding (coordinates in pixels) in FP32, whatever `keep` says.
        keep_nodes: Names, not patterns, of further nodes that stay in FP32, such as those that overflow.

    Returns:
        A graph in which every float tensor is FP16, except inputs, outputs and the kept nodes, which sit between Casts.

    Raises:
        RecipeError: A pattern matches no node.
    """
    result = copy.deepcopy(proto)
    index = GraphIndex(result)
    kept = match_node_names(index.nodes, keep) | set(keep_nodes) | (index.decode_nodes() if protect else set())
    # A weight beyond FP16's range would become infinite: its layer stays in FP32.
    for node in result.graph.node:
        for name in node.input:
            tensor = index.constants.get(name)
            if tensor is not None and tensor.data_type == FP32:
                values = numpy_helper.to_array(tensor)
                if values.size and np.isfinite(values).all() and np.abs(values).max() > FP16_MAX:
                    kept.add(node.name)
    converted = _Fp16Converter(index, kept, _fp32_tensors(result)).run()
    return update_metadata(converted, {"half": True}, {"precision": "fp16"})


def convert_qdq_to_fp16(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Convert the FP32 parts of a Q/DQ graph to FP16, for a TensorRT that takes every type from the graph.

    Q/DQ with FP16 scales needs operator set 19, so an older graph is raised to it; every TensorRT that is strongly
    typed only reads that set.

    Args:
        proto: From `trtkit.graph.qdq.insert_qdq`.
    """
    raised = onnx.version_converter.convert_version(proto, max(19, get_opset(proto)))
    # The converter keeps node names but drops the metadata.
    update_metadata(
        raised,
        {entry.key: entry.value for entry in proto.metadata_props if entry.key != "trtkit"},
        read_trtkit_metadata(proto),
    )
    # Behind Q/DQ a weight is no constant, so the decode nodes can't be found by structure; the metadata names them.
    decode_nodes = read_trtkit_metadata(proto).get("fp32", ())
    return update_metadata(convert_to_fp16(raised, protect=False, keep_nodes=decode_nodes), {}, {"precision": "int8"})


def match_node_names(names: Iterable[str], patterns: Iterable[str]) -> set[str]:
    """Names that any fnmatch pattern matches.

    Args:
        names: Node names.
        patterns: fnmatch patterns, case-sensitive.

    Raises:
        RecipeError: A pattern matches no name.
    """
    names = set(names)
    matched: set[str] = set()
    for pattern in patterns:
        # A plain name, as the search passes by the thousand, matches itself alone.
        is_plain = not any(sign in pattern for sign in "*?[")
        hits = names & {pattern} if is_plain else {name for name in names if fnmatchcase(name, pattern)}
        if not hits:
            raise RecipeError(
                f"keep {pattern!r} in higher precision",
                "no ONNX node has such a name",
                "look up node names in the layer table",
                code="keep-no-match",
                pattern=pattern,
            )
        matched |= hits
    return matched


def _fp32_tensors(proto: onnx.ModelProto) -> set[str]:
    """Names of all FP32 tensors that nodes compute."""
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=False)
    values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    return {value.name for value in values if value.type.tensor_type.elem_type == FP32}


class _Fp16Converter:
    """One pass over the nodes in order that tracks in which precision each tensor is available."""

    def __init__(self, index: GraphIndex, kept: set[str], fp32_tensors: set[str]) -> None:
        self.index = index
        self.kept = kept
        self.fp32_tensors = fp32_tensors
        self.nodes: list[onnx.NodeProto] = []
        self.fp16_tensors: set[str] = set()  # computed tensors that are FP16 under their own name
        self.casts: dict[tuple[str, int], str] = {}  # (tensor, type) -> name of its cast copy
        self.constants: dict[str, str] = {}  # FP32 constant -> its FP16 copy
        self.added: list[onnx.TensorProto] = []

    def run(self) -> onnx.ModelProto:
        outputs = {value.name for value in self.index.graph.output}
        for node in self.index.graph.node:
            stays_fp32 = node.name in self.kept or node.op_type in FIXED_TYPE_OPS
            for slot, name in enumerate(node.input):
                if name and not (stays_fp32 and name in self.index.constants):
                    node.input[slot] = self._convert_input(node, slot, name, stays_fp32)
            if node.op_type == "Cast":
                self._retarget_cast(node, stays_fp32)
            self.nodes.append(node)
            for slot, name in enumerate(node.output):
                if stays_fp32 or name not in self.fp32_tensors:
                    continue
                if name in outputs:
                    node.output[slot] = f"{name}_half"
                    self.nodes.append(helper.make_node("Cast", [f"{name}_half"], [name], f"{name}_cast", to=FP32))
                    self.casts[name, FP16] = f"{name}_half"
                else:
                    self.fp16_tensors.add(name)
        graph = self.index.graph
        del graph.node[:]
        graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        constants = [tensor for tensor in [*graph.initializer, *self.added] if tensor.name in used]
        del graph.initializer[:]
        graph.initializer.extend(constants)
        del graph.value_info[:]
        return self.index.proto

    def _convert_input(self, node: onnx.NodeProto, slot: int, name: str, stays_fp32: bool) -> str:
        is_fp32_input = slot in FP32_INPUTS.get(node.op_type, ())
        if name in self.index.constants:
            tensor = self.index.constants[name]
            if is_fp32_input or tensor.data_type != FP32:
                return name
            is_scale = slot == 1 and node.op_type in ("QuantizeLinear", "DequantizeLinear")
            return self._fp16_constant(name, tensor, is_scale=is_scale)
        if name not in self.fp32_tensors:
            return name
        wanted = FP32 if stays_fp32 or is_fp32_input else FP16
        available = FP16 if name in self.fp16_tensors else FP32
        return name if wanted == available else self._cast(name, wanted)

    def _fp16_constant(self, name: str, tensor: onnx.TensorProto, *, is_scale: bool = False) -> str:
        if name not in self.constants:
            with np.errstate(over="ignore"):
                values = numpy_helper.to_array(tensor).astype(np.float16)
            if is_scale:
                # Channels that training left near zero have scales that FP16 rounds to 0, which TensorRT refuses.
                values = np.maximum(values, np.finfo(np.float16).smallest_subnormal)
            self.constants[name] = f"{name}_half"
            self.added.append(numpy_helper.from_array(values, f"{name}_half"))
        return self.constants[name]

    def _cast(self, name: str, wanted: int) -> str:
        key = (name, wanted)
        if key not in self.casts:
            self.casts[key] = f"{name}_{'half' if wanted == FP16 else 'float'}"
            self.nodes.append(helper.make_node("Cast", [name], [self.casts[key]], f"{self.casts[key]}_cast", to=wanted))
        return self.casts[key]

    @staticmethod
    def _retarget_cast(node: onnx.NodeProto, stays_fp32: bool) -> None:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == FP32 and not stays_fp32:
                attribute.i = FP16


# The way back.


def convert_to_fp32(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Convert an FP16 graph to FP32; the caller's graph is not modified.

    Every FP16 number is an FP32 number, so the weights keep their values; sums and products are no longer rounded.

    Args:
        proto: Any graph, nodes in topological order; one without FP16 is returned as it is.

    Returns:
        A graph whose weights, inputs, outputs and casts are FP32 where they were FP16. Casts that no longer change
        a type are gone.
    """
    if not has_fp16(proto):
        return proto
    result = copy.deepcopy(proto)
    _widen_graph(result.graph)
    del result.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(result).graph
    floats = {
        value.name
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
        if value.type.tensor_type.elem_type == FP32
    } | {tensor.name for tensor in result.graph.initializer if tensor.data_type == FP32}
    _remove_float_casts(result.graph, floats)
    return result


def _widen_graph(graph: onnx.GraphProto) -> None:
    """FP16 as FP32 in declared types, constants and attributes of a graph and its subgraphs."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == FP16:
            value.type.tensor_type.elem_type = FP32
    for tensor in graph.initializer:
        _widen_constant(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen_constant(attribute.t)
            if attribute.HasField("g"):
                _widen_graph(attribute.g)
            for subgraph in attribute.graphs:
                _widen_graph(subgraph)
            if attribute.name in ("to", "dtype") and attribute.i == FP16:
                attribute.i = FP32


def _remove_float_casts(graph: onnx.GraphProto, floats: set[str]) -> None:
    """Remove casts from FP32 to FP32, except those that compute an output of the graph."""
    outputs = {value.name for value in graph.output}
    sources: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        node.input[:] = [sources.get(name, name) for name in node.input]
        to_float = node.op_type == "Cast" and any(item.name == "to" and item.i == FP32 for item in node.attribute)
        if to_float and node.input[0] in floats and node.output[0] not in outputs:
            sources[node.output[0]] = node.input[0]
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


# Emulation: an FP16 graph as an FP32 graph that rounds every result to FP16.
#
# ONNX Runtime has no FP16 kernels for most operators on CPUs. It casts around each of them and then drops the casts
# between neighbors, so results are neither rounded nor overflow: 60000 x 2 x 0.001 gives 120, where FP16 gives inf.
# Casts that are written in the graph stay.


VALUE_PRESERVING_OPS = frozenset(
    [
        *("Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Max", "MaxPool", "Min"),
        *("Pad", "Relu", "Reshape", "ScatterND", "Slice", "Split", "Squeeze", "Tile", "TopK", "Transpose"),
        *("Unsqueeze", "Where"),
    ]
)
"""Operators whose outputs are values of their inputs, so that rounded inputs give rounded outputs."""


def has_fp16(proto: onnx.ModelProto) -> bool:
    """Whether any weight, input, output or cast of a graph is FP16.

    Args:
        proto: The graph.
    """
    values = [*proto.graph.input, *proto.graph.output]
    return (
        any(tensor.data_type == FP16 for tensor in proto.graph.initializer)
        or any(value.type.tensor_type.elem_type == FP16 for value in values)
        or any(
            attribute.name == "to" and attribute.i == FP16 for node in proto.graph.node for attribute in node.attribute
        )
    )


def emulate_fp16(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite an FP16 graph to FP32 with every result rounded to FP16; the caller's graph is not modified.

    Args:
        proto: Any graph. One without FP16, or with subgraphs (If, Loop), is returned as it is.

    Returns:
        A graph of the same names whose inputs and outputs are FP32.
    """
    has_subgraphs = any(
        attribute.HasField("g") or attribute.graphs for node in proto.graph.node for attribute in node.attribute
    )
    if has_subgraphs or not has_fp16(proto):
        return proto
    inferred = onnx.shape_inference.infer_shapes(proto)
    fp16_tensors = {
        value.name
        for value in [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
        if value.type.tensor_type.elem_type == FP16
    }
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graph = result.graph
    nodes: list[onnx.NodeProto] = []
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == FP16:
            value.type.tensor_type.elem_type = FP32
    for tensor in graph.initializer:
        _widen_constant(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen_constant(attribute.t)
        casts_to_fp16 = node.op_type == "Cast" and any(item.name == "to" and item.i == FP16 for item in node.attribute)
        nodes.append(node)
        if casts_to_fp16:
            _insert_rounding(node, 0, nodes, is_cast=True)
        elif node.op_type not in VALUE_PRESERVING_OPS and not node.op_type.startswith("Constant"):
            for slot, name in enumerate(node.output):
                if name in fp16_tensors:
                    _insert_rounding(node, slot, nodes, is_cast=False)
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    return result


def _insert_rounding(node: onnx.NodeProto, slot: int, nodes: list[onnx.NodeProto], *, is_cast: bool) -> None:
    """Add a Cast to FP16 and one back after an output; a node that is a Cast to FP16 needs the second only."""
    name = node.output[slot]
    narrow = f"{name}/narrow"
    if is_cast:
        node.output[slot] = narrow
    else:
        wide = f"{name}/wide"
        node.output[slot] = wide
        nodes.append(helper.make_node("Cast", [wide], [narrow], f"{name}/to_half", to=FP16))
    nodes.append(helper.make_node("Cast", [narrow], [name], f"{name}/to_float", to=FP32))


def _widen_constant(tensor: TensorProto) -> None:
    if tensor.data_type == FP16:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name))
