"""FP32 graph -> typed FP16 graph, with FP32 at its inputs and outputs and where FP16 would overflow or blur."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from fnmatch import fnmatchcase

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trtkit.errors import RecipeError
from trtkit.graph.analysis import GraphIndex
from trtkit.graph.torch_export import read_trtkit_metadata, update_metadata

__all__ = ["FP16_MAX", "convert_qdq_to_fp16", "convert_to_fp16", "emulate_fp16", "has_fp16", "match_node_names"]

FP16_MAX = 65504.0

FP32_INPUTS = {"Resize": (1, 2), "NonMaxSuppression": (0, 1, 3, 4)}
"""Inputs that are FP32 by the operator's definition, whatever precision surrounds it."""

FIXED_TYPE_OPS = ("Constant", "ConstantOfShape", "RandomNormal", "Range", "Shape", "Size")
"""Operators whose output type does not follow their inputs; their float results are cast."""


def convert_to_fp16(
    proto: onnx.ModelProto, keep: Iterable[str] = (), *, protect: bool = True, keep_nodes: Iterable[str] = ()
) -> onnx.ModelProto:
    """Convert weights and activations to FP16; the caller's graph is left alone.

    Args:
        proto: FP32 graph with unique node names.
        keep: fnmatch patterns of node names that stay in FP32.
        protect: Keep the decoding tail (coordinates in pixels) in FP32, whatever `keep` says.
        keep_nodes: Names, not patterns, of further nodes that stay in FP32, such as those that overflow.

    Returns:
        A graph in which every float tensor is FP16, except inputs, outputs and the kept nodes, which sit between Casts.

    Raises:
        RecipeError: A pattern matches no node.
    """
    result = copy.deepcopy(proto)
    view = GraphIndex(result)
    kept = match_node_names(view.nodes, keep) | set(keep_nodes) | (view.decode_nodes() if protect else set())
    # A weight beyond FP16's range would become infinite: its layer stays in FP32.
    for node in result.graph.node:
        for name in node.input:
            tensor = view.constants.get(name)
            if tensor is not None and tensor.data_type == TensorProto.FLOAT:
                values = numpy_helper.to_array(tensor)
                if values.size and np.isfinite(values).all() and np.abs(values).max() > FP16_MAX:
                    kept.add(node.name)
    floats = _fp32_tensors(result)
    return update_metadata(_Fp16Converter(view, kept, floats).run(), {"half": True}, {"precision": "fp16"})


