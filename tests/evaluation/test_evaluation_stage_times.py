"""Stages of `predict` in a timing: structure and intervals by a clock that the test turns."""

from pathlib import Path

import polars as pl
import pytest
from raising import raises
from test_evaluation_latency import Sleeper

from trtkit.backends.stages import STAGES, enter_stage
from trtkit.errors import DataError, RecipeError
from trtkit.evaluation.latency import Timing, benchmark
from trtkit.evaluation.stage_times import MIN_CALLS, PREDICT


class Turned(Sleeper):
    """A runner whose stages take what `plan` says, by its own clock; before the first one passes 0.5 ms."""

    def __init__(self, plan, **settings):
        super().__init__(0, **settings)
        self.plan, self.now, self.images = plan, 0.0, []

    def predict(self, images, **thresholds):
        self.images.append(images)
        self.now += 0.5
        for stage, ms in self.plan.items():
            enter_stage(stage)
            self.now += ms(len(self.images)) if callable(ms) else ms
        return []

    def stage_clock(self):
        return self

    def read(self):
        return self.now

    def elapsed_ms(self, begin, end):
        return end - begin

    def synchronize(self):
        pass


CPU = {"decode": 3.0, "preprocess": 2.0, "engine": 10.0, "postprocess": 1.0}
GPU = {"decode": 3.0, "upload": 0.5, "preprocess": 0.25, "engine": 1.0, "postprocess": 0.5, "download": 0.25}


def time_both(**settings):
    return benchmark({"cpu": Turned(CPU), "gpu": Turned(GPU)}, runs=8, warmup=0, **settings)


@pytest.fixture(scope="module")
def timing():
    return time_both(batch=(1, 4))


def test_each_runner_has_its_own_stages_in_order_and_the_call_last(timing):
    frame = timing.stage_frame()
    own = frame.filter(label="gpu", batch=4)
    assert own["stage"].to_list() == [*STAGES, PREDICT]
    assert own["p50_ms"].to_list() == [3.0, 0.25, 0.5, 1.0, 0.25, 0.5, 6.0]
    assert own["low"].to_list() == own["high"].to_list() == own["p50_ms"].to_list()
    assert own["share"].to_list() == [ms / 6 for ms in own["p50_ms"]]
    cpu = frame.filter(label="cpu", batch=1)
    assert cpu["stage"].to_list() == [*CPU, PREDICT]
    assert frame.select("label", "batch").unique(maintain_order=True).rows() == [
        ("cpu", 1), ("gpu", 1), ("cpu", 4), ("gpu", 4),
    ]  # fmt: skip


def test_the_stages_of_every_call_lie_within_it(timing):
    """Half a millisecond of each call belongs to no stage."""
    is_call = pl.col("stage") == PREDICT
    sums = timing.stages.group_by("label", "batch", "run").agg(
        call=pl.col("ms").filter(is_call).sum(), stages=pl.col("ms").filter(~is_call).sum()
    )
    assert len(sums) == 2 * 2 * 8
    assert (sums["call"] - sums["stages"]).to_list() == pytest.approx([0.5] * len(sums))


def test_the_frame_has_a_column_for_each_stage_and_null_for_what_a_runner_lacks(timing):
    row = timing.frame().filter(label="cpu", batch=1).row(0, named=True)
    assert [row[f"{stage}_ms"] for stage in (*STAGES, PREDICT)] == [3.0, 2.0, None, 10.0, None, 1.0, 16.5]
    assert "engine_ms" not in time_both(stage_runs=0).frame().columns


def test_intervals_hold_what_varies():
    noisy = Turned({"engine": lambda call: 1.0 + call % 2, "postprocess": 1.0})
    frame = benchmark({"a": noisy}, runs=40, warmup=0, stage_runs=40).stage_frame()
    engine = frame.filter(stage="engine").row(0, named=True)
    assert engine["runs"] == 40
    assert 1 <= engine["low"] <= engine["p50_ms"] <= engine["high"] <= 2
    assert engine["low"] < engine["high"]
    assert frame.filter(stage="postprocess").select("low", "high").row(0) == (1, 1)


def test_it_is_saved_and_drawn(timing, tmp_path):
    timing.save(tmp_path)
    again = Timing.load(tmp_path)
    assert again.stages.equals(timing.stages)
    bars = [trace for trace in again.plot().data if trace.type == "bar"]
    assert [bar.name for bar in bars] == [*STAGES, *STAGES]
    assert list(bars[2].y) == ["gpu"]
    assert list(bars[3].x) == [10.0, 1.0]


def test_slow_calls_end_early_and_fast_ones_do_not():
    timing = benchmark(
        {"slow": Turned({"engine": 400.0}), "fast": Turned({"engine": 1.0})},
        runs=30,
        warmup=0,
        seconds=5,
        stage_runs=30,
    )
    counts = dict(timing.stage_frame().filter(stage=PREDICT).select("label", "runs").iter_rows())
    assert counts == {"slow": MIN_CALLS, "fast": 30}


def test_given_images_are_taken_in_turn_and_random_ones_have_the_model_s_size(tmp_path):
    a, b, c = paths = [tmp_path / f"{name}.jpg" for name in "abc"]
    for path in paths:
        path.touch()
    for images in (paths, tmp_path, [a, f"{tmp_path}/[bc].jpg"]):
        runner = Turned(CPU)
        benchmark(runner, batch=2, runs=5, warmup=0, stage_runs=3, images=images)
        # The first call is not timed.
        assert [list(map(Path, batch)) for batch in runner.images] == [[a, b], [a, b], [c, a], [b, c]]
    runner = Turned(CPU)
    benchmark(runner, batch=2, runs=5, warmup=0, stage_runs=1)
    assert [image.shape for image in runner.images[0]] == [(32, 64, 3)] * 2
    # `predict` has the runner's own size.
    assert benchmark(Turned(CPU), imgsz=96, runs=5, warmup=0).stages.is_empty()
    with raises(RecipeError, "benchmark-no-image"):
        benchmark(runner, images=[])
    with raises(DataError, "data-path-missing"):
        benchmark(runner, images=tmp_path / "nothing.jpg")
