"""Make the reference numbers beside this file with Ultralytics' own `val`.

Run in an environment that has ultralytics 8.4.190 (never a dependency of trtkit):

    python tests/evaluation/references/make.py SHARED [DEMO]

`SHARED` holds `models/yolo11n*.pt` and `data/scenes/<task>`; `DEMO` is `trtkit/demo`, of which the detections of 40
images and the raw outputs of one are stored too. Ultralytics writes caches beside labels, so everything is copied to a
temporary folder first.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import ultralytics
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.utils.nms import non_max_suppression

HERE = Path(__file__).parent
RUNS = {
    "detect": ("yolo11n.pt", 320, 40),
    "segment": ("yolo11n-seg.pt", 320, 40),
    "pose": ("yolo11n-pose.pt", 320, 40),
    # Rounding moves a match of oriented boxes more easily: of 40 images mAP50-95 differs by 0.003.
    "obb": ("yolo11n-obb.pt", 320, 80),
    "classify": ("yolo11n-cls.pt", 64, None),
}
"""By task: the checkpoint, the image size, and how many of the first images of val are evaluated, None for all."""


def validate(model: Path, data: Path, imgsz: int, task: str) -> dict[str, Any]:
    """Ultralytics' metrics of `model` on the val split of `data`."""
    os.chdir(data if data.is_dir() else data.parent)  # their `path: .` is the working folder
    arguments: dict[str, Any] = {"imgsz": imgsz, "device": "cpu", "plots": False, "workers": 0, "batch": 16}
    if task != "classify":
        arguments |= {"rect": False, "conf": 0.01 if task == "obb" else 0.001, "iou": 0.7}  # val's defaults
    found = YOLO(model).val(data=str(data), **arguments)
    reference: dict[str, Any] = {
        "task": task,
        "model": model.name,
        "ultralytics": ultralytics.__version__,
        "torch": torch.__version__,
        "command": "python tests/evaluation/references/make.py SHARED DEMO",
        "arguments": arguments,
        "metrics": {key.removeprefix("metrics/"): float(value) for key, value in found.results_dict.items()},
        "speed": found.speed,
    }
    for kind, metric in (("B", "box"), ("M", "seg"), ("P", "pose")):
        curves = getattr(found, metric, None)
        if task != "classify" and curves is not None:
            reference[f"per_class({kind})"] = {
                "class": [int(c) for c in curves.ap_class_index],
                "precision": [float(p) for p in curves.p],
                "recall": [float(r) for r in curves.r],
                "ap50": [float(a) for a in curves.ap50],
                "ap50-95": [float(a) for a in curves.ap],
            }
    return reference


def validate_task(model: Path, folder: Path, imgsz: int, task: str, images: int | None) -> dict[str, Any]:
    """`validate` of a task's scenes, of which images beyond the first ones are removed."""
    if images is None:
        return validate(model, folder, imgsz, task)
    remove_rest(folder, images)
    return {**validate(model, folder / "data.yaml", imgsz, task), "images": images}


def remove_rest(folder: Path, images: int) -> None:
    """Remove all images of val but the first ones."""
    for path in sorted((folder / "images" / "val").iterdir())[images:]:
        path.unlink()


def write(name: str, reference: dict[str, Any]) -> None:
    """Write one reference as JSON beside this file."""
    (HERE / f"{name}.json").write_text(json.dumps(reference, indent=1) + "\n", encoding="utf-8")
    print(name, reference["metrics"], flush=True)


def keep_detections(model: Path, data: Path) -> None:
    """Validate `data` and store raw outputs of one image, all detections and all matches."""
    rows: list[np.ndarray] = []
    names: list[str] = []
    raw: list[np.ndarray] = []
    kept: list[np.ndarray] = []
    update, nms = DetectionValidator.update_metrics, DetectionValidator.postprocess

    def recording_update(self: Any, preds: Any, batch: Any) -> None:
        for index, pred in enumerate(preds):
            matches = self._process_batch(pred, self._prepare_batch(index, batch))["tp"]
            columns = (
                torch.full_like(pred["conf"], len(names))[:, None],
                pred["bboxes"],
                pred["conf"][:, None],
                pred["cls"][:, None],
            )
            bits = (matches * (1 << np.arange(10))).sum(1)[:, None]
            rows.append(np.concatenate((torch.cat(columns, 1).numpy(), bits), 1).astype(np.float32))
            names.append(Path(batch["im_file"][index]).name)
        update(self, preds, batch)

    def recording_nms(self: Any, preds: Any) -> Any:
        outputs = (preds[0] if isinstance(preds, (list, tuple)) else preds).numpy()
        # Anchors below the threshold never become candidates; leaving them out keeps the file small.
        raw.extend(output[:, output[4:].max(0) > 0.001].copy() for output in outputs)
        found = nms(self, preds)
        kept.extend(torch.cat((one["bboxes"], one["conf"][:, None], one["cls"][:, None]), 1).numpy() for one in found)
        return found

    DetectionValidator.update_metrics, DetectionValidator.postprocess = recording_update, recording_nms
    try:
        write("demo-detect", validate(model, data, 640, "detect"))
    finally:
        DetectionValidator.update_metrics, DetectionValidator.postprocess = update, nms
    np.savez_compressed(
        HERE / "demo-detect.npz",
        detections=np.concatenate(rows),
        images=np.array(names),
        output0=np.concatenate(raw, 1),
        anchors=np.array([output.shape[1] for output in raw]),
        kept=np.concatenate(kept),
        counts=np.array([len(one) for one in kept]),
    )


def keep_crowd() -> None:
    """NMS of one crowded image: 1,200 synthetic anchors, 3 classes, no two scores equal."""
    generator = np.random.default_rng(0)
    output = np.zeros((1, 7, 1200), np.float32)
    output[0, :2] = generator.integers(0, 1280, (2, 1200)) / 2
    output[0, 2:4] = generator.integers(20, 200, (2, 1200)) / 2
    output[0, 4:] = (generator.permutation(3600).reshape(3, 1200) / 3600) ** 2
    kept = {}
    for name, arguments in {
        "evaluate": {"multi_label": True, "conf_thres": 0.001},
        "predict": {"conf_thres": 0.25},
    }.items():
        kept[name] = non_max_suppression(torch.from_numpy(output.copy()), iou_thres=0.7, max_det=300, **arguments)[
            0
        ].numpy()
    kept["all"] = non_max_suppression(
        torch.from_numpy(output.copy()), conf_thres=0.001, iou_thres=0.45, max_det=3600, multi_label=True
    )[0].numpy()
    np.savez_compressed(HERE / "crowd.npz", output0=output, **kept)


def main() -> None:
    """Make every reference."""
    torch.set_num_threads(2)
    shared = Path(sys.argv[1]).resolve()
    demo = Path(sys.argv[2]).resolve() if len(sys.argv) > 2 else None
    keep_crowd()
    with tempfile.TemporaryDirectory() as folder:
        if demo is not None:
            shutil.copytree(demo / "detect", Path(folder) / "demo")
            remove_rest(Path(folder) / "demo", 40)
            keep_detections(demo / "yolo11t.pt", Path(folder) / "demo" / "data.yaml")
        for task, (checkpoint, imgsz, images) in RUNS.items():
            copy = Path(folder) / task
            shutil.copytree(shared / "data" / "scenes" / task, copy, copy_function=shutil.copyfile)
            for path in (copy, *copy.rglob("*/")):
                path.chmod(0o755)
            write(task, validate_task(shared / "models" / checkpoint, copy, imgsz, task, images))
        os.chdir(HERE)


if __name__ == "__main__":
    main()
