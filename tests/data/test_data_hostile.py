"""Damaged and hostile data files end in a `DataError`, soon and with a short message."""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from raising import raises
from task_models import drawn_set

from trtkit.calibration.image_hashes import fingerprint_images
from trtkit.calibration.sampling import sample_stratified
from trtkit.calibration.tensorrt_cache import read_cache_ranges
from trtkit.data import open_dataset, read_image
from trtkit.data.image_files import MAX_PIXELS, _count_pixels, list_images
from trtkit.data.image_lists import list_source_images
from trtkit.data.labels import label_path, read_labels
from trtkit.errors import CalibrationError, DataError
from trtkit.progress import Reporter

SPLITS = "train: images\nval: images\n"


def aliases(level: str, first: str) -> str:
    """Ten levels of nine aliases each: 3.5 billion values."""
    levels = [f"a0: &a0 {first}\n"]
    levels += [f"a{i}: &a{i} {level.format(','.join([f'*a{i - 1}'] * 9))}\n" for i in range(1, 10)]
    return "".join(levels)


LISTS, MERGED = aliases("[{}]", "[x]"), aliases("{{<<: [{}]}}", "{x: 1}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(encode(np.zeros((8, 8, 3), np.uint8), ".png"))
    return tmp_path


def encode(image: np.ndarray, suffix: str) -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        *((LISTS + SPLITS.replace(f"{key}: images\n", "") + f"{key}: *a9\n", "data-yaml-invalid")
          for key in ("names", "nc", "path", "train", "kpt_shape")),
        (MERGED + SPLITS, "data-yaml-invalid"),
        (SPLITS + "names: &a [*a]", "data-yaml-invalid"),
        (SPLITS + "nc: 1\nx: 2001-99-99", "data-yaml-invalid"),
        (SPLITS + "nc: !!int x", "data-yaml-invalid"),
        (SPLITS + "nc: " + "9:" * 5000 + "9", "data-yaml-invalid"),
        (SPLITS + "names: !!python/object/apply:os.getcwd []", "data-yaml-invalid"),
        ("[" * 5000, "data-yaml-invalid"),
        ("{a: " * 5000, "data-yaml-invalid"),
        ("a: 1\n---\nb: 2\n", "data-yaml-invalid"),
        (SPLITS + "names: {[1, 2]: a}", "data-yaml-invalid"),
        ("", "data-yaml-not-mapping"),
        ("#" * (3 << 20), "data-yaml-unreadable"),
        *((SPLITS + f"nc: {value}", "data-nc-invalid")
          for value in ("100000000", ".inf", ".nan", "-1", "0", "1.5", "true", "9" * 4000, "[1]")),
        (SPLITS + "names: !!binary aGVsbG8=", "data-names-invalid"),
        (SPLITS + "names: [[a], b]", "data-names-invalid"),
        (SPLITS + 'names: ["\\ud800"]', "data-yaml-invalid"),
        (SPLITS + "names: {0.5: a}", "data-names-not-numbered"),
        (SPLITS + "names: {true: a, 0: b}", "data-names-not-numbered"),
        (SPLITS + "names: {0: a, '0': b, 1: c}", "data-names-not-numbered"),
        *((SPLITS + f"nc: 1\nkpt_shape: [2, 3]\nflip_idx: {value}", "data-flip-idx-invalid")
          for value in ("3", "[0]", "[0, 2]", "[0, -1]", "[0, 0.5]", "a")),
        *((SPLITS + f"nc: 1\nkpt_oks_sigmas: {value}", "data-sigmas-invalid")
          for value in ("5", "[.nan]", "[-1]", "[a]", "{a: 1}")),
        *((SPLITS + f"nc: 1\nkpt_shape: {value}", "data-kpt-shape-invalid")
          for value in ("[1000000000, 3]", "[0, 3]", "[true, 3]", "[[1], 3]", "3")),
        ('train: "a\\0b"\nnc: 1', "data-split-invalid"),
        (SPLITS + 'path: "a\\0b"\nnc: 1', "data-path-invalid"),
        (SPLITS + "path: [a]\nnc: 1", "data-path-invalid"),
        (f"train: {'a' * 300}\nnc: 1", "data-split-path-missing"),
        (SPLITS + f"path: {'a' * 300}\nnc: 1", "data-split-path-missing"),
        (SPLITS + "nc: 1\nchannels: .inf", "data-channels-invalid"),
    ],
)  # fmt: skip
def test_data_yaml(folder: Path, text: str, code: str) -> None:
    path = folder / "data.yaml"
    path.write_text(text, encoding="utf-8")
    with raises(DataError, code) as caught:
        open_dataset(path, task="detect")
    assert len(str(caught.value)) < 2500
    assert len(repr(caught.value.fields)) < 20_000


