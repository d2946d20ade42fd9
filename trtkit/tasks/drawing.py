"""Drawing of boxes and class names, in colors that are safe for common color blindness."""

from __future__ import annotations

import base64
import dataclasses
import html
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ImageGrid", "class_color", "draw_box", "line_width"]

HEIGHT = 240
"""Height of each image of a grid, pixels."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ImageGrid:
    """Images with captions, displayed side by side in a notebook.

    Attributes:
        images: BGR uint8, (height, width, 3), of any size.
        captions: A description of each image.
    """

    images: tuple[NDArray[np.uint8], ...]
    captions: tuple[str, ...]

    def _repr_html_(self) -> str:
        shown = "".join(
            f"<img src='data:image/jpeg;base64,{_encode_jpeg(image)}' alt='{html.escape(text, quote=True)}' "
            f"title='{html.escape(text, quote=True)}' style='height:{HEIGHT}px;max-width:100%;object-fit:contain'>"
            for image, text in zip(self.images, self.captions, strict=True)
        )
        return f"<div style='display:flex;flex-wrap:wrap;gap:8px'>{shown}</div>"

    def __repr__(self) -> str:
        return "\n".join((f"ImageGrid of {len(self.images)}", *(f"  {text}" for text in self.captions)))


def _encode_jpeg(image: NDArray[np.uint8]) -> str:
    scale = HEIGHT / image.shape[0]
    # Twice the height for high-density screens; nothing is enlarged.
    if (scale := 2 * scale) < 1:
        size = (max(1, round(image.shape[1] * scale)), 2 * HEIGHT)
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    return base64.b64encode(cv2.imencode(".jpg", image)[1].tobytes()).decode()


# The palette of Okabe and Ito (2008) without black, BGR.
PALETTE = ((178, 114, 0), (0, 159, 230), (115, 158, 0), (0, 94, 213), (167, 121, 204), (233, 180, 86), (66, 228, 240))


def class_color(number: int) -> tuple[int, int, int]:
    """Return a class's color, BGR. Seven colors repeat, so drawings show class names too."""
    return PALETTE[number % len(PALETTE)]


def line_width(shape: tuple[int, ...]) -> int:
    """Return the line width for an image of `shape`, pixels: about 1/300 of its sides."""
    return max(1, round((shape[0] + shape[1]) / 600))


def draw_box(image: NDArray[np.uint8], box: NDArray[np.float32], text: str, number: int) -> None:
    """Draw a box and its text into `image`.

    Args:
        image: BGR uint8, changed in place.
        box: x1, y1, x2, y2, pixels.
        text: Text above the box, or inside if there is no space above; "" draws the box only.
        number: The class, for its color.
    """
    width = line_width(image.shape)
    left, top, right, bottom = (round(float(value)) for value in box)
    cv2.rectangle(image, (left, top), (right, bottom), class_color(number), width, cv2.LINE_AA)
    if not text:
        return
    size = width / 3
    (across, up), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, width)
    line = up + below + 2
    upper = top - line if top >= line else top
    cv2.rectangle(image, (left, upper), (left + across + 2, upper + line), class_color(number), -1)
    blue, green, red = class_color(number)
    # Black or white text by the luma of ITU-R BT.601.
    ink = (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else (255, 255, 255)
    origin = (left + 1, upper + up + 1)
    cv2.putText(image, text, origin, cv2.FONT_HERSHEY_SIMPLEX, size, ink, max(1, width - 1), cv2.LINE_AA)
