"""What the tuning verbs read: a given calibration, the image size, preprocessed images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtkit.calibration import Calibration, check_fits
from trtkit.calibration.sampling import load_input_batches
from trtkit.models import Model
from trtkit.models.model import Preprocess
from trtkit.recipe import round_imgsz

__all__ = ["InputSource", "format_algorithm", "load_calibration", "make_input_source", "resolve_imgsz"]

InputSource = Callable[[], Iterable[NDArray[np.float32]]]
"""Returns the same inputs (1, C, H, W), float32 in [0, 1], on every call."""


def load_calibration(calibration: Calibration | str | Path | None, model: Model) -> Calibration | None:
    """Load a calibration where a folder is given, and check that it fits the model.

    Args:
        calibration: A calibration, the folder of a saved one, or None.
        model: The model it must have been measured on.

    Raises:
        CalibrationError: It was measured on another model.
        DataError: The folder holds no calibration.
    """
    if calibration is None:
        return None
    loaded = calibration if isinstance(calibration, Calibration) else Calibration.load(calibration)
    check_fits(loaded, model)
    return loaded


def resolve_imgsz(
    imgsz: int | tuple[int, int] | None, model: Model, calibration: Calibration | None
) -> tuple[int, int]:
    """The image size to use: the requested one, else the calibration's, else the model's own.

    Args:
        imgsz: Image side, or (height, width), pixels, as requested; None if not.
        model: The model.
        calibration: A given calibration, or None.

    Returns:
        Height and width, pixels, rounded up to the model's stride.
    """
    measured: Any = None if calibration is None else calibration.provenance.settings.get("imgsz")
    return round_imgsz(imgsz or (tuple(measured) if measured else model.imgsz), model.stride)


def make_input_source(
    paths: Sequence[Path], *, preprocess: Preprocess, imgsz: tuple[int, int], skipped: list[str] | None = None
) -> InputSource:
    """Preprocessed images as an `InputSource`; no image is read before the first call.

    Args:
        paths: Image files.
        preprocess: The model's preprocessing.
        imgsz: Height and width, pixels.
        skipped: Cleared at each call, then receives the paths of unreadable images.
    """
    unreadable = [] if skipped is None else skipped

    def load_inputs() -> Iterable[NDArray[np.float32]]:
        unreadable.clear()
        return load_input_batches(paths, preprocess=preprocess, size=imgsz, batch=1, skipped=unreadable)

    return load_inputs


def format_algorithm(algorithm: str, percentile: float | None) -> str:
    """A calibration algorithm as text, with its percentile if it has one: "percentile 99.999"."""
    return algorithm if percentile is None else f"{algorithm} {percentile:g}"
