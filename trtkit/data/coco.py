"""Data sets in COCO's layout: `annotations/instances_val2017.json` and `val2017/`, read as labels of three tasks.

Crowd regions, and objects without an area, are no labels: Ultralytics drops them too. pycocotools' rule needs them all,
as they stand in the file, to ignore what is detected there: `Labels.annotations` has them.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from trtkit.data.labels import Labels
from trtkit.errors import DataError
from trtkit.files import hash_parts, read_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "CocoFile",
    "CocoSplit",
    "decode_rle",
    "find_coco_image",
    "find_coco_splits",
    "join_polygons",
    "list_coco_images",
    "read_coco",
]

PREFIXES: Mapping[str, str] = {"detect": "instances", "segment": "instances", "pose": "person_keypoints"}
"""How the names of annotation files begin, by task; COCO has no labels of other tasks."""

MAX_BYTES = 2**30
"""Largest annotation file: COCO's instances_train2017.json has 0.45 GB."""

MAX_PIXELS = 2**28
"""Most pixels of an image with masks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CocoSplit:
    """One split.

    Attributes:
        annotations: The JSON file.
        folder: The folder of its images.
    """

    annotations: Path
    folder: Path


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CocoFile:
    """One annotation file, indexed; its annotations are checked when an image's labels are read.

    Attributes:
        path: The file.
        names: Class names by number: categories in the order of their ids.
        classes: Class numbers by category id.
        images: Image entries by file name, relative to the folder of the split, with slashes.
        annotations: Annotations by image id, as they stand in the file.
        kpt_shape: (points, 3) if a category has keypoints, else None.
    """

    path: Path
    names: Mapping[int, str]
    classes: Mapping[int, int]
    images: Mapping[str, Mapping[str, Any]]
    annotations: Mapping[int, Sequence[Mapping[str, Any]]]
    kpt_shape: tuple[int, int] | None = None

    def hash(self, name: str) -> str:
        """SHA-256 of what the labels of an image come from: its size and its annotations.

        Args:
            name: Its file name.
        """
        image = self.images[name]
        annotations = self.annotations.get(image["id"], ())
        return hash_parts(repr((image["height"], image["width"], annotations)))

    def check_names(self, names: Mapping[int, str]) -> None:
        """Check that class numbers mean the same as elsewhere in the data set.

        Args:
            names: Class names of the data set.

        Raises:
            DataError: The file has other categories.
        """
        if self.names != names:
            raise DataError(
                f"read labels in {self.path}",
                f"its categories are not those of the data set's other annotation files ({len(self.names)}, "
                f"{len(names)} there)",
                "list the same categories in every file",
                code="data-coco-categories",
                path=self.path,
            )

    def labels(self, name: str, task: str) -> Labels:
        """The labels of an image, coordinates as fractions of its sides.

        Args:
            name: Its file name.
            task: "detect", "segment" or "pose".

        Raises:
            DataError: An annotation is invalid (code "data-label-...").
        """
        image = self.images[name]
        height, width = image["height"], image["width"]
        side = np.array([width, height], np.float64)
        kept, rows = [], []
        for annotation in self.annotations.get(image["id"], ()):
            row = self._check(annotation, name, (height, width), task)
            rows.append(row)
            outline = _find_outline(row, (height, width)) if task == "segment" and not row["iscrowd"] else None
            if not row["iscrowd"] and min(row["bbox"][2:]) > 0 and (task != "segment" or outline is not None):
                kept.append((row, outline))
        boxes = np.array([row["bbox"] for row, _ in kept], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        keypoints: NDArray[np.float32] | None = None
        if task == "pose":
            points = self.kpt_shape[0] if self.kpt_shape else 0
            triples = np.array([row["keypoints"] for row, _ in kept], np.float64).reshape(-1, points, 3)
            keypoints = (triples / np.append(side, 1)).astype(np.float32)
        return Labels(
            classes=np.array([row["category_id"] for row, _ in kept], np.int64),
            boxes=(boxes / np.tile(side, 2)).astype(np.float32),
            segments=tuple((outline / side).astype(np.float32) for _, outline in kept if outline is not None),
            keypoints=keypoints,
            annotations=tuple(rows),
        )

    def _check(self, annotation: Mapping[str, Any], name: str, shape: tuple[int, int], task: str) -> dict[str, Any]:
        """The keys of an annotation that pycocotools reads, with the class number as category.

        Raises:
            DataError: One of them is missing or invalid.
        """

        def refuse(found: str, do: str, problem: str) -> DataError:
            return DataError(
                f"read labels of {name} in {self.path}",
                f"annotation {annotation.get('id')} {found}",
                do,
                code=f"data-label-{problem}",
                path=self.path,
                image=name,
            )

        category = self.classes.get(annotation.get("category_id"))  # type: ignore[arg-type]
        if category is None:
            raise refuse(
                f"has category_id {annotation.get('category_id')!r:.60}", "use a listed category", "class-unknown"
            )
        box = _to_numbers(annotation.get("bbox"))
        if box is None or len(box) != 4:
            raise refuse(f"has bbox {annotation.get('bbox')!r:.60}", "write [x, y, width, height]", "columns")
        row: dict[str, Any] = {"category_id": category, "bbox": box, "iscrowd": int(annotation.get("iscrowd") == 1)}
        area = _to_numbers([annotation.get("area", box[2] * box[3])])
        if area is None:
            raise refuse(f"has area {annotation.get('area')!r:.60}", "write a number of pixels", "not-finite")
        row["area"] = area[0]
        if task == "segment":
            row["segmentation"] = annotation.get("segmentation", [])
            problem = _find_fault(row["segmentation"], shape)
            if problem:
                raise refuse(problem, "write polygons, or run lengths of the image's size", "mask")
        if task == "pose":
            points = _to_numbers(annotation.get("keypoints"))
            if points is None or self.kpt_shape is None or len(points) != self.kpt_shape[0] * 3:
                raise refuse(
                    f"has keypoints {annotation.get('keypoints')!r:.60}", "write x, y, visibility of each", "columns"
                )
            row["keypoints"] = points
            row["num_keypoints"] = sum(value > 0 for value in points[2::3])
        return row


def _to_numbers(value: Any) -> list[float] | None:
    """A list of finite numbers; None for anything else."""
    if not isinstance(value, list) or not all(type(number) in (int, float) for number in value):
        return None
    return [float(number) for number in value] if all(abs(number) < 1e9 for number in value) else None


# Finding and reading the files


def find_coco_splits(folder: Path, task: str) -> dict[str, CocoSplit]:
    """The splits of a folder in COCO's layout; {} for any other folder.

    Images of `annotations/instances_val2017.json` are in `val2017/`, `images/val2017/`, `images/val/` or `val/`.

    Args:
        folder: The folder.
        task: The task.

    Raises:
        DataError: The folder is in COCO's layout and has no labels of the task, or the images of a split are missing.
    """
    found: dict[str, CocoSplit] = {}
    files = sorted((folder / "annotations").glob("*.json"))
    pattern = re.compile(rf"{PREFIXES.get(task, '')}_((train|val|test|minival)\d*)\.json")
    for path in files:
        match = pattern.fullmatch(path.name)
        if match is None or match[2] in found:
            continue
        tried = [folder / name for name in (match[1], f"images/{match[1]}", f"images/{match[2]}", match[2])]
        images = next((one for one in tried if one.is_dir()), None)
        if images is None:
            raise DataError(
                f"open data set {folder} for {task}",
                f"the images of {path.name} are missing; tried {', '.join(map(str, tried))}",
                "put them into one of these folders",
                code="data-split-path-missing",
                path=folder,
                tried=tuple(map(str, tried)),
            )
        found[match[2]] = CocoSplit(annotations=path, folder=images)
    if files and not found:
        raise DataError(
            f"open data set {folder} for {task}",
            f"none of its annotation files is of this task ({', '.join(path.name for path in files[:5])})",
            f"add {PREFIXES[task]}_val.json" if task in PREFIXES else "COCO's layout has detect, segment and pose",
            code="data-coco-task",
            path=folder,
            task=task,
        )
    return found


def read_coco(path: Path) -> CocoFile:
    """Read an annotation file; the last ones stay in memory while they do not change.

    Raises:
        DataError: It can't be read, or its images or categories are invalid.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, str(error)) from error
    return _read_coco(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4)
