"""evaluate() on stored detections: metrics, frames, settings and errors."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from raising import raises
from replay_runner import ReplayRunner

from trtkit.data import open_dataset, read_image
from trtkit.data.images import compute_letterbox
from trtkit.data.labels import label_path
from trtkit.errors import CancelledError, DataError, EngineError, RecipeError
from trtkit.evaluation.evaluation import Evaluation, evaluate

REFERENCES = Path(__file__).parent / "references"


@pytest.fixture(scope="module")
def dataset(demo_data):
    return open_dataset(demo_data, task="detect")


@pytest.fixture(scope="module")
def stored(dataset):
    """Ultralytics' detections of the demo's model on the 40 images, in input pixels, by image."""
    kept = np.load(REFERENCES / "demo-detect.npz")
    assert kept["images"].tolist() == [path.name for path in dataset.images("val")]
    return np.split(kept["kept"], np.cumsum(kept["counts"])[:-1])


@pytest.fixture(scope="module")
def evaluation(dataset, stored):
    return evaluate(ReplayRunner(stored, dataset.names), dataset)


def labels_as_detections(dataset, path, score=0.9):
    """An image's labels as detections in input pixels."""
    shape = read_image(path).shape[:2]
    labels = dataset.labels(path).to_pixels(shape)
    boxes = compute_letterbox(shape, (640, 640)).to_network(labels.boxes)
    return np.column_stack((boxes, np.full(len(labels), score), labels.classes)).astype(np.float32)


def test_equals_ultralytics_on_the_same_detections(evaluation):
    expected = json.loads((REFERENCES / "demo-detect.json").read_text())
    for name in ("mAP50(B)", "mAP50-95(B)", "precision(B)", "recall(B)"):
        assert evaluation.metrics[name] == pytest.approx(expected["metrics"][name], abs=0.0005), name
    rows = expected["per_class(B)"]
    assert evaluation.per_class["class"].to_list() == rows["class"]
    # One match at one threshold moves a class of 40 images by 0.003.
    moved = set(find_other_matches(evaluation)["class"])
    tolerances = [0.004 if number in moved else 0.0005 for number in rows["class"]]
    for ours, theirs in (("mAP50(B)", "ap50"), ("mAP50-95(B)", "ap50-95"), ("precision(B)", "precision")):
        assert (np.abs(evaluation.per_class[ours].to_numpy() - rows[theirs]) <= tolerances).all(), ours


def find_other_matches(evaluation):
    """The detections that Ultralytics matches at other thresholds."""
    theirs = np.load(REFERENCES / "demo-detect.npz")["detections"][:, 7].astype(np.uint16)
    return evaluation.detections.filter(pl.Series(theirs) != pl.col("matched(B)"))


def test_matches_equal_ultralytics(evaluation, dataset):
    """Bit for bit, except where clipping to the image moves an IoU across a threshold."""
    others = find_other_matches(evaluation)
    assert len(others) <= 0.001 * len(evaluation.detections)
    paths = dataset.images("val")
    for image, *box in others.select("image", "x1", "y1", "x2", "y2").iter_rows():
        height, width = read_image(paths[image]).shape[:2]
        assert min(box) == 0 or box[2] == width or box[3] == height


def test_frames_agree(evaluation):
    assert evaluation.image_count == 40
    totals = evaluation.per_image.select(pl.col("labels", "detections").sum()).row(0)
    assert totals == (len(evaluation.labels), len(evaluation.detections))
    assert evaluation.per_class["instances"].sum() == len(evaluation.labels)
    claimed = (evaluation.labels["matched(B)"] & 1).sum()
    assert claimed == (evaluation.detections["matched(B)"] & 1).sum()
    assert claimed == evaluation.labels["score(B)"].count()
    per_image = evaluation.per_image
    assert (per_image["tp"] + per_image["fn"]).to_list() == per_image["labels"].to_list()
    confident = evaluation.detections.filter(pl.col("score") >= evaluation.confidence)
    assert per_image.select(pl.col("tp").sum() + pl.col("fp").sum()).item() == len(confident)


def test_frame_names_the_rule(evaluation):
    rules = dict(evaluation.frame().select("metric", "rule").iter_rows())
    assert rules["mAP50-95(B)"] == "Ultralytics' rule"
    assert rules["pycocotools/AP"] == "pycocotools' rule"
    text = repr(evaluation)
    assert "by Ultralytics' rule: mAP50(B)" in text
    assert "by pycocotools' rule: pycocotools/AP " in text
    assert "NMS is in the graph" in text


def test_speed_and_origin(evaluation, dataset):
    assert set(evaluation.speed) == {"read", "preprocess", "inference", "postprocess", "match", "wall"}
    assert all(value > 0 for value in evaluation.speed.values())
    assert evaluation.speed["wall"] >= evaluation.speed["inference"] + evaluation.speed["postprocess"]
    assert 0 < evaluation.overhead <= 1
    assert evaluation.provenance.data_hash == dataset.hash("val")
    assert evaluation.provenance.runner == "stored detections"
    assert evaluation.provenance.settings["imgsz"] == [640, 640]
    assert evaluation.provenance.settings["iou"] == 0.7


