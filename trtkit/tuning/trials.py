"""Mixes of INT8 and FP16 as they are judged, and which of them is the fastest that is allowed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import onnx
import polars as pl

from trtkit.calibration import Calibration
from trtkit.graph.half import to_half
from trtkit.graph.quantized import place, quantize
from trtkit.tuning.blocks import pattern_of
from trtkit.tuning.costs import Latency
from trtkit.tuning.intervals import Draws, draws_of, loss_interval

if TYPE_CHECKING:
    from trtkit.judgement.evaluation import Evaluation
    from trtkit.tuning.lab import Lab
    from trtkit.tuning.state import Judge

__all__ = ["Mix", "Trial", "Trials"]

COLUMNS: dict[str, Any] = {
    "mix": pl.String,
    "ranges": pl.String,
    "corrected": pl.Boolean,
    "kept": pl.Int64,
    **dict.fromkeys(("int8_share", "sqnr", "metric", "loss", "loss_low", "loss_high", "cost"), pl.Float64),
    "unit": pl.String,
    **dict.fromkeys(("pareto", "chosen"), pl.Boolean),
    "keep": pl.List(pl.String),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mix:
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
    mix: Mix | None


@dataclasses.dataclass(kw_only=True, eq=False)
class Trials:
    """The judged mixes of one search.

    Attributes:
        lab: The graph's layers.
        graph: The float graph that is quantised and judged.
        judge: Judges graphs.
        cost: Says what a placement costs.
        metric: What decides.
        max_drop: The largest loss allowed.
        draws: How often pictures are drawn anew.
        seed: Of the draws.
        rows: What was judged so far.
    """

    lab: Lab
    graph: onnx.ModelProto
    judge: Judge
    cost: Latency
    metric: str
    max_drop: float
    draws: int
    seed: int
    rows: list[Trial] = dataclasses.field(default_factory=list)
    cost_source: str = ""
    runner: str = ""
    data_hash: str | None = None
    reference: Draws = dataclasses.field(init=False)

    def start(self) -> None:
        """Judge FP32, which losses are told against, and FP16 throughout, which always is a way out."""
        exact = self.judge(self.graph, "judge fp32")
        self.reference = self._drawn(exact)
        self.runner, self.data_hash = exact.origin.runner, exact.origin.data_hash
        everything = [pattern_of(name) for name in self.lab.weighted]
        self._judged(
            None,
            "fp16 throughout",
            to_half(self.graph),
            everything,
            [pattern_of(n) for n in self.lab.whole.layers],
            None,
        )

    def judge_mix(self, mix: Mix, layers: Sequence[str], sqnr: float) -> bool:
        """Judge a mix with some layers kept high beyond the default.

        Returns:
            Whether its loss is allowed.
        """
        calibration = mix.calibration
        keep = [*self.lab.user_keep, *map(pattern_of, layers)]
        graph = quantize(self.graph, calibration.ranges, keep, corrections=calibration.corrections)
        return self._judged(mix, mix.label, graph, keep, keep, sqnr)

    def any_allowed(self) -> bool:
        """Whether a mix with nothing kept beyond what was asked is allowed."""
        return any(trial.mix is not None and trial.row["loss"] <= self.max_drop for trial in self.rows)

    def chosen(self) -> Trial:
        """The fastest trial whose loss is allowed, the more accurate of equals; else the one that loses least."""
        allowed = [trial for trial in self.rows if trial.row["loss"] <= self.max_drop]
        if not allowed:
            return min(self.rows, key=lambda trial: float(trial.row["loss"]))
        return min(allowed, key=lambda trial: (trial.row["cost"], trial.row["loss"]))

    def frame(self) -> pl.DataFrame:
        """`Search.trials`."""
        chosen = self.chosen()
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

    def _judged(
        self,
        mix: Mix | None,
        label: str,
        graph: onnx.ModelProto,
        placed: Sequence[str],
        keep: Sequence[str],
        sqnr: float | None,
    ) -> bool:
        placement = place(self.lab.graph, placed)
        evaluation = self.judge(graph, f"judge {label}")
        drawn = self._drawn(evaluation)
        loss = loss_interval(self.reference, drawn)
        cost = self.cost(placement, keep, None if mix is None else mix.calibration)
        self.cost_source = cost.source
        self.rows.append(
            Trial(
                row={
                    "mix": label,
                    "ranges": None if mix is None else mix.calibration.algorithm,
                    "corrected": mix is not None and bool(mix.calibration.corrections),
                    "kept": len(self.lab.whole.layers) - len(placement.layers),
                    "int8_share": self.lab.int8_share(placement),
                    "sqnr": sqnr,
                    "metric": drawn.value,
                    "loss": loss.value,
                    "loss_low": loss.low,
                    "loss_high": loss.high,
                    "cost": cost.value,
                    "unit": cost.unit,
                },
                keep=tuple(keep),
                mix=mix,
            )
        )
        return bool(loss.value <= self.max_drop)

    def _drawn(self, evaluation: Evaluation) -> Draws:
        return draws_of(evaluation, self.metric, draws=self.draws, seed=self.seed)
