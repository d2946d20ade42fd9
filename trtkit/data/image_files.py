"""Image files: listing, and decoding after a check of their size and end."""

from __future__ import annotations

import functools
import io
import mimetypes
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import cv2
import numpy as np

from trtkit.errors import DataError, warn
from trtkit.files import read_limited

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_IMAGE_BYTES",
    "MAX_PIXELS",
    "check_channels",
    "decode_image",
    "is_image",
    "list_images",
    "read_display_image",
    "read_image",
    "to_display",
]

if "OPENCV_LOG_LEVEL" not in os.environ:
    # What OpenCV logs about a damaged file is said by the `DataError` that follows. It has no switch for what libpng
    # and libjpeg print.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".dib", ".dng", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpeg2000"}
    | {".jpg", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".pxm", ".ras", ".sr", ".tif", ".tiff", ".webp"}
)
"""Suffixes of images: OpenCV decodes by content, and files that it can't decode (HEIC, raw DNG) are named as such."""

OTHER_SUFFIXES = frozenset(
    {".arw", ".cr2", ".cr3", ".exr", ".hdr", ".jxl", ".nef", ".orf", ".pfm", ".psd", ".raf", ".rw2", ".svg"}
)
"""Suffixes of images that are not read, beside those that `mimetypes` knows: raw sensor values, floats, vectors."""

MAX_PIXELS = 200_000_000
"""Most pixels of an image, of all pages and of 8 bit in up to 3 channels: 0.6 GB decoded. A file of kilobytes may claim
any size."""

MAX_IMAGE_BYTES = 3 * MAX_PIXELS + 2**20
"""Largest image file: `MAX_PIXELS` without compression."""


ARRAY_SUFFIX = ".npy"
"""Suffix of NumPy arrays (height, width, channels), uint8 or uint16."""

TIFF_SUFFIXES = (".tif", ".tiff")


def is_image(path: Path) -> bool:
    """Return whether the suffix is that of an image format OpenCV reads, or of an array."""
    return path.suffix.lower() in IMAGE_SUFFIXES or path.suffix.lower() == ARRAY_SUFFIX


def list_images(folder: Path, passed_over: list[Path] | None = None) -> tuple[Path, ...]:
    """List all images below `folder`, sorted by path as text, as Ultralytics does.

    Hidden files and folders, such as `.ipynb_checkpoints`, are left out. Arrays (.npy) are listed only in a folder
    without other images: beside images they are Ultralytics' cache of them.

    Args:
        folder: The folder.
        passed_over: Receives images and videos of formats that are not read.
    """
    visible = [path for path in folder.rglob("*") if not _is_hidden(path.relative_to(folder))]
    files = sorted((path for path in visible if is_image(path) and path.is_file()), key=str)
    images = tuple(path for path in files if path.suffix.lower() != ARRAY_SUFFIX)
    if passed_over is not None:
        passed_over += sorted(path for path in visible if not is_image(path) and _is_other_image(path))
    return images or tuple(files)


