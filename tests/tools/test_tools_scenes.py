"""Scenes come from their seed, and the labels fit the pixels, for files and for training batches."""

import dataclasses
import sys

import cv2
import demo_images
import numpy as np
import pytest
import scenes
import torch
from scene_batches import ScenePool, letterbox_batch, smallest_rectangles
from scene_renderer import Renderer

from trtkit.data import open_dataset
from trtkit.data.images import letterbox
from trtkit.tasks.nms import corners_to_xywhr, prob_iou


@pytest.fixture(scope="module")
def assets():
    """Two plain photographs, and ten scans: a thick bar each, a little wider from digit to digit."""
    digits = np.zeros((10, 10, 10), np.float32)
    for number in range(10):
        digits[number, 1:9, 3 : 6 + number // 3] = 1
    photographs = tuple(np.full((80, 100 + 20 * n, 3), 20 + 15 * n, np.uint8) for n in range(14))
    return scenes.Assets(photographs, digits, np.arange(10))


def draw_one(assets, seed, split="val"):
    return scenes.draw(np.random.default_rng([seed, 1, 0]), 1, assets, split)


def test_a_seed_gives_the_same_scene_and_another_seed_another(assets):
    renderer = Renderer(assets)
    images = [renderer.render(draw_one(assets, seed)).images for seed in (1001, 1001, 1002)]
    assert torch.equal(images[0], images[1])
    assert images[0].shape != images[2].shape or not torch.equal(images[0], images[2])


def test_digits_of_the_two_splits_come_from_different_scans(assets):
    train, val = (scenes.draw(np.random.default_rng(0), 50, assets, split).digit for split in scenes.SPLITS)
    assert not set(train.ravel()) & set(val.ravel())


def test_boxes_hold_the_masks_and_masks_lie_in_the_cell(assets):
    drawn = Renderer(assets).render(draw_one(assets, 1003), keep_masks=True)
    assert drawn.masks
    for slot, (left, top, mask) in drawn.masks.items():
        ys, xs = np.nonzero(mask)
        box = left + xs.min(), top + ys.min(), left + xs.max() + 1, top + ys.max() + 1
        assert drawn.boxes[0, slot].tolist() == list(box)
        cell = drawn.corners[0, slot].numpy()
        assert cv2.pointPolygonTest(cell, (float(left + xs.mean()), float(top + ys.mean())), False) > 0


def test_a_batch_has_the_pixels_and_labels_of_the_single_scenes(assets):
    renderer = Renderer(assets)
    draws = scenes.draw(np.random.default_rng(5), 2, assets, "val")
    draws.noise[:] = 0
    batch = renderer.render(draws)
    for index in range(2):
        single = scenes.Draws(**{name: value[index : index + 1] for name, value in vars(draws).items()})
        alone = renderer.render(single, keep_masks=True)
        height, width = draws.size[index]
        difference = (batch.images[index, :, :height, :width].int() - alone.images[0].int()).abs()
        # Blur takes in what lies beyond the scene's edge in one of them.
        assert (difference[:, 8:-8, 8:-8] <= 1).float().mean() > 0.999
        assert torch.equal(batch.exists[index], alone.exists[0])
        assert torch.equal(batch.boxes[index][batch.exists[index]], alone.boxes[0][alone.exists[0]])


def test_plain_batches_are_letterboxed_as_by_the_package(assets):
    drawn = Renderer(assets).render(draw_one(assets, 1004))
    image = drawn.images[0].permute(1, 2, 0).numpy()
    expected, transform = letterbox(image, (160, 160))
    batch = letterbox_batch(drawn.tensors(), 160)
    ours = (batch.images[0] * 255).permute(1, 2, 0).numpy()
    assert np.abs(ours - expected).mean() < 0.5
    corners = transform.to_network(drawn.boxes[0].numpy())[batch.valid[0].numpy()]
    np.testing.assert_allclose(batch.boxes[0][batch.valid[0]], corners.clip(0, 160), atol=1e-3)


def test_mask_targets_cover_their_boxes(assets):
    pool = ScenePool(Renderer(assets), (3,), "train", 4)
    batch = pool.batch(4, 160, augment=True, masks=True)
    assert batch.masks.shape == (4, scenes.SLOTS, 40, 40)
    for image, slot in batch.valid.nonzero().tolist():
        ys, xs = (batch.masks[image, slot] > 0.5).nonzero(as_tuple=True)
        x0, y0, x1, y1 = (batch.boxes[image, slot] / 4).tolist()
        if (x1 - x0) * (y1 - y0) < 30:  # of a few pixels, none may be covered by half
            continue
        found = [xs.min().item(), ys.min().item(), xs.max().item() + 1, ys.max().item() + 1]
        assert found == pytest.approx([x0, y0, x1, y1], abs=1.5)


def test_crops_show_digits_of_their_class(assets):
    crops = ScenePool(Renderer(assets), (4,), "train", 4).crops(32, 32, augment=True)
    assert crops.images.shape == (32, 3, 32, 32)
    assert crops.valid.any()
    assert set(crops.classes[crops.valid].tolist()) <= set(range(8))


def test_smallest_rectangles_are_those_of_opencv():
    generator = np.random.default_rng(0)
    points = generator.uniform(0, 100, (50, 4, 2)).astype(np.float32)
    ours, theirs = smallest_rectangles(torch.from_numpy(points)).numpy(), corners_to_xywhr(points)
    np.testing.assert_allclose(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3], rtol=1e-4)
    # Of a triangle, several rectangles are equally small.
    same = prob_iou(ours, theirs).diagonal() > 0.98
    assert same.mean() > 0.7
    assert np.abs(ours[:, 4]).max() <= np.pi / 4 + 1e-6


