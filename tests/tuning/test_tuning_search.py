from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

import trtkit as tk
from trtkit import demo
from trtkit.calibration import Calibration
from trtkit.errors import CalibrationError, CancelledError, RecipeError
from trtkit.graph.qdq import insert_qdq, plan_qdq
from trtkit.graph.torch_export import trace
from trtkit.progress import Event, Reporter
from trtkit.tuning.corrections import choose_ranges, group_tensors_by_scale
from trtkit.tuning.cost_model import ArithmeticCost, EngineCost
from trtkit.tuning.noise import LayerNoise
from trtkit.tuning.search import Search
from trtkit.tuning.search_loop import search

SIDE = 160
SETTINGS = {"images": 8, "probe": 2, "imgsz": SIDE, "draws": 30, "calibration_images": 8, "trials": 8}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("search")


@pytest.fixture(scope="module")
def found(model: tk.Model, kept: Path) -> Search:
    return search(model, demo.data_path(), 0.02, cache_dir=kept, backend="onnxruntime", **SETTINGS)  # type: ignore[arg-type]


def test_trials_say_what_they_are(found: Search) -> None:
    trials = found.frame()
    assert trials["assignment"][:5].to_list() == [
        "fp16 throughout",
        "minmax",
        "percentile 99.999",
        "best ranges",
        "best ranges, biases corrected",
    ]
    assert len(trials) <= 8
    assert ((trials["metric"] + trials["loss"]) - found.value_float).abs().max() < 1e-12  # type: ignore[operator]
    assert trials["chosen"].sum() == 1
    assert trials["int8_share"][0] == 0.0
    assert trials["cost"][0] == 1.0
    assert set(trials["unit"]) == {"relative"}
    assert "not a time" in found.cost_source
    shares = dict(zip(trials["assignment"], trials["int8_share"], strict=True))
    assert 0.95 < shares["minmax"] < 1
    for row in trials.iter_rows(named=True):
        assert row["cost"] == pytest.approx(1 - row["int8_share"] / 2)


def test_the_found_mix_is_the_fastest_that_is_allowed(found: Search) -> None:
    allowed = found.trials.filter(pl.col("loss") <= 0.02)
    assert found.reached
    assert found.best["cost"] == allowed["cost"].min()
    front = found.pareto()
    assert found.best["assignment"] in front["assignment"].to_list()
    assert front["cost"].is_sorted()
    assert front["metric"].is_sorted()


def test_repairs_make_less_noise_than_the_usual_ranges(found: Search) -> None:
    noise = dict(zip(found.trials["assignment"], found.trials["sqnr"], strict=True))
    assert noise["best ranges"] > max(noise["minmax"], noise["percentile 99.999"])
    assert any("cross-layer equalization: 0 pairs" in note for note in found.notes)
    assert found.layers["noise"].sum() == pytest.approx(1)
    assert sorted(found.layers["exclusion_rank"]) == list(range(1, 86))


def test_what_was_found_exports_to_the_graph_that_was_judged(
    found: Search, model: tk.Model, kept: Path, tmp_path: Path
) -> None:
    folder = found.save(tmp_path / "found")
    artifact = tk.export(
        model,
        "onnx",
        imgsz=SIDE,
        int8=True,
        keep=found.keep,
        calibration=folder / "calibration",
        output=tmp_path / "found.onnx",
    )
    metric = tk.evaluate(artifact, demo.data_path(), eval_images=8).metrics[found.metric]
    assert metric == pytest.approx(found.best["metric"], abs=1e-6)
    code = found.to_python(str(demo.model_path()), str(folder))
    assert all(pattern in code for pattern in found.keep)
    compile(code, "found", "exec")


def test_saved_loaded_and_shown(found: Search, tmp_path: Path) -> None:
    loaded = Search.load(found.save(tmp_path / "search"))
    assert loaded.trials.equals(found.trials)
    assert loaded.keep == found.keep
    assert loaded.calibration.hash == found.calibration.hash
    assert loaded.calibration.corrections == found.calibration.corrections
    assert repr(loaded) == repr(found)
    assert {"found", "nothing beats these"} <= {trace_.name for trace_ in loaded.plot().data}


def test_a_second_run_does_nothing_again(
    found: Search, model: tk.Model, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("this was done before")

    for name in ("state.evaluate", "bench.choose_ranges", "bench.bias_corrections"):
        monkeypatch.setattr(f"trtkit.tuning.{name}", refuse)
    again = search(model, demo.data_path(), 0.02, cache_dir=kept, backend="onnxruntime", **SETTINGS)  # type: ignore[arg-type]
    assert again.trials.drop("sqnr").equals(found.trials.drop("sqnr"))


def test_layers_are_given_up_until_the_loss_is_allowed(model: tk.Model, kept: Path) -> None:
    strict = search(
        model,
        demo.data_path(),
        0.0,
        cache_dir=kept,
        backend="onnxruntime",
        **{**SETTINGS, "trials": 9},  # type: ignore[arg-type]
    )
    counts = strict.trials.filter(pl.col("assignment").str.contains("layers kept"))["kept"]
    assert counts.is_sorted()
    if strict.best["kept"]:
        assert plan_qdq(trace(model, imgsz=(SIDE, SIDE)), strict.keep).layers != ()


def test_without_repair(model: tk.Model, calibration: Calibration) -> None:
    fast = Calibration(
        ranges=calibration.ranges, algorithm="minmax", images=8, split="train", provenance=calibration.provenance
    )
    settings = {**SETTINGS, "trials": 2}
    plain = search(
        model,
        demo.data_path(),
        0.5,
        calibration=fast,
        repair=False,
        backend="onnxruntime",
        **settings,  # type: ignore[arg-type]
    )
    assert plain.trials["assignment"].to_list() == ["fp16 throughout", "minmax"]
    assert plain.best["assignment"] == "minmax"
    with pytest.raises(CalibrationError, match="no histograms"):
        search(model, demo.data_path(), calibration=fast, backend="onnxruntime", **SETTINGS)  # type: ignore[arg-type]


def test_cancelled_while_choosing(model: tk.Model, calibration: Calibration) -> None:
    stop = threading.Event()

    def watch(event: Event) -> None:
        if event.stage == "choose each range":
            stop.set()

    with pytest.raises(CancelledError):
        search(model, demo.data_path(), calibration=calibration, progress=watch, cancel=stop, **SETTINGS)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{"max_drop": -0.1}, {"probe": 0}, {"trials": 0}])
