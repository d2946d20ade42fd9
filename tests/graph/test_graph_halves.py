"""A layer for each half of a split gives what one layer and a split gave."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from drawn import run
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import trtkit
from trtkit.graph.alignment import aligned
from trtkit.graph.half import to_half
from trtkit.graph.halves import layers_by_half
from trtkit.graph.quantized import candidates, quantize
from trtkit.graph.structure import View
from trtkit.graph.tracing import trace

PICTURES = np.random.default_rng(3).normal(size=(2, 3, 6, 6)).astype(np.float32)


def block(sizes: tuple[int, ...], activation: str = "SiLU", *, bias: bool = True) -> onnx.ModelProto:
    """A layer split into parts, a second layer on the last one, and a concatenation of both layers' outputs."""
    random = np.random.default_rng(sum(sizes))
    total = sum(sizes)
    constants = {
        "first.weight": random.normal(size=(total, 3, 3, 3)),
        "second.weight": random.normal(size=(4, sizes[-1], 1, 1)),
        "last.weight": random.normal(size=(5, total + 4, 1, 1)),
        "first.bias": random.normal(size=total),
    }
    nodes = [
        helper.make_node(
            "Conv", ["images", "first.weight", *(["first.bias"] if bias else [])], ["first"], "first", pads=[1] * 4
        )
    ]
    whole = "first"
    if activation == "SiLU":
        nodes.append(helper.make_node("Sigmoid", ["first"], ["gate"], "gate"))
        nodes.append(helper.make_node("Mul", ["first", "gate"], ["whole"], "act"))
        whole = "whole"
    elif activation:
        nodes.append(helper.make_node(activation, ["first"], ["whole"], "act"))
        whole = "whole"
    parts = [f"part{index}" for index in range(len(sizes))]
    nodes += [
        helper.make_node("Split", [whole, "sizes"], parts, "split", axis=1),
        helper.make_node("Conv", [parts[-1], "second.weight"], ["second"], "second"),
        helper.make_node("Concat", [whole, "second"], ["joined"], "joined", axis=1),
        helper.make_node("Conv", ["joined", "last.weight"], ["output0"], "last"),
    ]
    graph = helper.make_graph(
        nodes,
        "block",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 6, 6])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, ["n", 5, 6, 6])],
        [
            *(numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()),
            numpy_helper.from_array(np.array(sizes, np.int64), "sizes"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=3).map(tuple),
    activation=st.sampled_from(["SiLU", "Relu", ""]),
    bias=st.booleans(),
    int8=st.booleans(),
)
def test_outputs_stay_and_nothing_is_split(sizes: tuple[int, ...], activation: str, bias: bool, int8: bool) -> None:
    proto = block(sizes, activation, bias=bias)
    if int8:
        proto = quantize(proto, dict.fromkeys(candidates(proto), (-3.0, 3.0)), protect=False)
    before = proto.SerializeToString()
    after = layers_by_half(proto)
    assert proto.SerializeToString() == before
    onnx.checker.check_model(after, full_check=True)
    assert "split" not in View(after).nodes
    assert sum(node.op_type == "Conv" for node in after.graph.node) == 2 + len(sizes)
    np.testing.assert_allclose(run(after, PICTURES)[0], run(proto, PICTURES)[0], rtol=1e-5, atol=1e-5)


def test_what_another_node_reads_is_left_alone() -> None:
    """A second reader of the whole needs the whole; without a concatenation there is nothing to gain."""
    read = block((2, 2))
    read.graph.node.insert(4, helper.make_node("Relu", ["whole"], ["output1"], "reader"))
    read.graph.output.append(helper.make_tensor_value_info("output1", TensorProto.FLOAT, None))
    leaving = block((2, 2))
    leaving.graph.output.append(helper.make_tensor_value_info("whole", TensorProto.FLOAT, None))
    alone = block((4, 4))
    View(alone).nodes["joined"].input[0] = "part0"
    View(alone).nodes["last"].input[1] = "narrow"
    alone.graph.initializer.append(numpy_helper.from_array(np.ones((5, 8, 1, 1), np.float32), "narrow"))
    gated = block((2, 2))
    View(gated).nodes["act"].input[0] = "gate"
    for proto in (read, leaving, alone, gated):
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
        assert layers_by_half(proto) == proto


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_traced_model_gives_the_same(dynamic: bool, precision: str) -> None:
    model = trtkit.load(trtkit.demo.model_path())
    pictures = np.random.default_rng(2).random((1, 3, 64, 64), np.float32)
    graph = trace(model, imgsz=(64, 64), dynamic=dynamic)
    if precision == "int8":
        graph = aligned(quantize(graph, dict.fromkeys(candidates(graph), (-4.0, 4.0))))
    elif precision == "fp16":
        graph = to_half(graph)
    after = layers_by_half(graph)
    onnx.checker.check_model(after, full_check=True)
    names = [node.name for node in after.graph.node]
    assert len(set(names)) == len(names)
    assert sum("cv1/conv/Conv_1" in name and "Linear" not in name for name in names) == 8
    atol = 0.5 if precision == "fp16" else 1e-4
    np.testing.assert_allclose(run(after, pictures)[0], run(graph, pictures)[0], rtol=1e-5, atol=atol)
