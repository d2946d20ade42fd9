"""Networks of `tests/models/families.py` with weights made from their names, as from a checkpoint."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from deterministic_weights import GAIN, deterministic_weights

from trtkit.models import Model
from trtkit.models.checkpoint import Checkpoint
from trtkit.models.torch_model import from_checkpoint
from trtkit.models.yolo import build_model

MODELS = Path(__file__).resolve().parents[1] / "models"
STRUCTURES = json.loads((MODELS / "references" / "structures.json").read_text())

sys.path.insert(0, str(MODELS))
from families import GAINS  # noqa: E402


def load_network(name: str, imgsz: int = 640) -> Model:
    """A network by the name of its architecture, such as "yolo26n-seg"."""
    yaml = STRUCTURES[name]["yaml"]
    shapes = {key: tuple(value.shape) for key, value in build_model(yaml).state_dict().items()}
    weights = deterministic_weights(shapes, GAINS.get(name, GAIN))
    tensors = {key: torch.from_numpy(value) for key, value in weights.items()}
    return from_checkpoint(Checkpoint(yaml=yaml, weights=tensors), None, imgsz=imgsz)
