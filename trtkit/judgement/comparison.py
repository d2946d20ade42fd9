"""What several precisions of one model cost and buy, as one result."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl

from trtkit.judgement.timing import Timing
from trtkit.origin import Origin
from trtkit.results import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from typing_extensions import Self

__all__ = ["Comparison"]


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Comparison(Result):
    """Accuracy, time, size and build facts of several precisions.

    Attributes:
        rows: One row a precision and batch: what ran, every metric, `delta <metric>` against the reference (negative is
            a loss), the times of `Timing.frame()`, `onnx_mb` and `engine_mb` (10^6 bytes), and `build_s`.
        classes: Metrics of each class by precision.
        pictures: What each picture gave, by precision.
        detections: What was found, by precision, as `Evaluation.detections`.
        truths: What should have been found and whether it was, by precision, as `Evaluation.truths`.
        samples: Every measured run, as `Timing.samples`.
        runners: What ran, as `Timing.runners`.
        about: Everything else, JSON-ready: model, task, data, split, pictures, skipped, reference, metrics (column and
            readable name of the accuracies that decide), engines, files, calibration, recipes, python, command, notes,
            and why nothing was built or run where that is so.
        origin: Model, data, machine, versions, settings.
    """

    kind: ClassVar[str] = "comparison"

    rows: pl.DataFrame
    classes: pl.DataFrame
    pictures: pl.DataFrame
    detections: pl.DataFrame
    truths: pl.DataFrame
    samples: pl.DataFrame
    runners: pl.DataFrame
    about: Mapping[str, Any]
    origin: Origin

    def frame(self) -> pl.DataFrame:
        """`rows`."""
        return self.rows

    def timing(self) -> Timing:
        """The times alone."""
        return Timing(samples=self.samples, runners=self.runners, origin=self.origin)

    def verdict(self) -> tuple[str, ...]:
        """What the numbers say, in sentences."""
        from trtkit.judgement.verdict import sentences

        return sentences(self.rows, self.about)

    def plot(self) -> go.Figure:
        """Accuracy, time and size side by side."""
        from trtkit.plots import comparison_figure

        return comparison_figure(self.rows, self.about["metrics"])

    def plot_classes(self) -> go.Figure:
        """Accuracy of each class by precision."""
        from trtkit.plots import classes_figure

        return classes_figure(self.classes, self.about["metrics"][0][0])

    def report(self, path: str | Path) -> Path:
        """Write one HTML file that shows everything and needs nothing else.

        Raises:
            OutputError: The file can't be written.
        """
        from trtkit.report import write_report

        return write_report(self, path)

    def tables(self) -> Mapping[str, pl.DataFrame]:
        """Every frame."""
        names = ("classes", "pictures", "detections", "truths", "samples", "runners")
        return {**{name: getattr(self, name) for name in names}, "comparison": self.rows}

    def facts(self) -> Mapping[str, Any]:
        """`about`."""
        return self.about

    @classmethod
    def restore(cls, tables: Mapping[str, pl.DataFrame], facts: Mapping[str, Any], origin: Origin) -> Self:
        """The inverse of `tables` and `facts`."""
        frames = {name: table for name, table in tables.items() if name != "comparison"}
        return cls(rows=tables["comparison"], **frames, about=facts, origin=origin)

    def __repr__(self) -> str:
        return "\n".join((f"Comparison of {self.about['model']}", *(f"  {said}" for said in self.verdict())))
