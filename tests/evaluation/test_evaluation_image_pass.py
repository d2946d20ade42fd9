"""Evaluators put together from shards equal one evaluator of all images."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from task_models import CannedRunner, drawn_set, noisy_outputs

from trtkit.data import open_dataset
from trtkit.evaluation.image_pass import make_evaluator, run_images
from trtkit.progress import Reporter
from trtkit.tasks import PostprocessSettings, get_task


@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb"])
@pytest.mark.parametrize("cuts", [(0, 5), (2, 3), (4, 4)])
def test_shards_of_an_evaluation_add_up(tmp_path: Path, task: str, cuts: tuple[int, int]) -> None:
    dataset = open_dataset(drawn_set(tmp_path, task, count=8), task=task)
    paths = dataset.images("val")
    outputs = noisy_outputs(dataset, task, seed=0)
    del outputs[1]
    paths[1].write_bytes(b"cut short")
    settings = PostprocessSettings(conf=0.001, iou=0.7, max_det=300, multi_label=True)
    whole, joined = make_evaluator(get_task(task), dataset), make_evaluator(get_task(task), dataset)
    run_images(CannedRunner(task, outputs), whole, paths, (64, 64), 1, settings, Reporter())
    runner = CannedRunner(task, outputs)
    # The cores beside a GPU read ahead on several threads, in the same order.
    runner.engine = True
    for start, end in ((0, cuts[0]), cuts, (cuts[1], len(paths))):
        shard = make_evaluator(get_task(task), dataset)
        run_images(runner, shard, paths[start:end], (64, 64), 1, settings, Reporter())
        joined.extend(pickle.loads(pickle.dumps(shard.rows())))
    expected, scores = whole.compute_scores(), joined.compute_scores()
    assert scores.metrics == expected.metrics
    assert scores.confidence == expected.confidence
    for name in ("per_class", "per_image", "detections", "labels"):
        assert getattr(scores, name).equals(getattr(expected, name)), name
        assert getattr(scores, name).schema == getattr(expected, name).schema, name
