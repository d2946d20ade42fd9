"""Differences between two outputs of one model on one image: scores, boxes, masks, keypoints and angles."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from trtkit.models.model import CLASS_SCORES, DENSE, RAW_MAPS, TASKS, ModelInfo
from trtkit.models.output_shapes import find_main_output, group_raw_maps
from trtkit.tasks import PostprocessSettings, get_task
from trtkit.tasks.base import BoxLayout, Detections, RawDetections, decode_outputs
from trtkit.tasks.nms import box_iou, rotated_iou, xywh_to_xyxy
from trtkit.tasks.raw_maps import to_dense

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtkit.data import ImageTransform

__all__ = ["CONFIDENT", "OUTPUTS", "OutputDifference", "measure_differences", "relative_difference"]

OUTPUTS = (
    "scores",
    "logits",
    "probabilities",
    "boxes",
    "masks",
    "keypoints",
    "visibilities",
    "angles",
    "objects",
    "tensors",
)
"""What is compared, by name in `Verification.images`:

- scores: scores of classes, absolute; probabilities: those of classify;
- logits: log(p / (1 - p)) of the highest-scoring objects or classes, which shows what a score near 0 or 1 hides;
- boxes: 1 - IoU of confident boxes, exact IoU of oriented ones;
- masks: mean absolute difference of mask probabilities within the box;
- keypoints: distance divided by the square root of the box's area; visibilities: absolute;
- angles: radians;
- tensors: norm of the difference over that of the reference, of registered tasks that predict no objects;
- objects: share of confident objects that the other side lacks, of outputs that are rows of selected objects.
"""

CONFIDENT = 0.25
"""Boxes and what belongs to them are compared from this score on; below it their position is noise."""

ROWS = 50
"""Highest-scoring objects that are compared per image."""

TOP_CLASSES = 5
"""Classes of an image whose logits are compared in classify."""

NEAR_CUT = 0.1
"""Objects whose score exceeds the lowest one that a graph keeps by less may be missing on one side."""

MATCHED = 0.5
"""IoU from which an object of the same class is the counterpart."""

COUNTERPART = CONFIDENT / 2
"""Score from which a row of selected objects is a counterpart: a one-to-one head keeps rows of low score in each
object's place, of other classes and anchors too, which say nothing about what became of it."""

_ALL = PostprocessSettings(conf=0.001, iou=0.7)


class OutputDifference(NamedTuple):
    """How one output of one image differs.

    Attributes:
        output: One of `OUTPUTS`.
        objects: How many objects or values were compared.
        difference: The largest difference.
        mean: The mean over the objects.
        shift: The mean with signs, of scores, logits and probabilities.
    """

    output: str
    objects: int
    difference: float
    mean: float
    shift: float = 0.0

    @classmethod
    def of(cls, output: str, values: NDArray[np.float32] | Sequence[float]) -> OutputDifference:
        """From signed differences, one per object."""
        gaps = np.asarray(values, np.float64)
        if not len(gaps):
            return cls(output, 0, 0.0, 0.0)
        return cls(output, len(gaps), float(np.abs(gaps).max()), float(np.abs(gaps).mean()), float(gaps.mean()))


class _Objects(NamedTuple):
    """Objects of one side: boxes (n, 4) as x1, y1, x2, y2, or (n, 5) oriented; extra values (n, k); prototypes."""

    boxes: NDArray[np.float32]
    extra: NDArray[np.float32]
    prototypes: NDArray[np.float32] | None


def measure_differences(
    info: ModelInfo,
    outputs: Mapping[str, NDArray[np.float32]],
    expected: Mapping[str, NDArray[np.float32]],
    transform: ImageTransform,
) -> list[OutputDifference]:
    """Compare the outputs of one image with the reference's.

    Args:
        info: The model's description.
        outputs: By name, one row each.
        expected: The reference's, of the same shapes.
        transform: Where the image lies in the input.

    Returns:
        One difference for each of `OUTPUTS` that the task and the output format have.
    """
    info = dataclasses.replace(info, imgsz=transform.size)
    shapes = {name: value.ndim for name, value in expected.items()}
    if info.output_format == CLASS_SCORES:
        main = find_main_output(shapes, info.task)
        ours, theirs = outputs[main][0], expected[main][0]
        top = np.argsort(-theirs, kind="stable")[:TOP_CLASSES]
        return [
            OutputDifference.of("probabilities", ours - theirs),
            OutputDifference.of("logits", _logits(ours[top]) - _logits(theirs[top])),
        ]
    if info.output_format.name == RAW_MAPS.name:
        outputs, expected = (to_dense(value, info, _get_layout(info, value)) for value in (outputs, expected))
        shapes = {name: value.ndim for name, value in expected.items()}
        info = dataclasses.replace(info, output_format=DENSE)
    if info.output_format == DENSE:
        return _measure_dense(info, outputs, expected, find_main_output(shapes, info.task))
    ours, theirs = (_select_objects(info, value, transform) for value in (outputs, expected))
    if ours is None or theirs is None:
        gaps = [relative_difference(outputs[name], expected[name]) for name in expected]
        return [OutputDifference.of("tensors", gaps)._replace(shift=0.0)]
    return _measure_rows(info, ours, theirs)


