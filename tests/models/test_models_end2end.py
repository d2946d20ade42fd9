"""Models with a one-to-many and a one-to-one head: which of them runs, what it returns, and files that lack one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_checkpoints import state_dict, ultralytics_like
from hypothesis import given, settings
from hypothesis import strategies as st
from raising import raises
from two_heads import EXTRA, HEADS, YOLOV10, yolo26

import trtkit
from trtkit.errors import ModelError
from trtkit.models import heads
from trtkit.models.model import DENSE, END2END_ROWS
from trtkit.models.yolo import build_model, load_weights


def save(path: Path, yaml: dict[str, Any], weights: dict[str, torch.Tensor] | None = None) -> Path:
    module = ultralytics_like(yaml, half=False)
    if weights is not None:
        lost = set(module.state_dict()) - set(weights)
        for name in {name.rpartition(".")[0] for name in lost}:
            parent, _, child = name.rpartition(".")
            setattr(module.get_submodule(parent), child, None)
    torch.save({"model": module, "train_args": {"imgsz": 64}}, path)
    return path


def top_rows(boxes: np.ndarray, scores: np.ndarray, extra: np.ndarray, count: int) -> np.ndarray:
    """The rows by sorting: the anchors of the highest scores, then the highest scores of these anchors."""
    anchors = np.argsort(-scores.max(0), kind="stable")[:count]
    flat = scores[:, anchors].T.reshape(-1)
    order = np.argsort(-flat, kind="stable")[:count]
    chosen = anchors[order // len(scores)]
    return np.concatenate(
        (boxes[:, chosen].T, flat[order, None], (order % len(scores))[:, None], extra[:, chosen].T), 1
    )


@given(
    classes=st.integers(1, 4),
    anchors=st.integers(1, 40),
    extra=st.integers(0, 2),
    count=st.integers(1, 50),
    dynamic=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=60)
def test_rows_are_the_highest_scores(
    classes: int, anchors: int, extra: int, count: int, dynamic: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    head = heads.Detect(classes, (8,), (8,), bins=1, one_to_one=True)
    head.max_det, head.dynamic = count, dynamic
    boxes, more = random.random((2, 4, anchors)), random.random((2, extra, anchors))
    # All scores differ, so that there is one order.
    scores = (random.permutation(2 * classes * anchors).reshape(2, classes, anchors) + 1.0) / (
        2 * classes * anchors + 1
    )
    rows = head.select_rows(*(torch.from_numpy(value).float() for value in (boxes, scores, more))).numpy()
    kept = min(count, anchors)
    assert rows.shape == (2, count if dynamic else kept, 6 + extra)
    for image in range(2):
        expected = top_rows(boxes[image], scores[image], more[image], len(rows[image]))
        # A dynamic head fills up with score 0 where even all classes of all anchors are fewer than its rows.
        found = rows[image][rows[image, :, 4] > 0]
        assert len(found) == len(expected)
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("task", sorted(HEADS))
def test_either_head_of_a_checkpoint(task: str, fake_ultralytics: None, tmp_path: Path) -> None:
    path = save(tmp_path / "both.pt", yolo26(task))
    dense, rows = trtkit.load(path), trtkit.load(path, end2end=True)
    assert (dense.task, dense.output_format, rows.output_format) == (task, DENSE, END2END_ROWS)
    assert (dense.end2end, rows.end2end, rows.row_settings) == (False, True, {"max_det": 300})
    assert dense.hash != rows.hash
    assert rows.with_end2end(False).hash == dense.hash
    assert dense.parameters == rows.parameters < sum(p.numel() for p in dense.module.parameters())
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    shapes = [model.module(images) for model in (dense, rows, rows.with_end2end(max_det=20))]
    shapes = [tuple((output[0] if isinstance(output, tuple) else output).shape) for output in shapes]
    anchors = 16 * 16 + 8 * 8
    assert shapes == [(2, 7 + EXTRA[task], anchors), (2, 300, 6 + EXTRA[task]), (2, 20, 6 + EXTRA[task])]


def test_a_checkpoint_of_yolov10(fake_ultralytics: None, tmp_path: Path) -> None:
    path = save(tmp_path / "both.pt", YOLOV10)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert trtkit.load(path).module(images).shape == (1, 7, 16 * 16 + 8 * 8)
    assert trtkit.load(path, end2end=True).module(images).shape == (1, 300, 6)


@pytest.mark.parametrize("yaml", [yolo26("pose"), YOLOV10], ids=["yolo26-pose", "yolov10"])
@pytest.mark.parametrize("end2end", [False, True])
def test_a_fused_checkpoint_has_one_head(
    yaml: dict[str, Any], end2end: bool, fake_ultralytics: None, tmp_path: Path
) -> None:
    number = len(yaml["backbone"]) + len(yaml["head"]) - 1
    weights = {
        name: value
        for name, value in state_dict(yaml).items()
        if not name.startswith(f"model.{number}.") or name.startswith(f"model.{number}.one2one_") == end2end
        or ".dfl." in name
    }  # fmt: skip
    path = save(tmp_path / "fused.pt", yaml, weights)
    model = trtkit.load(path)
    assert model.end2end == end2end
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    both = load_weights(build_model(yaml), state_dict(yaml)).with_head(end2end=end2end)
    torch.testing.assert_close(model.module(images), both(images))
    if end2end:
        assert trtkit.load(path, end2end=True).hash == model.hash
        with raises(ModelError, "model-without-one-to-many-head"):
            model.with_end2end(False)
    else:
        with raises(ModelError, "model-without-one-to-one-head", path=path):
            trtkit.load(path, end2end=True)


def test_a_model_without_a_one_to_one_head_says_so(checkpoint: Path) -> None:
    model = trtkit.load(checkpoint)
    for source in (checkpoint, model):
        with raises(ModelError, "model-without-one-to-one-head"):
            trtkit.load(source, end2end=True)
    assert model.with_end2end(False) is model


def test_training_only_weights_are_not_needed() -> None:
    yaml = yolo26("pose")
    weights = state_dict(yaml)
    further = {name: torch.ones(3) for name in ("model.4.flow_model.loc", "model.4.one2one_cv4_sigma.0.bias")}
    model = load_weights(build_model(yaml), {**weights, **further})
    assert not set(further) & set(model.state_dict())
