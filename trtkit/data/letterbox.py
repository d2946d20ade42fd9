"""Pictures to network inputs, and boxes back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PADDING", "Fit", "fit_to", "letterbox", "to_input"]

PADDING = 114
"""The grey that fills what the picture leaves free; what YOLO is trained with."""


@dataclasses.dataclass(frozen=True)
class Fit:
    """Where a picture lies in the network's input.

    Attributes:
        shape: (height, width) of the original picture.
        resized: (height, width) of the picture inside the input.
        pad: (top, left) free pixels before it.
        size: (height, width) of the input.
    """

    shape: tuple[int, int]
    resized: tuple[int, int]
    pad: tuple[int, int]
    size: tuple[int, int]

    @property
    def ratio(self) -> tuple[float, float]:
        """Input pixels per picture pixel, (vertical, horizontal); the two differ by the rounding of `resized`."""
        return self.resized[0] / self.shape[0], self.resized[1] / self.shape[1]

    def to_picture(self, points: NDArray[np.float32], *, clip: bool = True) -> NDArray[np.float32]:
        """Map x, y pairs from the input to the original picture.

        Args:
            points: Shape (..., 2k): x and y in turn, so boxes x1, y1, x2, y2 and polygons alike.
            clip: Whether what lies outside the picture moves to its edge.

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
        """Map x, y pairs from the original picture to the input; the inverse of `to_picture` without clipping."""
        pairs = points.shape[-1] // 2
        vertical, horizontal = self.ratio
        moved = points * np.tile(np.array([horizontal, vertical], np.float32), pairs)
        return moved + np.tile(np.array([self.pad[1], self.pad[0]], np.float32), pairs)


def fit_to(shape: tuple[int, int], size: tuple[int, int]) -> Fit:
    """How a picture of `shape` lies in an input of `size`, both (height, width).

    The picture is resized, up or down, until it touches the input's sides, each length rounded up; what is left free
    is split evenly, an odd pixel going below and to the right. This is what Ultralytics' validation does with
    `rect=False`.
    """
    ratio = min(size[0] / shape[0], size[1] / shape[1])
    height = min(math.ceil(shape[0] * ratio), size[0])
    width = min(math.ceil(shape[1] * ratio), size[1])
    return Fit(shape=shape, resized=(height, width), pad=((size[0] - height) // 2, (size[1] - width) // 2), size=size)


def letterbox(picture: NDArray[np.uint8], size: tuple[int, int]) -> tuple[NDArray[np.uint8], Fit]:
    """Resize a picture to fit and pad it, centred, with grey.

    Args:
        picture: BGR uint8, shape (height, width, 3).
        size: (height, width) of the input.

    Returns:
        BGR uint8 of shape (*size, 3), and where the picture lies in it.
    """
    fit = fit_to((picture.shape[0], picture.shape[1]), size)
    height, width = fit.resized
    if fit.shape != fit.resized:
        picture = cast("NDArray[np.uint8]", cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR))
    if fit.resized == size:
        return picture, fit
    top, left = fit.pad
    padded = cv2.copyMakeBorder(
        picture, top, size[0] - height - top, left, size[1] - width - left, cv2.BORDER_CONSTANT, value=(PADDING,) * 3
    )
    return cast("NDArray[np.uint8]", padded), fit


def to_input(pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Stack pictures of one size into a network input.

    Args:
        pictures: BGR uint8, each of the same shape (height, width, 3).

    Returns:
        RGB float32 in 0..1, shape (pictures, 3, height, width), contiguous.
    """
    height, width = pictures[0].shape[:2]
    batch = np.empty((len(pictures), 3, height, width), np.float32)
    for index, picture in enumerate(pictures):
        for channel, plane in enumerate(reversed(cv2.split(picture))):
            # Plane by plane, so that reading and writing are both contiguous: 8 times faster than transposing the
            # whole.
            np.divide(plane, np.float32(255), out=batch[index, channel])
    return batch
