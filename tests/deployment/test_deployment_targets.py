"""The target `python` on a fake TensorRT: its program drives the API and the CUDA runtime as it does on a GPU."""

from __future__ import annotations

import ctypes
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_cuda
import fake_tensorrt
import fake_triton
import numpy as np
import onnx
import pytest
import tiny_graphs

import trtkit as tk
from trtkit.backends import wrap_engine
from trtkit.backends.engine_file import Passport
from trtkit.files import hash_parts


class Library:
    """The CUDA runtime in host memory: `libcudart.so` by the functions that the program calls."""

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.cudaGetErrorString = lambda code: b"out of memory"
        self.limit = 1 << 30

    def cudaMalloc(self, pointer: Any, size: Any) -> int:  # noqa: N802
        if size.value > self.limit:
            return 2
        buffer = ctypes.create_string_buffer(size.value)
        self.memory[ctypes.addressof(buffer)] = buffer
        pointer._obj.value = ctypes.addressof(buffer)
        return 0

    def cudaFree(self, pointer: Any) -> int:  # noqa: N802
        del self.memory[pointer.value]
        return 0

    def cudaStreamCreate(self, pointer: Any) -> int:  # noqa: N802
        pointer._obj.value = fake_cuda.Stream.cuda_stream
        return 0

    def cudaMemcpyAsync(self, target: Any, source: Any, size: Any, kind: Any, stream: Any) -> int:  # noqa: N802
        device, host = (target, source) if kind.value == 1 else (source, target)
        assert device.value in self.memory
        assert host.value not in self.memory
        assert stream.value == fake_cuda.Stream.cuda_stream
        ctypes.memmove(target.value, source.value, size.value)
        return 0

    def cudaStreamSynchronize(self, stream: Any) -> int:  # noqa: N802
        assert stream.value == fake_cuda.Stream.cuda_stream
        return 0


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dynamic engine of a fake TensorRT, which is installed, and its graph beside it."""
    graph = tiny_graphs.detector(dynamic=True)
    onnx.save(graph, tmp_path / "model.onnx")
    header = json.dumps({"version": "8.6.0", "profile": [[1, 3, 32, 32], [4, 3, 32, 32], [4, 3, 32, 32]]}).encode()
    plan = b"ftrt" + len(header).to_bytes(4, "little") + header + graph.SerializeToString()
    (tmp_path / "plan").write_bytes(plan)
    passport = Passport(backend="tensorrt", tensorrt="8.6.0", sm="sm90", model_hash="ab" * 32, batch=4,
                        imgsz=(32, 32), dynamic=True, plan_hash=hash_parts(plan), plan_size=len(plan))  # fmt: skip
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.make("8.6.0"))
    return wrap_engine(tmp_path / "plan", tmp_path / "model.engine", tiny_graphs.info(), passport)


@pytest.fixture
def deployed(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The folder of the engine, and its `check` and `infer` as modules."""
    graph, library = engine.with_suffix(".onnx"), Library()
    folder = tk.deploy(engine, "python", tmp_path / "out", conf=0.1, reference=graph).folder
    for modules in fake_triton.fresh_modules(folder, "yolo", "check", "infer"):
        monkeypatch.setattr(modules["infer"].Cuda, "_find", staticmethod(lambda: library))
        yield folder, modules, library


def test_the_python_folder_finds_the_expected_detections(deployed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder, modules, library = deployed
    assert modules["check"].main() == 0
    assert capsys.readouterr().out.count("as expected") == 3
    # Input and output, allocated once each for the largest batch so far.
    assert len(library.memory) == 2
    assert "10" not in (folder / "README.md").read_text().split("Needs ")[1].split(",")[0]


def test_a_damaged_engine_and_missing_memory_are_named(deployed: Any) -> None:
    folder, modules, library = deployed
    library.limit = 10
    with pytest.raises(SystemExit, match="cudaMalloc failed: out of memory"):
        modules["check"].main()
    (folder / "model.engine").write_bytes(b"{}" * 50)
    assert modules["check"].main() == 1
    with pytest.raises(SystemExit, match="can't read model"):
        modules["infer"].open_model(folder)


def test_an_engine_with_a_runtime_of_its_own_may_run_it(deployed: Any) -> None:
    folder, modules, _ = deployed
    model = json.loads((folder / "model.json").read_text())
    for compatibility, allowed in ((None, False), ("version", True)):
        model["passport"]["compatibility"] = compatibility
        (folder / "model.json").write_text(json.dumps(model))
        runtime = modules["infer"].open_model(folder).runtime
        assert getattr(runtime, "engine_host_code_allowed", False) is allowed


def test_an_engine_runs_in_the_runtime_that_built_it(deployed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where both are installed too."""
    folder, modules, _ = deployed
    path, fake = folder / "model.engine", sys.modules["tensorrt"]
    data = path.read_bytes()
    length = int.from_bytes(data[:4], "little")
    header = json.loads(data[4 : 4 + length])
    header["trtkit"]["backend"] = "tensorrt_rtx"
    text = json.dumps(header).encode()
    plan = data[4 + length :]
    for installed, other, content in (
        ("tensorrt_rtx", "tensorrt", len(text).to_bytes(4, "little") + text + plan),
        ("tensorrt", "tensorrt_rtx", data),
    ):
        path.write_bytes(content)
        for missing in (None, types.ModuleType("another runtime")):
            monkeypatch.setitem(sys.modules, installed, fake)
            monkeypatch.setitem(sys.modules, other, missing)
            assert modules["infer"].Engine(path).input == "images"
            monkeypatch.setitem(sys.modules, installed, None)
            with pytest.raises(SystemExit, match="is not installed"):
                modules["infer"].Engine(path)
    # A bare plan does not say it.
    path.write_bytes(plan)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake)
    assert modules["infer"].Engine(path).input == "images"


def test_triton_s_python_backend_runs_an_engine(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, real = engine.with_suffix(".onnx"), ctypes.CDLL
    folder = tk.deploy(engine, "triton", tmp_path / "out", conf=0.1, reference=graph).folder
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library() if "libcudart" in str(name) else real(name))
    server = fake_triton.Server(folder / "models")
    assert not server.broken
    values = np.random.default_rng(0).random((3, 3, 32, 32), np.float32)
    with tk.open(graph) as runner:
        expected = runner.infer(values)["output0"]
    np.testing.assert_array_equal(server.infer("model", {"images": values})["output0"], expected)
    # A message of TensorRT answers the request; the model goes on.
    with pytest.raises(fake_triton.InferenceServerException, match="does not take an input of shape"):
        server.infer("model", {"images": np.zeros((1, 3, 64, 64), np.float32)})
    assert len(server.infer("model", {"images": values[:1]})["output0"]) == 1
