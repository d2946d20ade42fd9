"""`Runner`: a model that is ready to run, whatever the runtime."""

from __future__ import annotations

import abc
import contextlib
import functools
import itertools
from collections.abc import Collection, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from trtkit.backends.stages import HostClock, StageClock, enter_stage
from trtkit.errors import DataError, EngineError, warn
from trtkit.progress import available_cores, parallel_map

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

    from trtkit.backends.devices import Gpu
    from trtkit.backends.engine_file import Passport
    from trtkit.models.model import ModelInfo
    from trtkit.tasks import PostprocessSettings, Prediction
    from trtkit.tasks.base import ImageGrid

__all__ = ["HasPath", "Runner", "closed_error"]

# Images per call when the graph sets no limit: enough to fill a GPU or two cores, small enough to hold in memory.
DEFAULT_BATCH = 8

# Each thread may hold one whole image, of any size; more wait for each other (docs/benchmarks.md).
MAX_DECODE_THREADS = 8


def closed_error(asked: str) -> EngineError:
    """The error of a runner that was closed.

    Args:
        asked: What it was asked to do.
    """
    return EngineError(asked, "the runner is closed", "open the model again", code="runner-closed")


class HasPath(Protocol):
    """An object that names a file, such as what `export` returns."""

    @property
    def path(self) -> Path:
        """The file."""


