"""Boxes and names drawn on pictures, in colours that people with any common colour blindness tell apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from trtkit.files import write_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Sheet", "colour", "draw_box", "line_width", "sheet_of"]

HEIGHT = 320
"""Pixels that each picture of a sheet is high."""

WIDTH = 1100
"""Pixels that a row of a sheet may be wide."""

GAP = 8

# Okabe and Ito's palette (2008) without black, as BGR.
PALETTE = ((178, 114, 0), (0, 159, 230), (115, 158, 0), (0, 94, 213), (167, 121, 204), (233, 180, 86), (66, 228, 240))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Sheet:
    """Drawn pictures beside each other; a notebook shows it as a picture.

    Attributes:
        picture: RGBA uint8, (height, width, 4); see-through between the pictures.
        pictures: How many there are.
    """

    picture: NDArray[np.uint8]
    pictures: int

    def png(self) -> bytes:
        """The sheet as a PNG file's bytes."""
        return cv2.imencode(".png", cv2.cvtColor(self.picture, cv2.COLOR_RGBA2BGRA))[1].tobytes()

    def save(self, path: str | Path) -> Path:
        """Write a PNG file.

        Raises:
            OutputError: It can't be written.
        """
        return write_bytes(path, self.png())

    def _repr_png_(self) -> bytes:
        return self.png()

    def __repr__(self) -> str:
        return f"Sheet({self.pictures} pictures, {self.picture.shape[1]}x{self.picture.shape[0]})"


def sheet_of(drawn: Sequence[NDArray[np.uint8]]) -> Sheet:
    """Lay pictures out in rows, each brought to one height.

    Args:
        drawn: BGR uint8 pictures of any size, one or more.
    """
    rows: list[list[NDArray[np.uint8]]] = [[]]
    across = 0
    for one in drawn:
        width = max(1, round(one.shape[1] * HEIGHT / one.shape[0]))
        scaled = cv2.resize(one, (width, HEIGHT), interpolation=cv2.INTER_AREA)
        if rows[-1] and across + width > WIDTH:
            rows.append([])
            across = 0
        rows[-1].append(np.asarray(cv2.cvtColor(scaled, cv2.COLOR_BGR2RGBA), np.uint8))
        across += width + GAP
    wide = max(sum(one.shape[1] + GAP for one in row) for row in rows) - GAP
    whole = np.zeros((len(rows) * (HEIGHT + GAP) - GAP, wide, 4), np.uint8)
    for index, row in enumerate(rows):
        top, left = index * (HEIGHT + GAP), 0
        for one in row:
            whole[top : top + HEIGHT, left : left + one.shape[1]] = one
            left += one.shape[1] + GAP
    return Sheet(picture=whole, pictures=len(drawn))


def colour(number: int) -> tuple[int, int, int]:
    """A class's colour, BGR; classes also carry their names, since seven colours repeat."""
    return PALETTE[number % len(PALETTE)]


def line_width(shape: tuple[int, ...]) -> int:
    """How thick lines are on a picture of `shape`, pixels: about 1/300 of its sides."""
    return max(1, round((shape[0] + shape[1]) / 600))


def draw_box(picture: NDArray[np.uint8], box: NDArray[np.float32], text: str, number: int) -> None:
    """Draw a box and its text into `picture`.

    Args:
        picture: BGR uint8, changed in place.
        box: x1, y1, x2, y2, pixels.
        text: What stands above the box (inside where there is no room above).
        number: The class, which decides the colour.
    """
    width = line_width(picture.shape)
    left, top, right, bottom = (round(float(value)) for value in box)
    cv2.rectangle(picture, (left, top), (right, bottom), colour(number), width, cv2.LINE_AA)
    if not text:
        return
    size = width / 3
    (across, up), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, width)
    line = up + below + 2
    upper = top - line if top >= line else top
    cv2.rectangle(picture, (left, upper), (left + across + 2, upper + line), colour(number), -1)
    blue, green, red = colour(number)
    # Luma of ITU-R BT.601 decides between black and white letters.
    ink = (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else (255, 255, 255)
    place = (left + 1, upper + up + 1)
    cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, ink, max(1, width - 1), cv2.LINE_AA)
