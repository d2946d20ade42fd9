"""Data sets in Ultralytics' layout: a `data.yaml`, or a folder of class folders."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from trtkit.data.images import is_image, list_images
from trtkit.data.labels import LABEL_FORMATS, LabelFormat, Labels, label_path, read_labels
from trtkit.errors import DataError

__all__ = [
    "SPLITS",
    "Dataset",
    "open_dataset",
    "parse_names",
    "read_data_yaml",
    "resolve_images",
    "resolve_splits",
]

SPLITS = ("train", "val", "test", "minival")


# data.yaml


def read_data_yaml(path: Path) -> dict[str, Any]:
    """Read a `data.yaml` as a mapping; nothing in it is executed or downloaded.

    Raises:
        DataError: The file is missing, no YAML, or no mapping.
    """
    asked = f"read data set {path}"
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise DataError(
            asked,
            "there is no such file, and trtkit downloads no data sets",
            "give the path of a data.yaml on this machine (download the data set first)",
            code="data-yaml-missing",
            path=path,
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            asked, f"it can't be read ({error})", "check the file", code="data-yaml-unreadable", path=path
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = None if mark is None else mark.line + 1
        where = "" if line is None else f" at line {line}"
        raise DataError(
            asked, f"it is not valid YAML{where}", "correct the file", code="data-yaml-invalid", path=path, line=line
        ) from error
    if not isinstance(value, dict):
        raise DataError(
            asked,
            "it is not a mapping",
            "write keys such as path, train, val and names",
            code="data-yaml-not-mapping",
            path=path,
        )
    return {str(key): entry for key, entry in value.items()}


def parse_names(description: Mapping[str, Any], asked: str) -> dict[int, str]:
    """Parse class names by number, from `names` as a list or a mapping, or from `nc` alone.

    Args:
        description: From `read_data_yaml`.
        asked: The request that error messages start with.

    Raises:
        DataError: There are no names and no `nc`, or they contradict each other.
    """
    names, count = description.get("names"), description.get("nc")
    if names is None and count is None:
        raise DataError(asked, "neither names nor nc is given", "add names, one per class", code="data-names-missing")
    if count is not None:
        try:
            if int(count) != float(count) or int(count) < 1:
                raise ValueError
        except (TypeError, ValueError):
            raise DataError(
                asked, f"nc is {count!r}", "write the number of classes", code="data-nc-invalid", value=count
            ) from None
        count = int(count)
    if names is None:
        return {index: f"class_{index}" for index in range(count or 0)}
    if isinstance(names, list):
        parsed = {index: str(name) for index, name in enumerate(names)}
    elif isinstance(names, dict):
        try:
            parsed = {int(index): str(name) for index, name in names.items()}
        except (TypeError, ValueError):
            raise DataError(
                asked, "a key of names is not a number", "number the classes from 0", code="data-names-not-numbered"
            ) from None
    else:
        raise DataError(
            asked,
            f"names is a {type(names).__name__}",
            "write a list, or a mapping from number to name",
            code="data-names-invalid",
            value=names,
        )
    if sorted(parsed) != list(range(len(parsed))) or not parsed:
        raise DataError(
            asked,
            f"names are numbered {sorted(parsed)}",
            "number the classes from 0 without gaps",
            code="data-names-not-numbered",
            numbers=tuple(sorted(parsed)),
        )
    if count is not None and count != len(parsed):
        raise DataError(
            asked,
            f"nc is {count} but there are {len(parsed)} names",
            "make them agree",
            code="data-names-count",
            nc=count,
            names=len(parsed),
        )
    return dict(sorted(parsed.items()))


def resolve_splits(description: Mapping[str, Any], path: Path) -> dict[str, tuple[Path, ...]]:
    """Resolve the folders, text files and images of each split to absolute paths.

    Args:
        description: From `read_data_yaml`.
        path: The YAML file; `path` in it is relative to its folder, splits are relative to `path`.

    Raises:
        DataError: A split is neither a string nor a list of strings.
    """
    root = path.parent / str(description.get("path") or ".")
    paths: dict[str, tuple[Path, ...]] = {}
    for split in (*SPLITS, "validation"):
        value = description.get(split)
        if value is None:
            continue
        entries = value if isinstance(value, list) else [value]
        if not entries or not all(isinstance(entry, str) and entry for entry in entries):
            raise DataError(
                f"read data set {path}",
                f"{split} is {value!r}",
                "write a folder, a text file or a list of them",
                code="data-split-invalid",
                path=path,
                split=split,
                value=value,
            )
        name = "val" if split == "validation" else split
        paths.setdefault(name, tuple(_resolve_path(root, entry) for entry in entries))
    return paths


def _resolve_path(root: Path, entry: str) -> Path:
    path = (root / entry).resolve()
    # Some tools write ../train/images into a YAML file that is meant to be one folder deeper.
    if not path.exists() and entry.startswith("../") and (root / entry[3:]).exists():
        return (root / entry[3:]).resolve()
    return path


def resolve_images(path: Path, asked: str) -> tuple[Path, ...]:
    """List the images of a folder, of a text file, or the image itself.

    A line of a text file is absolute or relative to the text file's folder.

    Args:
        path: The folder, text file or image.
        asked: The request that error messages start with.

    Raises:
        DataError: The path is missing, or a text file lists images that are.
    """
    if path.is_dir():
        return list_images(path)
    if not path.exists():
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
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            asked,
            f"{path} is no list of images ({error})",
            "write one path per line",
            code="data-list-unreadable",
            path=path,
        ) from error
    listed = [path.parent / line.strip() for line in lines if line.strip()]
    images = [image for image in listed if is_image(image)]
    missing = [image for image in images if not image.is_file()]
    if missing:
        raise DataError(
            asked,
            f"{len(missing)} of {len(images)} images in {path} are missing, the first is {missing[0]}",
            "correct the list or add the images",
            code="data-images-missing",
            path=path,
            missing=tuple(missing),
            count=len(images),
        )
    return tuple(images)


# Data sets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """Images and labels on disk, read on demand.

    Attributes:
        path: The YAML file, or the folder for classify.
        task: The task that labels are read for.
        names: Class names by number.
        splits: The folders, text files or images of each split.
        kpt_shape: (points, 2 or 3) for pose, None otherwise.
        flip_idx: The keypoint that each becomes in a mirrored image, or ().
        sigmas: OKS sigma of each keypoint if the YAML file has `kpt_oks_sigmas`, or ().
    """

    path: Path
    task: str
    names: Mapping[int, str]
    splits: Mapping[str, tuple[Path, ...]]
    kpt_shape: tuple[int, int] | None = None
    flip_idx: tuple[int, ...] = ()
    sigmas: tuple[float, ...] = ()

    @property
    def label_format(self) -> LabelFormat:
        """How labels are read."""
        return LABEL_FORMATS[self.task]

    def images(self, split: str) -> tuple[Path, ...]:
        """List the images of a split, sorted.

        Raises:
            DataError: There is no such split, one of its paths is missing, or it has no images.
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
        for path in self.splits[split]:
            images.update(resolve_images(path, asked))
        if not images:
            raise DataError(
                asked,
                f"there are no images in {', '.join(str(path) for path in self.splits[split])}",
                "check the path",
                code="data-split-empty",
                path=self.path,
                split=split,
            )
        return tuple(sorted(images, key=str))

    def labels(self, image: Path) -> Labels:
        """Read an image's labels, coordinates as fractions of its sides.

        Raises:
            DataError: The label file contradicts the data set.
        """
        if self.label_format.uses_folders:
            return Labels(classes=np.array([self._find_class(image)], np.int64), boxes=np.zeros((0, 4), np.float32))
        return read_labels(label_path(image), task=self.task, classes=len(self.names), kpt_shape=self.kpt_shape)

    def require_labels(self, images: Sequence[Path]) -> int:
        """Check that images have labels.

        Returns:
            Number of images without a label file; they count as images without objects.

        Raises:
            DataError: No image has a label file.
        """
        if self.label_format.uses_folders:
            return 0
        unlabeled = sum(not label_path(image).is_file() for image in images)
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
        """Hash images, labels and class names of a split: SHA-256, 64 hex digits; cached while no file changes.

        Raises:
            DataError: As `images` does.
        """
        return self.hash_images(self.images(split))

    def hash_images(self, images: Sequence[Path]) -> str:
        """Hash some images with their labels, such as a sample; see `hash`."""
        has_label_files = not self.label_format.uses_folders
        stamps = tuple(
            (
                str(path),
                *_stamp(path),
                *(_stamp(label_path(path)) if has_label_files else (self._find_class(path),)),
            )
            for path in images
        )
        return _hash_content(stamps, tuple(self.names.values()), has_label_files)

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


