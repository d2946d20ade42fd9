"""Preprocessing of images into model inputs, mapping of coordinates back to the image, and sampling."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from trtkit.arguments import check_argument
from trtkit.models.model import Preprocess

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "PADDING",
    "ImageTransform",
    "center_crop",
    "compute_letterbox",
    "letterbox",
    "map_to_images",
    "resize_antialias",
    "resize_to_input",
    "sample_images",
    "stretch",
    "to_input",
]

PADDING = 114
"""Gray level of letterbox padding in every channel, as in YOLO training."""

CHANNEL_GROUP = 64
"""Channels that OpenCV resizes at once; it takes at most 128."""


@dataclasses.dataclass(frozen=True)
class ImageTransform:
    """Where an image lies in the model input.

    Attributes:
        shape: (height, width) of the original image.
        resized: (height, width) of the resized image.
        pad: (top, left) offset of the resized image in the input; negative where edges are cropped.
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
            points: Shape (..., 2k): x and y in turn, as in boxes x1, y1, x2, y2 and polygons.
            clip: Whether to clip points to the image.

        Returns:
            A new float32 array of the same shape.
        """
        pairs = points.shape[-1] // 2
        return _map(points, *(np.array(values * pairs, np.float32) for values in self._to_image()), clip=clip)

    def _to_image(self) -> tuple[tuple[float, float], ...]:
        """Offset, ratio and size of the image, each (x, y)."""
        vertical, horizontal = self.ratio
        return (self.pad[1], self.pad[0]), (horizontal, vertical), (self.shape[1], self.shape[0])

    def to_network(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map x, y pairs from the original image to the input; the inverse of `to_image` without clipping."""
        pairs = points.shape[-1] // 2
        vertical, horizontal = self.ratio
        mapped = points * np.tile(np.array([horizontal, vertical], np.float32), pairs)
        return mapped + np.tile(np.array([self.pad[1], self.pad[0]], np.float32), pairs)


def map_to_images(
    points: NDArray[np.float32], owners: NDArray[np.intp], transforms: Sequence[ImageTransform]
) -> NDArray[np.float32]:
    """Map x, y pairs of several images at once, as `ImageTransform.to_image` maps those of one.

    Args:
        points: Shape (n, 2k).
        owners: The index of each row's transform, shape (n,).
        transforms: One per image.

    Returns:
        A new float32 array of the same shape.
    """
    pairs = points.shape[-1] // 2
    values = np.array([[value * pairs for value in transform._to_image()] for transform in transforms], np.float32)
    return _map(points, *values[owners].transpose(1, 0, 2), clip=True)


def _map(
    points: NDArray[np.float32],
    offset: NDArray[np.float32],
    ratio: NDArray[np.float32],
    limit: NDArray[np.float32],
    *,
    clip: bool,
) -> NDArray[np.float32]:
    mapped = points - offset
    mapped /= ratio
    if clip:
        np.clip(mapped, 0, limit, out=mapped)
    return mapped


