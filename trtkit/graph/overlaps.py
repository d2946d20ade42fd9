"""Which boxes overlap which, as arithmetic of a graph: every pair of a picture's boxes at once."""

from __future__ import annotations

import math

from trtkit.graph.writer import Writer

__all__ = ["rotated_overlaps", "upright_overlaps"]

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
