"""The embedded model and pictures are whole, small and labelled."""

import subprocess
from pathlib import Path

import cv2
import pytest
import yaml

from trtkit import demo

ROOT = Path(__file__).resolve().parents[1]
SPLITS = {"train": 64, "val": 40}


def pictures(split):
    return sorted((demo.data_path().parent / "images" / split).glob("*.jpg"))


@pytest.mark.parametrize(("split", "count"), SPLITS.items())
def test_each_split_has_its_pictures_and_a_label_for_each(split, count):
    found = pictures(split)
    assert len(found) == count
    labels = demo.data_path().parent / "labels" / split
    assert {path.stem for path in found} == {path.stem for path in labels.glob("*.txt")}


def test_the_pictures_take_at_most_5_mb():
    assert sum(path.stat().st_size for split in SPLITS for path in pictures(split)) <= 5_000_000


def test_no_picture_is_in_both_splits():
    assert not {path.read_bytes() for path in pictures("train")} & {path.read_bytes() for path in pictures("val")}


@pytest.mark.parametrize("split", SPLITS)
def test_every_picture_decodes_and_every_box_lies_in_it(split):
    names = yaml.safe_load(demo.data_path().read_text())["names"]
    seen = set()
    for path in pictures(split):
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


def test_the_model_is_the_shared_one(shared):
    assert demo.model_path().read_bytes() == (shared / "models" / "yolo11n.pt").read_bytes()


def test_git_and_so_the_wheel_takes_every_file():
    files = [str(path) for path in demo.model_path().parent.rglob("*") if "__pycache__" not in path.parts]
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    ignored = subprocess.run(
        ["git", "check-ignore", "--", *files], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ignored.stdout == ""