def compute_letterbox(shape: tuple[int, int], size: tuple[int, int]) -> ImageTransform:
    """Compute the letterbox of an image of `shape` in an input of `size`, both (height, width).

    The image is resized, up or down, to touch two opposite sides of the input, each length rounded up; the rest is
    split evenly, an odd pixel going to the bottom and right. As in Ultralytics' validation with `rect=False`.
    """
    ratio = min(size[0] / shape[0], size[1] / shape[1])
    height = min(math.ceil(shape[0] * ratio), size[0])
    width = min(math.ceil(shape[1] * ratio), size[1])
    return ImageTransform(
        shape=shape, resized=(height, width), pad=((size[0] - height) // 2, (size[1] - width) // 2), size=size
    )


def letterbox(image: NDArray[np.uint8], size: tuple[int, int]) -> tuple[NDArray[np.uint8], ImageTransform]:
    """Resize an image with its aspect ratio kept, and pad it with gray to the input's size.

    Args:
        image: uint8, shape (height, width, channels).
        size: (height, width) of the input.

    Returns:
        uint8 of shape (*size, channels), and where the image lies in it.
    """
    transform = compute_letterbox((image.shape[0], image.shape[1]), size)
    if transform.resized == size:
        return _resize(image, size), transform
    (top, left), (height, width) = transform.pad, transform.resized
    padded = np.empty((*size, image.shape[2]), np.uint8)
    rows = padded[top : top + height]
    for border in (padded[:top], padded[top + height :], rows[:, :left], rows[:, left + width :]):
        border[...] = PADDING
    _resize(image, transform.resized, rows[:, left : left + width])
    return padded, transform


def _resize(image: NDArray[np.uint8], size: tuple[int, int], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Resize bilinearly to (height, width), into `out` if it is given; the channel axis stays.

    OpenCV drops it from one channel.
    """
    if image.shape[:2] == size:
        resized = image
    else:
        channels = image.shape[2]
        groups = [image[:, :, start : start + CHANNEL_GROUP] for start in range(0, channels, CHANNEL_GROUP)]
        target = out if len(groups) == 1 else None
        parts = [
            np.asarray(
                cv2.resize(group, (size[1], size[0]), dst=target, interpolation=cv2.INTER_LINEAR), np.uint8
            ).reshape(*size, -1)
            for group in groups
        ]
        resized = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
    if out is not None and not np.may_share_memory(resized, out):
        out[...] = resized
    return resized


def stretch(image: NDArray[np.uint8], size: tuple[int, int]) -> tuple[NDArray[np.uint8], ImageTransform]:
    """Resize an image to the input, its aspect ratio ignored.

    Args:
        image: uint8, shape (height, width, channels).
        size: (height, width) of the input.

    Returns:
        uint8 of shape (*size, channels), and where the image lies in it.
    """
    shape = (image.shape[0], image.shape[1])
    return _resize(image, size), ImageTransform(shape=shape, resized=size, pad=(0, 0), size=size)


FIXED_POINT = 1 << 22
"""Scale of Pillow's fixed-point resampling weights."""


def center_crop(image: NDArray[np.uint8], size: tuple[int, int]) -> tuple[NDArray[np.uint8], ImageTransform]:
    """Resize an image's shorter side to the input and crop the center, as in Ultralytics' validation.

    Args:
        image: uint8, shape (height, width, channels).
        size: (height, width) of the input; if they differ, the image is stretched to them.

    Returns:
        uint8 of shape (*size, channels), and where the image lies in it; `pad` is negative, as edges are cropped.
    """
    height, width = image.shape[:2]
    if size[0] != size[1]:
        resized = size
    elif height <= width:
        resized = size[0], int(size[0] * width / height)
    else:
        resized = int(size[1] * height / width), size[1]
    top, left = round((resized[0] - size[0]) / 2), round((resized[1] - size[1]) / 2)
    cropped = resize_antialias(image, resized)[top : top + size[0], left : left + size[1]]
    transform = ImageTransform(shape=(height, width), resized=resized, pad=(-top, -left), size=size)
    return np.ascontiguousarray(cropped), transform


def resize_antialias(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize bilinearly with antialiasing, as Pillow does; OpenCV skips pixels when it downscales.

    A triangle filter as wide as the source pixels of one target pixel, along rows and then along columns, rounded to
    integers after each: the resizing that classification models are trained with. (Pillow 13 starts with the columns of
    some tall images, which changes a sixth of their pixels by one gray level.)

    Args:
        image: uint8, shape (height, width, channels).
        size: (height, width) of the result.

    Returns:
        uint8, shape (*size, channels).
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
    """Return the weight of each of `before` pixels in each of `after`, shape (after, before); None if sizes agree."""
    if before == after:
        return None
    scale = before / after
    radius = max(scale, 1.0)
    centers = (np.arange(after) + 0.5) * scale
    distances = np.abs(np.arange(before) + 0.5 - centers[:, None]) / radius
    weights = np.maximum(1 - distances, 0)
    weights /= weights.sum(1, keepdims=True)
    # Pillow's 22-bit fixed point, so that halves round the same way.
    fixed: NDArray[np.float64] = np.floor(weights * FIXED_POINT + 0.5) / FIXED_POINT
    return fixed


_RESIZERS = {"letterbox": letterbox, "stretch": stretch, "center_crop": center_crop}


def resize_to_input(
    image: NDArray[np.uint8], size: tuple[int, int], preprocess: Preprocess
) -> tuple[NDArray[np.uint8], ImageTransform]:
    """Resize an image to the model input by the model's preprocessing.

    Args:
        image: uint8, shape (height, width, channels), BGR if there are 3.
        size: (height, width) of the input.
        preprocess: `ModelInfo.preprocess`.

    Returns:
        uint8 of shape (*size, channels), and where the image lies in it.
    """
    return _RESIZERS[preprocess.kind](image, size)


def to_input(
    images: Sequence[NDArray[np.uint8]],
    preprocess: Preprocess | None = None,
    *,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Stack resized images into a model input: color order, scale, mean and standard deviation.

    Args:
        images: uint8, each of the same shape (height, width, channels); BGR if there are 3, else in the file's order.
        preprocess: `ModelInfo.preprocess`; None is RGB in 0..1.
        out: An earlier result that is not needed any more: written over if it has the shape, since the system clears
            new memory of this size first.

    Returns:
        Float32, shape (images, channels, height, width), contiguous.
    """
    preprocess = preprocess or Preprocess()
    height, width, channels = images[0].shape
    shape = (len(images), channels, height, width)
    batch = out if out is not None and out.shape == shape else np.empty(shape, np.float32)
    # A gray level has 256 values: each is computed once, and then looked up.
    tables = _tabulate_levels(preprocess, channels)
    planes = np.empty((channels, height, width), np.uint8)
    order = range(channels)[::-1] if preprocess.reverses_channels else range(channels)
    for index, image in enumerate(images):
        if channels <= CHANNEL_GROUP:
            cv2.split(image, [planes[channel] for channel in order])
        else:
            planes[...] = np.moveaxis(image, 2, 0)[:: -1 if preprocess.reverses_channels else 1]
        for channel in range(channels):
            cv2.LUT(planes[channel], tables[channel], dst=batch[index, channel])
    return batch


def _tabulate_levels(preprocess: Preprocess, channels: int) -> NDArray[np.float32]:
    """The model's input of every gray level by channel, shape (channels, 256)."""
    levels = np.arange(256, dtype=np.float32)
    # Division rounds correctly, multiplication by 1 / 255 would not.
    levels = levels / np.float32(255) if preprocess.scale == 1 / 255 else levels * np.float32(preprocess.scale)
    tables = np.tile(levels, (channels, 1))
    if preprocess.mean:
        tables -= np.array(preprocess.mean, np.float32)[:, None]
    if preprocess.std:
        tables /= np.array(preprocess.std, np.float32)[:, None]
    return tables


# Sampling


def sample_images(
    paths: Sequence[Path], *, count: int | None = None, fraction: float = 1.0, seed: int = 0
) -> tuple[Path, ...]:
    """Sample images without replacement.

    `fraction` applies before `count`. The same seed gives the same images on every machine. A smaller count takes a
    prefix of the same shuffle: with one seed, a sample of 64 images is a subset of the sample of 512.

    Args:
        paths: The images to sample from.
        count: Maximum number of images; None sets no limit.
        fraction: Fraction of `paths`, in (0, 1]; at least one image is taken.
        seed: Seed of the shuffle.

    Returns:
        The sampled paths, in the order of `paths`.

    Raises:
        RecipeError: `fraction` or `count` is out of range.
    """
    fraction = check_argument("sample", "fraction", fraction)
    if count is not None:
        count = check_argument("sample", "count", count)
    size = min(len(paths), max(1, round(len(paths) * fraction)))
    if count is not None:
        size = min(size, count)
    if size == len(paths):
        return tuple(paths)
    order = list(range(len(paths)))
    random.Random(seed).shuffle(order)
    return tuple(paths[index] for index in sorted(order[:size]))
