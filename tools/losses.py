"""Losses of boxes, distributions, oriented boxes, keypoints and masks, written from their papers.

All take predictions and targets of matched pairs in the same order and return one value per pair.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "angle_loss",
    "box_iou",
    "complete_iou",
    "distance_loss",
    "distribution_focal_loss",
    "keypoint_loss",
    "mask_loss",
    "prob_iou",
]

EPSILON = 1e-7


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boxes x0, y0, x1, y1, of shapes that broadcast."""
    low, high = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1) for boxes in (first, second)]
    return shared / (areas[0] + areas[1] - shared + EPSILON)


def complete_iou(first: Tensor, second: Tensor) -> Tensor:
    """Complete IoU: IoU less the centers' distance and the difference of the aspect ratios.

    Zheng et al., Distance-IoU Loss, 2020, arXiv:1911.08287, equations 10 to 12: CIoU = IoU - d^2 / c^2 - a v, with the
    distance d of the centers, the diagonal c of the smallest box around both, v = 4 / pi^2 (atan(w / h) of one less
    that of the other)^2, and a = v / (1 - IoU + v), which has no gradient.
    """
    iou = box_iou(first, second)
    low, high = torch.minimum(first[..., :2], second[..., :2]), torch.maximum(first[..., 2:], second[..., 2:])
    diagonal = ((high - low) ** 2).sum(-1) + EPSILON
    apart = ((first[..., :2] + first[..., 2:] - second[..., :2] - second[..., 2:]) ** 2).sum(-1) / 4
    ratios = []
    for boxes in (first, second):
        sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=EPSILON)
        ratios.append(torch.atan(sides[..., 0] / sides[..., 1]))
    difference = 4 / math.pi**2 * (ratios[0] - ratios[1]) ** 2
    with torch.no_grad():
        weight = difference / (1 - iou + difference + EPSILON)
    return iou - apart / diagonal - weight * difference


def distribution_focal_loss(logits: Tensor, distances: Tensor) -> Tensor:
    """Cross-entropy with the two bins next to each distance, weighted by nearness, averaged over the sides.

    Li et al., Generalized Focal Loss, 2020, arXiv:2006.04388, equation 6.

    Args:
        logits: (n, sides, bins).
        distances: In bins, (n, sides); they are clamped to the bins.
    """
    bins = logits.shape[-1]
    distances = distances.clamp(0, bins - 1 - 1e-3)
    low = distances.long()
    share = distances - low
    log = logits.log_softmax(-1)
    near = log.gather(-1, low[..., None])[..., 0] * (1 - share)
    far = log.gather(-1, low[..., None] + 1)[..., 0] * share
    return -(near + far).mean(-1)


def distance_loss(distances: Tensor, targets: Tensor) -> Tensor:
    """Absolute error of the four distances (left, top, right, bottom), relative to the box's width or height, (n,)."""
    sides = (targets[..., :2] + targets[..., 2:]).clamp(min=EPSILON)
    return ((distances - targets).abs() / torch.cat([sides, sides], -1)).mean(-1)


def prob_iou(first: Tensor, second: Tensor) -> Tensor:
    """Similarity of oriented boxes as normal distributions: one minus their Hellinger distance.

    Llerena et al., Gaussian Bounding Boxes and Probabilistic Intersection-over-Union, 2021, arXiv:2106.06072.

    Args:
        first: Center x and y, width, height, angle in radians; (..., 5).
        second: Likewise, of a shape that broadcasts.
    """
    a1, b1, c1 = _covariance(first)
    a2, b2, c2 = _covariance(second)
    x, y = first[..., 0] - second[..., 0], first[..., 1] - second[..., 1]
    a, b, c = a1 + a2, b1 + b2, c1 + c2
    determinant = a * b - c**2
    apart = (a * y**2 + b * x**2 - 2 * c * x * y) / (determinant + EPSILON) / 4
    own = ((a1 * b1 - c1**2).clamp(min=0) * (a2 * b2 - c2**2).clamp(min=0) + EPSILON).sqrt()
    shape = torch.log(determinant / (4 * own + EPSILON) + EPSILON) / 2
    distance = (apart + shape).clamp(EPSILON, 100)
    return 1 - (1 - torch.exp(-distance) + EPSILON).sqrt()


def _covariance(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Variance of x, of y, and their covariance, for the uniform distribution on each box."""
    along, across = boxes[..., 2] ** 2 / 12, boxes[..., 3] ** 2 / 12
    cos, sin = boxes[..., 4].cos(), boxes[..., 4].sin()
    return along * cos**2 + across * sin**2, along * sin**2 + across * cos**2, (along - across) * cos * sin


def angle_loss(angles: Tensor, targets: Tensor) -> Tensor:
    """sin^2 of the difference: 0 for a half turn too. The overlap of a square says nothing about its angle."""
    return torch.sin(angles - targets) ** 2


def keypoint_loss(points: Tensor, targets: Tensor, visible: Tensor, areas: Tensor, sigma: float) -> Tensor:
    """One minus the object keypoint similarity, plus the distance by the object's size where that is nearly flat.

    Maji et al., YOLO-Pose, 2022, arXiv:2204.06806, equation 4; the similarity is COCO's, exp(-d^2 / (2 area (2 k)^2)).

    Args:
        points: x and y, (n, points, 2).
        targets: Likewise.
        visible: 1 where a keypoint is labeled, (n, points).
        areas: Of the objects, (n,).
        sigma: k of every keypoint.
    """
    squares = ((points - targets) ** 2).sum(-1) / areas.clamp(min=1)[:, None]
    loss = 1 - torch.exp(-squares / (2 * (2 * sigma) ** 2)) + 0.5 * (squares + 1e-6).sqrt()
    return (loss * visible).sum(-1) / visible.sum(-1).clamp(min=1)


def mask_loss(logits: Tensor, targets: Tensor, boxes: Tensor) -> Tensor:
    """Cross-entropy of masks inside their boxes, by the box's area, plus the Dice loss there.

    Bolya et al., YOLACT, 2019, arXiv:1904.02689, section 3.2; Milletari et al., V-Net, 2016, arXiv:1606.04797.

    Args:
        logits: (n, h, w).
        targets: In 0..1, (n, h, w).
        boxes: x0, y0, x1, y1 in pixels of the masks, (n, 4).
    """
    ys = torch.arange(logits.shape[1], device=logits.device) + 0.5
    xs = torch.arange(logits.shape[2], device=logits.device) + 0.5
    x0, y0, x1, y1 = (side[:, None] for side in boxes.unbind(1))
    # Half a pixel more on each side: a mask is cut at its box only after it is interpolated.
    inside = ((ys > y0 - 0.5) & (ys < y1 + 0.5))[:, :, None] & ((xs > x0 - 0.5) & (xs < x1 + 0.5))[:, None, :]
    inside = inside.to(logits.dtype)
    area = inside.sum((1, 2)).clamp(min=1)
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    probability = logits.sigmoid() * inside
    shared = (probability * targets).sum((1, 2))
    dice = 1 - (2 * shared + 1) / (probability.sum((1, 2)) + (targets * inside).sum((1, 2)) + 1)
    return (entropy * inside).sum((1, 2)) / area + dice
