"""compare() end to end: the embedded model at a small size, through every step that runs with no GPU."""

import json
import threading

import polars as pl
import pytest

import trtkit
from trtkit.backends.capabilities import probe
from trtkit.comparison.comparison import Comparison
from trtkit.errors import CancelledError, CapabilityError, DataError, OutputExistsError, RecipeError
from trtkit.plotting.comparison import losses_figure

SMALL = {"imgsz": 160, "eval_images": 6, "calibration_images": 4, "runs": 5, "seconds": 0.2}
CAN_BUILD = probe("tensorrt_rtx").present


def compare(folder, **settings):
    return trtkit.compare(trtkit.demo.model_path(), trtkit.demo.data_path(), output=folder, **{**SMALL, **settings})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    events = []
    device = "sm89" if CAN_BUILD else None
    found = compare(folder, batch=(1, 2), device=device, backend=None, progress=events.append)
    return found, folder, events


def test_one_row_a_precision_and_batch_with_everything_in_it(whole):
    rows = whole[0].frame()
    assert rows.select("precision", "batch").rows() == [
        (name, size) for name in ("fp32", "fp16", "int8") for size in (1, 2)
    ]
    for column in (
        "mAP50-95(B)",
        "pycocotools/AP",
        "delta mAP50-95(B)",
        "delta pycocotools/AP",
        "p50_ms",
        "p99_ms",
        "onnx_mb",
    ):
        assert rows[column].null_count() == 0, column
    assert rows.filter(precision="fp32")["delta pycocotools/AP"].to_list() == [0.0, 0.0]
    for precision in ("fp16", "int8"):
        row, base = rows.filter(precision=precision).row(0, named=True), rows.row(0, named=True)
        assert row["delta pycocotools/AP"] == pytest.approx(row["pycocotools/AP"] - base["pycocotools/AP"])
    assert rows["runs"].to_list() == [5] * 6


@pytest.mark.skipif(probe("tensorrt").present and bool(probe("tensorrt").gpus), reason="engines run here")
def test_with_no_gpu_no_number_is_tensorrt_s(whole):
    comparison = whole[0]
    assert not comparison.rows["engine"].any()
    assert comparison.rows["runner"].str.starts_with("ONNX Runtime").all()
    assert "not TensorRT's" in " ".join(comparison.verdict())


def test_losses_tell_every_deciding_metric_with_its_interval(whole):
    comparison = whole[0]
    losses = comparison.losses()
    deciding = [column for column, _ in comparison.about["metrics"]]
    assert losses.select("task", "metric", "precision").rows() == [
        ("detect", metric, precision) for metric in deciding for precision in ("fp16", "int8")
    ]
    for row in losses.iter_rows(named=True):
        base, own = (comparison.evaluation(name).metrics[row["metric"]] for name in ("fp32", row["precision"]))
        assert row["value"] == pytest.approx(own)
        assert row["delta"] == pytest.approx(own - base)
        assert row["significant"] == (row["low"] > 0 or row["high"] < 0)


def test_a_precision_that_was_judged_can_be_opened_and_draws(whole):
    comparison = whole[0]
    image = comparison.images["path"][0]
    with comparison.open("int8") as runner:
        assert runner.precision == "int8"
        assert repr(runner.draw(image)).endswith(f"\n  {runner.predict(image)[0]!r}")
        assert len(runner.draw([image, image, image]).images) == 3
        with pytest.raises(DataError, match="no image"):
            runner.draw([])
    assert len(comparison.draw("int8", count=2).images) == 2
    with pytest.raises(RecipeError, match="not compared"):
        comparison.open("fp8")


def test_the_figure_of_losses_has_every_change_and_its_interval(whole):
    losses = whole[0].losses()
    figure = losses_figure(losses)
    assert whole[0].plot_losses() == figure
    assert [trace.name for trace in figure.data] == ["FP16", "INT8"]
    for trace, precision in zip(figure.data, ("fp16", "int8"), strict=True):
        mine = losses.filter(precision=precision)
        assert list(trace.x) == mine["delta"].to_list()
        assert list(trace.x + trace.error_x.array) == pytest.approx(mine["high"].to_list())
        assert list(trace.x - trace.error_x.arrayminus) == pytest.approx(mine["low"].to_list())


@pytest.mark.skipif(not CAN_BUILD, reason="TensorRT-RTX is not installed")
def test_engines_of_all_precisions_are_built_for_a_gpu_that_is_not_here(whole):
    comparison, folder, _ = whole
    assert comparison.rows["engine_mb"].null_count() == 0
    assert {facts["sm"] for facts in comparison.about["engines"].values()} == {"sm89"}
    for precision in ("fp32", "fp16", "int8"):
        passport = trtkit.backends.read_engine(folder / f"yolo11n-{precision}.engine").passport
        assert (passport.precision, passport.batch, passport.dynamic) == (precision, 2, True)


def test_accuracy_is_what_evaluate_finds(whole):
    comparison, folder, _ = whole
    alone = trtkit.evaluate(folder / "yolo11n-int8.onnx", trtkit.demo.data_path(), eval_images=SMALL["eval_images"])
    row = comparison.rows.filter(precision="int8").row(0, named=True)
    assert {name: row[name] for name in alone.metrics} == pytest.approx(dict(alone.metrics))


