"""Miscompiles planted in ONNX graphs, for what compares an engine with its graph."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = [
    "FAULTS",
    "STRONG_FAULTS",
    "add_rounding",
    "find_convolutions",
    "plant_batch_leak",
    "plant_bias",
    "plant_tanh",
]


def find_convolutions(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Convolutions with a bias that is stored in the graph, in execution order."""
    stored = {tensor.name for tensor in proto.graph.initializer}
    return [
        node for node in proto.graph.node if node.op_type == "Conv" and len(node.input) > 2 and node.input[2] in stored
    ]


def plant_bias(proto: onnx.ModelProto, place: float = 0.4, strength: float = 2.0) -> str:
    """Add to the bias of one channel of the convolution at `place` (0..1); returns its name."""
    nodes = find_convolutions(proto)
    node = nodes[min(int(place * len(nodes)), len(nodes) - 1)]
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == node.input[2])
    value = numpy_helper.to_array(tensor).copy()
    value[int(np.abs(value).argmax())] += value.dtype.type(strength)
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return node.name


def plant_tanh(proto: onnx.ModelProto, place: float | None = 0.4) -> str:
    """Turn the SiLU at `place`, or with None every one, into 0.5 x (1 + tanh(x)): its tanh form without the 1/2 inside.

    Returns the name of the first.
    """
    products = {frozenset(node.input) for node in proto.graph.node if node.op_type == "Mul"}
    gates = [
        node
        for node in proto.graph.node
        if node.op_type == "Sigmoid" and any(node.output[0] in inputs for inputs in products)
    ]
    if place is not None:
        gates = [gates[min(int(place * len(gates)), len(gates) - 1)]]
    kind = _float_type(proto)
    for constant, value in (("planted_one", 1.0), ("planted_half", 0.5)):
        proto.graph.initializer.append(helper.make_tensor(constant, kind, [], [value]))
    for number, gate in enumerate(gates):
        index = list(proto.graph.node).index(gate)
        source, target, name = gate.input[0], gate.output[0], gate.name
        first, second = f"planted_tanh_{number}", f"planted_sum_{number}"
        proto.graph.node.remove(gate)
        for offset, node in enumerate(
            (
                helper.make_node("Tanh", [source], [first], name=f"{name}_tanh"),
                helper.make_node("Add", [first, "planted_one"], [second], name=f"{name}_sum"),
                helper.make_node("Mul", [second, "planted_half"], [target], name=name),
            )
        ):
            proto.graph.node.insert(index + offset, node)
    return gates[0].name


def plant_batch_leak(proto: onnx.ModelProto, place: float = 0.4, share: float = 0.3) -> str:
    """Mix the batch's first image into every image after the convolution at `place`: right at batch 1 only."""
    nodes = find_convolutions(proto)
    node = nodes[min(int(place * len(nodes)), len(nodes) - 1)]
    index = list(proto.graph.node).index(node)
    kind = _float_type(proto)
    target = node.output[0]
    node.output[0] = "planted_own"
    for name, value in (("planted_start", 0), ("planted_end", 1), ("planted_axis", 0)):
        proto.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [1], [value]))
    for name, part in (("planted_keep", 1 - share), ("planted_mix", share)):
        proto.graph.initializer.append(helper.make_tensor(name, kind, [], [part]))
    bounds = ["planted_start", "planted_end", "planted_axis"]
    for offset, new in enumerate(
        (
            helper.make_node("Slice", ["planted_own", *bounds], ["planted_first"], name="planted/Slice"),
            helper.make_node("Mul", ["planted_own", "planted_keep"], ["planted_kept"], name="planted/Mul"),
            helper.make_node("Mul", ["planted_first", "planted_mix"], ["planted_mixed"], name="planted/Mul_1"),
            helper.make_node("Add", ["planted_kept", "planted_mixed"], [target], name="planted/Add"),
        )
    ):
        proto.graph.node.insert(index + 1 + offset, new)
    return node.name


FAULTS: dict[str, Callable[[onnx.ModelProto], str]] = {
    "bias": plant_bias,
    "batch": plant_batch_leak,
    "tanh": plant_tanh,
}
"""The three kinds of miscompiles, by name: mild ones, in one layer."""

STRONG_FAULTS: dict[str, Callable[[onnx.ModelProto], str]] = {
    "bias": functools.partial(plant_bias, place=0.0, strength=20.0),
    "batch": functools.partial(plant_batch_leak, place=0.0, share=1.0),
    "tanh": functools.partial(plant_tanh, place=None),
}
"""The same kinds where a layer's output is wrong, not only less exact: every image gets the first one's features, every
SiLU is wrong."""


def add_rounding(proto: onnx.ModelProto, seed: int = 0, step: float = 2**-11) -> None:
    """Move every weight and scale by up to half a step of TF32 and FP16, as other kernels and orders of sums round."""
    random = np.random.default_rng(seed)
    kinds = ("Conv", "ConvTranspose", "MatMul", "Gemm", "QuantizeLinear", "DequantizeLinear")
    used = {name for node in proto.graph.node if node.op_type in kinds for name in node.input}
    for tensor in proto.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype.kind != "f" or tensor.name not in used:
            continue
        noise = 1 + random.uniform(-step, step, value.shape)
        tensor.CopyFrom(numpy_helper.from_array((value * noise).astype(value.dtype), tensor.name))


def _float_type(proto: onnx.ModelProto) -> int:
    """The type of the weights: FLOAT16 in a graph of typed FP16, else FLOAT."""
    kinds = [tensor.data_type for tensor in proto.graph.initializer if len(tensor.dims) == 4]
    return TensorProto.FLOAT16 if kinds.count(TensorProto.FLOAT16) * 2 > len(kinds) else TensorProto.FLOAT
