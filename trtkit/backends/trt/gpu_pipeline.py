"""Images to network inputs and boxes back, in torch operations that run on the GPU and, for tests, on the CPU.

The CPU's path (`trtkit.data.images`, `trtkit.tasks.nms`) is the measure: inputs agree within one gray level of 255
(OpenCV resizes in fixed point), detections from the same outputs agree to float rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import interpolate

from trtkit.data.images import PADDING, ImageTransform, compute_letterbox
from trtkit.tasks import Detections, PostprocessSettings
from trtkit.tasks.nms import CLASS_OFFSET, MAX_CANDIDATES

__all__ = ["Uploader", "iou_matrix", "letterbox_into", "nms", "postprocess"]

NMS_BLOCK = 1024
# Candidates of a whole batch that are suppressed in one matrix; beyond it, image by image in blocks.
MAX_BATCHED_CANDIDATES = 4096


class Uploader:
    """Brings uint8 images to the GPU through pinned memory that is kept and grows with the largest batch.

    Args:
        device: Where the images go.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pinned = device.type == "cuda"
        self._host = torch.empty(0, dtype=torch.uint8)
        self._there = torch.empty(0, dtype=torch.uint8, device=device)

    def upload(self, images: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """Copy images to the device in one transfer.

        The caller's stream must have finished with the last upload before the next one starts.

        Args:
            images: BGR uint8 (height, width, 3), of any sizes.

        Returns:
            Views on the device of the same shapes, valid until the next upload.
        """
        sizes = [image.size for image in images]
        total = sum(sizes)
        if total > self._host.numel():
            self._host = torch.empty(total, dtype=torch.uint8, pin_memory=self.pinned)
            self._there = torch.empty(total, dtype=torch.uint8, device=self.device)
        host = self._host.numpy()
        starts = np.cumsum([0, *sizes])
        for image, start, size in zip(images, starts, sizes, strict=False):
            # Writing through a view of the image's shape copies strided images (crops, flips) without a detour.
            host[start : start + size].reshape(image.shape)[...] = image
        self._there[:total].copy_(self._host[:total], non_blocking=True)
        return [
            self._there[start : start + size].view(image.shape)
            for image, start, size in zip(images, starts, sizes, strict=False)
        ]

    def free(self) -> None:
        """Let the memory go."""
        self._host = self._there = torch.empty(0, dtype=torch.uint8)


def letterbox_into(images: Sequence[torch.Tensor], target: torch.Tensor) -> list[ImageTransform]:
    """Letterbox images into a network input: resize, center on gray, BGR to RGB, scale to [0, 1].

    Args:
        images: BGR uint8 (height, width, 3) on the target's device.
        target: Float NCHW; its first rows are written, in place. Each is written whole.

    Returns:
        Where each image lies.
    """
    size = (int(target.shape[2]), int(target.shape[3]))
    fits = [compute_letterbox((int(image.shape[0]), int(image.shape[1])), size) for image in images]
    for row, (image, fit) in enumerate(zip(images, fits, strict=True)):
        planes = image.permute(2, 0, 1).flip(0)[None].to(torch.float32)
        if fit.shape != fit.resized:
            # Half-pixel centers, no antialiasing: OpenCV's INTER_LINEAR, which rounds to whole gray levels.
            planes = interpolate(planes, size=fit.resized, mode="bilinear", align_corners=False).round_()
        (top, left), (height, width) = fit.pad, fit.resized
        if fit.resized != size:
            target[row].fill_(PADDING / 255)
        # Dividing keeps the last bit equal to the CPU's; multiplying by 1/255 would not.
        target[row, :, top : top + height, left : left + width] = planes[0].div_(255)
    return fits


def postprocess(
    output: torch.Tensor, classes: int, fits: Sequence[ImageTransform], settings: PostprocessSettings
) -> list[Detections]:
    """Detections of a batch from raw outputs, one class a box, as `Detect.decode` finds them.

    Args:
        output: Shape (batch, 4 + classes + extra, anchors): x, y, w, h in input pixels, then scores.
        classes: Number of classes.
        fits: Where each image lies.
        settings: Thresholds; `multi_label` does not apply.
    """
    output = output[: len(fits)].float()
    best, numbers = output[:, 4 : 4 + classes].max(1)
    rows, anchors = torch.nonzero(best > settings.conf, as_tuple=True)
    scores, classed = best[rows, anchors], numbers[rows, anchors]
    centers = output[rows, :4, anchors]
    half = centers[:, 2:4] / 2
    boxes = torch.cat((centers[:, :2] - half, centers[:, :2] + half), 1)
    if len(rows) <= MAX_BATCHED_CANDIDATES:
        chosen = _batched_nms(boxes, scores, classed, rows, iou=settings.iou)
    else:
        chosen = torch.cat(
            [
                own[nms(boxes[own], scores[own], classed[own], iou=settings.iou, max_det=settings.max_det)]
                for own in (torch.nonzero(rows == row).flatten() for row in range(len(fits)))
            ]
        )
    found = torch.cat((boxes, scores[:, None], classed[:, None].float(), rows[:, None].float()), 1)[chosen]
    # One transfer for the batch: each would wait for the GPU.
    table = found.cpu().numpy()
    starts = np.searchsorted(table[:, 6], np.arange(len(fits)))
    ends = np.minimum(np.searchsorted(table[:, 6], np.arange(len(fits)), side="right"), starts + settings.max_det)
    return [
        Detections(
            shape=fit.shape,
            boxes=fit.to_image(np.ascontiguousarray(table[start:end, :4])),
            scores=np.ascontiguousarray(table[start:end, 4]),
            classes=table[start:end, 5].astype(np.int64),
        )
        for start, end, fit in zip(starts, ends, fits, strict=True)
    ]


def iou_matrix(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Intersection over union of every pair of boxes.

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
    """Greedy non-maximum suppression within each class, exact, a block of candidates at a time.

    The rounds within a block end at the greedy answer (Cluster-NMS, Zheng et al. 2020, arXiv:2005.03572); see
    `trtkit.tasks.nms.nms`, whose answer this is.

    Args:
        boxes: x1, y1, x2, y2, pixels, shape (n, 4).
        scores: Shape (n,).
        classes: Shape (n,).
        iou: Overlap above which the weaker box goes.
        max_det: Most boxes kept.

    Returns:
        Indices of the kept boxes by falling score, at most `max_det`.
    """
    order = torch.argsort(scores, descending=True, stable=True)[:MAX_CANDIDATES]
    moved = boxes[order] + (classes[order] * CLASS_OFFSET).to(boxes.dtype)[:, None]
    # Compared in float64, so that the threshold is what the caller wrote.
    kept = moved[:0]
    chosen: list[torch.Tensor] = []
    count = 0
    for start in range(0, len(order), NMS_BLOCK):
        block, places = moved[start : start + NMS_BLOCK], order[start : start + NMS_BLOCK]
        if len(kept):
            free = ~(iou_matrix(block, kept).double() > iou).any(1)
            block, places = block[free], places[free]
        survives = _greedy_keep((iou_matrix(block, block).double() > iou).triu_(1))
        kept = torch.cat((kept, block[survives]))
        chosen.append(places[survives])
        count += len(chosen[-1])
        if count >= max_det:
            break
    return torch.cat(chosen)[:max_det] if chosen else order


def _batched_nms(
    boxes: torch.Tensor, scores: torch.Tensor, classes: torch.Tensor, rows: torch.Tensor, *, iou: float
) -> torch.Tensor:
    """`nms` for a whole batch at once: indices by image, then by falling score; none is cut to max_det."""
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[torch.argsort(rows[order], stable=True)]
    moved = boxes[order] + (classes[order] * CLASS_OFFSET).to(boxes.dtype)[:, None]
    same = rows[order][:, None] == rows[order]
    return order[_greedy_keep(((iou_matrix(moved, moved).double() > iou) & same).triu_(1))]


def _greedy_keep(beats: torch.Tensor) -> torch.Tensor:
    stands = torch.ones(len(beats), dtype=torch.bool, device=beats.device)
    while True:
        after = ~(beats & stands[:, None]).any(0)
        if torch.equal(after, stands):
            return after
        stands = after
