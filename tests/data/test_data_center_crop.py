"""Center crop and antialiased resizing, against Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trtkit.data.images import center_crop, resize_antialias

REFERENCE = Path(__file__).parent / "references" / "pillow.npz"


@pytest.mark.parametrize("before", [(40, 60), (61, 33), (150, 100), (24, 24), (9, 130)])
@pytest.mark.parametrize("after", [(24, 24), (32, 48)])
def test_resizing_is_pillow_s(before, after):
    """Against references/make_pillow.py: trtkit does not depend on Pillow."""
    image = np.random.default_rng(0).random((*before, 3))
    found = resize_antialias((image * 256).astype(np.uint8), after)
    expected = np.load(REFERENCE)[f"{before}-{after}".replace(" ", "")]
    # Pillow 13 starts with the columns for these; older versions never did.
    tall = before == (61, 33) or (before, after) == ((150, 100), (32, 48))
    assert np.abs(found.astype(int) - expected).max() <= (1 if tall else 0)


def test_shrinking_averages():
    # A triangle of radius 2 over pixels 0 255 0 255: weights 1/8 3/8 3/8 1/8 inside, truncated at the edges.
    stripes = np.tile(np.array([0, 255], np.uint8), 8).reshape(1, 16, 1)
    assert set(resize_antialias(stripes, (1, 8))[0, 1:-1, 0].tolist()) <= {127, 128}


def test_the_middle_is_cut_out():
    image = np.zeros((64, 100, 3), np.uint8)
    image[:, 18:82] = 255
    cut, fit = center_crop(image, (64, 64))
    assert cut.shape == (64, 64, 3)
    assert cut.min() == 255
    assert fit.pad == (0, -18)
    np.testing.assert_allclose(fit.to_image(np.array([[0, 0, 64, 64]], np.float32)), [[18, 0, 82, 64]])


def test_other_shapes_are_resized_to_fit():
    cut, fit = center_crop(np.zeros((10, 30, 3), np.uint8), (32, 64))
    assert cut.shape == (32, 64, 3)
    assert fit.resized == (32, 64)
