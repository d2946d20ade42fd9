"""Every verb on every task, in Python and on the command line, with untrained models; and with a trained one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from fake_checkpoints import fake_ultralytics, write_checkpoint
from task_models import NAMES, POINTS, SIZES, drawn_set, untrained

import trtkit
from trtkit.cli import main
from trtkit.data import open_dataset
from trtkit.tasks import get_task

TASKS = ("detect", "segment", "pose", "obb", "classify")
OWN = {"segment": {"mask"}, "pose": {"keypoints"}, "obb": {"x", "y", "width", "height", "angle"}, "classify": {"rank"}}
BUILDS = importlib.util.find_spec("tensorrt_rtx") is not None


@pytest.mark.parametrize("task", TASKS)
def test_in_python(task, tmp_path):
    model, data = untrained(task), drawn_set(tmp_path / "set", task)
    metric = get_task(task).metric
    calibration = trtkit.calibrate(model, data, calibration_images=4)
    assert calibration.image_count == 4
    files = {
        name: trtkit.export(model, "onnx", output=tmp_path / f"{name}.onnx", **settings)
        for name, settings in {
            "fp32": {},
            "fp16": {"half": True},
            "int8": {"int8": True, "calibration": calibration},
            **({"nms": {"nms": True}} if task != "classify" else {}),
        }.items()
    }
    images = open_dataset(data, task=task).images("val")
    for name, file in files.items():
        assert file.precision == ("fp32" if name == "nms" else name)
        with trtkit.open(file) as runner:
            assert len(runner.predict(images)) == len(images)
    evaluations = {name: trtkit.evaluate(file, data, conf=0.25) for name, file in files.items()}
    assert all(metric in found.metrics for found in evaluations.values())
    # FP16 rounds scores slightly: only their order may change.
    assert evaluations["fp16"].metrics[metric] == pytest.approx(evaluations["fp32"].metrics[metric], abs=0.1)
    found = trtkit.sweep(model, data, algorithms=("minmax",), calibration_images=(4,), resamples=20)
    assert found.metric == metric
    assert found.best["loss_low"] <= found.best["loss_high"]
    times = trtkit.benchmark({name: file.path for name, file in files.items()}, runs=3, seconds=0.05).frame()
    assert set(times["label"]) == set(files)
    assert (times["mean_ms"] > 0).all()


@pytest.mark.slow
def test_a_trained_model_on_the_command_line(shared, tmp_path, capsys, monkeypatch):
    """Segment: boxes as of detect, and masks; `tests/backends` builds its engines."""
    model, data = shared / "models" / "yolo11n-seg.pt", shared / "data" / "scenes" / "segment" / "data.yaml"
    found = run_every_command(model, data, "segment", 96, tmp_path, capsys, monkeypatch, build=False)
    assert found == [True, True]


@pytest.mark.parametrize("task", TASKS)
def test_on_the_command_line(task, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        fake_ultralytics(patch)
        model = write_checkpoint(tmp_path / "model.pt", task, NAMES, SIZES[task], POINTS)
    data = drawn_set(tmp_path / "set", task)
    # Weights made from names score much of an image as objects, and its columns are there.
    assert all(run_every_command(model, data, task, SIZES[task], tmp_path, capsys, monkeypatch))


def run_every_command(model, data, task, size, folder, capsys, monkeypatch, *, build=BUILDS):
    """Run the commands from calibration to benchmark; return whether predict found objects, without NMS and with it."""
    monkeypatch.chdir(folder)
    metric = get_task(task).metric

    def run_cli(*words):
        capsys.readouterr()
        assert main([str(word) for word in words]) == 0
        return capsys.readouterr().out

    assert "Calibration" in run_cli("calibrate", model, data, "--calibration-images", 4, "--imgsz", size)
    nms = () if task == "classify" else ("--nms",)
    assert "fp16 onnx" in run_cli(
        "export", model, "--format=onnx", "--imgsz", size, "--half", *nms, "--output=nms.onnx"
    )
    if build:
        words = ("--imgsz", size, "--device=sm89", "--int8", "--calibration=runs/calibrate")
        assert "int8 engine" in run_cli("export", model, *words, "--output=int8.engine")
        assert task in run_cli("engine", "show", "int8.engine")
    out = run_cli(
        "compare", model, data, "--imgsz", size, "--eval-images=8", "--calibration=runs/calibrate", "--no-build",
        "--runs=2", "--seconds=0.01", "-v",
    )  # fmt: skip
    assert metric in out
    report = Path("runs/compare/report.html")
    report.unlink()
    assert run_cli("report", "runs/compare").strip() == str(report)
    page = report.read_text(encoding="utf-8")
    assert "Changed objects" in page
    assert "FP16" in page
    files = sorted(Path("runs/compare").glob("*.onnx"))
    images = open_dataset(data, task=task).images("val")[:2]
    found = []
    for file in (files[-1], "nms.onnx"):
        out = run_cli("predict", file, *images, "--conf=0.01")
        assert all(str(path) in out for path in images)
        drawn = folder / "runs" / "predict"
        assert all((drawn / f"{path.stem}.jpg").stat().st_size > 1000 for path in images)
        frame = pl.read_parquet("runs/predict/predictions.parquet")
        assert set(frame["path"]) <= {str(path) for path in images}
        assert {"path", "class", "name", "score"} | (OWN.get(task, set()) if len(frame) else set()) <= set(
            frame.columns
        )
        found.append(len(frame) > 0)
    assert metric in run_cli("evaluate", files[-1], data, "--eval-images=8")
    assert "ms/image" in run_cli("benchmark", *files, "--runs=2", "--seconds=0.01")
    return found


@pytest.mark.parametrize("task", TASKS)
def test_tuning_on_the_command_line(task, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = drawn_set(tmp_path / "set", task)
    trtkit.export(untrained(task), "onnx", output="model.onnx")
    few = ("--eval-images=4", "--resamples=20")
    for words in (
        ("sensitivity", "model.onnx", data, "--probe-images=2", "--worst=1"),
        ("search", "model.onnx", data, *few, "--trials=3", "--probe-images=2", "--calibration-images=4"),
    ):
        capsys.readouterr()
        assert main([str(word) for word in words]) == 0
        assert get_task(task).metric in capsys.readouterr().out
        assert (tmp_path / "runs" / words[0] / f"{words[0]}.html").is_file()


def test_predict_writes_and_prints_its_detections(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = drawn_set(tmp_path / "set", "detect")
    path = trtkit.export(untrained("detect"), "onnx", output=tmp_path / "a.onnx").path
    assert main(["predict", str(path), str(tmp_path / "set" / "images" / "val"), "--conf=0.2", "--output=seen"]) == 0
    out = capsys.readouterr().out
    frame = pl.read_parquet("seen/predictions.parquet")
    with trtkit.open(path) as runner:
        expected = runner.predict(open_dataset(data, task="detect").images("val"), conf=0.2)
    assert len(frame) == sum(len(one) for one in expected)
    np.testing.assert_allclose(frame["score"], np.concatenate([one.scores for one in expected]))
    for name, count in frame["name"].value_counts().iter_rows():
        assert name in out
        assert count
    assert main(["predict", str(path), str(tmp_path / "set" / "images" / "val"), "--conf=0.99"]) == 0
    assert "none" in capsys.readouterr().out
    assert not len(pl.read_parquet("runs/predict/predictions.parquet"))


def test_predict_refuses_a_folder_without_images(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["predict", "a.onnx", str(tmp_path / "empty")]) == 2
    assert str(tmp_path / "empty") in capsys.readouterr().err


def test_report_of_no_comparison(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "there is no comparison.json" in capsys.readouterr().err


def test_sizes_are_multiples_of_the_stride():
    assert all(size % 32 == 0 for size in SIZES.values())
