"""Which pictures a calibration sees, and how they go into the network."""

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
from trtkit.files import hash_of
from trtkit.threads import over

if TYPE_CHECKING:
    from trtkit.data import Dataset

__all__ = ["calibration_pictures", "input_batches", "preprocessing_hash", "stratified"]


def calibration_pictures(
    data: str | Path | Dataset | None,
    *,
    task: str,
    split: str | None,
    images: int,
    fraction: float,
    seed: int,
    stratify: bool = False,
) -> tuple[Dataset, str, tuple[Path, ...]]:
    """The data set, the split and the sampled pictures that a calibration uses.

    Args:
        data: A data set's YAML file (or folder, for classify); None takes the task's small embedded set and warns.
        task: The model's task.
        split: The split to draw from; None takes `train`, or `val` with a warning where there is no `train`.
        images: The largest number of pictures.
        fraction: The share of the split to draw from, (0, 1].
        seed: Seed of the sample.
        stratify: Draw so that every class keeps its share of the pictures.

    Raises:
        DataError: The data set can't be read, or there is no example set for the task.
    """
    from trtkit.data import open_dataset, sample

    if data is None:
        from trtkit import demo

        if task not in demo.TASKS:
            raise DataError(
                "calibrate INT8 without data=",
                f"trtkit carries no example pictures for {task}",
                "pass data='your.yaml'",
            )
        data = demo.data_path(task)
        warnings.warn(
            "INT8 without data=: calibrating on trtkit's small example set, whose pictures are not yours; "
            "pass data='your.yaml' for ranges that fit your model.",
            stacklevel=3,
        )
    dataset = open_dataset(data, task=task)
    if split is None:
        split = "train" if "train" in dataset.splits else "val"
        if split == "val":
            warnings.warn(
                "calibrating on 'val' because the data set has no 'train': the same pictures will then judge the "
                "result; pass split='val' to say that this is meant.",
                stacklevel=3,
            )
    pictures = dataset.pictures(split)
    # Asked for with the range checks that `sample` makes, so that both ways refuse the same settings.
    drawn = sample(pictures, count=images, fraction=fraction, seed=seed)
    if stratify:
        drawn = stratified(dataset, pictures, count=len(drawn), seed=seed)
    return dataset, split, drawn


def stratified(dataset: Dataset, pictures: Sequence[Path], *, count: int, seed: int = 0) -> tuple[Path, ...]:
    """Draw pictures so that each class is in as large a share of them as in all, and rare classes in at least one.

    The class that lacks most of its share is served first, by the next picture of a seeded shuffle that shows it
    (after K. Sechidis et al., "On the Stratification of Multi-Label Data", 2011). Pictures without labels count as a
    class of their own.

    Args:
        dataset: Where the labels come from.
        pictures: What to draw from.
        count: How many to draw, at most all.
        seed: Of the shuffle.

    Returns:
        The drawn pictures in the order of `pictures`.

    Raises:
        DataError: A label file contradicts the data set.
    """
    if count >= len(pictures):
        return tuple(pictures)
    order = list(range(len(pictures)))
    random.Random(seed).shuffle(order)
    # -1 stands for "nothing to see".
    shown = {index: frozenset(dataset.labels(pictures[index]).classes.tolist()) or {-1} for index in order}
    having = Counter(name for classes in shown.values() for name in classes)
    wanted = {name: max(1.0, number * count / len(pictures)) for name, number in having.items()}
    queues = {name: [index for index in reversed(order) if name in shown[index]] for name in wanted}
    chosen: set[int] = set()
    got: Counter[int] = Counter()
    while len(chosen) < count:
        # Rarer classes first among equals: they have fewer pictures to choose from.
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
    return tuple(pictures[index] for index in sorted(chosen))


def input_batches(
    paths: Sequence[Path], *, task: str, size: tuple[int, int], batch: int, skipped: list[str]
) -> Iterator[NDArray[np.float32]]:
    """Pictures as network inputs, `batch` at a time; the last batch may be smaller.

    Args:
        paths: Picture files.
        task: The task, which decides between letterbox and centre crop.
        size: Height and width, pixels.
        batch: Pictures a batch.
        skipped: Receives the paths that could not be read.

    Yields:
        (N, 3, H, W) float32 in [0, 1], RGB.
    """
    from trtkit.data import read_picture, to_input
    from trtkit.tasks import task as task_of

    prepare = task_of(task).prepare

    def load(path: Path) -> NDArray[np.uint8] | None:
        try:
            return prepare(read_picture(path), size)[0]
        except DataError:
            return None

    waiting: list[NDArray[np.uint8]] = []
    # One thread reads ahead while the model runs; more would take the processor from the model.
    for path, picture in zip(paths, over(load, paths, 1, ahead=2 * batch), strict=True):
        if picture is None:
            skipped.append(str(path))
            continue
        waiting.append(picture)
        if len(waiting) == batch:
            yield to_input(waiting)
            waiting.clear()
    if waiting:
        yield to_input(waiting)


def preprocessing_hash(task: str, size: tuple[int, int]) -> str:
    """SHA-256 of what becomes of fixed pictures on their way into the network, 64 hex digits.

    Whatever changes the way in (another resizing, padding or channel order, another OpenCV that rounds differently)
    changes what comes out, and so this hash.

    Args:
        task: The task, which decides between letterbox and centre crop.
        size: Height and width, pixels.
    """
    from trtkit.data import to_input
    from trtkit.tasks import task as task_of

    prepare = task_of(task).prepare
    random_state = np.random.default_rng(0)
    # One wider and one taller than the input, so that both directions of resizing and padding take part.
    shapes = [(size[0] // 2 + 3, size[1] + 17), (size[0] + 29, size[1] // 2 + 5)]
    pictures = [random_state.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
    inputs = [to_input([prepare(picture, size)[0]]) for picture in pictures]
    return hash_of(*(array.tobytes() for array in inputs), str(inputs[0].shape))
