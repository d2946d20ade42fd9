"""Differences of outputs: none of equal ones, in any order of rows; none grows less than what was changed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtkit.data.images import compute_letterbox
from trtkit.evaluation.output_differences import OUTPUTS, measure_differences
from trtkit.models.model import DENSE, END2END_ROWS, RAW_MAPS, ModelInfo
from trtkit.tasks.base import BoxLayout
from trtkit.tasks.raw_maps import to_dense

TRANSFORM = compute_letterbox((64, 64), (64, 64))
EXTRA = {"detect": 0, "segment": 4, "pose": 6, "obb": 1}


def make_outputs(task, output_format, seed, count):
    random = np.random.default_rng(seed)
    centers, sizes = random.uniform(8, 56, (count, 2)), random.uniform(4, 16, (count, 2))
    extra = random.uniform(0.1, 60 if task == "pose" else 0.9, (count, EXTRA[task]))
    if output_format == DENSE:
        value = np.concatenate((centers, sizes, random.random((count, 2)), extra), 1).T
    else:
        boxes = (centers, sizes) if task == "obb" else (centers - sizes / 2, centers + sizes / 2)
        # No two scores are equal, which would leave their order open.
        scores = random.permutation(np.linspace(0.05, 0.95, count))[:, None]
        value = np.concatenate((*boxes, scores, random.integers(0, 2, (count, 1)), extra), 1)
    outputs = {"output0": value[None].astype(np.float32)}
    if task == "segment":
        outputs["output1"] = random.normal(0, 3, (1, 4, 16, 16)).astype(np.float32)
    return outputs


def info(task, output_format):
    kpt_shape = (2, 3) if task == "pose" else None
    return ModelInfo(
        task=task, names={0: "a", 1: "b"}, imgsz=(64, 64), output_format=output_format, kpt_shape=kpt_shape
    )


@pytest.mark.parametrize("output_format", [DENSE, END2END_ROWS])
@pytest.mark.parametrize("task", EXTRA)
@given(seed=st.integers(0, 2**16), count=st.integers(1, 20))
def test_equal_outputs_do_not_differ_in_any_order(task, output_format, seed, count):
    outputs = make_outputs(task, output_format, seed, count)
    other = {name: value.copy() for name, value in outputs.items()}
    if output_format == END2END_ROWS:
        other["output0"] = other["output0"][:, np.random.default_rng(seed).permutation(count)]
    rows = measure_differences(info(task, output_format), other, outputs, TRANSFORM)
    assert {row.output for row in rows} <= set(OUTPUTS)
    assert len({row.output for row in rows}) == len(rows)
    assert all(row.difference <= 1e-4 for row in rows), rows


@given(seed=st.integers(0, 2**16), change=st.floats(0.01, 0.4), anchor=st.integers(0, 9))
def test_a_score_differs_by_what_it_was_changed(seed, change, anchor):
    outputs = make_outputs("detect", DENSE, seed, 10)
    other = {"output0": outputs["output0"].copy()}
    other["output0"][0, 5, anchor] += change
    row = next(row for row in measure_differences(info("detect", DENSE), other, outputs, TRANSFORM))
    assert row.output == "scores"
    assert row.difference == pytest.approx(change, abs=1e-6)


def test_raw_maps_differ_as_what_they_decode_to():
    random = np.random.default_rng(0)
    maps = {}
    for stride in (8, 16):
        shape = (64 // stride, 64 // stride)
        for name, channels, mean in (("boxes", 64, 0), ("scores", 2, -1), ("coefficients", 4, 0)):
            maps[f"{name}_s{stride}"] = random.normal(mean, 2, (1, channels, *shape)).astype(np.float32)
    maps["output1"] = random.normal(0, 3, (1, 4, 16, 16)).astype(np.float32)
    other = {name: value.copy() for name, value in maps.items()}
    other["scores_s8"][0, 1, 2, 3] += 1
    dense = [to_dense(value, info("segment", RAW_MAPS), BoxLayout(extra=4)) for value in (other, maps)]
    rows = measure_differences(info("segment", RAW_MAPS), other, maps, TRANSFORM)
    assert rows == measure_differences(info("segment", DENSE), *dense, TRANSFORM)
    assert rows[0].difference > 0.1
