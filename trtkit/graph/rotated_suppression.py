"""Suppression of rotated boxes inside the graph, by plain arithmetic: no operator of ONNX knows them."""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto

from trtkit.graph.writer import Writer

__all__ = ["CANDIDATES", "rotated_rows"]

CANDIDATES = 1024
"""Surest boxes of a picture that are compared, each with each. More are above the confidence in no picture that is
worth suppressing, and the work grows with the square."""

TINY = 1e-7
"""As in `tasks.rotated`."""


def rotated_rows(
    writer: Writer, raw: str, classes: int, extra: int, *, conf: float, iou: float, max_det: int
) -> tuple[str, str]:
    """Fast suppression by probabilistic overlap, as `tasks.rotated.suppress_rotated` does outside the graph.

    A box goes if any surer one of its class overlaps it, even one that goes too, so that all pairs are decided at once.

    Args:
        writer: Adds to the graph.
        raw: (N, 4 + classes + 1, anchors): x, y, width, height, scores, angle.
        classes: Number of classes.
        extra: Values behind the scores; the last one is the angle.
        conf: Lowest confidence.
        iou: Highest overlap.
        max_det: Rows of the result.

    Returns:
        Rows (N, max_det, 7): x, y, width, height, confidence, class, angle; and confidences (N, max_det, 1), 0 where
        there is no detection.
    """
    most = max(CANDIDATES, max_det)
    rows = writer.node("Transpose", [raw], perm=[0, 2, 1])
    best = writer.node("ReduceMax", [writer.slice(raw, 4, 4 + classes, axis=1)], axes=[1], keepdims=0)
    top, places = writer.best(best, most)
    anchors = writer.node("Gather", [writer.node("Shape", [raw]), writer.constant(np.array(2, np.int64))], axis=0)
    # What was padded reads some other box again, at a score of 0.
    place = writer.node("Sub", [places, writer.node("Mul", [writer.node("Div", [places, anchors]), anchors])])
    found = writer.rows(rows, place)
    label = writer.node("ArgMax", [writer.slice(found, 4, 4 + classes, axis=2)], axis=2, keepdims=1)
    label = writer.node("Cast", [label], to=TensorProto.FLOAT)
    angle = writer.slice(found, 3 + classes + extra, 4 + classes + extra, axis=2)
    box = writer.slice(found, 0, 4, axis=2)
    overlaps = writer.node("Less", [_distances(writer, box, angle), writer.number(_distance_of(iou))])
    same = writer.node("Equal", [label, _turned(writer, label)])
    order = np.arange(most, dtype=np.float32)
    surer = writer.node("Less", [writer.constant(order[None, :, None]), writer.constant(order[None, None])])
    beats = writer.node("And", [writer.node("And", [overlaps, same]), surer])
    beaten = writer.node("ReduceMax", [writer.node("Cast", [beats], to=TensorProto.FLOAT)], axes=[1], keepdims=0)
    stands = writer.node("Sub", [writer.number(1), beaten])
    sure = writer.node("Cast", [writer.node("Greater", [top, writer.number(conf)])], to=TensorProto.FLOAT)
    kept = writer.node("Mul", [top, writer.node("Mul", [stands, sure])])
    wanted = writer.constant(np.array([max_det], np.int64))
    last, index = writer.nodes("TopK", [kept, wanted], 2, axis=1, largest=1, sorted=1)
    score = writer.spread(last, 2)
    chosen = writer.rows(writer.node("Concat", [box, label, angle], axis=2), index)
    whole = [writer.slice(chosen, 0, 4, axis=2), score, writer.slice(chosen, 4, 6, axis=2)]
    return writer.node("Concat", whole, axis=2), score


def _distance_of(iou: float) -> float:
    """The Bhattacharyya distance at which the probabilistic overlap, 1 - sqrt(1 - exp(-distance)), is `iou`."""
    return -math.log(min(1.0, 1 + TINY - (1 - iou) ** 2)) if iou > 0 else math.inf


def _turned(writer: Writer, column: str) -> str:
    """(N, K, 1) as (N, 1, K)."""
    return writer.node("Transpose", [column], perm=[0, 2, 1])


def _distances(writer: Writer, box: str, angle: str) -> str:
    """Bhattacharyya distances (N, K, K) of boxes as normal distributions; the formula of `tasks.rotated.prob_iou`."""

    def column(place: int) -> str:
        return writer.slice(box, place, place + 1, axis=2)

    def times(*factors: str) -> str:
        product = factors[0]
        for factor in factors[1:]:
            product = writer.node("Mul", [product, factor])
        return product

    def apart(one: str) -> str:
        return writer.node("Sub", [one, _turned(writer, one)])

    def joint(one: str) -> str:
        return writer.node("Add", [one, _turned(writer, one)])

    def more(one: str, value: float) -> str:
        return writer.node("Add", [one, writer.number(value)])

    x, y = apart(column(0)), apart(column(1))
    width, height = column(2), column(3)
    along, across = (times(side, side, writer.number(1 / 12)) for side in (width, height))
    cos, sin = writer.node("Cos", [angle]), writer.node("Sin", [angle])
    a = joint(writer.node("Add", [times(along, cos, cos), times(across, sin, sin)]))
    b = joint(writer.node("Add", [times(along, sin, sin), times(across, cos, cos)]))
    c = joint(times(writer.node("Sub", [along, across]), cos, sin))
    both = writer.node("Sub", [times(a, b), times(c, c)])
    cross = times(c, x, y, writer.number(2))
    spread = writer.node("Sub", [writer.node("Add", [times(a, y, y), times(b, x, x)]), cross])
    far = writer.node("Div", [spread, more(both, TINY)])
    # The root of a covariance's determinant is width x height / 12, whatever the angle.
    size = times(width, height, writer.number(1 / 12))
    sizes = times(size, _turned(writer, size), writer.number(4))
    ratio = writer.node("Div", [both, more(sizes, TINY)])
    unlike = writer.node("Log", [more(ratio, TINY)])
    return writer.node("Add", [times(far, writer.number(0.25)), times(unlike, writer.number(0.5))])
