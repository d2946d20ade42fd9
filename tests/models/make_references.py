"""Writes `references/*.npz` and `references/structures.json` with Ultralytics itself.

Run by hand, in a separate environment: `python tests/models/make_references.py [folder of the checkpoints]`. The stored
files are of ultralytics 8.4.190 and torch 2.14.1, on CPU in FP32; the models are fused, as Ultralytics runs them. What
is there already is kept: delete a file, or a name in `structures.json`, to write it anew.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import torch
from deterministic_weights import GAIN, deterministic_input, deterministic_weights
from families import GAINS, NAMES, SMALL, STORED
from ultralytics.nn import tasks

FOLDER = Path(__file__).parent / "references"
MODELS = {
    "": (tasks.DetectionModel, 80),
    "-seg": (tasks.SegmentationModel, 5),
    "-cls": (tasks.ClassificationModel, 10),
    "-pose": (tasks.PoseModel, 2),
    "-obb": (tasks.OBBModel, 5),
}
KEYPOINTS = {"yolov8": (5, 2), "yolo11": (5, 3), "yolo26": (5, 3)}
# Prototypes are large and smooth: every fourth one is kept.
PROTOTYPES = slice(None, None, 4)
# Families of which every anchor is kept; every seventh anchor, every fifth row and every second pixel of a prototype;
# and of all others about as many anchors.
WHOLE = ("yolov8", "yolo11")
THINNED = ("yolo26", "yolov10")
ANCHORS, ROWS, PIXELS = slice(None, None, 7), slice(None, None, 5), slice(None, None, 2)
KEPT_ANCHORS = 40
# Modules that training alone runs.
TRAINING_ONLY = re.compile(r"model\.\d+\.(flow_model|(one2one_)?cv4_sigma|proto\.semseg)\.")


def is_of(name: str, families: tuple[str, ...]) -> bool:
    """Whether a name is of one of these families, and not of a variant such as yolov8-p6."""
    return re.fullmatch(rf"(shared-)?({'|'.join(families)})[nsmblx](-(seg|cls|pose|obb))?", name) is not None


def build(name: str) -> tuple[torch.nn.Module, tuple[int, int]]:
    """Ultralytics' model, and the size of its input."""
    if name in SMALL:
        kind = tasks.RTDETRDetectionModel if "rtdetr" in name else tasks.DetectionModel
        return kind(copy.deepcopy(SMALL[name]), verbose=False), (64, 128)
    family, suffix = NAMES[name]
    kind, classes = MODELS[suffix]
    if not suffix:
        kind, classes = tasks.RTDETRDetectionModel if "rtdetr" in name else kind, family.nc
    extra = {"data_kpt_shape": KEYPOINTS.get(name[:6], (17, 3))} if suffix == "-pose" else {}
    shape = (64, 64) if suffix == "-cls" else (96, 128) if is_of(name, WHOLE + THINNED) else (64, 128)
    return kind(f"{name}.yaml", nc=classes, verbose=False, **extra), shape


def run(model: torch.nn.Module, shape: tuple[int, int], *, end2end: bool = False) -> list[np.ndarray]:
    """The outputs of a copy of the model, exported with `nms=None` or, with `end2end`, `nms=False`."""
    model = copy.deepcopy(model).float().eval()
    images = torch.from_numpy(deterministic_input(2, *shape))
    if hasattr(model, "end2end"):
        model.end2end = end2end
    model.fuse(verbose=False)
    if isinstance(model.model[-1], tasks.RTDETRDecoder):
        # Its export selects queries by their scores; boxes and scores of all queries are beside that.
        with torch.no_grad():
            rows, (boxes, scores, *_) = model(images)
        return [torch.cat((boxes[0], scores[0].sigmoid()), 2).numpy(), rows.numpy()]
    for module in model.modules():
        if hasattr(module, "export"):
            module.export, module.dynamic = True, True
    with torch.no_grad():
        outputs = model(images)
    outputs = [output.numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]
    return [outputs[0], *(output[:, PROTOTYPES] for output in outputs[1:])]


def save(name: str, model: torch.nn.Module, shape: tuple[int, int]) -> None:
    """Store the outputs, and those of the one-to-one head as `rows` where there is one."""
    outputs = run(model, shape)
    stored = dict(zip(("output0", "output1"), outputs, strict=False))
    if "rtdetr" in name:
        stored["detr_rows"] = stored.pop("output1")
    if getattr(model.model[-1], "one2one_cv2", None) is not None:
        stored["rows"] = run(model, shape, end2end=True)[0][:, ROWS]
    if is_of(name, THINNED) and outputs[0].ndim == 3:
        stored["output0"] = outputs[0][:, :, ANCHORS]
        stored.update({key: stored[key][:, :, PIXELS, PIXELS] for key in ("output1",) if key in stored})
    elif not is_of(name, WHOLE) and outputs[0].ndim == 3 and "rtdetr" not in name:
        stored["step"] = np.array(math.ceil(outputs[0].shape[2] / KEPT_ANCHORS))
        stored["output0"] = outputs[0][:, :, :: int(stored["step"])]
    print(name, [(key, value.shape, float(value.min()), float(value.max())) for key, value in stored.items()])
    np.savez_compressed(FOLDER / f"{name}.npz", shape=shape, **stored)


def digest(model: torch.nn.Module) -> str:
    weights = {name: value for name, value in model.state_dict().items() if not TRAINING_ONLY.match(name)}
    names = sorted(f"{name} {tuple(value.shape)}" for name, value in weights.items())
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / "structures.json"
    structures = json.loads(path.read_text()) if path.exists() else {}
    for name in (*NAMES, *SMALL):
        if name in structures and (name not in STORED or (FOLDER / f"{name}.npz").exists()):
            continue
        model, shape = build(name)
        structures[name] = {"yaml": model.yaml, "digest": digest(model)}
        if name in STORED:
            shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
            weights = deterministic_weights(shapes, GAINS.get(name, GAIN))
            model.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
            save(name, model, shape)
    path.write_text(json.dumps(structures, indent=None, sort_keys=True) + "\n")
    for path in sorted(Path(sys.argv[1]).glob("*.pt")) if len(sys.argv) > 1 else []:
        if not (FOLDER / f"shared-{path.stem}.npz").exists():
            content = torch.load(path, map_location="cpu", weights_only=False)
            shape = (64, 64) if path.stem.endswith("-cls") else (96, 128)
            save(f"shared-{path.stem}", content["ema"] or content["model"], shape)


if __name__ == "__main__":
    main()
