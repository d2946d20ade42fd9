"""Refittable, weight-stripped and version-compatible engines, on fakes of three TensorRT versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_graphs
from raising import raises

from trtkit import backends
from trtkit.backends import BuildSettings, Passport, compatibility, refit_engine
from trtkit.errors import EngineError, OnnxError, OutputExistsError
from trtkit.files import hash_parts
from trtkit.graph.onnx_file import update_metadata

FEED = np.random.default_rng(0).random((1, 3, 32, 32), dtype=np.float32)


def write(folder: Path, graph: onnx.ModelProto, **settings: Any) -> Path:
    wanted = BuildSettings(imgsz=(32, 32), **settings)
    built = backends.build(graph, wanted)
    graph_hash = hash_parts(graph.SerializeToString(deterministic=True))
    passport = Passport.from_build(
        built, wanted, backend="tensorrt", model_hash="cd" * 32, graph_hash=graph_hash, recipe={}
    )
    return backends.write_engine(folder / "m.engine", built.plan, tiny_graphs.info((32, 32)).to_metadata(), passport)


def run(source: Any) -> dict[str, np.ndarray]:
    with backends.open(source) as runner:
        return runner.infer(FEED)


@pytest.mark.parametrize(
    ("version", "weights"),
    [
        ("8.6.0", "refittable"),
        ("10.13.0.35", "refittable"),
        ("10.13.0.35", "stripped"),
        ("11.4.0.106", "refittable"),
        ("11.4.0.106", "stripped"),
    ],
)
def test_an_engine_gets_the_weights_of_a_graph(tensorrt: Any, tmp_path: Path, version: str, weights: str) -> None:
    tensorrt(version)
    graph = tiny_graphs.detector()
    path = write(tmp_path, graph, weights=weights)
    given = graph if weights == "stripped" else tiny_graphs.detector(seed=1)
    whole = refit_engine(path, given, tmp_path / "whole.engine")
    expected, actual = run(given), run(whole)
    assert expected.keys() == actual.keys()
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], atol=1e-5)
    passport = backends.read_engine(whole).passport
    assert passport is not None
    assert passport.weights == (None if weights == "stripped" else "refittable")
    assert passport.graph_hash == hash_parts(given.SerializeToString(deterministic=True))
    assert passport.model_hash == "ab" * 32
    if weights == "refittable":
        again = refit_engine(whole, graph, tmp_path / "again.engine")
        np.testing.assert_allclose(run(again)["output0"], run(graph)["output0"], atol=1e-5)


def test_an_engine_gets_the_class_names_of_a_graph(tensorrt: Any, tmp_path: Path) -> None:
    tensorrt("8.6.0")
    path = write(tmp_path, tiny_graphs.detector(), weights="refittable")
    names = {0: "cat", 1: "dog", 2: "horse"}
    given = update_metadata(tiny_graphs.detector(seed=1), {"names": names}, {})
    with backends.open(refit_engine(path, given, tmp_path / "other.engine")) as runner:
        assert runner.info.names == names
    del given.metadata_props[:]
    with backends.open(refit_engine(path, given, tmp_path / "plain.engine")) as runner:
        assert runner.info.names == tiny_graphs.NAMES


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"short")])
def test_a_graph_whose_external_weights_do_not_load(tensorrt: Any, tmp_path: Path, damage: Any) -> None:
    tensorrt("8.6.0")
    path = write(tmp_path, tiny_graphs.detector(), weights="refittable")
    given = tmp_path / "given.onnx"
    onnx.save(tiny_graphs.detector(), given, save_as_external_data=True, location="given.data", size_threshold=0)
    refit_engine(path, given, tmp_path / "whole.engine")
    damage(tmp_path / "given.data")
    with raises(OnnxError, "onnx-external-data-missing", path=str(given)):
        refit_engine(path, given, tmp_path / "whole.engine", overwrite=True)
    # TensorRT 8.6 needs the weights for a build too.
    with raises(OnnxError, "onnx-external-data-missing", path=str(given)):
        backends.build(given, BuildSettings(imgsz=(32, 32)))


def test_a_plan_that_tensorrt_rejects(tensorrt: Any, tmp_path: Path) -> None:
    trt = tensorrt("8.6.0")
    path = write(tmp_path, tiny_graphs.detector(), weights="refittable")
    trt.fake.refuse_plan = "expecting library version 8.6.0.12 got 8.6.1.6"
    with raises(EngineError, "engine-plan-rejected", reason=trt.fake.refuse_plan):
        refit_engine(path, tiny_graphs.detector(), tmp_path / "whole.engine")


def test_a_stripped_engine_does_not_open(tensorrt: Any, tmp_path: Path) -> None:
    tensorrt("10.13.0.35")
    path = write(tmp_path, tiny_graphs.detector(), weights="stripped")
    with raises(EngineError, "engine-weights-stripped", path=path):
        backends.open(path)


def test_a_stripped_engine_takes_its_own_weights_only(tensorrt: Any, tmp_path: Path) -> None:
    tensorrt("10.13.0.35")
    path = write(tmp_path, tiny_graphs.detector(), weights="stripped")
    with raises(EngineError, "refit-graph-differs", path=path):
        refit_engine(path, tiny_graphs.detector(seed=1), tmp_path / "whole.engine")
    assert not (tmp_path / "whole.engine").exists()


@pytest.mark.parametrize("version", ["8.6.0", "10.13.0.35"])
def test_missing_weights_are_named(tensorrt: Any, tmp_path: Path, version: str) -> None:
    tensorrt(version)
    path = write(tmp_path, tiny_graphs.detector(), weights="refittable")
    other = tiny_graphs.detector()
    lost = other.graph.initializer[0]
    for node in other.graph.node:
        node.input[:] = ["renamed" if name == lost.name else name for name in node.input]
    expected = lost.name
    lost.name = "renamed"
    with raises(EngineError, "refit-weights-missing", names=[expected]):
        refit_engine(path, other, tmp_path / "whole.engine")


def test_other_engines_are_refused(tensorrt: Any, tmp_path: Path) -> None:
    tensorrt("8.6.0")
    path = write(tmp_path, tiny_graphs.detector())
    with raises(EngineError, "refit-weights-fixed", path=path):
        refit_engine(path, tiny_graphs.detector(), tmp_path / "whole.engine")
    with raises(OutputExistsError, "output-exists"):
        refit_engine(path, tiny_graphs.detector(), path)


@pytest.mark.parametrize("version", ["8.6.0", "10.13.0.35"])
def test_an_engine_with_its_own_runtime_needs_trust(
    tensorrt: Any, tmp_path: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensorrt(version)
    monkeypatch.delenv("TRTKIT_HOST_CODE", raising=False)
    monkeypatch.setattr(compatibility, "_TRUSTED", set())
    graph = tiny_graphs.detector()
    path = write(tmp_path, graph, compatibility="version", weights="refittable")
    # This process built it.
    assert run(path).keys() == run(graph).keys()
    monkeypatch.setattr(compatibility, "_TRUSTED", set())
    with raises(EngineError, "engine-host-code", path=path):
        backends.open(path)
    with raises(EngineError, "engine-host-code", path=path):
        refit_engine(path, graph, tmp_path / "whole.engine")
    monkeypatch.setenv("TRTKIT_HOST_CODE", "1")
    assert run(path).keys() == run(graph).keys()


def test_a_refitted_engine_keeps_its_trust(tensorrt: Any, tmp_path: Path) -> None:
    tensorrt("8.6.0")
    path = write(tmp_path, tiny_graphs.detector(), compatibility="version", weights="refittable")
    whole = refit_engine(path, tiny_graphs.detector(seed=1), tmp_path / "whole.engine")
    assert run(whole).keys() == run(path).keys()
