from __future__ import annotations

import cv2
import numpy as np
import pytest
import yaml
from raising import raises

from trtkit.data import Dataset, open_dataset
from trtkit.data.dataset import describe_images
from trtkit.errors import DataError

IMAGE = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()


@pytest.fixture
def folder(tmp_path):
    """images/{train,val}/{0,1}.png with one box each."""
    for split in ("train", "val"):
        for number in range(2):
            image = tmp_path / "images" / split / f"{number}.png"
            label = tmp_path / "labels" / split / f"{number}.txt"
            for path in (image, label):
                path.parent.mkdir(parents=True, exist_ok=True)
            image.write_bytes(IMAGE)
            label.write_text(f"{number} 0.5 0.5 0.5 0.5\n")
    return tmp_path


def described(folder, name="data.yaml", **keys):
    path = folder / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(yaml.safe_dump({"train": "images/train", "val": "images/val", "names": ["a", "b"], **keys}))
    return path


def names_of(paths):
    return [f"{path.parent.name}/{path.name}" for path in paths]


def test_folder_splits(folder):
    dataset = open_dataset(described(folder, path="."), task="detect")
    assert names_of(dataset.images("val")) == ["val/0.png", "val/1.png"]
    labels = dataset.labels(dataset.images("val")[1])
    assert labels.classes.tolist() == [1]
    np.testing.assert_allclose(labels.boxes, [[0.25, 0.25, 0.75, 0.75]])


def test_open_twice_and_folder_with_one_yaml(folder):
    described(folder)
    dataset = open_dataset(folder, task="detect")
    assert open_dataset(dataset, task="detect") is dataset
    assert open_dataset(dataset, task="segment").task == "segment"


@pytest.mark.parametrize(("where", "root"), [("data.yaml", None), ("configs/set.yaml", ".."), ("a/b.yaml", "../")])
def test_path_is_taken_from_the_yaml_files_folder(folder, where, root, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    path = described(folder, where, **({} if root is None else {"path": root}))
    assert len(open_dataset(path, task="detect").images("train")) == 2


def test_absolute_root(folder, tmp_path_factory):
    path = described(tmp_path_factory.mktemp("far"), path=str(folder))
    assert len(open_dataset(path, task="detect").images("train")) == 2


def test_root_one_folder_too_high(folder):
    path = described(folder, train="../images/train")
    assert len(open_dataset(path, task="detect").images("train")) == 2


def test_split_as_list_and_as_text_file(folder):
    (folder / "val.txt").write_text("./images/val/1.png\n\nimages/train/0.png\n")
    path = described(folder, train=["images/train", "images/val"], val="val.txt")
    dataset = open_dataset(path, task="detect")
    assert names_of(dataset.images("train")) == ["train/0.png", "train/1.png", "val/0.png", "val/1.png"]
    assert names_of(dataset.images("val")) == ["train/0.png", "val/1.png"]
    assert dataset.labels(dataset.images("val")[0]).classes.tolist() == [0]


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
    assert open_dataset(described(folder, **keys), task="detect").names == names


def test_pose_keys(folder):
    path = described(folder, kpt_shape=[4, 3], flip_idx=[1, 0, 3, 2], kpt_oks_sigmas=[0.1, 0.1, 0.2, 0.2])
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
        open_dataset(described(folder, **keys), task="detect")
    assert caught.value.code == code
    assert fields.items() <= caught.value.fields.items()


def test_pose_needs_kpt_shape(folder):
    with pytest.raises(DataError) as caught:
        open_dataset(described(folder), task="pose")
    assert caught.value.code == "data-kpt-shape-missing"


def test_a_bare_name_is_not_downloaded():
    with pytest.raises(DataError) as caught:
        open_dataset("coco.yaml", task="detect")
    assert caught.value.code == "data-yaml-missing"
    assert caught.value.fields["path"].name == "coco.yaml"


def test_download_script_is_never_run(folder):
    mark = folder / "ran"
    path = described(folder, val="images/absent", download=f"open({str(mark)!r}, 'w')")
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
    described(tmp_path)
    described(tmp_path, "other.yaml")
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path, task="detect")
    assert (caught.value.code, caught.value.fields["count"]) == ("data-yaml-ambiguous", 2)


def test_missing_split_names_the_others(folder):
    with pytest.raises(DataError) as caught:
        open_dataset(described(folder), task="detect").images("test")
    assert caught.value.code == "data-split-missing"
    assert caught.value.fields["names"] == ("train", "val")


def test_missing_folder_and_empty_folder(folder):
    (folder / "none").mkdir()
    dataset = open_dataset(described(folder, train="absent", val="none"), task="detect")
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
        open_dataset(described(folder, val="val.txt"), task="detect").images("val")
    assert caught.value.code == "data-images-missing"
    assert [path.name for path in caught.value.fields["missing"]] == ["7.png", "8.png"]
    assert caught.value.fields["count"] == 3


def test_no_labels_at_all(folder):
    for label in (folder / "labels" / "val").iterdir():
        label.unlink()
    dataset = open_dataset(described(folder), task="detect")
    assert dataset.require_labels(dataset.images("train")) == 0
    with pytest.raises(DataError) as caught:
        dataset.require_labels(dataset.images("val"))
    assert caught.value.code == "data-labels-missing"
    assert caught.value.fields["count"] == 2
    assert caught.value.fields["expected"].name == "0.txt"


def test_some_without_labels_are_counted(folder):
    (folder / "labels" / "val" / "0.txt").unlink()
    dataset = open_dataset(described(folder), task="detect")
    assert dataset.require_labels(dataset.images("val")) == 1
    assert len(dataset.labels(dataset.images("val")[0])) == 0


def test_unknown_task(folder):
    with pytest.raises(DataError) as caught:
        open_dataset(described(folder), task="depth")
    assert caught.value.code == "data-task-unknown"


def test_hash_follows_content_not_place(folder, tmp_path_factory):
    import shutil

    first = open_dataset(described(folder), task="detect")
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
    described(folder)
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
    assert open_dataset(described(folder), task="detect").channels == 3
    assert open_dataset(described(folder), task="detect", channels=1).channels == 1
    path = described(folder, channels=4)
    assert open_dataset(path, task="detect").channels == 4
    dataset = open_dataset(path, task="detect", channels=4)
    assert open_dataset(dataset, task="detect", channels=4) is dataset
    for data in (path, dataset):
        with raises(DataError, "data-channels-mismatch", value=4, expected=3):
            open_dataset(data, task="detect", channels=3)


@pytest.mark.parametrize("value", [0, "three", True, 1.5])
def test_channels_that_are_no_number(folder, value):
    with raises(DataError, "data-channels-invalid", value=value):
        open_dataset(described(folder, channels=value), task="detect")


def test_images_with_other_channels_than_the_model_are_refused(tmp_path):
    path = write_pages(tmp_path, 4)
    for data in (described(tmp_path), tmp_path / "images" / "train"):
        for channels in (1, 3, 4):
            dataset = open_images(data, channels=channels)
            assert dataset.images(dataset.default_split) == (path,)
        dataset = open_images(data, channels=5)
        with raises(DataError, "image-channels", path=path, value=4, expected=5):
            dataset.images(dataset.default_split)


@pytest.mark.parametrize(
    ("count", "split", "text"),
    [(512, "train", "512 images of train"), (1, "images", "1 image without labels")],
)
def test_description_of_images(count, split, text):
    assert describe_images(count, split) == text
