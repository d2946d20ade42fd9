"""One mix of ranges and layers kept high, judged against FP32 on the same pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.errors import CalibrationError, RecipeError
from trtkit.progress import Cancel, Progress, Work
from trtkit.recipe import rounded_imgsz
from trtkit.tuning.intervals import DRAWS, draws_of, loss_interval
from trtkit.tuning.state import Judge, State

if TYPE_CHECKING:
    from trtkit.calibration import Calibration
    from trtkit.data import Dataset
    from trtkit.sources import Model

__all__ = ["Judged", "judged"]


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
    from trtkit.calibration import Calibration
    from trtkit.data import open_dataset
    from trtkit.graph.quantized import place, quantize
    from trtkit.graph.structure import View
    from trtkit.graph.tracing import trace
    from trtkit.sources import load
    from trtkit.tasks import task as task_of
    from trtkit.tuning.lab import multiplications

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
