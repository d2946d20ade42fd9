"""open_dataset: what `data=` takes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import yaml
from data_folders import IMAGE, names_of, write_data_yaml
from raising import raises

from trtkit.data import open_dataset
from trtkit.errors import DataError


def test_open_twice_and_folder_with_one_yaml(folder):
    write_data_yaml(folder)
    dataset = open_dataset(folder, task="detect")
    assert open_dataset(dataset, task="detect") is dataset
    assert open_dataset(dataset, task="segment").task == "segment"


@pytest.mark.parametrize(("where", "root"), [("data.yaml", None), ("configs/set.yaml", ".."), ("a/b.yaml", "../")])
def test_path_is_taken_from_the_yaml_files_folder(folder, where, root, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    path = write_data_yaml(folder, where, **({} if root is None else {"path": root}))
    assert len(open_dataset(path, task="detect").images("train")) == 2


def test_absolute_root(folder, tmp_path_factory):
    path = write_data_yaml(tmp_path_factory.mktemp("far"), path=str(folder))
    assert len(open_dataset(path, task="detect").images("train")) == 2


def test_root_one_folder_too_high(folder):
    path = write_data_yaml(folder, train="../images/train")
    assert len(open_dataset(path, task="detect").images("train")) == 2


def test_validation_means_val(folder):
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump({"validation": "images/val", "nc": 2}))
    assert len(open_dataset(path, task="detect").images("val")) == 2


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        ({"names": ["a", "b"]}, {0: "a", 1: "b"}),
        ({"names": {1: "b", 0: "a"}}, {0: "a", 1: "b"}),
        ({"names": None, "nc": 2}, {0: "class_0", 1: "class_1"}),
        ({"names": ["a", "b"], "nc": 2.0}, {0: "a", 1: "b"}),
        ({"names": [1, True]}, {0: "1", 1: "True"}),
    ],
)
def test_names(folder, keys, names):
    assert open_dataset(write_data_yaml(folder, **keys), task="detect").names == names


def test_pose_keys(folder):
    path = write_data_yaml(folder, kpt_shape=[4, 3], flip_idx=[1, 0, 3, 2], kpt_oks_sigmas=[0.1, 0.1, 0.2, 0.2])
    dataset = open_dataset(path, task="pose")
    assert dataset.kpt_shape == (4, 3)
    assert dataset.flip_idx == (1, 0, 3, 2)
    assert dataset.sigmas == (0.1, 0.1, 0.2, 0.2)


@pytest.mark.parametrize(
    ("keys", "code", "fields"),
    [
        ({"names": None}, "data-names-missing", {}),
        ({"names": ["a"], "nc": 2}, "data-names-count", {"nc": 2, "names": 1}),
        ({"names": None, "nc": "many"}, "data-nc-invalid", {"value": "many"}),
        ({"names": {0: "a", 2: "b"}}, "data-names-not-numbered", {"numbers": (0, 2)}),
        ({"names": {"a": 0}}, "data-names-not-numbered", {}),
        ({"names": "a"}, "data-names-invalid", {"value": "a"}),
        ({"train": 3}, "data-split-invalid", {"split": "train", "value": 3}),
        ({"train": None, "val": None}, "data-splits-missing", {}),
        ({"kpt_shape": [4]}, "data-kpt-shape-invalid", {"value": [4]}),
        ({"kpt_shape": [4, 3], "kpt_oks_sigmas": [0.1]}, "data-sigmas-count", {"sigmas": 1, "keypoints": 4}),
    ],
)
def test_descriptions_that_contradict_themselves(folder, keys, code, fields):
    with pytest.raises(DataError) as caught:
        open_dataset(write_data_yaml(folder, **keys), task="detect")
    assert caught.value.code == code
    assert fields.items() <= caught.value.fields.items()


def test_pose_needs_kpt_shape(folder):
    with pytest.raises(DataError) as caught:
        open_dataset(write_data_yaml(folder), task="pose")
    assert caught.value.code == "data-kpt-shape-missing"


def test_a_bare_name_is_not_downloaded():
    with pytest.raises(DataError) as caught:
        open_dataset("coco.yaml", task="detect")
    assert caught.value.code == "data-yaml-missing"
    assert caught.value.fields["path"].name == "coco.yaml"


def test_download_script_is_never_run(folder):
    mark = folder / "ran"
    path = write_data_yaml(folder, val="images/absent", download=f"open({str(mark)!r}, 'w')")
    with pytest.raises(DataError) as caught:
        open_dataset(path, task="detect").images("val")
    assert caught.value.code == "data-split-path-missing"
    assert not mark.exists()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a: [1", "data-yaml-invalid"),
        ("- 1", "data-yaml-not-mapping"),
        ("", "data-yaml-not-mapping"),
        ("!!python/name:os.system", "data-yaml-invalid"),
    ],
)
def test_invalid_yaml(tmp_path, text, code):
    path = tmp_path / "data.yaml"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        open_dataset(path, task="detect")
    assert (caught.value.code, caught.value.fields["path"]) == (code, path)


def test_folder_without_one_yaml(tmp_path):
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path, task="detect")
    assert (caught.value.code, caught.value.fields["count"]) == ("data-yaml-ambiguous", 0)
    write_data_yaml(tmp_path)
    write_data_yaml(tmp_path, "other.yaml")
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path, task="detect")
    assert (caught.value.code, caught.value.fields["count"]) == ("data-yaml-ambiguous", 2)


def test_unknown_task(folder):
    with pytest.raises(DataError) as caught:
        open_dataset(write_data_yaml(folder), task="depth")
    assert caught.value.code == "data-task-unknown"


def test_no_class_folders(tmp_path):
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path / "imagenet", task="classify")
    assert caught.value.code == "data-folder-missing"
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path, task="classify")
    assert caught.value.code == "data-splits-missing"
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path, task="classify")
    assert caught.value.code == "data-class-folders-missing"


# Images without labels


@pytest.fixture
def images(folder):
    """The folder of `folder`'s training images with other files among them."""
    (folder / "images" / "train" / "notes.txt").write_text("no image")
    (folder / "images" / "train" / ".DS_Store").write_bytes(b"")
    return folder / "images" / "train"