def _read_coco(path: Path, *_: int) -> CocoFile:
    try:
        content = read_json(path, limit=MAX_BYTES)
        categories = sorted(content["categories"], key=lambda one: int(one["id"]))
        entries = [(_to_posix(one["file_name"]), {name: int(one[name]) for name in SIDES}) for one in content["images"]]
        annotations: dict[int, list[Mapping[str, Any]]] = {}
        for one in content["annotations"]:
            annotations.setdefault(int(one["image_id"]), []).append(dict(one))
    except (OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise _unreadable(path, f"{type(error).__name__}: {str(error)[:200]}") from error
    images = dict(entries)
    twice = _find_repeated([name for name, _ in entries]) or _find_repeated([one["id"] for _, one in entries])
    sizes = [(one["height"], one["width"]) for one in images.values()]
    unknown = set(annotations) - {one["id"] for one in images.values()}
    points = {len(one["keypoints"]) for one in categories if isinstance(one.get("keypoints"), list)}
    outside = [name for name in images if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name]
    problem = (
        "it has no category" if not categories
        else f"the image {twice[0]!r:.80} is listed twice" if twice
        else "two categories have the same id" if _find_repeated([int(one["id"]) for one in categories])
        else f"an image has the size {min(sizes)}" if sizes and min(map(min, sizes)) < 1
        else f"an image has more than {MAX_PIXELS:,} pixels" if any(h * w > MAX_PIXELS for h, w in sizes)
        else f"annotations name image {min(unknown)}, which is not listed" if unknown
        else f"its categories have {sorted(points)} keypoints" if len(points) > 1
        else f"the image {outside[0]!r:.80} lies outside its folder" if outside
        else ""
    )  # fmt: skip
    if problem:
        raise _unreadable(path, problem)
    return CocoFile(
        path=path,
        names={number: str(one.get("name", f"class_{number}")) for number, one in enumerate(categories)},
        classes={int(one["id"]): number for number, one in enumerate(categories)},
        images=images,
        annotations=annotations,
        kpt_shape=(points.pop(), 3) if points else None,
    )


SIDES = ("id", "height", "width")


def _to_posix(name: Any) -> str:
    """A file name as `find_coco_image` looks for it: "./a.jpg" and, of files made on Windows, "b\\a.jpg" too."""
    return PurePosixPath(str(name).replace("\\", "/")).as_posix()


def _find_repeated(values: Sequence[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _unreadable(path: Path, found: str) -> DataError:
    return DataError(
        f"read annotations {path}",
        found,
        "give a file in COCO's format, with images, annotations and categories",
        code="data-coco-unreadable",
        path=path,
    )


def list_coco_images(split: CocoSplit, asked: str) -> list[Path]:
    """The images that a split's annotation file lists.

    Args:
        split: The split.
        asked: The request that error messages start with.

    Raises:
        DataError: One is missing, or the file can't be read.
    """
    images = [split.folder / name for name in read_coco(split.annotations).images]
    missing = [image for image in images if not os.path.isfile(image)]  # noqa: PTH113
    if missing:
        raise DataError(
            asked,
            f"{len(missing)} of {len(images)} images are missing, the first is {missing[0]}",
            "add the images, or correct the annotation file",
            code="data-images-missing",
            path=split.annotations,
            missing=tuple(missing[:20]),
            count=len(images),
        )
    return images


def find_coco_image(splits: Mapping[str, CocoSplit], image: Path) -> tuple[CocoFile, str]:
    """The annotation file that lists an image, and its name there.

    Args:
        splits: The splits of a data set.
        image: The image.

    Raises:
        DataError: None does.
    """
    for one in splits.values():
        if image.is_relative_to(one.folder):
            file, name = read_coco(one.annotations), image.relative_to(one.folder).as_posix()
            if name in file.images:
                return file, name
    raise DataError(
        f"read the labels of {image}",
        "no annotation file of the data set lists it",
        "give an image of this data set",
        code="data-image-outside",
        path=image,
    )


# Masks


def _find_fault(segmentation: Any, shape: tuple[int, int]) -> str:
    """What is wrong with a segmentation; "" for polygons, and for run lengths that cover the image."""
    if isinstance(segmentation, list):
        parts = [_to_numbers(part) for part in segmentation]
        if any(part is None or len(part) < 6 or len(part) % 2 for part in parts):
            return "has a polygon that is no list of x, y of three points or more"
        return ""
    try:
        decode_rle(segmentation, shape)
    except (ValueError, TypeError, KeyError) as error:
        return f"has run lengths that can't be read ({str(error)[:100]})"
    return ""


def decode_rle(rle: Mapping[str, Any], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Decode COCO's run-length encoding, a list of lengths or the compressed text.

    Args:
        rle: `size` and `counts`.
        shape: (height, width) of the image.

    Raises:
        ValueError: The size is another, or the lengths do not cover the image.
        TypeError, KeyError: It is no run-length encoding.
    """
    counts = rle["counts"]
    lengths = _decode_lengths(counts) if isinstance(counts, str) else counts
    if list(rle["size"]) != list(shape):
        raise ValueError(f"size {rle['size']!r:.40} of an image of {list(shape)}")
    if not all(type(length) is int and length >= 0 for length in lengths) or sum(lengths) != shape[0] * shape[1]:
        raise ValueError("the lengths do not cover the image")
    values = np.arange(len(lengths)) % 2 == 1
    mask: NDArray[np.bool_] = np.repeat(values, lengths).reshape(shape[1], shape[0]).T
    return mask


def _decode_lengths(text: str) -> list[int]:
    """Run lengths of the compressed text; `trtkit.tasks.segment.encode_rle` describes the format."""
    lengths: list[int] = []
    value, shift = 0, 0
    for letter in text.encode("ascii"):
        group = letter - 48
        if not 0 <= group < 64 or shift > 30:
            raise ValueError("it is no compressed run-length encoding")
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:
            if group & 16:
                value -= 1 << shift
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value, shift = 0, 0
    return lengths


def _find_outline(row: Mapping[str, Any], shape: tuple[int, int]) -> NDArray[np.float64] | None:
    """One polygon around all parts of an object, pixels; None if it has no part."""
    segmentation = row["segmentation"]
    if not isinstance(segmentation, list):
        return _outline_mask(decode_rle(segmentation, shape))
    parts = [np.array(part, np.float64).reshape(-1, 2) for part in segmentation]
    boxes = [(part.min(0), part.max(0)) for part in parts]
    if any(
        (low < top).all() and (bottom < high).all() for (low, high), (bottom, top) in itertools.combinations(boxes, 2)
    ):
        # COCO means all pixels of any part; where parts overlap, the even-odd rule would leave a hole.
        masks = [np.zeros(shape, np.uint8) for _ in parts]
        for part, mask in zip(parts, masks, strict=True):
            cv2.fillPoly(mask, [np.round(part - 0.5).astype(np.int32)], (1,))
        if np.sum(masks, 0).max() > 1:
            return _outline_mask(np.max(masks, 0) > 0)
    return join_polygons(parts) if parts else None


def _outline_mask(mask: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    # Pixels have their centers at halves; a contour of one or two pixels encloses nothing.
    parts = [np.asarray(contour.reshape(-1, 2) + 0.5, np.float64) for contour in contours if len(contour) > 2]
    return join_polygons(parts) if parts else None


def join_polygons(parts: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Join polygons into one by bridges without width: filled by the even-odd rule it has the same pixels.

    Args:
        parts: Polygons of shape (points, 2); one inside another is a hole.
    """
    if len(parts) == 1:
        return parts[0]
    start = parts[0][:1]
    closed = itertools.chain.from_iterable((part, part[:1], start) for part in parts)
    return np.concatenate(list(closed))
