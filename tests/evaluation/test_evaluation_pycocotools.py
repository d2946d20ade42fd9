"""The pycocotools/ metrics against pycocotools itself, on the same detections."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from replay_runner import ReplayRunner

from trtkit.data import open_dataset
from trtkit.evaluation.evaluation import evaluate
from trtkit.evaluation.metrics import compute_pycocotools_metrics

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def boxed(frame, score=False):
    """Rows of a frame of `Evaluation` as COCO annotations."""
    found = []
    for place, row in enumerate(frame.iter_rows(named=True), 1):
        width, height = row["x2"] - row["x1"], row["y2"] - row["y1"]
        found.append(
            {
                "id": place,
                "image_id": row["image"],
                "category_id": row["class"],
                "bbox": [row["x1"], row["y1"], width, height],
                "area": width * height,
                "iscrowd": 0,
                **({"score": row["score"]} if score else {}),
            }
        )
    return found


def by_pycocotools(labels, found, images, classes):
    """The twelve metrics; -1 for sizes without labels."""
    ground_truth = COCO()
    ground_truth.dataset = {
        "info": {},
        "images": [{"id": number} for number in range(images)],
        "annotations": labels,
        "categories": [{"id": number} for number in classes],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth.createIndex()
        evaluator = COCOeval(ground_truth, ground_truth.loadRes(found), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return dict(zip(NAMES, evaluator.stats.tolist(), strict=True))


def test_real_detections(demo_data):
    stored = np.load(Path(__file__).parent / "references" / "demo-detect.npz")
    dataset = open_dataset(demo_data, task="detect")
    found = evaluate(ReplayRunner(np.split(stored["kept"], np.cumsum(stored["counts"])[:-1]), dataset.names), dataset)
    expected = by_pycocotools(boxed(found.labels), boxed(found.detections, score=True), 40, dataset.names)
    ours = {
        name.removeprefix("pycocotools/"): value
        for name, value in found.metrics.items()
        if name.startswith("pycocotools/")
    }
    assert ours == pytest.approx({name: value for name, value in expected.items() if value >= 0}, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_synthetic_detections(seed):
    """Crowded images, objects of three sizes, more than 100 detections of a class, equal scores."""
    generator = np.random.default_rng(seed)
    images, classes = 6, 3
    labels, found = [], []
    for image in range(images):
        for _ in range(int(generator.integers(0, 15))):
            side = float(generator.choice([12.0, 50.0, 150.0]))
            place = generator.uniform(0, 400, 2).tolist()
            label = {"image_id": image, "category_id": int(generator.integers(classes))}
            labels.append({**label, "bbox": [*place, side, side * 1.1], "area": side * side * 1.1})
            for _ in range(int(generator.integers(0, 4))):
                shift = generator.normal(0, side / 8, 4).tolist()
                box = [value + moved for value, moved in zip(labels[-1]["bbox"], shift, strict=True)]
                found.append({**label, "bbox": box, "score": float(generator.integers(1, 50)) / 50})
        for _ in range(150):
            box = [*generator.uniform(0, 400, 2).tolist(), *generator.uniform(5, 200, 2).tolist()]
            found.append({"image_id": image, "category_id": 0, "bbox": box, "score": float(generator.uniform(0, 0.3))})
    for one in found:
        one["area"] = one["bbox"][2] * one["bbox"][3]
    copies = [[{**one, "id": place, "iscrowd": 0} for place, one in enumerate(some, 1)] for some in (labels, found)]
    expected = by_pycocotools(*copies, images, range(classes))
    ours = compute_pycocotools_metrics(
        labels, found, shapes=[(600, 600)] * images, classes=range(classes), kind="B", iou_type="bbox"
    )
    assert ours == pytest.approx(
        {f"pycocotools/{name}": value for name, value in expected.items() if value >= 0}, abs=1e-6
    )


def test_sizes_without_labels_are_left_out():
    label = {"image_id": 0, "category_id": 0, "bbox": [0, 0, 10, 10], "area": 100}
    found = compute_pycocotools_metrics([label], [], shapes=[(20, 20)], classes=[0], kind="B", iou_type="bbox")
    assert found["pycocotools/AP"] == found["pycocotools/APs"] == 0
    assert "pycocotools/APm" not in found
    assert "pycocotools/ARl" not in found


def test_masks_have_a_suffix():
    box = {"image_id": 0, "category_id": 0, "bbox": [0, 0, 10, 10], "area": 100}
    polygon = {**box, "segmentation": [[0, 0, 10, 0, 10, 10, 0, 10]]}
    found = compute_pycocotools_metrics(
        [dict(polygon)], [{**polygon, "score": 1.0}], shapes=[(20, 20)], classes=[0], kind="M", iou_type="segm"
    )
    assert found["pycocotools/AP(M)"] == pytest.approx(1)
