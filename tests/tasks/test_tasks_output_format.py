"""An output format defined here, outside the package, works in predict and evaluate for every task with boxes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from task_models import CannedRunner, drawn_set, noisy_outputs

import trtkit
from trtkit.data import open_dataset
from trtkit.errors import ModelError
from trtkit.models import OutputFormat
from trtkit.tasks import register_output_format
from trtkit.tasks.base import RawDetections
from trtkit.tasks.nms import nms

SIDE = 64
QUERIES = OutputFormat(name="test_queries", needs_nms=True)
"""One row per query, as DETR has it: class scores, box center and size as fractions of the input, extra values."""


@register_output_format(QUERIES.name)
def decode_queries(outputs, info, layout, settings):
    classes = len(info.names)
    queries = outputs["queries"]
    assert queries.shape[2] == classes + 4 + layout.extra
    for rows in queries:
        scores = rows[:, :classes]
        index, numbers = np.nonzero(scores > settings.conf)
        if not settings.multi_label:
            best = scores.argmax(1)
            index = np.flatnonzero(scores.max(1) > settings.conf)
            numbers = best[index]
        center, half = rows[index, classes : classes + 2] * SIDE, rows[index, classes + 2 : classes + 4] * SIDE / 2
        boxes = np.concatenate((center - half, center + half), 1)
        keep = nms(boxes, scores[index, numbers], numbers, iou=settings.iou, max_det=settings.max_det)
        yield RawDetections(
            boxes=boxes[keep],
            scores=scores[index, numbers][keep],
            classes=numbers[keep],
            extra=rows[index[keep], classes + 4 :],
        )


def to_queries(outputs):
    """Dense outputs in the format of this module; all divisions are by powers of two, so exact."""
    rows = outputs["output0"].transpose(0, 2, 1)
    queries = np.concatenate((rows[..., 4:6], rows[..., :4] / SIDE, rows[..., 6:]), 2)
    return {"queries": np.ascontiguousarray(queries), **{k: v for k, v in outputs.items() if k != "output0"}}


def make_runner(task, outputs, output_format=None):
    runner = CannedRunner(task, outputs, size=SIDE)
    if output_format is not None:
        runner.info = dataclasses.replace(runner.info, output_format=output_format)
    return runner


@pytest.mark.parametrize("task", ["detect", "segment", "pose"])
def test_predict_and_evaluate_read_the_new_format(task, tmp_path):
    dataset = open_dataset(drawn_set(tmp_path, task), task=task)
    dense = noisy_outputs(dataset, task, seed=0)
    queries = [to_queries(one) for one in dense]

    expected = make_runner(task, dense).predict(dataset.images("val"), conf=0.3)
    predictions = make_runner(task, queries, QUERIES).predict(dataset.images("val"), conf=0.3)
    assert sum(map(len, predictions)) > 0
    for ours, theirs in zip(predictions, expected, strict=True):
        np.testing.assert_array_equal(ours.boxes, theirs.boxes)
        np.testing.assert_array_equal(ours.scores, theirs.scores)
        np.testing.assert_array_equal(ours.classes, theirs.classes)

    reference = trtkit.evaluate(make_runner(task, dense), dataset)
    evaluation = trtkit.evaluate(make_runner(task, queries, QUERIES), dataset)
    assert evaluation.metrics == reference.metrics
    assert evaluation.metrics["mAP50(B)"] > 0
    assert evaluation.detections.equals(reference.detections)


def test_the_format_survives_the_metadata_of_a_file():
    info = dataclasses.replace(CannedRunner("detect", []).info, output_format=QUERIES)
    assert type(info).from_metadata(info.to_metadata()).output_format == QUERIES


def test_an_unregistered_format_is_an_error(tmp_path):
    dataset = open_dataset(drawn_set(tmp_path, "detect"), task="detect")
    runner = make_runner("detect", noisy_outputs(dataset, "detect", seed=0), OutputFormat(name="unregistered"))
    with pytest.raises(ModelError) as caught:
        runner.predict(dataset.images("val"))
    assert caught.value.code == "output-format-unknown"
    assert caught.value.fields["name"] == "unregistered"
    assert QUERIES.name in caught.value.fields["names"]
