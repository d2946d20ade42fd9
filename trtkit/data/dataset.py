"""A labeled image set as Ultralytics writes it: a `data.yaml`, or a folder of class folders."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from trtkit.data.images import is_image, list_images, read_image
from trtkit.data.labels import Labels, label_path, read_labels
from trtkit.errors import DataError
from trtkit.models.model import TASKS

__all__ = [
    "SPLITS",
    "Dataset",
    "open_dataset",
    "parse_names",
    "read_data_yaml",
    "read_image",
    "resolve_images",
    "resolve_splits",
]


# What a `data.yaml` says, checked and with every path made absolute.


SPLITS = ("train", "val", "test", "minival")


def read_data_yaml(path: Path) -> dict[str, Any]:
    """Read a `data.yaml` as a mapping; nothing in it is run or fetched.

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
            "give the path of a data.yaml on this machine (fetch the set first if you only know its name)",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(asked, f"it can't be read ({error})", "check the file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark is not None else ""
        raise DataError(asked, f"it is not valid YAML{where}", "correct the file") from error
    if not isinstance(value, dict):
        raise DataError(asked, "it holds no mapping", "write keys such as path, train, val and names")
    return {str(key): entry for key, entry in value.items()}


def parse_names(description: Mapping[str, Any], asked: str) -> dict[int, str]:
    """Class names by number, from `names` as a list or a map, or from `nc` alone.

    Raises:
        DataError: There are no names and no `nc`, or they contradict each other.
    """
    names, count = description.get("names"), description.get("nc")
    if names is None and count is None:
        raise DataError(asked, "neither names nor nc is given", "add names, one for each class")
    if count is not None:
        try:
            if int(count) != float(count) or int(count) < 1:
                raise ValueError
        except (TypeError, ValueError):
            raise DataError(asked, f"nc is {count!r}", "write the number of classes") from None
        count = int(count)
    if names is None:
        return {index: f"class_{index}" for index in range(count or 0)}
    if isinstance(names, list):
        found = {index: str(name) for index, name in enumerate(names)}
    elif isinstance(names, dict):
        try:
            found = {int(index): str(name) for index, name in names.items()}
        except (TypeError, ValueError):
            raise DataError(asked, "a key of names is no number", "number the classes from 0") from None
    else:
        raise DataError(asked, f"names is a {type(names).__name__}", "write a list, or a map from number to name")
    if sorted(found) != list(range(len(found))) or not found:
        raise DataError(asked, f"names are numbered {sorted(found)}", "number the classes from 0 without gaps")
    if count is not None and count != len(found):
        raise DataError(asked, f"nc is {count} but there are {len(found)} names", "make them agree")
    return dict(sorted(found.items()))


def resolve_splits(description: Mapping[str, Any], path: Path) -> dict[str, tuple[Path, ...]]:
    """The folders, text files and images that each split names.

    Args:
        description: What `read_data_yaml` gave.
        path: The YAML file; `path` in it is resolved against its folder, splits against `path`.

    Raises:
        DataError: A split is neither text nor a list of texts.
    """
    root = path.parent / str(description.get("path") or ".")
    places: dict[str, tuple[Path, ...]] = {}
    for split in (*SPLITS, "validation"):
        value = description.get(split)
        if value is None:
            continue
        entries = value if isinstance(value, list) else [value]
        if not entries or not all(isinstance(entry, str) and entry for entry in entries):
            raise DataError(
                f"read data set {path}", f"{split} is {value!r}", "write a folder, a text file or a list of them"
            )
        name = "val" if split == "validation" else split
        places.setdefault(name, tuple(_resolve_path(root, entry) for entry in entries))
    return places


def _resolve_path(root: Path, entry: str) -> Path:
    place = (root / entry).resolve()
    # Some tools write ../train/images beside the YAML file they mean to be one folder deeper.
    if not place.exists() and entry.startswith("../") and (root / entry[3:]).exists():
        return (root / entry[3:]).resolve()
    return place


def resolve_images(place: Path, asked: str) -> tuple[Path, ...]:
    """The images that a folder, a text file or an image's own path names.

    A line of a text file is absolute or relative to the text file's folder.

    Raises:
        DataError: The place is missing, or a text file names images that are.
    """
    if place.is_dir():
        return list_images(place)
    if not place.exists():
        raise DataError(asked, f"{place} does not exist", "check path and the splits in the YAML file")
    if is_image(place):
        return (place,)
    try:
        lines = place.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(asked, f"{place} is no list of images ({error})", "write one path a line") from error
    listed = [place.parent / line.strip() for line in lines if line.strip()]
    images = [path for path in listed if is_image(path)]
    missing = [path for path in images if not path.is_file()]
    if missing:
        raise DataError(
            asked,
            f"{len(missing)} of {len(images)} images in {place} are missing, the first is {missing[0]}",
            "correct the list or bring the images",
        )
    return tuple(images)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """Images and labels on disk; nothing is read before it is asked for.

    Attributes:
        path: The YAML file, or the folder for classify.
        task: What the labels are read for.
        names: Class names by number.
        splits: What each split names: folders, text files or images.
        kpt_shape: (points, 2 or 3) for pose, None otherwise.
        flip_idx: Which keypoint each becomes in a mirror, or ().
        sigmas: Spread of each keypoint for OKS where the YAML file has `kpt_oks_sigmas`, or ().
    """

    path: Path
    task: str
    names: Mapping[int, str]
    splits: Mapping[str, tuple[Path, ...]]
    kpt_shape: tuple[int, int] | None = None
    flip_idx: tuple[int, ...] = ()
    sigmas: tuple[float, ...] = ()

    def images(self, split: str) -> tuple[Path, ...]:
        """The images of a split, sorted.

        Raises:
            DataError: There is no such split, a place it names is missing, or it holds no images.
        """
        asked = f"read split {split!r} of {self.path}"
        if split not in self.splits:
            there = ", ".join(self.splits) or "none"
            raise DataError(asked, f"the data set has no such split (it has: {there})", "name one of these or add it")
        found: set[Path] = set()
        for place in self.splits[split]:
            found.update(resolve_images(place, asked))
        if not found:
            places = ", ".join(str(place) for place in self.splits[split])
            raise DataError(asked, f"there are no images in {places}", "check the path")
        return tuple(sorted(found, key=str))

    def labels(self, image: Path) -> Labels:
        """An image's labels, coordinates as shares of its sides.

        Raises:
            DataError: The label file contradicts the data set.
        """
        if self.task == "classify":
            return Labels(classes=np.array([self._find_class(image)], np.int64), boxes=np.zeros((0, 4), np.float32))
        return read_labels(label_path(image), task=self.task, classes=len(self.names), kpt_shape=self.kpt_shape)

    def require_labels(self, images: Sequence[Path]) -> int:
        """Make sure that there is something to judge by.

        Returns:
            How many of the images have no label file; they count as images without objects.

        Raises:
            DataError: None of the images has one.
        """
        if self.task == "classify":
            return 0
        bare = sum(not label_path(image).is_file() for image in images)
        if bare == len(images):
            raise DataError(
                f"judge by {self.path}",
                f"none of {len(images)} images has labels ({label_path(images[0])} is not there)",
                "put labels/.../<image>.txt beside images/.../<image>",
            )
        return bare

    def hash(self, split: str) -> str:
        """SHA-256 over images, labels and class names, as 64 hex digits; kept while no file changes.

        Raises:
            DataError: As `images` does.
        """
        return self.hash_images(self.images(split))

    def hash_images(self, images: Sequence[Path]) -> str:
        """`hash` of some images only, such as the ones a sample drew."""
        labeled = self.task != "classify"
        stamps = tuple(
            (str(path), *_stamp(path), *(_stamp(label_path(path)) if labeled else (self._find_class(path),)))
            for path in images
        )
        return _hash_content(stamps, tuple(self.names.values()), labeled)

    def _find_class(self, image: Path) -> int:
        for places in self.splits.values():
            for place in places:
                if image.is_relative_to(place):
                    name = image.relative_to(place).parts[0]
                    for number, known in self.names.items():
                        if known == name:
                            return number
                    raise DataError(
                        f"read the class of {image}",
                        f"the folder {name!r} is not among the classes of train ({', '.join(self.names.values())})",
                        "rename or remove it",
                    )
        raise DataError(f"read the class of {image}", f"it lies outside {self.path}", "name an image of this data set")


def open_dataset(data: str | Path | Dataset, *, task: str) -> Dataset:
    """Open a data set for a task.

    Args:
        data: A `data.yaml`, a folder with one YAML file in it, a folder of class folders below train/ and val/ for
            classify, or an open data set.
        task: "detect", "segment", "classify", "pose" or "obb".

    Returns:
        The data set; images and labels are read when asked for.

    Raises:
        DataError: The data set is missing, or its description contradicts itself or the task.
    """
    if task not in TASKS:
        raise DataError(f"open data set {data} for {task!r}", "there is no such task", f"use one of {', '.join(TASKS)}")
    if isinstance(data, Dataset):
        return data if data.task == task else open_dataset(data.path, task=task)
    path = Path(data).expanduser()
    if task == "classify":
        return _open_class_folders(path)
    if path.is_dir():
        found = sorted((*path.glob("*.yaml"), *path.glob("*.yml")))
        if len(found) != 1:
            raise DataError(
                f"open data set {path}", f"the folder holds {len(found)} YAML files", "name the data.yaml itself"
            )
        path = found[0]
    return _open_yaml(path.absolute(), task)


def _open_yaml(path: Path, task: str) -> Dataset:
    asked = f"read data set {path}"
    description = read_data_yaml(path)
    splits = resolve_splits(description, path)
    if not splits:
        raise DataError(asked, f"it names no images ({', '.join(SPLITS)} are missing)", "add train and val")
    kpt_shape = _kpt_shape(description.get("kpt_shape"), asked)
    if task == "pose" and kpt_shape is None:
        raise DataError(asked, "pose needs kpt_shape", "add kpt_shape: [points, 2 or 3]")
    sigmas = tuple(float(value) for value in description.get("kpt_oks_sigmas") or ())
    if sigmas and kpt_shape is not None and len(sigmas) != kpt_shape[0]:
        raise DataError(asked, f"{len(sigmas)} kpt_oks_sigmas for {kpt_shape[0]} keypoints", "give one for each")
    return Dataset(
        path=path,
        task=task,
        names=parse_names(description, asked),
        splits=splits,
        kpt_shape=kpt_shape,
        flip_idx=tuple(int(index) for index in description.get("flip_idx") or ()),
        sigmas=sigmas,
    )


def _kpt_shape(value: Any, asked: str) -> tuple[int, int] | None:
    if value is None:
        return None
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(isinstance(n, int) for n in value)
        or value[1] not in (2, 3)
    ):
        raise DataError(asked, f"kpt_shape is {value!r}", "write [points, 2 or 3]")
    return value[0], value[1]


