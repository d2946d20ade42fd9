"""A small detector and labelled pictures that come with the package, so that everything can be tried with nothing."""

from __future__ import annotations

from pathlib import Path

__all__ = ["DEVICE", "OUTPUT", "TASK", "data_path", "model_path"]

TASK = "detect"
"""What the checkpoint does, and what the labels are for."""

OUTPUT = Path("runs/demo")
"""Where `trtkit demo` writes, from the folder it is started in."""

DEVICE = "sm89"
"""What the demo builds engines for where no GPU is present: compute capability 8.9, as GeForce RTX 40 has it."""

_HERE = Path(__file__).resolve().parent


def model_path() -> Path:
    """The checkpoint: yolo11n, 10 classes of handwritten digits, 640 x 640; its licence is in `LICENSE` beside it."""
    return _HERE / "yolo11n.pt"


def data_path() -> Path:
    """The `data.yaml` of 64 pictures to calibrate with (train) and 40 to judge by (val)."""
    return _HERE / "scenes" / "data.yaml"
