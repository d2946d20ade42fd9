"""One image's labels, read from a text file of normalized rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trtkit.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Labels", "label_path", "read_labels"]

TOLERANCE = 0.01
"""How far outside the image a coordinate may lie, as a share of its side; as Ultralytics allows."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Labels:
    """The objects in one image. Coordinates are shares of the image's sides until `scaled` makes them pixels.

    Attributes:
        classes: Class of each object, shape (n,), int64; for classify the one class of the image.
        boxes: x1, y1, x2, y2, shape (n, 4), float32.
        segments: For segment: one polygon of shape (k, 2) per object; empty otherwise.
        keypoints: For pose: x, y, visibility (0 = not labeled), shape (n, points, 3); None otherwise.
        corners: For obb: four corners, shape (n, 4, 2); None otherwise.
        duplicates: Rows left out because they repeat another.
    """

    classes: NDArray[np.int64]
    boxes: NDArray[np.float32]
    segments: tuple[NDArray[np.float32], ...] = ()
    keypoints: NDArray[np.float32] | None = None
    corners: NDArray[np.float32] | None = None
    duplicates: int = 0

    def __len__(self) -> int:
        return len(self.classes)

    def to_pixels(self, shape: tuple[int, int]) -> Labels:
        """The same labels in pixels of an image of `shape` (height, width)."""
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


def label_path(image: Path) -> Path:
    """Where an image's labels are: its path with the last folder named `images` changed to `labels`, and `.txt`."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def read_labels(path: Path, *, task: str, classes: int, kpt_shape: tuple[int, int] | None = None) -> Labels:
    """Read a label file; a file that is not there means an image without objects.

    Rows, all coordinates as shares of the image's sides:
    detect `class x y w h` (center and size; a polygon or a keypoint row gives its box), segment `class x1 y1 x2 y2 x3
    y3 ...`, pose `class x y w h` and `x y [visibility]` of each keypoint, obb `class` and four corners.

    Args:
        path: The text file.
        task: What the rows are read for.
        classes: Number of classes in the data set.
        kpt_shape: (points, 2 or 3) of the data set's keypoints.

    Returns:
        Labels with rows that repeat another left out.

    Raises:
        DataError: A row has the wrong columns, no numbers, an unknown class or coordinates outside the image.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return _build_labels(task, [], kpt_shape, 0)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"read labels {path}", str(error), "replace the file with plain text") from error
    rows: list[NDArray[np.float32]] = []
    seen: set[bytes] = set()
    duplicates = 0
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            row = np.array([float(word) for word in words], np.float32)
        except ValueError:
            raise _row_error(
                path, number, f"{line.strip()[:60]!r} is not a row of numbers", "write numbers only"
            ) from None
        _check_row(row, path, number, task, classes, kpt_shape)
        key = row.tobytes()
        if key in seen:
            duplicates += 1
            continue
        seen.add(key)
        rows.append(row)
    return _build_labels(task, rows, kpt_shape, duplicates)


def _row_error(path: Path, number: int, found: str, do: str) -> DataError:
    return DataError(f"read labels {path}", f"line {number}: {found}", do)


def _check_row(
    row: NDArray[np.float32], path: Path, number: int, task: str, classes: int, kpt_shape: tuple[int, int] | None
) -> None:
    """Refuse a row that `task` can't be read from.

    Raises:
        DataError: As `read_labels` says.
    """
    columns = len(row)
    with_keypoints = 5 + kpt_shape[0] * kpt_shape[1] if kpt_shape is not None else None
    polygon = columns >= 7 and columns % 2 == 1
    wanted, fits = {
        "detect": ("class and 4 numbers, or class and a polygon", columns in (5, with_keypoints) or polygon),
        "segment": ("class and a polygon of at least 3 points", polygon),
        "pose": (f"{with_keypoints} columns (class, box, keypoints)", columns == with_keypoints),
        "obb": ("class and four corners (9 columns)", columns == 9),
    }[task]
    if not fits:
        raise _row_error(path, number, f"{columns} columns where {task} needs {wanted}", "label the set for this task")
    if not np.isfinite(row).all():
        raise _row_error(path, number, "a number is not finite", "correct the row")
    if row[0] != int(row[0]) or not 0 <= row[0] < classes:
        raise _row_error(
            path,
            number,
            f"class {row[0]:g}, but the data set's classes are 0 to {classes - 1}",
            "correct the row, or add the name to data.yaml",
        )
    if columns == with_keypoints and kpt_shape is not None and task in ("pose", "detect"):
        # Points that are not labeled may be written as anything below zero when there is no visibility column.
        points = row[5:].reshape(kpt_shape)[:, :2]
        outside = bool((points > 1 + TOLERANCE).any()) or _box_outside(row[1:5])
    elif columns == 5:
        outside = _box_outside(row[1:5])
    else:
        outside = bool((row[1:] > 1 + TOLERANCE).any() or (row[1:] < -TOLERANCE).any())
    if outside:
        raise _row_error(path, number, "a coordinate lies outside the image", "divide by the image's width and height")


def _box_outside(box: NDArray[np.float32]) -> bool:
    return bool((box > 1 + TOLERANCE).any() or (box[:2] < -TOLERANCE).any() or (box[2:] < 0).any())


def _build_labels(
    task: str, rows: list[NDArray[np.float32]], kpt_shape: tuple[int, int] | None, duplicates: int
) -> Labels:
    """Build labels from rows that were checked."""
    with_keypoints = 5 + kpt_shape[0] * kpt_shape[1] if kpt_shape is not None else None
    boxes = np.zeros((len(rows), 4), np.float32)
    for index, row in enumerate(rows):
        if len(row) == 5 or (len(row) == with_keypoints and task in ("detect", "pose")):
            boxes[index, :2] = row[1:3] - row[3:5] / 2
            boxes[index, 2:] = row[1:3] + row[3:5] / 2
        else:
            points = row[1:].reshape(-1, 2)
            boxes[index, :2] = points.min(0)
            boxes[index, 2:] = points.max(0)
    keypoints = None
    if task == "pose" and kpt_shape is not None:
        keypoints = (
            np.stack([row[5:].reshape(kpt_shape) for row in rows]) if rows else np.zeros((0, *kpt_shape), np.float32)
        )
        if kpt_shape[1] == 2:
            visible = (keypoints >= 0).all(-1, keepdims=True).astype(np.float32)
            keypoints = np.concatenate((keypoints, visible), -1)
    corners = None
    if task == "obb":
        corners = np.stack([row[1:].reshape(4, 2) for row in rows]) if rows else np.zeros((0, 4, 2), np.float32)
    return Labels(
        classes=np.array([row[0] for row in rows], np.int64),
        boxes=boxes,
        segments=tuple(row[1:].reshape(-1, 2) for row in rows) if task == "segment" else (),
        keypoints=keypoints,
        corners=corners,
        duplicates=duplicates,
    )
