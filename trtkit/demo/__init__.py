"""Embedded models and labeled images of all five tasks, for the demo and for calibration without data."""

from __future__ import annotations

from pathlib import Path

from trtkit.errors import RecipeError

__all__ = [
    "DEVICE",
    "EMBEDDED_TASKS",
    "FAMILIES",
    "IMGSZ",
    "OUTPUT_DIR",
    "data_path",
    "model_path",
    "models_and_data",
]

OUTPUT_DIR = Path("runs/demo")
"""Where `trtkit demo` writes, relative to the current folder."""

DEVICE = "sm89"
"""Target of the demo's engines without a GPU: compute capability 8.9 (GeForce RTX 40)."""

IMGSZ = 320
"""Side of the images of `trtkit demo`, pixels: 400 of them take a processor a few seconds per precision."""

_ENDINGS = {"detect": "", "segment": "-seg", "pose": "-pose", "obb": "-obb", "classify": "-cls"}

EMBEDDED_TASKS = tuple(_ENDINGS)
"""Tasks with an embedded model and images: all five."""

FAMILIES = ("yolo11", "yolo26")
"""Families of the embedded models; the second has a detector only."""

_HERE = Path(__file__).resolve().parent


def model_path(task: str = "detect", *, family: str = "yolo11") -> Path:
    """The checkpoint of a task, for 10 classes of handwritten digits; its license is in `LICENSE` beside it.

    Each is narrower than the n model of its family and holds 1 to 2.4 MB of weights in half precision. Its own image
    size is 640 pixels for detect, 384 for segment, 320 for pose and obb, and 64 for classify.

    Args:
        task: One of `EMBEDDED_TASKS`.
        family: One of `FAMILIES`; "yolo26" has a one-to-one head, which `load(..., end2end=True)` takes.

    Raises:
        RecipeError: There is no embedded model of that task and family.
    """
    _check_task(task)
    if family not in FAMILIES or (family != FAMILIES[0] and task != "detect"):
        raise RecipeError(
            f"take the embedded {family!r} for {task}",
            f"trtkit has a {FAMILIES[0]} for every task and a {FAMILIES[1]} for detect",
            f"pass family={FAMILIES[0]!r}, or your own model",
            code="demo-family-unknown",
            value=family,
            task=task,
            names=FAMILIES,
        )
    return _HERE / f"{family}t{_ENDINGS[task]}.pt"


def data_path(task: str = "detect") -> Path:
    """The labeled images of a task: "train" for calibration, "val" for evaluation.

    Detect has 64 and 400 images of at most 240 pixels a side, segment, pose and obb 48 and 64 of at most 208 each, all
    with a `data.yaml`. Classify is a folder of 50 and 100 crops of single digits of at most 72 pixels.

    Args:
        task: One of `EMBEDDED_TASKS`.

    Raises:
        RecipeError: There are no embedded images of that task.
    """
    _check_task(task)
    return _HERE / "classify" if task == "classify" else _HERE / task / "data.yaml"


def models_and_data() -> dict[str, tuple[Path, Path]]:
    """Model and data by task."""
    return {task: (model_path(task), data_path(task)) for task in EMBEDDED_TASKS}


def _check_task(task: str) -> None:
    if task not in EMBEDDED_TASKS:
        raise RecipeError(
            f"take the embedded files of task {task!r}",
            f"trtkit has them for {', '.join(EMBEDDED_TASKS)}",
            "pass your own model and data",
            code="demo-task-unknown",
            value=task,
            names=EMBEDDED_TASKS,
        )
