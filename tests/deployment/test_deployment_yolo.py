"""The program that deployment folders carry finds what the package finds, without the package."""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trtkit.deployment
from trtkit.data.images import resize_to_input, to_input
from trtkit.models.model import DENSE, DETR_QUERIES, DETR_ROWS, END2END_ROWS, NMS_ROWS, ModelInfo, Preprocess
from trtkit.tasks import PostprocessSettings, get_task

FILES = Path(trtkit.deployment.__file__).parent / "files"
CLASSES = 4
SIZE = (96, 128)
EXTRA = {"detect": 0, "segment": 8, "pose": 9, "obb": 1}


def read_program(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"deployed_{name}", FILES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


yolo = read_program("yolo")


def make_processor(folder: Path, info: ModelInfo, **thresholds: float):
    model = {
        "task": info.task,
        "names": {str(number): name for number, name in info.names.items()},
        "kpt_shape": info.kpt_shape,
        "input": {"imgsz": SIZE, "batch": None, "dynamic": True},
        "preprocess": info.preprocess.to_dict(),
        "outputs": {"format": info.output_format.name, "main": "output0", "prototypes": "output1"},
        "thresholds": {"conf": 0.3, "iou": 0.6, "max_det": 20, **thresholds},
    }
    (folder / "model.json").write_text(json.dumps(model))
    return yolo.Processor(folder)


def make_info(task: str, **values) -> ModelInfo:
    return ModelInfo(
        task=task,
        names={number: f"class {number}" for number in range(CLASSES)},
        imgsz=SIZE,
        kpt_shape=(3, 3) if task == "pose" else None,
        **values,
    )


def make_outputs(rng: np.random.Generator, task: str, kind: str) -> dict[str, np.ndarray]:
    count = int(rng.integers(0, 120))
    centers = rng.uniform(0, 1, (2, count, 2))
    sizes = rng.uniform(0.02, 0.6, (2, count, 2))
    scale = 1.0 if kind.startswith("detr") else np.array(SIZE[::-1])
    extra = rng.normal(0, 20 if task == "pose" else 1, (2, count, EXTRA[task]))
    scores = rng.uniform(0, 1, (2, count, CLASSES)) ** 2
    boxes = np.concatenate((centers * scale, sizes * scale), 2)
    if kind in (DENSE.name, DETR_QUERIES.name):
        array = np.concatenate((boxes, scores, extra), 2)
        array = array.transpose(0, 2, 1) if kind == DENSE.name else array
    else:
        if task != "obb" and kind != DETR_ROWS.name:
            boxes = np.concatenate((boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2), 2)
        numbers = rng.integers(0, CLASSES, (2, count, 1))
        array = np.concatenate((boxes, scores.max(2, keepdims=True), numbers, extra), 2)
    outputs = {"output0": np.ascontiguousarray(array, np.float32)}
    if task == "segment":
        outputs["output1"] = rng.normal(0, 1, (2, EXTRA[task], SIZE[0] // 4, SIZE[1] // 4)).astype(np.float32)
    return outputs


FORMATS = [
    *((task, kind) for task in EXTRA for kind in (DENSE, END2END_ROWS, NMS_ROWS)),
    ("detect", DETR_ROWS),
    ("detect", DETR_QUERIES),
]


@pytest.mark.parametrize(("task", "kind"), FORMATS, ids=[f"{task}-{kind.name}" for task, kind in FORMATS])
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_same_detections_from_the_same_outputs(tmp_path_factory, task, kind, seed):
    rng = np.random.default_rng(seed)
    info = make_info(task, output_format=kind)
    processor = make_processor(tmp_path_factory.mktemp("model"), info)
    images = [rng.integers(0, 256, (*rng.integers(20, 300, 2), 3), np.uint8) for _ in range(2)]
    resized = [resize_to_input(image, SIZE, info.preprocess) for image in images]
    values, places = processor.preprocess(images)
    assert np.array_equal(values, to_input([image for image, _ in resized], info.preprocess))

    outputs = make_outputs(rng, task, kind.name)
    limits = PostprocessSettings(conf=0.3, iou=0.6, max_det=20)
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
@given(seed=st.integers(0, 2**32 - 1), channels=st.sampled_from([1, 3, 4]))
def test_the_same_input_from_the_same_image(tmp_path_factory, kind, seed, channels):
    rng = np.random.default_rng(seed)
    preprocess = Preprocess(
        kind=kind,
        channels=channels,
        color="bgr" if seed % 2 else "rgb",
        scale=1 / 255 if seed % 3 else 0.5,
        mean=(0.5,) * channels if seed % 5 else (),
        std=(0.25,) * channels if seed % 7 else (),
    )
    info = make_info("classify", preprocess=preprocess)
    image = rng.integers(0, 256, (*rng.integers(2, 400, 2), channels), np.uint8)
    resized, _ = resize_to_input(image, SIZE, preprocess)
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
