"""The interfaces of a backend: `Runner` runs a model, `Backend` describes one runtime, and the registry lists them.

A backend is one module with a `Backend` in it, and an entry point in the group `trtkit.backends` that names it:

    [project.entry-points."trtkit.backends"]
    openvino = "my_package.openvino:OPENVINO"
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import numpy as np

from trtkit.arguments import COMPATIBILITIES, PRECISIONS, WEIGHTS
from trtkit.errors import CapabilityError, DataError, EngineError, RecipeError, TrtkitError, warn

if TYPE_CHECKING:
    import importlib.metadata
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

    from trtkit.backends.capabilities import Capabilities
    from trtkit.backends.devices import Gpu
    from trtkit.backends.engine_file import Passport
    from trtkit.models.model import ModelInfo
    from trtkit.tasks import PostprocessSettings, Prediction
    from trtkit.tasks.base import ImageGrid

__all__ = [
    "ENTRY_POINT_GROUP",
    "PRECISIONS",
    "Backend",
    "BuildResult",
    "BuildSettings",
    "HasPath",
    "ImplicitCalibration",
    "Runner",
    "get_backend",
    "get_title",
    "list_backends",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImplicitCalibration:
    """Images for TensorRT's own INT8 calibrator (`IInt8MinMaxCalibrator`), which TensorRT 11 removed.

    Attributes:
        batches: Float32 NCHW batches in [0, 1], of one shape; a shorter last batch is dropped.
        cache: A calibration cache file to read and to write, or None.
    """

    batches: Iterable[np.ndarray] = ()
    cache: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """How an ONNX graph is built. The graph itself sets the precision; here it is stated for checks and reports.

    Attributes:
        precision: "fp32", "fp16" or "int8".
        batch: The largest batch the engine accepts.
        imgsz: Height and width, pixels; for a dynamic engine the size it is optimized for.
        dynamic: Whether batch, height and width may change at run time.
        min_imgsz: Smallest height and width of a dynamic engine, pixels.
        max_imgsz: Largest height and width of a dynamic engine, pixels; None takes `imgsz`.
        workspace: Scratch memory TensorRT may use, GiB; None lets TensorRT decide.
        device: None, 0, "cuda:1", "dla:0", or "sm89" to build TensorRT-RTX engines for another GPU.
        compatibility: One of `COMPATIBILITIES`, or None for machines like this one.
        weights: One of `WEIGHTS`, or None for weights that stay as they are.
        opt_level: TensorRT's `builder_optimization_level`, 0 to 5; None takes TensorRT's default.
        isolate: Build in a child process, so that a crash inside TensorRT becomes a BuildError.
        timing_cache: True for a file per GPU and TensorRT version in the user's cache folder, False for none, or a
            file.
        implicit: Calibrate with TensorRT's own calibrator instead of Q/DQ nodes in the graph.

    Raises:
        RecipeError: A value is out of range, or two settings exclude each other.
    """

    precision: str = "fp32"
    batch: int = 1
    imgsz: tuple[int, int] = (640, 640)
    dynamic: bool = False
    min_imgsz: tuple[int, int] = (32, 32)
    max_imgsz: tuple[int, int] | None = None
    workspace: float | None = None
    device: str | int | None = None
    compatibility: str | None = None
    weights: str | None = None
    opt_level: int | None = None
    isolate: bool = False
    timing_cache: bool | Path = True
    implicit: ImplicitCalibration | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise RecipeError(
                f"precision={self.precision!r}",
                "no such precision",
                f"choose one of {', '.join(PRECISIONS)}",
                code="build-precision",
                value=self.precision,
            )
        if self.batch < 1:
            raise RecipeError(
                f"batch={self.batch}",
                "a batch has at least one image",
                "pass batch=1 or more",
                code="build-batch",
                value=self.batch,
            )
        if self.workspace is not None and self.workspace <= 0:
            raise RecipeError(
                f"workspace={self.workspace}",
                "it must be above 0 GiB",
                "pass None to let TensorRT decide",
                code="build-workspace",
                value=self.workspace,
            )
        for name, names in (("compatibility", COMPATIBILITIES), ("weights", WEIGHTS)):
            value = getattr(self, name)
            if value is not None and value not in names:
                raise RecipeError(
                    f"{name}={value!r}",
                    "there is no such choice",
                    f"choose one of {', '.join(names)}, or None",
                    code=f"build-{name}",
                    value=value,
                )
        if self.opt_level is not None and not 0 <= self.opt_level <= 5:
            raise RecipeError(
                f"opt_level={self.opt_level}",
                "TensorRT has levels 0 to 5",
                "pass None for TensorRT's default",
                code="build-opt-level",
                value=self.opt_level,
            )
        if self.implicit is not None and self.precision != "int8":
            raise RecipeError(
                f"implicit calibration with precision={self.precision!r}",
                "it applies to INT8 only",
                "pass precision='int8'",
                code="build-implicit-precision",
                value=self.precision,
            )
        largest = self.max_imgsz or self.imgsz
        if self.dynamic and not all(
            low <= best <= high for low, best, high in zip(self.min_imgsz, self.imgsz, largest, strict=True)
        ):
            raise RecipeError(
                f"dynamic sizes {self.min_imgsz} to {largest} around imgsz {self.imgsz}",
                "they are not in ascending order",
                "pass min_imgsz <= imgsz <= max_imgsz for height and width",
                code="build-dynamic-sizes",
                value=(self.min_imgsz, self.imgsz, largest),
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildResult:
    """An engine in memory.

    Attributes:
        plan: The serialized engine, without a header.
        seconds: Wall time of the build, s.
        facts: Where and how it was built: backend, tensorrt, cuda, driver, gpu, sm, warnings; JSON-ready.
        layers: The layer table as rows (columns as in `layer_frame`), where the builder reports it.
    """

    plan: bytes
    seconds: float
    facts: Mapping[str, Any]
    layers: tuple[Mapping[str, Any], ...] = ()


ENTRY_POINT_GROUP = "trtkit.backends"


BUILT_IN = {
    "tensorrt": "trtkit.backends.trt:TENSORRT",
    "tensorrt_rtx": "trtkit.backends.trt:TENSORRT_RTX",
    "onnxruntime": "trtkit.backends.ort:ONNXRUNTIME",
    "triton": "trtkit.backends.triton:TRITON",
}


# Images per call when the graph sets no limit: enough to fill a GPU or two cores, small enough to hold in memory.
DEFAULT_BATCH = 8


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
        for batch in self.read_batches(images):
            resized = [resize_to_input(image, self.imgsz, self.info.preprocess) for image in batch]
            outputs = self.infer(to_input([image for image, _ in resized], self.info.preprocess))
            predictions += task.postprocess(outputs, self.info, [transform for _, transform in resized], settings)
        return predictions

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
    ) -> Iterator[list[np.ndarray]]:
        """Yield batches of loaded images, none larger than `batch`.

        Args:
            images: As in `predict`.

        Yields:
            uint8 images (height, width, channels).

        Raises:
            DataError: An image can't be read, or has another number of channels than the model takes.
        """
        if _is_url(images) or _is_pil(images):
            images = [images]  # type: ignore[list-item]
        elif isinstance(images, (str, Path)):
            from trtkit.data.dataset import list_source_images

            images = [images] if Path(images).is_file() else list_source_images(images)
        elif isinstance(images, np.ndarray) and images.ndim < 4:
            images = [images]
        elif images is None:
            raise _no_image(images)
        size = self.batch or DEFAULT_BATCH
        for start in range(0, len(images), size):
            yield [_read_image(image, self.info.channels) for image in images[start : start + size]]

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


def _read_image(image: Any, channels: int) -> np.ndarray:
    """Return an image as an array: a file, an http(s) URL, a PIL image, or an array itself."""
    if _is_url(image):
        from trtkit.data.image_files import decode_image
        from trtkit.downloads import read_url

        return decode_image(read_url(image), urlsplit(image).path, channels)
    if _is_pil(image):
        return _convert_pil(image, channels)
    if isinstance(image, (str, Path)):
        from trtkit.data import read_image

        return read_image(image, channels)
    if not isinstance(image, np.ndarray):
        raise _no_image(image)
    shaped = image[:, :, None] if image.ndim == 2 and channels == 1 else image
    if shaped.dtype != np.uint8 or shaped.ndim != 3 or shaped.shape[2] != channels or shaped.size == 0:
        order = "BGR uint8" if channels == 3 else "uint8"
        raise DataError(
            "predict on an array",
            f"its type is {image.dtype} and its shape {image.shape}",
            f"pass {order} images of shape (height, width, {channels}), as OpenCV reads them",
            code="predict-image-array",
            dtype=str(image.dtype),
            shape=image.shape,
            expected=channels,
        )
    return shaped


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backend:
    """One runtime: what it can do on this machine, how it opens models and how it builds them.

    Attributes:
        name: The value of `backend=`, such as "tensorrt".
        title: The product's name, such as "TensorRT".
        install_hint: What to do where it is missing, in the imperative ("run pip install ...").
        probe: Returns its `Capabilities` on this machine; it must not raise where the runtime is missing.
        accepts: Whether a file (or a graph in memory) is one that `open` opens; cheap, and must not raise.
        open: `open(source, *, task, device) -> Runner`. It raises a TrtkitError where the source can't be opened.
        build: `build(onnx, settings, *, reporter) -> BuildResult`; None for a runtime that builds nothing.
        needs_gpu: Whether it builds and runs on NVIDIA GPUs only. Such backends may be chosen automatically.
        models: The models it runs, for `trtkit doctor`.
    """

    name: str
    title: str
    install_hint: str
    probe: Callable[[], Capabilities]
    accepts: Callable[[Any], bool]
    open: Callable[..., Runner]
    build: Callable[..., BuildResult] | None = None
    needs_gpu: bool = False
    models: str = "engines"


def list_backends() -> tuple[str, ...]:
    """The names of the registered backends: the built-in ones, then those of entry points."""
    return tuple(_find_entry_points())


def get_backend(name: str) -> Backend:
    """Load a registered backend.

    Args:
        name: One of `list_backends()`.

    Raises:
        RecipeError: No backend of that name is registered.
        CapabilityError: The package that registers it can't be imported, or its entry point is not a `Backend`.
    """
    entry_point = _find_entry_points().get(name)
    asked = f"use backend={name!r}"
    if entry_point is None:
        names = list_backends()
        raise RecipeError(
            asked, "no such backend", f"use one of {', '.join(names)}", code="backend-unknown", value=name, names=names
        )
    try:
        backend = entry_point.load()
    except Exception as error:
        # A package of others may fail in any way while it is imported.
        raise CapabilityError(
            asked,
            f"its package does not import ({type(error).__name__}: {error})",
            f"check the package that provides {entry_point.value}",
            code="backend-import-failed",
            value=name,
        ) from error
    if not isinstance(backend, Backend):
        raise CapabilityError(
            asked,
            f"{entry_point.value} is {type(backend).__name__}, not trtkit.backends.Backend",
            "correct the entry point",
            code="backend-invalid",
            value=name,
        )
    return backend


def get_title(name: str) -> str:
    """The product name of a backend; the name itself where it is not registered or does not import.

    Args:
        name: Such as "tensorrt_rtx".
    """
    try:
        return get_backend(name).title
    except TrtkitError:
        return name


@functools.cache
def _find_entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    import importlib.metadata

    found = {
        name: importlib.metadata.EntryPoint(name=name, value=value, group=ENTRY_POINT_GROUP)
        for name, value in BUILT_IN.items()
    }
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        if found.setdefault(entry_point.name, entry_point) is not entry_point:
            warn(f"Two backends are named {entry_point.name!r}: {entry_point.value} is ignored.")
    return found


def _is_url(image: Any) -> bool:
    return isinstance(image, str) and image.lower().startswith(("http://", "https://"))


def _is_pil(image: Any) -> bool:
    # Whoever passes a PIL image has imported Pillow, which trtkit does not need.
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(image, pillow.Image)


def _no_image(image: Any) -> DataError:
    return DataError(
        "predict on an image",
        f"it is {'None' if image is None else 'a ' + type(image).__name__}",
        "pass a path, an http(s) URL, an array as OpenCV reads it, or a PIL image",
        code="predict-image-type",
        type=type(image).__name__,
    )


def _convert_pil(image: Any, channels: int) -> np.ndarray:
    """Convert a PIL image to BGR, or to gray levels for a model of one channel; an EXIF rotation is not applied.

    Boxes are in the pixels of the image that the caller holds, as in Ultralytics.
    """
    from trtkit.data.image_files import MAX_PIXELS

    width, height = image.size
    if channels not in (1, 3) or width * height > MAX_PIXELS or not width * height:
        raise DataError(
            "predict on a PIL image",
            f"it has {width} x {height} pixels, for a model of {channels} channels",
            "pass an array"
            if channels not in (1, 3)
            else f"pass an image of at most {MAX_PIXELS // 10**6} million pixels",
            code="predict-image-pil",
            size=(width, height),
            channels=channels,
        )
    try:
        if image.mode.startswith("I;16"):
            pixels = (np.asarray(image) >> 8).astype(np.uint8)[:, :, None]
            return np.repeat(pixels, channels, axis=2)
        pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    except (OSError, ValueError, SyntaxError) as error:  # a file that is cut short is read only now
        raise DataError(
            "predict on a PIL image", str(error), "replace the image", code="predict-image-unreadable"
        ) from error
    return np.ascontiguousarray(pixels.reshape(height, width, channels)[:, :, ::-1])
