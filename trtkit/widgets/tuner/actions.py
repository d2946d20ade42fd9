"""What the tuner does beside the kernel's main thread, each step a call of the package."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from trtkit.calibration.algorithm_comparison import AlgorithmComparison
from trtkit.calibration.calibration import Calibration
from trtkit.errors import CalibrationError, TrtkitError
from trtkit.progress import CancelToken, Progress, Reporter
from trtkit.results import Result
from trtkit.tuning.layers import QuantizableLayers, find_quantizable_layers
from trtkit.tuning.search import Search
from trtkit.tuning.sensitivity import Sensitivity

if TYPE_CHECKING:
    from trtkit.models import Model

__all__ = ["TunerInputs", "load_earlier_result", "prepare_tuner", "resolve_calibration"]

R = TypeVar("R", bound=Result)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TunerInputs:
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
    readings: AlgorithmComparison
    quantizable_layers: QuantizableLayers
    sensitivity: Sensitivity | None
    search: Search | None
    notes: tuple[str, ...] = ()


def resolve_calibration(calibration: Calibration | str | Path | None) -> tuple[Calibration | None, str]:
    """A calibration that was given, and the folder it lies in.

    Raises:
        DataError: The folder holds none.
    """
    if calibration is None or isinstance(calibration, Calibration):
        return calibration, ""
    return Calibration.load(calibration), str(calibration)


def prepare_tuner(
    model: Model | str | Path,
    data: str | Path | None,
    algorithm_comparison: AlgorithmComparison | None,
    *,
    calibration_images: int,
    imgsz: int | tuple[int, int] | None,
    seed: int,
    folder: str | Path,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> TunerInputs:
    """Load a model, calibrate it where that was not done yet, and read its layers.

    Args:
        model: From `load`, or what `load` takes.
        data: A data set's YAML file; None takes the task's small embedded set and warns.
        algorithm_comparison: A calibration that is there already.
        calibration_images: The largest number of images to calibrate on.
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

    work, folder = Reporter(progress, cancel), Path(folder)
    work.step("load the model", 0, 1)
    loaded = load(model)
    if algorithm_comparison is None:
        found = calibrate(
            loaded, data, calibration_images=calibration_images, imgsz=imgsz, seed=seed, histograms=True, cache=folder / "calibrations",
            progress=progress, cancel=cancel,
        )  # fmt: skip
        algorithm_comparison = AlgorithmComparison(found)
    provenance = algorithm_comparison.calibration.provenance
    if provenance.model_hash != loaded.hash:
        raise CalibrationError(
            f"tune {loaded.stem} with a given calibration",
            f"it was measured on another model ({provenance.model_hash[:12]}, not {loaded.hash[:12]})",
            "calibrate this model",
        )
    size = imgsz if imgsz is not None else provenance.settings.get("imgsz")
    layout = find_quantizable_layers(
        loaded,
        tuple(size) if isinstance(size, list) else size,
        cache_dir=folder / "state",
        progress=progress,
        cancel=cancel,
    )
    notes: list[str] = []
    sensitivity = load_earlier_result(Sensitivity, folder / "sensitivity", loaded.hash, notes)
    search = load_earlier_result(Search, folder / "search", loaded.hash, notes)
    algorithm_comparison.compute_all(progress=progress, cancel=cancel)
    return TunerInputs(
        model=loaded,
        readings=algorithm_comparison,
        quantizable_layers=layout,
        sensitivity=sensitivity,
        search=search,
        notes=tuple(notes),
    )


def load_earlier_result(kind: type[R], folder: Path, model_hash: str, notes: list[str]) -> R | None:
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
    if found.provenance.model_hash != model_hash:
        notes.append(f"what lies in {folder} is of another model and was left out")
        return None
    return found
