"""sweep(): which algorithm, and how many images are enough, by real mAP."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl

from trtkit.calibration.algorithms import ALGORITHMS, PERCENTILE
from trtkit.errors import RecipeError
from trtkit.progress import CancelToken, Progress, Reporter
from trtkit.recipe import round_imgsz
from trtkit.results import Provenance, Result
from trtkit.tasks import get_task

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import torch

    from trtkit.data import Dataset
    from trtkit.models import Model

__all__ = ["Sweep", "sweep"]

TOLERANCE = 0.001
"""A setting is enough when it loses no more than this against the best one: less than anybody can tell."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Sweep(Result):
    """Every algorithm with every number of images, judged.

    Attributes:
        rows: One row a setting: `algorithm`, `percentile`, `images` (calibrated on), `metric`, `low`, `high` (its
            interval over images), `loss`, `loss_low`, `loss_high` (against FP32, on the same draws of images),
            `behind`, `behind_low`, `behind_high` (against the best setting), `enough`.
        metric: What judges, e.g. "mAP50-95(B)" by Ultralytics' rule.
        value_float: The metric in FP32.
        images: Images judged.
        provenance: Model, data, settings and seed.
    """

    kind: ClassVar[str] = "sweep"

    rows: pl.DataFrame
    metric: str
    value_float: float
    images: int
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
        """The setting with the fewest images that is as good as the best, as a row."""
        fit = self.rows.filter(pl.col("enough")).sort("images", "loss", descending=[False, False])
        return fit.row(0, named=True)

    def verdict(self) -> str:
        """Which setting is enough, in a sentence."""
        row, best = self.sufficient, self.best
        said = (
            f"{_format_setting(row)} on {row['images']} images is enough: {self.metric} {row['metric']:.4f}, a loss of "
            f"{row['loss']:.4f} [{row['loss_low']:.4f}, {row['loss_high']:.4f}] against FP32"
        )
        if row == best:
            return f"{said}, and no setting did better."
        return f"{said}; the best, {_format_setting(best)} on {best['images']}, is no more than chance or {TOLERANCE} ahead."

    def plot(self) -> go.Figure:
        """The loss by number of images, a line an algorithm, with intervals."""
        from trtkit.plotting.tuning import sweep_figure

        return sweep_figure(self)

    def tables(self) -> Mapping[str, pl.DataFrame]:
        """The rows."""
        return {"sweep": self.rows}

    def facts(self) -> Mapping[str, Any]:
        """What the rows don't hold."""
        return {"metric": self.metric, "value_float": self.value_float, "images": self.images}

    @classmethod
    def restore(cls, tables: Mapping[str, pl.DataFrame], facts: Mapping[str, Any], provenance: Provenance) -> Sweep:
        """The inverse of `tables` and `facts`."""
        return cls(rows=tables["sweep"], **facts, provenance=provenance)

    def __repr__(self) -> str:
        return f"Sweep of {len(self.rows)} settings on {self.images} images: {self.verdict()}"


