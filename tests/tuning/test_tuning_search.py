"""search() on the demo model: trials, choice, repair, resume, and what is exported."""

from __future__ import annotations

import shlex
import threading
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

import trtkit as tk
from trtkit import demo
from trtkit.calibration import Calibration
from trtkit.cli import parse_command
from trtkit.errors import CalibrationError, CancelledError, RecipeError
from trtkit.graph.qdq import insert_qdq, plan_qdq
from trtkit.graph.torch_export import trace
from trtkit.progress import Event, Reporter
from trtkit.results import SavedResult
from trtkit.tuning.corrections import choose_ranges, group_tensors_by_scale
from trtkit.tuning.measurement import ArithmeticCost, EngineCost
from trtkit.tuning.noise import LayerNoise
from trtkit.tuning.search import Search
from trtkit.tuning.search_loop import _take_layers, search

SIDE = 160
SETTINGS = {
    "eval_images": 8,
    "probe_images": 2,
    "imgsz": SIDE,
    "resamples": 30,
    "calibration_images": 8,
    "trials": 8,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("search")


@pytest.fixture(scope="module")
def result(model: tk.Model, cache: Path) -> Search:
    return search(model, demo.data_path(), 0.02, cache_dir=cache, backend="onnxruntime", **SETTINGS)  # type: ignore[arg-type]


def test_trials(result: Search) -> None:
    trials = result.frame()
    assert trials["assignment"][:5].to_list() == [
        "fp16",
        "minmax",
        "percentile 99.999",
        "per-tensor ranges",
        "per-tensor ranges, bias correction",
    ]
    assert len(trials) <= 8
    assert ((trials["metric"] + trials["loss"]) - result.value_float).abs().max() < 1e-12  # type: ignore[operator]
    assert trials["chosen"].sum() == 1
    assert trials["int8_share"][0] == 0.0
    assert trials["cost"][0] == 1.0
    assert set(trials["unit"]) == {"relative"}
    assert result.cost_source == ArithmeticCost.source
    shares = dict(zip(trials["assignment"], trials["int8_share"], strict=True))
    assert 0.95 < shares["minmax"] < 1
    for row in trials.iter_rows(named=True):
        assert row["cost"] == pytest.approx(1 - row["int8_share"] / 2)


def test_the_choice_is_the_fastest_accepted_trial(result: Search) -> None:
    allowed = result.trials.filter(pl.col("loss") <= 0.02)
    assert result.reached
    assert result.best["cost"] == allowed["cost"].min()
    front = result.pareto()
    assert result.best["assignment"] in front["assignment"].to_list()
    assert front["cost"].is_sorted()
    assert front["metric"].is_sorted()


def test_range_selection_reduces_noise(result: Search) -> None:
    noise = dict(zip(result.trials["assignment"], result.trials["sqnr"], strict=True))
    assert noise["per-tensor ranges"] > max(noise["minmax"], noise["percentile 99.999"])
    assert any("cross-layer equalization: 0" in note for note in result.notes)
    assert result.layers["noise_share"].sum() == pytest.approx(1)
    assert sorted(result.layers["exclusion_rank"]) == list(range(1, 86))


def test_the_choice_exports_to_the_evaluated_graph(
    result: Search, model: tk.Model, cache: Path, tmp_path: Path
) -> None:
    folder = result.save(tmp_path / "result")
    artifact = tk.export(
        model,
        "onnx",
        imgsz=SIDE,
        int8=True,
        keep=result.keep,
        calibration=folder / "calibration",
        output=tmp_path / "result.onnx",
    )
    metric = tk.evaluate(artifact, demo.data_path(), eval_images=8).metrics[result.metric]
    assert metric == pytest.approx(result.best["metric"], abs=1e-6)
    scope: dict[str, object] = {}
    calls: list[dict[str, object]] = []
    code = result.to_python("my.pt", "runs/search").replace("import trtkit as tk\n", "")
    exec(code, {"tk": SimpleNamespace(export=lambda **arguments: calls.append(arguments))}, scope)
    assert calls[0]["model"] == "my.pt"
    assert calls[0]["calibration"] == "runs/search/calibration"
    assert calls[0]["imgsz"] == (SIDE, SIDE)
    assert tuple(calls[0].get("keep", ())) == result.keep  # type: ignore[arg-type]
    _, options = parse_command(shlex.split(result.to_command("my.pt", "runs/search"))[1:])
    assert (options.model, options.int8, tuple(options.keep)) == ("my.pt", True, result.keep)


def test_save_load_and_plot(result: Search, tmp_path: Path) -> None:
    loaded = Search.load(result.save(tmp_path / "search"))
    assert loaded.trials.equals(result.trials)
    assert loaded.keep == result.keep
    assert loaded.calibration.hash == result.calibration.hash
    assert loaded.calibration.corrections == result.calibration.corrections
    assert repr(loaded) == repr(result)
    best = (result.best["cost"], result.best["metric"])
    assert best in [(trace_.x[0], trace_.y[0]) for trace_ in loaded.plot().data if len(trace_.x) == 1]


def test_a_search_of_format_version_1_loads(result: Search) -> None:
    tables = {
        "trials": result.trials.rename(
            {"assignment": "mix", "algorithm": "ranges", "bias_corrected": "corrected", "kept_layers": "kept"}
        ),
        "layers": result.layers.rename(
            {"noise_share": "noise", "algorithm": "ranges", "exclusion_rank": "excluded_as"}
        ),
    }
    upgraded = Search.upgrade(SavedResult(version=1, tables=tables, facts=dict(result.facts()), provenance={}))
    restored = Search.restore(upgraded.tables, upgraded.facts, result.provenance)
    assert restored.trials.equals(result.trials)
    assert restored.layers.equals(result.layers)


def test_a_second_run_uses_the_cache(
    result: Search, model: tk.Model, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("this step is cached")

    for name in ("measurement.evaluate", "noise_probe.choose_ranges", "noise_probe.compute_bias_corrections"):
        monkeypatch.setattr(f"trtkit.tuning.{name}", refuse)
    again = search(model, demo.data_path(), 0.02, cache_dir=cache, backend="onnxruntime", **SETTINGS)  # type: ignore[arg-type]
    assert again.trials.drop("sqnr").equals(result.trials.drop("sqnr"))


def test_layers_are_excluded_until_the_loss_is_accepted(model: tk.Model, cache: Path) -> None:
    strict = search(
        model,
        demo.data_path(),
        0.0,
        cache_dir=cache,
        backend="onnxruntime",
        **{**SETTINGS, "trials": 9},  # type: ignore[arg-type]
    )
    counts = strict.trials.filter(pl.col("assignment").str.contains("layers in fp16"))["kept_layers"]
    assert counts.is_sorted()
    if strict.best["kept_layers"]:
        assert plan_qdq(trace(model, imgsz=(SIDE, SIDE)), strict.keep).layers != ()


def test_without_repair(model: tk.Model, calibration: Calibration) -> None:
    fast = Calibration(
        ranges=calibration.ranges, algorithm="minmax", image_count=8, split="train", provenance=calibration.provenance
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
    assert plain.trials["assignment"].to_list() == ["fp16", "minmax"]
    assert plain.best["assignment"] == "minmax"
    with pytest.raises(CalibrationError) as missing:
        search(model, demo.data_path(), calibration=fast, backend="onnxruntime", **SETTINGS)  # type: ignore[arg-type]
    assert missing.value.code == "tuning-histograms-missing"


def test_cancelled_during_range_selection(model: tk.Model, calibration: Calibration) -> None:
    stop = threading.Event()

    def watch(event: Event) -> None:
        if event.stage == "choose ranges":
            stop.set()

    with pytest.raises(CancelledError):
        search(model, demo.data_path(), calibration=calibration, progress=watch, cancel=stop, **SETTINGS)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{"max_drop": -0.1}, {"probe_images": 0}, {"trials": 0}])
def test_settings_out_of_range_are_refused(model: tk.Model, settings: dict[str, float]) -> None:
    with pytest.raises(RecipeError) as refused:
        search(model, demo.data_path(), **settings)  # type: ignore[arg-type]
    ((name, value),) = settings.items()
    assert refused.value.fields["value"] == value
    assert refused.value.fields.get("name", "max_drop") == name


def test_chosen_ranges_come_from_the_algorithms(model: tk.Model, calibration: Calibration) -> None:
    layer_noise = LayerNoise(trace(model, imgsz=(SIDE, SIDE)), len(model.names), exact=False)
    images = list(load_inputs(model, 2))
    candidates = (("minmax", None), ("percentile", 99.0))
    chosen = choose_ranges(layer_noise, calibration, lambda: images, 2, Reporter(), candidates=candidates)
    calibrations = {
        "minmax": calibration.with_algorithm("minmax"),
        "percentile-99": calibration.with_algorithm("percentile", percentile=99.0),
    }
    assert set(chosen.algorithms.values()) <= set(calibrations)
    for group in group_tensors_by_scale(layer_noise):
        source = calibrations[chosen.algorithms[group[0]]]
        reach = max(max(map(abs, source.ranges[name])) for name in group)
        assert max(max(map(abs, chosen.calibration.ranges[name])) for name in group) == pytest.approx(reach)
    assert chosen.calibration.algorithm == "mixed"
    # Every scale of the placement belongs to exactly one group.
    assert sorted(name for group in group_tensors_by_scale(layer_noise) for name in group) == sorted(
        layer_noise.full_int8.tensors
    )
    insert_qdq(layer_noise.graph, chosen.calibration.ranges, corrections=chosen.calibration.corrections)


def load_inputs(model: tk.Model, count: int):  # type: ignore[no-untyped-def]
    from trtkit.calibration.sampling import load_input_batches
    from trtkit.data import open_dataset

    paths = open_dataset(demo.data_path(), task="detect").images("train")[:count]
    return load_input_batches(paths, preprocess=model.preprocess, size=(SIDE, SIDE), batch=1, skipped=[])


def test_cost_is_engine_latency_on_a_gpu(
    model: tk.Model, calibration: Calibration, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    exports: list[dict[str, object]] = []

    def export(_: tk.Model, **settings: object) -> SimpleNamespace:
        exports.append(settings)
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
    assert "TensorRT 8.6.0 NVIDIA H100" in cost.source
    assert exports[0]["int8"]
    assert not exports[0]["half"]
    assert exports[0]["keep"] == ("/model.0/*",)
    assert exports[0]["calibration"] is calibration
    half = engines(plan_qdq(graph), ["*"], None)
    assert half.unit == "ms"
    assert exports[1]["half"]
    assert not exports[1]["int8"]


def test_arithmetic_cost_counts_int8_half(model: tk.Model) -> None:
    layer_noise = LayerNoise(trace(model, imgsz=(SIDE, SIDE)), len(model.names))
    cost = ArithmeticCost(layer_noise.macs)(layer_noise.full_int8, (), None)
    total = sum(layer_noise.macs.values())
    inside = sum(layer_noise.macs[name] for name in layer_noise.full_int8.layers)
    assert cost.value == pytest.approx((inside / 2 + total - inside) / total)
    assert cost.unit == "relative"


def test_classify_is_searched_by_top1() -> None:
    result = search(
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
    assert result.metric == "top1"
    assert result.best["loss"] <= 0.05 or not result.reached
    assert result.trials["int8_share"].max() > 0.5  # type: ignore[operator]


@pytest.mark.parametrize(
    ("share", "taken"),
    [(0.0, ["big"]), (0.5, ["big"]), (0.89, ["big"]), (0.95, ["big", "small"]), (1.0, ["big", "small", "last"])],
)
def test_layers_up_to_a_share_of_the_arithmetic_and_one_at_least(share: float, taken: list[str]) -> None:
    noise = SimpleNamespace(macs={"big": 90, "small": 5, "last": 5})
    assert _take_layers(noise, ["big", "small", "last"], share) == taken  # type: ignore[arg-type]
