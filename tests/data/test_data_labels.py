from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trtkit.data.labels import label_path, read_labels
from trtkit.errors import DataError


def read(tmp_path, text, **options):
    path = tmp_path / "0.txt"
    path.write_text(text, encoding="utf-8")
    return read_labels(path, **{"task": "detect", "classes": 3, **options})


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("a/images/val/1.jpg", "a/labels/val/1.txt"),
        ("images/x/images/1.b.png", "images/x/labels/1.b.txt"),
        ("a/photos/1.jpg", "a/photos/1.txt"),
        ("a/images.jpg", "a/images.txt"),
    ],
)
def test_label_path(image, label):
    assert label_path(Path(image)) == Path(label)


def test_boxes(tmp_path):
    labels = read(tmp_path, "2 0.5 0.5 0.2 0.4\n0 0.1 0.2 0.2 0.4\n").to_pixels((100, 200))
    assert labels.classes.tolist() == [2, 0]
    np.testing.assert_allclose(labels.boxes, [[80, 30, 120, 70], [0, 0, 40, 40]], atol=1e-4)
    assert labels.keypoints is None
    assert labels.segments == ()


def test_polygon_in_a_detect_set_gives_its_box(tmp_path):
    labels = read(tmp_path, "1 0.1 0.2 0.5 0.3 0.3 0.9\n1 0.5 0.5 0.5 0.5\n")
    np.testing.assert_allclose(labels.boxes, [[0.1, 0.2, 0.5, 0.9], [0.25, 0.25, 0.75, 0.75]], atol=1e-6)


def test_segments(tmp_path):
    labels = read(tmp_path, "1 0.1 0.2 0.5 0.3 0.3 0.9\n", task="segment").to_pixels((10, 20))
    np.testing.assert_allclose(labels.segments[0], [[2, 2], [10, 3], [6, 9]], atol=1e-5)
    np.testing.assert_allclose(labels.boxes, [[2, 2, 10, 9]], atol=1e-5)


def test_keypoints_with_visibility(tmp_path):
    labels = read(tmp_path, "0 .5 .5 .2 .2 .4 .4 2 .6 .6 0\n", task="pose", kpt_shape=(2, 3)).to_pixels((100, 10))
    np.testing.assert_allclose(labels.keypoints, [[[4, 40, 2], [6, 60, 0]]], atol=1e-5)
    np.testing.assert_allclose(labels.boxes, [[4, 40, 6, 60]], atol=1e-5)


def test_keypoints_without_visibility_are_visible_unless_negative(tmp_path):
    labels = read(tmp_path, "0 .5 .5 .2 .2 .4 .4 -1 -1\n", task="pose", kpt_shape=(2, 2))
    assert labels.keypoints[0, :, 2].tolist() == [1, 0]


def test_detect_reads_the_boxes_of_a_pose_set(tmp_path):
    labels = read(tmp_path, "0 .5 .5 .2 .2 .4 .4 2 .6 .6 0\n", kpt_shape=(2, 3))
    np.testing.assert_allclose(labels.boxes, [[0.4, 0.4, 0.6, 0.6]], atol=1e-6)


def test_corners(tmp_path):
    labels = read(tmp_path, "1 .2 .1 .4 .2 .3 .4 .1 .3\n", task="obb").to_pixels((10, 10))
    np.testing.assert_allclose(labels.corners, [[[2, 1], [4, 2], [3, 4], [1, 3]]], atol=1e-5)
    np.testing.assert_allclose(labels.boxes, [[1, 1, 4, 4]], atol=1e-5)


def test_repeated_rows_are_left_out(tmp_path):
    labels = read(tmp_path, "1 .5 .5 .2 .2\n\n0 .5 .5 .2 .2\n1 0.50 .5 .2 .2\n")
    assert labels.classes.tolist() == [1, 0]
    assert labels.duplicates == 1


@pytest.mark.parametrize(("task", "shape"), [("detect", None), ("segment", None), ("pose", (4, 3)), ("obb", None)])
def test_missing_and_empty_files_mean_no_objects(tmp_path, task, shape):
    for labels in (
        read_labels(tmp_path / "absent.txt", task=task, classes=3, kpt_shape=shape),
        read(tmp_path, "", task=task, kpt_shape=shape),
    ):
        assert len(labels) == 0
        assert labels.to_pixels((5, 5)).boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("text", "options", "code", "fields"),
    [
        ("3 .5 .5 .1 .1", {}, "class-unknown", {"line": 1, "value": 3, "classes": 3}),
        ("-1 .5 .5 .1 .1", {}, "class-unknown", {"value": -1}),
        ("0.5 .5 .5 .1 .1", {}, "class-unknown", {"value": 0.5}),
        ("0 .5 .5 .1 .1\n0 .5 .5 .1", {}, "columns", {"line": 2, "columns": 4, "task": "detect"}),
        ("0 .5 .5 .1 .1 .1", {}, "columns", {"columns": 6}),
        ("0 .5 .5 .1 .1", {"task": "segment"}, "columns", {"columns": 5, "task": "segment"}),
        ("0 .5 .5 .1 .1", {"task": "obb"}, "columns", {"columns": 5, "task": "obb"}),
        ("0 .5 .5 .1 .1", {"task": "pose", "kpt_shape": (4, 3)}, "columns", {"columns": 5, "task": "pose"}),
        ("0 a .5 .1 .1", {}, "not-numeric", {"line": 1}),
        ("0 nan .5 .1 .1", {}, "not-finite", {"line": 1}),
        ("0 320 240 64 64", {}, "outside-image", {"line": 1}),
        ("0 .5 .5 -.1 .1", {}, "outside-image", {"line": 1}),
        ("0 .1 .1 1.2 .5 .3 .3", {"task": "segment"}, "outside-image", {"line": 1}),
    ],
)
def test_invalid_rows(tmp_path, text, options, code, fields):
    with pytest.raises(DataError) as caught:
        read(tmp_path, text, **options)
    assert caught.value.code == f"data-label-{code}"
    assert caught.value.fields["path"].name == "0.txt"
    assert fields.items() <= caught.value.fields.items()


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "0.txt"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DataError) as caught:
        read_labels(path, task="detect", classes=1)
    assert caught.value.code == "data-labels-unreadable"
