"""Data sets: a `data.yaml`, a folder of class folders, or a folder in COCO's layout; and images without labels."""

from __future__ import annotations

import dataclasses
import functools
import glob
import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from trtkit.data.coco import CocoSplit, find_coco_image, find_coco_splits, list_coco_images, read_coco
from trtkit.data.data_yaml import (
    SPLITS,
    parse_flip_idx,
    parse_kpt_shape,
    parse_names,
    parse_sigmas,
    read_data_yaml,
    resolve_channels,
    resolve_splits,
)
from trtkit.data.image_files import MAX_IMAGE_BYTES, check_channels, is_image, list_images
from trtkit.data.labels import LABEL_FORMATS, LabelFormat, Labels, label_path, read_labels
from trtkit.downloads import describe_download, locate
from trtkit.errors import DataError, warn
from trtkit.files import escape_surrogates, read_limited

__all__ = [
    "SPLITS",
    "UNLABELED_SPLIT",
    "DataSource",
    "Dataset",
    "describe_images",
    "describe_skipped",
    "is_label_error",
    "list_source_images",
    "open_dataset",
    "resolve_images",
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


# Images of a source


MAX_LIST_BYTES = 128 * 2**20
"""Largest text file of image paths: the 1.3 million of ImageNet take about 80 MB."""


def resolve_images(path: Path, asked: str) -> tuple[Path, ...]:
    """List the images of a folder, of a text file, or the image itself; one warning names other image files.

    A line of a text file is absolute, or relative to the text file's folder, else to the working folder, as in
    Ultralytics.

    Args:
        path: The folder, text file or image.
        asked: The request that error messages start with.

    Raises:
        DataError: The path is missing, no list, or a text file lists images that are missing.
    """
    passed_over: list[Path] = []
    # `os.path` takes a name of 300 letters, or one with a zero byte, for a missing file, where pathlib raises.
    if os.path.isdir(path):  # noqa: PTH112
        images = list_images(path, passed_over)
        _warn_of_passed_over(path, passed_over)
        return images
    if not os.path.exists(path):  # noqa: PTH110
        raise DataError(
            asked,
            f"{path} does not exist",
            "check path and the splits in the YAML file",
            code="data-split-path-missing",
            path=path,
        )
    if is_image(path):
        return (path,)
    try:
        text = read_limited(path, MAX_LIST_BYTES).decode("utf-8-sig")
        if "\0" in text:
            raise ValueError("it holds zero bytes")
    except (OSError, ValueError) as error:
        raise DataError(
            asked,
            f"{path} is no list of images ({error})",
            "write one path per line",
            code="data-list-unreadable",
            path=path,
        ) from error
    listed: list[Path] = []
    missing: list[Path] = []
    for line in io.StringIO(text):
        name = line.strip()
        if not name:
            continue
        image = path.parent / name
        if not is_image(image):
            passed_over.append(image)
        elif os.path.isfile(image):  # noqa: PTH113
            listed.append(image)
        elif os.path.isfile(name):  # noqa: PTH113
            listed.append(Path(name).absolute())
        else:
            missing.append(image)
    if missing:
        raise DataError(
            asked,
            f"{len(missing)} of {len(listed) + len(missing)} images in {path} are missing, the first is {missing[0]} "
            f"(tried the folder of the list and {Path.cwd()})",
            "correct the list or add the images",
            code="data-images-missing",
            path=path,
            missing=tuple(missing),
            count=len(listed) + len(missing),
        )
    _warn_of_passed_over(path, passed_over)
    return tuple(listed)


def _warn_of_passed_over(source: Path, paths: Sequence[Path]) -> None:
    """Warn once of files in an image folder or list that look like images and are of a format that isn't read."""
    if paths:
        names = ", ".join(path.name[:80] for path in paths[:5])
        more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
        warn(f"{len(paths)} files in {source} are no images that can be read and were passed over: {names}{more}")


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


# Data sets


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
            raise _labels_needed(self)
        if self.label_format.uses_folders:
            return Labels(classes=np.array([self._find_class(image)], np.int64), boxes=np.zeros((0, 4), np.float32))
        if self.coco:
            file, name = find_coco_image(self.coco, image)
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
            raise _labels_needed(self)
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


DataSource: TypeAlias = str | Path | Dataset | Sequence[str | Path]
"""What `data=` takes: a `data.yaml`, a folder, a glob pattern, an image, a list of these, or an open data set."""


def open_dataset(
    data: DataSource,
    *,
    task: str,
    channels: int | None = None,
    needs_labels: bool = True,
    download: bool | None = None,
) -> Dataset:
    """Open a data set, or images without labels, for a task.

    Args:
        data: With labels: a `data.yaml`, a folder with one YAML file, a folder with class folders below train/ and val/
            for classify, a folder in COCO's layout (`annotations/instances_val2017.json`, `val2017/`) for detect,
            segment and pose, or an open data set. Without labels: a folder of images, a glob pattern, a text file with
            one path per line, an image, or a list of these.
        task: "detect", "segment", "classify", "pose", "obb", or the name of a registered task.
        channels: Channels that the model takes; None takes those of the YAML file, or 3.
        needs_labels: Whether images without labels are an error.
        download: Fetch a small data set that Ultralytics publishes, such as "coco8.yaml" or "imagenet10", if it is
            neither on disk nor in the cache folder; None asks `TRTKIT_DOWNLOAD`, else the user at a terminal.

    Returns:
        The data set; images and labels are read on demand.

    Raises:
        DataError: The data set is missing, has no labels where they are needed, has images with other channels, or its
            description contradicts itself or the task.
        DownloadError: The download failed, or the file has another SHA-256 than at the first download.
    """
    if task not in LABEL_FORMATS:
        raise DataError(
            f"open data set {data} for {task!r}",
            "there is no such task",
            f"use one of {', '.join(LABEL_FORMATS)}",
            code="data-task-unknown",
            value=task,
            names=tuple(LABEL_FORMATS),
        )
    if isinstance(data, Dataset):
        fits = data.task == task and channels in (None, data.channels)
        dataset = data if fits else open_dataset(data.source, task=task, channels=channels, needs_labels=needs_labels)
    else:
        dataset = _open_source(data, task, channels, download)
    if needs_labels and not dataset.labeled:
        raise _labels_needed(dataset)
    return dataset


def _open_source(
    data: str | Path | Sequence[str | Path], task: str, channels: int | None, download: bool | None
) -> Dataset:
    """Open what `open_dataset` takes, except an open data set."""
    is_path = isinstance(data, (str, Path))
    if not is_path and not (isinstance(data, (list, tuple)) and all(isinstance(one, (str, Path)) for one in data)):
        raise DataError(
            f"open data set {str(data)[:60]!r}",
            f"a {type(data).__name__} was given",
            "pass the path of a data.yaml, a folder, a glob pattern, an image, or a list of these",
            code="data-type-unknown",
            value=data,
        )
    if not isinstance(data, (str, Path)):
        return _open_source(data[0], task, channels, download) if len(data) == 1 else _open_images(data, task, channels)
    try:
        path = locate(Path(data).expanduser(), download)
        exists = path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # such as a name of 300 letters, a zero byte, an unknown ~user
        raise DataError(
            f"open data set {data}", str(error), "check the path", code="data-path-invalid", path=Path(data)
        ) from error
    how_to_download = describe_download(path) if not exists else ""
    if how_to_download:
        raise DataError(
            f"open data set {path}", "it is not on disk", how_to_download, code="data-not-downloaded", path=path
        )
    uses_folders = LABEL_FORMATS[task].uses_folders
    if path.suffix.lower() == ".json" and path.parent.name == "annotations":
        path = path.parent.parent
    if path.is_dir() and not uses_folders and not any(path.glob("*.y*ml")) and any(path.glob("annotations/*.json")):
        return _open_coco(path.absolute(), task, channels)
    if path.is_dir():
        files = () if uses_folders else sorted((*path.glob("*.yaml"), *path.glob("*.yml")))
        is_empty = not files and not list_images(path)
        if len(files) > 1 or (is_empty and not uses_folders):
            raise DataError(
                f"open data set {path}",
                "the folder has no YAML file and no image" if is_empty else f"the folder has {len(files)} YAML files",
                "give the data.yaml itself, or a folder of images" if is_empty else "give the data.yaml itself",
                code="data-yaml-ambiguous",
                path=path,
                count=len(files),
            )
        if files:
            return _open_yaml(files[0].absolute(), task, channels)
        has_splits = any((path / split).is_dir() for split in (*SPLITS, *VALIDATION_FOLDERS))
        if uses_folders and (has_splits or is_empty):
            return _open_class_folders(path, task, channels)
        return _open_images([data], task, channels)
    if is_image(path) or path.suffix.lower() == LIST_SUFFIX or (glob.has_magic(str(path)) and not exists):
        return _open_images([data], task, channels)
    return _open_class_folders(path, task, channels) if uses_folders else _open_yaml(path.absolute(), task, channels)


def _open_images(entries: Sequence[str | Path], task: str, channels: int | None) -> Dataset:
    """Open images without labels as a data set with the one split "images".

    Raises:
        DataError: There are none, or one is missing.
    """
    images = list_source_images(entries)
    paths = tuple(Path(entry).expanduser().absolute() for entry in entries)
    return Dataset(
        path=paths[0] if len(paths) == 1 else Path(os.path.commonpath([image.parent for image in images])),
        task=task,
        names={},
        splits={UNLABELED_SPLIT: paths},
        labeled=False,
        channels=channels or 3,
    )


LIST_SUFFIX = ".txt"
"""Suffix of a text file with one image path per line."""


def list_source_images(data: str | Path | Sequence[str | Path]) -> tuple[Path, ...]:
    """List the images of a folder, a glob pattern, a text file of paths, an image, or a list of these.

    Args:
        data: One or several; other files than images in a folder or behind a pattern are ignored.

    Returns:
        Absolute paths, sorted, each once.

    Raises:
        DataError: A named file is missing or no image, or a folder, a pattern or the list gives no image.
    """
    entries: Sequence[str | Path] = [data] if isinstance(data, (str, Path)) else data
    images: set[Path] = set()
    for entry in entries:
        asked = f"list the images of {entry}"
        try:
            path = Path(entry).expanduser().absolute()
            exists = path.exists()
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(asked, str(error), "check the path", code="data-path-invalid", path=Path(entry)) from error
        if not exists and glob.has_magic(str(path)):
            matches = list(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
            inside = {image for match in matches for image in (list_images(match) if match.is_dir() else (match,))}
            listed = tuple(image for image in inside if is_image(image))
            found, do = "no image matches the pattern", "correct the pattern"
        else:
            if not exists:
                raise DataError(
                    asked, "there is no such file or folder", "check the path", code="data-path-missing", path=path
                )
            if not path.is_dir() and not is_image(path) and path.suffix.lower() != LIST_SUFFIX:
                raise DataError(
                    asked,
                    "it is no image",
                    "give image files, a folder or a pattern of them",
                    code="data-not-an-image",
                    path=path,
                )
            listed = resolve_images(path, asked)
            found, do = "there is no image in it", "name a folder or a list with images"
        if not listed:
            raise DataError(asked, found, do, code="data-images-none", path=path)
        images.update(listed)
    if not images:
        raise DataError(
            "list images", "the list is empty", "pass one image or more", code="data-images-none", path=None
        )
    return tuple(sorted(images, key=str))


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


def _labels_needed(dataset: Dataset) -> DataError:
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


def _open_yaml(path: Path, task: str, channels: int | None) -> Dataset:
    asked = f"read data set {path}"
    description = read_data_yaml(path)
    splits = resolve_splits(description, path)
    if not splits:
        raise DataError(
            asked,
            f"it has no split ({', '.join(SPLITS)} are missing)",
            "add train and val",
            code="data-splits-missing",
            path=path,
        )
    kpt_shape = parse_kpt_shape(description.get("kpt_shape"), asked)
    if LABEL_FORMATS[task].needs_kpt_shape and kpt_shape is None:
        raise DataError(
            asked,
            f"{task} needs kpt_shape",
            "add kpt_shape: [points, 2 or 3]",
            code="data-kpt-shape-missing",
            path=path,
        )
    return Dataset(
        path=path,
        task=task,
        names=parse_names(description, asked),
        splits=splits,
        kpt_shape=kpt_shape,
        flip_idx=parse_flip_idx(description.get("flip_idx"), kpt_shape, asked),
        sigmas=parse_sigmas(description.get("kpt_oks_sigmas"), kpt_shape, asked),
        channels=resolve_channels(description.get("channels"), channels, asked),
    )


def _open_coco(path: Path, task: str, channels: int | None) -> Dataset:
    """Open a folder in COCO's layout; class names are the categories in the order of their ids.

    Raises:
        DataError: It has no labels of the task, its images are missing, or an annotation file can't be read.
    """
    splits = find_coco_splits(path, task)
    # The training file may be twenty times as large, and is read when its images are needed.
    first = read_coco(min((one.annotations for one in splits.values()), key=lambda file: file.stat().st_size))
    if LABEL_FORMATS[task].needs_kpt_shape and first.kpt_shape is None:
        raise DataError(
            f"open data set {path} for {task}",
            f"no category of {first.path.name} has keypoints",
            "list their names in the category",
            code="data-kpt-shape-missing",
            path=first.path,
        )
    return Dataset(
        path=path,
        task=task,
        names=first.names,
        splits={split: (one.folder,) for split, one in splits.items()},
        kpt_shape=first.kpt_shape if task == "pose" else None,
        channels=channels or 3,
        coco=splits,
    )


VALIDATION_FOLDERS = ("validation", "valid")
"""Other names of the folder val/."""


def _open_class_folders(path: Path, task: str, channels: int | None) -> Dataset:
    """Open class folders: train/<class>/*.jpg and val/<class>/*.jpg; class names are the sorted folders of train.

    Raises:
        DataError: The folder, its splits or its class folders are missing.
    """
    asked = f"open data set {path} for {task}"
    if not path.is_dir():
        raise DataError(
            asked,
            "there is no such folder",
            "give a folder with train/ and val/",
            code="data-folder-missing",
            path=path,
        )
    path = path.absolute()
    splits = {split: (path / split,) for split in SPLITS if (path / split).is_dir()}
    for other in VALIDATION_FOLDERS:
        if "val" not in splits and (path / other).is_dir():
            splits["val"] = (path / other,)
    if not splits:
        raise DataError(
            asked,
            "it has neither train/ nor val/",
            "put the class folders below train/ and val/",
            code="data-splits-missing",
            path=path,
        )
    first = (splits.get("train") or next(iter(splits.values())))[0]
    names = sorted(
        folder.name
        for folder in first.iterdir()
        if folder.is_dir() and not folder.name.startswith(".") and list_images(folder)
    )
    if not names:
        raise DataError(
            asked,
            f"{first} has no class folders with images",
            "make one folder per class",
            code="data-class-folders-missing",
            path=first,
        )
    return Dataset(path=path, task=task, names=dict(enumerate(names)), splits=splits, channels=channels or 3)


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
