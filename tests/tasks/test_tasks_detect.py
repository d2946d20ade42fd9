from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trtkit.data.images import compute_letterbox
from trtkit.data.labels import Labels
from trtkit.errors import ModelError, RecipeError
from trtkit.models.model import DETR_QUERIES, DETR_ROWS, END2END_ROWS, NMS_ROWS, TASKS, ModelInfo
from trtkit.tasks import Detections, PostprocessSettings, get_task
from trtkit.tasks.detect import select_candidates

REFERENCES = Path(__file__).parent.parent / "evaluation" / "references"
SAME = compute_letterbox((640, 640), (640, 640))


def info(classes=3, **options):
    return ModelInfo(task="detect", names={number: str(number) for number in range(classes)}, **options)


def decoded(output, *, classes=3, fit=SAME, **options):
    settings = PostprocessSettings(**options)
    return get_task("detect").postprocess({"output0": output}, info(classes), [fit] * len(output), settings)


def rows(found):
    return np.concatenate((found.boxes, found.scores[:, None], found.classes[:, None]), 1)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("evaluate", {"conf": 0.001, "multi_label": True}),
        ("predict", {"conf": 0.25}),
        ("all", {"conf": 0.001, "iou": 0.45, "max_det": 3600, "multi_label": True}),
    ],
)
def test_crowd_equals_ultralytics(name, options):
    """1,200 synthetic anchors; the references come from Ultralytics' own NMS (references/make.py)."""
    stored = np.load(REFERENCES / "crowd.npz")
    whole = compute_letterbox((10**4, 10**4), (10**4, 10**4))
    output = stored["output0"] + np.array([200, 200, 0, 0, 0, 0, 0], np.float32)[:, None]
    (found,) = decoded(output, fit=whole, **options)
    expected = stored[name] + np.array([200, 200, 200, 200, 0, 0], np.float32)
    np.testing.assert_allclose(rows(found), expected, atol=1e-3)


def test_demo_images_equal_ultralytics():
    """Ultralytics' NMS of the demo model's raw outputs on 40 images."""
    stored = np.load(REFERENCES / "demo-detect.npz")
    outputs = np.split(stored["output0"], np.cumsum(stored["anchors"])[:-1], 1)
    kept = np.split(stored["kept"], np.cumsum(stored["counts"])[:-1])
    for output, expected in zip(outputs, kept, strict=True):
        wide = output.copy()
        wide[:2] += 1000  # away from the edges, where boxes would be clipped
        roomy = compute_letterbox((4000, 4000), (4000, 4000))
        (found,) = decoded(wide[None], classes=10, fit=roomy, conf=0.001, multi_label=True)
        np.testing.assert_allclose(found.boxes - 1000, expected[:, :4], atol=1e-3)
        np.testing.assert_array_equal(found.scores, expected[:, 4])
        np.testing.assert_array_equal(found.classes, expected[:, 5])


def test_one_box_by_hand():
    """A box at the center of a letterboxed 160x320 image, two classes above the threshold."""
    output = np.zeros((1, 7, 2), np.float32)
    output[0, :, 0] = [320, 320, 100, 50, 0.1, 0.9, 0.3]
    fit = compute_letterbox((160, 320), (640, 640))
    (found,) = decoded(output, fit=fit)
    np.testing.assert_allclose(found.boxes, [[135, 67.5, 185, 92.5]])
    assert found.classes.tolist() == [1]
    assert found.shape == (160, 320)
    (found,) = decoded(output, fit=fit, multi_label=True)
    assert found.classes.tolist() == [1, 2]
    np.testing.assert_allclose(found.scores, [0.9, 0.3])


def test_boxes_are_clipped_to_the_image():
    output = np.zeros((1, 7, 1), np.float32)
    output[0, :, 0] = [10, 10, 100, 40, 0.9, 0, 0]
    (found,) = decoded(output)
    np.testing.assert_allclose(found.boxes, [[0, 0, 60, 30]])


def test_no_detections():
    (found,) = decoded(np.zeros((1, 7, 5), np.float32))
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)
    assert "0 in 640x640" in repr(found)


def test_threshold_is_exclusive():
    scores = np.zeros((3, 2), np.float32)
    scores[0, 0] = 0.25
    scores[0, 1] = np.nextafter(np.float32(0.25), np.float32(1))
    for multi_label in (False, True):
        assert select_candidates(scores, PostprocessSettings(multi_label=multi_label))[2].tolist() == [1]


