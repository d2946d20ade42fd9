"""The embedded models and images are complete, small and labeled."""

import subprocess
from collections import Counter
from pathlib import Path

import cv2
import pytest
import yaml

import trtkit
from trtkit import demo
from trtkit.calibration.sampling import select_calibration_images
from trtkit.data import open_dataset

ROOT = Path(__file__).resolve().parents[1]
SPLITS = {"train": 64, "val": 40}


def images(split):
    return sorted((demo.data_path().parent / "images" / split).glob("*.jpg"))


@pytest.mark.parametrize(("split", "count"), SPLITS.items())
def test_each_split_has_its_images_and_a_label_for_each(split, count):
    paths = images(split)
    assert len(paths) == count
    labels = demo.data_path().parent / "labels" / split
    assert {path.stem for path in paths} == {path.stem for path in labels.glob("*.txt")}


def test_the_images_take_at_most_5_mb():
    assert sum(path.stat().st_size for split in SPLITS for path in images(split)) <= 5_000_000


def test_no_image_is_in_both_splits():
    assert not {path.read_bytes() for path in images("train")} & {path.read_bytes() for path in images("val")}


@pytest.mark.parametrize("split", SPLITS)
def test_every_image_decodes_and_every_box_lies_in_it(split):
    names = yaml.safe_load(demo.data_path().read_text())["names"]
    seen = set()
    for path in images(split):
        assert cv2.imread(str(path)).shape[2] == 3
        for line in (path.parents[2] / "labels" / split / f"{path.stem}.txt").read_text().splitlines():
            number, *box = line.split()
            x, y, width, height = map(float, box)
            assert x - width / 2 + 1e-6 >= 0
            assert x + width / 2 <= 1 + 1e-6
            assert y - height / 2 + 1e-6 >= 0
            assert y + height / 2 <= 1 + 1e-6
            seen.add(int(number))
    assert seen == set(names)


@pytest.mark.parametrize("task", demo.EMBEDDED_TASKS)
def test_the_model_of_a_task_is_the_shared_one(shared, task):
    path = demo.model_path(task)
    assert path.read_bytes() == (shared / "models" / path.name).read_bytes()


@pytest.mark.parametrize("task", demo.EMBEDDED_TASKS)
def test_the_model_and_the_images_of_a_task_fit_together(task):
    model = trtkit.load(demo.model_path(task))
    data = open_dataset(demo.data_path(task), task=task)
    assert model.task == task
    assert dict(data.names) == dict(model.names)
    for split in ("train", "val"):
        classes = [data.labels(path).classes.tolist() for path in data.images(split)]
        assert {number for numbers in classes for number in numbers} == set(model.names)


def test_the_digits_of_classify_are_balanced_and_the_splits_are_disjoint():
    data = open_dataset(demo.data_path("classify"), task="classify")
    for split, count in {"train": 5, "val": 10}.items():
        classes = [data.labels(path).classes.item() for path in data.images(split)]
        assert Counter(classes) == dict.fromkeys(range(10), count)
    train, val = ({path.read_bytes() for path in data.images(split)} for split in ("train", "val"))
    assert not train & val


def test_a_folder_of_checkpoints_adds_the_tasks_it_has(tmp_path):
    assert list(demo.models_and_data()) == list(demo.models_and_data(tmp_path / "nothing")) == ["detect", "classify"]
    (tmp_path / "models").mkdir()
    (tmp_path / "data" / "scenes" / "pose").mkdir(parents=True)
    model, data = tmp_path / "models" / "yolo11n-pose.pt", tmp_path / "data" / "scenes" / "pose" / "data.yaml"
    model.touch()
    assert "pose" not in demo.models_and_data(tmp_path)
    data.touch()
    assert demo.models_and_data(tmp_path)["pose"] == (model, data)
    assert demo.models_and_data(tmp_path)["detect"] == (demo.model_path(), demo.data_path())


def test_the_shared_folder_has_all_five(shared):
    pairs = demo.models_and_data(shared)
    assert list(pairs) == ["detect", "segment", "pose", "obb", "classify"]
    assert all(path.exists() for pair in pairs.values() for path in pair)


def test_everything_embedded_takes_at_most_15_mb():
    assert sum(path.stat().st_size for path in demo.model_path().parent.rglob("*") if path.is_file()) <= 15_000_000


@pytest.mark.parametrize("task", demo.EMBEDDED_TASKS)
def test_calibration_without_data_takes_the_embedded_images_and_warns(task):
    with pytest.warns(UserWarning, match="example set"):
        dataset, split, chosen = select_calibration_images(
            None, task=task, split=None, calibration_images=3, fraction=1.0, seed=0, channels=3
        )
    assert (dataset.path, split, len(chosen)) == (demo.data_path(task), "train", 3)


def test_a_task_without_an_embedded_model_is_refused():
    with pytest.raises(trtkit.TrtkitError) as e:
        demo.data_path("segment")
    assert (e.value.code, e.value.fields["value"]) == ("demo-task-unknown", "segment")


def test_git_and_so_the_wheel_takes_every_file():
    files = [str(path) for path in demo.model_path().parent.rglob("*") if "__pycache__" not in path.parts]
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    ignored = subprocess.run(
        ["git", "check-ignore", "--", *files], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ignored.stdout == ""
