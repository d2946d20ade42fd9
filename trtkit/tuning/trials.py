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
from trtkit.evaluation.significance import DRAWS, Draws, draws_of, loss_interval
from trtkit.graph.analysis import pattern_of
from trtkit.graph.fp16 import to_half
from trtkit.graph.qdq import place, quantize
from trtkit.progress import Cancel, Progress, Work
from trtkit.recipe import rounded_imgsz
from trtkit.tuning.cache import Judge, State
from trtkit.tuning.cost_model import Latency

if TYPE_CHECKING:
    from trtkit.calibration.calibration import Calibration
    from trtkit.data import Dataset
    from trtkit.evaluation.evaluation import Evaluation
    from trtkit.models import Model
    from trtkit.tuning.cache import Judge
    from trtkit.tuning.noise import Lab

__all__ = ["Judged", "Mix", "Trial", "Trials", "judged"]

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


# One mix of ranges and layers kept high, judged against FP32 on the same pictures.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
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
        loss_low: The lower end of its 95 % interval, over the same draws of pictures.
        loss_high: The upper end.
        pictures: How many pictures judged.
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
    pictures: int


def judged(
    model: Model | str | Path,
    data: str | Path | Dataset,
    calibration: Calibration | str | Path,
    keep: Sequence[str] = (),
    split: str = "val",
    *,
    images: int | None = None,
    imgsz: int | tuple[int, int] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    label: str = "",
    state: str | Path | None = None,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Judged:
    """Judge INT8 by a calibration, with some layers kept high, on ONNX Runtime.

    Args:
        model: From `load`, or what `load` takes.
        data: A data set's YAML file, with labels.
        calibration: Of this model, or the folder of a saved one.
        keep: fnmatch patterns of node names that stay high.
        split: The split that judges.
        images: At most so many pictures, a seeded sample; None takes all.
        imgsz: Height and width, pixels; None takes what the calibration was measured at, else the model's.
        draws: How often pictures are drawn anew for the interval.
        seed: Of sample and draws.
        label: What to call the mix; "" calls it by its algorithm.
        state: A folder that remembers what was judged, so that FP32 is judged once.
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
    from trtkit.graph.analysis import View, multiplications
    from trtkit.graph.qdq import place, quantize
    from trtkit.graph.torch_export import trace
    from trtkit.models import load
    from trtkit.tasks import task as task_of

    if draws < 2:
        raise RecipeError(f"draw pictures {draws} times", "an interval needs at least 2", "pass draws=500")
    work = Work(progress, cancel)
    loaded = load(model)
    ranges = calibration if isinstance(calibration, Calibration) else Calibration.load(calibration)
    if ranges.origin.model_hash != loaded.hash:
        raise CalibrationError(
            f"judge {loaded.stem} with a given calibration",
            f"it was measured on another model ({ranges.origin.model_hash[:12]}, not {loaded.hash[:12]})",
            "calibrate this model",
        )
    measured: Any = ranges.origin.settings.get("imgsz")
    size = rounded_imgsz(imgsz or (tuple(measured) if measured else loaded.imgsz), loaded.stride)
    work.step("read the model's layers", 0, 1)
    graph = trace(loaded, imgsz=size, batch=1)
    whole, placement = place(graph), place(graph, keep)
    counts = multiplications(graph, View(graph))
    judge = Judge(
        dataset=open_dataset(data, task=loaded.task),
        split=split,
        images=images,
        seed=seed,
        state=State(state),
        work=work,
    )
    metric = task_of(loaded.task).metric
    name = ranges.algorithm if ranges.percentile is None else f"{ranges.algorithm} {ranges.percentile:g}"
    exact = judge(graph, "judge fp32")
    found = judge(quantize(graph, ranges.ranges, keep, corrections=ranges.corrections), f"judge {label or name}")
    reference, drawn = (draws_of(one, metric, draws=draws, seed=seed) for one in (exact, found))
    loss = loss_interval(reference, drawn)
    return Judged(
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
        pictures=found.pictures,
    )
