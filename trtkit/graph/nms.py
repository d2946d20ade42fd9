"""Non-maximum suppression inside the graph, by arithmetic that every TensorRT and ONNX Runtime have.

ONNX's own operator is not used: TensorRT-RTX has no kernel for it, it knows no rotated boxes, and the number of boxes
it gives depends on the picture, which no CUDA graph can hold. Here every shape is known beforehand.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import onnx
from onnx import TensorProto, helper

from trtkit.errors import RecipeError
from trtkit.graph.builder import Writer
from trtkit.graph.torch_export import described
from trtkit.models.model import Card

__all__ = [
    "CANDIDATES",
    "CONFIDENCE",
    "IOU",
    "MAX_DETECTIONS",
    "rotated_overlaps",
    "upright_overlaps",
    "with_suppression",
]


# Which boxes overlap which, as arithmetic of a graph: every pair of a picture's boxes at once.


TINY = 1e-7
"""As in `tasks.rotated`."""


def upright_overlaps(writer: Writer, box: str, iou: float) -> str:
    """Where the intersection of two upright boxes is more than `iou` of their union.

    Args:
        writer: Adds to the graph.
        box: x, y (centre), width, height; (N, K, 4).
        iou: The limit.

    Returns:
        Booleans (N, K, K).
    """
    centre, size = writer.slice(box, 0, 2, axis=2), writer.slice(box, 2, 4, axis=2)
    half = writer.node("Mul", [size, writer.number(0.5)])
    low, high = writer.node("Sub", [centre, half]), writer.node("Add", [centre, half])
    shared = []
    for axis in (0, 1):
        first, last = (writer.slice(corner, axis, axis + 1, axis=2) for corner in (low, high))
        begins = writer.node("Max", [first, _turned(writer, first)])
        ends = writer.node("Min", [last, _turned(writer, last)])
        shared.append(writer.node("Relu", [writer.node("Sub", [ends, begins])]))
    both = writer.node("Mul", shared)
    area = writer.node("Mul", [writer.slice(size, 0, 1, axis=2), writer.slice(size, 1, 2, axis=2)])
    # shared / (first + second - shared) > iou, without the division.
    share = writer.node("Mul", [area, writer.number(iou / (1 + iou))])
    return writer.node("Greater", [both, writer.node("Add", [share, _turned(writer, share)])])


def rotated_overlaps(writer: Writer, box: str, angle: str, iou: float) -> str:
    """Where the probabilistic overlap of two rotated boxes, `tasks.rotated.prob_iou`, is more than `iou`.

    Args:
        writer: Adds to the graph.
        box: x, y (centre), width, height; (N, K, 4).
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
        return writer.node("Add", [one, writer.number(value)])

    x, y = (writer.node("Sub", [one, _turned(writer, one)]) for one in (column(0), column(1)))
    width, height = column(2), column(3)
    along, across = (times(side, side, writer.number(1 / 12)) for side in (width, height))
    cos, sin = writer.node("Cos", [angle]), writer.node("Sin", [angle])
    variances = (
        writer.node("Add", [times(along, cos, cos), times(across, sin, sin)]),
        writer.node("Add", [times(along, sin, sin), times(across, cos, cos)]),
        times(writer.node("Sub", [along, across]), cos, sin),
    )
    a, b, c = (writer.node("Add", [one, _turned(writer, one)]) for one in variances)
    both = writer.node("Sub", [times(a, b), times(c, c)])
    spread = writer.node("Add", [times(a, y, y), times(b, x, x)])
    spread = writer.node("Sub", [spread, times(c, x, y, writer.number(2))])
    far = writer.node("Div", [spread, more(both, TINY)])
    # The root of a covariance's determinant is width x height / 12, whatever the angle.
    size = times(width, height, writer.number(1 / 12))
    sizes = times(size, _turned(writer, size), writer.number(4))
    unlike = writer.node("Log", [more(writer.node("Div", [both, more(sizes, TINY)]), TINY)])
    distance = writer.node("Add", [times(far, writer.number(0.25)), times(unlike, writer.number(0.5))])
    return writer.node("Less", [distance, writer.number(_distance_of(iou))])


def _distance_of(iou: float) -> float:
    """The Bhattacharyya distance at which the probabilistic overlap, 1 - sqrt(1 - exp(-distance)), is `iou`."""
    return -math.log(min(1.0, 1 + TINY - (1 - iou) ** 2)) if iou > 0 else math.inf


def _turned(writer: Writer, column: str) -> str:
    """(N, K, 1) as (N, 1, K)."""
    return writer.node("Transpose", [column], perm=[0, 2, 1])


CONFIDENCE = 0.25
IOU = 0.7
MAX_DETECTIONS = 300

CANDIDATES = 1024
"""Boxes of a picture that are compared, each with each, the surest first: the work grows with their square."""

ROUNDS = 8
"""How often upright boxes are decided anew: a box falls, what it had removed stands again, and so on. Two or three
rounds end it in practice (Zheng et al. 2020, arXiv:2005.03572, Cluster-NMS)."""

TASKS = ("detect", "segment", "pose", "obb")
"""Tasks that have boxes."""


