"""zoo(): rows, isolated failures, bad input before the work, resuming and damaged rows."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import threading
import types
from pathlib import Path

import polars as pl
import pytest
from coco_layout import write_coco
from raising import raises
from task_models import drawn_set, untrained
from zoo_kit import SMALL

import trtkit
from trtkit.errors import CancelledError, CapabilityError, DataError, RecipeError
from trtkit.evaluation.bootstrap import resample_metric
from trtkit.evaluation.significance import compute_interval
from trtkit.model_zoo import zoo as module
from trtkit.model_zoo.rows import ROW_FILE, RowJob


def measure(kit, folder, models=None, **settings):
    return trtkit.zoo(models or kit.models, kit.data, output=folder, **{**SMALL, **settings})


@pytest.fixture(scope="module")
def whole(kit, tmp_path_factory):
    """A zoo of two models, and one that can't be read."""
    folder = tmp_path_factory.mktemp("zoo") / "out"
    broken = folder.parent / "broken.onnx"
    broken.write_bytes(b"no graph")
    return measure(kit, folder, [*kit.models, str(broken)]), folder, broken


@pytest.fixture(scope="module")
def rows_of(whole):
    return {(row["model"], row["precision"]): row for row in whole[0].frame().iter_rows(named=True)}


def test_one_row_per_model_and_precision_and_one_for_the_failure(rows_of):
    assert list(rows_of) == [
        ("tiny-detect", "fp32"), ("tiny-detect", "int8"), ("tiny-classify", "fp32"), ("tiny-classify", "int8"),
        ("broken", None),
    ]  # fmt: skip
    assert rows_of["broken", None]["status"] == "failed"
    assert rows_of["broken", None]["error_code"] == "onnx-damaged"
    assert {row["status"] for key, row in rows_of.items() if key[0] != "broken"} == {"done"}


def test_rows_have_hashes_sizes_and_no_latency_without_a_gpu(whole, rows_of):
    _, folder, _ = whole
    for (model, precision), row in rows_of.items():
        if model == "broken":
            continue
        file = folder / row["file"]
        assert row["size_mb"] == file.stat().st_size / 1e6
        assert row["p50_ms"] is None
        assert row["gpu"] is None
        assert len(row["file_hash"]) == len(row["model_hash"]) == len(row["data_hash"]) == 64
        assert (row["calibration_hash"] is None) == (precision == "fp32")
        assert (row["delta"] is None) == (precision == "fp32")
        assert json.loads(row["versions"])["onnxruntime"]
    assert "/first/first.0/Conv" not in str(rows_of["tiny-detect", "int8"]["excluded"])
    assert "(dfl)" in str(rows_of["tiny-detect", "int8"]["excluded"])


def test_the_value_is_that_of_evaluate_with_its_bootstrap_interval(whole, rows_of, kit):
    row = rows_of["tiny-detect", "int8"]
    evaluation = trtkit.evaluate(whole[1] / row["file"], kit.data["detect"])
    assert json.loads(row["metrics"]) == evaluation.metrics
    expected = compute_interval(resample_metric(evaluation, row["metric"], resamples=20))
    assert (row["value"], row["low"], row["high"]) == (expected.value, expected.low, expected.high)


def test_a_saved_zoo_loads_as_it_was(whole):
    zoo, folder, _ = whole
    loaded = trtkit.Zoo.load(folder)
    assert loaded.rows.equals(zoo.rows)
    assert loaded.timings.equals(zoo.timings)
    assert loaded.about == zoo.about
    assert repr(loaded) == repr(zoo)
    assert "1 failed" in repr(zoo).splitlines()[0]
    assert "not measured" in repr(zoo)
    rows = json.loads((folder / "zoo.json").read_text())["facts"]["rows"]
    assert [row["value"] for row in rows] == zoo.rows["value"].to_list()
    assert (folder / "zoo.md").read_text() == zoo.to_markdown()


