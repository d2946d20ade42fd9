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

PER_DIGIT = ("center", "inverse", "digit", "ink", "color", "inverts", "texture")
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
        cell = [[1, 1], [CELL - 1, 1], [CELL - 1, CELL - 1], [1, CELL - 1]]
        self.cells = torch.tensor(cell, device=self.device) - CELL / 2

    def render(self, draws: Draws, *, keep_masks: bool = False) -> RenderedScenes:
        """Draw scenes.

        Args:
            draws: What they show.
            keep_masks: Whether to return the masks, of a single scene.
        """
        count = len(draws.size)
        # A scene of its own is drawn at its own size.
        height, width = (int(side) for side in draws.size[0]) if count == 1 else (SIDES[1], SIDES[1])
        starts, sides = _windows(draws, height, width)
        given = self._upload(draws, starts)
        size, affine, center = given["size"], given["affine"], given["center"]
        ys = torch.arange(height, device=self.device) + 0.5
        xs = torch.arange(width, device=self.device) + 0.5
        inside = (ys[:, None] < size[:, 0, None, None]) & (xs < size[:, 1, None, None])
        images = self._background(given, ys, xs)
        occupied = torch.zeros_like(inside)
        corners = self.cells @ affine.transpose(-1, -2) + center[:, :, None]
        exists = torch.zeros((count, SLOTS), dtype=torch.bool, device=self.device)
        boxes = torch.zeros((count, SLOTS, 4), device=self.device)
        masks: dict[int, tuple[int, int, NDArray[np.uint8]]] = {}
        scenes = torch.arange(count, device=self.device)[:, None, None]
        for slot in range(int(draws.count.max())):
            # Only a window around each scene's digit is touched.
            top, left = given["start"][:, slot].long().split(1, 1)
            rows = top + torch.arange(sides[slot][0], device=self.device)
            columns = left + torch.arange(sides[slot][1], device=self.device)
            place = scenes, rows[:, :, None], columns[:, None, :]
            mine = {name: given[name][:, slot] for name in PER_DIGIT}
            ink = self._ink(mine, rows + 0.5, columns + 0.5)
            mask = (ink > 0.5) & inside[place]
            before = occupied[place]
            pixels, covered = mask.sum((1, 2)), (mask & before).sum((1, 2))
            drawn = (given["count"] > slot) & (pixels >= LEAST_PIXELS) & (covered <= MOST_OVERLAP * pixels)
            if keep_masks and not bool(drawn):
                continue
            mask &= drawn[:, None, None]
            occupied[place] = before | mask
            boxes[:, slot] = _bounds(mask, rows, columns)
            exists[:, slot] = drawn
            view = images[place]
            color = _color(mine, view, mask)
            texture = _texture(mine, size, rows + 0.5, columns + 0.5)
            ink = (ink * drawn[:, None, None])[..., None]
            images[place] = view * (1 - ink) + ink * (color[:, None, None] * texture).clamp_(0, 255)
            if keep_masks:
                first = starts[0, slot]
                masks[slot] = (int(first[1]), int(first[0]), mask[0].to(torch.uint8).cpu().numpy())
        pixels = self._blur(draws, given, images.permute(0, 3, 1, 2).contiguous())
        pixels = (pixels + self._noise(draws, given, pixels)).clamp_(0, 255).to(torch.uint8)
        digit = given["digit"].long()
        return RenderedScenes(
            pixels * inside[:, None], size.long(), exists, self.classes[digit], digit, boxes, corners, affine, center,
            masks,
        )  # fmt: skip

    def _upload(self, draws: Draws, starts: NDArray[np.int64]) -> dict[str, Tensor]:
        """All numbers on the device, float32, in one transfer: each transfer may wait for all work before it."""
        sizes = self.photograph_sizes[draws.photograph]
        scale = (draws.size / sizes).max(1) * draws.zoom
        values = {
            "size": draws.size, "affine": draws.affine, "center": draws.center, "start": starts, "count": draws.count,
            "inverse": np.linalg.inv(draws.affine), "digit": draws.digit, "ink": draws.ink, "color": draws.color,
            "inverts": draws.inverts, "texture": draws.texture, "brightness": draws.brightness, "blur": draws.blur,
            "noise": draws.noise, "blurred": np.flatnonzero(draws.blur), "photograph": draws.photograph,
            "scale": scale, "offset": draws.offset * (sizes * scale[:, None] - draws.size), "whole": sizes,
        }  # fmt: skip
        flat = torch.from_numpy(np.concatenate([np.asarray(value, np.float32).ravel() for value in values.values()]))
        if self.device.type == "cuda":
            flat = flat.pin_memory()
        parts = flat.to(self.device, non_blocking=True).split([value.size for value in values.values()])
        return {name: part.reshape(value.shape) for (name, value), part in zip(values.items(), parts, strict=True)}

    def _background(self, given: dict[str, Tensor], ys: Tensor, xs: Tensor) -> Tensor:
        """A part of each scene's photograph, resized bilinearly, (n, H, W, 3)."""
        positions = []
        for axis, steps in enumerate((ys, xs)):
            position = (steps + given["offset"][:, axis : axis + 1]) / given["scale"][:, None]
            clamped = torch.minimum(position.clamp(min=0.5), given["whole"][:, axis : axis + 1] - 0.5)
            positions.append(clamped * (2 / self.photographs.shape[2 + axis]) - 1)
        photographs = self.photographs[given["photograph"].long()]
        images = F.grid_sample(photographs, _grid(*positions), align_corners=False).permute(0, 2, 3, 1)
        return (images * given["brightness"][:, None, None, None]).contiguous()

    def _ink(self, mine: dict[str, Tensor], ys: Tensor, xs: Tensor) -> Tensor:
        """How much of each pixel a digit covers, (n, h, w): its scan, interpolated and sharpened."""
        x, y = xs - mine["center"][:, :1], ys - mine["center"][:, 1:]
        inverse = mine["inverse"] * (2 / CELL)
        points = [
            inverse[:, row, 0, None, None] * x[:, None, :] + inverse[:, row, 1, None, None] * y[:, :, None]
            for row in range(2)
        ]
        scans = self.digits[mine["digit"].long()][:, None]
        grid = torch.stack(points, -1)
        ink = F.grid_sample(scans, grid, mode="bicubic", padding_mode="zeros", align_corners=False)[:, 0]
        return ((ink - mine["ink"][:, None, None]) * 4).clamp_(0, 1)

    def _blur(self, draws: Draws, given: dict[str, Tensor], images: Tensor) -> Tensor:
        if not draws.blur.any():
            return images
        index = given["blurred"].long()
        positions = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=self.device)
        weights = torch.exp(-(positions**2) / (2 * given["blur"][index][:, None] ** 2))
        weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(3, 0)
        part = images[index].reshape(1, -1, *images.shape[2:])
        taps = 2 * BLUR_RADIUS + 1
        for shape, pad in (((1, taps), (BLUR_RADIUS,) * 2 + (0, 0)), ((taps, 1), (0, 0) + (BLUR_RADIUS,) * 2)):
            padded = F.pad(part, pad, mode="reflect")
            part = F.conv2d(padded, weights.reshape(-1, 1, *shape), groups=part.shape[1])
        # Beyond a smaller scene the canvas holds more of the photograph, which the blur may well take in.
        return images.index_copy(0, index, part.reshape(-1, *images.shape[1:]))

    def _noise(self, draws: Draws, given: dict[str, Tensor], images: Tensor) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(int(draws.noise_seed[0]))
        noise = torch.randn(images.shape, generator=generator, device=self.device)
        return noise * given["noise"][:, None, None, None]

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


