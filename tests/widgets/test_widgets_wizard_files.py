"""Suggestions of files, and what a look at a data path tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from trtkit import demo
from trtkit.widgets.wizard.files import DATA_SUFFIXES, MODEL_SUFFIXES, find_data_problem, find_files


def test_files_are_found_nearest_first(tmp_path: Path) -> None:
    for name in ("b.pt", "a/deep/c.onnx", "a/x.PT", ".hidden/d.pt", "env/lib/e.pt", "a/deep/er/f.pt", "data.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "env" / "pyvenv.cfg").touch()
    assert find_files(MODEL_SUFFIXES, tmp_path) == ("b.pt", "a/x.PT", "a/deep/c.onnx")
    assert find_files(DATA_SUFFIXES, tmp_path) == ("data.yaml",)
    assert find_files(MODEL_SUFFIXES, tmp_path / "nowhere") == ()


@pytest.mark.parametrize("task", demo.EMBEDDED_TASKS)
def test_the_embedded_images_fit_their_task(task: str) -> None:
    assert find_data_problem(str(demo.data_path(task)), task) == ""


@pytest.mark.parametrize(
    ("data", "task", "word"),
    [
        ("detect", "classify", "class folders"),
        ("classify", "detect", "class folders"),
        ("detect", "pose", "kpt_shape"),
        ("pose", "segment", "kpt_shape"),
    ],
)
def test_images_of_another_task(data: str, task: str, word: str) -> None:
    assert word in find_data_problem(str(demo.data_path(data)), task)


def test_paths(tmp_path: Path) -> None:
    assert "nowhere" in find_data_problem(str(tmp_path / "nowhere"), "detect")
    assert find_data_problem(str(tmp_path / "*.jpg"), "detect") == ""
    (tmp_path / "bad.yaml").write_text("names: [")
    assert "bad.yaml" in find_data_problem(str(tmp_path / "bad.yaml"), "detect")
    for layout in ("train/images", "train/labels", "val/images"):
        (tmp_path / layout).mkdir(parents=True)
    assert find_data_problem(str(tmp_path), "detect") == ""
    (tmp_path / "train" / "cat").mkdir()
    assert "classify" in find_data_problem(str(tmp_path), "detect")


@pytest.mark.parametrize("data", ["a" * 300, "~no-such-user/data.yaml"])
def test_names_that_no_path_can_have_are_a_sentence(data: str) -> None:
    problem = find_data_problem(data, "detect")
    assert problem.startswith(data[:80])
    assert problem.count(data[:80]) == 1
