from __future__ import annotations

import cv2
import numpy as np
import pytest

from trtkit.data import read_picture
from trtkit.errors import DataError


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def encoded(picture, suffix):
    return cv2.imencode(suffix, picture)[1].tobytes()


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff"])
def test_lossless_pictures_come_back(tmp_path, picture, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encoded(picture, suffix))
    np.testing.assert_array_equal(read_picture(path), picture)


def test_grey_becomes_three_channels(tmp_path, picture):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(picture[..., 0], ".png"))
    assert read_picture(path).shape == (40, 60, 3)


def test_jpeg_with_something_appended_is_whole(tmp_path, picture):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(picture, ".jpg") + b"appended by a camera")
    assert read_picture(path).shape == (40, 60, 3)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
def test_cut_short(tmp_path, picture, suffix, share):
    data = encoded(picture, suffix)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match=r"cut short|decode"):
        read_picture(path)


def test_thumbnail_does_not_hide_a_cut(tmp_path, picture):
    thumbnail = encoded(picture[:8, :8], ".jpg")
    data = encoded(picture, ".jpg")
    header = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    path = tmp_path / "a.jpg"
    path.write_bytes(data[:2] + header + data[2:])
    assert read_picture(path).shape == (40, 60, 3)
    path.write_bytes((data[:2] + header + data[2:])[:-30])
    with pytest.raises(DataError, match="cut short"):
        read_picture(path)


@pytest.mark.parametrize(("data", "message"), [(b"", "empty"), (b"no picture at all", "decode")])
def test_no_picture(tmp_path, data, message):
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_picture(path)


def test_missing(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_picture(tmp_path / "a.jpg")
