"""Data sets in COCO's layout: labels and metrics against pycocotools on the same files, and damaged annotations."""

from __future__ import annotations

import contextlib
import io
import json
import shutil

import cv2
import numpy as np
import pytest
from coco_layout import write_coco
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from raising import raises
from task_models import CannedRunner, drawn_set, noisy_outputs

from trtkit.data import coco, open_dataset
from trtkit.data.coco import decode_rle, join_polygons
from trtkit.errors import DataError
from trtkit.evaluation.evaluation import evaluate
from trtkit.tasks.segment import encode_rle

BOX_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
POINT_NAMES = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
KINDS = {"detect": {"B": "bbox"}, "segment": {"B": "bbox", "M": "segm"}, "pose": {"B": "bbox", "P": "keypoints"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve images of shapes with instances, keypoints, masks of each encoding and crowd regions."""
    base = tmp_path_factory.mktemp("coco")
    for task in ("segment", "pose"):
        drawn_set(base / task, task, count=12, seed=3)
    return write_coco(base, base / "coco")


def annotation_file(folder, task, split="val"):
    return folder / "annotations" / f"{'person_keypoints' if task == 'pose' else 'instances'}_{split}.json"


def detect(folder, task, data=None):
    """An evaluation on detections near all objects, also those that became crowd regions."""
    source = folder.parent / ("segment" if task == "detect" else task) / "data.yaml"
    outputs = noisy_outputs(open_dataset(source, task=task), task, seed=5)
    return evaluate(CannedRunner(task, outputs), data or folder)


@pytest.fixture(scope="module")
def evaluations(folder):
    return {task: detect(folder, task) for task in KINDS}


def by_pycocotools(folder, task, kind, evaluation):
    """pycocotools' own metrics of an evaluation's detections, from the files."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(annotation_file(folder, task))
        ids = {image["file_name"]: image["id"] for image in truth.dataset["images"]}
        paths = evaluation.per_image["path"].to_list()
        shapes = evaluation.per_image.select("height", "width").rows()
        categories = sorted(truth.getCatIds())
        found = []
        for row in evaluation.detections.iter_rows(named=True):
            one = {
                "image_id": ids[paths[row["image"]].rsplit("/", 1)[1]],
                "category_id": categories[row["class"]],
                "score": row["score"],
            }
            if kind == "B":
                one["bbox"] = [row["x1"], row["y1"], row["x2"] - row["x1"], row["y2"] - row["y1"]]
            elif kind == "M":
                one["segmentation"] = {"size": list(shapes[row["image"]]), "counts": row["mask"]}
            else:
                one["keypoints"] = row["keypoints"]
            found.append(one)
        evaluator = COCOeval(truth, truth.loadRes(found), KINDS[task][kind])
        if kind == "P":
            points = len(truth.dataset["categories"][0]["keypoints"])
            evaluator.params.kpt_oks_sigmas = np.full(points, 1 / points)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    names = POINT_NAMES if kind == "P" else BOX_NAMES
    suffix = "" if kind == "B" else f"({kind})"
    values = dict(zip((f"pycocotools/{name}{suffix}" for name in names), evaluator.stats.tolist(), strict=True))
    return {name: value for name, value in values.items() if value >= 0}


@pytest.mark.parametrize(("task", "kind"), [(task, kind) for task, kinds in KINDS.items() for kind in kinds])
def test_metrics_are_pycocotools_on_the_same_files(folder, evaluations, task, kind):
    expected = by_pycocotools(folder, task, kind, evaluations[task])
    ours = {name: value for name, value in evaluations[task].metrics.items() if name in expected}
    assert ours == pytest.approx(expected, abs=1e-9)
    assert 0.05 < ours[next(iter(expected))] < 0.99


def test_detections_in_crowd_regions_are_ignored_by_pycocotools_rule_alone(folder, evaluations, tmp_path):
    copy = tmp_path / "coco"
    shutil.copytree(folder, copy)
    path = annotation_file(copy, "detect")
    content = json.loads(path.read_text())
    assert any(row["iscrowd"] for row in content["annotations"])
    content["annotations"] = [row for row in content["annotations"] if not row["iscrowd"]]
    path.write_text(json.dumps(content))
    without, with_crowd = detect(folder, "detect", copy), evaluations["detect"]
    assert without.metrics["mAP50-95(B)"] == with_crowd.metrics["mAP50-95(B)"]
    assert without.labels.equals(with_crowd.labels)
    assert without.metrics["pycocotools/AP"] < with_crowd.metrics["pycocotools/AP"]


def test_labels_are_those_of_the_file(folder):
    content = json.loads(annotation_file(folder, "segment").read_text())
    categories = sorted(one["id"] for one in content["categories"])
    names = {one["id"]: one["name"] for one in content["categories"]}
    dataset = open_dataset(folder, task="segment")
    assert dataset.names == {number: names[identity] for number, identity in enumerate(categories)}
    assert len(dataset.images("val")) == len(content["images"])
    encodings = set()
    with contextlib.redirect_stdout(io.StringIO()):
        by_coco = COCO(annotation_file(folder, "segment"))
    for image in content["images"]:
        shape = (image["height"], image["width"])
        labels = dataset.labels(folder / "val" / image["file_name"]).to_pixels(shape)
        rows = [row for row in content["annotations"] if row["image_id"] == image["id"]]
        kept = [row for row in rows if not row["iscrowd"]]
        assert labels.classes.tolist() == [categories.index(row["category_id"]) for row in kept]
        assert [row["iscrowd"] for row in labels.annotations] == [row["iscrowd"] for row in rows]
        for row, box, segment in zip(kept, labels.boxes, labels.segments, strict=True):
            x, y, width, height = row["bbox"]
            assert box.tolist() == pytest.approx([x, y, x + width, y + height], abs=1e-3)
            raw = row["segmentation"]
            encodings.add(len(raw) if isinstance(raw, list) else type(raw["counts"]).__name__)
            truth = by_coco.annToMask({**row, "segmentation": raw}) > 0
            canvas = np.zeros(shape, np.uint8)
            cv2.fillPoly(canvas, [np.round(segment - 0.5).astype(np.int32)], (1,))
            # The edge is drawn too: two pixels of a small object's outline at most.
            apart = np.logical_xor(canvas > 0, truth).sum()
            assert apart <= 4 * np.sqrt(truth.sum()) + 20, raw
    assert encodings == {1, 2, "list", "str"}


def test_pose_labels_have_keypoints_and_their_visibility(folder):
    dataset = open_dataset(folder, task="pose")
    assert dataset.kpt_shape == (3, 3)
    content = json.loads(annotation_file(folder, "pose").read_text())
    for image in content["images"]:
        labels = dataset.labels(folder / "val" / image["file_name"]).to_pixels((image["height"], image["width"]))
        rows = [row for row in content["annotations"] if row["image_id"] == image["id"] and not row["iscrowd"]]
        expected = np.array([row["keypoints"] for row in rows]).reshape(-1, 3, 3)
        np.testing.assert_allclose(labels.keypoints, expected, atol=1e-3)
        assert [row["num_keypoints"] for row in labels.annotations if not row["iscrowd"]] == [
            row["num_keypoints"] for row in rows
        ]


@given(st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False))
def test_run_lengths_decode_as_pycocotools_does(height, width, random):
    mask = np.array([[random.random() < 0.5 for _ in range(width)] for _ in range(height)])
    packed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    text = {"size": [height, width], "counts": packed["counts"].decode()}
    assert (decode_rle(text, (height, width)) == mask).all()
    assert (decode_rle(encode_rle(mask, (0, 0), (height, width)), (height, width)) == mask).all()


def test_large_run_lengths_decode():
    mask = np.zeros((700, 900), bool)
    mask[5:600, 3:850] = True
    mask[100:200, 100:110] = False
    packed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert (decode_rle({"size": [700, 900], "counts": packed["counts"].decode()}, (700, 900)) == mask).all()


def test_joined_polygons_fill_the_pixels_of_their_parts_and_leave_holes():
    square = np.array([[2, 2], [20, 2], [20, 20], [2, 20]], float)
    joined = join_polygons([square, square / 4 + 6, square + 30])
    canvas, apart = np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.uint8)
    cv2.fillPoly(canvas, [joined.astype(np.int32)], (1,))
    cv2.fillPoly(apart, [one.astype(np.int32) for one in (square, square / 4 + 6, square + 30)], (1,))
    bridges = np.zeros((64, 64), np.uint8)
    for one in (square / 4 + 6, square + 30):
        cv2.line(bridges, (2, 2), tuple(int(value) for value in one[0]), (1,))
    assert (canvas[bridges == 0] == apart[bridges == 0]).all()


