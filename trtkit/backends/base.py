"""What every backend offers: a runner to run a model, settings to build one, and what building gives back."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtkit.errors import DataError, EngineError, RecipeError

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from trtkit.backends.passport import Passport
    from trtkit.sources.card import Card
    from trtkit.tasks import Prediction
    from trtkit.tasks.drawing import Sheet

__all__ = ["PRECISIONS", "BuildSettings", "Built", "ImplicitCalibration", "Runner"]

PRECISIONS = ("fp32", "fp16", "int8")

# Pictures a call when the graph sets no limit: enough to fill a GPU or two cores, small enough to hold in memory.
FREE_BATCH = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImplicitCalibration:
    """Pictures for TensorRT's own INT8 calibrator (`IInt8MinMaxCalibrator`), which TensorRT 11 no longer has.

    Attributes:
        batches: Float32 NCHW batches in [0, 1], of one shape; a shorter last one is left out.
        cache: A file of scales to reuse and to write, or None.
    """

    batches: Iterable[np.ndarray] = ()
    cache: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """How an ONNX graph becomes an engine. The precision lives in the graph; it is named here to check and to report.

    Attributes:
        precision: "fp32", "fp16" or "int8".
        batch: The largest batch the engine accepts.
        imgsz: Height and width, pixels; for a dynamic engine the size it is tuned for.
        dynamic: Whether batch, height and width may change at run time.
        smallest: Height and width of the smallest picture of a dynamic engine, pixels.
        largest: Height and width of the largest picture of a dynamic engine, pixels; None takes `imgsz`.
        workspace: GiB of scratch memory TensorRT may use; None lets TensorRT decide.
        device: None, 0, "cuda:1", "dla:0", or "sm89" to build TensorRT-RTX engines for a GPU that is not here.
        level: TensorRT's `builder_optimization_level`, 0 to 5; None takes TensorRT's default.
        isolate: Build in a child process, so that a crash inside TensorRT ends as a BuildError.
        timing_cache: True for a file by GPU and TensorRT version in the user's cache folder, False for none, or a file.
        implicit: Calibrate with TensorRT's own calibrator instead of Q/DQ pairs in the graph.
    """

    precision: str = "fp32"
    batch: int = 1
    imgsz: tuple[int, int] = (640, 640)
    dynamic: bool = False
    smallest: tuple[int, int] = (32, 32)
    largest: tuple[int, int] | None = None
    workspace: float | None = None
    device: str | int | None = None
    level: int | None = None
    isolate: bool = False
    timing_cache: bool | Path = True
    implicit: ImplicitCalibration | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise RecipeError(
                f"precision={self.precision!r}", "no such precision", f"choose one of {', '.join(PRECISIONS)}"
            )
        if self.batch < 1:
            raise RecipeError(f"batch={self.batch}", "a batch holds at least one picture", "pass batch=1 or more")
        if self.workspace is not None and self.workspace <= 0:
            raise RecipeError(
                f"workspace={self.workspace}", "it must be above 0 GiB", "pass None to let TensorRT decide"
            )
        if self.level is not None and not 0 <= self.level <= 5:
            raise RecipeError(f"level={self.level}", "TensorRT knows levels 0 to 5", "pass None for TensorRT's default")
        if self.implicit is not None and self.precision != "int8":
            raise RecipeError(
                f"implicit calibration with precision={self.precision!r}",
                "it belongs to INT8 only",
                "pass precision='int8'",
            )
        top = self.largest or self.imgsz
        if self.dynamic and not all(
            low <= best <= high for low, best, high in zip(self.smallest, self.imgsz, top, strict=True)
        ):
            raise RecipeError(
                f"dynamic sizes {self.smallest} to {top} around imgsz {self.imgsz}",
                "they are not in ascending order",
                "let smallest <= imgsz <= largest hold for height and width",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Built:
    """An engine in memory.

    Attributes:
        plan: What TensorRT serialised, without a header.
        seconds: Wall time of the build, seconds.
        facts: Where and how it was built: backend, tensorrt, cuda, driver, gpu, sm, warnings; JSON-ready.
        layers: The layer table as rows (see `layers.COLUMNS`), where the builder told it.
    """

    plan: bytes
    seconds: float
    facts: Mapping[str, Any]
    layers: tuple[Mapping[str, Any], ...] = ()


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
