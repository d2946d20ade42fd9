"""Scenes as pixels, many at once, by torch on a GPU or a CPU."""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scenes import CELL, SIDES, SLOTS, Assets, Draws
from torch import Tensor
from torch.nn import functional as F

__all__ = ["RenderedScenes", "Renderer"]

LEAST_PIXELS = 60
"""A digit of fewer pixels is not drawn."""

MOST_OVERLAP = 0.25
"""Nor is one of which more than this lies on digits before it."""

LEAST_CONTRAST = 50
"""Gray levels between the means of a digit's color and of what it covers; a nearer color is replaced."""

BLUR_RADIUS = 6
OUTLINE_SCALE = 4
"""Pixels of a digit's outline per pixel of its scan."""


@dataclasses.dataclass(frozen=True, eq=False)
class RenderedScenes:
    """Scenes and what is in them; coordinates are pixels, with pixel centers at halves.

    Attributes:
        images: RGB, uint8, (n, 3, H, W), each scene in the top left corner.
        size: Height and width of each scene, (n, 2).
        exists: Which slots hold a digit, (n, SLOTS).
        classes: (n, SLOTS).
        digits: Which scan each digit is, (n, SLOTS).
        boxes: x0, y0, x1, y1 of the visible digit when it was drawn, (n, SLOTS, 4).
        corners: Top left, top right, bottom right and bottom left of the digit, (n, SLOTS, 4, 2), not clipped.
        affine: Scene pixels per pixel of the scan, (n, SLOTS, 2, 2).
        center: (n, SLOTS, 2).
        masks: By slot: left, top and the uint8 mask there; only of a single scene that was asked for them.
    """

    images: Tensor
    size: Tensor
    exists: Tensor
    classes: Tensor
    digits: Tensor
    boxes: Tensor
    corners: Tensor
    affine: Tensor
    center: Tensor
    masks: dict[int, tuple[int, int, NDArray[np.uint8]]]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


