"""Training lowers the loss, stops and resumes, and its checkpoints open."""

import dataclasses
import json

import numpy as np
import pytest
import scenes
import torch
import train_demo
import validation
from criterion import Criterion, distances_to_oriented
from demo_checkpoint import save_checkpoint
from demo_models import MODELS, build
from scene_renderer import Renderer
from validation import Validation

import trtkit


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Assets of plain photographs and of digits that are bars and blocks."""
    digits = np.zeros((20, 10, 10), np.float32)
    for number in range(20):
        digits[number, 1:9, 2 : 4 + number % 5] = 1
    photographs = tuple(np.full((64, 64, 3), 15 * n, np.uint8) for n in range(14))
    path = tmp_path_factory.mktemp("assets") / "assets.npz"
    scenes.Assets(photographs, digits, np.arange(20) % 10).save(path)
    return path


def settings(out, packed, **changes):
    plain = {"batch": 2, "imgsz": 64, "scenes": 2, "checked": 2, "device": "cpu", "steps": 2, "every": 1e9}
    return train_demo.Settings(out=out, assets=packed, **{**plain, **changes})


# yolo11t has nothing that yolo11t-seg has not.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.exhaustive] if name == "yolo11t" else []) for name in MODELS]
)
def test_every_model_trains_and_its_checkpoint_opens(name, tmp_path, packed):
    trainer = train_demo.Trainer(MODELS[name], settings(tmp_path, packed, **({"batch": 8} if "cls" in name else {})))
    before = [parameter.clone() for parameter in trainer.yolo.parameters()]
    line = trainer.train()
    assert np.isfinite(line["loss"])
    assert line["step"] == 2
    changed = [not torch.equal(a, b) for a, b in zip(before, trainer.yolo.parameters(), strict=True)]
    frozen = [not parameter.requires_grad for parameter in trainer.yolo.parameters()]
    # A level without a label leaves its branches as they are.
    assert np.mean([a or b for a, b in zip(changed, frozen, strict=True)]) > 0.8
    model = trtkit.load(tmp_path / f"{name}.pt")
    assert (model.task, model.architecture, dict(model.names)[9]) == (MODELS[name].task, name, "9")
    assert model.notes["license"] == "Apache-2.0"
    # What was read computes what was saved, but for half precision.
    with torch.no_grad():
        image = torch.rand(1, 3, 64, 64)
        ours, theirs = trainer.average.eval()(image), model.module(image)
    ours, theirs = (output[0] if isinstance(output, tuple) else output for output in (ours, theirs))
    torch.testing.assert_close(theirs, ours, rtol=0.02, atol=0.1)


def test_the_loss_of_a_repeated_batch_falls(tmp_path, packed, monkeypatch):
    monkeypatch.setattr(train_demo, "PEAK_RATE", 0.01)
    trainer = train_demo.Trainer(MODELS["yolo26t"], settings(tmp_path, packed))
    batch = trainer.pool.batch(2, 64, augment=False)
    monkeypatch.setattr(trainer.pool, "batch", lambda *_, **__: batch)
    monkeypatch.setattr(trainer.pool, "renew", lambda _: None)
    trainer.yolo.train()
    losses = [float(trainer.take_step(0.1, 0.0)["loss"]) for _ in range(20)]
    assert losses[-1] < 0.7 * losses[0]


def test_a_stopped_training_goes_on_where_it_was(tmp_path, packed):
    train_demo.Trainer(MODELS["yolo11t-cls"], settings(tmp_path, packed, batch=8, imgsz=32)).train()
    trainer = train_demo.Trainer(
        MODELS["yolo11t-cls"], settings(tmp_path, packed, batch=8, imgsz=32, steps=3, resume=True)
    )
    assert trainer.step == 2
    assert trainer.train()["step"] == 3
    lines = (tmp_path / "yolo11t-cls.log").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 3]


def test_an_undefined_gradient_changes_no_weight(tmp_path, packed, monkeypatch):
    trainer = train_demo.Trainer(MODELS["yolo11t-cls"], settings(tmp_path, packed, batch=8, imgsz=32))
    weight = next(trainer.yolo.parameters())
    before = weight.detach().clone()
    monkeypatch.setattr(trainer, "compute_loss", lambda augment: (weight.sum() * float("nan"), {}))
    trainer.take_step(0.5, 0.0)
    assert torch.equal(weight, before)


def test_the_learning_rate_rises_and_falls(tmp_path, packed):
    rate = train_demo.Trainer.rate
    rates = [rate(None, progress, 0.0) for progress in (0, 0.015, 0.03, 0.5, 1)]
    assert rates[0] == 0
    assert rates[1] == pytest.approx(train_demo.PEAK_RATE / 2, rel=0.01)
    assert rates[2] > rates[3] > rates[4] == pytest.approx(train_demo.PEAK_RATE * train_demo.LAST_RATE)
    assert rate(None, 0.5, 0.5) == 0


@pytest.mark.parametrize("name", ["yolo11t", "yolo26t", "yolo11t-obb", "yolo11t-pose"])
def test_the_criterion_decodes_as_the_head_that_is_exported(name):
    yolo = build(MODELS[name], torch.device("cpu"), 0)
    head, criterion = yolo.head, Criterion(yolo.head, 96, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    count = len(criterion.centers)
    logits = torch.randn((1, 4 * head.bins, count), generator=generator)
    centers, strides = criterion.cells.T[None], criterion.strides[None, None]
    distances = criterion.decode_distances(logits.transpose(1, 2))
    decoded = logits if head.dfl is None else head.dfl(logits)
    torch.testing.assert_close(distances.transpose(1, 2), decoded)
    if name == "yolo11t-obb":
        values = torch.randn((1, 1, count), generator=generator)
        angles = criterion.decode_angles(values[:, 0])
        boxes = criterion.decode_boxes(distances, angles, criterion.centers, criterion.strides)
        expected = head.decode_oriented_boxes(decoded, angles[:, None], centers, strides)
        torch.testing.assert_close(boxes[..., :4].transpose(1, 2), expected, rtol=1e-4, atol=1e-3)
        return
    boxes = criterion.decode_boxes(distances, None, criterion.centers, criterion.strides)
    middle, sides = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    expected = head.decode_boxes(decoded, centers, strides)
    torch.testing.assert_close(torch.cat([middle, sides], -1).transpose(1, 2), expected, rtol=1e-4, atol=1e-3)
    if name == "yolo11t-pose":
        values = torch.randn((1, 12, count), generator=generator)
        points = criterion.decode_keypoints(values.transpose(1, 2).unflatten(-1, (4, 3)), torch.arange(count)[None])
        expected = head.decode_keypoints(values, centers, strides).transpose(1, 2).unflatten(-1, (4, 3))
        torch.testing.assert_close(points, expected[..., :2])


def test_distances_to_an_oriented_box_decode_to_it():
    yolo = build(MODELS["yolo11t-obb"], torch.device("cpu"), 0)
    criterion = Criterion(yolo.head, 96, torch.device("cpu"))
    boxes = torch.tensor([[30.0, 40, 20, 8, 0.5], [50, 20, 9, 9, -0.7]])
    centers, strides = torch.tensor([[33.0, 41], [52, 18]]), torch.tensor([8.0, 16])
    distances = distances_to_oriented(centers, boxes) / strides[:, None]
    torch.testing.assert_close(criterion.decode_boxes(distances, boxes[:, 4], centers, strides), boxes)


@pytest.mark.ultralytics
@pytest.mark.parametrize("name", MODELS)
def test_ultralytics_opens_the_checkpoints(name, tmp_path):
    ultralytics = pytest.importorskip("ultralytics")
    path = tmp_path / f"{name}.pt"
    save_checkpoint(path, MODELS[name], build(MODELS[name], torch.device("cpu"), 0), {})
    model = ultralytics.YOLO(path)
    assert (model.task, model.names[9]) == (MODELS[name].task, "9")
    (result,) = model.predict(np.zeros((64, 64, 3), np.uint8), imgsz=64, verbose=False)
    assert (result.probs is not None) == (model.task == "classify")


@pytest.mark.exhaustive
def test_all_checkpoints_together_take_at_most_12_mb(tmp_path, full_models):
    sizes = []
    for model in MODELS.values():
        path = tmp_path / f"{model.name}.pt"
        save_checkpoint(path, model, build(model, torch.device("cpu"), 0), {})
        sizes.append(path.stat().st_size)
    assert sum(sizes) < 12_000_000


@pytest.mark.parametrize("name", ["yolo11t", "yolo26t", "yolo11t-seg", "yolo11t-pose", "yolo11t-obb"])
def test_scores_are_those_of_the_predictions(name, packed, monkeypatch):
    """Random predictions score near 0; the labels themselves, as predictions, score 1."""
    model = dataclasses.replace(MODELS[name], imgsz=96)
    checked = Validation(model, Renderer(scenes.Assets.load(packed)), 2)
    yolo = build(model, torch.device("cpu"), 0)
    for least, most in ((0, 0.2), (2, 0)):  # all predictions, and none
        monkeypatch.setattr(validation, "LEAST_SCORE", least)
        assert all(score <= most for score in checked.score(yolo).values())
    batch = checked.batches[0]
    seen = batch.valid.clone()
    batch.valid[0] = False  # an image without labels
    monkeypatch.setattr(validation, "LEAST_SCORE", 0)
    checked.score(yolo)
    batch.valid.copy_(seen)

    rows = [batch.oriented[..., :4] if model.task == "obb" else _centers(batch.boxes)]
    rows.append(torch.nn.functional.one_hot(batch.classes, 10) * batch.valid[..., None])
    if model.task == "obb":
        rows.append(batch.oriented[..., 4:])
    elif model.task == "pose":
        rows.append(batch.keypoints.flatten(2))
    prototypes = ()
    if model.task == "segment":
        rows.append(torch.eye(scenes.SLOTS).expand(2, -1, -1))
        prototypes = (batch.masks * 2 - 1,)
    values = torch.cat([row.float() for row in rows], -1).transpose(1, 2)
    monkeypatch.setattr(validation, "LEAST_SCORE", 0.5)
    assert checked._mean_average_precision(lambda _: (values, *prototypes) if prototypes else values) > 0.95


def _centers(boxes):
    return torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], -1)
