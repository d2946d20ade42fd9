"""Writes `references/*.npz` and `references/structures.json` with Ultralytics itself.

Run by hand, in a separate environment: `python tests/models/make_references.py [folder of the checkpoints]`. The stored
files are of ultralytics 8.4.190 and torch 2.14.1, on CPU in FP32; the models are fused, as Ultralytics runs them.
"""

from __future__ import annotations

import hashlib
import json
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
KEYPOINTS = {"yolov8": (5, 2), "yolo11": (5, 3)}
# Prototypes are large and smooth: every fourth one is kept.
PROTOTYPES = slice(None, None, 4)


def build(family: str, size: str, suffix: str):
    kind, classes, shape = MODELS[suffix]
    extra = {"data_kpt_shape": KEYPOINTS[family]} if suffix == "-pose" else {}
    return kind(f"{family}{size}{suffix}.yaml", nc=classes, verbose=False, **extra), shape


def run(model: torch.nn.Module, shape: tuple[int, int]) -> list[np.ndarray]:
    model = model.float().eval().fuse(verbose=False)
    for module in model.modules():
        if hasattr(module, "export"):
            module.export, module.dynamic = True, True
    with torch.no_grad():
        outputs = model(torch.from_numpy(deterministic_input(2, *shape)))
    outputs = [output.numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]
    return [outputs[0], *(output[:, PROTOTYPES] for output in outputs[1:])]


def digest(model: torch.nn.Module) -> str:
    names = sorted(f"{name} {tuple(value.shape)}" for name, value in model.state_dict().items())
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    structures = {}
    for family in ("yolov8", "yolo11"):
        for suffix in MODELS:
            for size in "nsmlx":
                model, shape = build(family, size, suffix)
                name = f"{family}{size}{suffix}"
                structures[name] = {"yaml": model.yaml, "digest": digest(model)}
                if size in "ns":
                    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
                    weights = deterministic_weights(shapes)
                    model.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
                    outputs = run(model, shape)
                    print(name, [(output.shape, float(output.min()), float(output.max())) for output in outputs])
                    np.savez_compressed(
                        FOLDER / f"{name}.npz", shape=shape, **dict(zip(("output0", "output1"), outputs, strict=False))
                    )
    (FOLDER / "structures.json").write_text(json.dumps(structures, indent=None, sort_keys=True) + "\n")
    for path in sorted(Path(sys.argv[1]).glob("*.pt")) if len(sys.argv) > 1 else []:
        content = torch.load(path, map_location="cpu", weights_only=False)
        shape = (64, 64) if path.stem.endswith("-cls") else (96, 128)
        outputs = run(content["ema"] or content["model"], shape)
        np.savez_compressed(
            FOLDER / f"shared-{path.stem}.npz", shape=shape, **dict(zip(("output0", "output1"), outputs, strict=False))
        )


if __name__ == "__main__":
    main()