def test_saved_and_loaded(evaluation, tmp_path):
    again = Evaluation.load(evaluation.save(tmp_path))
    assert repr(again) == repr(evaluation)
    assert again.facts() == evaluation.facts()
    assert again.provenance == evaluation.provenance
    for name, table in evaluation.tables().items():
        assert again.tables()[name].equals(table), name


def test_figure(evaluation):
    figure = evaluation.plot()
    curve = figure.data[-1]
    assert len(curve.x) == 101
    assert curve.y[0] > curve.y[-1]
    # The area under the mean curve is the mean of the classes' areas, to the half step at its end.
    assert np.trapezoid(curve.y, curve.x) == pytest.approx(evaluation.metrics["mAP50(B)"], abs=0.01)
    assert "images" in figure.layout.title.text


def test_labels_as_detections_are_perfect(dataset):
    paths = dataset.images("val")
    found = evaluate(
        ReplayRunner([labels_as_detections(dataset, path) for path in paths], dataset.names, batch=7), dataset
    )
    assert found.metrics["mAP50-95(B)"] == pytest.approx(0.995)
    assert found.metrics["precision(B)"] == found.metrics["recall(B)"] == 1
    assert found.metrics["pycocotools/AP"] == pytest.approx(1)
    assert set(found.labels["matched(B)"]) == {1023}


def test_batches(dataset):
    paths = dataset.images("val")
    runner = ReplayRunner([labels_as_detections(dataset, path) for path in paths], dataset.names, batch=16)
    evaluate(runner, dataset)
    assert runner.batches == [16, 16, 8]
    runner = ReplayRunner([labels_as_detections(dataset, path) for path in paths], dataset.names, batch=None)
    evaluate(runner, dataset, batch=25)
    assert runner.batches == [25, 15]


def test_sample_of_images(dataset):
    some = evaluate(ReplayRunner([np.zeros((0, 6))] * 5, dataset.names), dataset, eval_images=5, seed=3)
    assert some.image_count == 5
    assert some.metrics["mAP50(B)"] == some.metrics["pycocotools/AP"] == 0
    assert some.provenance.data_hash != dataset.hash("val")
    assert some.provenance.seed == 3


def test_corrupt_images_are_skipped_and_counted(demo_copy):
    dataset = open_dataset(demo_copy, task="detect")
    first, second, *rest = dataset.images("val")
    first.write_bytes(first.read_bytes()[:2000])
    second.write_bytes(b"")
    detections = [labels_as_detections(dataset, path) for path in rest]
    found = evaluate(ReplayRunner(detections, dataset.names, batch=4), dataset)
    assert found.skipped == (str(first), str(second))
    assert found.image_count == len(rest)
    assert found.metrics["mAP50-95(B)"] == pytest.approx(0.995)
    assert "2 images were skipped" in repr(found)
    note = found.notes[-1]
    assert note == f"skipped: image {first}: the file is truncated; image {second}: the file is empty"


