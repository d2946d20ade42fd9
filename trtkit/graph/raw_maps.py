"""Cut a detection head before decoding: its maps become the outputs (`RAW_MAPS`).

What follows them (sigmoid of every class of every anchor, the expectations of box sides, boxes in pixels) is then
computed for candidates alone, outside the graph (`trtkit.tasks.raw_maps`).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence

import onnx
from onnx import TensorProto, helper

from trtkit.errors import RecipeError
from trtkit.graph.analysis import LAYOUT_OPS, GraphIndex
from trtkit.graph.editing import remove_unused_constants
from trtkit.graph.onnx_file import update_metadata
from trtkit.models.model import DENSE, END2END_ROWS, RAW_MAPS, RAW_ONE_TO_ONE, ModelInfo, OutputFormat
from trtkit.models.output_shapes import RAW_EXTRA, find_main_output

__all__ = ["RawMap", "check_raw_maps_apply", "convert_outputs_to_fp16", "cut_before_decoding", "find_raw_maps"]

PROTOTYPES = "output1"
"""The output of mask prototypes, which are no map of the head."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RawMap:
    """A map that becomes an output.

    Attributes:
        tensor: The tensor that holds it.
        output: The output's name, such as "scores_s8".
    """

    tensor: str
    output: str


def check_raw_maps_apply(info: ModelInfo) -> OutputFormat:
    """The format of a model's outputs before decoding.

    Args:
        info: The model's description.

    Raises:
        RecipeError: Its graph has no detection head that ends in decoding.
    """
    if info.task == "classify" or info.output_format not in (DENSE, END2END_ROWS):
        raise RecipeError(
            f"export a model for {info.task} with decode=False",
            f"its output format is {info.output_format.name}, which no decoding of boxes ends in",
            "leave decode out",
            code="raw-maps-not-applicable",
            task=info.task,
            output_format=info.output_format.name,
        )
    return RAW_ONE_TO_ONE if info.output_format == END2END_ROWS else RAW_MAPS


def find_raw_maps(proto: onnx.ModelProto, info: ModelInfo) -> tuple[RawMap, ...]:
    """Find the outputs of a detection head's last convolutions, by the structure of the decoding behind them.

    The decoding concatenates boxes, class scores and the task's further values; the scores come from a Sigmoid.

    Args:
        proto: FP32 graph without Q/DQ, of unique node names.
        info: The model's description, of a format that `check_raw_maps_apply` accepts.

    Raises:
        RecipeError: The graph has another structure.
    """
    index = GraphIndex(proto)
    layers = set(index.output_layers())
    main = find_main_output(
        {value.name: len(value.type.tensor_type.shape.dim) for value in proto.graph.output}, info.task
    )
    for parts in _find_concatenated_parts(index, main):
        kinds = _assign_layers(index, parts, layers, info)
        if kinds is None:
            continue
        strides = _find_strides(proto, info, [node.output[0] for node in kinds["scores"]])
        if len(set(strides)) == len(strides) and all(strides):
            return tuple(
                RawMap(tensor=nodes[level].output[0], output=f"{kind}_s{stride}")
                for level, stride in enumerate(strides)
                for kind, nodes in kinds.items()
            )
    raise RecipeError(
        "export with decode=False",
        "the graph's decoding has another structure than YOLO's, so its maps can't be told apart",
        "leave decode out",
        code="raw-maps-not-found",
        task=info.task,
    )


def _find_concatenated_parts(index: GraphIndex, main: str) -> Iterator[list[str]]:
    """The tensors that each concatenation behind a head joins, nested ones flattened, nearest to the output first."""
    last = index.producer[main]
    behind = {last.name, *(node.name for node in index.upstream(last, lambda _: False))}
    for node in reversed(index.graph.node):
        if node.name in behind and node.op_type == "Concat":
            yield list(_flatten_concat(index, node))


def _flatten_concat(index: GraphIndex, node: onnx.NodeProto) -> Iterator[str]:
    for name in node.input:
        producer = index.producer.get(name)
        if producer is not None and producer.op_type == "Concat" and index.axis(producer) == index.axis(node):
            yield from _flatten_concat(index, producer)
        else:
            yield name


def _assign_layers(
    index: GraphIndex, parts: list[str], layers: set[str], info: ModelInfo
) -> dict[str, list[onnx.NodeProto]] | None:
    """The output layers of boxes, scores and the task's further values, level by level; None if they are not these."""
    producers = [index.producer.get(name) for name in parts]
    sigmoids = [place for place, node in enumerate(producers) if node is not None and node.op_type == "Sigmoid"]
    extra = RAW_EXTRA.get(info.task)
    if len(sigmoids) != 1 or len(parts) != 2 + (extra is not None):
        return None
    score, *others = [parts[sigmoids[0]], *(name for place, name in enumerate(parts) if place != sigmoids[0])]
    sources = [list(_find_sources(index, name, layers)) for name in (others[0], score, *others[1:])]
    boxes, scores = sources[0], sources[1]
    extras = sources[2] if extra is not None else []
    # The angle is part of an oriented box's decoding.
    boxes = [node for node in boxes if node not in extras]
    if boxes == scores:
        # One concatenation of both for each level, split afterwards: boxes come first.
        boxes, scores = boxes[::2], scores[1::2]
    kinds = {"boxes": boxes, "scores": scores, **({extra: extras} if extra is not None else {})}
    widths = {kind: {_count_channels(index, node) for node in nodes} for kind, nodes in kinds.items()}
    levels = {len(nodes) for nodes in kinds.values()}
    if len(levels) != 1 or levels == {0} or any(len(width) != 1 for width in widths.values()):
        return None
    bins, rest = divmod(next(iter(widths["boxes"])), 4)
    if rest or widths["scores"] != {len(info.names)} or not _has_known_decoding(index, info, extras, bins):
        return None
    return kinds


