"""Ranges chosen by the noise that each INT8 scale makes at a model's outputs.

How much of a tensor's tail may be clipped can't be seen from its values: outliers of one layer move no box, and the
rarest values of a head's layer are the objects. So each scale is measured by itself: everything else stays in float,
and the outputs are compared with FP32's where FP32 sees an object. The noise of single scales nearly adds up, so that
each is chosen on its own. What was chosen is kept only if it makes less noise on other images. No label is read.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from trtkit.errors import CalibrationError
from trtkit.graph.ort_session import open_session
from trtkit.graph.qdq import insert_qdq, plan_qdq
from trtkit.models.model import CLASS_SCORES, DENSE, OutputFormat
from trtkit.progress import Reporter, parallel_map

__all__ = [
    "CHECK_IMAGES", "RANGE_IMAGES", "RefinedRanges", "check_image_count", "check_refinable", "choose_ranges_by_noise",
]  # fmt: skip

RANGE_IMAGES = 8
"""Images that noise is measured on, the first of the sample; half of a smaller sample than twice as many."""

CHECK_IMAGES = 24
"""Most images after them on which the chosen ranges must make less noise."""

FACTORS = (0.5, 0.7, 1.25)
"""Factors of a range that are tried for every scale with noise."""

FURTHER = {0.5: (0.35, 0.25), 1.25: (1.5, 2.0)}
"""Factors that are tried next, while each is better than the one before."""

LEAST_GAIN = 0.1
"""Part of a scale's noise by which another range must be better: on other images small differences vanish."""

LEAST_NOISE = 0.005
"""Scales with a smaller part of full INT8's noise keep their range."""

SEEN = 0.05
"""FP32's score from which a cell counts as an object."""


@dataclasses.dataclass(frozen=True)
class RefinedRanges:
    """Ranges, and what they are worth on images that they were not chosen on.

    Attributes:
        ranges: Lowest and highest value by tensor: those chosen if they make less noise, else those given.
        noise: The chosen ranges' noise on other images, as a part of that of the ranges given.
        images: Number of these images.
    """

    ranges: dict[str, tuple[float, float]]
    noise: float
    images: int

    @property
    def is_better(self) -> bool:
        """Whether the chosen ranges make less noise and are kept."""
        return self.noise < 1

    def describe(self) -> str:
        """One sentence."""
        outcome = "is kept" if self.is_better else "is dropped: the ranges are the algorithm's"
        return (
            f"refine='ranges' makes {self.noise:.3g} times the noise on {self.images} images that nothing was chosen "
            f"on, and {outcome}"
        )


def check_refinable(output_format: OutputFormat) -> None:
    """Check that outputs can be compared cell by cell.

    Raises:
        CalibrationError: They are rows in the order of their scores, which INT8 changes, or of an unknown format.
    """
    if output_format.name not in (DENSE.name, CLASS_SCORES.name):
        raise CalibrationError(
            "calibrate with refine='ranges'",
            f"the model returns {output_format.name}, which INT8 may order differently",
            "calibrate without refine, or take the head for NMS (end2end=False)",
            code="calibration-refine-format",
            value=output_format.name,
            expected=(DENSE.name, CLASS_SCORES.name),
        )


def check_image_count(count: int) -> None:
    """Check that images are left to check the ranges on.

    Args:
        count: Number of images.

    Raises:
        CalibrationError: There is one.
    """
    if count < 2:
        raise CalibrationError(
            "calibrate with refine='ranges'",
            "there is one image: none is left to check the ranges on",
            f"pass more images, of which {RANGE_IMAGES + CHECK_IMAGES} are used",
            code="calibration-refine-images",
            count=count,
        )


