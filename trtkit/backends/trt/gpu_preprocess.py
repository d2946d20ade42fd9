"""Preprocessing of a batch in torch operations, on the GPU and, for tests, on the CPU.

Bit for bit what `trtkit.data.images` computes with OpenCV on x86-64, whose fixed-point resizing it repeats. The number
of operations depends neither on how many images a batch has nor on their sizes: small ones wait for their launch, and a
CUDA graph can hold them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trtkit.data.images import PADDING, ImageTransform, compute_letterbox
from trtkit.models.model import Preprocess

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["GPU_KINDS", "DeviceImages", "HostImages", "locate_images"]

GPU_KINDS = ("letterbox", "stretch")
"""Kinds of preprocessing that the GPU does as the CPU does; the antialiased center crop it does not."""

MAX_RUN_PIXELS = 2**20
"""Most input pixels that are computed at once, which take 70 MB for three channels."""

MAX_INT32 = 2**31 - 1

WEIGHT_BITS = 11
"""Binary digits of a weight in OpenCV's linear resizing of uint8."""

LINE_NUMBERS = 6
"""Numbers for each line of the input: where the two lines of the image begin that are blended, in pixels; their
weights; and what is added to each product."""

COLUMN_NUMBERS = 5
"""Numbers for each column of the input: the two places in a line that are blended, their weights, and what is added."""

AXES = 512
"""Heights and widths of images whose numbers are kept: 13 kB each at 640 pixels."""


def locate_images(images: Sequence[np.ndarray], size: tuple[int, int], preprocess: Preprocess) -> list[ImageTransform]:
    """Where images lie in a network's input.

    Args:
        images: Shape (height, width, channels).
        size: (height, width) of the input.
        preprocess: The model's preprocessing, of one of `GPU_KINDS`.

    Returns:
        The transform of each image.
    """
    shapes = [(image.shape[0], image.shape[1]) for image in images]
    if preprocess.kind == "letterbox":
        return [compute_letterbox(shape, size) for shape in shapes]
    return [ImageTransform(shape=shape, resized=size, pad=(0, 0), size=size) for shape in shapes]


