"""Accuracy of precision assignments against FP32 on the same images: evaluate_int8(), and the trials of a search."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import onnx
import polars as pl

from trtkit.calibration import DEFAULTS, Calibration, calibrate
from trtkit.calibration.algorithms import format_algorithm
from trtkit.calibration.calibration import load_calibration, resolve_imgsz
from trtkit.calibration.sampling import count_calibration_images
from trtkit.evaluation.bootstrap import ResampledMetric, resample_metric
from trtkit.evaluation.evaluation import prepare_evaluation
from trtkit.evaluation.significance import TUNING_RESAMPLES, compute_loss_interval
from trtkit.graph.analysis import GraphIndex, count_macs, escape_pattern
from trtkit.graph.fp16 import convert_to_fp16
from trtkit.graph.qdq import insert_qdq, plan_qdq
from trtkit.graph.torch_export import check_trace, trace
from trtkit.models import load
from trtkit.progress import CancelToken, Cost, Plan, Progress, Reporter, start_work
from trtkit.progress_line import verb
from trtkit.results import Provenance, Result
from trtkit.tasks import get_task
from trtkit.tuning.measurement import CachedEvaluator, CostModel, ResultCache

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import torch

    from trtkit.data import Dataset
    from trtkit.evaluation.evaluation import Evaluation
    from trtkit.models import Model
    from trtkit.tuning.noise import LayerNoise


__all__ = [
    "TRIAL_COLUMNS",
    "Int8Evaluation",
    "PrecisionAssignment",
    "Trial",
    "Trials",
    "evaluate_int8",
]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Int8Evaluation(Result):
    """The accuracy of one precision assignment.

    Attributes:
        label: Its name.
        algorithm: The calibration algorithm of its ranges, with the percentile if it has one.
        keep: Its `keep=` patterns.
        kept_layers: Number of layers kept in FP16 beyond those that are by default.
        int8_share: Share of the multiply-accumulates in INT8, 0..1.
        metric: The metric, e.g. "mAP50-95(B)" by Ultralytics' rule.
        value: The metric in INT8.
        value_float: The metric in FP32.
        loss: `value_float - value`.
        loss_low: Lower end of the loss's 95 % confidence interval (paired bootstrap over images).
        loss_high: Upper end.
        image_count: Number of images evaluated.
        provenance: Model, data, settings and seed.
    """

    kind: ClassVar[str] = "int8_evaluation"

    label: str
    algorithm: str
    keep: tuple[str, ...]
    kept_layers: int
    int8_share: float
    metric: str
    value: float
    value_float: float
    loss: float
    loss_low: float
    loss_high: float
    image_count: int
    provenance: Provenance

    def frame(self) -> pl.DataFrame:
        """One row with every attribute but the provenance."""
        row = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "provenance"
        }
        return pl.DataFrame([{**row, "keep": list(self.keep)}], schema=_COLUMNS)

    def plot(self) -> go.Figure:
        """The metric in FP32 and in INT8, with the confidence interval of the loss."""
        from trtkit.plotting.tuning import int8_evaluation_figure

        return int8_evaluation_figure(self.frame())

    def tables(self) -> Mapping[str, pl.DataFrame]:
        """The frame."""
        return {self.kind: self.frame()}

    def facts(self) -> Mapping[str, Any]:
        """Nothing: the frame holds every attribute."""
        return {}

    @classmethod
    def restore(
        cls, tables: Mapping[str, pl.DataFrame], facts: Mapping[str, Any], provenance: Provenance
    ) -> Int8Evaluation:
        """The inverse of `tables` and `facts`."""
        row = tables[cls.kind].row(0, named=True)
        return cls(**{**row, "keep": tuple(row["keep"])}, provenance=provenance)

    def __repr__(self) -> str:
        return (
            f"INT8 by {self.algorithm}, {self.kept_layers} layers in FP16 beyond the default, {self.int8_share:.1%} of "
            f"the multiply-accumulates in INT8: {self.metric} {self.value:.4f}, FP32 {self.value_float:.4f}, loss "
            f"{self.loss:.4f} [{self.loss_low:.4f}, {self.loss_high:.4f}] on {self.image_count} images"
        )


_COLUMNS: dict[str, Any] = {
    **dict.fromkeys(("label", "algorithm"), pl.String),
    "keep": pl.List(pl.String),
    "kept_layers": pl.Int64,
    "int8_share": pl.Float64,
    "metric": pl.String,
    **dict.fromkeys(("value", "value_float", "loss", "loss_low", "loss_high"), pl.Float64),
    "image_count": pl.Int64,
}


@verb
def evaluate_int8(
    model: Model | str | Path | torch.nn.Module,
    data: str | Path | Dataset,
    calibration: Calibration | str | Path | None = None,
    keep: Sequence[str] = (),
    split: str = "val",
    *,
    calibration_images: int = DEFAULTS.calibration_images,
    eval_images: int | None = None,
    imgsz: int | tuple[int, int] | None = None,
    resamples: int = TUNING_RESAMPLES,
    seed: int = DEFAULTS.seed,
    label: str = "",
    cache_dir: str | Path | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Int8Evaluation:
    """Evaluate INT8 with given ranges and layers kept in FP16 against FP32, on ONNX Runtime.

    Args:
        model: From `load`, or what `load` takes.
        data: A data set's YAML file, with labels.
        calibration: A calibration of this model, or the folder of a saved one; None calibrates as `export` does.
        keep: fnmatch patterns of ONNX node names that stay in FP16.
        split: The split to evaluate on.
        calibration_images: Maximum number of calibration images; not used with `calibration`.
        eval_images: Maximum number of evaluation images, a seeded sample; None uses the whole split.
        imgsz: Image side, or (height, width), pixels; None uses the calibration's, else the model's own.
        resamples: Number of bootstrap resamples, at least 2.
        seed: Seed of the image samples and the resamples.
        label: Name of the precision assignment; "" uses its algorithm.
        cache_dir: Cache directory; evaluations in it, such as FP32's, are reused.
        progress: Progress callback.
        cancel: Cancellation token.

    Returns:
        The metric in FP32 and INT8, and the loss with its 95 % confidence interval.

    Raises:
        CalibrationError: The calibration was measured on another model.
        RecipeError: A setting is out of range, or a pattern matches no node.
        DataError, ModelError: The data or the model can't be read.
        CancelledError: The caller cancelled.
    """
    reporter = Reporter(progress, cancel)
    loaded = load(model)
    given = load_calibration(calibration, loaded)
    size = resolve_imgsz(imgsz, loaded, given)
    prepared = prepare_evaluation(loaded, data, split, eval_images=eval_images, seed=seed)
    dataset, images = prepared.dataset, {"evaluation": len(prepared.paths)}
    if given is None:
        images["calibration"] = count_calibration_images(dataset, loaded, calibration_images=calibration_images)
    check_trace(loaded, keep, imgsz=size)
    start_work(
        Plan(
            verb="evaluate_int8",
            settings={"model": loaded.stem, "imgsz": size, "cache": cache_dir},
            images=images,
            steps=("trace the graph", *(["calibrate"] if given is None else []), "evaluate fp32", "evaluate int8"),
            costs={
                "calibrate": Cost(kind="calibrate", images=images.get("calibration", 0)),
                **{
                    f"evaluate {precision}": Cost(kind="evaluate", images=images["evaluation"])
                    for precision in ("fp32", "int8")
                },
            },
        ),
        reporter,
    )
    cache = ResultCache(cache_dir)
    reporter.begin("trace the graph")
    graph = trace(loaded, imgsz=size, batch=1)
    full_int8, placement = plan_qdq(graph), plan_qdq(graph, keep)
    macs = count_macs(graph, GraphIndex(graph))
    if given is None:
        reporter.begin("calibrate")
        given = calibrate(
            loaded,
            dataset,
            calibration_images=calibration_images,
            imgsz=size,
            seed=seed,
            cache_dir=cache.calibrations,
            progress=reporter.progress,
            cancel=cancel,
        )
    evaluator = CachedEvaluator(
        dataset=dataset, split=split, eval_images=eval_images, seed=seed, cache=cache, reporter=reporter
    )
    metric = get_task(loaded.task).metric
    algorithm = format_algorithm(given.algorithm, given.percentile)
    reporter.begin("evaluate fp32")
    float_evaluation = evaluator(graph, "evaluate fp32")
    reporter.begin("evaluate int8")
    int8_graph = insert_qdq(graph, given.ranges, placement=placement, corrections=given.corrections)
    int8_evaluation = evaluator(int8_graph, "evaluate int8")
    reference, resampled = (
        resample_metric(evaluation, metric, resamples=resamples, seed=seed)
        for evaluation in (float_evaluation, int8_evaluation)
    )
    loss = compute_loss_interval(reference, resampled)
    reporter.finish()
    return Int8Evaluation(
        label=label or algorithm,
        algorithm=algorithm,
        keep=tuple(keep),
        kept_layers=len(full_int8.layers) - len(placement.layers),
        int8_share=sum(macs.get(layer, 0) for layer in placement.layers) / max(sum(macs.values()), 1),
        metric=metric,
        value=resampled.value,
        value_float=reference.value,
        loss=loss.value,
        loss_low=loss.low,
        loss_high=loss.high,
        image_count=int8_evaluation.image_count,
        provenance=Provenance(
            model_hash=loaded.hash,
            data_hash=int8_evaluation.provenance.data_hash,
            runner=int8_evaluation.provenance.runner,
            settings={
                "data": str(dataset.path),
                "calibration": given.hash,
                "keep": list(keep),
                "split": split,
                "calibration_images": calibration_images,
                "eval_images": eval_images,
                "imgsz": list(size),
                "resamples": resamples,
                "label": label,
            },
            seed=seed,
        ),
    )


TRIAL_COLUMNS: dict[str, Any] = {
    "assignment": pl.String,
    "algorithm": pl.String,
    "bias_corrected": pl.Boolean,
    "kept_layers": pl.Int64,
    **dict.fromkeys(("int8_share", "sqnr", "metric", "loss", "loss_low", "loss_high", "cost"), pl.Float64),
    "unit": pl.String,
    **dict.fromkeys(("pareto", "chosen"), pl.Boolean),
    "keep": pl.List(pl.String),
}
"""Columns of `Search.trials`, described there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrecisionAssignment:
    """Which layers run in INT8, with which ranges.

    Attributes:
        label: Its name.
        calibration: Ranges and bias corrections.
        kept_layers: Layers kept in FP16 beyond those that are by default.
    """

    label: str
    calibration: Calibration
    kept_layers: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """An evaluated precision assignment.

    Attributes:
        row: Its row of `Search.trials`.
        keep: Its `keep=` patterns.
        assignment: The precision assignment; None for the FP16 model.
    """

    row: dict[str, Any]
    keep: tuple[str, ...]
    assignment: PrecisionAssignment | None