def _open_class_folders(path: Path) -> Dataset:
    """Open class folders: train/<class>/*.jpg and val/<class>/*.jpg; the class names are the sorted folders of train.

    Raises:
        DataError: The folder or its train split is missing.
    """
    asked = f"open data set {path} for classify"
    if not path.is_dir():
        raise DataError(
            asked,
            "there is no such folder, and trtkit downloads no data sets",
            "name a folder that holds train/ and val/",
        )
    path = path.absolute()
    splits = {split: (path / split,) for split in SPLITS if (path / split).is_dir()}
    for other in ("validation", "valid"):
        if "val" not in splits and (path / other).is_dir():
            splits["val"] = (path / other,)
    if not splits:
        raise DataError(asked, "it holds neither train/ nor val/", "put the class folders below train/ and val/")
    naming = splits.get("train") or next(iter(splits.values()))
    names = sorted(folder.name for folder in naming[0].iterdir() if folder.is_dir() and list_images(folder))
    if not names:
        raise DataError(asked, f"{naming[0]} holds no class folders with images", "make one folder for each class")
    return Dataset(path=path, task="classify", names=dict(enumerate(names)), splits=splits)


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of last change; (-1, 0) where there is no file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return -1, 0
    return status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=64)
def _hash_content(stamps: tuple[tuple[Any, ...], ...], names: tuple[str, ...], labeled: bool) -> str:
    digest = hashlib.sha256("\0".join(names).encode())
    for stamp in stamps:
        image = Path(stamp[0])
        parts = [image.name.encode(), _read_bytes(image)]
        if labeled:
            parts.append(_read_bytes(label_path(image)))
        else:
            parts.append(str(stamp[3]).encode())
        for part in parts:
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return digest.hexdigest()


def _read_bytes(path: Path) -> bytes:
    """A file's bytes; none where it can't be read, since such an image is skipped and told of elsewhere."""
    try:
        return path.read_bytes()
    except OSError:
        return b""
