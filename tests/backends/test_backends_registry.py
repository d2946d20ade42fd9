"""A backend from outside the package works in open, build, evaluate, compare and doctor."""

from __future__ import annotations

import importlib.metadata
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_graphs
from raising import raises
from toy_backend import TOY, ToyRunner

import trtkit as tk
from trtkit import backends, demo
from trtkit.backends import BuildSettings, capabilities, registry
from trtkit.backends.ort import OrtRunner
from trtkit.cli import main
from trtkit.errors import CapabilityError, EngineError, RecipeError


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """A function that installs objects as entry points of trtkit.backends, by name."""
    real = importlib.metadata.entry_points

    def clear() -> None:
        registry._find_entry_points.cache_clear()
        capabilities.probe.cache_clear()

    def register(**objects: Any) -> None:
        module = types.ModuleType("toy_package")
        vars(module).update({name: value for name, value in objects.items() if value is not None})
        monkeypatch.setitem(sys.modules, "toy_package", module)
        points = [importlib.metadata.EntryPoint(name, f"toy_package:{name}", "trtkit.backends") for name in objects]
        monkeypatch.setattr(
            importlib.metadata,
            "entry_points",
            lambda **wanted: points if wanted == {"group": "trtkit.backends"} else real(**wanted),
        )
        clear()

    yield register
    monkeypatch.undo()
    clear()


@pytest.fixture
def toy_engine(install: Any, tmp_path: Path) -> Path:
    install(toy=TOY)
    return tk.export(
        demo.model_path(), backend="toy", imgsz=160, half=True, dynamic=True, output=tmp_path / "toy.engine"
    ).path


def test_names() -> None:
    assert backends.list_backends()[:3] == ("tensorrt", "tensorrt_rtx", "onnxruntime")
    assert [backends.get_backend(name).name for name in backends.list_backends()[:3]] == list(
        backends.list_backends()[:3]
    )
    assert backends.get_title("tensorrt_rtx") == "TensorRT-RTX"
    assert backends.get_title("unknown") == "unknown"


def test_open_and_build(install: Any) -> None:
    install(toy=TOY)
    assert backends.list_backends()[-1] == "toy"
    assert tk.capabilities("toy").title == "Toy 1.0"
    # It is not chosen automatically: it needs no GPU, and TensorRT's order stays.
    assert tk.capabilities().backend != "toy"
    graph = tiny_graphs.detector()
    built = backends.build(graph, BuildSettings(imgsz=(32, 32)), backend="toy")
    assert built.plan == graph.SerializeToString()
    with backends.open(graph) as runner:
        assert isinstance(runner, OrtRunner)
        assert not isinstance(runner, ToyRunner)


def test_export_and_open_by_the_file(toy_engine: Path) -> None:
    with tk.open(toy_engine) as runner, tk.open(toy_engine, backend="toy") as named:
        assert isinstance(runner, ToyRunner)
        assert isinstance(named, ToyRunner)
        assert runner.passport is not None
        assert (runner.passport.backend, runner.precision) == ("toy", "fp16")
        feed = np.zeros((1, 3, 160, 160), np.float32)
        assert np.array_equal(runner.infer(feed)["output0"], named.infer(feed)["output0"])


def test_evaluate_a_file(toy_engine: Path) -> None:
    evaluation = tk.evaluate(toy_engine, demo.data_path(), eval_images=4)
    assert evaluation.metrics["mAP50(B)"] > 0


def test_compare(install: Any, tmp_path: Path) -> None:
    install(toy=TOY)
    comparison = tk.compare(
        demo.model_path(), demo.data_path(), precisions=("fp32", "fp16"), backend="toy", imgsz=160, eval_images=2,
        runs=2, seconds=0.1, output=tmp_path,
    )  # fmt: skip
    rows = comparison.frame()
    assert rows["runner"].to_list() == ["Toy 1.0", "Toy 1.0"]
    assert rows["precision"].to_list() == ["fp32", "fp16"]


def test_doctor(install: Any, capsys: pytest.CaptureFixture[str]) -> None:
    install(toy=TOY, broken=None)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    place = lines.index("Toy 1.0")
    assert [line.split()[0] for line in lines[place + 1 : place + 3]] == ["builds", "runs"]
    assert all(line.endswith("toy engines") for line in lines[place + 1 : place + 3])
    assert any(line.startswith("broken: ") for line in lines)


def test_a_package_that_does_not_import_breaks_nothing_else(install: Any, tmp_path: Path) -> None:
    install(broken=None)
    with raises(CapabilityError, "backend-import-failed", value="broken"):
        backends.get_backend("broken")
    assert tk.capabilities().backend != "broken"
    with pytest.warns(UserWarning, match="broken"), raises(EngineError, "engine-not-found"):
        backends.open(tmp_path / "none.engine")


def test_an_entry_point_that_is_no_backend(install: Any) -> None:
    install(toy="a string")
    with raises(CapabilityError, "backend-invalid", value="toy"):
        backends.get_backend("toy")


def test_a_built_in_name_can_t_be_taken(install: Any) -> None:
    install(tensorrt=TOY)
    with pytest.warns(UserWarning, match="tensorrt"):
        assert backends.get_backend("tensorrt").title == "TensorRT"


def test_an_engine_of_a_backend_that_is_gone(toy_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **wanted: [])
    registry._find_entry_points.cache_clear()
    with raises(EngineError, "backend-unknown", value="toy", path=toy_engine):
        backends.open(toy_engine)


def test_an_unknown_backend_is_refused_before_slow_work(tmp_path: Path) -> None:
    for format_name in ("engine", "onnx"):
        with raises(RecipeError, "backend-unknown", value="cuda"):
            tk.export("missing.pt", format=format_name, backend="cuda", output=tmp_path / "a")
