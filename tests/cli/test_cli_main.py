import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import onnx
import polars as pl
import pytest
import tiny_graphs
from raising import raises
from rich.console import Console

import trtkit
from trtkit import backends
from trtkit.backends import Capabilities, read_engine, write_engine
from trtkit.backends.engine_file import Passport, add_engine_metadata
from trtkit.cli import COMMANDS, main, model_commands, parse_command
from trtkit.cli import output as cli_output
from trtkit.cli.output import Outcome, ProgressBars
from trtkit.errors import CancelledError, EngineError
from trtkit.files import hash_parts
from trtkit.models.model import ModelInfo
from trtkit.progress import Event


def test_help_lists_commands_and_examples(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^  {verb}\s", text, re.MULTILINE) for verb in COMMANDS)
    assert "trtkit export yolo11n.pt --int8 --data coco.yaml" in text
    assert max(map(len, text.splitlines())) <= 80


def test_help_without_a_command(capsys):
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 0
    assert "usage: trtkit" in capsys.readouterr().out


def test_the_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"trtkit {trtkit.__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["export"],
        ["doctor", "--loud"],
        ["compare", "a.pt"],
        ["engine"],
        ["export", "a.pt", "--format", "tflite"],
        ["calibrate", "a.pt", "--algorithm", "best"],
        ["compare", "a.pt", "b.yaml", "--precisions", "fp16,int4"],
        ["evaluate", "a.onnx", "b.yaml", "--split", "validate"],
    ],
)
def test_invalid_words_end_with_2(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_an_error_is_one_line_and_status_2(capsys, tmp_path):
    assert main(["export", str(tmp_path / "no.pt"), "--format", "onnx"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert lines[-1].startswith("trtkit: ")
    assert lines[-1].endswith(".")
    assert "Traceback" not in captured.err


def test_half_and_int8_together_are_refused(capsys, tmp_path):
    assert main(["export", str(trtkit.demo.model_path()), "--half", "--int8"]) == 2
    assert "int8" in capsys.readouterr().err.lower()


def test_a_file_with_an_equals_sign_in_its_name_has_no_label(monkeypatch, tmp_path):
    files = {}
    monkeypatch.chdir(tmp_path)
    Path("a=b.onnx").write_bytes(b"")
    monkeypatch.setattr(model_commands, "call_with_options", lambda *_, runners: files.update(runners))
    monkeypatch.setattr(model_commands, "_save", lambda *_: Outcome(show=lambda: None))
    assert main(["benchmark", "a=b.onnx", "x=a=b.onnx"]) == 0
    assert files == {"a=b.onnx": "a=b.onnx", "x": "a=b.onnx"}


def test_two_files_of_one_label_are_refused(capsys):
    assert main(["benchmark", "a/x.onnx", "b/x.onnx"]) == 2
    assert "LABEL=FILE" in capsys.readouterr().err


def test_an_existing_comparison_is_kept(capsys, tmp_path):
    (tmp_path / "comparison.json").write_text("{}")
    words = ["compare", str(trtkit.demo.model_path()), str(trtkit.demo.data_path()), "--output", str(tmp_path)]
    assert main(words) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["comparison.json"]


def test_doctor_lists_backends(capsys):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "cores" in text
    for title in ("TensorRT", "TensorRT-RTX", "ONNX Runtime"):
        assert re.search(rf"^{title}\b", text, re.MULTILINE)
    assert text.count("builds") == 4
    assert f"trtkit {trtkit.__version__}" in text


def test_demo_compares_the_embedded_model(monkeypatch, tmp_path):
    arguments = {}

    def stop(model, data, **settings):
        arguments.update(settings, model=model, data=data)
        raise CancelledError("compare")

    monkeypatch.setattr("trtkit.comparison.comparator.compare", stop)
    assert main(["demo", "--output", str(tmp_path)]) == 130
    assert (arguments["model"], arguments["data"]) == (trtkit.demo.model_path(), trtkit.demo.data_path())
    assert arguments["output"] == tmp_path
    assert arguments["overwrite"]
    assert arguments["device"] in (None, trtkit.demo.DEVICE)


@pytest.fixture
def engine(tmp_path):
    plan = b"vtrt" + bytes(60)
    passport = Passport(
        backend="tensorrt_rtx", tensorrt="0.0.1", sm="sm89", precision="fp16", plan_hash=hash_parts(plan), plan_size=64
    )
    return write_engine(tmp_path / "a.engine", plan, ModelInfo(task="detect", names={0: "cat"}), passport)


def test_engine_show_prints_the_passport(engine, capsys):
    assert main(["engine", "show", str(engine)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^precision +fp16", text, re.MULTILINE)
    assert re.search(r"^sm +sm89", text, re.MULTILINE)
    assert hash_parts(b"vtrt" + bytes(60)) in text


@pytest.mark.parametrize("thresholds", ["x", ["recall"], {"recall": "y"}, {"recall": {"all": None, "classes": 3}}])
def test_engine_show_prints_what_others_wrote_into_thresholds(engine, capsys, thresholds):
    add_engine_metadata(engine, {"thresholds": thresholds})
    assert main(["engine", "show", str(engine)]) == 0
    shown = capsys.readouterr()
    assert re.search(r"^sm +sm89", shown.out, re.MULTILINE)
    assert ("recall of None at None" in shown.out) == (isinstance(thresholds, dict) and thresholds["recall"] != "y")
    assert main(["engine", "show", str(engine), "--json"]) == 0


def test_engine_check_fails_on_another_machine(engine, capsys):
    assert main(["engine", "check", str(engine)]) == 2
    assert re.search(r"0\.0\.1|not installed|no NVIDIA driver", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"weights": "stripped"}, "engine-weights-stripped"),
        ({"compatibility": "version"}, "engine-host-code"),
        ({}, ""),
    ],
)
def test_engine_check_fails_where_the_engine_would_not_open(engine, monkeypatch, changes, code):
    """This machine is the one that it was built for."""
    monkeypatch.delenv("TRTKIT_HOST_CODE", raising=False)
    file = read_engine(engine)
    write_engine(engine, file.plan, file.info(), dataclasses.replace(file.passport, **changes))
    there = Capabilities(backend="tensorrt_rtx", present=True, version="0.0.1")
    monkeypatch.setattr(backends, "probe", lambda name: there)
    monkeypatch.setattr(backends, "require_run", lambda name, device: there)
    command, values = parse_command(["engine", "check", str(engine)])
    if not code:
        assert command(values, threading.Event()).facts["runs"]
        return
    with raises(EngineError, code, path=engine):
        command(values, threading.Event())


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--gpu", "RTX 4090"], 0),
        (["--gpu", "sm89", "--tensorrt", "0.0.1"], 0),
        (["--gpu", "RTX 3090"], 2),
        (["--tensorrt", "0.0.2"], 2),
        (["--gpu", "a Voodoo"], 2),
    ],
)
def test_engine_check_answers_for_another_machine(engine, capsys, options, code):
    assert main(["engine", "check", str(engine), *options]) == code
    printed = capsys.readouterr()
    assert ("sm89" in printed.out) is (code == 0)
    assert bool(printed.err) is (code == 2)


