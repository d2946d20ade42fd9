"""compare() end to end with the embedded model at a small size, without a GPU."""

import html
import json
import threading
from pathlib import Path

import onnx
import polars as pl
import pytest
from layer_rows import layer_rows
from raising import raises

import trtkit
from trtkit import cli
from trtkit.backends.capabilities import probe
from trtkit.comparison.comparison import Comparison
from trtkit.errors import CancelledError, CapabilityError, DataError, OutputError, OutputExistsError, RecipeError
from trtkit.evaluation.significance import ROUNDING_ERROR
from trtkit.evaluation.thresholds import threshold_facts
from trtkit.graph.onnx_file import read_trtkit_metadata
from trtkit.plotting.comparison import losses_figure

SMALL = {"imgsz": 96, "eval_images": 6, "calibration_images": 4, "runs": 5, "seconds": 0.2}
CAN_BUILD = probe("tensorrt_rtx").present


def compare(folder, **settings):
    return trtkit.compare(trtkit.demo.model_path(), trtkit.demo.data_path(), output=folder, **{**SMALL, **settings})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    events = []
    device = "sm89" if CAN_BUILD else None
    comparison = compare(folder, batch=(1, 2), device=device, backend=None, progress=events.append)
    return comparison, folder, events


def test_one_row_per_precision_and_batch(whole):
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
def test_without_a_gpu_no_latency_is_tensorrt_s(whole):
    comparison = whole[0]
    assert not comparison.rows["engine"].any()
    assert comparison.rows["runner"].str.starts_with("ONNX Runtime").all()
    assert "not TensorRT's" in " ".join(comparison.findings())
    assert {one.speed for one in comparison.verdicts.values()} == {"not measured"}


def test_the_stages_of_predict_are_timed_on_images_of_the_data(whole):
    frame = whole[0].timing().stage_frame()
    assert frame.select("label", "batch").unique(maintain_order=True).rows() == [
        (label, size) for size in (1, 2) for label in ("fp32", "fp16", "int8")
    ]
    assert set(frame["stage"]) == {"decode", "preprocess", "engine", "postprocess", "predict"}


def test_losses_have_every_primary_metric_with_its_interval(whole):
    comparison = whole[0]
    losses = comparison.losses()
    primary = [column for column, _ in comparison.about["metrics"]]
    assert losses.select("task", "metric", "precision").rows() == [
        ("detect", metric, precision) for metric in primary for precision in ("fp16", "int8")
    ]
    for row in losses.iter_rows(named=True):
        base, own = (comparison.evaluation(name).metrics[row["metric"]] for name in ("fp32", row["precision"]))
        assert row["value"] == pytest.approx(own)
        assert row["delta"] == pytest.approx(own - base)
        assert row["significant"] == (row["low"] > ROUNDING_ERROR or row["high"] < -ROUNDING_ERROR)


def test_an_evaluated_precision_can_be_opened_and_drawn(whole):
    comparison = whole[0]
    image = comparison.images["path"][0]
    with comparison.open("int8") as runner:
        assert runner.precision == "int8"
        assert repr(runner.draw(image)).endswith(f"\n  {runner.predict(image)[0]!r}")
        assert len(runner.draw([image, image, image]).images) == 3
        with pytest.raises(DataError):
            runner.draw([])
    assert len(comparison.draw("int8", count=2).images) == 2
    with pytest.raises(RecipeError) as e:
        comparison.open("fp8")
    assert (e.value.code, e.value.fields["value"]) == ("comparison-precision-unknown", "fp8")


def test_the_losses_figure_has_every_change_and_its_interval(whole):
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
def test_engines_are_built_for_a_gpu_that_is_not_here(whole):
    comparison, folder, _ = whole
    assert comparison.rows["engine_mb"].null_count() == 0
    assert {facts["sm"] for facts in comparison.about["engines"].values()} == {"sm89"}
    for precision in ("fp32", "fp16", "int8"):
        passport = trtkit.backends.read_engine(folder / f"yolo11t-{precision}.engine").passport
        assert (passport.precision, passport.batch, passport.dynamic) == (precision, 2, True)


def test_accuracy_is_that_of_evaluate(whole):
    comparison, folder, _ = whole
    alone = trtkit.evaluate(folder / "yolo11t-int8.onnx", trtkit.demo.data_path(), eval_images=SMALL["eval_images"])
    row = comparison.rows.filter(precision="int8").row(0, named=True)
    assert {name: row[name] for name in alone.metrics} == pytest.approx(dict(alone.metrics))


