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
    from trtkit.models.model import Card
    from trtkit.tasks import Prediction
    from trtkit.tasks.drawing import Sheet

__all__ = [
    "Runner",
]

# Pictures a call when the graph sets no limit: enough to fill a GPU or two cores, small enough to hold in memory.
FREE_BATCH = 8


class Runner(abc.ABC):
    """A model that is ready to run, whatever runs it.

    Attributes:
        name: What runs, with version and device, e.g. "ONNX Runtime 1.32.0 CPU".
        engine: True only for TensorRT and TensorRT-RTX: no other latency may be called TensorRT's.
        card: The model's description.
        precision: "fp32", "fp16" or "int8".
        batch: The largest batch, or None for any.
        imgsz: Height and width the pictures are brought to, pixels.
        dynamic: Whether other batches and sizes are accepted.
        passport: Where the engine comes from, or None.
        hash: SHA-256 of the model inside, or of the file.
        path: The file, or None.
    """

    name: str
    engine: bool
    card: Card
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
            Float32 outputs by name, one row for each picture.

        Raises:
            EngineError: More pictures than `batch`, a size the graph refuses, or the run failed.
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
        """Find objects in pictures.

        Args:
            images: Paths, or BGR uint8 pictures (height, width, 3) of any size; one picture alone is a list of one.
            conf: Smallest score of a detection.
            iou: Overlap above which the weaker of two boxes of a class goes.
            max_det: Most detections a picture.

        Returns:
            One prediction for each picture, in pixels of the original picture.

        Raises:
            DataError: A picture can't be read.
            EngineError: The run failed.
        """
        from trtkit.data import to_input
        from trtkit.tasks import task

        judge = task(self.card.task)
        found: list[Prediction] = []
        for pictures in self.chunks(images):
            prepared, fits = zip(*(judge.prepare(picture, self.imgsz) for picture in pictures), strict=True)
            outputs = self.infer(to_input(list(prepared)))
            found += judge.decode(outputs, self.card, list(fits), conf=conf, iou=iou, max_det=max_det)
        return found

    def draw(
        self,
        images: Sequence[np.ndarray | str | Path] | np.ndarray | str | Path,
        *,
        conf: float = 0.25,
        iou: float = 0.7,
        max_det: int = 300,
    ) -> Sheet:
        """Find objects in pictures and draw them; arguments and errors are `predict`'s.

        Args:
            images: As `predict` takes them, one or more.
            conf: Smallest score of a detection.
            iou: Overlap above which the weaker of two boxes of a class goes.
            max_det: Most detections a picture.

        Returns:
            The pictures beside each other, which a notebook shows.

        Raises:
            DataError: A picture can't be read, or there is none.
            EngineError: The run failed.
        """
        from trtkit.tasks import task
        from trtkit.tasks.drawing import Sheet

        pictures = [picture for chunk in self.chunks(images) for picture in chunk]
        if not pictures:
            raise DataError("draw predictions", "there is no picture to draw them on", "pass one picture or more")
        found = self.predict(pictures, conf=conf, iou=iou, max_det=max_det)
        judge = task(self.card.task)
        pairs = zip(pictures, found, strict=True)
        drawn = tuple(judge.draw(picture, one, self.card.names) for picture, one in pairs)
        return Sheet(pictures=drawn, texts=tuple(map(repr, found)))

    def chunks(self, images: Sequence[np.ndarray | str | Path] | np.ndarray | str | Path) -> Iterable[list[np.ndarray]]:
        """Yield lists of read pictures, each no longer than the largest batch.

        Args:
            images: As `predict` takes them.

        Yields:
            BGR uint8 pictures.
        """
        if isinstance(images, (str, Path)) or (isinstance(images, np.ndarray) and images.ndim == 3):
            images = [images]
        size = self.batch or FREE_BATCH
        for start in range(0, len(images), size):
            yield [_picture(image) for image in images[start : start + size]]

    def refuse_batch(self, pictures: int) -> None:
        """Raise where a batch is larger than the engine's, or empty.

        Args:
            pictures: The batch asked for.

        Raises:
            EngineError: It does not fit.
        """
        if pictures < 1:
            raise EngineError(
                f"run {self.name} on a batch of 0", "there is no picture in it", "pass one picture or more"
            )
        if self.batch is not None and pictures > self.batch:
            raise EngineError(
                f"run {self.name} on a batch of {pictures}",
                f"it was made for at most {self.batch}",
                f"pass at most {self.batch} pictures at once, or export again with batch={pictures}",
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
        return f"{type(self).__name__}({self.name}: {self.card.task}, {self.precision}, {limit}, {shape})"


def _picture(image: np.ndarray | str | Path) -> np.ndarray:
    """A picture in memory, read where it is a path."""
    if not isinstance(image, np.ndarray):
        from trtkit.data import read_picture

        return read_picture(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise DataError(
            "predict on an array",
            f"it is {image.dtype} of shape {image.shape}",
            "pass BGR uint8 pictures of shape (height, width, 3), as OpenCV reads them",
        )
    return image