def with_suppression(
    proto: onnx.ModelProto,
    card: Card,
    *,
    conf: float = CONFIDENCE,
    iou: float = IOU,
    max_det: int = MAX_DETECTIONS,
) -> onnx.ModelProto:
    """Replace `output0` by its best boxes; the caller's graph is left alone.

    Each box keeps its best class; boxes of one class that overlap by more than `iou` give way to the surest; the
    `max_det` surest of all classes remain. These are the rules that `predict` applies outside the graph: greedily for
    upright boxes, and for rotated ones the fast way, where a box goes even for one that goes too.

    Args:
        proto: Graph whose `output0` is (N, 4 + classes + extra, anchors), boxes as centre, width, height in pixels.
        card: Its description.
        conf: Lowest confidence, baked into the graph.
        iou: Highest overlap, baked in.
        max_det: Rows of the result.

    Returns:
        A graph whose `output0` is (N, max_det, 6 + extra): x1, y1, x2, y2, confidence, class, then mask coefficients or
        keypoints; for obb x, y, width, height, confidence, class, angle, as Ultralytics has it. Rows beyond the
        detections found are zero. Further outputs stay as they are.

    Raises:
        RecipeError: The task has no boxes.
    """
    if card.task not in TASKS:
        raise RecipeError(
            f"export a model for {card.task} with nms=True",
            "it finds no boxes, so there are none to suppress",
            "leave nms out",
        )
    result = copy.deepcopy(proto)
    graph = result.graph
    raw = "trtkit_nms_input"
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == "output0":
                    names[index] = raw
    writer, rotated = Writer(graph, "trtkit_nms"), card.task == "obb"
    classes, extra = len(card.names), _columns(graph) - 4 - len(card.names)
    most = max(CANDIDATES, max_det)
    rows, top = _candidates(writer, raw, classes, most)
    box, scores = writer.slice(rows, 0, 4, axis=2), writer.slice(rows, 4, 4 + classes, axis=2)
    label = writer.node("ArgMax", [scores], axis=2, keepdims=1)
    label = writer.node("Cast", [label], to=TensorProto.FLOAT)
    behind = writer.slice(rows, 4 + classes, 4 + classes + extra, axis=2) if extra else None
    if rotated:
        assert behind is not None
        overlaps = rotated_overlaps(writer, box, writer.slice(behind, extra - 1, extra, axis=2), iou)
    else:
        overlaps = upright_overlaps(writer, box, iou)
    stands = _standing(writer, overlaps, label, top, most=most, conf=conf, rounds=1 if rotated else ROUNDS)
    wanted = writer.constant(np.array([max_det], np.int64))
    last, ranks = writer.nodes("TopK", [writer.node("Mul", [top, stands]), wanted], 2, axis=1, largest=1, sorted=1)
    chosen = writer.rows(writer.node("Concat", [box, label, *([behind] if behind else [])], axis=2), ranks)
    place = writer.slice(chosen, 0, 4, axis=2) if rotated else _corners(writer, chosen)
    score = writer.spread(last, 2)
    whole = writer.node("Concat", [place, score, writer.slice(chosen, 4, 5 + extra, axis=2)], axis=2)
    present = writer.node("Cast", [writer.node("Greater", [score, writer.number(0)])], to=TensorProto.FLOAT)
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
    return described(result, metadata, {"nms": {"conf": conf, "iou": iou, "max_det": max_det}})


def _candidates(writer: Writer, raw: str, classes: int, most: int) -> tuple[str, str]:
    """The rows (N, most, columns) of the surest boxes by falling score, and those scores (N, most)."""
    best = writer.node("ReduceMax", [writer.slice(raw, 4, 4 + classes, axis=1)], axes=[1], keepdims=0)
    # Small pictures have fewer boxes than this: zeros behind them, which are no detections, make up the number.
    padded = writer.node("Pad", [best, writer.constant(np.array([0, 0, 0, most], np.int64))])
    wanted = writer.constant(np.array([most], np.int64))
    top, places = writer.nodes("TopK", [padded, wanted], 2, axis=1, largest=1, sorted=1)
    anchors = writer.node("Gather", [writer.node("Shape", [raw]), writer.constant(np.array(2, np.int64))], axis=0)
    # What was padded reads some other box again, at its score of 0.
    passed = writer.node("Mul", [writer.node("Div", [places, anchors]), anchors])
    table = writer.node("Transpose", [raw], perm=[0, 2, 1])
    return writer.rows(table, writer.node("Sub", [places, passed])), top


def _standing(writer: Writer, overlaps: str, label: str, top: str, *, most: int, conf: float, rounds: int) -> str:
    """1 for every box that no surer standing one of its class overlaps, 0 for the others; (N, K), float32."""
    same = writer.node("Equal", [label, writer.node("Transpose", [label], perm=[0, 2, 1])])
    # Row i can remove column j only if i comes first.
    order = np.arange(most, dtype=np.float32)
    surer = writer.node("Less", [writer.constant(order[None, :, None]), writer.constant(order[None, None])])
    beats = writer.node("And", [writer.node("And", [overlaps, same]), surer])
    beats = writer.node("Cast", [beats], to=TensorProto.FLOAT)
    likely = writer.node("Cast", [writer.node("Greater", [top, writer.number(conf)])], to=TensorProto.FLOAT)
    likely = writer.spread(likely, 1)
    stands = likely
    for _ in range(rounds):
        beaten = writer.node("Greater", [writer.node("MatMul", [stands, beats]), writer.number(0)])
        free = writer.node("Cast", [writer.node("Not", [beaten])], to=TensorProto.FLOAT)
        stands = writer.node("Mul", [likely, free])
    return writer.node("Squeeze", [stands, writer.constant(np.array([1], np.int64))])


def _corners(writer: Writer, rows: str) -> str:
    """x1, y1, x2, y2 of rows that begin with centre, width and height."""
    centre = writer.slice(rows, 0, 2, axis=2)
    half = writer.node("Mul", [writer.slice(rows, 2, 4, axis=2), writer.number(0.5)])
    return writer.node("Concat", [writer.node("Sub", [centre, half]), writer.node("Add", [centre, half])], axis=2)


def _columns(graph: onnx.GraphProto) -> int:
    """Values a box of the raw output: the second axis of `output0`."""
    value = next(value for value in graph.output if value.name == "output0")
    return int(value.type.tensor_type.shape.dim[1].dim_value)
