"""Objects from the candidates of a batch, in torch operations: NMS, and the transfer to the host.

NMS of a fixed number of candidates (`keep_objects`) enqueues everything and waits for nothing, so that the GPU has its
work before it is through with the engine's, and the host prepares the next batch meanwhile. NMS of as many as there
are (`select_objects`) waits for their count.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from trtkit.backends.stages import enter_stage
from trtkit.data.images import ImageTransform, map_to_images
from trtkit.tasks import Detections, PostprocessSettings
from trtkit.tasks.nms import CLASS_OFFSET, MAX_CANDIDATES

__all__ = [
    "FIXED_CANDIDATES", "choose_candidates", "download", "iou_matrix", "keep_objects", "nms", "pack_objects",
    "read_objects", "select_objects",
]  # fmt: skip

FIXED_CANDIDATES = 512
"""Candidates of an image that `keep_objects` has room for: the anchors of some 40 objects above a score of 0.25."""

FIXED_ROUNDS = 8
"""Rounds of NMS in `keep_objects`, one for each box of the longest chain in which every box overlaps the next."""

COLUMNS = 7
"""x1, y1, x2, y2, score, class, and whether it is an object."""

# Boxes per IoU matrix of `nms`.
NMS_BLOCK = 1024
# Up to so many candidates, NMS of a whole batch uses one IoU matrix; above, it goes image by image in blocks.
MAX_BATCHED_CANDIDATES = 4096


# A fixed number of candidates.


def choose_candidates(scores: torch.Tensor, threshold: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The anchors of each image whose score exceeds a threshold, as many as there is room for.

    Args:
        scores: The best score of each anchor, float32, shape (batch, anchors).
        threshold: Of the scores, at least 0.

    Returns:
        Anchors by falling score and then ascending, shape (batch, at most `FIXED_CANDIDATES`), the last anchor where
        there are no more; their scores, 0 where there are no more; and how many of each image exceed the threshold. Of
        more than there is room for, the first ones.
    """
    above = scores > threshold
    # One integer for score and anchor, so that sorting once gives the order: positive floats rise with their bits.
    last = scores.shape[1] - 1
    places = torch.arange(last, -1, -1, device=scores.device)
    keys = scores.view(torch.int32).long().bitwise_left_shift_(32).add_(places)
    # Those above the threshold, as far as there is room, then sorted: a selection of the highest takes a GPU longer.
    room = min(FIXED_CANDIDATES, scores.shape[1])
    slots = torch.where(above, above.cumsum(1), 0).clamp_(max=room + 1)
    chosen = keys.new_zeros(len(scores), room + 2).scatter_(1, slots, keys)[:, 1:-1].sort(1, descending=True).values
    anchors = last - chosen.bitwise_and(2**32 - 1)
    return anchors, chosen.bitwise_right_shift_(32).int().view(torch.float32), above.sum(1)


def keep_objects(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    classes: torch.Tensor,
    found: torch.Tensor,
    settings: PostprocessSettings,
) -> torch.Tensor:
    """NMS of a fixed number of candidates of each image, as `select_objects` does it, without `max_det`.

    Args:
        boxes: x1, y1, x2, y2 in pixels, shape (batch, candidates, 4).
        scores: Falling, from `choose_candidates`, shape (batch, candidates).
        classes: Shape (batch, candidates).
        found: How many anchors of each image exceed the threshold, from `choose_candidates`.
        settings: Thresholds.

    Returns:
        From `pack_objects`; objects are missing where the candidates or the rounds did not suffice.
    """
    overlaps = _find_overlaps(boxes, classes, settings.iou).triu_(1).float()
    is_candidate = (scores > settings.conf).float()
    kept = before = is_candidate
    for _ in range(FIXED_ROUNDS):
        # How many kept boxes of a higher score overlap each.
        counts = torch.bmm(kept[:, None], overlaps)[:, 0]
        kept, before = is_candidate * (counts == 0), kept
    return pack_objects(boxes, scores, classes, kept, (found <= boxes.shape[1]).all() & (kept == before).all())


def pack_objects(
    boxes: torch.Tensor, scores: torch.Tensor, classes: torch.Tensor, kept: torch.Tensor, suffices: torch.Tensor
) -> torch.Tensor:
    """What `read_objects` reads, in one piece.

    Args:
        boxes: x1, y1, x2, y2 in pixels, shape (batch, candidates, 4).
        scores: Falling, shape (batch, candidates).
        classes: Shape (batch, candidates).
        kept: Which candidates are objects, shape (batch, candidates).
        suffices: Whether no object is missing, a scalar.

    Returns:
        `COLUMNS` values of each candidate, and `suffices`. Shape (batch x candidates x `COLUMNS` + 1,), float32.
    """
    columns = (boxes, scores[:, :, None], classes[:, :, None].float(), kept[:, :, None].float())
    return torch.cat((torch.cat(columns, 2).flatten(), suffices.float()[None]))