def relative_difference(one: NDArray[np.float32], two: NDArray[np.float32]) -> float:
    """The norm of the difference over the norm of `two`."""
    gap, whole = (float(np.linalg.norm(value.astype(np.float64))) for value in (one - two, two))
    return gap / max(whole, 1e-12)


def _measure_dense(
    info: ModelInfo,
    outputs: Mapping[str, NDArray[np.float32]],
    expected: Mapping[str, NDArray[np.float32]],
    main: str,
) -> list[OutputDifference]:
    """Anchors correspond one to one: no matching, and no NMS that turns small differences into other boxes."""
    ours, theirs = outputs[main][0], expected[main][0]
    split = 4 + len(info.names)
    gap = ours[4:split] - theirs[4:split]
    best = theirs[4:split].max(0)
    # Objects of either side: an engine may find what is not there.
    kept = np.argsort(-np.fmax(best, ours[4:split].max(0)), kind="stable")[:ROWS]
    number = theirs[4:split, kept].argmax(0)
    scores = OutputDifference.of("scores", gap[:, kept][number, np.arange(len(kept))])
    rows = [
        scores._replace(difference=float(np.abs(gap).max())),
        OutputDifference.of("logits", _logits(ours[4 + number, kept]) - _logits(theirs[4 + number, kept])),
    ]
    confident = kept[best[kept] >= CONFIDENT]
    rotated = info.task == "obb"
    pair = []
    for side, all_outputs in ((ours, outputs), (theirs, expected)):
        boxes = np.ascontiguousarray(side[:4, confident].T)
        boxes = np.concatenate((boxes, side[-1:, confident].T), 1) if rotated else xywh_to_xyxy(boxes)
        extra = np.ascontiguousarray(side[split:, confident].T)
        pair.append(_Objects(boxes, extra, _find_prototypes(info, all_outputs)))
    return rows + _measure_pairs(info, *pair)


def _find_prototypes(info: ModelInfo, outputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32] | None:
    maps = [value[0] for name, value in outputs.items() if value.ndim == 4 and not group_raw_maps([name])]
    return maps[0] if maps and info.task == "segment" else None


def _get_layout(info: ModelInfo, outputs: Mapping[str, NDArray[np.float32]]) -> BoxLayout:
    """What each object of a task of `TASKS` consists of."""
    prototypes = _find_prototypes(info, outputs)
    extra = {
        "detect": 0,
        "obb": 1,
        "segment": 0 if prototypes is None else len(prototypes),
        "pose": math.prod(info.kpt_shape or ()),
    }
    return BoxLayout(extra=extra.get(info.task, 0), rotated=info.task == "obb")


def _select_objects(
    info: ModelInfo, outputs: Mapping[str, NDArray[np.float32]], transform: ImageTransform
) -> tuple[RawDetections, NDArray[np.float32] | None] | None:
    """The objects of a graph that selects them, and its mask prototypes; None for a task without objects."""
    task = get_task(info.task)  # also registers the decoders
    prototypes = _find_prototypes(info, outputs)
    if info.task in TASKS:
        layout = _get_layout(info, outputs)
        boxes_only = {name: value for name, value in outputs.items() if prototypes is None or value.ndim != 4}
        return next(iter(decode_outputs(boxes_only, info, layout, _ALL))), prototypes
    # A registered task: its own postprocessing says where the boxes are.
    detections = task.postprocess(outputs, info, [transform], _ALL)[0]
    if not isinstance(detections, Detections):
        return None
    none = np.zeros((len(detections), 0), np.float32)
    raw = RawDetections(boxes=detections.boxes, scores=detections.scores, classes=detections.classes, extra=none)
    return raw, None


