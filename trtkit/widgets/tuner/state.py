"""State of the tuner: calibration, layers, search and the user's choices; immutable and free of widgets."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
from collections.abc import Collection, Iterable
from typing import Any

import polars as pl

from trtkit.calibration.algorithm_comparison import AlgorithmComparison, clipped_share
from trtkit.calibration.algorithms import ALGORITHMS, DEFAULTS
from trtkit.calibration.calibration import Calibration
from trtkit.codegen import TunedExport
from trtkit.errors import CalibrationError, RecipeError
from trtkit.plotting.tuning import SHARE_POINTS, find_pareto
from trtkit.tuning.int8_evaluation import Int8Evaluation
from trtkit.tuning.layers import QuantizableLayers
from trtkit.tuning.search import Search
from trtkit.tuning.sensitivity import Sensitivity

__all__ = ["TunerState", "collect_assignments", "rank_layers", "widen_shared_ranges"]

NO_MODEL = "no model was given: tuner(model=...)"
NO_DATA = "no labeled images were given: tuner(data=...)"
NO_CALIBRATION = "there is no calibration yet"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TunerState:
    """An immutable state of the tuner; the `with_...` methods return the next one.

    Attributes:
        model: Path of the model; "" if only a calibration was given.
        end2end: Whether the model is the one-to-one head of its file.
        data: Path of the data set; "" if none was given.
        cache_dir: Folder of calibrations, sensitivity, search and intermediate results.
        algorithm_comparison: The calibration and the ranges of every algorithm; None before the calibration.
        calibration_path: Folder that the calibration was loaded from; "" if it was measured.
        algorithm: The chosen calibration algorithm.
        percentile: Its percentile, percent; None for an algorithm without one.
        quantizable_layers: The layers of the model; None before they were read.
        sensitivity: Sensitivity of each layer; None before the measurement.
        search: The last search, or None.
        evaluations: Precision assignments that the user evaluated, in order.
        kept_fp16: Names of the layers kept in FP16, in graph order if that is known.
        tensor: The tensor whose histogram is shown.
        max_drop: Largest allowed loss of the metric.
        uses_search_ranges: Whether the corrected ranges of the search are in use.
    """

    model: str = ""
    end2end: bool = False
    data: str = ""
    cache_dir: str = "runs/tuner"
    algorithm_comparison: AlgorithmComparison | None = None
    calibration_path: str = ""
    algorithm: str = DEFAULTS.algorithm
    percentile: float | None = DEFAULTS.percentile
    quantizable_layers: QuantizableLayers | None = None
    sensitivity: Sensitivity | None = None
    search: Search | None = None
    evaluations: tuple[Int8Evaluation, ...] = ()
    kept_fp16: tuple[str, ...] = ()
    tensor: str = ""
    max_drop: float = 0.005
    uses_search_ranges: bool = False

    # Choices.

    def with_calibration(self, algorithm_comparison: AlgorithmComparison, *, path: str = "") -> TunerState:
        """The state with a calibration and its own algorithm.

        Args:
            algorithm_comparison: The calibration and the ranges of every algorithm.
            path: Folder that it was loaded from.
        """
        calibration = algorithm_comparison.calibration
        first = next(iter(calibration.stats), next(iter(calibration.ranges), ""))
        return self._with(
            algorithm_comparison=algorithm_comparison,
            calibration_path=path,
            algorithm=calibration.algorithm,
            percentile=calibration.percentile,
            tensor=self.tensor if self.tensor in calibration.ranges else first,
            uses_search_ranges=False,
        )

    def with_layers(self, quantizable_layers: QuantizableLayers) -> TunerState:
        """The state with the layers of the model; layers kept in FP16 are sorted, and unknown ones dropped."""
        kept = tuple(_match_patterns(quantizable_layers.quantizable, self.kept_fp16))
        state = self._with(quantizable_layers=quantizable_layers, kept_fp16=kept)
        comparison = self.algorithm_comparison
        shows_input = comparison is not None and self.tensor == next(iter(comparison.calibration.stats), "")
        # The first tensor is the input image, the least informative one.
        return state._with_worst_tensor() if self.sensitivity is not None and shows_input else state

    def with_sensitivity(self, sensitivity: Sensitivity) -> TunerState:
        """The state with the sensitivity of each layer; shows the input of the most sensitive one."""
        return self._with(sensitivity=sensitivity)._with_worst_tensor()

    def with_algorithm(self, algorithm: str, percentile: float | None = None) -> TunerState:
        """The state with the ranges of another algorithm, from the same calibration pass.

        Args:
            algorithm: A registered calibration algorithm.
            percentile: Its percentile, percent; None uses the default.

        Raises:
            CalibrationError: There is no calibration yet, no such algorithm, or the calibration lacks its histograms.
        """
        if self.algorithm_comparison is None:
            raise _no_calibration_error(f"compute ranges with {algorithm}")
        reason = self.algorithm_comparison.unavailable_reasons().get(algorithm, "")
        if reason:
            raise CalibrationError(
                f"compute ranges with {algorithm}",
                reason.split(";")[0],
                "choose another algorithm",
                code="tuner-algorithm-unavailable",
                value=algorithm,
            )
        calibration = self.algorithm_comparison.with_algorithm(algorithm, percentile)
        return self._with(algorithm=calibration.algorithm, percentile=calibration.percentile, uses_search_ranges=False)

    def with_kept(self, nodes: Iterable[str]) -> TunerState:
        """The state with exactly these layers kept in FP16; the ranges stay."""
        kept = dict.fromkeys(nodes)
        order = self._quantizable_nodes()
        return self._with(kept_fp16=tuple(node for node in order if node in kept) if order else tuple(kept))

    def with_toggled(self, node: str) -> TunerState:
        """The state with a layer moved to FP16, or back to INT8.

        Raises:
            RecipeError: The layer is not quantizable.
        """
        order = self._quantizable_nodes()
        if order and node not in order:
            raise RecipeError(
                f"keep {node!r} in FP16",
                "it is not a quantizable layer",
                "choose a layer of the list",
                code="tuner-layer-unknown",
                value=node,
            )
        return self.with_kept(set(self.kept_fp16) ^ {node})

    def with_tensor(self, name: str) -> TunerState:
        """The state with another tensor shown.

        Args:
            name: A tensor, or a layer for the tensor that it reads.

        Raises:
            RecipeError: The calibration has no such tensor.
        """
        tensor = name
        if self.quantizable_layers is not None:
            tensor = self.quantizable_layers.tensor_of(name) or name
        comparison = self.algorithm_comparison
        if comparison is not None and tensor not in comparison.calibration.ranges:
            raise RecipeError(
                f"show {name!r}",
                "the calibration has no such tensor",
                "choose a tensor of the list",
                code="tuner-tensor-unknown",
                value=name,
            )
        return self._with(tensor=tensor)

    def with_max_drop(self, max_drop: float) -> TunerState:
        """The state with another allowed loss.

        Raises:
            RecipeError: The loss is not in [0, 1).
        """
        if not 0 <= max_drop < 1:
            raise RecipeError(
                f"allow a loss of {max_drop}",
                "a loss lies between 0 and 1",
                "use e.g. 0.005 of mAP50-95",
                code="tuner-max-drop-range",
                value=max_drop,
            )
        return self._with(max_drop=max_drop)

    def with_search(self, search: Search) -> TunerState:
        """The state with a search, and with its result applied if the loss is within the limit."""
        state = self._with(search=search, max_drop=search.max_drop)
        return state.with_trial() if search.reached else state

    def with_trial(self, row: int | None = None) -> TunerState:
        """The state with the layers of a trial of the search; the chosen trial brings its corrected ranges too.

        Args:
            row: Row of `Search.trials`; None takes the chosen one.

        Raises:
            RecipeError: There is no search.
        """
        if self.search is None:
            raise RecipeError(
                "apply a trial of the search", "there is no search yet", "search first", code="tuner-no-search"
            )
        trial = self.search.best if row is None else self.search.trials.row(row, named=True)
        chosen = bool(trial["chosen"])
        patterns = self.search.keep if chosen else tuple(trial["keep"])
        state = self.with_kept(_match_patterns(self._quantizable_nodes(), patterns) or patterns)
        # An assignment without any INT8 layer has no corrected ranges.
        return state._with(uses_search_ranges=chosen and self.search.best["algorithm"] is not None)

    def with_evaluation(self, evaluation: Int8Evaluation) -> TunerState:
        """The state with one more evaluated precision assignment."""
        return self._with(evaluations=(*self.evaluations, evaluation))

    # Availability.

    def unavailable_reason(self, action: str) -> str:
        """Why an action is not available now.

        Args:
            action: "calibrate", "sensitivity", "search" or "evaluate".

        Returns:
            The reason; "" if it is available.
        """
        if not self.model:
            return NO_MODEL
        if not self.data and action != "calibrate":
            return NO_DATA
        if self.algorithm_comparison is None and action != "calibrate":
            return NO_CALIBRATION
        if action == "search" and self.algorithm_comparison and not self.algorithm_comparison.calibration.histograms:
            return "the calibration has no histograms to correct ranges with; calibrate with histograms=True"
        return ""

    def unavailable_algorithms(self) -> dict[str, str]:
        """For each algorithm why it is not available; "" if it is."""
        if self.algorithm_comparison is None:
            return dict.fromkeys(ALGORITHMS, NO_CALIBRATION)
        return self.algorithm_comparison.unavailable_reasons()

    # Ranges.

    @property
    def label(self) -> str:
        """Name of the ranges in use, such as "percentile 99.99"."""
        if self.uses_search_ranges:
            return "the search"
        return self.algorithm if self.percentile is None else f"{self.algorithm} {self.percentile:g}"

    @property
    def calibration(self) -> Calibration:
        """The ranges in use: those of the algorithm, or the corrected ones of the search.

        Raises:
            CalibrationError: There is no calibration yet.
        """
        if self.uses_search_ranges and self.search is not None:
            return self.search.calibration
        if self.algorithm_comparison is None:
            raise _no_calibration_error("show ranges")
        return self.algorithm_comparison.with_algorithm(self.algorithm, self.percentile)

    @functools.cached_property
    def ranges(self) -> pl.DataFrame:
        """`AlgorithmComparison.frame` of the ranges in use, with the reach of the scales that tensors share.

        Raises:
            CalibrationError: There is no calibration yet.
        """
        calibration = self.calibration
        comparison = self.algorithm_comparison or AlgorithmComparison(calibration)
        return widen_shared_ranges(comparison, calibration, self.quantizable_layers)

    def other_reaches(self) -> dict[str, float]:
        """The reach of the shown tensor's scale by each other algorithm that needs no search of the histograms."""
        comparison, layers = self.algorithm_comparison, self.quantizable_layers
        if comparison is None:
            return {}
        names = (self.tensor,) if layers is None else {self.tensor, *layers.scale_of(self.tensor)}
        reaches = {}
        for algorithm in ALGORITHMS:
            if (self.uses_search_ranges or algorithm != self.algorithm) and comparison.is_immediate(algorithm):
                ranges = comparison.with_algorithm(algorithm).ranges
                bounds = [ranges[name] for name in names if name in ranges]
                reaches[algorithm] = max(max(abs(low), abs(high)) for low, high in bounds)
        return reaches

    # Layers.

    @property
    def int8_share(self) -> float | None:
        """Share of the multiply-accumulates in INT8, 0..1; None before the layers were read."""
        return None if self.quantizable_layers is None else self.quantizable_layers.int8_share(self.kept_fp16)

    def layer_frame(self) -> pl.DataFrame:
        """The quantizable layers: by sensitivity if it was measured, else in graph order. See `rank_layers`."""
        return rank_layers(self.quantizable_layers, self.sensitivity, self.kept_fp16)

    def layer_range_frame(self) -> pl.DataFrame:
        """`layer_frame` with the range of each layer's input: `tensor`, `reach`, `clipped`."""
        frame = self.layer_frame()
        if self.quantizable_layers is None or self.algorithm_comparison is None:
            return frame
        tensors = self.quantizable_layers.layers.select("node", "tensor")
        ranges = self.ranges.select("tensor", "reach", "clipped")
        return frame.join(tensors, on="node", how="left", maintain_order="left").join(
            ranges, on="tensor", how="left", maintain_order="left"
        )

    # Precision assignments.

    def assignment_frame(self) -> pl.DataFrame:
        """The precision assignments evaluated by the search and by the user. See `collect_assignments`."""
        return collect_assignments(self.search, self.evaluations)

    @property
    def value_float(self) -> float | None:
        """The metric in FP32, or None before the first evaluation."""
        if self.evaluations:
            return self.evaluations[-1].value_float
        if self.search is not None:
            return self.search.value_float
        return None if self.sensitivity is None else self.sensitivity.metric_float

    @property
    def metric(self) -> str:
        """Name of the metric, "" before the first evaluation."""
        if self.evaluations:
            return self.evaluations[-1].metric
        if self.search is not None:
            return self.search.metric
        return "" if self.sensitivity is None else self.sensitivity.metric

    def tuned_export(self) -> TunedExport | None:
        """The export of the current choices; None before the calibration."""
        quantizable = () if self.quantizable_layers is None else self.quantizable_layers.quantizable
        all_fp16 = bool(quantizable) and set(self.kept_fp16) >= set(quantizable)
        if self.uses_search_ranges and self.search is not None and not all_fp16:
            folder = f"{self.cache_dir}/search"
            equalized = self.search.equalized is not None
            return TunedExport(
                end2end=self.end2end and not equalized,
                model=f"{folder}/{Search.kind}.equalized.onnx" if equalized else self.model,
                settings={"imgsz": self.search.provenance.settings.get("imgsz")},
                calibration_path=f"{folder}/calibration",
                kept_fp16=self.kept_fp16,
                uses_saved_ranges=True,
            )
        if self.algorithm_comparison is None:
            return None
        calibration = self.algorithm_comparison.with_algorithm(self.algorithm, self.percentile)
        export = TunedExport.from_calibration(
            self.model or "model.pt", calibration, self.kept_fp16, calibration_path=self.calibration_path
        )
        export = dataclasses.replace(export, end2end=self.end2end)
        if all_fp16:
            return dataclasses.replace(export, all_fp16=True)
        own = self.algorithm_comparison.calibration
        unchanged = (own.algorithm, own.percentile) == (self.algorithm, self.percentile)
        return dataclasses.replace(export, uses_saved_ranges=bool(self.calibration_path) and unchanged)

    def __repr__(self) -> str:
        ranges = "no calibration yet" if self.algorithm_comparison is None else self.label
        count = len(self.assignment_frame())
        return f"TunerState({ranges}, {len(self.kept_fp16)} layers kept in FP16, {count} assignments evaluated)"

    def _with_worst_tensor(self) -> TunerState:
        nodes = self.layer_frame()["node"]
        return self.with_tensor(str(nodes[0])) if len(nodes) and self.quantizable_layers is not None else self

    def _quantizable_nodes(self) -> list[str]:
        """The quantizable layers in graph order; [] if they are not known."""
        if self.quantizable_layers is not None:
            return list(self.quantizable_layers.quantizable)
        return [] if self.sensitivity is None else self.sensitivity.layers["node"].to_list()

    def _with(self, **changes: Any) -> TunerState:
        return dataclasses.replace(self, **changes)


