"""Tasks: predictions, postprocessing settings, the registries of tasks and output formats, drawing of boxes."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import cv2
import numpy as np

from trtkit.arguments import check_argument
from trtkit.data.labels import register_label_format
from trtkit.errors import ModelError
from trtkit.files import escape_surrogates
from trtkit.html import render
from trtkit.models.model_arguments import register_task_name

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

    from trtkit.data import Dataset, ImageTransform, Labels
    from trtkit.models.model import ModelInfo


__all__ = [
    "REGISTERED_TASKS",
    "BoxLayout",
    "Detections",
    "ImageGrid",
    "OutputDecoder",
    "PostprocessSettings",
    "Prediction",
    "RawDetections",
    "Task",
    "class_color",
    "decode_outputs",
    "draw_box",
    "line_width",
    "predictions_to_frame",
    "register_output_format",
    "register_task",
]


# Predictions


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """The prediction for one image.

    Attributes:
        shape: (height, width) of the original image.
    """

    shape: tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Detections(Prediction):
    """Objects by falling score; segment, pose and obb add masks, keypoints and oriented boxes.

    Attributes:
        boxes: x1, y1, x2, y2 in pixels of the original image, clipped to it; shape (n, 4), float32.
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


def predictions_to_frame(
    task: Task, paths: Sequence[str], predictions: Sequence[Prediction], names: Mapping[int, str]
) -> pl.DataFrame:
    """Collect predictions into one frame: one row per object, or per top-5 class for classify.

    Args:
        task: The task of the predictions.
        paths: A name for each image; where it is not UTF-8, its bytes are escaped (`\\udce9`).
        predictions: One prediction per image, as `Runner.predict` returns them.
        names: Class names by number.

    Returns:
        Columns `path`, `class`, `name` and `score`, and the task's own: x1, y1, x2, y2 in pixels of the original
        image; `mask` (COCO run-length encoding), `keypoints` (x, y, visibility in turn), or x, y, width, height and
        angle (radians); `rank` for classify. An image without objects has no row.
    """
    import polars as pl

    parts: list[dict[str, Any]] = []
    for path, prediction in zip(paths, predictions, strict=True):
        columns: dict[str, Any] = {}
        if isinstance(prediction, Detections):
            columns |= {"class": prediction.classes.astype(np.int32), "score": prediction.scores}
        columns |= task.to_columns(prediction)
        columns = {"class": columns.pop("class"), "score": columns.pop("score"), **columns}
        parts.append({"path": [escape_surrogates(path)] * len(columns["class"]), **columns})
    types = {"path": pl.String, "class": pl.Int32, "score": pl.Float32}
    if not any(part["path"] for part in parts):
        return pl.DataFrame(schema={"path": pl.String, "class": pl.Int32, "name": pl.String, "score": pl.Float32})
    frame = pl.concat([pl.DataFrame(part, schema_overrides=types) for part in parts if part["path"]])
    name = pl.col("class").replace_strict(names, default=pl.col("class").cast(pl.String), return_dtype=pl.String)
    return frame.select("path", "class", name.alias("name"), pl.exclude("path", "class"))


# Output formats: what a model returns, decoded the same way for every task that has boxes


