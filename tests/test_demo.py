"""The embedded models and images are complete, small and labeled."""

import subprocess
from collections import Counter
from pathlib import Path

import cv2
import pytest
from raising import raises

import trtkit
from trtkit import demo
from trtkit.calibration.sampling import select_calibration_images
from trtkit.data import open_dataset
from trtkit.errors import RecipeError

ROOT = Path(__file__).resolve().parents[1]
TASKS = ("detect", "segment", "pose", "obb", "classify")
COUNTS = {"detect": (64, 400), "segment": (48, 64), "pose": (48, 64), "obb": (48, 64), "classify": (50, 100)}
"""Images of "train" and "val"."""


def open_embedded(task):
    return open_dataset(demo.data_path(task), task=task)


def measure_files(pattern):
    return sum(path.stat().st_size for path in demo.model_path().parent.rglob(pattern))


def test_all_five_tasks_have_a_model_and_images():
    assert tuple(COUNTS) == demo.EMBEDDED_TASKS == TASKS
    assert demo.models_and_data() == {task: (demo.model_path(task), demo.data_path(task)) for task in TASKS}


@pytest.mark.parametrize("task", TASKS)
def test_the_model_and_the_images_of_a_task_fit_together(task):
    model, data = trtkit.load(demo.model_path(task)), open_embedded(task)
    assert model.task == task
    assert dict(data.names) == dict(model.names) == {number: str(number) for number in range(10)}
    for split, count in zip(("train", "val"), COUNTS[task], strict=True):
        paths = data.images(split)
        assert len(paths) == count
        assert all(cv2.imread(str(path)).shape[2] == 3 for path in paths)
        # A label file for each image; rows that do not fit the task or lie outside the image are errors.
        labels = [data.labels(path) for path in paths]
        assert {int(number) for label in labels for number in label.classes} == set(model.names)
    train, val = ({path.read_bytes() for path in data.images(split)} for split in ("train", "val"))
    assert not train & val


@pytest.mark.parametrize("task", [task for task in TASKS if task != "classify"])
def test_every_image_has_a_label_file_and_no_label_file_is_left_over(task):
    folder = demo.data_path(task).parent
    for split in ("train", "val"):
        images, labels = (
            {path.stem for path in (folder / kind / split).iterdir() if path.suffix in (".jpg", ".txt")}
            for kind in ("images", "labels")
        )
        assert images == labels


def test_the_digits_of_classify_are_balanced():
    data = open_embedded("classify")
    for split, count in {"train": 5, "val": 10}.items():
        classes = [data.labels(path).classes.item() for path in data.images(split)]
        assert Counter(classes) == dict.fromkeys(range(10), count)


def test_the_second_detector_has_both_heads():
    path = demo.model_path(family="yolo26")
    assert path != demo.model_path()
    for end2end in (False, True):
        model = trtkit.load(path, end2end=end2end)
        assert (model.task, len(model.names)) == ("detect", 10)


def test_models_take_12_mb_and_images_6_mb():
    assert measure_files("*.pt") <= 12_000_000
    assert measure_files("*.jpg") <= 6_000_000
    assert measure_files("*.txt") <= 1_000_000


@pytest.mark.parametrize("task", demo.EMBEDDED_TASKS)
def test_calibration_without_data_takes_the_embedded_images_and_warns(task):
    with pytest.warns(UserWarning, match="example set"):
        dataset, split, chosen = select_calibration_images(
            None, task=task, split=None, calibration_images=3, fraction=1.0, seed=0, channels=3
        )
    assert (dataset.path, split, len(chosen)) == (demo.data_path(task), "train", 3)


@pytest.mark.parametrize("take", [demo.data_path, demo.model_path])
def test_an_unknown_task_is_refused(take):
    with raises(RecipeError, "demo-task-unknown", value="depth", names=TASKS):
        take("depth")


@pytest.mark.parametrize(("task", "family"), [("pose", "yolo26"), ("detect", "yolov8")])
def test_a_family_without_that_task_is_refused(task, family):
    with raises(RecipeError, "demo-family-unknown", value=family, task=task):
        demo.model_path(task, family=family)


def test_git_and_so_the_wheel_takes_every_file():
    files = [str(path) for path in demo.model_path().parent.rglob("*") if "__pycache__" not in path.parts]
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    ignored = subprocess.run(
        ["git", "check-ignore", "--", *files], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ignored.stdout == ""
