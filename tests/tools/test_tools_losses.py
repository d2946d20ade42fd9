"""The losses of the demo's training against their formulas, and against trtkit's own measures."""

import math

import losses
import numpy as np
import pytest
import torch

from trtkit.tasks import nms
from trtkit.tasks.pose import compute_oks

BOXES = torch.tensor([[0.0, 0, 10, 10], [2, 3, 30, 9], [5, 5, 6, 40], [100, 100, 120, 130]])
ORIENTED = torch.tensor([[10.0, 10, 20, 8, 0.3], [12, 9, 8, 20, 0.3], [40, 40, 10, 10, 0.7], [11, 10, 20, 8, -0.4]])


def test_iou_is_that_of_the_evaluation():
    ours = losses.box_iou(BOXES[:, None], BOXES)
    np.testing.assert_allclose(ours, nms.box_iou(BOXES.numpy(), BOXES.numpy()), atol=1e-6)


def test_complete_iou_subtracts_distance_and_aspect():
    # IoU 1/3; centers 5 apart; the box around both is 15 x 10; equal aspect ratios.
    first, second = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[5.0, 0, 15, 10]])
    assert losses.complete_iou(first, second).item() == pytest.approx(1 / 3 - 25 / (15**2 + 10**2), abs=1e-5)
    # The same center, 10 x 10 in 20 x 10: IoU 1/2 and v = 4 / pi^2 (atan 2 - atan 1)^2, weighted by v / (1 - IoU + v).
    inner, outer = torch.tensor([[5.0, 0, 15, 10]]), torch.tensor([[0.0, 0, 20, 10]])
    v = 4 / math.pi**2 * (math.atan(2) - math.atan(1)) ** 2
    assert losses.complete_iou(inner, outer).item() == pytest.approx(0.5 - v * v / (0.5 + v), abs=1e-5)
    assert losses.complete_iou(BOXES, BOXES).tolist() == pytest.approx([1] * 4, abs=1e-5)


def test_complete_iou_pulls_boxes_that_do_not_touch():
    box = torch.tensor([[0.0, 0, 10, 10]], requires_grad=True)
    losses.complete_iou(box, torch.tensor([[50.0, 0, 60, 10]])).sum().backward()
    assert box.grad[0, [0, 2]].sum() > 0


def test_distribution_focal_loss_is_the_cross_entropy_with_both_bins():
    logits = torch.randn(5, 4, 16, generator=torch.Generator().manual_seed(0))
    distances = torch.rand(5, 4, generator=torch.Generator().manual_seed(1)) * 14
    target = torch.zeros(5, 4, 16)
    for row, side in np.ndindex(5, 4):
        low = int(distances[row, side])
        share = float(distances[row, side]) - low
        target[row, side, low], target[row, side, low + 1] = 1 - share, share
    expected = -(target * logits.log_softmax(-1)).sum(-1).mean(-1)
    torch.testing.assert_close(losses.distribution_focal_loss(logits, distances), expected)


def test_distances_beyond_the_bins_count_as_the_last():
    logits = torch.zeros(1, 4, 16)
    logits[..., 15] = 50
    assert losses.distribution_focal_loss(logits, torch.full((1, 4), 99.0)).item() < 0.1


def test_prob_iou_is_that_of_the_evaluation():
    ours = losses.prob_iou(ORIENTED[:, None], ORIENTED)
    np.testing.assert_allclose(ours, nms.prob_iou(ORIENTED.numpy(), ORIENTED.numpy()), atol=2e-3)


def test_prob_iou_of_a_box_turned_by_a_quarter_with_its_sides_exchanged_is_one():
    turned = ORIENTED[:, [0, 1, 3, 2, 4]] + torch.tensor([0, 0, 0, 0, math.pi / 2])
    assert losses.prob_iou(ORIENTED, turned).tolist() == pytest.approx([1] * 4, abs=2e-3)


def test_only_the_angle_loss_sees_the_angle_of_a_square():
    square, turned = torch.tensor([[5.0, 5, 8, 8, 0]]), torch.tensor([[5.0, 5, 8, 8, 0.5]])
    assert losses.prob_iou(square, turned).item() == pytest.approx(1, abs=2e-3)
    assert losses.angle_loss(square[:, 4], turned[:, 4]).item() == pytest.approx(math.sin(0.5) ** 2)
    assert losses.angle_loss(torch.tensor(0.2), torch.tensor(0.2 + math.pi)).item() == pytest.approx(0, abs=1e-6)


def test_keypoint_loss_is_one_minus_the_similarity_and_the_distance():
    generator = torch.Generator().manual_seed(2)
    points, truth = torch.rand(3, 4, 2, generator=generator) * 20, torch.rand(3, 4, 2, generator=generator) * 20
    visible = torch.tensor([[1.0, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1]])
    areas = torch.tensor([100.0, 200, 400])
    labels = torch.cat([truth, visible[..., None]], -1).numpy()
    oks = compute_oks(labels, points.numpy(), areas.numpy(), (0.25,) * 4).diagonal()
    apart = ((points - truth).norm(dim=-1) / areas.sqrt()[:, None] * visible).sum(-1) / visible.sum(-1)
    ours = losses.keypoint_loss(points, truth, visible, areas, 0.25)
    np.testing.assert_allclose(ours, 1 - oks + 0.5 * apart.numpy(), atol=1e-3)


def test_keypoints_without_a_label_cost_nothing():
    far = torch.full((1, 4, 2), 99.0)
    assert losses.keypoint_loss(far, torch.zeros(1, 4, 2), torch.zeros(1, 4), torch.tensor([9.0]), 0.25).item() == 0


def test_mask_loss_looks_inside_the_box_alone():
    truth = torch.zeros(1, 8, 8)
    truth[:, 2:5, 2:5] = 1
    box = torch.tensor([[2.0, 2, 5, 5]])
    right = (truth * 2 - 1) * 20
    assert losses.mask_loss(right, truth, box).item() == pytest.approx(0, abs=1e-4)
    outside = right.clone()
    outside[:, 6:] = 20
    assert losses.mask_loss(outside, truth, box).item() == pytest.approx(0, abs=1e-4)
    # All wrong: a cross-entropy of 20 per pixel of the box, and no overlap.
    wrong = losses.mask_loss(-right, truth, box).item()
    assert wrong == pytest.approx(20 + 1 - 1 / (9 + 1), abs=1e-3)


def test_distance_errors_are_relative_to_the_box():
    targets = torch.tensor([[1.0, 2, 3, 2]])
    assert losses.distance_loss(targets + 1, targets).item() == pytest.approx(1 / 4)
