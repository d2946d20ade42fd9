"""What `check.py` takes as equal, and what it reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_triton import fresh_modules

import trtkit.deployment

FILES = Path(trtkit.deployment.__file__).parent / "files"
TOLERANCE, CONF = {"box": 1.0, "score": 0.02}, 0.25


@pytest.fixture
def compare() -> Iterator[Callable[..., list[str]]]:
    for modules in fresh_modules(FILES, "yolo", "check"):
        yield modules["check"].compare


def rows(*objects: tuple[float, float, int], **parts: Any) -> dict[str, Any]:
    """Objects of 10 x 10 pixels as (left, score, class)."""
    boxes = [[left, 0.0, left + 10, 10.0] for left, _, _ in objects]
    return {"boxes": boxes, "scores": [one[1] for one in objects], "classes": [one[2] for one in objects], **parts}


@pytest.mark.parametrize(
    ("expected", "found", "problems"),
    [
        ([(0, 0.9, 1)], [(0, 0.9, 1)], []),
        ([(0, 0.9, 1)], [(0.9, 0.885, 1)], []),
        ([], [], []),
        ([(0, 0.9, 1)], [(1.5, 0.9, 1)], ["a box of class 1 is 1.500 pixels off"]),
        ([(0, 0.9, 1)], [(0, 0.87, 1)], ["a score of class 1 is 0.0300 off"]),
        ([(0, 0.9, 1)], [], ["class 1 at 0, 0, 10, 10 was not found"]),
        ([], [(0, 0.9, 1)], ["1 objects more than expected"]),
        ([(0, 0.9, 1)], [(0, 0.9, 2)], ["class 1 at 0, 0, 10, 10 was not found", "1 objects more than expected"]),
        # Far from where it was expected it is another object.
        ([(0, 0.9, 1)], [(21, 0.9, 1)], ["class 1 at 0, 0, 10, 10 was not found", "1 objects more than expected"]),
        # Scores within the tolerance of the threshold may come or go.
        ([(0, 0.26, 1)], [], []),
        ([], [(0, 0.26, 1)], []),
        ([(0, 0.28, 1)], [], ["class 1 at 0, 0, 10, 10 was not found"]),
        ([], [(0, 0.28, 1)], ["1 objects more than expected"]),
        # One object found stands for one expected.
        ([(0, 0.9, 1), (0.5, 0.9, 1)], [(0, 0.9, 1)], ["class 1 at 0, 0, 10, 10 was not found"]),
        ([(0, 0.9, 1), (0.5, 0.9, 1)], [(0.5, 0.9, 1), (0, 0.9, 1)], []),
    ],
)
def test_objects(compare: Any, expected: list[Any], found: list[Any], problems: list[str]) -> None:
    assert compare(rows(*expected), rows(*found), TOLERANCE, CONF) == problems


@pytest.mark.parametrize(("name", "off", "problem"), [("keypoints", 1.9, 0), ("keypoints", 2.1, 1), ("xywhr", 2.1, 1)])
def test_keypoints_and_oriented_boxes(compare: Any, name: str, off: float, problem: int) -> None:
    """Visibility and angle are no coordinates."""
    parts = {"keypoints": [[[1.0, 2.0, 0.9], [3.0, 4.0, 0.1]]], "xywhr": [[5.0, 5.0, 10.0, 10.0, 0.1]]}[name]
    other = np.array(parts)
    other[..., -1] += 9
    other.reshape(-1)[1] += off
    found = compare(rows((0, 0.9, 1), **{name: parts}), rows((0, 0.9, 1), **{name: other}), TOLERANCE, CONF)
    assert found == [f"{name} are {off:.3f} pixels off"] * problem


@pytest.mark.parametrize(("columns", "problem"), [(10, False), (9, False), (8, True), (0, True)])
def test_masks(compare: Any, columns: int, problem: bool) -> None:
    """Of 10 x 10 pixels, in an image of 20; the tolerance is 0.1, five times that of scores."""
    mask = np.zeros((10, 20), bool)
    mask[:, :columns] = True
    expected = rows((0, 0.9, 1), masks=[[0, 100, 100]])
    found = compare(expected, rows((0, 0.9, 1), masks=[mask]), TOLERANCE, CONF)
    assert found == [f"a mask has an IoU of {columns / 10:.3f} with the expected one"] * problem
    assert compare(expected, rows((0, 0.9, 1), masks=[mask]), {**TOLERANCE, "mask": 1.0}, CONF) == []


def test_class_probabilities(compare: Any) -> None:
    expected = {"probabilities": [0.2, 0.8]}
    assert compare(expected, {"probabilities": np.array([0.21, 0.79])}, TOLERANCE, CONF) == []
    found = compare(expected, {"probabilities": np.array([0.25, 0.75])}, TOLERANCE, CONF)
    assert found == ["class probabilities differ by 0.0500"]
