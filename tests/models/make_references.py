"""Writes `references/*.npz` and `references/structures.json` with Ultralytics itself.

Run by hand, in a separate environment: `python tests/models/make_references.py [folder of the checkpoints]`. The stored
files are of ultralytics 8.4.190 and torch 2.14.1, on CPU in FP32; the models are fused, as Ultralytics runs them.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import torch
from deterministic_weights import deterministic_input, deterministic_weights
from ultralytics.nn import tasks

FOLDER = Path(__file__).parent / "references"
MODELS = {
    "": (tasks.DetectionModel, 80, (96, 128)),
    "-seg": (tasks.SegmentationModel, 5, (96, 128)),
    "-cls": (tasks.ClassificationModel, 10, (64, 64)),
    "-pose": (tasks.PoseModel, 2, (96, 128)),
    "-obb": (tasks.OBBModel, 5, (96, 128)),
}
FAMILIES = {
    "yolov8": ("nsmlx", MODELS),
    "yolo11": ("nsmlx", MODELS),
    "yolo26": ("nsmlx", MODELS),
    "yolov10": ("nsmblx", [""]),
}
"""Sizes and tasks of each family."""
COMPARED = {"yolov10": "n"}
"""Sizes whose outputs are stored, where they are not n and s."""
KEYPOINTS = {"yolov8": (5, 2), "yolo11": (5, 3), "yolo26": (5, 3)}
# Prototypes are large and smooth: every fourth one is kept.
PROTOTYPES = slice(None, None, 4)
# Of the newer families every seventh anchor, every fifth row and every second pixel of a prototype are kept.
THINNED = ("yolo26", "yolov10")
ANCHORS, ROWS, PIXELS = slice(None, None, 7), slice(None, None, 5), slice(None, None, 2)
# Modules that training alone runs.
TRAINING_ONLY = re.compile(r"model\.\d+\.(flow_model|(one2one_)?cv4_sigma|proto\.semseg)\.")


def build(family: str, size: str, suffix: str):
    kind, classes, shape = MODELS[suffix]
    extra = {"data_kpt_shape": KEYPOINTS[family]} if suffix == "-pose" else {}
    return kind(f"{family}{size}{suffix}.yaml", nc=classes, verbose=False, **extra), shape


def run(model: torch.nn.Module, shape: tuple[int, int], *, end2end: bool = False) -> list[np.ndarray]:
    """The outputs of a copy of the model, exported with `nms=None` or, with `end2end`, `nms=False`."""
    model = copy.deepcopy(model).float().eval()
    if hasattr(model, "end2end"):
        model.end2end = end2end
    model.fuse(verbose=False)
    for module in model.modules():
        if hasattr(module, "export"):
            module.export, module.dynamic = True, True
    with torch.no_grad():
        outputs = model(torch.from_numpy(deterministic_input(2, *shape)))
    outputs = [output.numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]
    return [outputs[0], *(output[:, PROTOTYPES] for output in outputs[1:])]


def save(name: str, model: torch.nn.Module, shape: tuple[int, int]) -> None:
    """Store the outputs, and those of the one-to-one head as `rows` where there is one."""
    outputs = run(model, shape)
    stored = dict(zip(("output0", "output1"), outputs, strict=False))
    if getattr(model.model[-1], "one2one_cv2", None) is not None:
        stored["rows"] = run(model, shape, end2end=True)[0][:, ROWS]
    if name.removeprefix("shared-").startswith(THINNED) and outputs[0].ndim == 3:
        stored["output0"] = outputs[0][:, :, ANCHORS]
        stored.update({key: stored[key][:, :, PIXELS, PIXELS] for key in ("output1",) if key in stored})
    print(name, [(key, value.shape, float(value.min()), float(value.max())) for key, value in stored.items()])
    np.savez_compressed(FOLDER / f"{name}.npz", shape=shape, **stored)


def digest(model: torch.nn.Module) -> str:
    weights = {name: value for name, value in model.state_dict().items() if not TRAINING_ONLY.match(name)}
    names = sorted(f"{name} {tuple(value.shape)}" for name, value in weights.items())
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    structures = {}
    for family, (sizes, suffixes) in FAMILIES.items():
        for suffix in suffixes:
            for size in sizes:
                model, shape = build(family, size, suffix)
                name = f"{family}{size}{suffix}"
                structures[name] = {"yaml": model.yaml, "digest": digest(model)}
                if size in COMPARED.get(family, "ns"):
                    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
                    weights = deterministic_weights(shapes)
                    model.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
                    save(name, model, shape)
    (FOLDER / "structures.json").write_text(json.dumps(structures, indent=None, sort_keys=True) + "\n")
    for path in sorted(Path(sys.argv[1]).glob("*.pt")) if len(sys.argv) > 1 else []:
        content = torch.load(path, map_location="cpu", weights_only=False)
        shape = (64, 64) if path.stem.endswith("-cls") else (96, 128)
        save(f"shared-{path.stem}", content["ema"] or content["model"], shape)


if __name__ == "__main__":
    main()
