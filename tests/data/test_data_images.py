from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raising import raises

from trtkit.data import list_images, open_dataset, read_image, resize_to_input, to_input
from trtkit.data.image_files import check_channels, read_display_image, to_display
from trtkit.data.images import PADDING
from trtkit.errors import DataError
from trtkit.models import Preprocess


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


def test_bytes_that_fill_up_before_a_marker_are_passed(tmp_path, image):
    """FF may be repeated before any marker's code. Source: ITU-T T.81, B.1.1.2."""
    data = encoded(image, ".jpg")
    path = tmp_path / "a.jpg"
    path.write_bytes(data[:-2] + b"\xff\xff\xff\xd9")
    assert read_image(path).shape == (40, 60, 3)
    path.write_bytes(data[:-2] + b"\xff\xff\xff\x00")
    with raises(DataError, "image-truncated"):
        read_image(path)


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


# Channels: 1 is gray, 3 is color, any other number is the file as it is


def gray_pages(count, shape=(20, 30), dtype=np.uint8):
    return list(np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (count, *shape)).astype(dtype))


def write(path, encode, content):
    path.write_bytes(encode(path.suffix, content)[1].tobytes())
    return path


def test_one_channel_is_gray_levels(tmp_path, image):
    path = write(tmp_path / "a.png", cv2.imencode, image)
    gray = read_image(path, 1)
    assert gray.shape == (40, 60, 1)
    # ITU-R BT.601, the weights of OpenCV's gray.
    expected = image @ np.array([0.114, 0.587, 0.299])
    assert np.abs(gray[..., 0] - expected).max() < 2


@pytest.mark.parametrize("count", [2, 4, 10])
def test_pages_of_a_gray_tiff_are_channels(tmp_path, count):
    pages = gray_pages(count)
    path = write(tmp_path / "a.tiff", cv2.imencodemulti, pages)
    np.testing.assert_array_equal(read_image(path, count), np.stack(pages, 2))
    # A scanned document in color or gray is its first page.
    np.testing.assert_array_equal(read_image(path, 1)[..., 0], pages[0])
    np.testing.assert_array_equal(read_image(path), np.repeat(pages[0][..., None], 3, 2))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_fourth_band_is_kept_for_four_channels_only(tmp_path, suffix):
    image = np.random.default_rng(0).integers(0, 256, (8, 9, 4), np.uint8)
    path = write(tmp_path / f"a{suffix}", cv2.imencode, image)
    np.testing.assert_array_equal(read_image(path, 4), image)
    np.testing.assert_array_equal(read_image(path), image[..., :3])


def test_16_bits_keep_the_high_byte(tmp_path):
    pages = gray_pages(4, dtype=np.uint16)
    path = write(tmp_path / "a.tif", cv2.imencodemulti, pages)
    np.testing.assert_array_equal(read_image(path, 4), np.stack(pages, 2) // 256)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_arrays(tmp_path, dtype):
    array = np.stack(gray_pages(5, dtype=dtype), 2)
    np.save(tmp_path / "a.npy", array)
    expected = array if dtype == np.uint8 else array // 256
    np.testing.assert_array_equal(read_image(tmp_path / "a.npy", 5), expected)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (np.zeros((4, 4, 2), np.float32), "image-values"),
        (np.zeros((4, 4, 2, 2), np.uint8), "image-values"),
        (np.zeros((0, 4, 2), np.uint8), "image-values"),
        (np.array([{"a": 1}]), "image-undecodable"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, content, code):
    np.save(tmp_path / "a.npy", content, allow_pickle=True)
    with raises(DataError, code, path=tmp_path / "a.npy"):
        read_image(tmp_path / "a.npy", 2)


def test_wrong_number_of_channels(tmp_path, image):
    path = write(tmp_path / "a.png", cv2.imencode, image)
    with raises(DataError, "image-channels", path=path, value=3, expected=4):
        read_image(path, 4)
    np.save(tmp_path / "a.npy", image)
    with raises(DataError, "image-channels", value=3, expected=1):
        read_image(tmp_path / "a.npy", 1)


def test_channels_are_checked_on_the_first_image_that_can_be_read(tmp_path, image):
    bad = tmp_path / "a.png"
    bad.write_bytes(b"no image")
    path = write(tmp_path / "b.png", cv2.imencode, image)
    check_channels([bad, path], 3)
    check_channels([bad, path], 1)
    with raises(DataError, "image-channels", path=path, value=3, expected=5):
        check_channels([bad, path], 5)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 10])