def test_finished_rows_are_kept_and_damaged_ones_measured_again(whole, kit, tmp_path):
    zoo, folder, broken = whole
    copy = tmp_path / "out"
    shutil.copytree(folder, copy)
    rows = {path.name: path for path in (copy / "rows").iterdir()}
    damaged = {
        "row": next(path for name, path in rows.items() if name.startswith("tiny-detect-64x64-fp32")),
        "file": next(path for name, path in rows.items() if name.startswith("tiny-classify-32x32-fp32")),
        "table": next(path for name, path in rows.items() if name.startswith("tiny-classify-32x32-int8")),
    }
    content = json.loads((damaged["row"] / ROW_FILE).read_text())
    content["facts"]["metrics"]["mAP50-95(B)"] = 0.99
    (damaged["row"] / ROW_FILE).write_text(json.dumps(content))
    for path in (*damaged["file"].glob("*.onnx"), damaged["table"] / "evaluation.labels.parquet"):
        path.write_bytes(path.read_bytes()[:-9])
    stamps = {name: (path / ROW_FILE).stat().st_mtime_ns for name, path in rows.items()}
    events = []
    again = measure(kit, copy, [*kit.models, str(broken)], progress=events.append)
    redone = {name for name, path in rows.items() if (path / ROW_FILE).stat().st_mtime_ns != stamps[name]}
    assert redone == {path.name for path in damaged.values()}
    assert again.rows.drop("command").equals(zoo.rows.drop("command"))
    assert "1 of 4 rows are there already" in [event.message for event in events]


KILLED = """
import json, os, signal, sys
import trtkit

def kill(event):
    if "int8" in event.stage and event.stage.endswith("graph"):
        os.kill(os.getpid(), signal.SIGKILL)

trtkit.zoo(**json.loads(sys.argv[1]), progress=kill)
"""


def test_a_killed_zoo_goes_on_and_its_table_is_the_same_bit_for_bit(kit, tmp_path):
    """A process of its own, which SIGKILL ends in its second row."""
    folder = tmp_path / "out"
    arguments = {"models": kit.models[:1], "data": kit.data, "output": str(folder), **SMALL}
    child = subprocess.run([sys.executable, "-c", KILLED, json.dumps(arguments)], capture_output=True, check=False)
    assert child.returncode == -9, child.stderr
    assert not (folder / "zoo.json").exists()
    finished = [path for path in (folder / "rows").iterdir() if (path / ROW_FILE).exists()]
    assert [path.name.rsplit("-", 1)[0] for path in finished] == ["tiny-detect-64x64-fp32-onnxruntime"]
    stamp = (finished[0] / ROW_FILE).stat().st_mtime_ns
    resumed = trtkit.zoo(**arguments)
    assert (finished[0] / ROW_FILE).stat().st_mtime_ns == stamp
    shutil.rmtree(folder)
    assert trtkit.zoo(**arguments).rows.equals(resumed.rows)
    assert not list(folder.rglob(".trtkit-*"))


