"""A task that is defined here, outside the package, with labels of its own."""

from __future__ import annotations

import numpy as np
import pytest

from trtkit.data import open_dataset
from trtkit.data.labels import LABEL_FORMATS, BoxLabels, CornerLabels
from trtkit.models import TASKS
from trtkit.tasks import get_task, register_task
from trtkit.tasks.base import REGISTERED_TASKS
from trtkit.tasks.detect import Detect


class PointLabels(BoxLabels):
    """Rows of `class x y`; a point is a box of 0.1."""

    def accepts(self, columns, kpt_shape):
        return columns == 3

    def find_outside(self, row, kpt_shape):
        return 1 if (row[1:] > 1).any() else None

    def parse(self, rows, kpt_shape):
        points = np.array([row[1:3] for row in rows], np.float32).reshape(-1, 2)
        return {"boxes": np.concatenate((points - 0.05, points + 0.05), 1)}


@pytest.fixture
def point_task():
    @register_task
    class Point(Detect):
        name = "test_point"
        label_format = PointLabels()

    yield Point
    del REGISTERED_TASKS[Point.name], LABEL_FORMATS[Point.name]


def test_a_registered_task_is_found_and_reads_its_labels(point_task, tmp_path):
    assert isinstance(get_task("test_point"), point_task)
    for folder in ("images", "labels"):
        (tmp_path / folder / "val").mkdir(parents=True)
    (tmp_path / "images" / "val" / "0.png").write_bytes(b"")
    (tmp_path / "labels" / "val" / "0.txt").write_text("1 0.5 0.25\n")
    (tmp_path / "data.yaml").write_text("val: images/val\nnames: [a, b]\n")
    dataset = open_dataset(tmp_path, task="test_point")
    labels = dataset.labels(dataset.images("val")[0])
    assert labels.classes.tolist() == [1]
    np.testing.assert_allclose(labels.boxes, [[0.45, 0.2, 0.55, 0.3]], atol=1e-6)


def test_every_task_has_a_class_and_a_label_format():
    assert {get_task(name).name for name in TASKS} == set(TASKS) == set(LABEL_FORMATS)
    assert isinstance(LABEL_FORMATS["obb"], CornerLabels)