def _is_other_image(path: Path) -> bool:
    """Return whether a file's suffix is that of an image or video that is not read."""
    kind = mimetypes.guess_type(path.name)[0] or ""
    return path.suffix.lower() in OTHER_SUFFIXES or kind.startswith(("image/", "video/"))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def read_image(path: str | Path, channels: int = 3, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read an image with a model's number of channels, as Ultralytics does.

    Args:
        path: An image file, or an array (.npy).
        channels: 3 reads color, rotated by the EXIF orientation; 1 reads gray levels, rotated too; any other number
            reads the file as it is: an alpha channel stays, and the pages of a gray TIFF are its channels. 16-bit
            values keep their high byte.
        max_pixels: Most pixels of the image, of all pages; its header is asked before it is decoded.

    Returns:
        uint8, shape (height, width, channels); BGR if there are 3.

    Raises:
        DataError: The file is missing, empty, truncated or no image, or has another number of channels.
    """
    path = Path(path)
    return _check_image(_read(path, channels, max_pixels), path, channels)


def decode_image(data: bytes, name: str, channels: int = 3) -> NDArray[np.uint8]:
    """Decode an image file in memory, as `read_image` reads one.

    Args:
        data: The file's bytes.
        name: Where they come from, for its suffix and error messages.
        channels: As in `read_image`.

    Raises:
        DataError: As `read_image` does.
    """
    path = Path(name)
    return _check_image(_decode(data, path, channels), path, channels)


def _check_image(image: NDArray[np.uint8], path: Path, channels: int) -> NDArray[np.uint8]:
    if image.shape[2] != channels:
        raise DataError(
            f"read image {path}",
            f"it has {image.shape[2]} channels where the model takes {channels}",
            f"give images with {channels} channels",
            code="image-channels",
            path=path,
            value=image.shape[2],
            expected=channels,
        )
    return image


def _read(path: Path, channels: int | None, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read an image as `read_image` does, without checking its channels; None reads it as it is stored."""
    asked = f"read image {path}"
    try:
        data = read_limited(path, MAX_IMAGE_BYTES)
    except (OSError, ValueError) as error:
        raise DataError(
            asked,
            (getattr(error, "strerror", None) or str(error)).lower(),
            "check the path and its permissions",
            code="image-unreadable",
            path=path,
        ) from error
    return _decode(data, path, channels, max_pixels)


def _decode(data: bytes, path: Path, channels: int | None, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    asked = f"read image {path}"
    if not data:
        raise DataError(asked, "the file is empty", "replace or remove it", code="image-empty", path=path)
    if _is_truncated(data):
        raise DataError(asked, "the file is truncated", "replace or remove it", code="image-truncated", path=path)
    pixels = 0 if path.suffix.lower() == ARRAY_SUFFIX else _count_pixels(data)
    if pixels > max_pixels:
        raise DataError(
            asked,
            f"it has {pixels / 1e6:,.0f} million pixels, more than {max_pixels // 10**6}",
            "cut it into tiles, or scale it down",
            code="image-too-large",
            path=path,
            value=pixels,
            limit=max_pixels,
        )
    image = _decode_array(data) if path.suffix.lower() == ARRAY_SUFFIX else _decode_image(data, path, channels)
    if image is None:
        found = "it is no array" if path.suffix.lower() == ARRAY_SUFFIX else "OpenCV can't decode it"
        raise DataError(asked, found, "replace or remove it", code="image-undecodable", path=path)
    image = image[:, :, None] if image.ndim == 2 else image
    if image.dtype == np.uint16:
        _warn_of_low_bits(int(image.max(initial=0)), str(path.parent))
        image = (image >> 8).astype(np.uint8)
    if image.dtype != np.uint8 or image.ndim != 3 or image.size == 0:
        raise DataError(
            asked,
            f"its values are {image.dtype} and its shape {image.shape}",
            "store 8 or 16 bit unsigned values of shape (height, width, channels)",
            code="image-values",
            path=path,
            dtype=str(image.dtype),
            shape=image.shape,
        )
    return cast("NDArray[np.uint8]", image)


def _warn_of_low_bits(largest: int, folder: str) -> None:
    """Warn once for a folder whose 16-bit images hold sensor values of 9 to 14 bits, which come out nearly black."""
    bits = largest.bit_length()
    if 0 < bits <= 14:
        _warn_of_bits(bits, folder)


@functools.lru_cache(maxsize=256)
def _warn_of_bits(bits: int, folder: str) -> None:
    warn(
        f"a 16-bit image in {folder} has values of {bits} bits at most; the high byte is read, so it is nearly black. "
        "Scale such images to 16 bits, or to 8, as the model's training images were"
    )


def _decode_image(data: bytes, path: Path, channels: int | None) -> NDArray[Any] | None:
    """Decode a file in memory; None if OpenCV can't."""
    encoded = np.frombuffer(data, np.uint8)
    is_tiff = path.suffix.lower() in TIFF_SUFFIXES
    flag = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR}.get(channels or 0, cv2.IMREAD_UNCHANGED)
    try:
        if is_tiff and flag == cv2.IMREAD_COLOR:
            # All bands of a page are read, of which the first three count; IMREAD_COLOR would convert them.
            image = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
            if image is not None and image.ndim == 3 and image.shape[2] >= 3:
                return image[:, :, :3]
        elif is_tiff and flag == cv2.IMREAD_UNCHANGED:
            _, pages = cv2.imdecodemulti(encoded, cv2.IMREAD_UNCHANGED)
            # `_count_pixels` has bounded the sum of all pages.
            if len(pages) > 1 and pages[0].ndim == 2 and len({page.shape for page in pages}) == 1:
                return np.stack(pages, axis=2)
        image = cv2.imdecode(encoded, flag)
        # A high-dynamic-range file, or a damaged one whose type changed.
        is_deep = flag in (cv2.IMREAD_COLOR, cv2.IMREAD_GRAYSCALE) and not is_tiff and image is not None
        if is_deep and int.from_bytes(data[24:25], "big") == 16 and data.startswith(b"\x89PNG"):
            # OpenCV keeps the high byte of 16-bit PNG by itself, so values are looked at only here.
            deep = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
            _warn_of_low_bits(0 if deep is None else int(deep.max(initial=0)), str(path.parent))
        return image
    except (cv2.error, MemoryError, ValueError):
        return None


def _decode_array(data: bytes) -> NDArray[Any] | None:
    """Decode a .npy file in memory; None if it is none or holds Python objects."""
    try:
        return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))
    except Exception:  # noqa: BLE001 - NumPy parses the header with `ast`, and allocates what it claims
        return None


