import contextlib
import re
import time
import types

import numpy as np
import polars as pl
import pytest
from raising import raises

from trtkit.backends.gpu_state import GpuState
from trtkit.backends.runner import Runner
from trtkit.errors import CancelledError, EngineError, RecipeError
from trtkit.evaluation import latency
from trtkit.evaluation.latency import Timing, benchmark, summarize_runs
from trtkit.evaluation.rounds import BLOCK_RUNS, compare_latencies, measure_noise
from trtkit.models.model import ModelInfo


class Sleeper(Runner):
    """A runner with a known latency."""

    engine = False
    passport = None
    path = None

    def __init__(self, ms, *, name="sleeper", precision="fp32", batch=None, dynamic=True, log=None):
        self.name, self.precision, self.batch, self.dynamic = name, precision, batch, dynamic
        self.info = ModelInfo(task="detect", names={0: "a"})
        self.imgsz, self.hash, self.ms = (32, 64), "h" * 64, ms
        self.shapes, self.log, self.closed = [], log if log is not None else [], False

    def infer(self, feeds):
        self.shapes.append(feeds.shape)
        self.log.append(self.name)
        time.sleep(self.ms / 1000)
        return {"output0": np.zeros((len(feeds), 5, 1), np.float32)}

    def close(self):
        self.closed = True


class Clocked(Sleeper):
    """A runner that measures GPU time."""

    engine = True

    def measure_gpu_times(self, feeds, runs):
        return [0.25] * runs


def test_times_are_what_the_runner_takes():
    timing = benchmark({"fast": Sleeper(2), "slow": Sleeper(6)}, runs=10, warmup=1)
    frame = timing.frame()
    assert frame["label"].to_list() == ["fast", "slow"]
    fast, slow = frame["p50_ms"]
    assert 2 <= fast < 5
    assert 6 <= slow < 10
    assert frame["runs"].to_list() == [10, 10]
    assert frame["clock"].to_list() == ["wall", "wall"]


@pytest.mark.parametrize("seed", range(4))
def test_rows_stand_in_the_order_given(seed):
    frame = benchmark({"b": Sleeper(0), "a": Sleeper(0)}, batch=(2, 1), runs=5, warmup=0, seed=seed).frame()
    assert frame.select("label", "batch").rows() == [("b", 2), ("b", 1), ("a", 2), ("a", 1)]


def test_every_row_names_its_runner_and_whether_tensorrt_ran():
    frame = benchmark({"a": Sleeper(0), "b": Clocked(0, name="TensorRT 8.6.0")}, runs=5, warmup=0).frame()
    assert frame.select("label", "runner", "engine", "clock").rows() == [
        ("a", "sleeper", False, "wall"),
        ("b", "TensorRT 8.6.0", True, "gpu"),
    ]
    assert frame.filter(label="b").select("mean_ms", "std_ms").row(0) == (0.25, 0.0)


def test_statistics_equal_numpy_s():
    times = np.random.default_rng(1).gamma(3, 2, 57)
    samples = pl.DataFrame({"label": "x", "batch": 4, "turn": range(57), "ms": times})
    row = summarize_runs(samples).row(0, named=True)
    assert row["runs"] == 57
    assert row["mean_ms"] == pytest.approx(times.mean())
    assert row["std_ms"] == pytest.approx(times.std(ddof=1))
    assert (row["min_ms"], row["max_ms"]) == (times.min(), times.max())
    for name, share in (("p50_ms", 50), ("p90_ms", 90), ("p99_ms", 99)):
        assert row[name] == pytest.approx(np.percentile(times, share))
    assert row["image_ms"] == pytest.approx(times.mean() / 4)
    assert row["images_per_s"] == pytest.approx(4000 / times.mean())


def test_runners_take_turns():
    log = []
    runners = {name: Sleeper(0, name=name, log=log) for name in ("a", "b")}
    benchmark(runners, runs=20, warmup=0, stage_runs=0)
    blocks = [log[start : start + BLOCK_RUNS + 1] for start in range(0, len(log), BLOCK_RUNS + 1)]
    # Each block is one runner's, with one discarded run, and no runner is ahead by two blocks.
    assert all(len(set(block)) == 1 for block in blocks)
    lead = np.cumsum([1 if block[0] == "a" else -1 for block in blocks])
    assert lead[-1] == 0
    assert abs(lead).max() <= 1


