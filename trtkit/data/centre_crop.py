"""How classification sees a picture: its shorter side resized, its middle cut out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trtkit.data.letterbox import Fit

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["centre_crop", "resize_smoothly"]

FIXED = 1 << 22


def centre_crop(picture: NDArray[np.uint8], size: tuple[int, int]) -> tuple[NDArray[np.uint8], Fit]:
    """Resize a picture until its shorter side fits, and cut the middle out; what Ultralytics' validation does.

    Args:
        picture: BGR uint8, shape (height, width, 3).
        size: (height, width) of the input; where the two differ, the picture is resized to them, its shape ignored.

    Returns:
        BGR uint8 of shape (*size, 3), and where the picture lies in it; `Fit.pad` is negative, for edges are cut off.
    """
    height, width = picture.shape[:2]
    if size[0] != size[1]:
        resized = size
    elif height <= width:
        resized = size[0], int(size[0] * width / height)
    else:
        resized = int(size[1] * height / width), size[1]
    top, left = round((resized[0] - size[0]) / 2), round((resized[1] - size[1]) / 2)
    cut = resize_smoothly(picture, resized)[top : top + size[0], left : left + size[1]]
    return np.ascontiguousarray(cut), Fit(shape=(height, width), resized=resized, pad=(-top, -left), size=size)


def resize_smoothly(picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Bilinear resizing that averages what it shrinks, as Pillow's does; OpenCV's skips pixels there.

    A triangle filter as wide as the pixels that make one new pixel, first along rows and then along columns, rounded to
    whole grey levels after each: classification models are trained on exactly this. (Pillow 13 takes the columns of
    some tall pictures first, which moves a sixth of their pixels by one grey level.)

    Args:
        picture: uint8, shape (height, width, channels).
        size: (height, width) to make.
    """
    across = _weights(picture.shape[1], size[1])
    down = _weights(picture.shape[0], size[0])
    rows = picture.astype(np.float64)
    if across is not None:
        rows = _rounded(np.einsum("ow,hwc->hoc", across, rows, optimize=True))
    if down is not None:
        rows = _rounded(np.einsum("oh,hwc->owc", down, rows, optimize=True))
    return rows.astype(np.uint8)


def _rounded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    rounded: NDArray[np.float64] = np.floor(values + 0.5)
    return rounded


def _weights(before: int, after: int) -> NDArray[np.float64] | None:
    """What each of `before` pixels gives to each of `after`, shape (after, before); None where nothing changes."""
    if before == after:
        return None
    scale = before / after
    reach = max(scale, 1.0)
    centres = (np.arange(after) + 0.5) * scale
    distances = np.abs(np.arange(before) + 0.5 - centres[:, None]) / reach
    weights = np.maximum(1 - distances, 0)
    weights /= weights.sum(1, keepdims=True)
    # Pillow's fixed point of 22 bits, so that halves round the same way.
    shares: NDArray[np.float64] = np.floor(weights * FIXED + 0.5) / FIXED
    return shares
