"""Comparison: accuracy, latency, size and build facts of several precisions of one model."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl

from trtkit.comparison.tables import leading_metrics
from trtkit.comparison.verdict import MAX_DROP, Verdict, decide_verdicts
from trtkit.errors import EngineError, RecipeError
from trtkit.evaluation.latency import OFFLINE_SCHEMA, Timing
from trtkit.evaluation.rounds import ROUNDS_SCHEMA
from trtkit.evaluation.significance import correct_significance
from trtkit.evaluation.stage_times import STAGES_SCHEMA
from trtkit.results import Provenance, Result, SavedResult, rename_version_1, rename_version_1_keys

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from typing_extensions import Self

    from trtkit.backends import Runner
    from trtkit.comparison.published import PublishedLatencies
    from trtkit.inspection import SpeedDiagnosis
    from trtkit.tasks.base import ImageGrid

__all__ = ["Comparison", "PrecisionEvaluation"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PrecisionEvaluation:
    """The evaluation of one precision: the frames of an `Evaluation`.

    Attributes:
        metrics: As `Evaluation.metrics`.
        per_class: As `Evaluation.per_class`.
        per_image: As `Evaluation.per_image`.
        detections: As `Evaluation.detections`.
        labels: As `Evaluation.labels`.
    """

    metrics: Mapping[str, float]
    per_class: pl.DataFrame
    per_image: pl.DataFrame
    detections: pl.DataFrame
    labels: pl.DataFrame


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Comparison(Result):
    """Accuracy, latency, size and build facts of several precisions.

    Attributes:
        rows: One row per precision and batch: the runner, every metric, `delta <metric>` against the reference
            (negative is a loss) with its 95 % confidence interval (`delta <metric> low`, `... high`), the latencies of
            `Timing.frame()` (ms), `onnx_mb` and `engine_mb` (10^6 bytes), and `build_s`.
        classes: Metrics per class and precision.
        images: Counts per image and precision, as `Evaluation.per_image`.
        detections: Detections per precision, as `Evaluation.detections`.
        labels: Labels and what matched them, per precision, as `Evaluation.labels`.
        differences: The change of every metric against the reference with its 95 % confidence interval, over all
            objects, per class and per object size, as `trtkit.evaluation.significance.compute_differences` has it.
        layers: Timed layers of the engines per precision (`label`), as `LayerTable.frame` without `share`; empty if
            none ran.
        thresholds: Confidence thresholds that give a precision the precision and recall of FP16 at `about["conf"]`, as
            `trtkit.evaluation.thresholds.match_thresholds` has them; empty for tasks without boxes.
        samples: Every timed run, as `Timing.samples`.
        rounds: The GPU after every block of runs, as `Timing.rounds`.
        offline: Throughput, energy and memory of engines run back to back, as `Timing.offline`.
        stages: Timed calls of `predict` by stage, as `Timing.stages`.
        runners: The runners, as `Timing.runners`.
        about: All other facts, JSON-ready: model, task, data, split, eval_images, skipped, reference, max_drop,
            conf, metrics (column and readable name of the primary ones), engines, files, calibration, recipes, python,
            command, notes, and why no engine was built or run.
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
    layers: pl.DataFrame = dataclasses.field(default_factory=pl.DataFrame)
    thresholds: pl.DataFrame = dataclasses.field(default_factory=pl.DataFrame)
    rounds: pl.DataFrame = dataclasses.field(default_factory=lambda: pl.DataFrame(schema=ROUNDS_SCHEMA))
    offline: pl.DataFrame = dataclasses.field(default_factory=lambda: pl.DataFrame(schema=OFFLINE_SCHEMA))
    stages: pl.DataFrame = dataclasses.field(default_factory=lambda: pl.DataFrame(schema=STAGES_SCHEMA))

    def frame(self) -> pl.DataFrame:
        """`rows`."""
        return self.rows

    def timing(self) -> Timing:
        """The latencies alone."""
        return Timing(
            samples=self.samples,
            rounds=self.rounds,
            offline=self.offline,
            stages=self.stages,
            runners=self.runners,
            provenance=self.provenance,
        )

    @functools.cached_property
    def verdicts(self) -> Mapping[str, Verdict]:
        """What to do with each precision but the reference, and why, by precision."""
        return decide_verdicts(self)

    @functools.cached_property
    def published(self) -> PublishedLatencies | None:
        """Published latencies of the same model, where no engine ran here and there are any; never a measurement."""
        from trtkit.comparison.published import find_published

        if self.rows["engine"].any():
            return None
        return find_published(
            model=self.about["model"],
            task=self.about["task"],
            imgsz=self.about["imgsz"],
            model_hash=self.provenance.model_hash or "",
            precisions=self.rows["precision"].unique(maintain_order=True).to_list(),
        )

    def findings(self) -> tuple[str, ...]:
        """The evidence in sentences, the most important first."""
        from trtkit.comparison.findings import describe_findings

        return describe_findings(self.rows, self.about, self.thresholds)

    def evaluation(self, precision: str) -> PrecisionEvaluation:
        """The evaluation of one precision.

        Raises:
            RecipeError: The precision was not compared.
        """
        precisions = self.rows["precision"].unique(maintain_order=True).to_list()
        if precision not in precisions:
            raise RecipeError(
                f"read the evaluation of {precision!r}",
                "it was not compared",
                f"choose from {', '.join(precisions)}",
                code="comparison-precision-unknown",
                value=precision,
                names=precisions,
            )
        of_precision = pl.col("precision") == precision
        row = self.rows.row(by_predicate=of_precision & (pl.col("batch") == pl.col("batch").first()), named=True)
        return PrecisionEvaluation(
            metrics={name: row[name] for name in self.about["all_metrics"]},
            per_class=self.classes.filter(of_precision),
            per_image=self.images.filter(of_precision),
            detections=self.detections.filter(of_precision),
            labels=self.labels.filter(of_precision),
        )

    @property
    def conf(self) -> float:
        """The confidence threshold in use, which `compare` was given."""
        return float(self.about.get("conf") or 0.25)

    def changes(self, precision: str, *, conf: float | None = None) -> pl.DataFrame:
        """Gained and lost objects and false positives of a precision against the reference, the worst first.

        Args:
            precision: A compared precision.
            conf: Score threshold of detections; None takes the comparison's.

        Raises:
            RecipeError: The precision was not compared.
        """
        from trtkit.comparison.object_changes import find_object_changes

        conf = self.conf if conf is None else conf
        return find_object_changes(self.evaluation(self.about["reference"]), self.evaluation(precision), conf=conf)

    def gallery(self, precision: str, *, limit: int = 12, conf: float | None = None) -> pl.DataFrame:
        """The first rows of `changes` with column `png`: reference and precision side by side.

        Args:
            precision: A compared precision.
            limit: Largest number of rows.
            conf: Score threshold of detections; None takes the comparison's.

        Raises:
            RecipeError: The precision was not compared.
        """
        from trtkit.comparison.object_changes import draw_object_changes

        conf = self.conf if conf is None else conf
        return draw_object_changes(
            self.changes(precision, conf=conf),
            self.evaluation(self.about["reference"]),
            self.evaluation(precision),
            limit=limit,
            conf=conf,
        )

    def losses(self) -> pl.DataFrame:
        """The change of each primary metric; frames of several comparisons can be concatenated.

        Returns:
            One row per precision and primary metric: task, metric, precision, value, delta (against the reference;
            negative is a loss), low and high (95 % confidence interval of delta), and significant (the interval
            excludes zero).
        """
        changes = [
            self.differences.filter((pl.col("metric") == column) & (pl.col("scope") == "all")).with_columns(
                task=pl.lit(self.about["task"])
            )
            for column, _ in self.about["metrics"]
        ]
        return pl.concat(changes).select("task", "metric", "precision", "value", "delta", "low", "high", "significant")

    def open(self, precision: str) -> Runner:
        """Open the file that was evaluated: the engine if engines ran, else the ONNX file.

        Raises:
            RecipeError: The precision was not compared.
            EngineError, OnnxError, CapabilityError: As `trtkit.open` raises them, a missing file included.
        """
        from trtkit import backends

        self.evaluation(precision)
        engines_ran = self.rows.filter(pl.col("precision") == precision)["engine"].all()
        return backends.open(self.about["files"][precision]["engine" if engines_ran else "onnx"])

    def draw(self, precision: str, count: int = 3) -> ImageGrid:
        """Run the evaluated file on the first eval images and draw the detections.

        Args:
            precision: A compared precision.
            count: Number of images.

        Raises:
            RecipeError: The precision was not compared.
            DataError: An image no longer exists.
            EngineError, OnnxError, CapabilityError: As `open` raises them.
        """
        with self.open(precision) as runner:
            return runner.draw(self.evaluation(precision).per_image["path"].head(count).to_list())

    def why_slow(self, precision: str) -> SpeedDiagnosis:
        """Why the engine of a precision is not faster than that of the baseline of its verdict.

        Raises:
            RecipeError: The precision was not compared, or is the reference.
            EngineError: The engines did not run here, or have no layer tables.
        """
        from trtkit.comparison.verdict import diagnose_precision

        self.evaluation(precision)
        verdict = self.verdicts.get(precision)
        if verdict is None:
            raise RecipeError(
                f"say why {precision!r} is slow",
                "it is the reference, which is compared with nothing",
                f"choose from {', '.join(self.verdicts)}",
                code="comparison-reference",
                value=precision,
            )
        diagnosis = diagnose_precision(self, precision, verdict.baseline)
        if diagnosis is None:
            raise EngineError(
                f"say why {precision!r} is slow",
                "the comparison has no timed layers of its engines",
                "compare on the GPU, or pass two engine files to trtkit.why_slow",
                code="comparison-without-layers",
                value=precision,
            )
        return diagnosis

    def plot(self) -> go.Figure:
        """Accuracy, latency and file size side by side."""
        from trtkit.comparison.published import describe_unmeasured
        from trtkit.plotting.comparison import comparison_figure

        return comparison_figure(self.rows, leading_metrics(self.about["metrics"]), **describe_unmeasured(self))

    def plot_losses(self) -> go.Figure:
        """The change of each primary metric per precision, with its confidence interval."""
        from trtkit.plotting.comparison import losses_figure

        return losses_figure(self.losses(), reference=self.about["reference"])

    def plot_classes(self) -> go.Figure:
        """Accuracy of each class per precision, with the confidence interval of its change."""
        from trtkit.plotting.comparison import classes_figure

        return classes_figure(
            self.classes,
            self.about["metrics"][0][0],
            reference=self.about["reference"],
            differences=self.differences,
        )

    def report(self, path: str | Path) -> Path:
        """Write one self-contained HTML file.

        Returns:
            The file.

        Raises:
            OutputError: The file can't be written.
        """
        from trtkit.comparison.report import write_report

        return write_report(self, path)

    def tables(self) -> Mapping[str, pl.DataFrame]:
        """Every frame by name."""
        names = (
            "classes",
            "images",
            "detections",
            "labels",
            "samples",
            "runners",
            "differences",
            "layers",
            "thresholds",
            "rounds",
            "offline",
            "stages",
        )
        return {**{name: getattr(self, name) for name in names}, "comparison": self.rows}

    def facts(self) -> Mapping[str, Any]:
        """`about`, and the verdicts, for readers of the JSON."""
        return {**self.about, "verdicts": {name: verdict.to_dict() for name, verdict in self.verdicts.items()}}

    @classmethod
    def restore(cls, tables: Mapping[str, pl.DataFrame], facts: Mapping[str, Any], provenance: Provenance) -> Self:
        """The inverse of `tables` and `facts`."""
        frames = {name: table for name, table in tables.items() if name != "comparison"}
        # Verdicts follow from the tables.
        about = {"max_drop": MAX_DROP} | {name: value for name, value in facts.items() if name != "verdicts"}
        return cls(rows=tables["comparison"], **frames, about=about, provenance=provenance)

    @classmethod
    def upgrade(cls, saved: SavedResult) -> SavedResult:
        """Convert a comparison of format version 1, its recipes, settings and replay code included."""
        saved = super().upgrade(saved)
        facts = rename_version_1_keys(saved.facts, {"images": "eval_images"})
        if facts["calibration"] is not None:
            facts["calibration"] = rename_version_1_keys(facts["calibration"], {"images": "image_count"})
        facts["metrics"] = [[column, rename_version_1(name)] for column, name in facts["metrics"]]
        facts["recipes"] = {
            precision: {kind: rename_version_1_keys(recipe, {"level": "opt_level"}) for kind, recipe in recipes.items()}
            for precision, recipes in facts["recipes"].items()
        }
        facts["python"] = re.sub(r"^    images=", "    eval_images=", facts["python"], flags=re.MULTILINE)
        facts["command"] = facts["command"].replace(" --images=", " --eval-images=")
        saved.facts = facts
        if "differences" in saved.tables:
            saved.tables["differences"] = correct_significance(saved.tables["differences"])
        settings = rename_version_1_keys(saved.provenance["settings"], {"images": "eval_images"})
        saved.provenance = {**saved.provenance, "settings": settings}
        return saved

    def _try_displays(self) -> None:
        """As `Result._try_displays`, with the changes that `gallery` draws and the report."""
        from trtkit.comparison.report import render_report

        super()._try_displays()
        for precision in self.rows["precision"].unique():
            if self.about["task"] != "classify":
                self.changes(precision)
        render_report(self)

    def _repr_html_(self) -> str:
        from trtkit.comparison.report import render_summary

        return render_summary(self)

    def __repr__(self) -> str:
        return "\n".join((f"Comparison of {self.about['model']}", *(f"  {one}" for one in self.verdicts.values())))
