"""verify(): simulated engines, healthy and miscompiled, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_graphs
from onnx import helper, numpy_helper
from raising import raises

import trtkit as tk
from trtkit import backends
from trtkit.backends.ort import OrtRunner
from trtkit.errors import EngineError


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    import cv2

    folder = tmp_path_factory.mktemp("images")
    for index, image in enumerate(tiny_graphs.images(6)):
        cv2.imwrite(str(folder / f"{index}.png"), image)
    return folder


class BatchFault(OrtRunner):
    """Right at batch 1; at a larger batch the second image's scores are wrong."""

    def infer(self, feeds):
        outputs = super().infer(feeds)
        if len(feeds) > 1:
            outputs["output0"][1, 4:] *= 0.5
        return outputs


def plant_bias(proto):
    for tensor in proto.graph.initializer:
        if tensor.name == "stem.bias":
            value = numpy_helper.to_array(tensor).copy()
            value[3] += 2
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))


def plant_tanh(proto):
    """x * 0.5 * (1 + tanh(x)): the tanh form of SiLU with the 1/2 inside the tanh lost."""
    gate = next(node for node in proto.graph.node if node.name == "gate")
    kind = next(tensor.data_type for tensor in proto.graph.initializer if tensor.name == "stem.bias")
    for name, value in (("one", 1.0), ("half", 0.5)):
        proto.graph.initializer.append(helper.make_tensor(name, kind, [], [value]))
    place, (source,), (target,) = list(proto.graph.node).index(gate), gate.input, gate.output
    proto.graph.node.remove(gate)
    for index, node in enumerate(
        (
            helper.make_node("Tanh", [source], ["t"]),
            helper.make_node("Add", ["t", "one"], ["u"]),
            helper.make_node("Mul", ["u", "half"], [target]),
        )
    ):
        proto.graph.node.insert(place + index, node)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("plant", [plant_bias, plant_tanh])
def test_a_miscompiled_layer_differs(images, precision, plant):
    graph = tiny_graphs.detector(precision, dynamic=True)
    broken = tiny_graphs.detector(precision, dynamic=True)
    plant(broken)
    with OrtRunner(broken) as engine:
        assert tk.verify(engine, images, onnx=graph).verdict == "differs"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_an_engine_that_is_wrong_at_batch_above_1_only(images, precision):
    graph = tiny_graphs.detector(precision, dynamic=True)
    with BatchFault(graph) as engine:
        engine.batch = 4
        result = tk.verify(engine, images, onnx=graph)
    assert result.verdict == "differs"
    bad = result.frame().filter("differs")
    assert set(bad["batch"]) == {4}
    assert set(bad["slot"]) == {1}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_healthy_engines_agree(images, precision):
    """What rounding differently changes: weights moved by less than an FP16 step, 18 builds of each precision."""
    for seed in range(18):
        graph = tiny_graphs.detector(precision, dynamic=True, seed=seed)
        built = tiny_graphs.detector(precision, dynamic=True, seed=seed)
        random = np.random.default_rng(seed)
        for tensor in built.graph.initializer:
            value = numpy_helper.to_array(tensor)
            if tensor.name.endswith((".weight", ".bias")) and value.dtype.kind == "f":
                noise = 1 + random.uniform(-(2**-11), 2**-11, value.shape)
                tensor.CopyFrom(numpy_helper.from_array((value * noise).astype(value.dtype), tensor.name))
        with OrtRunner(built) as engine:
            engine.batch = 1 + seed % 4
            assert tk.verify(engine, images, onnx=graph).verdict == "agrees", seed


def test_saved_and_loaded(images, tmp_path):
    graph = tiny_graphs.detector(dynamic=True)
    with backends.open(graph) as engine:
        result = tk.verify(engine, images, onnx=graph)
    loaded = tk.Verification.load(result.save(tmp_path))
    assert loaded.frame().equals(result.frame())
    assert repr(loaded) == repr(result)
    assert loaded.plot().data


def test_the_graph_must_be_there_and_be_the_same(images, tmp_path):
    graph = tiny_graphs.detector(dynamic=True)
    with raises(EngineError, "verify-onnx-missing"):
        tk.verify(tmp_path / "a.engine", images)
    with backends.open(graph) as engine, raises(EngineError, "verify-other-onnx", name="precision"):
        tk.verify(engine, images, onnx=tiny_graphs.detector("fp16", dynamic=True))
