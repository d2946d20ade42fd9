"""sweep() on the demo model: settings, verdict, resume."""

from __future__ import annotations

import threading
from pathlib import Path

import polars as pl
import pytest
from raising import raises

import trtkit as tk
from trtkit import demo
from trtkit.errors import CancelledError, OutputError, TrtkitError
from trtkit.progress import Event
from trtkit.results import SavedResult
from trtkit.tuning.sweep import TOLERANCE, Sweep, sweep

SIDE = 96
SETTINGS = {
    "algorithms": ("minmax", "entropy", "percentile"),
    "percentiles": (99.9, 99.999),
    "calibration_images": (2, 4),
    "eval_images": 6,
    "imgsz": SIDE,
    "resamples": 30,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def result(model: tk.Model, cache: Path) -> Sweep:
    return sweep(model, demo.data_path(), cache_dir=cache, **SETTINGS)  # type: ignore[arg-type]


def test_every_setting_is_evaluated(result: Sweep) -> None:
    rows = result.frame()
    assert rows.select("algorithm", "percentile", "calibration_images").rows() == [
        (algorithm, percentile, count)
        for count in (2, 4)
        for algorithm, percentile in (("minmax", None), ("entropy", None), ("percentile", 99.9), ("percentile", 99.999))
    ]
    assert result.metric == "mAP50-95(B)"
    assert result.image_count == 6
    assert ((rows["metric"] + rows["loss"]) - result.value_float).abs().max() < 1e-12  # type: ignore[operator]
    assert (rows["low"] <= rows["metric"]).all()
    assert (rows["metric"] <= rows["high"]).all()
    assert (rows["loss_low"] <= rows["loss_high"]).all()


def test_sufficient_is_the_fewest_images_as_good_as_the_best(result: Sweep) -> None:
    best, sufficient = result.best, result.sufficient
    assert best["gap"] == 0.0
    assert best["sufficient"]
    counts = result.frame().filter(pl.col("sufficient"))["calibration_images"]
    assert sufficient["calibration_images"] == counts.min()
    assert result.verdict() in repr(result)
    assert f"{sufficient['metric']:.4f}" in result.verdict()
    rows = result.frame()
    assert rows["sufficient"].equals((rows["gap"] <= TOLERANCE) | (rows["gap_low"] <= 0))
    # A loss within chance is sufficient however large; one of these settings has it.
    assert ((rows["gap"] > TOLERANCE) & rows["sufficient"]).any()


def test_save_load_and_plot(result: Sweep, tmp_path: Path) -> None:
    loaded = Sweep.load(result.save(tmp_path / "sweep"))
    assert loaded.frame().equals(result.frame())
    assert loaded.verdict() == result.verdict()
    assert loaded.image_count == result.image_count
    traces = [trace for trace in loaded.plot().data if len(trace.x) > 1]
    assert [trace.name for trace in traces] == ["minmax", "entropy", "percentile 99.9", "percentile 99.999"]
    assert len(loaded.plot().data) == 5
    # Distinguishable without color, and side by side.
    assert len({trace.marker.symbol for trace in traces}) == len({trace.offsetgroup for trace in traces}) == 4


def test_a_second_run_uses_the_cache(
    result: Sweep, model: tk.Model, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("this evaluation is cached")

    monkeypatch.setattr("trtkit.tuning.measurement.evaluate", refuse)
    again = sweep(model, demo.data_path(), cache_dir=cache, **SETTINGS)  # type: ignore[arg-type]
    assert again.frame().equals(result.frame())


@pytest.mark.parametrize("changed", ["image", "label", "weight", "version", "eval_images"])
def test_every_change_invalidates_the_cached_evaluation(
    changed: str, demo_copy: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trtkit.data import open_dataset
    from trtkit.graph.torch_export import trace
    from trtkit.progress import Reporter
    from trtkit.tuning.measurement import CachedEvaluator, ResultCache

    graph = trace(tk.load(demo.model_path()), imgsz=(64, 64), batch=1)
    events: list[Event] = []

    def evaluate(eval_images: int = 2) -> None:
        events.clear()
        CachedEvaluator(
            dataset=open_dataset(demo_copy, task="detect"),
            split="val",
            eval_images=eval_images,
            seed=0,
            cache=ResultCache(cache_dir),
            reporter=Reporter(events.append, None),
        )(graph, "evaluate")

    evaluate()
    assert events
    evaluate()
    assert not events
    image = open_dataset(demo_copy, task="detect").images("val")[0]
    label = Path(str(image).replace("/images/", "/labels/")).with_suffix(".txt")
    if changed == "image":
        # A byte behind the end of the image changes the file and no pixel.
        image.write_bytes(image.read_bytes() + b"\0")
    elif changed == "label":
        label.write_text(label.read_text() + label.read_text().splitlines()[0][:-1] + "\n")
    elif changed == "weight":
        tensor = next(one for one in graph.graph.initializer if one.raw_data and len(one.raw_data) > 64)
        tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]
    elif changed == "version":
        monkeypatch.setattr("trtkit.tuning.measurement.measurement_versions", lambda: "another")
    evaluate(eval_images=3 if changed == "eval_images" else 2)
    assert events


def test_a_cancelled_sweep_resumes(model: tk.Model, cache_dir: Path) -> None:
    stop = threading.Event()
    stages: list[str] = []

    def watch(event: Event) -> None:
        # A cached evaluation runs no images.
        if event.total is not None and event.total > 1:
            stages.append(event.stage)
        if event.stage.startswith("evaluate entropy"):
            stop.set()

    with pytest.raises(CancelledError):
        sweep(model, demo.data_path(), cache_dir=cache_dir, progress=watch, cancel=stop, **SETTINGS)  # type: ignore[arg-type]
    assert "evaluate minmax, 2 images" in stages
    stages.clear()
    sweep(model, demo.data_path(), cache_dir=cache_dir, progress=watch, **SETTINGS)  # type: ignore[arg-type]
    assert "evaluate fp32" not in stages
    assert "evaluate minmax, 2 images" not in stages
    assert "evaluate entropy, 2 images" in stages


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"algorithms": ("best",)}, "calibration-algorithm-unknown"),
        ({"calibration_images": ()}, "argument-invalid"),
        ({"keep": ["/no/such/node"]}, "keep-no-match"),
    ],
)
def test_refusals(model: tk.Model, settings: dict[str, object], code: str) -> None:
    with pytest.raises(TrtkitError) as refused:
        sweep(model, demo.data_path(), **settings)  # type: ignore[arg-type]
    assert refused.value.code == code


