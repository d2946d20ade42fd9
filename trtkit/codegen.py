"""Replay code: the Python and the command lines that repeat a call or a tuned export."""

from __future__ import annotations

import dataclasses
import inspect
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.graph.analysis import escape_pattern
from trtkit.recipe import command_words, python_arguments

if TYPE_CHECKING:
    from trtkit.calibration import Calibration
    from trtkit.models.model import ModelInfo

__all__ = [
    "Expression",
    "TunedExport",
    "load_end2end",
    "needs_end2end",
    "non_default_arguments",
    "render_command",
    "render_python",
]

IMPORT = "import trtkit as tk\n\n"


def non_default_arguments(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that differ from the defaults, in the order of the signature.

    Args:
        function: The function that takes them.
        values: Arguments by name; other names are ignored.
    """
    return {
        name: _plain_value(values[name])
        for name, parameter in inspect.signature(function).parameters.items()
        if name in values and _plain_value(values[name]) != _plain_value(parameter.default)
    }


def render_python(verb: str, function: Callable[..., Any], values: Mapping[str, Any], *, result: str = "result") -> str:
    """Python that calls `trtkit.<verb>` with these arguments.

    Args:
        verb: A public function of `trtkit`.
        function: The function.
        values: Arguments by name, JSON-ready.
        result: Name of the result.
    """
    return IMPORT + _render_call(verb, function, values, result)


def render_command(verb: str, function: Callable[..., Any], values: Mapping[str, Any], *, end2end: bool = False) -> str:
    """The command line that does the same, quoted for a POSIX shell.

    Args:
        verb: A command of `trtkit`.
        function: The function of that name.
        values: Arguments by name, JSON-ready.
        end2end: Whether `--end2end` chooses the one-to-one head of the model.
    """
    head = ["--end2end"] if end2end else []
    return shlex.join(["trtkit", verb, *command_words(non_default_arguments(function, values)), *head])


def needs_end2end(model: ModelInfo) -> bool:
    """Whether a model is the one-to-one head of a file that is read with the other one by default."""
    source = getattr(model, "source", None)
    return source is not None and model.end2end and Path(source).suffix.lower() != ".onnx"


def load_end2end(model: str) -> Expression:
    """Python that reads the one-to-one head of a file.

    Args:
        model: The file.
    """
    return Expression(f"tk.load({model!r}, end2end=True)")


def _render_call(verb: str, function: Callable[..., Any], values: Mapping[str, Any], result: str) -> str:
    return f"{result} = tk.{verb}(\n{python_arguments(non_default_arguments(function, values))})\n"


def _plain_value(value: Any) -> Any:
    """Lists as tuples, and a list of one number as the number: verbs take either."""
    if isinstance(value, (list, tuple)):
        return value[0] if len(value) == 1 and isinstance(value[0], int) else tuple(value)
    return value


class Expression(str):
    """Python code as a value: its repr is the code."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TunedExport:
    """An INT8 export with chosen ranges and chosen layers in FP16.

    Attributes:
        model: The model's file.
        settings: Arguments of `calibrate`, as `Calibration.provenance.settings` with the algorithm in use; without
            "data" the calibration can't be repeated.
        seed: Seed of the calibration.
        calibration_path: Folder of a saved calibration, which is loaded instead of repeated; "" for none.
        kept_fp16: Names of the layers kept in FP16.
        uses_saved_ranges: Use the ranges of the saved calibration as they are, such as those of a search, which no
            algorithm gives.
        all_fp16: No layer is left in INT8: an FP16 export without calibration.
        end2end: The model is the one-to-one head of its file.
    """

    model: str
    settings: Mapping[str, Any]
    seed: int | None = 0
    calibration_path: str = ""
    kept_fp16: tuple[str, ...] = ()
    uses_saved_ranges: bool = False
    all_fp16: bool = False
    end2end: bool = False

    @classmethod
    def from_calibration(
        cls, model: str, calibration: Calibration, kept_fp16: tuple[str, ...] = (), *, calibration_path: str = ""
    ) -> TunedExport:
        """The export with a calibration and some layers in FP16.

        Args:
            model: The model's file.
            calibration: The calibration by the algorithm in use.
            kept_fp16: Names of the layers kept in FP16.
            calibration_path: Folder of the calibration, if it can't be repeated.
        """
        settings = dict(calibration.provenance.settings)
        # The repeated calibration collects the histograms that its algorithm needs, and no others.
        settings.update(algorithm=calibration.algorithm, percentile=calibration.percentile, histograms=None)
        return cls(
            model=model,
            settings=settings,
            seed=calibration.provenance.seed,
            calibration_path=calibration_path,
            kept_fp16=kept_fp16,
        )

    @property
    def keep(self) -> tuple[str, ...]:
        """The `keep=` patterns; () for an FP16 export."""
        return () if self.all_fp16 else tuple(map(escape_pattern, self.kept_fp16))

    @property
    def algorithm(self) -> str:
        """The calibration algorithm."""
        from trtkit.calibration import DEFAULTS

        return str(self.settings.get("algorithm", DEFAULTS.algorithm))

    @property
    def percentile(self) -> float | None:
        """The percentile, percent; None for an algorithm without one."""
        return self.settings.get("percentile")

    def to_python(self) -> str:
        """Python code that writes the file; `artifact` is the result."""
        from trtkit.calibration import calibrate
        from trtkit.exporter import export

        code = IMPORT
        calibration: str = Expression("calibration")
        if self.all_fp16 or self.uses_saved_ranges:
            calibration = self.calibration_path
        elif self.calibration_path:
            arguments = [repr(self.algorithm)]
            if self.percentile is not None:
                arguments.append(f"percentile={self.percentile!r}")
            loaded = f"tk.Calibration.load({self.calibration_path!r})"
            code += f"calibration = {loaded}.with_algorithm({', '.join(arguments)})\n"
        else:
            source = load_end2end(self.model) if self.end2end else self.model
            code += _render_call(
                "calibrate", calibrate, {**self._calibrate_arguments(), "model": source}, "calibration"
            )
        return code + _render_call("export", export, self._export_arguments(calibration), "artifact")

    def to_command(self, folder: str = "runs/calibrate") -> str:
        """The command lines that do the same, quoted for a POSIX shell.

        Args:
            folder: Folder of the calibration between the two commands.
        """
        from trtkit.calibration import calibrate
        from trtkit.exporter import export

        if self.all_fp16 or self.uses_saved_ranges:
            return render_command("export", export, self._export_arguments(self.calibration_path))
        first = render_command("calibrate", calibrate, self._calibrate_arguments(), end2end=self.end2end)
        output = shlex.join([f"--output={folder}", "--overwrite"])
        return f"{first} {output}\n{render_command('export', export, self._export_arguments(folder))}"

    def _calibrate_arguments(self) -> dict[str, Any]:
        return {**self.settings, "model": self.model, "seed": self.seed}

    def _export_arguments(self, calibration: str) -> dict[str, Any]:
        arguments = {"model": self.model, "imgsz": self._imgsz(), "end2end": self.end2end}
        if self.all_fp16:
            return {**arguments, "half": True}
        return {**arguments, "int8": True, "calibration": calibration, "keep": self.keep}

    def _imgsz(self) -> int | tuple[int, int] | None:
        """The image size of the calibration, which the export shares."""
        size = self.settings.get("imgsz")
        if size is None or isinstance(size, int):
            return size
        height, width = size
        return int(height) if height == width else (int(height), int(width))