@pytest.mark.parametrize("shift", [8, 40], ids=["parts that overlap", "parts apart"])
def test_an_object_has_the_pixels_of_all_its_parts(shift):
    parts = [[2, 2, 20, 2, 20, 20, 2, 20], [2 + shift, 4, 20 + shift, 4, 20 + shift, 30, 2 + shift, 30]]
    outline = coco._find_outline({"segmentation": parts}, (64, 64))
    canvas = np.zeros((64, 64), np.uint8)
    cv2.fillPoly(canvas, [outline.astype(np.int32)], (1,))
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, 64, 64)))
    # Pixels on an outline belong to either side, and a bridge is a line.
    square = np.ones((3, 3), np.uint8)
    assert (canvas >= cv2.erode(expected, square)).all()
    assert (canvas > cv2.dilate(expected, square)).sum() <= 64


def test_the_hash_follows_annotations_of_the_images_alone(folder, tmp_path):
    copy = tmp_path / "coco"
    shutil.copytree(folder, copy)
    dataset = open_dataset(copy, task="detect")
    images = dataset.images("val")
    before = dataset.hash_images(images[:3]), dataset.hash_images(images[3:6])
    path = annotation_file(copy, "detect")
    content = json.loads(path.read_text())
    first = next(one["id"] for one in content["images"] if one["file_name"] == images[0].name)
    next(row for row in content["annotations"] if row["image_id"] == first)["iscrowd"] = 1
    path.write_text(json.dumps(content) + "\n")
    after = dataset.hash_images(images[:3]), dataset.hash_images(images[3:6])
    assert before[0] != after[0]
    assert before[1] == after[1]
    assert open_dataset(str(path), task="detect").path == copy