@pytest.mark.parametrize("output_format", [NMS_ROWS, END2END_ROWS])
def test_rows_of_a_graph(output_format):
    output = np.zeros((1, 300, 6), np.float32)
    output[0, 0] = [320, 330, 340, 350, 0.5, 2]
    output[0, 1] = [1, 2, 3, 4, 0.9, 0]
    output[0, 2] = [1, 2, 3, 4, 0.1, 1]
    settings = PostprocessSettings()
    (found,) = get_task("detect").postprocess({"output0": output}, info(output_format=output_format), [SAME], settings)
    assert found.classes.tolist() == [0, 2]
    np.testing.assert_allclose(found.boxes, [[1, 2, 3, 4], [320, 330, 340, 350]])
    settings = PostprocessSettings(max_det=1)
    (found,) = get_task("detect").postprocess(
        {"output0": output}, info(output_format=output_format), [SAME], PostprocessSettings(max_det=1)
    )
    assert found.classes.tolist() == [0]


def test_detr_queries():
    """Boxes as fractions of the input that ran (640 x 320), not of the model's own size."""
    output = np.zeros((1, 4, 7), np.float32)
    output[0, 0] = [0.5, 0.5, 0.25, 0.5, 0.3, 0.4, 0.1]
    output[0, 1] = [0.25, 0.75, 0.5, 0.25, 0.1, 0.1, 0.9]
    output[0, 2] = [0.5, 0.5, 1, 1, 0.25, 0.2, 0.1]
    output[0, 3] = output[0, 0]
    wide = compute_letterbox((320, 640), (320, 640))
    detect, model = get_task("detect"), info(output_format=DETR_QUERIES)
    (found,) = detect.postprocess({"output0": output}, model, [wide], PostprocessSettings(multi_label=True))
    np.testing.assert_allclose(found.boxes, [[0, 200, 320, 280], [240, 80, 400, 240], [240, 80, 400, 240]])
    np.testing.assert_allclose(found.scores, [0.9, 0.4, 0.4])
    assert found.classes.tolist() == [2, 1, 1]
    (found,) = detect.postprocess({"output0": output}, model, [wide], PostprocessSettings(max_det=1))
    assert found.classes.tolist() == [2]


def test_detr_rows():
    """As queries, with score and class; one query may have several rows."""
    rows = np.array(
        [[[0.25, 0.75, 0.5, 0.25, 0.9, 2], [0.25, 0.75, 0.5, 0.25, 0.4, 0], [0, 0, 0, 0, 0, 0]]], np.float32
    )
    wide = compute_letterbox((320, 640), (320, 640))
    detect, model = get_task("detect"), info(output_format=DETR_ROWS)
    (found,) = detect.postprocess({"output0": rows}, model, [wide], PostprocessSettings())
    np.testing.assert_allclose(found.boxes, [[0, 200, 320, 280]] * 2)
    np.testing.assert_allclose(found.scores, [0.9, 0.4])
    assert found.classes.tolist() == [2, 0]


@pytest.mark.parametrize("shape", [(1, 84, 8400), (1, 7), (1, 8400, 7)])
def test_other_outputs_are_refused(shape):
    with pytest.raises(ModelError) as caught:
        decoded(np.zeros(shape, np.float32))
    assert caught.value.code == "task-output-shape"
    assert caught.value.fields == {"shape": shape, "columns": 7}


def test_unknown_task():
    with pytest.raises(ModelError) as caught:
        get_task("depth")
    assert caught.value.code == "task-unknown"
    assert set(TASKS) <= set(caught.value.fields["names"])


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"conf": 1.5}, "argument-invalid"),
        ({"iou": -0.1}, "argument-invalid"),
        ({"max_det": 0}, "argument-invalid"),
    ],
)
def test_settings_out_of_range(options, code):
    with pytest.raises(RecipeError) as caught:
        PostprocessSettings(**options)
    assert caught.value.code == code


def test_coco_boxes():
    labels = Labels(classes=np.array([1]), boxes=np.array([[1, 2, 4, 8]], np.float32))
    assert get_task("detect").to_coco(labels, "B") == [{"bbox": [1, 2, 3, 6], "area": 18}]


def test_drawing_leaves_the_image_alone():
    image = np.full((120, 160, 3), 200, np.uint8)
    found = Detections(
        shape=(120, 160),
        boxes=np.array([[20, 40, 80, 100], [0, 0, 30, 30]], np.float32),
        scores=np.array([0.9, 0.4], np.float32),
        classes=np.array([0, 9]),
    )
    drawn = get_task("detect").draw(image, found, {0: "cat"})
    assert (image == 200).all()
    assert drawn.shape == image.shape
    changed = (drawn != image).any(-1)
    assert changed[40, 30]
    assert changed[70, 20]
    assert not changed[70, 50]
    assert not changed[110, 150]
    assert "2 in 160x120: classes 0 (0.90), 9 (0.40)" in repr(found)
