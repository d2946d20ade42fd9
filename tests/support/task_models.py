"""Small synthetic data sets and untrained models for each task, and runners with given outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from torch import nn

import trtkit
from trtkit.backends.runner import Runner
from trtkit.models import heads
from trtkit.models.model import ModelInfo

NAMES = {0: "bar", 1: "blob"}
POINTS = 3
SIZES = {"detect": 64, "segment": 64, "pose": 64, "obb": 64, "classify": 32}


def drawn_set(folder: Path, task: str, *, count: int = 6, seed: int = 0, channels: int = 3) -> Path:
    """Write images of rotated bars and blobs; return the data.yaml, or the folder for classify.

    With other channels than 3, images are TIFF files of one gray page a channel: the blue channel, darker by page.
    """
    generator = np.random.default_rng(seed)
    for split in ("train", "val"):
        for index in range(count):
            height, width = (int(side) for side in generator.integers(80, 140, 2))
            image = generator.integers(0, 80, (height, width, 3), np.uint8)
            rows, last = [], 0
            for _ in range(int(generator.integers(1, 4))):
                last = int(generator.integers(2))
                center = generator.uniform((25, 25), (width - 25, height - 25))
                size = generator.uniform((16, 8), (36, 18)) if last == 0 else generator.uniform(14, 30, 2)
                corners = cv2.boxPoints(
                    (tuple(center), tuple(size), float(generator.uniform(0, 90)) if last == 0 else 0.0)
                )
                corners = np.clip(corners, 1, (width - 2, height - 2))
                cv2.fillPoly(image, [np.round(corners).astype(np.int32)], generator.integers(120, 256, 3).tolist())
                rows.append(label_row(task, last, corners / (width, height)))
            if task == "classify":
                class_folder = folder / split / NAMES[index % 2]
                class_folder.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(class_folder / f"{index}.png"), image)
                continue
            for kind in ("images", "labels"):
                (folder / kind / split).mkdir(parents=True, exist_ok=True)
            if channels == 3:
                cv2.imwrite(str(folder / "images" / split / f"{index}.png"), image)
            else:
                pages = [image[..., 0] // (1 + page) for page in range(channels)]
                cv2.imwritemulti(str(folder / "images" / split / f"{index}.tiff"), pages)
            (folder / "labels" / split / f"{index}.txt").write_text("\n".join(rows) + "\n")
    if task == "classify":
        return folder
    content: dict[str, Any] = {"train": "images/train", "val": "images/val", "names": NAMES}
    if channels != 3:
        content["channels"] = channels
    if task == "pose":
        content["kpt_shape"] = [POINTS, 3]
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    return folder / "data.yaml"


def label_row(task: str, number: int, corners: np.ndarray) -> str:
    low, high = corners.min(0), corners.max(0)
    box = [*((low + high) / 2), *(high - low)]
    values = {
        "detect": box,
        "classify": box,
        "segment": corners.ravel(),
        "obb": corners.ravel(),
        "pose": [*box, *np.column_stack((corners[:POINTS], [2, 2, 0])).ravel()],
    }[task]
    return " ".join([str(number), *(f"{value:.6f}" for value in values)])


class Untrained(nn.Module):
    """Features of three strides and a head, with random weights."""

    def __init__(self, task: str, channels: int = 3) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, 8, 3, 2, 1), nn.SiLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.SiLU())
        self.levels = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.SiLU()) for _ in range(3))
        common = ([8, 8, 8], [8, 16, 32])
        self.head = {
            "detect": lambda: heads.Detect(2, *common),
            "segment": lambda: heads.Segment(2, 4, 8, *common),
            "pose": lambda: heads.Pose(2, (POINTS, 3), *common),
            "obb": lambda: heads.OBB(2, 1, *common),
            "classify": lambda: heads.Classify(8, 2),
        }[task]()
        self.whole = task == "classify"

    def forward(self, x):
        x = self.first(x)
        features = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        return self.head(features[-1] if self.whole else features)


def untrained(task: str, size: int | None = None, *, channels: int = 3, **load: Any) -> trtkit.Model:
    torch.manual_seed(0)
    size = size or SIZES[task]
    module = Untrained(task, channels).eval()
    for name, parameter in module.named_parameters():
        if name.endswith("dfl.conv.weight"):
            parameter.data = torch.arange(parameter.numel(), dtype=torch.float32).reshape(parameter.shape)
        elif parameter.ndim > 1:
            parameter.data *= 2.5
    return trtkit.load(module, task=task, names=NAMES, imgsz=size, example=torch.zeros(1, channels, size, size), **load)


class CannedRunner(Runner):
    """Returns given outputs, one per image."""

    name = "made-up outputs"
    engine = False
    precision = "fp32"
    dynamic = False
    passport = None
    hash = "0" * 64
    path = None
    batch = 1

    def __init__(self, task: str, outputs: list[dict[str, np.ndarray]], size: int = 64) -> None:
        self.info = ModelInfo(task=task, names=NAMES, kpt_shape=(POINTS, 3) if task == "pose" else None)
        self.imgsz = (size, size)
        self.waiting = list(outputs)

    def infer(self, feeds):
        return self.waiting.pop(0)

    def close(self) -> None:
        self.waiting.clear()


def noisy_outputs(dataset, task: str, *, seed: int, shake: float = 0.06, size: int = 64) -> list[dict[str, np.ndarray]]:
    """Return outputs near the labels, with some labels missed and some detections repeated."""
    from trtkit.data import read_image
    from trtkit.data.images import compute_letterbox
    from trtkit.tasks.nms import corners_to_xywhr

    generator = np.random.default_rng(seed)
    all_outputs = []
    for path in dataset.images("val"):
        shape = read_image(path).shape[:2]
        transform, labels = compute_letterbox(shape, (size, size)), dataset.labels(path).to_pixels(shape)
        boxes = transform.to_network(labels.boxes)
        rows, masks = [], []
        for index, (number, box) in enumerate(zip(labels.classes, boxes, strict=True)):
            for _ in range(int(generator.integers(0, 4))):
                side = box[2:] - box[:2]
                moved = box + generator.normal(0, shake, 4) * np.tile(side, 2)
                scores = generator.uniform(0, 0.3, 2)
                scores[number] = generator.uniform(0.2, 1)
                extra: list[float] = []
                if task == "pose":
                    points = transform.to_network(labels.keypoints[index][:, :2])
                    points = points + generator.normal(0, shake * side.mean(), points.shape)
                    extra = np.column_stack((points, np.ones(POINTS))).ravel().tolist()
                row = [*((moved[:2] + moved[2:]) / 2), *np.maximum(moved[2:] - moved[:2], 1), *scores, *extra]
                if task == "obb":
                    oriented = corners_to_xywhr(transform.to_network(labels.corners[index])[None])[0]
                    oriented += generator.normal(0, 1, 5) * [1, 1, 1, 1, 0.05]
                    row = [*oriented[:4], *scores, oriented[4]]
                rows.append(row)
                if task == "segment":
                    canvas = np.zeros((size // 4, size // 4), np.float32)
                    outline = transform.to_network(labels.segments[index]) / 4 + generator.normal(0, 0.3, (1, 2))
                    cv2.fillPoly(canvas, [np.round(outline).astype(np.int32)], 1)
                    masks.append(canvas * 2 - 1)
        count = max(1, len(rows))
        columns = {"detect": 6, "segment": 6, "pose": 6 + POINTS * 3, "obb": 7}[task]
        output = np.zeros((1, columns + (count if task == "segment" else 0), count), np.float32)
        for index, row in enumerate(rows):
            output[0, : len(row), index] = row
            if task == "segment":
                output[0, 6 + index, index] = 1
        outputs = {"output0": output}
        if task == "segment":
            prototypes = np.zeros((1, count, size // 4, size // 4), np.float32)
            prototypes[0, : len(masks)] = masks if masks else 0
            outputs["output1"] = prototypes
        all_outputs.append(outputs)
    return all_outputs