def test_thresholds_of_int8_are_in_its_files(whole, capsys):
    comparison = whole[0]
    assert comparison.thresholds["precision"].unique().to_list() == ["int8"]
    assert comparison.about["conf"] == 0.25
    expected = threshold_facts(comparison.thresholds, reference="fp16", conf=0.25, eval_images=SMALL["eval_images"])
    files = comparison.about["files"]
    assert read_trtkit_metadata(onnx.load(files["int8"]["onnx"]))["thresholds"] == expected
    assert "thresholds" not in read_trtkit_metadata(onnx.load(files["fp16"]["onnx"]))
    onnx.checker.check_model(files["int8"]["onnx"])
    assert comparison.rows.filter(precision="int8")["onnx_mb"][0] == Path(files["int8"]["onnx"]).stat().st_size / 1e6
    if "engine" in files["int8"]:
        engine = trtkit.backends.read_engine(files["int8"]["engine"])
        assert engine.metadata["trtkit"]["thresholds"] == expected
        assert cli.main(["engine", "show", files["int8"]["engine"]]) == 0
        assert "recall of fp16 at 0.25" in capsys.readouterr().out


def test_the_folder_has_report_frame_and_recipe(whole):
    comparison, folder, _ = whole
    assert pl.read_parquet(folder / "comparison.parquet").equals(comparison.rows)
    assert comparison.verdicts["int8"].recommendation in html.unescape((folder / "report.html").read_text("utf-8"))
    saved = json.loads((folder / "comparison.json").read_text())["facts"]["verdicts"]
    assert saved == json.loads(json.dumps({name: one.to_dict() for name, one in comparison.verdicts.items()}))
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe["verb"] == "compare"
    assert trtkit.Recipe.from_dict(recipe["recipes"]["int8"]["onnx"]).int8
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_loaded_comparison_equals_the_saved_one(whole):
    comparison, folder, _ = whole
    again = Comparison.load(folder)
    assert again.rows.equals(comparison.rows)
    assert (again.findings(), again.verdicts) == (comparison.findings(), comparison.verdicts)
    assert again.labels.equals(comparison.labels)
    assert again.provenance.model_hash == comparison.provenance.model_hash


def test_provenance_and_replay_code_have_every_setting(whole):
    comparison, folder, _ = whole
    settings = comparison.provenance.settings
    assert (settings["imgsz"], settings["batch"], settings["eval_images"]) == (96, [1, 2], 6)
    assert comparison.provenance.model_hash == trtkit.load(trtkit.demo.model_path()).hash
    assert len(comparison.provenance.data_hash) == 64
    calls = {}
    tk = type("tk", (), {"compare": staticmethod(lambda **given: calls.update(given))})
    exec(comparison.about["python"].replace("import trtkit as tk", ""), {"tk": tk})
    assert calls["output"] == str(folder)
    assert {name: calls[name] for name in ("imgsz", "eval_images", "runs")} == {
        "imgsz": 96,
        "eval_images": 6,
        "runs": 5,
    }
    assert "--batch=1,2" in comparison.about["command"]


def test_the_calibration_has_its_split(whole):
    assert whole[0].about["calibration"]["split"] == "train"
    assert whole[0].about["calibration"]["image_count"] == 4


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


def test_an_existing_comparison_is_kept(whole):
    with pytest.raises(OutputExistsError) as e:
        compare(whole[1])
    assert (e.value.code, e.value.fields["path"]) == ("comparison-exists", str(whole[1]))


@pytest.mark.parametrize("wrong", [(), ("fp32", "fp32"), ("fp8",), "int4"])
def test_invalid_precisions_are_refused(wrong, tmp_path):
    with pytest.raises(RecipeError) as e:
        compare(tmp_path, precisions=wrong)
    assert e.value.code == "argument-invalid"


def test_build_without_a_backend_fails_before_anything_runs(tmp_path):
    with pytest.raises(CapabilityError):
        compare(tmp_path / "out", build=True, device="cpu")
    assert not (tmp_path / "out").exists()


def test_without_fp32_the_first_precision_is_the_reference(tmp_path):
    comparison = compare(tmp_path, precisions=("fp16",), build=False, eval_images=2, imgsz=150)
    assert comparison.about["reference"] == "fp16"
    assert comparison.rows["engine_mb"].to_list() == [None]
    assert comparison.about["calibration"] is None
    assert comparison.about["builder"] is None
    assert comparison.about["why_not_built"] == "not requested"
    assert comparison.about["imgsz"] == [160, 160]
    assert "imgsz 150 was rounded up to 160x160" in " ".join(comparison.about["notes"])


