from __future__ import annotations

import numpy as np
import onnx
from detector_graph import detector, run
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from trtkit.tuning.corrections import equalize


def chain(activation: str | None, seed: int = 0, group: int = 1) -> onnx.ModelProto:
    """Two convolutions with channel ranges that differ by a factor of 1000, and an activation between them."""
    random = np.random.default_rng(seed)
    spread = 10 ** random.uniform(-1.5, 1.5, 8)
    first = (random.normal(0, 1, (8, 3, 3, 3)) * spread[:, None, None, None]).astype(np.float32)
    second = random.normal(0, 1, (8, 8 // group, 3, 3)).astype(np.float32)
    if group == 1:
        second = (second / spread[None, :, None, None]).astype(np.float32)
    bias = (random.normal(0, 1, 8) * spread).astype(np.float32)
    nodes = [helper.make_node("Conv", ["images", "a.weight", "a.bias"], ["a"], "a", pads=[1] * 4)]
    source = "a"
    if activation == "Silu":
        nodes.append(helper.make_node("Sigmoid", ["a"], ["gate"], "gate"))
        nodes.append(helper.make_node("Mul", ["a", "gate"], ["act"], "act"))
        source = "act"
    elif activation == "Residual":
        nodes.append(helper.make_node("Relu", ["a"], ["act"], "act"))
        nodes.append(helper.make_node("Conv", ["act", "c.weight"], ["c"], "c", pads=[1] * 4))
        source = "act"
    elif activation is not None:
        nodes.append(helper.make_node(activation, ["a"], ["act"], "act"))
        source = "act"
    nodes.append(helper.make_node("Conv", [source, "b.weight"], ["b"], "b", pads=[1] * 4, group=group))
    nodes.append(
        helper.make_node("Add", ["b", "c"], ["output0"], "sum")
        if activation == "Residual"
        else helper.make_node("Identity", ["b"], ["output0"], "end")
    )
    weights = {"a.weight": first, "a.bias": bias, "b.weight": second}
    if activation == "Residual":
        weights["c.weight"] = second.copy()
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 8, 8, 8])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def weights_of(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([None, "Relu", "LeakyRelu"]), st.integers(0, 100))
def test_equalized_layers_are_equivalent_with_equal_channel_ranges(activation: str | None, seed: int) -> None:
    proto = chain(activation, seed)
    equalization = equalize(proto)
    assert equalization.pairs == (("a", "b"),)
    images = np.random.default_rng(seed).random((1, 3, 8, 8), np.float32)
    before, after = run(proto, images)[0], run(equalization.graph, images)[0]
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-3 * np.abs(before).max())
    old, new = weights_of(proto), weights_of(equalization.graph)
    assert np.ptp(np.log(np.abs(old["a.weight"]).max(axis=(1, 2, 3)))) > 1
    output_ranges = np.abs(new["a.weight"]).max(axis=(1, 2, 3))
    input_ranges = np.abs(new["b.weight"]).max(axis=(0, 2, 3))
    np.testing.assert_allclose(output_ranges, input_ranges, rtol=1e-4)
    # The caller's graph is unchanged.
    assert (weights_of(proto)["a.weight"] == old["a.weight"]).all()


def test_other_layers_are_skipped_with_a_reason() -> None:
    for proto, reason in (
        (chain("Silu"), "several readers or a graph output"),
        (chain("Sigmoid"), "feeds Sigmoid"),
        (chain("Residual"), "several readers or a graph output"),
        (chain("Relu", group=8), "feeds a grouped convolution"),
    ):
        equalization = equalize(proto)
        assert not equalization.pairs
        assert reason in equalization.skipped, equalization.skipped
        assert equalization.graph is proto
        assert reason in str(equalization)


def test_a_model_with_silu_has_no_pairs() -> None:
    equalization = equalize(detector())
    assert equalization.pairs == ()
    assert sum(equalization.skipped.values()) == 11