def read_objects(
    values: np.ndarray, transforms: Sequence[ImageTransform], settings: PostprocessSettings
) -> list[Detections] | None:
    """Detections from what `pack_objects` gives.

    Args:
        values: On the host.
        transforms: From `locate_images`, one per image.
        settings: Thresholds.

    Returns:
        One `Detections` per image; None if objects are missing.
    """
    if not values[-1]:
        return None
    table = values[:-1].reshape(len(transforms), -1, COLUMNS)
    owners, places = np.nonzero(table[:, :, COLUMNS - 1])
    return _make_detections(table[owners, places], owners, transforms, settings)


# As many candidates as there are.


def select_objects(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    classes: torch.Tensor,
    rows: torch.Tensor,
    transforms: Sequence[ImageTransform],
    settings: PostprocessSettings,
) -> list[Detections]:
    """NMS of a batch's candidates.

    Args:
        boxes: x1, y1, x2, y2 in pixels, shape (n, 4).
        scores: Shape (n,).
        classes: Shape (n,).
        rows: The image of each, shape (n,).
        transforms: From `locate_images`, one per image.
        settings: Thresholds.

    Returns:
        One `Detections` per image.
    """
    if len(rows) <= MAX_BATCHED_CANDIDATES:
        kept = _batched_nms(boxes, scores, classes, rows, iou=settings.iou)
    else:
        kept = torch.cat(
            [
                own[nms(boxes[own], scores[own], classes[own], iou=settings.iou, max_det=settings.max_det)]
                for own in (torch.nonzero(rows == row).flatten() for row in range(len(transforms)))
            ]
        )
    return download(boxes[kept], scores[kept], classes[kept], rows[kept], transforms, settings)


def download(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    classes: torch.Tensor,
    rows: torch.Tensor,
    transforms: Sequence[ImageTransform],
    settings: PostprocessSettings,
) -> list[Detections]:
    """Detections on the host, from all objects by image and falling score; the arguments are those of NMS."""
    columns = (boxes, scores[:, None], classes[:, None].float(), rows[:, None].float())
    table = torch.cat(columns, 1)
    # One transfer for the batch: each would wait for the GPU.
    enter_stage("download")
    objects = table.cpu().numpy()
    enter_stage("postprocess")
    return _make_detections(objects, objects[:, 6].astype(np.intp), transforms, settings)


def _make_detections(
    objects: np.ndarray, owners: np.ndarray, transforms: Sequence[ImageTransform], settings: PostprocessSettings
) -> list[Detections]:
    """The objects of each image, from x1, y1, x2, y2, score and class of all of them by image and falling score."""
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
        first: x1, y1, x2, y2, shape (..., n, 4).
        second: x1, y1, x2, y2, shape (..., m, 4).

    Returns:
        Shape (..., n, m), in 0..1; 0 where both boxes are empty.
    """
    low = torch.maximum(first[..., :, None, :2], second[..., None, :, :2])
    high = torch.minimum(first[..., :, None, 2:], second[..., None, :, 2:])
    sides = (high - low).clamp_(min=0)
    shared = sides[..., 0] * sides[..., 1]
    areas = ((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]) for boxes in (first, second))
    union = next(areas)[..., :, None] + next(areas)[..., None, :] - shared
    return torch.nan_to_num_(shared.div_(union), nan=0.0)


def _find_overlaps(boxes: torch.Tensor, classes: torch.Tensor, iou: float) -> torch.Tensor:
    """Which boxes (row) overlap which others of their class (column) by more than `iou`, shape (..., n, n)."""
    shifted = boxes + (classes * CLASS_OFFSET).to(boxes.dtype)[..., None]
    return iou_matrix(shifted, shifted) > _round_down(iou)


def _round_down(threshold: float) -> float:
    """The largest float32 not above a threshold: a float32 exceeds both or neither."""
    rounded = np.float32(threshold)
    return float(rounded if rounded <= threshold else np.nextafter(rounded, np.float32(-np.inf)))


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
    threshold = _round_down(iou)
    kept_boxes = shifted[:0]
    kept: list[torch.Tensor] = []
    count = 0
    for start in range(0, len(order), NMS_BLOCK):
        block, indices = shifted[start : start + NMS_BLOCK], order[start : start + NMS_BLOCK]
        if len(kept_boxes):
            free = ~(iou_matrix(block, kept_boxes) > threshold).any(1)
            block, indices = block[free], indices[free]
        survives = _greedy_keep((iou_matrix(block, block) > threshold).triu_(1))
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
    same_image = rows[order][:, None] == rows[order]
    return order[_greedy_keep((_find_overlaps(boxes[order], classes[order], iou) & same_image).triu_(1))]


def _greedy_keep(overlaps: torch.Tensor) -> torch.Tensor:
    """Which boxes greedy NMS keeps, given which higher-scoring box (row) overlaps which lower one (column)."""
    kept = torch.ones(len(overlaps), dtype=torch.bool, device=overlaps.device)
    while True:
        after = ~(overlaps & kept[:, None]).any(0)
        if torch.equal(after, kept):
            return after
        kept = after
