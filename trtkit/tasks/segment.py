"""Segmentation: boxes with a mask each."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import cv2
import numpy as np

from trtkit.errors import ModelError
from trtkit.tasks.base import Detections, PostprocessSettings
from trtkit.tasks.detect import Detect, count_columns, decode_image, get_main_output
from trtkit.tasks.drawing import class_color

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtkit.data import Dataset, ImageTransform, Labels
    from trtkit.models.model import ModelInfo

__all__ = ["Masks", "Segment", "SegmentDetections", "encode_rle", "mask_iou", "polygon_area", "rasterize_polygons"]


# Instance masks: prototypes weighed by coefficients, polygons drawn as labels, and their overlap.


POLYGON_POINTS = 1000
"""Points a polygon is given before it is drawn: corners are rounded to pixels, so more of them keep its sides."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Masks:
    """The masks of one image's objects, kept as what they are made of: a few numbers an object.

    Attributes:
        prototypes: Shape (k, h, w), float32, over the whole network input.
        coefficients: Shape (n, k), float32.
        boxes: x1, y1, x2, y2 in input pixels, shape (n, 4): nothing outside its box belongs to an object.
        fit: Where the image lies in the input.
    """

    prototypes: NDArray[np.float32]
    coefficients: NDArray[np.float32]
    boxes: NDArray[np.float32]
    transform: ImageTransform

    def __len__(self) -> int:
        return len(self.coefficients)

    def low_resolution(self) -> NDArray[np.bool_]:
        """Masks over the network input at the prototypes' resolution, shape (n, h, w)."""
        depth, height, width = self.prototypes.shape
        shown = (self.coefficients @ self.prototypes.reshape(depth, -1)).reshape(-1, height, width) > 0
        scale = np.array([width / self.transform.size[1], height / self.transform.size[0]], np.float32)
        left, top, right, bottom = ((self.boxes * np.tile(scale, 2)).T)[:, :, None]
        columns, rows = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
        shown &= ((columns >= left) & (columns < right))[:, None, :]
        shown &= ((rows >= top) & (rows < bottom))[:, :, None]
        return shown

    def full_resolution(self, index: int) -> NDArray[np.bool_]:
        """One object's mask in the original image, shape (height, width).

        The weighed prototypes are interpolated linearly between their pixels' centers, within the box only: a mask
        takes the time of its own size, and the masks of a crowded image are never all held at once.
        """
        mask = np.zeros(self.transform.shape, np.bool_)
        part, (top, left) = self._decode_mask(index)
        mask[top : top + part.shape[0], left : left + part.shape[1]] = part
        return mask

    def _decode_mask(self, index: int) -> tuple[NDArray[np.bool_], tuple[int, int]]:
        """What of one object's mask can be other than empty, and the (top, left) pixel where it lies."""
        x1, y1, x2, y2 = (math.ceil(value) for value in self.transform.to_image(self.boxes[index]).tolist())
        if x1 >= x2 or y1 >= y2:
            return np.zeros((0, 0), np.bool_), (0, 0)
        rows, row_shares = self._interpolation_weights(np.arange(y1, y2), axis=0)
        columns, column_shares = self._interpolation_weights(np.arange(x1, x2), axis=1)
        top, left = int(rows[0]), int(columns[0])
        part = self.prototypes[:, top : int(rows[-1]) + 2, left : int(columns[-1]) + 2]
        # Not as a matrix product: NumPy's threads and ONNX Runtime's would wait for each other.
        values = np.einsum("k,khw->hw", self.coefficients[index], part)
        down = _interpolate_rows(values, rows - top, row_shares)
        shown: NDArray[np.bool_] = _interpolate_rows(down.T, columns - left, column_shares).T > 0
        return shown, (y1, x1)

    def _interpolation_weights(
        self, pixels: NDArray[np.int64], *, axis: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """For image pixels, the prototype pixel at or before each and the share of the one behind it."""
        count = self.prototypes.shape[1 + axis]
        centers = (pixels + 0.5) * self.transform.ratio[axis] + self.transform.pad[axis]
        places = np.clip(centers * (count / self.transform.size[axis]) - 0.5, 0, count - 1)
        before = np.minimum(places.astype(np.int64), max(0, count - 2))
        return before, (places - before).astype(np.float32)

    @functools.cached_property
    def rles(self) -> tuple[dict[str, Any], ...]:
        """Every mask in the original image, run-length encoded as COCO does."""
        return tuple(encode_rle(*self._decode_mask(index), self.transform.shape) for index in range(len(self)))


def _interpolate_rows(
    values: NDArray[np.float32], before: NDArray[np.int64], shares: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Rows of `values` interpolated: `shares` of the row behind, the rest of the row before."""
    behind = np.minimum(before + 1, len(values) - 1)
    mixed: NDArray[np.float32] = values[before] * (1 - shares)[:, None] + values[behind] * shares[:, None]
    return mixed


def encode_rle(part: NDArray[np.bool_], place: tuple[int, int], shape: tuple[int, int]) -> dict[str, Any]:
    """A mask as COCO's compressed run lengths, in the time that its part takes, not its image.

    Runs go down the columns, unset and set in turn. Each length (from the fourth on its difference to the one two
    before) is written in groups of five bits, lowest first, a sixth bit saying that more follow, as characters from "0"
    on; the format of pycocotools' `maskApi`.

    Args:
        part: Shape (h, w).
        place: (top, left) of the part in the image.
        shape: (height, width) of the image.

    Returns:
        `size` and `counts`, as pycocotools takes them.
    """
    padded = np.zeros((part.shape[1], part.shape[0] + 2), np.int8)
    padded[:, 1:-1] = part.T
    columns, rows = np.nonzero(np.diff(padded, axis=1))
    edges = (columns + place[1]) * shape[0] + rows + place[0]
    # A run that reaches the foot of a column goes on at the head of the next.
    joined = np.flatnonzero(edges[1:-1:2] == edges[2::2]) * 2 + 1
    edges = np.delete(edges, np.concatenate((joined, joined + 1)))
    ends = np.concatenate(([0], edges, [shape[0] * shape[1]]))
    lengths = np.diff(ends)
    if len(edges) and edges[-1] == ends[-1]:
        lengths = lengths[:-1]
    written = lengths.copy()
    written[3:] -= lengths[1:-2]
    groups = written[:, None] >> np.arange(0, 35, 5)
    # A group is the last one if what it leaves is the sign of its own highest bit alone.
    more = np.where(groups & 16, groups >> 5 != -1, groups >> 5 != 0)
    used = np.concatenate((np.ones((len(written), 1), np.bool_), np.logical_and.accumulate(more, 1)[:, :-1]), 1)
    letters = ((groups & 31) | (more << 5)) + 48
    return {"size": list(shape), "counts": letters[used].astype(np.uint8).tobytes().decode("ascii")}


def rasterize_polygons(
    segments: Sequence[NDArray[np.float32]], size: tuple[int, int], shape: tuple[int, int]
) -> NDArray[np.bool_]:
    """Label polygons as masks, no pixel in two of them: where they overlap, the smaller is on top.

    They are drawn at the input's size and then made smaller, as Ultralytics' validation does.

    Args:
        segments: Polygons in input pixels, each of shape (points, 2).
        size: (height, width) of the input.
        shape: (height, width) of the masks.

    Returns:
        Shape (polygons, *shape).
    """
    drawn = np.zeros((len(segments), *shape), np.uint8)
    for place, segment in enumerate(segments):
        canvas = np.zeros(size, np.uint8)
        cv2.fillPoly(canvas, [_resample_polygon(segment).astype(np.int32)], (1,))
        drawn[place] = cv2.resize(canvas, (shape[1], shape[0]))
    order = np.argsort(-drawn.sum((1, 2), dtype=np.int64), kind="stable")
    owner = np.full(shape, -1, np.int64)
    for place in order:
        owner[drawn[place] > 0] = place
    return cast("NDArray[np.bool_]", owner == np.arange(len(segments))[:, None, None])


def _resample_polygon(segment: NDArray[np.float32]) -> NDArray[np.float32]:
    """A polygon with points along its sides, its corners among them."""
    closed = np.concatenate((segment, segment[:1]))
    corners = np.arange(len(closed), dtype=np.float64)
    places = np.union1d(np.linspace(0, len(segment), POLYGON_POINTS), corners)
    outline: NDArray[np.float32] = np.stack([np.interp(places, corners, closed[:, axis]) for axis in (0, 1)], 1)
    return outline


def mask_iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Intersection over union of every pair of masks.

    Args:
        first: Shape (n, height, width).
        second: Shape (m, height, width).

    Returns:
        Shape (n, m), in 0..1; 0 where both masks are empty.
    """
    pixels = first.shape[1] * first.shape[2]
    ours, theirs = first.reshape(len(first), pixels), second.reshape(len(second), pixels)
    shared = np.zeros((len(ours), len(theirs)))
    for place, mask in enumerate(ours):
        shared[place] = theirs[:, np.flatnonzero(mask)].sum(1)
    union = ours.sum(1)[:, None] + theirs.sum(1) - shared
    found: NDArray[np.float32] = (shared / np.maximum(union, 1)).astype(np.float32)
    return found


def polygon_area(points: NDArray[np.float32]) -> float:
    """The area of a polygon of shape (points, 2), by the shoelace formula."""
    x, y = points.astype(np.float64).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


MASK_OPACITY = 0.45
"""How much of a mask's color covers the image."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SegmentDetections(Detections):
    """Objects with masks.

    Attributes:
        masks: One an object; `masks.whole(i)` is object i's in pixels of the original image.
    """

    masks: Masks


class Segment(Detect):
    """The segment task: masks are prototypes weighed by each object's coefficients (Bolya et al. 2019, YOLACT)."""

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
        """Boxes and masks from rows (batch, 4 + classes + k, anchors) and prototypes (batch, k, height, width).

        Raises:
            ModelError: There are no prototypes, or the rows have another shape.
        """
        prototypes = outputs.get("output1")
        if prototypes is None or prototypes.ndim != 4:
            prototypes = next((array for array in outputs.values() if array.ndim == 4), None)
        if prototypes is None:
            shapes = ", ".join(str(tuple(array.shape)) for array in outputs.values())
            raise ModelError("read segment output", f"no prototypes are among {shapes}", "check the task of this model")
        flat = {name: array for name, array in outputs.items() if array is not prototypes}
        rows = get_main_output(flat, info, count_columns(info, prototypes.shape[1]))
        found: list[Detections] = []
        for row, prototype, fit in zip(rows, prototypes, transforms, strict=False):
            boxes, scores, classes, extra = decode_image(row, info, settings)
            masks = Masks(prototypes=prototype, coefficients=extra, boxes=boxes, transform=fit)
            found.append(
                SegmentDetections(
                    shape=fit.shape, boxes=fit.to_image(boxes), scores=scores, classes=classes, masks=masks
                )
            )
        return found

    def similarity(self, labels: Labels, found: SegmentDetections, dataset: Dataset) -> dict[str, NDArray[np.float32]]:  # type: ignore[override]
        """Intersection over union of boxes, and of masks at the prototypes' resolution, as Ultralytics' val does."""
        fit = found.masks.transform
        shape = (found.masks.prototypes.shape[1], found.masks.prototypes.shape[2])
        drawn = rasterize_polygons([fit.to_network(segment) for segment in labels.segments], fit.size, shape)
        return {**super().similarity(labels, found, dataset), "M": mask_iou(drawn, found.masks.low_resolution())}

    def areas(self, labels: Labels) -> NDArray[np.float32]:
        """The polygons' areas."""
        return np.array([polygon_area(segment) for segment in labels.segments], np.float32)

    def to_coco(self, objects: Labels | Detections, kind: str) -> list[dict[str, Any]]:
        """Boxes, or polygons of labels and run lengths of masks, at the original image's resolution."""
        boxes = super().to_coco(objects, "B")
        if isinstance(objects, SegmentDetections):
            return boxes if kind == "B" else [{"segmentation": rle} for rle in objects.masks.rles]
        assert not isinstance(objects, Detections)
        areas = self.areas(objects).astype(np.float64)
        rows = [box | {"area": area} for box, area in zip(boxes, areas.tolist(), strict=True)]
        if kind == "B":
            return rows
        return [
            row | {"segmentation": [segment.astype(np.float64).ravel().tolist()]}
            for row, segment in zip(rows, objects.segments, strict=True)
        ]

    def to_columns(self, found: SegmentDetections) -> dict[str, Any]:  # type: ignore[override]
        """The box, and `mask`: COCO's run lengths as text."""
        return {**super().to_columns(found), "mask": [rle["counts"] for rle in found.masks.rles]}

    def draw(self, image: NDArray[np.uint8], found: SegmentDetections, names: Mapping[int, str]) -> NDArray[np.uint8]:  # type: ignore[override]
        """A copy of a BGR image with masks, boxes, names and scores, the surest on top."""
        drawn = image.copy()
        for index in reversed(range(len(found))):
            inside = found.masks.full_resolution(index)
            veil = np.array(class_color(int(found.classes[index])), np.float32) * MASK_OPACITY
            drawn[inside] = (drawn[inside] * (1 - MASK_OPACITY) + veil).astype(np.uint8)
            edges, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            cv2.drawContours(drawn, edges, -1, class_color(int(found.classes[index])), 1, cv2.LINE_AA)
        return super().draw(drawn, found, names)
