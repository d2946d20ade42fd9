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
def state(
    algorithm_comparison: AlgorithmComparison, quantizable_layers: QuantizableLayers, layer_sensitivity: Sensitivity
) -> TunerState:
    return (
        TunerState(model="yolo11n.pt", data="data.yaml")
        .with_calibration(algorithm_comparison)
        .with_layers(quantizable_layers)
        .with_sensitivity(layer_sensitivity)
    )


def test_the_initial_state_is_empty() -> None:
    state = TunerState(model="yolo11n.pt", data="data.yaml")
    assert state.tuned_export() is None
    assert state.layer_frame().is_empty()
    assert state.assignment_frame().is_empty()
    assert state.int8_share is None
    assert all(state.unavailable_algorithms().values())
    assert state.unavailable_reason("calibrate") == ""
    assert "calibration" in state.unavailable_reason("search")
    with pytest.raises(CalibrationError) as error:
        state.with_algorithm("mse")
    assert error.value.code == "tuner-no-calibration"
    with pytest.raises(CalibrationError):
        _ = state.ranges


def test_an_unavailable_action_names_the_missing_argument(algorithm_comparison: AlgorithmComparison) -> None:
    assert "tuner(model=...)" in TunerState().with_calibration(algorithm_comparison).unavailable_reason("evaluate")
    assert "tuner(data=...)" in TunerState(model="a.pt").with_calibration(algorithm_comparison).unavailable_reason(
        "search"
    )
    assert TunerState(model="a.pt").unavailable_reason("calibrate") == ""


def test_an_algorithm_changes_the_ranges(state: TunerState, calibration: Calibration) -> None:
    assert state.algorithm == "minmax"
    assert (state.ranges["covered"] == 1).all()
    assert (state.ranges["clipped"] == 0).all()
    changed = state.with_algorithm("percentile", 99.0)
    assert (changed.algorithm, changed.percentile, changed.label) == ("percentile", 99.0, "percentile 99")
    assert state.algorithm == "minmax"
    expected = calibration.with_algorithm("percentile", percentile=99.0).ranges
    images = changed.ranges.row(0, named=True)
    assert images["tensor"] == "images"
    assert images["reach"] == max(map(abs, expected["images"]))
    # At most 1 % of a tensor is clipped; a shared scale may cover more than its own tensor needs.
    assert changed.ranges["clipped"].max() <= 0.01
    assert changed.ranges["covered"].min() < 0.9


def test_a_shared_scale_has_the_largest_reach_of_its_tensors(
    state: TunerState, quantizable_layers: QuantizableLayers
) -> None:
    changed = state.with_algorithm("percentile", 99.9)
    assert state.algorithm_comparison is not None
    own = dict(state.algorithm_comparison.frame("percentile", 99.9).select("tensor", "reach").iter_rows())
    shared = next(scale for scale in quantizable_layers.layers["scale"].to_list() if len(scale) > 2)
    widest = max(own[name] for name in shared)
    reach = dict(changed.ranges.select("tensor", "reach").iter_rows())
    assert {reach[name] for name in shared} == {widest}
    assert any(own[name] < widest for name in shared)


def test_layers_are_sorted_by_sensitivity_or_in_graph_order(
    state: TunerState, quantizable_layers: QuantizableLayers
) -> None:
    by_sensitivity = state.layer_frame()
    assert by_sensitivity["sqnr_only"].is_sorted()
    assert len(by_sensitivity) == len(quantizable_layers.quantizable) == 85
    plain = dataclasses.replace(state, sensitivity=None).layer_frame()
    assert tuple(plain["node"]) == quantizable_layers.quantizable
    assert plain["sqnr_only"].null_count() == 85


def test_the_input_of_the_most_sensitive_layer_is_shown_first(
    state: TunerState, quantizable_layers: QuantizableLayers
) -> None:
    assert state.tensor == quantizable_layers.tensor_of(str(state.layer_frame()["node"][0]))
    with pytest.raises(RecipeError) as error:
        state.with_tensor("nothing")
    assert (error.value.code, error.value.fields["value"]) == ("tuner-tensor-unknown", "nothing")