def test_display_image_has_three_channels(tmp_path, channels):
    pages = gray_pages(channels)
    path = write(tmp_path / "a.tiff", cv2.imencodemulti, pages)
    shown = read_display_image(path)
    expected = pages[:3] if channels >= 3 else pages[:1] * 3
    np.testing.assert_array_equal(shown, np.stack(expected, 2))
    np.testing.assert_array_equal(shown, to_display(np.stack(pages, 2)))


def test_arrays_beside_images_are_their_cache(tmp_path, image):
    np.save(tmp_path / "a.npy", image)
    np.save(tmp_path / "b.npy", image)
    assert [path.name for path in list_images(tmp_path)] == ["a.npy", "b.npy"]
    write(tmp_path / "a.png", cv2.imencode, image)
    assert [path.name for path in list_images(tmp_path)] == ["a.png"]


@pytest.mark.parametrize("kind", ["letterbox", "stretch", "center_crop"])
@pytest.mark.parametrize("channels", [1, 2, 4, 10, 70, 130])
def test_channels_are_preprocessed_one_by_one(kind, channels):
    image = np.random.default_rng(0).integers(0, 256, (30, 50, channels), np.uint8)
    preprocess = Preprocess(kind=kind, channels=channels)
    resized, transform = resize_to_input(image, (64, 64), preprocess)
    batch = to_input([resized], preprocess)
    assert batch.shape == (1, channels, 64, 64)
    # In the file's order: each channel is what it is alone.
    for channel in (0, channels - 1):
        one = Preprocess(kind=kind, channels=1)
        alone, same = resize_to_input(np.ascontiguousarray(image[..., channel : channel + 1]), (64, 64), one)
        assert same == transform
        np.testing.assert_array_equal(batch[0, channel], to_input([alone], one)[0, 0])
    if kind == "letterbox":
        assert (resized[0] == PADDING).all()


TAILS = {
    "a motion photo's video": b"\x00\x00\x00\x18ftypmp42" + bytes(range(256)) * 40,
    "markers": b"\xff\xd9\xff\xda",
    "scans without end": b"\xff\xda" * 50,
    "many zeros": bytes(20_000),
}


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("tail", TAILS)
def test_bytes_after_an_image_do_not_matter(suffix: str, tail: str, image: np.ndarray, tmp_path: Path) -> None:
    content = encoded(image, suffix)
    (tmp_path / f"plain{suffix}").write_bytes(content)
    (tmp_path / f"longer{suffix}").write_bytes(content + TAILS[tail])
    np.testing.assert_array_equal(read_image(tmp_path / f"longer{suffix}"), read_image(tmp_path / f"plain{suffix}"))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@given(share=st.floats(0.1, 0.999))
@settings(max_examples=40)
def test_an_image_cut_anywhere_is_truncated(
    suffix: str, share: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = encoded(np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8), suffix)
    path = tmp_path_factory.mktemp("cut") / f"cut{suffix}"
    # Without its last 12 bytes a PNG has no IEND, without its last 2 a JPEG no end marker.
    path.write_bytes(content[: min(int(len(content) * share), len(content) - 12)])
    with pytest.raises(DataError) as caught:
        read_image(path)
    assert caught.value.code in {"image-truncated", "image-undecodable"}


def test_hidden_files_and_folders_are_no_data(image: np.ndarray, tmp_path: Path) -> None:
    for name in ("a.png", "sub/b.png", ".c.png", ".ipynb_checkpoints/d.png", "sub/.trash/e.png"):
        (tmp_path / "train" / "cat" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / "cat" / name).write_bytes(encoded(image, ".png"))
    hidden = tmp_path / "train" / ".ipynb_checkpoints" / "f.png"
    hidden.parent.mkdir()
    hidden.write_bytes(encoded(image, ".png"))
    assert [path.name for path in list_images(tmp_path / "train" / "cat")] == ["a.png", "b.png"]
    dataset = open_dataset(tmp_path, task="classify")
    assert dataset.names == {0: "cat"}
    assert [path.name for path in dataset.images("train")] == ["a.png", "b.png"]


def test_a_hidden_folder_above_the_data_does_not_matter(image: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / ".cache" / "images"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(encoded(image, ".png"))
    assert list_images(folder) == (folder / "a.png",)
