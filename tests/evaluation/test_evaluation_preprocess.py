"""One description of preprocessing, read by every verb: channels, stretch, mean and standard deviation, end to end."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
import task_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from raising import raises
from torch import nn

import trtkit as tk
from trtkit import backends
from trtkit.calibration.sampling import load_input_batches
from trtkit.data import read_image
from trtkit.errors import DataError
from trtkit.graph.torch_export import trace
from trtkit.models.model import DETR_QUERIES, Preprocess

# Channels


@pytest.fixture(scope="module", params=[1, 4])
def channels(request):
    return request.param


@pytest.fixture(scope="module")
def data(tmp_path_factory, channels):
    """A data set of TIFF files with one gray page a channel."""
    return task_models.drawn_set(tmp_path_factory.mktemp("tiff"), "detect", channels=channels)


@pytest.fixture(scope="module")
def model(channels):
    return task_models.untrained("detect", channels=channels)


@pytest.fixture(scope="module")
def int8(model, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    return tk.export(model, format="onnx", int8=True, data=data, output=folder / "int8.onnx")


def test_file_says_the_channels(int8, channels):
    assert tk.load(int8.path).channels == channels
    assert int8.info.preprocess.channels == channels


def test_predict_reads_files_and_arrays_alike(int8, data, channels):
    paths = sorted((data.parent / "images" / "val").glob("*.tiff"))
    with tk.open(int8) as runner:
        from_files = runner.predict(paths, conf=0.01)
        from_folder = runner.predict(paths[0].parent, conf=0.01)
        arrays = [read_image(path, channels) for path in paths]
        from_arrays = runner.predict(arrays, conf=0.01)
        grid = runner.draw(paths[0])
        with raises(DataError, "predict-image-array", shape=(9, 9, 3), expected=channels):
            runner.predict(np.zeros((9, 9, 3), np.uint8))
        if channels == 1:
            np.testing.assert_array_equal(runner.predict(arrays[0][..., 0], conf=0.01)[0].boxes, from_files[0].boxes)
    assert sum(map(len, from_files)) > 0
    for one, two, three in zip(from_files, from_folder, from_arrays, strict=True):
        np.testing.assert_array_equal(one.boxes, two.boxes)
        np.testing.assert_array_equal(one.boxes, three.boxes)
    assert grid.images[0].shape == (*arrays[0].shape[:2], 3)


def test_input_is_the_pages_in_order(data, channels):
    path = sorted((data.parent / "images" / "val").glob("*.tiff"))[0]
    _, pages = cv2.imreadmulti(str(path), flags=cv2.IMREAD_UNCHANGED)
    size = pages[0].shape
    preprocess = Preprocess(channels=channels)
    (batch,) = load_input_batches([path], preprocess=preprocess, size=size, batch=1, skipped=[])
    np.testing.assert_array_equal(batch[0], np.stack(pages[:channels]).astype(np.float32) / np.float32(255))


def test_compare(model, data, tmp_path):
    comparison = tk.compare(model, data, output=tmp_path / "out", build=False, runs=2, seconds=0.01)
    assert comparison.rows["precision"].to_list() == ["fp32", "fp16", "int8"]
    assert comparison.draw("int8", count=1).images[0].shape[2] == 3
    # Every changed object is drawn from its TIFF file.
    assert comparison.gallery("int8", conf=0.0)["png"].null_count() == 0


def test_doctor_and_sensitivity(model, data):
    assert tk.examine(data, against=None).images.height == 6
    assert tk.sensitivity(model, data.parent / "images" / "train", worst=0, probe_images=2).image_count == 2


def test_other_channels_are_refused_before_any_work(data, channels, tmp_path):
    other = task_models.untrained("detect")
    for call in (
        lambda: tk.calibrate(other, data),
        lambda: tk.export(other, format="onnx", int8=True, data=data, output=tmp_path / "a.onnx"),
        lambda: tk.compare(other, data, output=tmp_path / "out"),
        lambda: tk.sensitivity(other, data),
        lambda: tk.examine(data, model=other),
    ):
        with raises(DataError, "data-channels-mismatch", value=channels, expected=3):
            call()
    # Without a description the first image decides; color converts to gray and the other way round.
    five = task_models.untrained("detect", channels=5)
    with raises(DataError, "image-channels", value=channels, expected=5):
        tk.calibrate(five, data.parent / "images" / "train")


# Data without labels


def test_labels_are_asked_for_before_any_work(tmp_path):
    data = task_models.drawn_set(tmp_path, "detect")
    images, model = tmp_path / "images" / "train", task_models.untrained("detect")
    artifact = tk.export(model, format="onnx", output=tmp_path / "a.onnx")
    for call in (
        lambda: tk.evaluate(artifact, images),
        lambda: tk.compare(model, images, output=tmp_path / "out"),
        lambda: tk.search(model, images),
        lambda: tk.sweep(model, images),
        lambda: tk.sensitivity(model, images),
        lambda: tk.calibrate(model, images, stratify=True),
    ):
        with raises(DataError, "data-labels-needed", count=6):
            call()
    assert not (tmp_path / "out").exists()
    with raises(DataError, "data-split-missing", split="test"):
        tk.compare(model, data, split="test", output=tmp_path / "out")


@pytest.mark.parametrize("task", ["detect", "classify"])
def test_calibration_without_labels_is_the_same(task, tmp_path):
    data = task_models.drawn_set(tmp_path / "set", task)
    folder = tmp_path / "set" / ("train" if task == "classify" else "images/train")
    model = task_models.untrained(task)
    labeled = tk.calibrate(model, data)
    files = [str(path) for path in sorted(folder.rglob("*.png"))]
    for source in (folder, str(folder / "**" / "*.png"), files):
        calibration = tk.calibrate(model, source)
        assert calibration.ranges == labeled.ranges
        assert calibration.split == "images"
        # Labels are a part of the hash of labeled data only.
        assert len(calibration.provenance.data_hash) == 64
        assert calibration.provenance.data_hash != labeled.provenance.data_hash
    half = tk.calibrate(model, files, fraction=0.5, seed=3)
    assert half.image_count == 3
    assert tk.calibrate(model, files, fraction=0.5, calibration_images=2, seed=3).image_count == 2
    assert tk.calibrate(model, files[0]).image_count == 1
    artifact = tk.export(model, format="onnx", int8=True, data=files, output=tmp_path / "a.onnx")
    assert artifact.recipe.data == tuple(files)
    assert artifact.calibration_hash == tk.calibrate(model, files).hash


def test_unreadable_images_are_named(tmp_path):
    model = task_models.untrained("detect")
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    (tmp_path / "notes.md").write_text("no image either")
    with raises(tk.errors.CalibrationError, "calibration-images-unreadable", count=1, images=(str(bad),)):
        tk.calibrate(model, tmp_path)
    cv2.imwrite(str(tmp_path / "good.png"), np.zeros((40, 40, 3), np.uint8))
    with pytest.warns(UserWarning, match="bad.png"):
        assert tk.calibrate(model, tmp_path).image_count == 1


def test_search_takes_a_calibration_on_images_without_labels(tmp_path):
    data = task_models.drawn_set(tmp_path, "detect", count=3)
    model = task_models.untrained("detect")
    calibration = tk.calibrate(model, tmp_path / "images" / "train")
    found = tk.search(
        model,
        data,
        calibration=calibration,
        repair=False,
        probe_images=1,
        trials=1,
        resamples=10,
        backend="onnxruntime",
    )
    assert found.calibration.split == "images"
    assert "3 images without labels" in repr(calibration)


# Stretch


class BrightestCorners(nn.Module):
    """One query: the box of all pixels brighter than half, as fractions of the input, of class 1."""

    def forward(self, x):
        bright = (x.amax(1) > 0.5).float()
        rows, columns = bright.amax(2), bright.amax(1)

        def span(line):
            places = (torch.arange(line.shape[1]) + 0.5) / line.shape[1]
            half = 0.5 / line.shape[1]
            low = (places + (1 - line) * 9).amin(1) - half
            high = (places - (1 - line) * 9).amax(1) + half
            return (low + high) / 2, high - low

        (y, height), (x, width) = span(rows), span(columns)
        zero = torch.zeros_like(x)
        return torch.stack((x, y, width, height, zero, zero + 0.9), 1)[:, None]


@pytest.fixture(scope="module")
def queries():
    """A runner of it."""
    model = tk.load(
        BrightestCorners().eval(), task="detect", names=task_models.NAMES, imgsz=64, example=torch.zeros(1, 3, 64, 64),
        preprocess=Preprocess(kind="stretch"), output_format=DETR_QUERIES,
    )  # fmt: skip
    with backends.open(trace(model), backend="onnxruntime") as runner:
        yield runner


@settings(max_examples=25, deadline=None)
@given(st.integers(20, 200), st.integers(20, 200), st.data())
def test_stretched_boxes_map_back(queries, height, width, data):
    left, top = data.draw(st.integers(0, width - 10)), data.draw(st.integers(0, height - 10))
    right, bottom = data.draw(st.integers(left + 9, width)), data.draw(st.integers(top + 9, height))
    image = np.zeros((height, width, 3), np.uint8)
    image[top:bottom, left:right] = 255
    (prediction,) = queries.predict(image)
    assert prediction.classes.tolist() == [1]
    # One pixel of the 64 x 64 input.
    np.testing.assert_allclose(prediction.boxes, [[left, top, right, bottom]], atol=max(height, width, 64) / 64)


def test_queries_are_evaluated(queries, tmp_path):
    generator = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for number in range(3):
        height, width = (int(side) for side in generator.integers(100, 300, 2))
        image = np.zeros((height, width, 3), np.uint8)
        image[height // 4 : height // 2, width // 8 : width // 2] = 255
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), image)
        box = (height // 4, height // 2, width // 8, width // 2)
        center = [(box[2] + box[3]) / 2 / width, (box[0] + box[1]) / 2 / height]
        sides = [(box[3] - box[2]) / width, (box[1] - box[0]) / height]
        (tmp_path / "labels" / f"{number}.txt").write_text(" ".join(map(str, (1, *center, *sides))))
    (tmp_path / "data.yaml").write_text("val: images\nnames: [a, b]\n")
    assert queries.info.output_format == DETR_QUERIES
    assert queries.info.preprocess.kind == "stretch"
    evaluation = tk.evaluate(queries, tmp_path / "data.yaml")
    assert evaluation.metrics["mAP50(B)"] > 0.99


# Mean and standard deviation


class Normalized(nn.Module):
    """A model with its normalization in the graph."""

    def __init__(self, module, mean, std):
        super().__init__()
        self.module = module
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, x):
        return self.module((x - self.mean) / self.std)


VALUES = st.tuples(*[st.floats(0.1, 0.9)] * 3)


@settings(max_examples=3, deadline=None)
@given(mean=VALUES, std=VALUES)
def test_normalization_equals_that_in_the_graph(mean, std):
    plain = task_models.untrained("detect")
    settings_ = {"task": "detect", "names": task_models.NAMES, "imgsz": 64, "example": torch.zeros(1, 3, 64, 64)}
    described = tk.load(plain.module, preprocess=Preprocess(mean=mean, std=std), **settings_)
    folded = tk.load(Normalized(plain.module, mean, std).eval(), **settings_)
    images = list(np.random.default_rng(0).integers(0, 256, (2, 50, 80, 3), np.uint8))
    predictions = []
    for model in (described, folded):
        with backends.open(trace(model), backend="onnxruntime") as runner:
            predictions.append(runner.predict(images, conf=0.01, iou=1.0))
            assert runner.info.preprocess == model.preprocess
    assert sum(map(len, predictions[0])) > 0
    for one, two in zip(*predictions, strict=True):
        assert len(one) == len(two)
        np.testing.assert_allclose(one.scores, two.scores, atol=1e-4)
        np.testing.assert_allclose(one.boxes, two.boxes, atol=1e-2)


def test_calibration_measures_the_normalized_input(tmp_path):
    data = task_models.drawn_set(tmp_path, "detect")
    plain = task_models.untrained("detect")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    described = dataclasses.replace(plain, preprocess=Preprocess(mean=mean, std=std))
    low, high = tk.calibrate(described, data, algorithm="minmax").ranges["images"]
    plain_low, plain_high = tk.calibrate(plain, data, algorithm="minmax").ranges["images"]
    assert 0 <= plain_low < plain_high <= 1
    assert low < -1
    assert high > 1
