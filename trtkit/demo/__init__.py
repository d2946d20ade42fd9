"""Small models of every task and labelled pictures, embedded so that all of trtkit can be tried with nothing."""

from __future__ import annotations

from pathlib import Path

from trtkit.errors import RecipeError

__all__ = ["DEVICE", "OUTPUT", "TASKS", "data_path", "model_path"]

OUTPUT = Path("runs/demo")
"""Where `trtkit demo` writes, from the folder it is started in."""

DEVICE = "sm89"
"""What the demo builds engines for where no GPU is present: compute capability 8.9, as GeForce RTX 40 has it."""

TASKS = ("detect", "segment", "pose", "obb", "classify")
"""What there is a model and pictures for."""

_HERE = Path(__file__).resolve().parent
_FILES = {
    "detect": ("yolo11n.pt", "scenes/data.yaml"),
    "segment": ("yolo11n-seg.pt", "segment/data.yaml"),
    "pose": ("yolo11n-pose.pt", "pose/data.yaml"),
    "obb": ("yolo11n-obb.pt", "obb/data.yaml"),
    "classify": ("yolo11n-cls.pt", "classify"),
}


def model_path(task: str = "detect") -> Path:
    """The checkpoint of a task: yolo11n for 10 classes of handwritten digits; its licence is in `LICENSE` beside it.

    Args:
        task: One of `TASKS`. The detector is the one trained longest; the others show how a task works.

    Raises:
        RecipeError: There is no such task.
    """
    return _HERE / _files(task)[0]


def data_path(task: str = "detect") -> Path:
    """The labelled pictures of a task: `data.yaml`, or the folder of class folders for classify.

    Detect has 64 pictures to calibrate with (train) and 40 to judge by (val); segment, pose and obb 32 of these and the
    same 40, labelled for the task; classify 100 and 100 digits cut out of them.

    Args:
        task: One of `TASKS`.

    Raises:
        RecipeError: There is no such task.
    """
    return _HERE / _files(task)[1]


def _files(task: str) -> tuple[str, str]:
    if task not in _FILES:
        raise RecipeError(
            f"take the embedded files of task {task!r}", "there is no such task", f"use one of {', '.join(TASKS)}"
        )
    return _FILES[task]
