"""Errors that teach: each says what was asked, what was found and what to do, in one sentence."""

from __future__ import annotations

from typing import Any

__all__ = [
    "BuildError",
    "CalibrationError",
    "CancelledError",
    "CapabilityError",
    "CheckpointError",
    "DataError",
    "DiskFullError",
    "EngineError",
    "ModelError",
    "OnnxError",
    "OutputError",
    "OutputExistsError",
    "RecipeError",
    "TrtkitError",
    "UnknownLayerError",
    "UnsafeCheckpointError",
]


class TrtkitError(Exception):
    """Base of every error trtkit raises on purpose.

    Args:
        asked: What was asked for, as a noun phrase or clause without a full stop.
        found: What was found instead.
        do: What to do about it, in the imperative.
        code: The situation in kebab-case, stable across rewordings, e.g. "data-split-missing"; None for the type's own.
        **fields: The values behind the sentence, such as `path`, `line` or `value`.
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
        return f"{self.asked}: {self.found}; {self.do}."


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
    """A `.pt` file's pickle asks for something beyond tensors and module records."""

    default_code = "unsafe-checkpoint"


class UnknownLayerError(CheckpointError):
    """A checkpoint's architecture names a layer trtkit does not build."""

    default_code = "unknown-layer"


class OnnxError(ModelError):
    """An ONNX file can't be read, or its task is unknown."""

    default_code = "onnx"


class DataError(TrtkitError):
    """A data set is missing, unreadable or contradicts its own description."""

    default_code = "data"


class CalibrationError(TrtkitError):
    """Ranges can't be measured, or a stored calibration does not fit."""

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
    """The output is already there and was kept."""

    default_code = "output-exists"


class DiskFullError(OutputError):
    """The disk ran full; nothing was left half-written."""

    default_code = "disk-full"


class CancelledError(TrtkitError):
    """The caller cancelled the work; nothing was left half-written."""

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
