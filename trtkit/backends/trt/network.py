"""An ONNX graph as a TensorRT network: parsed, its shapes profiled, its types as the graph has them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import onnx

from trtkit.backends.build_settings import BuildSettings
from trtkit.backends.capabilities import Capabilities, import_bindings
from trtkit.backends.devices import parse_device
from trtkit.errors import BuildError, RecipeError
from trtkit.graph.torch_export import read_trtkit_metadata

__all__ = [
    "compute_profile_shapes",
    "constrain_precisions",
    "create_network",
    "find_image_input",
    "parse_onnx",
    "use_strong_typing",
]

# Operators that compute no float values: holding them at a precision means nothing to TensorRT.
NON_FLOAT_OPS = (
    "Cast",
    "Constant",
    "ConstantOfShape",
    "DequantizeLinear",
    "Identity",
    "QuantizeLinear",
    "Shape",
    "Size",
)


def use_strong_typing(found: Capabilities, settings: BuildSettings, proto: onnx.ModelProto) -> bool:
    """Whether the network takes every type from the graph.

    Where TensorRT leaves the choice, a Q/DQ graph on FP32 is built with precision flags instead, so that what is not
    INT8 runs in FP16; DLA and TensorRT's own calibrator know flags only.

    Args:
        found: What the installed TensorRT can do.
        settings: What is built.
        proto: The graph.
    """
    if found.strongly_typed_only:
        return True
    if not found.strongly_typed or settings.implicit is not None or parse_device(settings.device).kind == "dla":
        return False
    return settings.precision != "int8" or _has_fp16(proto)


def create_network(builder: Any, found: Capabilities, *, strongly_typed: bool) -> Any:
    """An empty network.

    Args:
        builder: TensorRT's.
        found: What the installed TensorRT can do.
        strongly_typed: From `use_strong_typing`.
    """
    creation = import_bindings(found.backend).NetworkDefinitionCreationFlag
    flags = 0
    if found.explicit_batch_flag:
        flags |= 1 << int(creation.EXPLICIT_BATCH)
    if strongly_typed:
        flags |= 1 << int(creation.STRONGLY_TYPED)
    return builder.create_network(flags)


def parse_onnx(parser: Any, data: bytes, proto: onnx.ModelProto, found: Capabilities, *, folder: str = "") -> None:
    """Read the graph into the parser's network.

    Args:
        parser: TensorRT's `OnnxParser`.
        data: The graph, serialized.
        proto: The graph.
        found: What the installed TensorRT can do.
        folder: Path of the ONNX file, for weights stored beside it.

    Raises:
        BuildError: TensorRT does not take a node; the error names it and its operator.
    """
    if parser.parse(data, folder) if folder else parser.parse(data):
        return
    reasons = [_describe_parser_error(parser.get_error(index), proto, found) for index in range(parser.num_errors)]
    found_out = "; ".join(dict.fromkeys(reasons)) or "it gives no reason"
    raise BuildError(
        f"build an engine with {found.title}",
        f"it does not take {found_out}",
        "replace the operator in the model, or build with a newer TensorRT",
    )


def find_image_input(network: Any) -> Any:
    """The input that images go into: the only one, or the only one of four dimensions.

    Args:
        network: After parsing.

    Raises:
        BuildError: There is none, or several.
    """
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    images = [tensor for tensor in inputs if len(tensor.shape) == 4]
    if len(images) != 1:
        raise BuildError(
            "build an engine",
            f"the graph has {len(images)} inputs for images (NCHW)",
            "give a graph with exactly one",
        )
    return images[0]


def compute_profile_shapes(settings: BuildSettings, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...] | None:
    """Smallest, best and largest input shape.

    Args:
        settings: What is built.
        shape: The graph's input, -1 where it is open: (batch, channels, height, width).

    Returns:
        The three shapes, or None where the graph leaves nothing open.

    Raises:
        RecipeError: The graph is fixed at something else than was asked.
    """
    channels = shape[1] if shape[1] > 0 else 3
    best = (settings.batch, channels, *settings.imgsz)
    low: tuple[int, ...] = best
    high: tuple[int, ...] = best
    if settings.dynamic:
        low = (1, channels, *settings.min_imgsz)
        high = (settings.batch, channels, *(settings.max_imgsz or settings.imgsz))
    for side, (fixed, wanted) in enumerate(zip(shape, best, strict=True)):
        if fixed > 0 and fixed != wanted:
            name = ("batch", "channels", "height", "width")[side]
            raise RecipeError(
                f"build an engine with {name} {wanted}",
                f"the graph is fixed at {fixed}",
                f"trace it with {name} {wanted}, or dynamic",
            )
    if settings.dynamic and all(side > 0 for side in shape):
        raise RecipeError("build a dynamic engine", "the graph is static", "trace it with dynamic=True")
    if all(side > 0 for side in shape):
        return None
    # A graph may leave open the batch alone.
    low, high = (
        tuple(fixed if fixed > 0 else side for fixed, side in zip(shape, sides, strict=True)) for sides in (low, high)
    )
    return low, best, high


def constrain_precisions(network: Any, proto: onnx.ModelProto, found: Capabilities, *, calibrated: bool = False) -> int:
    """Hold nodes above the precision that TensorRT would give them, where only flags choose (up to 10, untyped).

    With the FP16 flag alone TensorRT may run in FP16 what the graph keeps in FP32 because it would overflow; with a
    calibrator it may run the convolution that decodes boxes in INT8. Nodes that give integers or truths are left alone.

    Args:
        network: After parsing, not strongly typed.
        proto: The graph.
        found: What the installed TensorRT can do.
        calibrated: TensorRT's own calibrator chooses what runs in INT8. Transposed convolutions then stay in FP16: with
            8.6 at level 2 segment's, the only one there is, builds so, and failed to build without (`refitUtils.cpp:
            Assertion engine failed`).

    Returns:
        Layers held.
    """
    if not found.has_precision_constraints:
        return 0
    names = set(_find_fp32_nodes(proto))
    if not _has_fp16(proto):
        # A graph that is FP32 throughout, but for Q/DQ pairs, names the nodes that lower precisions would blur.
        names &= set(read_trtkit_metadata(proto).get("fp32", ()))
    halves = {node.name for node in proto.graph.node if calibrated and node.op_type == "ConvTranspose"} - names
    trt = import_bindings(found.backend)
    pinned = 0
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.name in halves:
            layer.precision = trt.float16
        elif layer.name in names:
            layer.precision = trt.float32
            for output in range(layer.num_outputs):
                layer.set_output_type(output, trt.float32)
        else:
            continue
        pinned += 1
    return pinned


def _has_fp16(proto: onnx.ModelProto) -> bool:
    half = onnx.TensorProto.FLOAT16
    return any(tensor.data_type == half for tensor in proto.graph.initializer) or any(
        node.op_type == "Cast" and any(attribute.name == "to" and attribute.i == half for attribute in node.attribute)
        for node in proto.graph.node
    )


def _find_fp32_nodes(proto: onnx.ModelProto) -> Iterator[str]:
    """Names of the nodes that write FP32 in a typed graph."""
    inferred = onnx.shape_inference.infer_shapes(proto)
    known = [*inferred.graph.value_info, *inferred.graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in known}
    for node in proto.graph.node:
        if node.op_type not in NON_FLOAT_OPS and all(
            types.get(name) == onnx.TensorProto.FLOAT for name in node.output if name
        ):
            yield node.name


def _describe_parser_error(error: Any, proto: onnx.ModelProto, found: Capabilities) -> str:
    """A parser error as "node 'x' (operator Y): why"."""
    index = int(error.node())
    if found.has_parser_nodes:
        name, operator = str(error.node_name()), str(error.node_operator())
    else:
        known = 0 <= index < len(proto.graph.node)
        name, operator = (proto.graph.node[index].name, proto.graph.node[index].op_type) if known else ("", "")
    why = re.sub(r"\s+", " ", str(error.desc())).strip()
    if not name and not operator:
        return f"the graph ({why})"
    return f"node {name or index!r} (operator {operator}): {why}"
