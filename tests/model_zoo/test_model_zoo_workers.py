"""One process per GPU: rows of engines, crashes, cancelling, GPUs of several kinds."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import threading
import time

import pytest
from raising import raises

import trtkit
from trtkit.backends.devices import Gpu
from trtkit.errors import CancelledError, ModelError, OutputError
from trtkit.files import read_json
from trtkit.model_zoo import workers
from trtkit.model_zoo.rows import RowJob
from trtkit.model_zoo.workers import Slot, attempt, find_slots, group_jobs, run_jobs
from trtkit.progress import Reporter

SETTINGS = {
    "split": "val", "dynamic": False, "simplify": True, "keep": [], "calibration_images": 2, "fraction": 1.0,
    "eval_images": None, "workspace": None, "opt_level": None, "runs": 5, "seconds": 0.1, "seed": 0,
}  # fmt: skip


def job(model="a.pt", precision="fp32", backend="tensorrt", **others):
    values = {
        "model": model, "end2end": False, "model_hash": "m", "task": "detect", "data": "d.yaml", "data_hash": "d",
        "calibration_hash": "", "imgsz": (64, 64), "precision": precision, "backend": backend, "batch": (1, 8),
        "settings": SETTINGS,
    }  # fmt: skip
    return RowJob(**{**values, **others})


SLOTS = (Slot(name="A", visible="GPU-1"), Slot(name="A", visible="GPU-2"))


def run(jobs, tmp_path, slots=SLOTS, **reporting):
    facts = {}
    run_jobs(
        jobs,
        tmp_path,
        slots=slots,
        reporter=Reporter(**reporting),
        on_done=lambda one, row: facts.update({one.name: row}),
    )
    return facts


@pytest.fixture(autouse=True)
def fake_child(monkeypatch):
    monkeypatch.setattr(workers, "CHILD", "fake_zoo_child")


def test_a_gpu_runs_one_row_at_a_time_and_both_are_used(tmp_path):
    jobs = [job(f"{number}.pt") for number in range(6)]
    facts = run(jobs, tmp_path)
    assert set(facts) == {one.name for one in jobs}
    by_gpu = {}
    for row in facts.values():
        by_gpu.setdefault(row["machine"]["gpus"][0]["uuid"], []).append(row["spent"])
    assert set(by_gpu) == {"GPU-1", "GPU-2"}
    for spans in by_gpu.values():
        spans.sort()
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


def test_a_crash_and_a_refusal_cost_their_own_rows(tmp_path):
    jobs = [job(name) for name in ("crash.pt", "refused.pt", "a.pt")]
    facts = run(jobs, tmp_path, SLOTS[:1])
    assert [facts[one.name].get("error_code") for one in jobs] == ["zoo-row-crashed", "build-failed", None]
    assert "SIGABRT" in facts[jobs[0].name]["error"]
    assert "Segmentation fault in a kernel" in facts[jobs[0].name]["error"]


def test_cancelling_ends_all_processes(tmp_path):
    cancel = threading.Event()
    threading.Timer(0.2, cancel.set).start()
    with raises(CancelledError, "cancelled"):
        run([job("slow.pt"), job("slow.pt", "fp16"), job("b.pt")], tmp_path, cancel=cancel)


def test_an_interruption_ends_all_rows(tmp_path, monkeypatch):
    """Ctrl-C in a notebook or script, where nobody asks a cancellation token."""
    started = []
    real = workers._run_in_child

    def run_in_child(one, *arguments):
        started.append(one.model)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        return real(one, *arguments)

    monkeypatch.setattr(workers, "_run_in_child", run_in_child)
    before = threading.active_count()
    # A shell's jobs in the background ignore it.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run([job("slow.pt"), job("b.pt"), job("c.pt")], tmp_path, SLOTS[:1])
    finally:
        signal.signal(signal.SIGINT, handler)
    assert started == ["slow.pt"]
    assert threading.active_count() == before


def test_what_ended_the_zoo_is_raised_and_not_what_it_cancelled(tmp_path, monkeypatch):
    def run_in_child(one, output, slot, reporter):
        if slot.visible == "GPU-2":
            raise OutputError("write", "the disk is full", "free some space", code="disk-full")
        while not reporter.is_cancelled():
            time.sleep(0.01)
        raise CancelledError("zoo")

    monkeypatch.setattr(workers, "_run_in_child", run_in_child)
    with raises(OutputError, "disk-full"):
        run([job("a.pt"), job("b.pt"), job("c.pt")], tmp_path)


def test_rows_without_an_engine_run_here_after_the_engines(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(workers, "run_row", lambda one, *_, **__: order.append(one) or {"eval_images": 1})
    jobs = [job(backend="onnxruntime"), job("b.pt")]
    facts = run(jobs, tmp_path)
    assert list(facts) == [jobs[1].name, jobs[0].name]
    assert order == [jobs[0]]


def test_on_a_mix_of_gpus_all_rows_of_a_model_share_one():
    jobs = [job("a.pt", name) for name in ("fp32", "int8")] + [job("b.pt")]
    assert [len(group) for group in group_jobs(jobs, SLOTS)] == [1, 1, 1]
    mixed = (SLOTS[0], dataclasses.replace(SLOTS[1], name="B"))
    assert [len(group) for group in group_jobs(jobs, mixed)] == [2, 1]
    larger = dataclasses.replace(jobs[0], imgsz=(96, 96))
    assert [len(group) for group in group_jobs([*jobs, larger], mixed)] == [2, 1, 1]


def test_slots_are_all_gpus_or_the_named_one(monkeypatch):
    gpus = (
        Gpu(index=0, name="H200", sm="sm90", memory=1, uuid="GPU-x"), Gpu(index=1, name="L4", sm="sm89", memory=1)
    )  # fmt: skip
    monkeypatch.setattr(workers, "find_gpus", lambda: gpus)
    assert [slot.visible for slot in find_slots(None)] == ["GPU-x", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert find_slots(None) == (Slot(name="H200", visible="GPU-x"), Slot(name="L4", visible="6"))
    assert find_slots("cuda:1") == (Slot(name="L4", visible="6"),)
    assert find_slots("dla:0") == (Slot(name="dla:0", device="dla:0"),)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert find_slots(1) == (Slot(name="L4", visible="1"),)


def test_the_child_writes_the_row_or_its_error(kit, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "exit_with_parent", lambda: None)
    model = trtkit.load(kit.models[1])
    done = job(
        kit.models[1], backend="onnxruntime", task="classify", data=kit.data["classify"], imgsz=(32, 32), batch=(1,),
        model_hash=model.hash,
    )  # fmt: skip
    for one in (done, dataclasses.replace(done, model=str(tmp_path / "none.onnx"))):
        content = {"job": one.to_dict(), "output": str(tmp_path / "out")}
        (tmp_path / "job.json").write_text(json.dumps(content))
        workers.main(str(tmp_path))
        result = read_json(tmp_path / "result.json")
        if one is done:
            assert set(result["metrics"]) == {"top1", "top5"}
            assert (tmp_path / "out" / "rows" / one.name / result["file"]).is_file()
        else:
            assert result["error"] == "OnnxError"


def test_a_job_survives_json_and_no_other_version(monkeypatch):
    one = job()
    assert RowJob.from_dict(json.loads(json.dumps(one.to_dict()))).request() == one.request()
    assert one.request() != dataclasses.replace(one, data_hash="e").request()
    assert one.request() == dataclasses.replace(one, device=1, command="x", model="b/a.pt").request()
    before = one.request()
    monkeypatch.setattr("trtkit.model_zoo.rows.package_versions", lambda: {"onnxruntime": "0.1"})
    assert one.request() != before


def test_only_cancelling_and_output_errors_pass():
    def refuse():
        raise ModelError("a", "b", "c", code="x")

    assert attempt(refuse)["error_code"] == "x"
    assert attempt(lambda: {"a": 1}) == {"a": 1}
    with raises(CancelledError, "cancelled"):
        attempt(lambda: (_ for _ in ()).throw(CancelledError("stop")))