def convert_qdq_to_fp16(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Turn the FP32 parts of a Q/DQ graph to FP16, for a TensorRT that takes every type from the graph.

    Q/DQ pairs with FP16 scales exist from operator set 19 on, so the graph is raised to it; every TensorRT that is
    strongly typed only reads that set.

    Args:
        proto: From `quantized.quantize`.
    """
    raised = onnx.version_converter.convert_version(proto, 19)
    # The converter keeps names of nodes but drops the description.
    update_metadata(
        raised,
        {entry.key: entry.value for entry in proto.metadata_props if entry.key != "trtkit"},
        read_trtkit_metadata(proto),
    )
    # Behind pairs a weight is no constant any more, so the structure no longer tells where the decoding begins; the
    # description still does.
    tail = read_trtkit_metadata(proto).get("fp32", ())
    return update_metadata(convert_to_fp16(raised, protect=False, keep_nodes=tail), {}, {"precision": "int8"})


def match_node_names(names: Iterable[str], patterns: Iterable[str]) -> set[str]:
    """Names that any fnmatch pattern matches.

    Raises:
        RecipeError: A pattern matches nothing.
    """
    names = list(names)
    found: set[str] = set()
    for pattern in patterns:
        hits = {name for name in names if fnmatchcase(name, pattern)}
        if not hits:
            raise RecipeError(
                f"keep {pattern!r} in high precision",
                "no ONNX node has such a name",
                "look the names up in the layer table",
            )
        found |= hits
    return found


def _fp32_tensors(proto: onnx.ModelProto) -> set[str]:
    """Names of all FP32 tensors that nodes compute."""
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=False)
    values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    return {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}


class _Fp16Converter:
    """One pass over the nodes in order, tracking in which precision each tensor is at hand."""

    def __init__(self, view: GraphIndex, kept: set[str], floats: set[str]) -> None:
        self.view = view
        self.kept = kept
        self.floats = floats
        self.nodes: list[onnx.NodeProto] = []
        self.halves: set[str] = set()  # computed tensors that are FP16 under their own name
        self.casts: dict[tuple[str, int], str] = {}  # (tensor, wanted type) -> name of the cast copy
        self.constants: dict[str, str] = {}  # FP32 constant -> its FP16 copy
        self.added: list[onnx.TensorProto] = []

    def run(self) -> onnx.ModelProto:
        outputs = {value.name for value in self.view.graph.output}
        for node in self.view.graph.node:
            high = node.name in self.kept or node.op_type in FIXED_TYPE_OPS
            for index, name in enumerate(node.input):
                if name and not (high and name in self.view.constants):
                    node.input[index] = self._input(node, index, name, high)
            if node.op_type == "Cast":
                self._retarget_cast(node, high)
            self.nodes.append(node)
            for index, name in enumerate(node.output):
                is_float = name in self.floats and node.op_type not in FIXED_TYPE_OPS
                if not is_float or high:
                    continue
                if name in outputs:
                    node.output[index] = f"{name}_half"
                    self.nodes.append(
                        helper.make_node("Cast", [f"{name}_half"], [name], f"{name}_cast", to=TensorProto.FLOAT)
                    )
                    self.casts[name, TensorProto.FLOAT16] = f"{name}_half"
                else:
                    self.halves.add(name)
        graph = self.view.graph
        del graph.node[:]
        graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        kept = [tensor for tensor in [*graph.initializer, *self.added] if tensor.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        del graph.value_info[:]
        return self.view.proto

    def _input(self, node: onnx.NodeProto, index: int, name: str, high: bool) -> str:
        stays = index in FP32_INPUTS.get(node.op_type, ())
        if name in self.view.constants:
            tensor = self.view.constants[name]
            return name if stays or tensor.data_type != TensorProto.FLOAT else self._half_constant(name, tensor)
        if name not in self.floats:
            return name
        wanted = TensorProto.FLOAT if high or stays else TensorProto.FLOAT16
        at_hand = TensorProto.FLOAT16 if name in self.halves else TensorProto.FLOAT
        return name if wanted == at_hand else self._cast(name, wanted)

    def _half_constant(self, name: str, tensor: onnx.TensorProto) -> str:
        if name not in self.constants:
            with np.errstate(over="ignore"):
                values = numpy_helper.to_array(tensor).astype(np.float16)
            self.constants[name] = f"{name}_half"
            self.added.append(numpy_helper.from_array(values, f"{name}_half"))
        return self.constants[name]

    def _cast(self, name: str, wanted: int) -> str:
        key = (name, wanted)
        if key not in self.casts:
            self.casts[key] = f"{name}_{'half' if wanted == TensorProto.FLOAT16 else 'float'}"
            self.nodes.append(helper.make_node("Cast", [name], [self.casts[key]], f"{self.casts[key]}_cast", to=wanted))
        return self.casts[key]

    @staticmethod
    def _retarget_cast(node: onnx.NodeProto, high: bool) -> None:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT and not high:
                attribute.i = TensorProto.FLOAT16


# An FP16 graph as FP32 with every result rounded to FP16: what the graph says, on processors that compute in FP32.
#
# ONNX Runtime has no FP16 kernels for most operators on CPUs. It casts around each of them and then drops the casts
# between neighbors, so results are neither rounded nor overflow: 60000 x 2 x 0.001 gives 120, where FP16 gives inf.
# Casts that are written in the graph stay, which is what this module does.


HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT
# What these write are values that they read, rounded already.
VALUE_PRESERVING_OPS = frozenset(
    [
        *("Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Max", "MaxPool", "Min"),
        *("Pad", "Relu", "Reshape", "ScatterND", "Slice", "Split", "Squeeze", "Tile", "TopK", "Transpose"),
        *("Unsqueeze", "Where"),
    ]
)


def has_fp16(proto: onnx.ModelProto) -> bool:
    """Whether any weight, input, output or cast of a graph is FP16.

    Args:
        proto: The graph.
    """
    values = [*proto.graph.input, *proto.graph.output]
    return (
        any(tensor.data_type == HALF for tensor in proto.graph.initializer)
        or any(value.type.tensor_type.elem_type == HALF for value in values)
        or any(
            attribute.name == "to" and attribute.i == HALF for node in proto.graph.node for attribute in node.attribute
        )
    )


def emulate_fp16(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite an FP16 graph; the caller's is left alone.

    Args:
        proto: Any graph. One without FP16, or with graphs inside nodes (If, Loop), is handed back as it is.

    Returns:
        A graph of the same names whose inputs and outputs are FP32.
    """
    nested = any(
        attribute.HasField("g") or attribute.graphs for node in proto.graph.node for attribute in node.attribute
    )
    if nested or not has_fp16(proto):
        return proto
    known = onnx.shape_inference.infer_shapes(proto)
    halves = {
        value.name
        for value in [*known.graph.value_info, *known.graph.input, *known.graph.output]
        if value.type.tensor_type.elem_type == HALF
    }
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graph = result.graph
    nodes: list[onnx.NodeProto] = []
    for value in graph.input:
        if value.name in halves:
            value.type.tensor_type.elem_type = FLOAT
    for value in graph.output:
        if value.type.tensor_type.elem_type == HALF:
            value.type.tensor_type.elem_type = FLOAT
    for tensor in graph.initializer:
        _widen_constant(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen_constant(attribute.t)
        to_half = node.op_type == "Cast" and any(item.name == "to" and item.i == HALF for item in node.attribute)
        nodes.append(node)
        if to_half:
            _insert_rounding(node, 0, nodes, cast=True)
        elif node.op_type not in VALUE_PRESERVING_OPS and not node.op_type.startswith("Constant"):
            for index, name in enumerate(node.output):
                if name in halves:
                    _insert_rounding(node, index, nodes, cast=False)
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    return result


def _insert_rounding(node: onnx.NodeProto, index: int, nodes: list[onnx.NodeProto], *, cast: bool) -> None:
    """Put a Cast to FP16 and one back behind an output; a Cast to FP16 needs the second only."""
    name = node.output[index]
    narrow = f"{name}/narrow"
    if cast:
        node.output[index] = narrow
    else:
        wide = f"{name}/wide"
        node.output[index] = wide
        nodes.append(helper.make_node("Cast", [wide], [narrow], f"{name}/to_half", to=HALF))
    nodes.append(helper.make_node("Cast", [narrow], [name], f"{name}/to_float", to=FLOAT))


def _widen_constant(tensor: TensorProto) -> None:
    if tensor.data_type == HALF:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name))