def test_engine_check_for_another_machine_needs_a_passport(engine, tmp_path, capsys):
    assert main(["engine", "strip", str(engine), str(tmp_path / "a.plan")]) == 0
    assert main(["engine", "check", str(tmp_path / "a.plan"), "--gpu", "L4"]) == 2
    assert "passport" in capsys.readouterr().err


def test_engine_refit_refuses_fixed_weights(engine, tmp_path, capsys):
    assert main(["engine", "refit", str(engine), "a.onnx", str(tmp_path / "b.engine")]) == 2
    assert "--weights" in capsys.readouterr().err
    assert not (tmp_path / "b.engine").exists()


def test_engine_strip_and_wrap_are_inverse(engine, tmp_path, capsys):
    plan, again = tmp_path / "a.plan", tmp_path / "b.engine"
    assert main(["engine", "strip", str(engine), str(plan)]) == 0
    assert plan.read_bytes() == b"vtrt" + bytes(60)
    assert main(["engine", "strip", str(engine), str(plan)]) == 2
    like = str(trtkit.demo.model_path())
    assert main(["engine", "wrap", str(plan), str(again), "--like", like, "--imgsz", "320", "--batch", "4"]) == 0
    data = again.read_bytes()
    header = json.loads(data[4 : 4 + int.from_bytes(data[:4], "little")])
    assert (header["task"], header["imgsz"], header["batch"]) == ("detect", [320, 320], 4)
    assert data.endswith(plan.read_bytes())