def test_settings_out_of_range_are_refused(model: tk.Model, settings: dict[str, object]) -> None:
    with pytest.raises(RecipeError):
        search(model, demo.data_path(), **settings)  # type: ignore[arg-type]


def test_chosen_ranges_come_from_the_algorithms(model: tk.Model, calibration: Calibration) -> None:
    lab = LayerNoise(trace(model, imgsz=(SIDE, SIDE)), len(model.names), exact=False)
    images = [calibrating(model, index) for index in range(2)]
    candidates = (("minmax", None), ("percentile", 99.0))
    chosen = choose_ranges(lab, calibration, lambda: images, 2, Reporter(), candidates=candidates)
    read = {
        "minmax": calibration.with_algorithm("minmax"),
        "percentile-99": calibration.with_algorithm("percentile", percentile=99.0),
    }
    assert set(chosen.algorithms.values()) <= set(read)
    for group in group_tensors_by_scale(lab):
        source = read[chosen.algorithms[group[0]]]
        reach = max(max(map(abs, source.ranges[name])) for name in group)
        assert max(max(map(abs, chosen.calibration.ranges[name])) for name in group) == pytest.approx(reach)
    assert chosen.calibration.algorithm == "mixed"
    # Every scale of the placement belongs to exactly one group.
    assert sorted(name for group in group_tensors_by_scale(lab) for name in group) == sorted(lab.full_int8.tensors)
    insert_qdq(lab.graph, chosen.calibration.ranges, corrections=chosen.calibration.corrections)


def calibrating(model: tk.Model, index: int):  # type: ignore[no-untyped-def]
    from trtkit.calibration.sampling import load_input_batches
    from trtkit.data import open_dataset

    paths = open_dataset(demo.data_path(), task="detect").images("train")[index : index + 1]
    return next(iter(load_input_batches(paths, task="detect", size=(SIDE, SIDE), batch=1, skipped=[])))


def test_costs_come_from_engines_where_a_gpu_is(
    model: tk.Model, calibration: Calibration, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[dict[str, object]] = []

    def export(_: tk.Model, **settings: object) -> SimpleNamespace:
        asked.append(settings)
        return SimpleNamespace(path=settings["output"])

    def benchmark(runners: dict[str, object], **_: object) -> SimpleNamespace:
        row = {"runs": 100, "runner": "TensorRT 8.6.0 NVIDIA H100", "clock": "gpu"}
        return SimpleNamespace(samples=pl.DataFrame({"ms": [1.0, 3.0, 2.0]}), frame=lambda: pl.DataFrame([row]))

    monkeypatch.setattr("trtkit.exporter.export", export)
    monkeypatch.setattr("trtkit.evaluation.latency.benchmark", benchmark)
    engines = EngineCost(model, (SIDE, SIDE), tmp_path, batch=2, backend="tensorrt", reporter=Reporter())
    graph = trace(model, imgsz=(SIDE, SIDE))
    cost = engines(plan_qdq(graph), ["/model.0/*"], calibration)
    assert (cost.value, cost.unit) == (2.0, "ms")
    assert cost.source == "median of 100 runs at batch 2, TensorRT 8.6.0 NVIDIA H100, gpu clock"
    assert asked[0]["int8"]
    assert not asked[0]["half"]
    assert asked[0]["keep"] == ("/model.0/*",)
    assert asked[0]["calibration"] is calibration
    half = engines(plan_qdq(graph), ["*"], None)
    assert half.unit == "ms"
    assert asked[1]["half"]
    assert not asked[1]["int8"]


def test_the_cost_model_counts_int8_half(model: tk.Model) -> None:
    lab = LayerNoise(trace(model, imgsz=(SIDE, SIDE)), len(model.names))
    cost = ArithmeticCost(lab)(lab.full_int8, (), None)
    total = sum(lab.macs.values())
    inside = sum(lab.macs[name] for name in lab.full_int8.layers)
    assert cost.value == pytest.approx((inside / 2 + total - inside) / total)
    assert cost.unit == "relative"


def test_classify_is_searched_by_its_own_metric() -> None:
    found = search(
        demo.model_path("classify"),
        demo.data_path("classify"),
        0.05,
        eval_images=40,
        probe_images=2,
        resamples=50,
        calibration_images=8,
        trials=7,
        backend="onnxruntime",
    )
    assert found.metric == "top1"
    assert found.best["loss"] <= 0.05 or not found.reached
    assert found.trials["int8_share"].max() > 0.5  # type: ignore[operator]
