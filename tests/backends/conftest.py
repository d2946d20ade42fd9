"""Simulated machines: GPUs, and TensorRT of any version."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import fake_cuda
import fake_tensorrt
import pytest

from trtkit.backends import capabilities
from trtkit.backends.devices import Gpu
from trtkit.backends.trt import builder, callbacks, execution, refit

H100 = Gpu(
    index=0, name="NVIDIA H100 80GB HBM3", sm="sm90", memory=80 * 2**30, driver="580.65.06", cuda="13.0", uuid="GPU-1"
)


def _clear_caches() -> None:
    capabilities.import_bindings.cache_clear()
    capabilities.probe.cache_clear()
    callbacks.get_logger.cache_clear()


@pytest.fixture
def with_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """A function that simulates a machine with the given GPUs."""

    def simulate(*gpus: Gpu) -> None:
        monkeypatch.setattr(capabilities, "find_gpus", lambda: gpus)
        monkeypatch.setattr(capabilities, "_torch_sees_gpu", lambda: bool(gpus))
        _clear_caches()

    yield simulate
    _clear_caches()


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch, with_gpus: Any, tmp_path: Any) -> Callable[..., Any]:
    """A function that simulates a TensorRT version on an H100, or on the given GPUs, and returns the fake module."""

    def install(version: str, *gpus: Gpu, **settings: Any) -> Any:
        trt = fake_tensorrt.make(version, **settings)
        torch = fake_cuda.FakeTorch()
        trt.torch = torch
        monkeypatch.setitem(sys.modules, "tensorrt", trt)
        monkeypatch.setattr(capabilities, "_cuda_libraries_load", lambda: True)
        monkeypatch.setattr(capabilities, "_finds_lean_runtime", lambda trt: True)
        monkeypatch.setenv("TRTKIT_CACHE", str(tmp_path / "cache"))
        for user in (builder, callbacks, execution, refit):
            monkeypatch.setattr(user, "require_torch_cuda", lambda asked: torch)
        with_gpus(*(gpus or (H100,)))
        return trt

    return install