def sweep(
    model: Model | str | Path | torch.nn.Module,
    data: str | Path | Dataset,
    *,
    algorithms: Collection[str] = ALGORITHMS,
    percentiles: Sequence[float] = (PERCENTILE,),
    calibration_images: Sequence[int] = (8, 32, 128),
    split: str = "val",
    eval_images: int | None = None,
    keep: Sequence[str] = (),
    imgsz: int | tuple[int, int] | None = None,
    batch: int = 1,
    resamples: int = 500,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Sweep:
    """Calibrate by every algorithm on every number of images and judge each result on ONNX Runtime.

    Each number of images takes one pass; all algorithms are read off it. With `state`, a sweep that was stopped goes
    on where it was.

    Args:
        model: From `load`, or what `load` takes.
        data: A data set's YAML file, with labels; images for calibration come from its `train`.
        algorithms: Some of "minmax", "moving_average", "entropy", "percentile", "mse".
        percentiles: For "percentile", each of these is a setting of its own, percent.
        calibration_images: Numbers of images; each draws from the same shuffle, so that fewer are among more.
        split: The split that judges.
        eval_images: At most so many images judge; None takes all.
        keep: fnmatch patterns of ONNX node names that stay in high precision.
        imgsz: Height and width, pixels; None takes the model's.
        batch: Images a run while judging.
        resamples: How often images are drawn anew for the intervals.
        seed: Seed of samples and draws.
        cache_dir: A folder that remembers finished steps; None remembers nothing.
        progress: Receives events.
        cancel: Asked between batches.

    Returns:
        Every setting with metric, loss and intervals, and which one is enough.

    Raises:
        RecipeError: No algorithm or number, or one that there is not.
        DataError, ModelError, CalibrationError: From reading and measuring.
        CancelledError: The caller cancelled; what was finished is in `state`.
    """
    from trtkit.calibration import calibrate
    from trtkit.data import open_dataset
    from trtkit.evaluation.significance import ResampledMetric, compute_interval, compute_loss_interval, resample_metric
    from trtkit.graph.qdq import insert_qdq
    from trtkit.graph.torch_export import trace
    from trtkit.models import load
    from trtkit.tuning.cache import CachedEvaluator, ResultCache

    if (
        not algorithms
        or not calibration_images
        or min(calibration_images) < 1
        or not set(algorithms) <= set(ALGORITHMS)
    ):
        raise RecipeError(
            f"sweep algorithms={tuple(algorithms)} and images={tuple(calibration_images)}",
            "there is nothing to sweep, or no such algorithm",
            f"choose from {', '.join(ALGORITHMS)} and numbers from 1 on",
        )
    reporter = Reporter(progress, cancel)
    loaded = load(model)
    size = round_imgsz(imgsz if imgsz is not None else loaded.imgsz, loaded.stride)
    dataset = open_dataset(data, task=loaded.task)
    metric = get_task(loaded.task).metric
    kept = ResultCache(cache_dir)
    judge = CachedEvaluator(
        dataset=dataset, split=split, images=eval_images, seed=seed, state=kept, reporter=reporter, batch=batch
    )
    graph = trace(loaded, imgsz=size, batch=batch)
    exact = judge(graph, "judge fp32")
    reference = resample_metric(exact, metric, resamples=resamples, seed=seed)
    settings = [
        (algorithm, value)
        for algorithm in algorithms
        for value in (percentiles if algorithm == "percentile" else (None,))
    ]
    rows: list[dict[str, Any]] = []
    drawn: list[ResampledMetric] = []
    runner = ""
    for count in sorted(set(calibration_images)):
        calibration = calibrate(
            loaded,
            dataset,
            calibration_images=count,
            histograms=True,
            imgsz=size,
            seed=seed,
            cache=None if kept.folder is None else kept.folder / "calibrations",
            progress=progress,
            cancel=cancel,
        )
        for algorithm, value in settings:
            read = calibration.with_algorithm(algorithm, percentile=value)
            label = algorithm if value is None else f"{algorithm} {value:g}"
            found = judge(insert_qdq(graph, read.ranges, keep), f"judge {label}, {count} images")
            runner = found.provenance.runner
            drawn.append(resample_metric(found, metric, resamples=resamples, seed=seed))
            own, loss = compute_interval(drawn[-1]), compute_loss_interval(reference, drawn[-1])
            rows.append(
                {
                    "algorithm": algorithm,
                    "percentile": value,
                    "images": calibration.images,
                    "metric": own.value,
                    "low": own.low,
                    "high": own.high,
                    "loss": loss.value,
                    "loss_low": loss.low,
                    "loss_high": loss.high,
                }
            )
    best = max(drawn, key=lambda one: one.value)
    for row, one in zip(rows, drawn, strict=True):
        behind = compute_loss_interval(best, one)
        row.update(behind=behind.value, behind_low=behind.low, behind_high=behind.high)
        # Within the tolerance, or within what other images might have turned round.
        row["enough"] = behind.value <= TOLERANCE or behind.low <= 0
    return Sweep(
        rows=pl.DataFrame(rows, schema=_COLUMNS),
        metric=metric,
        value_float=reference.value,
        images=exact.image_count,
        provenance=Provenance(
            model_hash=loaded.hash,
            data_hash=exact.provenance.data_hash,
            runner=runner,
            settings={
                "data": str(dataset.path),
                "algorithms": list(algorithms),
                "percentiles": list(percentiles),
                "images": list(calibration_images),
                "split": split,
                "judged": eval_images,
                "keep": list(keep),
                "imgsz": list(size),
                "batch": batch,
                "draws": resamples,
            },
            seed=seed,
        ),
    )


_COLUMNS: dict[str, Any] = {
    "algorithm": pl.String,
    "percentile": pl.Float64,
    "images": pl.Int64,
    **dict.fromkeys(
        ("metric", "low", "high", "loss", "loss_low", "loss_high", "behind", "behind_low", "behind_high"), pl.Float64
    ),
    "enough": pl.Boolean,
}


def _format_setting(row: Mapping[str, Any]) -> str:
    return str(row["algorithm"]) if row["percentile"] is None else f"{row['algorithm']} {row['percentile']:g}"
