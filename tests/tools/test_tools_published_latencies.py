"""The demo's engines, from what their processes leave to the latencies that its report shows."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import published_latencies
import pytest

from trtkit import demo, load
from trtkit.comparison import published
from trtkit.comparison.published import find_published

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PASSPORT = {
    "gpu": "NVIDIA H200",
    "driver": "580.1",
    "cuda": "13.0",
    "tensorrt": "8.6.0",
    "versions": {"trtkit": "0.2.0"},
}


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """`benchmarks/engines.py`, whose records go to a folder of the test."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    module, records = (importlib.import_module(name) for name in ("engines", "records"))
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    monkeypatch.setattr(records, "RESULTS", results)
    monkeypatch.setattr(published_latencies, "ROOT", tmp_path)
    yield module
    for name in {"engines", "records", "parallel_builds"} - before:
        sys.modules.pop(name, None)


def leave(engines: Any, folder: Path, name: str, precision: str, batch: int, p50_ms: float | None, sha: str) -> None:
    """What `build` and `clock` leave of an engine."""
    subject = engines.SUBJECTS[name]
    job = engines.Job(subject=name, precision=precision, batch=batch, level=2)
    facts = {
        "subject": name, "precision": precision, "batch": batch, "level": 2, "task": subject.task,
        "model": subject.file, "imgsz": subject.imgsz, "cores": 16, "build_seconds": 20.0, "bytes": 3_000_000,
        "metrics": {"mAP50-95(B)": 0.5}, "passport": {**PASSPORT, "model_hash": sha},
    }  # fmt: skip
    (folder / f"{job.name}.json").write_text(json.dumps(facts))
    if p50_ms is not None:
        names = ("mean_ms", "min_ms", "max_ms", "p50_ms", "p99_ms")
        times = {"runs": 500, "device_memory": 9_000_000, **dict.fromkeys(names, p50_ms)}
        (folder / f"{job.name}.times.json").write_text(json.dumps(times))


def test_the_demo_s_record_is_what_its_report_shows(
    engines: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load(demo.model_path())
    out = tmp_path / "engines-demo"
    out.mkdir()
    for batch in (1, 8):
        for precision, p50_ms in (("fp32", 0.4), ("fp16", 0.3), ("int8", 0.2)):
            leave(engines, out, "yolo11t", precision, batch, p50_ms * batch, model.hash)
    leave(engines, out, "yolo26t", "fp16", 1, 0.35, "f" * 64)
    # Built, and not timed before the machine went back.
    leave(engines, out, "yolo26t", "int8", 1, None, "f" * 64)
    engines.write(out, "")
    (record,) = published_latencies.collect_records()
    assert record["record"] == "benchmarks/results/engines-demo-nvidia-h200.md"
    assert record["command"] == "python benchmarks/engines.py demo --out engines-demo --level 2"
    assert [(row["model"], row["precision"], row["batch"]) for row in record["rows"]] == [
        *(("yolo11t", precision, batch) for batch in (8, 1) for precision in ("fp32", "fp16", "int8")),
        ("yolo26t", "fp16", 1),
    ]
    table = (tmp_path / record["record"]).read_text()
    assert "## detect: yolo11t.pt at 320" in table
    assert "| INT8 (Q/DQ) | 1 | - | - |" in table
    monkeypatch.setattr(published, "_read_records", lambda: json.loads(published_latencies.render_records()))
    shown = find_published(
        model=model.stem, task="detect", imgsz=(demo.IMGSZ,) * 2, model_hash=model.hash, precisions=("fp32", "int8")
    )
    assert shown is not None
    assert shown.same_weights
    assert shown.rows.select("precision", "batch", "p50_ms").rows() == [
        ("fp32", 1, 0.4), ("int8", 1, 0.2), ("fp32", 8, 3.2), ("int8", 8, 1.6),
    ]  # fmt: skip
    assert record["command"] in shown.sentence


def test_the_demo_s_run_has_every_model_of_the_package(engines: Any) -> None:
    files = {path.name for path in Path(demo.__file__).parent.glob("*.pt")}
    assert {subject.file for subject in engines.DEMO.values()} == files
    jobs = list(engines.jobs(engines.DEMO, engines.COMPARED, 2))
    assert len(jobs) == len({job.name for job in jobs}) == len(files) * 3 * 2
    for name, subject in engines.DEMO.items():
        assert subject.source(None) == demo.model_path(subject.task, family=name[:6])
        assert subject.data(None) == demo.data_path(subject.task)
    assert engines.SCENES["classify"].data(Path("scenes")) == Path("scenes/classify")
    assert engines.SCENES["pose"].source(Path("models")) == Path("models/yolo11n-pose.pt")
