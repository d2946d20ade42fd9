"""Small models and labeled images that come with the package, so that everything can be tried with nothing."""

from __future__ import annotations

from pathlib import Path

from trtkit.errors import RecipeError

__all__ = ["DEVICE", "EMBEDDED_TASKS", "OUTPUT_DIR", "data_path", "model_path", "models_and_data"]

OUTPUT_DIR = Path("runs/demo")
"""Where `trtkit demo` writes, from the folder it is started in."""

DEVICE = "sm89"
"""What the demo builds engines for where no GPU is present: compute capability 8.9, as GeForce RTX 40 has it."""

# The other three tasks would take another 20 MB, more than a package should carry for an example.
EMBEDDED_TASKS = ("detect", "classify")
"""What a model and images are embedded for."""

_HERE = Path(__file__).resolve().parent
_EMBEDDED = {"detect": ("yolo11n.pt", "scenes/data.yaml"), "classify": ("yolo11n-cls.pt", "classify")}
_ENDINGS = {"detect": "", "segment": "-seg", "pose": "-pose", "obb": "-obb", "classify": "-cls"}


def model_path(task: str = "detect") -> Path:
    """The checkpoint of a task, for 10 classes of handwritten digits; its license is in `LICENSE` beside it.

    Detect is a yolo11n of 640 x 640 pixels, classify a yolo11n-cls of 64 x 64.

    Args:
        task: One of `EMBEDDED_TASKS`.

    Raises:
        RecipeError: Nothing is embedded for that task.
    """
    return _HERE / _embedded_files(task)[0]


def data_path(task: str = "detect") -> Path:
    """The labeled images of a task, train to calibrate with and val to judge by.

    Detect has the `data.yaml` of 64 and 40 images, classify the folder of 50 and 100 digits cut out of such images.

    Args:
        task: One of `EMBEDDED_TASKS`.

    Raises:
        RecipeError: Nothing is embedded for that task.
    """
    return _HERE / _embedded_files(task)[1]


def models_and_data(folder: str | Path | None = None) -> dict[str, tuple[Path, Path]]:
    """A model and its data for each task that there is one for.

    Args:
        folder: A folder with `models/yolo11n-<seg, pose, obb or cls>.pt` and `data/scenes/<task>`; what it has goes
            before what is embedded. None, or a folder that is not there, leaves the embedded ones.

    Returns:
        Model and data by task.
    """
    found = {task: (model_path(task), data_path(task)) for task in EMBEDDED_TASKS}
    for task, ending in _ENDINGS.items() if folder is not None else ():
        model = Path(folder or "", "models", f"yolo11n{ending}.pt")
        data = Path(folder or "", "data", "scenes", task)
        data = data if task == "classify" else data / "data.yaml"
        if model.is_file() and data.exists():
            found[task] = (model, data)
    return {task: found[task] for task in _ENDINGS if task in found}


def _embedded_files(task: str) -> tuple[str, str]:
    if task not in _EMBEDDED:
        raise RecipeError(
            f"take the embedded files of task {task!r}",
            f"trtkit carries a model and images for {' and '.join(EMBEDDED_TASKS)} only",
            "give the paths of your own",
        )
    return _EMBEDDED[task]