def test_a_few_aliases_are_no_attack(folder: Path) -> None:
    (folder / "data.yaml").write_text("train: &images images\nval: *images\nnames: [a]\n")
    assert open_dataset(folder, task="detect").images("val") == (folder / "images/a.png",)


def special_files(folder: Path) -> list[Path]:
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("/dev/zero")
    return [folder / "pipe", Path("/dev/zero"), Path("/dev/null"), folder / "link"]


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices of Unix")
def test_pipes_and_devices_are_refused(folder: Path) -> None:
    for special in special_files(folder):
        (folder / "data.yaml").write_text(f"train: {special}\nnc: 1\n")
        with raises(DataError, "data-list-unreadable"):
            open_dataset(folder / "data.yaml", task="detect").images("train")
        with raises(DataError, "data-yaml-unreadable"):
            open_dataset(special, task="detect")
        with raises(DataError, "image-unreadable"):
            read_image(special)
        with raises(DataError, "data-labels-unreadable"):
            read_labels(special, task="detect", classes=1)
        with raises(CalibrationError, "calibration-cache-unreadable"):
            read_cache_ranges(special, "no model")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has names that are not UTF-8")
@pytest.mark.parametrize("name", [b"images/caf\xe9.png", b"\xff/a.png"])
def test_paths_that_are_not_utf8(folder: Path, name: bytes) -> None:
    odd = folder / os.fsdecode(name)
    odd.parent.mkdir(exist_ok=True)
    (folder / "images/a.png").rename(odd)
    (folder / "data.yaml").write_text("train: images\nval: images\nnc: 1\n")
    sources = [odd, [odd], odd.parent] + ([folder / "data.yaml"] if odd.parent.name == "images" else [])
    for source in sources:
        data = open_dataset(source, task="detect", needs_labels=False)
        with raises(DataError, "data-path-encoding", path=odd, count=1):
            data.images(data.default_split)
    # To read and to list alone, as `predict` does, a name need not be UTF-8.
    assert list_source_images(odd) == (odd,)
    assert read_image(odd).shape == (8, 8, 3)


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "a" * 5000, "x/" + "b" * 300 + "/*.jpg", "a" * 300 + ".jpg"])
def test_names_that_no_file_can_have(name: str) -> None:
    for task in ("detect", "classify"):
        with pytest.raises(DataError):
            open_dataset(name, task=task, needs_labels=False)
    with pytest.raises(DataError):
        list_source_images([name])
    with raises(DataError, "image-unreadable"):
        read_image(name)


@pytest.mark.parametrize("content", [None, b"TRT-8600-MinMaxCalibration\n\xff\xfe: 3c010a14\n"])
def test_calibration_cache_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.cache"
    if content is not None:
        path.write_bytes(content)
    for one in (path, tmp_path, "b" * 300, "a\0b"):
        with raises(CalibrationError, "calibration-cache-unreadable"):
            read_cache_ranges(one, "no model")


# Labels.