def open_dataset(data: str | Path | Dataset, *, task: str) -> Dataset:
    """Open a data set for a task.

    Args:
        data: A `data.yaml`, a folder with one YAML file, a folder with class folders below train/ and val/ for
            classify, or an open data set.
        task: "detect", "segment", "classify", "pose", "obb", or the name of a registered task.

    Returns:
        The data set; images and labels are read on demand.

    Raises:
        DataError: The data set is missing, or its description contradicts itself or the task.
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
        return data if data.task == task else open_dataset(data.path, task=task)
    path = Path(data).expanduser()
    if LABEL_FORMATS[task].uses_folders:
        return _open_class_folders(path, task)
    if path.is_dir():
        files = sorted((*path.glob("*.yaml"), *path.glob("*.yml")))
        if len(files) != 1:
            raise DataError(
                f"open data set {path}",
                f"the folder has {len(files)} YAML files",
                "give the data.yaml itself",
                code="data-yaml-ambiguous",
                path=path,
                count=len(files),
            )
        path = files[0]
    return _open_yaml(path.absolute(), task)


def _open_yaml(path: Path, task: str) -> Dataset:
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
    kpt_shape = _parse_kpt_shape(description.get("kpt_shape"), asked)
    if LABEL_FORMATS[task].needs_kpt_shape and kpt_shape is None:
        raise DataError(
            asked,
            f"{task} needs kpt_shape",
            "add kpt_shape: [points, 2 or 3]",
            code="data-kpt-shape-missing",
            path=path,
        )
    sigmas = tuple(float(value) for value in description.get("kpt_oks_sigmas") or ())
    if sigmas and kpt_shape is not None and len(sigmas) != kpt_shape[0]:
        raise DataError(
            asked,
            f"{len(sigmas)} kpt_oks_sigmas for {kpt_shape[0]} keypoints",
            "give one for each",
            code="data-sigmas-count",
            path=path,
            sigmas=len(sigmas),
            keypoints=kpt_shape[0],
        )
    return Dataset(
        path=path,
        task=task,
        names=parse_names(description, asked),
        splits=splits,
        kpt_shape=kpt_shape,
        flip_idx=tuple(int(index) for index in description.get("flip_idx") or ()),
        sigmas=sigmas,
    )


def _parse_kpt_shape(value: Any, asked: str) -> tuple[int, int] | None:
    if value is None:
        return None
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(isinstance(n, int) for n in value)
        or value[1] not in (2, 3)
    ):
        raise DataError(
            asked, f"kpt_shape is {value!r}", "write [points, 2 or 3]", code="data-kpt-shape-invalid", value=value
        )
    return value[0], value[1]


def _open_class_folders(path: Path, task: str) -> Dataset:
    """Open class folders: train/<class>/*.jpg and val/<class>/*.jpg; class names are the sorted folders of train.

    Raises:
        DataError: The folder, its splits or its class folders are missing.
    """
    asked = f"open data set {path} for {task}"
    if not path.is_dir():
        raise DataError(
            asked,
            "there is no such folder, and trtkit downloads no data sets",
            "give a folder with train/ and val/",
            code="data-folder-missing",
            path=path,
        )
    path = path.absolute()
    splits = {split: (path / split,) for split in SPLITS if (path / split).is_dir()}
    for other in ("validation", "valid"):
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
    names = sorted(folder.name for folder in first.iterdir() if folder.is_dir() and list_images(folder))
    if not names:
        raise DataError(
            asked,
            f"{first} has no class folders with images",
            "make one folder per class",
            code="data-class-folders-missing",
            path=first,
        )
    return Dataset(path=path, task=task, names=dict(enumerate(names)), splits=splits)


# Content hashes


def _stamp(path: Path) -> tuple[int, int]:
    """Return size and modification time; (-1, 0) where there is no file."""
    try:
        status = path.stat()
    except FileNotFoundError:
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
        return path.read_bytes()
    except OSError:
        return b""
