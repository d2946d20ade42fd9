"""`fold_sums`: a sum beside one of its terms becomes part of the weights, and nothing else does."""

from __future__ import annotations

import collections
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
import trace_store
from detector_graph import run
from networks import load_network
from onnx import TensorProto, helper, numpy_helper

from trtkit.graph import torch_export
from trtkit.graph.analysis import GraphIndex
from trtkit.graph.passes import fold_sums
from trtkit.graph.torch_export import trace

SIZE = (1, 4, 6, 5)
"""Of `images` here."""


def make_graph(
    nodes: Sequence[onnx.NodeProto], *, channels: int, outputs: Sequence[str] = ("output0",), **sizes: Sequence[int]
) -> onnx.ModelProto:
    """`nodes`, then a 1x1 convolution of `joined` to `output0`; `sizes` are constants of Split, by name."""
    generator = np.random.default_rng(0)
    constants = {name: np.array(values, np.int64) for name, values in sizes.items()}
    constants |= {
        "conv_in": generator.standard_normal((4, 4, 3, 3), np.float32),
        "conv_out": generator.standard_normal((3, channels, 1, 1), np.float32),
    }
    graph = helper.make_graph(
        [*nodes, helper.make_node("Conv", ["joined", "conv_out"], ["output0"], "last")],
        "sums",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, SIZE)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(proto)


def conv(source: str, target: str) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, "conv_in"], [target], target, pads=[1, 1, 1, 1])


def add(one: str, other: str, target: str = "sum") -> onnx.NodeProto:
    return helper.make_node("Add", [one, other], [target], target)


def concat(*names: str, axis: int = 1) -> onnx.NodeProto:
    return helper.make_node("Concat", names, ["joined"], "joined", axis=axis)


def expect_folded(proto: onnx.ModelProto, *, sums: int) -> onnx.ModelProto:
    """The graph after the pass: its sums are fewer by so many, and its outputs are the same."""
    images = np.random.default_rng(1).standard_normal(SIZE, np.float32)
    before, adds = run(proto, images), count_sums(proto)
    after = fold_sums(proto)
    onnx.checker.check_model(after, full_check=True)
    assert count_sums(after) == adds - sums
    for ours, theirs in zip(run(after, images), before, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    return after


def count_sums(proto: onnx.ModelProto) -> int:
    return sum(node.op_type == "Add" for node in proto.graph.node)


@pytest.mark.parametrize("terms", [("images", "b"), ("b", "images")])
@pytest.mark.parametrize("parts", [("images", "sum"), ("sum", "images")])
def test_a_sum_beside_its_term_is_folded(terms: tuple[str, str], parts: tuple[str, str]) -> None:
    graph = make_graph([conv("images", "b"), add(*terms), concat(*parts)], channels=8)
    after = expect_folded(graph, sums=1)
    assert sorted(GraphIndex(after).nodes["joined"].input) == ["b", "images"]
    assert not {"conv_out", "sum"} & {tensor.name for tensor in after.graph.initializer}


@pytest.mark.parametrize("whole", [True, False])
def test_a_term_is_found_in_what_it_was_split_from(*, whole: bool) -> None:
    parts = ["a", "b"] if not whole else ["both"]
    nodes = [
        helper.make_node("Concat", ["images", "images"], ["both"], "both", axis=1),
        helper.make_node("Split", ["both", "sizes"], ["a", "b"], "split", axis=1),
        conv("b", "c"),
        add("b", "c"),
        concat(*parts, "sum"),
    ]
    expect_folded(make_graph(nodes, channels=12, sizes=[4, 4]), sums=1)


def test_sums_of_one_concatenation_are_folded_together() -> None:
    nodes = [
        conv("images", "b"),
        add("images", "b"),
        conv("images", "c"),
        add("c", "images", "other"),
        concat("sum", "images", "other"),
    ]
    expect_folded(make_graph(nodes, channels=12), sums=2)


def test_a_weight_that_others_read_stays_theirs() -> None:
    nodes = [
        conv("images", "b"),
        add("images", "b"),
        concat("images", "sum"),
        helper.make_node("Concat", ["b", "b"], ["twice"], "twice", axis=1),
        helper.make_node("Conv", ["twice", "conv_out"], ["output1"], "other"),
    ]
    # `b` has a second reader, so the sum stays; with a map of its own it goes, and `other` keeps its weight.
    expect_folded(make_graph(nodes, channels=8, outputs=["output0", "output1"]), sums=0)
    nodes[3] = helper.make_node("Concat", ["images", "images"], ["twice"], "twice", axis=1)
    expect_folded(make_graph(nodes, channels=8, outputs=["output0", "output1"]), sums=1)


def test_other_sums_stay() -> None:
    """One that is an output or read twice, one without its terms, of another size, behind another axis or operator."""
    b, total = conv("images", "b"), add("images", "b")
    beside = concat("images", "sum")
    expect_folded(make_graph([b, total, beside], channels=8, outputs=["output0", "sum"]), sums=0)
    expect_folded(make_graph([b, total, beside], channels=8, outputs=["output0", "b"]), sums=0)
    expect_folded(make_graph([b, total, beside], channels=8, outputs=["output0", "joined"]), sums=0)
    twice = helper.make_node("Relu", ["sum"], ["output1"], "relu")
    expect_folded(make_graph([b, total, beside, twice], channels=8, outputs=["output0", "output1"]), sums=0)
    elsewhere = [b, conv("b", "c"), add("b", "c"), conv("images", "d"), concat("sum", "d")]
    expect_folded(make_graph(elsewhere, channels=8), sums=0)
    broadcast = [helper.make_node("GlobalAveragePool", ["images"], ["b"], "b"), total, beside]
    expect_folded(make_graph(broadcast, channels=8), sums=0)
    expect_folded(make_graph([b, total, concat("images", "sum", axis=2)], channels=4), sums=0)
    between = [b, total, helper.make_node("Concat", ["images", "sum"], ["raw"], "raw", axis=1)]
    between.append(helper.make_node("Relu", ["raw"], ["joined"], "relu"))
    expect_folded(make_graph(between, channels=8), sums=0)


@pytest.mark.parametrize(("name", "sums"), [("yolo11n", 5), ("yolov8n", 4), ("yolo26n", 2), ("yolo11m", 0)])
def test_networks_lose_the_sums_of_their_last_bottlenecks(
    name: str, sums: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_network(name, 64)
    folded = trace(model, imgsz=(64, 64))
    # Neither store knows which passes made a graph.
    monkeypatch.setattr(torch_export, "_trace", trace_store.trace_anew)
    monkeypatch.setattr(torch_export, "_TRACES", collections.OrderedDict())
    monkeypatch.setattr(torch_export, "fold_sums", lambda proto: proto)
    graph = trace(model, imgsz=(64, 64))
    assert count_sums(graph) - count_sums(folded) == sums
    feed = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    for ours, theirs in zip(run(folded, feed), run(graph, feed), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)
