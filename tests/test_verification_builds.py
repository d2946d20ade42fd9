"""Engines verified when they are built, from the command line, and layer by layer."""

from __future__ import annotations

import dataclasses
import json
import threading

import numpy as np
import onnx
import pytest
import tiny_graphs
from onnx import numpy_helper
from planted_faults import FAULTS
from raising import raises
from replaced_builder import replace_builder

import trtkit as tk
from trtkit import backends, demo
from trtkit.backends.ort import OrtRunner
from trtkit.cli import parse_command, system_commands
from trtkit.errors import BuildError, CapabilityError, EngineError
from trtkit.graph.analysis import GraphIndex
from trtkit.verification import _find_tensors, _read_feeds


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny_graphs.write_images(tmp_path_factory.mktemp("images"), 6)


# After a build


@pytest.fixture
def builder(monkeypatch):
    return replace_builder(monkeypatch)


def export_tiny(folder, images, **settings):
    source = folder / "tiny.onnx"
    onnx.save(tiny_graphs.detector(dynamic=True), source)
    return tk.export(source, backend="tensorrt", batch=4, data=images, output=folder / "tiny.engine", **settings)


def test_export_verifies_what_it_built(builder, images, tmp_path):
    artifact = export_tiny(tmp_path, images)
    assert artifact.verification.verdict == "agrees"
    assert set(artifact.verification.frame()["batch"]) == {1, 4}
    # Before the file has its name.
    assert builder.opened[0] != artifact.path
    assert tk.verify(artifact.path, images).verdict == "agrees"
    assert export_tiny(tmp_path, images, overwrite=True, verify=False).verification is None


def test_an_engine_that_differs_is_not_written(builder, images, tmp_path):
    builder.fault = FAULTS["batch"]
    with raises(BuildError, "engine-differs", batches=[4], outputs=["scores", "logits", "boxes"]) as caught:
        export_tiny(tmp_path, images)
    assert all(str(images) in path for path in caught.value.fields["images"])
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.onnx"}
    # A good engine of before stays.
    builder.fault = None
    before = export_tiny(tmp_path, images).path.read_bytes()
    builder.fault = FAULTS["bias"]
    with raises(BuildError, "engine-differs"):
        export_tiny(tmp_path, images, overwrite=True)
    assert (tmp_path / "tiny.engine").read_bytes() == before
    assert export_tiny(tmp_path, images, overwrite=True, verify=False).path.is_file()
    with raises(EngineError, "engine-differs"):
        run_command("verify", str(tmp_path / "tiny.engine"), str(images))


