"""Preprocessing, and postprocessing of detection, in torch operations, on the GPU and, for tests, on the CPU.

The reference is the CPU path (`trtkit.data.images`, `trtkit.tasks.nms`): inputs agree within one gray level of 255
(OpenCV resizes in fixed point), detections from the same outputs agree to float rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch.nn.functional import interpolate

from trtkit.backends.stages import enter_stage
from trtkit.data.images import PADDING, ImageTransform, compute_letterbox, map_to_images
from trtkit.models.model import Preprocess
from trtkit.tasks import Detections, PostprocessSettings
from trtkit.tasks.nms import CLASS_OFFSET, MAX_CANDIDATES
from trtkit.tasks.raw_maps import Level, logit_threshold

__all__ = ["GPU_KINDS", "Uploader", "iou_matrix", "nms", "postprocess", "postprocess_raw_maps", "preprocess_into"]

GPU_KINDS = ("letterbox", "stretch")
"""Kinds of preprocessing that `preprocess_into` does as the CPU does; the antialiased center crop it does not."""

MAX_RUN_PIXELS = 8 * 1024 * 1024
"""Most pixels that `preprocess_into` processes at once, 100 MB as float values."""

# Boxes per IoU matrix of `nms`.
NMS_BLOCK = 1024
# Up to so many candidates, NMS of a whole batch uses one IoU matrix; above, it goes image by image in blocks.
MAX_BATCHED_CANDIDATES = 4096


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

    def upload(self, images: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """Copy images to the device in one transfer.

        The caller's stream must have finished with the last upload before the next one starts.

        Args:
            images: uint8 (height, width, channels), of any sizes.

        Returns:
            Views on the device of the same shapes, valid until the next upload.
        """
        sizes = [image.size for image in images]
        total = sum(sizes)
        if total > self._host.numel():
            self._host = torch.empty(total, dtype=torch.uint8, pin_memory=self.pinned)
            self._on_device = torch.empty(total, dtype=torch.uint8, device=self.device)
        host = self._host.numpy()
        starts = np.cumsum([0, *sizes])
        for image, start, size in zip(images, starts, sizes, strict=False):
            # Writing through a view of the image's shape copies strided images (crops, flips) without a temporary.
            host[start : start + size].reshape(image.shape)[...] = image
        self._on_device[:total].copy_(self._host[:total], non_blocking=True)
        return [
            self._on_device[start : start + size].view(image.shape)
            for image, start, size in zip(images, starts, sizes, strict=False)
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
    # Rounding and normalization of the whole batch: in float32, since a half-precision value would round twice.
    values = rows if target.dtype == torch.float32 else torch.empty_like(rows, dtype=torch.float32)
    if any(transform.resized != size for transform in transforms):
        values.fill_(PADDING)
    start = 0
    for stop in _find_runs(shapes):
        (top, left), resized = transforms[start].pad, transforms[start].resized
        planes = images[start][None] if stop == start + 1 else torch.stack(tuple(images[start:stop]))
        planes = planes.permute(0, 3, 1, 2)
        planes = (planes.flip(1) if preprocess.reverses_channels else planes).to(torch.float32)
        if transforms[start].shape != resized:
            # Half-pixel centers, no antialiasing: OpenCV's INTER_LINEAR, which rounds to whole gray levels.
            planes = interpolate(planes, size=resized, mode="bilinear", align_corners=False)
        values[start:stop, :, top : top + resized[0], left : left + resized[1]] = planes
        start = stop
    if any(transform.shape != transform.resized for transform in transforms):
        values.round_()
    _normalize(values, preprocess)
    if values is not rows:
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
    return _select_objects(boxes, box_scores, box_classes, rows, transforms, settings)


def _to_corners(xywh: torch.Tensor) -> torch.Tensor:
    half_sizes = xywh[:, 2:4] / 2
    return torch.cat((xywh[:, :2] - half_sizes, xywh[:, :2] + half_sizes), 1)


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
    count = len(transforms)
    maps = [[outputs[name][:count].flatten(2) for name in level.names[:2]] for level in levels]
    # One list of all anchors, so that the GPU is waited for once.
    best = torch.cat([scores.amax(1) for _, scores in maps], 1)
    rows, anchors = torch.nonzero(best > logit_threshold(settings.conf), as_tuple=True)
    boxes, logits = (_gather_anchors([level[place] for level in maps], rows, anchors) for place in (0, 1))
    centers, strides = _place_anchors([outputs[level.scores] for level in levels], levels, anchors)
    corners = _to_corners(_decode_boxes(boxes, centers, strides))
    scores = logits.sigmoid()
    if needs_nms:
        values, numbers = scores.max(1)
        kept = values > settings.conf
        return _select_objects(corners[kept], values[kept], numbers[kept], rows[kept], transforms, settings)
    # Any class of an anchor may be a row: the highest scores of the anchors of highest scores.
    highest = _rank_by_image(scores.amax(1), rows, settings.max_det)
    places, numbers = torch.nonzero(scores[highest] > settings.conf, as_tuple=True)
    places = highest[places]
    values = scores[places, numbers]
    order = _rank_by_image(values, rows[places], settings.max_det)
    places = places[order]
    return _download(corners[places], values[order], numbers[order], rows[places], transforms, settings)


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


def _select_objects(
    boxes: torch.Tensor,
    box_scores: torch.Tensor,
    box_classes: torch.Tensor,
    rows: torch.Tensor,
    transforms: Sequence[ImageTransform],
    settings: PostprocessSettings,
) -> list[Detections]:
    """NMS of a batch's candidates, whose image `rows` holds."""
    if len(rows) <= MAX_BATCHED_CANDIDATES:
        kept = _batched_nms(boxes, box_scores, box_classes, rows, iou=settings.iou)
    else:
        kept = torch.cat(
            [
                own[nms(boxes[own], box_scores[own], box_classes[own], iou=settings.iou, max_det=settings.max_det)]
                for own in (torch.nonzero(rows == row).flatten() for row in range(len(transforms)))
            ]
        )
    return _download(boxes[kept], box_scores[kept], box_classes[kept], rows[kept], transforms, settings)