class HostImages:
    """A batch on the host, in pinned memory that is kept and grows with the largest batch.

    Args:
        pinned: Whether it is for a GPU.
    """

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._used = 0
        self.transforms: list[ImageTransform] = []
        self.dtype = torch.int32
        self._channels = 0
        self._starts = self._widths = np.empty(0, np.int64)
        self._written: tuple[int, list[ImageTransform]] | None = None

    @property
    def values(self) -> torch.Tensor:
        """The bytes of the batch: the numbers of the lines and of the columns, as `dtype`, and the images."""
        return self._memory[: self._used]

    def reserve(
        self, images: Sequence[np.ndarray], transforms: Sequence[ImageTransform]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Make room for a batch; `write_places` is to follow.

        The stream must have transferred the last batch.

        Args:
            images: uint8 (height, width, channels), of any sizes.
            transforms: From `locate_images`.

        Returns:
            Target and source of each copy, for `Copier`.
        """
        self.transforms = list(transforms)
        self._channels = images[0].shape[2]
        ends = np.cumsum([0, *(image.size for image in images)])
        self._starts, self._widths = ends[:-1] // self._channels, np.array([image.shape[1] for image in images])
        self.dtype = torch.int32 if ends[-1] <= MAX_INT32 else torch.int64
        begin = sum(map(math.prod, self._shapes)) * self.dtype.itemsize
        self._used = begin + int(ends[-1])
        if self._used > self._memory.numel():
            self._memory = torch.empty(_round_up(self._used), dtype=torch.uint8, pin_memory=self._pinned)
            self._written = None
        host = self._memory.numpy()
        # Writing through a view of the image's shape copies strided images (crops, flips) without a temporary.
        return [
            (host[begin + start : begin + start + image.size].reshape(image.shape), image)
            for image, start in zip(images, ends.tolist(), strict=False)
        ]

    def write_places(self) -> None:
        """Write what makes each line and each column of the input, while other threads copy the images."""
        # Batches of the same sizes, such as a camera's, need other pixels only.
        if self._written == (self._channels, self.transforms):
            return
        of_lines, of_columns = self._shapes
        count = math.prod(of_lines)
        numbers = self._memory[: (count + math.prod(of_columns)) * self.dtype.itemsize].view(self.dtype).numpy()
        _write_lines(numbers[:count].reshape(of_lines), self.transforms, self._starts, self._widths)
        _write_columns(numbers[count:].reshape(of_columns), self.transforms)
        self._written = self._channels, self.transforms

    @property
    def _shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the numbers of lines and of columns."""
        height, width = self.transforms[0].size
        return (LINE_NUMBERS, len(self.transforms), height), (COLUMN_NUMBERS, len(self.transforms), width)


def _round_up(count: int) -> int:
    """Room for so many bytes and up to an eighth more, so that memory grows seldom."""
    step = 1 << max(count.bit_length() - 4, 16)
    return math.ceil(count / step) * step


def _write_lines(
    lines: NDArray[Any],
    transforms: Sequence[ImageTransform],
    starts: NDArray[np.int64],
    widths: NDArray[np.int64],
) -> None:
    """Write what makes each line of the input.

    Args:
        lines: Shape (`LINE_NUMBERS`, images, height).
        transforms: One per image.
        starts: The first pixel of each image.
        widths: Of the images, pixels.
    """
    for number, transform in enumerate(transforms):
        lines[:, number] = _number_lines(*_find_axis(transform, 0))
    places = lines[:2]
    places *= widths[:, None].astype(lines.dtype)
    places += starts[:, None].astype(lines.dtype)


def _write_columns(columns: NDArray[Any], transforms: Sequence[ImageTransform]) -> None:
    """Write what makes each column of the input.

    Args:
        columns: Shape (`COLUMN_NUMBERS`, images, width).
        transforms: One per image.
    """
    for number, transform in enumerate(transforms):
        columns[:, number] = _number_columns(*_find_axis(transform, 1))


def _find_axis(transform: ImageTransform, axis: int) -> tuple[int, int, int, int]:
    """How an image lies along an axis of the input: its length, the resized length, where that begins, and the size."""
    return transform.shape[axis], transform.resized[axis], transform.pad[axis], transform.size[axis]


@functools.lru_cache(maxsize=AXES)
def _number_lines(length: int, resized: int, pad: int, size: int) -> NDArray[np.int32]:
    """The numbers of each line, its places counted in lines; shape (`LINE_NUMBERS`, size)."""
    lines = np.zeros((LINE_NUMBERS, size), np.int32)
    lines[0], lines[1], parts, is_image = _find_places(length, resized, pad, size)
    _write_weights(lines[2:4], parts, is_image)
    # Half of what the last shift divides by, or the padding.
    lines[4] = np.where(is_image, 2 << 16, PADDING << 18)
    return lines


@functools.lru_cache(maxsize=AXES)
def _number_columns(length: int, resized: int, pad: int, size: int) -> NDArray[np.int32]:
    """The numbers of each column; shape (`COLUMN_NUMBERS`, size)."""
    columns = np.empty((COLUMN_NUMBERS, size), np.int32)
    first, second, parts, is_image = _find_places(length, resized, pad, size)
    # Along lines OpenCV takes the first or last pixel as it is; beyond the first or last line it blends that one with
    # itself, which rounds twice.
    parts[first == second] = 0
    columns[0], columns[1] = first, second
    _write_weights(columns[2:4], parts, is_image)
    columns[4] = np.where(is_image, 0, PADDING << WEIGHT_BITS)
    return columns


def _find_places(length: int, resized: int, pad: int, size: int) -> tuple[np.ndarray, ...]:
    """Between which two places of an image each place of the input lies along an axis.

    Returns:
        Of shape (size,): the first and the second place, how far from the first one in 0..1, all float32, and whether
        there is an image.
    """
    place = np.arange(size) - pad
    # As OpenCV computes it, which differs from length / resized by rounding.
    scale = 1 / (resized / length)
    source = ((place + 0.5) * scale - 0.5).astype(np.float32)
    whole, last = np.floor(source), np.float32(length - 1)
    first, second = (np.minimum(np.maximum(places, 0), last) for places in (whole, whole + 1))
    return first, second, source - whole, (place >= 0) & (place < resized)


def _write_weights(weights: NDArray[Any], parts: NDArray[np.float32], is_image: NDArray[np.bool_]) -> None:
    """Write the weights of the first and of the second place, binary fractions of `WEIGHT_BITS` digits."""
    one = np.float32(1 << WEIGHT_BITS)
    weights[0], weights[1] = np.rint((1 - parts) * one), np.rint(parts * one)
    weights *= is_image


class DeviceImages:
    """The last batch that was transferred to the device, in memory that is kept and grows with the largest batch.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory = torch.empty(0, dtype=torch.uint8, device=device)
        self._count, self._dtype = 0, torch.int32

    @property
    def key(self) -> tuple[Any, ...]:
        """What the operations of `preprocess_into` depend on, beside its arguments."""
        return self._memory.data_ptr(), self._memory.numel(), self._count, self._dtype

    def upload(self, images: HostImages, reader: torch.cuda.Stream | None = None) -> None:
        """Enqueue the transfer of a batch on the current stream.

        Args:
            images: The batch, copied.
            reader: The stream that preprocesses it, if another one.
        """
        values = images.values
        if values.numel() > self._memory.numel():
            self._memory = torch.empty(_round_up(values.numel()), dtype=torch.uint8, device=self._device)
            if self._memory.is_cuda and reader is not None:
                # The allocator then gives the memory to nobody before that stream is done with it.
                self._memory.record_stream(reader)
        self._memory[: values.numel()].copy_(values, non_blocking=True)
        self._count, self._dtype = len(images.transforms), images.dtype

    def preprocess_into(self, target: torch.Tensor, preprocess: Preprocess) -> torch.Tensor:
        """Enqueue the preprocessing of the batch: resize, pad, color order, scale, mean and standard deviation.

        Args:
            target: Float NCHW of as many images, overwritten in place.
            preprocess: The model's preprocessing, of one of `GPU_KINDS`.

        Returns:
            The target.
        """
        _, channels, height, width = target.shape
        divides = preprocess.scale == 1 / 255
        # A tensor: by a number torch multiplies on a GPU where it is asked to divide, which changes the last bit.
        factor = torch.full((), 255.0 if divides else preprocess.scale, device=target.device)
        for run, levels in self._resize_runs(channels, height, width):
            for channel, values in enumerate(_order_channels(levels, preprocess)):
                scale = torch.div if divides else torch.mul
                if not (preprocess.mean or preprocess.std):
                    scale(values, factor, out=target[run, channel])
                else:
                    target[run, channel] = _standardize(scale(values, factor), preprocess, channel)
        return target

    def look_up_into(self, target: torch.Tensor, table: torch.Tensor, preprocess: Preprocess) -> torch.Tensor:
        """Enqueue the preprocessing of the batch for an input of pixels in blocks.

        Args:
            target: From `PixelBlocks.view`, of as many images, overwritten in place.
            table: From `PixelBlocks.tabulate`, on the device.
            preprocess: The model's preprocessing, of one of `GPU_KINDS`.

        Returns:
            The target.
        """
        channels, rows, columns = target.shape[1], target.shape[2:5], target.shape[5:]
        # Where each channel's values begin in the table.
        begins = torch.arange(channels, dtype=self._dtype, device=target.device) * table.shape[1]
        for run, levels in self._resize_runs(channels, math.prod(rows), math.prod(columns)):
            numbers = table.flatten().index_select(0, levels.add_(begins).flatten())
            values = numbers.view(-1, *rows, *columns, channels)
            for channel, plane in enumerate(_order_channels(values, preprocess)):
                target[run, channel] = plane
        return target

    def _resize_runs(self, channels: int, height: int, width: int) -> Iterator[tuple[slice, torch.Tensor]]:
        """Which images, and their gray levels resized and padded, shape (images, height, width, channels)."""
        lines, rest = self._take((LINE_NUMBERS, self._count, height), self._memory)
        columns, rest = self._take((COLUMN_NUMBERS, self._count, width), rest)
        pixels = rest[: len(rest) // channels * channels].view(-1, channels)
        step = max(1, MAX_RUN_PIXELS // (height * width))
        for start in range(0, self._count, step):
            run = slice(start, start + step)
            yield run, _resize(pixels, lines[:, run], columns[:, run])

    def _take(self, shape: tuple[int, ...], memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Numbers at the begin of some memory, and the memory after them."""
        size = math.prod(shape) * self._dtype.itemsize
        return memory[:size].view(self._dtype).view(shape), memory[size:]

    def free(self) -> None:
        """Free the memory."""
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._count = 0


def _order_channels(values: torch.Tensor, preprocess: Preprocess) -> Sequence[torch.Tensor]:
    """The channels, the last axis, in the model's order."""
    channels = values.unbind(-1)
    return channels[::-1] if preprocess.reverses_channels else channels


def _resize(pixels: torch.Tensor, lines: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Images resized and padded as OpenCV's INTER_LINEAR resizes uint8: gray levels, (images, h, w, channels).

    They are blended along lines, in 11 binary digits of which 4 are dropped, and then of two lines (`HResizeLinear` and
    `VResizeLinear` in OpenCV's modules/imgproc/src/resize.cpp).
    """
    count, height, width = lines.shape[1], lines.shape[2], columns.shape[2]
    shape = (2, count, height, width, pixels.shape[1])
    left, right = (
        pixels.index_select(0, (lines[:2, ..., None] + columns[place, :, None]).flatten()).view(shape)
        for place in (0, 1)
    )
    columns, lines = columns[:, :, None, :, None], lines[..., None, None]
    blended = torch.addcmul(columns[4], left, columns[2]).addcmul_(right, columns[3]).bitwise_right_shift_(4)
    torch.addcmul(lines[4:6], blended, lines[2:4], out=blended).bitwise_right_shift_(16)
    return blended[0].add_(blended[1]).bitwise_right_shift_(2)


def _standardize(values: torch.Tensor, preprocess: Preprocess, channel: int) -> torch.Tensor:
    """Apply mean and standard deviation to the scaled values of a channel, in place."""
    if preprocess.mean:
        values.sub_(preprocess.mean[channel])
    if preprocess.std:
        values.div_(torch.full((), preprocess.std[channel], device=values.device))
    return values