def check_channels(paths: Sequence[Path], channels: int) -> None:
    """Check before a long run that images have a model's number of channels, by the first one that can be read.

    Args:
        paths: Image files. Files of image formats convert to 1 and 3 channels; arrays and other numbers do not.
        channels: The model's number of channels.

    Raises:
        DataError: The image has another number of channels.
    """
    for path in paths:
        if channels in (1, 3) and path.suffix.lower() != ARRAY_SUFFIX:
            continue
        try:
            read_image(path, channels)
        except DataError as error:
            if error.code == "image-channels":
                raise
            continue
        return


def read_display_image(path: str | Path) -> NDArray[np.uint8]:
    """Read an image of any number of channels for display.

    Args:
        path: An image file, or an array (.npy).

    Returns:
        BGR uint8, shape (height, width, 3); of more than three channels the first three, fewer as gray levels.

    Raises:
        DataError: As `read_image` does, except for the number of channels.
    """
    path = Path(path)
    # Only these formats hold more than color: as stored, others would lose their EXIF rotation.
    as_stored = path.suffix.lower() in (ARRAY_SUFFIX, *TIFF_SUFFIXES)
    return to_display(_read(path, None if as_stored else 3))


def to_display(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert an image to BGR for drawing on it.

    Args:
        image: uint8, shape (height, width, channels).

    Returns:
        uint8, shape (height, width, 3): the image itself if it has three channels, the first three of more, else the
        first one as gray levels.
    """
    channels = image.shape[2]
    if channels == 3:
        return image
    return np.ascontiguousarray(image[:, :, :3] if channels > 3 else np.repeat(image[:, :, :1], 3, axis=2))


_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""A JPEG marker in or after entropy-coded data: FF 00 is a value, FF D0 to D7 restart.

Of several FF the last counts: a repetition at the begin of the pattern would be searched for many times slower."""


def _is_truncated(data: bytes) -> bool:
    """Return whether a JPEG or PNG lacks its end; OpenCV would fill it with gray without a warning.

    Both are walked by their own structure, so that neither a thumbnail's end nor bytes after the image matter: phones
    append a video or a second image.
    """
    if data.startswith(b"\xff\xd8"):
        return not _has_jpeg_end(data)
    if data.startswith(b"\x89PNG"):
        return not _has_png_end(data)
    return False


def _has_jpeg_end(data: bytes) -> bool:
    """Follow the segments of a JPEG to its end marker, FF D9. Source: ITU-T T.81, B.1."""
    position = 2
    while (match := _MARKER.search(data, position)) is not None:
        code = match.group()[-1]
        if code == 0xD9:
            return True
        position = match.end()
        # Every other marker that can stand here starts a segment of this length; a scan's data follows it.
        if code != 0x01:
            position += int.from_bytes(data[position : position + 2], "big")
    return False


def _has_png_end(data: bytes) -> bool:
    """Follow the chunks of a PNG (length, type, data, checksum) to IEND. Source: PNG specification, 5.3."""
    position = 8
    while position + 12 <= len(data):
        if data[position + 4 : position + 8] == b"IEND":
            return True
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return False


# Sizes by header: OpenCV has no way to ask before it allocates.


def _count_pixels(data: bytes) -> int:
    """Return the pixels that an image file's header claims; 0 if the format is not known.

    Pages of a TIFF are added up, and count double if their values have 16 bits.
    """
    if data.startswith(b"\x89PNG"):
        return _big(data, 16, 4) * _big(data, 20, 4)
    if data.startswith(b"\xff\xd8"):
        return _count_jpeg_pixels(data)
    if data[:4] in (b"II*\0", b"MM\0*"):
        return _count_tiff_pixels(data, "little" if data[:1] == b"I" else "big")
    if data.startswith(b"BM"):
        width, height = (int.from_bytes(data[at : at + 4], "little", signed=True) for at in (18, 22))
        return abs(width * height)
    if data.startswith(b"GIF8"):
        return int.from_bytes(data[6:8], "little") * int.from_bytes(data[8:10], "little")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _count_webp_pixels(data)
    if data[:4] == b"\x59\xa6\x6a\x95":  # Sun raster
        return _big(data, 4, 4) * _big(data, 8, 4)
    if match := _PNM_SIZE.match(data):
        return int(match[1]) * int(match[2])
    # Boxes of ISO files: the image header of JPEG 2000, the spatial extents of AVIF; a raw code stream starts with SIZ.
    header = data[:MAX_BOX_HEADER]
    if (at := header.find(b"ihdr")) >= 0 or (at := header.find(b"ispe") + 4) >= 4:
        return _big(data, at + 4, 4) * _big(data, at + 8, 4)
    if header.startswith(b"\xff\x4f\xff\x51"):
        return _big(data, 8, 4) * _big(data, 12, 4)
    return 0


MAX_BOX_HEADER = 1 << 16
"""Bytes in which the header boxes of JPEG 2000 and AVIF files lie."""

_PNM_SIZE = re.compile(rb"P[1-7](?:\s+|#[^\n]*\n)+(?:WIDTH\s+)?(\d{1,9})(?:\s+|#[^\n]*\n)+(?:HEIGHT\s+)?(\d{1,9})")


def _big(data: bytes, at: int, count: int) -> int:
    return int.from_bytes(data[at : at + count], "big")


def _count_jpeg_pixels(data: bytes) -> int:
    """Follow the segments to the frame header, FF C0 to FF CF. Source: ITU-T T.81, B.2.2."""
    position = 2
    while (match := _MARKER.search(data, position)) is not None:
        code, position = match.group()[-1], match.end()
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            return _big(data, position + 3, 2) * _big(data, position + 5, 2)
        if code in (0xD9, 0xDA):
            break
        position += _big(data, position, 2)
    return 0


def _count_webp_pixels(data: bytes) -> int:
    """Read the size in the first chunk. Source: RFC 9649."""
    kind, body = data[12:16], data[20:30]
    if kind == b"VP8X":
        return (int.from_bytes(body[4:7], "little") + 1) * (int.from_bytes(body[7:10], "little") + 1)
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return ((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1)
    return (int.from_bytes(body[6:8], "little") & 0x3FFF) * (int.from_bytes(body[8:10], "little") & 0x3FFF)


def _count_tiff_pixels(data: bytes, order: Literal["little", "big"]) -> int:
    """Add up the pages of a TIFF. Source: TIFF 6.0, section 2: a chain of folders of 12-byte entries."""

    def read(at: int, count: int) -> int:
        return int.from_bytes(data[at : at + count], order)

    total, offset = 0, read(4, 4)
    seen: set[int] = set()
    while offset and offset not in seen and total <= MAX_PIXELS:
        seen.add(offset)
        entries = read(offset, 2)
        values = {256: 0, 257: 0, 258: 8, 277: 1}  # width, height, bits of a value, values of a pixel
        for at in range(offset + 2, min(offset + 2 + 12 * entries, len(data)), 12):
            tag, kind, count = read(at, 2), read(at + 2, 2), read(at + 4, 4)
            if tag in values:
                size = {1: 1, 3: 2, 4: 4}.get(kind, 4)
                # Several values lie elsewhere; they are the same for all channels.
                values[tag] = read(read(at + 8, 4) if size * count > 4 else at + 8, size)
        bits = min(values[258], 64) * max(min(values[277], 1024), 1)
        total += values[256] * values[257] * max(bits, 8 * 3) // (8 * 3)
        offset = read(offset + 2 + 12 * entries, 4)
    return total
