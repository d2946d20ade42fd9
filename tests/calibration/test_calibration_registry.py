"""An algorithm that is registered outside the package works wherever the package's own do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from detector_graph import detector

import trtkit as tk
from trtkit import demo
from trtkit.calibration import ALGORITHMS, Calibration, CalibrationAlgorithm, calibrate, register
from trtkit.calibration.algorithm_comparison import AlgorithmComparison
from trtkit.calibration.algorithms import TensorStats, compute_magnitude, compute_range, unregister
from trtkit.cli import main
from trtkit.errors import CalibrationError
from trtkit.models import Model, load
from trtkit.tuning.sweep import sweep
from trtkit.widgets.tuner.state import TunerState

NAME = "three_quarters"
SHARES = "tail_share"


@pytest.fixture(autouse=True)
def algorithms() -> Iterator[None]:
    """Two algorithms of this file: one of the extremes, one of the histogram with a percentile."""

    @register(NAME, title="three quarters of the largest magnitude", needs_histogram=False)
    def compute_three_quarters(stats: TensorStats) -> float:
        return 0.75 * stats.largest

    @register(SHARES, title="a bin edge by its share", takes_percentile=True, percentiles=(50.0, 90.0))
    def compute_share(stats: TensorStats, percentile: float) -> float:
        assert stats.histogram is not None
        return percentile / 100 * stats.histogram.width * len(stats.histogram.counts)

    yield
    unregister(NAME)
    unregister(SHARES)


@pytest.fixture(scope="module")
def model() -> Model:
    return load(detector(), task="detect", names=["a", "b", "c"], imgsz=32)


@pytest.fixture(scope="module")
def measured(model: Model) -> Calibration:
    return calibrate(model, demo.data_path(), calibration_images=4, device="cpu", algorithm="minmax", histograms=True)


def test_it_is_in_the_registry() -> None:
    assert list(ALGORITHMS)[-2:] == [NAME, SHARES]
    entry = ALGORITHMS[NAME]
    assert isinstance(entry, CalibrationAlgorithm)
    assert (entry.needs_histogram, entry.takes_percentile) == (False, False)
    with pytest.raises(TypeError):
        ALGORITHMS["other"] = entry  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (NAME, "calibration-algorithm-exists"),
        ("mse", "calibration-algorithm-exists"),
        ("two words", "calibration-algorithm-name"),
        ("", "calibration-algorithm-name"),
    ],
)
def test_names_are_unique_identifiers(name: str, code: str) -> None:
    with pytest.raises(CalibrationError) as error:
        register(name, title="")
    assert error.value.code == code


def test_calibrate_takes_it(model: Model, measured: Calibration) -> None:
    own = calibrate(model, demo.data_path(), calibration_images=4, device="cpu", algorithm=NAME)
    assert own.algorithm == NAME
    assert not own.histograms
    for name, stats in own.stats.items():
        magnitude = 0.75 * max(abs(stats.low), abs(stats.high))
        assert compute_magnitude(stats, NAME) == magnitude
        assert (
            own.ranges[name] == compute_range(stats, NAME) == (max(stats.low, -magnitude), min(stats.high, magnitude))
        )
    with_percentile = measured.with_algorithm(SHARES, percentile=90.0)
    assert with_percentile.percentile == 90.0
    assert measured.with_algorithm(SHARES).percentile == 99.999


def test_it_is_compared_plotted_saved_and_loaded(measured: Calibration, tmp_path: Path) -> None:
    table = measured.compare_algorithms(percentiles=(90,))
    assert {NAME, f"{SHARES} 90"} <= set(table.columns)
    comparison = AlgorithmComparison(measured)
    assert comparison.unavailable_reasons()[NAME] == ""
    assert (comparison.frame(NAME)["covered"] <= 0.75).any()
    figure = measured.plot_tensor("stem/silu")
    assert NAME in [note.text for note in figure.layout.annotations]
    own = measured.with_algorithm(NAME)
    assert Calibration.load(own.save(tmp_path / "own")).ranges == own.ranges


def test_the_tuner_takes_it(measured: Calibration) -> None:
    state = TunerState(model="m.pt", data="d.yaml").with_calibration(AlgorithmComparison(measured))
    assert state.unavailable_algorithms()[NAME] == ""
    chosen = state.with_algorithm(NAME)
    assert chosen.label == NAME
    assert NAME in state.other_reaches()
    assert state.with_algorithm(SHARES, 90.0).label == f"{SHARES} 90"


def test_a_sweep_takes_it() -> None:
    swept = sweep(
        demo.model_path("classify"),
        demo.data_path("classify"),
        algorithms=(NAME, SHARES),
        percentiles=(90.0, 100.0),
        calibration_images=(4,),
        eval_images=8,
        resamples=20,
    )
    settings = swept.frame().select("algorithm", "percentile").rows()
    assert settings == [(NAME, None), (SHARES, 90.0), (SHARES, 100.0)]
    assert len(swept.plot().data)


def test_the_command_line_takes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "calibration"
    words = [str(demo.model_path()), str(demo.data_path()), "--imgsz=64", "--device=cpu", "--calibration-images=2"]
    assert main(["calibrate", *words, f"--algorithm={NAME}", f"--output={output}"]) == 0
    assert json.loads((output / "calibration.json").read_text())["facts"]["algorithm"] == NAME
    assert tk.Calibration.load(output).algorithm == NAME
    capsys.readouterr()
    with pytest.raises(SystemExit) as error:
        main(["calibrate", *words, "--algorithm=unknown", f"--output={tmp_path / 'other'}"])
    assert error.value.code == 2
    assert NAME in capsys.readouterr().err
