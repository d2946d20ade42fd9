"""What the tuner does beside the kernel's main thread, each step a call of the package."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from trtkit.calibration.algorithm_comparison import Readings
from trtkit.calibration.calibration import Calibration
from trtkit.errors import CalibrationError, TrtkitError
from trtkit.progress import Cancel, Progress, Work
from trtkit.results import Result
from trtkit.tuning.layers import Layout, layout_of
from trtkit.tuning.search import Search
from trtkit.tuning.sensitivity import Sensitivity

if TYPE_CHECKING:
    from trtkit.models import Model

__all__ = ["Prepared", "given", "prepared", "remembered"]

R = TypeVar("R", bound=Result)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """What the tuner starts from.

    Attributes:
        model: The model.
        readings: Its calibration, read by every algorithm.
        layout: Its layers.
        sensitivity: An earlier run's, None where there is none of this model.
        search: The same of a search.
        notes: What a reader should know, such as why something earlier was left out.
    """

    model: Model
    readings: Readings
    layout: Layout
    sensitivity: Sensitivity | None
    search: Search | None
    notes: tuple[str, ...] = ()


def given(calibration: Calibration | str | Path | None) -> tuple[Calibration | None, str]:
    """A calibration that was given, and the folder it lies in.

    Raises:
        DataError: The folder holds none.
    """
    if calibration is None or isinstance(calibration, Calibration):
        return calibration, ""
    return Calibration.load(calibration), str(calibration)


def prepared(
    model: Model | str | Path,
    data: str | Path | None,
    readings: Readings | None,
    *,
    images: int,
    imgsz: int | tuple[int, int] | None,
    seed: int,
    folder: str | Path,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Prepared:
    """Load a model, calibrate it where that was not done yet, and read its layers.

    Args:
        model: From `load`, or what `load` takes.
        data: A data set's YAML file; None takes the task's small embedded set and warns.
        readings: A calibration that is there already.
        images: The largest number of pictures to calibrate on.
        imgsz: Height and width, pixels; None takes the model's.
        seed: Of the sample.
        folder: Remembers calibration and layers, and is where earlier runs' results lie.
        progress: Receives events.
        cancel: Asked at every step.

    Raises:
        CalibrationError: The calibration is of another model.
        ModelError, DataError: From reading.
        CancelledError: The caller cancelled.
    """
    from trtkit.calibration import calibrate
    from trtkit.models import load

    work, folder = Work(progress, cancel), Path(folder)
    work.step("load the model", 0, 1)
    loaded = load(model)
    if readings is None:
        found = calibrate(
            loaded, data, images=images, imgsz=imgsz, seed=seed, histograms=True, cache=folder / "calibrations",
            progress=progress, cancel=cancel,
        )  # fmt: skip
        readings = Readings(found)
    origin = readings.calibration.origin
    if origin.model_hash != loaded.hash:
        raise CalibrationError(
            f"tune {loaded.stem} with a given calibration",
            f"it was measured on another model ({origin.model_hash[:12]}, not {loaded.hash[:12]})",
            "calibrate this model",
        )
    size = imgsz if imgsz is not None else origin.settings.get("imgsz")
    layout = layout_of(
        loaded,
        tuple(size) if isinstance(size, list) else size,
        state=folder / "state",
        progress=progress,
        cancel=cancel,
    )
    notes: list[str] = []
    sensitivity = remembered(Sensitivity, folder / "sensitivity", loaded.hash, notes)
    search = remembered(Search, folder / "search", loaded.hash, notes)
    readings.prepare(progress=progress, cancel=cancel)
    return Prepared(
        model=loaded, readings=readings, layout=layout, sensitivity=sensitivity, search=search, notes=tuple(notes)
    )


def remembered(kind: type[R], folder: Path, model_hash: str, notes: list[str]) -> R | None:
    """An earlier run's result of this model; None where there is none, with a note where it can't be used.

    Args:
        kind: `Sensitivity` or `Search`.
        folder: Where it would lie.
        model_hash: The model's.
        notes: Receives why it was left out.
    """
    if not (folder / f"{kind.kind}.json").is_file():
        return None
    try:
        found = kind.load(folder)
    except (OSError, ValueError, KeyError, TypeError, TrtkitError) as error:
        notes.append(f"what lies in {folder} can't be read ({error}) and was left out")
        return None
    if found.origin.model_hash != model_hash:
        notes.append(f"what lies in {folder} is of another model and was left out")
        return None
    return found
