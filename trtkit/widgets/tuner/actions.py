"""The first background job of the tuner: load the model, calibrate, read its layers and earlier results."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from trtkit.calibration.algorithm_comparison import AlgorithmComparison
from trtkit.calibration.calibration import Calibration
from trtkit.errors import TrtkitError
from trtkit.progress import CancelToken, Progress, Reporter
from trtkit.results import Result
from trtkit.tuning.layers import QuantizableLayers, find_quantizable_layers
from trtkit.tuning.search import Search
from trtkit.tuning.sensitivity import Sensitivity

if TYPE_CHECKING:
    from trtkit.data import Dataset
    from trtkit.models import Model

__all__ = ["TunerInputs", "load_earlier_result", "prepare_tuner", "resolve_calibration"]

R = TypeVar("R", bound=Result)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TunerInputs:
    """The inputs of the tuner.

    Attributes:
        model: The model.
        algorithm_comparison: Its calibration with the ranges of every algorithm.
        quantizable_layers: Its layers.
        sensitivity: An earlier sensitivity of this model, or None.
        search: An earlier search of this model, or None.
        notes: Notes for the user, such as why an earlier result was ignored.
    """

    model: Model
    algorithm_comparison: AlgorithmComparison
    quantizable_layers: QuantizableLayers
    sensitivity: Sensitivity | None
    search: Search | None
    notes: tuple[str, ...] = ()


def resolve_calibration(calibration: Calibration | str | Path | None) -> tuple[Calibration | None, str]:
    """Load a calibration if a folder was given.

    Args:
        calibration: A calibration, the folder of a saved one, or None.

    Returns:
        The calibration and its folder, "" for one that was passed as an object.

    Raises:
        DataError: The folder holds no calibration.
    """
    if calibration is None or isinstance(calibration, Calibration):
        return calibration, ""
    return Calibration.load(calibration), str(calibration)


def prepare_tuner(
    model: Model | str | Path,
    data: str | Path | Dataset | None,
    algorithm_comparison: AlgorithmComparison | None,
    *,
    calibration_images: int,
    imgsz: int | tuple[int, int] | None,
    seed: int,
    cache_dir: str | Path,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> TunerInputs:
    """Load the model, calibrate it unless a calibration is given, and read its layers.

    Args:
        model: From `load`, or what `load` accepts.
        data: The YAML file of a data set; None uses the task's embedded example set with a warning.
        algorithm_comparison: A calibration, or None.
        calibration_images: Maximum number of calibration images.
        imgsz: Height and width, pixels; None uses the model's.
        seed: Seed of the sample.
        cache_dir: Folder of calibrations, layers and earlier results.
        progress: Receives events.
        cancel: Checked at every step.

    Raises:
        CalibrationError: The calibration is of another model.
        ModelError, DataError: Model or data can't be read.
        CancelledError: The caller cancelled.
    """
    from trtkit.calibration import calibrate, check_fits
    from trtkit.models import load

    reporter, cache_dir = Reporter(progress, cancel), Path(cache_dir)
    reporter.step("load the model", 0, 1)
    loaded = load(model)
    if algorithm_comparison is None:
        calibration = calibrate(
            loaded, data, calibration_images=calibration_images, imgsz=imgsz, seed=seed, histograms=True,
            cache_dir=cache_dir / "calibrations", progress=progress, cancel=cancel,
        )  # fmt: skip
        algorithm_comparison = AlgorithmComparison(calibration)
    provenance = algorithm_comparison.calibration.provenance
    check_fits(algorithm_comparison.calibration, loaded)
    size = imgsz if imgsz is not None else provenance.settings.get("imgsz")
    quantizable_layers = find_quantizable_layers(
        loaded,
        tuple(size) if isinstance(size, list) else size,
        cache_dir=cache_dir / "state",
        progress=progress,
        cancel=cancel,
    )
    notes: list[str] = []
    sensitivity = load_earlier_result(Sensitivity, cache_dir / "sensitivity", loaded.hash, notes)
    search = load_earlier_result(Search, cache_dir / "search", loaded.hash, notes)
    algorithm_comparison.compute_all(progress=progress, cancel=cancel)
    return TunerInputs(
        model=loaded,
        algorithm_comparison=algorithm_comparison,
        quantizable_layers=quantizable_layers,
        sensitivity=sensitivity,
        search=search,
        notes=tuple(notes),
    )


def load_earlier_result(kind: type[R], folder: Path, model_hash: str, notes: list[str]) -> R | None:
    """Load the saved result of an earlier run.

    Args:
        kind: `Sensitivity` or `Search`.
        folder: Folder of the result.
        model_hash: Hash that the result has to be of.
        notes: Receives the reason if the result can't be used.

    Returns:
        None if there is no result of this model.
    """
    if not (folder / f"{kind.kind}.json").is_file():
        return None
    try:
        result = kind.load(folder)
    except (OSError, ValueError, KeyError, TypeError, TrtkitError) as error:
        notes.append(f"the result in {folder} can't be read ({error}) and was ignored")
        return None
    if result.provenance.model_hash != model_hash:
        notes.append(f"the result in {folder} is of another model and was ignored")
        return None
    return result
