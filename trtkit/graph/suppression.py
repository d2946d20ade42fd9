"""Non-maximum suppression inside the graph, by the operator that TensorRT and ONNX Runtime both know."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trtkit.errors import RecipeError
from trtkit.graph.tracing import described
from trtkit.sources.card import Card

__all__ = ["CONFIDENCE", "IOU", "MAX_DETECTIONS", "with_suppression"]

CONFIDENCE = 0.25
IOU = 0.7
MAX_DETECTIONS = 300

TASKS = ("detect", "segment", "pose")
"""Tasks with upright boxes; the operator knows no rotated ones."""


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
        keypoints. Rows beyond the detections found are zero. Further outputs stay as they are.

    Raises:
        RecipeError: The task has no upright boxes.
    """
    if card.task not in TASKS:
        raise RecipeError(
            f"export a model for {card.task} with nms=True",
            "suppression inside the graph works on upright boxes only",
            "leave nms out; predict() suppresses outside the graph",
        )
    result = copy.deepcopy(proto)
    graph = result.graph
    raw = "trtkit_nms_input"
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == "output0":
                    names[index] = raw
    writer = _Writer(graph)
    classes = len(card.names)
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
        [
            writer.node("Mul", [scores, writer.constant(np.float32(0.0))]),
            chosen,
            writer.node("GatherND", [scores, chosen]),
        ],
    )
    flat = writer.node("Flatten", [survivors], axis=1)
    # Small pictures have fewer boxes than rows: zeros behind them, which are no detections, keep the rows' number.
    flat = writer.node("Pad", [flat, writer.constant(np.array([0, 0, 0, max_det], np.int64))])
    top, places = writer.nodes(
        "TopK", [flat, writer.constant(np.array([max_det], np.int64))], 2, axis=1, largest=1, sorted=1
    )
    anchors = writer.node("Gather", [writer.node("Shape", [raw]), writer.constant(np.array(2, np.int64))], axis=0)
    label = writer.node("Div", [places, anchors])
    anchor = writer.node("Sub", [places, writer.node("Mul", [label, anchors])])
    # (N, max_det) anchors -> their rows of boxes and of whatever follows the classes.
    column = writer.node("Unsqueeze", [anchor, writer.constant(np.array([2], np.int64))])
    indices = writer.node("Concat", [writer.batch_index(column), column], axis=2)
    found = writer.node("GatherND", [rows, indices])
    centre, size = writer.slice(found, 0, 2, axis=2), writer.slice(found, 2, 4, axis=2)
    half = writer.node("Mul", [size, writer.constant(np.float32(0.5))])
    score = writer.node("Unsqueeze", [top, writer.constant(np.array([2], np.int64))])
    parts = [
        writer.node("Sub", [centre, half]),
        writer.node("Add", [centre, half]),
        score,
        writer.node(
            "Unsqueeze",
            [writer.node("Cast", [label], to=TensorProto.FLOAT), writer.constant(np.array([2], np.int64))],
        ),
        writer.slice(found, 4 + classes, np.iinfo(np.int32).max, axis=2),
    ]
    if _columns(graph) == 4 + classes:
        parts.pop()
    present = writer.node(
        "Cast", [writer.node("Greater", [score, writer.constant(np.float32(0.0))])], to=TensorProto.FLOAT
    )
    whole = writer.node("Concat", parts, axis=2)
    graph.node.append(helper.make_node("Mul", [whole, present], ["output0"], "trtkit_nms_output"))
    for value in graph.output:
        if value.name == "output0":
            batch = value.type.tensor_type.shape.dim[0]
            extra = _columns(graph) - 4 - classes
            new = helper.make_tensor_value_info(
                "output0", TensorProto.FLOAT, [batch.dim_param or batch.dim_value, max_det, 6 + extra]
            )
            value.CopyFrom(new)
    del graph.value_info[:]
    metadata = {"args": {"nms": True, "conf": conf, "iou": iou, "max_det": max_det}}
    return described(result, metadata, {"nms": {"conf": conf, "iou": iou, "max_det": max_det}})


def _columns(graph: onnx.GraphProto) -> int:
    """Values a box of the raw output: the second axis of `output0`."""
    value = next(value for value in graph.output if value.name == "output0")
    return int(value.type.tensor_type.shape.dim[1].dim_value)


class _Writer:
    """Adds nodes and constants with names of their own."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.count = 0

    def _name(self) -> str:
        self.count += 1
        return f"trtkit_nms_{self.count}"

    def constant(self, value: np.ndarray | np.generic) -> str:
        name = self._name()
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, operator: str, inputs: list[str], **attributes: Any) -> str:
        return self.nodes(operator, inputs, 1, **attributes)[0]

    def nodes(self, operator: str, inputs: list[str], outputs: int, **attributes: Any) -> list[str]:
        name = self._name()
        names = [f"{name}_{index}" for index in range(outputs)]
        self.graph.node.append(helper.make_node(operator, inputs, names, f"{name}_{operator}", **attributes))
        return names

    def slice(self, name: str, start: int, end: int, *, axis: int) -> str:
        ends = [self.constant(np.array([value], np.int64)) for value in (start, end, axis)]
        return self.node("Slice", [name, *ends])

    def batch_index(self, column: str) -> str:
        """For a (N, K, 1) index tensor, the index of each row's picture in the same shape."""
        ones = self.node("Add", [self.node("Mul", [column, self.constant(np.int64(0))]), self.constant(np.int64(1))])
        # Counting along the batch by a running sum needs no shape arithmetic, whatever the batch is.
        summed = self.node("CumSum", [ones, self.constant(np.array(0, np.int64))])
        return self.node("Sub", [summed, self.constant(np.int64(1))])
