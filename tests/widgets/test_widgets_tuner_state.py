from __future__ import annotations

import dataclasses
import shlex

import pytest

import trtkit as tk
from trtkit.calibration import Calibration
from trtkit.calibration.algorithm_comparison import AlgorithmComparison
from trtkit.errors import CalibrationError, RecipeError
from trtkit.results import Provenance
from trtkit.tuning.int8_evaluation import Int8Evaluation
from trtkit.tuning.layers import QuantizableLayers
from trtkit.tuning.search import Search
from trtkit.tuning.sensitivity import Sensitivity
from trtkit.widgets.tuner.state import TunerState


@pytest.fixture
def state(readings: AlgorithmComparison, layout: QuantizableLayers, costs: Sensitivity) -> TunerState:
    return TunerState(model="yolo11n.pt", data="data.yaml").measured(readings).with_layers(layout).ranked(costs)


def test_nothing_is_known_at_first() -> None:
    state = TunerState(model="yolo11n.pt", data="data.yaml")
    assert state.tuned() is None
    assert state.layers().is_empty()
    assert state.points().is_empty()
    assert state.share is None
    assert set(state.refusals().values()) == {"there is no calibration yet"}
    assert state.refusal("calibrate") == ""
    assert "no calibration" in state.refusal("search")
    with pytest.raises(CalibrationError, match="no calibration yet"):
        state.using("mse")
    with pytest.raises(CalibrationError):
        _ = state.ranges


def test_what_is_missing_is_named(readings: AlgorithmComparison) -> None:
    assert "tuner(model=...)" in TunerState().measured(readings).refusal("judge")
    assert "tuner(data=...)" in TunerState(model="a.pt").measured(readings).refusal("search")
    assert TunerState(model="a.pt").refusal("calibrate") == ""


def test_an_algorithm_changes_ranges_without_another_pass(state: TunerState, calibration: Calibration) -> None:
    assert state.algorithm == "minmax"
    assert (state.ranges["covered"] == 1).all()
    assert (state.ranges["clipped"] == 0).all()
    changed = state.using("percentile", 99.0)
    assert (changed.algorithm, changed.percentile, changed.label) == ("percentile", 99.0, "percentile 99")
    assert state.algorithm == "minmax"
    expected = calibration.with_algorithm("percentile", percentile=99.0).ranges
    images = changed.ranges.row(0, named=True)
    assert images["tensor"] == "images"
    assert images["reach"] == max(map(abs, expected["images"]))
    # At most a hundredth is left out of any tensor; a shared scale covers more than its own tensor asked for.
    assert changed.ranges["clipped"].max() <= 0.01
    assert changed.ranges["covered"].min() < 0.9


def test_a_shared_scale_reaches_as_far_as_its_widest_tensor(state: TunerState, layout: QuantizableLayers) -> None:
    changed = state.using("percentile", 99.9)
    assert state.readings is not None
    own = dict(state.readings.frame("percentile", 99.9).select("tensor", "reach").iter_rows())
    shared = next(scale for scale in layout.layers["scale"].to_list() if len(scale) > 2)
    widest = max(own[name] for name in shared)
    reach = dict(changed.ranges.select("tensor", "reach").iter_rows())
    assert {reach[name] for name in shared} == {widest}
    assert any(own[name] < widest for name in shared)


def test_layers_come_by_cost_or_in_graph_order(state: TunerState, layout: QuantizableLayers) -> None:
    by_cost = state.layers()
    assert by_cost["sqnr_only"].is_sorted()
    assert len(by_cost) == len(layout.quantizable) == 85
    plain = dataclasses.replace(state, sensitivity=None).layers()
    assert tuple(plain["node"]) == layout.quantizable
    assert plain["sqnr_only"].null_count() == 85


def test_the_costliest_layer_is_shown_first(state: TunerState, layout: QuantizableLayers) -> None:
    assert state.tensor == layout.tensor_of(str(state.layers()["node"][0]))
    with pytest.raises(RecipeError, match="no such tensor"):
        state.showing("nothing")


def test_layers_are_kept_and_let_go(state: TunerState, layout: QuantizableLayers) -> None:
    first, second = layout.quantizable[:2]
    one = state.toggled(second)
    assert one.high == (second,)
    both = one.toggled(first)
    # In graph order, whatever the order of the clicks.
    assert both.high == (first, second)
    assert both.toggled(second).high == (first,)
    assert both.keeping(()).high == ()
    assert one.share is not None
    assert state.share is not None
    assert one.share < state.share
    with pytest.raises(RecipeError, match="no layer"):
        state.toggled("/model.23/dfl/conv/Conv")


def test_what_is_kept_before_the_layers_are_known_stays(
    readings: AlgorithmComparison, layout: QuantizableLayers
) -> None:
    early = (
        TunerState(model="m.pt").measured(readings).keeping([layout.quantizable[3], "foreign", layout.quantizable[1]])
    )
    assert early.high == (layout.quantizable[3], "foreign", layout.quantizable[1])
    assert early.with_layers(layout).high == (layout.quantizable[1], layout.quantizable[3])


def test_a_search_is_taken_over_with_its_ranges(state: TunerState, found: Search, layout: QuantizableLayers) -> None:
    after = state.searched(found)
    assert after.taken
    assert after.high == found.keep == layout.quantizable[:2]
    assert after.max_drop == found.max_drop
    tuned = after.tuned()
    assert tuned is not None
    assert "calibration='runs/tuner/search/calibration'" in tuned.to_python()
    assert tuned.keep == found.keep
    # More layers may be kept high, or fewer, with the same ranges; another algorithm replaces them.
    more = after.toggled(layout.quantizable[5])
    assert more.taken
    tuned = more.tuned()
    assert tuned is not None
    assert tuned.keep == (*layout.quantizable[:2], layout.quantizable[5])
    assert "calibration='runs/tuner/search/calibration'" in tuned.to_python()
    assert not after.using("mse").taken
    assert after.showing("images").taken
    assert after.with_layers(layout).taken


