"""Classification: one probability a class."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trtkit.data.images import center_crop
from trtkit.errors import ModelError
from trtkit.tasks.base import PostprocessSettings, Prediction
from trtkit.tasks.drawing import draw_box

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtkit.data import Dataset, ImageTransform, Labels
    from trtkit.models.model import ModelInfo

__all__ = ["Classification", "Classify"]

TOP_K = 5
"""Classes that are drawn and kept, the likeliest first."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Classification(Prediction):
    """What an image shows.

    Attributes:
        probabilities: One a class, shape (classes,), float32.
    """

    probabilities: NDArray[np.float32]

    @property
    def ranked_classes(self) -> NDArray[np.intp]:
        """Class numbers by falling probability, equal ones by number."""
        return np.argsort(-self.probabilities, kind="stable")

    @property
    def top1(self) -> int:
        """The likeliest class."""
        return int(self.probabilities.argmax())

    def __repr__(self) -> str:
        best = ", ".join(f"{number} ({self.probabilities[number]:.2f})" for number in self.ranked_classes[:3].tolist())
        return f"Ranking({self.shape[1]}x{self.shape[0]}: {best}, ...)"


class Classify:
    """The classify task."""

    name = "classify"
    metric = "top1"
    kinds: tuple[str, ...] = ()
    coco_iou_types: Mapping[str, str] = {}

    def preprocess(self, image: NDArray[np.uint8], size: tuple[int, int]) -> tuple[NDArray[np.uint8], ImageTransform]:
        """Resize the shorter side of a BGR image, smoothly, and cut the middle out."""
        return center_crop(image, size)

    def postprocess(
        self,
        outputs: Mapping[str, NDArray[np.float32]],
        info: ModelInfo,
        transforms: Sequence[ImageTransform],
        settings: PostprocessSettings,
    ) -> list[Classification]:
        """Probabilities from `output0`, (batch, classes); thresholds mean nothing here.

        Raises:
            ModelError: The output has another shape.
        """
        array = outputs.get("output0", next(iter(outputs.values())))
        if array.ndim != 2 or array.shape[1] != len(info.names):
            raise ModelError(
                "read classify output",
                f"its shape is {tuple(array.shape)} where the model names {len(info.names)} classes",
                "check the task and the class names given for this model",
            )
        return [Classification(shape=fit.shape, probabilities=row) for row, fit in zip(array, transforms, strict=False)]

    def similarity(self, labels: Labels, found: Classification, dataset: Dataset) -> dict[str, NDArray[np.float32]]:
        """Nothing: classes are ranked, not matched."""
        return {}

    def areas(self, labels: Labels) -> NDArray[np.float32]:
        """Nothing: an image's class has no size."""
        return np.zeros(len(labels), np.float32)

    def to_coco(self, objects: Labels | Classification, kind: str) -> list[dict[str, Any]]:
        """Nothing: pycocotools judges no classes."""
        return []

    def to_columns(self, found: Classification) -> dict[str, Any]:
        """Class, score and rank (from 1) of the five likeliest classes."""
        order = found.ranked_classes[:TOP_K]
        return {
            "class": order.astype(np.int32),
            "score": found.probabilities[order],
            "rank": np.arange(1, len(order) + 1, dtype=np.int32),
        }

    def draw(self, image: NDArray[np.uint8], found: Classification, names: Mapping[int, str]) -> NDArray[np.uint8]:
        """A copy of a BGR image with the likeliest classes written on it; small images are enlarged first."""
        factor = max(1, round(240 / max(1, min(image.shape[:2]))))
        drawn = np.repeat(np.repeat(image, factor, 0), factor, 1)
        line = max(14, drawn.shape[0] // 14)
        for rank, number in enumerate(found.ranked_classes[:TOP_K].tolist()):
            place = np.array([0, line * (rank + 1), 0, line * (rank + 1)], np.float32)
            draw_box(drawn, place, f"{names.get(number, number)} {found.probabilities[number]:.2f}", number)
        return drawn
