"""Object keypoint similarity (OKS), by hand and by its properties."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trtkit.data import Dataset
from trtkit.tasks import get_task
from trtkit.tasks.pose import COCO_SIGMAS, compute_oks


def test_by_hand():
    label = np.array([[[10, 10, 2], [20, 10, 1], [99, 99, 0]]], np.float32)
    found = np.array([[[13, 14, 1], [20, 10, 1], [0, 0, 1]]], np.float32)
    # One keypoint is 5 pixels off, one exact, one not labeled: exp(-25 / (2 * 100 * (2 * 0.25)^2)) and 1.
    expected = (math.exp(-25 / (2 * 100 * 0.25)) + 1) / 2
    areas = np.array([100], np.float32)
    assert compute_oks(label, found, areas, (0.25, 0.5, 0.1))[0, 0] == pytest.approx(expected)


def test_a_label_without_keypoints_has_no_similarity():
    label = np.zeros((1, 2, 3), np.float32)
    assert compute_oks(label, label, np.array([9], np.float32), (0.1, 0.1))[0, 0] == 0


PLACES = arrays(np.float32, (2, 4, 2), elements=st.floats(-100, 100, width=32))


@settings(max_examples=60, deadline=None)
@given(PLACES, st.floats(-50, 50), st.floats(-50, 50))
def test_symmetry_identity_and_translation(places, right, down):
    points = np.concatenate((places, np.ones((2, 4, 1), np.float32)), 2)
    areas, sigmas = np.full(2, 400, np.float32), (0.1, 0.2, 0.3, 0.4)
    found = compute_oks(points, points, areas, sigmas)
    np.testing.assert_allclose(found, found.T, atol=1e-6)
    np.testing.assert_allclose(found.diagonal(), 1)
    moved = points + np.array([right, down, 0], np.float32)
    np.testing.assert_allclose(compute_oks(moved, moved, areas, sigmas), found, atol=1e-3)


def test_sigmas():
    plain = {"path": Path("a"), "task": "pose", "names": {0: "a"}, "splits": {}}
    assert get_task("pose").get_sigmas(Dataset(**plain, kpt_shape=(4, 3))) == (0.25,) * 4
    assert get_task("pose").get_sigmas(Dataset(**plain, kpt_shape=(17, 3))) == COCO_SIGMAS
    assert get_task("pose").get_sigmas(Dataset(**plain, kpt_shape=(2, 3), sigmas=(0.5, 0.7))) == (0.5, 0.7)