@pytest.mark.parametrize("terminal", [True, False])
def test_a_finished_stage_is_one_line(terminal, monkeypatch):
    monkeypatch.setattr(cli_output, "SHORTEST_STEP", 0.05)
    sink = io.StringIO()
    with ProgressBars(Console(file=sink, force_terminal=terminal, color_system=None, width=80)) as bars:
        for done in range(3):
            bars(Event(stage="calibrate", done=done, total=3))
            time.sleep(0.03)
        bars(Event(stage="build", done=0))
        time.sleep(0.06)
    lines = re.split(r"[\r\n]|\x1b\[[0-9;?]*[A-Za-z]", sink.getvalue())
    found = [match[1] for match in map(re.compile(r"(\w+): [0-9.]+ s").fullmatch, lines) if match]
    assert found == ["calibrate", "build"]


def test_a_long_stage_is_never_silent_in_a_pipe(monkeypatch, capsys):
    monkeypatch.setattr(cli_output, "BEAT", 0.02)
    monkeypatch.setattr(cli_output, "SHORTEST_STEP", 0.05)
    sink = io.StringIO()
    with ProgressBars(Console(file=sink)) as bars:
        bars(Event(stage="build", done=0))
        time.sleep(0.3)
        # Another line ends the open one; the stage goes on below it.
        cli_output.print_error("a note")
        before = sink.getvalue()
        time.sleep(0.2)
    assert re.fullmatch(r"build: \.{3,}\n", before)
    assert re.fullmatch(r"build: \.+ [0-9.]+ s\n", sink.getvalue().removeprefix(before))
    assert capsys.readouterr().err == "a note\n"


def test_the_running_stage_fits_eighty_columns():
    sink = io.StringIO()
    console = Console(file=sink, force_terminal=True, color_system=None, width=80)
    with ProgressBars(console) as bars:
        for stage in (f"evaluate stage {number}" for number in range(30)):
            bars(Event(stage=stage, done=399, total=400))
            time.sleep(0.06)
        bars.live.refresh()
    drawn = [
        line for line in re.split(r"[\r\n]|\x1b\[[0-9;?]*[A-Za-z]", sink.getvalue()) if " · 399 of 400 · 0:0" in line
    ]
    assert drawn
    assert max(map(len, drawn)) <= 80


