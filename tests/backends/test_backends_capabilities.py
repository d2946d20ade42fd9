"""Probing TensorRT versions, the choice of a backend, and errors for what is missing."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from raising import raises

import trtkit as tk
from trtkit import backends
from trtkit.backends import capabilities
from trtkit.backends.capabilities import import_bindings, probe
from trtkit.backends.devices import Gpu
from trtkit.errors import CapabilityError, RecipeError

L4 = Gpu(index=0, name="NVIDIA L4", sm="sm89", memory=24 * 2**30)
H100 = Gpu(index=0, name="NVIDIA H100", sm="sm90", memory=80 * 2**30)


def test_tensorrt_8_6(tensorrt: Any) -> None:
    tensorrt("8.6.0")
    caps = probe("tensorrt")
    assert caps.explicit_batch_flag
    assert not caps.strongly_typed
    assert caps.has_fp16_flag
    assert caps.has_int8_flag
    assert caps.has_int8_calibrator
    assert caps.has_dla
    assert caps.has_timing_cache
    assert not caps.has_progress_monitor
    assert not caps.has_parser_nodes
    assert not caps.has_int8_weights
    assert caps.title == "TensorRT 8.6.0"


def test_tensorrt_10(tensorrt: Any) -> None:
    tensorrt("10.13.0.35")
    caps = probe("tensorrt")
    assert caps.strongly_typed
    assert not caps.strongly_typed_only
    assert caps.has_progress_monitor
    assert caps.has_int8_calibrator
    assert caps.has_int8_weights
    assert caps.cross_build_targets == ()


def test_tensorrt_11(tensorrt: Any) -> None:
    tensorrt("11.4.0.106")
    caps = probe("tensorrt")
    assert caps.strongly_typed_only
    assert not caps.has_int8_calibrator
    assert not caps.has_dla
    assert caps.has_int8_weights
    assert not caps.explicit_batch_flag


def test_capabilities_are_frozen_and_probed_once(tensorrt: Any) -> None:
    trt = tensorrt("8.6.0")
    caps = probe("tensorrt")
    del trt.IInt8MinMaxCalibrator
    assert probe("tensorrt") is caps
    with pytest.raises(dataclasses.FrozenInstanceError):
        caps.has_dla = False  # type: ignore[misc]


def test_the_best_backend(tensorrt: Any, with_gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tensorrt("8.6.0", H100)
    assert (backends.best("build"), backends.best("run")) == ("tensorrt", "tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    pytest.importorskip("tensorrt_rtx")
    with_gpus(L4)
    assert (backends.best("build"), backends.best("run")) == ("tensorrt_rtx", "tensorrt_rtx")
    # TensorRT-RTX builds for other GPUs, but does not run on an unsupported one.
    with_gpus(H100)
    assert (backends.best("build"), backends.best("run")) == ("tensorrt_rtx", "onnxruntime")
    with_gpus()
    assert (backends.best("build"), backends.best("run")) == ("tensorrt_rtx", "onnxruntime")
    assert tk.capabilities().backend == "tensorrt_rtx"
    # TensorRT builds for the GPU of its machine only.
    tensorrt("8.6.0")
    assert backends.require_build(device="sm89").backend == "tensorrt_rtx"
    assert backends.require_build().backend == "tensorrt"
    with_gpus()
    assert backends.best("build") == "tensorrt_rtx"
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with_gpus(L4)
    assert backends.best("build") == "onnxruntime"
    with raises(CapabilityError, "backend-none-builds"):
        backends.require_build()


def test_a_missing_backend_names_the_install_command(monkeypatch: pytest.MonkeyPatch, with_gpus: Any) -> None:
    def nothing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(sys.modules["trtkit.backends.capabilities"].importlib, "import_module", nothing)
    with_gpus(L4)
    with raises(CapabilityError, "backend-missing", backend="tensorrt") as caught:
        backends.require_build("tensorrt")
    assert "pip install 'trtkit[tensorrt]'" in caught.value.do
    with raises(CapabilityError, "backend-missing", backend="tensorrt_rtx") as caught:
        backends.require_run("tensorrt_rtx")
    assert "pip install 'trtkit[rtx]'" in caught.value.do


def test_a_broken_install_gives_the_reason(monkeypatch: pytest.MonkeyPatch, with_gpus: Any, tmp_path: Any) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with_gpus(L4)
    with raises(CapabilityError, "backend-import-failed", backend="tensorrt") as caught:
        import_bindings("tensorrt")
    assert "libnvinfer.so.10: cannot open" in caught.value.found


def test_type_stubs_alone_are_not_tensorrt(monkeypatch: pytest.MonkeyPatch, with_gpus: Any, tmp_path: Any) -> None:
    (tmp_path / "tensorrt").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with_gpus()
    assert probe("tensorrt").missing == "it is not installed"


@pytest.mark.parametrize(
    ("backend", "device", "code"),
    [
        ("tensorrt", "sm89", "device-no-cross-build"),
        ("tensorrt", "cpu", "device-not-gpu"),
        ("tensorrt", "cuda:1", "gpu-index"),
        ("onnxruntime", None, "backend-builds-nothing"),
    ],
)
def test_unsupported_devices(tensorrt: Any, backend: str, device: Any, code: str) -> None:
    tensorrt("8.6.0")
    with raises(CapabilityError, code):
        backends.require_build(backend, device=device)


@pytest.mark.parametrize(
    ("device", "code"), [("cpu", "device-not-gpu"), ("sm89", "device-not-gpu"), ("cuda:1", "gpu-index")]
)
def test_an_engine_runs_on_a_gpu_of_this_machine(tensorrt: Any, device: str, code: str) -> None:
    tensorrt("8.6.0")
    with raises(CapabilityError, code):
        backends.require_run("tensorrt", device=device)


def test_no_driver(tensorrt: Any, with_gpus: Any) -> None:
    tensorrt("8.6.0")
    with_gpus()
    with raises(CapabilityError, "gpu-missing"):
        backends.require_build("tensorrt")


def test_a_gpu_that_is_named_must_be_there_to_build_for_it(with_gpus: Any) -> None:
    pytest.importorskip("tensorrt_rtx")
    with_gpus()
    assert backends.require_build("tensorrt_rtx").gpus == ()
    with raises(CapabilityError, "gpu-missing"):
        backends.require_build("tensorrt_rtx", device=0)


def test_no_cuda_in_torch(tensorrt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tensorrt("8.6.0")
    monkeypatch.setattr(capabilities, "_torch_sees_gpu", lambda: False)
    capabilities.probe.cache_clear()
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with raises(CapabilityError, "torch-no-cuda"):
        backends.require_run("tensorrt")
    monkeypatch.setitem(sys.modules, "torch", None)
    with raises(CapabilityError, "torch-missing"):
        backends.require_run("tensorrt")


@pytest.mark.parametrize(
    ("versions", "loads"),
    [
        ({"libcudnn.so.8": 8902, "libcublasLt.so.12": 120103}, True),
        ({"libcudnn.so.8": 8902, "libcublasLt.so.11": 11000}, True),
        ({"libcudnn.so.8": 8902}, False),
        ({"libcublasLt.so.12": 120103}, False),
        # A stub, of which a function that it lacks raises and one that is empty returns 0.
        ({"libcudnn.so.8": None, "libcublasLt.so.12": 120103}, False),
        ({"libcudnn.so.8": 8902, "libcublasLt.so.12": 0}, False),
        ({"libcudnn.so.8": 7605, "libcublasLt.so.12": 120103}, False),
    ],
)
def test_cuda_libraries_must_have_a_version(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, int | None], loads: bool
) -> None:
    def load(name: str) -> SimpleNamespace:
        if name not in versions:
            raise OSError(name)
        version = versions[name]
        function = "cudnnGetVersion" if "cudnn" in name else "cublasLtGetVersion"
        return SimpleNamespace() if version is None else SimpleNamespace(**{function: lambda: version})

    monkeypatch.setattr("ctypes.CDLL", load)
    assert capabilities._cuda_libraries_load() is loads


def test_tensorrt_rtx_times_no_tactics() -> None:
    pytest.importorskip("tensorrt_rtx")
    assert not probe("tensorrt_rtx").has_timing_cache


def test_an_engine_of_tensorrt_rtx_does_not_run_on_a_gpu_that_it_does_not_support(with_gpus: Any) -> None:
    pytest.importorskip("tensorrt_rtx")
    with_gpus(L4)
    assert backends.require_run("tensorrt_rtx").gpus == (L4,)
    with_gpus(H100)
    with raises(CapabilityError, "device-unsupported-target", value="sm90"):
        backends.require_run("tensorrt_rtx")


def test_unknown_backend() -> None:
    with raises(RecipeError, "backend-unknown", value="tensorflow", names=tuple(backends.list_backends())):
        tk.capabilities("tensorflow")


def test_import_loads_no_runtime_and_no_torch_without_a_driver(tmp_path: Any) -> None:
    code = (
        "import sys, trtkit.backends as b\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'tensorrt', 'tensorrt_rtx', 'polars', 'cv2'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "from trtkit.backends import devices\n"
        "devices.cuda_driver_version = lambda: ''\n"
        "assert devices._import_cuda_torch() is None and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
