"""The memory of an input of pixels in blocks (`export(space_to_depth=True)`), and images written into it.

The channels of a block are its rows, columns and colors. TensorRT's format kCHW32 stores 32 of them together: a block
of 4 x 4 pixels lies in two such groups of two rows each, one of 2 x 2 in half a group. kHWC8 stores a block's together.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from trtkit.data.images import to_input
from trtkit.graph.space_to_depth import LANES

if TYPE_CHECKING:
    from trtkit.models.model import PixelInput, Preprocess

__all__ = ["PixelBlocks"]

GROUP = 32
"""Channels that kCHW32 stores together."""

LEVELS = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelBlocks:
    """The layout of an engine's pixels: INT8 in kCHW32, or FP16 in kHWC8.

    Attributes:
        pixels: From the engine's passport.
        channels: Of an image, at most `LANES`.
    """

    pixels: PixelInput
    channels: int

    def image_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the images.

        Args:
            shape: (N, `LANES` x side^2, height / side, width / side), as the engine has it.

        Returns:
            (N, channels, height, width).
        """
        return self.pixels.image_shape(shape, self.channels)

    def engine_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The inverse of `image_shape`.

        Args:
            shape: (N, channels, height, width).
        """
        side = self.pixels.side
        return (shape[0], LANES * side**2, shape[2] // side, shape[3] // side)

    def count(self, shape: tuple[int, ...]) -> int:
        """Values that the memory holds.

        Args:
            shape: Of the images.
        """
        return math.prod(self._memory_shape(shape))

    def view(self, memory: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """The memory of the images' values.

        Args:
            memory: INT8 or FP16, at least `count` values.
            shape: (N, channels, height, width) of the images.

        Returns:
            Shape (N, channels, height / side, groups, side / groups, width / side, side): the last five are the
            image's height and width, taken apart.
        """
        side, groups = self.pixels.side, self._groups
        lanes = LANES * side**2 // groups
        grouped = memory[: self.count(shape)].view(self._memory_shape(shape))[..., :lanes]
        pixels = grouped.view(*grouped.shape[:-1], side // groups, side, LANES)[..., : self.channels]
        return pixels.permute(0, 6, 2, 1, 4, 3, 5)

    def convert(self, values: torch.Tensor) -> torch.Tensor:
        """Convert a model's input as the graph does: INT8 is value / scale, rounded half to even.

        Args:
            values: Float NCHW.

        Returns:
            INT8 or FP16 of the same shape.
        """
        if self.pixels.scale is None:
            return values.float().half()
        # A tensor: by a number torch multiplies on a GPU where it is asked to divide, which changes the last bit.
        scale = torch.full((), self.pixels.scale, device=values.device)
        return values.float().div(scale).round_().clamp_(-128, 127).to(torch.int8)

    def tabulate(self, preprocess: Preprocess) -> torch.Tensor:
        """The value of each gray level.

        Args:
            preprocess: The model's preprocessing.

        Returns:
            INT8 or FP16, shape (channels, 256), in the order of an image's own channels.
        """
        levels = np.arange(LEVELS, dtype=np.uint8)[None, :, None].repeat(self.channels, axis=2)
        table = self.convert(torch.from_numpy(to_input([levels], preprocess)))[0, :, 0]
        return table.flip(0) if preprocess.reverses_channels else table

    @property
    def _groups(self) -> int:
        """How many groups of channels the memory has."""
        return 1 if self.pixels.scale is None else math.ceil(LANES * self.pixels.side**2 / GROUP)

    def _memory_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        count, channels, height, width = self.engine_shape(shape)
        return (count, self._groups, height, width, channels if self.pixels.scale is None else GROUP)