def _find_sources(index: GraphIndex, name: str, layers: set[str]) -> Iterator[onnx.NodeProto]:
    """The output layers that a tensor is computed from, in the order of the inputs passed; sizes are not followed."""
    visited: set[str] = set()
    pending = [name]
    while pending:
        node = index.producer.get(pending.pop())
        if node is None or node.name in visited or node.op_type == "Shape":
            continue
        visited.add(node.name)
        if node.name in layers:
            yield node
        else:
            pending.extend(reversed(node.input))


def _count_channels(index: GraphIndex, node: onnx.NodeProto) -> int:
    weight = index.weight(node)
    return int(weight.dims[0]) if node.op_type == "Conv" and weight is not None else -1


def _has_known_decoding(index: GraphIndex, info: ModelInfo, extras: Sequence[onnx.NodeProto], bins: int) -> bool:
    """Whether keypoints and angles are decoded as the family does that has such bins.

    YOLO26 (one bin) predicts offsets from the cell's center and radians; those before it half offsets from the cell's
    corner, and angles through a Sigmoid.
    """
    if info.task not in ("pose", "obb"):
        return True
    first: set[str] = set()
    for node in extras:
        readers = index.downstream(node, lambda reader: reader.op_type not in LAYOUT_OPS)
        first.update(reader.op_type for reader in readers if reader.op_type not in (*LAYOUT_OPS, "Shape"))
    is_older = "Mul" in first if info.task == "pose" else first == {"Sigmoid"}
    return is_older == (bins > 1)


def _find_strides(proto: onnx.ModelProto, info: ModelInfo, maps: Sequence[str]) -> list[int]:
    """The stride of each map, pixels; 0 where it is unknown."""
    static = onnx.ModelProto()
    static.CopyFrom(proto)
    # Of open axes any size does: the ratio is the same.
    height, width = info.imgsz
    image = static.graph.input[0].type.tensor_type.shape.dim
    for side, value in zip(image, (1, info.channels, height, width), strict=True):
        if side.dim_value <= 0:
            side.dim_value = value
    del static.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(static).graph
    shapes = {
        value.name: [side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.output)
    }
    strides = []
    for name in maps:
        rows = shapes.get(name, [0, 0, 0, 0])[2]
        strides.append(image[2].dim_value // rows if rows and image[2].dim_value % rows == 0 else 0)
    return strides


def cut_before_decoding(
    proto: onnx.ModelProto, maps: Sequence[RawMap], info: ModelInfo, *, half: bool = False
) -> onnx.ModelProto:
    """Make the maps of a head the outputs of a graph, in place of the decoded one; the caller's graph is not modified.

    Args:
        proto: The graph that `maps` were found in, in any precision, with or without Q/DQ.
        maps: From `find_raw_maps`.
        info: The model's description.
        half: Write the outputs in FP16.

    Returns:
        The graph with an output for each map; mask prototypes become `output1`.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graph = result.graph
    main = find_main_output({value.name: len(value.type.tensor_type.shape.dim) for value in graph.output}, info.task)
    others = [value for value in graph.output if value.name != main]
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    values = {value.name: value for value in (*inferred.value_info, *inferred.output)}
    names = {one.tensor: one.output for one in maps}
    if info.task == "segment":
        names |= {value.name: PROTOTYPES for value in others[:1]}
    outputs = [_rename(values[one.tensor], names) for one in maps] + [_rename(value, names) for value in others]
    for node in graph.node:
        for tensors in (node.input, node.output):
            tensors[:] = [names.get(name, name) for name in tensors]
    del graph.output[:]
    graph.output.extend(outputs)
    index = GraphIndex(result)
    needed: set[str] = set()
    for value in outputs:
        last = index.producer[value.name]
        needed |= {last.name, *(node.name for node in index.upstream(last, lambda _: False))}
    nodes = [node for node in graph.node if node.name in needed or node.op_type == "Constant"]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    remove_unused_constants(graph)
    update_metadata(result, {"end2end": False}, {"output_format": check_raw_maps_apply(info).to_dict()})
    return convert_outputs_to_fp16(result) if half else result


def _rename(value: onnx.ValueInfoProto, names: dict[str, str]) -> onnx.ValueInfoProto:
    renamed = copy.deepcopy(value)
    renamed.name = names.get(value.name, value.name)
    return renamed


def convert_outputs_to_fp16(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Write FP32 outputs in FP16: half the bytes to store and to read; the graph is modified and returned.

    Args:
        proto: Graph whose outputs fit into FP16.
    """
    graph = proto.graph
    producer = {name: node for node in graph.node for name in node.output}
    read = {name for node in graph.node for name in node.input}
    for value in graph.output:
        if value.type.tensor_type.elem_type != TensorProto.FLOAT:
            continue
        node = producer[value.name]
        if node.op_type == "Cast" and value.name not in read:
            target = next(attribute for attribute in node.attribute if attribute.name == "to")
            target.i = TensorProto.FLOAT16
        else:
            single = f"{value.name}_float"
            for tensors in (node.output, *(reader.input for reader in graph.node)):
                tensors[:] = [single if name == value.name else name for name in tensors]
            cast = helper.make_node("Cast", [single], [value.name], f"{value.name}_fp16", to=TensorProto.FLOAT16)
            graph.node.append(cast)
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return proto
