"""States of the dashboard (precision, metric, class, batch) and of the gallery (which object changes are shown)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from trtkit.arguments import PRECISIONS
from trtkit.comparison.comparison import Comparison
from trtkit.errors import RecipeError
from trtkit.progress import CancelToken, Progress

__all__ = [
    "CHANGES",
    "DashboardState",
    "GalleryState",
    "compare_demo_model",
    "list_compared_precisions",
    "resolve_comparison",
]

CHANGES = {
    "lost": "objects that the reference detects and the precision does not",
    "false positive added": "false positives that the precision adds",
    "gained": "objects that the precision detects and the reference does not",
    "false positive removed": "false positives of the reference that the precision does not have",
}
"""Kinds of change with their explanation, losses first."""

LATENCY_COLUMNS = ("p50_ms", "p99_ms", "images_per_s")

PAGE_SIZE = 12
"""Changes per page of the gallery."""

SUMMARY_METRICS = (
    "mAP50-95(", "mAP50(", "top1", "top5", "precision(", "recall(", "pycocotools/AP", "pycocotools/AP50",
    "pycocotools/AP75",
)  # fmt: skip
"""Metrics of the accuracy figure, in this order; one that ends in a bracket stands for its kinds, such as mAP50(B)."""


def resolve_comparison(source: Comparison | str | Path | None) -> Comparison | None:
    """The given comparison, or else the one that `trtkit demo` saved.

    Args:
        source: A comparison, the folder of a saved one, or None.

    Returns:
        None if nothing was given and the demo has not run.

    Raises:
        DataError: The folder holds no comparison.
    """
    from trtkit import demo

    if isinstance(source, Comparison):
        return source
    if source is None and not (demo.OUTPUT_DIR / f"{Comparison.kind}.json").is_file():
        return None
    return Comparison.load(demo.OUTPUT_DIR if source is None else source)


def compare_demo_model(*, progress: Progress | None = None, cancel: CancelToken | None = None) -> Comparison:
    """Compare the precisions of the embedded model, as `trtkit demo` does.

    Args:
        progress: Receives events.
        cancel: Checked at every step.

    Raises:
        CancelledError: The caller cancelled.
    """
    from trtkit import demo
    from trtkit.backends.capabilities import probe
    from trtkit.comparison.comparator import compare

    return compare(
        demo.model_path(),
        demo.data_path(),
        imgsz=demo.IMGSZ,
        device=None if probe("tensorrt_rtx").gpus else demo.DEVICE,
        output=demo.OUTPUT_DIR,
        overwrite=True,
        progress=progress,
        cancel=cancel,
    )


def list_compared_precisions(comparison: Comparison) -> list[str]:
    """The precisions other than the reference."""
    precisions = comparison.rows["precision"].unique(maintain_order=True).to_list()
    return [name for name in precisions if name != comparison.about["reference"]]


def choose_shown_precision(comparison: Comparison) -> str:
    """The precision that is shown first: the lowest, or the last candidate; the reference if it is alone."""
    compared = list_compared_precisions(comparison)
    lowest = [name for name in PRECISIONS if name in compared]
    return str([comparison.about["reference"], *compared, *lowest][-1])


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DashboardState:
    """The selection that all figures and tables of the dashboard highlight.

    Attributes:
        comparison: The comparison.
        precision: The selected precision.
        metric: The metric of the class figure and table.
        class_name: The selected class, "" for all.
        batch: The batch size of the latencies.
    """

    comparison: Comparison
    precision: str
    metric: str
    class_name: str = ""
    batch: int

    @classmethod
    def from_comparison(cls, comparison: Comparison) -> DashboardState:
        """The initial state: the lowest precision, the first primary metric, all classes, the first batch size."""
        rows = comparison.rows
        return cls(
            comparison=comparison,
            precision=choose_shown_precision(comparison),
            metric=comparison.about["metrics"][0][0],
            batch=int(rows["batch"][0]),
        )

    @property
    def reference(self) -> str:
        """The precision that changes are measured against."""
        return str(self.comparison.about["reference"])

    @property
    def precisions(self) -> list[str]:
        """All precisions, the reference included."""
        return list(self.comparison.rows["precision"].unique(maintain_order=True))

    @property
    def batches(self) -> list[int]:
        """The timed batch sizes."""
        return [int(size) for size in self.comparison.rows["batch"].unique(maintain_order=True)]

    @functools.cached_property
    def metrics(self) -> list[str]:
        """The metrics of the accuracy figure, the primary ones first."""
        available = list(self.comparison.about["all_metrics"])
        primary = [column for column, _ in self.comparison.about["metrics"]]
        others = [name for prefix in SUMMARY_METRICS for name in available if _matches_metric(name, prefix)]
        return list(dict.fromkeys((*primary, *others)))

    @functools.cached_property
    def class_metrics(self) -> list[str]:
        """The metrics that are known per class."""
        differences = self.comparison.differences
        if differences.is_empty():
            return [self.metric]
        of_classes = differences.filter(pl.col("scope") == "class")
        return of_classes["metric"].unique(maintain_order=True).to_list() or [self.metric]

    @property
    def class_names(self) -> list[str]:
        """The classes that have labels."""
        return list(self.comparison.classes["name"].unique(maintain_order=True))

    def with_choices(self, **choices: Any) -> DashboardState:
        """The state with another precision, metric, class_name or batch.

        Raises:
            RecipeError: The comparison has no such precision, metric, class or batch size.
        """
        available: dict[str, list[Any]] = {
            "precision": self.precisions, "metric": self.class_metrics, "class_name": ["", *self.class_names],
            "batch": self.batches,
        }  # fmt: skip
        for choice, value in choices.items():
            if value not in available[choice]:
                listed = ", ".join(map(str, available[choice])) or "nothing"
                raise RecipeError(
                    f"show {choice} {value!r}",
                    "the comparison has none",
                    f"choose from {listed}",
                    code="dashboard-choice-unknown",
                    name=choice,
                    value=value,
                )
        state = dataclasses.replace(self, **choices)
        if state.precision == self.precision and "changes" in self.__dict__:
            # They depend on the precision only, and take seconds for thousands of images.
            state.__dict__["changes"] = self.changes
        return state

    def with_class_toggled(self, name: str) -> DashboardState:
        """The state with a class selected, or with all classes if it was selected before."""
        return self.with_choices(class_name="" if name == self.class_name else name)

    def with_point(self, point: Mapping[str, Any]) -> DashboardState:
        """The state after a click on a point of any figure: its precision, and its class or metric where it has one.

        A click on the selected class of the selected precision selects all classes.

        Args:
            point: The point's `customdata`.
        """
        choices = {name: point[name] for name in ("precision", "class_name", "metric") if name in point}
        if choices.get("metric") not in self.class_metrics:
            # The figures by class have no such metric.
            choices.pop("metric", None)
        if choices == {"precision": self.precision, "class_name": self.class_name}:
            choices["class_name"] = ""
        return self.with_choices(**choices)

    def summary_frame(self) -> pl.DataFrame:
        """One row per precision: primary metrics with change and interval, latencies of engines, file sizes."""
        rows = self.comparison.rows.filter(pl.col("batch") == self.batch)
        columns: list[pl.Expr] = [pl.col("precision")]
        compared = pl.col("precision") != self.reference
        for metric, _ in self.comparison.about["metrics"]:
            columns += [pl.col(metric), pl.when(compared).then(pl.col(f"delta {metric}")).alias(f"delta {metric}")]
            ends = [f"delta {metric} {end}" for end in ("low", "high")]
            if ends[0] in rows.columns:
                texts = pl.Series([_format_interval(*row) for row in rows.select(ends).iter_rows()], dtype=pl.String)
                columns.append(pl.when(compared).then(pl.lit(texts)).alias(f"interval {metric}"))
        # Another runner's latency does not predict an engine's, and stands apart: `latency_frame`.
        latencies = LATENCY_COLUMNS if self.engines_ran else ()
        return rows.select(*columns, *latencies, "onnx_mb", "engine_mb")

    @property
    def engines_ran(self) -> bool:
        """Whether latencies are those of engines."""
        return bool(self.comparison.rows["engine"].any())

    def latency_frame(self) -> pl.DataFrame:
        """Latencies of the batch, whatever ran, one row per precision."""
        return self.comparison.rows.filter(pl.col("batch") == self.batch).select("precision", *LATENCY_COLUMNS)

    def class_frame(self) -> pl.DataFrame:
        """One row per class, the largest loss first: labels, both values of the metric, change, interval."""
        labels = self.comparison.classes.filter(pl.col("precision") == self.reference).select("name", "instances")
        differences = self.comparison.differences
        if differences.is_empty() or self.precision == self.reference:
            return labels.with_columns(pl.lit(None, pl.Float64).alias("delta"))
        rows = differences.filter(
            (pl.col("precision") == self.precision) & (pl.col("scope") == "class") & (pl.col("metric") == self.metric)
        )
        texts = [_format_interval(*row) for row in rows.select("low", "high").iter_rows()]
        changes = rows.select(
            "name", "reference", "value", "delta", pl.Series("interval", texts, pl.String), "significant"
        )
        return labels.join(changes, on="name", how="inner", maintain_order="left").sort("delta", maintain_order=True)

    @functools.cached_property
    def changes(self) -> pl.DataFrame:
        """The object changes of the selected precision; empty for the reference."""
        if self.precision == self.reference or "path" not in self.comparison.images.columns:
            schema = {"change": pl.String, "score_drop": pl.Float64, "name": pl.String, "path": pl.String}
            return pl.DataFrame(schema=schema)
        return self.comparison.changes(self.precision)

    def change_counts(self) -> pl.DataFrame:
        """Number of changes per kind, of the selected class or of all: `change`, `explanation`, `count`."""
        rows = self.changes if not self.class_name else self.changes.filter(pl.col("name") == self.class_name)
        counts = _count_changes(rows)
        return pl.DataFrame(
            {"change": list(CHANGES), "explanation": list(CHANGES.values()), "count": list(counts.values())},
            schema={"change": pl.String, "explanation": pl.String, "count": pl.Int64},
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GalleryState:
    """The object changes that the gallery shows.

    Attributes:
        comparison: The comparison.
        precision: The precision whose changes are shown.
        kinds: Kinds of change, keys of `CHANGES`.
        class_name: A class, "" for all.
        conf: Score threshold of detections.
        page: Index of the page.
    """

    comparison: Comparison
    precision: str
    kinds: tuple[str, ...] = ("lost", "false positive added", "gained")
    class_name: str = ""
    conf: float = 0.25
    page: int = 0

    @classmethod
    def from_comparison(cls, comparison: Comparison, precision: str | None = None) -> GalleryState:
        """The initial state: lost objects, added false positives and gained objects of all classes.

        Args:
            comparison: The comparison.
            precision: A precision other than the reference; None takes the lowest.

        Raises:
            RecipeError: The precision was not compared, or the reference is the only one.
        """
        if not list_compared_precisions(comparison):
            raise RecipeError(
                "show object changes",
                "only one precision was compared",
                "compare at least two",
                code="gallery-single-precision",
            )
        shown = choose_shown_precision(comparison)
        return cls(comparison=comparison, precision=shown, conf=comparison.conf).with_choices(
            precision=precision or shown
        )

    @property
    def reference(self) -> str:
        """The precision that changes are measured against."""
        return str(self.comparison.about["reference"])

    def with_choices(self, **choices: Any) -> GalleryState:
        """The first page of the state with another precision, class_name or conf, or other kinds.

        Raises:
            RecipeError: There is no such precision, class or kind of change, or conf is no score.
        """
        state = dataclasses.replace(self, **choices, page=0)
        checks: Iterable[tuple[str, Any, list[str]]] = (
            ("precision", state.precision, list_compared_precisions(self.comparison)),
            ("class", state.class_name, ["", *self.comparison.classes["name"].unique(maintain_order=True)]),
            *(("change", kind, list(CHANGES)) for kind in state.kinds),
        )
        for choice, value, available in checks:
            if value not in available:
                raise RecipeError(
                    f"show {choice} {value!r}",
                    "the comparison has none",
                    f"choose from {', '.join(available)}",
                    code="gallery-choice-unknown",
                    name=choice,
                    value=value,
                )
        if not 0 < state.conf < 1:
            raise RecipeError(
                f"use a score threshold of {state.conf}",
                "a score lies between 0 and 1",
                "use e.g. 0.25",
                code="gallery-conf-range",
                value=state.conf,
            )
        if (state.precision, state.conf) == (self.precision, self.conf):
            self._pass_changes(state)
        return state

    def with_page_turned(self, pages: int) -> GalleryState:
        """The state some pages later, or earlier for a negative number, within the pages that exist."""
        state = dataclasses.replace(self, page=min(max(self.page + pages, 0), self.page_count - 1))
        self._pass_changes(state)
        return state

    @functools.cached_property
    def changes(self) -> pl.DataFrame:
        """All changes of the precision, the largest score drop first."""
        return self.comparison.changes(self.precision, conf=self.conf)

    @property
    def counts(self) -> dict[str, int]:
        """Number of changes per kind, of the class or of all."""
        rows = self.changes if not self.class_name else self.changes.filter(pl.col("name") == self.class_name)
        return _count_changes(rows)

    def selected_changes(self) -> pl.DataFrame:
        """The changes of the chosen kinds and class: losses by score drop, then gains by score gain."""
        rows = self.changes.filter(pl.col("change").is_in(list(self.kinds)))
        if self.class_name:
            rows = rows.filter(pl.col("name") == self.class_name)
        return (
            rows.with_columns(size=pl.col("score_drop").abs(), gain=pl.col("score_drop") < 0)
            .sort("gain", "size", descending=[False, True], maintain_order=True)
            .drop("size", "gain")
        )

    @property
    def page_count(self) -> int:
        """Number of pages, at least 1."""
        return max(1, -(-len(self.selected_changes()) // PAGE_SIZE))

    def page_frame(self) -> pl.DataFrame:
        """The changes of the page with their drawings; `png` is null if the image file no longer exists."""
        from trtkit.comparison.object_changes import draw_object_changes

        rows = self.selected_changes().slice(self.page * PAGE_SIZE, PAGE_SIZE)
        reference, other = (self.comparison.evaluation(name) for name in (self.reference, self.precision))
        return draw_object_changes(rows, reference, other, limit=PAGE_SIZE, conf=self.conf)

    def _pass_changes(self, state: GalleryState) -> None:
        """Hand over the cached changes, which depend on precision and conf only."""
        if "changes" in self.__dict__:
            state.__dict__["changes"] = self.changes


def _count_changes(changes: pl.DataFrame) -> dict[str, int]:
    counts = dict(changes.group_by("change").len().iter_rows())
    return {kind: int(counts.get(kind, 0)) for kind in CHANGES}


def _matches_metric(metric: str, prefix: str) -> bool:
    return metric.startswith(prefix) if prefix.endswith("(") else metric == prefix


def _format_interval(low: float | None, high: float | None) -> str | None:
    return None if low is None or high is None else f"{low:+.4f} to {high:+.4f}"
