"""Task-aligned assignment on cases that can be checked by hand."""

import math

import torch
from assignment import assign, inside_boxes, inside_oriented

ALL = torch.ones(1, 2, 4, dtype=torch.bool)
CLASSES = torch.tensor([[0, 1]])


def test_the_most_aligned_predictions_are_taken_and_the_best_gets_the_largest_overlap():
    scores = torch.tensor([[[0.81, 0], [0.25, 0], [0.01, 0], [0, 0]]])
    overlaps = torch.tensor([[[0.5, 1.0, 0.9, 0.4], [0, 0, 0, 0]]])
    result = assign(scores, overlaps, ALL, CLASSES, k=2)
    # s^0.5 u^6: 0.9 / 64, 0.5, 0.1 * 0.53, 0.
    assert result.anchors[0, 0].tolist() == [1, 2]
    second = 0.1 * 0.9**6 / 0.5
    torch.testing.assert_close(result.weights[0, 0], torch.tensor([1.0, second]))
    assert result.weights[0, 1].tolist() == [0, 0]
    targets = result.score_targets(CLASSES, 4, 2)
    torch.testing.assert_close(targets[0], torch.tensor([[0, 0], [1.0, 0], [second, 0], [0, 0]]))


def test_one_per_label_for_a_head_without_nms():
    scores = torch.full((1, 4, 2), 0.5)
    overlaps = torch.tensor([[[0.6, 0.8, 0.7, 0.1], [0.1, 0.2, 0.3, 0.9]]])
    result = assign(scores, overlaps, ALL, CLASSES, k=1)
    assert result.anchors[0, :, 0].tolist() == [1, 3]
    torch.testing.assert_close(result.weights[0, :, 0], torch.tensor([0.8, 0.9]))


def test_a_prediction_of_two_labels_belongs_to_the_one_it_overlaps_most():
    scores = torch.full((1, 4, 2), 0.5)
    overlaps = torch.tensor([[[0.6, 0.8, 0.0, 0.0], [0.0, 0.7, 0.5, 0.0]]])
    result = assign(scores, overlaps, ALL, CLASSES, k=2)
    targets = result.score_targets(CLASSES, 4, 2)[0]
    assert (targets > 0).tolist() == [[True, False], [True, False], [False, True], [False, False]]
    # The second label's best prediction is the other's, so the next one is its best.
    torch.testing.assert_close(targets[2, 1], torch.tensor(0.5))


def test_cells_outside_and_places_without_label_get_nothing():
    scores = torch.full((1, 4, 2), 0.5)
    inside = torch.tensor([[[False, True, True, True], [False, False, False, False]]])
    result = assign(scores, torch.full((1, 2, 4), 0.9), inside, CLASSES, k=4)
    assert (result.score_targets(CLASSES, 4, 2) > 0)[0].tolist() == [[False, False], *[[True, False]] * 3]


def test_cells_inside_upright_and_oriented_boxes():
    centers = torch.tensor([[5.0, 5], [9, 1], [11, 5]])
    valid = torch.tensor([[True, False]])
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 99, 99]]])
    assert inside_boxes(centers, boxes, valid)[0].tolist() == [[True, True, False], [False] * 3]
    # The square's corner (10, 0) is cut off once it is turned by 45 degrees; its tip reaches beyond x = 10.
    turned = torch.tensor([[[5.0, 5, 10, 10, math.pi / 4], [5, 5, 99, 99, 0]]])
    assert inside_oriented(centers, turned, valid)[0].tolist() == [[True, False, True], [False] * 3]
