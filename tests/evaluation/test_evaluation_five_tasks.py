"""evaluate and compare on every task, with synthetic images and untrained models."""

import contextlib
import io
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from task_models import NAMES, CannedRunner, drawn_set, noisy_outputs, untrained

import trtkit
from trtkit.comparison.comparison import Comparison
from trtkit.data import open_dataset, read_image
from trtkit.evaluation.evaluation import evaluate

TASKS = ("detect", "segment", "pose", "obb", "classify")
KINDS = {"detect": "B", "segment": "BM", "pose": "BP", "obb": "BR", "classify": ""}


@pytest.mark.parametrize("task", TASKS)
def test_compare_and_report(task, tmp_path):
    data = drawn_set(tmp_path / "set", task)
    found = trtkit.compare(
        untrained(task), data, precisions=("fp32", "int8"), build=False, runs=5, seconds=0.1, output=tmp_path / "out"
    )
    primary = {"segment": "mAP50-95(M)", "pose": "mAP50-95(P)", "classify": "top1"}.get(task, "mAP50-95(B)")
    row = found.rows.filter(precision="int8").row(0, named=True)
    assert {"mAP50(B)", primary} & set(found.rows.columns)
    assert row[f"delta {primary} low"] <= row[f"delta {primary}"] + 1e-9
    assert row[f"delta {primary}"] <= row[f"delta {primary} high"] + 1e-9
    assert found.differences["scope"].unique().sort().to_list() == (
        ["all", "class"] if task == "classify" else ["all", "class", "size"]
    )
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Changed objects" in page
    assert f"{task} at" in page
    again = Comparison.load(tmp_path / "out")
    assert again.changes("int8").equals(found.changes("int8"))
    for row in found.gallery("int8", limit=2).iter_rows(named=True):
        assert row["png"].startswith(b"\x89PNG")


@pytest.mark.parametrize("task", TASKS)
def test_evaluate_has_the_guide_s_columns_and_a_figure(task, tmp_path):
    data = drawn_set(tmp_path / "set", task)
    path = trtkit.export(untrained(task), format="onnx", output=tmp_path / "model.onnx").path
    found = evaluate(path, data)
    if task == "classify":
        assert set(found.metrics) == {"top1", "top5"}
        assert found.metrics["top5"] == 1
    else:
        for kind in KINDS[task]:
            assert {f"{name}({kind})" for name in ("mAP50", "mAP50-95", "precision", "recall")} <= set(found.metrics)
    assert found.image_count == 6
    assert len(found.plot().data)
    found.save(tmp_path / "saved")
    again = type(found).load(tmp_path / "saved")
    assert again.detections.equals(found.detections)
    with trtkit.open(path) as runner:
        image = read_image(open_dataset(data, task=task).images("val")[0])
        (prediction,) = runner.predict([image], conf=0.0)
        drawn = trtkit.tasks.get_task(task).draw(image, prediction, NAMES)
    assert drawn.dtype == np.uint8
    assert drawn.shape != image.shape or (drawn != image).any()


@pytest.mark.parametrize("task", ["detect", "segment", "pose"])
@pytest.mark.parametrize("seed", range(3))
def test_boxes_masks_and_keypoints_equal_pycocotools(task, seed, tmp_path):
    dataset = open_dataset(drawn_set(tmp_path, task, count=10, seed=seed), task=task)
    found = evaluate(CannedRunner(task, noisy_outputs(dataset, task, seed=seed)), dataset)
    for kind in KINDS[task]:
        expected = by_pycocotools(found, dataset, kind)
        assert expected["pycocotools/AP" if kind == "B" else f"pycocotools/AP({kind})"] > 0.05
        assert of_kind(found, kind) == pytest.approx(expected, abs=1e-6)


def of_kind(found, kind):
    """pycocotools' metrics of boxes, masks or keypoints."""
    tails = {"B": lambda name: not name.endswith(")")}
    mine = tails.get(kind, lambda name: name.endswith(f"({kind})"))
    return {name: value for name, value in found.metrics.items() if name.startswith("pycocotools/") and mine(name)}


