from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtkit.data import images, letterbox, resize_to_input, to_input
from trtkit.data.images import PADDING, compute_letterbox, map_to_images
from trtkit.models import Preprocess

SIDES = st.integers(2, 2000)


@pytest.mark.parametrize(
    ("shape", "size", "resized", "pad"),
    [
        ((480, 640), (640, 640), (480, 640), (80, 0)),
        ((640, 480), (640, 640), (640, 480), (0, 80)),
        # 381 / 377: the short side is 377 * 640 / 381 = 633.28, rounded up; 6 pixels of padding.
        ((381, 377), (640, 640), (640, 634), (0, 3)),
        # 427 * 640 / 640 = 427; 213 pixels of padding, the odd one on the right.
        ((640, 427), (640, 640), (640, 427), (0, 106)),
        ((1000, 2000), (640, 640), (320, 640), (160, 0)),
        ((100, 100), (320, 640), (320, 320), (0, 160)),
    ],
)
def test_fit_by_hand(shape, size, resized, pad):
    fit = compute_letterbox(shape, size)
    assert (fit.resized, fit.pad) == (resized, pad)


def test_image_is_centerd_in_gray():
    image = np.full((100, 200, 3), 7, np.uint8)
    boxed, fit = letterbox(image, (64, 64))
    assert boxed.shape == (64, 64, 3)
    assert fit.pad == (16, 0)
    assert (boxed[16:48] == 7).all()
    assert (boxed[:16] == PADDING).all()
    assert (boxed[48:] == PADDING).all()


def test_image_of_the_right_size_is_unchanged():
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    boxed, fit = letterbox(image, (64, 96))
    np.testing.assert_array_equal(boxed, image)
    assert fit.ratio == (1, 1)


def test_input_is_rgb_by_255_exactly():
    some = list(np.random.default_rng(0).integers(0, 256, (2, 8, 6, 3), np.uint8))
    batch = to_input(some)
    assert batch.dtype == np.float32
    assert batch.flags.c_contiguous
    expected = np.stack(some)[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(batch, expected)


@given(SIDES, SIDES, st.sampled_from([(640, 640), (320, 640), (64, 64)]))
def test_image_lies_inside_and_touches_two_sides(height, width, size):
    fit = compute_letterbox((height, width), size)
    assert fit.resized[0] == size[0] or fit.resized[1] == size[1]
    for place in (0, 1):
        free = size[place] - fit.resized[place]
        assert free >= 0
        assert fit.pad[place] == free // 2


@given(SIDES, SIDES, st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8))
def test_there_and_back(height, width, points):
    fit = compute_letterbox((height, width), (640, 640))
    pixels = np.array(points, np.float32) * np.array([width, height], np.float32)
    back = fit.to_image(fit.to_network(pixels))
    np.testing.assert_allclose(back, pixels, atol=2e-4 * max(1, height, width))


def test_points_outside_move_to_the_edge():
    fit = compute_letterbox((100, 200), (64, 64))
    boxes = np.array([[-5, 10, 70, 60]], np.float32)
    np.testing.assert_array_equal(fit.to_image(boxes), [[0, 0, 200, 100]])
    assert fit.to_image(boxes, clip=False)[0, 0] < 0


def test_stretch_ignores_the_aspect_ratio():
    image = np.full((100, 200, 3), 7, np.uint8)
    resized, transform = resize_to_input(image, (64, 32), Preprocess(kind="stretch"))
    assert resized.shape == (64, 32, 3)
    assert (resized == 7).all()
    np.testing.assert_allclose(transform.to_image(np.array([[0, 0, 32, 64]], np.float32)), [[0, 0, 200, 100]])


def test_the_kind_of_preprocessing_selects_the_resizing():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    for kind, resize in (("letterbox", images.letterbox), ("center_crop", images.center_crop)):
        found, transform = resize_to_input(image, (32, 32), Preprocess(kind=kind))
        expected, other = resize(image, (32, 32))
        np.testing.assert_array_equal(found, expected)
        assert transform == other


def test_color_order_scale_mean_and_standard_deviation():
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    preprocess = Preprocess(color="bgr", scale=1.0, mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 8.0))
    expected = (image.astype(np.float32) - (1, 2, 3)) / (2, 4, 8)
    np.testing.assert_allclose(to_input([image], preprocess)[0], expected.transpose(2, 0, 1), rtol=1e-6)


@settings(max_examples=40)
@given(st.data())
def test_inputs_equal_the_arithmetic_to_the_last_bit(data):
    """Gray levels are looked up; here each is divided, and less its mean divided again, in float32."""
    channels = data.draw(st.sampled_from([1, 3, 4, 70]))
    several = st.tuples(*[st.floats(0.125, 200, width=32)] * channels)
    scale = data.draw(st.sampled_from([1 / 255, 1.0, 0.5]))
    mean, std = data.draw(st.just(()) | several), data.draw(st.just(()) | several)
    preprocess = Preprocess(
        channels=channels, color=data.draw(st.sampled_from(["rgb", "bgr"])), scale=scale, mean=mean, std=std
    )
    some = np.random.default_rng(0).integers(0, 256, (2, 5, 7, channels), np.uint8)
    order = slice(None, None, -1) if channels == 3 and preprocess.color == "rgb" else slice(None)
    expected = some[..., order].transpose(0, 3, 1, 2).astype(np.float32)
    expected = expected / np.float32(255) if scale == 1 / 255 else expected * np.float32(scale)
    for values, operation in ((mean, np.subtract), (std, np.divide)):
        if values:
            expected = operation(expected, np.array(values, np.float32)[:, None, None])
    assert np.array_equal(to_input(list(some), preprocess), expected)


def test_an_earlier_input_is_written_over_if_it_has_the_shape():
    some = [np.full((4, 6, 3), level, np.uint8) for level in (255, 0, 51)]
    first = to_input(some[:2])
    second = to_input(some[1:], out=first)
    assert second is first
    assert np.array_equal(second, to_input(some[1:]))
    third = to_input(some, out=first)
    assert third is not first
    assert np.array_equal(third, to_input(some))


@given(st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=3), st.integers(1, 5))
def test_points_of_several_images_are_mapped_as_those_of_each(shapes, pairs):
    fits = [compute_letterbox(shape, (320, 480)) for shape in shapes]
    dice = np.random.default_rng(pairs)
    points = (dice.random((9, 2 * pairs), np.float32) - 0.2) * 600
    owners = dice.integers(0, len(fits), 9)
    expected = np.stack([fits[owner].to_image(row) for owner, row in zip(owners, points, strict=True)])
    assert np.array_equal(map_to_images(points, owners, fits), expected)
    assert map_to_images(points[:0], owners[:0], fits).shape == (0, 2 * pairs)
