from __future__ import annotations

import threading
from pathlib import Path

import polars as pl
import pytest

import trtkit as tk
from trtkit import demo
from trtkit.errors import CancelledError, RecipeError
from trtkit.progress import Event
from trtkit.tuning.sweep import Sweep, sweep

SIDE = 160
SETTINGS = {
    "algorithms": ("minmax", "entropy", "percentile"),
    "percentiles": (99.9, 99.999),
    "images": (2, 4),
    "judged": 6,
    "imgsz": SIDE,
    "draws": 30,
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def found(model: tk.Model, kept: Path) -> Sweep:
    return sweep(model, demo.data_path(), cache_dir=kept, **SETTINGS)  # type: ignore[arg-type]


def test_every_setting_is_judged(found: Sweep) -> None:
    rows = found.frame()
    assert rows.select("algorithm", "percentile", "images").rows() == [
        (algorithm, percentile, images)
        for images in (2, 4)
        for algorithm, percentile in (("minmax", None), ("entropy", None), ("percentile", 99.9), ("percentile", 99.999))
    ]
    assert found.metric == "mAP50-95(B)"
    assert found.images == 6
    assert ((rows["metric"] + rows["loss"]) - found.value_float).abs().max() < 1e-12  # type: ignore[operator]
    assert (rows["low"] <= rows["metric"]).all()
    assert (rows["metric"] <= rows["high"]).all()
    assert (rows["loss_low"] <= rows["loss_high"]).all()


def test_enough_is_the_fewest_images_that_keep_up(found: Sweep) -> None:
    best, enough = found.best, found.sufficient
    assert best["behind"] == 0.0
    assert best["enough"]
    assert enough["images"] == found.frame().filter(pl.col("enough"))["images"].min()
    assert found.verdict() in repr(found)
    assert "is enough" in found.verdict()


def test_saved_loaded_and_shown(found: Sweep, tmp_path: Path) -> None:
    loaded = Sweep.load(found.save(tmp_path / "sweep"))
    assert loaded.frame().equals(found.frame())
    assert loaded.verdict() == found.verdict()
    traces = [trace for trace in loaded.plot().data if trace.name != "enough"]
    assert [trace.name for trace in traces] == ["minmax", "entropy", "percentile 99.9", "percentile 99.999"]
    assert len(loaded.plot().data) == 5
    # Told apart without color, and side by side.
    assert len({trace.marker.symbol for trace in traces}) == len({trace.offsetgroup for trace in traces}) == 4


def test_a_second_run_judges_nothing_again(
    found: Sweep, model: tk.Model, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("this was judged before")

    monkeypatch.setattr("trtkit.tuning.cache.evaluate", refuse)
    again = sweep(model, demo.data_path(), cache_dir=kept, **SETTINGS)  # type: ignore[arg-type]
    assert again.frame().equals(found.frame())


@pytest.mark.parametrize("changed", ["image", "label", "weight", "version", "judged"])
def test_one_change_is_enough_to_judge_again(
    changed: str, demo_copy: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trtkit.data import open_dataset
    from trtkit.graph.torch_export import trace
    from trtkit.progress import Reporter
    from trtkit.tuning.cache import CachedEvaluator, ResultCache

    graph = trace(tk.load(demo.model_path()), imgsz=(64, 64), batch=1)
    judged: list[Event] = []

    def judge(images: int = 2) -> None:
        judged.clear()
        dataset = open_dataset(demo_copy, task="detect")
        reporter = Reporter(judged.append, None)
        CachedEvaluator(
            dataset=dataset, split="val", images=images, seed=0, state=ResultCache(state), reporter=reporter
        )(graph, "judge")

    judge()
    assert judged
    judge()
    assert not judged
    image = open_dataset(demo_copy, task="detect").images("val")[0]
    label = Path(str(image).replace("/images/", "/labels/")).with_suffix(".txt")
    if changed == "image":
        # One bit behind the end of the image leaves what is seen as it was: the file is another one all the same.
        image.write_bytes(image.read_bytes() + b"\0")
    elif changed == "label":
        label.write_text(label.read_text() + label.read_text().splitlines()[0][:-1] + "\n")
    elif changed == "weight":
        tensor = next(one for one in graph.graph.initializer if one.raw_data and len(one.raw_data) > 64)
        tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]
    elif changed == "version":
        monkeypatch.setattr("trtkit.tuning.cache.measurement_versions", lambda: "another")
    judge(images=3 if changed == "judged" else 2)
    assert judged


def test_a_cancelled_sweep_goes_on_where_it_was(model: tk.Model, state: Path) -> None:
    stop = threading.Event()
    stages: list[str] = []

    def watch(event: Event) -> None:
        stages.append(event.stage)
        if event.stage.startswith("judge entropy"):
            stop.set()

    with pytest.raises(CancelledError):
        sweep(model, demo.data_path(), cache_dir=state, progress=watch, cancel=stop, **SETTINGS)  # type: ignore[arg-type]
    assert "judge minmax, 2 images" in stages
    stages.clear()
    sweep(model, demo.data_path(), cache_dir=state, progress=lambda event: stages.append(event.stage), **SETTINGS)  # type: ignore[arg-type]
    assert "judge fp32" not in stages
    assert "judge minmax, 2 images" not in stages
    assert "judge entropy, 2 images" in stages


@pytest.mark.parametrize("settings", [{"algorithms": ()}, {"algorithms": ("best",)}, {"images": ()}, {"images": (0,)}])
def test_a_sweep_over_nothing_is_refused(model: tk.Model, settings: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match="nothing to sweep"):
        sweep(model, demo.data_path(), **settings)  # type: ignore[arg-type]


def test_classify_is_swept_by_its_own_metric() -> None:
    found = sweep(
        demo.model_path("classify"),
        demo.data_path("classify"),
        algorithms=("minmax", "percentile"),
        calibration_images=(8,),
        eval_images=40,
        resamples=50,
    )
    rows = found.frame()
    assert found.metric == "top1"
    assert found.images == 40
    # Shares of 40 images.
    assert ((rows["metric"] * 40).round(6) % 1 == 0).all()
    assert (rows["loss_low"] <= rows["loss"]).all()
