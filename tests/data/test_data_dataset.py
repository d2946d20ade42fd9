"""Splits, labels and hashes of an open data set."""

from __future__ import annotations

import numpy as np
import pytest
from data_folders import IMAGE, names_of, write_data_yaml

from trtkit.data import Dataset, open_dataset
from trtkit.data.dataset import describe_images
from trtkit.errors import DataError


def test_folder_splits(folder):
    dataset = open_dataset(write_data_yaml(folder, path="."), task="detect")
    assert names_of(dataset.images("val")) == ["val/0.png", "val/1.png"]
    labels = dataset.labels(dataset.images("val")[1])
    assert labels.classes.tolist() == [1]
    np.testing.assert_allclose(labels.boxes, [[0.25, 0.25, 0.75, 0.75]])


def test_split_as_list_and_as_text_file(folder):
    (folder / "val.txt").write_text("./images/val/1.png\n\nimages/train/0.png\n")
    path = write_data_yaml(folder, train=["images/train", "images/val"], val="val.txt")
    dataset = open_dataset(path, task="detect")
    assert names_of(dataset.images("train")) == ["train/0.png", "train/1.png", "val/0.png", "val/1.png"]
    assert names_of(dataset.images("val")) == ["train/0.png", "val/1.png"]
    assert dataset.labels(dataset.images("val")[0]).classes.tolist() == [0]


def test_missing_split_names_the_others(folder):
    with pytest.raises(DataError) as caught:
        open_dataset(write_data_yaml(folder), task="detect").images("test")
    assert caught.value.code == "data-split-missing"
    assert caught.value.fields["names"] == ("train", "val")


def test_missing_folder_and_empty_folder(folder):
    (folder / "none").mkdir()
    dataset = open_dataset(write_data_yaml(folder, train="absent", val="none"), task="detect")
    with pytest.raises(DataError) as caught:
        dataset.images("train")
    assert caught.value.code == "data-split-path-missing"
    assert caught.value.fields["path"].name == "absent"
    with pytest.raises(DataError) as caught:
        dataset.images("val")
    assert caught.value.code == "data-split-empty"


def test_missing_images_are_counted(folder):
    (folder / "val.txt").write_text("images/val/0.png\nimages/val/7.png\nimages/val/8.png\n")
    with pytest.raises(DataError) as caught:
        open_dataset(write_data_yaml(folder, val="val.txt"), task="detect").images("val")
    assert caught.value.code == "data-images-missing"
    assert [path.name for path in caught.value.fields["missing"]] == ["7.png", "8.png"]
    assert caught.value.fields["count"] == 3


def test_no_labels_at_all(folder):
    for label in (folder / "labels" / "val").iterdir():
        label.unlink()
    dataset = open_dataset(write_data_yaml(folder), task="detect")
    assert dataset.require_labels(dataset.images("train")) == 0
    with pytest.raises(DataError) as caught:
        dataset.require_labels(dataset.images("val"))
    assert caught.value.code == "data-labels-missing"
    assert caught.value.fields["count"] == 2
    assert caught.value.fields["expected"].name == "0.txt"


def test_some_without_labels_are_counted(folder):
    (folder / "labels" / "val" / "0.txt").unlink()
    dataset = open_dataset(write_data_yaml(folder), task="detect")
    assert dataset.require_labels(dataset.images("val")) == 1
    assert len(dataset.labels(dataset.images("val")[0])) == 0


def test_hash_follows_content_not_place(folder, tmp_path_factory):
    import shutil

    first = open_dataset(write_data_yaml(folder), task="detect")
    other = tmp_path_factory.mktemp("copy") / "set"
    shutil.copytree(folder, other)
    second = open_dataset(other / "data.yaml", task="detect")
    assert first.hash("val") == second.hash("val")
    assert first.hash("val") == first.hash_images(first.images("val"))
    assert first.hash_images(first.images("val")[:1]) != first.hash("val")
    before = second.hash("val")
    (other / "labels" / "val" / "0.txt").write_text("1 0.5 0.5 0.5 0.25\n")
    assert second.hash("val") != before
    (other / "labels" / "val" / "0.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    assert second.hash("val") == before


@pytest.fixture
def classes(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "ant"):
            path = tmp_path / split / name / "0.png"
            path.parent.mkdir(parents=True)
            path.write_bytes(IMAGE)
    return tmp_path


def test_class_folders(classes):
    dataset = open_dataset(classes, task="classify")
    assert isinstance(dataset, Dataset)
    assert dataset.names == {0: "ant", 1: "cat"}
    images = dataset.images("val")
    assert [dataset.labels(path).classes.tolist() for path in images] == [[0], [1]]
    assert dataset.require_labels(images) == 0
    before = dataset.hash("val")
    (classes / "val" / "cat").rename(classes / "val" / "bee")
    (classes / "train" / "cat").rename(classes / "train" / "bee")
    assert open_dataset(classes, task="classify").hash("val") != before


def test_class_that_train_lacks(classes):
    (classes / "val" / "cat").rename(classes / "val" / "dog")
    dataset = open_dataset(classes, task="classify")
    with pytest.raises(DataError) as caught:
        dataset.labels(classes / "val" / "dog" / "0.png")
    assert (caught.value.code, caught.value.fields["value"]) == ("data-class-unknown", "dog")
    with pytest.raises(DataError) as caught:
        dataset.labels(classes.parent / "0.png")
    assert caught.value.code == "data-image-outside"


@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb", "classify"])
def test_shared_scenes(shared, task):
    place = shared / "data" / "scenes" / task
    dataset = open_dataset(place if task == "classify" else place / "data.yaml", task=task)
    assert list(dataset.names.values()) == [str(number) for number in range(10)]
    images = dataset.images("val")
    if task != "classify":
        assert len(images) == 160
    labels = [dataset.labels(path) for path in images]
    assert all(len(one) for one in labels)
    assert max(one.boxes.max(initial=0) for one in labels) <= 1.01


@pytest.mark.parametrize(
    ("count", "split", "text"),
    [(512, "train", "512 images of train"), (1, "images", "1 image without labels")],
)
def test_description_of_images(count, split, text):
    assert describe_images(count, split) == text