def test_other_settings_or_overwrite_measure_again(whole, kit, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(whole[1], folder)
    count = []

    def plan(**settings):
        plan = trtkit.plan(trtkit.zoo, kit.models, kit.data, output=folder, **{**SMALL, **settings})
        count.append(len(plan.steps))
        return plan

    assert plan().steps[0] == "tiny-detect 64x64 fp32 onnxruntime"
    stamp = next((folder / "rows").glob("tiny-classify*fp32*")) / ROW_FILE
    before = stamp.stat().st_mtime_ns
    one = {"models": kit.models[1:], "precisions": ("fp32",)}
    measure(kit, folder, **one)
    assert stamp.stat().st_mtime_ns == before
    fewer = measure(kit, folder, **one, eval_images=2)
    assert fewer.rows["eval_images"].to_list() == [2]
    after = stamp.stat().st_mtime_ns
    assert after > before
    measure(kit, folder, **one, eval_images=2, overwrite=True)
    assert stamp.stat().st_mtime_ns > after


def test_a_model_that_a_setting_does_not_fit_is_a_row_with_its_code(kit, tmp_path):
    zoo = measure(kit, tmp_path / "out", keep=["*dfl*"], precisions=("fp32",))
    assert zoo.rows["status"].to_list() == ["done", "failed"]
    assert zoo.rows["error_code"].to_list() == [None, "keep-no-match"]


def test_a_model_that_does_not_fit_the_data_is_rows_with_its_code(kit, tmp_path):
    data = {**kit.data, "detect": str(drawn_set(tmp_path / "gray", "detect", count=2, channels=1))}
    zoo = trtkit.zoo(kit.models, data, output=tmp_path / "out", **SMALL)
    assert zoo.rows.select("model", "status", "error_code").rows() == [
        ("tiny-classify", "done", None), ("tiny-classify", "done", None),
        ("tiny-detect", "failed", "data-channels-mismatch"),
    ]  # fmt: skip
    with raises(DataError, "data-channels-mismatch"):
        trtkit.zoo(kit.models[:1], data, output=tmp_path / "other", **SMALL)


def test_a_fault_while_a_row_runs_costs_that_row_alone(kit, tmp_path, monkeypatch):
    from trtkit.model_zoo import workers

    real = workers.run_row

    def run(job, *arguments, **settings):
        if job.precision == "int8":
            raise MemoryError("no memory")
        return real(job, *arguments, **settings)

    monkeypatch.setattr(workers, "run_row", run)
    zoo = measure(kit, tmp_path / "out", kit.models[1:])
    assert zoo.rows["status"].to_list() == ["done", "failed"]
    assert zoo.rows["error_code"][1] == "unexpected-memory-error"
    monkeypatch.setattr(workers, "run_row", real)
    assert measure(kit, tmp_path / "out", kit.models[1:]).rows["status"].to_list() == ["done", "done"]


def test_cancelling_keeps_finished_rows(kit, tmp_path):
    cancel = threading.Event()

    def stop(event):
        if event.stage == "zoo" and event.done == 1:
            cancel.set()

    with raises(CancelledError, "cancelled"):
        measure(kit, tmp_path / "out", kit.models[1:], progress=stop, cancel=cancel)
    assert len(list((tmp_path / "out" / "rows").glob(f"*/{ROW_FILE}"))) == 1


@pytest.mark.parametrize(
    ("settings", "kind", "code"),
    [
        ({"models": None, "data": {}}, RecipeError, "zoo-models-missing"),
        ({"models": []}, RecipeError, "zoo-models-missing"),
        ({"models": ["no/such.onnx"]}, RecipeError, "zoo-model-missing"),
        ({"models": ["a" * 300]}, RecipeError, "zoo-model-missing"),
        ({"models": ["."]}, RecipeError, "zoo-folder-empty"),
        ({"models": ["CAF\udce9"]}, RecipeError, "zoo-model-name-invalid"),
        ({"data": {"pose": "DETECT"}}, DataError, "data-kpt-shape-missing"),
        ({"data": {"nothing": "DETECT"}}, DataError, "data-task-unknown"),
        ({"data": {"classify": "CLASSIFY"}}, RecipeError, "zoo-data-missing"),
        ({"data": {"detect": "no/such.yaml"}}, DataError, "data-yaml-missing"),
        ({"split": "test"}, DataError, "data-split-missing"),
        ({"data": "coco.yaml"}, RecipeError, "argument-invalid"),
        ({"precisions": ("int4",)}, RecipeError, "argument-invalid"),
        ({"sizes": (64, 64)}, RecipeError, "argument-invalid"),
        ({"sizes": (0,)}, RecipeError, "argument-invalid"),
        ({"backends": "onnx"}, RecipeError, "backend-unknown"),
        ({"backends": "tensorrt", "device": 7}, CapabilityError, None),
        ({"backends": "triton"}, CapabilityError, None),
    ],
)
def test_bad_input_fails_before_any_work(kit, tmp_path, monkeypatch, settings, kind, code):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "run_jobs", lambda *_, **__: pytest.fail("work began"))
    if code == "zoo-model-name-invalid":
        (tmp_path / settings["models"][0]).touch()
    paths = {"DETECT": kit.data["detect"], "CLASSIFY": kit.data["classify"]}
    if isinstance(settings.get("data"), dict):
        settings = {**settings, "data": {task: paths.get(path, path) for task, path in settings["data"].items()}}
    with pytest.raises(kind) as caught:
        trtkit.zoo(**{"models": kit.models[:1], "data": kit.data, **SMALL, "output": tmp_path / "out", **settings})
    assert code is None or caught.value.code == code
    assert not (tmp_path / "out").exists()


def test_models_that_the_table_could_not_tell_apart_are_refused(kit, tmp_path):
    with raises(RecipeError, "zoo-rows-collide", name="tiny-detect"):
        measure(kit, tmp_path / "out", [kit.models[0]] * 2)
    other = tmp_path / "tiny-detect.onnx"
    shutil.copy(kit.models[0], other)
    with raises(RecipeError, "zoo-rows-collide", paths=(kit.models[0], str(other))):
        measure(kit, tmp_path / "out", [kit.models[0], str(other)])
    with raises(RecipeError, "zoo-model-without-file"):
        measure(kit, tmp_path / "out", [untrained("detect")])