def tiny(tmp_path, annotation=None, *, task="segment", **others):
    """One image with one annotation."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    cv2.imwrite(str(tmp_path / "val2017" / "1.png"), np.zeros((10, 20, 3), np.uint8))
    right = {"id": 5, "image_id": 1, "category_id": 18, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0,
             "segmentation": [[1, 1, 5, 1, 5, 5]], "keypoints": [1, 1, 2], "num_keypoints": 1}  # fmt: skip
    content = {
        "images": [{"id": 1, "file_name": "1.png", "height": 10, "width": 20}],
        "categories": [{"id": 18, "name": "dog", "keypoints": ["nose"]}],
        "annotations": [{**right, **(annotation or {})}],
        **others,
    }
    name = {"pose": "person_keypoints"}.get(task, "instances")
    (tmp_path / "annotations" / f"{name}_val2017.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize(
    ("task", "annotation", "code"),
    [
        ("detect", {"category_id": 1}, "data-label-class-unknown"),
        ("detect", {"category_id": None}, "data-label-class-unknown"),
        ("detect", {"bbox": [1, 2, 3]}, "data-label-columns"),
        ("detect", {"bbox": [1, 2, 3, float("nan")]}, "data-label-columns"),
        ("detect", {"bbox": "1 2 3 4"}, "data-label-columns"),
        ("detect", {"area": "big"}, "data-label-not-finite"),
        ("detect", {"bbox": [1, 1, 0, 4]}, None),
        ("segment", {"segmentation": [[1, 1, 5, 1]]}, "data-label-mask"),
        ("segment", {"segmentation": "polygon"}, "data-label-mask"),
        ("segment", {"segmentation": {"size": [10, 20], "counts": [100]}}, "data-label-mask"),
        ("segment", {"segmentation": {"size": [20, 10], "counts": [200]}}, "data-label-mask"),
        ("segment", {"segmentation": {"size": [10, 20], "counts": [-1, 201]}}, "data-label-mask"),
        ("segment", {"segmentation": {"size": [10, 20], "counts": "ooooooooooooo"}}, "data-label-mask"),
        ("segment", {"segmentation": {"size": [10, 20], "counts": "\u00e9"}}, "data-label-mask"),
        ("segment", {"segmentation": {"counts": [200]}}, "data-label-mask"),
        ("segment", {"segmentation": {"size": [10, 20], "counts": [200]}, "iscrowd": 1}, None),
        ("pose", {"keypoints": [1, 1]}, "data-label-columns"),
    ],
)
def test_a_wrong_annotation_is_an_error_of_its_image(tmp_path, task, annotation, code):
    dataset = open_dataset(tiny(tmp_path, annotation, task=task), task=task)
    image = dataset.images("val")[0]
    if code is None:
        assert len(dataset.labels(image)) == 0
        return
    with raises(DataError, code, image="1.png"):
        dataset.labels(image)


@pytest.mark.parametrize(
    "others",
    [
        {"categories": []},
        {"categories": [{"name": "dog"}]},
        {"images": [{"id": 1, "file_name": "1.png", "height": 0, "width": 20}]},
        {"images": [{"id": 1, "file_name": "1.png", "height": 10**6, "width": 10**6}]},
        {"images": [{"id": 1, "file_name": "../1.png", "height": 10, "width": 20}]},
        {"images": [{"id": 2, "file_name": "1.png", "height": 10, "width": 20}]},
        {"images": [{"id": 1, "file_name": name, "height": 10, "width": 20} for name in ("1.png", "2.png")]},
        {"images": [{"id": number, "file_name": "1.png", "height": 10, "width": 20} for number in (1, 2)]},
        {"categories": [{"id": 18, "name": "dog"}, {"id": "18", "name": "cat"}]},
        {"images": None},
        {"annotations": [3]},
    ],
)
def test_a_file_that_is_not_coco_s_is_refused(tmp_path, others):
    with raises(DataError, "data-coco-unreadable"):
        open_dataset(tiny(tmp_path, **others), task="detect").images("val")


@pytest.mark.parametrize("name", ["1.png", "./1.png", "städte/1.png", "städte//1.png", "städte\\1.png", ".\\1.png"])
def test_images_have_names_of_any_system(tmp_path, name):
    folder = tiny(tmp_path, images=[{"id": 1, "file_name": name, "height": 10, "width": 20}])
    if "städte" in name:
        (folder / "val2017" / "städte").mkdir()
        (folder / "val2017" / "1.png").rename(folder / "val2017" / "städte" / "1.png")
    dataset = open_dataset(folder, task="detect")
    (image,) = dataset.images("val")
    assert dataset.labels(image).classes.tolist() == [0]
    assert dataset.hash_images([image])


def test_minival_is_a_split(tmp_path):
    folder = tiny(tmp_path)
    (folder / "annotations" / "instances_val2017.json").rename(folder / "annotations" / "instances_minival2014.json")
    (folder / "val2017").rename(folder / "minival2014")
    assert len(open_dataset(folder, task="detect").images("minival")) == 1


def test_run_lengths_become_an_outline_through_the_centers_of_pixels(tmp_path):
    mask = np.zeros((10, 20), np.uint8)
    mask[2:8, 3:9] = 1
    packed = coco_mask.encode(np.asfortranarray(mask))
    rle = {"size": [10, 20], "counts": packed["counts"].decode()}
    dataset = open_dataset(tiny(tmp_path, {"segmentation": rle}), task="segment")
    (outline,) = dataset.labels(dataset.images("val")[0]).to_pixels((10, 20)).segments
    assert outline.min(0).tolist() == pytest.approx([3.5, 2.5])
    assert outline.max(0).tolist() == pytest.approx([8.5, 7.5])


@pytest.mark.parametrize(("visibility", "count"), [(0, 0), (1, 1), (2, 1)])
def test_points_are_counted_as_pycocotools_needs_them(tmp_path, visibility, count):
    dataset = open_dataset(tiny(tmp_path, {"keypoints": [1, 1, visibility]}, task="pose"), task="pose")
    (row,) = dataset.labels(dataset.images("val")[0]).annotations
    assert row["num_keypoints"] == count


def test_without_an_area_it_is_that_of_the_box(tmp_path):
    folder = tiny(tmp_path)
    path = folder / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    del content["annotations"][0]["area"]
    path.write_text(json.dumps(content))
    dataset = open_dataset(folder, task="detect")
    assert dataset.labels(dataset.images("val")[0]).annotations[0]["area"] == 16


def test_splits_with_other_categories_have_no_labels_together(tmp_path):
    """The class numbers of one file would mean other classes in the other one."""
    folder = tiny(tmp_path)
    path = folder / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    more = [
        {"id": 1, "name": "cat"},
        *content["categories"],
        {"id": 90, "name": "a long name, so that this file is larger"},
    ]
    path.with_name("instances_train2017.json").write_text(json.dumps(content | {"categories": more}))
    (folder / "train2017").mkdir()
    shutil.copy(folder / "val2017" / "1.png", folder / "train2017" / "1.png")
    dataset = open_dataset(folder, task="detect")
    assert dataset.labels(dataset.images("val")[0]).classes.tolist() == [0]
    (image,) = dataset.images("train")
    assert dataset.hash_images([image]), "calibration needs no labels"
    with raises(DataError, "data-coco-categories", path=path.with_name("instances_train2017.json")):
        dataset.labels(image)


def test_the_hash_follows_categories_and_sizes(tmp_path):
    folder = tiny(tmp_path)
    path = folder / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())

    def hash_with(**changes):
        path.write_text(json.dumps(content | changes))
        dataset = open_dataset(folder, task="detect")
        return dataset.hash_images(dataset.images("val"))

    before = hash_with()
    dog = content["categories"][0]
    assert hash_with(categories=[{"id": 1, "name": "earlier"}, dog]) != before
    assert hash_with(images=[content["images"][0] | {"width": 40}]) != before


def test_layouts_without_the_task_or_images_are_refused(tmp_path):
    folder = tiny(tmp_path)
    with raises(DataError, "data-coco-task", task="pose"):
        open_dataset(folder, task="pose")
    with raises(DataError, "data-coco-task", task="obb"):
        open_dataset(folder, task="obb")
    (folder / "val2017" / "1.png").rename(folder / "1.png")
    with raises(DataError, "data-images-missing", count=1):
        open_dataset(folder, task="detect").images("val")
    (folder / "val2017").rmdir()
    with raises(DataError, "data-split-path-missing"):
        open_dataset(folder, task="detect")
    (folder / "annotations" / "instances_val2017.json").write_text("{")
    (folder / "images" / "val2017").mkdir(parents=True)
    with raises(DataError, "data-coco-unreadable"):
        open_dataset(folder, task="detect")