def test_a_search_that_did_not_reach_is_shown_but_not_taken(state: TunerState, found: Search) -> None:
    after = state.searched(dataclasses.replace(found, reached=False))
    assert not after.taken
    assert after.high == ()
    assert len(after.points()) == 3


def test_another_mix_of_the_search_gives_its_layers_alone(
    state: TunerState, found: Search, layout: QuantizableLayers
) -> None:
    after = state.searched(found)
    throughout = after.taking(0)
    assert throughout.high == layout.quantizable
    assert not throughout.taken
    tuned = throughout.tuned()
    assert tuned is not None
    # Nothing is left in INT8: that is an FP16 export.
    assert "half=True" in tuned.to_python()
    assert tuned.keep == ()
    assert shlex.split(tuned.to_command())[-2:] == ["--half", "--imgsz=160"]
    assert after.taking(1).high == ()
    with pytest.raises(RecipeError, match="search first"):
        state.taking()


def test_points_hold_searched_and_judged_mixes(state: TunerState, found: Search) -> None:
    judged = Int8Evaluation(
        label="mse", algorithm="mse", keep=(), kept_layers=0, int8_share=1.0, metric="mAP50-95(B)", value=0.9,
        value_float=0.8, loss=-0.1, loss_low=-0.2, loss_high=0.0, image_count=4,
        provenance=Provenance(model_hash="0"),
    )  # fmt: skip
    after = state.searched(found).with_evaluation(judged)
    points = after.points()
    assert points["kind"].to_list() == ["searched", "searched", "found", "judged"]
    # The judged one beats all others in both.
    assert points["pareto"].to_list() == [False, False, False, True]
    assert after.value_float == 0.8
    assert after.metric == "mAP50-95(B)"


def test_a_loss_must_be_one(state: TunerState) -> None:
    assert state.with_max_drop(0.01).max_drop == 0.01
    for wrong in (-0.1, 1.0):
        with pytest.raises(RecipeError, match="no loss"):
            state.with_max_drop(wrong)


def test_the_code_repeats_what_is_chosen(state: TunerState, layout: QuantizableLayers) -> None:
    chosen = state.using("percentile", 99.99).toggled(layout.quantizable[4])
    tuned = chosen.tuned()
    assert tuned is not None
    scope: dict[str, object] = {}
    calls: list[tuple[str, tuple[object, ...], dict[str, object]]] = []
    code = tuned.to_python().replace("import trtkit as tk\n", "")
    exec(code, {"tk": _Recorder(calls)}, scope)
    assert [name for name, _, _ in calls] == ["calibrate", "export"]
    measured = calls[0][2]
    assert "algorithm" not in measured  # the default
    assert (measured["percentile"], measured["calibration_images"]) == (99.99, 4)
    assert measured["imgsz"] == (160, 160)
    exported = calls[1][2]
    assert exported["keep"] == [layout.quantizable[4]]
    assert exported["int8"] is True
    assert exported["imgsz"] == 160
    assert exported["calibration"] == "result of calibrate"


def test_the_command_line_is_understood(state: TunerState, layout: QuantizableLayers) -> None:
    from trtkit.cli import parse_command

    chosen = state.using("percentile", 99.99).toggled(layout.quantizable[4])
    tuned = chosen.tuned()
    assert tuned is not None
    first, second = tuned.to_command("runs/x y").splitlines()
    _, measured = parse_command(shlex.split(first)[1:])
    assert (measured.algorithm, measured.percentile, measured.output) == ("percentile", 99.99, "runs/x y")
    _, exported = parse_command(shlex.split(second)[1:])
    assert exported.int8
    assert exported.keep == [layout.quantizable[4]]
    assert exported.calibration == "runs/x y"


def test_a_saved_calibration_is_named_by_its_folder(readings: AlgorithmComparison, layout: QuantizableLayers) -> None:
    state = TunerState(model="m.pt").measured(readings, saved="runs/c").with_layers(layout)
    tuned, other = state.tuned(), state.using("mse").tuned()
    assert tuned is not None
    assert other is not None
    assert "calibration='runs/c'" in tuned.to_python()
    assert "tk.Calibration.load('runs/c').using('mse')" in other.to_python()


def test_without_histograms_only_extremes_can_be_chosen(model: tk.Model) -> None:
    from trtkit import demo

    plain = tk.calibrate(model, demo.data_path(), calibration_images=2, imgsz=160, algorithm="minmax", device="cpu")
    state = TunerState(model="m.pt", data="d.yaml").measured(AlgorithmComparison(plain))
    refusals = state.refusals()
    assert refusals["minmax"] == refusals["moving_average"] == ""
    assert "histograms=True" in refusals["entropy"]
    assert "histograms" in state.refusal("search")
    with pytest.raises(CalibrationError, match="histograms"):
        state.using("mse")
    assert state.ranges["clipped"].null_count() == len(state.ranges)


class _Recorder:
    """Stands in for trtkit where code is run for its calls alone."""

    def __init__(self, calls: list[tuple[str, tuple[object, ...], dict[str, object]]]) -> None:
        self._calls = calls

    def __getattr__(self, name: str) -> object:
        def call(*arguments: object, **settings: object) -> str:
            self._calls.append((name, arguments, settings))
            return f"result of {name}"

        return call
