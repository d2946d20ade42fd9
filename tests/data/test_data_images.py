from __future__ import annotations

import cv2
import numpy as np
import pytest

from trtkit.data import read_image
from trtkit.errors import DataError


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def encoded(image, suffix):
    return cv2.imencode(suffix, image)[1].tobytes()


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff"])
def test_lossless_images_come_back(tmp_path, image, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encoded(image, suffix))
    np.testing.assert_array_equal(read_image(path), image)


def test_gray_becomes_three_channels(tmp_path, image):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(image[..., 0], ".png"))
    assert read_image(path).shape == (40, 60, 3)


def test_jpeg_with_something_appended_is_whole(tmp_path, image):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(image, ".jpg") + b"appended by a camera")
    assert read_image(path).shape == (40, 60, 3)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
def test_cut_short(tmp_path, image, suffix, share):
    data = encoded(image, suffix)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError) as caught:
        read_image(path)
    assert caught.value.code in {"image-truncated", "image-undecodable"}


def test_thumbnail_does_not_hide_a_cut(tmp_path, image):
    thumbnail = encoded(image[:8, :8], ".jpg")
    data = encoded(image, ".jpg")
    header = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    path = tmp_path / "a.jpg"
    path.write_bytes(data[:2] + header + data[2:])
    assert read_image(path).shape == (40, 60, 3)
    path.write_bytes((data[:2] + header + data[2:])[:-30])
    with pytest.raises(DataError) as caught:
        read_image(path)
    assert caught.value.code == "image-truncated"


@pytest.mark.parametrize(("data", "code"), [(b"", "image-empty"), (b"no image at all", "image-undecodable")])
def test_no_image(tmp_path, data, code):
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_image(path)
    assert (caught.value.code, caught.value.fields["path"]) == (code, path)


def test_missing(tmp_path):
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "a.jpg")
    assert caught.value.code == "image-unreadable"