@dataclasses.dataclass(frozen=True, kw_only=True)
class PostprocessSettings:
    """Thresholds of postprocessing.

    Attributes:
        conf: Smallest score, exclusive, in 0..1.
        iou: IoU above which class-wise NMS drops the lower-scoring of two objects, in 0..1.
        max_det: Maximum number of objects per image.
        multi_label: Whether a box yields one object for every class above `conf` (evaluation) or only for its
            highest-scoring class (prediction).

    Raises:
        RecipeError: A value is out of range.
    """

    conf: float = 0.25
    iou: float = 0.7
    max_det: int = 300
    multi_label: bool = False

    def __post_init__(self) -> None:
        for name in ("conf", "iou", "max_det"):
            object.__setattr__(self, name, check_argument("predict", name, getattr(self, name)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxLayout:
    """What each object of a task consists of beside box, score and class.

    Attributes:
        extra: Number of values after the class scores: mask coefficients, keypoint values, or the angle.
        rotated: Whether boxes are rotated; the angle is then the last of the extra values.
    """

    extra: int = 0
    rotated: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RawDetections:
    """One image's objects in input pixels, by falling score.

    Attributes:
        boxes: x1, y1, x2, y2, shape (n, 4); with `BoxLayout.rotated` center x, center y, width, height, angle, shape
            (n, 5); float32.
        scores: Shape (n,), float32.
        classes: Shape (n,), int64.
        extra: The task's extra values, shape (n, `BoxLayout.extra`), float32.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    extra: NDArray[np.float32]


class OutputDecoder(Protocol):
    """Decodes the outputs of one output format."""

    def __call__(
        self,
        outputs: Mapping[str, NDArray[np.float32]],
        info: ModelInfo,
        layout: BoxLayout,
        settings: PostprocessSettings,
        /,
    ) -> Iterable[Any]:
        """Decode a batch.

        Args:
            outputs: The model's outputs by name, one row per image; without mask prototypes.
            info: The model's description.
            layout: What each object consists of.
            settings: Thresholds; the decoder applies all of them, NMS included where the format needs it.

        Returns:
            One `RawDetections` per image; for classify one array of class probabilities, shape (classes,).

        Raises:
            ModelError: The outputs do not fit the format.
        """


Decoder = TypeVar("Decoder", bound=OutputDecoder)

_DECODERS: dict[str, OutputDecoder] = {}


def register_output_format(name: str) -> Callable[[Decoder], Decoder]:
    """Register the decoder of an output format; every task's postprocessing then reads models of that format.

    Args:
        name: `OutputFormat.name`. A name that is already registered gets the new decoder.
    """

    def register(decoder: Decoder) -> Decoder:
        _DECODERS[name] = decoder
        return decoder

    return register


def decode_outputs(
    outputs: Mapping[str, NDArray[np.float32]],
    info: ModelInfo,
    layout: BoxLayout,
    settings: PostprocessSettings,
) -> Iterable[Any]:
    """Decode a batch by the model's output format; arguments, result and errors are `OutputDecoder`'s.

    Raises:
        ModelError: No decoder is registered for the format, or the outputs do not fit it.
    """
    name = info.output_format.name
    if name not in _DECODERS:
        raise ModelError(
            f"decode {info.task} output",
            f"no decoder is registered for the output format {name!r}",
            f"use one of {', '.join(_DECODERS)}, or register a decoder with register_output_format",
            code="output-format-unknown",
            name=name,
            names=tuple(_DECODERS),
        )
    return _DECODERS[name](outputs, info, layout, settings)


# Tasks


class Task(Protocol):
    """A task: postprocessing, similarity of labels and detections, drawing. A task holds no state.

    With empty `kinds` a task is evaluated by top-1 and top-5 accuracy of its prediction's `probabilities`. Otherwise
    detections are matched to labels by `compute_similarity`, once for each kind, and average precision follows.

    Attributes:
        name: The task's name.
        metric: The primary metric, e.g. "mAP50-95(B)".
        kinds: Kinds of similarity: "B" boxes, "M" masks, "P" keypoints, "R" exact IoU of oriented boxes; the suffix
            of the metrics' names.
        coco_iou_types: pycocotools' `iouType` for the kinds that it evaluates too.
    """

    name: str
    metric: str
    kinds: tuple[str, ...]
    coco_iou_types: Mapping[str, str]

    def postprocess(
        self,
        outputs: Mapping[str, NDArray[np.float32]],
        info: ModelInfo,
        transforms: Sequence[ImageTransform],
        settings: PostprocessSettings,
    ) -> list[Any]:
        """Turn a batch's outputs into one prediction per image.

        Args:
            outputs: `Runner.infer`'s arrays by name, one row per image.
            info: The model's description; `info.output_format` selects the decoder.
            transforms: Where each image lies in the model's input; rows beyond them are padding of the batch.
            settings: Thresholds.

        Returns:
            Predictions in pixels of the original images, objects by falling score.

        Raises:
            ModelError: The outputs do not fit the task or the output format.
        """

    def compute_similarity(self, labels: Labels, prediction: Any, dataset: Dataset) -> dict[str, NDArray[np.float32]]:
        """Compute the similarity of each label and each detection, regardless of class.

        Args:
            labels: In pixels (`Labels.to_pixels`).
            prediction: A prediction of this task.
            dataset: The data set of the labels, for its keypoint sigmas.

        Returns:
            By kind, shape (labels, detections), in 0..1.
        """

    def compute_areas(self, labels: Labels) -> NDArray[np.float32]:
        """Compute the area of each labeled object in square pixels, shape (labels,), for labels in pixels."""

    def get_sigmas(self, dataset: Dataset) -> tuple[float, ...]:
        """Return the keypoint sigmas of OKS, or () for a task without keypoints."""

    def to_coco(self, objects: Labels | Any, kind: str) -> list[dict[str, Any]]:
        """Convert labels in pixels, or a prediction, to COCO annotations without ids, classes and scores.

        Args:
            objects: The labels or the prediction.
            kind: One of `coco_iou_types`.

        Returns:
            For each object `area` (pixels) and `bbox` [x, y, width, height], `segmentation` for "M", or `keypoints`
            and `num_keypoints` for "P". Predicted masks and keypoints have no `bbox`, so that pycocotools computes
            their area from the masks and keypoints.
        """

    def to_columns(self, prediction: Any) -> dict[str, Any]:
        """Return the prediction's columns beyond image, class and score, one value per object."""

    def to_label_columns(self, labels: Labels) -> dict[str, NDArray[np.float32]]:
        """Return the columns of labels in pixels beyond image, class, box and area, one value per object."""

    def draw(self, image: NDArray[np.uint8], prediction: Any, names: Mapping[int, str]) -> NDArray[np.uint8]:
        """Return a copy of a BGR image with the prediction drawn on it."""


TaskClass = TypeVar("TaskClass", bound="type[Task]")

REGISTERED_TASKS: dict[str, type[Task]] = {}
"""Task classes by name; the package's own are registered when `trtkit.tasks.get_task` first asks for them."""


def register_task(task: TaskClass) -> TaskClass:
    """Register a task class under its `name`, and its `label_format` where it has one of its own.

    Args:
        task: A class without constructor arguments that implements `Task`.
    """
    REGISTERED_TASKS[task.name] = task
    register_task_name(task.name)
    label_format = getattr(task, "label_format", None)
    if label_format is not None:
        register_label_format(task.name, label_format)
    return task


HEIGHT, ENLARGED_HEIGHT = 240, 720
"""Height of each image of a grid, pixels, and the most that it has where a click enlarges it."""


# Drawing, in colors that are safe for common color blindness


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ImageGrid:
    """Images with captions, displayed side by side in a notebook; `a + b` shows those of both.

    Attributes:
        images: BGR uint8, (height, width, 3), of any size.
        captions: A description of each image.
    """

    images: tuple[NDArray[np.uint8], ...]
    captions: tuple[str, ...]

    def __add__(self, other: ImageGrid) -> ImageGrid:
        return ImageGrid(images=self.images + other.images, captions=self.captions + other.captions)

    def _repr_html_(self) -> str:
        images = [(_encode_jpeg(image), text) for image, text in zip(self.images, self.captions, strict=True)]
        return render("templates/images.html.j2", images=images, height=HEIGHT)

    def __repr__(self) -> str:
        return "\n".join((f"ImageGrid of {len(self.images)}", *(f"  {text}" for text in self.captions)))


def _encode_jpeg(image: NDArray[np.uint8]) -> str:
    # Three times the height that is shown: a click enlarges the image. Smaller images stay as they are.
    if (scale := ENLARGED_HEIGHT / image.shape[0]) < 1:
        size = (max(1, round(image.shape[1] * scale)), ENLARGED_HEIGHT)
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    return base64.b64encode(cv2.imencode(".jpg", image)[1].tobytes()).decode()


# The palette of Okabe and Ito (2008) without black, BGR.
PALETTE = ((178, 114, 0), (0, 159, 230), (115, 158, 0), (0, 94, 213), (167, 121, 204), (233, 180, 86), (66, 228, 240))


def class_color(number: int) -> tuple[int, int, int]:
    """Return a class's color, BGR. Seven colors repeat, so drawings show class names too."""
    return PALETTE[number % len(PALETTE)]


def line_width(shape: tuple[int, ...]) -> int:
    """Return the line width for an image of `shape`, pixels: about 1/300 of its sides."""
    return max(1, round((shape[0] + shape[1]) / 600))


def draw_box(image: NDArray[np.uint8], box: NDArray[np.float32], text: str, number: int) -> None:
    """Draw a box and its text into `image`.

    Args:
        image: BGR uint8, changed in place.
        box: x1, y1, x2, y2, pixels.
        text: Text above the box, or inside if there is no space above; "" draws the box only.
        number: The class, for its color.
    """
    width = line_width(image.shape)
    left, top, right, bottom = (round(float(value)) for value in box)
    cv2.rectangle(image, (left, top), (right, bottom), class_color(number), width, cv2.LINE_AA)
    if not text:
        return
    size = width / 3
    (across, up), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, width)
    line = up + below + 2
    upper = top - line if top >= line else top
    cv2.rectangle(image, (left, upper), (left + across + 2, upper + line), class_color(number), -1)
    blue, green, red = class_color(number)
    # Black or white text by the luma of ITU-R BT.601.
    ink = (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else (255, 255, 255)
    origin = (left + 1, upper + up + 1)
    cv2.putText(image, text, origin, cv2.FONT_HERSHEY_SIMPLEX, size, ink, max(1, width - 1), cv2.LINE_AA)