@dataclasses.dataclass(kw_only=True, eq=False)
class Trials:
    """The trials of one search.

    Attributes:
        layer_noise: The graph's layers.
        graph: The FP32 graph to quantize and evaluate.
        evaluator: Evaluates graphs.
        cost: Computes the cost of a placement.
        metric: The metric that decides.
        max_drop: The largest accepted loss of the metric.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples.
        rows: The trials so far.
        cost_source: How the costs were obtained.
        runner: The name of the runner that evaluated.
        data_hash: SHA-256 of the evaluation images and labels.
        reference: The metric of FP32 on every resample.
    """

    layer_noise: LayerNoise
    graph: onnx.ModelProto
    evaluator: CachedEvaluator
    cost: CostModel
    metric: str
    max_drop: float
    resamples: int
    seed: int
    rows: list[Trial] = dataclasses.field(default_factory=list)
    cost_source: str = ""
    runner: str = ""
    data_hash: str | None = None
    reference: ResampledMetric = dataclasses.field(init=False)

    def evaluate_references(self) -> None:
        """Evaluate FP32, the reference of every loss, and FP16, the fallback."""
        self.evaluator.reporter.begin("evaluate fp32")
        evaluation = self.evaluator(self.graph, "evaluate fp32")
        self.reference = self._resample(evaluation)
        self.runner, self.data_hash = evaluation.provenance.runner, evaluation.provenance.data_hash
        self._evaluate(
            None,
            "fp16",
            convert_to_fp16(self.graph),
            [escape_pattern(name) for name in self.layer_noise.weighted],
            [escape_pattern(name) for name in self.layer_noise.full_int8.layers],
            None,
        )

    def evaluate_assignment(self, assignment: PrecisionAssignment, sqnr: float) -> bool:
        """Evaluate a precision assignment.

        Args:
            assignment: The precision assignment.
            sqnr: Its SQNR, dB.

        Returns:
            Whether its loss is accepted.
        """
        calibration = assignment.calibration
        keep = [*self.layer_noise.user_keep, *map(escape_pattern, assignment.kept_layers)]
        graph = insert_qdq(self.graph, calibration.ranges, keep, corrections=calibration.corrections)
        return self._evaluate(assignment, assignment.label, graph, keep, keep, sqnr)

    def is_any_int8_accepted(self) -> bool:
        """Whether the loss of an INT8 trial is accepted."""
        return any(trial.assignment is not None and trial.row["loss"] <= self.max_drop for trial in self.rows)

    def choose(self) -> Trial:
        """The fastest trial with an accepted loss, the more accurate of equals; else the trial with the least loss."""
        accepted = [trial for trial in self.rows if trial.row["loss"] <= self.max_drop]
        if not accepted:
            return min(self.rows, key=lambda trial: float(trial.row["loss"]))
        return min(accepted, key=lambda trial: (trial.row["cost"], trial.row["loss"]))

    def frame(self) -> pl.DataFrame:
        """`Search.trials`."""
        from trtkit.plotting.tuning import find_pareto

        chosen = self.choose()
        optimal = find_pareto([-trial.row["cost"] for trial in self.rows], [trial.row["metric"] for trial in self.rows])
        rows = [
            {**trial.row, "pareto": best, "chosen": trial is chosen, "keep": list(trial.keep)}
            for trial, best in zip(self.rows, optimal, strict=True)
        ]
        return pl.DataFrame(rows, schema=TRIAL_COLUMNS)

    def _evaluate(
        self,
        assignment: PrecisionAssignment | None,
        label: str,
        graph: onnx.ModelProto,
        excluded: Sequence[str],
        keep: Sequence[str],
        sqnr: float | None,
    ) -> bool:
        """Evaluate a graph as one trial; `excluded` are the patterns without INT8, `keep` those to export it with."""
        self.evaluator.reporter.begin(f"trial {len(self.rows) + 1}")
        placement = plan_qdq(self.layer_noise.graph, excluded)
        resampled = self._resample(self.evaluator(graph, f"evaluate {label}"))
        loss = compute_loss_interval(self.reference, resampled)
        cost = self.cost(placement, keep, None if assignment is None else assignment.calibration)
        self.cost_source = cost.source
        self.rows.append(
            Trial(
                row={
                    "assignment": label,
                    "algorithm": None if assignment is None else assignment.calibration.algorithm,
                    "bias_corrected": assignment is not None and bool(assignment.calibration.corrections),
                    "kept_layers": len(self.layer_noise.full_int8.layers) - len(placement.layers),
                    "int8_share": self.layer_noise.int8_share(placement),
                    "sqnr": sqnr,
                    "metric": resampled.value,
                    "loss": loss.value,
                    "loss_low": loss.low,
                    "loss_high": loss.high,
                    "cost": cost.value,
                    "unit": cost.unit,
                },
                keep=tuple(keep),
                assignment=assignment,
            )
        )
        return bool(loss.value <= self.max_drop)

    def _resample(self, evaluation: Evaluation) -> ResampledMetric:
        return resample_metric(evaluation, self.metric, resamples=self.resamples, seed=self.seed)
