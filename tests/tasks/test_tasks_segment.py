"""Masks from prototypes and polygons, their RLE and their IoU."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coder

from trtkit.data import ImageTransform
from trtkit.tasks.segment import Masks, encode_rle, mask_iou, polygon_area, rasterize_polygons

PLAIN = ImageTransform(shape=(64, 64), resized=(64, 64), pad=(0, 0), size=(64, 64))


def test_overlap_by_hand():
    first, second = np.zeros((1, 4, 4), bool), np.zeros((2, 4, 4), bool)
    first[0, :2] = True
    second[0, :, :2] = True
    # 8 and 8 pixels share 4.
    assert mask_iou(first, second).tolist() == [[pytest.approx(4 / 12), 0]]
    assert mask_iou(first, first)[0, 0] == 1
    assert mask_iou(first[:0], second).shape == (0, 2)
    assert mask_iou(first, second[:0]).shape == (1, 0)


@settings(max_examples=60, deadline=None)
@given(arrays(np.bool_, (3, 6, 5)), arrays(np.bool_, (2, 6, 5)), st.integers(0, 5), st.integers(0, 4))
def test_overlap_is_symmetric_and_moves_along(first, second, down, right):
    found = mask_iou(first, second)
    np.testing.assert_array_equal(found, mask_iou(second, first).T)
    moved = [np.roll(masks, (down, right), (1, 2)) for masks in (first, second)]
    np.testing.assert_array_equal(found, mask_iou(*moved))
    assert [value for value, mask in zip(mask_iou(first, first).diagonal(), first, strict=True) if mask.any()] == [
        1 for mask in first if mask.any()
    ]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_run_lengths_are_pycocotools(data):
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    top, left = data.draw(st.integers(0, height)), data.draw(st.integers(0, width))
    bottom, right = data.draw(st.integers(top, height)), data.draw(st.integers(left, width))
    share = data.draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
    part = np.random.default_rng(data.draw(st.integers(0, 99))).random((bottom - top, right - left)) < share
    whole = np.zeros((height, width), bool)
    whole[top:bottom, left:right] = part
    expected = coder.encode(np.asfortranarray(whole, np.uint8))["counts"].decode()
    assert encode_rle(part, (top, left), (height, width)) == {"size": [height, width], "counts": expected}


@pytest.mark.parametrize("value", [0, 1])
def test_run_lengths_of_a_large_image(value):
    whole = np.full((2000, 3000), bool(value))
    expected = coder.encode(np.asfortranarray(whole, np.uint8))["counts"].decode()
    assert encode_rle(whole, (0, 0), whole.shape)["counts"] == expected


def made(fit=PLAIN, box=(16, 8, 48, 40)):
    """One object, positive on the left half of the prototypes."""
    prototypes = np.full((1, 16, 16), -1, np.float32)
    prototypes[0, :, :8] = 1
    return Masks(
        prototypes=prototypes,
        coefficients=np.ones((1, 1), np.float32),
        boxes=np.array([box], np.float32),
        transform=fit,
    )


def test_low_resolution_masks_end_at_their_box():
    mask = made().low_resolution()[0]
    assert (np.flatnonzero(mask.any(0)).tolist(), np.flatnonzero(mask.any(1)).tolist()) == (
        [4, 5, 6, 7],
        list(range(2, 10)),
    )


def test_full_resolution_masks_are_interpolated_between_pixel_centers():
    mask = made().full_resolution(0)
    assert mask.shape == (64, 64)
    # Prototype pixels 7 and 8 have their centers at 30 and 34; the value passes 0 at 32.
    assert np.flatnonzero(mask.any(0)).tolist() == list(range(16, 32))
    assert np.flatnonzero(mask.any(1)).tolist() == list(range(8, 40))


def test_full_resolution_masks_follow_the_letterbox():
    # An image of 32 x 64, not resized: 16 rows of padding above.
    fit = ImageTransform(shape=(32, 64), resized=(32, 64), pad=(16, 0), size=(64, 64))
    mask = made(fit).full_resolution(0)
    assert mask.shape == (32, 64)
    assert np.flatnonzero(mask.any(1)).tolist() == list(range(24))
    # The same, with an image of twice the size.
    large = ImageTransform(shape=(64, 128), resized=(32, 64), pad=(16, 0), size=(64, 64))
    assert made(large).full_resolution(0).sum() == 4 * mask.sum()


def test_boxes_outside_or_without_size_have_empty_masks():
    assert made(box=(30, 30, 30, 50)).full_resolution(0).sum() == 0
    assert made(box=(70, 70, 90, 90)).rles[0]["size"] == [64, 64]


def test_masks_are_encoded_as_they_are_drawn():
    masks = made()
    expected = coder.encode(np.asfortranarray(masks.full_resolution(0), np.uint8))["counts"].decode()
    assert masks.rles[0]["counts"] == expected


def test_labels_lie_in_no_two_masks_and_the_smaller_wins():
    large = np.array([[0, 0], [63, 0], [63, 63], [0, 63]], np.float32)
    small = np.array([[16, 16], [31, 16], [31, 31], [16, 31]], np.float32)
    drawn = rasterize_polygons([large, small], (64, 64), (16, 16))
    assert drawn[1].sum() == 16
    assert drawn[0].sum() == 256 - 16
    assert not (drawn[0] & drawn[1]).any()
    assert rasterize_polygons([], (64, 64), (16, 16)).shape == (0, 16, 16)


def test_polygon_area():
    assert polygon_area(np.array([[0, 0], [4, 0], [0, 3]], np.float32)) == 6
