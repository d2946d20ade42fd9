from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtkit.calibration import Calibration
from trtkit.calibration.algorithm_comparison import AlgorithmComparison, clipped_share
from trtkit.calibration.algorithms import ALGORITHMS, TensorStats, figure_looks
from trtkit.calibration.calibration import compute_ranges
from trtkit.calibration.histogram import Histogram
from trtkit.errors import CalibrationError, CancelledError
from trtkit.plotting.calibration import algorithm_style
from trtkit.results import Provenance


def build_histogram(values: np.ndarray) -> Histogram:
    histogram = Histogram()
    histogram.add(values.astype(np.float32).reshape(1, -1))
    return histogram


def build_stats(values: np.ndarray) -> TensorStats:
    low, high = float(values.min()), float(values.max())
    return TensorStats(
        low=low, high=high, average_low=low / 2, average_high=high / 2, histogram=build_histogram(values)
    )


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    random = np.random.default_rng(0)
    stats = {"a": build_stats(random.normal(size=4000)), "b": build_stats(random.normal(size=4000) * 3)}
    sources = {"joined": ("a", "b")}
    names = ("a", "b", "joined")
    return Calibration(
        ranges=compute_ranges(stats, sources, names, "minmax"),
        algorithm="minmax",
        image_count=2,
        split="train",
        stats=stats,
        sources=sources,
        provenance=Provenance(model_hash="m"),
    )


def test_a_source_without_a_histogram_leaves_none(calibration: Calibration) -> None:
    """Counts of a part of the values would look like those of all."""
    stats = {**calibration.stats, "b": dataclasses.replace(calibration.stats["b"], histogram=None)}
    merged = AlgorithmComparison(dataclasses.replace(calibration, stats=stats)).stats("joined")
    assert merged is not None
    assert merged.histogram is None
    assert merged.high == stats["b"].high


def test_half_of_a_bin_counts_half() -> None:
    # Two values in each of four bins of width 1/1024 below 4/1024, out of 4096 bins up to 4.
    histogram = Histogram(np.array([2, 2, 2, 2] + [0] * 4092), 2)
    width = histogram.width
    largest = 4 * width
    assert clipped_share(histogram, largest, largest) == 0
    assert clipped_share(histogram, 2 * width, largest) == pytest.approx(0.5)
    assert clipped_share(histogram, 2.5 * width, largest) == pytest.approx(3 / 8)
    assert clipped_share(histogram, 0, largest) == pytest.approx(1)
    # The last bin ends at the largest value.
    assert clipped_share(histogram, 3.25 * width, 3.5 * width) == pytest.approx(1 / 8)
    with pytest.raises(CalibrationError) as error:
        clipped_share(histogram, float("nan"), largest)
    assert error.value.code == "calibration-reach-invalid"


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=50), st.floats(0, 120))
def test_the_clipped_share_is_exact_to_a_bin(values: list[float], reach: float) -> None:
    array = np.array(values)
    histogram, largest = build_histogram(array), float(np.abs(array).max())
    share = clipped_share(histogram, reach, largest)
    assert 0 <= share <= 1
    magnitudes = np.abs(array)
    beyond, within = np.mean(magnitudes > reach + histogram.width), np.mean(magnitudes >= reach - histogram.width)
    assert beyond - 1e-9 <= share <= within + 1e-9


def test_each_algorithm_is_computed_once(calibration: Calibration) -> None:
    comparison = AlgorithmComparison(calibration)
    assert comparison.with_algorithm("minmax") is calibration
    assert not comparison.is_immediate("mse")
    assert comparison.is_immediate("percentile", 99.0)
    first = comparison.with_algorithm("mse")
    assert comparison.with_algorithm("mse") is first
    assert comparison.is_immediate("mse")
    assert first.ranges == calibration.with_algorithm("mse").ranges
    assert comparison.with_algorithm("percentile").percentile == 99.999


def test_all_algorithms_are_computed_unless_cancelled(calibration: Calibration) -> None:
    steps: list[int] = []
    comparison = AlgorithmComparison(calibration).compute_all(progress=lambda event: steps.append(event.done))
    assert steps == [0, 1, 2]
    assert all(comparison.is_immediate(name) for name in ALGORITHMS)
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(CancelledError):
        AlgorithmComparison(calibration).compute_all(cancel=cancel)


def test_a_pass_through_tensor_merges_the_stats_of_its_sources(calibration: Calibration) -> None:
    comparison = AlgorithmComparison(calibration)
    merged = comparison.stats("joined")
    assert merged is not None
    assert merged.histogram is not None
    assert merged.histogram.total == 8000
    assert merged.high == max(calibration.stats["a"].high, calibration.stats["b"].high)
    assert comparison.stats("nothing") is None


def test_the_frame_has_reach_and_clipping(calibration: Calibration) -> None:
    frame = AlgorithmComparison(calibration).frame("percentile", 99.0)
    assert frame["tensor"].to_list() == ["a", "b", "joined"]
    values = np.abs(np.random.default_rng(0).normal(size=4000))
    reach, clipped = frame.row(0, named=True)["reach"], frame.row(0, named=True)["clipped"]
    assert reach == pytest.approx(np.percentile(values, 99), rel=0.01)
    assert clipped == pytest.approx(0.01, abs=0.001)
    assert frame.row(0, named=True)["scale"] == reach / 127


def test_scales_alone_allow_no_other_algorithm() -> None:
    plain = Calibration(
        ranges={"a": (-1.0, 1.0)}, algorithm="tensorrt", image_count=0, split="", provenance=Provenance(model_hash="m")
    )
    comparison = AlgorithmComparison(plain)
    reasons = comparison.unavailable_reasons()
    assert set(reasons) == set(ALGORITHMS)
    assert all(reasons.values())
    frame = comparison.frame("tensorrt")
    assert frame.row(0, named=True)["clipped"] is None
    figure = comparison.plot_overview(frame)
    assert [trace.type for trace in figure.data] == ["scatter", "scatter"]
    assert comparison.plot_histogram("a", 1.0).data[-1].x == (1.0, 1.0)


def test_bands_contain_every_value(calibration: Calibration) -> None:
    stats = [calibration.stats[name] for name in ("a", "b")]
    shares = np.stack([one.histogram.log_shares(one.largest, 48) for one in stats], axis=1)
    assert np.nansum(10**shares, axis=0) == pytest.approx([1, 1])


def test_the_histogram_separates_covered_from_clipped_values(calibration: Calibration) -> None:
    comparison = AlgorithmComparison(calibration)
    reach = comparison.frame("percentile", 99.0).row(0, named=True)["reach"]
    figure = comparison.plot_histogram("a", reach, algorithm="percentile 99", others={"minmax": 3.0})
    covered, clipped, other, chosen = figure.data
    counts = [sum(value or 0 for value in trace.y) for trace in (covered, clipped)]
    assert sum(counts) == 4000
    assert 30 <= counts[1] <= 50
    assert covered.marker.pattern.shape != clipped.marker.pattern.shape
    assert max(covered.x) <= reach < min(clipped.x)
    assert other.x == (3.0, 3.0)
    assert chosen.x == (reach, reach)


def test_algorithms_look_different_by_more_than_color() -> None:
    looks = [algorithm_style(name, figure_looks()) for name in ALGORITHMS]
    for trait in ("color", "dash", "symbol"):
        assert len({getattr(look, trait) for look in looks}) == len(ALGORITHMS)
    assert algorithm_style("percentile 99.9", figure_looks()) == algorithm_style("percentile", figure_looks())