@pytest.mark.skipif(os.name == "nt", reason="signals of a POSIX shell")
def test_ctrl_c_ends_with_130_and_leaves_no_file(tmp_path):
    model, data = trtkit.demo.model_path("classify"), trtkit.demo.data_path("classify")
    words = ["compare", model, data, "--output", tmp_path / "out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "trtkit", *map(str, words)], stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    for line in process.stderr:
        if line.startswith("load:"):
            break
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(60) == 130
    assert "stopped" in rest
    assert "Traceback" not in rest
    left = [path for path in Path(tmp_path).rglob("*") if path.is_file()]
    assert not [path for path in left if path.name.startswith(".") or path.name == "comparison.json"]


def test_calibrate_writes_a_tensorrt_cache(tmp_path, capsys):
    model, data = str(trtkit.demo.model_path()), str(trtkit.demo.data_path())
    words = [model, data, "--calibration-images=2", "--imgsz=64", "--device=cpu"]
    places = ["--output", str(tmp_path / "calibration"), "--tensorrt-cache", str(tmp_path / "model.cache")]
    assert main(["calibrate", *words, *places]) == 0
    calibration = trtkit.Calibration.load(tmp_path / "calibration")
    assert (tmp_path / "model.cache").read_text() == calibration.to_tensorrt_cache()
    assert "model.cache" in capsys.readouterr().out


def test_calibrate_keeps_an_existing_calibration(tmp_path, capsys):
    (tmp_path / "calibration.json").write_text("{}")
    assert main(["calibrate", str(trtkit.demo.model_path()), "--output", str(tmp_path)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "calibration.json").read_text() == "{}"


def test_evaluate_int8_prints_and_saves(tmp_path, capsys):
    model, data = str(trtkit.demo.model_path()), str(trtkit.demo.data_path())
    words = ["--calibration-images=2", "--eval-images=2", "--resamples=2", "--imgsz=64", "--output", str(tmp_path)]
    assert main(["evaluate-int8", model, data, *words]) == 0
    saved = trtkit.Int8Evaluation.load(tmp_path)
    assert saved.image_count == 2
    assert f"{saved.value:.4f}" in capsys.readouterr().out
    assert (tmp_path / "int8_evaluation.html").is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has names that are not UTF-8")
def test_predict_escapes_names_that_are_not_utf8(tmp_path, capsys):
    image = cv2.imencode(".png", np.full((8, 8, 3), 90, np.uint8))[1].tobytes()
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(image)
    onnx.save(tiny_graphs.detector(dynamic=True), tmp_path / "m.onnx")
    words = ["predict", str(tmp_path / "m.onnx"), str(tmp_path), "--output", str(tmp_path / "out"), "--conf=0.001"]
    assert main(words) == 0
    assert r"caf\udce9.png" in capsys.readouterr().out
    assert (tmp_path / "out" / r"caf\udce9.jpg").is_file()
    frame = pl.read_parquet(tmp_path / "out/predictions.parquet")
    assert frame["path"].unique().to_list() == [str(tmp_path / r"caf\udce9.png")]


def test_predict_skips_unreadable_images_and_keeps_subfolders(tmp_path, monkeypatch, capsys):
    image = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    names = ("a/x.png", "b/x.png", "b/y.png", "b/y.bmp", "z.png")
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(image)
    (tmp_path / "in/empty.jpg").write_bytes(b"")
    (tmp_path / "in/cut.png").write_bytes(image[:-8])
    onnx.save(tiny_graphs.detector(dynamic=True), tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    words = ["predict", "m.onnx", "in", "--output", "out"]
    assert main(words) == 0
    text = capsys.readouterr()
    assert "2 images were skipped" in text.err
    assert "empty.jpg: the file is empty" in text.err
    drawn = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.jpg"))
    assert drawn == ["a/x.jpg", "b/x.jpg", "b/y.bmp.jpg", "b/y.png.jpg", "z.jpg"]
    assert "5 drawn images" in text.out
    for name in names:
        (tmp_path / "in" / name).write_bytes(b"")
    assert main(words) == 2
    assert "the file is empty" in capsys.readouterr().err


def test_predict_takes_the_task_of_a_file_that_names_none(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(tiny_graphs.detector(describe=False), "plain.onnx")
    cv2.imwrite("a.png", tiny_graphs.images(1)[0])
    words = ["predict", "plain.onnx", "a.png", "--output", "out", "--conf=0.001"]
    assert main(words) == 2
    assert "--task" in capsys.readouterr().err
    assert main([*words, "--task", "detect", "--backend", "onnxruntime", "--device", "cpu"]) == 0
    assert len(pl.read_parquet("out/predictions.parquet"))
    # As in Python, a backend that does not read the file says so.
    assert main([*words, "--task", "detect", "--backend", "tensorrt"]) == 2
    with pytest.raises(SystemExit):
        main([*words, "--task", "detection"])


def test_predict_takes_urls_beside_files(tmp_path, monkeypatch, capsys):
    image = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    content = cv2.imencode(".png", image)[1].tobytes()
    asked = []

    def read_url(url):
        asked.append(url)
        return content

    monkeypatch.setattr("trtkit.data.image_arguments.read_url", read_url)
    monkeypatch.chdir(tmp_path)
    Path("bus.png").write_bytes(content)
    onnx.save(tiny_graphs.detector(dynamic=True), "m.onnx")
    url = "https://example.org/images/bus.jpg?size=1"
    assert main(["predict", "m.onnx", url, "bus.png", "--output", "out", "--conf=0.001"]) == 0
    assert asked == [url]
    assert "2 drawn images" in capsys.readouterr().out
    assert {path.name for path in Path("out").glob("*.jpg")} == {"bus.jpg.jpg", "bus.png.jpg"}
    frame = pl.read_parquet("out/predictions.parquet")
    by_path = frame.partition_by("path", as_dict=True, include_key=False)
    assert set(by_path) == {(url,), ("bus.png",)}
    assert by_path[url,].drop("image", strict=False).equals(by_path["bus.png",].drop("image", strict=False))


@pytest.mark.parametrize(
    "words",
    [
        ["calibrate", "missing.pt", "--data", "d.yaml"],
        ["predict", "missing.onnx", "x.jpg"],
        ["evaluate", "missing.onnx", "--data", "d.yaml"],
        ["benchmark", "missing.onnx"],
        ["compare", "missing.pt", "--data", "d.yaml"],
        ["sweep", "missing.pt", "--data", "d.yaml"],
        ["sensitivity", "missing.pt", "--data", "d.yaml"],
        ["search", "missing.pt", "--data", "d.yaml"],
        ["selftest"],
    ],
)
def test_an_output_that_cannot_be_written_is_told_before_the_work(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for output in ("file/x/y", "n" * 256, "file" if words != ["selftest"] else "file/x"):
        assert main([*words, "--output", output]) == 2
        assert capsys.readouterr().err.startswith(f"trtkit: write {output[:100]}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
