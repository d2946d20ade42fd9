"""Object changes between two evaluations: gained and lost objects, false positives, and their drawing."""

from __future__ import annotations

import cv2
import numpy as np
import polars as pl
import pytest
from task_models import CannedRunner, drawn_set, noisy_outputs

from trtkit.comparison.object_changes import _draw_tag, draw_object_changes, find_object_changes
from trtkit.data import open_dataset
from trtkit.errors import DataError
from trtkit.evaluation.evaluation import evaluate
from trtkit.tasks.base import class_color
from trtkit.tasks.nms import box_iou


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return open_dataset(drawn_set(tmp_path_factory.mktemp("set"), "detect", count=24), task="detect")


@pytest.fixture(scope="module")
def fair(dataset):
    return evaluate(CannedRunner("detect", noisy_outputs(dataset, "detect", seed=0)), dataset)


@pytest.fixture(scope="module")
def worse(dataset):
    return evaluate(CannedRunner("detect", noisy_outputs(dataset, "detect", seed=0, shake=0.25)), dataset)


def test_object_changes_agree_with_the_frames(fair, worse):
    changes = find_object_changes(fair, worse, conf=0.3)
    # "score(B)" of a label is that of its match at similarity 0.5.
    before, after = (one.labels["score(B)"].fill_null(0) >= 0.3 for one in (fair, worse))
    assert len(changes.filter(change="lost")) == (before & ~after).sum()
    assert len(changes.filter(change="gained")) == (~before & after).sum()
    assert changes["score_drop"].is_sorted(descending=True)
    assert (changes.filter(pl.col("change").is_in(["lost", "false positive added"]))["score_drop"] > 0).all()
    for change, column, detections in (
        ("false positive added", "detection", worse.detections),
        ("false positive removed", "detection_reference", fair.detections),
    ):
        rows = changes.filter(change=change)
        assert len(rows)
        assert detections[rows[column].to_list()]["x1"].to_list() == rows["x1"].to_list()
    back = find_object_changes(worse, fair, conf=0.3)
    assert len(back.filter(change="lost")) == len(changes.filter(change="gained"))
    assert len(back.filter(change="false positive added")) == len(changes.filter(change="false positive removed"))
    assert not len(find_object_changes(fair, fair))


def test_object_changes_are_drawn_unless_the_image_is_missing(fair, worse):
    changes = find_object_changes(fair, worse)
    drawn = draw_object_changes(changes, fair, worse, limit=3)
    assert all(png.startswith(b"\x89PNG") for png in drawn["png"])
    gone = changes.with_columns(path=pl.lit("nowhere.png"))
    assert draw_object_changes(gone, fair, worse, limit=1)["png"].to_list() == [None]


def test_a_new_false_positive_has_the_class_of_the_label_it_overlaps(fair, worse):
    changes = find_object_changes(fair, worse, conf=0.3).filter(change="false positive added")
    names = dict(fair.per_class.select("class", "name").iter_rows())
    assert changes["label_class"].null_count() < len(changes)
    for row in changes.iter_rows(named=True):
        labels = fair.labels.filter(image=row["image"])
        overlap = box_iou(
            np.array([[row[name] for name in ("x1", "y1", "x2", "y2")]], np.float32),
            labels.select("x1", "y1", "x2", "y2").to_numpy().astype(np.float32),
        )[0]
        expected = names[labels["class"][int(overlap.argmax())]] if overlap.max() >= 0.5 else None
        assert row["label_class"] == expected


def test_a_panel_shows_the_label_in_white_and_the_detection_in_its_color(tmp_path):
    """One object at a known position: the drawn window is computed by hand."""
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((200, 200, 3), np.uint8))
    kinds = {"image": pl.Int32, "class": pl.Int32}

    class Side:
        per_class = pl.DataFrame({"class": [0], "name": ["bar"]}, schema={"class": pl.Int32, "name": pl.String})
        per_image = pl.DataFrame({"image": [0], "path": [str(tmp_path / "a.png")]})
        labels = pl.DataFrame(
            {"image": [0], "class": [0], "x1": [80.0], "y1": [80.0], "x2": [120.0], "y2": [120.0]},
            schema_overrides=kinds,
        )

        def __init__(self, scores):
            self.metrics = {"mAP50-95(B)": 0.5}
            count = len(scores)
            box = {"x1": [84.0] * count, "y1": [84.0] * count, "x2": [124.0] * count, "y2": [124.0] * count}
            self.detections = pl.DataFrame(
                {"image": [0] * count, "class": [0] * count, "score": scores, **box,
                 "matched(B)": [1] * count, "object(B)": [0] * count},
                schema_overrides={**kinds, "score": pl.Float32, "matched(B)": pl.UInt16, "object(B)": pl.Int32},
            )  # fmt: skip

    with_it, without = Side([0.9]), Side([])
    changes = find_object_changes(with_it, without)
    assert changes["change"].to_list() == ["lost"]
    assert changes["score_drop"].to_list() == pytest.approx([0.9])
    (png,) = draw_object_changes(changes, with_it, without)["png"]
    drawn = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert drawn.shape == (240, 240 + 6 + 240, 3)
    left, right = drawn[:, :240], drawn[:, 246:]
    # The window is 40 * (1 + 2 * 0.6) = 88 pixels from (56, 56) on, enlarged by 240 / 88.
    scale = 240 / 88
    top = round((80 - 56) * scale)
    blue, middle = class_color(0), round((100 - 56) * scale)
    for panel in (left, right):
        assert (panel[middle, top] > 200).all()
    edge = round((84 - 56) * scale)
    assert tuple(left[middle, edge].tolist()) == blue
    assert not right[middle, edge].any()


def test_evaluations_of_different_images_are_refused(dataset, fair):
    fewer = evaluate(CannedRunner("detect", noisy_outputs(dataset, "detect", seed=0)), dataset, eval_images=5)
    with pytest.raises(DataError):
        find_object_changes(fair, fewer)


def test_a_name_wider_than_the_panel_begins_at_its_edge():
    drawn = []
    for x in (0.0, 100.0):
        panel = np.zeros((240, 240, 3), np.uint8)
        _draw_tag(panel, "a long name " * 8, (x, 50.0), (0, 200, 0))
        drawn.append(panel)
    expected = np.zeros((240, 800, 3), np.uint8)
    _draw_tag(expected, "a long name ", (0.0, 50.0), (0, 200, 0))
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0][:, :60] == expected[:, :60]).all()
