"""The loss of a detector's raw outputs: assignment to labels, and the weighted sum of each task's losses."""

from __future__ import annotations

import dataclasses
import math

import losses
import torch
from assignment import Assignment, assign, inside_boxes, inside_oriented
from demo_models import RawOutputs
from scene_batches import MASK_STRIDE, Batch
from torch import Tensor
from torch.nn import functional as F

from trtkit.models import heads

__all__ = ["Criterion", "distances_to_oriented"]

MANY = 10
"""Predictions per label of the one-to-many branches."""

MASKED = 4
"""Predictions per label, the most aligned ones, whose masks are compared: each is a whole image."""

WEIGHTS = {"score": 1.0, "box": 7.5, "distance": 1.5, "angle": 1.0, "keypoint": 5.0, "visibility": 0.5, "mask": 2.0}
KEYPOINT_SIGMA = 0.25
"""The spread of a keypoint by COCO's measure: 1 / keypoints, as trtkit's evaluation takes it."""

BOX_AREA_RATIO = 0.53
"""Area of an object by that of its box, likewise."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Pairs:
    """Matched predictions and labels, all places of the assignment in one row per image, (B, N)."""

    anchors: Tensor
    labels: Tensor
    weights: Tensor

    def of_predictions(self, values: Tensor) -> Tensor:
        """The predictions' values of (B, C, A), as (B, N, C)."""
        index = self.anchors[:, None].expand(-1, values.shape[1], -1)
        return values.gather(2, index).transpose(1, 2).float()

    def of_labels(self, values: Tensor) -> Tensor:
        """The labels' values of (B, G, ...), as (B, N, ...)."""
        shape = (*self.labels.shape, *values.shape[2:])
        index = self.labels.reshape(*self.labels.shape, *[1] * (values.dim() - 2)).expand(shape)
        return values.gather(1, index)

    def mean(self, values: Tensor) -> Tensor:
        """The weighted mean of (B * N,) values."""
        weights = self.weights.flatten()
        return (values * weights).sum() / weights.sum().clamp(min=1)


