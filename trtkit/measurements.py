"""What an export measures on pictures: INT8's ranges, FP16's overflow, and what TensorRT's own calibrator is fed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from trtkit.errors import CalibrationError
from trtkit.files import hash_of
from trtkit.progress import Work
from trtkit.recipe import Recipe

if TYPE_CHECKING:
    from trtkit.backends import ImplicitCalibration
    from trtkit.calibration import Calibration
    from trtkit.data import Dataset
    from trtkit.sources import Model

__all__ = ["INT8_ALGORITHM", "implicit", "overflow", "ranges"]

INT8_ALGORITHM = "percentile"
"""How an export calibrates by itself: of all algorithms, percentile 99.999 lost least where it lost most, over the five
tasks' checkpoints (0.0013 to 0.0028 of the main metric, where min-max lost 0.0027 to 0.0218; benchmarks/results)."""

OVERFLOW_IMAGES = 32
"""Pictures that an FP16 export is checked on for overflow."""


def ranges(
    model: Model,
    recipe: Recipe,
    given: Calibration | str | Path | None,
    data: str | Path | Dataset | None,
    size: tuple[int, int],
    work: Work,
) -> Calibration:
    """The calibration of an INT8 export: the given one if it fits the model, else one measured on `data`.

    Raises:
        CalibrationError: The given one was measured on another model.
    """
    from trtkit.calibration import Calibration, calibrate

    if given is None:
        return calibrate(
            model,
            data,
            algorithm=INT8_ALGORITHM,
            fraction=recipe.fraction,
            batch=2 * recipe.batch,
            imgsz=size,
            progress=work.progress,
            cancel=work.cancel,
        )
    if isinstance(given, Calibration):
        found = given
    elif Path(given).is_file():
        found = Calibration.from_tensorrt_cache(given, model)
        warnings.warn(f"{given}: {'; '.join(found.notes)}", stacklevel=3)
    else:
        found = Calibration.load(given)
    if found.origin.model_hash != model.hash:
        raise CalibrationError(
            f"quantise {model.stem} with a given calibration",
            f"it was measured on another model ({found.origin.model_hash[:12]}, not {model.hash[:12]})",
            "calibrate this model",
        )
    return found


def overflow(
    model: Model, recipe: Recipe, data: str | Path | Dataset | None, size: tuple[int, int], work: Work
) -> dict[str, float]:
    """Nodes of an FP16 export that would overflow on the pictures of `data`; each is named in a warning."""
    from trtkit.calibration.calibrating import calibration_pictures, input_batches
    from trtkit.calibration.overflow import overflowing
    from trtkit.graph.tracing import trace

    work.step("check FP16's range", 0, 1)
    _, _, paths = calibration_pictures(
        data, task=model.task, split=None, images=OVERFLOW_IMAGES, fraction=recipe.fraction, seed=0
    )
    graph = trace(model, imgsz=size, batch=2, dynamic_batch=True, simplify=recipe.simplify)
    found = overflowing(graph, input_batches(paths, task=model.task, size=size, batch=2, skipped=[]))
    if found:
        worst = max(found, key=lambda name: found[name])
        warnings.warn(
            f"{len(found)} nodes come near or over FP16's largest value on these pictures and stay in FP32, such as "
            f"{worst} ({found[worst]:.3g}).",
            stacklevel=3,
        )
    return found


def implicit(
    model: Model,
    recipe: Recipe,
    data: str | Path | Dataset | None,
    size: tuple[int, int],
    folder: Path,
    builder: str,
) -> ImplicitCalibration:
    """Pictures for TensorRT's own calibrator, at twice the batch, and a cache that only the same ones can hit."""
    from trtkit import backends
    from trtkit.calibration.calibrating import calibration_pictures, input_batches

    dataset, split, paths = calibration_pictures(
        data, task=model.task, split=None, images=512, fraction=recipe.fraction, seed=0
    )
    batch = 2 * recipe.batch
    version = backends.capabilities(builder).version
    key = hash_of(model.hash, dataset.hash(split), *map(str, paths), f"{size} {batch} {version}")
    return backends.ImplicitCalibration(
        batches=input_batches(paths, task=model.task, size=size, batch=batch, skipped=[]),
        cache=folder / f"{model.stem}-{key[:16]}.cache",
    )