def test_layers_are_toggled(state: TunerState, quantizable_layers: QuantizableLayers) -> None:
    first, second = quantizable_layers.quantizable[:2]
    one = state.with_toggled(second)
    assert one.kept_fp16 == (second,)
    both = one.with_toggled(first)
    # In graph order, independent of the order of the clicks.
    assert both.kept_fp16 == (first, second)
    assert both.with_toggled(second).kept_fp16 == (first,)
    assert both.with_kept(()).kept_fp16 == ()
    assert one.int8_share is not None
    assert state.int8_share is not None
    assert one.int8_share < state.int8_share
    with pytest.raises(RecipeError) as error:
        state.with_toggled("/model.23/dfl/conv/Conv")
    assert error.value.code == "tuner-layer-unknown"


def test_layers_kept_before_the_layers_are_read_stay(
    algorithm_comparison: AlgorithmComparison, quantizable_layers: QuantizableLayers
) -> None:
    early = (
        TunerState(model="m.pt")
        .with_calibration(algorithm_comparison)
        .with_kept([quantizable_layers.quantizable[3], "foreign", quantizable_layers.quantizable[1]])
    )
    assert early.kept_fp16 == (quantizable_layers.quantizable[3], "foreign", quantizable_layers.quantizable[1])
    assert early.with_layers(quantizable_layers).kept_fp16 == (
        quantizable_layers.quantizable[1],
        quantizable_layers.quantizable[3],
    )


def test_a_search_is_applied_with_its_ranges(
    state: TunerState, search: Search, quantizable_layers: QuantizableLayers
) -> None:
    after = state.with_search(search)
    assert after.uses_search_ranges
    assert after.kept_fp16 == search.keep == quantizable_layers.quantizable[:2]
    assert after.max_drop == search.max_drop
    tuned = after.tuned_export()
    assert tuned is not None
    assert "calibration='runs/tuner/search/calibration'" in tuned.to_python()
    assert tuned.keep == search.keep
    # The layers can be changed with the same ranges; another algorithm replaces the ranges.
    more = after.with_toggled(quantizable_layers.quantizable[5])
    assert more.uses_search_ranges
    tuned = more.tuned_export()
    assert tuned is not None
    assert tuned.keep == (*quantizable_layers.quantizable[:2], quantizable_layers.quantizable[5])
    assert "calibration='runs/tuner/search/calibration'" in tuned.to_python()
    assert not after.with_algorithm("mse").uses_search_ranges
    assert after.with_tensor("images").uses_search_ranges
    assert after.with_layers(quantizable_layers).uses_search_ranges


def test_a_search_beyond_the_allowed_loss_is_shown_but_not_applied(state: TunerState, search: Search) -> None:
    after = state.with_search(dataclasses.replace(search, reached=False))
    assert not after.uses_search_ranges
    assert after.kept_fp16 == ()
    assert len(after.assignment_frame()) == 3


def test_another_trial_of_the_search_sets_the_layers_only(
    state: TunerState, search: Search, quantizable_layers: QuantizableLayers
) -> None:
    after = state.with_search(search)
    all_fp16 = after.with_trial(0)
    assert all_fp16.kept_fp16 == quantizable_layers.quantizable
    assert not all_fp16.uses_search_ranges
    tuned = all_fp16.tuned_export()
    assert tuned is not None
    # Without any INT8 layer it is an FP16 export.
    assert "half=True" in tuned.to_python()
    assert tuned.keep == ()
    assert set(shlex.split(tuned.to_command())[-2:]) == {"--half", "--imgsz=96"}
    assert after.with_trial(1).kept_fp16 == ()
    with pytest.raises(RecipeError) as error:
        state.with_trial()
    assert error.value.code == "tuner-no-search"


def test_the_assignment_frame_holds_trials_and_evaluations(state: TunerState, search: Search) -> None:
    evaluation = Int8Evaluation(
        label="mse", algorithm="mse", keep=(), kept_layers=0, int8_share=1.0, metric="mAP50-95(B)", value=0.9,
        value_float=0.8, loss=-0.1, loss_low=-0.2, loss_high=0.0, image_count=4,
        provenance=Provenance(model_hash="0"),
    )  # fmt: skip
    after = state.with_search(search).with_evaluation(evaluation)
    points = after.assignment_frame()
    assert points["kind"].to_list() == ["searched", "searched", "chosen", "evaluated"]
    # The evaluation has the largest share in INT8 and the highest metric.
    assert points["pareto"].to_list() == [False, False, False, True]
    assert after.value_float == 0.8
    assert after.metric == "mAP50-95(B)"


