"""Task-aligned assignment of predictions to labels.

Feng et al., TOOD, 2021, arXiv:2108.07755, section 3.2: a prediction's alignment with a label is s^a u^b, with its
score s for the label's class and its overlap u. The most aligned predictions whose cell lies in the label's box are its
own; with one per label they train a head that needs no NMS (Wang et al., YOLOv10, 2024, arXiv:2405.14458, section 3.1).
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

__all__ = ["Assignment", "assign", "inside_boxes", "inside_oriented"]

SCORE_POWER = 0.5
OVERLAP_POWER = 6.0


@dataclasses.dataclass(frozen=True, eq=False)
class Assignment:
    """The predictions of each label; of fixed size, so that a GPU need not be waited for.

    Attributes:
        anchors: Index of each prediction, (B, G, k).
        weights: The target of its score for the label's class, in 0..1; 0 for a place without a prediction, (B, G, k).
    """

    anchors: Tensor
    weights: Tensor

    def score_targets(self, classes: Tensor, anchors: int, count: int) -> Tensor:
        """The targets of all scores, (B, anchors, count)."""
        targets = self.weights.new_zeros((len(classes), anchors * count))
        places = self.anchors * count + classes[..., None]
        # A prediction belongs to one label at most, so that there is nothing to add up but zeros.
        return targets.scatter_add_(1, places.flatten(1), self.weights.flatten(1)).reshape(-1, anchors, count)


@torch.no_grad()
def assign(scores: Tensor, overlaps: Tensor, inside: Tensor, classes: Tensor, k: int) -> Assignment:
    """Assign predictions to labels.

    Args:
        scores: Probabilities, (B, A, classes).
        overlaps: Overlap of each label with each prediction, in 0..1, (B, G, A).
        inside: Whether the prediction's cell may belong to the label, (B, G, A); False for places without label.
        classes: Of the labels, (B, G).
        k: Predictions per label.
    """
    count = scores.shape[1]
    own = scores.transpose(1, 2).gather(1, classes[..., None].expand(-1, -1, count))
    overlaps = overlaps.clamp(min=0) * inside
    alignment = own**SCORE_POWER * overlaps**OVERLAP_POWER
    best, anchors = alignment.topk(min(k, count), 2)
    chosen = torch.zeros_like(inside).scatter_(2, anchors, best > 0)
    # A prediction that several labels chose belongs to the one it overlaps most.
    owner = torch.where(chosen, overlaps, -1).argmax(1)
    labels = torch.arange(classes.shape[1], device=classes.device)[:, None]
    is_own = owner[:, None].expand(-1, classes.shape[1], -1).gather(2, anchors) == labels
    kept = best * (is_own & (best > 0))
    reached = (overlaps.gather(2, anchors) * (kept > 0)).amax(2, keepdim=True)
    # The most aligned prediction of a label gets its largest overlap as target (section 3.2.2).
    weights = kept / kept.amax(2, keepdim=True).clamp(min=1e-12) * reached
    return Assignment(anchors, weights)


def inside_boxes(centers: Tensor, boxes: Tensor, valid: Tensor) -> Tensor:
    """Whether each cell's center (A, 2) lies in each box (B, G, 4), both in pixels; (B, G, A)."""
    low = centers > boxes[:, :, None, :2]
    high = centers < boxes[:, :, None, 2:]
    return (low & high).all(-1) & valid[..., None]


def inside_oriented(centers: Tensor, boxes: Tensor, valid: Tensor) -> Tensor:
    """Likewise for oriented boxes (B, G, 5)."""
    offset = centers - boxes[:, :, None, :2]
    cos, sin = boxes[..., 4].cos()[..., None], boxes[..., 4].sin()[..., None]
    along = offset[..., 0] * cos + offset[..., 1] * sin
    across = offset[..., 1] * cos - offset[..., 0] * sin
    within = (along.abs() < boxes[..., 2, None] / 2) & (across.abs() < boxes[..., 3, None] / 2)
    return within & valid[..., None]
