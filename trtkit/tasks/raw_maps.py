"""Decoding of raw maps (`RAW_MAPS`): candidates by their logits; boxes, scores and further values of these alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from trtkit.errors import ModelError
from trtkit.models.model import RAW_MAPS
from trtkit.models.output_shapes import RAW_EXTRA, format_shapes, group_raw_maps
from trtkit.tasks.base import BoxLayout, PostprocessSettings, RawDetections, register_output_format
from trtkit.tasks.nms import nms, nms_rotated, select_candidates, xywh_to_xyxy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtkit.models.model import ModelInfo

__all__ = [
    "Level",
    "RawCandidates",
    "decode_candidates",
    "decode_raw_maps",
    "find_levels",
    "logit_threshold",
    "to_dense",
]

LOGIT_MARGIN = 1e-4
"""Candidates are selected by logits this much below the threshold's, then by the exact score: float32 rounds both."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Level:
    """The outputs of one feature map.

    Attributes:
        stride: Pixels of the input per cell.
        boxes: Name of the output of distances, or of the logits of their distributions.
        scores: Name of the output of class logits.
        extra: Name of the output of the task's further values, or None.
    """

    stride: int
    boxes: str
    scores: str
    extra: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The outputs."""
        return (self.boxes, self.scores, *(() if self.extra is None else (self.extra,)))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RawCandidates:
    """What the maps hold of some anchors of one image.

    Attributes:
        centers: Center x and y of the cells, in cells, shape (n, 2).
        strides: Pixels per cell, shape (n, 1).
        boxes: Distances, or logits of their distributions, shape (n, 4 * bins).
        scores: Class logits, shape (n, classes).
        extra: The task's further values, shape (n, k).
    """

    centers: NDArray[np.float32]
    strides: NDArray[np.float32]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    extra: NDArray[np.float32]

    def take(self, index: NDArray[np.intp]) -> RawCandidates:
        """The candidates at these places."""
        return RawCandidates(**{field.name: getattr(self, field.name)[index] for field in dataclasses.fields(self)})


def find_levels(shapes: Mapping[str, Sequence[int]], info: ModelInfo, layout: BoxLayout) -> tuple[Level, ...]:
    """The outputs by feature map, of rising stride.

    Args:
        shapes: Shape of each output by name.
        info: The model's description.
        layout: What each object consists of.

    Raises:
        ModelError: An output is missing, or has another number of channels.
    """
    kinds = ["boxes", "scores", *([RAW_EXTRA[info.task]] if info.task in RAW_EXTRA else [])]
    groups = group_raw_maps(shapes)
    fits = bool(groups)
    for names in groups.values():
        sizes = {kind: shapes[name] for kind, name in names.items()}
        fits &= sorted(sizes) == sorted(kinds) and {len(size) for size in sizes.values()} == {4}
        if fits:
            channels = [sizes[kind][1] for kind in kinds]
            fits = not channels[0] % 4 and channels[1] == len(info.names) and channels[2:] in ([], [layout.extra])
            fits &= len({tuple(size[2:]) for size in sizes.values()}) == 1
    if not fits:
        raise ModelError(
            f"decode raw maps of {info.task}",
            f"its outputs {', '.join(shapes)} of shape {format_shapes(list(shapes.values()))} are not those of "
            f"{len(info.names)} classes",
            "check the task and the class names of this model",
            code="task-raw-maps-shape",
            names=tuple(shapes),
            shapes=tuple(tuple(shape) for shape in shapes.values()),
        )
    extra = RAW_EXTRA.get(info.task)
    return tuple(
        Level(
            stride=stride,
            boxes=names["boxes"],
            scores=names["scores"],
            extra=None if extra is None else names[extra],
        )
        for stride, names in groups.items()
    )


def logit_threshold(conf: float) -> float:
    """The logit below which no score exceeds `conf`: candidates of higher ones still need the exact comparison."""
    return -math.inf if conf <= 0 else math.inf if conf >= 1 else math.log(conf / (1 - conf)) - LOGIT_MARGIN


@register_output_format(RAW_MAPS.name)
def decode_raw_maps(
    outputs: Mapping[str, NDArray[np.float32]], info: ModelInfo, layout: BoxLayout, settings: PostprocessSettings
) -> Iterable[RawDetections]:
    """Decode `RAW_MAPS` and apply class-wise NMS, or select the highest scores of `RAW_ONE_TO_ONE`.

    Raises:
        ModelError: The outputs do not fit the format.
    """
    levels = find_levels({name: value.shape for name, value in outputs.items()}, info, layout)
    threshold = logit_threshold(settings.conf)

    def decode(image: int) -> RawDetections:
        best = np.concatenate([_flatten(outputs[level.scores][image]).max(0) for level in levels])
        candidates = gather_candidates(outputs, levels, image, np.flatnonzero(best > threshold))
        return decode_candidates(candidates, info, layout, settings)

    return map(decode, range(len(outputs[levels[0].scores])))


def gather_candidates(
    outputs: Mapping[str, NDArray[np.float32]], levels: Sequence[Level], image: int, anchors: NDArray[np.intp]
) -> RawCandidates:
    """What the maps hold of some anchors.

    Args:
        outputs: The model's outputs by name.
        levels: From `find_levels`.
        image: The image's row.
        anchors: Rising numbers of anchors: level by level, row by row.
    """
    parts: list[RawCandidates] = []
    start = 0
    for level in levels:
        height, width = outputs[level.scores].shape[2:]
        low, high = np.searchsorted(anchors, (start, start + height * width))
        cells = anchors[low:high] - start
        start += height * width
        boxes, scores, *extra = (
            np.ascontiguousarray(_flatten(outputs[name][image])[:, cells].T) for name in level.names
        )
        centers = np.stack((cells % width, cells // width), 1).astype(np.float32) + np.float32(0.5)
        parts.append(
            RawCandidates(
                centers=centers,
                strides=np.full((len(cells), 1), level.stride, np.float32),
                boxes=boxes,
                scores=scores,
                extra=extra[0] if extra else np.empty((len(cells), 0), np.float32),
            )
        )
    fields = [field.name for field in dataclasses.fields(RawCandidates)]
    return RawCandidates(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in fields})


def decode_candidates(
    candidates: RawCandidates, info: ModelInfo, layout: BoxLayout, settings: PostprocessSettings
) -> RawDetections:
    """Decode one image's candidates and select its objects.

    Args:
        candidates: At least those whose best score exceeds `settings.conf`, in the order of anchors.
        info: The model's description.
        layout: What each object consists of.
        settings: Thresholds.
    """
    scores = _sigmoid(candidates.scores)
    if info.output_format.needs_nms:
        values, numbers, places = select_candidates(scores.T, settings)
    else:
        values, numbers, places = _select_rows(scores, settings)
    chosen = candidates.take(places)
    extra = decode_extra(chosen, info) if layout.rotated else chosen.extra
    boxes = decode_boxes(chosen, extra if layout.rotated else None)
    corners = boxes if layout.rotated else xywh_to_xyxy(boxes)
    if info.output_format.needs_nms:
        select = nms_rotated if layout.rotated else nms
        keep = select(corners, values, numbers, iou=settings.iou, max_det=settings.max_det)
    else:
        keep = np.arange(len(values))
    extra = extra[keep] if layout.rotated else decode_extra(chosen.take(keep), info)
    return RawDetections(boxes=corners[keep], scores=values[keep], classes=numbers[keep], extra=extra)


def _select_rows(
    scores: NDArray[np.float32], settings: PostprocessSettings
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.intp]]:
    """The highest scores of all anchors and classes, as a one-to-one head selects its rows: anchors first."""
    anchors = np.argsort(-scores.max(1), kind="stable")[: settings.max_det] if len(scores) else np.empty(0, np.intp)
    rows, numbers = np.nonzero(scores[anchors] > settings.conf)
    values = scores[anchors[rows], numbers]
    order = np.argsort(-values, kind="stable")[: settings.max_det]
    return values[order], numbers[order].astype(np.int64), anchors[rows[order]]


def decode_boxes(candidates: RawCandidates, angles: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Boxes from distances: center x, center y, width, height in pixels, and the angle where there is one.

    Args:
        candidates: Of one image.
        angles: Radians, shape (n, 1), of oriented boxes.
    """
    distances = candidates.boxes
    bins = distances.shape[1] // 4
    if bins > 1:
        # The expectation of each side's distribution (DFL).
        logits = distances.reshape(-1, 4, bins)
        weights = np.exp(logits - logits.max(2, keepdims=True, initial=-np.inf))
        distances = (weights @ np.arange(bins, dtype=np.float32)) / weights.sum(2)
    near, far = distances[:, :2], distances[:, 2:]
    if angles is None:
        low, high = candidates.centers - near, candidates.centers + far
        return np.concatenate(((low + high) / 2, high - low), 1) * candidates.strides
    x, y = np.split((far - near) / 2, 2, axis=1)
    cos, sin = np.cos(angles), np.sin(angles)
    shift = np.concatenate((x * cos - y * sin, x * sin + y * cos), 1)
    upright = np.concatenate((candidates.centers + shift, near + far), 1) * candidates.strides
    return np.concatenate((upright, angles), 1)


