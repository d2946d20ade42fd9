"""Segmentation: boxes with a mask each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from trtkit.errors import ModelError
from trtkit.tasks.base import Detections
from trtkit.tasks.detect import Detect, columns, found_in, main_output
from trtkit.tasks.drawing import colour
from trtkit.tasks.masks import Masks, drawn_labels, mask_iou, polygon_area

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtkit.data import Dataset, Fit, Labels
    from trtkit.sources.card import Card

__all__ = ["Segment", "Segments"]

VEIL = 0.45
"""How much of a mask's colour covers the picture."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Segments(Detections):
    """Objects with masks.

    Attributes:
        masks: One an object; `masks.whole(i)` is object i's in pixels of the original picture.
    """

    masks: Masks


class Segment(Detect):
    """The segment task: masks are prototypes weighed by each object's coefficients (Bolya et al. 2019, YOLACT)."""

    name = "segment"
    metric = "mAP50-95(M)"
    kinds: tuple[str, ...] = ("B", "M")
    coco_kinds: Mapping[str, str] = {"B": "bbox", "M": "segm"}

    def decode(
        self,
        outputs: Mapping[str, NDArray[np.float32]],
        card: Card,
        fits: Sequence[Fit],
        *,
        conf: float,
        iou: float,
        max_det: int,
        multi_label: bool = False,
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
        rows = main_output(flat, card, columns(card, prototypes.shape[1]))
        found: list[Detections] = []
        for row, prototype, fit in zip(rows, prototypes, fits, strict=False):
            boxes, scores, classes, extra = found_in(
                row, card, conf=conf, iou=iou, max_det=max_det, multi_label=multi_label
            )
            masks = Masks(prototypes=prototype, coefficients=extra, boxes=boxes, fit=fit)
            found.append(
                Segments(shape=fit.shape, boxes=fit.to_picture(boxes), scores=scores, classes=classes, masks=masks)
            )
        return found

    def similarity(self, labels: Labels, found: Segments, dataset: Dataset) -> dict[str, NDArray[np.float32]]:  # type: ignore[override]
        """Intersection over union of boxes, and of masks at the prototypes' resolution, as Ultralytics' val does."""
        fit = found.masks.fit
        shape = (found.masks.prototypes.shape[1], found.masks.prototypes.shape[2])
        drawn = drawn_labels([fit.to_network(segment) for segment in labels.segments], fit.size, shape)
        return {**super().similarity(labels, found, dataset), "M": mask_iou(drawn, found.masks.coarse())}

    def areas(self, labels: Labels) -> NDArray[np.float32]:
        """The polygons' areas."""
        return np.array([polygon_area(segment) for segment in labels.segments], np.float32)

    def coco(self, objects: Labels | Detections, kind: str) -> list[dict[str, Any]]:
        """Boxes, or polygons of labels and run lengths of masks, at the original picture's resolution."""
        boxes = super().coco(objects, "B")
        if isinstance(objects, Segments):
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

    def columns(self, found: Segments) -> dict[str, Any]:  # type: ignore[override]
        """The box, and `mask`: COCO's run lengths as text."""
        return {**super().columns(found), "mask": [rle["counts"] for rle in found.masks.rles]}

    def draw(self, picture: NDArray[np.uint8], found: Segments, names: Mapping[int, str]) -> NDArray[np.uint8]:  # type: ignore[override]
        """A copy of a BGR picture with masks, boxes, names and scores, the surest on top."""
        drawn = picture.copy()
        for index in reversed(range(len(found))):
            inside = found.masks.whole(index)
            veil = np.array(colour(int(found.classes[index])), np.float32) * VEIL
            drawn[inside] = (drawn[inside] * (1 - VEIL) + veil).astype(np.uint8)
            edges, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            cv2.drawContours(drawn, edges, -1, colour(int(found.classes[index])), 1, cv2.LINE_AA)
        return super().draw(drawn, found, names)