class Renderer:
    """Draws scenes.

    Args:
        assets: Photographs and digits.
        device: Where to draw.
    """

    def __init__(self, assets: Assets, device: torch.device | str = "cpu") -> None:
        self.assets, self.device = assets, torch.device(device)
        height = max(image.shape[0] for image in assets.photographs)
        width = max(image.shape[1] for image in assets.photographs)
        stack = np.zeros((len(assets.photographs), 3, height, width), np.float32)
        for index, image in enumerate(assets.photographs):
            stack[index, :, : image.shape[0], : image.shape[1]] = image.transpose(2, 0, 1)
        self.photographs = torch.from_numpy(stack).to(self.device)
        self.photograph_sizes = np.array([image.shape[:2] for image in assets.photographs], np.float64)
        self.digits = torch.from_numpy(assets.digits).to(self.device)
        self.classes = torch.from_numpy(assets.classes).to(self.device)

    def render(self, draws: Draws, *, keep_masks: bool = False) -> RenderedScenes:
        """Draw scenes.

        Args:
            draws: What they show.
            keep_masks: Whether to return the masks, of a single scene.
        """
        count = len(draws.size)
        # A scene of its own is drawn at its own size, and a digit in its own window: on a CPU that saves most work.
        height, width = draws.size[0] if count == 1 else (SIDES[1], SIDES[1])
        size = torch.from_numpy(draws.size).to(self.device)
        ys = torch.arange(int(height), device=self.device) + 0.5
        xs = torch.arange(int(width), device=self.device) + 0.5
        inside = (ys[:, None] < size[:, 0, None, None]) & (xs < size[:, 1, None, None])
        images = self._background(draws, ys, xs)
        occupied = torch.zeros_like(inside)
        affine = self._to_device(draws.affine)
        center = self._to_device(draws.center)
        cells = torch.tensor([[1, 1], [CELL - 1, 1], [CELL - 1, CELL - 1], [1, CELL - 1]], device=self.device)
        corners = (cells - CELL / 2) @ affine.transpose(-1, -2) + center[:, :, None]
        exists = torch.zeros((count, SLOTS), dtype=torch.bool, device=self.device)
        boxes = torch.zeros((count, SLOTS, 4), device=self.device)
        masks: dict[int, tuple[int, int, NDArray[np.uint8]]] = {}
        windows = _windows(draws, int(height), int(width))
        for slot in range(int(draws.count.max())):
            top, bottom, left, right = windows[slot]
            rows, columns = slice(top, bottom), slice(left, right)
            ink = self._ink(draws, slot, affine, center, ys[rows], xs[columns])
            mask = (ink > 0.5) & inside[:, rows, columns]
            pixels = mask.sum((1, 2))
            covered = (mask & occupied[:, rows, columns]).sum((1, 2))
            tried = torch.from_numpy(draws.count > slot).to(self.device)
            drawn = tried & (pixels >= LEAST_PIXELS) & (covered <= MOST_OVERLAP * pixels)
            if keep_masks and not bool(drawn):
                continue
            mask &= drawn[:, None, None]
            occupied[:, rows, columns] |= mask
            boxes[:, slot] = _bounds(mask, top, left)
            exists[:, slot] = drawn
            view = images[:, :, rows, columns]
            color = self._color(draws, slot, view, mask)
            texture = self._texture(draws, slot, ys[rows], xs[columns])
            ink = (ink * drawn[:, None, None])[:, None]
            view.mul_(1 - ink).add_(ink * (color[:, :, None, None] * texture).clamp_(0, 255))
            if keep_masks:
                masks[slot] = (left, top, mask[0].to(torch.uint8).cpu().numpy())
        images = self._blur(draws, images)
        images = (images + self._noise(draws, images)).clamp_(0, 255).to(torch.uint8)
        digit = torch.from_numpy(draws.digit).to(self.device)
        return RenderedScenes(
            images * inside[:, None], size, exists, self.classes[digit], digit, boxes, corners, affine, center, masks
        )

    def _to_device(self, values: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(self.device)

    def _background(self, draws: Draws, ys: Tensor, xs: Tensor) -> Tensor:
        """A part of each scene's photograph, resized bilinearly, (n, 3, H, W)."""
        sizes = self.photograph_sizes[draws.photograph]
        scale = (draws.size / sizes).max(1) * draws.zoom
        start = draws.offset * (sizes * scale[:, None] - draws.size)
        images = []
        for index, photograph in enumerate(draws.photograph):
            whole = self.photographs[int(photograph)][None]
            y = ((ys + float(start[index, 0])) / float(scale[index])).clamp(0.5, float(sizes[index, 0]) - 0.5)
            x = ((xs + float(start[index, 1])) / float(scale[index])).clamp(0.5, float(sizes[index, 1]) - 0.5)
            grid = _grid(y * 2 / whole.shape[2] - 1, x * 2 / whole.shape[3] - 1)
            images.append(F.grid_sample(whole, grid[None], align_corners=False))
        return torch.cat(images) * self._to_device(draws.brightness)[:, None, None, None]

    def _ink(self, draws: Draws, slot: int, affine: Tensor, center: Tensor, ys: Tensor, xs: Tensor) -> Tensor:
        """How much of each pixel a digit covers, (n, h, w): its scan, interpolated and sharpened."""
        inverse = torch.linalg.inv(affine[:, slot])
        x = xs - center[:, slot, :1]
        y = ys - center[:, slot, 1:]
        points = [
            inverse[:, row, 0, None, None] * x[:, None, :] + inverse[:, row, 1, None, None] * y[:, :, None]
            for row in range(2)
        ]
        scans = self.digits[torch.from_numpy(draws.digit[:, slot]).to(self.device)][:, None]
        grid = torch.stack(points, -1) * (2 / CELL)
        ink = F.grid_sample(scans, grid, mode="bicubic", padding_mode="zeros", align_corners=False)[:, 0]
        return ((ink - self._to_device(draws.ink[:, slot])[:, None, None]) * 4).clamp_(0, 1)

    def _color(self, draws: Draws, slot: int, view: Tensor, mask: Tensor) -> Tensor:
        """The digit's color, (n, 3), replaced if it is too near to what it covers."""
        covered = (view * mask[:, None]).sum((2, 3)) / mask.sum((1, 2)).clamp(min=1)[:, None]
        color = self._to_device(draws.color[:, slot])
        is_near = (color.mean(1) - covered.mean(1)).abs() < LEAST_CONTRAST
        inverts = torch.from_numpy(draws.inverts[:, slot]).to(self.device)
        other = (255 - covered) * inverts[:, None]
        return torch.where(is_near[:, None], other, color)

    def _texture(self, draws: Draws, slot: int, ys: Tensor, xs: Tensor) -> Tensor:
        """A factor around 1 that varies smoothly over the scene, (n, 1, h, w)."""
        size = self._to_device(draws.size.astype(np.float64))
        texture = self._to_device(draws.texture[:, slot])[:, None]
        grid = torch.stack(
            [
                (xs / size[:, 1:] * 2 - 1)[:, None, :].expand(-1, len(ys), -1),
                (ys / size[:, :1] * 2 - 1)[:, :, None].expand(-1, -1, len(xs)),
            ],
            -1,
        )
        smooth = F.grid_sample(texture, grid, mode="bicubic", padding_mode="border", align_corners=False)
        return 1 + 0.15 * smooth

    def _blur(self, draws: Draws, images: Tensor) -> Tensor:
        chosen = np.flatnonzero(draws.blur)
        if not len(chosen):
            return images
        positions = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=self.device)
        sigma = self._to_device(draws.blur[chosen])[:, None]
        weights = torch.exp(-(positions**2) / (2 * sigma**2))
        weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(3, 0)
        index = torch.from_numpy(chosen).to(self.device)
        part = images[index].reshape(1, -1, *images.shape[2:])
        for shape, pad in (
            ((-1, 1, 1, 2 * BLUR_RADIUS + 1), (BLUR_RADIUS, BLUR_RADIUS, 0, 0)),
            (
                (-1, 1, 2 * BLUR_RADIUS + 1, 1),
                (0, 0, BLUR_RADIUS, BLUR_RADIUS),
            ),
        ):
            part = F.conv2d(F.pad(part, pad, mode="reflect"), weights.reshape(shape), groups=part.shape[1])
        # Beyond a smaller scene the canvas holds more of the photograph, which the blur may well take in.
        return images.index_copy(0, index, part.reshape(-1, *images.shape[1:]))

    def _noise(self, draws: Draws, images: Tensor) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(int(draws.noise_seed[0]))
        noise = torch.randn(images.shape, generator=generator, device=self.device)
        return noise * self._to_device(draws.noise)[:, None, None, None]

    def outlines(self) -> Tensor:
        """Every digit's mask as its label has it, at 4 pixels per pixel of the scan: 0..1, (digits, 40, 40).

        The label of the segment task is the outer contour of a digit's largest part, so that holes count as the digit.
        """
        fine = 4 * OUTLINE_SCALE
        side = CELL * fine
        filled = np.zeros((len(self.assets.digits), side, side), np.uint8)
        for index, scan in enumerate(self.assets.digits):
            drawn = (cv2.resize(scan, (side, side), interpolation=cv2.INTER_CUBIC) - 0.35) * 4 > 0.5
            found, _ = cv2.findContours(drawn.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(filled[index], [max(found, key=cv2.contourArea)], -1, 1, cv2.FILLED)
        small = filled.reshape(-1, side // 4, 4, side // 4, 4).mean((2, 4), dtype=np.float32)
        return torch.from_numpy(small).to(self.device)


def _grid(y: Tensor, x: Tensor) -> Tensor:
    """Positions (H, W, 2), x first, of all rows and columns."""
    return torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], -1)