def _download(
    boxes: torch.Tensor,
    box_scores: torch.Tensor,
    box_classes: torch.Tensor,
    rows: torch.Tensor,
    transforms: Sequence[ImageTransform],
    settings: PostprocessSettings,
) -> list[Detections]:
    """The objects of each image, from all of them by image and falling score."""
    columns = (boxes, box_scores[:, None], box_classes[:, None].float(), rows[:, None].float())
    table = torch.cat(columns, 1)
    # One transfer for the batch: each would wait for the GPU.
    enter_stage("download")
    objects = table.cpu().numpy()
    enter_stage("postprocess")
    owners = objects[:, 6].astype(np.intp)
    starts, ends = (np.searchsorted(owners, np.arange(len(transforms)), side=side) for side in ("left", "right"))
    in_pixels = map_to_images(objects[:, :4], owners, transforms)
    return [
        Detections(
            shape=transform.shape,
            boxes=in_pixels[start:end],
            scores=np.ascontiguousarray(objects[start:end, 4]),
            classes=objects[start:end, 5].astype(np.int64),
        )
        for start, end, transform in zip(starts, np.minimum(ends, starts + settings.max_det), transforms, strict=True)
    ]


def iou_matrix(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """IoU of every pair of boxes.

    Args:
        first: x1, y1, x2, y2, shape (n, 4).
        second: x1, y1, x2, y2, shape (m, 4).

    Returns:
        Shape (n, m), in 0..1; 0 where both boxes are empty.
    """
    low = torch.maximum(first[:, None, :2], second[:, :2])
    high = torch.minimum(first[:, None, 2:], second[:, 2:])
    shared = (high - low).clamp_(min=0).prod(2)
    areas = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (first, second))
    union = next(areas)[:, None] + next(areas) - shared
    return torch.where(union > 0, shared / union, torch.zeros_like(shared))


def nms(boxes: torch.Tensor, scores: torch.Tensor, classes: torch.Tensor, *, iou: float, max_det: int) -> torch.Tensor:
    """Greedy class-wise NMS, exact, one block of candidates at a time; equals `trtkit.tasks.nms.nms`.

    The iteration within a block converges to the greedy result (Cluster-NMS, Zheng et al. 2020, arXiv:2005.03572).

    Args:
        boxes: x1, y1, x2, y2, pixels, shape (n, 4).
        scores: Shape (n,).
        classes: Shape (n,).
        iou: Of two boxes of a class with IoU > `iou` the lower score is dropped.
        max_det: Maximum number of kept boxes.

    Returns:
        Indices of the kept boxes by falling score, at most `max_det`.
    """
    order = torch.argsort(scores, descending=True, stable=True)[:MAX_CANDIDATES]
    shifted = boxes[order] + (classes[order] * CLASS_OFFSET).to(boxes.dtype)[:, None]
    # IoU is compared in float64, so that the threshold is the one the caller wrote.
    kept_boxes = shifted[:0]
    kept: list[torch.Tensor] = []
    count = 0
    for start in range(0, len(order), NMS_BLOCK):
        block, indices = shifted[start : start + NMS_BLOCK], order[start : start + NMS_BLOCK]
        if len(kept_boxes):
            free = ~(iou_matrix(block, kept_boxes).double() > iou).any(1)
            block, indices = block[free], indices[free]
        survives = _greedy_keep((iou_matrix(block, block).double() > iou).triu_(1))
        kept_boxes = torch.cat((kept_boxes, block[survives]))
        kept.append(indices[survives])
        count += len(kept[-1])
        if count >= max_det:
            break
    return torch.cat(kept)[:max_det] if kept else order


def _batched_nms(
    boxes: torch.Tensor, scores: torch.Tensor, classes: torch.Tensor, rows: torch.Tensor, *, iou: float
) -> torch.Tensor:
    """`nms` for a whole batch at once, without `max_det`: indices by image, then by falling score."""
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[torch.argsort(rows[order], stable=True)]
    shifted = boxes[order] + (classes[order] * CLASS_OFFSET).to(boxes.dtype)[:, None]
    same_image = rows[order][:, None] == rows[order]
    return order[_greedy_keep(((iou_matrix(shifted, shifted).double() > iou) & same_image).triu_(1))]


def _greedy_keep(overlaps: torch.Tensor) -> torch.Tensor:
    """Which boxes greedy NMS keeps, given which higher-scoring box (row) overlaps which lower one (column)."""
    kept = torch.ones(len(overlaps), dtype=torch.bool, device=overlaps.device)
    while True:
        after = ~(overlaps & kept[:, None]).any(0)
        if torch.equal(after, kept):
            return after
        kept = after
