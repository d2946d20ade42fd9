"""Calibration images: sampling, and conversion to network inputs."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trtkit.errors import DataError, warn
from trtkit.executor import split_into_shards
from trtkit.files import hash_parts
from trtkit.progress import parallel_map

if TYPE_CHECKING:
    from trtkit.data import Dataset, DataSource
    from trtkit.models.model import ModelInfo, Preprocess

__all__ = [
    "ImageInputs",
    "InputSource",
    "count_calibration_images",
    "hash_preprocessing",
    "load_input_batches",
    "make_input_source",
    "sample_stratified",
    "select_calibration_images",
]


def select_calibration_images(
    data: DataSource | None,
    *,
    task: str,
    channels: int,
    split: str | None,
    calibration_images: int,
    fraction: float,
    seed: int,
    stratify: bool = False,
) -> tuple[Dataset, str, tuple[Path, ...]]:
    """Sample the images of a calibration.

    Args:
        data: What `trtkit.data.open_dataset` opens, with or without labels; None takes the task's small embedded set
            and warns.
        task: The model's task.
        channels: Channels that the model takes.
        split: Split to sample from; None takes `train`, or `val` with a warning if there is no `train`; images without
            labels have the one split "images".
        calibration_images: Maximum number of images.
        fraction: Share of the split that images are drawn from, in (0, 1]; applied before `calibration_images`.
        seed: Seed of the sample.
        stratify: Keep each class's share of the images.

    Returns:
        The data set, the split, and the sampled paths.

    Raises:
        DataError: The data set can't be read, its images have another number of channels, there is no embedded set for
            the task, or `stratify` lacks labels.
    """
    from trtkit.data import open_dataset, sample_images

    if data is None:
        data = _embedded_data(task)
        warn(
            "INT8 without data=: calibrating on trtkit's small example set; pass data='your.yaml' for ranges that fit "
            "your images."
        )
    dataset = open_dataset(data, task=task, channels=channels, needs_labels=stratify)
    if split is None:
        split = dataset.default_split
        if split == "val":
            warn(
                "calibrating on 'val' because the data set has no 'train': if 'val' is also used for evaluation, INT8 "
                "accuracy is optimistic; pass split='val' to accept this."
            )
    paths = dataset.images(split)
    # `sample_images` checks the settings, for stratified samples too.
    sampled = sample_images(paths, count=calibration_images, fraction=fraction, seed=seed)
    if stratify:
        sampled = sample_stratified(dataset, paths, count=len(sampled), seed=seed)
    return dataset, split, sampled


def _embedded_data(task: str) -> Path:
    """The task's embedded example set."""
    from trtkit import demo

    if task not in demo.EMBEDDED_TASKS:
        raise DataError(
            "calibrate INT8 without data=",
            f"there is no embedded example set for task {task!r}",
            "pass data='your.yaml'",
            code="calibration-data-missing",
            value=task,
        )
    return demo.data_path(task)


def count_calibration_images(
    data: DataSource | None, model: ModelInfo, *, calibration_images: int, fraction: float = 1.0
) -> int:
    """Count the images that `calibrate` samples, which checks before any slow work that there are some.

    Args:
        data: What `calibrate` takes; None is the task's small embedded set.
        model: The model.
        calibration_images: Maximum number of images.
        fraction: Share of the split that images are drawn from, in (0, 1].

    Raises:
        DataError: The data can't be read, the split of the calibration images is missing or empty, they have other
            channels, or there is no embedded set for the task.
    """
    from trtkit.data import open_dataset, sample_images

    data = _embedded_data(model.task) if data is None else data
    dataset = open_dataset(data, task=model.task, channels=model.channels, needs_labels=False)
    return len(sample_images(dataset.images(dataset.default_split), count=calibration_images, fraction=fraction))


def sample_stratified(dataset: Dataset, paths: Sequence[Path], *, count: int, seed: int = 0) -> tuple[Path, ...]:
    """Sample images so that every class keeps its share, and rare classes are in at least one image.

    Iterative stratification: the class that lacks most of its share gets the next image of a seeded shuffle that shows
    it (K. Sechidis et al., "On the Stratification of Multi-Label Data", 2011). Images without labels form a class of
    their own.

    Args:
        dataset: The data set, for its labels.
        paths: Images to sample from.
        count: Number of images; all if there are fewer.
        seed: Seed of the shuffle.

    Returns:
        The sampled images in the order of `paths`.

    Raises:
        DataError: An image has no class in the data set.
    """
    from trtkit.data.dataset import try_labels, warn_of_skipped

    if count >= len(paths):
        return tuple(paths)
    order = list(range(len(paths)))
    random.Random(seed).shuffle(order)
    errors: list[DataError] = []
    labels = {index: try_labels(dataset, paths[index], errors) for index in order}
    # -1 stands for an image without labels.
    classes = {
        index: frozenset(() if found is None else found.classes.tolist()) or frozenset({-1})
        for index, found in labels.items()
    }
    warn_of_skipped(errors, "counted without labels")
    available = Counter(class_id for shown in classes.values() for class_id in shown)
    targets = {class_id: number * count / len(paths) for class_id, number in available.items()}
    queues = {class_id: [index for index in reversed(order) if class_id in classes[index]] for class_id in targets}
    chosen: set[int] = set()
    counts: Counter[int] = Counter()

    def priority(class_id: int) -> tuple[float, int, int]:
        # Rarer classes first among equals: they have fewer images to choose from.
        return (targets[class_id] - counts[class_id]) / targets[class_id], -available[class_id], -class_id

    while len(chosen) < count:
        class_id = max(targets, key=priority)
        if counts[class_id] >= targets[class_id]:
            break
        index = queues[class_id].pop()
        if index not in chosen:
            chosen.add(index)
            counts.update(classes[index])
    for index in order:
        if len(chosen) == count:
            break
        chosen.add(index)
    return tuple(paths[index] for index in sorted(chosen))


