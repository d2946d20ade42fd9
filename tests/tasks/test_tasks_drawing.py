"""Image grids in a notebook: one JPEG per image, with alternative text."""

import base64
import re

import cv2
import numpy as np

from trtkit.tasks.base import ENLARGED_HEIGHT, HEIGHT, ImageGrid


def plain(height, width, color):
    return np.full((height, width, 3), color, np.uint8)


def shown(grid):
    found = re.findall(r'base64,([^"]+)', grid._repr_html_())
    return [cv2.imdecode(np.frombuffer(base64.b64decode(one), np.uint8), cv2.IMREAD_COLOR) for one in found]


def test_every_image_is_shown_with_its_colors_the_right_way_round():
    grid = ImageGrid(images=(plain(40, 60, (250, 0, 0)), plain(50, 20, (0, 0, 250))), captions=("blue", "red"))
    first, second = shown(grid)
    assert first.shape == (40, 60, 3)
    assert second.shape == (50, 20, 3)
    assert np.abs(first.astype(int) - (250, 0, 0)).max() < 8
    assert np.abs(second.astype(int) - (0, 0, 250)).max() < 8


def test_large_images_are_made_smaller_and_small_ones_stay():
    grid = ImageGrid(images=(plain(4 * HEIGHT, 2 * HEIGHT, 9), plain(10, 10, 9)), captions=("", ""))
    large, small = shown(grid)
    assert large.shape == (ENLARGED_HEIGHT, ENLARGED_HEIGHT // 2, 3)
    assert small.shape == (10, 10, 3)


def test_words_stand_for_each_image():
    grid = ImageGrid(images=(plain(9, 9, 9),), captions=("2 of 'a' & <b>",))
    assert 'alt="2 of &#39;a&#39; &amp; &lt;b&gt;"' in grid._repr_html_()
    assert ">2 of &#39;a&#39; &amp; &lt;b&gt;</figcaption>" in grid._repr_html_()
    assert repr(grid) == "ImageGrid of 1\n  2 of 'a' & <b>"


def test_two_grids_are_shown_beside_each_other():
    one, other = (ImageGrid(images=(plain(9, 9, value),), captions=(str(value),)) for value in (9, 99))
    both = one + other
    assert both.captions == ("9", "99")
    assert [int(image.mean()) for image in both.images] == [9, 99]
