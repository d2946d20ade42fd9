"""Models for deployment tests: descriptions, raw outputs by task and output format, engine files that run nowhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tiny_graphs

from trtkit.backends import Passport, write_engine
from trtkit.files import hash_parts
from trtkit.models.model import (
    DENSE,
    DETR_QUERIES,
    DETR_ROWS,
    END2END_ROWS,
    NMS_ROWS,
    ModelInfo,
    OutputFormat,
    Preprocess,
)

CLASSES = 4
SIZE = (96, 128)
EXTRA = {"detect": 0, "segment": 8, "pose": 9, "obb": 1}
LIMITS = {"conf": 0.3, "iou": 0.6, "max_det": 20}
FORMATS: list[tuple[str, OutputFormat]] = [
    *((task, kind) for task in EXTRA for kind in (DENSE, END2END_ROWS, NMS_ROWS)),
    ("detect", DETR_ROWS),
    ("detect", DETR_QUERIES),
]
FORMAT_IDS = [f"{task}-{kind.name}" for task, kind in FORMATS]


def make_info(task: str, **values: Any) -> ModelInfo:
    return ModelInfo(
        task=task,
        names={number: f"class {number}" for number in range(CLASSES)},
        imgsz=SIZE,
        kpt_shape=(3, 3) if task == "pose" else None,
        **values,
    )


def make_preprocess(kind: str, channels: int, seed: int) -> Preprocess:
    """One of many ways to prepare an image."""
    return Preprocess(
        kind=kind,
        channels=channels,
        color="bgr" if seed % 2 else "rgb",
        scale=1 / 255 if seed % 3 else 0.5,
        mean=(0.5,) * channels if seed % 5 else (),
        std=(0.25,) * channels if seed % 7 else (),
    )


def describe(info: ModelInfo) -> dict[str, Any]:
    """`model.json` of a model."""
    return {
        "task": info.task,
        "file": {"name": "model.engine", "format": "engine", "sha256": ""},
        "names": {str(number): name for number, name in info.names.items()},
        "kpt_shape": info.kpt_shape,
        "input": {"name": "images", "imgsz": info.imgsz, "batch": None, "dynamic": True},
        "preprocess": info.preprocess.to_dict(),
        "outputs": {
            "format": info.output_format.name,
            "main": "output0",
            "prototypes": "output1" if info.task == "segment" else None,
        },
        "thresholds": LIMITS,
    }


def make_outputs(rng: np.random.Generator, task: str, kind: str, images: int) -> dict[str, np.ndarray]:
    count = int(rng.integers(0, 120))
    centers = rng.uniform(0, 1, (images, count, 2))
    sizes = rng.uniform(0.02, 0.6, (images, count, 2))
    scale = 1.0 if kind.startswith("detr") else np.array(SIZE[::-1])
    extra = rng.normal(0, 20 if task == "pose" else 1, (images, count, EXTRA[task]))
    scores = rng.uniform(0, 1, (images, count, CLASSES)) ** 2
    boxes = np.concatenate((centers * scale, sizes * scale), 2)
    if kind in (DENSE.name, DETR_QUERIES.name):
        array = np.concatenate((boxes, scores, extra), 2)
        array = array.transpose(0, 2, 1) if kind == DENSE.name else array
    else:
        if task != "obb" and kind != DETR_ROWS.name:
            boxes = np.concatenate((boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2), 2)
        numbers = rng.integers(0, CLASSES, (images, count, 1))
        array = np.concatenate((boxes, scores.max(2, keepdims=True), numbers, extra), 2)
    outputs = {"output0": np.ascontiguousarray(array, np.float32)}
    if task == "segment":
        prototypes = rng.normal(0, 1, (images, EXTRA[task], SIZE[0] // 4, SIZE[1] // 4))
        outputs["output1"] = prototypes.astype(np.float32)
    return outputs


def write_tensors(folder: Path, outputs: dict[str, np.ndarray]) -> None:
    """Store outputs as deployment folders do."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = {}
    for name, values in outputs.items():
        (folder / f"{name}.bin").write_bytes(values.tobytes())
        entries[name] = {"file": f"{name}.bin", "shape": values.shape}
    (folder / "tensors.json").write_text(json.dumps(entries))


def write_onnx(folder: Path, name: str = "tiny.onnx", **settings: Any) -> Path:
    path = folder / name
    path.write_bytes(tiny_graphs.detector(**settings).SerializeToString())
    return path


def write_foreign_engine(folder: Path, *, batch: int = 1, **values: Any) -> Path:
    """An engine file that TensorRT 8.6 on another GPU built: it runs on no machine of the tests."""
    info = tiny_graphs.info()
    plan = b"ftrt" + bytes(range(256)) * 4
    passport = Passport(
        backend="tensorrt",
        tensorrt="8.6.0",
        sm="sm75",
        batch=batch,
        imgsz=info.imgsz,
        model_hash="ab" * 32,
        plan_size=len(plan),
        plan_hash=hash_parts(plan),
        **values,
    )
    return write_engine(folder / "tiny.engine", plan, info.to_metadata(batch=batch), passport)
