"""Classification: the classify task, and the output format of class scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trtkit.errors import ModelError
from trtkit.models.model import CLASS_SCORES
from trtkit.models.output_shapes import find_main_output
from trtkit.tasks.base import (
    BoxLayout,
    PostprocessSettings,
    Prediction,
    decode_outputs,
    draw_box,
    register_output_format,
    register_task,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtkit.data import Dataset, ImageTransform, Labels
    from trtkit.models.model import ModelInfo

__all__ = ["Classification", "Classify", "decode_class_scores"]

TOP_K = 5
"""Number of classes that are drawn and stored per image."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Classification(Prediction):
    """Class probabilities of an image.

    Attributes:
        probabilities: One per class, shape (classes,), float32.
    """

    probabilities: NDArray[np.float32]

    @property
    def ranked_classes(self) -> NDArray[np.intp]:
        """Class numbers by falling probability, ties by number."""
        return np.argsort(-self.probabilities, kind="stable")

    @property
    def top1(self) -> int:
        """The class with the highest probability."""
        return int(self.probabilities.argmax())

    def __repr__(self) -> str:
        best = ", ".join(f"{number} ({self.probabilities[number]:.2f})" for number in self.ranked_classes[:3].tolist())
        return f"Classification({self.shape[1]}x{self.shape[0]}: {best}, ...)"


@register_task
class Classify:
    """Classification."""

    name = "classify"
    metric = "top1"
    kinds: tuple[str, ...] = ()
    coco_iou_types: Mapping[str, str] = {}

    def postprocess(
        self,
        outputs: Mapping[str, NDArray[np.float32]],
        info: ModelInfo,
        transforms: Sequence[ImageTransform],
        settings: PostprocessSettings,
    ) -> list[Classification]:
        """Decode class probabilities; thresholds do not apply.

        Raises:
            ModelError: The outputs do not fit the output format.
        """
        decoded = decode_outputs(outputs, info, BoxLayout(), settings)
        return [
            Classification(shape=transform.shape, probabilities=probabilities)
            for transform, probabilities in zip(transforms, decoded, strict=False)
        ]

    def compute_similarity(
        self, labels: Labels, prediction: Classification, dataset: Dataset
    ) -> dict[str, NDArray[np.float32]]:
        """Return {}: classes are ranked, not matched."""
        return {}

    def compute_areas(self, labels: Labels) -> NDArray[np.float32]:
        """Return zeros: the class of an image has no area."""
        return np.zeros(len(labels), np.float32)

    def get_sigmas(self, dataset: Dataset) -> tuple[float, ...]:
        """Return (): classes have no keypoints."""
        return ()

    def to_coco(self, objects: Labels | Classification, kind: str) -> list[dict[str, Any]]:
        """Return []: pycocotools evaluates no classification."""
        return []

    def to_columns(self, prediction: Classification) -> dict[str, Any]:
        """Return class, score and rank (from 1) of the top-5 classes."""
        order = prediction.ranked_classes[:TOP_K]
        return {
            "class": order.astype(np.int32),
            "score": prediction.probabilities[order],
            "rank": np.arange(1, len(order) + 1, dtype=np.int32),
        }

    def to_label_columns(self, labels: Labels) -> dict[str, NDArray[np.float32]]:
        """Return {}: a label is a class."""
        return {}

    def draw(self, image: NDArray[np.uint8], prediction: Classification, names: Mapping[int, str]) -> NDArray[np.uint8]:
        """Return a copy of a BGR image with the top-5 classes written on it; small images are enlarged first."""
        factor = max(1, round(240 / max(1, min(image.shape[:2]))))
        drawn = np.repeat(np.repeat(image, factor, 0), factor, 1)
        line = max(14, drawn.shape[0] // 14)
        for rank, number in enumerate(prediction.ranked_classes[:TOP_K].tolist()):
            corner = np.array([0, line * (rank + 1), 0, line * (rank + 1)], np.float32)
            draw_box(drawn, corner, f"{names.get(number, number)} {prediction.probabilities[number]:.2f}", number)
        return drawn


@register_output_format(CLASS_SCORES.name)
def decode_class_scores(
    outputs: Mapping[str, NDArray[np.float32]], info: ModelInfo, layout: BoxLayout, settings: PostprocessSettings
) -> Iterable[NDArray[np.float32]]:
    """Decode an output of shape (batch, classes), class probabilities.

    Raises:
        ModelError: The output has another shape.
    """
    array = outputs[find_main_output({name: value.ndim for name, value in outputs.items()}, info.task)]
    if array.ndim != 2 or array.shape[1] != len(info.names):
        raise ModelError(
            "decode classify output",
            f"its shape is {tuple(array.shape)} where the model has {len(info.names)} classes",
            "check the task and the class names of this model",
            code="task-output-shape",
            shape=tuple(array.shape),
            columns=len(info.names),
        )
    return iter(array)