class Runner(abc.ABC):
    """A model that is ready to run.

    Attributes:
        name: The runtime with version and device, e.g. "ONNX Runtime 1.32.0 CPU".
        engine: True for TensorRT and TensorRT-RTX only; other latencies are not reported as TensorRT's.
        info: The model's description.
        precision: "fp32", "fp16" or "int8".
        batch: The largest batch, or None for any.
        imgsz: Height and width of the network input, pixels.
        dynamic: Whether other batches and sizes are accepted.
        passport: The engine's provenance, or None.
        hash: SHA-256 of the model inside, or of the file.
        path: The file, or None.
        gpu: The GPU it runs on, or None.
        opener: Opens it again in another process, with the same results; None where that can't be done.
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
    gpu: Gpu | None = None
    opener: Callable[[], Runner] | None = None
    _warned_of_thresholds = False

    @abc.abstractmethod
    def infer(self, feeds: np.ndarray | Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one batch.

        Args:
            feeds: Float32 NCHW, preprocessed, or one array per input by name.

        Returns:
            Float32 outputs by name, one row per image.

        Raises:
            EngineError: The batch exceeds `batch`, the size does not fit the graph, or the run failed.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Free the runner's resources; closing twice is fine."""

    def predict(
        self,
        images: Sequence[np.ndarray | str | Path] | np.ndarray | str | Path,
        *,
        conf: float = 0.25,
        iou: float = 0.7,
        max_det: int = 300,
    ) -> list[Prediction]:
        """Preprocess images, run them and postprocess the outputs.

        Args:
            images: A list of paths and of uint8 images (height, width, channels) of any size, BGR if the model takes 3
                channels; or one of them, a folder of images or a glob pattern, in the order of their paths.
            conf: Minimum score of a detection.
            iou: Class-wise NMS: of two boxes with IoU > `iou` the lower score is dropped.
            max_det: Maximum number of detections per image.

        Returns:
            One prediction per image, in pixels of the original image.

        Raises:
            DataError: An image can't be read, or has another number of channels than the model takes.
            EngineError: The run failed.
        """
        from trtkit.data import resize_to_input, to_input
        from trtkit.tasks import get_task

        settings = self._read_settings(conf=conf, iou=iou, max_det=max_det)
        task = get_task(self.info.task)
        predictions: list[Prediction] = []
        feed: np.ndarray | None = None
        with contextlib.closing(self.read_batches(images)) as batches:
            for batch in batches:
                enter_stage("preprocess")
                resized = [resize_to_input(image, self.imgsz, self.info.preprocess) for image in batch]
                feed = to_input([image for image, _ in resized], self.info.preprocess, out=feed)
                enter_stage("engine")
                outputs = self.infer(feed)
                enter_stage("postprocess")
                predictions += task.postprocess(outputs, self.info, [transform for _, transform in resized], settings)
        return predictions

    def stage_clock(self) -> StageClock:
        """The clock that times the stages of `predict`."""
        return HostClock()

    def _read_settings(self, *, conf: float, iou: float, max_det: int) -> PostprocessSettings:
        """The thresholds of `predict`; warns once of those that the graph has settled otherwise."""
        from trtkit.models.model import DETR_QUERIES, DETR_ROWS, END2END_ROWS, NMS_ROWS
        from trtkit.tasks import PostprocessSettings

        settings = PostprocessSettings(conf=conf, iou=iou, max_det=max_det)
        fixed, default = self.info.row_settings, PostprocessSettings()
        selects = self.info.output_format in (NMS_ROWS, END2END_ROWS, DETR_QUERIES, DETR_ROWS)
        lost = {
            "conf": conf < fixed.get("conf", 0.0),
            "iou": selects and iou not in (default.iou, fixed.get("iou")),
            "max_det": selects and max_det > fixed.get("max_det", default.max_det) and max_det != default.max_det,
        }
        if any(lost.values()) and not self._warned_of_thresholds:
            self._warned_of_thresholds = True
            asked = ", ".join(f"{name}={getattr(settings, name)}" for name, is_lost in lost.items() if is_lost)
            known = ", ".join(f"{name}={fixed[name]}" for name, is_lost in lost.items() if is_lost and name in fixed)
            selects_by = "NMS" if self.info.nms else "its one-to-one head"
            do = f"export with {asked}" if self.info.nms else "leave it out"
            warn(
                f"{asked} was passed, but {self.path or self.name} selects its objects by {selects_by} in the graph"
                f"{' with ' + known if known else ''}: {do}."
            )
        return settings

    def draw(
        self,
        images: Sequence[np.ndarray | str | Path] | np.ndarray | str | Path,
        *,
        label: str = "",
        conf: float = 0.25,
        iou: float = 0.7,
        max_det: int = 300,
    ) -> ImageGrid:
        """Predict on images and draw the results on them.

        Args:
            images: As in `predict`, one or more.
            label: First words of each caption, such as the precision.
            conf: Minimum score of a detection.
            iou: Class-wise NMS: of two boxes with IoU > `iou` the lower score is dropped.
            max_det: Maximum number of detections per image.

        Returns:
            The images side by side; a notebook displays them. `+` puts the images of two runners beside each other.

        Raises:
            DataError: An image can't be read, or there is none.
            EngineError: The run failed.
        """
        from trtkit.data.image_files import to_display
        from trtkit.tasks import get_task
        from trtkit.tasks.base import ImageGrid

        loaded = [image for batch in self.read_batches(images) for image in batch]
        if not loaded:
            raise DataError("draw predictions", "there is no image", "pass one image or more", code="predict-no-image")
        predictions = self.predict(loaded, conf=conf, iou=iou, max_det=max_det)
        task = get_task(self.info.task)
        drawn = tuple(
            task.draw(to_display(image), prediction, self.info.names)
            for image, prediction in zip(loaded, predictions, strict=True)
        )
        return ImageGrid(
            images=drawn, captions=tuple(f"{label}: {one!r}" if label else repr(one) for one in predictions)
        )

    def read_batches(
        self, images: Sequence[np.ndarray | str | Path] | np.ndarray | str | Path
    ) -> Generator[list[np.ndarray], None, None]:
        """Yield batches of loaded images, none larger than `batch`.

        Files of the next batch are decoded on `decode_threads` while the caller works on this one.

        Args:
            images: As in `predict`.

        Yields:
            uint8 images (height, width, channels).

        Raises:
            DataError: An image can't be read, or has another number of channels than the model takes.
        """
        from trtkit.data.image_arguments import list_image_arguments, read_image_argument

        listed = list_image_arguments(images)
        size = self.batch or DEFAULT_BATCH
        read = functools.partial(read_image_argument, channels=self.info.channels)
        is_decoded = all(isinstance(image, np.ndarray) for image in listed)
        if is_decoded or len(listed) == 1:
            loaded: Generator[np.ndarray, None, None] = (read(image) for image in listed)
        else:
            loaded = parallel_map(read, listed, self.decode_threads, max_pending=2 * size)
        with contextlib.closing(loaded):
            for _ in range(0, len(listed), size):
                if not is_decoded:
                    enter_stage("decode")
                yield list(itertools.islice(loaded, size))

    def _name_feeds(
        self, feeds: np.ndarray | Mapping[str, np.ndarray], image_input: str, inputs: Collection[str]
    ) -> dict[str, np.ndarray]:
        """The arrays of a batch by the name of their input.

        Args:
            feeds: As in `infer`.
            image_input: The input that takes a single array.
            inputs: Names of all inputs.

        Raises:
            EngineError: The names are not those of the inputs.
        """
        arrays = dict(feeds) if isinstance(feeds, Mapping) else {image_input: feeds}
        if set(arrays) != set(inputs):
            raise EngineError(
                f"run {self.name} with inputs {sorted(arrays)}",
                f"the model's inputs are {sorted(inputs)}",
                "feed exactly these",
                code="run-inputs-unknown",
                names=sorted(arrays),
                expected=sorted(inputs),
            )
        return arrays

    def check_batch(self, count: int) -> None:
        """Check that a batch is not empty and not larger than `batch`.

        Args:
            count: Images in the batch.

        Raises:
            EngineError: It is.
        """
        if count < 1:
            raise EngineError(
                f"run {self.name} on a batch of 0", "the batch is empty", "pass one image or more",
                code="run-batch-empty",
            )  # fmt: skip
        if self.batch is not None and count > self.batch:
            raise EngineError(
                f"run {self.name} on a batch of {count}",
                f"the largest batch is {self.batch}",
                f"pass at most {self.batch} images at once, or export again with batch={count}",
                code="run-batch-too-large",
                value=count,
                limit=self.batch,
            )

    @property
    def decode_threads(self) -> int:
        """Threads that decode images ahead: up to 8 where a GPU runs the model, one where these cores do."""
        return min(available_cores(), MAX_DECODE_THREADS) if self.engine else 1

    @property
    def profile_batches(self) -> tuple[int, ...]:
        """The smallest, optimal and largest batch of the optimization profile, ascending; one where it is fixed."""
        largest = self.batch or DEFAULT_BATCH
        return tuple(sorted({1, largest})) if self.dynamic else (largest,)

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