def open_images(data, **more):
    return open_dataset(data, task=more.pop("task", "detect"), needs_labels=False, **more)


@pytest.mark.parametrize(
    "data",
    [
        lambda path: path,
        lambda path: str(path),
        lambda path: path / "*.png",
        lambda path: str(path.parent / "tr*"),
        lambda path: str(path.parent.parent / "**" / "train" / "?.png"),
        lambda path: [path / "1.png", str(path / "0.png")],
        lambda path: (str(path / "0.*"), path / "1.png", path / "1.png"),
        lambda path: [path],
    ],
)
@pytest.mark.parametrize("task", ["detect", "classify", "pose"])
def test_images_without_labels(images, data, task):
    dataset = open_images(data(images), task=task)
    assert not dataset.labeled
    assert dataset.default_split == "images"
    assert names_of(dataset.images("images")) == ["train/0.png", "train/1.png"]
    assert open_dataset(dataset, task=task, needs_labels=False) is dataset
    # What the data set names as its source opens the same images.
    again = open_images(dataset.source, task="segment")
    assert again.images("images") == dataset.images("images")
    assert again.hash("images") == dataset.hash("images")


def test_one_image_and_a_list_of_paths_in_a_file(images):
    assert names_of(open_images(images / "1.png").images("images")) == ["train/1.png"]
    (images / "notes.txt").write_text("1.png\n")
    assert names_of(open_images(images / "notes.txt").images("images")) == ["train/1.png"]


def test_home_folder(images, monkeypatch):
    monkeypatch.setenv("HOME", str(images))
    assert len(open_images("~/*.png").images("images")) == 2


def test_a_data_set_stays_one_without_need_of_labels(folder):
    write_data_yaml(folder)
    assert open_images(folder).labeled
    assert open_images(folder / "data.yaml").default_split == "train"


def test_hash_is_of_the_contents(images):
    before = open_images(images).hash("images")
    (images.parent.parent / "labels" / "train" / "0.txt").write_text("")
    assert open_images(images).hash("images") == before
    (images / "0.png").write_bytes(IMAGE + b" ")
    assert open_images(images).hash("images") != before


@pytest.mark.parametrize("task", ["detect", "classify"])
def test_labels_are_needed(images, task):
    for data in (images, [images / "0.png", images / "1.png"]):
        with raises(DataError, "data-labels-needed", count=2):
            open_dataset(data, task=task)
        with raises(DataError, "data-labels-needed", count=2):
            open_dataset(open_images(data, task=task), task=task)
    with raises(DataError, "data-labels-needed"):
        open_images(images, task=task).labels(images / "0.png")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ("nowhere.png", "data-path-missing"),
        (["images/train/0.png", "nowhere"], "data-path-missing"),
        ("images/*/*.jpg", "data-images-none"),
        ([], "data-images-none"),
        (["labels/train", "images/train"], "data-images-none"),
        (["images/train/0.png", "labels/train/0.yaml"], "data-not-an-image"),
        ("labels/train", "data-yaml-ambiguous"),
        ("nowhere", "data-yaml-missing"),
    ],
)
def test_sources_without_images(folder, monkeypatch, data, code):
    monkeypatch.chdir(folder)
    (folder / "labels/train/0.yaml").write_text("")
    for path in (folder / "labels/train").glob("*.yaml" if data == "labels/train" else "nothing"):
        path.unlink()
    with raises(DataError, code):
        open_images(data)


# Channels


def write_pages(folder, count):
    path = folder / "images" / "train" / "0.tiff"
    path.parent.mkdir(parents=True)
    path.write_bytes(
        cv2.imencodemulti(".tiff", [np.full((8, 8), page, np.uint8) for page in range(count)])[1].tobytes()
    )
    return path


def test_channels_come_from_the_yaml_file_and_agree_with_the_model(folder):
    assert open_dataset(write_data_yaml(folder), task="detect").channels == 3
    assert open_dataset(write_data_yaml(folder), task="detect", channels=1).channels == 1
    path = write_data_yaml(folder, channels=4)
    assert open_dataset(path, task="detect").channels == 4
    dataset = open_dataset(path, task="detect", channels=4)
    assert open_dataset(dataset, task="detect", channels=4) is dataset
    for data in (path, dataset):
        with raises(DataError, "data-channels-mismatch", value=4, expected=3):
            open_dataset(data, task="detect", channels=3)


@pytest.mark.parametrize("value", [0, "three", True, 1.5])
def test_channels_that_are_no_number(folder, value):
    with raises(DataError, "data-channels-invalid", value=value):
        open_dataset(write_data_yaml(folder, channels=value), task="detect")


def test_images_with_other_channels_than_the_model_are_refused(tmp_path):
    path = write_pages(tmp_path, 4)
    for data in (write_data_yaml(tmp_path), tmp_path / "images" / "train"):
        for channels in (1, 3, 4):
            dataset = open_images(data, channels=channels)
            assert dataset.images(dataset.default_split) == (path,)
        dataset = open_images(data, channels=5)
        with raises(DataError, "image-channels", path=path, value=4, expected=5):
            dataset.images(dataset.default_split)
