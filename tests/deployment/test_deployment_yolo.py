"""The program that deployment folders carry finds what the package finds, without the package."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import io
import json
import sys
from pathlib import Path
from types import ModuleType

import cv2
import deploy_samples as samples
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trtkit.deployment
from trtkit.data.images import resize_to_input, to_input
from trtkit.models.model import ModelInfo
from trtkit.tasks import PostprocessSettings, get_task

FILES = Path(trtkit.deployment.__file__).parent / "files"


def read_program(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"deployed_{name}", FILES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


yolo = read_program("yolo")


def make_processor(folder: Path, info: ModelInfo, **thresholds: float):
    model = samples.describe(info)
    model["thresholds"] = model["thresholds"] | thresholds
    (folder / "model.json").write_text(json.dumps(model))
    return yolo.Processor(folder)


@pytest.mark.parametrize(("task", "kind"), samples.FORMATS, ids=samples.FORMAT_IDS)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_same_detections_from_the_same_outputs(tmp_path_factory, task, kind, seed):
    rng = np.random.default_rng(seed)
    info = samples.make_info(task, output_format=kind)
    processor = make_processor(tmp_path_factory.mktemp("model"), info)
    images = [rng.integers(0, 256, (*rng.integers(20, 300, 2), 3), np.uint8) for _ in range(2)]
    resized = [resize_to_input(image, samples.SIZE, info.preprocess) for image in images]
    values, places = processor.preprocess(images)
    assert np.array_equal(values, to_input([image for image, _ in resized], info.preprocess))

    outputs = samples.make_outputs(rng, task, kind.name, images=2)
    limits = PostprocessSettings(**samples.LIMITS)
    expected = get_task(task).postprocess(outputs, info, [transform for _, transform in resized], limits)
    for mine, theirs in zip(processor.postprocess(outputs, places), expected, strict=True):
        assert mine["classes"].tolist() == theirs.classes.tolist()
        assert np.array_equal(mine["scores"], theirs.scores)
        np.testing.assert_allclose(mine["boxes"], theirs.boxes, atol=1e-4)
        if task == "pose":
            np.testing.assert_allclose(mine["keypoints"], theirs.keypoints, atol=1e-4)
        if task == "obb":
            np.testing.assert_allclose(mine["xywhr"], theirs.xywhr, atol=1e-4)
        if task == "segment":
            masks = [theirs.masks.full_resolution(index) for index in range(len(theirs))]
            assert all(np.array_equal(*pair) for pair in zip(mine["masks"], masks, strict=True))


@pytest.mark.parametrize("kind", ["letterbox", "stretch", "center_crop"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), channels=st.sampled_from([1, 3, 4]), is_square=st.booleans())
def test_the_same_input_from_the_same_image(tmp_path_factory, kind, seed, channels, is_square):
    rng = np.random.default_rng(seed)
    preprocess = samples.make_preprocess(kind, channels, seed)
    size = (96, 96) if is_square else samples.SIZE
    info = dataclasses.replace(samples.make_info("classify", preprocess=preprocess), imgsz=size)
    image = rng.integers(0, 256, (*rng.integers(2, 400, 2), channels), np.uint8)
    resized, _ = resize_to_input(image, size, preprocess)
    values, _ = make_processor(tmp_path_factory.mktemp("model"), info).preprocess([image])
    assert np.array_equal(values, to_input([resized], preprocess))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_model_of_one_channel_takes_opencvs_gray(seed):
    image = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), np.uint8)
    assert np.array_equal(yolo.to_channels(image, 1)[..., 0], cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))
    gray = np.repeat(image[..., :1], 3, 2)
    assert np.array_equal(yolo.to_channels(gray, 1), image[..., :1])
    with pytest.raises(SystemExit, match="the model takes 4"):
        yolo.to_channels(image, 4)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("library", ["cv2", "PIL"])
def test_images_survive_their_encoding(monkeypatch, library, channels):
    if library == "PIL":
        pytest.importorskip("PIL")
        monkeypatch.setitem(sys.modules, "cv2", None)
    image = np.random.default_rng(0).integers(0, 256, (9, 7, channels), np.uint8)[:, ::-1]
    decoded = yolo.decode_image(yolo.encode_image(image))
    # A gray PNG is read as color, as files that people send are.
    assert np.array_equal(decoded if channels > 1 else decoded[..., :1], image)


def test_arrays_that_are_no_images():
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((2, 2, 4), np.uint8))
    whole = buffer.getvalue()
    huge = whole.replace(b"(2, 2, 4), }", b"(2, 2, 9999999999999), }").replace(b" " * 13 + b"\n", b"\n")
    broken = [
        huge,
        whole[:-1],
        whole + b"x",
        whole[:8],
        whole.replace(b"|u1", b"<f4"),
        whole.replace(b"\x01\x00v", b"\x02\x00v"),
    ]
    for array in (np.zeros((2, 2), np.uint8), np.zeros((0, 2, 4), np.uint8), np.zeros((2, 2, 4), np.uint8, order="F")):
        buffer = io.BytesIO()
        np.save(buffer, array)
        broken.append(buffer.getvalue())
    for data in broken:
        with pytest.raises(ValueError, match=r"."):
            yolo.decode_image(data)


def test_images_of_phones_are_upright_without_opencv(monkeypatch):
    image = pytest.importorskip("PIL.Image").fromarray(np.random.default_rng(0).integers(0, 256, (8, 16, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    with_opencv = yolo.decode_image(buffer.getvalue())
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert with_opencv.shape == (16, 8, 3)
    assert np.array_equal(yolo.decode_image(buffer.getvalue()), with_opencv)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_resizing_is_opencvs(seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*rng.integers(1, 500, 2), 3), np.uint8)
    height, width = (int(value) for value in rng.integers(1, 500, 2))
    assert np.array_equal(yolo.resize(image, (height, width)), cv2.resize(image, (width, height)))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_masks_survive_their_encoding(seed):
    rng = np.random.default_rng(seed)
    mask = rng.uniform(0, 1, tuple(rng.integers(1, 40, 2))) < rng.choice([0.0, 0.3, 1.0])
    assert np.array_equal(yolo.decode_mask_runs(yolo.encode_mask(mask), mask.shape), mask)


@pytest.mark.parametrize("path", sorted(FILES.rglob("*.py")), ids=lambda path: str(path.relative_to(FILES)))
def test_programs_do_not_import_the_package(path):
    tree = ast.parse(path.read_text())
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    siblings = {"yolo", "infer", "check", "stored"}
    runtimes = {"onnxruntime", "tensorrt", "tensorrt_rtx", "tensorflow", "onnx2tf", "tritonclient"}
    allowed = siblings | runtimes | {"numpy", "cv2", "PIL"}
    assert imported <= allowed | {"triton_python_backend_utils"} | set(sys.stdlib_module_names)
