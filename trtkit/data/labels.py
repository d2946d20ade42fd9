"""Labels of one image, and the formats of label files for each task."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtkit.errors import DataError
from trtkit.files import read_limited

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "LABEL_FORMATS",
    "BoxLabels",
    "CornerLabels",
    "FolderLabels",
    "KeypointLabels",
    "LabelFormat",
    "Labels",
    "PolygonLabels",
    "label_path",
    "read_labels",
    "register_label_format",
]

TOLERANCE = 0.01
"""How far outside the image a coordinate may lie, as a fraction of the side; as in Ultralytics."""


MAX_BYTES = 16 * 2**20
"""Largest label file: 1,000 polygons of 800 points."""

MAX_ROWS = 100_000
"""Most objects of one image; DOTA's fullest image has about 10,000."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Labels:
    """The labels of one image. Coordinates are fractions of the image's sides; `to_pixels` converts them.

    Attributes:
        classes: Class of each object, shape (n,), int64; for classify the one class of the image.
        boxes: x1, y1, x2, y2, shape (n, 4), float32.
        segments: For segment: one polygon of shape (k, 2) per object; empty otherwise.
        keypoints: For pose: x, y, visibility (0 = not labeled), shape (n, points, 3); None otherwise.
        corners: For obb: four corners, shape (n, 4, 2); None otherwise.
        duplicates: Number of repeated rows that were dropped.
        annotations: Of a data set in COCO's layout all its annotations, crowd regions too, in pixels, with class
            numbers as categories; pycocotools' rule takes them instead of the labels. None for others.
    """

    classes: NDArray[np.int64]
    boxes: NDArray[np.float32]
    segments: tuple[NDArray[np.float32], ...] = ()
    keypoints: NDArray[np.float32] | None = None
    corners: NDArray[np.float32] | None = None
    duplicates: int = 0
    annotations: tuple[Mapping[str, Any], ...] | None = None

    def __len__(self) -> int:
        return len(self.classes)

    def to_pixels(self, shape: tuple[int, int]) -> Labels:
        """Return the labels in pixels of an image of `shape` (height, width)."""
        side = np.array([shape[1], shape[0]], np.float32)
        keypoints = self.keypoints
        if keypoints is not None:
            keypoints = keypoints * np.append(side, np.float32(1))
        return dataclasses.replace(
            self,
            boxes=self.boxes * np.tile(side, 2),
            segments=tuple(segment * side for segment in self.segments),
            keypoints=keypoints,
            corners=None if self.corners is None else self.corners * side,
        )


KeypointShape = tuple[int, int] | None
"""(points, 2 or 3) of a data set's keypoints, or None."""


# Label formats


class LabelFormat(abc.ABC):
    """The rows of label files for a task; coordinates are fractions of the image's sides.

    Attributes:
        uses_folders: Whether the class is the name of the image's folder; there are no label files then.
        needs_kpt_shape: Whether the data set must have `kpt_shape`.
    """

    uses_folders = False
    needs_kpt_shape = False

    @abc.abstractmethod
    def describe(self, kpt_shape: KeypointShape) -> str:
        """Describe the columns of a row, for error messages."""

    @abc.abstractmethod
    def accepts(self, columns: int, kpt_shape: KeypointShape) -> bool:
        """Return whether a row of so many columns is valid."""

    @abc.abstractmethod
    def parse(self, rows: list[NDArray[np.float32]], kpt_shape: KeypointShape) -> dict[str, Any]:
        """Return the fields of `Labels` beyond `classes` and `duplicates`, from rows that were checked."""

    def find_outside(self, row: NDArray[np.float32], kpt_shape: KeypointShape) -> int | None:
        """Return the first column with a coordinate outside the image, for a row that `accepts` takes; None if none."""
        if len(row) == 5:
            return _find_box_outside(row)
        return _first(np.append(False, (row[1:] > 1 + TOLERANCE) | (row[1:] < -TOLERANCE)))


