"""Training batches out of rendered scenes: letterboxed images with labels, and crops of single digits."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from scene_renderer import Renderer
from scenes import CELL, SLOTS, draw
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Batch", "CropBatch", "ScenePool", "letterbox_batch", "smallest_rectangles"]

GRAY = 114
"""Letterbox padding; as trtkit's preprocessing."""

MASK_STRIDE = 4
"""Input pixels per pixel of a mask target."""

LEAST_VISIBLE = 0.35
"""A digit of whose box less than this lies in the input has no label."""

COARSE = 0.2
"""The part of augmented images that lose half their resolution."""

CROPS_PER_SCENE = 8
CROP_SAMPLES = 3
"""Samples per pixel and axis of a crop, whose mean stands for antialiased resizing."""


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Images and labels of the four tasks with boxes; coordinates are input pixels.

    Attributes:
        images: RGB in 0..1, (B, 3, S, S).
        valid: Which slots hold a label, (B, G).
        classes: (B, G).
        boxes: x0, y0, x1, y1, (B, G, 4).
        oriented: Center x and y, width, height, and angle in radians from -45 to 45 degrees, (B, G, 5).
        keypoints: x, y, and 1 where visible, (B, G, 4, 3).
        masks: Part of each pixel that the digit covers, (B, G, S / 4, S / 4); None if nobody asked.
    """

    images: Tensor
    valid: Tensor
    classes: Tensor
    boxes: Tensor
    oriented: Tensor
    keypoints: Tensor
    masks: Tensor | None


@dataclasses.dataclass(frozen=True, eq=False)
class CropBatch:
    """Images of single digits, (B, 3, S, S) in 0..1, their classes, and which of them count."""

    images: Tensor
    classes: Tensor
    valid: Tensor


class ScenePool:
    """Rendered scenes on the device; each is used several times, differently cropped, before a new one replaces it.

    Args:
        renderer: It draws them.
        seed: The same seed gives the same scenes.
        split: Whose digits are drawn.
        capacity: Number of scenes.
        vary: As in `scenes.draw`.
    """

    def __init__(self, renderer: Renderer, seed: tuple[int, ...], split: str, capacity: int, vary: float = 0) -> None:
        self.renderer, self.split, self.vary = renderer, split, vary
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator(renderer.device).manual_seed(int(self.rng.integers(1 << 62)))
        self.capacity, self.cursor = capacity, 0
        self.outlines = renderer.outlines()
        self.tensors: dict[str, Tensor] = {}
        for _ in range(0, capacity, 16):
            self.renew(min(16, capacity))

    def renew(self, count: int) -> None:
        """Replace the oldest `count` scenes, at least 2, by new ones."""
        draws = draw(self.rng, count, self.renderer.assets, self.split, vary=self.vary)
        fresh = self.renderer.render(draws).tensors()
        if not self.tensors:
            self.tensors = {name: value.new_zeros((self.capacity, *value.shape[1:])) for name, value in fresh.items()}
        places = torch.arange(self.cursor, self.cursor + count, device=self.renderer.device) % self.capacity
        for name, value in fresh.items():
            self.tensors[name][places] = value
        self.cursor = (self.cursor + count) % self.capacity

    def choose(self, count: int) -> dict[str, Tensor]:
        """`count` scenes at random."""
        places = torch.randint(self.capacity, (count,), device=self.renderer.device, generator=self.generator)
        return {name: value[places] for name, value in self.tensors.items()}

    def batch(self, count: int, imgsz: int, *, augment: bool, masks: bool = False) -> Batch:
        """A batch of `count` random scenes."""
        outlines = self.outlines if masks else None
        generator = self.generator if augment else None
        return letterbox_batch(self.choose(count), imgsz, generator=generator, outlines=outlines)

    def crops(self, count: int, imgsz: int, *, augment: bool) -> CropBatch:
        """A batch of `count` digits, a multiple of 8."""
        scenes = self.choose(count // CROPS_PER_SCENE)
        chances = scenes["exists"].float() + 1e-6
        slots = torch.multinomial(chances, CROPS_PER_SCENE, replacement=True, generator=self.generator)
        boxes = scenes["boxes"].gather(1, slots[..., None].expand(-1, -1, 4))
        squares = self._squares(boxes, scenes["size"], augment)
        steps = (torch.arange(imgsz * CROP_SAMPLES, device=boxes.device) + 0.5) / (imgsz * CROP_SAMPLES)
        x = squares[..., 0:1] + steps * squares[..., 2:3]
        y = squares[..., 1:2] + steps * squares[..., 2:3]
        side = len(steps)
        grid = torch.stack([x[:, :, None, :].expand(-1, -1, side, -1), y[..., None].expand(-1, -1, -1, side)], -1)
        canvas = scenes["images"].shape[2]
        sampled = _sample(scenes["images"], grid.flatten(1, 2) * (2 / canvas) - 1)
        images = F.avg_pool2d(sampled, CROP_SAMPLES).reshape(len(boxes), 3, CROPS_PER_SCENE, imgsz, imgsz)
        images = images.transpose(1, 2).flatten(0, 1)
        if augment:
            images = self._recolor(images)
        return CropBatch(
            images.round_().clamp_(0, 255) / 255,
            scenes["classes"].gather(1, slots).flatten(),
            scenes["exists"].gather(1, slots).flatten(),
        )

    def _squares(self, boxes: Tensor, size: Tensor, augment: bool) -> Tensor:
        """What the network sees of each digit: left, top and side, (B, n, 3).

        Either the square of `scenes.crop_of`, or the central square of the box with its margin, which a classifier's
        preprocessing takes of an oblong image: both occur.
        """
        low, high = boxes[..., :2], boxes[..., 2:]
        longer = (high - low).amax(-1, keepdim=True)
        margin = (0.15 * longer).floor() + 2
        limit = size.flip(1)[:, None].to(boxes.dtype)
        whole = torch.minimum(longer + 2 * margin, limit.amin(-1, keepdim=True))
        corner = torch.minimum(((low + high - whole) / 2).clamp(min=0), limit - whole)
        near, far = (low - margin).clamp(min=0), torch.minimum(high + margin, limit)
        side = (far - near).amin(-1, keepdim=True)
        is_whole = torch.rand(side.shape, device=boxes.device, generator=self.generator) < 0.5
        side, corner = torch.where(is_whole, whole, side), torch.where(is_whole, corner, (near + far - side) / 2)
        if augment:
            noise = torch.randn((*side.shape[:2], 3), device=boxes.device, generator=self.generator)
            larger = side * torch.exp(0.08 * noise[..., :1])
            corner = corner + (side - larger) / 2 + 0.03 * side * noise[..., 1:]
            side = larger
        return torch.cat([corner, side], -1)

    def _recolor(self, images: Tensor) -> Tensor:
        return _recolor(images, self.generator)


def letterbox_batch(
    scenes: dict[str, Tensor],
    imgsz: int,
    *,
    generator: torch.Generator | None = None,
    outlines: Tensor | None = None,
) -> Batch:
    """Letterbox scenes into the network's input.

    Args:
        scenes: As `RenderedScenes.tensors`.
        imgsz: Side of the input, pixels.
        generator: For random size, place and colors; None gives exactly trtkit's preprocessing.
        outlines: As `Renderer.outlines`, for masks.
    """
    size = scenes["size"].float()
    count, device = len(size), size.device
    resized = (size * (imgsz / size.amax(1, keepdim=True))).ceil().clamp(max=imgsz)
    if generator is None:
        pad = ((imgsz - resized) / 2).floor()
    else:
        zoom = torch.rand((count, 1), device=device, generator=generator) * 0.5 + 0.7
        resized = (resized * zoom).round()
        pad = ((imgsz - resized) * torch.rand((count, 2), device=device, generator=generator)).round()
    ratio, shift = (resized / size).flip(1), pad.flip(1)  # x before y from here on.
    limit = size.flip(1)
    steps = torch.arange(imgsz, device=device) + 0.5
    position = (steps[:, None] - shift[:, None]) / ratio[:, None]  # (B, S, 2)
    inside = (position > 0) & (position < limit[:, None])
    height, width = scenes["images"].shape[2:]
    clamped = torch.minimum(position.clamp(min=0.5), limit[:, None] - 0.5)
    unit = torch.stack([clamped[..., 0] * (2 / width), clamped[..., 1] * (2 / height)], -1) - 1
    grid = torch.stack([unit[:, None, :, 0].expand(-1, imgsz, -1), unit[:, :, None, 1].expand(-1, -1, imgsz)], -1)
    images = _sample(scenes["images"], grid)
    if generator is not None:
        images = _coarsen(_recolor(images, generator), generator)
    images = images.round_().clamp_(0, 255)
    images = torch.where((inside[:, :, None, 1] & inside[:, None, :, 0])[:, None], images, GRAY) / 255
    return _label(scenes, images, ratio, shift, imgsz, outlines)


def _label(
    scenes: dict[str, Tensor], images: Tensor, ratio: Tensor, shift: Tensor, imgsz: int, outlines: Tensor | None
) -> Batch:
    """The labels of letterboxed scenes: `ratio` and `shift` map x and y, both (B, 2)."""
    scale, move = ratio[:, None], shift[:, None]
    whole = scenes["boxes"] * torch.cat([scale, scale], -1) + torch.cat([move, move], -1)
    boxes = whole.clamp(0, imgsz)
    part = (boxes[..., 2:] - boxes[..., :2]).prod(-1) / (whole[..., 2:] - whole[..., :2]).prod(-1).clamp(min=1)
    valid = scenes["exists"] & (part > LEAST_VISIBLE) & ((boxes[..., 2:] - boxes[..., :2]) > 2).all(-1)
    limit = scenes["size"].flip(1)[:, None, None].float()
    corners = scenes["corners"]
    visible = ((corners >= 0) & (corners < limit)).all(-1)
    points = torch.minimum(corners.clamp(min=0), limit) * scale[:, :, None] + move[:, :, None]
    visible &= ((points >= 0) & (points < imgsz)).all(-1)
    masks = None
    if outlines is not None:
        masks = _masks(scenes, outlines, ratio, shift, imgsz)
    return Batch(
        images=images,
        valid=valid,
        classes=scenes["classes"],
        boxes=boxes,
        oriented=smallest_rectangles(points),
        keypoints=torch.cat([points, visible[..., None].to(points.dtype)], -1),
        masks=masks,
    )


def _masks(scenes: dict[str, Tensor], outlines: Tensor, ratio: Tensor, shift: Tensor, imgsz: int) -> Tensor:
    """Each digit's outline, filled, at a quarter of the input's size: the mean of four samples per pixel."""
    side = imgsz // MASK_STRIDE * 2
    steps = (torch.arange(side, device=ratio.device) + 0.5) * (imgsz / side)
    position = (steps[:, None] - shift[:, None]) / ratio[:, None]  # (B, side, 2)
    inverse = torch.linalg.inv(scenes["affine"]) * (2 / CELL)
    x = position[:, None, :, 0] - scenes["center"][..., :1]  # (B, G, side)
    y = position[:, None, :, 1] - scenes["center"][..., 1:]
    grid = torch.stack(
        [
            inverse[:, :, row, 0, None, None] * x[:, :, None, :] + inverse[:, :, row, 1, None, None] * y[..., None]
            for row in range(2)
        ],
        -1,
    )
    sampled = F.grid_sample(outlines[scenes["digits"]].flatten(0, 1)[:, None], grid.flatten(0, 1), align_corners=False)
    limit = scenes["size"].flip(1)[:, None].float()
    inside = (position > 0) & (position < limit)
    inside = inside[:, None, None, :, 0] & inside[:, None, :, None, 1]
    filled = (sampled.reshape(-1, SLOTS, side, side) > 0.5) & inside
    return F.avg_pool2d(filled.to(ratio.dtype), 2)


def _sample(images: Tensor, grid: Tensor) -> Tensor:
    """uint8 images (B, 3, H, W) at positions (B, h, w, 2), interpolated bilinearly, float32."""
    return F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)


def _recolor(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random contrast and brightness of each channel."""
    noise = torch.randn((len(images), 3, 2), device=images.device, generator=generator)[..., None, None]
    return images * torch.exp(0.12 * noise[:, :, 0]) + 8 * noise[:, :, 1]