def choose_ranges_by_noise(
    proto: onnx.ModelProto,
    ranges: Mapping[str, tuple[float, float]],
    output_format: OutputFormat,
    classes: int,
    images: Sequence[NDArray[np.float32]],
    *,
    stage: str,
    reporter: Reporter,
) -> RefinedRanges:
    """Choose a factor for the range of each scale of the default placement.

    Args:
        proto: FP32 graph with unique node names.
        ranges: Lowest and highest value by tensor, from a calibration algorithm.
        output_format: What the graph returns.
        classes: Number of classes.
        images: (1, C, H, W) float32 in [0, 1], or the graph's fixed batch; `RANGE_IMAGES` to choose on, up to
            `CHECK_IMAGES` to check, at least one of each.
        stage: Name of the progress stage.
        reporter: Progress, one step for each scale, and cancellation.

    Returns:
        The ranges, those of chosen scales multiplied if that pays.

    Raises:
        CalibrationError: The outputs are of another format than dense boxes or class scores, or there is one image.
        CancelledError: The caller cancelled.
    """
    check_refinable(output_format)
    check_image_count(len(images))
    count = min(RANGE_IMAGES, len(images) // 2)
    images, others = images[:count], images[count : count + CHECK_IMAGES]
    placement = plan_qdq(proto)
    groups = list(dict.fromkeys(placement.scale_groups.values()))
    starts = 4 if output_format.name == DENSE.name else 0
    exact = _run(open_session(proto), images, {})
    reference = _Reference.measure(exact, starts, classes)
    int8 = insert_qdq(proto, ranges, placement=placement)
    full = reference.compare(_run(open_session(int8), images, {}))
    chosen = dict(ranges)
    reporter.step(stage, 0, len(groups))
    for number, group in enumerate(groups, 1):
        limit = max(max(map(abs, ranges[name])) for name in group)
        if limit > 0:
            session = open_session(_quantize_one_scale(proto, int8, group))
            factor = _choose_factor(session, limit, images, reference, full)
            chosen.update({name: _multiply_range(ranges[name], factor, limit) for name in group})
        reporter.step(stage, number, len(groups))
    exact = _run(open_session(proto), others, {})
    reference = _Reference.measure(exact, starts, classes)
    before, after = (
        reference.compare(_run(open_session(one), others, {}))
        for one in (int8, insert_qdq(proto, chosen, placement=placement))
    )
    noise = float(np.mean(after / np.where(before > 0, before, 1.0)))
    return RefinedRanges(ranges=chosen if noise < 1 else dict(ranges), noise=noise, images=len(others))


def _choose_factor(
    session: Any,
    limit: float,
    images: Sequence[NDArray[np.float32]],
    reference: _Reference,
    full: NDArray[np.float64],
) -> float:
    """The factor with the least noise; 1 unless another one is clearly better."""

    def measure(factor: float) -> float:
        scale = np.array(factor * limit / 127, np.float32)
        errors = reference.compare(_run(session, images, {_SCALE: scale}))
        return float(np.mean(errors / np.where(full > 0, full, 1.0)))

    noise = {1.0: measure(1.0)}
    if noise[1.0] < LEAST_NOISE:
        return 1.0
    noise.update({factor: measure(factor) for factor in FACTORS})
    best = min(noise, key=lambda factor: noise[factor])
    for factor in FURTHER.get(best, ()):
        noise[factor] = measure(factor)
        if noise[factor] > noise[best]:
            break
        best = factor
    return best if noise[best] < (1 - LEAST_GAIN) * noise[1.0] else 1.0


def _multiply_range(bounds: tuple[float, float], factor: float, limit: float) -> tuple[float, float]:
    low, high = bounds
    if factor > 1:
        return low * factor, high * factor
    return max(low, -factor * limit), min(high, factor * limit)


_SCALE = "trtkit_scale"
"""An input of the graph: one session serves all factors."""


def _quantize_one_scale(proto: onnx.ModelProto, int8: onnx.ModelProto, group: Sequence[str]) -> onnx.ModelProto:
    """The float graph with the Q/DQ pairs of one scale of the INT8 graph; the scale is an input."""
    members = set(group)
    readers = {node.name: node for node in int8.graph.node}
    result = copy.deepcopy(proto)
    graph = result.graph
    zero = "trtkit_zero_point"
    graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((), np.int8), zero))
    graph.input.append(helper.make_tensor_value_info(_SCALE, TensorProto.FLOAT, []))
    for node in graph.node:
        for slot, source in enumerate(node.input):
            if source in members and readers[node.name].input[slot] == f"{source}_dq":
                node.input[slot] = f"{source}_dq"

    def make_pair(name: str) -> list[onnx.NodeProto]:
        return [
            helper.make_node("QuantizeLinear", [name, _SCALE, zero], [f"{name}_q"], f"{name}_QuantizeLinear"),
            helper.make_node("DequantizeLinear", [f"{name}_q", _SCALE, zero], [f"{name}_dq"], f"{name}_Dequantize"),
        ]

    nodes = [pair for value in graph.input if value.name in members for pair in make_pair(value.name)]
    for node in graph.node:
        nodes.append(node)
        nodes += [pair for name in node.output if name in members for pair in make_pair(name)]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    return result


def _run(
    session: Any, images: Sequence[NDArray[np.float32]], others: Mapping[str, NDArray[np.float32]]
) -> list[list[NDArray[np.float32]]]:
    """All outputs for each image."""
    name = session.get_inputs()[0].name

    def run(image: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        outputs: list[NDArray[np.float32]] = session.run(None, {name: image, **others})
        return outputs

    return list(parallel_map(run, images))


@dataclasses.dataclass(frozen=True)
class _Reference:
    """FP32's outputs, and what errors are relative to.

    Attributes:
        outputs: Of each image.
        start: First row of the class scores; boxes are before it.
        classes: Number of class scores.
        seen: Cells with an object, of each image.
    """

    outputs: list[list[NDArray[np.float32]]]
    start: int
    classes: int
    seen: list[NDArray[np.bool_]]

    @classmethod
    def measure(cls, outputs: list[list[NDArray[np.float32]]], start: int, classes: int) -> _Reference:
        scores = [_rows(one[0])[start : start + classes].max(0) for one in outputs]
        seen = [one > SEEN for one in scores]
        if not any(one.any() for one in seen):
            seen = [np.ones_like(one) for one in seen]
        return cls(outputs, start, classes, seen)

    def compare(self, others: list[list[NDArray[np.float32]]]) -> NDArray[np.float64]:
        """Mean squared errors of boxes (by their size), of scores, of further rows and of each further output."""
        errors: list[list[NDArray[np.float64]]] = [[], [], [], *[[] for _ in self.outputs[0][1:]]]
        for exact, other, seen in zip(self.outputs, others, self.seen, strict=True):
            rows = _rows(exact[0])[:, seen].astype(np.float64)
            squares = (_rows(other[0])[:, seen] - rows) ** 2
            end = self.start + self.classes
            if self.start:
                squares[:4] /= np.maximum(rows[2] * rows[3], 1.0)
            errors[0].append(squares[: self.start].ravel())
            errors[1].append(squares[self.start : end].ravel())
            errors[2].append(squares[end:].ravel())
            for number, (ours, theirs) in enumerate(zip(exact[1:], other[1:], strict=True), 3):
                errors[number].append(np.square(theirs.astype(np.float64) - ours).ravel())
        joined = [np.concatenate(part) for part in errors]
        return np.array([part.mean() for part in joined if part.size])


def _rows(output: NDArray[np.float32]) -> NDArray[np.float32]:
    """(rows, cells) of a batch of one: a classifier has one cell."""
    first: NDArray[np.float32] = output[0]
    return first if first.ndim == 2 else first.reshape(-1, 1)