def test_cancelling_writes_nothing_and_keeps_the_comparison_before(tmp_path, whole):
    cancel = threading.Event()
    before = {path.name: path.read_bytes() for path in whole[1].iterdir()}
    for name, content in before.items():
        (tmp_path / name).write_bytes(content)
    unfinished = []

    def stop(event):
        if event.stage.startswith("evaluate"):
            unfinished.extend(path.name for path in tmp_path.rglob("*.onnx") if path.parent != tmp_path)
            cancel.set()

    with pytest.raises(CancelledError):
        compare(tmp_path, precisions=("fp32",), build=False, overwrite=True, progress=stop, cancel=cancel)
    assert "yolo11t-fp32.onnx" in unfinished, "it is replaced when the whole comparison is, not before"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_files_of_a_comparison_have_their_final_names(whole):
    comparison, folder, _ = whole
    assert {path.name for path in folder.iterdir() if path.name.startswith(".")} == set()
    for precision, files in comparison.about["files"].items():
        for kind, path in files.items():
            assert path == str(folder / f"yolo11t-{precision}.{kind}")
            assert comparison.about["recipes"][precision][kind]["output"] == path
    assert ".trtkit" not in (folder / "comparison.json").read_text()
    proto = onnx.load(folder / "yolo11t-int8.onnx")
    assert read_trtkit_metadata(proto)["recipe"]["output"] == str(folder / "yolo11t-int8.onnx")


def test_an_output_that_cannot_be_written_is_told_before_the_model_is_read(tmp_path):
    (tmp_path / "file").write_text("")
    for folder, code in (
        (tmp_path / "file", "output-parent-not-folder"),
        (tmp_path / "file" / "x", "output-parent-not-folder"),
        (tmp_path / ("n" * 256), "output-name-too-long"),
    ):
        with raises(OutputError, code):
            trtkit.compare(tmp_path / "missing.pt", trtkit.demo.data_path(), output=folder)
    (tmp_path / "yolo11t-fp16.onnx").mkdir()
    with raises(OutputError, "output-is-folder", path=str(tmp_path / "yolo11t-fp16.onnx")):
        compare(tmp_path, build=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "yolo11t-fp16.onnx"]


@pytest.mark.skipif(not CAN_BUILD, reason="TensorRT-RTX is not installed")
def test_engines_that_run_are_evaluated_and_timed_instead_of_onnx_runtime(tmp_path, monkeypatch):
    from trtkit import backends
    from trtkit.backends.ort import OrtRunner

    opened = []

    class Engine(OrtRunner):
        """A stand-in for TensorRT: the graph beside the engine, with a GPU clock."""

        engine = True

        def __init__(self, path):
            super().__init__(path.with_suffix(".onnx"))
            self.name = "TensorRT 0.0 of this test"
            opened.append(path.name)

        def measure_gpu_times(self, feeds, runs):
            return [1.5] * runs

        def layers(self, *, runs=0):
            assert runs > 0
            return layer_rows(*((f"/{n}/Conv", "conv", f"/{n}/Conv", self.precision, 0.003) for n in range(9)))

    monkeypatch.setattr(backends, "require_run", lambda backend, device=None: None)
    monkeypatch.setattr("trtkit.comparison.engines._gpu_matches", lambda builder, sm: True)
    monkeypatch.setattr(backends, "open", lambda path, device=None: Engine(path))
    comparison = compare(tmp_path, precisions=("fp32", "fp16"), device="sm89", eval_images=2, opt_level=1)
    recipes = comparison.about["recipes"]["fp16"]
    assert (recipes["engine"]["opt_level"], recipes["onnx"]["opt_level"]) == (1, None)
    assert opened == ["yolo11t-fp32.engine", "yolo11t-fp16.engine"]
    assert comparison.rows.select("engine", "clock", "mean_ms").unique().rows() == [(True, "gpu", 1.5)]
    assert "they ran here" in " ".join(comparison.findings())
    assert "not measured" not in " ".join(annotation.text for annotation in comparison.plot().layout.annotations)
    assert comparison.layers.group_by("label", maintain_order=True).len().rows() == [("fp32", 9), ("fp16", 9)]
    verdict = Comparison.load(tmp_path).verdicts["fp16"]
    assert (verdict.speed, [cause.code for cause in verdict.causes]) == ("not faster", ["launch-bound", "small-batch"])
