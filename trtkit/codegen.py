"""An INT8 export as tuned: which ranges, which layers stay high, and the Python and command line that repeat it."""

from __future__ import annotations

import dataclasses
import inspect
import shlex
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from trtkit.graph.analysis import escape_pattern

if TYPE_CHECKING:
    from trtkit.calibration import Calibration

__all__ = ["TunedExport", "non_default_arguments", "render_command", "render_python"]


# A call's settings as the Python and the command line that make it again.


def non_default_arguments(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that differ from the function's defaults, in its order."""
    return {
        name: _plain_value(values[name])
        for name, parameter in inspect.signature(function).parameters.items()
        if name in values and _plain_value(values[name]) != _plain_value(parameter.default)
    }


def render_python(verb: str, function: Callable[..., Any], values: Mapping[str, Any]) -> str:
    """Python that calls `trtkit.<verb>` with these arguments.

    Args:
        verb: A name of `trtkit`.
        function: What it is.
        values: Arguments by name, as plain data.
    """
    lines = "".join(f"    {name}={value!r},\n" for name, value in non_default_arguments(function, values).items())
    return f"import trtkit as tk\n\nresult = tk.{verb}(\n{lines})\n"


def render_command(verb: str, function: Callable[..., Any], values: Mapping[str, Any]) -> str:
    """The command line that does the same, quoted for a POSIX shell."""
    words = ["trtkit", verb]
    for name, value in non_default_arguments(function, values).items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif name == "keep":
            words += [f"{flag}={pattern}" for pattern in value]
        elif isinstance(value, tuple):
            words.append(f"{flag}={','.join(map(str, value))}")
        else:
            words.append(f"{flag}={value}")
    return shlex.join(words)


def _plain_value(value: Any) -> Any:
    """Lists as tuples, and one number in a list as the number, since the verbs take either."""
    if isinstance(value, (list, tuple)):
        return value[0] if len(value) == 1 and isinstance(value[0], int) else tuple(value)
    return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class TunedExport:
    """What to export and how.

    Attributes:
        model: The model's file.
        settings: Arguments of `calibrate`, as `Calibration.origin.settings` holds them, the algorithm in use among
            them; without "data" there is nothing to calibrate on again.
        seed: Of the calibration.
        saved: The folder of a saved calibration to take instead of measuring again; its algorithm is then read off it.
        layers: Names of the layers that stay high.
        half: Nothing is left in INT8, so that it is an FP16 export that needs no calibration.
        raw: The saved calibration is used as it lies there: its ranges were repaired, so that no algorithm gives them.
    """

    model: str
    settings: Mapping[str, Any]
    seed: int | None = 0
    saved: str = ""
    layers: tuple[str, ...] = ()
    raw: bool = False
    half: bool = False

    @classmethod
    def from_calibration(
        cls, model: str, calibration: Calibration, layers: tuple[str, ...] = (), *, saved: str = ""
    ) -> TunedExport:
        """What a calibration and some layers come to.

        Args:
            model: The model's file.
            calibration: Read by the algorithm in use.
            layers: Names of the layers that stay high.
            saved: The folder it lies in, where it was not measured from images that can be named.
        """
        settings = dict(calibration.provenance.settings)
        # A calibration that some histogram algorithm was read off keeps histograms by that algorithm alone.
        settings.update(algorithm=calibration.algorithm, percentile=calibration.percentile, histograms=None)
        return cls(model=model, settings=settings, seed=calibration.provenance.seed, saved=saved, layers=layers)

    @property
    def keep(self) -> tuple[str, ...]:
        """The `keep=` patterns; none where nothing is left in INT8."""
        if self.half:
            return ()
        return tuple(map(escape_pattern, self.layers))

    @property
    def algorithm(self) -> str:
        """The algorithm in use."""
        return str(self.settings.get("algorithm", "minmax"))

    @property
    def percentile(self) -> float | None:
        """Its percentile, percent; None for an algorithm without one."""
        return self.settings.get("percentile")

    def to_python(self) -> str:
        """Python code that makes the ONNX file or engine; `artifact` is what came out."""
        if self.half:
            size = f", imgsz={self._imgsz()!r}" if self._imgsz() is not None else ""
            return f"import trtkit as tk\n\nartifact = tk.export({self.model!r}, half=True{size})\n"
        if self.raw:
            measured = ""
            given = repr(self.saved)
        elif self.saved:
            read = f", percentile={self.percentile!r}" if self.percentile is not None else ""
            measured = f"calibration = tk.Calibration.load({self.saved!r}).with_algorithm({self.algorithm!r}{read})\n"
            given = "calibration"
        else:
            lines = "".join(f"    {name}={value!r},\n" for name, value in self._calibrating().items())
            measured = f"calibration = tk.calibrate(\n{lines})\n"
            given = "calibration"
        keep = "".join(f"\n        {pattern!r}," for pattern in self.keep)
        listed = f"    keep=[{keep}\n    ],\n" if keep else ""
        size = f"    imgsz={self._imgsz()!r},\n" if self._imgsz() is not None else ""
        return (
            f"import trtkit as tk\n\n{measured}artifact = tk.export(\n    {self.model!r},\n    int8=True,\n"
            f"{size}    calibration={given},\n{listed})\n"
        )

    def to_command(self, folder: str = "runs/calibrate") -> str:
        """The command lines that do the same, quoted for a POSIX shell.

        Args:
            folder: Where the calibration is kept between the two, where one is measured.
        """
        words = ["trtkit", "export", f"--model={self.model}", "--half" if self.half else "--int8"]
        size = self._imgsz()
        if size is not None:
            words.append(f"--imgsz={size if isinstance(size, int) else ','.join(map(str, size))}")
        if self.half:
            return shlex.join(words)
        first = ""
        if self.raw:
            words.append(f"--calibration={self.saved}")
        else:
            words.append(f"--calibration={folder}")
            from trtkit.calibration import calibrate

            whole = render_command("calibrate", calibrate, self._calibrating())
            first = f"{whole} --output={shlex.quote(folder)} --overwrite\n"
        words += [f"--keep={pattern}" for pattern in self.keep]
        return first + shlex.join(words)

    def _calibrating(self) -> dict[str, Any]:
        """The arguments of `calibrate` that differ from its defaults."""
        from trtkit.calibration import calibrate

        known = inspect.signature(calibrate).parameters
        values = {name: value for name, value in self.settings.items() if name in known}
        return non_default_arguments(calibrate, {"model": self.model, **values, "seed": self.seed})

    def _imgsz(self) -> int | tuple[int, int] | None:
        """The image size that was calibrated at, which the export has to share."""
        size = self.settings.get("imgsz")
        if size is None or isinstance(size, int):
            return size
        height, width = size
        return int(height) if height == width else (int(height), int(width))