def by_pycocotools(found, dataset, kind):
    """pycocotools' own numbers, on labels from the files and detections from the frame."""
    labels, results, images = [], [], []
    for image in found.per_image.iter_rows(named=True):
        shape = (image["height"], image["width"])
        images.append({"id": image["image"], "height": shape[0], "width": shape[1]})
        side = np.array([shape[1], shape[0]])
        whole = dataset.labels(Path(image["path"]))
        for place, number in enumerate(whole.classes.tolist()):
            low, high = whole.boxes[place][:2] * side, whole.boxes[place][2:] * side
            row = {"image_id": image["image"], "category_id": number, "iscrowd": 0, "id": len(labels) + 1}
            row["bbox"] = [*low.tolist(), *(high - low).tolist()]
            if kind == "M":
                x, y = (whole.segments[place] * side).T
                row["area"] = abs(sum(x[i - 1] * y[i] - x[i] * y[i - 1] for i in range(len(x)))) / 2
                row["segmentation"] = [np.column_stack((x, y)).ravel().tolist()]
            elif kind == "B" and whole.segments:
                # COCO's area of an object is its polygon's, for boxes too.
                x, y = (whole.segments[place] * side).T
                row["area"] = abs(sum(x[i - 1] * y[i] - x[i] * y[i - 1] for i in range(len(x)))) / 2
            elif kind == "B":
                row["area"] = float(np.prod(high - low))
            else:
                points = whole.keypoints[place] * [*side, 1]
                row["keypoints"] = points.ravel().tolist()
                row["num_keypoints"] = int((points[:, 2] > 0).sum())
                row["area"] = float(np.prod(high - low)) * 0.53
            labels.append(row)
    for one in found.detections.iter_rows(named=True):
        row = {"image_id": one["image"], "category_id": one["class"], "score": one["score"]}
        if kind == "M":
            shape = found.per_image.select("height", "width").row(one["image"])
            row["segmentation"] = {"size": list(shape), "counts": one["mask"].encode()}
        elif kind == "B":
            row["bbox"] = [one["x1"], one["y1"], one["x2"] - one["x1"], one["y2"] - one["y1"]]
        else:
            row["keypoints"] = one["keypoints"]
        results.append(row)
    ground_truth = COCO()
    ground_truth.dataset = {
        "info": {}, "images": images, "annotations": labels, "categories": [{"id": number} for number in dataset.names],
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth.createIndex()
        evaluator = COCOeval(
            ground_truth, ground_truth.loadRes(results), {"B": "bbox", "M": "segm", "P": "keypoints"}[kind]
        )
        if kind == "P":
            evaluator.params.kpt_oks_sigmas = np.full(dataset.kpt_shape[0], 1 / dataset.kpt_shape[0])
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    if kind == "P":
        names = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
    tail = "" if kind == "B" else f"({kind})"
    return {
        f"pycocotools/{name}{tail}": value
        for name, value in zip(names, evaluator.stats.tolist(), strict=True)
        if value >= 0
    }


@pytest.mark.slow
@pytest.mark.parametrize(("task", "ending"), [("detect", ""), ("segment", "-seg"), ("pose", "-pose")])
def test_shared_scenes_equal_pycocotools(task, ending, shared, tmp_path):
    model = shared / "models" / f"yolo11n{ending}.pt"
    path = trtkit.export(model, format="onnx", imgsz=320, output=tmp_path / "model.onnx").path
    dataset = open_dataset(shared / "data" / "scenes" / task / "data.yaml", task=task)
    found = evaluate(path, dataset, eval_images=12, conf=0.05)
    for kind in KINDS[task]:
        assert of_kind(found, kind) == pytest.approx(by_pycocotools(found, dataset, kind), abs=1e-6)


@pytest.mark.parametrize(
    ("task", "conf", "expected"), [("detect", None, 0.001), ("obb", None, 0.01), ("obb", 0.001, 0.001)]
)
def test_default_conf_is_that_of_ultralytics_val(task, conf, expected, tmp_path):
    dataset = open_dataset(drawn_set(tmp_path, task, count=4), task=task)
    outputs = noisy_outputs(dataset, task, seed=1)
    for one in outputs:
        one["output0"][:, 4 : 4 + len(NAMES)] *= 0.01
    found = evaluate(CannedRunner(task, outputs), dataset, conf=conf)
    assert found.provenance.settings["conf"] == expected
    # All scores are below 0.01.
    assert (len(found.detections) > 0) == (expected < 0.01)


def test_oriented_boxes_are_evaluated_by_both_overlaps(tmp_path):
    dataset = open_dataset(drawn_set(tmp_path, "obb", count=8), task="obb")
    found = evaluate(CannedRunner("obb", noisy_outputs(dataset, "obb", seed=1)), dataset)
    assert found.metrics["mAP50(B)"] > 0.2
    # ProbIoU and the exact IoU differ on shifted boxes.
    assert found.metrics["mAP50-95(R)"] != found.metrics["mAP50-95(B)"]
    assert {"x", "y", "width", "height", "angle"} <= set(found.detections.columns)
    assert not [name for name in found.metrics if name.startswith("pycocotools/")]


def test_classify_counts_by_hand(tmp_path):
    dataset = open_dataset(drawn_set(tmp_path, "classify", count=4), task="classify")
    true_classes = [0, 0, 1, 1]
    outputs = [np.array([[0.9, 0.1]], np.float32) for _ in true_classes]
    found = evaluate(CannedRunner("classify", [{"output0": one} for one in outputs], size=32), dataset)
    assert found.metrics == {"top1": 0.5, "top5": 1.0}
    assert found.per_class.select("class", "images", "top1").rows() == [(0, 2, 1.0), (1, 2, 0.0)]
    assert found.labels["rank"].to_list() == [1, 1, 2, 2]
    assert found.detections.filter(pl.col("rank") == 1)["correct"].to_list() == [True, True, False, False]