class Criterion:
    """The loss of a model with boxes.

    Args:
        head: The model's head.
        imgsz: Side of the input, pixels.
        device: Where it runs.
    """

    def __init__(self, head: heads.Detect, imgsz: int, device: torch.device) -> None:
        self.head = head
        maps = [torch.zeros((1, 1, imgsz // stride, imgsz // stride), device=device) for stride in head.strides]
        centers, strides = head.anchors(maps)
        self.cells, self.strides = centers[0].T, strides[0, 0]  # (A, 2) in cells, (A,) in pixels
        self.centers = self.cells * self.strides[:, None]

    def __call__(self, outputs: list[RawOutputs], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its parts, each before its weight, summed over the branches."""
        parts: dict[str, Tensor] = {}
        for raw, k in zip(outputs, (MANY, 1), strict=False):
            for name, value in self.compute(raw, batch, k).items():
                parts[name] = parts.get(name, 0) + value
        total = torch.stack([WEIGHTS[name] * value for name, value in parts.items()]).sum()
        return total, {name: value.detach() for name, value in parts.items()}

    def compute(self, raw: RawOutputs, batch: Batch, k: int) -> dict[str, Tensor]:
        """The parts of the loss of the branches that have `k` predictions per label."""
        logits = raw.scores.float().transpose(1, 2)
        assignment = self.assign(raw, batch, k)
        targets = assignment.score_targets(batch.classes, logits.shape[1], logits.shape[2])
        entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
        parts = {"score": entropy / targets.sum().clamp(min=1)}
        pairs = _pairs(assignment)
        parts.update(self.compare_boxes(raw, batch, pairs))
        if isinstance(self.head, heads.Pose):
            parts.update(self.compare_keypoints(raw, batch, pairs))
        if isinstance(self.head, heads.Segment):
            parts["mask"] = self.compare_masks(raw, batch, _pairs(assignment, MASKED))
        return parts

    @torch.no_grad()
    def assign(self, raw: RawOutputs, batch: Batch, k: int) -> Assignment:
        """Which predictions belong to which labels."""
        logits = raw.distances.float().transpose(1, 2)
        distances = self.decode_distances(logits)
        scores = raw.scores.float().transpose(1, 2).sigmoid()
        if isinstance(self.head, heads.OBB):
            assert raw.extra is not None
            angles = self.decode_angles(raw.extra[:, 0].float())
            boxes = self.decode_boxes(distances, angles, self.centers, self.strides)
            overlaps = losses.prob_iou(batch.oriented[:, :, None], boxes[:, None])
            inside = inside_oriented(self.centers, batch.oriented, batch.valid)
        else:
            boxes = self.decode_boxes(distances, None, self.centers, self.strides)
            overlaps = losses.box_iou(batch.boxes[:, :, None], boxes[:, None])
            inside = inside_boxes(self.centers, batch.boxes, batch.valid)
        return assign(scores, overlaps, inside, batch.classes, k)

    def decode_distances(self, logits: Tensor) -> Tensor:
        """Distances (..., 4) in cells from logits (..., 4 * bins)."""
        bins = self.head.bins
        if bins == 1:
            return logits
        values = torch.arange(bins, dtype=logits.dtype, device=logits.device)
        return (logits.unflatten(-1, (4, bins)).softmax(-1) * values).sum(-1)

    def decode_boxes(self, distances: Tensor, angles: Tensor | None, centers: Tensor, strides: Tensor) -> Tensor:
        """Boxes x0, y0, x1, y1 in pixels; with angles oriented ones (..., 5), whose distances are along their axes."""
        near, far = (distances * strides[..., None]).split(2, -1)
        if angles is None:
            return torch.cat([centers - near, centers + far], -1)
        shift, sides = (far - near) / 2, (near + far).clamp(min=0.1)
        cos, sin = angles.cos(), angles.sin()
        x = centers[..., 0] + shift[..., 0] * cos - shift[..., 1] * sin
        y = centers[..., 1] + shift[..., 0] * sin + shift[..., 1] * cos
        return torch.stack([x, y, sides[..., 0], sides[..., 1], angles], -1)

    def decode_keypoints(self, values: Tensor, anchors: Tensor) -> Tensor:
        """Keypoints (B, N, points, 2) in pixels from values (B, N, points, 3) of anchors (B, N), as `heads.Pose`."""
        cells, strides = self.cells[anchors], self.strides[anchors]
        return (values[..., :2] * 2 + (cells[:, :, None] - 0.5)) * strides[:, :, None, None]

    def decode_angles(self, values: Tensor) -> Tensor:
        """Angles in radians, as `heads.OBB` decodes them."""
        return (values.sigmoid() - 0.25) * math.pi

    def compare_boxes(self, raw: RawOutputs, batch: Batch, pairs: _Pairs) -> dict[str, Tensor]:
        """Losses of boxes and of their distances."""
        logits = pairs.of_predictions(raw.distances)
        distances = self.decode_distances(logits)
        centers, strides = self.centers[pairs.anchors], self.strides[pairs.anchors]
        parts: dict[str, Tensor] = {}
        if isinstance(self.head, heads.OBB):
            assert raw.extra is not None
            angles = self.decode_angles(pairs.of_predictions(raw.extra)[..., 0])
            truth = pairs.of_labels(batch.oriented)
            overlap = losses.prob_iou(self.decode_boxes(distances, angles, centers, strides), truth)
            parts["angle"] = pairs.mean(losses.angle_loss(angles, truth[..., 4]).flatten())
            targets = distances_to_oriented(centers, truth) / strides[..., None]
        else:
            truth = pairs.of_labels(batch.boxes)
            overlap = losses.complete_iou(self.decode_boxes(distances, None, centers, strides), truth)
            targets = torch.cat([centers - truth[..., :2], truth[..., 2:] - centers], -1) / strides[..., None]
        parts["box"] = pairs.mean((1 - overlap).flatten())
        if self.head.bins > 1:
            spread = logits.unflatten(-1, (4, self.head.bins)).flatten(0, 1)
            values = losses.distribution_focal_loss(spread, targets.flatten(0, 1))
        else:
            values = losses.distance_loss(distances, targets).flatten()
        parts["distance"] = pairs.mean(values)
        return parts

    def compare_keypoints(self, raw: RawOutputs, batch: Batch, pairs: _Pairs) -> dict[str, Tensor]:
        """Losses of keypoints and of their visibility."""
        assert raw.extra is not None
        values = pairs.of_predictions(raw.extra).unflatten(-1, batch.keypoints.shape[2:])
        points = self.decode_keypoints(values, pairs.anchors)
        truth, boxes = pairs.of_labels(batch.keypoints), pairs.of_labels(batch.boxes)
        areas = (boxes[..., 2:] - boxes[..., :2]).prod(-1) * BOX_AREA_RATIO
        distance = losses.keypoint_loss(
            points.flatten(0, 1), truth[..., :2].flatten(0, 1), truth[..., 2].flatten(0, 1), areas.flatten(),
            KEYPOINT_SIGMA,
        )  # fmt: skip
        visibility = F.binary_cross_entropy_with_logits(values[..., 2], truth[..., 2], reduction="none").mean(-1)
        return {"keypoint": pairs.mean(distance), "visibility": pairs.mean(visibility.flatten())}

    def compare_masks(self, raw: RawOutputs, batch: Batch, pairs: _Pairs) -> Tensor:
        """The loss of masks."""
        assert raw.extra is not None
        assert raw.prototypes is not None
        assert batch.masks is not None
        coefficients = pairs.of_predictions(raw.extra)
        logits = torch.einsum("bnk,bkhw->bnhw", coefficients, raw.prototypes.float())
        truth, boxes = pairs.of_labels(batch.masks), pairs.of_labels(batch.boxes) / MASK_STRIDE
        return pairs.mean(losses.mask_loss(logits.flatten(0, 1), truth.flatten(0, 1), boxes.flatten(0, 1)))


def _pairs(assignment: Assignment, most: int | None = None) -> _Pairs:
    """All places of an assignment, or the first ones of each label."""
    anchors, weights = assignment.anchors[..., :most], assignment.weights[..., :most]
    labels = torch.arange(anchors.shape[1], device=anchors.device)[:, None].expand(anchors.shape)
    return _Pairs(anchors.flatten(1), labels.flatten(1), weights.flatten(1))


def distances_to_oriented(centers: Tensor, boxes: Tensor) -> Tensor:
    """Distances (..., 4) in pixels from cells' centers to the sides of oriented boxes, along the boxes' axes."""
    offset = centers - boxes[..., :2]
    cos, sin = boxes[..., 4].cos(), boxes[..., 4].sin()
    along = offset[..., 0] * cos + offset[..., 1] * sin
    across = offset[..., 1] * cos - offset[..., 0] * sin
    place = torch.stack([along, across], -1)
    half = boxes[..., 2:4] / 2
    return torch.cat([half + place, half - place], -1)
