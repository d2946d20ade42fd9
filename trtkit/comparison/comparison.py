"""What several precisions of one model cost and buy, as one result."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl

from trtkit.comparison.tables import leading_metrics
from trtkit.errors import RecipeError
from trtkit.evaluation.latency import Timing
from trtkit.results import Provenance, Result

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from typing_extensions import Self

    from trtkit.backends import Runner
    from trtkit.tasks.drawing import ImageGrid

__all__ = ["Comparison", "PrecisionEvaluation"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PrecisionEvaluation:
    """What one precision found: the frames of an `Evaluation`.

    Attributes:
        metrics: As `Evaluation.metrics`.
        per_class: As `Evaluation.per_class`.
        per_image: As `Evaluation.per_image`.
        detections: As `Evaluation.detections`.
        truths: As `Evaluation.truths`.
    """

    metrics: Mapping[str, float]
    per_class: pl.DataFrame
    per_image: pl.DataFrame
    detections: pl.DataFrame
    labels: pl.DataFrame


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Comparison(Result):
    """Accuracy, time, size and build facts of several precisions.

    Attributes:
        rows: One row a precision and batch: what ran, every metric, `delta <metric>` against the reference (negative is
            a loss) with the ends of its 95 % interval (`delta <metric> low`, `... high`), the times of
            `Timing.frame()`, `onnx_mb` and `engine_mb` (10^6 bytes), and `build_s`.
        classes: Metrics of each class by precision.
        images: What each image gave, by precision.
        detections: What was found, by precision, as `Evaluation.detections`.
        truths: What should have been found and whether it was, by precision, as `Evaluation.truths`.
        differences: Every metric's change against the reference with its 95 % interval, of all, by class and by size of
            the objects, as `trtkit.evaluation.significance.compute_differences` tells them, by precision.
        samples: Every measured run, as `Timing.samples`.
        runners: What ran, as `Timing.runners`.
        about: Everything else, JSON-ready: model, task, data, split, images, skipped, reference, metrics (column and
            readable name of the accuracies that decide), engines, files, calibration, recipes, python, command, notes,
            and why nothing was built or run where that is so.
        provenance: Model, data, machine, versions, settings.
    """

    kind: ClassVar[str] = "comparison"

    rows: pl.DataFrame
    classes: pl.DataFrame
    images: pl.DataFrame
    detections: pl.DataFrame
    labels: pl.DataFrame
    samples: pl.DataFrame
    runners: pl.DataFrame
    about: Mapping[str, Any]
    provenance: Provenance
    differences: pl.DataFrame = dataclasses.field(default_factory=pl.DataFrame)

    def frame(self) -> pl.DataFrame:
        """`rows`."""
        return self.rows

    def timing(self) -> Timing:
        """The times alone."""
        return Timing(samples=self.samples, runners=self.runners, provenance=self.provenance)

    def verdict(self) -> tuple[str, ...]:
        """What the numbers say, in sentences."""
        from trtkit.comparison.verdict import verdict_sentences

        return verdict_sentences(self.rows, self.about)

    def evaluation(self, precision: str) -> PrecisionEvaluation:
        """What one precision found.

        Raises:
            RecipeError: It was not compared.
        """
        known = self.rows["precision"].unique(maintain_order=True).to_list()
        if precision not in known:
            raise RecipeError(f"look at {precision!r}", "it was not compared", f"choose from {', '.join(known)}")
        mine = pl.col("precision") == precision
        row = self.rows.row(by_predicate=mine & (pl.col("batch") == pl.col("batch").first()), named=True)
        return PrecisionEvaluation(
            metrics={name: row[name] for name in self.about["all_metrics"]},
            per_class=self.classes.filter(mine),
            per_image=self.images.filter(mine),
            detections=self.detections.filter(mine),
            labels=self.labels.filter(mine),
        )

    def changes(self, precision: str, *, conf: float = 0.25) -> pl.DataFrame:
        """The objects that a precision wins and loses against the reference, the worst first.

        Raises:
            RecipeError: The precision was not compared.
        """
        from trtkit.comparison.object_changes import find_object_changes

        return find_object_changes(self.evaluation(self.about["reference"]), self.evaluation(precision), conf=conf)

    def gallery(self, precision: str, *, limit: int = 12, conf: float = 0.25) -> pl.DataFrame:
        """The worst of `changes`, drawn; `png` holds the images.

        Raises:
            RecipeError: The precision was not compared.
        """
        from trtkit.comparison.object_changes import draw_object_changes

        told = self.changes(precision, conf=conf)
        return draw_object_changes(
            told, self.evaluation(self.about["reference"]), self.evaluation(precision), most=limit, conf=conf
        )

    def losses(self) -> pl.DataFrame:
        """What each precision costs by the metrics that decide, in a form that rows of other comparisons fit below.

        Returns:
            One row a precision and deciding metric: task, metric, precision, value, delta (against the reference;
            negative is a loss), low and high (ends of its 95 % interval), and measurable, false where the interval
            holds zero.
        """
        told = [
            self.differences.filter((pl.col("metric") == column) & (pl.col("scope") == "all")).with_columns(
                task=pl.lit(self.about["task"])
            )
            for column, _ in self.about["metrics"]
        ]
        return pl.concat(told).select("task", "metric", "precision", "value", "delta", "low", "high", "significant")

    def open(self, precision: str) -> Runner:
        """Open the file that was judged: the engine where it ran here, else the ONNX file.

        Raises:
            RecipeError: The precision was not compared.
            EngineError, OnnxError, CapabilityError: As `trtkit.open` raises them, the file being gone included.
        """
        from trtkit import backends

        self.evaluation(precision)
        ran = self.rows.filter(pl.col("precision") == precision)["engine"].all()
        return backends.open(self.about["files"][precision]["engine" if ran else "onnx"])

    def draw(self, precision: str, count: int = 3) -> ImageGrid:
        """Run what was judged on the first images it was judged on, and draw what it finds.

        Args:
            precision: One that was compared.
            count: How many.

        Raises:
            RecipeError: The precision was not compared.
            DataError: An image is no longer there.
            EngineError, OnnxError, CapabilityError: As `open` raises them.
        """
        with self.open(precision) as runner:
            return runner.draw(self.evaluation(precision).per_image["path"].head(count).to_list())

    def plot(self) -> go.Figure:
        """Accuracy, time and size side by side."""
        from trtkit.plotting.theme import comparison_figure

        return comparison_figure(self.rows, leading_metrics(self.about["metrics"]))

    def plot_losses(self) -> go.Figure:
        """The change of each deciding metric by precision, with its interval."""
        from trtkit.plotting.evaluation import losses_figure

        return losses_figure(self.losses())

    def plot_classes(self) -> go.Figure:
        """Accuracy of each class by precision."""
        from trtkit.plotting.theme import classes_figure

        return classes_figure(self.classes, self.about["metrics"][0][0])

    def report(self, path: str | Path) -> Path:
        """Write one HTML file that shows everything and needs nothing else.

        Raises:
            OutputError: The file can't be written.
        """
        from trtkit.comparison.report import write_report

        return write_report(self, path)

    def tables(self) -> Mapping[str, pl.DataFrame]:
        """Every frame."""
        names = ("classes", "images", "detections", "labels", "samples", "runners", "differences")
        return {**{name: getattr(self, name) for name in names}, "comparison": self.rows}

    def facts(self) -> Mapping[str, Any]:
        """`about`."""
        return self.about

    @classmethod
    def restore(cls, tables: Mapping[str, pl.DataFrame], facts: Mapping[str, Any], provenance: Provenance) -> Self:
        """The inverse of `tables` and `facts`."""
        frames = {name: table for name, table in tables.items() if name != "comparison"}
        return cls(rows=tables["comparison"], **frames, about=facts, provenance=provenance)

    def _repr_html_(self) -> str:
        from trtkit.comparison.report import summary

        return summary(self)

    def __repr__(self) -> str:
        return "\n".join((f"Comparison of {self.about['model']}", *(f"  {said}" for said in self.verdict())))
