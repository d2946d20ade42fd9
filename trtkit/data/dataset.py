"""`Dataset`: images and labels on disk, read on demand; and words for images that can't be read."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trtkit.data.coco import CocoSplit, find_coco_image, list_coco_images
from trtkit.data.image_files import MAX_IMAGE_BYTES, check_channels
from trtkit.data.image_lists import list_source_images, resolve_images
from trtkit.data.labels import LABEL_FORMATS, LabelFormat, Labels, label_path, read_labels
from trtkit.errors import DataError, warn
from trtkit.files import escape_surrogates, read_limited

__all__ = [
    "UNLABELED_SPLIT",
    "Dataset",
    "describe_images",
    "describe_skipped",
    "is_label_error",
    "labels_needed",
    "try_labels",
    "warn_of_skipped",
]

UNLABELED_SPLIT = "images"
"""The only split of images without labels."""


def describe_images(count: int, split: str) -> str:
    """ "512 images of train", or "12 images without labels".

    Args:
        count: Number of images.
        split: Their split.
    """
    images = "1 image" if count == 1 else f"{count} images"
    return f"{images} without labels" if split == UNLABELED_SPLIT else f"{images} of {split}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """Images and labels on disk, read on demand.

    Attributes:
        path: The YAML file, or the folder for classify; for images without labels the folder, glob pattern or image,
            and for a list of paths their common folder.
        task: The task that labels are read for.
        names: Class names by number.
        splits: The folders, text files or images of each split.
        kpt_shape: (points, 2 or 3) for pose, None otherwise.
        flip_idx: The keypoint that each becomes in a mirrored image, or ().
        sigmas: OKS sigma of each keypoint if the YAML file has `kpt_oks_sigmas`, or ().
        labeled: Whether there are labels; without them `names` is empty and the only split is "images".
        channels: Channels that images are read with: the model's, else `channels` of the YAML file, else 3.
        coco: Annotation file and images of each split, for a folder in COCO's layout; {} for others.
    """

    path: Path
    task: str
    names: Mapping[int, str]
    splits: Mapping[str, tuple[Path, ...]]
    kpt_shape: tuple[int, int] | None = None
    flip_idx: tuple[int, ...] = ()
    sigmas: tuple[float, ...] = ()
    labeled: bool = True
    channels: int = 3
    coco: Mapping[str, CocoSplit] = dataclasses.field(default_factory=dict)

    @property
    def label_format(self) -> LabelFormat:
        """How labels are read."""
        return LABEL_FORMATS[self.task]

    @property
    def default_split(self) -> str:
        """The split of calibration images where none is named: "train" if there is one, else "val"; or "images"."""
        return UNLABELED_SPLIT if not self.labeled else "train" if "train" in self.splits else "val"

    @property
    def source(self) -> str | tuple[str, ...]:
        """What `open_dataset` opens again: the path, or the paths of a list without labels."""
        entries = (self.path,) if self.labeled else self.splits[UNLABELED_SPLIT]
        return str(entries[0]) if len(entries) == 1 else tuple(map(str, entries))

    def images(self, split: str) -> tuple[Path, ...]:
        """List the images of a split, sorted; the first one that can be read must have `channels` channels.

        Raises:
            DataError: There is no such split, one of its paths is missing, it has no images, or they have another
                number of channels.
        """
        asked = f"read split {split!r} of {self.path}"
        if split not in self.splits:
            raise DataError(
                asked,
                f"the data set has no such split (it has: {', '.join(self.splits) or 'none'})",
                "name one of these or add it",
                code="data-split-missing",
                path=self.path,
                split=split,
                names=tuple(self.splits),
            )
        images: set[Path] = set()
        if self.coco:
            images.update(list_coco_images(self.coco[split], asked))
        for path in self.splits[split] if not self.coco else ():
            images.update(resolve_images(path, asked) if self.labeled else list_source_images(path))
        if not images:
            raise DataError(
                asked,
                f"there are no images in {', '.join(str(path) for path in self.splits[split])}",
                "check the path",
                code="data-split-empty",
                path=self.path,
                split=split,
            )
        paths = tuple(sorted(images, key=str))
        _check_names(paths, asked)
        check_channels(paths, self.channels)
        return paths

    def labels(self, image: Path) -> Labels:
        """Read an image's labels, coordinates as fractions of its sides.

        Raises:
            DataError: The label file contradicts the data set, or there are no labels at all.
        """
        if not self.labeled:
            raise labels_needed(self)
        if self.label_format.uses_folders:
            return Labels(classes=np.array([self._find_class(image)], np.int64), boxes=np.zeros((0, 4), np.float32))
        if self.coco:
            file, name = find_coco_image(self.coco, image)
            file.check_names(self.names)
            return file.labels(name, self.task)
        return read_labels(label_path(image), task=self.task, classes=len(self.names), kpt_shape=self.kpt_shape)

    def require_labels(self, images: Sequence[Path]) -> int:
        """Check that images have labels.

        Returns:
            Number of images without a label file; they count as images without objects.

        Raises:
            DataError: No image has a label file.
        """
        if not self.labeled:
            raise labels_needed(self)
        if self.label_format.uses_folders:
            return 0
        if self.coco:
            # An image without annotations has no objects; it needs no file.
            entries = [find_coco_image(self.coco, image) for image in images]
            unlabeled = (
                0 if any(file.annotations.get(file.images[name]["id"]) for file, name in entries) else len(images)
            )
        else:
            unlabeled = sum(not os.path.isfile(label_path(image)) for image in images)  # noqa: PTH113
        if unlabeled == len(images):
            raise DataError(
                f"evaluate on {self.path}",
                f"none of {len(images)} images has labels ({label_path(images[0])} does not exist)",
                "put labels/.../<image>.txt beside images/.../<image>",
                code="data-labels-missing",
                path=self.path,
                expected=label_path(images[0]),
                count=len(images),
            )
        return unlabeled

    def hash(self, split: str) -> str:
        """Hash images, their labels and class names of a split: SHA-256, 64 hex digits; cached while no file changes.

        Raises:
            DataError: As `images` does.
        """
        return self.hash_images(self.images(split))

    def hash_images(self, images: Sequence[Path]) -> str:
        """Hash some images with their labels, such as a sample; see `hash`."""
        has_label_files = self.labeled and not self.label_format.uses_folders and not self.coco
        stamps = tuple(
            (
                str(path),
                *_stamp(path),
                *(_stamp(label_path(path)) if has_label_files else (self._describe_label(path),)),
            )
            for path in images
        )
        return _hash_content(stamps, tuple(self.names.values()), has_label_files)

    def _describe_label(self, image: Path) -> str | int:
        """What stands for the label of an image without a label file in its hash."""
        if self.coco:
            file, name = find_coco_image(self.coco, image)
            return file.hash(name)
        return self._find_class(image) if self.labeled else "unlabeled"

    def _find_class(self, image: Path) -> int:
        for paths in self.splits.values():
            for path in paths:
                if image.is_relative_to(path):
                    folder = image.relative_to(path).parts[0]
                    for number, name in self.names.items():
                        if name == folder:
                            return number
                    raise DataError(
                        f"read the class of {image}",
                        f"the folder {folder!r} is not among the classes of train ({', '.join(self.names.values())})",
                        "rename or remove it",
                        code="data-class-unknown",
                        path=image,
                        value=folder,
                        names=tuple(self.names.values()),
                    )
        raise DataError(
            f"read the class of {image}",
            f"it lies outside {self.path}",
            "give an image of this data set",
            code="data-image-outside",
            path=image,
        )


def _check_names(images: Sequence[Path], asked: str) -> None:
    """Refuse names that are not UTF-8: tables of results name images by path, and open them by it again."""
    odd = [image for image in images if escape_surrogates(str(image)) != str(image)]
    if odd:
        raise DataError(
            asked,
            f"the paths of {len(odd)} of {len(images)} images are not UTF-8, such as {escape_surrogates(str(odd[0]))}",
            "rename files and folders with letters of UTF-8, for example with convmv",
            code="data-path-encoding",
            path=odd[0],
            count=len(odd),
        )


def labels_needed(dataset: Dataset) -> DataError:
    """The error of a step that needs labels, for a data set of images alone."""
    folders = dataset.label_format.uses_folders
    count = len(dataset.images(UNLABELED_SPLIT))
    return DataError(
        f"read labels of {dataset.path} for {dataset.task}",
        f"it is {describe_images(count, UNLABELED_SPLIT)}",
        "give a folder with train/<class>/ and val/<class>/ for this step"
        if folders
        else "give a data.yaml with train, val and names for this step, and a label file for each image",
        code="data-labels-needed",
        path=dataset.path,
        count=count,
    )


# Images that were skipped


def warn_of_skipped(errors: Sequence[DataError], outcome: str = "skipped") -> None:
    """Warn once of images that were skipped because they, or their labels, can't be read.

    Args:
        errors: What was wrong with each.
        outcome: What happened to them.
    """
    if errors:
        count = "1 image was" if len(errors) == 1 else f"{len(errors)} images were"
        warn(f"{count} {outcome}: {describe_skipped(errors)}")


def describe_skipped(errors: Sequence[DataError]) -> str:
    """Which images, or labels of images, can't be read, and why; of many the first `MAX_NAMED`.

    Args:
        errors: What was wrong with each.
    """
    each = "; ".join(f"{error.asked.removeprefix('read ')[-200:]}: {error.found[:200]}" for error in errors[:MAX_NAMED])
    return f"{each}; and {len(errors) - MAX_NAMED} more" if len(errors) > MAX_NAMED else each


MAX_NAMED = 20
"""Most images that a warning names; results list all."""


def try_labels(dataset: Dataset, path: Path, errors: list[DataError]) -> Labels | None:
    """The labels of one image; None if its label file can't be read, whose error joins `errors`.

    Raises:
        DataError: The image has no class in the data set.
    """
    try:
        return dataset.labels(path)
    except DataError as error:
        if not is_label_error(error):
            raise
        errors.append(error)
        return None


def is_label_error(error: DataError) -> bool:
    """Whether an error says that one image's label file can't be read, rather than that the data set is wrong."""
    return error.code.startswith("data-label-") or error.code == "data-labels-unreadable"


# Content hashes


def _stamp(path: Path) -> tuple[int, int]:
    """Return size and modification time; (-1, 0) where there is no file."""
    try:
        status = path.stat()
    except OSError:
        return -1, 0
    return status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=64)
def _hash_content(stamps: tuple[tuple[Any, ...], ...], names: tuple[str, ...], has_label_files: bool) -> str:
    digest = hashlib.sha256("\0".join(names).encode())
    for stamp in stamps:
        image = Path(stamp[0])
        label = _read_bytes(label_path(image)) if has_label_files else str(stamp[3]).encode()
        for part in (image.name.encode(), _read_bytes(image), label):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return digest.hexdigest()


def _read_bytes(path: Path) -> bytes:
    """Return a file's bytes, b"" where it can't be read: such an image is skipped and reported elsewhere."""
    try:
        return read_limited(path, MAX_IMAGE_BYTES)
    except (OSError, ValueError):
        return b""
