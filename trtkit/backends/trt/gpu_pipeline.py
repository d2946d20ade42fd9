"""Preprocessing, and postprocessing of detection, in torch operations, on the GPU and, for tests, on the CPU.

The reference is the CPU path (`trtkit.data.images`, `trtkit.tasks.nms`): inputs agree within one gray level of 255
(OpenCV resizes in fixed point), detections from the same outputs agree to float rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch.nn.functional import interpolate

from trtkit.backends.trt.gpu_objects import choose_candidates, download, keep_objects, select_objects
from trtkit.data.images import PADDING, ImageTransform, compute_letterbox
from trtkit.models.model import Preprocess
from trtkit.tasks import Detections, PostprocessSettings
from trtkit.tasks.raw_maps import Level, logit_threshold

__all__ = [
    "GPU_KINDS", "Uploader", "enqueue_postprocess", "enqueue_raw_maps", "postprocess", "postprocess_raw_maps",
    "preprocess_into",
]  # fmt: skip

GPU_KINDS = ("letterbox", "stretch")
"""Kinds of preprocessing that `preprocess_into` does as the CPU does; the antialiased center crop it does not."""

MAX_RUN_PIXELS = 8 * 1024 * 1024
"""Most pixels that `preprocess_into` processes at once, 100 MB as float values."""


class Uploader:
    """Copies uint8 images to the GPU through pinned memory that is kept and grows with the largest batch.

    Args:
        device: The target device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pinned = device.type == "cuda"
        self._host = torch.empty(0, dtype=torch.uint8)
        self._on_device = torch.empty(0, dtype=torch.uint8, device=device)
        self._shapes: list[tuple[int, ...]] = []

    def reserve(self, images: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Make room for images.

        The caller's stream must have finished with the last upload.

        Args:
            images: uint8 (height, width, channels), of any sizes.

        Returns:
            Target and source of each copy that `upload` needs, for `Copier.copy`, on any thread.
        """
        self._shapes = [image.shape for image in images]
        ends = np.cumsum([0, *(image.size for image in images)])
        if ends[-1] > self._host.numel():
            self._host = torch.empty(int(ends[-1]), dtype=torch.uint8, pin_memory=self.pinned)
        host = self._host.numpy()
        # Writing through a view of the image's shape copies strided images (crops, flips) without a temporary.
        return [
            (host[start : start + image.size].reshape(image.shape), image)
            for image, start in zip(images, ends, strict=False)
        ]

    def upload(self) -> list[torch.Tensor]:
        """Enqueue one transfer of all images to the device.

        Returns:
            Views on the device of the images' shapes, valid until the next upload.
        """
        ends = np.cumsum([0, *(math.prod(shape) for shape in self._shapes)]).tolist()
        total = ends[-1]
        if total > self._on_device.numel():
            self._on_device = torch.empty(total, dtype=torch.uint8, device=self.device)
        self._on_device[:total].copy_(self._host[:total], non_blocking=True)
        return [
            self._on_device[start:end].view(shape)
            for start, end, shape in zip(ends, ends[1:], self._shapes, strict=False)
        ]

    def free(self) -> None:
        """Free the memory."""
        self._host = self._on_device = torch.empty(0, dtype=torch.uint8)


def preprocess_into(
    images: Sequence[torch.Tensor], target: torch.Tensor, preprocess: Preprocess
) -> list[ImageTransform]:
    """Preprocess images into a network input: resize, pad, color order, scale, mean and standard deviation.

    Args:
        images: uint8 (height, width, channels) on the target's device, BGR if there are 3 channels.
        target: Float NCHW; its first rows are overwritten in place.
        preprocess: The model's preprocessing, of one of `GPU_KINDS`.

    Returns:
        The transform of each image.
    """
    size = (int(target.shape[2]), int(target.shape[3]))
    shapes = [(int(image.shape[0]), int(image.shape[1])) for image in images]
    transforms = [
        compute_letterbox(shape, size)
        if preprocess.kind == "letterbox"
        else ImageTransform(shape=shape, resized=size, pad=(0, 0), size=size)
        for shape in shapes
    ]
    rows = target[: len(images)]
    # Color order, rounding and normalization of the whole batch at once, since small kernels wait for their launch; in
    # float32, since a half-precision value would round twice.
    in_place = target.dtype == torch.float32 and not preprocess.reverses_channels
    values = rows if in_place else torch.empty_like(rows, dtype=torch.float32)
    if any(transform.resized != size for transform in transforms):
        values.fill_(PADDING)
    start = 0
    for stop in _find_runs(shapes):
        (top, left), resized = transforms[start].pad, transforms[start].resized
        planes = images[start][None] if stop == start + 1 else torch.stack(tuple(images[start:stop]))
        planes = planes.permute(0, 3, 1, 2).to(torch.float32)
        if transforms[start].shape != resized:
            # Half-pixel centers, no antialiasing: OpenCV's INTER_LINEAR, which rounds to whole gray levels.
            planes = interpolate(planes, size=resized, mode="bilinear", align_corners=False)
        values[start:stop, :, top : top + resized[0], left : left + resized[1]] = planes
        start = stop
    if any(transform.shape != transform.resized for transform in transforms):
        values.round_()
    values = values.flip(1) if preprocess.reverses_channels else values
    _normalize(values, preprocess)
    if not in_place:
        rows.copy_(values)
    return transforms


def _find_runs(shapes: Sequence[tuple[int, int]]) -> Iterator[int]:
    """The ends of runs of images of one shape: they are processed at once, since small kernels wait for their launch.

    A run ends at `MAX_RUN_PIXELS`: large images need no company, but memory for their float values.
    """
    begin = 0
    for end in range(1, len(shapes) + 1):
        height, width = shapes[begin]
        if end == len(shapes) or shapes[end] != shapes[begin] or (end + 1 - begin) * height * width > MAX_RUN_PIXELS:
            yield end
            begin = end


def _normalize(values: torch.Tensor, preprocess: Preprocess) -> None:
    """Apply scale, mean and standard deviation to gray levels (..., channels, height, width), in place."""
    # Dividing keeps the last bit equal to the CPU's; multiplying by 1/255 would not.
    values.div_(255) if preprocess.scale == 1 / 255 else values.mul_(preprocess.scale)
    for numbers, operation in ((preprocess.mean, values.sub_), (preprocess.std, values.div_)):
        if numbers:
            operation(torch.tensor(numbers, dtype=torch.float32, device=values.device)[:, None, None])


def postprocess(
    output: torch.Tensor, classes: int, transforms: Sequence[ImageTransform], settings: PostprocessSettings
) -> list[Detections]:
    """Detections of a batch from raw outputs, each box with its best class, as `Detect.postprocess` computes them.

    Args:
        output: Shape (batch, 4 + classes + extra, anchors): x, y, w, h in input pixels, then scores.
        classes: Number of classes.
        transforms: From `preprocess_into`, one per image.
        settings: Thresholds; `multi_label` does not apply.

    Returns:
        One `Detections` per image.
    """
    output = output[: len(transforms)].float()
    best_scores, best_classes = output[:, 4 : 4 + classes].max(1)
    rows, anchors = torch.nonzero(best_scores > settings.conf, as_tuple=True)
    box_scores, box_classes = best_scores[rows, anchors], best_classes[rows, anchors]
    boxes = _to_corners(output[rows, :4, anchors])
    return select_objects(boxes, box_scores, box_classes, rows, transforms, settings)


def enqueue_postprocess(output: torch.Tensor, classes: int, count: int, settings: PostprocessSettings) -> torch.Tensor:
    """`postprocess` up to the transfer, for a fixed number of candidates: nothing waits for the GPU.

    Args:
        output: As in `postprocess`.
        classes: Number of classes.
        count: Images in the batch.
        settings: Thresholds; `multi_label` does not apply.

    Returns:
        For `trtkit.backends.trt.gpu_objects.read_objects`.
    """
    output = output[:count].float()
    best_scores, best_classes = output[:, 4 : 4 + classes].max(1)
    anchors, found = choose_candidates(best_scores, settings.conf)
    boxes = output[:, :4].gather(2, anchors[:, None].expand(-1, 4, -1)).transpose(1, 2)
    scores, numbers = (values.gather(1, anchors) for values in (best_scores, best_classes))
    return keep_objects(_to_corners(boxes), scores, numbers, found, settings)


def _to_corners(xywh: torch.Tensor) -> torch.Tensor:
    """Corners of boxes (..., 4) of center, width and height."""
    half_sizes = xywh[..., 2:4] / 2
    return torch.cat((xywh[..., :2] - half_sizes, xywh[..., :2] + half_sizes), -1)


def postprocess_raw_maps(
    outputs: Mapping[str, torch.Tensor],
    levels: Sequence[Level],
    transforms: Sequence[ImageTransform],
    settings: PostprocessSettings,
    *,
    needs_nms: bool = True,
) -> list[Detections]:
    """Detections of a batch from raw maps, decoded for candidates alone, as `decode_raw_maps` computes them.

    Args:
        outputs: The head's maps by name, of shape (batch, channels, height, width).
        levels: From `find_levels`.
        transforms: From `preprocess_into`, one per image.
        settings: Thresholds; `multi_label` does not apply.
        needs_nms: Whether the head is one-to-many.

    Returns:
        One `Detections` per image.
    """
    maps = _flatten_maps(outputs, levels, len(transforms))
    # One list of all anchors, so that the GPU is waited for once.
    best = torch.cat([scores.amax(1) for _, scores in maps], 1)
    rows, anchors = torch.nonzero(best > logit_threshold(settings.conf), as_tuple=True)
    corners, scores = _decode_anchors(maps, outputs, levels, rows, anchors)
    if needs_nms:
        values, numbers = scores.max(1)
        kept = values > settings.conf
        return select_objects(corners[kept], values[kept], numbers[kept], rows[kept], transforms, settings)
    # Any class of an anchor may be a row: the highest scores of the anchors of highest scores.
    highest = _rank_by_image(scores.amax(1), rows, settings.max_det)
    places, numbers = torch.nonzero(scores[highest] > settings.conf, as_tuple=True)
    places = highest[places]
    values = scores[places, numbers]
    order = _rank_by_image(values, rows[places], settings.max_det)
    places = places[order]
    return download(corners[places], values[order], numbers[order], rows[places], transforms, settings)


def enqueue_raw_maps(
    outputs: Mapping[str, torch.Tensor], levels: Sequence[Level], count: int, settings: PostprocessSettings
) -> torch.Tensor:
    """`postprocess_raw_maps` of a one-to-many head up to the transfer, as `enqueue_postprocess` does it.

    Args:
        outputs: The head's maps by name, of shape (batch, channels, height, width).
        levels: From `find_levels`.
        count: Images in the batch.
        settings: Thresholds; `multi_label` does not apply.

    Returns:
        For `trtkit.backends.trt.gpu_objects.read_objects`.
    """
    maps = _flatten_maps(outputs, levels, count)
    best = torch.cat([scores.amax(1) for _, scores in maps], 1)
    anchors, found = choose_candidates(best, logit_threshold(settings.conf))
    rows = torch.arange(count, device=anchors.device)[:, None].expand_as(anchors)
    corners, scores = _decode_anchors(maps, outputs, levels, rows.flatten(), anchors.flatten())
    values, numbers = scores.max(1)
    return keep_objects(
        corners.view(*anchors.shape, 4), values.view_as(anchors), numbers.view_as(anchors), found, settings
    )


def _flatten_maps(
    outputs: Mapping[str, torch.Tensor], levels: Sequence[Level], count: int
) -> list[tuple[torch.Tensor, ...]]:
    """The maps of boxes and of scores of each level, (count, channels, anchors)."""
    return [tuple(outputs[name][:count].flatten(2) for name in level.names[:2]) for level in levels]


def _decode_anchors(
    maps: Sequence[tuple[torch.Tensor, ...]],
    outputs: Mapping[str, torch.Tensor],
    levels: Sequence[Level],
    rows: torch.Tensor,
    anchors: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Corners in pixels, (n, 4), and scores, (n, classes), of some anchors, each of the image in `rows`."""
    boxes, logits = (_gather_anchors([level[place] for level in maps], rows, anchors) for place in (0, 1))
    centers, strides = _place_anchors([outputs[level.scores] for level in levels], levels, anchors)
    return _to_corners(_decode_boxes(boxes, centers, strides)), logits.sigmoid()


def _gather_anchors(levels: Sequence[torch.Tensor], rows: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """The channels of some anchors, (n, channels), float32; anchors count through all levels.

    Every level is read at every anchor, at a clamped place, which needs no transfer of how many lie in each.
    """
    start, values = 0, torch.empty(0, device=rows.device)
    for level in levels:
        cells = (anchors - start).clamp(0, level.shape[2] - 1)
        own = level[rows, :, cells].float()
        values = own if start == 0 else torch.where((anchors >= start)[:, None], own, values)
        start += level.shape[2]
    return values


def _place_anchors(
    maps: Sequence[torch.Tensor], levels: Sequence[Level], anchors: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Centers of the anchors' cells, (n, 2), in cells, and their strides, (n, 1), in pixels."""
    start = 0
    centers = torch.zeros(len(anchors), 2, device=anchors.device)
    strides = torch.zeros(len(anchors), 1, device=anchors.device)
    for map_, level in zip(maps, levels, strict=True):
        height, width = map_.shape[2:]
        cells, here = anchors - start, (anchors >= start)[:, None]
        own = torch.stack((cells % width, torch.div(cells, width, rounding_mode="floor")), 1).float() + 0.5
        centers = torch.where(here, own, centers)
        strides = torch.where(here, float(level.stride), strides)
        start += height * width
    return centers, strides


def _decode_boxes(distances: torch.Tensor, centers: torch.Tensor, strides: torch.Tensor) -> torch.Tensor:
    """Center, width and height in pixels, (n, 4), from distances or the logits of their distributions."""
    bins = distances.shape[1] // 4
    if bins > 1:
        weights = distances.reshape(-1, 4, bins).softmax(2)
        distances = (weights * torch.arange(bins, dtype=torch.float32, device=distances.device)).sum(2)
    low, high = centers - distances[:, :2], centers + distances[:, 2:]
    return torch.cat(((low + high) / 2, high - low), 1) * strides


def _rank_by_image(scores: torch.Tensor, rows: torch.Tensor, most: int) -> torch.Tensor:
    """Places of the `most` highest scores of each image, by image and falling score."""
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[torch.argsort(rows[order], stable=True)]
    ranked = rows[order]
    first = torch.searchsorted(ranked, ranked)
    return order[torch.arange(len(order), device=order.device) - first < most]