def test_batches_and_image_sizes_reach_the_runner():
    runner = Sleeper(0)
    frame = benchmark(runner, batch=(1, 3), runs=5, warmup=0).frame()
    assert set(runner.shapes) == {(1, 3, 32, 64), (3, 3, 32, 64)}
    assert frame["batch"].to_list() == [1, 3]
    assert frame["label"].to_list() == ["fp32", "fp32"]
    runner = Sleeper(0)
    benchmark(runner, imgsz=96, runs=5, warmup=0)
    assert set(runner.shapes) == {(1, 3, 96, 96)}


def test_time_is_limited_but_some_runs_are_measured_anyway():
    frame = benchmark({"slow": Sleeper(20), "fast": Sleeper(1)}, runs=1000, warmup=0, seconds=0.05).frame()
    assert frame["runs"].to_list()[0] == 5
    assert 5 < frame["runs"].to_list()[1] < 60


def test_a_static_runner_that_pads_says_so():
    frame = benchmark(Sleeper(0, batch=8, dynamic=False), batch=(1, 8), runs=5, warmup=0).frame()
    assert frame["padded"].to_list() == [True, False]
    assert benchmark(Sleeper(0, batch=8), batch=1, runs=5, warmup=0).frame()["padded"].to_list() == [False]


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"batch": ()}, {"runs": 0}, {"warmup": -1}, {"seconds": 0}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(RecipeError) as caught:
        benchmark(Sleeper(0), **wrong)
    assert caught.value.code == "argument-invalid"


def test_no_runner_is_refused():
    with pytest.raises(RecipeError) as caught:
        benchmark({})
    assert caught.value.code == "benchmark-runner-missing"


def test_a_batch_above_the_runner_s_is_refused_before_anything_runs():
    runner = Sleeper(0, batch=4)
    with pytest.raises(EngineError) as caught:
        benchmark({"x": runner}, batch=(1, 8))
    assert (caught.value.code, caught.value.fields["limit"]) == ("benchmark-batch-too-large", 4)
    assert runner.shapes == []


def test_another_size_needs_a_dynamic_runner():
    with pytest.raises(EngineError) as caught:
        benchmark(Sleeper(0, dynamic=False), imgsz=64)
    assert (caught.value.code, caught.value.fields["limit"]) == ("benchmark-imgsz-fixed", (32, 64))


def test_given_runners_stay_open():
    runner = Sleeper(0)
    benchmark(runner, runs=5, warmup=0)
    assert not runner.closed


def test_progress_goes_up_to_all_runs_even_when_time_runs_out():
    events = []
    benchmark({"a": Sleeper(10), "b": Sleeper(0)}, runs=30, warmup=2, seconds=0.02, progress=events.append)
    done = [event.done for event in events if event.stage == "benchmark batch 1"]
    assert done == sorted(done)
    assert (events[-2].done, events[-2].total, events[-1].stage) == (60, 60, "done")


def test_cancelling_stops():
    class Twice:
        asked = 0

        def is_set(self):
            self.asked += 1
            return self.asked > 3

    runner = Sleeper(0)
    with pytest.raises(CancelledError):
        benchmark(runner, runs=1000, warmup=0, cancel=Twice())
    assert len(runner.shapes) < 40


def test_saving_and_loading_gives_the_same(tmp_path):
    timing = benchmark({"a": Sleeper(1), "b": Clocked(1)}, batch=(1, 2), runs=5, warmup=0, seed=7)
    timing.save(tmp_path)
    again = Timing.load(tmp_path)
    assert again.samples.equals(timing.samples)
    assert again.frame().equals(timing.frame())
    assert again.provenance.seed == 7
    assert again.provenance.settings["batch"] == [1, 2]


def test_the_repr_names_runner_and_clock():
    text = repr(benchmark(Sleeper(1), runs=5, warmup=0))
    assert "sleeper" in text
    assert "wall clock" in text
    assert "5 runs" in text


def test_the_figure_has_a_curve_for_each_runner_and_batch():
    figure = benchmark({"fp32": Sleeper(0), "int8": Sleeper(0)}, batch=(1, 2), runs=6, warmup=0).plot()
    curves = [trace for trace in figure.data if trace.type == "scatter"]
    assert len(curves) == 4
    assert all(curve.y[-1] == 1 for curve in curves)
    assert len({curve.line.dash for curve in curves}) == 2
    assert [curve.name.split(":")[0] for curve in curves] == ["FP32", "INT8"] * 2
    # Arrays are not decoded, and no GPU copies anything.
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert [bar.name for bar in bars] == ["preprocess", "engine", "postprocess"] * 2
    assert [list(bar.y) for bar in bars] == [["FP32", "INT8"]] * 6


# Rounds, ratios and disturbances