class BoxLabels(LabelFormat):
    """Detect: `class x y w h` (center and size); a polygon or a keypoint row gives its box."""

    def describe(self, kpt_shape: KeypointShape) -> str:
        """Describe the columns of a row."""
        return "class and 4 numbers, or class and a polygon"

    def accepts(self, columns: int, kpt_shape: KeypointShape) -> bool:
        """Return whether a row of so many columns is valid."""
        return columns in (5, _keypoint_columns(kpt_shape)) or _is_polygon(columns)

    def find_outside(self, row: NDArray[np.float32], kpt_shape: KeypointShape) -> int | None:
        """Return the first column with a coordinate outside the image; None if none."""
        if kpt_shape is not None and len(row) == _keypoint_columns(kpt_shape):
            # Without a visibility column, unlabeled keypoints may be any negative number.
            outside = row > 1 + TOLERANCE
            outside[:5] = False
            if kpt_shape[1] == 3:
                outside[7::3] = False
            column = _find_box_outside(row)
            return _first(outside) if column is None else column
        return super().find_outside(row, kpt_shape)

    def parse(self, rows: list[NDArray[np.float32]], kpt_shape: KeypointShape) -> dict[str, Any]:
        """Return the boxes."""
        boxes = np.zeros((len(rows), 4), np.float32)
        for index, row in enumerate(rows):
            if len(row) in (5, _keypoint_columns(kpt_shape)):
                boxes[index, :2] = row[1:3] - row[3:5] / 2
                boxes[index, 2:] = row[1:3] + row[3:5] / 2
            else:
                boxes[index] = _enclosing_box(row)
        return {"boxes": boxes}


class KeypointLabels(BoxLabels):
    """Pose: `class x y w h`, then `x y [visibility]` of each keypoint."""

    needs_kpt_shape = True

    def describe(self, kpt_shape: KeypointShape) -> str:
        """Describe the columns of a row."""
        return f"{_keypoint_columns(kpt_shape)} columns (class, box, keypoints)"

    def accepts(self, columns: int, kpt_shape: KeypointShape) -> bool:
        """Return whether a row of so many columns is valid."""
        return columns == _keypoint_columns(kpt_shape)

    def parse(self, rows: list[NDArray[np.float32]], kpt_shape: KeypointShape) -> dict[str, Any]:
        """Return boxes and keypoints."""
        assert kpt_shape is not None
        keypoints = (
            np.stack([row[5:].reshape(kpt_shape) for row in rows]) if rows else np.zeros((0, *kpt_shape), np.float32)
        )
        if kpt_shape[1] == 2:
            visible = (keypoints >= 0).all(-1, keepdims=True).astype(np.float32)
            keypoints = np.concatenate((keypoints, visible), -1)
        return {**super().parse(rows, kpt_shape), "keypoints": keypoints}


class PolygonLabels(LabelFormat):
    """Segment: `class x1 y1 x2 y2 x3 y3 ...`."""

    def describe(self, kpt_shape: KeypointShape) -> str:
        """Describe the columns of a row."""
        return "class and a polygon of at least 3 points"

    def accepts(self, columns: int, kpt_shape: KeypointShape) -> bool:
        """Return whether a row of so many columns is valid."""
        return _is_polygon(columns)

    def parse(self, rows: list[NDArray[np.float32]], kpt_shape: KeypointShape) -> dict[str, Any]:
        """Return boxes and polygons."""
        return {"boxes": _enclosing_boxes(rows), "segments": tuple(row[1:].reshape(-1, 2) for row in rows)}


class CornerLabels(LabelFormat):
    """Obb: `class` and four corners."""

    def describe(self, kpt_shape: KeypointShape) -> str:
        """Describe the columns of a row."""
        return "class and four corners (9 columns)"

    def accepts(self, columns: int, kpt_shape: KeypointShape) -> bool:
        """Return whether a row of so many columns is valid."""
        return columns == 9

    def parse(self, rows: list[NDArray[np.float32]], kpt_shape: KeypointShape) -> dict[str, Any]:
        """Return boxes and corners."""
        corners = np.stack([row[1:].reshape(4, 2) for row in rows]) if rows else np.zeros((0, 4, 2), np.float32)
        return {"boxes": _enclosing_boxes(rows), "corners": corners}


class FolderLabels(LabelFormat):
    """Classify: the class is the name of the image's folder."""

    uses_folders = True

    def describe(self, kpt_shape: KeypointShape) -> str:
        """Describe the columns of a row."""
        return "no label files, but one folder per class"

    def accepts(self, columns: int, kpt_shape: KeypointShape) -> bool:
        """Return False: there are no rows."""
        return False

    def parse(self, rows: list[NDArray[np.float32]], kpt_shape: KeypointShape) -> dict[str, Any]:
        """Return no boxes."""
        return {"boxes": np.zeros((0, 4), np.float32)}


LABEL_FORMATS: dict[str, LabelFormat] = {
    "detect": BoxLabels(),
    "segment": PolygonLabels(),
    "classify": FolderLabels(),
    "pose": KeypointLabels(),
    "obb": CornerLabels(),
}
"""The label format of each task."""


def register_label_format(task: str, label_format: LabelFormat) -> None:
    """Register how the labels of a task are read.

    Args:
        task: The task's name.
        label_format: Its label format.
    """
    LABEL_FORMATS[task] = label_format


def _keypoint_columns(kpt_shape: KeypointShape) -> int | None:
    """Return the columns of a row with box and keypoints."""
    return None if kpt_shape is None else 5 + kpt_shape[0] * kpt_shape[1]


