from __future__ import annotations

import cv2
import numpy as np
import pytest
import yaml

from trtkit.data import Dataset, open_dataset
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
    assert "downloads" in str(caught.value)


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


def test_folder_without_one_yaml(folder):
    with pytest.raises(DataError) as caught:
        open_dataset(folder, task="detect")
    assert (caught.value.code, caught.value.fields["count"]) == ("data-yaml-ambiguous", 0)


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