def _color(mine: dict[str, Tensor], view: Tensor, mask: Tensor) -> Tensor:
    """The digit's color, (n, 3), replaced if it is too near to what it covers."""
    covered = (view * mask[..., None]).sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)[:, None]
    is_near = (mine["color"].mean(1) - covered.mean(1)).abs() < LEAST_CONTRAST
    other = (255 - covered) * mine["inverts"][:, None]
    return torch.where(is_near[:, None], other, mine["color"])


def _texture(mine: dict[str, Tensor], size: Tensor, ys: Tensor, xs: Tensor) -> Tensor:
    """A factor around 1 that varies smoothly over the scene, (n, h, w, 1)."""
    grid = _grid(ys / size[:, :1] * 2 - 1, xs / size[:, 1:] * 2 - 1)
    smooth = F.grid_sample(mine["texture"][:, None], grid, mode="bicubic", padding_mode="border", align_corners=False)
    return 1 + 0.15 * smooth.permute(0, 2, 3, 1)


def _grid(y: Tensor, x: Tensor) -> Tensor:
    """Positions (n, H, W, 2), x first, of all rows (n, H) and columns (n, W)."""
    return torch.stack([x[:, None, :].expand(-1, y.shape[1], -1), y[:, :, None].expand(-1, -1, x.shape[1])], -1)


def _windows(draws: Draws, height: int, width: int) -> tuple[NDArray[np.int64], list[tuple[int, int]]]:
    """Where each digit may lie: first row and column, (n, SLOTS, 2), and the windows' height and width, by slot.

    All windows of a slot have one size, and lie within the canvas.
    """
    half = np.array([[0, 0], [CELL, 0], [CELL, CELL], [0, CELL]]) - CELL / 2
    points = (half @ draws.affine.swapaxes(-1, -2) + draws.center[:, :, None])[..., ::-1]
    limit = np.array([height, width])
    low = np.clip(np.floor(points.min(2)).astype(np.int64), 0, limit - 1)
    high = np.clip(np.ceil(points.max(2)).astype(np.int64), low + 1, limit)
    used = (np.arange(SLOTS) < draws.count[:, None])[..., None]
    sides = np.where(used, high - low, 1).max(0)
    return np.minimum(low, limit - sides), [(int(side[0]), int(side[1])) for side in sides]


def _bounds(mask: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """x0, y0, x1, y1 of the set pixels of each mask (n, h, w), whose rows (n, h) and columns (n, w) are given."""
    sides = []
    for axis, positions in ((1, columns), (2, rows)):
        seen = mask.any(axis)
        far = math.inf
        sides.append(torch.where(seen, positions, far).amin(1))
        sides.append(torch.where(seen, positions, -far).amax(1) + 1)
    x0, x1, y0, y1 = sides
    return torch.stack([x0, y0, x1, y1], 1).nan_to_num(0, 0, 0)