def decode_extra(candidates: RawCandidates, info: ModelInfo) -> NDArray[np.float32]:
    """Mask coefficients as they are, keypoints in pixels with visibility in 0..1, or the angle in radians.

    Args:
        candidates: Of one image.
        info: The model's description.
    """
    values = candidates.extra
    is_yolo26 = candidates.boxes.shape[1] == 4
    if info.task == "obb":
        return values if is_yolo26 else (_sigmoid(values) - np.float32(0.25)) * np.float32(math.pi)
    if info.task == "pose" and info.kpt_shape is not None:
        points = values.reshape(-1, *info.kpt_shape).copy()
        centers = candidates.centers[:, None]
        offsets = points[..., :2] + centers if is_yolo26 else points[..., :2] * 2 + (centers - np.float32(0.5))
        points[..., :2] = offsets * candidates.strides[:, None]
        points[..., 2:] = _sigmoid(points[..., 2:])
        return points.reshape(values.shape)
    return values


def to_dense(
    outputs: Mapping[str, NDArray[np.float32]], info: ModelInfo, layout: BoxLayout
) -> dict[str, NDArray[np.float32]]:
    """Decode every anchor: the outputs as `DENSE` has them, for comparisons.

    Args:
        outputs: The model's outputs by name.
        info: The model's description.
        layout: What each object consists of.

    Returns:
        `output0`, shape (N, 4 + classes + extra, anchors), and the outputs that are no raw maps.

    Raises:
        ModelError: The outputs do not fit the format.
    """
    maps = {name for group in group_raw_maps(outputs).values() for name in group.values()}
    levels = find_levels({name: outputs[name].shape for name in outputs if name in maps}, info, layout)
    anchors = np.arange(sum(math.prod(outputs[level.scores].shape[2:]) for level in levels))
    images = []
    for image in range(len(outputs[levels[0].scores])):
        candidates = gather_candidates(outputs, levels, image, anchors)
        extra = decode_extra(candidates, info)
        boxes = decode_boxes(candidates, extra if layout.rotated else None)[:, :4]
        images.append(np.concatenate((boxes, _sigmoid(candidates.scores), extra), 1).T)
    return {"output0": np.stack(images), **{name: value for name, value in outputs.items() if name not in maps}}


def _flatten(map_: NDArray[np.float32]) -> NDArray[np.float32]:
    """(channels, height, width) as (channels, cells)."""
    return map_.reshape(len(map_), -1)


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return np.float32(1) / (np.float32(1) + np.exp(-logits))
