"""The trials of a search: precision assignments with their accuracy and cost, and the choice among them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import onnx
import polars as pl

from trtkit.evaluation.bootstrap import ResampledMetric, resample_metric
from trtkit.evaluation.significance import compute_loss_interval
from trtkit.graph.analysis import escape_pattern
from trtkit.graph.fp16 import convert_to_fp16
from trtkit.graph.qdq import insert_qdq, plan_qdq
from trtkit.tuning.cache import CachedEvaluator
from trtkit.tuning.cost_model import CostModel

if TYPE_CHECKING:
    from trtkit.calibration import Calibration
    from trtkit.evaluation.evaluation import Evaluation
    from trtkit.tuning.noise import LayerNoise

__all__ = ["TRIAL_COLUMNS", "PrecisionAssignment", "Trial", "Trials"]

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
        chosen = self.choose()
        rows = []
        for trial in self.rows:
            dominated = any(
                other.row["cost"] <= trial.row["cost"]
                and other.row["metric"] >= trial.row["metric"]
                and (other.row["cost"], other.row["metric"]) != (trial.row["cost"], trial.row["metric"])
                for other in self.rows
            )
            rows.append({**trial.row, "pareto": not dominated, "chosen": trial is chosen, "keep": list(trial.keep)})
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