def test_the_command_repeats_the_row(whole, rows_of, kit, capsys):
    from trtkit import cli

    command = rows_of["tiny-classify", "int8"]["command"].split()
    assert command[:3] == ["trtkit", "zoo", kit.models[1]]
    _, values = cli.parse_command(command[1:])
    assert values.data == {"classify": kit.data["classify"]}
    assert values.precisions == ("int8",)
    before = (whole[1] / "zoo.json").read_bytes()
    try:
        assert cli.main([*command[1:], "--json", "--quiet"]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert [row["file_hash"] for row in printed["rows"]] == [rows_of["tiny-classify", "int8"]["file_hash"]]
    finally:
        (whole[1] / "zoo.json").write_bytes(before)


def test_the_command_line_prints_failures_and_exits_with_1(whole, kit, tmp_path, capsys):
    from trtkit import cli

    shutil.copytree(whole[1] / "rows", tmp_path / "out" / "rows")
    data = [f"--data={task}={path}" for task, path in kit.data.items()]
    words = ["--precisions=fp32,int8", "--calibration-images=2", "--resamples=20", "--backends=onnxruntime", "--quiet"]
    files = [*kit.models, str(whole[2])]
    assert cli.main(["zoo", *files, *data, *words, f"--output={tmp_path / 'out'}"]) == 1
    printed = capsys.readouterr().out
    assert "failed: onnx-damaged" in printed
    assert "not measured" in printed


def test_the_guide_is_yolov8n_at_640_of_the_tasks_with_data(kit, demo_model, monkeypatch, tmp_path):
    jobs = []
    model = trtkit.load(demo_model)
    monkeypatch.setattr(module, "read_model", lambda name: jobs.append(name) or model)
    monkeypatch.setattr(module.RowJob, "stem", property(lambda job: Path(jobs[-1]).stem))
    plan = trtkit.plan(trtkit.zoo, data={"detect": kit.data["detect"]}, output=tmp_path / "out", backends="onnxruntime")
    assert jobs == ["yolov8n.pt"]
    assert plan.steps == tuple(f"yolov8n 640x640 {name} onnxruntime" for name in ("fp32", "fp16", "int8"))


def test_the_figure_has_a_panel_per_task(whole):
    figure = whole[0].plot()
    assert {trace.name for trace in figure.data} == {"FP32", "INT8"}
    assert [one.text.split("<")[1].split(">")[1] for one in figure.layout.annotations] == ["detect", "classify"]
    assert isinstance(whole[0].frame(), pl.DataFrame)


def test_a_folder_in_coco_s_layout_serves_detect_segment_and_pose(tmp_path):
    """Calibrated on its train split and evaluated on val, whose annotations hold run lengths and crowd regions."""
    for task in ("segment", "pose"):
        drawn_set(tmp_path / task, task, count=4)
    coco = write_coco(tmp_path, tmp_path / "coco")
    model = tmp_path / "tiny-segment.onnx"
    trtkit.export(untrained("segment"), format="onnx", output=model)
    zoo = trtkit.zoo([str(model)], dict.fromkeys(("detect", "segment", "pose"), coco), output=tmp_path / "out", **SMALL)
    assert (
        zoo.rows.select("task", "status", "eval_images", "metric").rows() == [("segment", "done", 4, "mAP50-95(M)")] * 2
    )
    assert zoo.rows["data_hash"].n_unique() == 1
    assert "pycocotools/AP(M)" in json.loads(zoo.rows["metrics"][0])


def test_a_change_is_the_loss_against_fp32_turned_round(monkeypatch, tmp_path):
    float_job = RowJob(
        model="a.pt", end2end=False, model_hash="m", task="detect", data="d", data_hash="d", calibration_hash="",
        imgsz=(64, 64), precision="fp32", backend="onnxruntime", batch=(1,), settings={},
    )  # fmt: skip
    int8_job = dataclasses.replace(float_job, precision="int8")
    compared = []

    def compute_loss(reference, other):
        compared.append((reference, other))
        return types.SimpleNamespace(value=0.02, low=0.01, high=0.04)

    monkeypatch.setattr(module, "load_evaluation", lambda folder, job: job.precision)
    monkeypatch.setattr(module, "resample_metric", lambda evaluation, metric, **settings: evaluation)
    monkeypatch.setattr(module, "compute_interval", lambda one: types.SimpleNamespace(value=0.5, low=0.4, high=0.6))
    monkeypatch.setattr(module, "compute_loss_interval", compute_loss)
    facts = {job.name: {"metrics": {"mAP50-95(B)": 0.5}} for job in (float_job, int8_job)}
    found = module._compute_intervals([int8_job, float_job], facts, tmp_path, 10, 0)
    own = {"value": 0.5, "low": 0.4, "high": 0.6}
    assert compared == [("fp32", "int8")]
    assert found[float_job.name] == own
    assert found[int8_job.name] == own | {"delta": -0.02, "delta_low": -0.04, "delta_high": -0.01}