def test_nothing_readable(demo_copy):
    dataset = open_dataset(demo_copy, task="detect")
    for path in dataset.images("val"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        evaluate(ReplayRunner([], dataset.names), dataset)
    assert (caught.value.code, caught.value.fields["count"]) == ("evaluate-images-unreadable", 40)


@pytest.mark.parametrize("row", ["11 0.5 0.5 0.1 0.1", "0 -0.05 0.5 0.1 0.1", "0 a b c d", "0 0.5"])
def test_images_with_bad_label_rows_are_skipped_and_named(demo_copy, row):
    label = demo_copy.parent / "labels" / "val" / "0003.txt"
    label.write_text(row + "\n")
    dataset = open_dataset(demo_copy, task="detect")
    with pytest.warns(UserWarning, match=r"1 image was skipped: labels .*0003\.txt: line 1"):
        found = evaluate(ReplayRunner([np.zeros((0, 6))] * 39, dataset.names), dataset)
    assert [Path(path).name for path in found.skipped] == ["0003.jpg"]
    note = found.notes[-1]
    assert note.startswith("skipped: labels ")
    assert found.image_count == 39


def test_bad_label_rows_in_every_file_are_an_error(demo_copy):
    for label in (demo_copy.parent / "labels" / "val").iterdir():
        label.write_text("0 320 240 10 10\n")
    dataset = open_dataset(demo_copy, task="detect")
    images = dataset.images("val")
    for image in images:
        if not label_path(image).exists():
            image.unlink()
    with raises(DataError, "evaluate-images-unreadable", reason="data-label-outside-image") as caught:
        evaluate(ReplayRunner([], dataset.names), dataset)
    assert "column 2 is 320" in str(caught.value)


def test_no_labels(demo_copy):
    import shutil

    shutil.rmtree(demo_copy.parent / "labels" / "val")
    dataset = open_dataset(demo_copy, task="detect")
    with pytest.raises(DataError) as caught:
        evaluate(ReplayRunner([], dataset.names), dataset)
    assert (caught.value.code, caught.value.fields["count"]) == ("data-labels-missing", 40)


def test_empty_label_files(demo_copy):
    for label in (demo_copy.parent / "labels" / "val").iterdir():
        label.write_text("")
    dataset = open_dataset(demo_copy, task="detect")
    with pytest.raises(DataError) as caught:
        evaluate(ReplayRunner([np.zeros((0, 6))] * 40, dataset.names), dataset)
    assert (caught.value.code, caught.value.fields["count"]) == ("evaluate-labels-empty", 40)


def test_images_without_label_file_are_noted(demo_copy):
    next((demo_copy.parent / "labels" / "val").iterdir()).unlink()
    dataset = open_dataset(demo_copy, task="detect")
    found = evaluate(ReplayRunner([np.zeros((0, 6))] * 40, dataset.names), dataset)
    assert any("1 of 40 images have no label file" in note for note in found.notes)


def test_more_classes_than_the_model(dataset):
    with pytest.raises(DataError) as caught:
        evaluate(ReplayRunner([], {0: "a", 1: "b", 2: "c"}), dataset)
    assert caught.value.code == "evaluate-classes-mismatch"
    assert caught.value.fields == {"dataset": 10, "model": 3}


def test_other_names_are_noted(dataset):
    names = {**dataset.names, 4: "four"}
    found = evaluate(ReplayRunner([np.zeros((0, 6))] * 40, names), dataset)
    assert any("class 4 is 'four'" in note for note in found.notes)


@pytest.mark.parametrize("options", [{"conf": 1.5}, {"iou": -0.1}, {"max_det": 0}, {"batch": 0}, {"eval_images": 0}])
def test_settings_out_of_range(dataset, options):
    with pytest.raises(RecipeError):
        evaluate(ReplayRunner([], dataset.names), dataset, **options)


def test_batch_and_size_the_runner_refuses(dataset):
    with pytest.raises(EngineError) as caught:
        evaluate(ReplayRunner([], dataset.names), dataset, batch=2)
    assert (caught.value.code, caught.value.fields["limit"]) == ("evaluate-batch-too-large", 1)
    with pytest.raises(EngineError) as caught:
        evaluate(ReplayRunner([], dataset.names), dataset, imgsz=320)
    assert (caught.value.code, caught.value.fields["limit"]) == ("evaluate-imgsz-fixed", (640, 640))


def test_size_is_rounded_up_to_the_stride(dataset):
    runner = ReplayRunner([np.zeros((0, 6))] * 2, dataset.names)
    found = evaluate(runner, dataset, imgsz=(610, 640), eval_images=2)
    assert any("610x640 was rounded up to 640x640" in note for note in found.notes)


def test_progress_and_cancel(dataset):
    events = []
    stop = threading.Event()

    def progress(event):
        events.append((event.done, event.total))
        if event.done == 3:
            stop.set()

    with pytest.raises(CancelledError):
        evaluate(ReplayRunner([np.zeros((0, 6))] * 40, dataset.names), dataset, progress=progress, cancel=stop)
    assert events == [(0, None), (0, None), (0, 40), (1, 40), (2, 40), (3, 40)]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("trtkit")]


def test_version_1_loads_with_the_present_names(evaluation, tmp_path):
    """What trtkit 0.1.0 wrote: other names of tables, columns, metrics, stages and settings."""
    tables = {}
    for name, table in evaluation.tables().items():
        name = {"per_image": "per_picture", "labels": "truths"}.get(name, name)
        tables[name] = table.rename({"image": "picture", "images": "pictures"}, strict=False)
        tables[name].write_parquet(tmp_path / f"evaluation.{name}.parquet")
    stages = {"preprocess": "prepare", "inference": "infer", "postprocess": "decode", "match": "judge"}
    facts = dict(evaluation.facts())
    facts["speed"] = {stages.get(name, name): value for name, value in facts["speed"].items()}
    facts["metrics"] = {name.replace("pycocotools/", "coco/"): value for name, value in facts["metrics"].items()}
    origin = evaluation.provenance.to_dict()
    origin["settings"] = dict(origin["settings"])
    origin["settings"]["images"] = origin["settings"].pop("eval_images")
    content = {"kind": "evaluation", "tables": list(tables), "facts": facts, "origin": origin}
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    again = Evaluation.load(tmp_path)
    assert again.facts() == json.loads(json.dumps(evaluation.facts())) | {"skipped": (), "notes": evaluation.notes}
    assert again.provenance.settings == evaluation.provenance.settings
    for name, table in evaluation.tables().items():
        assert again.tables()[name].equals(table), name