def widen_shared_ranges(
    algorithm_comparison: AlgorithmComparison, calibration: Calibration, quantizable_layers: QuantizableLayers | None
) -> pl.DataFrame:
    """`AlgorithmComparison.frame_for` with the reach of shared scales: tensors of one scale have its largest reach.

    Args:
        algorithm_comparison: Source of the statistics.
        calibration: The ranges.
        quantizable_layers: Source of the shared scales; None treats every tensor on its own.

    Returns:
        One row per tensor, with the columns of `AlgorithmComparison.frame`.
    """
    frame = algorithm_comparison.frame_for(calibration)
    if quantizable_layers is None:
        return frame
    reaches = dict(frame.select("tensor", "reach").iter_rows())
    widened = {}
    for tensor, reach in reaches.items():
        shared = max([reach, *(reaches.get(name, 0.0) for name in quantizable_layers.scale_of(tensor))])
        if shared > reach:
            widened[tensor] = shared
    if not widened:
        return frame
    rows = [
        _widen_row(algorithm_comparison, row, widened[row["tensor"]]) if row["tensor"] in widened else row
        for row in frame.iter_rows(named=True)
    ]
    return pl.DataFrame(rows, schema=frame.schema)


def rank_layers(
    quantizable_layers: QuantizableLayers | None, sensitivity: Sensitivity | None, kept_fp16: Collection[str]
) -> pl.DataFrame:
    """The quantizable layers, the most sensitive first, or in graph order without a sensitivity.

    Args:
        quantizable_layers: The layers of the model, or None.
        sensitivity: Sensitivity of each layer, or None.
        kept_fp16: Names of the layers kept in FP16.

    Returns:
        One row per layer: `node`, `block`, `macs`, `sqnr_only` and `gain` (dB; null without a sensitivity) and
        `kept_fp16`.
    """
    unmeasured = {name: pl.lit(None, pl.Float64) for name in ("sqnr_only", "gain")}
    if sensitivity is not None:
        frame = sensitivity.layers.select("node", "block", "macs", "sqnr_only", "gain").sort("sqnr_only")
    elif quantizable_layers is not None:
        frame = quantizable_layers.layers.filter(pl.col("kept").is_null()).select("node", "block", "macs")
        frame = frame.with_columns(**unmeasured)
    else:
        empty = pl.DataFrame(schema={"node": pl.String, "block": pl.String, "macs": pl.Int64})
        frame = empty.with_columns(**unmeasured)
    return frame.with_columns(kept_fp16=pl.col("node").is_in(list(kept_fp16)))


