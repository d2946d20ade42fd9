"""TensorRT-RTX's parser and builder without a GPU, and crashes of a build in a child process."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import polars as pl
import pytest
import tiny_graphs
from raising import raises

from trtkit import backends
from trtkit.backends import BuildSettings, Passport, layer_frame
from trtkit.errors import BuildError, CancelledError, CapabilityError, OnnxError
from trtkit.progress import Reporter

pytest.importorskip("tensorrt_rtx")
SMALL = BuildSettings(imgsz=(32, 32), device="sm89")
SUPPORTED = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")


def build(settings: BuildSettings, **changes: Any) -> Any:
    return backends.build(
        tiny_graphs.detector(settings.precision, batch=settings.batch, dynamic=settings.dynamic, **changes),
        settings,
        backend="tensorrt_rtx",
    )


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_precision_builds_with_a_layer_table(precision: str, dynamic: bool) -> None:
    built = build(dataclasses.replace(SMALL, precision=precision, dynamic=dynamic, batch=2))
    assert built.plan.startswith(b"vtrt")
    assert built.facts["sm"] == "sm89"
    assert built.facts["built_without_gpu"]
    assert built.seconds > 0
    frame = layer_frame(built.layers)
    nodes = {name for row in frame["onnx_nodes"] for name in row}
    assert {"stem", "head"} <= nodes
    by_node = {
        name: row["precision"]
        for row in frame.iter_rows(named=True)
        for name in row["onnx_nodes"]
        if row["type"] != "kgen"
    }
    assert by_node["stem"] == precision
    assert by_node["head"] == precision


@pytest.mark.parametrize("sm", [sm for sm in SUPPORTED if sm != SMALL.device])
def test_other_targets(sm: str) -> None:
    assert build(dataclasses.replace(SMALL, device=sm)).facts["sm"] == sm


def test_one_engine_for_ampere_and_newer_gpus() -> None:
    built = build(dataclasses.replace(SMALL, compatibility="ampere_plus"))
    one = build(SMALL)
    # The plan names each compute capability that it is for.
    assert len(built.plan) > len(one.plan)


@pytest.mark.parametrize("settings", [{"compatibility": "version"}, {"weights": "refittable"}])
def test_what_it_can_t_build_without_a_gpu_is_refused(settings: dict[str, str], with_gpus: Any) -> None:
    with_gpus()
    with pytest.raises(CapabilityError) as caught:
        build(dataclasses.replace(SMALL, **settings))
    assert caught.value.code == f"build-{next(iter(settings))}-unsupported"


def test_the_default_target_without_a_gpu(with_gpus: Any) -> None:
    with_gpus()
    assert build(dataclasses.replace(SMALL, device=None)).facts["sm"] == "sm89"


def test_an_unsupported_target_lists_the_supported() -> None:
    with raises(CapabilityError, "device-unsupported-target", value="sm90", supported=SUPPORTED):
        build(dataclasses.replace(SMALL, device="sm90"))


def test_an_unsupported_operator_is_reported() -> None:
    with raises(BuildError, "build-unsupported-node", nodes=["/odd/Sharpen"], operators=["Sharpen"]):
        backends.build(tiny_graphs.unsupported_op(), SMALL, backend="tensorrt_rtx")


def test_onnx_sources(tmp_path: Path) -> None:
    graph = tiny_graphs.detector()
    onnx.save(graph, tmp_path / "tiny.onnx")
    for source in (tmp_path / "tiny.onnx", str(tmp_path / "tiny.onnx"), graph.SerializeToString()):
        assert backends.build(source, SMALL).plan
    with raises(OnnxError, "onnx-invalid"):
        backends.build(b"\xff\xd8\xff\xe0", SMALL)
    with raises(OnnxError, "onnx-not-found", path=str(tmp_path / "none.onnx")):
        backends.build(tmp_path / "none.onnx", SMALL)


def test_progress_and_cancelling() -> None:
    events: list[int] = []
    backends.build(tiny_graphs.detector(), SMALL, reporter=Reporter(lambda event: events.append(event.done)))
    assert events == sorted(events)
    assert events[-1] == 100
    assert len(events) > 5
    stop = threading.Event()

    def listen(event: Any) -> None:
        if event.done > 2:
            stop.set()

    with pytest.raises(CancelledError):
        backends.build(tiny_graphs.detector(), SMALL, reporter=Reporter(listen, stop))


def test_the_engine_file_keeps_the_layers(tmp_path: Path) -> None:
    settings = dataclasses.replace(SMALL, precision="int8")
    built = build(settings)
    passport = Passport.from_build(built, settings, backend="tensorrt_rtx", model_hash="ab" * 32)
    path = backends.write_engine(tmp_path / "m.engine", built.plan, tiny_graphs.info(), passport)
    file = backends.read_engine(path)
    assert file.backend == "tensorrt_rtx"
    assert file.plan == built.plan
    assert file.passport is not None
    assert layer_frame(file.passport.layers).equals(layer_frame(built.layers))


def test_an_engine_does_not_open_without_a_gpu(tmp_path: Path, with_gpus: Any) -> None:
    built = build(SMALL)
    passport = Passport.from_build(built, SMALL, backend="tensorrt_rtx", model_hash="ab" * 32)
    path = backends.write_engine(tmp_path / "m.engine", built.plan, tiny_graphs.info(), passport)
    with_gpus()
    with raises(CapabilityError, "gpu-missing"):
        backends.open(path)


def test_a_child_process_builds_the_same(tmp_path: Path) -> None:
    events: list[int] = []
    settings = dataclasses.replace(SMALL, precision="int8", isolate=True)
    built = backends.build(
        tiny_graphs.detector("int8"), settings, reporter=Reporter(lambda event: events.append(event.done))
    )
    assert built.facts["isolated"]
    assert built.plan.startswith(b"vtrt")
    assert [row["name"] for row in built.layers] == [
        row["name"] for row in build(dataclasses.replace(settings, isolate=False)).layers
    ]
    assert events[-1] == 100


def test_errors_of_a_child_process_are_raised_unchanged() -> None:
    with raises(BuildError, "build-unsupported-node", nodes=["/odd/Sharpen"], operators=["Sharpen"]):
        backends.build(tiny_graphs.unsupported_op(), dataclasses.replace(SMALL, isolate=True))


def test_a_crash_becomes_a_build_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The child imports this module as TensorRT-RTX; it dies like a crashing TensorRT.
    (tmp_path / "tensorrt_rtx.py").write_text(
        "import os, signal\nfrom tensorrt_rtx_bindings import *\nfrom tensorrt_rtx_bindings import __version__\n"
        "def Builder(logger):\n    print('Segmentation fault in libnvinfer', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with raises(BuildError, "build-crashed", exit="SIGSEGV", output="Segmentation fault in libnvinfer"):
        backends.build(tiny_graphs.detector(), dataclasses.replace(SMALL, isolate=True))


def test_cancelling_kills_the_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text(
        "import os, time, pathlib\nfrom tensorrt_rtx_bindings import *\nfrom tensorrt_rtx_bindings import __version__\n"
        f"def Builder(logger):\n    pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "    time.sleep(60)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    stop = threading.Event()
    started = time.perf_counter()

    def watch() -> None:
        while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text():
            time.sleep(0.05)
        stop.set()

    thread = threading.Thread(target=watch)
    thread.start()
    with pytest.raises(CancelledError):
        backends.build(tiny_graphs.detector(), dataclasses.replace(SMALL, isolate=True), reporter=Reporter(None, stop))
    thread.join()
    assert time.perf_counter() - started < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), signal.SIG_DFL)


def test_a_child_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text(
        "import os, time, pathlib\nfrom tensorrt_rtx_bindings import *\nfrom tensorrt_rtx_bindings import __version__\n"
        f"def Builder(logger):\n    pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "    time.sleep(60)\n"
    )
    onnx.save(tiny_graphs.detector(), tmp_path / "tiny.onnx")
    (tmp_path / "parent.py").write_text(
        "import dataclasses, sys\nfrom trtkit import backends\n"
        "settings = backends.BuildSettings(imgsz=(32, 32), device='sm89', isolate=True)\n"
        "backends.build(sys.argv[1], settings, backend='tensorrt_rtx')\n"
    )
    path = os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", ""), *sys.path))
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py"), str(tmp_path / "tiny.onnx")],
        env={**os.environ, "PYTHONPATH": path},
    )
    wait_for(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text() != "")
    parent.kill()
    parent.wait()
    child = int((tmp_path / "pid").read_text())
    wait_for(lambda: not is_running(child))
    assert not is_running(child)


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.perf_counter() + seconds
    while not condition():
        assert time.perf_counter() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    # One that has ended and that nobody waits for is a zombie.
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.slow
def test_the_demo_model_exports_with_a_layer_table(tmp_path: Path) -> None:
    import trtkit
    from trtkit import demo

    artifact = trtkit.export(
        demo.model_path(),
        imgsz=64,
        batch=2,
        int8=True,
        device="sm89",
        backend="tensorrt_rtx",
        data=demo.data_path(),
        fraction=0.1,
        output=tmp_path / "m.engine",
    )
    file = backends.read_engine(artifact.path)
    assert file.passport is not None
    assert file.passport.dynamic
    assert file.info().task == "detect"
    frame = layer_frame(file.passport.layers)
    convolutions = frame.filter(frame["onnx_nodes"].list.eval(pl.element().str.ends_with("/Conv")).list.any())
    counts = dict(convolutions.group_by("precision").len().iter_rows())
    # Attention stays in FP16 on a strongly typed TensorRT; box decoding and the convolutions before it are FP32.
    assert set(counts) <= {"int8", "fp16", "fp32"}
    assert counts["int8"] > 0.9 * len(convolutions)
    assert counts["fp32"] <= 3
