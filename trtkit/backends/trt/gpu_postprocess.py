"""Postprocessing of detection in torch operations, on the GPU and, for tests, on the CPU.

The reference is the CPU path (`trtkit.tasks.nms`): detections from the same outputs agree to float rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from trtkit.backends.trt.gpu_objects import choose_candidates, download, keep_objects, pack_objects, select_objects
from trtkit.data.images import ImageTransform
from trtkit.tasks import Detections, PostprocessSettings
from trtkit.tasks.raw_maps import Level, logit_threshold

__all__ = [
    "enqueue_candidates", "enqueue_postprocess", "enqueue_raw_maps", "enqueue_rows", "postprocess",
    "postprocess_raw_maps",
]  # fmt: skip


def postprocess(
    output: torch.Tensor, classes: int, transforms: Sequence[ImageTransform], settings: PostprocessSettings
) -> list[Detections]:
    """Detections of a batch from raw outputs, each box with its best class, as `Detect.postprocess` computes them.

    Args:
        output: Shape (batch, 4 + classes + extra, anchors): x, y, w, h in input pixels, then scores.
        classes: Number of classes.
        transforms: From `locate_images`, one per image.
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
    anchors, scores, found = choose_candidates(output[:, 4 : 4 + classes].amax(1), settings.conf)
    rows = output[:, : 4 + classes].gather(2, anchors[:, None].expand(-1, 4 + classes, -1))
    boxes, numbers = rows[:, :4].transpose(1, 2), rows[:, 4:].max(1).indices
    return keep_objects(_to_corners(boxes), scores, numbers, found, settings)


def enqueue_candidates(
    output: torch.Tensor, classes: int, settings: PostprocessSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dense output with the candidates' anchors alone, for the host to decode; nothing waits for the GPU.

    Args:
        output: Shape (batch, 4 + classes + extra, anchors), float32: a box, scores, and further values.
        classes: Number of classes.
        settings: Thresholds; `iou` and `multi_label` do not apply.

    Returns:
        The same columns of at most `FIXED_CANDIDATES` anchors, their scores 0 where there are no more; and whether
        these are all candidates, a scalar, float32.
    """
    anchors, scores, found = choose_candidates(output[:, 4 : 4 + classes].amax(1), settings.conf)
    table = output.gather(2, anchors[:, None].expand(-1, output.shape[1], -1))
    chosen = torch.where((scores > settings.conf)[:, None], table[:, 4 : 4 + classes], 0)
    suffices = (found <= anchors.shape[1]).all().float()
    return torch.cat((table[:, :4], chosen, table[:, 4 + classes :]), 1), suffices


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
        transforms: From `locate_images`, one per image.
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
    outputs: Mapping[str, torch.Tensor],
    levels: Sequence[Level],
    count: int,
    settings: PostprocessSettings,
    *,
    needs_nms: bool = True,
) -> torch.Tensor:
    """`postprocess_raw_maps` up to the transfer, as `enqueue_postprocess` does it.

    Args:
        outputs: The head's maps by name, of shape (batch, channels, height, width).
        levels: From `find_levels`.
        count: Images in the batch.
        settings: Thresholds; `multi_label` does not apply.
        needs_nms: Whether the head is one-to-many.

    Returns:
        For `trtkit.backends.trt.gpu_objects.read_objects`.
    """
    maps = _flatten_maps(outputs, levels, count)

    def decode(anchors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.arange(count, device=anchors.device)[:, None].expand_as(anchors)
        values = _decode_anchors(maps, outputs, levels, rows.flatten(), anchors.flatten())
        corners, scores = (value.view(*anchors.shape, -1) for value in values)
        return corners, scores

    best = torch.cat([scores.amax(1) for _, scores in maps], 1).float().sigmoid()
    anchors, scores, found = choose_candidates(best, settings.conf)
    if needs_nms:
        corners, all_scores = decode(anchors)
        return keep_objects(corners, scores, all_scores.max(2).indices, found, settings)
    missing = found > anchors.shape[1]
    # Any class of an anchor may be a row: the highest scores of the anchors of highest scores.
    anchors, scores = anchors[:, : settings.max_det], scores[:, : settings.max_det]
    corners, all_scores = decode(anchors)
    all_scores = torch.where((scores > settings.conf)[:, :, None], all_scores, 0)
    places, values, found = choose_candidates(all_scores.flatten(1), settings.conf)
    owners = torch.div(places, all_scores.shape[2], rounding_mode="floor")
    boxes = corners.gather(1, owners[:, :, None].expand(-1, -1, 4))
    suffices = ~(missing | (found > places.shape[1])).any()
    return pack_objects(boxes, values, places % all_scores.shape[2], values > settings.conf, suffices)


def enqueue_rows(output: torch.Tensor, count: int, settings: PostprocessSettings) -> torch.Tensor:
    """Final boxes of NMS or a one-to-one head up to the transfer, as `trtkit.tasks.detect.decode_rows` reads them.

    Args:
        output: Shape (batch, rows, 6): x1, y1, x2, y2 in input pixels, score and class.
        count: Images in the batch.
        settings: Thresholds; `iou` and `multi_label` do not apply.

    Returns:
        For `trtkit.backends.trt.gpu_objects.read_objects`.
    """
    output = output[:count].float()
    # A score that is no number comes last, as everything below the threshold.
    scores = torch.where(output[:, :, 4] > settings.conf, output[:, :, 4], 0)
    order = torch.argsort(scores, dim=1, descending=True, stable=True)
    table = output.gather(1, order[:, :, None].expand(-1, -1, 6))
    kept = table[:, :, 4] > settings.conf
    return pack_objects(table[:, :, :4], table[:, :, 4], table[:, :, 5], kept, kept.new_ones(()))


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
