"""Non-maximum suppression inside the graph, by arithmetic that every TensorRT and ONNX Runtime have.

ONNX's own operator is not used: TensorRT-RTX has no kernel for it, it knows no rotated boxes, and the number of boxes
it gives depends on the image, which no CUDA graph can hold. Here every shape is known beforehand.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import onnx
from onnx import TensorProto, helper

from trtkit.errors import RecipeError
from trtkit.graph.builder import GraphBuilder
from trtkit.graph.torch_export import update_metadata
from trtkit.models.model import DENSE, NMS_ROWS, ModelInfo

__all__ = [
    "DEFAULT_CONF",
    "DEFAULT_IOU",
    "DEFAULT_MAX_DET",
    "TOP_K",
    "add_nms",
    "find_overlaps",
    "find_rotated_overlaps",
]


# Which boxes overlap which, as arithmetic of a graph: every pair of an image's boxes at once.


EPSILON = 1e-7
"""As in `tasks.rotated`."""


def find_overlaps(writer: GraphBuilder, box: str, iou: float) -> str:
    """Where the intersection of two upright boxes is more than `iou` of their union.

    Args:
        writer: Adds to the graph.
        box: x, y (center), width, height; (N, K, 4).
        iou: The limit.

    Returns:
        Booleans (N, K, K).
    """
    center, size = writer.slice(box, 0, 2, axis=2), writer.slice(box, 2, 4, axis=2)
    half = writer.node("Mul", [size, writer.scalar(0.5)])
    low, high = writer.node("Sub", [center, half]), writer.node("Add", [center, half])
    shared = []
    for axis in (0, 1):
        first, last = (writer.slice(corner, axis, axis + 1, axis=2) for corner in (low, high))
        begins = writer.node("Max", [first, _transpose(writer, first)])
        ends = writer.node("Min", [last, _transpose(writer, last)])
        shared.append(writer.node("Relu", [writer.node("Sub", [ends, begins])]))
    both = writer.node("Mul", shared)
    area = writer.node("Mul", [writer.slice(size, 0, 1, axis=2), writer.slice(size, 1, 2, axis=2)])
    # shared / (first + second - shared) > iou, without the division.
    share = writer.node("Mul", [area, writer.scalar(iou / (1 + iou))])
    return writer.node("Greater", [both, writer.node("Add", [share, _transpose(writer, share)])])


def find_rotated_overlaps(writer: GraphBuilder, box: str, angle: str, iou: float) -> str:
    """Where the probabilistic overlap of two rotated boxes, `tasks.rotated.prob_iou`, is more than `iou`.

    Args:
        writer: Adds to the graph.
        box: x, y (center), width, height; (N, K, 4).
        angle: Radians; (N, K, 1).
        iou: The limit.

    Returns:
        Booleans (N, K, K).
    """

    def column(place: int) -> str:
        return writer.slice(box, place, place + 1, axis=2)

    def times(*factors: str) -> str:
        product = factors[0]
        for factor in factors[1:]:
            product = writer.node("Mul", [product, factor])
        return product

    def more(one: str, value: float) -> str:
        return writer.node("Add", [one, writer.scalar(value)])

    x, y = (writer.node("Sub", [one, _transpose(writer, one)]) for one in (column(0), column(1)))
    width, height = column(2), column(3)
    along, across = (times(side, side, writer.scalar(1 / 12)) for side in (width, height))
    cos, sin = writer.node("Cos", [angle]), writer.node("Sin", [angle])
    variances = (
        writer.node("Add", [times(along, cos, cos), times(across, sin, sin)]),
        writer.node("Add", [times(along, sin, sin), times(across, cos, cos)]),
        times(writer.node("Sub", [along, across]), cos, sin),
    )
    a, b, c = (writer.node("Add", [one, _transpose(writer, one)]) for one in variances)
    both = writer.node("Sub", [times(a, b), times(c, c)])
    spread = writer.node("Add", [times(a, y, y), times(b, x, x)])
    spread = writer.node("Sub", [spread, times(c, x, y, writer.scalar(2))])
    far = writer.node("Div", [spread, more(both, EPSILON)])
    # The root of a covariance's determinant is width x height / 12, whatever the angle.
    size = times(width, height, writer.scalar(1 / 12))
    sizes = times(size, _transpose(writer, size), writer.scalar(4))
    unlike = writer.node("Log", [more(writer.node("Div", [both, more(sizes, EPSILON)]), EPSILON)])
    distance = writer.node("Add", [times(far, writer.scalar(0.25)), times(unlike, writer.scalar(0.5))])
    return writer.node("Less", [distance, writer.scalar(_distance_threshold(iou))])


def _distance_threshold(iou: float) -> float:
    """The Bhattacharyya distance at which the probabilistic overlap, 1 - sqrt(1 - exp(-distance)), is `iou`."""
    return -math.log(min(1.0, 1 + EPSILON - (1 - iou) ** 2)) if iou > 0 else math.inf


def _transpose(writer: GraphBuilder, column: str) -> str:
    """(N, K, 1) as (N, 1, K)."""
    return writer.node("Transpose", [column], perm=[0, 2, 1])


DEFAULT_CONF = 0.25
DEFAULT_IOU = 0.7
DEFAULT_MAX_DET = 300

TOP_K = 1024
"""Boxes of an image that are compared, each with each, the surest first: the work grows with their square."""

NMS_ROUNDS = 8
"""How often upright boxes are decided anew: a box falls, what it had removed stands again, and so on. Two or three
rounds end it in practice (Zheng et al. 2020, arXiv:2005.03572, Cluster-NMS)."""


def add_nms(
    proto: onnx.ModelProto,
    info: ModelInfo,
    *,
    conf: float = DEFAULT_CONF,
    iou: float = DEFAULT_IOU,
    max_det: int = DEFAULT_MAX_DET,
) -> onnx.ModelProto:
    """Replace `output0` by its best boxes; the caller's graph is left alone.

    Each box keeps its best class; boxes of one class that overlap by more than `iou` give way to the surest; the
    `max_det` surest of all classes remain. These are the rules that `predict` applies outside the graph: greedily for
    upright boxes, and for rotated ones the fast way, where a box goes even for one that goes too.

    Args:
        proto: Graph whose `output0` is (N, 4 + classes + extra, anchors), boxes as center, width, height in pixels.
        info: Its description.
        conf: Lowest confidence, baked into the graph.
        iou: Highest overlap, baked in.
        max_det: Rows of the result.

    Returns:
        A graph whose `output0` is (N, max_det, 6 + extra): x1, y1, x2, y2, confidence, class, then mask coefficients or
        keypoints; for obb x, y, width, height, confidence, class, angle, as Ultralytics has it. Rows beyond the
        detections found are zero. Further outputs stay as they are.

    Raises:
        RecipeError: The model does not return dense boxes.
    """
    if info.output_format != DENSE:
        raise RecipeError(
            f"export a model for {info.task} with nms=True",
            f"its output format is {info.output_format.name}, which NMS does not apply to",
            "leave nms out",
            code="nms-not-applicable",
            task=info.task,
            output_format=info.output_format.name,
        )
    result = copy.deepcopy(proto)
    graph = result.graph
    raw = "trtkit_nms_input"
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == "output0":
                    names[index] = raw
    writer, rotated = GraphBuilder(graph, "trtkit_nms"), info.task == "obb"
    classes, extra = len(info.names), _count_columns(graph) - 4 - len(info.names)
    most = max(TOP_K, max_det)
    rows, top = _select_top_k(writer, raw, classes, most)
    box, scores = writer.slice(rows, 0, 4, axis=2), writer.slice(rows, 4, 4 + classes, axis=2)
    label = writer.node("ArgMax", [scores], axis=2, keepdims=1)
    label = writer.node("Cast", [label], to=TensorProto.FLOAT)
    behind = writer.slice(rows, 4 + classes, 4 + classes + extra, axis=2) if extra else None
    if rotated:
        assert behind is not None
        overlaps = find_rotated_overlaps(writer, box, writer.slice(behind, extra - 1, extra, axis=2), iou)
    else:
        overlaps = find_overlaps(writer, box, iou)
    stands = _compute_keep_mask(writer, overlaps, label, top, most=most, conf=conf, rounds=1 if rotated else NMS_ROUNDS)
    wanted = writer.constant(np.array([max_det], np.int64))
    last, ranks = writer.nodes("TopK", [writer.node("Mul", [top, stands]), wanted], 2, axis=1, largest=1, sorted=1)
    chosen = writer.gather_rows(writer.node("Concat", [box, label, *([behind] if behind else [])], axis=2), ranks)
    place = writer.slice(chosen, 0, 4, axis=2) if rotated else _to_corners(writer, chosen)
    score = writer.unsqueeze(last, 2)
    whole = writer.node("Concat", [place, score, writer.slice(chosen, 4, 5 + extra, axis=2)], axis=2)
    present = writer.node("Cast", [writer.node("Greater", [score, writer.scalar(0)])], to=TensorProto.FLOAT)
    graph.node.append(helper.make_node("Mul", [whole, present], ["output0"], "trtkit_nms_output"))
    for value in graph.output:
        if value.name == "output0":
            batch = value.type.tensor_type.shape.dim[0]
            new = helper.make_tensor_value_info(
                "output0", TensorProto.FLOAT, [batch.dim_param or batch.dim_value, max_det, 6 + extra]
            )
            value.CopyFrom(new)
    del graph.value_info[:]
    metadata = {"args": {"nms": True, "conf": conf, "iou": iou, "max_det": max_det}}
    settings = {"conf": conf, "iou": iou, "max_det": max_det}
    return update_metadata(result, metadata, {"nms": settings, "output_format": NMS_ROWS.to_dict()})


def _select_top_k(writer: GraphBuilder, raw: str, classes: int, most: int) -> tuple[str, str]:
    """The rows (N, most, columns) of the surest boxes by falling score, and those scores (N, most)."""
    best = writer.node("ReduceMax", [writer.slice(raw, 4, 4 + classes, axis=1)], axes=[1], keepdims=0)
    # Small images have fewer boxes than this: zeros behind them, which are no detections, make up the number.
    padded = writer.node("Pad", [best, writer.constant(np.array([0, 0, 0, most], np.int64))])
    wanted = writer.constant(np.array([most], np.int64))
    top, places = writer.nodes("TopK", [padded, wanted], 2, axis=1, largest=1, sorted=1)
    anchors = writer.node("Gather", [writer.node("Shape", [raw]), writer.constant(np.array(2, np.int64))], axis=0)
    # What was padded reads some other box again, at its score of 0.
    passed = writer.node("Mul", [writer.node("Div", [places, anchors]), anchors])
    table = writer.node("Transpose", [raw], perm=[0, 2, 1])
    return writer.gather_rows(table, writer.node("Sub", [places, passed])), top


def _compute_keep_mask(
    writer: GraphBuilder, overlaps: str, label: str, top: str, *, most: int, conf: float, rounds: int
) -> str:
    """1 for every box that no surer standing one of its class overlaps, 0 for the others; (N, K), float32."""
    same = writer.node("Equal", [label, writer.node("Transpose", [label], perm=[0, 2, 1])])
    # Row i can remove column j only if i comes first.
    order = np.arange(most, dtype=np.float32)
    surer = writer.node("Less", [writer.constant(order[None, :, None]), writer.constant(order[None, None])])
    beats = writer.node("And", [writer.node("And", [overlaps, same]), surer])
    beats = writer.node("Cast", [beats], to=TensorProto.FLOAT)
    likely = writer.node("Cast", [writer.node("Greater", [top, writer.scalar(conf)])], to=TensorProto.FLOAT)
    likely = writer.unsqueeze(likely, 1)
    stands = likely
    for _ in range(rounds):
        beaten = writer.node("Greater", [writer.node("MatMul", [stands, beats]), writer.scalar(0)])
        free = writer.node("Cast", [writer.node("Not", [beaten])], to=TensorProto.FLOAT)
        stands = writer.node("Mul", [likely, free])
    return writer.node("Squeeze", [stands, writer.constant(np.array([1], np.int64))])


def _to_corners(writer: GraphBuilder, rows: str) -> str:
    """x1, y1, x2, y2 of rows that begin with center, width and height."""
    center = writer.slice(rows, 0, 2, axis=2)
    half = writer.node("Mul", [writer.slice(rows, 2, 4, axis=2), writer.scalar(0.5)])
    return writer.node("Concat", [writer.node("Sub", [center, half]), writer.node("Add", [center, half])], axis=2)


def _count_columns(graph: onnx.GraphProto) -> int:
    """Values a box of the raw output: the second axis of `output0`."""
    value = next(value for value in graph.output if value.name == "output0")
    return int(value.type.tensor_type.shape.dim[1].dim_value)