def _coarsen(images: Tensor, generator: torch.Generator) -> Tensor:
    """Some of the images as if they had half the pixels, like the small ones that the package embeds."""
    coarse = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2.0, mode="bilinear", align_corners=False)
    chosen = torch.rand((len(images), 1, 1, 1), device=images.device, generator=generator) < COARSE
    return torch.where(chosen, coarse, images)


def smallest_rectangles(points: Tensor) -> Tensor:
    """The smallest rectangles around four points each.

    A side of the smallest rectangle lies on a side of the points' hull (Freeman and Shapira, 1975), so that one of the
    six directions from point to point is its own.

    Args:
        points: (..., 4, 2).

    Returns:
        Center x and y, width, height, and angle in [-45, 45) degrees as radians, (..., 5).
    """
    first, second = torch.triu_indices(4, 4, 1, device=points.device)
    way = points[..., second, :] - points[..., first, :]
    angle = torch.atan2(way[..., 1], way[..., 0])
    angle = angle - (angle / (math.pi / 2) + 0.5).floor() * (math.pi / 2)
    cos, sin = angle.cos()[..., None], angle.sin()[..., None]
    x, y = points[..., None, :, 0], points[..., None, :, 1]
    along, across = x * cos + y * sin, y * cos - x * sin  # (..., 6, 4)
    low = torch.stack([along.amin(-1), across.amin(-1)], -1)
    high = torch.stack([along.amax(-1), across.amax(-1)], -1)
    sides, middle = high - low, (low + high) / 2
    best = sides.prod(-1).argmin(-1, keepdim=True)
    cos, sin = cos[..., 0], sin[..., 0]
    center_x = middle[..., 0] * cos - middle[..., 1] * sin
    center_y = middle[..., 0] * sin + middle[..., 1] * cos
    values = torch.stack([center_x, center_y, sides[..., 0], sides[..., 1], angle], -1)
    return values.gather(-2, best[..., None].expand(*best.shape, 5))[..., 0, :]
