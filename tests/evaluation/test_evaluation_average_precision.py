from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trtkit.evaluation.average_precision import (
    THRESHOLDS,
    average_precision,
    match_detections,
    pack_thresholds,
    score_classes,
    unpack_thresholds,
)

ONE = np.zeros(1, np.int64)


def test_thresholds():
    np.testing.assert_allclose(THRESHOLDS, [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95], atol=1e-7)


def test_perfect_curve_misses_half_a_step():
    # 101 recalls; the curve is 1 up to 0.99 and 0 at 1: 99 whole trapezoids and half of the last.
    assert average_precision(np.array([1.0]), np.array([1.0])) == pytest.approx(0.995)


def test_half_the_labels_found():
    # 1 up to 0.49, 0 from 0.50 on: 49 whole trapezoids and a half.
    assert average_precision(np.array([0.5]), np.array([1.0])) == pytest.approx(0.495)


def test_curve_with_a_false_positive_between():
    # Match, false positive, match of two labels: recall .5 .5 1, precision 1 1/2 2/3; envelope 1 until .5, then 2/3.
    found = average_precision(np.array([0.5, 0.5, 1.0]), np.array([1, 1 / 2, 2 / 3]))
    # 50 recalls read 1 (0 to .49), 50 read 2/3 (.50 to .99), the last reads 0; less half of both ends.
    assert found == pytest.approx((50 + 50 * 2 / 3 - 0.5) / 100)


def test_nothing_found_is_zero():
    assert average_precision(np.zeros(0), np.zeros(0)) == 0


@given(hnp.arrays(np.bool_, st.integers(1, 40)), st.integers(1, 60))
def test_average_precision_is_a_share(right, labels):
    labels = max(labels, int(right.sum()))
    recall = right.cumsum() / labels
    precision = right.cumsum() / np.arange(1, len(right) + 1)
    found = average_precision(recall, precision)
    assert 0 <= found <= 0.995 + 1e-12
    worse = average_precision(recall * 0.5, precision)
    assert worse <= found + 1e-12


def test_match_takes_the_best_free_label_by_falling_score():
    similarity = np.array([[0.8, 0.9, 0.0], [0.6, 0.55, 0.2]], np.float32)
    matched, claimed = match_detections(similarity, np.zeros(2, np.int64), np.zeros(3, np.int64))
    # Up to 0.8 the first detection takes label 0, and label 1 at 0.55 remains for the second.
    assert matched[:, 0].tolist() == [True, True, False]
    assert claimed[:, 0].tolist() == [0, 1]
    assert matched[:, 2].tolist() == [True, False, False]
    # Above 0.8 the first matches nothing, and the second takes label 0.
    assert matched[:, 7].tolist() == [False, True, False]
    assert claimed[:, 7].tolist() == [1, -1]


def test_match_needs_the_class():
    matched, claimed = match_detections(np.ones((1, 1), np.float32), ONE, ONE + 1)
    assert not matched.any()
    assert (claimed == -1).all()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_match_with_nothing(shape):
    matched, claimed = match_detections(
        np.zeros(shape, np.float32), np.zeros(shape[0], np.int64), np.zeros(shape[1], np.int64)
    )
    assert matched.shape == (shape[1], 10)
    assert claimed.shape == (shape[0], 10)
    assert not matched.any()


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 12)), elements=st.floats(0, 1, width=32)),
    st.randoms(use_true_random=False),
)
def test_match_is_one_to_one_and_similar_enough(similarity, random):
    labels, found = similarity.shape
    classes = np.array([random.randrange(2) for _ in range(labels)])
    found_classes = np.array([random.randrange(2) for _ in range(found)])
    matched, claimed = match_detections(similarity, classes, found_classes)
    for t in range(10):
        winners = claimed[claimed[:, t] >= 0, t]
        assert len(set(winners.tolist())) == len(winners) == matched[:, t].sum()
        for label in np.flatnonzero(claimed[:, t] >= 0):
            winner = claimed[label, t]
            assert similarity[label, winner] >= THRESHOLDS[t]
            assert classes[label] == found_classes[winner]


@given(hnp.arrays(np.bool_, st.tuples(st.integers(0, 9), st.just(10))))
def test_bits_there_and_back(matched):
    np.testing.assert_array_equal(unpack_thresholds(pack_thresholds(matched)), matched)


def test_bit_zero_is_the_lowest_threshold():
    assert pack_thresholds(np.eye(10, dtype=np.bool_)).tolist() == [2**t for t in range(10)]


def test_scores_of_perfect_detections():
    matched = np.ones((4, 10), np.bool_)
    classes = np.array([0, 0, 3, 3])
    found = score_classes(matched, np.array([0.9, 0.8, 0.7, 0.6], np.float32), classes, classes)
    assert found.classes.tolist() == [0, 3]
    assert found.instances.tolist() == [2, 2]
    np.testing.assert_allclose(found.ap, 0.995)
    means = found.means()
    assert means["precision"] == means["recall"] == 1
    # The best F1 is where all detections count, below the lowest score; smoothing keeps it there.
    assert found.confidence < 0.6


def test_precision_and_recall_at_the_best_f1():
    """Two matches at 0.9, a false positive at 0.1, three labels: above 0.1 precision 1, recall 2/3."""
    matched = np.zeros((3, 10), np.bool_)
    matched[:2] = True
    scores = np.array([0.9, 0.9, 0.1], np.float32)
    found = score_classes(matched, scores, np.zeros(3, np.int64), np.zeros(3, np.int64))
    assert found.confidence > 0.1
    assert found.recall[0] == pytest.approx(2 / 3, abs=1e-3)
    assert found.precision[0] > 0.75


def test_classes_without_labels_do_not_count():
    matched = np.array([[True] * 10, [False] * 10])
    found = score_classes(matched, np.array([0.5, 0.9], np.float32), np.array([1, 2]), np.array([1]))
    assert found.classes.tolist() == [1]
    assert found.means()["mAP50"] == pytest.approx(0.995)


def test_classes_without_detections_count_as_zero():
    found = score_classes(np.zeros((0, 10), np.bool_), np.zeros(0, np.float32), np.zeros(0, np.int64), np.array([1, 1]))
    assert found.means() == {"precision": 0, "recall": 0, "mAP50": 0, "mAP50-95": 0}


def test_no_labels_at_all():
    none = np.zeros(0, np.int64)
    assert score_classes(np.zeros((0, 10), np.bool_), np.zeros(0, np.float32), none, none).means()["mAP50"] == 0