def _windows(draws: Draws, height: int, width: int) -> list[tuple[int, int, int, int]]:
    """For each slot the rows and columns that hold the digits of all scenes: top, bottom, left, right."""
    corners = np.array([[0, 0], [CELL, 0], [CELL, CELL], [0, CELL]]) - CELL / 2
    points = corners @ draws.affine.swapaxes(-1, -2) + draws.center[:, :, None]
    low, high = np.floor(points.min((0, 2))).astype(int), np.ceil(points.max((0, 2))).astype(int)
    return [
        (max(top, 0), max(min(bottom, height), top + 1, 1), max(left, 0), max(min(right, width), left + 1, 1))
        for (left, top), (right, bottom) in zip(low, high, strict=True)
    ]


def _bounds(mask: Tensor, top: int, left: int) -> Tensor:
    """x0, y0, x1, y1 of the set pixels of each mask (n, h, w) whose first pixel is at (top, left)."""
    sides = []
    for axis, start in ((1, left), (2, top)):
        seen = mask.any(axis)
        positions = torch.arange(seen.shape[1], device=mask.device)
        far = math.inf
        sides.append(torch.where(seen, positions, far).amin(1) + start)
        sides.append(torch.where(seen, positions, -far).amax(1) + start + 1)
    x0, x1, y0, y1 = sides
    return torch.stack([x0, y0, x1, y1], 1).nan_to_num(0, 0, 0)