class Paced(Clocked):
    """A runner whose run `k` takes `pace(k)` ms by its own clock."""

    def __init__(self, pace, **settings):
        super().__init__(0, **settings)
        self.pace, self.runs = pace, 0

    def measure_gpu_times(self, feeds, runs):
        times = [self.pace(self.runs + index) for index in range(runs)]
        self.runs += runs
        return times


@pytest.fixture
def gpu_states(monkeypatch):
    """A function that has `watch_gpu` yield one state after the other, the last for ever."""

    def simulate(*states):
        left = list(states)

        @contextlib.contextmanager
        def watch(gpu):
            yield lambda: left.pop(0) if len(left) > 1 else left[0]

        monkeypatch.setattr(latency, "watch_gpu", watch)

    return simulate


def time_one(pace, **settings):
    return benchmark({"a": Paced(pace)}, warmup=0, max_noise=0, **settings)


@pytest.mark.parametrize(
    ("pace", "words"),
    [
        (lambda run: 1.0, ""),
        (lambda run: 1.0 + 0.02 * (run % 3), ""),
        (lambda run: 1.0 if run < 50 else 1.1, "the last rounds took 10% more time than the first"),
        (lambda run: 1.0 if run < 50 else 0.9, "the last rounds took 10% less time than the first"),
        (lambda run: 2.0 if run // 5 % 5 == 0 else 1.0, "4 of 20 rounds took over 1.1 times the median"),
    ],
)
def test_an_injected_slowdown_is_flagged(pace, words):
    timing = time_one(pace, runs=100)
    assert timing.frame()["flags"].to_list() == [words]
    assert (words in repr(timing)) is True


class Tiring(Sleeper):
    """A runner that sleeps longer from its run `slow_from` on, and in every `period`-th block of runs."""

    def __init__(self, *, slow_from=10**9, period=10**9, ms=1, extra_ms=1):
        super().__init__(ms)
        self.slow_from, self.period, self.extra, self.run = slow_from, period, extra_ms / 1000, 0

    def infer(self, feeds):
        block = self.run // (BLOCK_RUNS + 1)
        if self.run >= self.slow_from or block % self.period == 0:
            time.sleep(self.extra)
        self.run += 1
        return super().infer(feeds)


def test_a_runner_that_gets_slower_is_flagged_by_the_clock_on_the_wall():
    runner = Tiring(slow_from=30, extra_ms=3)
    (words,) = benchmark({"slows": runner}, runs=50, warmup=0, max_noise=0, stage_runs=0).frame()["flags"]
    found = re.search(r"the last rounds took (\d+)% more time than the first", words)
    assert found
    assert int(found[1]) > 100


def test_rounds_that_are_slowed_down_are_flagged_by_the_clock_on_the_wall():
    timing = benchmark({"rests": Tiring(period=4, extra_ms=4)}, runs=50, warmup=0, max_noise=0, stage_runs=0)
    slow = timing.rounds["round"] % 4 == 0
    assert timing.rounds.filter(slow)["p50_ms"].min() > 2 * timing.rounds.filter(~slow)["p50_ms"].median()
    # As slow rounds, or as a drift where the others vary too.
    assert "rounds took" in timing.frame()["flags"][0]


def test_throttling_other_load_and_clocks_are_flagged(gpu_states):
    gpu_states(
        GpuState(sm_mhz=1980, other_processes=0),
        GpuState(sm_mhz=1300, throttling=("power cap",), other_processes=2),
        GpuState(sm_mhz=1980, other_processes=0),
    )
    timing = time_one(lambda run: 1.0, runs=20)
    flags = timing.frame()["flags"][0]
    assert flags.split("; ") == [
        "the GPU was slowed down in 1 of 4 rounds (power cap)",
        "2 other processes used the GPU",
        "the GPU's clock varied from 1300 to 1980 MHz",
    ]
    assert timing.rounds["throttling"].to_list() == ["", "power cap", "", ""]
    assert timing.rounds["round"].to_list() == [0, 1, 2, 3]


def test_drift_that_slows_both_leaves_the_ratio_alone():
    """Paired: the machine becomes three times slower while both are measured."""
    timing = benchmark(
        {"a": Paced(lambda run: 1 + run / 50), "b": Paced(lambda run: 0.8 * (1 + run / 50))}, warmup=0, max_noise=0
    )
    row = timing.ratios().row(0, named=True)
    assert (row["label"], row["batch"], row["rounds"]) == ("b", 1, 20)
    assert row["ratio"] == pytest.approx(0.8)
    assert row["high"] - row["low"] < 1e-9
    with raises(RecipeError, "timing-label-unknown", value="c", names=["a", "b"]):
        timing.ratios("c")


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_of_a_ratio_holds_the_true_one(seed):
    """Noise by round and by run, shared and not: 95 % intervals hold 0.9 in most of 60 measurements."""
    dice = np.random.default_rng(seed)
    held = 0
    for _ in range(60):
        shared = np.repeat(dice.lognormal(0, 0.2, 20), 5)
        rows = [
            pl.DataFrame({"label": label, "batch": 1, "ms": ms * shared * np.repeat(dice.lognormal(0, 0.01, 20), 5)})
            for label, ms in (("a", 1.0), ("b", 0.9))
        ]
        found = compare_latencies(pl.concat(rows), "b", "a", 1)
        held += found.low <= 0.9 <= found.high
    assert held >= 50


def test_few_rounds_have_the_interval_of_single_runs():
    samples = pl.DataFrame({"label": ["a"] * 9 + ["b"] * 9, "batch": 1, "ms": [1.0] * 9 + [0.5] * 9})
    assert compare_latencies(samples, "b", "a", 1) == (0.5, 0.5, 0.5, 2)
    assert np.isnan(compare_latencies(samples, "b", "c", 1).ratio)


@pytest.mark.parametrize(("rounds", "is_paired"), [(4, False), (5, True)])
def test_from_five_rounds_on_what_slows_both_leaves_the_ratio(rounds, is_paired):
    slower = np.repeat(np.linspace(1, 3, rounds), BLOCK_RUNS)
    samples = pl.DataFrame(
        {"label": ["a"] * len(slower) + ["b"] * len(slower), "batch": 1, "ms": [*slower, *(slower / 2)]}
    )
    found = compare_latencies(samples, "b", "a", 1)
    assert (found.ratio, found.rounds) == (0.5, rounds)
    assert (found.low == found.high == 0.5) is is_paired


def test_a_disturbed_round_leaves_the_ratio():
    times = np.ones(9 * BLOCK_RUNS)
    disturbed = times / 2
    disturbed[:BLOCK_RUNS] *= 10
    samples = pl.DataFrame({"label": ["a"] * 45 + ["b"] * 45, "batch": 1, "ms": [*times, *disturbed]})
    assert compare_latencies(samples, "b", "a", 1).ratio == 0.5


def test_noise_is_half_the_interval_of_the_mean_round():
    medians = [1.0, 1.2] * 5
    # 1.96 x 0.1054 / sqrt(10) of 1.1
    assert measure_noise(np.repeat(medians, BLOCK_RUNS)) == pytest.approx(0.0594, abs=1e-4)
    assert measure_noise(np.repeat(medians[:9], BLOCK_RUNS)) == np.inf


def test_it_stops_once_the_noise_is_small():
    steady, noisy = Paced(lambda run: 1.0), Paced(lambda run: 1.0 + 0.5 * (run // 5 % 2))
    assert benchmark({"a": steady}, runs=500, warmup=0).frame()["runs"].to_list() == [50]
    assert benchmark({"a": steady, "b": noisy}, runs=100, warmup=0).frame()["runs"].to_list() == [100, 100]
    assert benchmark({"a": steady}, runs=100, warmup=0, max_noise=0).frame()["runs"].to_list() == [100]


class Offline(Paced):
    """A runner that takes 2 ms a run back to back."""

    device_memory = 3 * 2**20

    def measure_throughput(self, feeds, seconds):
        return round(seconds / 0.002), seconds


def test_engines_run_back_to_back_for_throughput_and_energy(gpu_states):
    # One state after each of four rounds, then those before and after.
    gpu_states(*[GpuState(joules=0.0)] * 5, GpuState(joules=600.0))
    runners = {"a": Offline(lambda run: 1.0), "b": Sleeper(0)}
    timing = benchmark(runners, batch=4, runs=10, warmup=0, offline_seconds=2)
    (row,) = timing.offline.iter_rows(named=True)
    assert (row["label"], row["batch"], row["images_per_s"]) == ("a", 4, 2000)
    assert (row["joules_per_image"], row["watts"], row["memory_mib"]) == (0.15, 300, 3)
    gpu_states(GpuState())
    runners["a"].passport = types.SimpleNamespace(plan_size=2**20)
    (row,) = benchmark(runners, runs=5, warmup=0).offline.iter_rows(named=True)
    # The weights of a plan are in the GPU's memory too.
    assert (row["joules_per_image"], row["watts"], row["memory_mib"]) == (None, None, 4)
    assert benchmark(runners, runs=5, warmup=0, offline_seconds=0).offline.is_empty()
