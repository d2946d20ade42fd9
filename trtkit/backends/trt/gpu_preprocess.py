"""Preprocessing of a batch in torch operations, on the GPU and, for tests, on the CPU.

Bit for bit what `trtkit.data.images` computes with OpenCV on x86-64, whose fixed-point resizing it repeats. The number
of operations depends neither on how many images a batch has nor on their sizes: small ones wait for their launch, and a
CUDA graph can hold them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from trtkit.data.images import PADDING, ImageTransform, compute_letterbox
from trtkit.models.model import Preprocess

__all__ = ["GPU_KINDS", "DeviceImages", "HostImages", "locate_images"]

GPU_KINDS = ("letterbox", "stretch")
"""Kinds of preprocessing that the GPU does as the CPU does; the antialiased center crop it does not."""

MAX_RUN_PIXELS = 2**20
"""Most input pixels that are computed at once, which take 70 MB for three channels and fit a large GPU's cache."""

WEIGHT_BITS = 11
"""Binary digits of a weight in OpenCV's linear resizing of uint8."""

ROW = 10
"""Numbers that describe an image: where it starts and its width, in pixels; along rows and columns each its length, its
resized length, its offset in the input, and pixels per pixel of the input."""


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

    @property
    def values(self) -> torch.Tensor:
        """The bytes of the batch: its table of `ROW` float64 for each image, then the images."""
        return self._memory[: self._used]

    def reserve(
        self, images: Sequence[np.ndarray], transforms: Sequence[ImageTransform]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Make room for a batch.

        The caller's stream must have finished with the last one.

        Args:
            images: uint8 (height, width, channels), of any sizes.
            transforms: From `locate_images`.

        Returns:
            Target and source of each copy, for `Copier.copy`, on any thread.
        """
        self.transforms = list(transforms)
        begin = 8 * ROW * len(images)
        ends = np.cumsum([begin, *(image.size for image in images)]).tolist()
        self._used = ends[-1]
        if self._used > self._memory.numel():
            self._memory = torch.empty(_round_up(self._used), dtype=torch.uint8, pin_memory=self._pinned)
        host = self._memory.numpy()
        table = host[:begin].view(np.float64).reshape(-1, ROW)
        for row, image, transform, start in zip(table, images, transforms, ends, strict=False):
            place = (start - begin) // image.shape[2]
            row[:] = place, image.shape[1], *_describe(transform, 0), *_describe(transform, 1)
        # Writing through a view of the image's shape copies strided images (crops, flips) without a temporary.
        return [
            (host[start : start + image.size].reshape(image.shape), image)
            for image, start in zip(images, ends, strict=False)
        ]


def _describe(transform: ImageTransform, axis: int) -> tuple[float, ...]:
    length, resized = transform.shape[axis], transform.resized[axis]
    # As OpenCV computes it, which differs from length / resized by rounding.
    return length, resized, transform.pad[axis], 1 / (resized / length)


def _round_up(count: int) -> int:
    """Room for so many bytes and up to an eighth more, so that memory grows seldom."""
    step = 1 << max(count.bit_length() - 4, 16)
    return math.ceil(count / step) * step


class DeviceImages:
    """The batch on the device that is transferred last, in memory that is kept and grows with the largest batch.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory = torch.empty(0, dtype=torch.uint8, device=device)
        self._count = 0

    @property
    def key(self) -> tuple[int, ...]:
        """What the operations of `preprocess_into` depend on, beside its arguments."""
        return self._memory.data_ptr(), self._memory.numel(), self._count

    def upload(self, images: HostImages) -> None:
        """Enqueue the transfer of a batch.

        Args:
            images: The batch, copied.
        """
        values = images.values
        if values.numel() > self._memory.numel():
            self._memory = torch.empty(_round_up(values.numel()), dtype=torch.uint8, device=self._device)
        self._memory[: values.numel()].copy_(values, non_blocking=True)
        self._count = len(images.transforms)

    def preprocess_into(self, target: torch.Tensor, preprocess: Preprocess) -> torch.Tensor:
        """Enqueue the preprocessing of the batch: resize, pad, color order, scale, mean and standard deviation.

        Args:
            target: Float NCHW of as many images, overwritten in place.
            preprocess: The model's preprocessing, of one of `GPU_KINDS`.

        Returns:
            The target.
        """
        begin, channels = 8 * ROW * self._count, target.shape[1]
        table = self._memory[:begin].view(torch.float64).view(-1, ROW)
        end = begin + (self._memory.numel() - begin) // channels * channels
        pixels = self._memory[begin:end].view(-1, channels)
        step = max(1, MAX_RUN_PIXELS // math.prod(target.shape[2:]))
        for start in range(0, self._count, step):
            rows, part = table[start : start + step], target[start : start + step]
            values = _resize(pixels, rows, (target.shape[2], target.shape[3])).permute(0, 3, 1, 2)
            if preprocess.reverses_channels:
                values = values.flip(1)
            # Half precision would round twice.
            in_place = target.dtype == torch.float32
            normalized = part.copy_(values) if in_place else values.float()
            _normalize(normalized, preprocess)
            if not in_place:
                part.copy_(normalized)
        return target

    def free(self) -> None:
        """Free the memory."""
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._count = 0


def _resize(pixels: torch.Tensor, table: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Images resized and padded, int32 (images, height, width, channels), as OpenCV's INTER_LINEAR resizes uint8.

    Gray levels are blended along rows, in 11 binary digits of which 4 are dropped, and then of two rows
    (`HResizeLinear` and `VResizeLinear` in OpenCV's modules/imgproc/src/resize.cpp).
    """
    starts, widths = table[:, :2].long().T[:, :, None]
    *lines, line_weights, is_line = _blend_axis(table[:, 2:6], size[0], weights_edges=True)
    first, second, weights, is_column = _blend_axis(table[:, 6:10], size[1], weights_edges=False)
    # Of shape (2 rows, images, height, width, channels).
    line_starts = torch.stack([line * widths + starts for line in lines])[..., None]
    shape = (2, len(table), *size, pixels.shape[1])
    left, right = (
        pixels.index_select(0, (line_starts + column[:, None]).flatten()).view(shape) for column in (first, second)
    )
    weights = weights[:, :, None, :, None]
    blended = (left * weights[0]).addcmul_(right, weights[1])
    blended.bitwise_right_shift_(4).mul_(line_weights[..., None, None]).bitwise_right_shift_(16)
    values = blended[0].add_(blended[1]).add_(2).bitwise_right_shift_(2)
    is_image = is_line[:, :, None] & is_column[:, None]
    return torch.where(is_image[..., None], values, PADDING)


def _blend_axis(table: torch.Tensor, size: int, *, weights_edges: bool) -> tuple[torch.Tensor, ...]:
    """Which two places of an image make each place of the input along an axis.

    Args:
        table: Length, resized length, offset and scale of each image.
        size: Of the input.
        weights_edges: Whether a place beyond the first or last one is blended of that one twice, in two roundings.

    Returns:
        The first and the second place, int64 (images, size), their weights, int32 (2, images, size), and whether there
        is an image.
    """
    length, resized, offset, scale = table.T[:, :, None]
    place = torch.arange(size, dtype=torch.float64, device=table.device) - offset
    is_image = (place >= 0) & (place < resized)
    source = ((place + 0.5) * scale - 0.5).float()
    whole = source.floor()
    part = source - whole
    last = (length - 1).long()
    first = whole.long()
    if not weights_edges:
        part = torch.where((first >= 0) & (first < last), part, 0.0)
    weights = torch.stack((1 - part, part)).mul_(1 << WEIGHT_BITS).round_().int()
    clipped = [torch.minimum(places.clamp(min=0), last) for places in (first, first + 1)]
    return *clipped, weights, is_image


def _normalize(values: torch.Tensor, preprocess: Preprocess) -> None:
    """Apply scale, mean and standard deviation to gray levels (..., channels, height, width), in place."""
    if preprocess.scale == 1 / 255:
        # Dividing keeps the last bit equal to the CPU's, which multiplying by 1/255 would not; and by a number instead
        # of a tensor torch multiplies on a GPU.
        values.div_(torch.full((), 255.0, device=values.device))
    else:
        values.mul_(preprocess.scale)
    for channel, plane in enumerate(values.unbind(-3)):
        if preprocess.mean:
            plane.sub_(preprocess.mean[channel])
        if preprocess.std:
            plane.div_(torch.full((), preprocess.std[channel], device=values.device))
