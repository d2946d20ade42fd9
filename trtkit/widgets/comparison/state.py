"""What is looked at in a comparison: one precision, one metric, one class; and which changes are drawn."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

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
    "lost": "objects that it no longer finds",
    "new error": "wrong detections that it makes anew",
    "gained": "objects that it finds and the reference does not",
    "error gone": "wrong detections of the reference that it does not make",
}
"""Sorts of change, the harmful ones first."""

PER_PAGE = 12

SUMMARY_METRICS = (
    "mAP50-95(",
    "mAP50(",
    "top1",
    "top5",
    "precision(",
    "recall(",
    "pycocotools/AP",
    "pycocotools/AP50",
    "pycocotools/AP75",
)
"""Metrics worth a line each, in this order."""


def resolve_comparison(source: Comparison | str | Path | None) -> Comparison | None:
    """A comparison that was given, or the one that `trtkit demo` left; None where there is neither.

    Raises:
        DataError: The folder holds none.
    """
    from trtkit import demo

    if isinstance(source, Comparison):
        return source
    if source is None and not (demo.OUTPUT_DIR / f"{Comparison.kind}.json").is_file():
        return None
    return Comparison.load(demo.OUTPUT_DIR if source is None else source)


def compare_demo_model(*, progress: Progress | None = None, cancel: CancelToken | None = None) -> Comparison:
    """Compare the embedded model's precisions, as `trtkit demo` does.

    Raises:
        CancelledError: The caller cancelled.
    """
    from trtkit import demo
    from trtkit.backends.capabilities import probe
    from trtkit.comparison.comparator import compare

    return compare(
        demo.model_path(),
        demo.data_path(),
        device=None if probe("tensorrt_rtx").gpus else demo.DEVICE,
        output=demo.OUTPUT_DIR,
        overwrite=True,
        progress=progress,
        cancel=cancel,
    )


def list_compared_precisions(comparison: Comparison) -> list[str]:
    """The precisions that were compared with the reference."""
    known = comparison.rows["precision"].unique(maintain_order=True).to_list()
    return [name for name in known if name != comparison.about["reference"]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DashboardState:
    """What stands out in every plot and table.

    Attributes:
        comparison: What is shown.
        precision: The precision that stands out.
        metric: The metric that classes are told by.
        name: The class that stands out, "" for all.
        batch: The batch size that is timed.
    """

    comparison: Comparison
    precision: str
    metric: str
    name: str = ""
    batch: int

    @classmethod
    def of(cls, comparison: Comparison) -> DashboardState:
        """At first: the lowest precision, the metric that decides, all classes, the first batch."""
        rows = comparison.rows
        return cls(
            comparison=comparison,
            precision=(list_compared_precisions(comparison) or [comparison.about["reference"]])[-1],
            metric=comparison.about["metrics"][0][0],
            batch=int(rows["batch"][0]),
        )

    @property
    def reference(self) -> str:
        """What changes are told against."""
        return str(self.comparison.about["reference"])

    @property
    def precisions(self) -> list[str]:
        """What may stand out; the reference too, in times and sizes."""
        return list(self.comparison.rows["precision"].unique(maintain_order=True))

    @property
    def batches(self) -> list[int]:
        """Batch sizes that were timed."""
        return [int(size) for size in self.comparison.rows["batch"].unique(maintain_order=True)]

    @functools.cached_property
    def metrics(self) -> list[str]:
        """Metrics worth a line each, the ones that decide first."""
        known = list(self.comparison.about["all_metrics"])
        first = [column for column, _ in self.comparison.about["metrics"]]
        exact = [name for start in SUMMARY_METRICS for name in known if _matches_metric(name, start)]
        return list(dict.fromkeys((*first, *exact)))

    @functools.cached_property
    def class_metrics(self) -> list[str]:
        """Metrics that are known by class."""
        told = self.comparison.differences
        if told.is_empty():
            return [self.metric]
        return told.filter(pl.col("scope") == "class")["metric"].unique(maintain_order=True).to_list() or [self.metric]

    @property
    def names(self) -> list[str]:
        """The classes that have labels."""
        return list(self.comparison.classes["name"].unique(maintain_order=True))

    def choosing(self, **choices: Any) -> DashboardState:
        """With another precision, metric, name or batch.

        Raises:
            RecipeError: It was not compared, or there is no such class or metric.
        """
        known: dict[str, list[Any]] = {
            "precision": self.precisions, "metric": self.class_metrics, "name": ["", *self.names],
            "batch": self.batches,
        }  # fmt: skip
        for what, value in choices.items():
            if value not in known[what]:
                listed = ", ".join(map(str, known[what])) or "nothing"
                raise RecipeError(f"look at {what} {value!r}", "it was not compared", f"choose from {listed}")
        return dataclasses.replace(self, **choices)

    def toggling(self, name: str) -> DashboardState:
        """With a class standing out, or none where it did already."""
        return self.choosing(name="" if name == self.name else name)

    def headline(self) -> pl.DataFrame:
        """One row a precision: the accuracies that decide with their changes, the times of the batch, sizes."""
        part = self.comparison.rows.filter(pl.col("batch") == self.batch)
        columns: list[pl.Expr] = [pl.col("precision")]
        compared = pl.col("precision") != self.reference
        for metric, _ in self.comparison.about["metrics"]:
            columns += [pl.col(metric), pl.when(compared).then(pl.col(f"delta {metric}")).alias(f"delta {metric}")]
            ends = [f"delta {metric} {end}" for end in ("low", "high")]
            if ends[0] in part.columns:
                told = pl.Series([_format_interval(*row) for row in part.select(ends).iter_rows()], dtype=pl.String)
                columns.append(pl.when(compared).then(pl.lit(told)).alias(f"interval {metric}"))
        columns += [pl.col(name) for name in ("p50_ms", "p99_ms", "images_per_s", "onnx_mb", "engine_mb")]
        return part.select(columns)

    def by_class(self) -> pl.DataFrame:
        """One row a class, the one that loses most first: labels, the metric before and after, change and interval."""
        labels = self.comparison.classes.filter(pl.col("precision") == self.reference).select("name", "instances")
        told = self.comparison.differences
        if told.is_empty() or self.precision == self.reference:
            return labels.with_columns(pl.lit(None, pl.Float64).alias("delta"))
        rows = told.filter(
            (pl.col("precision") == self.precision) & (pl.col("scope") == "class") & (pl.col("metric") == self.metric)
        )
        interval = pl.Series(
            "interval", [_format_interval(*row) for row in rows.select("low", "high").iter_rows()], pl.String
        )
        chosen = rows.select("name", "reference", "value", "delta", interval, "significant")
        return labels.join(chosen, on="name", how="inner", maintain_order="left").sort("delta", maintain_order=True)

    @functools.cached_property
    def all_changes(self) -> pl.DataFrame:
        """Objects won and lost by the precision; empty for the reference itself."""
        if self.precision == self.reference or "path" not in self.comparison.images.columns:
            return pl.DataFrame(
                schema={"change": pl.String, "score_drop": pl.Float64, "name": pl.String, "path": pl.String}
            )
        return self.comparison.changes(self.precision)

    def changed(self) -> pl.DataFrame:
        """How many objects of the class, or of all, were lost and won, by sort of change."""
        part = self.all_changes if not self.name else self.all_changes.filter(pl.col("name") == self.name)
        counts = dict(part.group_by("change").len().iter_rows())
        return pl.DataFrame(
            {
                "change": list(CHANGES),
                "what": list(CHANGES.values()),
                "count": [counts.get(name, 0) for name in CHANGES],
            },
            schema={"change": pl.String, "what": pl.String, "count": pl.Int64},
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GalleryState:
    """Which changes are drawn.

    Attributes:
        comparison: Whose.
        precision: The precision whose changes are told.
        kinds: Sorts of change, of `CHANGES`.
        name: A class, "" for all.
        conf: Smallest score that counts.
        page: Which page, from 0.
    """

    comparison: Comparison
    precision: str
    kinds: tuple[str, ...] = ("lost", "new error", "gained")
    name: str = ""
    conf: float = 0.25
    page: int = 0

    @classmethod
    def of(cls, comparison: Comparison, precision: str | None = None) -> GalleryState:
        """At first: what the lowest precision lost, made wrong and won, of all classes.

        Raises:
            RecipeError: The precision was not compared, or there is nothing to compare it with.
        """
        known = list_compared_precisions(comparison)
        if not known:
            raise RecipeError("draw what changed", "only one precision was compared", "compare at least two")
        return cls(comparison=comparison, precision=known[-1]).choosing(precision=precision or known[-1])

    @property
    def reference(self) -> str:
        """What changes are told against."""
        return str(self.comparison.about["reference"])

    def choosing(self, **choices: Any) -> GalleryState:
        """With another precision, other kinds, another name or conf; begins at the first page again.

        Raises:
            RecipeError: It was not compared, or there is no such kind or class.
        """
        state = dataclasses.replace(self, **choices, page=0)
        asked: Iterable[tuple[str, Any, list[str]]] = (
            ("precision", state.precision, list_compared_precisions(self.comparison)),
            ("class", state.name, ["", *self.comparison.classes["name"].unique(maintain_order=True)]),
            *(("change", kind, list(CHANGES)) for kind in state.kinds),
        )
        for what, value, known in asked:
            if value not in known:
                raise RecipeError(f"draw {what} {value!r}", "there is none", f"choose from {', '.join(known)}")
        if not 0 < state.conf < 1:
            raise RecipeError(f"count scores from {state.conf}", "a score lies between 0 and 1", "use e.g. 0.25")
        same = (state.precision, state.conf) == (self.precision, self.conf)
        if same and "told" in self.__dict__:
            # The same changes, shown in part: they need not be found again.
            state.__dict__["told"] = self.told
        return state

    def turning(self, pages: int) -> GalleryState:
        """Some pages on, or back; stays within what there is."""
        state = dataclasses.replace(self, page=min(max(self.page + pages, 0), self.pages - 1))
        state.__dict__["told"] = self.told
        return state

    @functools.cached_property
    def told(self) -> pl.DataFrame:
        """Every change, the worst first."""
        return self.comparison.changes(self.precision, conf=self.conf)

    @property
    def counts(self) -> dict[str, int]:
        """How many there are of each sort, of the class or of all."""
        part = self.told if not self.name else self.told.filter(pl.col("name") == self.name)
        found = dict(part.group_by("change").len().iter_rows())
        return {name: int(found.get(name, 0)) for name in CHANGES}

    def chosen(self) -> pl.DataFrame:
        """The changes of the kinds and the class that were chosen: harm first, gains by how much they gain."""
        part = self.told.filter(pl.col("change").is_in(list(self.kinds)))
        if self.name:
            part = part.filter(pl.col("name") == self.name)
        return (
            part.with_columns(weight=pl.col("score_drop").abs(), gain=pl.col("score_drop") < 0)
            .sort("gain", "weight", descending=[False, True], maintain_order=True)
            .drop("weight", "gain")
        )

    @property
    def pages(self) -> int:
        """How many pages there are, at least one."""
        return max(1, -(-len(self.chosen()) // PER_PAGE))

    def drawn(self) -> pl.DataFrame:
        """The page's changes with their images; `png` is null where an image is no longer there."""
        from trtkit.comparison.object_changes import draw_object_changes

        reference, other = (self.comparison.evaluation(name) for name in (self.reference, self.precision))
        return draw_object_changes(self.chosen().slice(self.page * PER_PAGE, PER_PAGE), reference, other, limit=PER_PAGE)


def _matches_metric(metric: str, start: str) -> bool:
    """Whether a metric is the one, or of the family where that ends in a bracket."""
    return metric.startswith(start) if start.endswith("(") else metric == start


def _format_interval(low: float | None, high: float | None) -> str | None:
    return None if low is None or high is None else f"{low:+.4f} to {high:+.4f}"
