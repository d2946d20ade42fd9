"""Picture files: which there are, and reading one whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

from trtkit.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PICTURE_SUFFIXES", "is_picture", "pictures_in", "read_picture"]

PICTURE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".dib", ".jp2", ".jpeg", ".jpg", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)


def is_picture(path: Path) -> bool:
    """Whether the name says that it is a picture OpenCV reads."""
    return path.suffix.lower() in PICTURE_SUFFIXES


def pictures_in(folder: Path) -> tuple[Path, ...]:
    """Every picture below `folder`, sorted by its path as text, as Ultralytics sorts them."""
    return tuple(sorted((path for path in folder.rglob("*") if is_picture(path) and path.is_file()), key=str))


def read_picture(path: str | Path) -> NDArray[np.uint8]:
    """Read a picture in colour, turned as its EXIF orientation says.

    Args:
        path: A picture file.

    Returns:
        BGR uint8, shape (height, width, 3).

    Raises:
        DataError: The file is missing, empty, cut short or no picture.
    """
    asked = f"read picture {path}"
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(asked, (error.strerror or str(error)).lower(), "check the path and its permissions") from error
    if not data:
        raise DataError(asked, "the file is empty", "replace or remove it")
    if _cut_short(data):
        raise DataError(asked, "the file is cut short", "replace or remove it")
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise DataError(asked, "OpenCV can't decode it", "replace or remove it") from error
    if picture is None:
        raise DataError(asked, "OpenCV can't decode it", "replace or remove it")
    return cast("NDArray[np.uint8]", picture)


def _cut_short(data: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end, which OpenCV fills with grey without a word.

    A JPEG scan starts with FF DA and stuffs every FF inside, so a whole file has its end marker FF D9 after the last
    scan's start (thumbnails in the header come before it, whatever a camera appended may follow it). ITU-T T.81, B.1.1.
    """
    if data.startswith(b"\xff\xd8"):
        return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")
    if data.startswith(b"\x89PNG"):
        return b"IEND" not in data[-4096:]
    return False
