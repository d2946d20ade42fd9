"""Images to network inputs, and boxes back."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

from trtkit.errors import DataError, RecipeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "IMAGE_SUFFIXES",
    "PADDING",
    "ImageTransform",
    "center_crop",
    "compute_letterbox",
    "is_image",
    "letterbox",
    "list_images",
    "read_image",
    "resize_antialias",
    "sample_images",
    "to_input",
]

PADDING = 114
"""The gray that fills what the image leaves free; what YOLO is trained with."""


@dataclasses.dataclass(frozen=True)
class ImageTransform:
    """Where an image lies in the network's input.

    Attributes:
        shape: (height, width) of the original image.
        resized: (height, width) of the image inside the input.
        pad: (top, left) free pixels before it.
        size: (height, width) of the input.
    """

    shape: tuple[int, int]
    resized: tuple[int, int]
    pad: tuple[int, int]
    size: tuple[int, int]

    @property
    def ratio(self) -> tuple[float, float]:
        """Input pixels per image pixel, (vertical, horizontal); the two differ by the rounding of `resized`."""
        return self.resized[0] / self.shape[0], self.resized[1] / self.shape[1]

    def to_image(self, points: NDArray[np.float32], *, clip: bool = True) -> NDArray[np.float32]:
        """Map x, y pairs from the input to the original image.

        Args:
            points: Shape (..., 2k): x and y in turn, so boxes x1, y1, x2, y2 and polygons alike.
            clip: Whether what lies outside the image moves to its edge.

        Returns:
            A new float32 array of the same shape.
        """
        pairs = points.shape[-1] // 2
        vertical, horizontal = self.ratio
        moved = points - np.tile(np.array([self.pad[1], self.pad[0]], np.float32), pairs)
        moved /= np.tile(np.array([horizontal, vertical], np.float32), pairs)
        if clip:
            np.clip(moved, 0, np.tile(np.array([self.shape[1], self.shape[0]], np.float32), pairs), out=moved)
        return moved

    def to_network(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map x, y pairs from the original image to the input; the inverse of `to_image` without clipping."""
        pairs = points.shape[-1] // 2
        vertical, horizontal = self.ratio
        moved = points * np.tile(np.array([horizontal, vertical], np.float32), pairs)
        return moved + np.tile(np.array([self.pad[1], self.pad[0]], np.float32), pairs)


def compute_letterbox(shape: tuple[int, int], size: tuple[int, int]) -> ImageTransform:
    """How an image of `shape` lies in an input of `size`, both (height, width).

    The image is resized, up or down, until it touches the input's sides, each length rounded up; what is left free
    is split evenly, an odd pixel going below and to the right. This is what Ultralytics' validation does with
    `rect=False`.
    """
    ratio = min(size[0] / shape[0], size[1] / shape[1])
    height = min(math.ceil(shape[0] * ratio), size[0])
    width = min(math.ceil(shape[1] * ratio), size[1])
    return ImageTransform(
        shape=shape, resized=(height, width), pad=((size[0] - height) // 2, (size[1] - width) // 2), size=size
    )


def letterbox(image: NDArray[np.uint8], size: tuple[int, int]) -> tuple[NDArray[np.uint8], ImageTransform]:
    """Resize an image to fit and pad it, centerd, with gray.

    Args:
        image: BGR uint8, shape (height, width, 3).
        size: (height, width) of the input.

    Returns:
        BGR uint8 of shape (*size, 3), and where the image lies in it.
    """
    fit = compute_letterbox((image.shape[0], image.shape[1]), size)
    height, width = fit.resized
    if fit.shape != fit.resized:
        image = cast("NDArray[np.uint8]", cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR))
    if fit.resized == size:
        return image, fit
    top, left = fit.pad
    padded = cv2.copyMakeBorder(
        image, top, size[0] - height - top, left, size[1] - width - left, cv2.BORDER_CONSTANT, value=(PADDING,) * 3
    )
    return cast("NDArray[np.uint8]", padded), fit


