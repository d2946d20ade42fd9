"""Errors: each states what was asked, what was found and what to do, with a code and fields for programs."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from pathlib import Path
from typing import Any

MAX_PART = 1000
"""Most characters of each part of a sentence: what a damaged file holds may be of any length. Fields keep all."""

__all__ = [
    "BuildError",
    "CalibrationError",
    "CancelledError",
    "CapabilityError",
    "CheckpointError",
    "DataError",
    "DiskFullError",
    "DownloadError",
    "EngineError",
    "ModelError",
    "OnnxError",
    "OutputError",
    "OutputExistsError",
    "RecipeError",
    "ResultError",
    "TrtkitError",
    "UnknownLayerError",
    "UnsafeCheckpointError",
    "warn",
]

_PASSED_OVER = (f"{Path(__file__).parent}{os.sep}", contextlib.__file__)


class TrtkitError(Exception):
    """Base of trtkit's errors.

    Args:
        asked: What was asked for, without a full stop.
        found: What was found instead.
        do: What to do about it, in the imperative.
        code: The situation in kebab-case, stable across rewordings, e.g. "data-split-missing"; None takes the type's.
        **fields: The values in the sentence, such as `path`, `line` or `value`.
    """

    default_code = "error"

    def __init__(self, asked: str, found: str, do: str, *, code: str | None = None, **fields: Any) -> None:
        self.asked = asked
        self.found = found
        self.do = do
        self.code = code or self.default_code
        self.fields = fields
        super().__init__(asked, found, do)

    def __str__(self) -> str:
        return f"{_shorten(self.asked)}: {_shorten(self.found)}; {_shorten(self.do)}."


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_PART else f"{text[: MAX_PART // 2]} ... {text[-MAX_PART // 4 :]}"


class RecipeError(TrtkitError, ValueError):
    """A setting is out of range, or two settings exclude each other."""

    default_code = "recipe"


class ModelError(TrtkitError):
    """A model can't be read or used."""

    default_code = "model"


class CheckpointError(ModelError):
    """A `.pt` file is missing, empty, cut short or not a YOLO checkpoint."""

    default_code = "checkpoint"


class UnsafeCheckpointError(CheckpointError):
    """A `.pt` file's pickle names something other than tensors and modules."""

    default_code = "unsafe-checkpoint"


class UnknownLayerError(CheckpointError):
    """A checkpoint's architecture has a layer that trtkit does not implement."""

    default_code = "unknown-layer"


class OnnxError(ModelError):
    """An ONNX file can't be read, or its task is unknown."""

    default_code = "onnx"


class DataError(TrtkitError):
    """A data set is missing, unreadable or contradicts its own description."""

    default_code = "data"


class ResultError(DataError):
    """A saved result is missing, damaged or changed, or a newer trtkit wrote it."""

    default_code = "result"


class CalibrationError(TrtkitError):
    """Ranges can't be computed, or a saved calibration does not fit the model."""

    default_code = "calibration"


class CapabilityError(TrtkitError):
    """This machine or the installed TensorRT can't do what was asked."""

    default_code = "capability"


class BuildError(TrtkitError):
    """TensorRT refused or failed to build an engine."""

    default_code = "build"


class EngineError(TrtkitError):
    """An engine file can't be opened or run here."""

    default_code = "engine"


class OutputError(TrtkitError):
    """A result can't be written."""

    default_code = "output"


class OutputExistsError(OutputError):
    """The output exists and was kept."""

    default_code = "output-exists"


class DownloadError(TrtkitError):
    """A published file can't be downloaded, or differs from its first download."""

    default_code = "download"


class DiskFullError(OutputError):
    """The disk is full; no partial file is left."""

    default_code = "disk-full"


class CancelledError(TrtkitError):
    """The caller cancelled; no partial file is left."""

    default_code = "cancelled"

    def __init__(
        self,
        asked: str,
        found: str = "cancelled by the caller",
        do: str = "start it again to finish",
        *,
        code: str | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(asked, found, do, code=code, **fields)


def warn(sentence: str) -> None:
    """Warn at the line outside the package that led here, however many of the package's functions lie between."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PASSED_OVER):
        frame, level = frame.f_back, level + 1
    warnings.warn(sentence, stacklevel=level)