def collect_assignments(search: Search | None, evaluations: Iterable[Int8Evaluation]) -> pl.DataFrame:
    """The evaluated precision assignments as points of `int8_share_figure`.

    Args:
        search: A search, or None.
        evaluations: Evaluations by the user, in order.

    Returns:
        One row per assignment with the columns `SHARE_POINTS`.
    """
    columns = ("int8_share", "loss", "loss_low", "loss_high")
    rows: list[dict[str, Any]] = []
    if search is not None:
        for index, trial in enumerate(search.trials.iter_rows(named=True)):
            kind = "chosen" if trial["chosen"] else "searched"
            values = {name: trial[name] for name in (*columns, "metric")}
            rows.append({"label": trial["assignment"], "kind": kind, **values, "row": index})
    for index, evaluation in enumerate(evaluations):
        values = {name: getattr(evaluation, name) for name in columns}
        rows.append(
            {"label": evaluation.label, "kind": "evaluated", "metric": evaluation.value, **values, "row": index}
        )
    front = find_pareto([row["int8_share"] for row in rows], [row["metric"] for row in rows])
    rows = [{**row, "pareto": on_front} for row, on_front in zip(rows, front, strict=True)]
    return pl.DataFrame(rows, schema=SHARE_POINTS)


def _no_calibration_error(asked: str) -> CalibrationError:
    return CalibrationError(asked, NO_CALIBRATION, "wait for it, or pass calibration=", code="tuner-no-calibration")


def _widen_row(algorithm_comparison: AlgorithmComparison, row: dict[str, Any], reach: float) -> dict[str, Any]:
    """A row of `AlgorithmComparison.frame` with a larger reach."""
    stats, largest, clipped = algorithm_comparison.stats(row["tensor"]), row["largest"], row["clipped"]
    if stats is not None and stats.histogram is not None:
        clipped = clipped_share(stats.histogram, reach, largest)
    covered = min(reach / largest, 1.0) if largest else 1.0
    return {**row, "reach": reach, "covered": covered, "clipped": clipped, "scale": reach / 127.0}


def _match_patterns(nodes: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The nodes that equal or match one of the patterns."""
    patterns = tuple(patterns)
    return [node for node in nodes if node in patterns or any(fnmatch.fnmatchcase(node, one) for one in patterns)]
