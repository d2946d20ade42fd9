"""sweep(): compare calibration algorithms and numbers of calibration images by the task's metric."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl

from trtkit.calibration import ALGORITHMS, DEFAULTS, calibrate
from trtkit.calibration.algorithms import format_algorithm, get_algorithm
from trtkit.calibration.calibration import resolve_imgsz
from trtkit.calibration.sampling import count_calibration_images
from trtkit.evaluation.bootstrap import ResampledMetric, resample_metric
from trtkit.evaluation.evaluation import prepare_evaluation
from trtkit.evaluation.significance import TUNING_RESAMPLES, compute_interval, compute_loss_interval
from trtkit.executor import describe_executor
from trtkit.graph.qdq import insert_qdq
from trtkit.graph.torch_export import check_trace, trace
from trtkit.models import load
from trtkit.progress import CancelToken, Cost, Plan, Progress, Reporter, start_work
from trtkit.progress_line import verb
from trtkit.results import Provenance, Result, SavedResult, describe_machine, rename_version_1_keys
from trtkit.tasks import get_task
from trtkit.tuning.measurement import CachedEvaluator, ResultCache

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import torch
    from distributed import Client

    from trtkit.data import Dataset
    from trtkit.models import Model

__all__ = ["Sweep", "sweep"]

TOLERANCE = 0.001
"""A setting is sufficient if it loses at most this much against the best one."""

_COLUMNS: dict[str, Any] = {
    "algorithm": pl.String,
    "percentile": pl.Float64,
    "calibration_images": pl.Int64,
    **dict.fromkeys(
        ("metric", "low", "high", "loss", "loss_low", "loss_high", "gap", "gap_low", "gap_high"), pl.Float64
    ),
    "sufficient": pl.Boolean,
}

_VERSION_1_COLUMNS = {
    "images": "calibration_images",
    "behind": "gap",
    "behind_low": "gap_low",
    "behind_high": "gap_high",
    "enough": "sufficient",
}
"""Columns of format version 1, by their names in it."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Sweep(Result):
    """The accuracy of INT8 by calibration algorithm and number of calibration images.

    Attributes:
        rows: One row per setting: `algorithm`, `percentile`, `calibration_images`, `metric` with its 95 % confidence
            interval `low`, `high`; `loss`, `loss_low`, `loss_high` (against FP32, paired bootstrap); `gap`, `gap_low`,
            `gap_high` (the loss against the best setting); `sufficient` (as good as the best, within tolerance or
            confidence interval).
        metric: The metric, e.g. "mAP50-95(B)" by Ultralytics' rule.
        value_float: The metric in FP32.
        image_count: Number of images evaluated.
        provenance: Model, data, settings and seed.
    """

    kind: ClassVar[str] = "sweep"

    rows: pl.DataFrame
    metric: str
    value_float: float
    image_count: int
    provenance: Provenance

    def frame(self) -> pl.DataFrame:
        """`rows`."""
        return self.rows

    @property
    def best(self) -> dict[str, Any]:
        """The setting with the highest metric, as a row."""
        return self.rows.sort("metric", descending=True).row(0, named=True)

    @property
    def sufficient(self) -> dict[str, Any]:
        """The sufficient setting with the fewest calibration images, as a row."""
        rows = self.rows.filter(pl.col("sufficient")).sort("calibration_images", "loss", descending=[False, False])
        return rows.row(0, named=True)

    def verdict(self) -> str:
        """The sufficient setting in a sentence."""
        row, best = self.sufficient, self.best
        sentence = (
            f"{_format_setting(row)} is sufficient: {self.metric} {row['metric']:.4f}, loss {row['loss']:.4f} "
            f"[{row['loss_low']:.4f}, {row['loss_high']:.4f}] against FP32"
        )
        if row == best:
            return f"{sentence}; no setting is better."
        return f"{sentence}; the best, {_format_setting(best)}, is not significantly better or at most {TOLERANCE}."

    def plot(self) -> go.Figure:
        """The loss by number of calibration images, one line per algorithm, with confidence intervals."""
        from trtkit.calibration.algorithms import figure_looks
        from trtkit.plotting.tuning import sweep_figure

        title = self.verdict().split(":")[0]
        return sweep_figure(
            self.rows, sufficient=self.sufficient, metric=self.metric, title=title, looks=figure_looks()
        )

    def tables(self) -> Mapping[str, pl.DataFrame]:
        """The rows."""
        return {"sweep": self.rows}

    def facts(self) -> Mapping[str, Any]:
        """The attributes beside the rows."""
        return {"metric": self.metric, "value_float": self.value_float, "image_count": self.image_count}

    @classmethod
    def restore(cls, tables: Mapping[str, pl.DataFrame], facts: Mapping[str, Any], provenance: Provenance) -> Sweep:
        """The inverse of `tables` and `facts`."""
        return cls(rows=tables["sweep"], **facts, provenance=provenance)

    @classmethod
    def upgrade(cls, saved: SavedResult) -> SavedResult:
        """Convert a sweep of format version 1."""
        saved = super().upgrade(saved)
        saved.tables["sweep"] = saved.tables["sweep"].rename(_VERSION_1_COLUMNS)
        saved.facts = rename_version_1_keys(saved.facts, {"images": "image_count"})
        return saved

    def __repr__(self) -> str:
        return f"Sweep of {len(self.rows)} settings on {self.image_count} images: {self.verdict()}"