def test_the_folder_has_the_report_the_frame_and_the_recipe(whole):
    comparison, folder, _ = whole
    assert pl.read_parquet(folder / "comparison.parquet").equals(comparison.rows)
    assert comparison.verdict()[0].split(" ")[0] in (folder / "report.html").read_text(encoding="utf-8")
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe["verb"] == "compare"
    assert trtkit.Recipe.from_dict(recipe["recipes"]["int8"]["onnx"]).int8
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_loading_gives_the_same_comparison(whole):
    comparison, folder, _ = whole
    again = Comparison.load(folder)
    assert again.rows.equals(comparison.rows)
    assert again.verdict() == comparison.verdict()
    assert again.labels.equals(comparison.labels)
    assert again.provenance.model_hash == comparison.provenance.model_hash


def test_origin_and_replay_hold_every_setting_that_shaped_it(whole):
    comparison, folder, _ = whole
    settings = comparison.provenance.settings
    assert (settings["imgsz"], settings["batch"], settings["eval_images"]) == (160, [1, 2], 6)
    assert comparison.provenance.model_hash == trtkit.load(trtkit.demo.model_path()).hash
    assert len(comparison.provenance.data_hash) == 64
    calls = {}
    tk = type("tk", (), {"compare": staticmethod(lambda **given: calls.update(given))})
    exec(comparison.about["python"].replace("import trtkit as tk", ""), {"tk": tk})
    assert calls["output"] == str(folder)
    assert {name: calls[name] for name in ("imgsz", "eval_images", "runs")} == {"imgsz": 160, "eval_images": 6, "runs": 5}
    assert "--batch=1,2" in comparison.about["command"]


def test_calibration_is_told_with_its_split(whole):
    assert whole[0].about["calibration"]["split"] == "train"
    assert whole[0].about["calibration"]["images"] == 4


def test_progress_names_every_stage(whole):
    stages = " ".join(dict.fromkeys(event.stage for event in whole[2]))
    for word in (
        "load",
        "calibrate",
        "graph",
        "evaluate fp32",
        "evaluate int8",
        "benchmark batch 1",
        "benchmark batch 2",
        "done",
    ):
        assert word in stages


def test_a_comparison_that_is_there_is_kept_before_anything_runs(whole):
    with pytest.raises(OutputExistsError, match="overwrite=True"):
        compare(whole[1])


@pytest.mark.parametrize("wrong", [(), ("fp32", "fp32"), ("fp8",), "int4"])
def test_precisions_that_make_no_sense_are_refused(wrong, tmp_path):
    with pytest.raises(RecipeError, match="fp32, fp16, int8"):
        compare(tmp_path, precisions=wrong)


def test_building_what_can_t_be_built_fails_before_anything_runs(tmp_path):
    with pytest.raises(CapabilityError):
        compare(tmp_path / "out", build=True, device="cpu")
    assert not (tmp_path / "out").exists()


def test_without_fp32_the_first_precision_is_the_reference_and_without_build_nothing_is_built(tmp_path):
    found = compare(tmp_path, precisions=("fp16",), build=False, eval_images=2, imgsz=150)
    assert found.about["reference"] == "fp16"
    assert found.rows["engine_mb"].to_list() == [None]
    assert found.about["calibration"] is None
    assert "No TensorRT engine was built: none was asked for." in found.verdict()
    assert found.about["imgsz"] == [160, 160]
    assert "Note: imgsz 150 was rounded up to 160x160, a multiple of the stride 32." in found.verdict()


def test_cancelling_writes_no_comparison(tmp_path):
    cancel = threading.Event()

    def stop(event):
        if event.stage.startswith("evaluate"):
            cancel.set()

    with pytest.raises(CancelledError):
        compare(tmp_path, precisions=("fp32",), build=False, progress=stop, cancel=cancel)
    assert [path.name for path in tmp_path.iterdir()] == ["yolo11n-fp32.onnx"]


@pytest.mark.skipif(not CAN_BUILD, reason="TensorRT-RTX is not installed")
def test_where_engines_run_they_are_judged_and_timed_and_onnx_runtime_is_not(tmp_path, monkeypatch):
    from trtkit import backends
    from trtkit.backends.ort import OrtRunner

    opened = []

    class Engine(OrtRunner):
        """Stands for TensorRT: the graph beside the engine, with a clock of its own."""

        engine = True

        def __init__(self, path):
            super().__init__(path.with_suffix(".onnx"))
            self.name = "TensorRT 0.0 of this test"
            opened.append(path.name)

        def measure_gpu_times(self, feeds, runs):
            return [1.5] * runs

    monkeypatch.setattr(backends, "require_run", lambda backend, device=None: None)
    monkeypatch.setattr("trtkit.comparison.comparator._gpu_matches", lambda builder, sm: True)
    monkeypatch.setattr(backends, "open", lambda path, device=None: Engine(path))
    found = compare(tmp_path, precisions=("fp32", "fp16"), device="sm89", eval_images=2)
    assert opened == ["yolo11n-fp32.engine", "yolo11n-fp16.engine"]
    assert found.rows.select("engine", "clock", "mean_ms").unique().rows() == [(True, "gpu", 1.5)]
    assert "and they ran here." in " ".join(found.verdict())
    assert "not TensorRT" not in " ".join(annotation.text for annotation in found.plot().layout.annotations)