@pytest.mark.parametrize(
    ("row", "code", "value"),
    [
        ("0 -0.05 0.5 0.1 0.1", "data-label-outside-image", -0.05),
        ("0 0.5 0.5 0.1 -0.001", "data-label-outside-image", -0.001),
        ("0 320 0.5 0.1 0.1", "data-label-outside-image", 320),
        ("0 0.1 0.1 0.5 0.1 0.5 1.2", "data-label-outside-image", 1.2),
        ("7 0.5 0.5 0.1 0.1", "data-label-class-unknown", 7),
        ("-1 0.5 0.5 0.1 0.1", "data-label-class-unknown", -1),
        ("1e30 0.5 0.5 0.1 0.1", "data-label-class-unknown", None),
        ("0 1e300 0.5 0.1 0.1", "data-label-not-finite", None),
        ("0 nan 0.5 0.1 0.1", "data-label-not-finite", None),
        ("0 a 0.5 0.1 0.1", "data-label-not-numeric", None),
        ("0 0.5", "data-label-columns", None),
        ("0 " + "1 " * 100_001, "data-label-columns", None),
    ],
)
def test_label_errors_say_the_value(tmp_path: Path, row: str, code: str, value: float | None) -> None:
    path = tmp_path / "a.txt"
    path.write_text(row + "\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with raises(DataError, code) as caught:
            read_labels(path, task="detect", classes=3)
    if value is not None:
        assert caught.value.fields["value"] == pytest.approx(value)
        assert f"{value:g}" in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("content", [b"0 1 1 1 1\n" * 100_001, b"0" * (17 << 20), b"\xff\xfe"])
def test_label_files_beyond_any_image(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with raises(DataError, "data-labels-unreadable"):
        read_labels(tmp_path / "a.txt", task="detect", classes=1)


# Images.


@pytest.mark.parametrize(
    "suffix", [".avif", ".bmp", ".gif", ".jp2", ".jpg", ".pgm", ".png", ".ppm", ".ras", ".tiff", ".webp"]
)
def test_pixels_are_read_from_the_header(suffix: str) -> None:
    shape = (40, 56) if suffix == ".pgm" else (40, 56, 3)
    try:
        data = encode(np.zeros(shape, np.uint8), suffix)
    except cv2.error:
        pytest.skip(f"this OpenCV does not write {suffix}")
    expected = 40 * 56
    assert _count_pixels(data) == expected


def huge_png() -> bytes:
    data = encode(np.zeros((8, 8, 3), np.uint8), ".png")
    return data[:16] + struct.pack(">II", 30_000, 30_000) + data[24:]


def huge_bmp() -> bytes:
    data = encode(np.zeros((8, 8, 3), np.uint8), ".bmp")
    return data[:18] + struct.pack("<ii", 30_000, -30_000) + data[26:]


def huge_jpeg() -> bytes:
    data = encode(np.zeros((8, 8, 3), np.uint8), ".jpg")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", 30_000, 30_000) + data[at + 4 :]


def many_pages() -> bytes:
    """One page of 10,000 x 10,000 after another, each of 18 bytes: 300 million pixels."""
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, 10_000, 0) for tag in (256, 257))
    data = b"II*\0" + struct.pack("<I", 8)
    for page in range(10):
        last = 0 if page == 9 else 8 + (page + 1) * 30
        data += struct.pack("<H", 2) + entries + struct.pack("<I", last)
    return data


@pytest.mark.parametrize(
    ("suffix", "data"),
    [(".png", huge_png()), (".bmp", huge_bmp()), (".jpg", huge_jpeg()), (".tif", many_pages()),
     (".ppm", b"P6\n# a\n99999 99999\n255\n\0"), (".png", b"P5 99999 99999 255\n\0")],
)  # fmt: skip
def test_decompression_bombs_are_refused(tmp_path: Path, suffix: str, data: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    with raises(DataError, "image-too-large", limit=MAX_PIXELS):
        read_image(path)


@pytest.mark.parametrize("shape", ["(99999, 99999, 3)", "(-1, 3)", "9" * 5000, "(" * 500, "(1.5, 2)", "None"])
def test_arrays_whose_header_lies(tmp_path: Path, shape: str) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"abc")
    with raises(DataError, "image-undecodable"):
        read_image(tmp_path / "a.npy")


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".npy"])
def test_12_bits_in_16_bit_files_warn_once_for_a_folder(tmp_path: Path, suffix: str) -> None:
    for index, top in enumerate((4095, 4000)):
        image = np.linspace(0, top, 64 * 3, dtype=np.uint16).reshape(8, 8, 3)
        path = tmp_path / f"{index}{suffix}"
        if suffix == ".npy":
            np.save(path, image)
        else:
            path.write_bytes(encode(image, suffix))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for path in sorted(tmp_path.iterdir()):
            read_image(path)
    assert ["12 bits" in str(one.message) for one in caught] == [True]