def _measure_rows(
    info: ModelInfo,
    ours: tuple[RawDetections, NDArray[np.float32] | None],
    theirs: tuple[RawDetections, NDArray[np.float32] | None],
) -> list[OutputDifference]:
    """Rows in any order: confident objects against the nearest of their class on the other side, if it is mutual."""
    one, two = theirs[0], ours[0]
    floor = max(CONFIDENT, float(info.row_settings.get("conf", 0.0)))
    iou = rotated_iou if one.boxes.shape[1] == 5 else box_iou
    overlap = np.where(one.classes[:, None] == two.classes, iou(one.boxes, two.boxes), 0.0)
    # Of several rows in one place the counterpart is the nearest in score too.
    similarity = overlap * (1 - np.abs(one.scores[:, None] - two.scores))
    pairs, matched = [], (set[int](), set[int]())
    for index in range(len(one.scores)) if len(two.scores) else ():
        match = int(similarity[index].argmax())
        mutual = overlap[index, match] >= MATCHED and similarity[:, match].argmax() == index
        low, high = sorted((one.scores[index], two.scores[match]))
        if mutual and high >= CONFIDENT and low >= COUNTERPART:
            pairs.append((index, match))
            matched[0].add(index)
            matched[1].add(match)
    # What lies close to the cut of the scores may be dropped on one side.
    lost = sum(
        index not in known
        for known, side in zip(matched, (one, two), strict=True)
        for index in np.flatnonzero(side.scores > floor + NEAR_CUT).tolist()
    )
    count = len(pairs) + lost
    first, second = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    scores = ours[0].scores[second], theirs[0].scores[first]
    rows = [
        OutputDifference("objects", count, lost / max(count, 1), lost / max(count, 1)),
        OutputDifference.of("scores", scores[0] - scores[1]),
        OutputDifference.of("logits", _logits(scores[0]) - _logits(scores[1])),
    ]
    sides = (
        _Objects(raw.boxes[picked], raw.extra[picked], prototypes)
        for (raw, prototypes), picked in ((ours, second), (theirs, first))
    )
    return rows + _measure_pairs(info, *sides)


def _measure_pairs(info: ModelInfo, ours: _Objects, theirs: _Objects) -> list[OutputDifference]:
    """Compare objects of the same row: boxes, and what the task adds to them."""
    iou = rotated_iou if ours.boxes.shape[1] == 5 else box_iou
    finite = np.asarray(np.isfinite(ours.boxes).all(axis=1, keepdims=True))
    overlaps = iou(np.where(finite, ours.boxes, 0).astype(np.float32), theirs.boxes).diagonal()
    gaps: dict[str, list[float]] = {"boxes": np.where(finite[:, 0], 1 - overlaps, np.nan).tolist()}
    if info.task == "obb":
        # A box turned by half a turn is the same box.
        turned = np.abs(ours.boxes[:, 4] - theirs.boxes[:, 4]) % np.pi
        gaps["angles"] = np.minimum(turned, np.pi - turned).tolist()
    if info.task == "pose" and info.kpt_shape is not None:
        points, visible = _compare_keypoints(info.kpt_shape, ours, theirs)
        gaps |= {"keypoints": points, "visibilities": visible} if visible else {"keypoints": points}
    if ours.prototypes is not None and theirs.prototypes is not None:
        gaps["masks"] = _compare_masks(info.imgsz, ours, theirs)
    return [OutputDifference.of(name, values)._replace(shift=0.0) for name, values in gaps.items()]


def _logits(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores before the sigmoid, clipped where FP16 has no digits left."""
    clipped = np.clip(scores, 1e-3, 1 - 1e-2)
    logits: NDArray[np.float32] = np.log(clipped / (1 - clipped))
    return logits


def _compare_keypoints(kpt_shape: tuple[int, int], ours: _Objects, theirs: _Objects) -> tuple[list[float], list[float]]:
    """By object: the largest distance by the box's size, and the largest difference of a visibility."""
    one, two = (side.extra.reshape(-1, *kpt_shape) for side in (ours, theirs))
    sizes = np.sqrt(np.maximum(np.prod(theirs.boxes[:, 2:4] - theirs.boxes[:, :2], 1), 1))
    distances = np.linalg.norm(one[..., :2] - two[..., :2], axis=2).max(1, initial=0) / sizes
    visible = np.abs(one[..., 2:] - two[..., 2:]).max((1, 2), initial=0) if kpt_shape[1] > 2 else []
    return distances.tolist(), list(map(float, visible))


def _compare_masks(imgsz: tuple[int, int], ours: _Objects, theirs: _Objects) -> list[float]:
    """By object: the mean difference of mask probabilities within the reference's box."""
    assert ours.prototypes is not None
    assert theirs.prototypes is not None
    height, width = theirs.prototypes.shape[1:]
    scale = np.array([width / imgsz[1], height / imgsz[0]] * 2, np.float32)
    gaps = []
    for index, box in enumerate(theirs.boxes * scale):
        left, right = np.clip((math.floor(box[0]), math.ceil(box[2])), 0, width)
        top, bottom = np.clip((math.floor(box[1]), math.ceil(box[3])), 0, height)
        part = np.s_[:, min(top, height - 1) : max(bottom, 1), min(left, width - 1) : max(right, 1)]
        masks = [
            1 / (1 + np.exp(-np.clip(np.tensordot(side.extra[index], side.prototypes[part], 1), -60, 60)))
            for side in (ours, theirs)
            if side.prototypes is not None
        ]
        gaps.append(float(np.abs(masks[0] - masks[1]).mean()))
    return gaps