def _is_polygon(columns: int) -> bool:
    return columns >= 7 and columns % 2 == 1


def _find_box_outside(row: NDArray[np.float32]) -> int | None:
    """Return the first of columns 1 to 4 (center and size) that is outside the image; None if none."""
    box = row[1:5]
    return _first(np.append(False, (box > 1 + TOLERANCE) | (box < np.array([-TOLERANCE, -TOLERANCE, 0, 0]))))


def _first(flags: NDArray[np.bool_]) -> int | None:
    return int(flags.argmax()) if flags.any() else None


def _enclosing_box(row: NDArray[np.float32]) -> NDArray[np.float32]:
    points = row[1:].reshape(-1, 2)
    return np.concatenate((points.min(0), points.max(0)))


def _enclosing_boxes(rows: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    boxes = np.zeros((len(rows), 4), np.float32)
    for index, row in enumerate(rows):
        boxes[index] = _enclosing_box(row)
    return boxes


# Label files


def label_path(image: Path) -> Path:
    """Return the path of an image's label file: the last folder named `images` becomes `labels`, the suffix `.txt`."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def read_labels(path: Path, *, task: str, classes: int, kpt_shape: KeypointShape = None) -> Labels:
    """Read a label file; a missing file is an image without objects.

    Args:
        path: The text file, one row per object.
        task: The task, whose `LABEL_FORMATS` entry describes the rows.
        classes: Number of classes in the data set.
        kpt_shape: (points, 2 or 3) of the data set's keypoints.

    Returns:
        Labels without repeated rows, coordinates as fractions of the image's sides.

    Raises:
        DataError: A row has the wrong columns, no numbers, an unknown class or coordinates outside the image.
    """
    label_format = LABEL_FORMATS[task]
    try:
        lines = read_limited(path, MAX_BYTES).decode("utf-8-sig").splitlines()
        if len(lines) > MAX_ROWS:
            raise ValueError(f"it has {len(lines):,} rows, more than {MAX_ROWS:,}")
    except FileNotFoundError:
        lines = []
    except (OSError, ValueError) as error:
        raise DataError(
            f"read labels {path}",
            str(error),
            "replace the file with plain text",
            code="data-labels-unreadable",
            path=path,
        ) from error
    rows: list[NDArray[np.float32]] = []
    keys: set[bytes] = set()
    duplicates = 0
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        try:
            with np.errstate(over="ignore"):  # infinite then, and refused below
                row = np.array([float(word) for word in words], np.float32)
        except ValueError:
            raise _row_error(
                path, number, f"{line.strip()[:60]!r} is not a row of numbers", "write numbers only", "not-numeric"
            ) from None
        _check_row(row, path, number, task, classes, kpt_shape)
        key = row.tobytes()
        if key in keys:
            duplicates += 1
            continue
        keys.add(key)
        rows.append(row)
    return Labels(
        classes=np.array([row[0] for row in rows], np.int64),
        duplicates=duplicates,
        **label_format.parse(rows, kpt_shape),
    )


def _row_error(path: Path, line: int, found: str, do: str, problem: str, **fields: Any) -> DataError:
    return DataError(
        f"read labels {path}", f"line {line}: {found}", do, code=f"data-label-{problem}", path=path, line=line, **fields
    )


def _check_row(
    row: NDArray[np.float32], path: Path, line: int, task: str, classes: int, kpt_shape: KeypointShape
) -> None:
    """Raise a `DataError` for a row that is invalid for `task`."""
    label_format = LABEL_FORMATS[task]
    if not label_format.accepts(len(row), kpt_shape):
        raise _row_error(
            path,
            line,
            f"{len(row)} columns where {task} needs {label_format.describe(kpt_shape)}",
            "label the data set for this task",
            "columns",
            columns=len(row),
            task=task,
        )
    if not np.isfinite(row).all():
        first = int((~np.isfinite(row)).argmax())
        raise _row_error(
            path,
            line,
            f"column {first + 1} is {row[first]:g}",
            "write finite numbers",
            "not-finite",
            column=first + 1,
        )
    if row[0] != int(row[0]) or not 0 <= row[0] < classes:
        raise _row_error(
            path,
            line,
            f"class {row[0]:g}, but the data set's classes are 0 to {classes - 1}",
            "correct the row, or add the name to data.yaml",
            "class-unknown",
            value=float(row[0]),
            classes=classes,
        )
    column = label_format.find_outside(row, kpt_shape)
    if column is not None:
        raise _row_error(
            path,
            line,
            f"column {column + 1} is {row[column]:g}, outside 0 to 1",
            "write coordinates as fractions of the image's width and height",
            "outside-image",
            value=float(row[column]),
            column=column + 1,
        )
