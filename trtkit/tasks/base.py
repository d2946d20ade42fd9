"""What a task must offer so that every runner is fed, read and judged alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from trtkit.errors import RecipeError

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

    from trtkit.data import Dataset, ImageTransform, Labels
    from trtkit.models.model import ModelInfo

__all__ = ["Detections", "PostprocessSettings", "Prediction", "Task", "predictions_to_frame"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """What a model found in one image.

    Attributes:
        shape: (height, width) of the original image.
    """

    shape: tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Detections(Prediction):
    """Objects by falling score; the predictions of segment, pose and obb add a column each.

    Attributes:
        boxes: x1, y1, x2, y2 in pixels of the original image, inside it; shape (n, 4), float32.
        scores: Shape (n,), float32, in 0..1.
        classes: Shape (n,), int64.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        best = ", ".join(
            f"{number} ({score:.2f})" for number, score in zip(self.classes[:3], self.scores[:3], strict=True)
        )
        more = f": classes {best}{', ...' if len(self) > 3 else ''}" if len(self) else ""
        return f"{type(self).__name__}({len(self)} in {self.shape[1]}x{self.shape[0]}{more})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PostprocessSettings:
    """Thresholds of postprocessing.

    Attributes:
        conf: Smallest score, exclusive, in 0..1.
        iou: IoU above which class-wise NMS drops the lower-scoring of two objects, in 0..1.
        max_det: Maximum number of objects per image.
        multi_label: Whether a box yields one object for every class above `conf` (evaluation) or only for its
            highest-scoring class (prediction).
    """

    conf: float = 0.25
    iou: float = 0.7
    max_det: int = 300
    multi_label: bool = False

    def __post_init__(self) -> None:
        for name in ("conf", "iou"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise RecipeError(
                    f"postprocess with {name}={value}",
                    f"{name} is not in 0..1",
                    f"pass {name} between 0 and 1",
                    code="postprocess-threshold-out-of-range",
                    name=name,
                    value=value,
                )
        if self.max_det < 1:
            raise RecipeError(
                f"postprocess with max_det={self.max_det}",
                "max_det is less than 1",
                "pass max_det=1 or more",
                code="postprocess-max-det-too-small",
                value=self.max_det,
            )


class Task(Protocol):
    """One of detect, segment, classify, pose, obb. A task holds no state.

    A task whose `kinds` is empty is judged by ranking classes (top-1, top-5) from its prediction's `probabilities`;
    any other is judged by matching objects: `similarity` says how alike each label and each detection are, kind by
    kind, and the judgement room makes matches, curves and averages of that, the same way for boxes, masks and
    keypoints.

    Attributes:
        name: The task's name.
        metric: The metric that decides, e.g. "mAP50-95(B)".
        kinds: What objects are matched by: "B" boxes, "M" masks, "P" poses; the suffix of the metrics' names.
        coco_iou_types: pycocotools' `iouType` of the kinds it also judges.
    """

    name: str
    metric: str
    kinds: tuple[str, ...]
    coco_iou_types: Mapping[str, str]

    def preprocess(self, image: NDArray[np.uint8], size: tuple[int, int]) -> tuple[NDArray[np.uint8], ImageTransform]:
        """Bring a BGR image to (height, width) as the model was trained to see it, and say how."""

    def postprocess(
        self,
        outputs: Mapping[str, NDArray[np.float32]],
        info: ModelInfo,
        transforms: Sequence[ImageTransform],
        settings: PostprocessSettings,
    ) -> list[Any]:
        """Turn a batch's outputs into one prediction an image.

        Args:
            outputs: `Runner.infer`'s arrays by name, one row an image.
            info: The model's description; `card.nms` says that suppression is in the graph.
            transforms: Where each image lies in its input.
            settings: Thresholds.

        Returns:
            Predictions in pixels of the original images, objects by falling score.

        Raises:
            ModelError: The outputs are not this task's.
        """

    def similarity(self, labels: Labels, found: Any, dataset: Dataset) -> dict[str, NDArray[np.float32]]:
        """How alike each label and each detection are, in 0..1, whatever their classes.

        Args:
            labels: In pixels (`Labels.scaled`).
            found: A prediction of this task.
            dataset: For what the set says about similarity (keypoint sigmas).

        Returns:
            By kind, shape (labels, detections).
        """

    def areas(self, labels: Labels) -> NDArray[np.float32]:
        """The size of each labeled object in square pixels, shape (labels,), for labels in pixels."""

    def to_coco(self, objects: Labels | Any, kind: str) -> list[dict[str, Any]]:
        """Labels in pixels, or a prediction, as COCO annotations without ids, classes and scores.

        Args:
            objects: What to describe.
            kind: One of `coco_iou_types`.

        Returns:
            For each object `area` (pixels) and `bbox` [x, y, width, height], `segmentation` for "M", or `keypoints`
            and `num_keypoints` for "P". Predicted masks and keypoints come without `bbox`, so that pycocotools takes
            their sizes from themselves.
        """

    def to_columns(self, found: Any) -> dict[str, Any]:
        """What the detections frame keeps of a prediction beyond image, class and score: one value an object."""

    def draw(self, image: NDArray[np.uint8], found: Any, names: Mapping[int, str]) -> NDArray[np.uint8]:
        """A copy of a BGR image with the prediction drawn on it."""


# Predictions of several images as one frame.


def predictions_to_frame(
    task: Task, paths: Sequence[str], found: Sequence[Prediction], names: Mapping[int, str]
) -> pl.DataFrame:
    """One row an object, or one of the five likeliest classes of an image.

    Args:
        task: Whose predictions they are.
        paths: What to call each image.
        found: One prediction an image, as `Runner.predict` gives them.
        names: The classes' names.

    Returns:
        Columns `path`, `class`, `name` and `score`, and what the task knows beside them: x1, y1, x2, y2 in pixels of
        the original image; `mask` (COCO's run lengths), `keypoints` (x, y, visibility in turn), or x, y, width,
        height and angle (radians); `rank` for classify. An image without objects has no row.
    """
    import polars as pl

    parts: list[dict[str, Any]] = []
    for path, one in zip(paths, found, strict=True):
        columns: dict[str, Any] = {}
        if isinstance(one, Detections):
            columns |= {"class": one.classes.astype(np.int32), "score": one.scores}
        columns |= task.to_columns(one)
        columns = {"class": columns.pop("class"), "score": columns.pop("score"), **columns}
        parts.append({"path": [path] * len(columns["class"]), **columns})
    kinds = {"path": pl.String, "class": pl.Int32, "score": pl.Float32}
    if not any(part["path"] for part in parts):
        return pl.DataFrame(schema={"path": pl.String, "class": pl.Int32, "name": pl.String, "score": pl.Float32})
    whole = pl.concat([pl.DataFrame(part, schema_overrides=kinds) for part in parts if part["path"]])
    named = pl.col("class").replace_strict(names, default=pl.col("class").cast(pl.String), return_dtype=pl.String)
    return whole.select("path", "class", named.alias("name"), pl.exclude("path", "class"))
