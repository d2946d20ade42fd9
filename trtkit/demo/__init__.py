"""Embedded models and labeled images, for the demo and for calibration without data."""

from __future__ import annotations

from pathlib import Path

from trtkit.errors import RecipeError

__all__ = ["DEVICE", "EMBEDDED_TASKS", "OUTPUT_DIR", "data_path", "model_path", "models_and_data"]

OUTPUT_DIR = Path("runs/demo")
"""Where `trtkit demo` writes, relative to the current folder."""

DEVICE = "sm89"
"""Target of the demo's engines without a GPU: compute capability 8.9 (GeForce RTX 40)."""

# Models of the other three tasks would add 20 MB to the package.
EMBEDDED_TASKS = ("detect", "classify")
"""Tasks with an embedded model and images."""

_HERE = Path(__file__).resolve().parent
_EMBEDDED = {"detect": ("yolo11n.pt", "scenes/data.yaml"), "classify": ("yolo11n-cls.pt", "classify")}
_ENDINGS = {"detect": "", "segment": "-seg", "pose": "-pose", "obb": "-obb", "classify": "-cls"}


def model_path(task: str = "detect") -> Path:
    """The checkpoint of a task, for 10 classes of handwritten digits; its license is in `LICENSE` beside it.

    Detect is a yolo11n at 640 x 640 pixels, classify a yolo11n-cls at 64 x 64.

    Args:
        task: One of `EMBEDDED_TASKS`.

    Raises:
        RecipeError: There is no embedded model of that task.
    """
    return _HERE / _embedded_files(task)[0]


def data_path(task: str = "detect") -> Path:
    """The labeled images of a task: "train" for calibration, "val" for evaluation.

    Detect has the `data.yaml` of 64 and 40 images, classify the folder of 50 and 100 crops of single digits.

    Args:
        task: One of `EMBEDDED_TASKS`.

    Raises:
        RecipeError: There is no embedded model of that task.
    """
    return _HERE / _embedded_files(task)[1]


def models_and_data(folder: str | Path | None = None) -> dict[str, tuple[Path, Path]]:
    """Model and data of every task that has both.

    Args:
        folder: A folder with `models/yolo11n-<seg, pose, obb or cls>.pt` and `data/scenes/<task>`, which come before
            the embedded ones; None or a missing folder gives the embedded ones.

    Returns:
        Model and data by task.
    """
    pairs = {task: (model_path(task), data_path(task)) for task in EMBEDDED_TASKS}
    for task, ending in _ENDINGS.items() if folder is not None else ():
        model = Path(folder or "", "models", f"yolo11n{ending}.pt")
        data = Path(folder or "", "data", "scenes", task)
        data = data if task == "classify" else data / "data.yaml"
        if model.is_file() and data.exists():
            pairs[task] = (model, data)
    return {task: pairs[task] for task in _ENDINGS if task in pairs}


def _embedded_files(task: str) -> tuple[str, str]:
    if task not in _EMBEDDED:
        raise RecipeError(
            f"take the embedded files of task {task!r}",
            f"trtkit has an embedded model for {' and '.join(EMBEDDED_TASKS)} only",
            "pass your own model and data",
            code="demo-task-unknown",
            value=task,
            names=EMBEDDED_TASKS,
        )
    return _EMBEDDED[task]
