"""What is looked at, and the refusals that follow from it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest

from trtkit import backends
from trtkit.backends.capabilities import import_bindings, probe
from trtkit.backends.devices import Device, Gpu, parse_device, parse_driver_list
from trtkit.errors import CapabilityError, RecipeError

L4 = Gpu(index=0, name="NVIDIA L4", sm="sm89", memory=24 * 2**30)
H100 = Gpu(index=0, name="NVIDIA H100", sm="sm90", memory=80 * 2**30)


def test_tensorrt_8_6(tensorrt: Any) -> None:
    tensorrt("8.6.0")
    found = probe("tensorrt")
    assert found.explicit_batch_flag
    assert not found.strongly_typed
    assert found.has_fp16_flag
    assert found.has_int8_flag
    assert found.has_int8_calibrator
    assert found.has_dla
    assert found.has_timing_cache
    assert not found.has_progress_monitor
    assert not found.has_parser_nodes
    assert found.title == "TensorRT 8.6.0"


def test_tensorrt_10(tensorrt: Any) -> None:
    tensorrt("10.13.0.35")
    found = probe("tensorrt")
    assert found.strongly_typed
    assert not found.strongly_typed_only
    assert found.has_progress_monitor
    assert found.has_int8_calibrator
    assert found.cross_build_targets == ()


def test_tensorrt_11(tensorrt: Any) -> None:
    tensorrt("11.4.0.106")
    found = probe("tensorrt")
    assert found.strongly_typed_only
    assert not found.has_int8_calibrator
    assert not found.has_dla
    assert not found.explicit_batch_flag


def test_capabilities_are_frozen_and_looked_at_once(tensorrt: Any) -> None:
    trt = tensorrt("8.6.0")
    found = probe("tensorrt")
    del trt.IInt8MinMaxCalibrator
    assert probe("tensorrt") is found
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.has_dla = False  # type: ignore[misc]


def test_the_best_backend(tensorrt: Any, with_gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tensorrt("8.6.0", H100)
    assert (backends.best("build"), backends.best("run")) == ("tensorrt", "tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    pytest.importorskip("tensorrt_rtx")
    with_gpus(L4)
    assert (backends.best("build"), backends.best("run")) == ("tensorrt_rtx", "tensorrt_rtx")
    # TensorRT-RTX builds for other GPUs here, but runs on none that it does not support.
    with_gpus(H100)
    assert (backends.best("build"), backends.best("run")) == ("tensorrt_rtx", "onnxruntime")
    with_gpus()
    assert (backends.best("build"), backends.best("run")) == ("tensorrt_rtx", "onnxruntime")
    assert backends.capabilities().backend == "tensorrt_rtx"
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with_gpus(L4)
    assert backends.best("build") == "onnxruntime"
    with pytest.raises(
        CapabilityError, match=r"neither TensorRT nor TensorRT-RTX works here; run pip install 'trtkit\[rtx\]'"
    ):
        backends.require_build()


def test_what_is_missing_names_the_command(monkeypatch: pytest.MonkeyPatch, with_gpus: Any) -> None:
    def nothing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(sys.modules["trtkit.backends.capabilities"].importlib, "import_module", nothing)
    with_gpus(L4)
    with pytest.raises(
        CapabilityError, match=r"build a TensorRT engine: it is not installed; run pip install 'trtkit\[tensorrt\]'"
    ):
        backends.require_build("tensorrt")
    with pytest.raises(
        CapabilityError, match=r"run a TensorRT-RTX engine: it is not installed; run pip install 'trtkit\[rtx\]'"
    ):
        backends.require_run("tensorrt_rtx")


def test_a_broken_install_says_why(monkeypatch: pytest.MonkeyPatch, with_gpus: Any, tmp_path: Any) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with_gpus(L4)
    with pytest.raises(CapabilityError, match=r"it does not import \(libnvinfer.so.10: cannot open"):
        import_bindings("tensorrt")


def test_type_stubs_alone_are_not_tensorrt(monkeypatch: pytest.MonkeyPatch, with_gpus: Any, tmp_path: Any) -> None:
    (tmp_path / "tensorrt").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with_gpus()
    assert probe("tensorrt").missing == "it is not installed"


@pytest.mark.parametrize(
    ("backend", "device", "words"),
    [
        ("tensorrt", "sm89", "builds only for the GPU that is here; use backend='tensorrt_rtx'"),
        ("tensorrt", "cpu", "engines are for GPUs"),
        ("tensorrt", "cuda:3", "on GPU 3: this machine shows 1; pass device=0 to 0"),
        ("onnxruntime", None, "ONNX Runtime runs graphs and builds nothing"),
    ],
)
def test_devices_that_can_t_be_built_for(tensorrt: Any, backend: str, device: Any, words: str) -> None:
    tensorrt("8.6.0")
    with pytest.raises(CapabilityError, match=words):
        backends.require_build(backend, device=device)


def test_no_driver(tensorrt: Any, with_gpus: Any) -> None:
    tensorrt("8.6.0")
    with_gpus()
    with pytest.raises(
        CapabilityError,
        match=r"no NVIDIA driver with a GPU was found; run it on a machine with one, or build for one with backend",
    ):
        backends.require_build("tensorrt")


def test_no_cuda_in_torch(tensorrt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    surfaces = sys.modules["trtkit.backends.capabilities"]

    tensorrt("8.6.0")
    monkeypatch.setattr(surfaces, "_torch_sees_gpu", lambda: False)
    surfaces.describe.cache_clear()
    with pytest.raises(CapabilityError, match="the installed torch has no CUDA"):
        backends.require_run("tensorrt")


def test_unknown_names() -> None:
    with pytest.raises(RecipeError, match="use one of tensorrt, tensorrt_rtx, onnxruntime"):
        backends.capabilities("tensorflow")
    with pytest.raises(RecipeError, match="pass 0, 'cuda:1', 'cpu', 'dla:0' or 'sm89'"):
        parse_device("gpu0")


@pytest.mark.parametrize(
    ("name", "device"),
    [
        (None, Device(kind="any")),
        (1, Device(kind="cuda", index=1)),
        ("0", Device(kind="cuda")),
        ("cuda", Device(kind="cuda")),
        ("CUDA:2", Device(kind="cuda", index=2)),
        ("dla:1", Device(kind="dla", index=1)),
        ("cpu", Device(kind="cpu")),
        ("sm_120", Device(kind="sm", sm="sm120")),
    ],
)
def test_device_names(name: Any, device: Device) -> None:
    assert parse_device(name) == device
    assert device.gpu == (device.index if device.kind == "cuda" else 0)


def test_what_the_driver_lists() -> None:
    text = (
        "0, GPU-5d, NVIDIA H100 80GB HBM3, 9.0, 81559, 580.65.06, 1980, 2619, 1980\n"
        "1, GPU-7f, Orin (nvgpu), 8.7, [N/A], 540.4.0, [N/A], [N/A], [N/A]\n"
        "No devices were found\n"
    )
    one, two = parse_driver_list(text)
    assert (one.name, one.sm, one.memory, one.driver) == ("NVIDIA H100 80GB HBM3", "sm90", 81559 * 2**20, "580.65.06")
    assert one.clocks == (("sm", 1980), ("memory", 2619), ("sm_max", 1980))
    assert (two.sm, two.memory, two.clocks) == ("sm87", 0, ())


def test_importing_and_looking_needs_no_torch_where_there_is_no_driver(tmp_path: Any) -> None:
    code = (
        "import sys, trtkit.backends as b\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'tensorrt', 'tensorrt_rtx', 'polars', 'cv2'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "from trtkit.backends import devices\n"
        "devices.cuda_driver_version = lambda: ''\n"
        "assert devices._cuda_torch() is None and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