def test_an_engine_for_another_machine_is_not_compared(builder, images, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise CapabilityError("run", "there is no GPU", "run it elsewhere", code="gpu-missing")

    monkeypatch.setattr(backends, "require_run", refuse)
    builder.fault = FAULTS["bias"]
    messages = []
    artifact = export_tiny(tmp_path, images, progress=lambda event: messages.append(event.message))
    assert artifact.verification is None
    assert any("there is no GPU" in message for message in messages)
    assert artifact.path.is_file()


def run_command(*words):
    command, values = parse_command(words)
    values.progress = values.cancel = None
    outcome = command(values, threading.Event())
    outcome.show()
    if outcome.error is not None:
        raise outcome.error


def test_the_command_prints_and_saves(builder, images, tmp_path, capsys):
    export_tiny(tmp_path, images)
    run_command("verify", str(tmp_path / "tiny.engine"), str(images), "--output", str(tmp_path / "saved"))
    printed = capsys.readouterr().out
    assert "agrees" in printed
    assert "logits" in printed
    assert tk.Verification.load(tmp_path / "saved").verdict == "agrees"


@pytest.fixture
def tiny_demo(tmp_path, monkeypatch):
    """The self-test's embedded model is a tiny one, and TensorRT the only builder."""
    onnx.save(tiny_graphs.detector(dynamic=True), tmp_path / "tiny.onnx")
    monkeypatch.setattr(demo, "model_path", lambda task="detect": tmp_path / "tiny.onnx")
    monkeypatch.setattr(system_commands, "SELFTEST_SIZES", {"detect": 32})
    monkeypatch.setattr(system_commands, "SELFTEST_SECONDS", 0.01)
    monkeypatch.setattr(backends, "list_backends", lambda: ("tensorrt", "onnxruntime"))
    return tmp_path / "report.json"


def test_selftest_writes_one_file(builder, tiny_demo, capsys, monkeypatch):
    run_command("selftest", "--output", str(tiny_demo))
    report = json.loads(tiny_demo.read_text())
    assert [row["precision"] for row in report["engines"]] == ["fp32", "fp16", "int8"]
    for row in report["engines"]:
        assert (row["verdict"], row["error"]) == ("agrees", None)
        assert {time["batch"] for time in row["times"]} == {1, 4}
        assert {entry["batch"] for entry in row["differences"]} == {1, 4}
    assert report["backends"]["tensorrt"]["builds"] is None
    assert "onnx" in report["versions"]

    def fault(graph):
        if "QuantizeLinear" in {node.op_type for node in graph.graph.node}:
            raise RuntimeError("an unknown flag")
        FAULTS["bias"](graph)

    builder.fault = fault
    engines = [f"tensorrt detect {name}" for name in ("fp32", "fp16", "int8")]
    with raises(EngineError, "selftest-failed", engines=engines):
        run_command("selftest", "--output", str(tiny_demo))
    report = json.loads(tiny_demo.read_text())
    assert [row["verdict"] for row in report["engines"]] == ["differs", "differs", None]
    assert "an unknown flag" in report["engines"][2]["error"]["message"]


def test_selftest_says_what_this_machine_cannot_do(tiny_demo, capsys):
    with raises(CapabilityError, "selftest-nothing-ran"):
        run_command("selftest", "--output", str(tiny_demo))
    report = json.loads(tiny_demo.read_text())
    assert report["engines"] == []
    assert report["backends"]["tensorrt"]["builds"]
    assert "TensorRT builds no engine here" in capsys.readouterr().out


# Which layers differ


@pytest.mark.parametrize(("precision", "settings"), [("fp32", {}), ("fp16", {"half": True})])
def test_a_second_build_names_the_layer(builder, images, tmp_path, precision, settings):
    builder.fault = FAULTS["batch"]
    artifact = export_tiny(tmp_path, images, verify=False, **settings)
    graph = tmp_path / f"{precision}.onnx"
    tk.export(tmp_path / "tiny.onnx", format="onnx", batch=4, output=graph, **settings)
    result = tk.verify(artifact, images, onnx=graph, layers=True)
    assert result.verdict == "differs"
    # The fault is in the first convolution; what `head` reads is computed by the SiLU after it.
    assert result.layers.filter("begins")["layer"].to_list() == ["silu"]
    assert set(result.layers.filter("differs")["tensor"]) == {"silu_out", "output0"}
    assert "begins in silu" in result.describe_differences()
    assert tk.Verification.load(result.save(tmp_path / "saved")).layers.equals(result.layers)
    assert repr(result) == repr(tk.Verification.load(tmp_path / "saved"))


def test_the_second_build_is_the_first_s_and_runs_on_the_image_that_differs_most(
    builder, images, tmp_path, monkeypatch
):
    builder.fault = FAULTS["batch"]
    artifact = export_tiny(tmp_path, images, verify=False, opt_level=1)
    fed, infer = [], OrtRunner.infer

    def record(self, feeds):
        outputs = infer(self, feeds)
        if "silu_out" in outputs:
            fed.append(feeds)
        return outputs

    monkeypatch.setattr(OrtRunner, "infer", record)
    result = tk.verify(artifact, images, layers=True)
    first, second = builder.settings
    assert second == dataclasses.replace(first, device=None, timing_cache=True)
    assert second.opt_level == 1
    worst = max(
        result.frame().filter("differs").iter_rows(named=True), key=lambda row: row["difference"] / row["limit"]
    )
    with tk.open(artifact) as engine:
        _, _, paths, feeds, _ = _read_feeds(engine, images, 16)
    of_engine, of_reference = fed
    assert np.array_equal(of_reference[0], feeds[list(map(str, paths)).index(worst["path"])])
    assert np.array_equal(of_engine[worst["slot"]], of_reference[0])


def test_a_fault_begins_behind_a_layer_that_is_right(builder, images, tmp_path):
    """A layer of zero weights hides the first of two faults from what comes after it."""
    graph = tiny_graphs.detector(dynamic=True)
    random = np.random.default_rng(0)
    for name, value in (("mid.weight", np.zeros((8, 8, 1, 1))), ("mid.bias", random.normal(size=8))):
        graph.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    head = next(node for node in graph.graph.node if node.name == "head")
    head.input[0] = "mid_out"
    mid = onnx.helper.make_node("Conv", ["silu_out", "mid.weight", "mid.bias"], ["mid_out"], name="mid")
    graph.graph.node.insert(list(graph.graph.node).index(head), mid)
    onnx.save(graph, tmp_path / "hidden.onnx")

    def fault(built):
        for bias in built.graph.initializer:
            if bias.name in ("stem.bias", "head.bias"):
                bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(3), bias.name))

    builder.fault = fault
    artifact = tk.export(
        tmp_path / "hidden.onnx", backend="tensorrt", batch=2, data=images, output=tmp_path / "hidden.engine",
        verify=False,
    )  # fmt: skip
    result = tk.verify(artifact, images, layers=True)
    rows = {row["tensor"]: row for row in result.layers.iter_rows(named=True)}
    assert {name: (row["differs"], row["begins"]) for name, row in rows.items()} == {
        "silu_out": (True, True), "mid_out": (False, False), "output0": (True, True),
    }  # fmt: skip


def test_a_layer_of_nan_differs(builder, images, tmp_path):
    def fault(graph):
        bias = next(tensor for tensor in graph.graph.initializer if tensor.name == "stem.bias")
        bias.CopyFrom(numpy_helper.from_array(np.full(tuple(bias.dims), np.nan, np.float32), bias.name))

    builder.fault = fault
    artifact = export_tiny(tmp_path, images, verify=False)
    result = tk.verify(artifact, images, layers=True)
    assert result.layers.filter("begins")["layer"].to_list() == ["silu"]
    assert result.layers["differs"].all()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_tensors_between_layers_are_taken_before_they_are_quantized(precision):
    assert _find_tensors(GraphIndex(tiny_graphs.detector(precision))) == ["silu_out", "output0"]


def test_a_fault_that_other_outputs_end(builder, images, tmp_path):
    def fuse(graph):
        if len(graph.graph.output) == 1:
            FAULTS["bias"](graph)

    builder.fault = fuse
    artifact = export_tiny(tmp_path, images, verify=False)
    result = tk.verify(artifact, images, layers=True)
    assert (result.verdict, result.layers["differs"].any()) == ("differs", False)
    assert "no layer differs" in result.describe_differences()
    with OrtRunner(tmp_path / "tiny.onnx") as reference, raises(EngineError, "verify-layers-unknown-build"):
        tk.verify(artifact, images, onnx=reference, layers=True)
