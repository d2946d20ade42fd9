"""A builder whose engines run in ONNX Runtime."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import onnx
import pytest

from trtkit import backends
from trtkit.backends.build_settings import BuildResult
from trtkit.backends.ort import OrtRunner
from trtkit.backends.registry import get_backend


def replace_builder(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Put the builder in TensorRT's place.

    Returns:
        `fault`, a function that changes what is built, or a list with one for each build; `times`, milliseconds of the
        runs of each build; `settings` of the builds; `opened`, the files that were opened, and `devices`, where.
    """
    state = SimpleNamespace(fault=None, opened=[], devices=[], settings=[], times=[])
    graphs: dict[bytes, onnx.ModelProto] = {}

    def build(graph, settings, **_):
        built = onnx.ModelProto()
        built.CopyFrom(graph)
        fault = state.fault[len(graphs)] if isinstance(state.fault, list) else state.fault
        if fault is not None:
            fault(built)
        plan = b"ftrt" + len(graphs).to_bytes(4, "little")
        graphs[plan] = built
        state.settings.append(settings)
        return BuildResult(plan=plan, seconds=0.0, facts={"tensorrt": "8.6.1", "sm": "sm90"})

    def open_engine(source, *, task=None, device=None):
        file = backends.read_engine(source)
        state.opened.append(file.path)
        state.devices.append(device)
        runner = OrtRunner(graphs[file.plan])
        runner.passport, runner.hash, runner.precision = (
            file.passport,
            file.passport.model_hash,
            file.passport.precision,
        )
        runner.batch, runner.info = file.passport.batch, file.info()
        if state.times:
            ms = state.times[list(graphs).index(file.plan)]
            runner.measure_gpu_times = lambda _, runs: [ms] * runs
        return runner

    fake = dataclasses.replace(backends.get_backend("tensorrt"), open=open_engine, build=build)
    monkeypatch.setattr(backends, "get_backend", lambda name: fake if name == "tensorrt" else get_backend(name))
    for name in ("require_build", "require_run"):
        monkeypatch.setattr(backends, name, lambda *_, **__: SimpleNamespace(backend="tensorrt"))
    return state
