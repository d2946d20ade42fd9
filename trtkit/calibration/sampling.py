"""Which images a calibration sees, and how they go into the network."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trtkit.errors import DataError
from trtkit.files import hash_parts
from trtkit.models.model import default_preprocess
from trtkit.threads import parallel_map

if TYPE_CHECKING:
    from trtkit.data import Dataset

__all__ = ["hash_preprocessing", "load_input_batches", "sample_stratified", "select_calibration_images"]


def select_calibration_images(
    data: str | Path | Dataset | None,
    *,
    task: str,
    split: str | None,
    calibration_images: int,
    fraction: float,
    seed: int,
    stratify: bool = False,
) -> tuple[Dataset, str, tuple[Path, ...]]:
    """The data set, the split and the sampled images that a calibration uses.

    Args:
        data: A data set's YAML file (or folder, for classify); None takes the task's small embedded set and warns.
        task: The model's task.
        split: The split to draw from; None takes `train`, or `val` with a warning where there is no `train`.
        calibration_images: The largest number of images.
        fraction: The share of the split to draw from, (0, 1].
        seed: Seed of the sample.
        stratify: Draw so that every class keeps its share of the images.

    Raises:
        DataError: The data set can't be read, or there is no example set for the task.
    """
    from trtkit.data import open_dataset, sample_images

    if data is None:
        from trtkit import demo

        if task not in demo.EMBEDDED_TASKS:
            raise DataError(
                "calibrate INT8 without data=",
                f"trtkit carries no example images for {task}",
                "pass data='your.yaml'",
            )
        data = demo.data_path(task)
        warnings.warn(
            "INT8 without data=: calibrating on trtkit's small example set, whose images are not yours; "
            "pass data='your.yaml' for ranges that fit your model.",
            stacklevel=3,
        )
    dataset = open_dataset(data, task=task)
    if split is None:
        split = "train" if "train" in dataset.splits else "val"
        if split == "val":
            warnings.warn(
                "calibrating on 'val' because the data set has no 'train': the same images will then judge the "
                "result; pass split='val' to say that this is meant.",
                stacklevel=3,
            )
    images = dataset.images(split)
    # Asked for with the range checks that `sample` makes, so that both ways refuse the same settings.
    drawn = sample_images(images, count=calibration_images, fraction=fraction, seed=seed)
    if stratify:
        drawn = sample_stratified(dataset, images, count=len(drawn), seed=seed)
    return dataset, split, drawn


def sample_stratified(dataset: Dataset, paths: Sequence[Path], *, count: int, seed: int = 0) -> tuple[Path, ...]:
    """Draw images so that each class is in as large a share of them as in all, and rare classes in at least one.

    The class that lacks most of its share is served first, by the next image of a seeded shuffle that shows it
    (after K. Sechidis et al., "On the Stratification of Multi-Label Data", 2011). Images without labels count as a
    class of their own.

    Args:
        dataset: Where the labels come from.
        paths: What to draw from.
        count: How many to draw, at most all.
        seed: Of the shuffle.

    Returns:
        The drawn images in the order of `images`.

    Raises:
        DataError: A label file contradicts the data set.
    """
    if count >= len(paths):
        return tuple(paths)
    order = list(range(len(paths)))
    random.Random(seed).shuffle(order)
    # -1 stands for "nothing to see".
    shown = {index: frozenset(dataset.labels(paths[index]).classes.tolist()) or {-1} for index in order}
    having = Counter(name for classes in shown.values() for name in classes)
    wanted = {name: max(1.0, number * count / len(paths)) for name, number in having.items()}
    queues = {name: [index for index in reversed(order) if name in shown[index]] for name in wanted}
    chosen: set[int] = set()
    got: Counter[int] = Counter()
    while len(chosen) < count:
        # Rarer classes first among equals: they have fewer images to choose from.
        name = max(wanted, key=lambda name: ((wanted[name] - got[name]) / wanted[name], -having[name], -name))
        if got[name] >= wanted[name]:
            break
        index = queues[name].pop()
        if index not in chosen:
            chosen.add(index)
            got.update(shown[index])
    for index in order:
        if len(chosen) == count:
            break
        chosen.add(index)
    return tuple(paths[index] for index in sorted(chosen))


def load_input_batches(
    paths: Sequence[Path], *, task: str, size: tuple[int, int], batch: int, skipped: list[str]
) -> Iterator[NDArray[np.float32]]:
    """Images as network inputs, `batch` at a time; the last batch may be smaller.

    Args:
        paths: Image files.
        task: The task, which decides between letterbox and center crop.
        size: Height and width, pixels.
        batch: Images a batch.
        skipped: Receives the paths that could not be read.

    Yields:
        (N, 3, H, W) float32 in [0, 1], RGB.
    """
    from trtkit.data import read_image, resize_to_input, to_input

    preprocess = default_preprocess(task)

    def load(path: Path) -> NDArray[np.uint8] | None:
        try:
            return resize_to_input(read_image(path), size, preprocess)[0]
        except DataError:
            return None

    waiting: list[NDArray[np.uint8]] = []
    # One thread reads ahead while the model runs; more would take the processor from the model.
    for path, image in zip(paths, parallel_map(load, paths, 1, max_pending=2 * batch), strict=True):
        if image is None:
            skipped.append(str(path))
            continue
        waiting.append(image)
        if len(waiting) == batch:
            yield to_input(waiting, preprocess)
            waiting.clear()
    if waiting:
        yield to_input(waiting, preprocess)


def hash_preprocessing(task: str, size: tuple[int, int]) -> str:
    """SHA-256 of what becomes of fixed images on their way into the network, 64 hex digits.

    Whatever changes the way in (another resizing, padding or channel order, another OpenCV that rounds differently)
    changes what comes out, and so this hash.

    Args:
        task: The task, which decides between letterbox and center crop.
        size: Height and width, pixels.
    """
    from trtkit.data import resize_to_input, to_input

    preprocess = default_preprocess(task)
    random_state = np.random.default_rng(0)
    # One wider and one taller than the input, so that both directions of resizing and padding take part.
    shapes = [(size[0] // 2 + 3, size[1] + 17), (size[0] + 29, size[1] // 2 + 5)]
    images = [random_state.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
    inputs = [to_input([resize_to_input(image, size, preprocess)[0]], preprocess) for image in images]
    return hash_parts(*(array.tobytes() for array in inputs), str(inputs[0].shape))
