"""Errors that teach: each says what was asked, what was found and what to do, in one sentence."""

from __future__ import annotations

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
    """

    def __init__(self, asked: str, found: str, do: str) -> None:
        self.asked = asked
        self.found = found
        self.do = do
        super().__init__(asked, found, do)

    def __str__(self) -> str:
        return f"{self.asked}: {self.found}; {self.do}."


class RecipeError(TrtkitError, ValueError):
    """A setting is out of range, or two settings exclude each other."""


class ModelError(TrtkitError):
    """A model can't be read or used."""


class CheckpointError(ModelError):
    """A `.pt` file is missing, empty, cut short or not a YOLO checkpoint."""


class UnsafeCheckpointError(CheckpointError):
    """A `.pt` file's pickle asks for something beyond tensors and module records."""


class UnknownLayerError(CheckpointError):
    """A checkpoint's architecture names a layer trtkit does not build."""


class OnnxError(ModelError):
    """An ONNX file can't be read, or its task is unknown."""


class DataError(TrtkitError):
    """A data set is missing, unreadable or contradicts its own description."""


class CalibrationError(TrtkitError):
    """Ranges can't be measured, or a stored calibration does not fit."""


class CapabilityError(TrtkitError):
    """This machine or the installed TensorRT can't do what was asked."""


class BuildError(TrtkitError):
    """TensorRT refused or failed to build an engine."""


class EngineError(TrtkitError):
    """An engine file can't be opened or run here."""


class OutputError(TrtkitError):
    """A result can't be written."""


class OutputExistsError(OutputError):
    """The output is already there and was kept."""


class DiskFullError(OutputError):
    """The disk ran full; nothing was left half-written."""


class CancelledError(TrtkitError):
    """The caller cancelled the work; nothing was left half-written."""

    def __init__(
        self, asked: str, found: str = "cancelled by the caller", do: str = "start it again to finish"
    ) -> None:
        super().__init__(asked, found, do)