def test_the_allowed_loss_lies_between_0_and_1(state: TunerState) -> None:
    assert state.with_max_drop(0.01).max_drop == 0.01
    for wrong in (-0.1, 1.0):
        with pytest.raises(RecipeError) as error:
            state.with_max_drop(wrong)
        assert (error.value.code, error.value.fields["value"]) == ("tuner-max-drop-range", wrong)


def test_the_code_repeats_the_choices(state: TunerState, quantizable_layers: QuantizableLayers) -> None:
    chosen = state.with_algorithm("percentile", 99.99).with_toggled(quantizable_layers.quantizable[4])
    tuned = chosen.tuned_export()
    assert tuned is not None
    scope: dict[str, object] = {}
    calls: list[tuple[str, tuple[object, ...], dict[str, object]]] = []
    code = tuned.to_python().replace("import trtkit as tk\n", "")
    exec(code, {"tk": _Recorder(calls)}, scope)
    assert [name for name, _, _ in calls] == ["calibrate", "export"]
    measured = calls[0][2]
    assert "algorithm" not in measured  # the default
    assert (measured["percentile"], measured["calibration_images"]) == (99.99, 4)
    assert measured["imgsz"] == (96, 96)
    exported = calls[1][2]
    assert exported["keep"] == [quantizable_layers.quantizable[4]]
    assert exported["int8"] is True
    assert exported["imgsz"] == 96
    assert exported["calibration"] == "result of calibrate"


def test_the_command_line_parses(state: TunerState, quantizable_layers: QuantizableLayers) -> None:
    from trtkit.cli import parse_command

    chosen = state.with_algorithm("percentile", 99.99).with_toggled(quantizable_layers.quantizable[4])
    tuned = chosen.tuned_export()
    assert tuned is not None
    first, second = tuned.to_command("runs/x y").splitlines()
    _, measured = parse_command(shlex.split(first)[1:])
    assert (measured.algorithm, measured.percentile, measured.output) == ("percentile", 99.99, "runs/x y")
    _, exported = parse_command(shlex.split(second)[1:])
    assert exported.int8
    assert exported.keep == [quantizable_layers.quantizable[4]]
    assert exported.calibration == "runs/x y"


def test_a_saved_calibration_is_referenced_by_its_folder(
    algorithm_comparison: AlgorithmComparison, quantizable_layers: QuantizableLayers
) -> None:
    state = (
        TunerState(model="m.pt").with_calibration(algorithm_comparison, path="runs/c").with_layers(quantizable_layers)
    )
    tuned, other = state.tuned_export(), state.with_algorithm("mse").tuned_export()
    assert tuned is not None
    assert other is not None
    assert "calibration='runs/c'" in tuned.to_python()
    assert "tk.Calibration.load('runs/c').with_algorithm('mse')" in other.to_python()


def test_without_histograms_only_extremes_are_available(model: tk.Model) -> None:
    from trtkit import demo

    plain = tk.calibrate(model, demo.data_path(), calibration_images=2, imgsz=96, algorithm="minmax", device="cpu")
    state = TunerState(model="m.pt", data="d.yaml").with_calibration(AlgorithmComparison(plain))
    reasons = state.unavailable_algorithms()
    assert reasons["minmax"] == reasons["moving_average"] == ""
    assert "histograms=True" in reasons["entropy"]
    assert "histograms" in state.unavailable_reason("search")
    with pytest.raises(CalibrationError) as error:
        state.with_algorithm("mse")
    assert (error.value.code, error.value.fields["value"]) == ("tuner-algorithm-unavailable", "mse")
    assert state.ranges["clipped"].null_count() == len(state.ranges)


class _Recorder:
    """A stand-in for trtkit that records the calls of generated code."""

    def __init__(self, calls: list[tuple[str, tuple[object, ...], dict[str, object]]]) -> None:
        self._calls = calls

    def __getattr__(self, name: str) -> object:
        def call(*arguments: object, **settings: object) -> str:
            self._calls.append((name, arguments, settings))
            return f"result of {name}"

        return call
