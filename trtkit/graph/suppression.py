"""Non-maximum suppression inside the graph: upright boxes by the operator that TensorRT and ONNX Runtime both know."""

from __future__ import annotations

import copy

import numpy as np
import onnx
from onnx import TensorProto, helper

from trtkit.errors import RecipeError
from trtkit.graph.rotated_suppression import rotated_rows
from trtkit.graph.tracing import described
from trtkit.graph.writer import Writer
from trtkit.sources.card import Card

__all__ = ["CONFIDENCE", "IOU", "MAX_DETECTIONS", "with_suppression"]

CONFIDENCE = 0.25
IOU = 0.7
MAX_DETECTIONS = 300

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
    `max_det` surest of all classes remain. These are the rules that `predict` applies outside the graph.

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
    writer = Writer(graph, "trtkit_nms")
    classes, extra = len(card.names), _columns(graph) - 4 - len(card.names)
    kept = rotated_rows if card.task == "obb" else _upright_rows
    whole, score = kept(writer, raw, classes, extra, conf=conf, iou=iou, max_det=max_det)
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


def _upright_rows(
    writer: Writer, raw: str, classes: int, extra: int, *, conf: float, iou: float, max_det: int
) -> tuple[str, str]:
    """The rows of the result (N, max_det, 6 + extra) and their scores (N, max_det, 1), 0 where nothing was found."""
    # (N, C, A) -> boxes (N, A, 4) and each box's best class only, (N, classes, A).
    rows = writer.node("Transpose", [raw], perm=[0, 2, 1])
    centred = writer.slice(rows, 0, 4, axis=2)
    scores = writer.slice(raw, 4, 4 + classes, axis=1)
    best = writer.node("ReduceMax", [scores], axes=[1], keepdims=1)
    others = writer.node("Cast", [writer.node("Equal", [scores, best])], to=TensorProto.FLOAT)
    scores = writer.node("Mul", [scores, others])
    chosen = writer.node(
        "NonMaxSuppression",
        [
            centred,
            scores,
            writer.constant(np.array([max_det], np.int64)),
            writer.constant(np.array([iou], np.float32)),
            writer.constant(np.array([conf], np.float32)),
        ],
        center_point_box=1,
    )
    # Scores of the survivors at their place, zero elsewhere: their number depends on the picture, this shape does not.
    survivors = writer.node(
        "ScatterND",
        [writer.node("Mul", [scores, writer.number(0)]), chosen, writer.node("GatherND", [scores, chosen])],
    )
    top, places = writer.best(writer.node("Flatten", [survivors], axis=1), max_det)
    anchors = writer.node("Gather", [writer.node("Shape", [raw]), writer.constant(np.array(2, np.int64))], axis=0)
    label = writer.node("Div", [places, anchors])
    anchor = writer.node("Sub", [places, writer.node("Mul", [label, anchors])])
    # (N, max_det) anchors -> their rows of boxes and of whatever follows the classes.
    found = writer.rows(rows, anchor)
    centre, size = writer.slice(found, 0, 2, axis=2), writer.slice(found, 2, 4, axis=2)
    half = writer.node("Mul", [size, writer.number(0.5)])
    score = writer.spread(top, 2)
    parts = [
        writer.node("Sub", [centre, half]),
        writer.node("Add", [centre, half]),
        score,
        writer.spread(writer.node("Cast", [label], to=TensorProto.FLOAT), 2),
    ]
    if extra:
        parts.append(writer.slice(found, 4 + classes, np.iinfo(np.int32).max, axis=2))
    return writer.node("Concat", parts, axis=2), score


def _columns(graph: onnx.GraphProto) -> int:
    """Values a box of the raw output: the second axis of `output0`."""
    value = next(value for value in graph.output if value.name == "output0")
    return int(value.type.tensor_type.shape.dim[1].dim_value)
