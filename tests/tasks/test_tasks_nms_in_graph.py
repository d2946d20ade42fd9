"""NMS in the graph gives the same predictions as NMS outside, for every task with boxes."""

from __future__ import annotations

import numpy as np
import pytest
from task_models import drawn_set, untrained

import trtkit
from trtkit.data import open_dataset, read_image
from trtkit.errors import ModelError, RecipeError
from trtkit.models.model import ModelInfo
from trtkit.tasks import PostprocessSettings, get_task


@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb"])
def test_predictions_are_the_same(task, tmp_path):
    # At 64 pixels there are fewer boxes than the 300 rows of NMS.
    model = untrained(task, 128)
    images = [read_image(path) for path in open_dataset(drawn_set(tmp_path, task), task=task).images("val")[:3]]
    found = {}
    for nms in (False, True):
        path = trtkit.export(model, format="onnx", nms=nms, output=tmp_path / f"{nms}.onnx").path
        with trtkit.open(path) as runner:
            found[nms] = runner.predict(images, conf=0.25)
    assert sum(len(one) for one in found[True]) > 0
    for outside, inside in zip(found[False], found[True], strict=True):
        assert inside.classes.tolist() == outside.classes.tolist()
        np.testing.assert_allclose(inside.scores, outside.scores, atol=1e-6)
        np.testing.assert_allclose(inside.boxes, outside.boxes, atol=1e-3)
        if task == "segment":
            np.testing.assert_allclose(inside.masks.coefficients, outside.masks.coefficients, atol=1e-5)
            assert inside.masks.rles == outside.masks.rles
        if task == "pose":
            np.testing.assert_allclose(inside.keypoints, outside.keypoints, atol=1e-3)
        if task == "obb":
            np.testing.assert_allclose(inside.xywhr, outside.xywhr, atol=1e-3)


def test_classify_refuses_it(tmp_path):
    with pytest.raises(RecipeError) as error:
        trtkit.export(untrained("classify"), format="onnx", nms=True, output=tmp_path / "a.onnx")
    assert error.value.code == "nms-not-applicable"


@pytest.mark.parametrize(
    ("task", "shapes", "code", "columns"),
    [
        ("segment", {"output0": (1, 38, 9)}, "task-prototypes-missing", None),
        ("segment", {"output0": (1, 38, 9), "output1": (1, 16, 4, 4)}, "task-output-shape", 22),
        ("pose", {"output0": (1, 11, 9)}, "task-output-shape", 15),
        ("obb", {"output0": (1, 6, 9)}, "task-output-shape", 7),
        ("classify", {"output0": (1, 5)}, "task-output-shape", 2),
    ],
)
def test_outputs_of_another_task_are_refused(task, shapes, code, columns):
    info = ModelInfo(task=task, names={0: "a", 1: "b"}, kpt_shape=(3, 3) if task == "pose" else None)
    outputs = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    with pytest.raises(ModelError) as caught:
        get_task(task).postprocess(outputs, info, [], PostprocessSettings())
    assert caught.value.code == code
    assert caught.value.fields.get("columns") == columns
