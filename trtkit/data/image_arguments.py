"""Images as callers pass them to a runner: paths, http(s) URLs, PIL images and arrays."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from trtkit.data.image_files import MAX_PIXELS, decode_image, read_image
from trtkit.data.image_lists import list_source_images
from trtkit.downloads import read_url
from trtkit.errors import DataError

__all__ = ["is_url", "list_image_arguments", "read_image_argument"]


def list_image_arguments(images: Sequence[Any] | np.ndarray | str | Path) -> Sequence[Any]:
    """List the images of an argument, each as it was passed; `read_image_argument` reads one.

    Args:
        images: A list or a 4-D array of images; or one image, a folder of images or a glob pattern.

    Raises:
        DataError: There is no image in the folder or behind the pattern, or it is None.
    """
    if is_url(images) or _is_pil(images):
        return [images]
    if isinstance(images, (str, Path)):
        return [images] if Path(images).is_file() else list_source_images(images)
    if isinstance(images, np.ndarray) and images.ndim < 4:
        return [images]
    if images is None:
        raise _no_image(images)
    return list(images)


def read_image_argument(image: Any, channels: int) -> np.ndarray:
    """Return one image as an array (height, width, channels), uint8.

    Args:
        image: A file, an http(s) URL, a PIL image, or an array itself.
        channels: Channels that the model takes.

    Raises:
        DataError: It is none of these, can't be read, or has another number of channels.
        DownloadError: The URL can't be read.
    """
    if is_url(image):
        return decode_image(read_url(image), urlsplit(image).path, channels)
    if _is_pil(image):
        return _convert_pil(image, channels)
    if isinstance(image, (str, Path)):
        return read_image(image, channels)
    if not isinstance(image, np.ndarray):
        raise _no_image(image)
    shaped = image[:, :, None] if image.ndim == 2 and channels == 1 else image
    if shaped.dtype != np.uint8 or shaped.ndim != 3 or shaped.shape[2] != channels or shaped.size == 0:
        order = "BGR uint8" if channels == 3 else "uint8"
        raise DataError(
            "predict on an array",
            f"its type is {image.dtype} and its shape {image.shape}",
            f"pass {order} images of shape (height, width, {channels}), as OpenCV reads them",
            code="predict-image-array",
            dtype=str(image.dtype),
            shape=image.shape,
            expected=channels,
        )
    return shaped


def is_url(image: Any) -> bool:
    """Whether an image is named by an http or https URL."""
    return isinstance(image, str) and image.lower().startswith(("http://", "https://"))


def _is_pil(image: Any) -> bool:
    # Whoever passes a PIL image has imported Pillow, which trtkit does not need.
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(image, pillow.Image)


def _no_image(image: Any) -> DataError:
    return DataError(
        "predict on an image",
        f"it is {'None' if image is None else 'a ' + type(image).__name__}",
        "pass a path, an http(s) URL, an array as OpenCV reads it, or a PIL image",
        code="predict-image-type",
        type=type(image).__name__,
    )


def _convert_pil(image: Any, channels: int) -> np.ndarray:
    """Convert a PIL image to BGR, or to gray levels for a model of one channel; an EXIF rotation is not applied.

    Boxes are in the pixels of the image that the caller holds, as in Ultralytics.
    """
    width, height = image.size
    if channels not in (1, 3) or width * height > MAX_PIXELS or not width * height:
        raise DataError(
            "predict on a PIL image",
            f"it has {width} x {height} pixels, for a model of {channels} channels",
            "pass an array"
            if channels not in (1, 3)
            else f"pass an image of at most {MAX_PIXELS // 10**6} million pixels",
            code="predict-image-pil",
            size=(width, height),
            channels=channels,
        )
    try:
        if image.mode.startswith("I;16"):
            pixels = (np.asarray(image) >> 8).astype(np.uint8)[:, :, None]
            return np.repeat(pixels, channels, axis=2)
        pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    except (OSError, ValueError, SyntaxError) as error:  # a file that is cut short is read only now
        raise DataError(
            "predict on a PIL image", str(error), "replace the image", code="predict-image-unreadable"
        ) from error
    return np.ascontiguousarray(pixels.reshape(height, width, channels)[:, :, ::-1])
