"""What every backend offers: a runner to run a model, settings to build one, and what building gives back."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trtkit.errors import DataError, EngineError

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from trtkit.backends.engine_file import Passport
    from trtkit.models.model import ModelInfo
    from trtkit.tasks import Prediction
    from trtkit.tasks.drawing import ImageGrid

__all__ = [
    "Runner",
]

# Images a call when the graph sets no limit: enough to fill a GPU or two cores, small enough to hold in memory.
DEFAULT_BATCH = 8


class Runner(abc.ABC):
    """A model that is ready to run, whatever runs it.

    Attributes:
        name: What runs, with version and device, e.g. "ONNX Runtime 1.32.0 CPU".
        engine: True only for TensorRT and TensorRT-RTX: no other latency may be called TensorRT's.
        card: The model's description.
        precision: "fp32", "fp16" or "int8".
        batch: The largest batch, or None for any.
        imgsz: Height and width the images are brought to, pixels.
        dynamic: Whether other batches and sizes are accepted.
        passport: Where the engine comes from, or None.
        hash: SHA-256 of the model inside, or of the file.
        path: The file, or None.
    """

    name: str
    engine: bool
    info: ModelInfo
    precision: str
    batch: int | None
    imgsz: tuple[int, int]
    dynamic: bool
    passport: Passport | None
    hash: str
    path: Path | None

    @abc.abstractmethod
    def infer(self, feeds: np.ndarray | Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one batch.

        Args:
            feeds: Float32 NCHW in [0, 1], or one array for each input by name.

        Returns:
            Float32 outputs by name, one row for each image.

        Raises:
            EngineError: More images than `batch`, a size the graph refuses, or the run failed.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Free what the runner holds; closing twice is fine."""

    def predict(
        self,
        images: Sequence[np.ndarray | str | Path] | np.ndarray | str | Path,
        *,
        conf: float = 0.25,
        iou: float = 0.7,
        max_det: int = 300,
    ) -> list[Prediction]:
        """Find objects in images.

        Args:
            images: Paths, or BGR uint8 images (height, width, 3) of any size; one image alone is a list of one.
            conf: Smallest score of a detection.
            iou: Overlap above which the weaker of two boxes of a class goes.
            max_det: Most detections an image.

        Returns:
            One prediction for each image, in pixels of the original image.

        Raises:
            DataError: An image can't be read.
            EngineError: The run failed.
        """
        from trtkit.data import resize_to_input, to_input
        from trtkit.tasks import PostprocessSettings, get_task

        settings = PostprocessSettings(conf=conf, iou=iou, max_det=max_det)
        judge = get_task(self.info.task)
        found: list[Prediction] = []
        for batch in self.read_batches(images):
            resized = [resize_to_input(image, self.imgsz, self.info.preprocess) for image in batch]
            outputs = self.infer(to_input([image for image, _ in resized], self.info.preprocess))
            found += judge.postprocess(outputs, self.info, [transform for _, transform in resized], settings)
        return found

    def draw(
        self,
        images: Sequence[np.ndarray | str | Path] | np.ndarray | str | Path,
        *,
        conf: float = 0.25,
        iou: float = 0.7,
        max_det: int = 300,
    ) -> ImageGrid:
        """Find objects in images and draw them; arguments and errors are `predict`'s.

        Args:
            images: As `predict` takes them, one or more.
            conf: Smallest score of a detection.
            iou: Overlap above which the weaker of two boxes of a class goes.
            max_det: Most detections an image.

        Returns:
            The images beside each other, which a notebook shows.

        Raises:
            DataError: An image can't be read, or there is none.
            EngineError: The run failed.
        """
        from trtkit.tasks import get_task
        from trtkit.tasks.drawing import ImageGrid

        read = [image for chunk in self.read_batches(images) for image in chunk]
        if not read:
            raise DataError("draw predictions", "there is no image to draw them on", "pass one image or more")
        found = self.predict(read, conf=conf, iou=iou, max_det=max_det)
        judge = get_task(self.info.task)
        pairs = zip(read, found, strict=True)
        drawn = tuple(judge.draw(image, one, self.info.names) for image, one in pairs)
        return ImageGrid(images=drawn, captions=tuple(map(repr, found)))

    def read_batches(
        self, images: Sequence[np.ndarray | str | Path] | np.ndarray | str | Path
    ) -> Iterable[list[np.ndarray]]:
        """Yield lists of read images, each no longer than the largest batch.

        Args:
            images: As `predict` takes them.

        Yields:
            BGR uint8 images.
        """
        if isinstance(images, (str, Path)) or (isinstance(images, np.ndarray) and images.ndim == 3):
            images = [images]
        size = self.batch or DEFAULT_BATCH
        for start in range(0, len(images), size):
            yield [_read_image(image) for image in images[start : start + size]]

    def check_batch(self, count: int) -> None:
        """Raise where a batch is larger than the engine's, or empty.

        Args:
            count: The batch asked for.

        Raises:
            EngineError: It does not fit.
        """
        if count < 1:
            raise EngineError(f"run {self.name} on a batch of 0", "there is no image in it", "pass one image or more")
        if self.batch is not None and count > self.batch:
            raise EngineError(
                f"run {self.name} on a batch of {count}",
                f"it was made for at most {self.batch}",
                f"pass at most {self.batch} images at once, or export again with batch={count}",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        limit = "any batch" if self.batch is None else f"batch {'1-' if self.dynamic else ''}{self.batch}"
        shape = f"{self.imgsz[0]}x{self.imgsz[1]}{' dynamic' if self.dynamic else ''}"
        return f"{type(self).__name__}({self.name}: {self.info.task}, {self.precision}, {limit}, {shape})"


def _read_image(image: np.ndarray | str | Path) -> np.ndarray:
    """An image in memory, read where it is a path."""
    if not isinstance(image, np.ndarray):
        from trtkit.data import read_image

        return read_image(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise DataError(
            "predict on an array",
            f"it is {image.dtype} of shape {image.shape}",
            "pass BGR uint8 images of shape (height, width, 3), as OpenCV reads them",
        )
    return image
