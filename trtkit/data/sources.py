"""open_dataset(): data sets as they lie on disk, and images without labels."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from trtkit.data.coco import find_coco_splits, read_coco
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
from trtkit.data.dataset import UNLABELED_SPLIT, Dataset, labels_needed
from trtkit.data.image_files import is_image, list_images
from trtkit.data.image_lists import LIST_SUFFIX, list_source_images
from trtkit.data.labels import LABEL_FORMATS
from trtkit.downloads import describe_download, locate
from trtkit.errors import DataError

__all__ = ["DataSource", "open_dataset"]

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
        raise labels_needed(dataset)
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