@verb
def sweep(
    model: Model | str | Path | torch.nn.Module,
    data: str | Path | Dataset,
    *,
    algorithms: Sequence[str] | None = None,
    percentiles: Sequence[float] = (DEFAULTS.percentile,),
    calibration_images: Sequence[int] = (8, 32, 128),
    split: str = "val",
    eval_images: int | None = None,
    keep: Sequence[str] = (),
    imgsz: int | tuple[int, int] | None = None,
    batch: int = 1,
    resamples: int = TUNING_RESAMPLES,
    seed: int = DEFAULTS.seed,
    cache_dir: str | Path | None = None,
    executor: Client | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Sweep:
    """Calibrate with every algorithm and number of images, and evaluate each result on ONNX Runtime.

    Each number of images takes one pass over them; all algorithms compute their ranges from its histograms.

    Args:
        model: From `load`, or what `load` takes.
        data: A data set's YAML file, with labels; calibration images come from its `train`.
        algorithms: Calibration algorithms; None takes every registered one.
        percentiles: Percentiles for the algorithms that take one, percent; each is a setting.
        calibration_images: Numbers of calibration images; smaller samples are subsets of larger ones.
        split: The split to evaluate on.
        eval_images: Maximum number of evaluation images, a seeded sample; None uses the whole split.
        keep: fnmatch patterns of ONNX node names that stay in FP16.
        imgsz: Image side, or (height, width), pixels; None uses the model's own.
        batch: Images per run in the evaluation.
        resamples: Number of bootstrap resamples.
        seed: Seed of the image samples and the resamples.
        cache_dir: Cache directory; an interrupted sweep resumes from it.
        executor: A `distributed.Client` (see `open_executor`), whose workers run the images; results are the same.
        progress: Progress callback.
        cancel: Cancellation token.

    Returns:
        The settings with metric, loss and confidence intervals.

    Raises:
        RecipeError: A setting is out of range, or a pattern matches no node.
        DataError, ModelError, CalibrationError: The data or the model can't be read or calibrated, or there is no such
            algorithm.
        CancelledError: The caller cancelled; finished steps are in `cache_dir`.
    """
    algorithms = tuple(ALGORITHMS) if algorithms is None else tuple(algorithms)
    for algorithm in algorithms:
        get_algorithm(algorithm)
    reporter = Reporter(progress, cancel)
    loaded = load(model)
    size = resolve_imgsz(imgsz, loaded, None)
    prepared = prepare_evaluation(loaded, data, split, eval_images=eval_images, seed=seed)
    dataset = prepared.dataset
    count = count_calibration_images(dataset, loaded, calibration_images=max(calibration_images))
    # Two numbers that the split does not have are the same setting.
    counts = sorted({min(number, count) for number in calibration_images})
    check_trace(loaded, keep, imgsz=size, batch=batch)
    settings = _list_settings(algorithms, percentiles)
    start_work(
        Plan(
            verb="sweep",
            settings={"model": loaded.stem, "imgsz": size, "batch": batch, "cache": cache_dir},
            images={"calibration": count, "evaluation": len(prepared.paths)},
            steps=(
                "evaluate fp32",
                *(
                    step
                    for number in counts
                    for step in (
                        f"calibrate on {number} images",
                        *(_name_evaluation(*setting, number) for setting in settings),
                    )
                ),
            ),
            costs={
                "evaluate fp32": Cost(kind="evaluate", images=len(prepared.paths)),
                **{f"calibrate on {number} images": Cost(kind="calibrate", images=number) for number in counts},
                **{
                    _name_evaluation(*setting, number): Cost(kind="evaluate", images=len(prepared.paths))
                    for number in counts
                    for setting in settings
                },
            },
        ),
        reporter,
    )
    metric = get_task(loaded.task).metric
    cache = ResultCache(cache_dir)
    evaluator = CachedEvaluator(
        dataset=dataset,
        split=split,
        eval_images=eval_images,
        seed=seed,
        cache=cache,
        reporter=reporter,
        batch=batch,
        executor=executor,
    )
    graph = trace(loaded, imgsz=size, batch=batch)
    reporter.begin("evaluate fp32")
    float_evaluation = evaluator(graph, "evaluate fp32")
    reference = resample_metric(float_evaluation, metric, resamples=resamples, seed=seed)
    rows: list[dict[str, Any]] = []
    resampled: list[ResampledMetric] = []
    for count in counts:
        reporter.begin(f"calibrate on {count} images")
        calibration = calibrate(
            loaded,
            dataset,
            calibration_images=count,
            histograms=True,
            imgsz=size,
            seed=seed,
            cache_dir=cache.calibrations,
            executor=executor,
            progress=reporter.progress,
            cancel=cancel,
        )
        for algorithm, percentile in settings:
            step = _name_evaluation(algorithm, percentile, count)
            reporter.begin(step)
            setting = calibration.with_algorithm(algorithm, percentile=percentile)
            evaluation = evaluator(insert_qdq(graph, setting.ranges, keep), step)
            resampled.append(resample_metric(evaluation, metric, resamples=resamples, seed=seed))
            interval, loss = compute_interval(resampled[-1]), compute_loss_interval(reference, resampled[-1])
            rows.append(
                {
                    "algorithm": setting.algorithm,
                    "percentile": setting.percentile,
                    "calibration_images": calibration.image_count,
                    "metric": interval.value,
                    "low": interval.low,
                    "high": interval.high,
                    "loss": loss.value,
                    "loss_low": loss.low,
                    "loss_high": loss.high,
                }
            )
    best = max(resampled, key=lambda one: one.value)
    for row, one in zip(rows, resampled, strict=True):
        gap = compute_loss_interval(best, one)
        sufficient = gap.value <= TOLERANCE or gap.low <= 0
        row.update(gap=gap.value, gap_low=gap.low, gap_high=gap.high, sufficient=sufficient)
    reporter.finish()
    return Sweep(
        rows=pl.DataFrame(rows, schema=_COLUMNS),
        metric=metric,
        value_float=reference.value,
        image_count=float_evaluation.image_count,
        provenance=Provenance(
            model_hash=loaded.hash,
            data_hash=float_evaluation.provenance.data_hash,
            runner=float_evaluation.provenance.runner,
            machine={**describe_machine(), **describe_executor(executor)},
            settings={
                "data": str(dataset.path),
                "algorithms": list(algorithms),
                "percentiles": list(percentiles),
                "calibration_images": list(calibration_images),
                "split": split,
                "eval_images": eval_images,
                "keep": list(keep),
                "imgsz": list(size),
                "batch": batch,
                "resamples": resamples,
            },
            seed=seed,
        ),
    )


def _list_settings(algorithms: Sequence[str], percentiles: Sequence[float]) -> list[tuple[str, float | None]]:
    """Every algorithm, and every percentile where the algorithm takes one."""
    return [
        (algorithm, percentile)
        for algorithm in algorithms
        for percentile in (percentiles if ALGORITHMS[algorithm].takes_percentile else (None,))
    ]


def _name_evaluation(algorithm: str, percentile: float | None, count: int) -> str:
    """The step that evaluates a setting."""
    return f"evaluate {format_algorithm(algorithm, percentile)}, {count} images"


def _format_setting(row: Mapping[str, Any]) -> str:
    return f"{format_algorithm(row['algorithm'], row['percentile'])} on {row['calibration_images']} images"