def test_classify_is_swept_by_top1() -> None:
    result = sweep(
        demo.model_path("classify"),
        demo.data_path("classify"),
        algorithms=("minmax", "percentile"),
        calibration_images=(8,),
        eval_images=40,
        resamples=50,
    )
    rows = result.frame()
    assert result.metric == "top1"
    assert result.image_count == 40
    # Accuracies on 40 images.
    assert ((rows["metric"] * 40).round(6) % 1 == 0).all()
    assert (rows["loss_low"] <= rows["loss"]).all()


def test_a_sweep_of_format_version_1_loads(result: Sweep) -> None:
    rows = result.rows.rename(
        {"calibration_images": "images", "gap": "behind", "gap_low": "behind_low", "gap_high": "behind_high",
         "sufficient": "enough"}
    )  # fmt: skip
    facts = {"metric": result.metric, "value_float": result.value_float, "pictures": result.image_count}
    saved = SavedResult(version=1, tables={"sweep": rows}, facts=facts, provenance={})
    upgraded = Sweep.upgrade(saved)
    restored = Sweep.restore(upgraded.tables, upgraded.facts, result.provenance)
    assert restored.rows.equals(result.rows)
    assert repr(restored) == repr(result)


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000])
def test_a_damaged_entry_of_the_cache_is_missing(tmp_path: Path, content: bytes) -> None:
    from trtkit.tuning.measurement import ResultCache

    cache = ResultCache(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    cache.write("ranges", "key", [1])
    assert cache.read("ranges", "key") == [1]
    (tmp_path / "cache" / "ranges" / "key.json").write_bytes(content)
    assert cache.read("ranges", "key") is None
    assert cache.read("ranges", "other") is None


def test_a_cache_that_cannot_be_written_is_told_before_the_work(model: tk.Model, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    events: list[Event] = []
    with raises(OutputError, "output-parent-not-folder"):
        sweep(model, demo.data_path(), cache_dir=tmp_path / "file", progress=events.append, **SETTINGS)  # type: ignore[arg-type]
    assert {event.stage for event in events} <= {"load"}


def test_numbers_of_images_beyond_the_split_are_one_setting(model: tk.Model) -> None:
    settings = {**SETTINGS, "calibration_images": (2, 10**4, 10**5)}
    plan = tk.plan(sweep, model, demo.data_path(), **settings)
    counts = [step for step in plan.steps if step.startswith("calibrate")]
    assert counts == ["calibrate on 2 images", f"calibrate on {plan.images['calibration']} images"]
    assert plan.images["calibration"] < 10**4
