"""Mixes of INT8 and FP16 as they are judged, and which of them is the fastest that is allowed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import polars as pl

from trtkit.calibration.calibration import Calibration
from trtkit.errors import CalibrationError, RecipeError
from trtkit.evaluation.significance import TUNING_RESAMPLES, ResampledMetric, compute_loss_interval, resample_metric
from trtkit.graph.analysis import escape_pattern
from trtkit.graph.fp16 import convert_to_fp16
from trtkit.graph.qdq import insert_qdq, plan_qdq
from trtkit.progress import CancelToken, Progress, Reporter
from trtkit.recipe import round_imgsz
from trtkit.tasks import get_task
from trtkit.tuning.cache import CachedEvaluator, ResultCache
from trtkit.tuning.cost_model import CostModel

if TYPE_CHECKING:
    from trtkit.calibration.calibration import Calibration
    from trtkit.data import Dataset
    from trtkit.evaluation.evaluation import Evaluation
    from trtkit.models import Model
    from trtkit.tuning.cache import CachedEvaluator
    from trtkit.tuning.noise import LayerNoise

__all__ = ["Int8Evaluation", "PrecisionAssignment", "Trial", "Trials", "evaluate_int8"]

COLUMNS: dict[str, Any] = {
    "assignment": pl.String,
    "ranges": pl.String,
    "corrected": pl.Boolean,
    "kept": pl.Int64,
    **dict.fromkeys(("int8_share", "sqnr", "metric", "loss", "loss_low", "loss_high", "cost"), pl.Float64),
    "unit": pl.String,
    **dict.fromkeys(("pareto", "chosen"), pl.Boolean),
    "keep": pl.List(pl.String),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrecisionAssignment:
    """Ranges and corrections under a name.

    Attributes:
        label: For people.
        calibration: Ranges and corrections.
    """

    label: str
    calibration: Calibration


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """A mix that was judged.

    Attributes:
        row: Its row of `Search.trials`.
        keep: Its `keep=` patterns.
        mix: What it was made from; None for FP16 throughout.
    """

    row: dict[str, Any]
    keep: tuple[str, ...]
    assignment: PrecisionAssignment | None


@dataclasses.dataclass(kw_only=True, eq=False)
class Trials:
    """The judged mixes of one search.

    Attributes:
        lab: The graph's layers.
        graph: The float graph that is quantized and judged.
        judge: Judges graphs.
        cost: Says what a placement costs.
        metric: What decides.
        max_drop: The largest loss allowed.
        draws: How often images are drawn anew.
        seed: Of the draws.
        rows: What was judged so far.
    """

    layer_noise: LayerNoise
    graph: onnx.ModelProto
    evaluator: CachedEvaluator
    cost: CostModel
    metric: str
    max_drop: float
    draws: int
    seed: int
    rows: list[Trial] = dataclasses.field(default_factory=list)
    cost_source: str = ""
    runner: str = ""
    data_hash: str | None = None
    reference: ResampledMetric = dataclasses.field(init=False)

    def evaluate_references(self) -> None:
        """Judge FP32, which losses are told against, and FP16 throughout, which always is a way out."""
        exact = self.evaluator(self.graph, "judge fp32")
        self.reference = self._resample(exact)
        self.runner, self.data_hash = exact.provenance.runner, exact.provenance.data_hash
        everything = [escape_pattern(name) for name in self.layer_noise.weighted]
        self._evaluate(
            None,
            "fp16 throughout",
            convert_to_fp16(self.graph),
            everything,
            [escape_pattern(n) for n in self.layer_noise.full_int8.layers],
            None,
        )

    def evaluate_assignment(self, mix: PrecisionAssignment, layers: Sequence[str], sqnr: float) -> bool:
        """Judge a mix with some layers kept high beyond the default.

        Returns:
            Whether its loss is allowed.
        """
        calibration = mix.calibration
        keep = [*self.layer_noise.user_keep, *map(escape_pattern, layers)]
        graph = insert_qdq(self.graph, calibration.ranges, keep, corrections=calibration.corrections)
        return self._evaluate(mix, mix.label, graph, keep, keep, sqnr)

    def any_int8_allowed(self) -> bool:
        """Whether a mix with nothing kept beyond what was asked is allowed."""
        return any(trial.assignment is not None and trial.row["loss"] <= self.max_drop for trial in self.rows)

    def choose(self) -> Trial:
        """The fastest trial whose loss is allowed, the more accurate of equals; else the one that loses least."""
        allowed = [trial for trial in self.rows if trial.row["loss"] <= self.max_drop]
        if not allowed:
            return min(self.rows, key=lambda trial: float(trial.row["loss"]))
        return min(allowed, key=lambda trial: (trial.row["cost"], trial.row["loss"]))

    def frame(self) -> pl.DataFrame:
        """`Search.trials`."""
        chosen = self.choose()
        rows = []
        for trial in self.rows:
            beaten = any(
                other.row["cost"] <= trial.row["cost"]
                and other.row["metric"] >= trial.row["metric"]
                and (other.row["cost"], other.row["metric"]) != (trial.row["cost"], trial.row["metric"])
                for other in self.rows
            )
            rows.append({**trial.row, "pareto": not beaten, "chosen": trial is chosen, "keep": list(trial.keep)})
        return pl.DataFrame(rows, schema=COLUMNS)

    def _evaluate(
        self,
        mix: PrecisionAssignment | None,
        label: str,
        graph: onnx.ModelProto,
        placed: Sequence[str],
        keep: Sequence[str],
        sqnr: float | None,
    ) -> bool:
        placement = plan_qdq(self.layer_noise.graph, placed)
        evaluation = self.evaluator(graph, f"judge {label}")
        drawn = self._resample(evaluation)
        loss = compute_loss_interval(self.reference, drawn)
        cost = self.cost(placement, keep, None if mix is None else mix.calibration)
        self.cost_source = cost.source
        self.rows.append(
            Trial(
                row={
                    "assignment": label,
                    "ranges": None if mix is None else mix.calibration.algorithm,
                    "corrected": mix is not None and bool(mix.calibration.corrections),
                    "kept": len(self.layer_noise.full_int8.layers) - len(placement.layers),
                    "int8_share": self.layer_noise.int8_share(placement),
                    "sqnr": sqnr,
                    "metric": drawn.value,
                    "loss": loss.value,
                    "loss_low": loss.low,
                    "loss_high": loss.high,
                    "cost": cost.value,
                    "unit": cost.unit,
                },
                keep=tuple(keep),
                assignment=mix,
            )
        )
        return bool(loss.value <= self.max_drop)

    def _resample(self, evaluation: Evaluation) -> ResampledMetric:
        return resample_metric(evaluation, self.metric, resamples=self.draws, seed=self.seed)


# One mix of ranges and layers kept high, judged against FP32 on the same images.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Int8Evaluation:
    """What a mix gets.

    Attributes:
        label: What it is, for people.
        algorithm: The algorithm of its ranges, with its percentile where it has one.
        keep: Its `keep=` patterns.
        kept: How many layers stay high beyond the default.
        int8_share: Of the multiply-accumulates, 0..1.
        metric: The name of what judges, e.g. "mAP50-95(B)" by Ultralytics' rule.
        value: What the mix gets.
        value_float: What FP32 gets.
        loss: The difference.
        loss_low: The lower end of its 95 % interval, over the same draws of images.
        loss_high: The upper end.
        images: How many images judged.
    """

    label: str
    algorithm: str
    keep: tuple[str, ...]
    kept: int
    int8_share: float
    metric: str
    value: float
    value_float: float
    loss: float
    loss_low: float
    loss_high: float
    images: int


def evaluate_int8(
    model: Model | str | Path,
    data: str | Path | Dataset,
    calibration: Calibration | str | Path,
    keep: Sequence[str] = (),
    split: str = "val",
    *,
    eval_images: int | None = None,
    imgsz: int | tuple[int, int] | None = None,
    resamples: int = TUNING_RESAMPLES,
    seed: int = 0,
    label: str = "",
    cache_dir: str | Path | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Int8Evaluation:
    """Judge INT8 by a calibration, with some layers kept high, on ONNX Runtime.

    Args:
        model: From `load`, or what `load` takes.
        data: A data set's YAML file, with labels.
        calibration: Of this model, or the folder of a saved one.
        keep: fnmatch patterns of node names that stay high.
        split: The split that judges.
        eval_images: At most so many images, a seeded sample; None takes all.
        imgsz: Height and width, pixels; None takes what the calibration was measured at, else the model's.
        resamples: How often images are drawn anew for the interval.
        seed: Of sample and draws.
        label: What to call the mix; "" calls it by its algorithm.
        cache_dir: A folder that remembers what was judged, so that FP32 is judged once.
        progress: Receives events.
        cancel: Asked at every batch.

    Raises:
        CalibrationError: The calibration is of another model.
        RecipeError: A pattern matches no node.
        DataError, ModelError: From reading.
        CancelledError: The caller cancelled.
    """
    from trtkit.calibration.calibration import Calibration
    from trtkit.data import open_dataset
    from trtkit.graph.analysis import GraphIndex, count_macs
    from trtkit.graph.qdq import insert_qdq, plan_qdq
    from trtkit.graph.torch_export import trace
    from trtkit.models import load

    if resamples < 2:
        raise RecipeError(f"draw images {resamples} times", "an interval needs at least 2", "pass draws=500")
    reporter = Reporter(progress, cancel)
    loaded = load(model)
    ranges = calibration if isinstance(calibration, Calibration) else Calibration.load(calibration)
    if ranges.provenance.model_hash != loaded.hash:
        raise CalibrationError(
            f"judge {loaded.stem} with a given calibration",
            f"it was measured on another model ({ranges.provenance.model_hash[:12]}, not {loaded.hash[:12]})",
            "calibrate this model",
        )
    measured: Any = ranges.provenance.settings.get("imgsz")
    size = round_imgsz(imgsz or (tuple(measured) if measured else loaded.imgsz), loaded.stride)
    reporter.step("read the model's layers", 0, 1)
    graph = trace(loaded, imgsz=size, batch=1)
    whole, placement = plan_qdq(graph), plan_qdq(graph, keep)
    counts = count_macs(graph, GraphIndex(graph))
    judge = CachedEvaluator(
        dataset=open_dataset(data, task=loaded.task),
        split=split,
        images=eval_images,
        seed=seed,
        state=ResultCache(cache_dir),
        reporter=reporter,
    )
    metric = get_task(loaded.task).metric
    name = ranges.algorithm if ranges.percentile is None else f"{ranges.algorithm} {ranges.percentile:g}"
    exact = judge(graph, "judge fp32")
    found = judge(insert_qdq(graph, ranges.ranges, keep, corrections=ranges.corrections), f"judge {label or name}")
    reference, drawn = (resample_metric(one, metric, resamples=resamples, seed=seed) for one in (exact, found))
    loss = compute_loss_interval(reference, drawn)
    return Int8Evaluation(
        label=label or name,
        algorithm=name,
        keep=tuple(keep),
        kept=len(whole.layers) - len(placement.layers),
        int8_share=sum(counts.get(layer, 0) for layer in placement.layers) / max(sum(counts.values()), 1),
        metric=metric,
        value=drawn.value,
        value_float=reference.value,
        loss=loss.value,
        loss_low=loss.low,
        loss_high=loss.high,
        images=found.image_count,
    )