def load_input_batches(
    paths: Sequence[Path],
    *,
    preprocess: Preprocess,
    size: tuple[int, int],
    batch: int,
    skipped: list[str],
    refill: bool = True,
) -> Iterator[NDArray[np.float32]]:
    """Load images as batches of network inputs; the last batch may be smaller.

    Args:
        paths: Image files.
        preprocess: The model's preprocessing.
        size: Height and width, pixels.
        batch: Images per batch.
        skipped: Receives the paths of images that can't be read.
        refill: Replace images that can't be read by later ones; False leaves their batches smaller, so that each path
            is in the same batch wherever the reading began.

    Yields:
        (N, C, H, W) float32, as `preprocess` says.
    """
    from trtkit.data import read_image, resize_to_input, to_input

    def load(path: Path) -> NDArray[np.uint8] | None:
        try:
            return resize_to_input(read_image(path, preprocess.channels), size, preprocess)[0]
        except DataError:
            return None

    images: list[NDArray[np.uint8]] = []
    # One thread reads ahead; the other cores run the model.
    loaded = zip(paths, parallel_map(load, paths, 1, max_pending=2 * batch), strict=True)
    for number, (path, image) in enumerate(loaded, 1):
        if image is None:
            skipped.append(str(path))
        else:
            images.append(image)
        if images and (len(images) == batch if refill else number % batch == 0):
            yield to_input(images, preprocess)
            images.clear()
    if images:
        yield to_input(images, preprocess)


def hash_preprocessing(preprocess: Preprocess, size: tuple[int, int]) -> str:
    """SHA-256 of the network inputs that preprocessing makes of fixed images, 64 hex digits.

    It changes with resizing, padding, channel order, and an OpenCV version that rounds differently.

    Args:
        preprocess: The model's preprocessing.
        size: Height and width, pixels.
    """
    from trtkit.data import resize_to_input, to_input

    generator = np.random.default_rng(0)
    # One image wider and one taller than the input: both directions of resizing and padding.
    shapes = [(size[0] // 2 + 3, size[1] + 17), (size[0] + 29, size[1] // 2 + 5)]
    images = [generator.integers(0, 256, (*shape, preprocess.channels), np.uint8) for shape in shapes]
    inputs = [to_input([resize_to_input(image, size, preprocess)[0]], preprocess) for image in images]
    return hash_parts(*(array.tobytes() for array in inputs), str(inputs[0].shape))


InputSource = Callable[[], Iterable[NDArray[np.float32]]]
"""Returns the same inputs (1, C, H, W), float32, on every call."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageInputs:
    """Preprocessed images as an `InputSource`, which another process can load too.

    Attributes:
        paths: Image files; none is read before the first call.
        preprocess: The model's preprocessing.
        imgsz: Height and width, pixels.
        skipped: Cleared at each call, then receives the paths of unreadable images.
    """

    paths: tuple[Path, ...]
    preprocess: Preprocess
    imgsz: tuple[int, int]
    skipped: list[str] = dataclasses.field(default_factory=list)

    def __call__(self) -> Iterator[NDArray[np.float32]]:
        """Load the images one after the other."""
        self.skipped.clear()
        return load_input_batches(
            self.paths, preprocess=self.preprocess, size=self.imgsz, batch=1, skipped=self.skipped
        )

    def split(self, slots: int) -> list[ImageInputs]:
        """The images in shards, in their order; see `split_into_shards`."""
        shards = split_into_shards(len(self.paths), slots=slots)
        return [
            dataclasses.replace(self, paths=tuple(self.paths[index] for index in shard), skipped=[]) for shard in shards
        ]


def make_input_source(
    paths: Sequence[Path], *, preprocess: Preprocess, imgsz: tuple[int, int], skipped: list[str] | None = None
) -> ImageInputs:
    """Preprocessed images as an `InputSource`; no image is read before the first call.

    Args:
        paths: Image files.
        preprocess: The model's preprocessing.
        imgsz: Height and width, pixels.
        skipped: Cleared at each call, then receives the paths of unreadable images.
    """
    return ImageInputs(
        paths=tuple(paths), preprocess=preprocess, imgsz=imgsz, skipped=[] if skipped is None else skipped
    )
