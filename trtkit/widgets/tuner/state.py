"""What the tuner knows and what has been chosen in it; no widget, so that every step can be tested by itself."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

import polars as pl

from trtkit.calibration.algorithm_comparison import AlgorithmComparison, clipped_share
from trtkit.calibration.algorithms import ALGORITHMS
from trtkit.calibration.calibration import Calibration
from trtkit.codegen import TunedExport
from trtkit.errors import CalibrationError, RecipeError
from trtkit.plotting.tuning import SHARE_POINTS, find_pareto
from trtkit.tuning.int8_evaluation import Int8Evaluation
from trtkit.tuning.layers import QuantizableLayers
from trtkit.tuning.search import Search
from trtkit.tuning.sensitivity import Sensitivity

if TYPE_CHECKING:
    from trtkit.calibration.calibration import Calibration
    from trtkit.tuning.int8_evaluation import Int8Evaluation
    from trtkit.tuning.layers import QuantizableLayers
    from trtkit.tuning.search import Search
    from trtkit.tuning.sensitivity import Sensitivity

__all__ = ["TunerState", "collect_assignments", "rank_layers", "widen_shared_ranges"]


# The tuner's frames: ranges with shared scales, layers by cost, and the mixes that were judged.


def widen_shared_ranges(
    readings: AlgorithmComparison, found: Calibration, layout: QuantizableLayers | None
) -> pl.DataFrame:
    """`AlgorithmComparison.frame_of` some ranges, `reach` and what follows from it those of the scales that tensors share.

    Args:
        readings: Of the pass, for what was seen.
        found: The ranges.
        layout: Says which tensors share a scale; None leaves each its own.
    """
    frame = readings.frame_for(found)
    if layout is None:
        return frame
    reaches = dict(frame.select("tensor", "reach").iter_rows())
    widened = {}
    for tensor, reach in reaches.items():
        shared = max([reach, *(reaches.get(name, 0.0) for name in layout.scale_of(tensor))])
        if shared > reach:
            widened[tensor] = shared
    if not widened:
        return frame
    rows = [_widen_row(readings, row, widened.get(row["tensor"])) for row in frame.iter_rows(named=True)]
    return pl.DataFrame(rows, schema=frame.schema)


def rank_layers(
    layout: QuantizableLayers | None, sensitivity: Sensitivity | None, high: Collection[str]
) -> pl.DataFrame:
    """The layers that may run in INT8, the costliest first where that was measured, else in graph order.

    Args:
        layout: The model's layers, or None.
        sensitivity: What INT8 costs each, or None.
        high: Names of those that stay high.

    Returns:
        One row a layer: `node`, `block`, `macs`, `sqnr_only`, `gain` (null before they were measured) and `high`.
    """
    unknown = {name: pl.lit(None, pl.Float64) for name in ("sqnr_only", "gain")}
    if sensitivity is not None:
        frame = sensitivity.layers.select("node", "block", "macs", "sqnr_only", "gain").sort("sqnr_only")
    elif layout is not None:
        frame = layout.layers.filter(pl.col("kept").is_null()).select("node", "block", "macs").with_columns(**unknown)
    else:
        empty = pl.DataFrame(schema={"node": pl.String, "block": pl.String, "macs": pl.Int64})
        frame = empty.with_columns(**unknown)
    return frame.with_columns(high=pl.col("node").is_in(list(high)))


def collect_assignments(found: Search | None, judged: Iterable[Int8Evaluation]) -> pl.DataFrame:
    """Every mix that was judged, by a search and by hand, as `mix_figures.share_figure` takes them.

    Args:
        found: The search, or None.
        judged: By hand, in order.
    """
    rows: list[dict[str, Any]] = []
    if found is not None:
        for place, row in enumerate(found.trials.iter_rows(named=True)):
            kind = "found" if row["chosen"] else "searched"
            told = {name: row[name] for name in ("int8_share", "metric", "loss", "loss_low", "loss_high")}
            rows.append({"label": row["assignment"], "kind": kind, **told, "place": place})
    for place, one in enumerate(judged):
        told = {name: getattr(one, name) for name in ("int8_share", "loss", "loss_low", "loss_high")}
        rows.append({"label": one.label, "kind": "judged", "metric": one.value, **told, "place": place})
    front = find_pareto([row["int8_share"] for row in rows], [row["metric"] for row in rows])
    rows = [{**row, "pareto": there} for row, there in zip(rows, front, strict=True)]
    return pl.DataFrame(rows, schema=SHARE_POINTS)


def _widen_row(readings: AlgorithmComparison, row: dict[str, Any], reach: float | None) -> dict[str, Any]:
    """A row with the reach of its shared scale; as it is where that is its own."""
    if reach is None:
        return row
    seen, largest, clipped = readings.stats(row["tensor"]), row["largest"], row["clipped"]
    if seen is not None and seen.histogram is not None:
        clipped = clipped_share(seen.histogram, reach, largest)
    covered = min(reach / largest, 1.0) if largest else 1.0
    return {**row, "reach": reach, "covered": covered, "clipped": clipped, "scale": reach / 127.0}


NO_MODEL = "no model was given: tuner(model=...)"
NO_DATA = "no labeled images were given: tuner(data=...)"
NO_CALIBRATION = "there is no calibration yet"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TunerState:
    """One moment of the tuner; each choice gives a new one.

    Attributes:
        model: The model's file, "" where only a calibration was given.
        data: The data set, "" where none was given.
        folder: Where calibration, sensitivity and search are kept.
        readings: The calibration and what algorithms make of it, once there is one.
        saved: The folder that the calibration was loaded from, "" where it was measured.
        algorithm: The algorithm in use.
        percentile: Its percentile, percent; None for an algorithm without one.
        layout: The model's layers, once they were read.
        sensitivity: What INT8 costs each, once it was measured.
        found: A search, once there was one.
        judged: Mixes that were judged by hand, in that order.
        high: Names of the layers that stay high, in graph order where that is known.
        tensor: The tensor that is shown.
        max_drop: The loss that may be spent, of the metric.
        taken: Whether what the search found is in use, repaired ranges and all.
    """

    model: str = ""
    data: str = ""
    folder: str = "runs/tuner"
    readings: AlgorithmComparison | None = None
    saved: str = ""
    algorithm: str = "minmax"
    percentile: float | None = None
    layout: QuantizableLayers | None = None
    sensitivity: Sensitivity | None = None
    found: Search | None = None
    judged: tuple[Int8Evaluation, ...] = ()
    high: tuple[str, ...] = ()
    tensor: str = ""
    max_drop: float = 0.005
    taken: bool = False

    def measured(self, readings: AlgorithmComparison, *, saved: str = "") -> TunerState:
        """With a calibration; its own algorithm is in use at first."""
        first = next(iter(readings.calibration.stats), next(iter(readings.calibration.ranges), ""))
        tensor = self.tensor if self.tensor in readings.calibration.ranges else first
        return self._with(
            readings=readings,
            saved=saved,
            algorithm=readings.calibration.algorithm,
            percentile=readings.calibration.percentile,
            tensor=tensor,
            taken=False,
        )

    def with_layers(self, layout: QuantizableLayers) -> TunerState:
        """With the model's layers; what is kept high falls into their order, and what is no layer of it falls out."""
        # The same choice, only sorted: what was taken over from a search stays in use.
        state = self._with(layout=layout, high=tuple(_match_patterns(layout.quantizable, self.high)))
        first = self.readings is not None and self.tensor == next(iter(self.readings.calibration.stats), "")
        # The first tensor is the image itself, which tells least.
        return state._worst_shown() if self.sensitivity is not None and first else state

    def ranked(self, sensitivity: Sensitivity) -> TunerState:
        """With what INT8 costs each layer; the costliest layer's tensor is shown."""
        return self._with(sensitivity=sensitivity)._worst_shown()

    def using(self, algorithm: str, percentile: float | None = None) -> TunerState:
        """By another algorithm, without another pass.

        Raises:
            CalibrationError: There is no calibration yet, no such algorithm, or what it needs was not kept.
        """
        if self.readings is None:
            raise CalibrationError(f"read ranges by {algorithm}", NO_CALIBRATION, "wait for it, or give calibration=")
        refusal = self.readings.unavailable_reasons().get(algorithm, "")
        if refusal:
            raise CalibrationError(f"read ranges by {algorithm}", refusal.split(";")[0], "choose another algorithm")
        found = self.readings.with_algorithm(algorithm, percentile)
        return self._with(algorithm=found.algorithm, percentile=found.percentile, taken=False)

    def keeping(self, nodes: Iterable[str]) -> TunerState:
        """With exactly these layers kept high; the ranges in use stay."""
        chosen = set(nodes)
        order = self._nodes()
        if order:
            return self._with(high=tuple(node for node in order if node in chosen))
        return self._with(high=tuple(dict.fromkeys(nodes)))

    def toggled(self, node: str) -> TunerState:
        """With one layer more or less kept high.

        Raises:
            RecipeError: It is no layer that may run in INT8.
        """
        order = self._nodes()
        if order and node not in order:
            raise RecipeError(f"keep {node!r} high", "it is no layer that would run in INT8", "choose one of the list")
        return self.keeping(set(self.high) ^ {node})

    def showing(self, name: str) -> TunerState:
        """With another tensor shown.

        Args:
            name: A tensor, or a layer, which stands for what it reads.

        Raises:
            RecipeError: It is neither.
        """
        tensor = name
        if self.layout is not None:
            tensor = self.layout.tensor_of(name) or name
        if self.readings is not None and tensor not in self.readings.calibration.ranges:
            raise RecipeError(f"show {name!r}", "the calibration knows no such tensor", "choose one of the list")
        return self._with(tensor=tensor)

    def with_max_drop(self, max_drop: float) -> TunerState:
        """With another loss that may be spent.

        Raises:
            RecipeError: It is no loss.
        """
        if not 0 <= max_drop < 1:
            raise RecipeError(f"allow a loss of {max_drop}", "it is no loss of a metric", "use e.g. 0.005 of mAP50-95")
        return self._with(max_drop=max_drop)

    def searched(self, found: Search) -> TunerState:
        """With a search; what it found is taken over if it is within the loss that was allowed."""
        state = self._with(found=found, max_drop=found.max_drop)
        return state.taking() if found.reached else state

    def taking(self, place: int | None = None) -> TunerState:
        """With what a search tried: its layers, and of what it chose the repaired ranges too.

        Args:
            place: A row of its trials; None takes what it chose.

        Raises:
            RecipeError: There was no search.
        """
        if self.found is None:
            raise RecipeError("take over what a search found", "there was none", "search first")
        trials = self.found.trials
        row = self.found.best if place is None else trials.row(place, named=True)
        chosen = bool(row["chosen"])
        patterns = self.found.keep if chosen else tuple(row["keep"])
        state = self.keeping(_match_patterns(self._nodes(), patterns) or patterns)
        # What INT8 throughout becomes when nothing of it is left has no repaired ranges to take.
        return dataclasses.replace(state, taken=chosen and self.found.best["algorithm"] is not None)

    def with_evaluation(self, judged: Int8Evaluation) -> TunerState:
        """With one more mix that was judged by hand."""
        return self._with(judged=(*self.judged, judged))

    def refusal(self, what: str) -> str:
        """Why "calibrate", "sensitivity", "search" or "judge" can't be done now; "" where it can."""
        if not self.model:
            return NO_MODEL
        if not self.data and what != "calibrate":
            return NO_DATA
        if self.readings is None and what != "calibrate":
            return NO_CALIBRATION
        if what == "search" and self.readings is not None and not self.readings.calibration.histograms:
            return "the calibration kept no histograms to repair ranges from; calibrate with histograms=True"
        return ""

    def refusals(self) -> dict[str, str]:
        """By algorithm, why it can't be chosen; "" where it can."""
        return (
            dict.fromkeys(ALGORITHMS, NO_CALIBRATION) if self.readings is None else self.readings.unavailable_reasons()
        )

    @property
    def label(self) -> str:
        """What the ranges in use are called."""
        if self.taken:
            return "the search"
        return self.algorithm if self.percentile is None else f"{self.algorithm} {self.percentile:g}"

    @property
    def calibration(self) -> Calibration:
        """The ranges in use: the algorithm's, or the search's own where what it found was taken over.

        Raises:
            CalibrationError: There is no calibration yet.
        """
        if self.taken and self.found is not None:
            return self.found.calibration
        if self.readings is None:
            raise CalibrationError("show ranges", NO_CALIBRATION, "wait for it, or give calibration=")
        return self.readings.with_algorithm(self.algorithm, self.percentile)

    @property
    def share(self) -> float | None:
        """Share of the arithmetic in INT8, 0..1; None before the layers were read."""
        return None if self.layout is None else self.layout.int8_share(self.high)

    @functools.cached_property
    def ranges(self) -> pl.DataFrame:
        """`AlgorithmComparison.frame` of the ranges in use, `reach` and what follows from it those of the shared scales.

        Raises:
            CalibrationError: There is no calibration yet.
        """
        found = self.calibration
        return widen_shared_ranges(self.readings or AlgorithmComparison(found), found, self.layout)

    def others(self) -> dict[str, float]:
        """What the other algorithms would cover of the tensor that is shown, as far as that is known at once."""
        if self.readings is None:
            return {}
        names = (self.tensor,) if self.layout is None else {self.tensor, *self.layout.scale_of(self.tensor)}
        found = {}
        for name in ALGORITHMS:
            if (self.taken or name != self.algorithm) and self.readings.is_immediate(name):
                ranges = self.readings.with_algorithm(name).ranges
                found[name] = max(max(abs(low), abs(high)) for low, high in (ranges[n] for n in names if n in ranges))
        return found

    def layers(self) -> pl.DataFrame:
        """The layers that may run in INT8, the costliest first where that was measured, else in graph order.

        Returns:
            One row a layer: `node`, `block`, `macs`, `sqnr_only`, `gain` (null before they were measured) and `high`.
        """
        return rank_layers(self.layout, self.sensitivity, self.high)

    def table(self) -> pl.DataFrame:
        """`layers` with what the algorithm in use makes of each one's input: `tensor`, `reach`, `clipped`."""
        frame = self.layers()
        if self.layout is None or self.readings is None:
            return frame
        tensors = self.layout.layers.select("node", "tensor")
        ranges = self.ranges.select("tensor", "reach", "clipped")
        return frame.join(tensors, on="node", how="left", maintain_order="left").join(
            ranges, on="tensor", how="left", maintain_order="left"
        )

    def points(self) -> pl.DataFrame:
        """Every mix that was judged, by the search and by hand, as `mix_figures.share_figure` takes them."""
        return collect_assignments(self.found, self.judged)

    @property
    def value_float(self) -> float | None:
        """What FP32 gets, where anything was judged."""
        if self.judged:
            return self.judged[-1].value_float
        if self.found is not None:
            return self.found.value_float
        return None if self.sensitivity is None else self.sensitivity.metric_float

    @property
    def metric(self) -> str:
        """The metric that judges, "" where nothing was judged."""
        if self.judged:
            return self.judged[-1].metric
        if self.found is not None:
            return self.found.metric
        return "" if self.sensitivity is None else self.sensitivity.metric

    def tuned(self) -> TunedExport | None:
        """What to export, with the code that does it; None where there is no calibration yet."""
        nothing_left = (
            self.layout is not None and self.layout.quantizable and set(self.high) >= set(self.layout.quantizable)
        )
        if self.taken and self.found is not None and not nothing_left:
            folder = f"{self.folder}/search"
            model = f"{folder}/{Search.kind}.equalized.onnx" if self.found.equalized is not None else self.model
            settings = {"imgsz": self.found.provenance.settings.get("imgsz")}
            saved = f"{folder}/calibration"
            return TunedExport(model=model, settings=settings, saved=saved, layers=self.high, raw=True)
        if self.readings is None:
            return None
        found = self.readings.with_algorithm(self.algorithm, self.percentile)
        tuned = TunedExport.from_calibration(self.model or "model.pt", found, self.high, saved=self.saved)
        own = self.readings.calibration
        if nothing_left:
            return dataclasses.replace(tuned, half=True)
        unchanged = (own.algorithm, own.percentile) == (self.algorithm, self.percentile)
        return dataclasses.replace(tuned, raw=bool(self.saved) and unchanged)

    def _worst_shown(self) -> TunerState:
        worst = self.layers()["node"]
        return self.showing(str(worst[0])) if len(worst) and self.layout is not None else self

    def __repr__(self) -> str:
        known = "no calibration yet" if self.readings is None else self.label
        return f"TunerState({known}, {len(self.high)} layers kept high, {len(self.points())} mixes judged)"

    def _nodes(self) -> list[str]:
        """Layers that may run in INT8, in graph order; [] where they are not known."""
        if self.layout is not None:
            return list(self.layout.quantizable)
        return [] if self.sensitivity is None else self.sensitivity.layers["node"].to_list()

    def _with(self, **changes: Any) -> TunerState:
        return dataclasses.replace(self, **changes)


def _match_patterns(nodes: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The nodes that are among the patterns or match one."""
    asked = tuple(patterns)
    return [node for node in nodes if node in asked or any(fnmatch.fnmatchcase(node, one) for one in asked)]
