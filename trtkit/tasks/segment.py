"""Instance masks: the segment task, prototype masks, polygons and COCO run-length encoding."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import cv2
import numpy as np

from trtkit.errors import ModelError
from trtkit.tasks.base import BoxLayout, Detections, PostprocessSettings, class_color, decode_outputs, register_task
from trtkit.tasks.detect import Detect

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtkit.data import Dataset, ImageTransform, Labels
    from trtkit.models.model import ModelInfo

__all__ = ["Masks", "Segment", "SegmentDetections", "encode_rle", "mask_iou", "polygon_area", "rasterize_polygons"]

POLYGON_POINTS = 1000
"""Points a polygon is resampled to before it is rasterized: points are rounded to pixels, and more keep its sides."""

MASK_OPACITY = 0.45
"""Opacity of a drawn mask."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Masks:
    """The masks of one image's objects as prototypes and coefficients, a few numbers per object.

    Attributes:
        prototypes: Shape (k, h, w), float32, over the whole model input.
        coefficients: Shape (n, k), float32.
        boxes: x1, y1, x2, y2 in input pixels, shape (n, 4); a mask is empty outside its box.
        transform: Where the image lies in the model input.
    """

    prototypes: NDArray[np.float32]
    coefficients: NDArray[np.float32]
    boxes: NDArray[np.float32]
    transform: ImageTransform

    def __len__(self) -> int:
        return len(self.coefficients)

    def low_resolution(self) -> NDArray[np.bool_]:
        """Return all masks over the model input at the prototypes' resolution, shape (n, h, w)."""
        depth, height, width = self.prototypes.shape
        masks = (self.coefficients @ self.prototypes.reshape(depth, -1)).reshape(-1, height, width) > 0
        scale = np.array([width / self.transform.size[1], height / self.transform.size[0]], np.float32)
        left, top, right, bottom = ((self.boxes * np.tile(scale, 2)).T)[:, :, None]
        columns, rows = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
        masks &= ((columns >= left) & (columns < right))[:, None, :]
        masks &= ((rows >= top) & (rows < bottom))[:, :, None]
        return masks

    def full_resolution(self, index: int) -> NDArray[np.bool_]:
        """Return one object's mask in the original image, shape (height, width).

        The weighted prototypes are interpolated bilinearly between pixel centers, within the box only: the cost
        follows the size of the mask, and the masks of a crowded image are never all in memory.
        """
        mask = np.zeros(self.transform.shape, np.bool_)
        part, (top, left) = self._decode_mask(index)
        mask[top : top + part.shape[0], left : left + part.shape[1]] = part
        return mask

    def _decode_mask(self, index: int) -> tuple[NDArray[np.bool_], tuple[int, int]]:
        """Return one object's mask within its box, and the (top, left) pixel of the box."""
        x1, y1, x2, y2 = (math.ceil(value) for value in self.transform.to_image(self.boxes[index]).tolist())
        if x1 >= x2 or y1 >= y2:
            return np.zeros((0, 0), np.bool_), (0, 0)
        rows, row_weights = self._interpolation_weights(np.arange(y1, y2), axis=0)
        columns, column_weights = self._interpolation_weights(np.arange(x1, x2), axis=1)
        top, left = int(rows[0]), int(columns[0])
        part = self.prototypes[:, top : int(rows[-1]) + 2, left : int(columns[-1]) + 2]
        # Not a matrix product: the threads of NumPy and of ONNX Runtime would block each other.
        values = np.einsum("k,khw->hw", self.coefficients[index], part)
        down = _interpolate_rows(values, rows - top, row_weights)
        mask: NDArray[np.bool_] = _interpolate_rows(down.T, columns - left, column_weights).T > 0
        return mask, (y1, x1)

    def _interpolation_weights(
        self, pixels: NDArray[np.int64], *, axis: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return, for image pixels, the prototype pixel at or before each and the weight of the one after it."""
        count = self.prototypes.shape[1 + axis]
        centers = (pixels + 0.5) * self.transform.ratio[axis] + self.transform.pad[axis]
        positions = np.clip(centers * (count / self.transform.size[axis]) - 0.5, 0, count - 1)
        before = np.minimum(positions.astype(np.int64), max(0, count - 2))
        return before, (positions - before).astype(np.float32)

    @functools.cached_property
    def rles(self) -> tuple[dict[str, Any], ...]:
        """Every mask in the original image, as COCO run-length encoding (RLE)."""
        return tuple(encode_rle(*self._decode_mask(index), self.transform.shape) for index in range(len(self)))


def _interpolate_rows(
    values: NDArray[np.float32], before: NDArray[np.int64], weights: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Interpolate rows of `values`: `weights` of the row after, the rest of the row before."""
    after = np.minimum(before + 1, len(values) - 1)
    rows: NDArray[np.float32] = values[before] * (1 - weights)[:, None] + values[after] * weights[:, None]
    return rows


def encode_rle(part: NDArray[np.bool_], offset: tuple[int, int], shape: tuple[int, int]) -> dict[str, Any]:
    """Encode a mask as COCO's compressed run-length encoding (RLE), at the cost of its part rather than of the image.

    The format of pycocotools' `maskApi`: runs go down the columns, unset and set in turn. Each length (from the fourth
    on its difference to the one two before) is written in groups of five bits, lowest first, with a sixth bit for
    "more follow", as characters from "0" on.

    Args:
        part: The part of the mask that holds all set pixels, shape (h, w).
        offset: (top, left) of the part in the image.
        shape: (height, width) of the image.

    Returns:
        `size` and `counts`, as pycocotools takes them.
    """
    padded = np.zeros((part.shape[1], part.shape[0] + 2), np.int8)
    padded[:, 1:-1] = part.T
    columns, rows = np.nonzero(np.diff(padded, axis=1))
    edges = (columns + offset[1]) * shape[0] + rows + offset[0]
    # A run that reaches the bottom of a column continues at the top of the next.
    continued = np.flatnonzero(edges[1:-1:2] == edges[2::2]) * 2 + 1
    edges = np.delete(edges, np.concatenate((continued, continued + 1)))
    ends = np.concatenate(([0], edges, [shape[0] * shape[1]]))
    lengths = np.diff(ends)
    if len(edges) and edges[-1] == ends[-1]:
        lengths = lengths[:-1]
    encoded = lengths.copy()
    encoded[3:] -= lengths[1:-2]
    groups = encoded[:, None] >> np.arange(0, 35, 5)
    # A group is the last if only copies of its own sign bit remain.
    more = np.where(groups & 16, groups >> 5 != -1, groups >> 5 != 0)
    used = np.concatenate((np.ones((len(encoded), 1), np.bool_), np.logical_and.accumulate(more, 1)[:, :-1]), 1)
    letters = ((groups & 31) | (more << 5)) + 48
    return {"size": list(shape), "counts": letters[used].astype(np.uint8).tobytes().decode("ascii")}


def rasterize_polygons(
    segments: Sequence[NDArray[np.float32]], size: tuple[int, int], shape: tuple[int, int]
) -> NDArray[np.bool_]:
    """Rasterize label polygons as disjoint masks: where polygons overlap, the pixel belongs to the smaller.

    They are drawn at the input's size and then downscaled, as in Ultralytics' validation.

    Args:
        segments: Polygons in input pixels, each of shape (points, 2).
        size: (height, width) of the input.
        shape: (height, width) of the masks.

    Returns:
        Shape (polygons, *shape).
    """
    masks = np.zeros((len(segments), *shape), np.uint8)
    for index, segment in enumerate(segments):
        canvas = np.zeros(size, np.uint8)
        cv2.fillPoly(canvas, [_resample_polygon(segment).astype(np.int32)], (1,))
        masks[index] = cv2.resize(canvas, (shape[1], shape[0]))
    order = np.argsort(-masks.sum((1, 2), dtype=np.int64), kind="stable")
    owner = np.full(shape, -1, np.int64)
    for index in order:
        owner[masks[index] > 0] = index
    return cast("NDArray[np.bool_]", owner == np.arange(len(segments))[:, None, None])


def _resample_polygon(segment: NDArray[np.float32]) -> NDArray[np.float32]:
    """Resample a polygon to points along its sides, its corners included."""
    closed = np.concatenate((segment, segment[:1]))
    corners = np.arange(len(closed), dtype=np.float64)
    positions = np.union1d(np.linspace(0, len(segment), POLYGON_POINTS), corners)
    outline: NDArray[np.float32] = np.stack([np.interp(positions, corners, closed[:, axis]) for axis in (0, 1)], 1)
    return outline


def mask_iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Compute the IoU of every pair of masks.

    Args:
        first: Shape (n, height, width).
        second: Shape (m, height, width).

    Returns:
        Shape (n, m), in 0..1; 0 where both masks are empty.
    """
    pixels = first.shape[1] * first.shape[2]
    ours, theirs = first.reshape(len(first), pixels), second.reshape(len(second), pixels)
    shared = np.zeros((len(ours), len(theirs)))
    for index, mask in enumerate(ours):
        shared[index] = theirs[:, np.flatnonzero(mask)].sum(1)
    union = ours.sum(1)[:, None] + theirs.sum(1) - shared
    iou: NDArray[np.float32] = (shared / np.maximum(union, 1)).astype(np.float32)
    return iou


def polygon_area(points: NDArray[np.float32]) -> float:
    """Compute the area of a polygon of shape (points, 2) by the shoelace formula."""
    x, y = points.astype(np.float64).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SegmentDetections(Detections):
    """Objects with masks.

    Attributes:
        masks: One per object; `masks.full_resolution(i)` is object i's mask in the original image.
    """

    masks: Masks


@register_task
class Segment(Detect):
    """Instance masks: prototypes weighted by each object's coefficients (Bolya et al. 2019, YOLACT)."""

    name = "segment"
    metric = "mAP50-95(M)"
    kinds: tuple[str, ...] = ("B", "M")
    coco_iou_types: Mapping[str, str] = {"B": "bbox", "M": "segm"}

    def postprocess(
        self,
        outputs: Mapping[str, NDArray[np.float32]],
        info: ModelInfo,
        transforms: Sequence[ImageTransform],
        settings: PostprocessSettings,
    ) -> list[Detections]:
        """Decode boxes and masks; the prototypes are `output1`, or the first 4-dimensional output.

        Raises:
            ModelError: There are no prototypes, or the outputs do not fit the output format.
        """
        prototypes = outputs.get("output1")
        if prototypes is None or prototypes.ndim != 4:
            prototypes = next((array for array in outputs.values() if array.ndim == 4), None)
        if prototypes is None:
            shapes = ", ".join(str(tuple(array.shape)) for array in outputs.values())
            raise ModelError(
                "decode segment output",
                f"none of the outputs {shapes} are mask prototypes",
                "check the task of this model",
                code="task-prototypes-missing",
                shapes=tuple(tuple(array.shape) for array in outputs.values()),
            )
        boxes_only = {name: array for name, array in outputs.items() if array is not prototypes}
        decoded = decode_outputs(boxes_only, info, BoxLayout(extra=prototypes.shape[1]), settings)
        predictions: list[Detections] = []
        for transform, raw, prototype in zip(transforms, decoded, prototypes, strict=False):
            masks = Masks(prototypes=prototype, coefficients=raw.extra, boxes=raw.boxes, transform=transform)
            predictions.append(
                SegmentDetections(
                    shape=transform.shape,
                    boxes=transform.to_image(raw.boxes),
                    scores=raw.scores,
                    classes=raw.classes,
                    masks=masks,
                )
            )
        return predictions

    def compute_similarity(  # type: ignore[override]
        self, labels: Labels, prediction: SegmentDetections, dataset: Dataset
    ) -> dict[str, NDArray[np.float32]]:
        """Compute the IoU of boxes, and of masks at the prototypes' resolution, as in Ultralytics' validation."""
        masks = prediction.masks
        polygons = [masks.transform.to_network(segment) for segment in labels.segments]
        shape = (masks.prototypes.shape[1], masks.prototypes.shape[2])
        label_masks = rasterize_polygons(polygons, masks.transform.size, shape)
        similarity = super().compute_similarity(labels, prediction, dataset)
        return {**similarity, "M": mask_iou(label_masks, masks.low_resolution())}

    def compute_areas(self, labels: Labels) -> NDArray[np.float32]:
        """Return the areas of the polygons."""
        return np.array([polygon_area(segment) for segment in labels.segments], np.float32)

    def to_coco(self, objects: Labels | Detections, kind: str) -> list[dict[str, Any]]:
        """Return boxes, or polygons of labels and RLE of masks, at the original image's resolution."""
        boxes = super().to_coco(objects, "B")
        if isinstance(objects, SegmentDetections):
            return boxes if kind == "B" else [{"segmentation": rle} for rle in objects.masks.rles]
        assert not isinstance(objects, Detections)
        areas = self.compute_areas(objects).astype(np.float64)
        rows = [box | {"area": area} for box, area in zip(boxes, areas.tolist(), strict=True)]
        if kind == "B":
            return rows
        return [
            row | {"segmentation": [segment.astype(np.float64).ravel().tolist()]}
            for row, segment in zip(rows, objects.segments, strict=True)
        ]

    def to_columns(self, prediction: SegmentDetections) -> dict[str, Any]:  # type: ignore[override]
        """Return the box, and `mask`: COCO RLE as text."""
        return {**super().to_columns(prediction), "mask": [rle["counts"] for rle in prediction.masks.rles]}

    def draw(  # type: ignore[override]
        self, image: NDArray[np.uint8], prediction: SegmentDetections, names: Mapping[int, str]
    ) -> NDArray[np.uint8]:
        """Return a copy of a BGR image with masks, boxes, names and scores, the highest-scoring on top."""
        drawn = image.copy()
        for index in reversed(range(len(prediction))):
            mask = prediction.masks.full_resolution(index)
            color = class_color(int(prediction.classes[index]))
            overlay = np.array(color, np.float32) * MASK_OPACITY
            drawn[mask] = (drawn[mask] * (1 - MASK_OPACITY) + overlay).astype(np.uint8)
            edges, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            cv2.drawContours(drawn, edges, -1, color, 1, cv2.LINE_AA)
        return super().draw(drawn, prediction, names)