def test_written_scenes_open_as_data_sets_of_all_tasks(tmp_path, assets):
    packed = tmp_path / "assets.npz"
    assets.save(packed)
    loaded = scenes.Assets.load(packed)
    assert all(np.array_equal(a, b) for a, b in zip(loaded.photographs, assets.photographs, strict=True))
    renderer = Renderer(loaded)
    out = tmp_path / "scenes"
    scenes.make_folders(out)
    for index in range(2):
        for split in scenes.SPLITS:
            scenes.write_scene(renderer, out, split, index, seed=1001, side=320)
    for task in (*scenes.TASKS, "classify"):
        data = open_dataset(out / task if task == "classify" else out / task / "data.yaml", task=task)
        assert data.images("val")
        assert sum(len(data.labels(path).classes) for path in data.images("train")) > 0
    assert max(cv2.imread(str(path)).shape[0] for path in (out / "pose" / "images" / "val").iterdir()) <= 320


def test_fewer_photographs_are_refused(tmp_path, assets, monkeypatch):
    packed = tmp_path / "fewer.npz"
    scenes.Assets(assets.photographs[:-1], assets.digits, assets.classes).save(packed)
    for path in (packed, tmp_path / "none.npz"):
        with pytest.raises(SystemExit):
            scenes.Assets.load(path)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SystemExit, match="scikit-learn"):
        scenes.Assets.load(None)


def test_the_demo_s_images_are_written_for_every_task(tmp_path, assets, monkeypatch):
    packed = tmp_path / "assets.npz"
    digits = np.tile(assets.digits, (2, 1, 1))
    scenes.Assets(assets.photographs, digits, np.arange(20) % 4).save(packed)
    few = {task: dataclasses.replace(amount, train=1, val=2) for task, amount in demo_images.AMOUNTS.items()}
    monkeypatch.setattr(demo_images, "AMOUNTS", few)
    monkeypatch.setattr(demo_images, "DIGITS", range(4))
    size = demo_images.write_demo_images(tmp_path / "demo", packed)
    assert size == sum(path.stat().st_size for path in (tmp_path / "demo").rglob("*.jpg"))
    for task in (*scenes.TASKS, "classify"):
        folder = tmp_path / "demo" / task
        data = open_dataset(folder if task == "classify" else folder / "data.yaml", task=task)
        assert {split: len(data.images(split)) for split in scenes.SPLITS} == (
            {"train": 4, "val": 8} if task == "classify" else {"train": 1, "val": 2}
        )
    monkeypatch.setattr(demo_images, "BYTE_LIMIT", size - 1)
    with pytest.raises(SystemExit):
        demo_images.write_demo_images(tmp_path / "again", packed)
