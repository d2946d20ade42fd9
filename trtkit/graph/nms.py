"""Non-maximum suppression (NMS) inside the graph, by operators that every TensorRT and ONNX Runtime have.

ONNX's own NonMaxSuppression is not used: TensorRT-RTX has no kernel for it, it has no oriented boxes, and its output
shape depends on the image, which CUDA graphs can't capture. Here every shape is static.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import onnx
from onnx import TensorProto, helper

from trtkit.errors import RecipeError
from trtkit.graph.editing import GraphBuilder
from trtkit.graph.onnx_file import update_metadata
from trtkit.models.model import DENSE, NMS_ROWS, ModelInfo
from trtkit.models.output_shapes import count_extra_values, find_main_output

__all__ = [
    "DEFAULT_CONF",
    "DEFAULT_IOU",
    "DEFAULT_MAX_DET",
    "TOP_K",
    "add_nms",
    "check_nms_applies",
    "find_overlaps",
    "find_rotated_overlaps",
]

DEFAULT_CONF = 0.25
DEFAULT_IOU = 0.7
DEFAULT_MAX_DET = 300

TOP_K = 1024
"""NMS considers this many boxes per image, those of the highest scores: its work grows with their square."""

NMS_ROUNDS = 8
"""Iterations of class-wise NMS of upright boxes: a dropped box no longer drops others. Two or three iterations reach
the fixed point in practice (Zheng et al. 2020, arXiv:2005.03572, Cluster-NMS)."""

EPSILON = 1e-7
"""As in `trtkit.tasks.obb`."""


def add_nms(
    proto: onnx.ModelProto,
    info: ModelInfo,
    *,
    conf: float = DEFAULT_CONF,
    iou: float = DEFAULT_IOU,
    max_det: int = DEFAULT_MAX_DET,
) -> onnx.ModelProto:
    """Append NMS to a graph: `DENSE` output becomes `NMS_ROWS`; the caller's graph is not modified.

    Each box keeps its highest-scoring class. Class-wise NMS: of two boxes with IoU > `iou` the lower score is dropped;
    the `max_det` highest-scoring boxes of all classes remain. These are the rules that `predict` applies outside the
    graph: greedy NMS for upright boxes, Fast NMS for oriented ones, where a dropped box still drops others.

    Args:
        proto: Graph with dense output (N, 4 + classes + extra, anchors), boxes as center, width, height in pixels.
        info: The model's description.
        conf: Lowest score, exclusive, fixed in the graph.
        iou: Highest IoU, fixed in the graph.
        max_det: Rows of the result.

    Returns:
        A graph whose output of the same name is (N, max_det, 6 + extra): x1, y1, x2, y2, score, class, then mask
        coefficients or keypoints; for obb x, y, width, height, score, class, angle, as in Ultralytics' exports. Unused
        rows are zero.
        Further outputs do not change.

    Raises:
        RecipeError: The model does not return dense boxes, or it is unknown how many values each box has.
    """
    check_nms_applies(info)
    result = copy.deepcopy(proto)
    graph = result.graph
    dimensions = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.output}
    output, raw = find_main_output(dimensions, info.task), "trtkit_nms_input"
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == output:
                    names[index] = raw
    builder, rotated = GraphBuilder(result, "trtkit_nms"), info.task == "obb"
    classes, extra = len(info.names), _count_extra(graph, output, info)
    batch, anchors = _read_sides(graph, output)
    top_k = max(TOP_K, max_det)
    top, indices = _select_top_k(builder, raw, classes, top_k, pads=anchors is None or anchors < top_k)
    table = builder.node("Transpose", [raw], perm=[0, 2, 1])
    rows = builder.gather_rows(table, indices, batch=batch, count=top_k)
    box, scores = builder.slice(rows, 0, 4, axis=2), builder.slice(rows, 4, 4 + classes, axis=2)
    label = builder.node("ArgMax", [scores], axis=2, keepdims=1)
    label = builder.node("Cast", [label], to=TensorProto.FLOAT)
    extras = builder.slice(rows, 4 + classes, 4 + classes + extra, axis=2) if extra else None
    if rotated:
        assert extras is not None
        overlaps = find_rotated_overlaps(builder, box, builder.slice(extras, extra - 1, extra, axis=2), iou)
    else:
        overlaps = find_overlaps(builder, box, iou)
    keep = _compute_keep_mask(
        builder, overlaps, label, top, top_k=top_k, conf=conf, rounds=1 if rotated else NMS_ROUNDS
    )
    count = builder.constant(np.array([max_det], np.int64))
    scores, ranks = builder.nodes("TopK", [builder.node("Mul", [top, keep]), count], 2, axis=1, largest=1, sorted=1)
    table = builder.node("Concat", [box, label, *([extras] if extras else [])], axis=2)
    kept = builder.gather_rows(table, ranks, batch=batch, count=max_det)
    coordinates = builder.slice(kept, 0, 4, axis=2) if rotated else _to_corners(builder, kept)
    score = builder.unsqueeze(scores, 2)
    detections = builder.node("Concat", [coordinates, score, builder.slice(kept, 4, 5 + extra, axis=2)], axis=2)
    used = builder.node("Cast", [builder.node("Greater", [score, builder.scalar(0)])], to=TensorProto.FLOAT)
    graph.node.append(helper.make_node("Mul", [detections, used], [output], "trtkit_nms_output"))
    for value in graph.output:
        if value.name == output:
            batch = value.type.tensor_type.shape.dim[0]
            new = helper.make_tensor_value_info(
                output, TensorProto.FLOAT, [batch.dim_param or batch.dim_value or None, max_det, 6 + extra]
            )
            value.CopyFrom(new)
    del graph.value_info[:]
    metadata = {"args": {"nms": True, "conf": conf, "iou": iou, "max_det": max_det}}
    settings = {"conf": conf, "iou": iou, "max_det": max_det}
    return update_metadata(result, metadata, {"nms": settings, "output_format": NMS_ROWS.to_dict()})


def check_nms_applies(info: ModelInfo) -> None:
    """Raise an error for a model that does not return dense boxes.

    Args:
        info: The model's description.

    Raises:
        RecipeError: NMS can't be added to it.
    """
    if info.output_format != DENSE:
        raise RecipeError(
            f"export a model for {info.task} with nms=True",
            f"NMS does not apply to its output format, {info.output_format.name}",
            "leave nms out",
            code="nms-not-applicable",
            task=info.task,
            output_format=info.output_format.name,
        )


def _read_sides(graph: onnx.GraphProto, output: str) -> tuple[int | None, int | None]:
    """Images and boxes of the dense output; None where they are open. With an open input its shape is not believed."""
    if not all(side.dim_value for side in graph.input[0].type.tensor_type.shape.dim):
        return None, None
    (shape,) = (value.type.tensor_type.shape.dim for value in graph.output if value.name == output)
    return int(shape[0].dim_value) or None, int(shape[2].dim_value) or None


def _select_top_k(builder: GraphBuilder, raw: str, classes: int, top_k: int, *, pads: bool) -> tuple[str, str]:
    """The highest scores in descending order and the boxes they belong to, (N, top_k) each.

    Args:
        builder: Of the graph.
        raw: The dense output.
        classes: Number of classes.
        top_k: Number of rows.
        pads: Whether there may be fewer boxes, as in small images.
    """
    best = builder.reduce("ReduceMax", builder.slice(raw, 4, 4 + classes, axis=1), [1])
    if pads:
        # Scores are padded with zeros, which are no detections.
        best = builder.node("Pad", [best, builder.constant(np.array([0, 0, 0, top_k], np.int64))])
    count = builder.constant(np.array([top_k], np.int64))
    top, indices = builder.nodes("TopK", [best, count], 2, axis=1, largest=1, sorted=1)
    if pads:
        anchors = builder.node(
            "Gather", [builder.node("Shape", [raw]), builder.constant(np.array(2, np.int64))], axis=0
        )
        # Indices modulo the number of anchors: a padded index reads some other box, at score 0.
        multiple = builder.node("Mul", [builder.node("Div", [indices, anchors]), anchors])
        indices = builder.node("Sub", [indices, multiple])
    return top, indices


def _compute_keep_mask(
    builder: GraphBuilder, overlaps: str, label: str, top: str, *, top_k: int, conf: float, rounds: int
) -> str:
    """1 for every box that no kept box of its class with a higher score overlaps, else 0; (N, K), float32."""
    same_class = builder.node("Equal", [label, builder.node("Transpose", [label], perm=[0, 2, 1])])
    # Boxes are in descending order: row i can drop column j only if i < j.
    order = np.arange(top_k, dtype=np.float32)
    higher = builder.node("Less", [builder.constant(order[None, :, None]), builder.constant(order[None, None])])
    drops = builder.node("And", [builder.node("And", [overlaps, same_class]), higher])
    drops = builder.node("Cast", [drops], to=TensorProto.FLOAT)
    above = builder.node("Cast", [builder.node("Greater", [top, builder.scalar(conf)])], to=TensorProto.FLOAT)
    above = builder.unsqueeze(above, 1)
    keep = above
    for _ in range(rounds):
        dropped = builder.node("Greater", [builder.node("MatMul", [keep, drops]), builder.scalar(0)])
        not_dropped = builder.node("Cast", [builder.node("Not", [dropped])], to=TensorProto.FLOAT)
        keep = builder.node("Mul", [above, not_dropped])
    return builder.node("Squeeze", [keep, builder.constant(np.array([1], np.int64))])


def _to_corners(builder: GraphBuilder, rows: str) -> str:
    """x1, y1, x2, y2 from rows that start with center x, center y, width and height."""
    center = builder.slice(rows, 0, 2, axis=2)
    half = builder.node("Mul", [builder.slice(rows, 2, 4, axis=2), builder.scalar(0.5)])
    return builder.node("Concat", [builder.node("Sub", [center, half]), builder.node("Add", [center, half])], axis=2)


def _count_extra(graph: onnx.GraphProto, output: str, info: ModelInfo) -> int:
    """Values per box of the dense output after box and class scores: from its shape or, where that is open, the task.

    Raises:
        RecipeError: Neither says it.
    """
    shapes = {
        value.name: [side.dim_value or None for side in value.type.tensor_type.shape.dim] for value in graph.output
    }
    columns = shapes.pop(output)[1]
    extra = count_extra_values(info.task, [[], *shapes.values()], info.kpt_shape)
    if columns is not None:
        return int(columns) - 4 - len(info.names)
    if extra is None:
        raise RecipeError(
            f"export a model for {info.task} with nms=True",
            "the shapes of its outputs are open, so that the number of values of each box is unknown",
            "export the ONNX file again with fixed shapes, or leave nms out",
            code="nms-values-unknown",
            task=info.task,
        )
    return extra


# Pairwise overlaps of an image's boxes.


def find_overlaps(builder: GraphBuilder, box: str, iou: float) -> str:
    """Which pairs of upright boxes have IoU > `iou`.

    Args:
        builder: Of the graph.
        box: Center x, center y, width, height; (N, K, 4).
        iou: The threshold.

    Returns:
        Booleans (N, K, K).
    """
    center, size = builder.slice(box, 0, 2, axis=2), builder.slice(box, 2, 4, axis=2)
    half = builder.node("Mul", [size, builder.scalar(0.5)])
    low, high = builder.node("Sub", [center, half]), builder.node("Add", [center, half])
    shared = []
    for axis in (0, 1):
        first, last = (builder.slice(corner, axis, axis + 1, axis=2) for corner in (low, high))
        begins = builder.node("Max", [first, _transpose(builder, first)])
        ends = builder.node("Min", [last, _transpose(builder, last)])
        shared.append(builder.node("Relu", [builder.node("Sub", [ends, begins])]))
    both = builder.node("Mul", shared)
    area = builder.node("Mul", [builder.slice(size, 0, 1, axis=2), builder.slice(size, 1, 2, axis=2)])
    # shared / (first + second - shared) > iou, without the division.
    share = builder.node("Mul", [area, builder.scalar(iou / (1 + iou))])
    return builder.node("Greater", [both, builder.node("Add", [share, _transpose(builder, share)])])


def find_rotated_overlaps(builder: GraphBuilder, box: str, angle: str, iou: float) -> str:
    """Which pairs of oriented boxes have a probabilistic IoU (`trtkit.tasks.obb`) > `iou`.

    Args:
        builder: Of the graph.
        box: Center x, center y, width, height; (N, K, 4).
        angle: Radians; (N, K, 1).
        iou: The threshold.

    Returns:
        Booleans (N, K, K).
    """

    def column(place: int) -> str:
        return builder.slice(box, place, place + 1, axis=2)

    def times(*factors: str) -> str:
        product = factors[0]
        for factor in factors[1:]:
            product = builder.node("Mul", [product, factor])
        return product

    def more(one: str, value: float) -> str:
        return builder.node("Add", [one, builder.scalar(value)])

    x, y = (builder.node("Sub", [one, _transpose(builder, one)]) for one in (column(0), column(1)))
    width, height = column(2), column(3)
    along, across = (times(side, side, builder.scalar(1 / 12)) for side in (width, height))
    cos, sin = builder.node("Cos", [angle]), builder.node("Sin", [angle])
    variances = (
        builder.node("Add", [times(along, cos, cos), times(across, sin, sin)]),
        builder.node("Add", [times(along, sin, sin), times(across, cos, cos)]),
        times(builder.node("Sub", [along, across]), cos, sin),
    )
    a, b, c = (builder.node("Add", [one, _transpose(builder, one)]) for one in variances)
    both = builder.node("Sub", [times(a, b), times(c, c)])
    spread = builder.node("Add", [times(a, y, y), times(b, x, x)])
    spread = builder.node("Sub", [spread, times(c, x, y, builder.scalar(2))])
    far = builder.node("Div", [spread, more(both, EPSILON)])
    # The root of a covariance's determinant is width x height / 12, whatever the angle.
    size = times(width, height, builder.scalar(1 / 12))
    sizes = times(size, _transpose(builder, size), builder.scalar(4))
    unlike = builder.node("Log", [more(builder.node("Div", [both, more(sizes, EPSILON)]), EPSILON)])
    distance = builder.node("Add", [times(far, builder.scalar(0.25)), times(unlike, builder.scalar(0.5))])
    return builder.node("Less", [distance, builder.scalar(_distance_threshold(iou))])


def _distance_threshold(iou: float) -> float:
    """The Bhattacharyya distance at which the probabilistic overlap, 1 - sqrt(1 - exp(-distance)), is `iou`."""
    return -math.log(min(1.0, 1 + EPSILON - (1 - iou) ** 2))


def _transpose(builder: GraphBuilder, column: str) -> str:
    """(N, K, 1) as (N, 1, K)."""
    return builder.node("Transpose", [column], perm=[0, 2, 1])