def test_16_bits_in_16_bit_files_do_not_warn(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(np.full((8, 8, 3), 65535, np.uint16), ".png"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "a.png").max() == 255


def test_what_opencv_reads_is_listed_and_the_rest_is_named(tmp_path: Path) -> None:
    data = encode(np.zeros((8, 8, 3), np.uint8), ".jpg")
    for name in ("a.jpg", "b.mpo", "c.JFIF", "d.heic", "e.dng", "f.cr2", "g.mp4", "h.svg", "notes.txt", "i.json"):
        (tmp_path / name).write_bytes(data)
    passed_over: list[Path] = []
    assert [path.name for path in list_images(tmp_path, passed_over)] == ["a.jpg", "b.mpo", "c.JFIF", "d.heic", "e.dng"]
    assert [path.name for path in passed_over] == ["f.cr2", "g.mp4", "h.svg"]
    with pytest.warns(UserWarning, match=r"3 files .* f\.cr2, g\.mp4, h\.svg"):
        list_source_images(tmp_path)
    assert read_image(tmp_path / "b.mpo").shape == (8, 8, 3)


@pytest.mark.parametrize("suffix", [".bmp", ".jp2", ".tiff", ".webp"])
def test_opencv_logs_nothing_to_stderr(tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = encode(np.zeros((64, 64, 3), np.uint8), suffix)
    for index, damaged in enumerate((data[: len(data) // 2], data[:9] + b"\xff" * 40, b"\xff\x4f\xff\x51" + data)):
        (tmp_path / f"{index}{suffix}").write_bytes(damaged)
        with contextlib.suppress(DataError):
            read_image(tmp_path / f"{index}{suffix}")
    assert capfd.readouterr().err == ""


# Where `path:` is looked for.


@pytest.mark.parametrize("where", ["yaml", "working", "datasets"])
@pytest.mark.parametrize("base", ["set", "./set"])
def test_path_is_tried_in_three_folders(folder: Path, monkeypatch: pytest.MonkeyPatch, where: str, base: str) -> None:
    folders = {name: folder / name for name in ("yaml", "working", "datasets")}
    for one in folders.values():
        one.mkdir()
    settings = folder / "config/Ultralytics/settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(f'{{"datasets_dir": "{folders["datasets"].as_posix()}"}}')
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(folder / "config"))
    monkeypatch.chdir(folders["working"])
    path = folders["yaml"] / "data.yaml"
    path.write_text(f"path: {base}\n{SPLITS}names: [a]\n")
    with raises(DataError, "data-split-path-missing") as caught:
        open_dataset(path, task="detect")
    assert len(caught.value.fields["tried"]) == 3
    target = folders[where] / "set/images"
    target.mkdir(parents=True)
    (target / "a.png").write_bytes((folder / "images/a.png").read_bytes())
    assert open_dataset(path, task="detect").images("val") == (target / "a.png",)
    settings.write_text("[")
    if where != "datasets":
        assert open_dataset(path, task="detect").images("val") == (target / "a.png",)


def test_list_lines_relative_to_the_working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "lists").mkdir()
    (folder / "lists/val.txt").write_text("images/a.png\n./images/a.png\n")
    (folder / "data.yaml").write_text("train: lists/val.txt\nval: lists/val.txt\nnc: 1\n")
    with raises(DataError, "data-images-missing", count=2):
        open_dataset(folder, task="detect").images("val")
    monkeypatch.chdir(folder)
    assert open_dataset(folder, task="detect").images("val") == (folder / "images/a.png",)


def test_a_bad_label_row_leaves_its_image_to_calibration_without_labels(tmp_path: Path) -> None:
    """Stratified sampling and the examination of a data set go on, and name the image once."""
    data = open_dataset(drawn_set(tmp_path / "set", "detect"), task="detect")
    paths = data.images("train")
    expected = data.labels(paths[1]).classes.tolist()
    label_path(paths[0]).write_text("0 0.5 0.5 0.2 -3\n")
    with pytest.warns(UserWarning, match="counted without labels") as warned:
        sample = sample_stratified(data, paths, count=len(paths) - 1)
    assert len(sample) == len(paths) - 1
    assert len(warned) == 1
    with pytest.warns(UserWarning, match="counted without labels"):
        found = fingerprint_images(paths, data, Reporter(), stage="examine")
    assert len(found.paths) == len(paths)
    assert found.counts[0].sum() == 0
    assert found.counts[1].sum() == len(expected)