def to_input(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Stack images of one size into a network input.

    Args:
        images: BGR uint8, each of the same shape (height, width, 3).

    Returns:
        RGB float32 in 0..1, shape (images, 3, height, width), contiguous.
    """
    height, width = images[0].shape[:2]
    batch = np.empty((len(images), 3, height, width), np.float32)
    for index, image in enumerate(images):
        for channel, plane in enumerate(reversed(cv2.split(image))):
            # Plane by plane, so that reading and writing are both contiguous: 8 times faster than transposing the
            # whole.
            np.divide(plane, np.float32(255), out=batch[index, channel])
    return batch


# How classification sees an image: its shorter side resized, its middle cut out.


FIXED_POINT = 1 << 22


def center_crop(image: NDArray[np.uint8], size: tuple[int, int]) -> tuple[NDArray[np.uint8], ImageTransform]:
    """Resize an image until its shorter side fits, and cut the middle out; what Ultralytics' validation does.

    Args:
        image: BGR uint8, shape (height, width, 3).
        size: (height, width) of the input; where the two differ, the image is resized to them, its shape ignored.

    Returns:
        BGR uint8 of shape (*size, 3), and where the image lies in it; `ImageTransform.pad` is negative, for edges are cut off.
    """
    height, width = image.shape[:2]
    if size[0] != size[1]:
        resized = size
    elif height <= width:
        resized = size[0], int(size[0] * width / height)
    else:
        resized = int(size[1] * height / width), size[1]
    top, left = round((resized[0] - size[0]) / 2), round((resized[1] - size[1]) / 2)
    cut = resize_antialias(image, resized)[top : top + size[0], left : left + size[1]]
    return np.ascontiguousarray(cut), ImageTransform(
        shape=(height, width), resized=resized, pad=(-top, -left), size=size
    )


def resize_antialias(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Bilinear resizing that averages what it shrinks, as Pillow's does; OpenCV's skips pixels there.

    A triangle filter as wide as the pixels that make one new pixel, first along rows and then along columns, rounded to
    whole gray levels after each: classification models are trained on exactly this. (Pillow 13 takes the columns of
    some tall images first, which moves a sixth of their pixels by one gray level.)

    Args:
        image: uint8, shape (height, width, channels).
        size: (height, width) to make.
    """
    across = _triangle_weights(image.shape[1], size[1])
    down = _triangle_weights(image.shape[0], size[0])
    rows = image.astype(np.float64)
    if across is not None:
        rows = _round_half_up(np.einsum("ow,hwc->hoc", across, rows, optimize=True))
    if down is not None:
        rows = _round_half_up(np.einsum("oh,hwc->owc", down, rows, optimize=True))
    return rows.astype(np.uint8)


def _round_half_up(values: NDArray[np.float64]) -> NDArray[np.float64]:
    rounded: NDArray[np.float64] = np.floor(values + 0.5)
    return rounded


def _triangle_weights(before: int, after: int) -> NDArray[np.float64] | None:
    """What each of `before` pixels gives to each of `after`, shape (after, before); None where nothing changes."""
    if before == after:
        return None
    scale = before / after
    reach = max(scale, 1.0)
    centers = (np.arange(after) + 0.5) * scale
    distances = np.abs(np.arange(before) + 0.5 - centers[:, None]) / reach
    weights = np.maximum(1 - distances, 0)
    weights /= weights.sum(1, keepdims=True)
    # Pillow's fixed point of 22 bits, so that halves round the same way.
    shares: NDArray[np.float64] = np.floor(weights * FIXED_POINT + 0.5) / FIXED_POINT
    return shares


# Image files: which there are, and reading one whole or not at all.


IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".dib", ".jp2", ".jpeg", ".jpg", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)


def is_image(path: Path) -> bool:
    """Whether the name says that it is an image OpenCV reads."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def list_images(folder: Path) -> tuple[Path, ...]:
    """Every image below `folder`, sorted by its path as text, as Ultralytics sorts them."""
    return tuple(sorted((path for path in folder.rglob("*") if is_image(path) and path.is_file()), key=str))


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read an image in color, turned as its EXIF orientation says.

    Args:
        path: An image file.

    Returns:
        BGR uint8, shape (height, width, 3).

    Raises:
        DataError: The file is missing, empty, cut short or no image.
    """
    asked = f"read image {path}"
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(asked, (error.strerror or str(error)).lower(), "check the path and its permissions") from error
    if not data:
        raise DataError(asked, "the file is empty", "replace or remove it")
    if _is_truncated(data):
        raise DataError(asked, "the file is cut short", "replace or remove it")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise DataError(asked, "OpenCV can't decode it", "replace or remove it") from error
    if image is None:
        raise DataError(asked, "OpenCV can't decode it", "replace or remove it")
    return cast("NDArray[np.uint8]", image)


def _is_truncated(data: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end, which OpenCV fills with gray without a word.

    A JPEG scan starts with FF DA and stuffs every FF inside, so a whole file has its end marker FF D9 after the last
    scan's start (thumbnails in the header come before it, whatever a camera appended may follow it). ITU-T T.81, B.1.1.
    """
    if data.startswith(b"\xff\xd8"):
        return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")
    if data.startswith(b"\x89PNG"):
        return b"IEND" not in data[-4096:]
    return False


# Some of many images, the same ones every time.


def sample_images(
    paths: Sequence[Path], *, count: int | None = None, fraction: float = 1.0, seed: int = 0
) -> tuple[Path, ...]:
    """Draw images without replacement; their order is kept.

    `fraction` is taken first, then at most `count` of what it left. The same seed gives the same images on every
    machine, and a smaller count draws from the same shuffle, so that 64 images are among the 512 of the same seed.

    Args:
        paths: What to draw from.
        count: At most so many; None = no limit.
        fraction: Share of `paths`, in (0, 1]; at least one image is drawn.
        seed: Of the shuffle.

    Returns:
        The drawn paths in the order of `paths`.

    Raises:
        RecipeError: `fraction` or `count` is out of range.
    """
    if not 0 < fraction <= 1:
        raise RecipeError(
            f"draw a fraction of {fraction} of the images", "it is not in (0, 1]", "pass a share such as 0.5"
        )
    if count is not None and count < 1:
        raise RecipeError(f"draw {count} images", "it is less than 1", "pass a positive number, or None for all")
    wanted = min(len(paths), max(1, round(len(paths) * fraction)))
    if count is not None:
        wanted = min(wanted, count)
    if wanted == len(paths):
        return tuple(paths)
    order = list(range(len(paths)))
    random.Random(seed).shuffle(order)
    return tuple(paths[index] for index in sorted(order[:wanted]))
